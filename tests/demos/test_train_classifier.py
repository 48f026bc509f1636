"""The classifier demo in its smallest form: a few steps on a few glyphs, a checkpoint that reads as it says."""

import re
import runpy
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from tinydiff.app.classify import load_classifier, load_noisy_classifier
from tinydiff.app.kinds import data_settings
from tinydiff.app.reading import read
from tinydiff.backend import backend_name, to_numpy
from tinydiff.data import load
from tinydiff.diffusion import Schedule

pytestmark = pytest.mark.program

PATH = Path(__file__).parents[2] / "demos" / "train_classifier.py"
SMALLEST = {"data": "glyphs", "num_train": 40, "num_test": 30, "steps": 3, "batch_size": 8, "workers": 1}


@pytest.fixture(scope="module")
def demo(load_demo):
    return load_demo("train_classifier")


def test_the_saved_network_misreads_as_many_test_digits_as_the_demo_says(demo, tmp_path, capsys):
    """The errors returned, printed and kept in the checkpoint are those of the network that was saved."""
    errors = demo.main(backend=backend_name(), out=tmp_path / "new" / "folder", **SMALLEST)
    workers, meta = load_classifier(tmp_path / "new" / "folder" / "checkpoint.npz", 1)
    images, labels = load("glyphs", "test", num=30).batch(np.arange(30))
    with workers:
        answer = np.concatenate(list(read(workers, images))).argmax(1)
    assert errors == (answer != labels).sum() == meta["test"]["errors"] > 0  # three steps are far too few
    assert meta["train"]["num_steps"] == 3 and meta["data"]["name"] == "glyphs"
    printed, folder = capsys.readouterr().out, tmp_path / "new" / "folder"
    assert re.search(rf"{errors} of 30 misread, {100 - errors / 0.3:.2f}% right", printed)
    assert f"done: {folder}/checkpoint.npz; open {folder}/misread.png\n" in printed
    picture = imread(tmp_path / "new" / "folder" / "misread.png")[..., :3]
    assert min(picture.shape[:2]) > 80 and picture.std() > 0.05  # something is on it


def test_test_pictures_are_noised_to_times_of_the_seed(demo):
    """x_t is that of a time in 1..T, each of them about equally often; another seed has other times and noise."""
    schedule, x_0 = Schedule([0.2, 0.5, 0.99]), np.ones((300, 4, 4, 1), np.float32)
    (x_t, t), (again, same), (other, others) = (demo.noised(schedule, x_0, seed) for seed in (0, 0, 1))
    assert np.bincount(t, minlength=5)[1:4].min() > 60 and set(t) == {1, 2, 3}  # of 300: 100, deviation 8
    np.testing.assert_array_equal(again, x_t)
    np.testing.assert_array_equal(same, t)
    assert (others != t).any() and (other != x_t).all((1, 2, 3)).all()
    for time in (1, 2, 3):
        eps = (x_t[t == time] - schedule.alpha_bar[time] ** 0.5) / (1 - schedule.alpha_bar[time]) ** 0.5
        assert abs(eps.mean()) < 0.16 and abs(eps.std() - 1) < 0.12  # 960 normal numbers or more: 0.032 and 0.023


def test_where_nothing_is_misread_there_is_no_picture(demo, tmp_path, capsys, monkeypatch):
    """And a line says so; all right is 100.00%."""
    images, labels = load("glyphs", "test", num=30).batch(np.arange(30))
    monkeypatch.setattr(demo, "read", lambda *_: [np.eye(10)[labels]])
    assert demo.main(backend=backend_name(), out=tmp_path, **SMALLEST) == 0
    printed = capsys.readouterr().out
    assert "0 of 30 misread, 100.00% right" in printed and "misread.png is not written" in printed
    assert f"done: {tmp_path}/checkpoint.npz\n" in printed
    assert not (tmp_path / "misread.png").exists() and len(images) == 30


def test_a_noisy_one_is_tested_at_every_time(demo, tmp_path, capsys):
    """--noisy: each test digit at its own t; the shares by t add up to the share in all; its noise is in the file."""
    errors = demo.main(backend=backend_name(), out=tmp_path, noisy=True, **SMALLEST)
    schedule = Schedule.linear()  # another one would be refused
    test = load("glyphs", "test", num=30)
    model = load_noisy_classifier(tmp_path / "checkpoint.npz", schedule, 10, data_settings(test))
    images, labels = test.batch(np.arange(30))
    x_t, t = demo.noised(schedule, images, 0)
    assert errors == (to_numpy(model(x_t, t)).argmax(1) != labels).sum()
    rows = re.findall(r"t in +(\d+)\.\. *(\d+): +([\d.]+)% of (\d+)", capsys.readouterr().out)
    assert sum(int(n) for *_, n in rows) == 30 and (int(rows[0][0]), int(rows[-1][1])) == (1, 1000)
    assert sum(float(share) / 100 * int(n) for *_, share, n in rows) == pytest.approx(
        30 - errors, abs=0.1
    )  # 0.1% of 30
    for low, high, _, n in rows:
        assert ((t >= int(low)) & (t <= int(high))).sum() == int(n)


def test_options_reach_main(tmp_path, monkeypatch):
    """From the command line: every option is taken, and the settings that were kept show it."""
    options = ["--data", "glyphs", "--steps", "1", "--batch-size", "5", "--seed", "7", "--workers", "1", "--backend"]
    monkeypatch.setattr("sys.argv", [str(PATH), *options, backend_name(), "--out", str(tmp_path)])
    small = load("glyphs", num=50)
    monkeypatch.setattr("tinydiff.data.load", lambda *_: small)  # 70,000 glyphs take a while to draw
    runpy.run_path(str(PATH), run_name="__main__")
    workers, meta = load_classifier(tmp_path / "checkpoint.npz", 1)
    workers.close()
    wanted = {"num_steps": 1, "batch_size": 5, "seed": 7}
    assert {key: meta["train"][key] for key in wanted} == wanted
    assert meta["data"]["source"] == small.source
