"""Moving elements: exactly what NumPy does, and split as the inverse of concat."""

import re
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


@given(ARRAYS, st.data())
def test_reshape_and_transpose_are_numpys(x, data):
    """reshape keeps the order of elements; axis i of transpose(x, axes) is axis axes[i] of x."""
    axes = data.draw(st.permutations(range(x.ndim)))
    back = tuple(int(axis) for axis in np.argsort(axes))
    y = ops.transpose(asarray(x), axes=axes)
    np.testing.assert_array_equal(to_numpy(y), np.transpose(x, axes), strict=True)
    np.testing.assert_array_equal(to_numpy(ops.transpose(y, axes=back)), x)
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


@given(ARRAYS, st.integers(1, 4))
def test_split_undoes_concat(x, count):
    """split(concat(xs), len(xs)) = xs along the last axis, and concat is NumPy's."""
    xs = [x + i for i in range(count)]
    joined = ops.concat(*map(asarray, xs))
    np.testing.assert_array_equal(to_numpy(joined), np.concatenate(xs, -1), strict=True)
    parts = ops.split(joined, count)
    assert len(parts) == count
    for part, expected in zip(parts, xs):
        np.testing.assert_array_equal(to_numpy(part), expected, strict=True)


@given(ARRAYS, SEEDS)
def test_split_hands_each_parts_gradient_to_its_place(x, seed):
    """The gradient of split is the concatenation of the gradients of its parts, 0 for a part without one."""
    leaf = Tensor(asarray(np.concatenate([x, x], -1)), requires_grad=True)
    g = default_rng(seed).standard_normal(x.shape)
    ops.split(leaf, 2)[1].backward(asarray(g))
    np.testing.assert_array_equal(to_numpy(leaf.grad), np.concatenate([0 * g, g], -1))


@pytest.mark.parametrize("sections", [0, -1, 4, 7])
def test_split_refuses_sections_that_do_not_divide(sections):
    """A number of parts below one or that leaves a rest is a ValueError with the number of channels and of parts."""
    words = rf"split: cannot cut 6 channels into sections={sections} equal parts"
    with pytest.raises(ValueError, match=words):
        ops.split(Tensor(asarray(np.zeros((3, 2, 6)))), sections)


@given(ARRAYS, SEEDS, hnp.array_shapes(min_dims=0, max_dims=2, min_side=0, max_side=4))
def test_take_is_numpys_and_its_gradient_adds_up_repeats(x, seed, picks):
    """take(x, i) = x[i] for host integers of any shape; dx[j] is the sum of g over the picks of j."""
    rng = default_rng(seed)
    indices = rng.integers(0, len(x), picks)  # of shape (0,) and (2, 0) too
    leaf = Tensor(asarray(x), requires_grad=True)
    y = ops.take(leaf, indices=indices)
    np.testing.assert_array_equal(to_numpy(y), np.take(x, indices, 0), strict=True)
    g = rng.standard_normal(y.shape)
    y.backward(asarray(g))
    dx = np.zeros(x.shape)
    for place in np.ndindex(indices.shape):
        dx[indices[place]] += g[place]
    np.testing.assert_allclose(to_numpy(leaf.grad), dx, rtol=0, atol=1e-14)  # sums of 16 numbers about 1 at most


@pytest.mark.parametrize("indices, bad", [(3, 3), (-1, -1), ([0, 5, 2], 5), ([[0], [-2]], -2)])
def test_take_refuses_an_index_out_of_range(indices, bad):
    """An index outside 0..size-1, negative ones too, is a ValueError with the range and the value."""
    with pytest.raises(ValueError, match=rf"indices must lie in 0\.\.2, got {bad}$"):
        ops.take(asarray(np.zeros((3, 4))), indices=indices)


@given(st.integers(1, 9))
def test_take_refuses_the_first_index_beyond_the_rows(size):
    """0..size-1, of an even and of an odd number of rows."""
    assert ops.take(asarray(np.zeros((size, 4))), indices=size - 1).shape == (4,)
    with pytest.raises(ValueError, match=rf"indices must lie in 0\.\.{size - 1}, got {size}$"):
        ops.take(asarray(np.zeros((size, 4))), indices=size)


@pytest.mark.parametrize("indices", [1.0, [0.0, 1.0], [True, False, True]])
def test_take_refuses_what_is_no_integer(indices):
    """Floats and masks do not pick: ValueError."""
    with pytest.raises(ValueError, match="indices must be integers"):
        ops.take(asarray(np.zeros((3, 4))), indices=indices)


@pytest.mark.parametrize("axes", [(3, 1, 2), (0, 1, -1), (0, 1), (0, 0, 1), (0, 1, 2, 3)])
def test_transpose_refuses_what_is_no_order_of_the_axes(axes):
    """Each of 0..ndim-1 once, else ValueError with the axes: none counted from the end, missing, twice or too many."""
    with pytest.raises(ValueError, match=rf"axes must name each of 3 axes once, got {re.escape(str(axes))}"):
        ops.transpose(asarray(np.zeros((2, 3, 4))), axes=axes)
