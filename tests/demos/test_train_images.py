"""Training on pictures of one's own, in its smallest form: in colour or grey, with classes or without."""

import numpy as np
import pytest
from PIL import Image
from same_bytes import same_bytes

from tinydiff.app import run
from tinydiff.app.checkpoint import CheckpointError
from tinydiff.app.kinds import load as load_kind
from tinydiff.backend import TinydiffError, backend_name
from tinydiff.data import Dataset

pytestmark = pytest.mark.program

SMALL = {"channels": 8, "batch_size": 4, "workers": 1, "sample_steps": 2}


def pictures(classes=("cat", "dog", "eel"), shape=(8, 12, 3), num=9, seed=0):
    """Random pictures, with labels in turn if there are classes."""
    images = np.random.default_rng(seed).integers(0, 256, (num, *shape), np.uint8)
    labels = np.arange(num) % len(classes) if classes else None
    return Dataset("own", images, labels, "random pictures", tuple(classes))


@pytest.fixture
def main(load_demo, monkeypatch):
    """main(dataset, **options): the program's, on this data set, in its smallest form."""
    demo = load_demo("train_images")

    def start(dataset, **options):
        monkeypatch.setattr(run, "load", lambda name, num=None, **_: dataset.first(num))
        demo.main("a folder", backend=backend_name(), **{**SMALL, **options})

    return start


@pytest.mark.parametrize("classes", [("cat", "dog", "eel"), ()])
def test_a_run_in_colour_leaves_what_the_main_job_leaves(main, tmp_path, capsys, classes):
    """Pictures in colour, a checkpoint that is one of its kind, and a line on what a step takes."""
    main(pictures(classes), out=tmp_path, steps=3, sample_every=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "checkpoint.npz", "denoising.gif", "denoising.png", "loss.png", "metrics.csv", "progress", "samples.png",
    ]  # fmt: skip
    for name in ("samples.png", "progress/step_000002.png", "denoising.gif"):
        with Image.open(tmp_path / name) as picture:
            pixels = np.asarray(picture.convert("RGB"), float)
        assert (pixels.std(2) > 10).mean() > 0.2  # coloured
    _, meta = load_kind(tmp_path / "checkpoint.npz", "diffusion")
    assert meta["model"]["num_classes"] == (len(classes) or None) and meta["model"]["in_channels"] == 3
    assert meta["data"]["classes"] == [*classes] and meta["data"]["image_shape"] == [8, 12, 3]
    printed = capsys.readouterr().out
    assert "random pictures" in printed and "a step of 4 pictures takes about " in printed


@pytest.mark.parametrize("flip", [True, False])
def test_a_run_that_goes_on_ends_in_the_same_bits(main, tmp_path, flip, monkeypatch, load_demo):
    """Also of flipped pictures: whether they are flipped is the checkpoint's, and need not be said again."""
    job = load_demo("train_images").job
    monkeypatch.setattr(job, "final_pictures", lambda *_: None)
    save, data = job._save, pictures(())
    main(data, out=tmp_path / "whole", steps=4, flip=flip, save_every=1)

    def save_then_stop(state, *what):
        save(state, *what)
        if state.step == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(job, "_save", save_then_stop)
        main(data, out=tmp_path / "cut", steps=4, flip=flip, save_every=1)
    main(data, out=tmp_path / "cut", resume=True)
    assert same_bytes((tmp_path / "cut/checkpoint.npz").read_bytes(), (tmp_path / "whole/checkpoint.npz").read_bytes())


def test_resume_refuses_other_pictures(main, tmp_path, load_demo, monkeypatch):
    """Other classes, another size, fewer pictures, flips that the run did not have: by name, with both values."""
    monkeypatch.setattr(load_demo("train_images").job, "final_pictures", lambda *_: None)
    main(pictures(), out=tmp_path, steps=1)
    before = (tmp_path / "checkpoint.npz").read_bytes()
    for data, options, said in (
        (pictures(("cat", "dog", "fox")), {}, "classes is .*'eel'.* in the checkpoint, .*'fox'.* is wanted"),
        (pictures(shape=(12, 12, 3)), {}, "image_shape is .8, 12, 3. in the checkpoint, .12, 12, 3. is wanted"),
        (pictures(num=12), {"num_images": 12}, "num is 9 in the checkpoint, 12 is wanted"),
        (pictures(), {"flip": True}, "flip is False in the checkpoint, True is wanted"),
        (pictures(), {"channels": 16}, "base_channels is 8 in the checkpoint, 16 is wanted"),
    ):
        with pytest.raises(CheckpointError, match=said):
            main(data, out=tmp_path, resume=True, **options)
    assert same_bytes((tmp_path / "checkpoint.npz").read_bytes(), before)


def test_pictures_that_no_network_fits_start_no_run(main, tmp_path):
    """The sentence names the sizes that --size can make; a size that no checkpoint may contain is refused too."""
    with pytest.raises(TinydiffError, match=r"pictures of 30 x 30 pixels: .*; choose --size 28 or 32"):
        main(pictures(shape=(30, 30, 3)), out=tmp_path, steps=1)
    with pytest.raises(TinydiffError, match=r"the data set has image_shape = \[4, 260, 1\]; it must be a list of 3"):
        main(pictures(shape=(4, 260, 1)), out=tmp_path, steps=1)
    assert not (tmp_path / "checkpoint.npz").exists()


def test_pictures_from_the_disk_start_a_run_that_goes_on(load_demo, tmp_path, monkeypatch, capsys):
    """A folder with a broken picture, which is named, and a file of floats that is not square: resumed as they were."""
    demo = load_demo("train_images")
    monkeypatch.setattr(demo.job, "final_pictures", lambda *_: None)
    rng = np.random.default_rng(0)
    for name in ("cat/1.png", "cat/2.png", "dog/3.png"):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 30, 3), np.uint8)).save(tmp_path / "photos" / name)
    (tmp_path / "photos/dog/4.png").write_bytes(b"no picture")
    np.savez(tmp_path / "mine.npz", images=rng.random((5, 8, 12, 3)), value_range=(0, 1))
    for name, options, data in (
        ("photos", {"size": 8}, {"name": "photos/", "num": 3, "classes": ["cat", "dog"], "image_shape": [8, 8, 3]}),
        ("mine.npz", {}, {"name": "mine.npz", "num": 5, "classes": [], "image_shape": [8, 12, 3]}),
    ):
        out, backend = tmp_path / f"run of {name}", backend_name()
        demo.main(str(tmp_path / name), backend=backend, out=out, steps=1, **SMALL, **options)
        before = (out / "checkpoint.npz").read_bytes()
        demo.main(str(tmp_path / name), backend=backend, out=out, resume=True, workers=1)
        assert same_bytes((out / "checkpoint.npz").read_bytes(), before)
        _, meta = load_kind(out / "checkpoint.npz", "diffusion")
        assert {key: meta["data"][key] for key in data} == data
    assert capsys.readouterr().out.count("not readable (cannot identify image file): dog/4.png") == 2
