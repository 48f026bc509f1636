"""Reductions against NumPy, the laws of softmax and logsumexp, and extremes."""

import math

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

BIG = np.array([[1e4, -1e4, 1e4, 0], [-1e4, -1e4, -1e4, -1e4]], "float32")


@st.composite
def arrays_and_axes(draw):
    """(array, None or one axis or several, from either end), small integers so that sums are exact and values tie."""
    shape = draw(hnp.array_shapes(max_dims=4, max_side=4))
    x = default_rng(draw(SEEDS)).integers(-3, 4, shape) * 1.0
    axes = draw(hnp.valid_tuple_axes(len(shape), min_size=1))
    return x, draw(st.sampled_from([None, axes[0], axes]))


ARRAYS = arrays_and_axes().map(lambda case: case[0])


def gradient(op, x, g, **static):
    leaf = Tensor(asarray(x), requires_grad=True)
    op(leaf, **static).backward(asarray(g))
    return to_numpy(leaf.grad)


def softmax(x):
    e = np.exp(x)
    return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize("op, expected", [(ops.total, np.sum), (ops.mean, np.mean)], ids=["total", "mean"])
@given(arrays_and_axes())
def test_sums_and_means_are_numpys(op, expected, case):
    """Over all axes, one or several, from either end."""
    x, axis = case
    y = to_numpy(op(asarray(x), axis=axis))
    np.testing.assert_allclose(y, expected(x, axis=axis), rtol=1e-13, atol=1e-14, strict=True)


def test_without_an_axis_a_sum_is_over_all(rng):
    """total and mean of an array of any shape are then a single number."""
    x = rng.standard_normal((3, 4, 5))
    for op, expected in [(ops.total, np.sum), (ops.mean, np.mean)]:
        np.testing.assert_allclose(to_numpy(op(asarray(x))), expected(x), rtol=1e-13, atol=1e-14, strict=True)


@given(ARRAYS)
def test_softmax_and_logsumexp_are_their_definitions(x):
    """exp(x) over its sum, and the logarithm of that sum, along the last axis."""
    np.testing.assert_allclose(to_numpy(ops.softmax(asarray(x))), softmax(x), rtol=1e-13)
    y = to_numpy(ops.logsumexp(asarray(x)))
    np.testing.assert_allclose(y, np.log(np.exp(x).sum(-1)), rtol=1e-13, atol=1e-14, strict=True)


@given(ARRAYS, st.floats(-1e4, 1e4))
def test_a_common_shift_leaves_softmax_and_passes_through_logsumexp(x, shift):
    """softmax(x + c) = softmax(x) and logsumexp(x + c) = logsumexp(x) + c: what makes subtracting the largest right."""
    shift = round(shift)  # so that x + shift is exact
    moved, still = asarray(x + shift), asarray(x)
    np.testing.assert_allclose(to_numpy(ops.softmax(moved)), to_numpy(ops.softmax(still)), 1e-13)
    up = to_numpy(ops.logsumexp(moved)) - shift
    np.testing.assert_allclose(up, to_numpy(ops.logsumexp(still)), rtol=0, atol=1e-11)  # 2^-53 of 1e4


@given(ARRAYS, SEEDS)
def test_the_gradient_of_logsumexp_is_the_softmax(x, seed):
    """d<g, logsumexp(x)>/dx = g softmax(x), and softmax's own gradient sums to 0 over the axis."""
    rng = default_rng(seed)
    g = rng.standard_normal(x.shape[:-1])
    dx = gradient(ops.logsumexp, x, g)
    np.testing.assert_allclose(dx, g[..., None] * softmax(x), rtol=1e-12, atol=1e-15)
    dx = gradient(ops.softmax, x, rng.standard_normal(x.shape))
    np.testing.assert_allclose(dx.sum(-1), 0, atol=1e-14)  # 64 products of numbers about 1, each rounded to 1e-16


@pytest.mark.parametrize(
    "op, static", [(ops.total, {"axis": (1, 2)}), (ops.mean, {"axis": (1, 2)}), (ops.softmax, {}), (ops.logsumexp, {})]
)
def test_an_empty_batch_is_reduced_to_an_empty_batch(op, static):
    """Over the other axes of no images: no number, no gradient, no warning and no division by zero."""
    leaf = Tensor(asarray(np.zeros((0, 3, 2))), requires_grad=True)
    y = op(leaf, **static)
    y.backward(asarray(np.zeros(y.shape)))
    assert y.shape[0] == 0 and leaf.grad.shape == (0, 3, 2)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@given(SEEDS)
