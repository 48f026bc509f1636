"""Laws of finding and checking the MNIST files."""

import errno
import gzip
import hashlib
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tinydiff.data import releases as module
from tinydiff.data.dataset import DataError
from tinydiff.data.mnist import FILES, load_mnist
from tinydiff.data.releases import RELEASES, DataMissing, cache_dir, checked_content

pytestmark = pytest.mark.data

NAMES = ("mnist", "fashion")
REAL = os.environ.get("TINYDIFF_DATA", "")
REAL_CACHE_DIR = cache_dir


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("split", ["train", "test"])
def test_the_files_come_back_bit_for_bit(sets, folders, put, name, split):
    """Images and labels of each split are those that were written, under the set's own name."""
    arrays, files = sets[name]
    put(folders["data_dir"], files)
    dataset = load_mnist(name, split, folders["data_dir"], print)
    np.testing.assert_array_equal(dataset.images[..., 0], arrays[FILES[split][0]])
    np.testing.assert_array_equal(dataset.labels, arrays[FILES[split][1]])
    assert dataset.name == name
    assert str(folders["data_dir"]) in dataset.source
    assert len(set(dataset.classes)) == 10


@pytest.fixture(params=["data_dir", "env", "cache"])
def root(request, folders, monkeypatch):
    """The folder that is searched, and the data_dir argument with which it is."""
    if request.param == "env":
        monkeypatch.setenv("TINYDIFF_DATA", str(folders["env"]))
    return folders[request.param], folders["data_dir"] if request.param == "data_dir" else None


@pytest.mark.parametrize("first", range(6))
def test_places_are_searched_in_the_order_of_the_docstring(sets, folders, put, root, first):
    """The subfolder, then the folder itself, each with three names of a file: the first that is there decides."""
    folder, data_dir = root
    names = [[spellings(file)[k] for file in FILES["test"]] for k in range(3)]
    places = [(where, files) for where in (folder / "mnist", folder) for files in names]
    content = [sets["mnist"][1][file] for file in FILES["test"]]
    for where, files in places[first:]:
        put(where, dict.fromkeys(files, b"damaged"))
    where, files = places[first]
    with pytest.raises(DataError, match=str(where / files[0])):
        load_mnist("mnist", "test", data_dir, print)
    put(where, dict(zip(files, content)))
    for other in folders.values():
        put(other / "fashion", dict.fromkeys(FILES["test"], b"damaged"))
    assert load_mnist("mnist", "test", data_dir, print).source.endswith(f"from {where}")


def spellings(file):
    """The names under which a file of the data set may stand: packed, and unpacked by two kinds of tools."""
    unpacked = file.removesuffix(".gz")
    return file, unpacked, unpacked.replace("-idx", ".idx")


@pytest.mark.parametrize("spelling", range(3))
@pytest.mark.parametrize("packed", [True, False])
def test_the_content_decides_whether_a_file_is_packed(sets, folders, put, spelling, packed):
    """Browsers unpack a file and keep its name: packed and unpacked content is read under each name."""
    arrays, files = sets["mnist"]
    content = {spellings(f)[spelling]: gz if packed else gzip.decompress(gz) for f, gz in files.items()}
    put(folders["data_dir"], content)
    for split in FILES:
        dataset = load_mnist("mnist", split, folders["data_dir"], print)
        np.testing.assert_array_equal(dataset.images[..., 0], arrays[FILES[split][0]])
        np.testing.assert_array_equal(dataset.labels, arrays[FILES[split][1]])


@pytest.mark.parametrize("name", NAMES)
def test_an_unpacked_file_is_known_by_its_hash_too(sets, folders, put, name):
    """One byte more, or less, or another: a DataError names the file.  Fashion-MNIST is known by its packed files."""
    file, unpacked, _ = spellings(FILES["train"][0])
    content = gzip.decompress(sets[name][1][file])
    for wrong in (content + b"a", content[:-1], content[:-1] + bytes([content[-1] ^ 1]), b"", b"\0", content):
        put(folders["data_dir"], {unpacked: wrong})
        if (name, wrong) != ("mnist", content):
            with pytest.raises(DataError, match=f"{unpacked}: the file .* {RELEASES[name].title}'s {file}"):
                load_mnist(name, "train", folders["data_dir"], print)


def test_each_file_is_searched_on_its_own(sets, folders, put):
    """Images in one place and labels in another make a set."""
    arrays, files = sets["mnist"]
    images, labels = FILES["train"]
    put(folders["cache"], {images: files[images]})
    put(folders["cache"] / "mnist", {labels: files[labels]})
    found = load_mnist("mnist", "train", None, print)
    np.testing.assert_array_equal(found.labels, arrays[labels])
    assert found.source == f"MNIST (train split) from {folders['cache']}"  # the place of the images


