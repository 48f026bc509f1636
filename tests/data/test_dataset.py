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
    np.array([3, 8, 0, 9], np.uint8),
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


def test_a_data_set_equals_itself_alone():
    """Two are compared by identity, not pixel by pixel, so a set may be a key of a cache."""
    copy = Dataset(*(getattr(ALL_GREYS, name) for name in ("name", "images", "labels", "source", "classes")))
    assert ALL_GREYS == ALL_GREYS and (copy == ALL_GREYS) is False and len({copy, ALL_GREYS}) == 2


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


GREYS, LABELS = ALL_GREYS.images, ALL_GREYS.labels
WRONG_IMAGES = {
    "pictures in 0..1": GREYS / 255,
    "float32": GREYS.astype(np.float32),
    "bool": GREYS > 127,
    "bool, as uint8": (GREYS > 127).astype(np.uint8),
    "int8": GREYS.astype(np.int8),
    "uint16": GREYS.astype(np.uint16) * 257,
    "int64": GREYS.astype(np.int64),
    "colour": np.repeat(GREYS[..., None], 3, -1),
    "one channel": GREYS[..., None],
    "flat": GREYS.reshape(4, -1),
    "none": GREYS[:0],
    "without width": GREYS[:, :, :0],
    "text": np.full((4, 2, 2), "a"),
    "a list": GREYS.tolist(),
}
WRONG_LABELS = {
    "counted from 1": (LABELS + 1, "row 3 has the label 10"),
    "negative": (LABELS.astype(int) - 1, "row 2 has the label -1"),
    "float": (LABELS.astype(float), "4 integers, got float64"),
    "bool": (LABELS > 3, "4 integers, got bool"),
    "text": (LABELS.astype(str), "4 integers, got <U"),
    "one hot": (np.eye(10, dtype=int)[LABELS], r"4 integers, got int64 of shape \(4, 10\)"),
    "too few": (LABELS[:3], r"of shape \(3,\)"),
    "one for all": (np.array(3), r"of shape \(\)"),
    "a list": (LABELS.tolist(), "labels must be a NumPy array, got list"),
}


@pytest.mark.parametrize("what", WRONG_IMAGES)
def test_images_of_another_kind_are_refused(what):
    """Only uint8 in 0..255 of shape (N, H, W) has a meaning as grey levels: all else is a ValueError with the rule."""
    with pytest.raises(
        ValueError, match=r"images must be (uint8 in 0\.\.255, where 255 is ink|a NumPy array, got list)"
    ):
        Dataset("own", WRONG_IMAGES[what], LABELS[: len(WRONG_IMAGES[what])], "", DIGITS)


@pytest.mark.parametrize("what", WRONG_LABELS)
def test_labels_of_another_kind_are_refused(what):
    """A label beyond the classes would mean "no label": a ValueError names the first one and its row."""
    labels, message = WRONG_LABELS[what]
    with pytest.raises(ValueError, match=message):
        Dataset("own", GREYS, labels, "", DIGITS)


@given(st.integers(1, 12), st.sampled_from([np.uint8, np.int8, np.int64]))
def test_labels_are_those_of_the_classes(num_classes, dtype):
    """0..K - 1 for K classes, whatever the integers' width; with a class less they are refused."""
    labels = np.arange(num_classes, dtype=dtype)
    images, classes = np.zeros((num_classes, 4, 4), np.uint8), tuple(f"class {k}" for k in range(num_classes))
    assert len(Dataset("own", images, labels, "", classes)) == num_classes
    with pytest.raises(ValueError, match=f"row {num_classes - 1} has the label {num_classes - 1}"):
        Dataset("own", images, labels, "", classes[:-1])
