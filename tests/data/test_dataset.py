"""Laws of a data set in memory."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tinydiff.backend import TinydiffError, default_rng
from tinydiff.data.dataset import DIGITS, DataError, Dataset
from tinydiff.diffusion import Schedule
from tinydiff.train import TrainConfig, draw_batch

pytestmark = pytest.mark.data

ALL_GREYS = Dataset(
    "mnist",
    np.arange(4 * 784).astype(np.uint8).reshape(4, 28, 28, 1),
    np.array([3, 8, 0, 9], np.uint8),
    "all greys",
    DIGITS,
)


@given(st.lists(st.integers(0, 3), max_size=9))
def test_a_batch_is_the_rows_scaled_to_one(rows):
    """x_0 (B, 28, 28, 1) float32 gives the pixels back as 127.5 (x_0 + 1), and labels are int64."""
    x_0, labels = ALL_GREYS.batch(np.array(rows, int))
    assert (x_0.shape, x_0.dtype) == ((len(rows), 28, 28, 1), np.float32)
    np.testing.assert_array_equal(np.rint((x_0 + 1.0) * 127.5).astype(np.uint8), ALL_GREYS.images[rows])
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
    "without channels": GREYS[..., 0],
    "a film": GREYS[None],
    "flat": GREYS.reshape(4, -1),
    "none": GREYS[:0],
    "without width": GREYS[:, :, :0],
    "of no channel": GREYS[..., :0],
    "text": np.full((4, 2, 2, 1), "a"),
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
    """Only uint8 in 0..255 of shape (N, H, W, C) has a meaning: all else is a ValueError with the rule."""
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
    images, classes = np.zeros((num_classes, 4, 4, 1), np.uint8), tuple(f"class {k}" for k in range(num_classes))
    assert len(Dataset("own", images, labels, "", classes)) == num_classes
    with pytest.raises(ValueError, match=f"row {num_classes - 1} has the label {num_classes - 1}"):
        Dataset("own", images, labels, "", classes[:-1])


# ---------------------------------------------------------------------------------------------- any number of channels


@given(arrays(np.uint8, st.tuples(*[st.integers(1, 4)] * 4)), st.data())
def test_a_batch_has_the_channels_of_the_images_in_their_order(images, data):
    """x_0 (B, H, W, C), for every C: no axis is added, none is dropped, red stays red."""
    if images.max() == 1:
        images = images * np.uint8(255)
    rows = data.draw(st.lists(st.integers(0, len(images) - 1), max_size=5))
    x_0, labels = Dataset("own", images, None, "", ()).batch(np.array(rows, int))
    assert x_0.dtype == np.float32 and x_0.shape == (len(rows), *images.shape[1:]) and labels is None
    np.testing.assert_array_equal(np.rint((x_0 + 1.0) * 127.5), images[rows])


def test_images_without_labels_have_no_classes():
    """Labels None goes with classes () alone; a name of a class without labels is a mistake that is named."""
    assert len(Dataset("own", GREYS, None, "", ())) == 4
    with pytest.raises(ValueError, match="images without labels have no classes, got 10 names"):
        Dataset("own", GREYS, None, "", DIGITS)


def test_a_program_that_needs_labels_gets_them_or_a_sentence_on_the_data():
    """known_labels() are the labels; without them a DataError names where the images come from."""
    assert ALL_GREYS.known_labels() is ALL_GREYS.labels
    with pytest.raises(DataError, match="a drawer: these images have no labels, and this program needs labels"):
        Dataset("own", GREYS, None, "a drawer", ()).known_labels()


def test_the_first_images_keep_their_labels():
    """first(num) are the rows 0..num - 1 with their labels, or all for None; a num outside 1..N is named."""
    for whole in (ALL_GREYS, Dataset("own", GREYS, None, "", ())):
        for num, rows in ((1, 1), (3, 3), (4, 4), (None, 4)):
            some = whole.first(num)
            np.testing.assert_array_equal(some.images, GREYS[:rows])
            assert (some.labels is None) if whole.labels is None else some.labels.tolist() == LABELS[:rows].tolist()
            assert (some.name, some.source, some.classes) == (whole.name, whole.source, whole.classes)
    for num in (0, -1, 5):
        with pytest.raises(ValueError, match=rf"num must lie in 1\.\.4 for mnist, got {num}"):
            ALL_GREYS.first(num)


def test_images_without_labels_train_a_network_without_classes_only():
    """draw_batch has no entry "labels" then; with classes it raises a sentence rather than train on None."""
    plain, schedule, config = Dataset("own", GREYS, None, "", ()), Schedule.cosine(9), TrainConfig(batch_size=3)
    assert set(draw_batch(plain, schedule, None, config, 0)) == {"x_t", "target", "t"}
    with pytest.raises(ValueError, match="labels must be integers, got object None"):
        draw_batch(plain, schedule, 10, config, 0)


# ---------------------------------------------------------------------------------------------- arrays of one's own

RANGES = [(0, 1), (-1, 1), (0, 255), (-3.5, 10)]


@given(
    st.sampled_from(RANGES),
    st.sampled_from(["float16", "float32", "float64"]),
    st.sampled_from([(4, 8, 8), (4, 8, 8, 1), (4, 4, 4, 4)]),
    st.integers(0, 2**32),
)
def test_float_images_become_the_nearest_of_256_pixels(value_range, dtype, shape, seed):
    """Every pixel comes back from low + (high - low) pixel / 255, in each dtype; black is 0 and white is 255."""
    pixels = default_rng(seed).permutation(np.arange(256, dtype=np.uint8)).reshape(shape)
    low, high = value_range
    images = (low + (high - low) * (pixels / 255)).astype(dtype)
    made = Dataset.from_arrays(images, value_range=value_range)
    np.testing.assert_array_equal(made.images, pixels.reshape((*shape, 1)[:4]))
    assert made.images.dtype == np.uint8 and made.labels is None and made.classes == ()


@pytest.mark.parametrize("value_range", RANGES)
def test_the_least_float_outside_the_range_is_refused(value_range):
    """The range contains its ends, and nothing beyond: what is cut there would be lost in silence."""
    low, high = map(float, value_range)
    for value in (np.nextafter(low, -np.inf), np.nextafter(high, np.inf)):
        images = np.array([low, high, low, high, value, high]).reshape(3, 1, 2)
        assert len(Dataset.from_arrays(images[:2], value_range=value_range)) == 2
        with pytest.raises(ValueError, match="; row 2 contains "):
            Dataset.from_arrays(images, value_range=value_range)


def test_a_float_between_two_pixels_is_rounded():
    """Not cut: of 0..1 the value 0.7/255 is 1 and 254.4/255 is 254."""
    images = np.array([[[0.7, 254.4, 255, 1.4]]]) / 255
    assert Dataset.from_arrays(images, value_range=(0, 1)).images.ravel().tolist() == [1, 254, 255, 1]


def test_uint8_arrays_are_taken_as_they_are():
    """(N, H, W) gets one channel, (N, H, W, C) none, and no pixel is copied."""
    colour = np.arange(4 * 5 * 6 * 3, dtype=np.uint8).reshape(4, 5, 6, 3)
    for images, shape in ((colour, (4, 5, 6, 3)), (colour[..., 0], (4, 5, 6, 1))):
        made = Dataset.from_arrays(images)
        assert made.images.shape == shape and np.shares_memory(made.images, images)
        assert (made.name, made.source) == ("own", "arrays in memory")


NAN = np.where(np.arange(4).reshape(4, 1, 1) == 2, np.nan, np.zeros((4, 2, 2)))
REFUSED = {
    "bool": (GREYS > 127, {}, r"got bool: images\.astype\('uint8'\) \* 255"),
    "int8": (GREYS.astype(np.int8), {}, "got int8: an int8 ends at 127"),
    "uint16": (GREYS.astype(np.uint16), {}, r"got uint16: \(images >> 8\)"),
    "int64": (GREYS.astype(int), {}, "got int64: convert them to uint8 in 0..255"),
    "complex": (GREYS * 1j, {"value_range": (0, 1)}, "got complex128"),
    "text": (GREYS.astype(str), {}, "got <U3"),
    "objects": (GREYS.astype(object), {}, "got object"),
    "0..1 as uint8": (GREYS // 255, {}, "pixels in 0..1: multiply them by 255"),
    "a list": (GREYS.tolist(), {}, "must be a NumPy array, got list"),
    "one image": (GREYS[0, ..., 0], {}, r"\(N, H, W\) or \(N, H, W, C\) with N >= 1, got \(28, 28\)"),
    "a film": (GREYS[None], {}, r"got \(1, 4, 28, 28, 1\)"),
    "none": (GREYS[:0], {}, r"got \(0, 28, 28, 1\)"),
    "float without a range": (GREYS / 255 * 2 - 1, {}, r"need value_range=\(0, 1\) or .* got float64 in -1..1"),
    "float in 0..255 as 0..1": (GREYS / 1.0, {"value_range": (0, 1)}, "value_range 0..1; row 0 contains 2"),
    "float in -1..1 as 0..1": (GREYS[1:] / 127.5 - 1, {"value_range": (0, 1)}, "row 0 contains -0.87"),
    "float in 0..1 as 0..255": (GREYS / 255, {"value_range": (0, 255)}, "pixels in 0..1: multiply them by 255"),
    "NaN": (NAN, {"value_range": (0, 1)}, "row 2 contains nan"),
    "infinity": (np.where(np.isnan(NAN), -np.inf, NAN), {"value_range": (-1, 1)}, "row 2 contains -inf"),
    "a range for uint8": (GREYS, {"value_range": (0, 1)}, "value_range is for float images"),
    "a range upside down": (GREYS / 255, {"value_range": (1, 0)}, "two finite numbers, the lower one first"),
    "an endless range": (GREYS / 255, {"value_range": (0, np.inf)}, "two finite numbers"),
    "a range of nan": (GREYS / 255, {"value_range": (np.nan, 1)}, "two finite numbers"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_arrays_that_are_no_pictures_are_refused_by_name(what):
    """The dtype, or the value and its row, and what helps."""
    images, options, message = REFUSED[what]
    with pytest.raises(ValueError, match=message):
        Dataset.from_arrays(images, **options)


def test_labels_count_from_0_without_a_gap_unless_classes_names_them():
    """1..K would make a class that nothing belongs to, and a gap is most often a mistake; with names it is a wish."""
    for labels, message in (
        ([1, 2, 3, 1], "row 0 has the label 1, and no row has 0: count from 0"),
        ([0, 1, 0, 7], "row 3 has the label 7, and no row has 2"),
        ([0, 1, -1, 2], r"must lie in 0\.\.3, one for each class; row 2 has the label -1"),
        ([0.0, 1, 0, 1], "labels must be 4 integers, got float64"),
        ([[0], [1], [0], [1]], r"got int64 of shape \(4, 1\)"),
        ([0, 1, 2], r"got int64 of shape \(3,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            Dataset.from_arrays(GREYS, np.array(labels))
    assert Dataset.from_arrays(GREYS, np.array([1, 0, 2, 1])).classes == ("0", "1", "2")
    assert Dataset.from_arrays(GREYS, np.array([1, 2, 2, 1]), classes=["zero", "one", "two"]).classes[0] == "zero"
    with pytest.raises(ValueError, match="row 1 has the label 2"):
        Dataset.from_arrays(GREYS, np.array([1, 2, 2, 1]), classes=["zero", "one"])
    with pytest.raises(ValueError, match="labels must be a NumPy array, got list"):
        Dataset.from_arrays(GREYS, [0, 1, 0, 1])


def test_names_fit_into_a_checkpoint():
    """A name, of the set or of a class, is one line of 1 to 100 printable letters; there are at most 1,000 classes."""
    labels = np.array([0, 0, 1, 1])
    for wrong in ("", "x" * 101, "two\nlines", 7):
        with pytest.raises(ValueError, match="a name must be a line of 1 to 100 printable letters"):
            Dataset.from_arrays(GREYS, name=wrong)
        with pytest.raises(ValueError, match="a name must be a line of 1 to 100 printable letters"):
            Dataset.from_arrays(GREYS, labels, classes=["a", wrong])
    with pytest.raises(ValueError, match="at most 1,000 classes are possible, got 1,001"):
        Dataset.from_arrays(GREYS, labels, classes=["a"] * 1001)
    assert len(Dataset.from_arrays(GREYS, labels, classes=["a"] * 1000).classes) == 1000
    made = Dataset.from_arrays(GREYS, labels, classes=["é " * 50, "b" * 100], name="mine", source="a drawer")
    assert (made.name, made.source, made.classes[1]) == ("mine", "a drawer", "b" * 100)