def test_a_set_is_known_by_its_hash_where_both_share_a_folder_tree(sets, folders, put):
    """data_dir/ holds MNIST and data_dir/fashion/ Fashion-MNIST: each name finds its own."""
    put(folders["data_dir"], sets["mnist"][1])
    put(folders["data_dir"] / "fashion", sets["fashion"][1])
    for name in NAMES:
        found = load_mnist(name, "train", folders["data_dir"], print)
        np.testing.assert_array_equal(found.images[..., 0], sets[name][0][FILES["train"][0]])


@pytest.mark.parametrize("sub", ["", "fashion"])
def test_another_sets_file_is_refused_where_this_set_was_meant(sets, folders, put, root, sub):
    """A sound MNIST file in a folder named for this run or after Fashion-MNIST is a DataError with both hashes."""
    folder, data_dir = root[0] / sub, root[1]
    if folder == folders["cache"]:
        pytest.skip("the cache folder may contain either set")
    put(folder, sets["mnist"][1])
    file = FILES["train"][0]
    found = hashlib.sha256(sets["mnist"][1][file]).hexdigest()
    with pytest.raises(DataError, match=f"is MNIST's {file}, not Fashion-MNIST's") as error:
        load_mnist("fashion", "train", data_dir, print)
    for part in (str(folder / file), found, RELEASES["fashion"].sha256[file]):
        assert part in str(error.value)
    assert (folder / file).read_bytes() == sets["mnist"][1][file]


def test_another_sets_file_is_passed_over_where_it_was_only_looked_for(sets, folders, put):
    """MNIST in the plain cache hides no Fashion-MNIST, and is never it."""
    put(folders["cache"], sets["mnist"][1])
    with pytest.raises(DataMissing):
        load_mnist("fashion", "test", None, print)
    put(folders["cache"] / "fashion", sets["fashion"][1])
    found = load_mnist("fashion", "test", None, print)
    np.testing.assert_array_equal(found.images[..., 0], sets["fashion"][0][FILES["test"][0]])


@pytest.mark.parametrize(("file", "taken_for"), [(FILES["test"][0], FILES["train"][0]), FILES["train"]])
def test_a_file_under_a_wrong_name_is_refused(sets, folders, put, file, taken_for):
    """Test images as training images, or images as labels: a DataError says which file it really is."""
    put(folders["data_dir"], {**sets["mnist"][1], taken_for: sets["mnist"][1][file]})
    with pytest.raises(DataError, match=f"is MNIST's {file}, not MNIST's {taken_for}"):
        load_mnist("mnist", "train", folders["data_dir"], print)


@pytest.mark.parametrize("place", range(2))
def test_a_damaged_file_stops_the_search_and_stays_as_it_is(sets, put, root, place):
    """Wherever a damaged file comes first it raises, with path and both hashes; a sound one behind it is not used."""
    folder, data_dir = root
    places = [folder / "mnist", folder]
    file = FILES["train"][1]
    content = gzip.decompress(sets["mnist"][1][file])
    damaged = gzip.compress(content[:-1] + bytes([content[-1] ^ 1]))
    put(folder, {FILES["train"][0]: sets["mnist"][1][FILES["train"][0]]})
    for later in places[place:]:
        put(later, sets["mnist"][1])
    put(places[place], {file: damaged})
    with pytest.raises(DataError, match="damaged") as error:
        load_mnist("mnist", "train", data_dir, print)
    found = hashlib.sha256(gzip.decompress(damaged)).hexdigest()
    for part in (str(places[place] / file), found, RELEASES["mnist"].sha256[file]):
        assert part in str(error.value)
    assert not isinstance(error.value, DataMissing)
    assert (places[place] / file).read_bytes() == damaged


def test_a_small_file_that_unpacks_to_a_large_one_is_stopped(sets, folders, put, monkeypatch):
    """Not more than the largest file of the data set is unpacked: the rest of a bomb of a gigabyte never exists."""
    monkeypatch.setitem(RELEASES, "mnist", RELEASES["mnist"]._replace(most_bytes=40_000))
    file, most = FILES["train"][0], 0
    bomb = gzip.compress(bytes(10_000_000))
    put(folders["data_dir"], {file: bomb})
    tracemalloc.start()
    with pytest.raises(DataError, match=r"it unpacks to more than 40,000 bytes"):
        load_mnist("mnist", "train", folders["data_dir"], print)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(bomb) < most < 1_000_000
    put(folders["data_dir"], {file: bytes(80_001)})  # and a file that is too large is not read
    with pytest.raises(DataError, match=r"it has 80,001 bytes, and at most 80,000 are possible"):
        load_mnist("mnist", "train", folders["data_dir"], print)


