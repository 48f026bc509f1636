"""The guidance demo on tiny untrained networks: its figures are those of the images that it asked for."""

import csv
import math
import runpy
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread
from tiny_runs import save_checkpoint, save_untrained_classifier

from tinydiff.app import checkpoint
from tinydiff.app.classify import build_classifier
from tinydiff.app.generate import Recipe, generate
from tinydiff.app.reading import class_score
from tinydiff.autograd import no_grad
from tinydiff.backend import TinydiffError, asarray, backend_name, to_numpy
from tinydiff.data import load
from tinydiff.diffusion import Schedule, classifier_free, classifier_guided, unconditional

pytestmark = pytest.mark.program

PATH = Path(__file__).parents[2] / "demos" / "guidance.py"
SCHEDULE = Schedule.linear(100)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A denoiser whose answers depend on the label, a classifier, and a noisy one of the same schedule."""
    folder, data = tmp_path_factory.mktemp("trained"), load("glyphs", num=30)
    save_checkpoint(folder / "unet.npz", data, move_start=0.05, warmup=1)
    for name, schedule in (("classifier", None), ("noisy", SCHEDULE), ("other", Schedule.linear(90))):
        save_untrained_classifier(folder / f"{name}.npz", data, channels=[8, 8], seed=1, schedule=schedule)
    return folder


@pytest.fixture
def demo(load_demo, monkeypatch):
    demo, test = load_demo("guidance"), load("glyphs", "test", num=40)
    monkeypatch.setattr(demo, "load", lambda *_: test)  # 10,000 glyphs take seconds to draw
    return demo


def run(demo, files, out, noisy="noisy.npz", **options):
    options = {
        "num": 12,
        "steps": 2,
        "scales": [0.0, 3.0],
        "classifier_scales": [3.0],
        "workers": 1,
        "backend": backend_name(),
        **options,
    }
    leader = noisy and files / noisy
    return demo.main(
        files / "unet.npz", classifier=files / "classifier.npz", noisy_classifier=leader, out=out, **options
    )


def test_the_table_is_of_the_images_that_were_drawn(demo, files, tmp_path, capsys):
    """Every method and scale has its row; each is counted, and written, as a reading of its images says."""
    rows = run(demo, files, tmp_path)
    plan = [("free", 0), ("free", 3), ("interval", 3), ("rescaled", 3), ("classifier", 3)]
    assert [row[:2] for row in rows] == plan
    with open(tmp_path / "guidance.csv", newline="") as file:
        head, *written = csv.reader(file)
    assert head[0] == "method" and [[str(value) for value in row] for row in rows] == written
    printed = capsys.readouterr().out
    judge, leader = build_classifier({"channels": [8, 8]}, 1), build_classifier({"channels": [8, 8], "time": True}, 1)
    guides = {
        "free": classifier_free,
        "classifier": lambda model, labels, scale: classifier_guided(
            SCHEDULE, unconditional(model), class_score(leader, labels), scale
        ),
    }
    pool, *_ = demo.load_trained(files / "unet.npz", 1)
    for name, scale, right, num, spread, contrast in rows:
        assert f"{name:10}  {scale:5g}  {right / 12:6.1%}" in printed and num == 12
        assert math.isfinite(spread) and contrast > 0
        if name in guides:
            recipe = Recipe(SCHEDULE, (28, 28, 1), num_steps=2, scale=scale, guide=guides[name])
            (frames,) = generate(pool, recipe, [*range(10), 0, 1], 0)
            with no_grad():
                answer = to_numpy(judge(asarray(np.clip(frames[-1], -1, 1)))).argmax(1)
            assert right == (answer == np.arange(12) % 10).sum()
    picture = imread(tmp_path / "guidance.png")[..., :3]
    assert picture.shape[1] > 800 and picture.std() > 0.1


def test_without_a_noisy_classifier_the_rest_is_drawn(demo, files, tmp_path, capsys):
    """It says so.  A method that was asked for is never left out, and no option is without effect."""
    rows = run(demo, files, tmp_path, noisy=None, scales=[2.0, 1.0], classifier_scales=None)
    assert [row[:2] for row in rows] == [("free", 2), ("free", 1), ("interval", 2), ("rescaled", 2)]
    assert "without the method classifier" in capsys.readouterr().out
    for options, message in (
        ({"methods": ["rescaled", "classifier"], "noisy": None}, "--methods classifier needs --noisy-classifier"),
        ({"methods": ["rescaled"], "classifier_scales": None}, "--noisy-classifier is used by the method classifier"),
        ({"methods": ["rescaled"], "noisy": None}, "--classifier-scales is used by the method classifier only"),
        ({"methods": ["classifier"]}, "--scales is used by the other methods only"),
    ):
        with pytest.raises(TinydiffError, match=message):
            run(demo, files, tmp_path / "none", **options)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("num", [1, 3, 10, 11])
def test_few_images_make_a_true_table_and_picture(demo, files, tmp_path, capsys, num):
    """Where no class has two images there is no spread: a dash, a line that says why, and a word in the panel."""
    texts, rows = [], run(demo, files, tmp_path, noisy=None, scales=[1.0], classifier_scales=None, num=num)
    for axes in demo.draw(rows, np.zeros((len(rows) * min(num, 10), 28, 28, 1))).axes:
        texts += [axes.get_title("left"), *(text.get_text() for text in axes.texts)]
    printed, _ = capsys.readouterr().out.split("table and picture")
    alone = "-: spread needs two images of a class" in printed
    assert alone == (num <= 10) == ("-: no class has two images" in texts)
    assert "nan" not in printed and "-0.0%" not in printed and max(map(len, printed.splitlines())) <= 100
    asked = {1: "asked for 0,", 3: "asked for 0 to 2,"}.get(num, "asked for 0 to 9,")
    assert [text for text in texts if text.startswith("asked for")] == [f"{asked} every row from the same noise"]
    assert f"{num} image{'s' * (num > 1)} a row" in printed


def test_a_classifier_of_other_noise_is_refused(demo, files, tmp_path):
    """Its time t would mean another noise level than the sampler's."""
    with pytest.raises(TinydiffError, match=r"other\.npz: it was trained for other classes, or for another schedule"):
        run(demo, files, tmp_path, noisy="other.npz")


