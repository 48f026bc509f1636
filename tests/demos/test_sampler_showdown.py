"""The showdown: every row is drawn by the sampler that it names, and its figures are those of the digits it keeps.

Digits that a network draws around a stamp, and a classifier that reads it, stand in for trained ones; so a run takes a
fraction of a second.
"""

import csv
import runpy
import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread
from stand_ins import META, SCHEDULE, Leaning, StampReader, data, pool_of, series, stand_in, ticks_in_view
from tiny_runs import save_checkpoint, save_untrained_classifier

from tinydiff.app.checkpoint import CheckpointError
from tinydiff.app.generate import Recipe, generate
from tinydiff.app.metrics import frechet_distance, wilson_interval
from tinydiff.app.plots import tile
from tinydiff.backend import TinydiffError, backend_name, default_rng
from tinydiff.data import load
from tinydiff.diffusion import (
    Schedule,
    ddim_step,
    ddpm_step,
    dpm_solver_2m,
    log_snr_pairs,
    timestep_pairs,
)

pytestmark = pytest.mark.program

PATH = Path(__file__).parents[2] / "demos" / "sampler_showdown.py"
# What each row's name means, from the package's own functions: the step, and the times.
STEPS = {
    "DDPM, beta_tilde": lambda schedule: partial(ddpm_step, schedule, variance=Schedule.beta_tilde, clip=True),
    "DDPM, beta": lambda schedule: partial(ddpm_step, schedule, variance=Schedule.beta_t_given_s, clip=True),
    "DDIM": lambda schedule: partial(ddim_step, schedule, eta=0.0, clip=True),
    "2M": lambda schedule: dpm_solver_2m(schedule, clip=True),
    "2M, even log SNR": lambda schedule: dpm_solver_2m(schedule, clip=True),
}


def times_of(name):
    return log_snr_pairs if "log SNR" in name else lambda schedule, n: timestep_pairs(schedule.T, n)


@pytest.fixture(scope="module")
def test_set():
    return data(np.arange(140) % 10, default_rng(3), 0.2)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """What stands for a checkpoint: its content is read, and its network is a stand-in."""
    path = tmp_path_factory.mktemp("trained") / "unet.npz"
    path.write_bytes(b"weights")
    return path


@pytest.fixture(scope="module")
def first(load_demo, trained, test_set, tmp_path_factory):
    """A first run's folder and rows."""
    demo, out = load_demo("sampler_showdown"), tmp_path_factory.mktemp("out")
    with pytest.MonkeyPatch.context() as patch:
        stand_in(patch, demo, Leaning(var=0.3), test_set)
        return out, run(demo, trained, out)


@pytest.fixture
def demo(load_demo, monkeypatch, test_set):
    demo = load_demo("sampler_showdown")
    stand_in(monkeypatch, demo, Leaning(var=0.3), test_set)
    return demo


@pytest.fixture
def unpainted(demo, monkeypatch):
    """A run's picture, which takes longer than all the rest, is blank."""
    monkeypatch.setattr(demo, "picture", lambda *_: Figure())


def run(demo, path, out, **options):
    options = {"num": 20, "steps": (2, 3), "longest": 4, "workers": 1, **options}
    return demo.main(path, backend=backend_name(), out=out, **options)


def kept_file(out, name, but=()):
    """The file of the kept digits of a row."""
    (path,) = (path for path in (out / "digits").glob(f"{name}-*.npz") if path not in but)
    return path


def drawn_again(name, n, scale, labels, seed, network):
    """The digits of a row by the package's own call, as 8-bit pixels."""
    recipe = Recipe(SCHEDULE, (12, 12, 1), STEPS[name], n, scale, pairs=times_of(name))
    frames = np.concatenate([frames[-1] for frames in generate(pool_of(network), recipe, labels, seed)])
    return np.rint(np.clip(frames, -1, 1) * 127.5 + 127.5).astype(np.uint8)


