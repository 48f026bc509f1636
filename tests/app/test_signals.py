"""A signal is a request that a loop can answer when its step is done, and the second one acts at once; else it ends."""

import multiprocessing
import os
import signal
import threading
import time

import pytest

from tinydiff.app.signals import NAMES, Stopped, ending_in_order, stop_signals

pytestmark = pytest.mark.program


@pytest.fixture
def handlers():
    """Python's own handlers during the test, whatever pytest was born with: a background job ignores SIGINT."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    usual = dict.fromkeys(before, signal.SIG_DFL) | {signal.SIGINT: signal.default_int_handler}
    for number, handler in usual.items():
        signal.signal(number, handler)
    yield usual
    for number, handler in before.items():
        signal.signal(number, handler)


def recorded(numbers):
    """A list of the signals that come from now on, in order, outside the blocks that catch them."""
    seen = []
    for number in numbers:
        signal.signal(number, lambda number, frame: seen.append(number))
    return seen


@pytest.mark.parametrize("name", NAMES)
def test_the_first_signal_sets_the_flag_and_the_second_acts(handlers, name):
    """One signal: only `stop` changes.  A second one, of either kind, does what it did before the block."""
    seen = recorded(handlers)
    with stop_signals() as stop:
        assert stop.number == 0
        signal.raise_signal(getattr(signal, name))
        assert stop.number == getattr(signal, name) and seen == []
        for number in handlers:
            signal.raise_signal(number)
        assert seen == [*handlers] and stop.number == getattr(signal, name)


def test_a_second_ctrl_c_is_a_keyboard_interrupt(handlers):
    """With Python's own handler in place, impatience works: the second Ctrl-C raises KeyboardInterrupt."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with pytest.raises(KeyboardInterrupt), stop_signals():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("error", [None, ValueError])
def test_the_handlers_are_restored_at_the_end(handlers, error):
    """After the block, left normally or by an exception, both handlers are what they were."""
    try:
        with stop_signals():
            assert all(signal.getsignal(number) is not handler for number, handler in handlers.items())
            if error:
                raise error
    except ValueError:
        pass
    assert {number: signal.getsignal(number) for number in handlers} == handlers


def test_an_ignored_signal_stays_ignored(handlers):
    """Under nohup or in the background SIGINT is ignored by the caller's wish: it stays so; SIGTERM is caught."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with stop_signals() as stop:
        signal.raise_signal(signal.SIGINT)
        assert not stop.number and signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) is not handlers[signal.SIGTERM]


def test_outside_the_main_thread_no_handler_is_touched(handlers):
    """Python allows handlers in the main thread only; elsewhere the block works and the flag stays down."""
    found = []

    def work():
        with stop_signals() as stop:
            found.append(stop.number)
            found.append({number: signal.getsignal(number) for number in handlers} == handlers)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [0, True]


def test_a_system_without_sigterm_still_stops_on_ctrl_c(handlers, monkeypatch):
    """Where the signal module has no SIGTERM, SIGINT alone is caught."""
    monkeypatch.delattr(signal, "SIGTERM")
    with stop_signals() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.number == signal.SIGINT


@pytest.mark.parametrize("name", NAMES)
def test_the_handler_may_act_at_once(handlers, name):
    """at_once() runs within the first signal, once, when the flag is up and the old handlers are back."""
    seen = []

    def at_once():
        seen.append(signal.Signals(stop.number).name)
        assert {number: signal.getsignal(number) for number in handlers} == handlers

    with stop_signals(at_once) as stop:
        assert seen == []
        signal.raise_signal(getattr(signal, name))
        assert seen == [name]
    assert seen == [name]


@pytest.mark.parametrize("name", NAMES)
def test_within_usual_a_signal_has_its_usual_effect_and_afterwards_it_is_a_request_again(handlers, name):
    """For work that may end at once: nothing is a request there; before and after it everything is."""
    seen = recorded(handlers)
    with stop_signals() as stop:
        with stop.usual():
            signal.raise_signal(getattr(signal, name))
        assert seen == [getattr(signal, name)] and stop.number == 0
        signal.raise_signal(getattr(signal, name))
        assert seen == [getattr(signal, name)] and stop.number == getattr(signal, name)
        with stop.usual():
            pass
        signal.raise_signal(getattr(signal, name))  # the second request acts, whatever was done in between
        assert len(seen) == 2


@pytest.mark.parametrize("name", NAMES[1:])
def test_a_program_ends_in_order(handlers, name):
    """SIGTERM and SIGHUP raise Stopped where they come, with the shell's code; Ctrl-C is left to Python."""
    undone = []
    with pytest.raises(Stopped, match=str(128 + getattr(signal, name))) as end, ending_in_order():
        assert signal.getsignal(signal.SIGINT) is handlers[signal.SIGINT]
        try:
            signal.raise_signal(getattr(signal, name))
        finally:
            undone.append(True)
    assert end.value.code == 128 + getattr(signal, name) and end.value.message == f"ended by {name}\n" and undone
    assert {number: signal.getsignal(number) for number in handlers} == handlers


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="a system whose processes cannot be stopped")
def test_a_signal_wakes_stopped_workers(handlers):
    """A step that waits for a stopped worker would never end."""
    child = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(60,), daemon=True)
    child.start()
    try:
        os.kill(child.pid, signal.SIGSTOP)
        assert os.WIFSTOPPED(os.waitpid(child.pid, os.WUNTRACED)[1])
        with stop_signals():
            signal.raise_signal(signal.SIGTERM)
        assert os.WIFCONTINUED(os.waitpid(child.pid, os.WCONTINUED)[1])
    finally:
        child.kill()
        child.join()
