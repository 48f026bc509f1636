"""The forward-process demo in its smallest form: four pictures, and the two figures that it prints."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread
from stand_ins import series, ticks_in_view

from tinydiff.backend import TinydiffError, asarray, backend_name, default_rng, standard_normal, to_numpy, xp
from tinydiff.data import load
from tinydiff.diffusion import Schedule, q_sample, q_x_t_given_x_s

pytestmark = pytest.mark.program

PATH = Path(__file__).parents[2] / "demos" / "forward_process.py"
PICTURES = ["chain_and_closed_form.png", "chain_statistics.png", "noising.png", "schedules.png"]


@pytest.fixture(scope="module")
def demo(load_demo):
    return load_demo("forward_process")


def test_the_demo_writes_its_four_pictures(demo, tmp_path, capsys):
    """main writes four whole pictures with something on them, and nothing else, and names them."""
    demo.main(backend=backend_name(), out=tmp_path / "new" / "folder", data="glyphs", chains=20)
    written = sorted(path.name for path in (tmp_path / "new" / "folder").iterdir())
    assert written == PICTURES
    printed = capsys.readouterr().out
    for name in written:
        picture = imread(tmp_path / "new" / "folder" / name)[..., :3]
        assert min(picture.shape[:2]) > 140 and 0.05 < picture.std() < 0.6  # neither blank nor tiny
        assert name in printed


def test_the_chain_is_the_closed_form_with_its_own_noise(demo):
    """A thousand small steps and one jump with the noise they drew give one picture, to float32's rounding."""
    x_0 = asarray(np.linspace(-1, 1, 784, dtype=np.float32).reshape(1, 28, 28, 1))
    _, gap = demo.chain_and_closed_form(Schedule.linear(), x_0, seed=3, name="ramp")
    assert 0 < gap < 2e-5  # 1,000 roundings of 6e-8 that partly cancel, on numbers up to 4


def test_many_chains_have_the_closed_form_s_mean(demo):
    """The means of 2,000 chains lie within 5 standard errors at all times, and are not the closed form itself."""
    _, error = demo.chain_statistics(Schedule.linear(40), chains=2000, seed=1)
    assert 0.5 < error < 5  # the largest of 60 correlated normals: about 2


def cells(axes, n, k, size):
    """The k x n pictures of a table of pictures, as 8-bit pixels (n, k, size, size), and its names and times."""
    (image,) = axes.images
    assert image.get_clim() == (0, 255)
    pixels = np.pad(np.asarray(image.get_array()), ((0, 1), (0, 1)))
    names, times = ([text.get_text() for text in axis.get_ticklabels()] for axis in (axes.yaxis, axes.xaxis))
    assert list(axes.get_xticks()) == [j * (size + 1) + size / 2 for j in range(k)]
    assert list(axes.get_yticks()) == [i * (size + 1) + size / 2 for i in range(n)]
    return pixels.reshape(n, size + 1, k, size + 1).swapaxes(1, 2)[:, :, :size, :size], names, times


def bits(images):
    return np.rint(np.clip(to_numpy(images), -1, 1) * 127.5 + 127.5).astype(np.uint8)[..., 0]


X_0 = np.linspace(-1, 1, 64, dtype=np.float32).reshape(1, 8, 8, 1)
MAKERS = {
    "linear": Schedule.linear,
    "cosine": Schedule.cosine,
    "quadratic": Schedule.quadratic,
    "sigmoid": Schedule.sigmoid,
    "constant": Schedule.constant,
}


def test_each_schedule_has_its_row_of_the_same_noise(demo):
    """Row and column are q_sample of that schedule and time, from the data at the left to noise at the right."""
    schedules = {name: make(50) for name, make in MAKERS.items()}
    assert {name: make(50).alpha_bar.tolist() for name, make in demo.SCHEDULES.items()} == {
        name: schedule.alpha_bar.tolist() for name, schedule in schedules.items()
    }
    figure = demo.noising(schedules, asarray(X_0), 4, "b")
    shown, names, times = cells(figure.axes[0], 5, 11, 8)
    eps = standard_normal(default_rng(4), X_0.shape)
    assert names == list(MAKERS) and times == [f"t = {5 * i}" for i in range(11)]
    for row, schedule in zip(shown, schedules.values()):
        for j, picture in enumerate(row):
            assert np.array_equal(picture, bits(q_sample(schedule, asarray(X_0), 5 * j, eps))[0])
    assert figure.axes[0].get_title() == "x_t of one picture of class b under each schedule, with the same noise in all"


