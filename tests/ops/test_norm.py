"""Group normalisation against plain loops over its definition.

fast/test_norm.py holds the group norm that is followed by SiLU to the same laws.
"""

import math

import numpy as np
import pytest
from draws import SEEDS, host_normal
from hypothesis import given
from hypothesis import strategies as st

from tinydiff import ops
from tinydiff.autograd import Tensor
from tinydiff.backend import asarray, to_numpy

pytestmark = pytest.mark.engine

SIZES = st.integers(1, 3)


@pytest.fixture(scope="module")
def op():
    return ops.group_norm


@pytest.fixture(scope="module")
def after():
    """What comes after the norm."""
    return lambda z: z


def run(op, *arrays, **static):
    return to_numpy(op(*map(asarray, arrays), **static))


def gradients(op, x, gamma, beta, g, **static):
    leaves = [Tensor(asarray(a), requires_grad=True) for a in (x, gamma, beta)]
    op(*leaves, **static).backward(asarray(g))
    return [to_numpy(leaf.grad) for leaf in leaves]


def group_norm_loops(x, gamma, beta, num_groups, eps):
    """The definition, one image and one group at a time."""
    y, channels = np.empty(x.shape), x.shape[-1]
    size = channels // num_groups
    for image in range(len(x)):
        for group in range(num_groups):
            members = range(group * size, (group + 1) * size)
            values = [v for c in members for v in x[image, ..., c].ravel().tolist()]
            mean = math.fsum(values) / len(values)
            var = math.fsum((v - mean) ** 2 for v in values) / len(values)
            for c in members:
                y[image, ..., c] = gamma[c] * (x[image, ..., c] - mean) / math.sqrt(var + eps) + beta[c]
    return y


@given(SEEDS, st.lists(SIZES, min_size=1, max_size=3), SIZES, SIZES, st.sampled_from([1e-5, 1e-3, 0.5]))
def test_group_norm_is_its_definition(op, after, seed, lead, num_groups, group_size, eps):
    """Each group of each image to mean 0 and variance 1 (biased, plus eps), then scaled and shifted."""
    c = num_groups * group_size
    x, gamma, beta = host_normal(seed, (*lead, c), (c,), (c,))
    expected = after(group_norm_loops(x, gamma, beta, num_groups, eps))
    # 1e-12: roundings of 1e-16, magnified by at most 1 / sqrt(eps) = 300.
    np.testing.assert_allclose(run(op, x, gamma, beta, num_groups=num_groups, eps=eps), expected, rtol=0, atol=1e-12)


def test_eps_is_one_in_a_hundred_thousand(op):
    """The eps that is used when none is given is the papers' 1e-5."""
    x, gamma, beta = host_normal(0, (2, 3, 4), (4,), (4,))
    x *= 1e-3  # a variance of 1e-6, where eps tells
    given_eps = run(op, x, gamma, beta, num_groups=2, eps=1e-5)
    np.testing.assert_array_equal(run(op, x, gamma, beta, num_groups=2), given_eps)


@given(SEEDS, SIZES, SIZES, st.floats(-5, 5), st.floats(0.1, 10))
def test_group_norm_forgets_each_groups_level_and_scale(op, seed, num_groups, n, level, scale):
    """group_norm(scale x + level) = group_norm(x) as eps -> 0, and the gradient is orthogonal to both changes."""
    c = 2 * num_groups
    x, gamma, beta, g = host_normal(seed, (n, 4, 3, c), (c,), (c,), (n, 4, 3, c))
    before = run(op, x, gamma, beta, num_groups=num_groups, eps=1e-15)
    after = run(op, scale * x + level, gamma, beta, num_groups=num_groups, eps=1e-15)
    np.testing.assert_allclose(after, before, rtol=0, atol=1e-10)  # eps / scale^2 = 1e-13, times x_hat up to 5
    dx, _, _ = gradients(op, x, gamma, beta, g, num_groups=num_groups, eps=1e-15)
    shape = (n, 12, num_groups, 2)
    assert abs(dx.reshape(shape).sum((1, 3))).max() <= 1e-12
    assert abs((dx * x).reshape(shape).sum((1, 3))).max() <= 1e-12


@pytest.mark.parametrize("dtype, bound", [("float64", 1e-12), ("float32", 1e-5)])
def test_a_batch_is_the_stack_of_its_images(op, dtype, bound):
    """Whatever slices the batch is cut into: images do not meet, and gradients of gamma and beta add up."""
    n, c = 67, 24  # 3 to 13 MB of scratch, while a slice holds 1: the batch goes in unequal slices
    x, gamma, beta, g = host_normal(0, (n, 16, 17, c), (c,), (c,), (n, 16, 17, c), dtype=dtype)
    y = run(op, x, gamma, beta, num_groups=8)
    dx, *sums = gradients(op, x, gamma, beta, g, num_groups=8)
    totals = [0, 0]
    for i in range(n):
        one = slice(i, i + 1)
        np.testing.assert_allclose(run(op, x[one], gamma, beta, num_groups=8), y[one], rtol=0, atol=bound)
        dx_i, *parts = gradients(op, x[one], gamma, beta, g[one], num_groups=8)
        np.testing.assert_allclose(dx_i, dx[one], rtol=0, atol=bound)
        totals = [total + part for total, part in zip(totals, parts)]
    for total, whole in zip(totals, sums):
        np.testing.assert_allclose(total, whole, rtol=0, atol=200 * bound)  # 67 * 272 products of numbers about 1


