"""Laws of the drawn digits."""

import itertools
import time

import matplotlib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinydiff.backend import TinydiffError, default_rng
from tinydiff.data import fields, glyphs
from tinydiff.data.dataset import DataError
from tinydiff.data.glyphs import FACES, load_glyphs

pytestmark = pytest.mark.data

AXIS = (np.arange(fields.GRID) - (fields.GRID - 1) / 2) * fields.STEP


@pytest.fixture(scope="module")
def digits():
    """10,000 training digits, and the seconds that they took."""
    start = time.perf_counter()
    dataset = load_glyphs("train", 0, 10_000)
    return dataset, time.perf_counter() - start


def box(width, height, clockwise=False):
    """A closed rectangle about the origin."""
    corners = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1), (-1, -1)]) * [width / 2, height / 2]
    return corners[::-1] if clockwise else corners


def distance_to_box(width, height):
    """The textbook signed distance to that rectangle, on the grid of the fields, positive inside."""
    x, y = np.abs(AXIS)[None, :] - width / 2, np.abs(AXIS)[:, None] - height / 2
    return -np.where((x < 0) & (y < 0), np.maximum(x, y), np.hypot(np.maximum(x, 0), np.maximum(y, 0)))


@given(
    st.floats(0.2, 1.2), st.floats(0.1, 0.9), st.floats(0.01, 100), st.booleans(), st.tuples(*[st.floats(-9, 9)] * 2)
)
def test_a_field_is_the_signed_distance_in_pixels(aspect, hole, unit, clockwise, origin):
    """A frame of any size, place and sense, set 20 pixels high: min(distance to the outside, -distance to the hole)."""
    origin = np.array(origin) * unit
    polygons = [
        box(unit * aspect, unit, clockwise) + origin,
        box(unit * aspect * hole, unit * hole, not clockwise) + origin,
    ]
    expected = np.minimum(distance_to_box(20 * aspect, 20), -distance_to_box(20 * aspect * hole, 20 * hole))
    field = glyphs._distance_field(polygons)
    # float32 coordinates of up to 20 pixels, squared and rooted; points on an edge may fall on either side of it
    np.testing.assert_allclose(np.abs(field), np.abs(expected), atol=2e-3)
    clear = np.abs(expected) > 2e-3
    np.testing.assert_array_equal(field[clear] > 0, expected[clear] > 0)


