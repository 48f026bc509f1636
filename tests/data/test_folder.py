"""Laws of a folder of pictures as a data set."""

import os

import numpy as np
import pytest
from PIL import Image

from tinydiff import data
from tinydiff.backend import TinydiffError
from tinydiff.data import arrays
from tinydiff.data import folder as module
from tinydiff.data.dataset import DataError

pytestmark = pytest.mark.data

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "photos").mkdir()
    return tmp_path / "photos"


def put(path, colour=RED, size=(20, 10), mode="RGB", **settings):
    """Save a flat picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path, **settings)


def load(folder, size=8, **options):
    """(data set, what was said)."""
    said = []
    return data.load(folder, size=size, say=said.append, **options), said


def counted(dataset):
    """{(class, colour): number} of flat pictures."""
    assert all(len(np.unique(image.reshape(-1, image.shape[2]), axis=0)) == 1 for image in dataset.images)
    labels = [None] * len(dataset) if dataset.labels is None else [dataset.classes[k] for k in dataset.labels]
    return {
        (name, tuple(image[0, 0].tolist())): [*zip(labels, map(bytes, dataset.images))].count((name, bytes(image)))
        for name, image in zip(labels, dataset.images)
    }


def test_a_class_is_a_subfolder(folder):
    """Names sorted are the classes, every picture has its folder's label, and nothing is left out."""
    for i in range(3):
        put(folder / "red" / f"{i}.png", RED)
    put(folder / "green" / "a.JPG", GREEN, quality=100, subsampling=0)
    put(folder / "blue" / "b.jpeg", BLUE, quality=100, subsampling=0)
    dataset, said = load(folder)
    assert dataset.classes == ("blue", "green", "red") and dataset.images.shape == (5, 8, 8, 3) and said == []
    found = {name: (colour, n) for (name, colour), n in counted(dataset).items()}
    assert found["red"] == (RED, 3)
    for name, channel in (("green", 1), ("blue", 2)):  # JPEG is off by a level or two
        colour, n = found[name]
        assert n == 1 and colour[channel] > 250 and sum(colour) < 265
    assert dataset.name == "photos/" and dataset.source == f"{folder}: 5 pictures of 8 x 8, in colour"


def test_pictures_in_the_folder_itself_have_no_classes(folder):
    """Without subfolders there are no labels: the network has none either."""
    put(folder / "a.png", RED)
    put(folder / "b.png", GREEN)
    dataset, said = load(folder)
    assert dataset.labels is None and dataset.classes == () and said == []
    assert counted(dataset) == {(None, RED): 1, (None, GREEN): 1}


def test_numbers_are_sorted_as_numbers(folder):
    """10 comes after 9; names that are not all numbers are sorted as text."""
    for k in (10, 9, 2):
        put(folder / str(k) / "a.png")
    assert load(folder)[0].classes == ("2", "9", "10")
    put(folder / "x" / "a.png")
    assert load(folder)[0].classes == ("10", "2", "9", "x")


def test_grey_pictures_are_one_channel_and_one_in_colour_makes_three(folder):
    """None decides by all pictures; 1 and 3 are what is asked for."""
    put(folder / "a.png", 100, mode="L")
    put(folder / "b.png", 1, mode="1")
    assert counted(load(folder)[0]) == {(None, (100,)): 1, (None, (255,)): 1}
    assert counted(load(folder, channels=3)[0]) == {(None, (100,) * 3): 1, (None, (255,) * 3): 1}
    put(folder / "c.png", RED)
    assert counted(load(folder)[0]) == {(None, (100,) * 3): 1, (None, (255,) * 3): 1, (None, RED): 1}
    assert counted(load(folder, channels=1)[0]) == {(None, (100,)): 1, (None, (255,)): 1, (None, (76,)): 1}


