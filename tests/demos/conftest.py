"""Demos are scripts, not a package: tests load one by its file name."""

import importlib.util
from pathlib import Path

import pytest

DEMOS = Path(__file__).parents[2] / "demos"


@pytest.fixture(scope="session")
def load_demo():
    """load_demo("sample") is the module of demos/sample.py."""

    def load(name):
        spec = importlib.util.spec_from_file_location(name, DEMOS / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load