def test_overlapping_strokes_leave_no_hole():
    """Two rectangles drawn in one sense, one within the other, are ink throughout."""
    field = glyphs._distance_field([box(10, 20), box(4, 8)])
    assert field[len(field) // 2, len(field) // 2] > 0


def test_rows_run_downwards_and_columns_to_the_right():
    """An L, drawn with y upwards, has its stem in the left columns its foot in the last rows: nothing is mirrored."""
    letter = np.array([(-7.0, -10), (7, -10), (7, -7), (-4, -7), (-4, 10), (-7, 10), (-7, -10)])
    inside = glyphs._distance_field([letter]) > 0
    middle = len(inside) // 2
    assert inside[middle:].sum() > inside[:middle].sum()
    assert inside[:, :middle].sum() > inside[:, middle:].sum()
    assert not inside[:middle, middle:].any()


@given(st.integers(0, 10**6))
def test_the_look_up_is_exact_on_planes(seed):
    """Bilinear interpolation reproduces a x + b y + c, each field its own, and holds the border's value beyond it."""
    rng = default_rng(seed)
    a, b, c = rng.uniform(-1, 1, (3, 4, 1)).astype(np.float32)
    planes = a[:, :, None] * AXIS[None, None, :] + b[:, :, None] * AXIS[None, :, None] + c[:, :, None]
    x, y = rng.uniform(-20, 20, (2, 4, 50)).astype(np.float32)
    expected = a * np.clip(x, -14, 14) + b * np.clip(y, -14, 14) + c
    found = fields.look_up(planes.astype(np.float32), np.arange(4), x, y)
    np.testing.assert_allclose(found, expected, atol=2e-3)  # the last point is read at 0.999 of a 0.5-pixel cell


@settings(max_examples=5)
@given(st.integers(1, 1200), st.integers(1, 1200), st.sampled_from(["train", "test"]), st.integers(0, 2**40))
def test_a_longer_set_begins_with_a_shorter_one(short, long, split, seed):
    """Image and label i depend on (seed, split, i) alone."""
    short, long = sorted((short, long))
    a, b = load_glyphs(split, seed, short), load_glyphs(split, seed, long)
    assert len(a) == short
    np.testing.assert_array_equal(a.images, b.images[:short])
    np.testing.assert_array_equal(a.labels, b.labels[:short])


def test_the_outlines_are_read_the_same_each_time():
    """Same seed, same bits, with the fields built anew."""
    before = load_glyphs("train", 3, 500)
    glyphs._distance_fields.cache_clear()
    np.testing.assert_array_equal(load_glyphs("train", 3, 500).images, before.images)


def test_no_picture_comes_twice(digits):
    """Blocks and splits have random streams of their own: 10,000 training and 2,000 test images are all different."""
    seen = {image.tobytes() for image in digits[0].images}
    seen |= {image.tobytes() for image in load_glyphs("test", 0, 2000).images}
    assert len(seen) == 12_000


def test_the_sizes_of_the_splits_are_those_of_the_docstring(monkeypatch):
    """20,000 images for training and 10,000 for testing, unless `num` is given."""
    monkeypatch.setattr(glyphs, "_draw", lambda rng, num: (np.zeros((num, 28, 28), "uint8"), np.zeros(num, "uint8")))
    assert (len(load_glyphs("train", 0)), len(load_glyphs("test", 0))) == (20_000, 10_000)
    assert len(load_glyphs("train", 0, 7)) == 7


def test_ten_thousand_take_less_than_ten_seconds(digits):
    """The promise of the data set; measured at about 1.5 s on one core, so a slow machine still keeps it."""
    assert digits[1] < 10


def test_labels_are_uniform(digits):
    """Each digit is one in ten: 1,000 +- 5 standard deviations of 30 among 10,000."""
    assert digits[0].labels.dtype == np.uint8
    np.testing.assert_allclose(np.bincount(digits[0].labels, minlength=10), 1000, atol=150)


def test_pictures_are_white_ink_on_black_with_soft_edges(digits):
    """Black at the rim, white in every digit, and some but few greys between: anti-aliased, not blurred."""
    images = digits[0].images
    assert (images.shape, images.dtype) == ((10_000, 28, 28, 1), np.uint8)
    rim = np.concatenate(
        [images[:, [0, -1]].reshape(len(images), -1), images[:, :, [0, -1]].reshape(len(images), -1)], 1
    )
    assert (rim.max(1) == 0).mean() > 0.98  # a heavy, wide, shifted digit may touch it
    assert (images.max((1, 2)) == 255).mean() > 0.99
    greys = ((images > 0) & (images < 255)).mean()
    assert 0.05 < greys < 0.2  # the outline of a digit is some 80 of the 784 pixels long
    assert 0.10 < images.mean() / 255 < 0.17  # MNIST: 0.1307


def test_digits_are_centred_and_about_twenty_pixels_high(digits):
    """The height of the ink is 20 pixels give or take scale and weight, and its middle that of the image on average."""
    rows = digits[0].images.max(2) > 127
    first, last = rows.argmax(1), 27 - rows[:, ::-1].argmax(1)
    height = last - first + 1
    assert 19 <= height.mean() <= 22
    assert (np.percentile(height, [1, 99]) == np.clip(np.percentile(height, [1, 99]), 15, 27)).all()
    assert height.std() > 1
    # shifts of +-1.5 pixels average out over 10,000 images to 0.01; the bend moves no digit in particular
    assert abs((first + last).mean() / 2 - 13.5) < 0.1


def test_digits_are_unmistakable(digits):
    """The nearest of 10,000 training pictures has the right label for 98 in 100 test pictures, in every class 93."""
    train, test = digits[0], load_glyphs("test", 0, 1000)
    a, b = (d.images.reshape(len(d), -1).astype(np.float32) for d in (test, train))
    nearest = ((b * b).sum(1) - 2 * a @ b.T).argmin(1)
    right = train.labels[nearest] == test.labels
    assert right.mean() > 0.98  # measured 0.99; handwritten MNIST with 60,000 pictures gets 0.97
    assert all(right[test.labels == digit].mean() > 0.93 for digit in range(10))


def test_every_face_is_drawn_and_shipped_with_matplotlib(monkeypatch, tmp_path):
    """At least 12 faces, each different; without matplotlib's folder, a DataError names the missing file."""
    fields, _ = glyphs._distance_fields()
    assert len(set(FACES)) == len(FACES) >= 12
    assert len({field.tobytes() for field in fields}) == 10 * len(FACES)
    monkeypatch.setattr(matplotlib, "get_data_path", lambda: str(tmp_path))
    with pytest.raises(DataError, match=f"{FACES[0]}.ttf is missing"):
        next(glyphs._outlines(FACES[0]))


def test_impossible_arguments_are_named():
    """A ValueError names num or seed and the value."""
    with pytest.raises(ValueError, match="num must be at least 1, got 0"):
        load_glyphs("train", 0, 0)
    with pytest.raises(ValueError, match="seed must not be negative, got -1"):
        load_glyphs("train", -1, 1)


def test_more_glyphs_than_memory_are_refused_before_one_is_drawn(monkeypatch):
    """785 bytes an image, picture and label, compared with the memory of the machine."""
    monkeypatch.setattr(glyphs, "_draw", None)
    monkeypatch.setattr("tinydiff.data.limits.memory", lambda: 7_849_999_999)
    with pytest.raises(TinydiffError, match=r"10,000,000 glyphs: that needs about 7\.8 GB of memory"):
        load_glyphs("train", 0, 10_000_000)


def test_a_long_drawing_shows_a_bar(monkeypatch, capsys):
    """Ten million glyphs take twenty minutes: a bar appears after a few seconds.  A short drawing prints nothing."""
    load_glyphs("train", 0, 600)
    assert capsys.readouterr().err == ""
    clock = itertools.count(0.0, 10.0)
    monkeypatch.setattr("tqdm.std.time", lambda: next(clock))
    monkeypatch.setattr(glyphs, "_draw", lambda rng, num: (np.zeros((num, 28, 28), "uint8"), np.zeros(num, "uint8")))
    load_glyphs("train", 0, 5000)
    assert "drawing glyphs" in capsys.readouterr().err


# One image is the formula of the docstring.


@pytest.fixture(scope="module")
def drawn():
    """What _draw computes for 800 digits on a field whose distance grows from left to right, with no bend.

    Where each pixel is looked up, of which field, and the ink.
    """
    calls = []
    ramp = np.linspace(-2, 2, 784, dtype=np.float32)

    def look_up(fields, index, x, y):
        calls.append((index, x.astype("float64"), y.astype("float64")))
        return np.broadcast_to(ramp, x.shape)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(glyphs, "look_up", look_up)
        patch.setattr(glyphs, "_bend", lambda x, y, uniform: 0)
        images, labels = glyphs._draw(default_rng(0), 800)
    ((index, x, y),) = calls
    return images.reshape(800, -1), labels, index, x, y, ramp


def transforms(x, y):
    """angle, shear, scale, aspect and shift of each image: the pixel u is looked up at p = M^-1 (u - shift).

    M = rotation . shear . scale = [[cos, -sin], [sin, cos]] . [[1, shear], [0, 1]] . diag(scale aspect, scale/aspect)
    """
    v, u = (a.reshape(-1) for a in np.mgrid[:28, :28] - 13.5)  # y is the row, x the column
    found = []
    for p in np.stack([x, y], 2):
        inverse, *_ = np.linalg.lstsq(np.column_stack([u, v, np.ones(784)]), p, rcond=None)
        np.testing.assert_allclose(np.column_stack([u, v, np.ones(784)]) @ inverse, p, atol=1e-4)  # float32: affine
        M = np.linalg.inv(inverse[:2].T)
        shift = -M @ inverse[2]
        angle = np.arctan2(M[1, 0], M[0, 0])
        turned = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]) @ M
        (a, b), (zero, d) = turned
        assert abs(zero) < 1e-5
        found.append((angle, b / d, (a * d) ** 0.5, (a / d) ** 0.5, *shift))
    return np.array(found).T


