"""One process that does all the work, with the plain functions of the book.  --plain uses it.

Alone and OneProcess have the methods of Ranks and Workers (fast/workers.py), but they need no file of fast/.
Read next: signals.py.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from tinydiff.backend import FAST, TinydiffError
from tinydiff.nn import Module
from tinydiff.train import gradients_of


def one_process() -> Any:
    """The ranks of a program that runs as one process: fast.workers.ALONE if faster functions are installed."""
    if not FAST:
        return Alone()
    from tinydiff.fast.workers import ALONE

    return ALONE


class Alone:
    """The ranks of a program that runs as one process: rank 0 of 1.  The methods are those of fast.workers.Ranks."""

    rank, size = 0, 1

    def default_workers(self, most: int = 1) -> int:
        return 1

    def part(self, n: int) -> slice:
        return slice(0, n)

    def broadcast(self, make: Callable[[], Any]) -> Any:
        return make()

    def allreduce_mean(self, a: Any) -> Any:
        return a

    def rescue(self, save: Callable[[], Any]) -> None:
        """Do nothing: a local run has time to finish its step and to save afterwards."""

    def workers(self, build: Callable[[], Module], num_workers: int) -> "OneProcess":
        if num_workers != 1:
            raise TinydiffError(f"--workers {num_workers}: with --plain one process does all the work")
        return OneProcess(build)


class OneProcess:
    """The network that build() makes, in this process.  The methods are those of fast.workers.Workers."""

    num_workers, ranks = 1, Alone()

    def __init__(self, build: Callable[[], Module]):
        self.model = build()
        self.parameters = self.model.parameters()
        self.gradients = partial(gradients_of, self.model)

    def map(self, f: Callable[[Any, Any], Any], jobs: Sequence[Any]) -> Iterator[Any]:
        yield from (f(self.model, job) for job in jobs)

    @contextmanager
    def weights(self, average: Sequence[Any]) -> Iterator[None]:
        """Within the block the network computes with the arrays `average`, such as an EMA.average."""
        before = [p.data for p in self.parameters]
        try:
            for p, a in zip(self.parameters, average):
                p.data = a.copy()
            yield
        finally:
            for p, a in zip(self.parameters, before):
                p.data = a

    def close(self) -> None:
        """Do nothing: there is no other process to end."""

    def __enter__(self) -> "OneProcess":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()
