"""The files of demos/precision import each other by name: so do the tests."""

import importlib
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[3] / "demos" / "precision"


@pytest.fixture
def module(monkeypatch):
    """module("rounding") is demos/precision/rounding.py."""
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module
