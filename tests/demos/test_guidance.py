"""The guidance demo on tiny untrained networks: its figures are those of the images that it asked for."""

import csv
import math
import runpy
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread
from stand_ins import SCHEDULE, Leaning, StampReader, data, pool_of, series, stand_in, ticks_in_view
from tiny_runs import save_checkpoint, save_untrained_classifier

from tinydiff.app import checkpoint
from tinydiff.app.generate import Recipe, generate
from tinydiff.app.metrics import wilson_interval
from tinydiff.app.plots import tile
from tinydiff.app.reading import class_score
from tinydiff.backend import TinydiffError, backend_name, default_rng
from tinydiff.data import load
from tinydiff.diffusion import Schedule, classifier_free, classifier_guided, rescaled, unconditional

pytestmark = pytest.mark.program

PATH = Path(__file__).parents[2] / "demos" / "guidance.py"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A denoiser whose answers depend on the label, a classifier, and a noisy one of the same schedule."""
    folder, data = tmp_path_factory.mktemp("trained"), load("glyphs", num=30)
    save_checkpoint(folder / "unet.npz", data, move_start=0.05, warmup=1)
    for name, schedule in (("classifier", None), ("noisy", Schedule.linear(100)), ("other", Schedule.linear(90))):
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


LEADER = StampReader()
GUIDES = {
    "free": classifier_free,
    "interval": lambda model, labels, scale: (
        # sigma_t = sqrt(1/alpha_bar_t - 1) lies in (0.28, 2.9]
        lambda x_t, t: classifier_free(
            model, labels, scale if 0.28 < (1 / SCHEDULE.alpha_bar[t] - 1) ** 0.5 <= 2.9 else 1.0
        )(x_t, t)
    ),
    "rescaled": lambda model, labels, scale: classifier_free(model, labels, scale, partial(rescaled, SCHEDULE, 0.7)),
    "classifier": lambda model, labels, scale: classifier_guided(
        SCHEDULE, unconditional(model), class_score(LEADER, labels), scale
    ),
}


@pytest.fixture(scope="module")
def test_set():
    return data(np.arange(43) % 10, default_rng(3), 0.2)


def stand_in_run(demo, patch, out, network, test_set, **options):
    """main with stand-ins; the rows, and what the classifier was shown row by row."""
    reader = StampReader()
    patch.setattr(demo, "load_noisy_classifier", lambda *_: LEADER)
    calls = stand_in(patch, demo, network, test_set, reader)
    options = {"noisy_classifier": "n.npz", "workers": 1, "backend": backend_name(), **options}
    return demo.main("unet.npz", classifier="c.npz", out=out, **options), reader.shown, calls


def test_every_row_is_drawn_by_the_method_that_it_names(demo, test_set, tmp_path, monkeypatch):
    """Bit for bit: the guided images of the package's own call are what the classifier was shown; no two are alike."""
    network, scales, own = Leaning(var=0.5), [0.0, 1.0, 1.5], [1.0, 1.5]
    options = {"num": 12, "steps": 25, "scales": scales, "classifier_scales": own, "seed": 4}
    pictures, draw = [], demo.draw
    monkeypatch.setattr(demo, "draw", lambda *args: (pictures.append(args), draw(*args))[1])
    rows, shown, _ = stand_in_run(demo, monkeypatch, tmp_path, network, test_set, **options)
    plan = [("free", 0), ("free", 1), ("free", 1.5), ("interval", 1.5), ("rescaled", 1.5)]
    assert [row[:2] for row in rows] == [*plan, ("classifier", 1), ("classifier", 1.5)]
    real, *images = shown
    ((of_rows, tiles),) = pictures  # one of each class, the first of its row
    assert of_rows == rows and np.array_equal(tiles, np.concatenate([drawn[:10] for drawn in images]))
    assert np.array_equal(real, test_set.batch(np.arange(43))[0])
    seen = set()
    for (name, scale, *_), drawn in zip(rows, images, strict=True):
        recipe = Recipe(SCHEDULE, (12, 12, 1), num_steps=25, scale=scale, guide=GUIDES[name])
        (frames,) = generate(pool_of(network), recipe, [*range(10), 0, 1], 4)
        assert np.array_equal(drawn, np.clip(frames[-1], -1, 1)), (name, scale)
        seen.add(drawn.tobytes())
    assert len(seen) == 7