@pytest.mark.parametrize("offset", [0, 1e3, -1e3])
def test_float32_survives_a_mean_of_a_thousand_deviations(op, offset):
    """Values and gradients are float64's to 1e-3; E[x^2] - mean^2 would be off by mean^2 2^-24 = 6% of the variance."""
    x, gamma, beta, g = host_normal(1, (3, 14, 14, 16), (16,), (16,), (3, 14, 14, 16), dtype="float32")
    x += np.float32(offset)
    wide = [a.astype("float64") for a in (x, gamma, beta, g)]
    found = [run(op, x, gamma, beta, num_groups=4), *gradients(op, x, gamma, beta, g, num_groups=4)]
    expected = [run(op, *wide[:3], num_groups=4), *gradients(op, *wide, num_groups=4)]
    for a, a_64 in zip(found, expected):
        assert a.dtype == np.float32
        # The mean is rounded to 1e3 * 2^-24 = 6e-5 of a deviation, and summed over 784 values; at offset 0 to 6e-8.
        assert abs(a - a_64).max() <= (1e-3 if offset else 1e-5) * abs(a_64).max()


def test_a_constant_group_becomes_its_shift(op, after):
    """Where the variance is 0 the result is what comes of beta, and everything stays finite."""
    x, (gamma, beta, g) = np.full((2, 3, 3, 4), 7.25), host_normal(2, (4,), (4,), (2, 3, 3, 4))
    expected = after(np.broadcast_to(beta, x.shape))
    np.testing.assert_allclose(run(op, x, gamma, beta, num_groups=2), expected, rtol=0, atol=1e-10)
    assert all(np.isfinite(d).all() for d in gradients(op, x, gamma, beta, g, num_groups=2))


@pytest.mark.parametrize("num_groups", [0, -2, 4, 12])
def test_group_norm_refuses_groups_that_do_not_divide_the_channels(op, num_groups):
    """num_groups must be one or more and divide C, else ValueError with both."""
    with pytest.raises(ValueError, match=f"num_groups={num_groups} does not divide 6 channels"):
        run(op, np.zeros((2, 3, 3, 6)), np.zeros(6), np.zeros(6), num_groups=num_groups)


@pytest.mark.parametrize("shape", [(4,), (2, 0), (2, 0, 4), (2, 3, 0, 4)])
def test_group_norm_refuses_a_mean_of_no_values(op, shape):
    """x without a pixel, a channel or a batch axis is a ValueError with its shape; a batch without images is none."""
    c = shape[-1]
    with pytest.raises(ValueError) as error:
        run(op, np.zeros(shape), np.zeros(c), np.zeros(c), num_groups=1)
    assert str(error.value) == f"group_norm: x must be (N, ..., C) with pixels and channels, got {shape}"
    assert run(op, np.zeros((0, 3, 3, 4)), np.zeros(4), np.zeros(4), num_groups=2).shape == (0, 3, 3, 4)


@pytest.mark.parametrize(
    "gamma, beta", [((5,), (6,)), ((7,), (6,)), ((6,), (1,)), ((6,), (7,)), ((2, 6), (6,)), ((6,), ())]
)
def test_group_norm_refuses_scales_of_another_shape(op, gamma, beta):
    """gamma and beta hold one number a channel, else ValueError with their shapes."""
    with pytest.raises(ValueError) as error:
        run(op, np.zeros((2, 3, 3, 6)), np.zeros(gamma), np.zeros(beta), num_groups=2)
    assert str(error.value) == f"group_norm: gamma {gamma} and beta {beta} must be (6,)"


@pytest.mark.parametrize("eps", [-1e-5, math.nan, math.inf])
def test_group_norm_refuses_an_eps_that_is_no_small_number(op, eps):
    """0 <= eps < inf, else ValueError: below 0 the root may be of a negative number."""
    with pytest.raises(ValueError, match=f"eps={eps}"):
        run(op, np.zeros((2, 3, 3, 4)), np.zeros(4), np.zeros(4), num_groups=2, eps=eps)


def test_group_norm_refuses_half_a_group(op):
    """num_groups = 1.5 divides 3 channels in a sense, and no groups are meant by it."""
    with pytest.raises(ValueError, match=r"num_groups=1\.5"):
        run(op, np.zeros((2, 3, 3, 3)), np.zeros(3), np.zeros(3), num_groups=1.5)