def test_the_largest_file_may_be_as_large_as_it_is(sets, folders, put, monkeypatch):
    """The limit is the size of the training images: 16 bytes of header and 60,000 pictures of 28x28.  No byte more."""
    assert RELEASES["mnist"].most_bytes == RELEASES["fashion"].most_bytes == 47_040_016
    put(folders["data_dir"], sets["mnist"][1])
    size = 16 + 40 * 28 * 28
    monkeypatch.setitem(RELEASES, "mnist", RELEASES["mnist"]._replace(most_bytes=size))
    assert len(load_mnist("mnist", "train", folders["data_dir"], print)) == 40
    monkeypatch.setitem(RELEASES, "mnist", RELEASES["mnist"]._replace(most_bytes=size - 1))
    with pytest.raises(DataError, match=f"more than {size - 1:,} bytes"):
        load_mnist("mnist", "train", folders["data_dir"], print)


def test_classes_have_the_names_that_the_authors_gave_their_labels():
    """Fashion-MNIST's page numbers them so (Xiao et al. 2017, table 2); a digit is its own name."""
    clothes = "T-shirt/top, Trouser, Pullover, Dress, Coat, Sandal, Shirt, Sneaker, Bag, Ankle boot"
    assert ", ".join(RELEASES["fashion"].classes) == clothes
    assert RELEASES["mnist"].classes == tuple("0123456789")


def test_a_named_folder_may_begin_with_the_users_home(sets, put, monkeypatch, tmp_path):
    """~ in a variable or in an option is no folder of that name: a shell expands it in some places only."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    put(tmp_path / "digits", sets["mnist"][1])
    assert load_mnist("mnist", "train", "~/digits", print).source.endswith(f"from {tmp_path / 'digits'}")
    monkeypatch.setenv("TINYDIFF_DATA", "~/digits")
    assert load_mnist("mnist", "train", None, print).source.endswith(f"from {tmp_path / 'digits'}")


def test_each_mirror_of_a_set_is_asked_in_its_order(sets, folders, mirror, monkeypatch):
    """The second where the first has no such file."""
    mirror.files = {f"/second/{file}": data for file, data in sets["mnist"][1].items()}
    urls = (f"{mirror.url}first/", f"{mirror.url}second/", f"{mirror.url}third/")
    monkeypatch.setitem(RELEASES, "mnist", RELEASES["mnist"]._replace(urls=urls))
    assert len(load_mnist("mnist", "test", None, print)) == 12
    assert mirror.asked == [f"/{folder}/{file}" for file in FILES["test"] for folder in ("first", "second")]


@pytest.mark.skipif(os.name != "posix", reason="pipes with a path")
@pytest.mark.parametrize("what", ["a pipe", "a loop of links", "a link to nowhere", "a folder", "a device"])
def test_what_is_not_a_file_is_named_at_once(put, root, what):
    """It stands where the data should be: a DataError with its path and the reason, no waiting, no other data."""
    folder, data_dir = root
    path = folder / "mnist" / FILES["train"][0]
    path.parent.mkdir(parents=True)
    makers = {"a pipe": os.mkfifo, "a folder": os.mkdir, "a loop of links": lambda path: path.symlink_to(path)}
    makers |= {
        "a link to nowhere": lambda path: path.symlink_to("gone"),
        "a device": lambda p: p.symlink_to("/dev/zero"),
    }
    makers[what](path)
    reasons = {"a folder": "Is a directory", "a loop of links": "Too many levels", "a link to nowhere": "No such file"}
    with pytest.raises(DataError, match=f"{path}: the file cannot be read .*{reasons.get(what, what)}") as error:
        load_mnist("mnist", "train", data_dir, print)
    assert not isinstance(error.value, DataMissing)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(NAMES), st.data())
def test_no_damage_passes(sets, tmp_path, name, data):
    """Cut anywhere or changed in any byte, a file raises DataError naming itself, or unpacks to the genuine content."""
    file = data.draw(st.sampled_from(sorted(sets[name][1])))
    sound = sets[name][1][file]
    at = data.draw(st.integers(0, len(sound) - 1))
    cut = sound[:at]
    changed = cut + bytes([sound[at] ^ data.draw(st.integers(1, 255))]) + sound[at + 1 :]
    path = tmp_path / file
    for damaged, harmless in ((cut, False), (changed, name == "mnist")):  # a .gz header may change, its content not
        path.write_bytes(damaged)
        try:
            assert checked_content(RELEASES[name], path) == gzip.decompress(sound)
            assert harmless
        except DataError as error:
            assert f"{RELEASES[name].title}'s {file} (SHA-256 {RELEASES[name].sha256[file]})" in str(error)
            assert "cannot be read or decompressed" in str(error) or "is damaged or unknown" in str(error)


def test_a_cut_file_cannot_be_decompressed(sets, folders, put):
    """A truncated .gz has no content to hash: the message names the file, the reason and what would help."""
    file = FILES["train"][0]
    put(folders["data_dir"], {file: sets["mnist"][1][file][:-20]})
    with pytest.raises(DataError, match=r"cannot be read or decompressed \(Compressed file ended.*Remove it") as error:
        load_mnist("mnist", "train", folders["data_dir"], print)
    assert str(error.value).startswith(f"{folders['data_dir'] / file}: ")


def test_what_a_mirror_sent_is_not_said_to_be_the_users_file(sets, mirror, monkeypatch):
    """Something else under the file's address, a login page say: the address, what is wrong, and nothing to remove."""
    images, labels = FILES["train"]
    mirror.files = {f"/{images}": sets["mnist"][1][images][:-20], f"/{labels}": gzip.compress(b"<html>")}
    monkeypatch.setitem(RELEASES, "mnist", RELEASES["mnist"]._replace(urls=(mirror.url,)))
    for file, reason in ((images, "cannot be read or decompressed"), (labels, "is damaged or unknown")):
        with pytest.raises(DataMissing, match=f"{mirror.url}{file}: the file {reason}") as error:
            load_mnist("mnist", "train", None, print)
        assert "Remove" not in str(error.value)
        mirror.files[f"/{images}"] = sets["mnist"][1][images]


