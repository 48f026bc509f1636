"""The programs of demos/measure start processes, which find its modules by name: so do the tests."""

import importlib
import itertools
from pathlib import Path

import pytest

MEASURE = Path(__file__).parents[3] / "demos" / "measure"


@pytest.fixture
def module(monkeypatch):
    """module("scaling") is demos/measure/scaling.py, by a name under which a process that it starts finds it too."""
    monkeypatch.syspath_prepend(MEASURE)
    return importlib.import_module


class Clock:
    """Stands in for the module `time`.  Only `spend` moves it, so that what takes how long is known on paper."""

    def __init__(self):
        self.now = 1000.0

    def perf_counter(self):
        return self.now

    def spend(self, seconds, value=None):
        self.now += seconds
        return value

    def costing(self, *seconds, value=None):
        """A function that takes these times in turn, then the first again."""
        turns = itertools.cycle(seconds)
        return lambda *args, **kwargs: self.spend(next(turns), value)


@pytest.fixture
def clock():
    return Clock()
