"""A contestant: a process of its own that gets jobs over a pipe, runs them and measures their time.

The process first makes one object.  A job is the name of a method of this object, and the arguments.  The method
returns the stages of one piece of work, such as forward and backward.  Stages are functions that are called in turn.
The first gets None, and each further stage gets the result of the stage before.  At the end close() of the object is
called.

`take_turns` goes over several contestants round by round, so that a busy machine slows all of them equally.
Read next: figures.py.
"""

import contextlib
import itertools
import multiprocessing
import os
import signal
import time
import traceback
from collections import defaultdict
from functools import cache
from pathlib import Path

from tinydiff.backend import TinydiffError
from tinydiff.fast.processes import ONE_THREAD, environment

WARM_UP = 2  # rounds that do not count
SAMPLE_SECONDS = 0.03  # a shorter job is repeated to take about this long
TRAIN, FORWARD = ("train",), ("forward",)  # jobs of a training step and of sampling


class Contestant:
    """A process of its own, and the pipe to it.  An exception in the process is raised again here.

    The process sends a first answer, without a question, when it is ready.
    """

    def __init__(self, name, cores, make):
        self.name, self.cores = name, cores
        context = multiprocessing.get_context("spawn")
        self.pipe, other_end = context.Pipe()
        self.process = context.Process(target=_serve, args=(other_end, make))  # no daemon, because it may start workers
        with environment(ONE_THREAD if cores == 1 else {}):
            self.process.start()
        other_end.close()

    def ask(self, *question):
        """The answer to a question: ("seconds", job, repeats), ("peak_mb",) or ("notes",)."""
        self.tell(*question)
        return self.answer()

    def tell(self, *question):
        """Ask a question whose answer is fetched later."""
        with contextlib.suppress(OSError):  # the process is dead: `answer` raises the error
            self.pipe.send(question)

    def answer(self):
        try:
            answer = self.pipe.recv()
        except (EOFError, OSError):
            self.process.join()
            raise RuntimeError(f"{self.name} on {self.cores} core(s) died, exit code {self.process.exitcode}") from None
        if isinstance(answer, Exception):
            raise answer
        return answer

    def kill(self):
        """End a process that does not answer."""
        self.process.kill()
        self.process.join()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.pipe.close()
        self.process.join()


def take_turns(contestants, jobs, rounds, bar, failed=None):
    """{(cores, job): {contestant's name: for each round, the seconds of each stage}}, without warm-up rounds.

    failed: None, or failed(contestant, error), which is called for a contestant that raises an error.  It then takes
    no further part, and its seconds are dropped.
    """
    contestants = list(contestants)
    seconds, repeats = defaultdict(lambda: defaultdict(list)), dict.fromkeys(jobs, 1)
    for i, job in itertools.product(range(-WARM_UP, rounds), jobs):
        took = []
        for contestant in list(contestants):
            bar.set_description(job[0], refresh=False)
            bar.update()
            try:
                took.append(contestant.ask("seconds", job, repeats[job]))
            except Exception as error:
                if failed is None:
                    raise
                failed(contestant, error)
                contestants.remove(contestant)
                for by in seconds.values():
                    by.pop(contestant.name, None)
                continue
            if i >= 0:
                seconds[contestant.cores, job][contestant.name].append(took[-1])
        if i < 0:
            # One number for all contestants, from the fastest warm-up round: a stall makes others too few.
            repeats[job] = max(repeats[job], round(SAMPLE_SECONDS / min(map(sum, took))))
    return seconds


def mean_seconds(stages, repeats):
    """The mean seconds of each stage, if all stages run `repeats` times."""
    seconds = [0.0] * len(stages)
    for _ in range(repeats):
        value = None
        for i, stage in enumerate(stages):
            start = time.perf_counter()
            value = stage(value)
            seconds[i] += time.perf_counter() - start
    return [s / repeats for s in seconds]


def peak_mb():
    """The sum of the peak memory of this process and of its children, in MB; None if it is not known.

    Linux writes the peaks into /proc.
    """
    status = [Path(f"/proc/{pid}/status") for pid in (os.getpid(), *(p.pid for p in multiprocessing.active_children()))]
    if not status[0].exists():
        return None
    return sum(int(path.read_text().split("VmHWM:")[1].split()[0]) for path in status) / 1024


def _serve(pipe, make):
    """The program of the process: answer until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes, but only the parent reacts
    with contextlib.suppress(EOFError, OSError):  # the parent has closed the pipe
        try:
            contestant = make()
        except Exception as error:
            pipe.send(_portable(error))
            return
        stages = cache(lambda job: getattr(contestant, job[0])(*job[1:]))
        memory = getattr(contestant, "peak_mb", peak_mb)  # OnDevice measures the memory of a GPU
        functions = {"seconds": lambda job, repeats: mean_seconds(stages(job), repeats), "peak_mb": memory}
        functions["notes"] = lambda: getattr(contestant, "notes", [])
        with contextlib.closing(contestant):
            pipe.send("ready")
            while True:
                what, *arguments = pipe.recv()
                try:
                    answer = functions[what](*arguments)
                except Exception as error:
                    answer = _portable(error)
                pipe.send(answer)


def _portable(error):
    """An error that a pipe can send: a TinydiffError unchanged, any other error as text with its traceback."""
    return error if isinstance(error, TinydiffError) else RuntimeError(traceback.format_exc())
