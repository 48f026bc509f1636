"""Laws of CIFAR-10, on small archives of the same form."""

import hashlib
import io
import pickle
import struct
import tarfile

import numpy as np
import pytest

from tinydiff import data
from tinydiff.backend import default_rng
from tinydiff.data import releases
from tinydiff.data.cifar import read_pickle
from tinydiff.data.dataset import DataError
from tinydiff.data.releases import DataMissing

pytestmark = pytest.mark.data

FILE = "cifar-10-python.tar.gz"
RNG = default_rng("cifar")
BATCHES = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
IMAGES = {name: RNG.integers(0, 256, (4, 32, 32, 3), np.uint8) for name in BATCHES}
LABELS = {name: RNG.integers(0, 10, 4).tolist() for name in BATCHES}


def text(value):
    """Python 2's text in a pickle of protocol 2."""
    return b"T" + struct.pack("<i", len(value)) + value


def array(numbers, shape, dtype=b"u1", fortran=False):
    """A NumPy array as Python 2 pickled it: _reconstruct(ndarray, (0,), "b"), and then its state."""
    made = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85" + text(b"b") + b"\x87R"
    kind = (
        b"cnumpy\ndtype\n"
        + text(dtype)
        + b"K\0K\1\x87R(K\3"
        + text(b"|")
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb"
    )
    sizes = b"".join(b"J" + struct.pack("<i", n) for n in shape)
    return made + b"(K\1(" + sizes + b"t" + kind + (b"\x88" if fortran else b"\x89") + text(numbers) + b"tb"


def batch(images, labels):
    """A batch as in the archive: rows of a plane of red, one of green and one of blue."""
    rows = images.transpose(0, 3, 1, 2).reshape(len(images), 3072)
    numbers = b"](" + b"".join(b"K" + bytes([k]) for k in labels) + b"e"
    members = text(b"batch_label") + text(b"a batch") + text(b"labels") + numbers
    return b"\x80\2}(" + members + text(b"data") + array(rows.tobytes(), rows.shape) + b"u."


def archive(files):
    """A .tar.gz file with these contents."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


SMALL = archive({name: batch(IMAGES[name], LABELS[name]) for name in BATCHES})


@pytest.fixture
def published(monkeypatch):
    """A function that puts the hash of a content in the place of the published one."""

    def publish(content, url="http://127.0.0.1:9/"):
        release = releases.RELEASES["cifar10"]
        hashes = {FILE: hashlib.sha256(content).hexdigest()}
        monkeypatch.setitem(releases.RELEASES, "cifar10", release._replace(sha256=hashes, urls=(url,)))
        return content

    return publish


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("where", ["dir/cifar10", "dir", "cache/cifar10"])
def test_images_are_red_green_blue_and_upright(published, put, tmp_path, split, where):
    """Each pixel of each batch in its place, the batches in their order; five for training and one for testing."""
    put(tmp_path / where, {FILE: published(SMALL)})
    dataset = data.load("cifar10", split, data_dir=None if "cache" in where else tmp_path / "dir")
    names = BATCHES[:5] if split == "train" else BATCHES[5:]
    np.testing.assert_array_equal(dataset.images, np.concatenate([IMAGES[name] for name in names]))
    np.testing.assert_array_equal(dataset.labels, np.concatenate([LABELS[name] for name in names]))
    assert dataset.images.flags.c_contiguous and dataset.name == "cifar10"
    assert (dataset.classes[0], dataset.classes[9], len(dataset.classes)) == ("airplane", "truck", 10)
    assert dataset.source == f"CIFAR-10 ({split} split) from {tmp_path / where}"


def test_a_part_and_another_size(published, put, tmp_path):
    put(tmp_path / "dir", {FILE: published(SMALL)})
    some = data.load("cifar10", data_dir=tmp_path / "dir", num=3, size=16)
    assert some.images.shape == (3, 16, 16, 3) and some.labels.tolist() == LABELS["data_batch_1"][:3]


def test_it_is_downloaded_once(published, mirror, tmp_path):
    """To <cache>/cifar10/; the second load asks no mirror, and nothing is unpacked there."""
    mirror.files[f"/{FILE}"] = published(SMALL, mirror.url)
    for _ in range(2):
        assert len(data.load("cifar10", "test", say=lambda line: None)) == 4
    assert mirror.asked == [f"/{FILE}"] and [p.name for p in (tmp_path / "cache" / "cifar10").iterdir()] == [FILE]


def test_without_a_network_it_says_what_helps():
    with pytest.raises(DataMissing, match=f"Put {FILE} into a folder, and name it with --data-dir"):
        data.load("cifar10", say=lambda line: None)


def test_a_file_of_another_hash_is_not_read(published, put, tmp_path, monkeypatch):
    """Before anything of it is unpickled; the message has both hashes."""
    published(SMALL)
    put(tmp_path / "dir", {FILE: SMALL[:-1] + b"\1"})
    monkeypatch.setattr("tinydiff.data.cifar.read_pickle", None)
    with pytest.raises(DataError, match=f"{FILE}: the file .*{hashlib.sha256(SMALL).hexdigest()}"):
        data.load("cifar10", data_dir=tmp_path / "dir")


def test_the_published_hash_is_that_of_the_published_file():
    """As the archive's page and other programs that check it have it: in several public sources."""
    published = "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"
    assert releases.RELEASES["cifar10"].sha256 == {FILE: published}


