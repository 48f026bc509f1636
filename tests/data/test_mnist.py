"""Laws of finding and checking the MNIST files."""

import gzip
import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tinydiff.data.dataset import DataError
from tinydiff.data.mnist import FILES, RELEASES, DataMissing, cache_dir, checked_content, load_mnist

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
    np.testing.assert_array_equal(dataset.images, arrays[FILES[split][0]])
    np.testing.assert_array_equal(dataset.labels, arrays[FILES[split][1]])
    assert dataset.name == name
    assert str(folders["data_dir"]) in dataset.source
    assert len(set(dataset.classes)) == 10


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("first", range(6))
def test_places_are_searched_in_the_order_of_the_docstring(sets, folders, put, name, first):
    """data_dir, then $TINYDIFF_DATA, then the cache, each with its subfolder before itself."""
    places = [place for root in folders.values() for place in (root / name, root)]
    for place in places[first:]:
        put(place, sets[name][1])
    assert load_mnist(name, "test", folders["data_dir"], print).source.endswith(f"from {places[first]}")


def test_each_file_is_searched_on_its_own(sets, folders, put):
    """Images in one place and labels in another make a set."""
    arrays, files = sets["mnist"]
    images, labels = FILES["train"]
    put(folders["env"], {images: files[images]})
    put(folders["cache"] / "mnist", {labels: files[labels]})
    np.testing.assert_array_equal(load_mnist("mnist", "train", None, print).labels, arrays[labels])


def test_a_set_is_known_by_its_hash_where_both_share_a_folder_tree(sets, folders, put):
    """data_dir/ holds MNIST and data_dir/fashion/ Fashion-MNIST: each name finds its own."""
    put(folders["data_dir"], sets["mnist"][1])
    put(folders["data_dir"] / "fashion", sets["fashion"][1])
    for name in NAMES:
        found = load_mnist(name, "train", folders["data_dir"], print)
        np.testing.assert_array_equal(found.images, sets[name][0][FILES["train"][0]])


@pytest.mark.parametrize("place", ["data_dir", "data_dir/fashion", "env/fashion", "cache/fashion"])
def test_another_sets_file_is_refused_where_this_set_was_meant(sets, folders, put, place, tmp_path):
    """A sound MNIST file in a folder named for this run or after Fashion-MNIST is a DataError with both hashes."""
    folder = tmp_path / place.replace("data_dir", "dir")
    put(folder, sets["mnist"][1])
    file = FILES["train"][0]
    found = hashlib.sha256(sets["mnist"][1][file]).hexdigest()
    with pytest.raises(DataError, match=f"is MNIST's {file}, not Fashion-MNIST's") as error:
        load_mnist("fashion", "train", folders["data_dir"], print)
    for part in (str(folder / file), found, RELEASES["fashion"].sha256[file]):
        assert part in str(error.value)
    assert (folder / file).read_bytes() == sets["mnist"][1][file]


@pytest.mark.parametrize("root", ["env", "cache"])
def test_another_sets_file_is_passed_over_where_it_was_only_looked_for(sets, folders, put, root):
    """MNIST in plain $TINYDIFF_DATA/ or the plain cache hides no Fashion-MNIST further on, and is never it."""
    put(folders[root], sets["mnist"][1])
    with pytest.raises(DataMissing):
        load_mnist("fashion", "test", None, print)
    put(folders["cache"] / "fashion", sets["fashion"][1])
    found = load_mnist("fashion", "test", None, print)
    np.testing.assert_array_equal(found.images, sets["fashion"][0][FILES["test"][0]])


@pytest.mark.parametrize(("file", "taken_for"), [(FILES["test"][0], FILES["train"][0]), FILES["train"]])
def test_a_file_under_a_wrong_name_is_refused(sets, folders, put, file, taken_for):
    """Test images as training images, or images as labels: a DataError says which file it really is."""
    put(folders["data_dir"], {**sets["mnist"][1], taken_for: sets["mnist"][1][file]})
    with pytest.raises(DataError, match=f"is MNIST's {file}, not MNIST's {taken_for}"):
        load_mnist("mnist", "train", folders["data_dir"], print)


