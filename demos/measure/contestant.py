"""A contestant of benchmark.py: a process of its own that is told over a pipe what to run, and takes the time itself.

What it runs is an object that it makes.  A job is the name of a method of it and the arguments; the method returns the
stages of one piece of work: functions that are called in turn, each with what the one before returned (the first with
None), such as forward and backward.  close() ends it.
"""

import contextlib
import multiprocessing
import os
import signal
import time
import traceback
from functools import cache
from pathlib import Path

from tinydiff.backend import TinydiffError
from tinydiff.parallel.local import ONE_THREAD, environment


class Contestant:
    """A process of its own, and the pipe to it.

    Its first answer comes unasked, when it is ready.  What it raises is raised here.
    """

    def __init__(self, name, cores, make):
        self.name, self.cores = name, cores
        context = multiprocessing.get_context("spawn")
        self.pipe, there = context.Pipe()
        self.process = context.Process(target=_serve, args=(there, make))  # no daemon: ours starts workers of its own
        with environment(ONE_THREAD if cores == 1 else {}):
            self.process.start()
        there.close()

    def ask(self, *question):
        """seconds(job, repeats) or peak_mb()."""
        with contextlib.suppress(OSError):  # it is dead: the answer says so
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
        memory = getattr(contestant, "peak_mb", peak_mb)  # it may hold some that is not this machine's
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
    """The most memory that this process and its children have held, each at its own time; None if nobody tells."""
    status = [Path(f"/proc/{pid}/status") for pid in (os.getpid(), *(p.pid for p in multiprocessing.active_children()))]
    if not status[0].exists():
        return None
    return sum(int(path.read_text().split("VmHWM:")[1].split()[0]) for path in status) / 1024


def _portable(error):
    """An error as it can travel through a pipe: a user's one as it is, any other with its traceback."""
    return error if isinstance(error, TinydiffError) else RuntimeError(traceback.format_exc())