def test_every_row_is_drawn_by_the_sampler_that_it_names(first, trained):
    """Bit for bit, with its number of steps and its guidance; no two rows are the same digits, 2 steps apart."""
    out, rows = first
    assert {(row["sampler"], row["steps"]) for row in rows if row["scale"] == 1} == {
        *((name, n) for name in STEPS for n in (2, 3)),
        ("DDPM, beta_tilde", 4),
    }
    guided = {(row["sampler"], row["steps"], row["scale"]) for row in rows if row["scale"] != 1}
    assert guided == {("2M", 10, 2.0), ("2M, even log SNR", 10, 2.0), ("DDIM", 20, 2.0)}
    assert len(list((out / "digits").iterdir())) == len(rows) == 14
    seen = set()
    for row in rows:
        name, n, scale = row["sampler"], row["steps"], row["scale"]
        kept = images_of(out, row)
        again = drawn_again(name, n, scale, [i % 10 for i in range(20)], 0, Leaning(var=0.3))
        assert np.array_equal(kept, again), row
        if n > 2:  # in two steps 2M is DDIM
            assert kept.tobytes() not in seen
            seen.add(kept.tobytes())


def images_of(out, row):
    name = f"{row['sampler']}-{row['steps']}-{row['scale']:g}".replace(", ", "-").replace(" ", "_")
    with np.load(kept_file(out, name)) as file:
        return file["images"]


def real_features(demo, test_set, num):
    return demo.real_digits(test_set, num).reshape(-1, 144)


def test_the_figures_are_those_of_the_digits_that_are_kept(demo, trained, first, test_set):
    """The share of stamps that are as asked, its interval, the distance of the pixels, and that of as many real ones.

    The first num real digits are the floor's, the others are what both are compared with.
    """
    out, rows = first
    real = real_features(demo, test_set, 20)
    assert len(real) == 140
    for row in rows:
        images = images_of(out, row).astype("float32") / 127.5 - 1
        right = int((images[:, -1, :10, 0].argmax(1) == np.arange(20) % 10).sum())
        assert (row["right"], row["num"], row["low"], row["high"]) == (right, 20, *wilson_interval(right, 20))
        assert row["frechet"] == frechet_distance(images.reshape(20, -1), real[20:])
        assert row["floor"] == frechet_distance(real[:20], real[20:]) > 0
        assert 0 < row["seconds"] < 10
    with open(out / "sampler_showdown.csv", newline="") as file:
        head, *table = csv.reader(file)
    assert head == ["sampler", "steps", "scale", "right", "num", "low", "high", "frechet", "floor", "seconds"]
    assert [cells[0] for cells in table] == [row["sampler"] for row in rows]
    for cells, row in zip(table, rows):  # numbers with five digits
        assert list(map(float, cells[1:])) == pytest.approx(list(row.values())[1:], rel=1e-4)
    assert imread(out / "sampler_showdown.png")[..., :3].std() > 0.05  # something is on it


