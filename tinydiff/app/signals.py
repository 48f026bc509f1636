"""Signals that ask a program to stop: Ctrl-C (SIGINT), SIGTERM, and SIGHUP of a terminal that is closed.

A training run ends its step and saves.  A loop checks for the request after each step:

    with stop_signals() as stop:
        for state in train(state):
            if stop.number:
                break

Everything else ends at once, but in order: temporary files are removed and workers are ended.  The exit code of a
stopped program is 128 plus the number of the signal, as in a shell: 130, 143 and 129.  So `train && sample` stops too.

Read next: streams.py.
"""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

NAMES = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows has no SIGHUP


class Stopped(SystemExit):
    """The program ends because of a signal.  code: 128 plus the signal's number.  message: what is still to be said."""

    code: int

    def __init__(self, number: int, message: str | None = None):
        super().__init__(128 + number)
        self.message = f"ended by {signal.Signals(number).name}\n" if message is None else message


@dataclass
class Stop:
    """number: of the first signal that has arrived; before that 0.  usual(): a block with the handlers of before."""

    number: int = 0
    usual: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext


@contextlib.contextmanager
def stop_signals(at_once: Callable[[], Any] = lambda: None) -> Iterator[Stop]:
    """Turn the first signal into `stop.number`, so that a loop can end its step and save.

    A second signal has its usual effect: Ctrl-C raises KeyboardInterrupt.  The end of the block restores the handlers.
    If a signal is already ignored (nohup), it stays ignored.  Outside the main thread no signal is caught.
    at_once(): the signal handler calls this function, possibly in the middle of a step.
    """
    stop = Stop()

    def request(number: int, frame: Any) -> None:
        stop.number = number
        caught.close()
        _wake_children()
        at_once()

    @contextlib.contextmanager
    def usual() -> Iterator[None]:
        caught.close()
        yield
        if not stop.number:
            caught.enter_context(_handler(request, NAMES))

    stop.usual = usual
    with contextlib.ExitStack() as caught:
        caught.enter_context(_handler(request, NAMES))
        yield stop


@contextlib.contextmanager
def ending_in_order() -> Iterator[None]:
    """Within the block SIGTERM and SIGHUP raise Stopped, as Ctrl-C raises KeyboardInterrupt: `finally` is obeyed."""

    def end(number: int, frame: Any) -> None:
        raise Stopped(number)

    with _handler(end, NAMES[1:]):
        yield


@contextlib.contextmanager
def _handler(handler: Callable[[int, Any], None], names: tuple[str, ...]) -> Iterator[None]:
    """Within the block `handler` is called for these signals, except for those that are ignored."""
    with contextlib.ExitStack() as usual_handlers:
        if threading.current_thread() is threading.main_thread():
            for number in (getattr(signal, name, None) for name in names):
                if number is not None and signal.getsignal(number) not in (None, signal.SIG_IGN):
                    usual_handlers.callback(signal.signal, number, signal.getsignal(number))
                    signal.signal(number, handler)
        yield


def _wake_children() -> None:
    """Let stopped workers (SIGSTOP) go on: the step would wait for them for ever."""
    for child in multiprocessing.active_children() if hasattr(signal, "SIGCONT") else ():
        with contextlib.suppress(OSError, TypeError):  # it has ended, or has not begun
            os.kill(child.pid, signal.SIGCONT)  # type: ignore[arg-type]