def test_spread_is_the_deviation_within_a_class(demo, rng):
    """Of features N(mean_k, 4 I) in C = 9 dimensions it is sqrt(9 4) = 6, wherever the means are and however few each.

    A class of one has no deviation, and where all have one there is none to tell.
    """
    labels = np.arange(3000) % 1000  # three each: the divisor n - 1 counts
    features = 100.0 * labels[:, None] + 2 * rng.standard_normal((3000, 9))
    assert demo.spread(features, labels) == pytest.approx(6, rel=0.02)  # 18,000 normal numbers: 0.005
    assert demo.spread(np.array([[0.0], [2.0], [9.0]]), np.array([0, 0, 1])) == pytest.approx(2**0.5)
    assert math.isnan(demo.spread(np.zeros((2, 1)), np.array([0, 1])))


def test_contrast_is_an_images_own(demo):
    """Two flat images of different greys have none; one of half black, half white has 1."""
    images = np.stack([np.full((4, 4, 1), -0.5), np.full((4, 4, 1), 1.0)])
    assert demo.contrast(images) == 0
    images[0, :2], images[0, 2:] = -1, 1
    assert demo.contrast(images[:1]) == 1


def test_from_the_command_line(files, tmp_path, monkeypatch, capsys):
    """Every option is taken; a checkpoint of another kind is one message and exit code 2."""
    test = load("glyphs", "test", num=40)
    monkeypatch.setattr("tinydiff.data.load", lambda *_: test)
    words = ["--classifier", files / "classifier.npz", "--noisy-classifier", files / "noisy.npz", "--num", 3]
    words += [
        "--scales",
        "0,1.5",
        "--classifier-scales",
        "1",
        "--methods",
        "interval,classifier",
        "--steps",
        1,
        "--seed",
        4,
        "--workers",
        1,
    ]
    words += ["--out", tmp_path / "new" / "folder", "--backend", backend_name()]
    monkeypatch.setattr("sys.argv", [str(PATH), str(files / "unet.npz"), *map(str, words)])
    runpy.run_path(str(PATH), run_name="__main__")
    printed = capsys.readouterr().out
    assert "3 images a row, DDPM in 1 step, seed 4" in printed
    assert (tmp_path / "new" / "folder" / "guidance.png").stat().st_size > 5000
    checkpoint.save(tmp_path / "kind.npz", {}, {"kind": "classifier"})
    for wrong in ([str(tmp_path / "kind.npz")], [str(files / "unet.npz"), "--methods", "free,none"]):
        monkeypatch.setattr("sys.argv", [str(PATH), *wrong, "--backend", backend_name(), "--workers", "1"])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(PATH), run_name="__main__")
        assert end.value.code == 2
