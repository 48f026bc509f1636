"""What the laws of schedules, chains and samplers are drawn from and compared with."""

import numpy as np
from hypothesis import strategies as st

from tinydiff.backend import default_rng, standard_normal, to_numpy
from tinydiff.diffusion import Schedule

any_schedule = st.from_type(Schedule)
seeds = st.integers(0, 99)


def normal(seed, *shape, dtype="float64"):
    """A standard normal array of the backend."""
    return standard_normal(default_rng(seed), shape, dtype)


def assert_same(a, b):
    """a and b agree to the last bit."""
    np.testing.assert_array_equal(to_numpy(a), to_numpy(b))


def assert_close(a, b, rtol=1e-12, atol=1e-12):
    """Equal to a few hundred float64 roundings of numbers near 1, unless a test says what costs it more."""
    np.testing.assert_allclose(to_numpy(a), to_numpy(b), rtol=rtol, atol=atol)
