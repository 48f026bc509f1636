"""The programs of demos/measure start processes, which find its modules by name: so do the tests."""

import importlib
from pathlib import Path

import pytest

MEASURE = Path(__file__).parents[3] / "demos" / "measure"


@pytest.fixture
def module(monkeypatch):
    """module("scaling") is demos/measure/scaling.py, by a name under which a process that it starts finds it too."""
    monkeypatch.syspath_prepend(MEASURE)
    return importlib.import_module
