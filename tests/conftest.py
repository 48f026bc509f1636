"""Shared fixtures: the hypothesis profiles, and the backend that the whole suite runs on."""

import os

# Before NumPy loads: the products here are small, and BLAS threads that spin beside other work slow them tenfold.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import pytest
from hypothesis import HealthCheck, Phase, settings

from tinydiff.backend import BackendError, default_rng, use_backend

settings.register_profile("dev", max_examples=15, deadline=None)
settings.register_profile("ci", max_examples=25, deadline=None, derandomize=True)
slow = [HealthCheck.too_slow, HealthCheck.data_too_large]
settings.register_profile("thorough", max_examples=300, deadline=None, suppress_health_check=slow)
# For tests/mutation.py: that a wrong line fails is enough, and the smallest example of it costs seconds.
no_shrinking = [Phase.explicit, Phase.generate]
settings.register_profile("mutation", parent=settings.get_profile("ci"), phases=no_shrinking)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "dev"))


def pytest_addoption(parser):
    parser.addoption("--backend", default="numpy", choices=["numpy", "cupy"], help="arrays the suite runs on")


def pytest_configure(config):
    """A backend that is asked for and cannot work fails the run: it never skips to green."""
    try:
        use_backend(config.getoption("--backend"))
    except BackendError as error:
        raise pytest.UsageError(str(error)) from None


@pytest.fixture
def rng():
    return default_rng(0)
