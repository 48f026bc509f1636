"""Laws of loading a data set by name (tinydiff/data/__init__.py)."""

import gzip

import numpy as np
import pytest

from tinydiff import data
from tinydiff.data.mnist import FILES
from tinydiff.data.releases import DataMissing

pytestmark = pytest.mark.data


@pytest.mark.parametrize("name", ["mnist", "auto"])
def test_auto_is_mnist_where_it_is_found(sets, folders, put, name):
    """Both names give the same pictures, and nothing needs saying."""
    put(folders["cache"] / "mnist", sets["mnist"][1])
    said = []
    dataset = data.load(name, "test", say=said.append)
    np.testing.assert_array_equal(dataset.images[..., 0], sets["mnist"][0][FILES["test"][0]])
    assert dataset.name == "mnist"
    assert not said


def test_auto_falls_back_to_glyphs_and_says_so(sets, folders, capsys):
    """No MNIST, no mirror: the set is glyphs, and `say` hears so in two lines of a terminal: what, and what helps."""
    said = []
    dataset = data.load("auto", num=20, say=said.append)
    assert capsys.readouterr().out == "" and any(line.startswith("Downloading MNIST") for line in said)
    drawn = data.load("glyphs", num=20)
    assert dataset.name == "glyphs"
    np.testing.assert_array_equal(dataset.images, drawn.images)
    said = [line for line in said if not line.startswith("Downloading")]
    assert len(said) == 2 and all(len(line) < 120 and "\n" not in line for line in said)
    assert "MNIST is not on this machine" in said[0] and "glyphs" in said[0]
    assert "--data-dir" in said[1] and "--data mnist" in said[1]


@pytest.mark.parametrize("name", ["auto", "mnist", "fashion"])
@pytest.mark.parametrize("named_by", ["--data-dir", "$TINYDIFF_DATA"])
@pytest.mark.parametrize("what", ["nothing", "an empty folder", "a file", "half of the files", "a name too long"])
def test_a_folder_that_is_named_is_never_replaced(sets, folders, put, monkeypatch, mirror, name, named_by, what):
    """A named folder without the files is an error that names it, also under "auto" and where the cache has them."""
    folder, release = folders["data_dir"], "mnist" if name == "auto" else name
    put(folders["cache"] / release, sets[release][1])
    if what == "an empty folder":
        folder.mkdir()
    elif what == "a file":
        folder.write_text("not a folder")
    elif what == "half of the files":
        put(folder, {FILES["train"][0]: sets[release][1][FILES["train"][0]]})
    elif what == "a name too long":
        folder = folder / ("x" * 5000)
    if named_by == "$TINYDIFF_DATA":
        monkeypatch.setenv("TINYDIFF_DATA", str(folder))
    with pytest.raises(data.DataError) as error:
        data.load(name, data_dir=folder if named_by == "--data-dir" else None)
    message = str(error.value)
    assert message.startswith(f"{named_by} {folder}: ") and all(file in message for file in FILES["train"])
    assert not isinstance(error.value, DataMissing) and not mirror.asked
    reasons = {"nothing": "No such file", "a file": "Not a directory", "a name too long": "File name too long"}
    assert reasons.get(what, "is not there, packed or unpacked") in message


def test_data_dir_counts_before_the_environment(sets, folders, put, monkeypatch):
    """The option is nearer to the run than the variable; an empty variable is none."""
    put(folders["data_dir"], sets["mnist"][1])
    monkeypatch.setenv("TINYDIFF_DATA", str(folders["env"]))
    assert len(data.load("mnist", data_dir=folders["data_dir"])) == 40
    put(folders["cache"], sets["mnist"][1])
    monkeypatch.setenv("TINYDIFF_DATA", "")
    assert data.load("mnist").source.endswith(f"from {folders['cache']}")


def test_a_folder_for_glyphs_is_an_error(sets, folders, put):
    """Glyphs are read from no folder: --data-dir with them would do nothing."""
    put(folders["data_dir"], sets["mnist"][1])
    with pytest.raises(data.DataError, match=f"--data-dir {folders['data_dir']}: glyphs are drawn"):
        data.load("glyphs", data_dir=folders["data_dir"], num=20)
    with pytest.raises(data.DataError, match=r"^--data-dir : glyphs are drawn"):  # an empty one is given all the same
        data.load("glyphs", data_dir="", num=20)


@pytest.mark.parametrize("name", ["mnist", "fashion"])
def test_a_named_set_never_falls_back(sets, folders, name):
    """ "mnist" and "fashion" raise DataError where "auto" would draw glyphs."""
    with pytest.raises(data.DataError, match="could not be downloaded"):
        data.load(name, num=20, say=lambda sentence: None)


@pytest.mark.parametrize("name", ["mnist", "auto"])
def test_a_damaged_file_is_an_error_under_auto_too(sets, folders, put, name):
    """A file that is there and wrong is for the user to put right, never covered by glyphs."""
    file = FILES["train"][0]
    put(folders["cache"] / "mnist", {**sets["mnist"][1], file: gzip.compress(b"something else")})
    with pytest.raises(data.DataError, match="damaged"):
        data.load(name, num=20)


def test_num_keeps_the_first_pictures(sets, folders, put):
    """The first num images with their labels; a num beyond the set is a ValueError naming it."""
    put(folders["data_dir"], sets["mnist"][1])
    whole = data.load("mnist", data_dir=folders["data_dir"])
    some = data.load("mnist", data_dir=str(folders["data_dir"]), num=7)
    assert (len(whole), len(some)) == (40, 7)
    np.testing.assert_array_equal(some.images, whole.images[:7])
    np.testing.assert_array_equal(some.labels, whole.labels[:7])
    assert len(data.load("mnist", data_dir=folders["data_dir"], num=40)) == 40
    for num in (0, 41):
        with pytest.raises(ValueError, match=rf"num must lie in 1\.\.40 for mnist, got {num}"):
            data.load("mnist", data_dir=folders["data_dir"], num=num)


def test_glyphs_follow_split_and_seed():
    """Another split or seed is another set of pictures; the same ones are the same."""
    first, again, test, other = (
        data.load("glyphs", split, seed=seed, num=30).images
        for split, seed in (("train", 0), ("train", 0), ("test", 0), ("train", 1))
    )
    np.testing.assert_array_equal(first, again)
    assert (first != test).any(axis=(1, 2)).all()
    assert (first != other).any(axis=(1, 2)).all()


def test_unknown_names_and_splits_are_named():
    """An error has the value, and for a data set the names that exist and what else there can be."""
    known = "it must be auto, mnist, fashion, glyphs, sprites, cifar10, or the path of a folder, .npz or IDX file"
    with pytest.raises(data.DataError, match=f"no data set 'cifar': {known}"):
        data.load("cifar")
    with pytest.raises(ValueError, match="got 'valid'"):
        data.load("glyphs", "valid")
