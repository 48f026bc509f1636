"""Laws of loading other data sets than those of digits (tinydiff/data/own.py)."""

import numpy as np
import pytest

from tinydiff import data
from tinydiff.data.sprites import load_sprites

pytestmark = pytest.mark.data


def test_sprites_are_those_of_the_split_the_seed_and_the_size():
    """Every argument reaches the drawing; without size they are 16 x 16."""
    for options, size in (({"size": 32}, 32), ({}, 16), ({"size": None}, 16)):
        found, drawn = data.load("sprites", "test", seed=3, num=9, **options), load_sprites("test", 3, 9, size)
        np.testing.assert_array_equal(found.images, drawn.images)
        np.testing.assert_array_equal(found.labels, drawn.labels)
        assert (
            found.name == "sprites"
            and found.source == f"sprites: 9 drawn pictures of {size} x {size} (test split, seed 3)"
        )


@pytest.fixture
def paths(tmp_path):
    """A folder and two files that are there; none is read by the tests that use them."""
    (tmp_path / "photos").mkdir()
    (tmp_path / "mine.npz").write_bytes(b"")
    (tmp_path / "images-idx3-ubyte").write_bytes(b"")
    names = {"folder": "photos", "npz": "mine.npz", "idx": "images-idx3-ubyte"}
    return {kind: str(tmp_path / name) for kind, name in names.items()}


NOT = {
    "glyphs": ["size", "channels", "value_range"],
    "mnist": ["size", "channels", "value_range"],
    "sprites": ["data_dir", "channels", "value_range"],
    "cifar10": ["channels", "value_range"],
    "folder": ["data_dir", "value_range"],
    "npz": ["data_dir", "channels"],
    "idx": ["data_dir", "channels", "value_range"],
}


@pytest.mark.parametrize("name", NOT)
def test_an_option_that_a_data_set_has_no_use_for_is_an_error(paths, name):
    """It would be passed over in silence: a DataError names the option, its value and the data set."""
    values = {"data_dir": "there", "size": 16, "channels": 3, "value_range": (0, 1)}
    for option in NOT[name]:
        with pytest.raises(data.DataError, match="leave it out") as error:
            data.load(paths.get(name, name), **{option: values[option]})
        message = str(error.value)
        assert message.startswith(f"--{option.replace('_', '-')} {values[option]}: ") or name in ("glyphs", "mnist")
        assert paths.get(name, name) in message and str(values[option]) in message


@pytest.mark.parametrize("size", [7, 257, 0, -1])
def test_a_size_out_of_range_is_named(paths, size):
    for name in ("sprites", "cifar10", *paths.values()):
        with pytest.raises(data.DataError, match=f"--size {size}: must be 8 to 256"):
            data.load(name, size=size)


def test_ones_own_pictures_have_no_test_images(paths):
    """A program that needs them says so, rather than show training images as new ones."""
    for path in paths.values():
        with pytest.raises(data.DataError, match=f"{path}: this program needs test images"):
            data.load(path, "test")
