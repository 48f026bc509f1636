"""Row i of a batch takes its numbers from a generator of its own, and no two rows, seeds or steps share a number."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinydiff.app.row_rng import RowRng, row_rng
from tinydiff.backend import default_rng, standard_normal, to_numpy

pytestmark = pytest.mark.sampler

ROW_SHAPES = [(), (1,), (2, 3), (4, 1, 3)]


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=5), st.integers(0, 2**70), st.sampled_from(ROW_SHAPES))
def test_a_row_has_the_numbers_of_its_own_generator(rows, seed, shape):
    """Call after call, bit for bit, in both dtypes: what default_rng(name, seed, row) gives alone."""
    rng, alone = row_rng("picture", seed, rows=rows), [default_rng("picture", seed, i) for i in rows]
    size = (len(rows), *shape)
    for dtype in ("float32", "float64", "float32"):
        found = to_numpy(standard_normal(rng, size, dtype))
        assert found.shape == size and found.dtype == dtype
        np.testing.assert_array_equal(found, np.stack([one.standard_normal(shape, dtype) for one in alone]))
    found = rng.random(size)
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, np.stack([one.random(shape) for one in alone]))
    np.testing.assert_array_equal(rng.standard_normal(size), np.stack([one.standard_normal(shape) for one in alone]))


def test_a_number_of_rows_is_a_size_too():
    """As for a NumPy Generator, an integer is a size of one axis."""
    expected = [default_rng("a", i).random() for i in range(3)]
    np.testing.assert_array_equal(row_rng("a", rows=range(3)).random(3), expected)


def test_children_are_the_children_of_each_row():
    """Child k of row i is child k of generator i, and a later call gives other children."""
    rng, alone = row_rng("edit", 4, rows=[5, 2]), [default_rng("edit", 4, i) for i in (5, 2)]
    for n in (2, 1):
        for child, expected in zip(rng.spawn(n), zip(*(one.spawn(n) for one in alone)), strict=True):
            assert isinstance(child, RowRng)
            np.testing.assert_array_equal(child.random((2, 3)), [one.random(3) for one in expected])


def test_no_two_pictures_seeds_steps_or_children_share_a_number():
    """Of 6 seeds, 8 pictures, 3 steps and a child's 2, all 5 numbers of each are different: float64 has 2^53."""
    numbers = []
    for seed in (0, 1, 2, 7, 2**32, 2**32 + 1):
        rng = row_rng("picture", seed, rows=range(8))
        (child,) = rng.spawn(1)
        numbers += [rng.standard_normal((8, 5)) for _ in range(3)] + [child.standard_normal((8, 5)) for _ in range(2)]
    numbers = np.concatenate(numbers).ravel()
    assert len(np.unique(numbers)) == len(numbers) == 6 * 8 * 5 * 5
    assert len(np.unique(np.abs(numbers))) == len(numbers)


@pytest.mark.parametrize("size", [(), (2,), (4, 1), (6, 2), (1, 3), 4])
def test_a_batch_of_another_number_of_rows_is_refused(size):
    """Fewer rows, more rows, or none at all: a row without a generator would stay uninitialised memory."""
    rng = row_rng("picture", 0, rows=range(3))
    for draw in (rng.random, rng.standard_normal):
        with pytest.raises(ValueError, match=r"a size must begin with 3, got "):
            draw(size)