@pytest.mark.parametrize("draws, share", [([*range(11)], "100.0%"), ([3] * 11, " 10.0%")])
def test_a_network_that_draws_as_asked_or_always_a_3(
    demo, trained, test_set, tmp_path, monkeypatch, capsys, unpainted, draws, share
):
    """All are right, or one in ten: in every row, in the printed line and with Wilson's interval.

    The bar counts the evaluations of the network, two for a guided step; the cheapest rows come first.
    """
    network, reader = Leaning(draws), StampReader()
    calls = stand_in(monkeypatch, demo, network, test_set, reader)
    bars, start = [], demo.tqdm.__init__
    monkeypatch.setattr(demo.tqdm, "__init__", lambda bar, *a, **k: (bars.append(k["total"]), start(bar, *a, **k))[1])
    rows = run(demo, trained, tmp_path, num=30, steps=(2,), longest=3, seed=8, classifier="c.npz", data_dir="d")
    assert {row["right"] for row in rows} == {30 if share == "100.0%" else 3}
    assert bars == [sum(map(len, network.asked))] == [30 * (5 * 2 + 3 + 2 * (10 + 10 + 20))]
    costs = [row["steps"] * (1 if row["scale"] == 1 else 2) for row in rows]
    assert costs == sorted(costs)
    low, high = wilson_interval(rows[0]["right"], 30)
    heading, *lines, last = (line for line in capsys.readouterr().out.splitlines() if "CuPy" not in line)
    assert heading.split() == ["sampler", "steps", "scale", "read", "(95%", "interval)", "Frechet", "real", "seconds"]
    assert last == f"table and picture: {tmp_path}/sampler_showdown.csv, .png"
    read = f"({low:.1%} to {high:.1%})"
    for text, row in zip(lines, rows, strict=True):
        start = f"{row['sampler']:16}  {row['steps']:5}  {row['scale']:5g}  {share:>6}  {read:18}"
        assert text.startswith(start)
        frechet, floor, seconds = text[len(start) :].split()
        assert (frechet, floor) == (f"{row['frechet']:.4g}", f"{row['floor']:.4g}")
        assert seconds == f"{row['seconds']:.0f}" and len(text) <= 100
    for row in rows:
        again = drawn_again(row["sampler"], row["steps"], row["scale"], [i % 10 for i in range(30)], 8, network)
        assert np.array_equal(images_of(tmp_path, row), again)
    assert calls.load == [("glyphs", "test", "d", 5)]
    assert calls.load_classifier == [(Path("c.npz"), 1, META["data"])] and calls.load_trained == [(trained, 1)]


def test_workers_plain_and_the_like_decide_a_row(demo, trained):
    """The seconds depend on the workers, the digits on all the rest."""
    first = demo.what_decides(trained, False, 1, 20, 0)
    for other, name in (
        ((True, 1, 20, 0), "arrays"),
        ((False, 2, 20, 0), "workers"),
        ((False, 1, 30, 0), "num"),
        ((False, 1, 20, 4), "seed"),
    ):
        second = demo.what_decides(trained, *other)
        assert [key for key in first if first[key] != second[key]] == [name]


def test_the_plan_is_every_sampler_at_every_number_of_steps(demo):
    """Guided rows only where the schedule has so many steps; no row twice; sorted by evaluations, guided ones two."""
    assert demo.planned((1,), 5, 9) == [*((name, 1, 1.0) for name in STEPS), ("DDPM, beta_tilde", 5, 1.0)]
    plan = demo.planned((7,), 7, 10)
    guided = [("2M", 10, 2.0), ("2M, even log SNR", 10, 2.0)]
    assert plan == [*((name, 7, 1.0) for name in STEPS), *guided]
    assert demo.planned((7,), 30, 20)[-2:] == [("DDPM, beta_tilde", 30, 1.0), ("DDIM", 20, 2.0)]


def a_row(name, steps, scale=1.0, right=30, num=40, frechet=2.0, floor=0.5):
    low, high = wilson_interval(right, num)
    row = {"sampler": name, "steps": steps, "scale": scale, "right": right, "num": num, "low": low, "high": high}
    return row | {"frechet": frechet, "floor": floor, "seconds": 61.4}


