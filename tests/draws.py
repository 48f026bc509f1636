"""Seeded random arrays and leaves, shared by the chapters on the engine and its ops."""

import numpy as np
from hypothesis import assume
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


def draw_pair(data, schedule, lowest_s=0):
    """Any s < t of the schedule, with enough signal left at t that x_0_hat keeps 8 digits."""
    assume(lowest_s < schedule.T and schedule.alpha_bar[lowest_s + 1] > 1e-12)
    last = int((schedule.alpha_bar > 1e-12).sum()) - 1
    t = data.draw(st.integers(lowest_s + 1, last), label="t")
    return t, data.draw(st.integers(lowest_s, t - 1), label="s")


# What a function of arrays must not return in place of an array like x (N, D).
NOT_LIKE = {
    "nothing": lambda x: None,
    "a number": lambda x: 0.0,
    "a list": lambda x: to_numpy(x).tolist(),
    "a Tensor": Tensor,
    "one row": lambda x: x[:1],
    "one column": lambda x: x[:, :1],
    "one more axis": lambda x: x[None],
    "turned": lambda x: x.T,
    "its sum": lambda x: x.sum(),
    "float32": lambda x: x.astype("float32"),
    "integers": lambda x: x.astype("int64"),
}
