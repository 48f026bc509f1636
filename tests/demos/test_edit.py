"""The editing demo: its table and picture in the smallest form, on a tiny network and glyphs."""

import runpy
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread
from tiny_runs import save_checkpoint, save_untrained_classifier

from tinydiff.app import checkpoint
from tinydiff.autograd import Tensor
from tinydiff.backend import TinydiffError, asarray, backend_name
from tinydiff.data import load
from tinydiff.diffusion import Schedule, eps_from_x_0
from tinydiff.nn import Module

pytestmark = pytest.mark.program

PATH = Path(__file__).parents[2] / "demos" / "edit.py"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A checkpoint after one step of a tiny network, and a classifier that was not trained at all."""
    folder = tmp_path_factory.mktemp("trained")
    data = load("glyphs", num=10)
    save_checkpoint(folder / "checkpoint.npz", data)
    save_untrained_classifier(folder / "classifier.npz", data)
    save_untrained_classifier(folder / "noisy.npz", data, channels=[8], schedule=Schedule.linear(100))
    return folder


@pytest.fixture
def demo(load_demo, monkeypatch):
    demo, test_set = load_demo("edit"), load("glyphs", "test", num=30)
    monkeypatch.setattr(demo, "load", lambda *_: test_set)  # 10,000 glyphs take seconds to draw
    return demo


SMALL = {"num": 7, "digits": 3, "steps": 2, "round_trips": (1, 2), "workers": 1}


def test_the_smallest_run_fills_table_and_picture(demo, trained, tmp_path, capsys):
    """Known pixels are exact, each question has its line, printed and in edit.md; the picture is no blank."""
    out = tmp_path / "new"
    judges = {"classifier": trained / "classifier.npz", "noisy_classifier": trained / "noisy.npz"}
    table = demo.main(trained / "checkpoint.npz", backend=backend_name(), out=out, **judges, **SMALL)
    assert table["known pixels changed"] == f"0 of {7 * 14 * 28:,}"
    assert table["read as the original, all digits"].split(",")[0].endswith("of 7")
    assert [name for name in table if "round trip" in name] == ["round trip, 1 step", "round trip, 2 steps"]
    printed, written = capsys.readouterr().out, (out / "edit.md").read_text()
    for name, value in table.items():
        assert f"| {name} | {value} |" in written and value in printed
    picture = imread(out / "edit.png")[..., :3]
    assert min(picture.shape[:2]) > 500 and 0.05 < picture.std() < 0.6


class Zero(Module):
    """A network that sees no noise anywhere."""

    num_classes = None

    def forward(self, x_t, t, labels=None):
        return 0 * x_t


def test_each_edit_does_what_its_name_says(demo):
    """With eps_hat = 0: the upper half stays, t_start = 0 and the round trip give x_0, a blend ends on the digits."""
    schedule = Schedule.linear(100)
    x_0, _ = load("glyphs", "test", num=4).batch(np.arange(4))
    known = np.arange(28)[:, None, None] < 14
    job = (x_0, (0, 0))
    done = demo.complete(schedule, known, 3, 2, None, Zero(), job)
    assert (done[:, :14] == x_0[:, :14]).all() and (done[:, 14:] != x_0[:, 14:]).any()
    assert (demo.redraw(schedule, 0, 3, Zero(), job) == x_0).all()
    assert (demo.redraw(schedule, 50, 3, Zero(), job) != x_0).any()
    x_T, back = demo.round_trip(schedule, 3, Zero(), job).swapaxes(0, 1)
    # without noise every step scales: x_T is what is left of x_0, and scaled back it is x_0 but for float32
    assert np.allclose(x_T, schedule.alpha_bar[-1] ** 0.5 * x_0, rtol=1e-5, atol=0)
    assert np.allclose(back, x_0, rtol=1e-5, atol=0)
    between = demo.blend(schedule, 3, [0.0, 0.5, 1.0], Zero(), job)
    assert np.allclose(between[:, 0], x_0, rtol=1e-5, atol=0)
    assert np.allclose(between[:, 2], np.roll(x_0, -1, 0), rtol=1e-5, atol=0)


class ByLabel(Zero):
    """The exact denoiser of one digit a label."""

    num_classes = 10

    def __init__(self, schedule, digits):
        self.schedule, self.digits = schedule, digits

    def forward(self, x_t, t, labels):
        return eps_from_x_0(self.schedule, x_t, t, asarray(self.digits[np.broadcast_to(labels, len(x_t))]))


class Undecided(Module):
    """A reader to whom every class looks alike."""

    def forward(self, x_t, t):
        return Tensor(asarray(np.zeros((len(x_t), 10), "float32")))


def test_labels_are_drawn_of_those_that_say_what_is_known(demo):
    """A network that knows ten digits by heart, and a reader that knows nothing: the upper half decides which."""
    schedule = Schedule.linear(100)
    glyphs = load("glyphs", "test", num=100)
    digits, _ = glyphs.batch(np.array([np.flatnonzero(glyphs.labels == k)[0] for k in range(10)]))
    known = np.arange(28)[:, None, None] < 14
    half = np.where(known, digits, 0).astype("float32")
    done = demo.complete(schedule, known, 3, 1, Undecided(), ByLabel(schedule, digits), (half, (0, 0)))
    np.testing.assert_allclose(done, digits, atol=1e-5)  # float32


def test_the_seed_decides_everything(demo):
    """Slices have streams of their own: the same seed, the same image, and another one for another seed or slice."""
    schedule, x = Schedule.linear(100), np.zeros((2, 28, 28, 1), np.float32)
    draw = [demo.redraw(schedule, 50, 3, Zero(), (x, name)) for name in ((1, 0), (1, 0), (2, 0), (1, 1))]
    assert (draw[0] == draw[1]).all() and (draw[0] != draw[2]).any() and (draw[0] != draw[3]).any()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"num": 31}, "--num 31: there are 30 images"),
        ({"digits": 31}, "--digits 31: there are 30 images"),
        ({"steps": 101}, "--steps 101: the schedule has T = 100 steps"),
        ({"round_trips": (10, 101)}, "--round-trips 101: the schedule has T = 100 steps"),
        ({"noisy_classifier": "any.npz", "resample": 3}, "--resample 3: with --noisy-classifier each step"),
    ],
)
def test_what_does_not_fit_is_refused(demo, trained, tmp_path, options, message):
    """More images than the test set has, or more steps than T, are named before the work."""
    with pytest.raises(TinydiffError, match=message):
        demo.main(trained / "checkpoint.npz", backend=backend_name(), out=tmp_path, **{**SMALL, **options})


def test_a_bad_checkpoint_is_one_message_and_exit_code_2(tmp_path, monkeypatch, capsys):
    """Missing, or of another kind: told on one line; step counts that are none too."""
    checkpoint.save(tmp_path / "kind.npz", {}, {"kind": "classifier"})
    for words, message in (
        ([tmp_path / "missing.npz"], "does not exist"),
        ([tmp_path / "kind.npz"], "'classifier', not 'diffusion'"),
        (["x", "--round-trips", "10,0"], "a whole number from 1 to 1,000,000,000, got '0' in '10,0'"),
    ):
        options = ["--workers", 1, "--out", tmp_path / "o", "--backend", backend_name()]
        monkeypatch.setattr("sys.argv", [str(PATH), *map(str, [*words, *options])])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(PATH), run_name="__main__")
        assert end.value.code == 2 and message in capsys.readouterr().err.replace("\n", " ")
