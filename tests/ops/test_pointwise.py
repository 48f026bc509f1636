"""Elementary functions against NumPy, and at their extremes."""

import numpy as np
import pytest
from draws import SEEDS
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tinydiff import ops
from tinydiff.autograd import Tensor
from tinydiff.backend import asarray, default_rng, to_numpy

pytestmark = pytest.mark.engine

ARRAYS = hnp.arrays("float64", hnp.array_shapes(min_dims=0), elements=st.floats(-50, 50, width=32))
POSITIVE = hnp.arrays("float64", hnp.array_shapes(min_dims=0), elements=st.floats(2**-10, 2**10, width=32))


def silu(x):
    return x / (1 + np.exp(-x))


def gradient(op, *inputs, g, **static):
    """The gradients of <g, op(inputs)>."""
    leaves = [Tensor(asarray(x), requires_grad=True) for x in inputs]
    op(*leaves, **static).backward(asarray(g))
    return [to_numpy(leaf.grad) for leaf in leaves]


@pytest.mark.parametrize(
    "op, expected",
    [
        (ops.exp, np.exp),
        (ops.neg, np.negative),
        (ops.silu, silu),
    ],
    ids=lambda f: getattr(f, "__name__", ""),
)
@given(ARRAYS)
def test_functions_of_any_number_are_numpys(op, expected, x):
    """exp, silu and neg, element by element."""
    # silu goes through tanh, which knows 1 - tanh to an absolute 2^-53, times |x| <= 50.
    np.testing.assert_allclose(to_numpy(op(asarray(x))), expected(x), rtol=1e-14, atol=1e-14)


@given(POSITIVE)
def test_log_is_numpys(x):
    """The natural logarithm, element by element."""
    np.testing.assert_allclose(to_numpy(ops.log(asarray(x))), np.log(x), rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_silu_holds_at_ten_thousand(dtype):
    """At -1e4 and 1e4: 0 and x, with slopes 0 and 1; no overflow, no nan."""
    x, g = np.array([-1e4, 1e4], dtype), np.array([3, -5], dtype)
    np.testing.assert_array_equal(to_numpy(ops.silu(asarray(x))), [0, 1e4])
    np.testing.assert_array_equal(gradient(ops.silu, x, g=g)[0], [0, -5])


def slope_of_sigmoid(x):
    e = np.exp(-abs(x))
    return e / (1 + e) ** 2


def sigmoid(x):
    e = np.exp(-abs(x))
    return np.where(x < 0, e, 1) / (1 + e)


# op: value and slope by formulas that neither overflow nor cancel; numbers it takes, as powers of ten of either sign or
# up to a largest; and the absolute errors of value and slope, in roundings, where they go through 1 - tanh.
EXTREMES = {
    "exp": (np.exp, np.exp, lambda x, top: np.minimum(x, np.log(top / 10)), lambda x: 0, lambda x: 0),
    "log": (np.log, lambda x: 1 / x, lambda x, top: abs(x), lambda x: 0, lambda x: 0),
    "silu": (
        lambda x: x * sigmoid(x),
        lambda x: sigmoid(x) + x * slope_of_sigmoid(x),
        lambda x, top: x,
        lambda x: 4 * np.minimum(abs(x), 100),  # beyond 100 the sigmoid is 0 or 1 exactly
        lambda x: 8 + 4 * np.minimum(abs(x), 100),
    ),
}


@pytest.mark.parametrize("name", EXTREMES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@given(SEEDS)
def test_values_and_slopes_are_right_from_the_smallest_number_to_the_largest(name, dtype, seed):
    """At 10^k for k over the whole range of floats, in both signs: finite, and right to 16 roundings."""
    value, slope, domain, value_error, slope_error = EXTREMES[name]
    kind, rng = np.finfo(dtype), default_rng(seed)
    # A factor of ten from either end: 1 / x and the products with g are finite.
    powers = np.r_[rng.uniform(np.log10(kind.tiny) + 1, np.log10(kind.max) - 1, 50), rng.uniform(-3, 3, 50)]
    x = domain(rng.choice([-1, 1], 100) * 10**powers, float(kind.max)).astype(dtype)
    g = rng.standard_normal(100).astype(dtype)
    rounding, exact = kind.eps / 2, x.astype("longdouble")
    y, (dx,) = to_numpy(getattr(ops, name)(asarray(x))), gradient(getattr(ops, name), x, g=g)
    with np.errstate(under="ignore"):
        for found, expected, error in [
            (y, value(exact), value_error(exact)),
            (dx, g * slope(exact), abs(g) * slope_error(exact)),
        ]:
            assert np.isfinite(found).all()
            assert (abs(found - expected) <= rounding * (16 * abs(expected) + error) + 4 * kind.tiny).all()