def test_the_published_file_is_within_its_limit():
    """Unpacked it has 60,000 rows of 3,073 bytes."""
    assert releases.RELEASES["cifar10"].most_bytes > 60_000 * 3073


def test_an_array_in_the_order_of_fortran_is_read_in_its_own_order():
    pixels = np.arange(6, dtype=np.uint8).reshape(2, 3)
    for order in "CF":
        found = read_pickle(b"\x80\2" + array(pixels.tobytes(order), (2, 3), fortran=order == "F") + b".")
        np.testing.assert_array_equal(found.pixels, pixels)


class Runs:
    def __reduce__(self):
        return pytest.fail, ("the pickle has run code",)


HARMFUL = {
    "a function": (
        pickle.dumps(Runs(), 2),
        r"the archive asks for (_pytest\.outcomes|pytest)\.\w+, which could run code",
    ),
    "a function, by a newer protocol": (
        pickle.dumps(Runs()),
        "the archive asks for .*, which could run code: it is not loaded",
    ),
    "eval": (b"c__builtin__\neval\n(S'1'\ntR.", "the archive asks for __builtin__.eval, which could run code"),
    "a function of NumPy": (b"cnumpy\nsave\n(S'1'\ntR.", "the archive asks for numpy.save, which could run code"),
    "a part of a name": (
        b"\x80\4\x8c\5numpy\x8c\x0endarray.tofile\x93.",
        "the archive asks for numpy.ndarray.tofile, which could",
    ),
    "a class by INST": (b"(ios\nsystem\n.", "the archive asks for os.system"),
    "a persistent number": (b"Pfile\n.", "a pickle in the archive cannot be read"),
    "a registered number": (b"\x82\1.", "a pickle in the archive cannot be read"),
    "an array of objects": (
        b"\x80\2" + array(b"x" * 8, (1,), b"O8") + b".",
        "the archive contains an array of b'O8', not of uint8",
    ),
    "an array of floats": (
        b"\x80\2" + array(b"x" * 8, (1,), b"f8") + b".",
        "the archive contains an array of b'f8', not of uint8",
    ),
    "a lie about a shape": (
        b"\x80\2" + array(b"x" * 8, (2**30, 2**30)) + b".",
        "a pickle in the archive cannot be read",
    ),
    "a shape one too large": (b"\x80\2" + array(b"x" * 8, (9,)) + b".", "a pickle in the archive cannot be read"),
    "cut short": (batch(IMAGES["test_batch"], [1, 2, 3, 4])[:-100], "a pickle in the archive cannot be read"),
    "nothing": (b"", "a pickle in the archive cannot be read"),
}


@pytest.mark.parametrize("what", HARMFUL)
def test_nothing_but_plain_data_is_unpickled(what):
    """All else is a sentence, whatever the hash of the file may be."""
    content, message = HARMFUL[what]
    with pytest.raises(DataError, match=f"^{message}"):
        read_pickle(content)


def test_an_archive_with_a_harmful_pickle_is_refused_even_with_the_right_hash(published, put, tmp_path):
    files = {name: batch(IMAGES[name], LABELS[name]) for name in BATCHES} | {"data_batch_3": pickle.dumps(Runs(), 2)}
    put(tmp_path / "dir", {FILE: published(archive(files))})
    with pytest.raises(DataError, match="which could run code: it is not loaded"):
        data.load("cifar10", data_dir=tmp_path / "dir")