# What the docstring of each means: digits turn either way, most lean to the right (a negative shear), none is mirrored.
RANGES = {"angle": (-0.2, 0.2), "shear": (-0.2, 0.1), "scale": (0.86, 1.06), "aspect": (0.9, 1.12)}
RANGES |= {"right": (-1.5, 1.5), "down": (-1.5, 1.5)}


def test_every_pixel_is_looked_up_at_its_moved_point(drawn):
    """p = M^-1 (u - shift), M = rotation . shear . scale: each of the six numbers fills its own range, on its own."""
    _, _, _, x, y, _ = drawn
    found = transforms(x, y)
    for (low, high), values in zip(RANGES.values(), found, strict=True):
        margin = 0.03 * (high - low)  # of 800 uniform numbers none within 3% of an end: 800 log 0.97 = -24
        assert low - 1e-4 < values.min() < low + margin and high - margin < values.max() < high + 1e-4
        assert abs(values.mean() - (low + high) / 2) < 5 * (high - low) / 12**0.5 / 800**0.5
    assert abs(np.corrcoef(found) - np.eye(6)).max() < 0.18  # 5 standard deviations of 1/sqrt(800)


def test_ink_is_the_distance_and_the_weight_times_the_scale(drawn):
    """ink = clip(0.5 + (d + weight) scale, 0, 1), to the nearest of 256 levels; thick faces get less weight.

    weight = clip(u - half stroke width, 0.12, 0.8) with u in 0.8..1.9: strokes of all faces become alike.
    """
    images, labels, index, x, y, ramp = drawn
    _, half_width = glyphs._distance_fields()
    scale = transforms(x, y)[2]
    face, digit = np.divmod(index, 10)
    np.testing.assert_array_equal(digit, labels)
    assert set(face) == set(range(len(FACES))) and set(digit) == set(range(10))
    weights = []
    for row, s in zip(images / 255, scale):
        inside = (row > 0) & (row < 1)
        weight = np.median((row[inside] - 0.5) / s - ramp[inside])
        np.testing.assert_allclose(row, np.clip(0.5 + (ramp + weight) * s, 0, 1), atol=0.51 / 255 + 2e-3)
        error = 255 * (row[inside] - 0.5 - (ramp[inside] + weight) * s)
        assert abs(error).max() < 0.75  # half a level, and as much as the median may be off
        weights.append(weight)
    weights = np.array(weights)
    clipped = weights[weights < 0.125]
    assert len(clipped) > 100 and abs(np.median(clipped) - 0.12) < 3e-4  # rounding down would take 2e-3
    assert clipped.min() > 0.115 and weights.max() < 0.805
    for number in range(len(FACES)):  # about 50 images each
        own, most = weights[face == number], 1.9 - half_width[number]
        if most > 0.2:
            assert most - 0.2 < own.max() < most + 0.005 and own.min() < max(0.125, 0.8 - half_width[number] + 0.2)
        else:
            assert own.max() < max(0.125, most + 0.005)


