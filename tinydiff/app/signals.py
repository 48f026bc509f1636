"""Ctrl-C and SIGTERM as a request that a loop can answer when its step is done.  Read next: training.py."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any


@dataclass
class Stop:
    """Whether a signal has asked the program to stop, and which: "" until then, then "SIGINT" or "SIGTERM"."""

    requested: bool = False
    signal: str = ""


@contextlib.contextmanager
def stop_signals(at_once: Callable[[], Any] | None = None) -> Iterator[Stop]:
    """Turn the first Ctrl-C (SIGINT) or SIGTERM into `stop.requested`, so that a loop can end its step and save.

        with stop_signals() as stop:
            for state in train(...):
                if stop.requested: break

    A second signal does what it did before (Ctrl-C raises KeyboardInterrupt); leaving the block restores that too.  A
    signal that the caller ignores (nohup) stays ignored.  Outside the main thread nothing is caught.
    at_once(): what the handler itself does, in the middle of whatever runs.
    """
    stop = Stop()
    before: dict[int, Any] = {}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def request(number: int, frame: FrameType | None) -> None:
        stop.requested, stop.signal = True, signal.Signals(number).name
        restore()
        if at_once is not None:
            at_once()

    try:
        if threading.current_thread() is threading.main_thread():
            for number in (getattr(signal, name, None) for name in ("SIGINT", "SIGTERM")):  # Windows may lack one
                if number is not None and signal.getsignal(number) not in (None, signal.SIG_IGN):
                    before[number] = signal.getsignal(number)
                    signal.signal(number, request)
        yield stop
    finally:
        restore()
