"""Seeded random arrays and leaves, shared by the chapters on the engine and its ops."""

import numpy as np
from hypothesis import strategies as st

from tinydiff.autograd import Tensor
from tinydiff.backend import asarray, default_rng, to_numpy

SEEDS = st.integers(0, 2**32 - 1)


def host_normal(seed, *shapes, dtype="float64"):
    """One standard normal NumPy array a shape."""
    rng = default_rng(seed)
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


def normal(seed, *shapes, dtype="float64"):
    """One standard normal array of the backend a shape."""
    return [asarray(a) for a in host_normal(seed, *shapes, dtype=dtype)]


def leaves(seed, *shapes, dtype="float64"):
    """One standard normal leaf a shape."""
    return [Tensor(a, requires_grad=True) for a in normal(seed, *shapes, dtype=dtype)]


def same(a, b):
    """a and b agree to the last bit."""
    np.testing.assert_array_equal(to_numpy(a), to_numpy(b))