def test_the_picture_is_the_table(demo):
    """Left the misread share in percent with its interval, right the distance; guided rows open, the floor a line."""
    rows = [a_row("DDIM", n, right=40 - 3 * n, frechet=9.0 / n) for n in (2, 5)]
    rows += [a_row("2M", 4, right=40, frechet=1.5), a_row("2M", 3, 2.0, right=30, frechet=0.75)]
    stripe = default_rng(0).uniform(-1, 1, (5, 4, 4, 1)).astype("float32")
    figure = demo.picture(rows, {("DDIM", 5, 1.0): stripe}, (2, 5), "who, what, how many")
    assert figure.get_suptitle() == "who, what, how many"
    left, right, *strips = figure.axes
    lines = series(right)
    assert lines["DDIM"] == [(2, 4.5), (5, 1.8)] and lines["2M"] == [(4, 1.5)]
    assert lines["DDPM, beta"] == [] and lines["as many real images"] == [(0, 0.5), (1, 0.5)]
    assert lines["open: with guidance 2"] == []
    (open_circle,) = (line for line in right.lines if list(line.get_xdata()) == [3])
    assert list(open_circle.get_ydata()) == [0.75] and open_circle.get_markerfacecolor() == "white"
    assert open_circle.get_color() == next(line for line in right.lines if line.get_label() == "2M").get_color()
    bars = {bar.get_label(): bar for bar in left.containers}
    (points, _, (interval,)) = bars["DDIM"]
    assert points.get_xdata() == pytest.approx([2, 5])
    assert points.get_ydata() == pytest.approx([100 * 6 / 40, 100 * 15 / 40])
    for row, ends in zip(rows, interval.get_segments()):
        assert ends[:, 1] == pytest.approx([100 * (1 - row["high"]), 100 * (1 - row["low"])])
    assert left.get_title() == "images not read as the class asked for (95% interval)"
    assert right.get_title() == "Frechet distance from test images" and left.get_xlabel() == "steps"
    assert left.get_ylim()[0] == 0 and right.get_yscale() == left.get_xscale() == "log"
    for axes in (left, right):
        x, y = ticks_in_view(axes)
        assert x == ["2", "3", "4", "5"] and len(set(y)) == len(y) >= 2
    assert all(text.endswith("%") for text in ticks_in_view(left)[1])
    assert [axes.get_title() for axes in strips[:2]] == ["2 steps", "5 steps"]
    assert [axes.texts[0].get_text() for axes in strips[::2]] == list(STEPS)
    ((place, image),) = ((i, axes.images[0]) for i, axes in enumerate(strips) if axes.images)
    assert place == 5 and np.array_equal(image.get_array(), tile(stripe, 5)[..., 0])
    assert image.get_clim() == (0, 255)


def test_a_picture_of_all_right_rows_has_no_negative_interval(demo):
    """0% misread, to the interval's end; without a guided row nothing is said of open circles."""
    figure = demo.picture([a_row("2M", 5, right=40)], {}, (5,), "")
    wrong, ends = demo.misread([a_row("2M", 5, right=40)])
    assert wrong == [0] and ends[0] == 0 and ends[1] == pytest.approx(100 * (1 - wilson_interval(40, 40)[0]))
    assert "open: with guidance 2" not in series(figure.axes[1])


def test_the_title_tells_what_was_drawn(demo, trained, tmp_path, monkeypatch):
    """The data, the steps of the training and the digits of a row; each strip has the row's first five digits."""
    seen, picture = [], demo.picture
    monkeypatch.setattr(demo, "picture", lambda *args: (seen.append(args), picture(*args))[1])
    rows = run(demo, trained, tmp_path, num=10, steps=(1,), longest=1)
    ((of_rows, shown, steps, title),) = seen
    assert (of_rows, steps, title) == (rows, (1,), "glyphs, 7 steps of training, 10 images each")
    for row in rows:
        images = shown[row["sampler"], row["steps"], row["scale"]]
        assert np.array_equal(images, images_of(tmp_path, row)[:5].astype("float32") / 127.5 - 1)


def test_a_second_run_draws_nothing_again(demo, trained, first, monkeypatch, unpainted):
    """What was kept is judged again and gives the same rows; what is missing is drawn, to the same digits."""
    out, before = first
    kept_file(out, "DDIM-3-1").unlink()
    drawn = []
    generate = demo.generate
    monkeypatch.setattr(demo, "generate", lambda *args: (drawn.append(args), generate(*args))[1])
    second = run(demo, trained, out)
    assert len(drawn) == 1
    assert [row | {"seconds": 0} for row in before] == [row | {"seconds": 0} for row in second]