@pytest.mark.parametrize("name", GUIDES)
def test_each_guide_leads_an_image_alone(name):
    """In slices of 1, 5 and 12: no guide, and no classifier's gradient, mixes the rows of its batch.

    A sum over the pixels of one picture may be rounded in another order: 144 numbers below 4, in 5 steps; seen 2e-6.
    """
    recipe = Recipe(SCHEDULE, (12, 12, 1), num_steps=5, scale=1.5, guide=GUIDES[name])
    labels, pool = [*range(10), 0, 1], pool_of(Leaning(var=0.5))
    together, *apart = (
        np.concatenate([frames[-1] for frames in generate(pool, replace(recipe, at_once=n), labels, 4)])
        for n in (12, 5, 1)
    )
    for images in apart:
        np.testing.assert_allclose(images, together, rtol=0, atol=1e-4)


@pytest.mark.parametrize("draws, share", [([*range(11)], "100.0%"), ([3] * 11, "10.0%")])
def test_a_network_that_draws_as_asked_or_always_a_3(demo, test_set, tmp_path, monkeypatch, capsys, draws, share):
    """All are right, or one in ten, in each row of the table, in its file and as it is printed.

    spread and contrast are those of the drawn pixels over those of the real ones.
    """
    options = {"num": 30, "steps": 5, "methods": ["rescaled", "free"], "noisy_classifier": None, "scales": [4.0, 1.0]}
    rows, (real, *images), calls = stand_in_run(demo, monkeypatch, tmp_path, Leaning(draws, 0.3), test_set, **options)
    assert [row[:2] for row in rows] == [("free", 4), ("free", 1), ("rescaled", 4)]

    def spread_of(pixels, labels):
        squares = []
        for k in range(10):
            features = pixels[labels == k].reshape(-1, 144)
            squares.append(((features - features.mean(0)) ** 2).sum() / (len(features) - 1))
        return np.mean(squares) ** 0.5

    def contrast_of(pixels):
        return np.mean([image.std() for image in pixels])

    head, *texts = capsys.readouterr().out.split("interval: ")[1].splitlines()[1:]
    assert head == "method      scale   asked  (95% interval)      spread  contrast   of real images' 100%"
    for row, drawn, text in zip(rows, images, texts):
        wide = spread_of(drawn, np.arange(30) % 10) / spread_of(real, np.arange(43) % 10)
        ink = contrast_of(drawn) / contrast_of(real)
        right = 30 if share == "100.0%" else 3
        assert row[2:4] == (right, 30) and row[4:] == pytest.approx((wide, ink), rel=1e-5)  # float32 sums
        low, high = wilson_interval(right, 30)
        assert text.split() == [
            *(row[0], f"{row[1]:g}", share, f"({low:.1%}", "to", f"{high:.1%})"),
            *(f"{row[4]:.1%}", f"{row[5]:.1%}"),
        ]
    with open(tmp_path / "guidance.csv", newline="") as file:
        head, *written = csv.reader(file)
    assert head == ["method", "scale", "right", "num", "spread", "contrast"]
    assert [[str(value) for value in row] for row in rows] == written
    assert calls.load == [("glyphs", "test", None, 5)]
    assert imread(tmp_path / "guidance.png")[..., :3].std() > 0.1