def chain_and_gaps(schedule, x, seed):
    """The Markov chain from x, drawn again, and at each of eleven times its difference from the jump with its noise."""
    rng, chain, noise = default_rng(seed), [x], [0 * x]
    for t in range(1, schedule.T + 1):
        z = standard_normal(rng, x.shape)
        for walk in (chain, noise):
            mean, var = q_x_t_given_x_s(schedule, walk[-1], t - 1, t)
            walk.append(mean + xp.sqrt(var) * z)
    gaps = [0 * x]
    for t in range(3, 31, 3):
        eps = noise[t] / float(schedule.one_minus_alpha_bar[t]) ** 0.5
        gaps.append(chain[t] - q_sample(schedule, x, t, eps))
    return chain, gaps


def test_the_gap_is_the_largest_difference_up_or_down(demo):
    """Of either sign: some seeds have their largest difference below 0."""
    below = 0
    for seed in range(6):
        _, gap = demo.chain_and_closed_form(Schedule.linear(30), asarray(X_0), seed, "a")
        _, gaps = chain_and_gaps(Schedule.linear(30), asarray(X_0), seed)
        assert gap == max(float(abs(a).max()) for a in gaps)
        below += gap > max(float(a.max()) for a in gaps)
    assert below > 0


def test_the_chain_is_drawn_beside_the_jump(demo):
    """First row: the Markov chain, drawn again; second: one jump with its noise; third: the difference x 100,000."""
    schedule, x = Schedule.linear(30), asarray(X_0)
    figure, _ = demo.chain_and_closed_form(schedule, x, 2, "a")
    chain, gaps = chain_and_gaps(schedule, x, 2)
    shown, names, times = cells(figure.axes[0], 3, 11, 8)
    assert names == ["30 steps", "one jump", "difference\nx 100,000"] and times == [f"t = {3 * i}" for i in range(11)]
    for j in range(11):
        assert np.array_equal(shown[0, j], bits(chain[3 * j])[0])
        assert abs(shown[1, j].astype(int) - shown[0, j]).max() <= 1  # equal but for rounding
    assert (shown[2, 0] == 128).all() and (shown[2, 1:] != 128).any()  # no difference is grey; at t = 0 there is none
    for j in range(11):
        assert np.array_equal(shown[2, j], bits(gaps[j] * 1e5)[0])
    assert "class a: the chain x_t" in figure.axes[0].get_title()


def test_the_statistics_are_those_of_the_chains(demo):
    """Dots: mean and std of chains drawn again; lines: the closed form; the error is in standard errors of a mean."""
    schedule, rng, n, start = Schedule.linear(40), default_rng(1), 300, np.array([1, 0.2, -1], np.float32)
    figure, error = demo.chain_statistics(schedule, n, 1)
    x, means, stds = asarray(np.broadcast_to(start, (n, 3))), [start], [0 * start]
    for t in range(1, 41):
        mean, var = q_x_t_given_x_s(schedule, x, t - 1, t)
        x = mean + xp.sqrt(var) * standard_normal(rng, x.shape)
        if t % 2 == 0:
            means.append(to_numpy(x.mean(0)))
            stds.append(to_numpy(x.std(0)))
    left, right = figure.axes
    t = np.arange(41)
    for k, (value, name) in enumerate(zip((1, 0.2, -1), ("white pixel, x_0 = 1", "grey pixel, x_0 = 0.2", "black"))):
        line, dots = left.lines[2 * k : 2 * k + 2]
        assert line.get_label().startswith(name) and line.get_color() is not None
        np.testing.assert_allclose(line.get_ydata(), schedule.alpha_bar**0.5 * np.float32(value), rtol=1e-7)
        assert list(dots.get_xdata()) == list(range(0, 41, 2)) and line.get_xdata().tolist() == t.tolist()
        assert np.array_equal(dots.get_ydata(), np.array(means)[:, k])
        assert np.array_equal(right.lines[k].get_ydata(), np.array(stds)[:, k])
        assert np.array_equal(dots.get_color(), line.get_color())
    np.testing.assert_allclose(right.lines[3].get_ydata(), (1 - schedule.alpha_bar) ** 0.5, rtol=1e-9)
    at, off = np.arange(2, 41, 2), np.array(means)[1:] - schedule.alpha_bar[2::2, None] ** 0.5 * start
    assert error == pytest.approx(np.max(np.abs(off) / (1 - schedule.alpha_bar[at, None]) ** 0.5 * n**0.5), rel=1e-6)
    assert (left.get_title(), right.get_title()) == ("mean of x_t", "standard deviation of x_t")
    assert figure.get_suptitle().endswith("dots: 300 Markov chains, step by step")
    for axes in (left, right):
        assert axes.get_xlabel() == "t" and min(map(len, ticks_in_view(axes))) >= 2


