"""Ctrl-C and SIGTERM as a request that a loop answers when its step is done.

    with stop_signals() as stop:
        for state in train(state):
            if stop.requested:
                break

Read next: checkpoint.py.
"""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any


@dataclass
class Stop:
    """Whether a signal has asked the program to stop, and the signal's name: "SIGINT" or "SIGTERM", before that ""."""

    requested: bool = False
    signal: str = ""


@contextlib.contextmanager
def stop_signals(at_once: Callable[[], Any] = lambda: None) -> Iterator[Stop]:
    """Turn the first Ctrl-C (SIGINT) or SIGTERM into `stop.requested`, so that a loop can end its step and save.

    A second signal has its usual effect: Ctrl-C raises KeyboardInterrupt.  The end of the block restores the handlers.
    A signal that the program was started to ignore (nohup) stays ignored.  Outside the main thread no signal is caught.
    at_once(): called by the signal handler, in the middle of whatever the program is doing.
    """
    stop = Stop()
    names = ("SIGINT", "SIGTERM") if threading.current_thread() is threading.main_thread() else ()
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]  # Windows may lack one
    usual = {number: signal.getsignal(number) for number in numbers}
    usual = {number: handler for number, handler in usual.items() if handler not in (None, signal.SIG_IGN)}

    def restore() -> None:
        for number, handler in usual.items():
            signal.signal(number, handler)

    def request(number: int, frame: FrameType | None) -> None:
        stop.requested, stop.signal = True, signal.Signals(number).name
        restore()
        at_once()

    try:
        for number in usual:
            signal.signal(number, request)
        yield stop
    finally:
        restore()