@pytest.mark.parametrize("change", ["checkpoint", "seed", "num", "plain", "package", "demo", "NumPy"])
def test_digits_that_anything_else_would_change_are_drawn_anew(
    demo, trained, first, monkeypatch, tmp_path, change, test_set, unpainted
):
    """Digits are kept for one checkpoint, its settings, the arrays and the source: what differs in one is another row,
    and the digits that were kept stay for a run as before."""
    if change == "plain" and backend_name() != "numpy":
        pytest.skip("plain functions on a GPU take minutes")
    before, out = first[1], tmp_path / "out"
    shutil.copytree(first[0], out)
    files = {path: path.read_bytes() for path in (out / "digits").iterdir()}
    options = {"seed": {"seed": 1}, "num": {"num": 10}, "plain": {"plain": True}}.get(change, {})
    network = trained
    if change == "checkpoint":  # other weights
        network = tmp_path / "unet.npz"
        network.write_bytes(b"others")
        stand_in(monkeypatch, demo, Leaning([*range(1, 11), 10]), test_set)
    elif change == "package":
        monkeypatch.setattr(demo, "source_digest", lambda: "another source")
    elif change == "demo":
        copy = tmp_path / "copy.py"
        copy.write_text(PATH.read_text("utf-8") + "\n# changed\n", "utf-8")
        monkeypatch.setattr(demo, "__file__", str(copy))
    elif change == "NumPy":
        monkeypatch.setattr(demo, "xp", SimpleNamespace(__version__="0.1"))
    rows = run(demo, network, out, **options)
    after = {path: path.read_bytes() for path in (out / "digits").iterdir()}
    assert files.items() <= after.items() and len(after) == 2 * len(files)
    if change == "checkpoint":
        new = kept_file(out, "DDIM-3-1", but=files)
        assert not any(np.array_equal(np.load(path)["images"], np.load(new)["images"]) for path in files)
        assert [row["frechet"] for row in rows] != [row["frechet"] for row in before]


def test_the_file_of_a_row_is_named_by_every_setting(demo, tmp_path, monkeypatch):
    """Another value of any of them is another file; the same ones are read, images and seconds."""
    drawn = []

    def generate(*_):
        drawn.append(default_rng(len(drawn)).uniform(-1, 1, (1, 4, 8, 8, 1)).astype("float32"))
        yield drawn[-1]

    monkeypatch.setattr(demo, "generate", generate)
    settings = {"sampler": "DDPM, beta", "steps": 5, "scale": 1.0, "checkpoint": "a", "source": ["b", "c"]}
    settings |= {"arrays": ["numpy", "2"], "workers": 1, "num": 4, "seed": 0}
    images, seconds = demo.draw(tmp_path, settings, None, None, [0] * 4, 0)
    again, same_seconds = demo.draw(tmp_path, settings, None, None, [0] * 4, 0)
    np.testing.assert_array_equal(images, again)
    np.testing.assert_allclose(images, drawn[0][-1], atol=1 / 255)
    assert seconds == same_seconds and len(drawn) == 1
    for name in settings:
        demo.draw(tmp_path, settings | {name: 7 if name == "scale" else "other"}, None, None, [0] * 4, 0)
    assert len(drawn) == len(list(tmp_path.iterdir())) == 1 + len(settings)


def test_digits_that_were_damaged_are_named(demo, trained, first):
    """A file with another content than it was written with is a CheckpointError, and not judged."""
    path = kept_file(first[0], "DDIM-3-1")
    content = path.read_bytes()
    path.write_bytes(content[:300] + b"x" + content[301:])
    with pytest.raises(CheckpointError, match=f"{path.name} is damaged"):
        run(demo, trained, first[0])
    path.write_bytes(content)


