"""Moving elements: exactly what NumPy does, and split as the inverse of concat."""

from itertools import permutations

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

ARRAYS = st.builds(
    lambda shape, seed: default_rng(seed).standard_normal(shape), hnp.array_shapes(max_dims=4, max_side=3), SEEDS
)


def axis_of(x):
    return st.integers(-x.ndim, x.ndim - 1)


@given(ARRAYS, st.data())
def test_reshape_and_transpose_are_numpys(x, data):
    """reshape keeps the order of elements; axis i of transpose(x, axes) is axis axes[i] of x, None reverses them."""
    axes = data.draw(st.permutations(range(x.ndim)))
    back = tuple(int(axis) for axis in np.argsort(axes))
    y = ops.transpose(asarray(x), axes=axes)
    np.testing.assert_array_equal(to_numpy(y), np.transpose(x, axes), strict=True)
    np.testing.assert_array_equal(to_numpy(ops.transpose(y, axes=back)), x)
    np.testing.assert_array_equal(to_numpy(ops.transpose(asarray(x))), x.T)
    shape = data.draw(st.sampled_from([(-1,), x.shape[::-1], (1, *x.shape), (x.shape[0], -1)]))
    np.testing.assert_array_equal(to_numpy(ops.reshape(asarray(x), shape=shape)), x.reshape(shape), strict=True)


def test_the_gradient_of_a_transposition_is_the_inverse_transposition(rng):
    """For all 24 orders of four axes, most of which are not their own inverse."""
    for axes in permutations(range(4)):
        leaf = Tensor(asarray(rng.standard_normal((2, 3, 4, 5))), requires_grad=True)
        y = ops.transpose(leaf, axes=axes)
        g = rng.standard_normal(y.shape)
        y.backward(asarray(g))
        np.testing.assert_array_equal(to_numpy(leaf.grad), g.transpose(np.argsort(axes)))


@given(ARRAYS, st.data(), st.integers(1, 4))
def test_split_undoes_concat(x, data, count):
    """split(concat(xs), len(xs)) = xs along any axis, and concat is NumPy's."""
    axis = data.draw(axis_of(x))
    xs = [x + i for i in range(count)]
    joined = ops.concat(*map(asarray, xs), axis=axis)
    np.testing.assert_array_equal(to_numpy(joined), np.concatenate(xs, axis))
    parts = ops.split(joined, count, axis=axis)
    assert len(parts) == count
    for part, expected in zip(parts, xs):
        np.testing.assert_array_equal(to_numpy(part), expected, strict=True)


def test_concat_and_split_take_the_last_axis_and_take_the_first_if_none_is_named(rng):
    """Channels are joined and cut by default, rows are picked by default."""
    x = asarray(rng.standard_normal((2, 3, 4)))
    assert ops.concat(x, x).shape == (2, 3, 8)
    assert [part.shape for part in ops.split(Tensor(x), 2)] == [(2, 3, 2)] * 2
    assert ops.take(x, indices=[1, 0, 1]).shape == (3, 3, 4)


@given(ARRAYS, st.data(), SEEDS)
def test_split_hands_each_parts_gradient_to_its_place(x, data, seed):
    """The gradient of split is the concatenation of the gradients of its parts, 0 for a part without one."""
    axis = data.draw(axis_of(x))
    leaf = Tensor(asarray(np.concatenate([x, x], axis)), requires_grad=True)
    g = default_rng(seed).standard_normal(x.shape)
    ops.split(leaf, 2, axis=axis)[1].backward(asarray(g))
    np.testing.assert_array_equal(to_numpy(leaf.grad), np.concatenate([0 * g, g], axis))


@pytest.mark.parametrize("sections", [0, -1, 4, 7])
def test_split_refuses_sections_that_do_not_divide(sections):
    """A number of parts below one or that leaves a rest is a ValueError with axis, size and number."""
    words = rf"split: cannot cut axis 1 of size 6 into sections={sections} equal parts"
    with pytest.raises(ValueError, match=words):
        ops.split(Tensor(asarray(np.zeros((3, 6)))), sections, axis=1)


@given(ARRAYS, st.data())
def test_pad_is_numpys_with_zeros(x, data):
    """pad surrounds each axis by its own two widths of zeros."""
    widths = [(data.draw(st.integers(0, 3)), data.draw(st.integers(0, 3))) for _ in x.shape]
    np.testing.assert_array_equal(to_numpy(ops.pad(asarray(x), widths=widths)), np.pad(x, widths), strict=True)


@given(ARRAYS, st.data(), hnp.array_shapes(min_dims=0, max_dims=2, min_side=0, max_side=4))
def test_take_is_numpys_and_its_gradient_adds_up_repeats(x, data, picks):
    """take(x, i) = x[..., i, ...] for host integers of any shape; dx[j] is the sum of g over the picks of j."""
    axis = data.draw(axis_of(x))
    rng = default_rng(data.draw(SEEDS))
    indices = rng.integers(0, x.shape[axis], picks)  # of shape (0,) and (2, 0) too
    leaf = Tensor(asarray(x), requires_grad=True)
    y = ops.take(leaf, indices=indices, axis=axis)
    np.testing.assert_array_equal(to_numpy(y), np.take(x, indices, axis), strict=True)
    g = rng.standard_normal(y.shape)
    y.backward(asarray(g))
    dx = np.zeros(x.shape)
    at = axis % x.ndim
    for place in np.ndindex(indices.shape):
        source = (slice(None),) * at
        dx[(*source, indices[place])] += g[(*source, *place)]
    np.testing.assert_allclose(to_numpy(leaf.grad), dx, rtol=0, atol=1e-14)  # sums of 16 numbers about 1 at most


@pytest.mark.parametrize("indices, bad", [(3, 3), (-1, -1), ([0, 5, 2], 5), ([[0], [-2]], -2)])
def test_take_refuses_an_index_out_of_range(indices, bad):
    """An index outside 0..size-1, negative ones too, is a ValueError with the range and the value."""
    with pytest.raises(ValueError, match=rf"indices must lie in 0\.\.2, got {bad}$"):
        ops.take(asarray(np.zeros((4, 3))), indices=indices, axis=1)


@pytest.mark.parametrize("indices", [1.0, [0.0, 1.0], [True, False, True]])
def test_take_refuses_what_is_no_integer(indices):
    """Floats and masks do not pick: ValueError."""
    with pytest.raises(ValueError, match="indices must be integers"):
        ops.take(asarray(np.zeros((4, 3))), indices=indices, axis=1)


@pytest.mark.parametrize("axes", [(3, 1, 2), (0, 1, -4), (0, 1)])
def test_transpose_refuses_an_axis_that_x_does_not_have(axes):
    """An axis outside -ndim..ndim-1, or too few of them, is a ValueError, as in NumPy."""
    with pytest.raises(ValueError, match="axes"):
        ops.transpose(asarray(np.zeros((2, 3, 4))), axes=axes)


@pytest.mark.parametrize("axes", [(0, 0, 1), (0, 1, 2, 3)])
def test_transpose_refuses_what_is_no_order_of_the_axes(axes):
    """Each axis once, else ValueError."""
    with pytest.raises(ValueError, match=r"axes|axis"):
        ops.transpose(asarray(np.zeros((2, 3, 4))), axes=axes)


def test_pad_refuses_widths_that_are_not_one_pair_an_axis():
    """Fewer or more pairs than axes are a ValueError, before and not in the backward pass."""
    for widths in ([(1, 1)], [(1, 1)] * 3):
        with pytest.raises(ValueError, match="widths"):
            ops.pad(asarray(np.zeros((2, 3))), widths=widths)
