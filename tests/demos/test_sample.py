"""sample.py: what it draws, what it writes, and what a bad checkpoint gets."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_runs import save_checkpoint

from tinydiff.app import checkpoint
from tinydiff.app.choices import class_names
from tinydiff.backend import TinydiffError, backend_name
from tinydiff.data import load

pytestmark = pytest.mark.program

DEMOS = Path(__file__).parents[2] / "demos"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A checkpoint after one step of a tiny network."""
    path = tmp_path_factory.mktemp("trained") / "checkpoint.npz"
    save_checkpoint(path, load("glyphs", num=10))
    return path


def run(load_demo, trained, tmp_path, **options):
    npz = tmp_path / "s.npz"
    options = {"workers": 1, "steps": 3, **options}
    load_demo("sample").main(trained, backend=backend_name(), out=tmp_path / "s.png", save_npz=npz, **options)
    with np.load(npz) as file:
        return file["images"], file.get("labels")


def test_arrays_hold_images_and_the_labels_asked_for(load_demo, trained, tmp_path):
    """images (N, 28, 28, 1) float32 in [-1, 1]; labels dealt out in turn; the picture shows all of them."""
    images, labels = run(load_demo, trained, tmp_path, num=23, labels=(3, 7))
    assert images.shape == (23, 28, 28, 1) and images.dtype == np.float32
    assert -1 <= images.min() < images.max() <= 1
    assert labels.tolist() == [3, 7] * 11 + [3]
    with Image.open(tmp_path / "s.png") as picture:
        assert picture.width > 12 * 28 and picture.height > 2 * 28


@pytest.mark.parametrize(
    "num, labels, columns, names",
    [
        (23, (7, 3), 12, ["3", "7"]),
        (1, (5,), 1, ["5"]),
        (7, (0, 1, 2, 3), 2, ["0", "1", "2", "3"]),
        (45, (2, 9), 20, ["2", "", "9", ""]),
        (6, (4, 4, 8), 2, ["4", "", "8"]),
    ],
)
def test_each_label_begins_a_row_that_has_its_name(load_demo, num, labels, columns, names):
    """Every image stands in a row of its label, in order; what is left of the row is white."""
    demo, image_labels = load_demo("sample"), [labels[i % len(labels)] for i in range(num)]
    images = np.arange(num, dtype=np.float32)[:, None, None, None] / 1000 * np.ones((1, 2, 2, 1), np.float32)
    classes = [f"{k}" for k in range(10)]
    pictures, row_labels, shown = demo.rows_by_label(images, image_labels, classes, columns)
    assert row_labels == names and len(pictures) == len(names) * columns and shown == num
    rows, name = pictures[:, 0, 0, 0].reshape(-1, columns), ""
    seen = []
    for row, label in zip(rows, row_labels):
        name = label or name
        here = np.rint(row[row < 1] * 1000).astype(int).tolist()
        assert here and (row[len(here) :] == 1).all() and {image_labels[i] for i in here} == {int(name)}
        seen += here
    assert seen == sorted(range(num), key=lambda i: image_labels[i])


def test_a_large_request_has_a_picture_of_bounded_size(load_demo):
    """A thousand images, the same share of each label; the labels are those of the images that are shown."""
    demo, image_labels = load_demo("sample"), np.repeat(np.arange(10), 5000)
    images = np.zeros((50_000, 1, 1, 1), np.float32)
    pictures, row_labels, shown = demo.rows_by_label(images, image_labels, list("0123456789"), 20)
    assert shown == len(pictures) == 1000 and [name for name in row_labels if name] == list("0123456789")


def test_the_names_of_the_rows_are_those_of_the_data_set():
    """Digits, clothes, and numbers for a data set that is not built in."""
    assert class_names({"name": "mnist"}, 10) == class_names({"name": "glyphs"}, 10) == list("0123456789")
    assert class_names({"name": "fashion"}, 10)[9] == "Ankle boot" and class_names({"name": "mine"}, 3) == [
        "0",
        "1",
        "2",
    ]
    assert class_names({"name": "fashion"}, 3) == ["0", "1", "2"]
    assert class_names({"name": "mine", "classes": ["a", "b", "c"]}, 3) == ["a", "b", "c"]


def test_a_network_without_classes_takes_no_labels(load_demo, tmp_path, capsys):
    """Its images are drawn without a label, and an option that would have no effect is refused."""
    path = tmp_path / "none.npz"
    save_checkpoint(path, load("glyphs", num=10), num_classes=None)
    images, labels = run(load_demo, path, tmp_path, num=3)
    assert len(images) == 3 and labels is None and "3 images: " in capsys.readouterr().out
    for options, message in (
        ({"labels": (3, 7)}, "--labels 3,7: the network has no classes"),
        ({"scale": 5.0}, "--scale 5: guidance by labels needs a network with classes"),
    ):
        with pytest.raises(TinydiffError, match=message):
            run(load_demo, path, tmp_path, num=1, **options)