def test_real_digits_are_spread_over_the_set(demo, monkeypatch):
    """Of more than 2,000 test digits every second, third, ..., from the first on."""
    test = data(np.arange(4001) % 10, default_rng(0))
    reader = StampReader()
    demo.of_real_digits(pool_of(reader), test)
    assert np.array_equal(np.concatenate(reader.shown), test.batch(np.arange(2000) * 4001 // 2000)[0])


@pytest.mark.parametrize("schedule", [SCHEDULE, Schedule.cosine(1000), Schedule.linear()])
def test_the_interval_is_of_noise_to_signal(demo, schedule):
    """low < t <= high has 0.28 < sigma_t <= 2.9, and no other time has."""
    low, high = demo.interval_times(schedule)
    sigma = (1 / schedule.alpha_bar - 1) ** 0.5
    assert [t for t in range(schedule.T + 1) if 0.28 < sigma[t] <= 2.9] == list(range(low + 1, high + 1))


def test_the_picture_is_the_table(demo):
    """Three panels in percent against the scale, in order; a method is one series; rows under their names."""
    rows = [("free", 0.0, 5, 20, 1.5, 0.9), ("free", 8.0, 20, 20, 0.5, 1.2), ("free", 1.0, 10, 20, 1.0, 1.0)]
    rows += [("interval", 8.0, 15, 20, 0.75, 1.25), ("classifier", 20.0, 4, 20, math.nan, 1.5)]
    pictures = default_rng(0).uniform(-1, 1, (15, 4, 4, 1))
    figure = demo.draw(rows, pictures)
    *panels, grid = figure.axes
    titles = ["read as asked, %", "spread within a class, % of real images'", "contrast, % of real images'"]
    assert [axes.get_title("left") for axes in panels] == titles
    columns = ([25, 100, 50, 75, 20], [150, 50, 100, 75, None], [90, 120, 100, 125, 150])
    for axes, (zero, eight, one, interval, last) in zip(panels, columns):
        lines = series(axes)
        assert lines["free"] == [(0, zero), (2, eight), (1, one)]
        assert lines["interval"] == [(2, interval)] and lines.get("classifier") == (last and [(3, last)])
        assert "rescaled" not in lines
        x, y = ticks_in_view(axes)
        assert len(set(y)) == len(y) >= 2
        assert x in ([], ["0", "1", "8", "20"])  # the upper two share the lowest one's
        assert list(axes.lines[-1].get_ydata()) == [100, 100]
    assert ticks_in_view(panels[-1])[0] == ["0", "1", "8", "20"] and panels[-1].get_xlabel() == "guidance scale"
    assert np.array_equal(grid.images[0].get_array(), tile(pictures, 3)[..., 0]) and grid.images[0].get_clim() == (
        0,
        255,
    )
    assert [text.get_text() for text in grid.get_yticklabels()] == [
        *("no label", "free 8", "free 1", "interval 8", "classifier 20")
    ]
    height = len(tile(pictures, 3)) / 5
    assert grid.get_yticks() == pytest.approx([(i + 0.5) * height for i in range(5)])
    assert grid.get_title("left") == "classes 0 to 2, every row from the same noise"


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


def test_only_free_guidance_without_a_label_is_called_so(demo):
    """Other methods at scale 0 keep their names."""
    rows = [(name, 0.0, 1, 2, 1.0, 1.0) for name in ("free", "interval", "classifier")]
    *_, grid = demo.draw(rows, np.zeros((6, 4, 4, 1))).axes
    names = [text.get_text() for text in grid.get_yticklabels()]
    assert names == ["no label", "interval 0", "classifier 0"]


@pytest.mark.parametrize("num", [1, 3, 10, 11])
def test_few_images_make_a_true_table_and_picture(demo, test_set, monkeypatch, tmp_path, capsys, num):
    """Where no class has two images there is no spread: a dash, a line that says why, and a word in the panel."""
    texts, options = [], {"noisy_classifier": None, "scales": [1.0], "num": num, "steps": 2}
    rows, *_ = stand_in_run(demo, monkeypatch, tmp_path, Leaning(), test_set, **options)
    for axes in demo.draw(rows, np.zeros((len(rows) * min(num, 10), 28, 28, 1))).axes:
        texts += [axes.get_title("left"), *(text.get_text() for text in axes.texts)]
    printed, _ = capsys.readouterr().out.split("table and picture")
    alone = "-: spread needs two images of a class" in printed
    assert alone == (num <= 10) == ("-: no class has two images" in texts)
    assert "nan" not in printed and "-0.0%" not in printed and max(map(len, printed.splitlines())) <= 100
    asked = {1: "class 0,", 3: "classes 0 to 2,"}.get(num, "classes 0 to 9,")
    assert [text for text in texts if text.startswith("class")] == [f"{asked} every row from the same noise"]
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
