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