def test_a_mirror_sends_no_more_than_the_largest_file_of_its_data_set(sets, mirror, monkeypatch):
    """Each data set has a limit of its own, so CIFAR-10's archive does not widen that of the digits."""
    file = FILES["train"][0]
    mirror.files = {f"/{file}": bytes(40_001)}
    monkeypatch.setitem(RELEASES, "mnist", RELEASES["mnist"]._replace(urls=(mirror.url,), most_bytes=40_000))
    with pytest.raises(DataMissing, match=f"{mirror.url}{file}: not complete after 40,000 bytes"):
        load_mnist("mnist", "train", None, print)


def test_a_place_that_cannot_be_read_is_named(sets, folders):
    """A folder where a file should be is a DataError, not a traceback."""
    path = folders["data_dir"] / FILES["train"][0]
    path.mkdir(parents=True)
    with pytest.raises(DataError, match=f"{path}: the file cannot be read"):
        load_mnist("mnist", "train", folders["data_dir"], print)


def test_missing_files_say_where_and_how_in_one_paragraph(sets, folders):
    """Nothing found, no mirror: the message has the place, every file name, every mirror and both ways to help."""
    said = []
    with pytest.raises(DataMissing) as error:
        load_mnist("fashion", "train", None, said.append)
    message = str(error.value)
    for part in (
        str(folders["cache"]),
        *FILES["train"],
        *FILES["test"],
        "127.0.0.1:9",
        "--data-dir",
        "$TINYDIFF_DATA",
        "could not be downl",
    ):
        assert part in message
    assert "\n" not in message
    assert "Downloading Fashion-MNIST" in said[0]


@pytest.mark.parametrize("cache", ["a file in its place", "a folder that cannot be written", "no home"])
def test_without_a_cache_the_data_are_downloaded_for_one_run(sets, folders, mirror, monkeypatch, cache):
    """The reason is said, the run has its data, and nothing is left; without a mirror it is DataMissing as ever."""
    arrays, files = sets["mnist"]
    if cache == "a file in its place":
        folders["cache"].write_text("not a folder")
    elif cache == "no home":
        monkeypatch.setattr(module, "cache_dir", lambda: None)
    else:

        def refuse(dir):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), dir)

        monkeypatch.setattr(module, "TemporaryFile", refuse)
    before, said = sorted(folders["cache"].parent.rglob("*")), []
    with pytest.raises(DataMissing, match="--data-dir"):
        load_mnist("mnist", "train", None, print)
    mirror.files = {f"/{file}": data for file, data in files.items()}
    monkeypatch.setitem(RELEASES, "mnist", RELEASES["mnist"]._replace(urls=(mirror.url,)))
    dataset = load_mnist("mnist", "train", None, said.append)
    np.testing.assert_array_equal(dataset.images[..., 0], arrays[FILES["train"][0]])
    assert dataset.source == "MNIST (train split) downloaded and not kept"
    reason = {"a file in its place": "Not a directory", "no home": "no home folder"}.get(cache, "Permission denied")
    assert len(said) == 2 and all("for this run only" in text and reason in text for text in said)
    left = {path for path in folders["cache"].parent.rglob("*") if path.is_file()}
    assert left <= set(before)