def test_the_curves_are_the_schedules(demo):
    """sqrt(alpha_bar_t) and log(alpha_bar_t/(1 - alpha_bar_t)) of each, under its name; a line at 0."""
    schedules = {name: make(30) for name, make in MAKERS.items()}
    left, right = demo.curves(schedules).axes
    signal, snr = series(left), series(right)
    assert list(signal) == list(snr) == list(schedules)
    for name, schedule in schedules.items():
        a = schedule.alpha_bar
        np.testing.assert_allclose([y for _, y in signal[name]], a**0.5, rtol=1e-12)
        np.testing.assert_allclose([y for _, y in snr[name]], np.log(a[1:] / (1 - a[1:])), rtol=1e-6)
        assert [x for x, _ in signal[name]] == list(range(31)) and [x for x, _ in snr[name]] == list(range(1, 31))
    assert [line.get_ydata() for line in right.lines if line.get_label()[0] == "_"] == [[0, 0]]
    (text,) = right.texts
    assert text.get_text() == "as much noise as signal" and text.get_position() == (30, 0.3)
    for axes in (left, right):
        assert min(map(len, ticks_in_view(axes))) >= 2


@pytest.mark.parametrize("T, times", [(3, [0, 1, 2, 3]), (10, [*range(11)]), (1000, [*range(0, 1001, 100)])])
def test_times_are_even_from_the_data_to_the_end(demo, T, times):
    """Eleven of them, or all that there are."""
    assert demo._evenly(T, 11) == times


def test_the_picture_is_of_the_class_that_was_asked_for(load_demo, monkeypatch, tmp_path, capsys):
    """Its first image; seed and number of chains reach what is drawn; the printed figures are those returned."""
    demo, seen, dataset = load_demo("forward_process"), {}, load("glyphs", num=40)
    monkeypatch.setattr(demo, "load", lambda *args, **options: seen.update(load=(args, options)) or dataset)
    for name, value in (("chain_and_closed_form", 3.21e-7), ("chain_statistics", 2.34)):
        keep = lambda *args, name=name, value=value: (seen.update({name: args}), (Figure(), value))[1]  # noqa: E731
        monkeypatch.setattr(demo, name, keep)
    monkeypatch.setattr(demo, "noising", lambda *args: seen.update(noising=args) or Figure())
    demo.main(out=tmp_path, backend=backend_name(), data="glyphs", data_dir="d", digit=7, seed=5, chains=1)
    assert seen["load"] == (("glyphs",), {"data_dir": "d", "seed": 5, "num": 1000})
    first = dataset.batch(np.flatnonzero(dataset.labels == 7)[:1])[0]
    schedules, x_0, *rest = seen["noising"]
    assert list(schedules) == list(MAKERS) and np.array_equal(to_numpy(x_0), first) and rest == [5, "7"]
    linear, x_0, *rest = seen["chain_and_closed_form"]
    assert linear is schedules["linear"] and np.array_equal(to_numpy(x_0), first) and rest == [5, "7"]
    assert seen["chain_statistics"] == (linear, 1, 5)
    *_, data, chain, means, _ = capsys.readouterr().out.splitlines()
    assert data == f"data: {dataset.source}"
    assert chain == "1,000 steps and one jump with the same noise differ by 3.2e-07 at most, float32's rounding"
    assert means == "the means of 1 chain lie within 2.3 standard errors of the closed form (chance: up to 4)"


@pytest.mark.parametrize("digit", [-1, 10])
def test_a_class_that_is_not_there_is_refused(demo, tmp_path, digit):
    """digit lies in 0..9, or ValueError."""
    with pytest.raises(ValueError, match=f"digit must lie in 0..9, got {digit}"):
        demo.main(backend=backend_name(), out=tmp_path, data="glyphs", digit=digit)


def test_a_class_that_the_data_lack_is_named(load_demo, tmp_path, monkeypatch):
    """A set whose first thousand images have no such class."""
    demo, data = load_demo("forward_process"), load("glyphs", num=40)
    lacking = replace(data, labels=np.where(data.labels == 8, 3, data.labels))
    monkeypatch.setattr(demo, "load", lambda *_, **__: lacking)
    with pytest.raises(TinydiffError, match="--digit 8: no image of class 8 is among the first 40"):
        demo.main(digit=8, out=tmp_path, backend=backend_name())


def test_help_shows_the_defaults():
    """The script answers --help with each option and main's default for it."""
    shown = subprocess.run([sys.executable, PATH, "--help"], capture_output=True, text=True, check=True).stdout
    shown = " ".join(shown.split())  # argparse breaks lines
    for part in ("--out", "(default: runs/forward_process)", "--digit DIGIT", "(default: 3)", "(default: 4000)"):
        assert part in shown