@pytest.mark.parametrize("place", range(6))
def test_a_damaged_file_stops_the_search_and_stays_as_it_is(sets, folders, put, place):
    """Wherever a damaged file comes first it raises, with path and both hashes; a sound one behind it is not used."""
    places = [p for root in folders.values() for p in (root / "mnist", root)]
    file = FILES["train"][1]
    content = gzip.decompress(sets["mnist"][1][file])
    damaged = gzip.compress(content[:-1] + bytes([content[-1] ^ 1]))
    for later in places[place:]:
        put(later, sets["mnist"][1])
    put(places[place], {file: damaged})
    with pytest.raises(DataError, match="damaged") as error:
        load_mnist("mnist", "train", folders["data_dir"], print)
    found = hashlib.sha256(gzip.decompress(damaged)).hexdigest()
    for part in (str(places[place] / file), found, RELEASES["mnist"].sha256[file]):
        assert part in str(error.value)
    assert not isinstance(error.value, DataMissing)
    assert (places[place] / file).read_bytes() == damaged


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


def test_a_place_that_cannot_be_read_is_named(sets, folders):
    """A folder where a file should be is a DataError, not a traceback."""
    path = folders["data_dir"] / FILES["train"][0]
    path.mkdir(parents=True)
    with pytest.raises(DataError, match=f"{path}: the file cannot be read"):
        load_mnist("mnist", "train", folders["data_dir"], print)


def test_missing_files_say_where_and_how_in_one_paragraph(sets, folders):
    """Nothing found, no mirror: the message has every place, every file name, every mirror and both ways to help."""
    said = []
    with pytest.raises(DataMissing) as error:
        load_mnist("fashion", "train", folders["data_dir"], said.append)
    message = str(error.value)
    for root in folders.values():
        assert f"{root / 'fashion'}, {root}" in message
    for part in (*FILES["train"], *FILES["test"], "127.0.0.1:9", "--data-dir", "$TINYDIFF_DATA", "could not be downl"):
        assert part in message
    assert "\n" not in message
    assert "Downloading Fashion-MNIST" in said[0]


def test_a_cache_that_cannot_be_written_is_reported_the_same_way(sets, folders):
    """A file in the cache folder's place: DataMissing with the reason, so that "auto" can go on."""
    folders["cache"].write_text("not a folder")
    with pytest.raises(DataMissing, match="--data-dir"):
        load_mnist("mnist", "train", None, print)


def test_a_download_lands_in_the_cache_and_is_found_there(sets, folders, mirror, monkeypatch):
    """First load fetches two files into <cache>/<name>/, the second asks no mirror."""
    arrays, files = sets["fashion"]
    mirror.files = {f"/{file}": data for file, data in files.items()}
    monkeypatch.setitem(RELEASES, "fashion", RELEASES["fashion"]._replace(urls=(mirror.url,)))
    for _ in range(2):
        dataset = load_mnist("fashion", "train", None, print)
        np.testing.assert_array_equal(dataset.images, arrays[FILES["train"][0]])
        assert mirror.asked == [f"/{file}" for file in FILES["train"]]
    assert sorted(p.name for p in (folders["cache"] / "fashion").iterdir()) == sorted(FILES["train"])


def test_the_cache_folder_is_the_systems(monkeypatch, tmp_path):
    """%LOCALAPPDATA% where it is set, as on Windows; else $XDG_CACHE_HOME if it is absolute; else ~/.cache."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    monkeypatch.delenv("LOCALAPPDATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert REAL_CACHE_DIR() == tmp_path / "xdg" / "tinydiff"
    for ignored in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", ignored)
        assert REAL_CACHE_DIR() == tmp_path / "home" / ".cache" / "tinydiff"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert REAL_CACHE_DIR() == tmp_path / "home" / ".cache" / "tinydiff"
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    assert REAL_CACHE_DIR() == tmp_path / "local" / "tinydiff"


@pytest.mark.skipif(not REAL, reason="the real MNIST is looked for in $TINYDIFF_DATA only")
def test_the_real_files_have_the_hashes_in_the_table():
    """The published MNIST passes its own check: 60,000 and 10,000 images, digits 0 to 9."""
    for split, num in (("train", 60_000), ("test", 10_000)):
        dataset = load_mnist("mnist", split, Path(REAL), print)
        assert dataset.images.shape == (num, 28, 28)
        assert set(dataset.labels) == set(range(10))
