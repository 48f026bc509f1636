"""Laws of a data set in memory."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinydiff.backend import TinydiffError, default_rng
from tinydiff.data.dataset import DIGITS, DataError, Dataset

pytestmark = pytest.mark.data

ALL_GREYS = Dataset(
    "mnist",
    np.arange(4 * 784).astype(np.uint8).reshape(4, 28, 28),
    np.array([3, 255, 0, 9], np.uint8),
    "all greys",
    DIGITS,
)


@given(st.lists(st.integers(0, 3), max_size=9))
def test_a_batch_is_the_rows_scaled_to_one(rows):
    """x_0 (B, 28, 28, 1) float32 gives the pixels back as 127.5 (x_0 + 1), and labels are int64."""
    x_0, labels = ALL_GREYS.batch(np.array(rows, int))
    assert (x_0.shape, x_0.dtype) == ((len(rows), 28, 28, 1), np.float32)
    np.testing.assert_array_equal(np.rint((x_0[..., 0] + 1.0) * 127.5).astype(np.uint8), ALL_GREYS.images[rows])
    assert labels.dtype == np.int64
    np.testing.assert_array_equal(labels, ALL_GREYS.labels[rows])


def test_black_and_white_are_exactly_minus_one_and_one():
    """Pixel 0 is -1 and 255 is 1, to the bit: a sampler clips to that range."""
    x_0, _ = ALL_GREYS.batch(np.arange(4))
    assert set(x_0[ALL_GREYS.images == 0].ravel()) == {-1.0}
    assert set(x_0[ALL_GREYS.images == 255].ravel()) == {1.0}
    assert abs(x_0).max() == 1


def test_a_batch_shares_no_memory_with_the_set():
    """Writing into a batch leaves the pictures as they were."""
    before = ALL_GREYS.images.copy()
    x_0, labels = ALL_GREYS.batch(np.arange(4))
    x_0[:], labels[:] = default_rng(0).random(x_0.shape), 0
    np.testing.assert_array_equal(ALL_GREYS.images, before)
    assert ALL_GREYS.labels[0] == 3


@pytest.mark.parametrize("bad", [-1, 4])
def test_rows_beyond_the_set_are_refused(bad):
    """An index outside 0..N-1 is a ValueError that names it: no wrapping round to the last rows."""
    assert len(ALL_GREYS) == 4
    with pytest.raises(ValueError, match=rf"indices must lie in 0\.\.3, got {bad}"):
        ALL_GREYS.batch(np.array([0, bad]))


def test_a_data_error_is_one_the_user_can_put_right():
    """Demos print every TinydiffError without a traceback, DataError among them."""
    assert issubclass(DataError, TinydiffError)
