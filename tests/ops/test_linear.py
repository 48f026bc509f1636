"""The affine map on the last axis, and what it is equal to."""

import numpy as np
import pytest
from draws import SEEDS, host_normal
from hypothesis import given
from hypothesis import strategies as st

from tinydiff import ops
from tinydiff.backend import asarray, to_numpy

pytestmark = pytest.mark.engine

SIZES = st.integers(1, 4)


@given(SEEDS, st.lists(SIZES, max_size=3), SIZES, SIZES)
def test_linear_is_x_w_plus_b_for_each_row(seed, lead, i, o):
    """y[..., p] = b[p] + sum_k x[..., k] w[k, p], whatever axes lead."""
    x, w, b = host_normal(seed, (*lead, i), (i, o), (o,))
    y = to_numpy(ops.linear(*map(asarray, (x, w, b))))
    assert y.shape == (*lead, o)
    for row in np.ndindex(*lead):
        for p in range(o):
            expected = b[p] + sum(x[row][k] * w[k, p] for k in range(i))
            assert abs(y[row][p] - expected) <= 1e-14  # four products of numbers about 1


@given(SEEDS, SIZES, SIZES, SIZES, SIZES)
def test_linear_on_maps_is_the_1x1_convolution(seed, n, size, i, o):
    """linear(x, w, b) = conv2d(x, w as a 1x1 filter, b) on maps (N, H, W, C)."""
    x, w, b = map(asarray, host_normal(seed, (n, size, size, i), (i, o), (o,)))
    a, c = to_numpy(ops.linear(x, w, b)), to_numpy(ops.conv2d(x, w.reshape(1, 1, i, o), b))
    np.testing.assert_allclose(a, c, rtol=0, atol=1e-14)


def test_more_channels_than_256_are_compared_by_value():
    """Python keeps one object for each integer up to 256 only."""
    assert ops.linear(*(asarray(np.zeros(shape)) for shape in [(2, 300), (300, 400), (400,)])).shape == (2, 400)


@pytest.mark.parametrize(
    "x, w, b",
    [
        ((2, 3), (4, 5), (5,)),
        ((2, 8), (4, 5), (5,)),
        ((2, 4), (4, 5), (4,)),
        ((2, 4), (4, 5), (6,)),
        ((2, 4), (4, 5), (1, 5)),
        ((2, 4), (4, 5), ()),
        ((2, 4), (4,), ()),
        ((2, 4), (4, 5, 6), (5, 6)),
    ],
)
def test_linear_refuses_what_does_not_fit(x, w, b):
    """Shapes that make no affine map are a ValueError naming all three."""
    with pytest.raises(ValueError) as error:
        ops.linear(*(asarray(np.zeros(shape)) for shape in (x, w, b)))
    assert str(error.value) == f"linear: x {x} and b {b} do not fit w {w}"
