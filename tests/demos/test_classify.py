"""The reading demo: its count is the classifier's, its interval is Wilson's, and bad files are refused by name."""

import os
import runpy
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from tinydiff.app import checkpoint
from tinydiff.app.alone import one_process
from tinydiff.app.classify import ClassifierConfig, build_classifier, save_classifier
from tinydiff.app.reading import read
from tinydiff.backend import TinydiffError, backend_name
from tinydiff.data import DataError, load

pytestmark = pytest.mark.program

PATH = Path(__file__).parents[2] / "demos" / "classify.py"


@pytest.fixture(scope="module")
def demo(load_demo):
    return load_demo("classify")


@pytest.fixture(scope="module")
def read_glyphs(tmp_path_factory):
    """A classifier as it starts, saved; thirty glyphs; and what it takes them for."""
    path = tmp_path_factory.mktemp("classifier") / "checkpoint.npz"
    dataset = load("glyphs", "test", num=30)
    images, _ = dataset.batch(np.arange(30))
    with one_process().workers(partial(build_classifier, {"channels": [8, 8]}, 0), 1) as workers:
        save_classifier(path, workers, ClassifierConfig(), dataset, dataset, errors=0)
        answer = np.concatenate(list(read(workers, images))).argmax(1)
    return path, images, answer


def test_it_counts_the_images_read_as_the_label_asked_for(demo, read_glyphs, tmp_path, capsys):
    """Ask for what the classifier sees in all images but five: five are misread, and they are on the picture."""
    path, images, answer = read_glyphs
    asked = answer.copy()
    asked[:5] = (answer[:5] + 3) % 10
    np.savez(tmp_path / "samples.npz", images=images, labels=asked)
    out = tmp_path / "misread.png"
    assert demo.main(tmp_path / "samples.npz", path, out=out, backend=backend_name(), workers=1) == (25, 30)
    printed = capsys.readouterr().out
    assert "25 of 30 read as the label asked for: 83.3% (95% interval 66.4% to 92.7%)" in printed
    for digit in range(10):
        right, count = ((asked == digit) & (answer == digit)).sum(), (asked == digit).sum()
        assert (f"  {digit}: " in printed) == (count > 0)
        assert count == 0 or f"({right} of {count})" in printed
    assert out.stat().st_size > 500


def test_a_share_is_never_rounded_to_all_or_none(demo):
    """One wrong of ten thousand is not 100%, one right is not 0%."""
    answer = np.zeros(10_000, int)
    answer[0] = 1
    names = list("0123456789")
    assert demo.class_line("0", answer, 0, names).startswith("  0: >99.9%  (9999 of 10000), 1 as 1")
    assert "<0.1%  (1 of 10000), 9999 as 0" in demo.class_line("1", answer, 1, names)


def test_no_picture_where_nothing_is_misread(demo, read_glyphs, tmp_path, capsys):
    """All right: 100%, and --out says that there is nothing to show."""
    path, images, answer = read_glyphs
    np.savez(tmp_path / "samples.npz", images=images, labels=answer)
    out = tmp_path / "misread.png"
    assert demo.main(tmp_path / "samples.npz", path, out=out, backend=backend_name(), workers=1) == (30, 30)
    assert "none misread" in capsys.readouterr().out and not out.exists()


def test_a_line_says_what_the_others_were_taken_for(demo):
    """Most frequent first, the right answers left out."""
    line = demo.class_line("two", np.array([2, 0, 1, 2, 1, 2]), 2, ("zero", "one", "two"))
    assert line == "  two:  50.0%  (3 of 6), 2 as one, 1 as zero"


GOOD = {"images": np.zeros((3, 28, 28, 1), "float32"), "labels": np.arange(3)}


