"""Laws of an IDX file of one's own as a data set."""

import gzip
import os

import numpy as np
import pytest

from tinydiff import data
from tinydiff.backend import TinydiffError, default_rng
from tinydiff.data.dataset import DataError

pytestmark = pytest.mark.data

PIXELS, LABELS = default_rng(2).integers(0, 256, (6, 12, 8), np.uint8), np.array([0, 1, 2, 0, 1, 2], np.uint8)
MINE = "my-images-idx3-ubyte"


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (MINE, "my-labels-idx1-ubyte"),
        (f"{MINE}.gz", "my-labels-idx1-ubyte.gz"),
        (f"{MINE}.gz", "my-labels-idx1-ubyte"),
        (MINE, "my-labels-idx1-ubyte.gz"),
        ("my-images.idx3-ubyte", "my-labels.idx1-ubyte"),
    ],
)
def test_an_idx_file_of_ones_own_has_the_labels_beside_it(idx, put, tmp_path, images, labels):
    """Packed or not, with a dash or a point, of any size; the source names both files; num takes the first rows."""
    files = {images: idx(PIXELS), labels: idx(LABELS), "other-labels-idx1-ubyte": idx(LABELS[::-1])}
    put(
        tmp_path, {name: gzip.compress(content) if name.endswith(".gz") else content for name, content in files.items()}
    )
    dataset = data.load(tmp_path / images)
    np.testing.assert_array_equal(dataset.images, PIXELS[..., None])
    np.testing.assert_array_equal(dataset.labels, LABELS)
    assert dataset.name == images and dataset.classes == ("0", "1", "2")
    assert dataset.source == f"{tmp_path / images}: images (6, 12, 8) uint8, labels in {labels}"
    assert data.load(tmp_path / images, num=2, size=8).images.shape == (2, 8, 8, 1)


def test_an_idx_file_without_labels_beside_it_has_none(idx, put, tmp_path):
    """In colour too.  The source says which file there is not; a name unlike MNIST's has no name of labels."""
    colour = default_rng(3).integers(0, 256, (2, 4, 4, 3), np.uint8)
    put(tmp_path, {"my-images-idx4-ubyte": idx(colour), "pixels": idx(PIXELS), "labels-idx1-ubyte": idx(LABELS)})
    for name, images, found in (
        ("my-images-idx4-ubyte", colour, "no file my-labels-idx1-ubyte beside it"),
        ("pixels", PIXELS[..., None], "no labels"),
    ):
        dataset = data.load(tmp_path / name)
        np.testing.assert_array_equal(dataset.images, images)
        assert dataset.labels is None and dataset.classes == () and dataset.source.endswith(f" uint8, {found}")


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        (
            {MINE: b"\xff\xd8\xff\xe0 a photo"},
            "neither an .npz file by its name nor an IDX file: it begins with ff d8 ff e0",
        ),
        ({MINE: b""}, "neither an .npz file by its name nor an IDX file"),
        ({MINE: b"\0\0\x0d\3 floats"}, "not an IDX file of unsigned bytes: it begins with 00 00 0d 03"),
        ({MINE: gzip.compress(bytes(99))[:20]}, "ended before the end-of-stream marker"),
        ({MINE: gzip.compress(bytes(99))[:-1] + b"x"}, "Incorrect length of data"),
        ({MINE: gzip.compress(bytes(99))[:10] + b"\xff" * 20}, "Error -3 while decompressing data"),
        ({MINE: LABELS}, "images must have shape (N, H, W) or (N, H, W, C) with N >= 1, got (6,)"),
        ({MINE: PIXELS, "my-labels-idx1-ubyte": LABELS[1:]}, "labels must be 6 integers, got uint8 of shape (5,)"),
        (
            {MINE: PIXELS, "my-labels-idx1-ubyte": LABELS + 1},
            "labels must lie in 0..K-1 for K classes; row 0 has the label 1",
        ),
        ({MINE: PIXELS, "my-labels-idx1-ubyte": b"text"}, "my-labels-idx1-ubyte: neither an .npz file by its name"),
    ],
)
def test_a_file_that_is_no_data_set_is_a_sentence_with_its_path(idx, put, tmp_path, files, sentence):
    put(tmp_path, {name: idx(a) if isinstance(a, np.ndarray) else a for name, a in files.items()})
    with pytest.raises(DataError) as error:
        data.load(tmp_path / MINE)
    assert str(error.value).startswith(f"{tmp_path}/my-") and sentence in str(error.value)


def test_a_device_is_not_read(tmp_path):
    """A pipe would block for ever."""
    (tmp_path / MINE).symlink_to(os.devnull)
    with pytest.raises(DataError, match=f"{MINE}: it is a pipe, a socket or a device, not a file"):
        data.load(tmp_path / MINE)


def test_an_idx_file_that_unpacks_to_more_than_the_memory_is_refused(idx, put, tmp_path, monkeypatch):
    """No more than a third of the memory is read from a file, packed or not."""
    put(tmp_path, {"images-idx3-ubyte.gz": gzip.compress(idx(np.zeros((100, 100, 100), np.uint8)))})
    assert len(data.load(tmp_path / "images-idx3-ubyte.gz")) == 100
    for module in ("own_idx", "limits"):
        monkeypatch.setattr(f"tinydiff.data.{module}.memory", lambda: 2_000_000)
    with pytest.raises(TinydiffError, match=r"idx3-ubyte\.gz: that needs about 0\.0 GB of memory"):
        data.load(tmp_path / "images-idx3-ubyte.gz")
