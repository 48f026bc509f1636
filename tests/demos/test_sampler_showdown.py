"""The showdown in its smallest form: its figures are those of the digits it keeps, and it goes on where it stopped."""

import csv
import runpy
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.image import imread
from tiny_runs import save_checkpoint, save_untrained_classifier

from tinydiff.app.checkpoint import CheckpointError
from tinydiff.app.classify import load_classifier
from tinydiff.app.metrics import frechet_distance
from tinydiff.app.reading import features, read
from tinydiff.backend import TinydiffError, backend_name, default_rng
from tinydiff.data import load

pytestmark = pytest.mark.program

PATH = Path(__file__).parents[2] / "demos" / "sampler_showdown.py"


@pytest.fixture(scope="module")
def test_set():
    return load("glyphs", "test", num=120)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, test_set):
    """Checkpoints of a tiny network after one step, and of a tiny classifier as it starts."""
    folder, data = tmp_path_factory.mktemp("trained"), load("glyphs", num=10)
    save_checkpoint(folder / "unet.npz", data)
    save_untrained_classifier(folder / "classifier.npz", data, test=test_set, channels=[4, 8])
    return folder


@pytest.fixture(scope="module")
def first(load_demo, trained, test_set, tmp_path_factory):
    """A first run's folder and rows."""
    demo, out = load_demo("sampler_showdown"), tmp_path_factory.mktemp("out")
    demo.load = lambda *_: test_set
    return out, run(demo, trained, out)


@pytest.fixture
def demo(load_demo, monkeypatch, test_set):
    demo = load_demo("sampler_showdown")
    monkeypatch.setattr(demo, "load", lambda *_: test_set)  # 10,000 glyphs take seconds to draw
    return demo


def run(demo, trained, out, **options):
    options = {"num": 20, "steps": (2, 3), "longest": 4, "workers": 1, **options}
    classifier = trained / "classifier.npz"
    return demo.main(trained / "unet.npz", classifier=classifier, backend=backend_name(), out=out, **options)


def kept_file(out, name, but=()):
    """The file of the kept digits of a row."""
    (path,) = (path for path in (out / "digits").glob(f"{name}-*.npz") if path not in but)
    return path


