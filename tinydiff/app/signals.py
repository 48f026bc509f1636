"""Ctrl-C and SIGTERM become a request to stop, which a loop checks after each step.

    with stop_signals() as stop:
        for state in train(state):
            if stop.requested:
                break

Read next: outputs.py.
"""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any


@dataclass
class Stop:
    """requested: whether a signal has arrived.  signal: its name, "SIGINT" or "SIGTERM"; before that ""."""

    requested: bool = False
    signal: str = ""


@contextlib.contextmanager
def stop_signals(at_once: Callable[[], Any] = lambda: None) -> Iterator[Stop]:
    """Turn the first Ctrl-C (SIGINT) or SIGTERM into `stop.requested`, so that a loop can end its step and save.

    A second signal has its usual effect: Ctrl-C raises KeyboardInterrupt.  The end of the block restores the handlers.
    If a signal is already ignored (nohup), it stays ignored.  Outside the main thread no signal is caught.
    at_once(): the signal handler calls this function, possibly in the middle of a step.
    """
    stop, usual_handlers = Stop(), contextlib.ExitStack()

    def request(number: int, frame: Any) -> None:
        stop.requested, stop.signal = True, signal.Signals(number).name
        usual_handlers.close()
        at_once()

    with usual_handlers:
        if threading.current_thread() is threading.main_thread():
            for number in (getattr(signal, name, None) for name in ("SIGINT", "SIGTERM")):  # Windows may lack one
                if number is not None and signal.getsignal(number) not in (None, signal.SIG_IGN):
                    usual_handlers.callback(signal.signal, number, signal.getsignal(number))
                    signal.signal(number, request)
        yield stop
