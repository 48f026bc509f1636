"""A stand-in for CUDA graphs, for the stand-in of CuPy (strict.py): it notes what a step orders, and does it again.

Between begin_capture and end_capture nothing is computed: each kernel and each array function becomes an entry of the
tape, with the arrays and the numbers that it was given.  Results are nan until the tape is played.  A launch computes
all entries, in order, on the same arrays.  So a number that was fixed by mistake, an array that another one has taken
the place of, and an input that was not sent all show in the numbers.

As CuPy does, the tape refuses what would wait for the device or copy between host and device.
"""

import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np

REFUSED = "operation not permitted when stream is capturing"


class Tape:
    """The entries in order, and every array that was made while they were noted: memory that no other array gets."""

    def __init__(self) -> None:
        self.entries: list[Callable[[], Any]] = []
        self.arrays: list[Any] = []

    def launch(self) -> None:
        if now.tape is not None:
            raise RuntimeError("a graph is launched while another one is recorded")
        counts["graph launch"] += 1
        with np.errstate(all="ignore"):
            for entry in self.entries:
                entry()


class Now:
    """What the device does now: tape is None, or the tape that notes the orders."""

    tape: Tape | None = None
    stream: "Stream | None" = None
    pool: Any = None


now = Now()
counts = {"graph launch": 0, "recordings": 0}
planted: list[str] = []  # what begin_capture raises, if anything: a driver that cannot capture


class Stream:
    """A stream on which orders can be noted.  The default stream cannot: it is no object of this class."""

    def __init__(self, non_blocking: bool = False):
        self.non_blocking = non_blocking

    def __enter__(self) -> "Stream":
        self._before, now.stream = now.stream, self
        return self

    def __exit__(self, *_: Any) -> None:
        now.stream = self._before

    def begin_capture(self) -> None:
        if planted:
            raise RuntimeError(planted[0])
        if now.stream is not self or not self.non_blocking or now.pool is None or now.tape is not None:
            raise RuntimeError("a capture needs a non-blocking stream, made current, and a memory pool of its own")
        now.tape = Tape()
        counts["recordings"] += 1

    def end_capture(self) -> Tape:
        tape, now.tape = now.tape, None
        if tape is None:
            raise RuntimeError("end_capture without begin_capture")
        return tape

    def synchronize(self) -> None:
        refuse_while_noting()


class MemoryPool:
    def malloc(self, size: int) -> None:
        raise NotImplementedError("NumPy has the memory")

    def free_all_blocks(self) -> None:
        refuse_while_noting()


@contextmanager
def using_allocator(malloc: Callable) -> Iterator[None]:
    before, now.pool = now.pool, malloc.__self__  # type: ignore[attr-defined]
    try:
        yield
    finally:
        now.pool = before


def refuse_while_noting() -> None:
    if now.tape is not None:
        raise RuntimeError(REFUSED)


def order(entry: Callable[[], Any]) -> None:
    """Do this now, or note it."""
    if now.tape is None:
        entry()
    else:
        now.tape.entries.append(entry)


def compute(function: Callable[..., Any], args: tuple, kwargs: dict, layout: Any = None) -> Any:
    """function(*args, **kwargs) of NumPy.  While a tape notes, the results are not known yet.

    layout: of the results in memory, "C", or None: as NumPy makes them.  A view of an argument is made at once: the
    host knows where it lies.  Any other result is computed here once, only to learn its shape.
    """
    if now.tape is None:
        return function(*args, **kwargs)
    with np.errstate(all="ignore"):
        result = function(*args, **kwargs)
    given = list(_leaves((args, tuple(kwargs.values()), getattr(function, "__self__", None))))
    parts = result if isinstance(result, list | tuple) else [result]
    if not all(isinstance(part, np.ndarray | np.generic) for part in parts):
        return result
    if all(any(np.may_share_memory(part, a) for a in given) for part in parts):
        return result
    made = [np.asarray(part, order=layout) for part in parts]
    for a in made:
        unknown(a)

    def again() -> None:
        results = function(*args, **kwargs)
        for a, value in zip(made, results if isinstance(result, list | tuple) else [results]):
            a[...] = value

    now.tape.entries.append(again)
    return type(result)(made) if isinstance(result, list | tuple) else made[0]


def unknown(a: np.ndarray) -> None:
    """What the memory of a result holds before it is computed: nan, and for integers a valid index."""
    a.fill(np.nan if a.dtype.kind == "f" else 0)


def _leaves(value: Any) -> Iterator[np.ndarray]:
    if isinstance(value, np.ndarray):
        yield value
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _leaves(part)


@contextmanager
def driver_that_cannot_capture(message: str) -> Iterator[None]:
    planted.append(message)
    try:
        yield
    finally:
        with suppress(ValueError):
            planted.remove(message)


cuda = {
    "Stream": Stream,
    "MemoryPool": MemoryPool,
    "using_allocator": using_allocator,
    "get_current_stream": lambda: now.stream or DEFAULT,
}
DEFAULT = types.SimpleNamespace(synchronize=refuse_while_noting)
default_pool = MemoryPool()