def test_softmax_and_logsumexp_are_right_from_the_smallest_number_to_the_largest(dtype, seed):
    """Entries of 10^k for k over the range of floats, in both signs, tied, and -inf: values and gradients."""
    rng, kind = default_rng(seed), np.finfo(dtype)
    largest_power = rng.uniform(-3, np.log10(kind.max) - 1, (40, 1))
    far = rng.choice([-1, 1], (40, 6)) * 10 ** rng.uniform(-3, largest_power, (40, 6))
    x = np.where(rng.random((40, 6)) < 0.3, far[:, :1], far).astype(dtype)  # some equal to the first
    x[:, 1:][rng.random((40, 5)) < 0.1] = -np.inf  # what has no share
    g, g_row = rng.standard_normal((40, 6)).astype(dtype), rng.standard_normal(40).astype(dtype)
    exact = x.astype("longdouble")
    top = exact.max(-1, keepdims=True)
    e = np.exp(exact - top)
    p, log_sum = e / e.sum(-1, keepdims=True), (top + np.log(e.sum(-1, keepdims=True)))[:, 0]
    # x - top is rounded once, relative to itself: 800 in float64 and 100 in float32 before exp of it is 0.
    rounding = kind.eps / 2
    close = {"rtol": 1000 * rounding, "atol": 4 * kind.tiny}
    np.testing.assert_allclose(to_numpy(ops.softmax(asarray(x))), p, **close)
    np.testing.assert_allclose(gradient(ops.logsumexp, x, g_row), g_row[:, None] * p, **close)
    dx = p * (g - (g * p).sum(-1, keepdims=True))
    np.testing.assert_allclose(gradient(ops.softmax, x, g), dx, rtol=0, atol=1e4 * rounding)
    np.testing.assert_allclose(to_numpy(ops.logsumexp(asarray(x))), log_sum, rtol=4 * rounding, atol=16 * rounding)


@pytest.mark.parametrize("op", [ops.softmax, ops.logsumexp])
def test_nothing_has_no_largest_value(op):
    """Over an empty axis softmax and logsumexp are a ValueError, as in NumPy; the sum is 0."""
    nothing = asarray(np.zeros((3, 0)))
    with pytest.raises(ValueError, match="zero-size array"):
        op(nothing)
    assert to_numpy(ops.total(nothing, axis=-1)).tolist() == [0, 0, 0]


def test_softmax_holds_at_ten_thousand():
    """In float32, with entries of -1e4 and 1e4: the largest share everything, the rest get exactly 0."""
    y = to_numpy(ops.softmax(asarray(BIG)))
    np.testing.assert_array_equal(y, [[0.5, 0, 0.5, 0], [0.25] * 4])
    g = np.array([[1, 2, 3, 4], [1, 2, 3, 4]], "float32")
    np.testing.assert_array_equal(gradient(ops.softmax, BIG, g), [[-0.5, 0, 0.5, 0], [-0.375, -0.125, 0.125, 0.375]])


def test_logsumexp_holds_at_ten_thousand():
    """In float32: logsumexp = max + log(how many), and its gradient is the softmax."""
    y = to_numpy(ops.logsumexp(asarray(BIG)))
    np.testing.assert_allclose(y, [1e4 + np.log(2), -1e4 + np.log(4)], rtol=1.2e-7)  # one unit of float32
    np.testing.assert_allclose(
        gradient(ops.logsumexp, BIG, np.array([2, -4], "float32")),
        [[1, 0, 1, 0], [-1, -1, -1, -1]],
        rtol=1e-6,  # not exp(x - y): y is known to 2^-24 of 1e4 = 6e-4, and exp of it to as much
    )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_logsumexp_at_infinity(dtype):
    """log(sum(exp)) of -inf alone is log(0) = -inf, with gradient 0; beside others -inf counts nothing; inf is inf."""
    inf = math.inf
    x = Tensor(asarray(np.array([[-inf, -inf, -inf], [-inf, 0, -inf], [1, 2, -inf]], dtype)), requires_grad=True)
    y = ops.logsumexp(x)
    np.testing.assert_allclose(to_numpy(y), [-inf, 0, 2 + math.log1p(math.exp(-1))], rtol=1e-6)
    y.backward(asarray(np.array([5, 7, 1], dtype)))
    share = 1 / (1 + math.exp(1))
    np.testing.assert_allclose(to_numpy(x.grad), [[0, 0, 0], [0, 7, 0], [share, 1 - share, 0]], rtol=1e-6)
    assert float(ops.logsumexp(asarray(np.array([inf, 0, -inf], dtype))).data) == inf