@pytest.mark.skipif(os.name != "posix" or os.getuid() != 0, reason="another user's rights: only root can become one")
def test_a_home_that_cannot_be_entered_is_passed_over(sets, folders, put, mirror, tmp_path):
    """A container run with another user: neither the look into $HOME nor the download needs it."""
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    code = f"""
import os, encodings.idna, tqdm, multiprocessing.pool
multiprocessing.pool.ThreadPool(1).terminate()
import tinydiff.data.releases as m
from tinydiff.data import load
os.setgroups([]); os.setgid(65534); os.setuid(65534)
m.RELEASES["mnist"] = m.RELEASES["mnist"]._replace(urls=("{mirror.url}",), sha256={RELEASES["mnist"].sha256!r})
print(load("auto", num=3).source)
"""
    mirror.files = {f"/{file}": data for file, data in sets["mnist"][1].items()}
    root = str(Path(module.__file__).parents[2])
    for change in ({"HOME": str(home)}, {"HOME": ""}, {"HOME": "/root"}, {"XDG_CACHE_HOME": str(home / "cache")}, {}):
        environment = {"PATH": os.environ["PATH"], "PYTHONPATH": root, **change}
        ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
        assert (ended.returncode, ended.stderr) == (0, "")
        assert "for this run only" in ended.stdout
        assert ended.stdout.endswith("MNIST (train split) downloaded and not kept\n")


def test_a_download_lands_in_the_cache_and_is_found_there(sets, folders, mirror, monkeypatch):
    """First load fetches two files into <cache>/<name>/, the second asks no mirror."""
    arrays, files = sets["fashion"]
    mirror.files = {f"/{file}": data for file, data in files.items()}
    monkeypatch.setitem(RELEASES, "fashion", RELEASES["fashion"]._replace(urls=(mirror.url,)))
    for _ in range(2):
        dataset = load_mnist("fashion", "train", None, print)
        np.testing.assert_array_equal(dataset.images[..., 0], arrays[FILES["train"][0]])
        assert mirror.asked == [f"/{file}" for file in FILES["train"]]
    assert sorted(p.name for p in (folders["cache"] / "fashion").iterdir()) == sorted(FILES["train"])


def test_the_cache_folder_is_the_systems(monkeypatch, tmp_path):
    """%LOCALAPPDATA% where it is set, as on Windows; else $XDG_CACHE_HOME if it is absolute; else ~/.cache."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    monkeypatch.delenv("LOCALAPPDATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert REAL_CACHE_DIR() == tmp_path / "xdg" / "tinydiff"
    for ignored in ("", "relative", "~/cache"):
        monkeypatch.setenv("XDG_CACHE_HOME", ignored)
        assert REAL_CACHE_DIR() == tmp_path / "home" / ".cache" / "tinydiff"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert REAL_CACHE_DIR() == tmp_path / "home" / ".cache" / "tinydiff"
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    assert REAL_CACHE_DIR() == tmp_path / "local" / "tinydiff"


def test_a_user_without_a_home_has_no_cache_folder(monkeypatch):
    """No name in the list of users, no $HOME, or one that is no absolute path: None, and no folder called "~"."""
    monkeypatch.delenv("LOCALAPPDATA", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(module.os.path, "expanduser", lambda path: path)  # its answer for such a user
    assert REAL_CACHE_DIR() is None


@pytest.mark.skipif(not REAL, reason="the real MNIST is looked for in $TINYDIFF_DATA only")
def test_the_real_files_have_the_hashes_in_the_table():
    """The published MNIST passes its own check: 60,000 and 10,000 images, digits 0 to 9."""
    for split, num in (("train", 60_000), ("test", 10_000)):
        dataset = load_mnist("mnist", split, Path(REAL), print)
        assert dataset.images.shape == (num, 28, 28, 1)
        assert set(dataset.labels) == set(range(10))