def test_a_label_that_the_network_does_not_have_is_refused(load_demo, trained, tmp_path):
    """Label 10 of ten classes would mean "no label"."""
    with pytest.raises(TinydiffError, match="--labels 10: must be at most 9, the last class"):
        run(load_demo, trained, tmp_path, num=1, labels=(3, 10))


def test_the_first_images_are_those_of_a_smaller_request(load_demo, trained, tmp_path):
    """3 images and 23 in two slices: images 0, 1 and 2 have the same labels and pixels.

    The network's products round differently in a batch of 3: 1e-4 in three steps.
    """
    many, labels = run(load_demo, trained, tmp_path, num=23)
    few, few_labels = run(load_demo, trained, tmp_path, num=3)
    assert labels.tolist() == [*range(10), *range(10), 0, 1, 2] and few_labels.tolist() == [0, 1, 2]
    np.testing.assert_allclose(few, many[:3], rtol=0, atol=1e-4)
    assert abs(many[20] - many[0]).max() > 0.1  # the same label, other noise


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "2m"])
def test_the_seed_decides_everything(load_demo, trained, tmp_path, sampler):
    """The same seed gives the same bits, another seed another image, for each sampler."""
    first, _ = run(load_demo, trained, tmp_path, num=2, sampler=sampler)
    again, _ = run(load_demo, trained, tmp_path, num=2, sampler=sampler)
    other, _ = run(load_demo, trained, tmp_path, num=2, sampler=sampler, seed=1)
    assert (first == again).all() and (first != other).any()


def test_samplers_and_times_differ(load_demo, trained, tmp_path):
    """From one x_T each sampler ends elsewhere, and so does one sampler that visits other times."""
    ways = [{"sampler": name} for name in ("ddim", "ddpm", "2m")]
    ways += [{"sampler": "2m", "times": times} for times in ("quadratic", "logsnr")]
    drawn = [run(load_demo, trained, tmp_path, num=2, **way)[0] for way in ways]
    assert len({images.tobytes() for images in drawn}) == 5


def test_more_steps_than_the_schedule_has_are_refused(load_demo, trained, tmp_path):
    """--steps above T names both numbers, and nothing is written."""
    with pytest.raises(TinydiffError, match="--steps 101: the schedule has T = 100 steps"):
        run(load_demo, trained, tmp_path, num=1, steps=101)
    assert list(tmp_path.iterdir()) == []


def test_a_label_that_the_network_does_not_know_is_refused(load_demo, tmp_path):
    """Of a network with 5 classes label 5 would mean "no label"; a network without classes takes any number of them."""
    data = load("glyphs", num=40)
    few = replace(
        data, name="five", images=data.images[data.labels < 5], labels=data.labels[data.labels < 5], classes=("a",) * 5
    )
    save_checkpoint(tmp_path / "five.npz", few, num_classes=5)
    for labels in ((5,), (0, 9)):
        with pytest.raises(TinydiffError, match=f"--labels {max(labels)}: must be at most 4, the last class"):
            run(load_demo, tmp_path / "five.npz", tmp_path, num=1, labels=labels)
    assert run(load_demo, tmp_path / "five.npz", tmp_path, num=2, labels=(4,))[1].tolist() == [4, 4]


def test_more_images_than_memory_holds_are_refused_at_once(load_demo, trained, tmp_path):
    """Not after a list of 10^15 labels has been made."""
    with pytest.raises(TinydiffError, match="--num 1000000000000000: that needs about"):
        run(load_demo, trained, tmp_path, num=10**15)


def test_a_bad_checkpoint_is_one_message_and_exit_code_2(tmp_path):
    """Missing, cut short, of other software, of another kind: told apart on one line, without a traceback."""
    (tmp_path / "text.npz").write_text("hello")
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    checkpoint.save(tmp_path / "kind.npz", {}, {"kind": "classifier"})
    for name, message in (
        ("missing.npz", "does not exist"),
        ("text.npz", "not an .npz file"),
        ("other.npz", "other software"),
        ("kind.npz", "'classifier', not 'diffusion'"),
    ):
        command = [sys.executable, DEMOS / "sample.py", tmp_path / name, f"--out={tmp_path / 'x.png'}"]
        environment = {"PYTHONPATH": str(DEMOS.parent), "COLUMNS": "500"}
        result = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
        assert result.returncode == 2 and message in result.stderr and "Traceback" not in result.stderr
    assert not (tmp_path / "x.png").exists()