def test_the_figures_are_those_of_the_digits_that_are_kept(demo, trained, first, test_set):
    """Every sampler at every number of steps, the guided rows and the longest; each judged as the metrics say."""
    out, rows = first
    assert {(row["sampler"], row["steps"]) for row in rows if row["scale"] == 1} == {
        *((name, n) for name in demo.SAMPLERS for n in (2, 3)),
        ("DDPM, beta_tilde", 4),
    }
    assert {(row["sampler"], row["steps"]) for row in rows if row["scale"] == 2} == set(demo.GUIDED)
    kept = sorted((out / "digits").glob("*.npz"))
    assert len(kept) == len(rows) == 14
    judge, _ = load_classifier(trained / "classifier.npz", 1)
    real = np.concatenate(list(features(judge, demo.real_digits(test_set, 20))))
    (row,) = [row for row in rows if (row["sampler"], row["steps"]) == ("2M, even log SNR", 3)]
    with np.load(kept_file(out, "2M-even_log_SNR-3-1")) as file:
        images = file["images"].astype("float32") / 127.5 - 1
    answers = np.concatenate(list(read(judge, images))).argmax(1)
    assert row["right"] == (answers == np.arange(20) % 10).sum()
    drawn = np.concatenate(list(features(judge, images)))
    assert row["frechet"] == pytest.approx(frechet_distance(drawn, real[20:]), rel=1e-5)  # float32 features
    assert row["floor"] == pytest.approx(frechet_distance(real[:20], real[20:]), rel=1e-5)
    with open(out / "sampler_showdown.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert [(r["sampler"], int(r["right"])) for r in table] == [(r["sampler"], r["right"]) for r in rows]
    assert imread(out / "sampler_showdown.png")[..., :3].std() > 0.05  # something is on it


def test_a_second_run_draws_nothing_again(demo, trained, first, monkeypatch):
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
def test_digits_that_anything_else_would_change_are_drawn_anew(demo, trained, first, monkeypatch, tmp_path, change):
    """Digits are kept for one checkpoint, its settings, the arrays and the source: what differs in one is another row,
    and the digits that were kept stay for a run as before."""
    if change == "plain" and backend_name() != "numpy":
        pytest.skip("plain functions on a GPU take minutes")
    before, out = first[1], tmp_path / "out"
    shutil.copytree(first[0], out)
    files = {path: path.read_bytes() for path in (out / "digits").iterdir()}
    options = {"seed": {"seed": 1}, "num": {"num": 10}, "plain": {"plain": True}}.get(change, {})
    network = trained
    if change == "checkpoint":  # the same step and seed, other weights
        network = tmp_path
        (tmp_path / "classifier.npz").write_bytes((trained / "classifier.npz").read_bytes())
        save_checkpoint(tmp_path / "unet.npz", load("glyphs", num=10), move_average=0.5)
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
        assert any(np.load(path)["images"].tobytes() != np.load(new)["images"].tobytes() for path in files)
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


def test_the_real_digits_are_as_many_of_each(demo, test_set):
    """The first num, and the others, hold every digit equally often, and no image twice."""
    smallest = np.bincount(test_set.labels, minlength=10).min()
    real = demo.real_digits(test_set, 20)
    assert len(real) == 10 * smallest
    labels = {image.tobytes(): label for image, label in zip(*test_set.batch(np.arange(120)))}
    for part in (real[:20], real[20:]):
        counts = np.bincount([labels[image.tobytes()] for image in part], minlength=10)
        assert (counts == counts[0]).all() and counts[0] > 0
    assert len({image.tobytes() for image in real}) == len(real)


@pytest.mark.parametrize("options, message", [({"num": 15}, "--num 15"), ({"num": 5000}, "--num 5000")])
def test_a_number_that_the_test_set_cannot_match_is_refused(demo, trained, tmp_path, options, message):
    """num is a multiple of 10, and the test set has twice as many; nothing is drawn."""
    with pytest.raises(TinydiffError, match=message):
        run(demo, trained, tmp_path, **options)


def test_a_network_without_classes_is_refused(demo, trained, tmp_path):
    """It ignores the label that its digits would be read against."""
    save_checkpoint(tmp_path / "none.npz", load("glyphs", num=10), num_classes=None)
    with pytest.raises(TinydiffError, match=r"none\.npz: this program needs a network with classes"):
        demo.main(tmp_path / "none.npz", classifier=trained / "classifier.npz", out=tmp_path, workers=1)


def test_a_row_is_drawn_once(demo, trained, tmp_path):
    """Also where --longest is among --steps; the picture has labels on its logarithmic axis, and at most six strips."""
    rows = run(demo, trained, tmp_path, steps=(1, 2, 3, 4, 5, 6, 7, 8), longest=8)
    assert len({(row["sampler"], row["steps"], row["scale"]) for row in rows}) == len(rows) == 5 * 8 + 3
    figure = demo.picture(rows, {}, (1, 2, 3, 4, 5, 6, 7, 8), "")
    figure.draw_without_rendering()
    distance = figure.axes[1]
    low, high = distance.get_ylim()
    assert sum(low <= tick <= high for tick in distance.get_yticks()) >= 2
    assert [axes.get_title() for axes in figure.axes[2:8]] == [f"{n} step{'s' * (n > 1)}" for n in (1, 2, 3, 5, 6, 8)]


def test_options_reach_main(trained, tmp_path, monkeypatch, test_set):
    """From the command line; more steps than the schedule has end with code 2."""
    monkeypatch.setattr("tinydiff.data.load", lambda *_: test_set)
    words = [trained / "unet.npz", "--classifier", trained / "classifier.npz", "--num", 10, "--steps", 1, "--seed", 3]
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
