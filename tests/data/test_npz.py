"""Laws of an .npz file as a data set."""

import io
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinydiff import data
from tinydiff.backend import TinydiffError, default_rng
from tinydiff.data.dataset import DataError

pytestmark = pytest.mark.data

PIXELS = default_rng(0).integers(0, 256, (6, 5, 4, 3), np.uint8)
LABELS = np.array([0, 1, 2, 0, 1, 2])


@pytest.fixture
def save(tmp_path):
    """A function that writes arrays into a file, and returns its path."""

    def write(write=np.savez, **arrays):
        write(tmp_path / "mine.npz", **arrays)
        return tmp_path / "mine.npz"

    return write


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_images_and_labels_come_back(save, write):
    """Packed or not; the name is the file's, and classes without names are numbers."""
    dataset = data.load(save(write, images=PIXELS, labels=LABELS))
    np.testing.assert_array_equal(dataset.images, PIXELS)
    np.testing.assert_array_equal(dataset.labels, LABELS)
    assert dataset.name == "mine.npz" and dataset.classes == ("0", "1", "2")
    assert dataset.source.endswith("mine.npz: images (6, 5, 4, 3) uint8")


def test_labels_may_be_absent_and_classes_may_have_names(save):
    """classes: one text for each label, an array of text."""
    plain = data.load(save(images=PIXELS[..., 0]))
    assert plain.labels is None and plain.classes == () and plain.images.shape == (6, 5, 4, 1)
    named = data.load(save(images=PIXELS, labels=LABELS, classes=np.array(["a", "b", "c", "d"])))
    assert named.classes == ("a", "b", "c", "d")
    with pytest.raises(DataError, match="a name must be a line of 1 to 100 printable letters, got 0"):
        data.load(save(images=PIXELS, labels=LABELS, classes=np.arange(3)))


def test_what_sample_py_saves_is_a_data_set(save):
    """images float32 in -1..1 and labels: the pixels come back, if the caller says which values are black and white."""
    path = save(images=(PIXELS / 127.5 - 1).astype(np.float32), labels=LABELS)
    np.testing.assert_array_equal(data.load(path, value_range=(-1, 1)).images, PIXELS)
    with pytest.raises(DataError, match=r"mine\.npz: float images need value_range=\(0, 1\) or \(-1, 1\)"):
        data.load(path)


def test_a_file_can_say_which_values_are_black_and_white(save):
    """So that a program needs no option; what the caller says counts before it, and two finite numbers are needed."""
    path = save(images=PIXELS / 255, value_range=(0, 1))
    np.testing.assert_array_equal(data.load(path).images, PIXELS)
    np.testing.assert_array_equal(data.load(path, value_range=(0, 3)).images, np.rint(PIXELS / 3))
    for wrong in ((1, 0), (0, np.nan), (0, 1, 2), 1, "ab"):
        with pytest.raises(DataError, match=r"mine\.npz: .*"):
            data.load(save(images=PIXELS / 255, value_range=wrong))


def test_a_part_of_it_and_another_size(save):
    """num takes the first rows; size crops and resizes as for a folder."""
    path = save(images=np.full((6, 20, 30, 3), 7, np.uint8), labels=LABELS)
    some = data.load(path, num=4, size=8)
    assert some.images.shape == (4, 8, 8, 3) and (some.images == 7).all() and some.labels.tolist() == [0, 1, 2, 0]
    with pytest.raises(ValueError, match=r"num must lie in 1\.\.6 for mine\.npz, got 7"):
        data.load(path, num=7)


def test_what_from_arrays_refuses_is_refused_with_the_path(save):
    """The same sentences: a dtype, labels from 1 on."""
    with pytest.raises(DataError, match=r"mine\.npz: images must be uint8 .* got int8: an int8 ends at 127"):
        data.load(save(images=PIXELS.view(np.int8)))
    with pytest.raises(DataError, match=r"mine\.npz: labels must lie in 0\.\.K-1 .* row 0 has the label 1"):
        data.load(save(images=PIXELS, labels=LABELS + 1))


def test_a_file_without_images_names_what_is_there(save):
    with pytest.raises(
        DataError, match=r"no array 'images' in it, found 'x_train', 'y_train'; np\.savez\(path, images=\.\.\.\) writes"
    ):
        data.load(save(x_train=PIXELS, y_train=LABELS))
    with pytest.raises(DataError, match="found nothing"):
        data.load(save())


class Bomb:
    """Unpickling it would fail the test."""

    def __reduce__(self):
        return pytest.fail, ("the file has run code",)


@pytest.mark.parametrize("member", ["images", "labels", "classes"])
def test_nothing_is_unpickled(save, member):
    """An array of objects is refused by its header, before its pickle is read."""
    arrays = {"images": PIXELS, "labels": LABELS, "classes": np.array(list("abc"))} | {member: np.array([Bomb()])}
    with pytest.raises(
        DataError, match=rf"{member}\.npy contains Python objects, which could run code: it is not loaded"
    ):
        data.load(save(**arrays))


def forged(path, header, content=b"", name="images.npy"):
    """An .npz file with one member: a header of a .npy file that states a shape, and a content."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "|u1", "fortran_order": False, "shape": header})
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, buffer.getvalue() + content)
    return path


def test_a_lie_about_a_size_takes_no_memory(tmp_path):
    """A header of 10^12 pixels over a hundred bytes, and one of a pixel less than there is."""
    for shape in ((10**6, 1000, 1000), (99,), (101,)):
        with pytest.raises(DataError, match=r"images\.npy is damaged: its size is not that of \("):
            data.load(forged(tmp_path / "a.npz", shape, bytes(100)))


def test_a_member_larger_than_the_memory_is_not_read(save, monkeypatch):
    """Sizes first: a packed file may be small."""
    path = save(np.savez_compressed, images=np.zeros((100, 100, 100), np.uint8))
    monkeypatch.setattr("tinydiff.data.limits.memory", lambda: 1_900_000)  # of 2 x 1,000,128 bytes
    monkeypatch.setattr(np.lib.format, "read_array", None)
    with pytest.raises(TinydiffError, match=r"mine\.npz: that needs about 0\.0 GB of memory"):
        data.load(path)


@given(st.data())
def test_a_damaged_file_is_a_sentence_with_its_path(data_dir_factory, data):
    """Cut anywhere, or with a byte changed: a DataError, or the same data where the byte means nothing."""
    path, content = data_dir_factory
    at = data.draw(st.integers(0, len(content) - 1))
    wrong = data.draw(st.sampled_from([content[:at], content[:at] + bytes([content[at] ^ 0x55]) + content[at + 1 :]]))
    path.write_bytes(wrong)
    try:
        dataset = load(path)
    except TinydiffError as error:
        assert str(error).startswith(f"{path}: ")
    else:
        assert dataset.images.dtype == np.uint8


load = data.load


@pytest.fixture(scope="module")
def data_dir_factory(tmp_path_factory):
    path = tmp_path_factory.mktemp("npz") / "mine.npz"
    np.savez_compressed(path, images=PIXELS, labels=LABELS)
    return path, path.read_bytes()


@pytest.mark.parametrize("content", [b"", b"not an npz file", b"PK\5\6" + bytes(18)])
def test_another_file_is_named(tmp_path, content):
    """Empty, text, an empty zip file."""
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.npz: (File is not a zip file|no array 'images' in it)"):
        data.load(tmp_path / "a.npz")
