"""Elementary functions against NumPy, their extremes and kinks, and dropout's mask."""

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
        (ops.tanh, np.tanh),
        (ops.neg, np.negative),
        (ops.sigmoid, lambda x: 1 / (1 + np.exp(-x))),
        (ops.silu, silu),
        (ops.relu, lambda x: np.where(x > 0, x, 0)),
    ],
    ids=lambda f: getattr(f, "__name__", ""),
)
@given(ARRAYS)
def test_functions_of_any_number_are_numpys(op, expected, x):
    """exp, tanh, sigmoid, silu, relu and neg, element by element."""
    # sigmoid and silu go through tanh, which knows 1 - tanh to an absolute 2^-53, times |x| <= 50 in silu.
    np.testing.assert_allclose(to_numpy(op(asarray(x))), expected(x), rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("op, expected", [(ops.log, np.log), (ops.sqrt, np.sqrt)])
@given(POSITIVE)
def test_functions_of_positive_numbers_are_numpys(op, expected, x):
    """log and sqrt, element by element."""
    np.testing.assert_allclose(to_numpy(op(asarray(x))), expected(x), rtol=1e-14, atol=1e-15)


@given(POSITIVE, st.sampled_from([-2, -1, -0.5, 0, 0.5, 1, 2, 3, 1.7]))
def test_power_is_numpys(x, exponent):
    """power(x, exponent=p) = x ** p for integers and fractions."""
    np.testing.assert_allclose(to_numpy(ops.power(asarray(x), exponent=exponent)), x**exponent, rtol=1e-14)


def test_the_power_zero_is_one_and_flat_everywhere():
    """x ** 0 = 1 with gradient 0, at x = 0 too, where the general rule divides by 0."""
    x, g = np.array([-1.0, 0.0, 2.0]), np.array([3.0, 5.0, -7.0])
    for exponent in (0, 0.0):
        np.testing.assert_array_equal(to_numpy(ops.power(asarray(x), exponent=exponent)), 1)
        np.testing.assert_array_equal(gradient(ops.power, x, g=g, exponent=exponent)[0], 0)


@given(st.data())
def test_maximum_and_where_are_numpys_with_broadcasting(data):
    """maximum(x, y) and where(x, y, condition=c) on shapes that broadcast together, exactly."""
    shapes = data.draw(hnp.mutually_broadcastable_shapes(num_shapes=3, max_dims=3, max_side=3)).input_shapes
    rng = default_rng(data.draw(SEEDS))
    x, y, c = (rng.integers(-2, 3, shape) * 1.0 for shape in shapes)
    np.testing.assert_array_equal(to_numpy(ops.maximum(asarray(x), asarray(y))), np.maximum(x, y))
    z = ops.where(asarray(x), asarray(y), condition=asarray(c > 0))
    np.testing.assert_array_equal(to_numpy(z), np.where(c > 0, x, y))


@given(st.floats(-100, 100), SEEDS)
def test_a_python_number_is_an_input_of_maximum_and_where(number, seed):
    """Numbers stand on either side, take the other's float32, and pass no gradient."""
    rng = default_rng(seed)
    x, g = rng.standard_normal((2, 5)).astype("float32")
    condition = rng.random(5) > 0.5
    for op, static in [(ops.maximum, {}), (ops.where, {"condition": asarray(condition)})]:
        array = np.full(5, number, "float32")
        both = gradient(op, x, array, g=g, **static)
        for side in (0, 1):
            leaf = Tensor(asarray(x), requires_grad=True)
            y = op(number, leaf, **static) if side else op(leaf, number, **static)
            y.backward(asarray(g))
            swapped = gradient(op, array, x, g=g, **static)[1] if side else both[0]
            assert y.dtype == np.float32 and leaf.grad.dtype == np.float32
            np.testing.assert_array_equal(to_numpy(leaf.grad), swapped)


@given(SEEDS)
def test_where_the_inputs_of_maximum_tie_each_input_gets_half(seed):
    """The gradient of maximum goes to the larger input; equal ones share it, so the two always sum to g."""
    rng = default_rng(seed)
    x, y, g = rng.integers(-1, 2, 20) * 1.0, rng.integers(-1, 2, 20) * 1.0, rng.standard_normal(20)
    dx, dy = gradient(ops.maximum, x, y, g=g)
    np.testing.assert_array_equal(dx, np.where(x > y, g, np.where(x < y, 0, g / 2)))
    np.testing.assert_array_equal(dy, np.where(y > x, g, np.where(y < x, 0, g / 2)))


def test_relu_is_flat_at_zero():
    """relu's derivative is 0 up to and at 0, and 1 above."""
    x, g = np.array([-1.0, -0.0, 0.0, 1e-300]), np.array([2.0, -3.0, 5.0, 7.0])
    np.testing.assert_array_equal(gradient(ops.relu, x, g=g)[0], [0, 0, 0, 7])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_sigmoid_and_silu_hold_at_ten_thousand(dtype):
    """At -1e4 and 1e4: sigmoid 0 and 1, silu 0 and x, slopes 0, 0 and 0, 1; no overflow, no nan."""
    x, g = np.array([-1e4, 1e4], dtype), np.array([3, -5], dtype)
    np.testing.assert_array_equal(to_numpy(ops.sigmoid(asarray(x))), [0, 1])
    np.testing.assert_array_equal(to_numpy(ops.silu(asarray(x))), [0, 1e4])
    np.testing.assert_array_equal(gradient(ops.sigmoid, x, g=g)[0], [0, 0])
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
    "sqrt": (np.sqrt, lambda x: 0.5 / np.sqrt(x), lambda x, top: abs(x), lambda x: 0, lambda x: 0),
    "tanh": (np.tanh, lambda x: 4 * slope_of_sigmoid(2 * x), lambda x, top: x, lambda x: 0, lambda x: 8),
    "sigmoid": (sigmoid, slope_of_sigmoid, lambda x, top: x, lambda x: 4, lambda x: 4),
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


@given(st.floats(0, 0.95), SEEDS)
def test_dropout_zeroes_or_scales_and_its_gradient_wears_the_same_mask(p, seed):
    """Each y is 0 or x / (1 - p), and dx is 0 or g / (1 - p) at the same places."""
    rng = default_rng(seed)
    x, g = 1 + rng.random((2, 4, 5))
    x = Tensor(asarray(x), requires_grad=True)
    y = ops.dropout(x, p=p, rng=default_rng(seed, 1))
    y.backward(asarray(g))
    kept = to_numpy(y) != 0
    np.testing.assert_allclose(to_numpy(y), np.where(kept, to_numpy(x) / (1 - p), 0), rtol=1e-15)
    np.testing.assert_allclose(to_numpy(x.grad), np.where(kept, g / (1 - p), 0), rtol=1e-15)
    np.testing.assert_array_equal(to_numpy(ops.dropout(x, p=p, rng=default_rng(seed, 1))), to_numpy(y))
    assert p or kept.all()


class Given:
    """A generator whose numbers are known: these, in turn."""

    def __init__(self, numbers):
        self.numbers = numbers

    def random(self, shape, dtype):
        return np.array(self.numbers, dtype).reshape(shape)


def test_dropout_zeroes_where_the_number_drawn_is_below_p():
    """Exact: u uniform in [0, 1) zeroes its element iff u < p, with probability p; at p = 0 never, even at u = 0."""
    x = asarray(np.array([3.0, 5.0, 7.0]))
    zeroed = to_numpy(ops.dropout(x, p=0.25, rng=Given([0.0, 0.25, 0.5])))
    np.testing.assert_allclose(zeroed, np.array([0, 5, 7]) / 0.75, rtol=1e-15)
    np.testing.assert_array_equal(to_numpy(ops.dropout(x, p=0, rng=Given([0.0, 0.0, 0.9]))), to_numpy(x))


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout_zeroes_the_share_p(p):
    """Of 100,000 elements a share p is zeroed, within 5 standard deviations of the binomial."""
    n = 100_000
    y = to_numpy(ops.dropout(asarray(np.ones(n)), p=p, rng=default_rng(0)))
    assert abs((y == 0).mean() - p) <= 5 * (p * (1 - p) / n) ** 0.5


@pytest.mark.parametrize("p", [-0.1, 1, 1.5, float("nan")])
def test_dropout_refuses_a_p_that_is_no_probability_below_one(p):
    """p outside 0 <= p < 1 is a ValueError with the value."""
    with pytest.raises(ValueError, match=f"dropout: p must lie in 0 <= p < 1, got {p}"):
        ops.dropout(asarray(np.ones(3)), p=p, rng=default_rng(0))


@pytest.mark.parametrize("exponent", ["2", None, np.ones(2), 1j])
def test_power_refuses_an_exponent_that_is_no_number(exponent):
    """The exponent is static: an array, a tensor or a string is a TypeError naming its type."""
    for value in (exponent, Tensor(asarray(np.ones(3)))):
        with pytest.raises(TypeError, match=f"exponent must be a Python number, got {type(value).__name__}"):
            ops.power(asarray(np.ones(3)), exponent=value)


@pytest.mark.parametrize("dtype", ["float32", "int64"])
def test_where_refuses_a_condition_that_is_not_boolean(dtype):
    """0 and 1 are no condition: ValueError with the dtype."""
    x = asarray(np.ones(3))
    with pytest.raises(ValueError, match=f"where: condition must be boolean, got dtype {dtype}"):
        ops.where(x, x, condition=asarray(np.ones(3, dtype)))