@pytest.mark.parametrize(
    "arrays, message",
    [
        ({"images": GOOD["images"]}, "labels"),
        ({"labels": GOOD["labels"]}, "images"),
        ({**GOOD, "images": np.zeros((3, 28, 28), "float32")}, r"images must be float of shape \(N, 28, 28, 1\)"),
        ({**GOOD, "images": np.zeros((3, 28, 28, 1), "uint8")}, "images must be float"),
        ({"images": np.zeros((0, 28, 28, 1), "float32"), "labels": np.arange(0)}, "N >= 1"),
        ({**GOOD, "images": GOOD["images"] + 255}, r"images must lie in -1\.\.1, got 255\.0"),
        ({**GOOD, "images": GOOD["images"] - 1.5}, r"images must lie in -1\.\.1, got -1\.5 to -1\.5"),
        ({**GOOD, "images": GOOD["images"] * np.nan}, "images must lie in"),
        ({**GOOD, "images": GOOD["images"] + 1}, r"images lie in 1\.0\.\.1\.0, but black is -1"),
        ({**GOOD, "images": np.linspace(0, 1, 3)[:, None, None, None] + GOOD["images"]}, r"images lie in 0\.0\.\.1\.0"),
        ({**GOOD, "labels": np.arange(4)}, "labels must be 3 integers"),
        ({**GOOD, "labels": np.arange(3.0)}, "labels must be 3 integers"),
        ({**GOOD, "labels": np.array([0, 10, 3])}, r"labels must lie in 0\.\.9, got 0 to 10"),
        ({**GOOD, "labels": np.array([0, -1, 3])}, r"labels must lie in 0\.\.9, got -1 to 3"),
        ({**GOOD, "labels": np.array([0, None, 3])}, "is not a whole .npz file of plain arrays"),
    ],
)
def test_wrong_samples_are_refused_by_name(demo, tmp_path, arrays, message):
    """Whatever is wrong with the arrays: the error names the file, the array and what was found."""
    np.savez(tmp_path / "samples.npz", **arrays)
    with pytest.raises(DataError, match=rf"samples\.npz.*{message}"):
        demo.load_samples(tmp_path / "samples.npz", [28, 28, 1], 10)


@pytest.mark.skipif(os.name != "posix", reason="pipes with a path")
def test_samples_are_read_from_a_file_that_fits(demo, tmp_path, monkeypatch):
    """A pipe would block for ever, and a packed file may unpack to any size: both are named before they are read."""
    os.mkfifo(tmp_path / "pipe.npz")
    with pytest.raises(DataError, match=r"pipe\.npz cannot be read: it is a pipe"):
        demo.load_samples(tmp_path / "pipe.npz", [28, 28, 1], 10)
    path = tmp_path / "packed.npz"
    np.savez_compressed(path, images=np.zeros((300, 28, 28, 1), "float32"), labels=np.zeros(300, int))
    assert path.stat().st_size < 10_000
    monkeypatch.setattr("tinydiff.data.limits.memory", lambda: 100_000)
    with pytest.raises(TinydiffError, match=r"packed\.npz: that needs about 0\.0 GB of memory"):
        demo.load_samples(path, [28, 28, 1], 10)


@pytest.mark.parametrize("content", [None, b"", b"a text", b"PK\3\4 cut short", "npy", "folder"])
def test_a_wrong_file_ends_with_code_2(read_glyphs, tmp_path, monkeypatch, capsys, content):
    """No file, no archive, a lone array, a folder: one line on what is wrong, and no traceback."""
    path = tmp_path / "samples.npz"
    if content == "npy":
        with open(path, "wb") as file:
            np.save(file, np.zeros(3))
    elif content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    assert end_of(monkeypatch, path, read_glyphs[0]) == 2
    assert "error:" in (error := capsys.readouterr().err) and "samples.npz" in error.replace("\n", "")


def test_a_checkpoint_of_another_kind_ends_with_code_2(tmp_path, monkeypatch, capsys):
    """The denoiser's checkpoint, given by mistake, is named as what it is."""
    np.savez(tmp_path / "samples.npz", **GOOD)
    checkpoint.save(tmp_path / "unet.npz", {}, {"kind": "diffusion"})
    assert end_of(monkeypatch, tmp_path / "samples.npz", tmp_path / "unet.npz") == 2
    assert "'diffusion', not 'classifier'" in capsys.readouterr().err.replace("\n", " ")


def end_of(monkeypatch, samples, classifier):
    """The exit code of the demo as it is run from the command line."""
    options = ["--checkpoint", str(classifier), "--workers", "1", "--backend", backend_name()]
    monkeypatch.setattr("sys.argv", [str(PATH), str(samples), *options])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(PATH), run_name="__main__")
    return end.value.code