def test_a_part_is_the_start_of_a_mixed_whole(folder):
    """num takes the first pictures of an order that mixes the classes and depends on nothing but the names."""
    for k in range(3):
        for i in range(20):
            put(folder / "abc"[k] / f"{i}.png", (k * 100, i, 0))
    whole, part, again = load(folder)[0], load(folder, num=15)[0], load(folder)[0]
    np.testing.assert_array_equal(part.images, whole.images[:15])
    np.testing.assert_array_equal(part.labels, whole.labels[:15])
    np.testing.assert_array_equal(whole.images, again.images)
    assert len(set(part.labels)) == 3 and len({bytes(image) for image in whole.images}) == 60
    np.testing.assert_array_equal(whole.images[:, 0, 0, 0], whole.labels * 100)


def test_sixty_photographs_of_which_some_are_odd(folder):
    """A broken, a CMYK, a transparent and an animated one among 60 of many sizes: 59 are read, each odd one named."""
    rng = np.random.default_rng(0)
    for i in range(56):
        put(folder / "plain" / f"{i:02}.png", RED, tuple(rng.integers(9, 40, 2).tolist()))
    put(folder / "odd" / "printed.jpg", (255, 0, 0, 0), mode="CMYK")
    put(folder / "odd" / "glass.png", (*RED, 0), mode="RGBA")
    put(folder / "odd" / "film.png", GREEN, save_all=True, append_images=[Image.new("RGB", (20, 10), BLUE)])
    (folder / "odd" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    dataset, said = load(folder)
    assert len(dataset) == 59 and np.bincount(dataset.labels).tolist() == [3, 56]
    assert sorted(said) == sorted(
        f"{folder}: {what}: odd/{name}"
        for what, name in (
            ("CMYK, converted without a colour profile", "printed.jpg"),
            ("transparent, laid on white", "glass.png"),
            ("animated, the first frame is taken", "film.png"),
            ("not readable (cannot identify image file)", "broken.png"),
        )
    )


def test_what_is_passed_over_is_named_but_for_hidden_files(folder):
    """Other files, folders within a class, links back and folders without pictures; a class of none is no class."""
    put(folder / "a" / "1.png")
    put(folder / "a" / "deep" / "2.png")
    put(folder / ".cache" / "3.png")
    put(folder / "a" / ".4.png")
    (folder / "a" / "notes.txt").write_text("no picture")
    (folder / "a" / "folder.png").mkdir()
    (folder / "empty").mkdir()
    (folder / "back").symlink_to(folder, target_is_directory=True)
    (folder / "twice").symlink_to(folder / "a", target_is_directory=True)
    (folder / "loop").symlink_to(folder / "loop")
    dataset, said = load(folder)
    assert dataset.classes == ("a",) and len(dataset) == 1
    assert sorted(line.removeprefix(f"{folder}: ") for line in said) == [
        "no class, because no picture is in it: empty",
        "passed over, a folder within a class or a link to one that is read: a/deep, a/folder.png, back, twice",
        "passed over, not a picture by its name: a/notes.txt, loop",
    ]


def test_a_link_to_a_folder_elsewhere_is_a_class(folder, tmp_path):
    """Links are followed: pictures need not be copied."""
    put(tmp_path / "elsewhere" / "1.png", GREEN)
    (folder / "linked").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert counted(load(folder)[0]) == {("linked", GREEN): 1}


def test_many_remarks_of_a_kind_are_one_line(folder):
    """20 names and the number of the others."""
    put(folder / "z.png")
    for i in range(23):
        (folder / f"{i:02}.txt").write_text("")
    (said,) = load(folder)[1]
    assert said.endswith(", 18.txt, 19.txt and 3 more") and "\n" not in said


def test_a_name_that_is_not_printable_is_escaped(folder):
    """A file's name cannot write to the terminal."""
    put(folder / "z.png")
    (folder / "\x1b[31m\n.txt").write_text("")
    assert load(folder)[1] == [f"{folder}: passed over, not a picture by its name: '\\x1b[31m\\n.txt'"]


def broken(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"")


REFUSED = {
    "nothing": (lambda f: None, {}, "no pictures (.png, .jpg, .jpeg, .gif, .bmp, .webp) in it, nor in its folders"),
    "empty folders": (lambda f: (f / "a").mkdir(), {}, "no pictures"),
    "nothing readable": (
        lambda f: broken(f, "a/1.png", "a/2.png"),
        {},
        "0 of 2 pictures can be read, and 1 are needed",
    ),
    "too few": (
        lambda f: (put(f / "1.png"), broken(f, "2.png")),
        {"num": 2},
        "1 of 2 pictures can be read, and 2 are needed",
    ),
    "pictures beside folders": (
        lambda f: (put(f / "1.png"), put(f / "a/1.png")),
        {},
        "1 pictures lie beside folders of pictures",
    ),
    "several sizes": (
        lambda f: (put(f / "1.png"), put(f / "2.png", size=(9, 9))),
        {"size": None},
        "pictures of 2 sizes, such as 20 x 10 and 9 x 9; size=32 (--size 32) crops",
    ),
    "a class of a strange name": (
        lambda f: put(f / "a\nb" / "1.png"),
        {},
        "a name must be a line of 1 to 100 printable letters, got 'a\\nb'",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_folder_that_is_no_data_set_is_refused_with_the_reason(folder, what):
    """One sentence with the path of the folder."""
    make, options, message = REFUSED[what]
    make(folder)
    with pytest.raises(DataError) as error:
        load(folder, **options)
    assert str(error.value).startswith(f"{folder}: {message}")


def test_more_classes_than_a_network_can_have_are_refused(folder, monkeypatch):
    """1,000 in earnest, 2 here."""
    for k in range(3):
        put(folder / str(k) / "1.png")
    monkeypatch.setattr(arrays, "MOST_CLASSES", 2)
    with pytest.raises(DataError, match=f"{folder}: at most 2 classes are possible, got 3"):
        load(folder)


def test_unreadable_files_are_named_also_when_all_are(folder):
    """The remarks come before the error."""
    broken(folder, "1.png", "2.png")
    said = []
    with pytest.raises(DataError):
        data.load(folder, size=8, say=said.append)
    assert len(said) == 1 and "not readable" in said[0] and "1.png" in said[0] and "2.png" in said[0]


@pytest.mark.skipif(os.name != "posix" or os.getuid() == 0, reason="root can read everything")
def test_a_folder_that_cannot_be_entered_is_named(folder):
    put(folder / "a" / "1.png")
    (folder / "a").chmod(0)
    with pytest.raises(DataError, match="Permission denied"):
        load(folder)
    (folder / "a").chmod(0o700)


def test_pictures_of_one_size_keep_it(folder):
    """Without size nothing is cropped: (N, H, W, C) with the files' own sides, in the order height, width."""
    put(folder / "1.png", RED, (20, 10))
    put(folder / "2.png", GREEN, (20, 10))
    assert load(folder, size=None)[0].images.shape == (2, 10, 20, 3)


def test_a_set_is_read_in_blocks_and_in_order(folder, monkeypatch):
    """More pictures than threads read ahead: the labels stay with their pictures."""
    monkeypatch.setattr(module, "AHEAD", 3)
    for i in range(10):
        put(folder / str(i) / "a.png", (i, 0, 0))
    dataset = load(folder)[0]
    np.testing.assert_array_equal(dataset.images[:, 0, 0, 0], dataset.labels)


def test_more_pictures_than_fit_into_memory_are_refused_before_they_are_read(folder, monkeypatch):
    put(folder / "1.png")
    monkeypatch.setattr("tinydiff.data.limits.memory", lambda: 100)
    monkeypatch.setattr(module, "read_picture", None)
    with pytest.raises(TinydiffError, match="of memory"):
        load(folder, size=256)


def test_a_folder_named_like_a_data_set_is_reached_by_a_path(folder, monkeypatch):
    """sprites is the data set, ./sprites is the folder; its name in a checkpoint is that of no data set."""
    put(folder / "sprites" / "1.png")
    monkeypatch.chdir(folder)
    assert data.load("sprites", num=1, size=8).name == "sprites" and load("./sprites")[0].name == "sprites/"