def test_a_bend_is_slow_and_small():
    """Two waves of 0.1 to 0.6 pixels and 18 to 40 pixels long: at most 1.2 pixels, and a neighbour moves about as far.

    Its slope is at most 2 x 0.6 x 2 pi/18 = 0.42; the two together are larger than one alone may be.
    """
    rng = default_rng(0)
    v, u = (a.reshape(1, -1).astype(np.float32) for a in np.mgrid[:28, :28] - 13.5)

    def uniform(low, high):
        return rng.uniform(low, high, (500, 1)).astype(np.float32)

    bends = glyphs._bend(u, v, uniform).reshape(500, 28, 28)
    assert 0.9 < abs(bends).max() <= 1.2 and (abs(bends).max((1, 2)) > 0.2).mean() > 0.9
    slopes = [abs(np.diff(bends, axis=axis)).max((1, 2)) for axis in (1, 2)]
    assert max(map(np.max, slopes)) < 0.42 and np.mean(slopes) > 0.05
    assert abs(bends.mean()) < 0.05  # 500 phases: 0.4/sqrt(500)
    assert abs(np.mean(slopes[0]) / np.mean(slopes[1]) - 1) < 0.1  # in any direction


def test_a_digit_is_bent_in_both_directions_on_their_own(monkeypatch):
    """What _bend gives is added to x, and what it gives next to y."""
    calls, points = [], []
    bend = glyphs._bend
    monkeypatch.setattr(glyphs, "_bend", lambda *how: calls.append(bend(*how)) or calls[-1])
    monkeypatch.setattr(glyphs, "look_up", lambda fields, index, x, y: points.append((x, y)) or 0 * x)
    glyphs._draw(default_rng(0), 20)
    ((x, y),), (bend_x, bend_y) = points, calls
    assert abs(bend_x - bend_y).max(1).min() > 0.05
    transforms(x - bend_x, y - bend_y)  # the rest is affine


def test_the_source_of_a_set_says_how_many_which_split_and_which_seed():
    """One sentence, in a checkpoint and beside a picture."""
    source = load_glyphs("test", 7, 1234).source
    assert source == f"glyphs: 1,234 digits drawn from {len(FACES)} of matplotlib's type faces (test split, seed 7)"


@pytest.mark.parametrize("num", [1, 499, 500, 501, 999, 1000, 1001])
def test_a_set_of_any_length_is_the_beginning_of_the_blocks(num):
    """At the borders of the blocks of 500, and one beside them: image i is image i of a longer set."""
    some, more = load_glyphs("train", 5, num), load_glyphs("train", 5, 1100)
    assert len(some) == len(some.labels) == num
    np.testing.assert_array_equal(some.images, more.images[:num])
    np.testing.assert_array_equal(some.labels, more.labels[:num])
