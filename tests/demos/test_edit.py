"""The editing demo: its table and its picture are of the package's own edits, drawn again bit for bit."""

import runpy
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread
from stand_ins import META, SCHEDULE, Leaning, StampReader, data, pool_of, stamps, stand_in
from tiny_runs import save_checkpoint, save_untrained_classifier

from tinydiff.app import checkpoint
from tinydiff.app.metrics import share
from tinydiff.app.plots import tile
from tinydiff.app.row_rng import row_rng
from tinydiff.autograd import Tensor, no_grad
from tinydiff.backend import TinydiffError, asarray, backend_name, default_rng, standard_normal, to_numpy
from tinydiff.data import load
from tinydiff.diffusion import (
    Schedule,
    ddim_invert,
    ddim_step,
    ddpm_step,
    eps_from_x_0,
    inpaint,
    sample,
    sdedit,
    slerp,
    timestep_pairs,
    unconditional,
)
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


@pytest.fixture(scope="module")
def test_set():
    return data(np.arange(53) % 10, default_rng(3), 0.2)


def stand_in_run(demo, patch, out, test_set, network=None, picture=False, **options):
    """main with stand-ins; the table, what the classifier was shown, and the blocks of the picture."""
    reader, blocks, save_blocks = StampReader(), [], demo.save_blocks
    stand_in(patch, demo, network or Leaning(var=0.3), test_set, reader)
    patch.setattr(demo, "load_kind", lambda *_: ({}, META))
    patch.setattr(
        demo, "save_blocks", lambda path, all_blocks: (blocks.extend(all_blocks), picture and save_blocks(path, blocks))
    )
    if not picture:
        patch.setattr(demo, "picture_blocks", lambda *_: [])
    table = demo.main("unet.npz", backend=backend_name(), out=out, **{**SMALL, **options})
    return table, reader.shown, blocks


def slices_of(x_0):
    return [(x_0[i : i + 20], range(i, min(i + 20, len(x_0)))) for i in range(0, len(x_0), 20)]