def test_the_real_digits_are_as_many_of_each(demo, rng):
    """The first num, and the others, hold every digit equally often, no image twice, and all that the rarest allows."""
    uneven = data([*np.arange(110) % 10, 3, 3, 7], rng)
    real = demo.real_digits(uneven, 20)
    assert len(real) == 110
    labels = {image.tobytes(): label for image, label in zip(*uneven.batch(np.arange(113)))}
    for part, each in ((real[:20], 2), (real[20:], 9)):
        assert np.bincount([labels[image.tobytes()] for image in part], minlength=10).tolist() == [each] * 10
    assert len({image.tobytes() for image in real}) == len(real)
    assert len(demo.real_digits(uneven, 50)) == 110
    with pytest.raises(TinydiffError, match="--num 60: must be a multiple of 10"):
        demo.real_digits(uneven, 60)


@pytest.mark.parametrize("options, message", [({"num": 15}, "--num 15"), ({"num": 5000}, "--num 5000")])
def test_a_number_that_the_test_set_cannot_match_is_refused(demo, trained, tmp_path, options, message):
    """num is a multiple of 10, and the test set has twice as many; nothing is drawn."""
    with pytest.raises(TinydiffError, match=message):
        run(demo, trained, tmp_path, **options)


def test_a_network_without_classes_is_refused(demo, trained, tmp_path, monkeypatch, test_set):
    """It ignores the label that its digits would be read against."""
    network = Leaning()
    network.num_classes = None
    stand_in(monkeypatch, demo, network, test_set)
    with pytest.raises(TinydiffError, match=r"unet\.npz: this program needs a network with classes"):
        run(demo, trained, tmp_path)


def test_a_row_is_drawn_once(demo):
    """Also where --longest is among --steps; the picture has labels on its logarithmic axis, and at most six strips."""
    plan = demo.planned(tuple(range(1, 9)), 8, 100)
    assert len(set(plan)) == len(plan) == 5 * 8 + 3
    figure = demo.picture([a_row(*row) for row in plan], {}, tuple(range(1, 9)), "")
    assert min(map(len, map(set, ticks_in_view(figure.axes[1])))) >= 2
    assert [axes.get_title() for axes in figure.axes[2:8]] == [f"{n} step{'s' * (n > 1)}" for n in (1, 2, 3, 5, 6, 8)]


def test_options_reach_main(tmp_path, monkeypatch):
    """From the command line, with real files; more steps than the schedule has end with code 2."""
    glyphs = load("glyphs", "test", num=120)
    save_checkpoint(tmp_path / "unet.npz", load("glyphs", num=10))
    save_untrained_classifier(tmp_path / "classifier.npz", glyphs, channels=[4, 8])
    monkeypatch.setattr("tinydiff.data.load", lambda *_: glyphs)
    words = [tmp_path / "unet.npz", "--classifier", tmp_path / "classifier.npz", "--num", 10, "--steps", 1, "--seed", 3]
    words += ["--out", tmp_path, "--workers", 1, "--backend", backend_name()]
    for longest in (2, 101):
        monkeypatch.setattr("sys.argv", [str(PATH), *map(str, words), "--longest", str(longest)])
        if longest == 101:
            with pytest.raises(SystemExit) as end:
                runpy.run_path(str(PATH), run_name="__main__")
            assert end.value.code == 2
        else:
            runpy.run_path(str(PATH), run_name="__main__")
            assert len(list((tmp_path / "digits").iterdir())) == 9


def test_a_run_that_is_stopped_leaves_table_and_picture(demo, trained, tmp_path, monkeypatch):
    """Ctrl-C in the third row: the two before it are in the table, on the picture and kept."""
    generate, calls = demo.generate, []

    def stopped(*args):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return generate(*args)

    monkeypatch.setattr(demo, "generate", stopped)
    with pytest.raises(KeyboardInterrupt):
        run(demo, trained, tmp_path)
    assert len((tmp_path / "sampler_showdown.csv").read_text().splitlines()) == 3
    assert len(list((tmp_path / "digits").iterdir())) == 2
    assert imread(tmp_path / "sampler_showdown.png")[..., :3].std() > 0.05
