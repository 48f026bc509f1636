"""What the tests of the exercises share: the program, its copies, and the exercises by name."""

import pytest


@pytest.fixture(scope="module")
def demo(load_demo):
    return load_demo("exercises/exercise")


@pytest.fixture(scope="module")
def copies(load_demo):
    return load_demo("exercises/copies")


@pytest.fixture(scope="module")
def exercises(demo):
    return {exercise.name: exercise for exercise in demo.EXERCISES}