def test_the_table_is_of_the_package_s_own_edits(demo, test_set, tmp_path, monkeypatch, capsys):
    """The classifier reads the edited digits, bit for bit those of inpaint with RePaint's resampling.

    Their share is counted by the stamp in the lower half, with and without 4, 7 and 9; the errors of the round trips
    are root mean squares of decoded - x_0; all is printed and written.
    """
    network, n = Leaning(var=0.3), 41
    options = {"num": n, "steps": 4, "resample": 2, "digits": 23, "round_trips": (3, 7), "seed": 6}
    table, (shown,), _ = stand_in_run(demo, monkeypatch, tmp_path, test_set, network, classifier="c.npz", **options)
    images, labels = test_set.batch(np.arange(n) * 53 // n)
    known = np.zeros((12, 1, 1), bool)
    known[:6] = True
    filled = []
    for x_0, rows in slices_of(images):
        rng = row_rng("edit", 6, rows=rows)
        x_T = standard_normal(rng, x_0.shape)
        step, pairs = partial(ddpm_step, SCHEDULE, clip=True), timestep_pairs(100, 4)
        with no_grad():
            *_, (_, x, _) = inpaint(SCHEDULE, step, unconditional(network), pairs, x_T, asarray(x_0), known, rng, 2)
        filled.append(to_numpy(x))
    filled = np.concatenate(filled)
    assert np.array_equal(shown, filled) and np.array_equal(filled[:, :6], images[:, :6])
    right = filled[:, -1, :10, 0].argmax(1) == labels
    clear = right[~np.isin(labels, (4, 7, 9))]
    expected = {
        "known pixels changed": f"0 of {41 * 6 * 12:,}",
        "read as the original, without 4, 7, 9": share(clear),
        "read as the original, all images": share(right),
    }
    x_0, _ = test_set.batch(np.arange(23) * 53 // 23)
    for steps in (3, 7):
        pairs = timestep_pairs(100, steps)
        x_T, back = [], []
        for part, _ in slices_of(x_0):
            with no_grad():
                *_, (_, x, _) = ddim_invert(SCHEDULE, unconditional(network), pairs, asarray(part))
                x_T.append(to_numpy(x))
                *_, (_, x, _) = sample(partial(ddim_step, SCHEDULE), unconditional(network), pairs, x, default_rng(0))
                back.append(to_numpy(x))
        x_T, back = np.concatenate(x_T), np.concatenate(back)
        rmse = float(np.mean((back - x_0) ** 2)) ** 0.5
        text = f"RMSE {rmse:.3g}, {100 * rmse / 2:.4g}% of the range; x_T's std {x_T.std():.3g}"
        expected[f"round trip, {steps} steps"] = text
    assert table == expected and list(table) == list(expected)
    printed = [line for line in capsys.readouterr().out.splitlines() if "CuPy" not in line]
    assert printed[0] == "data: stamps; network: 7 steps; no labels are given"
    assert printed[1:-1] == [f"  {name:40}{value}" for name, value in expected.items()]
    assert printed[-1] == f"picture: {tmp_path}/edit.png, table: {tmp_path}/edit.md"
    lines = ["| measured | found |", "|---|---|", *(f"| {name} | {value} |" for name, value in expected.items())]
    assert (tmp_path / "edit.md").read_text().splitlines() == lines


def test_without_resample_each_step_is_taken_ten_times(demo, test_set, tmp_path, monkeypatch):
    """RESAMPLE is the default, and what is given is what is used; the noisy classifier reaches the edit."""
    for given, reader, used in ((None, None, 10), (3, None, 3), (None, "noisy.npz", 10)):
        calls = []

        def noted(pool, f, *rest, calls=calls, edit=demo.edit):
            calls.append(f)
            return edit(pool, f, *rest)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(demo, "edit", noted)
            patch.setattr(demo, "load_noisy_classifier", lambda path, *_: StampReader())
            stand_in_run(demo, patch, tmp_path / str(used), test_set, resample=given, noisy_classifier=reader)
        fill_in = calls[0]
        assert fill_in.func is demo.complete and fill_in.args[3] == used
        assert isinstance(fill_in.args[4], StampReader) == (reader is not None)


@pytest.mark.parametrize(
    "labels, draws, texts",
    [
        ([0, 1, 4, 7, 9, 2], 2, ("1 of 3", "1 of 6")),
        ([4, 7, 9, 4], 4, ("-, there is no other image", "2 of 4")),
        ([3], 3, ("1 of 1", "1 of 1")),
    ],
)
def test_the_share_is_of_what_is_read_as_the_original(demo, monkeypatch, labels, draws, texts):
    """A digit that is drawn whatever it was: with and without those whose upper halves may look alike."""
    stand_in(monkeypatch, demo, Leaning(), None)
    images, classes = stamps([draws] * len(labels)), tuple("0123456789")
    rows = demo.readings("c.npz", 1, images, np.array(labels), classes)
    assert [name for name, _ in rows] == ["without 4, 7, 9", "all images"]
    assert tuple(text.split(",")[0] for _, text in rows) == tuple(text.split(",")[0] for text in texts)
    rows = demo.readings("c.npz", 1, images, np.array(labels), ("T-shirt",) * 10)
    assert [name for name, _ in rows] == ["all images"]


def test_an_error_is_a_root_mean_square_and_changed_pixels_are_known_ones(demo):
    """Errors 0.1 and 0.7 have RMSE 0.5, a quarter of the range; their mean is 0.4.  Pixels have 8 bits."""
    x_0 = np.zeros((2, 4, 3, 1))
    back, x_T = x_0.copy(), x_0.copy()
    back[0], back[1], x_T[0] = 0.1, -0.7, 2
    assert demo.trip_error(x_0, x_T, back) == "RMSE 0.5, 25% of the range; x_T's std 1"
    known = demo.upper_half(5)
    assert known.shape == (5, 1, 1) and known[:, 0, 0].tolist() == [True, True, False, False, False]
    done = x_0.copy()
    done[0, 0, :2], done[1, 3], done[1, 1, 2] = 0.02, 1, 0.001
    assert demo.known_changed(done, x_0, demo.upper_half(4)) == "2 of 12"


def test_the_picture_shows_what_its_rows_are_called(demo, test_set, tmp_path, monkeypatch):
    """Each row is the edit of that name, drawn again: seeds 1, 2, 3 on; times as shares of T; ten times the error."""
    network, options = Leaning(var=0.3), {"steps": 2, "round_trips": (4, 2), "seed": 5, "num": 2, "digits": 2}
    _, _, blocks = stand_in_run(demo, monkeypatch, tmp_path, test_set, network, picture=True, **options)
    x_0, labels = test_set.batch(np.arange(10))
    assert labels.tolist() == list(range(10))
    (_, names, rows), (_, times, redrawn), (title, ways, trip), (_, empty, walk) = blocks
    assert names == ["x_0", "known", "1", "2", "3"] and all(np.array_equal(block[2][0], x_0) for block in blocks[:3])
    known = np.arange(12)[:, None, None] < 6
    assert np.array_equal(rows[1][:, :6], x_0[:, :6]) and (rows[1][:, 6:] == 0.25).all()
    for i, row in zip((1, 2, 3), rows[2:], strict=True):
        job = (x_0, (5 + i, 0))
        assert np.array_equal(row, demo.complete(SCHEDULE, known, 2, 10, None, network, job))
    assert times == ["x_0", "t = 20", "t = 40", "t = 60", "t = 80"]
    for t, row in zip((20, 40, 60, 80), redrawn[1:], strict=True):
        assert np.array_equal(row, demo.redraw(SCHEDULE, t, 4, network, (x_0, (5, 0))))
    assert title == "inversion: x_0 to noise and back, 4 steps"
    x_T, back = demo.round_trip(SCHEDULE, 4, network, (x_0, (5, 0))).swapaxes(0, 1)
    assert ways == ["x_0", "x_T", "decoded", "error x 10"]
    for row, expected in zip(trip[1:], (x_T / 2.5, back, 10 * np.abs(back - x_0) - 1), strict=True):
        assert np.array_equal(row, expected)
    assert empty == ["", "", "", ""] and len(walk) == 4
    shares = [i / 9 for i in range(10)]
    for row, expected in zip(walk, demo.blend(SCHEDULE, 4, shares, network, (x_0[[0, 2, 5, 8]], (5, 0)))):
        assert np.allclose(row, expected, atol=1e-5)  # shares of linspace
    figure = demo.figure_of(blocks)
    for axes, (title, names, rows) in zip(figure.axes, blocks, strict=True):
        assert axes.get_title("left") == title
        assert [text.get_text() for text in axes.get_yticklabels()] == names
        canvas = tile(np.concatenate(rows), 10)[..., 0]
        assert np.array_equal(axes.images[0].get_array(), canvas) and axes.images[0].get_clim() == (0, 255)
        assert axes.get_yticks() == pytest.approx([(i + 0.5) * len(canvas) / len(rows) for i in range(len(rows))])
    picture = imread(tmp_path / "edit.png")[..., :3]
    assert min(picture.shape[:2]) > 200 and 0.05 < picture.std() < 0.6


def test_a_redrawn_digit_starts_at_its_time(demo):
    """redraw is sdedit from t_start, bit for bit, by DDPM without a label and with a stream of its own."""
    network, x_0, pairs = Leaning(var=0.3), asarray(stamps([3, 5])), timestep_pairs(100, 10)
    for t in (20, 80):
        step, rng = partial(ddpm_step, SCHEDULE, clip=True), row_rng("edit", 4, rows=[1, 2])
        with no_grad():
            *_, (_, x, _) = sdedit(SCHEDULE, step, unconditional(network), pairs, x_0, t, rng)
        assert np.array_equal(demo.redraw(SCHEDULE, t, 10, network, (x_0, (4, 1))), to_numpy(x))


def test_an_edit_of_image_i_is_one_edit(demo):
    """Images 2 to 4 of 6, alone and in one slice with the others: by each edit that draws, with labels drawn too.

    Leaning's arithmetic is pixel by pixel, so the bits are the same.
    """
    network, known = Leaning(var=0.3), np.arange(12)[:, None, None] < 6
    x_0 = stamps([3, 5, 8, 0, 1, 1])
    for edit in (
        partial(demo.complete, SCHEDULE, known, 4, 2, None),
        partial(demo.complete, SCHEDULE, known, 4, 1, StampReader()),
        partial(demo.redraw, SCHEDULE, 60, 4),
    ):
        together = edit(network, (x_0, (7, 0)))
        np.testing.assert_array_equal(edit(network, (x_0[2:5], (7, 2))), together[2:5])
        assert abs(together[4] - together[5]).max() > 0.1  # two copies of one picture have noise of their own


def test_a_blend_is_decoded_from_between_two_x_T(demo):
    """slerp of each x_T and the next one's, the last with the first's, bit for bit."""
    network = Leaning(var=0.3)
    x_0 = stamps([3, 5, 8])
    x_T = asarray(demo.encode(SCHEDULE, 3, network, asarray(x_0)))
    found = demo.blend(SCHEDULE, 3, [0.25, 0.5], network, (x_0, (0, 0)))
    for k, u in enumerate((0.25, 0.5)):
        between = slerp(x_T, x_T[asarray(np.array([1, 2, 0]))], u)
        with no_grad():
            step, pairs = partial(ddim_step, SCHEDULE), timestep_pairs(100, 3)
            *_, (_, x, _) = sample(step, unconditional(network), pairs, between, default_rng(0))
        assert np.array_equal(found[:, k], to_numpy(x))


def test_each_slice_has_the_index_of_its_first_image(demo):
    """Twenty images each and the rest, in order, under the seed and the index."""
    jobs = []
    x_0 = np.arange(45.0)

    def f(model, job):
        jobs.append(job)
        return 2 * job[0]

    assert np.array_equal(demo.edit(pool_of(Leaning()), f, x_0, "name", 3), 2 * x_0)
    assert [(len(x), name) for x, name in jobs] == [(20, (3, 0)), (20, (3, 20)), (5, (3, 40))]


def test_the_smallest_run_with_real_files(demo, trained, tmp_path):
    """Checkpoints of a network and of both classifiers are opened, and each question has its line."""
    judges = {"classifier": trained / "classifier.npz", "noisy_classifier": trained / "noisy.npz"}
    demo.picture_blocks = lambda *_: []
    demo.save_blocks = lambda *_: None
    table = demo.main(trained / "checkpoint.npz", backend=backend_name(), out=tmp_path / "new", **judges, **SMALL)
    assert table["known pixels changed"] == f"0 of {7 * 14 * 28:,}"
    assert table["read as the original, all images"].split(",")[0].endswith("of 7")
    assert [name for name in table if "round trip" in name] == ["round trip, 1 step", "round trip, 2 steps"]


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
    network, job, half = (
        Leaning(var=0.3),
        (stamps([3, 5]), (0, 0)),
        known[8:20],
    )  # each step is taken once, whatever --resample is
    once, often = (demo.complete(SCHEDULE, half, 3, n, StampReader(), network, job) for n in (1, 7))
    assert np.array_equal(once, often)
    assert not np.array_equal(once, demo.complete(SCHEDULE, half, 3, 1, None, network, job))


def test_the_seed_decides_everything(demo):
    """Images have streams of their own: the same seed, the same image, and another one for another seed or index."""
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
