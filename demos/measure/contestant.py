"""A contestant: a process of its own that is told over a pipe what to run, and takes the time itself.

What a contestant runs is an object that it makes.  A job is the name of a method of this object and the arguments.  The
method returns the stages of one piece of work, such as forward and backward: functions that are called in turn, each
with what the one before returned (the first with None).  close() ends it.

`take_turns` goes over several contestants round by round, so that a busy machine slows all of them alike.
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
from tinydiff.fast.workers import ONE_THREAD, environment

WARM_UP = 2  # rounds that do not count
SAMPLE_SECONDS = 0.03  # a short job is repeated until it takes this long
TRAIN, FORWARD = ("train",), ("forward",)  # jobs of a training step and of sampling


class Contestant:
    """A process of its own, and the pipe to it.  What the process raises is raised here.

    The first answer comes without a question, when the process is ready.
    """

    def __init__(self, name, cores, make):
        self.name, self.cores = name, cores
        context = multiprocessing.get_context("spawn")
        self.pipe, other_end = context.Pipe()
        self.process = context.Process(target=_serve, args=(other_end, make))  # no daemon: it may start workers
        with environment(ONE_THREAD if cores == 1 else {}):
            self.process.start()
        other_end.close()

    def ask(self, *question):
        """seconds(job, repeats) or peak_mb()."""
        with contextlib.suppress(OSError):  # the process is dead: the answer says so
            self.pipe.send(question)
        return self.answer()

    def answer(self):
        try:
            answer = self.pipe.recv()
        except (EOFError, OSError):
            self.process.join()
            raise RuntimeError(f"{self.name} on {self.cores} core(s) died, exit code {self.process.exitcode}") from None
        if isinstance(answer, Exception):
            raise answer
        return answer

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.pipe.close()
        self.process.join()


def take_turns(contestants, jobs, rounds, bar):
    """{(cores, job): {contestant's name: for each round, the seconds of each stage}}, warm-up rounds left out."""
    seconds, repeats = defaultdict(lambda: defaultdict(list)), dict.fromkeys(jobs, 1)
    for i, job in itertools.product(range(-WARM_UP, rounds), jobs):
        took = []
        for contestant in contestants:
            took.append(contestant.ask("seconds", job, repeats[job]))
            bar.set_description(job[0], refresh=False)
            bar.update()
            if i >= 0:
                seconds[contestant.cores, job][contestant.name].append(took[-1])
        if i < 0:
            repeats[job] = max(1, round(SAMPLE_SECONDS / min(map(sum, took))))  # one number for all contestants
    return seconds


def mean_seconds(stages, repeats):
    """Mean seconds of each stage over `repeats` times of all of them."""
    seconds = [0.0] * len(stages)
    for _ in range(repeats):
        value = None
        for i, stage in enumerate(stages):
            start = time.perf_counter()
            value = stage(value)
            seconds[i] += time.perf_counter() - start
    return [s / repeats for s in seconds]


def peak_mb():
    """The most memory that this process and its children have held, each at its own time; None where it is not known.

    Linux writes it into /proc.
    """
    status = [Path(f"/proc/{pid}/status") for pid in (os.getpid(), *(p.pid for p in multiprocessing.active_children()))]
    if not status[0].exists():
        return None
    return sum(int(path.read_text().split("VmHWM:")[1].split()[0]) for path in status) / 1024


def _serve(pipe, make):
    """A contestant's life: answer until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group, but the parent decides
    with contextlib.suppress(EOFError, OSError):  # the parent has closed the pipe
        try:
            contestant = make()
        except Exception as error:
            pipe.send(_portable(error))
            return
        stages = cache(lambda job: getattr(contestant, job[0])(*job[1:]))
        memory = getattr(contestant, "peak_mb", peak_mb)  # it may hold memory of another device
        functions = {"seconds": lambda job, repeats: mean_seconds(stages(job), repeats), "peak_mb": memory}
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
    """An error that can travel through a pipe: a user's mistake as it is, any other error with its traceback."""
    return error if isinstance(error, TinydiffError) else RuntimeError(traceback.format_exc())
