"""The demo of number formats: what a run is, what its figures mean, what the table and the picture show."""

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.figure import Figure

from tinydiff.app.alone import OneProcess
from tinydiff.autograd import Tensor
from tinydiff.backend import backend_name, default_rng, standard_normal
from tinydiff.data import load
from tinydiff.diffusion import Schedule, classifier_free, ddim_step, sample, timestep_pairs
from tinydiff.nn import UNet
from tinydiff.train import TrainConfig, Training, draw_batch, gradients_of, noise_prediction_losses, train

pytestmark = [
    pytest.mark.program,
    pytest.mark.skipif(backend_name() != "numpy", reason="the demo rounds on the host"),
]

CONFIG = TrainConfig(num_steps=3, minutes=None, batch_size=4, warmup=1)


@pytest.fixture
def runs(module, monkeypatch):
    """The module, whose digits take three reverse steps."""
    runs = module("precision_runs")
    monkeypatch.setattr(runs, "SAMPLE_STEPS", 3)
    return runs


@pytest.fixture
def task(runs):
    return runs.Task(CONFIG, Schedule.linear(100), num_images=20)


def by_hand(task, loss_scale=1.0, rounded=lambda a: a):
    """Algorithm 1 with this loss scale and these weights: the state after the last step."""
    model = task.network()

    def gradients(losses_of, batch):
        for p in model.parameters():
            p.grad = None
        losses = losses_of(model, batch)
        losses.backward(np.full(len(losses.data), loss_scale / len(losses.data), np.float32))
        for p in model.parameters():
            p.grad = p.grad / np.float32(loss_scale)
        return losses.data

    state = Training(model, task.config, task.draw, gradients=gradients)
    for p in state.parameters:
        p.data[...] = rounded(p.data)
    for _ in train(state):
        for p in state.parameters:
            p.data[...] = rounded(p.data)
    return state


def test_a_run_without_rounding_is_algorithm_1(runs, task):
    """Losses and weights as by hand, bit for bit: products, steps and batches are those of the book."""
    result, state = runs.trained(task, None, runs.Run("float32", runs.float32)), by_hand(task)
    np.testing.assert_allclose(result.losses, [row[0] for row in state.rows], rtol=1e-5)  # sums in another order
    for a, p in zip(result.weights, state.parameters):
        np.testing.assert_allclose(a, p.data, atol=1e-4)  # three steps of Adam of at most 3e-3
    assert result.losses.shape == result.moved.shape == (3,)
    again = runs.trained(task, None, runs.Run("float32", runs.float32))
    assert all(map(np.array_equal, again.weights, result.weights)) and np.array_equal(again.digits, result.digits)


def test_a_power_of_two_in_front_of_the_loss_changes_no_bit_of_float32(runs, task):
    """Only exponents change; with 3, or without the division, the numbers differ."""
    one, scaled, three = (runs.trained(task, None, runs.Run("", runs.float32, k)) for k in (1.0, 2.0**12, 3.0))
    for a, b in zip(one.weights, scaled.weights):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(one.losses, scaled.losses)
    assert any((a != b).any() for a, b in zip(one.weights, three.weights))


def test_the_gradients_of_a_scaled_loss_are_those_of_the_loss(runs, task):
    """Bit for bit for a power of two.  Adam would hide a factor: an update has the same size with any."""
    model, batch = task.network(), task.draw(task.config, 0)
    losses = gradients_of(model, noise_prediction_losses, batch)
    gradients = [p.grad.copy() for p in model.parameters()]
    np.testing.assert_array_equal(runs.scaled_gradients(model, 2.0**12, noise_prediction_losses, batch), losses)
    for p, g in zip(model.parameters(), gradients):
        np.testing.assert_array_equal(p.grad, g)


def test_rounded_weights_are_rounded_after_every_step(runs, task):
    """All weights are numbers of bf16, and nothing else is changed: not the average of the weights, not the moments."""
    result = runs.trained(task, None, runs.Run("", runs.float32, weights=runs.bf16))
    state = by_hand(task, rounded=runs.bf16)
    for a, p in zip(result.weights, state.parameters):
        np.testing.assert_array_equal(a, runs.bf16(a))
        np.testing.assert_allclose(a, p.data, rtol=0.02, atol=1e-4)  # a step of bf16 is 2^-8 of a number


def test_an_update_under_half_a_step_of_bf16_moves_no_weight(runs):
    """The reason for float32 weights, exactly: w + u = w for 0 <= u <= w 2^-8 where w is a power of two.  The sum of a
    thousand such updates is lost, and float32 keeps it."""
    w, u = np.float32([0.5]), np.float32([0.5 * 2.0**-8])
    half, full = w.copy(), w.copy()
    for _ in range(1000):
        half, full = runs.bf16(half + u), full + u
    assert half == w and abs(full - (w + 1000 * u)) < 1e-3
    assert runs.bf16(w + np.float32(1.01) * u) == np.float32(0.5 + 2.0**-8)


def test_the_share_that_moved_counts_numbers(runs):
    """One of four, and three of six in all; an equal array has moved nowhere."""
    before = [np.float32([1, 2, 3, 4]), np.float32([5, 6])]
    now = [Tensor(np.float32([1, 2, 3, 5])), Tensor(np.float32([4, 7]))]
    assert runs.share_moved(before, now) == 0.5
    assert runs.share_moved(before, [Tensor(a) for a in before]) == 0


def test_digits_are_drawn_with_the_average_and_the_rounding_of_the_run(runs, task):
    """One of each class in order, from the noise of the seed, guidance 2: drawn again by hand, bit for bit."""
    run = runs.Run("", runs.tf32)
    result, model = runs.trained(task, None, run), task.network()
    products, rounder = runs.rounded_products, runs.Rounder(run.factors)
    gradients = partial(runs.scaled_gradients, model, 1.0)
    with products(rounder):
        state = Training(model, task.config, task.draw, gradients=gradients)
        for _ in train(state):
            pass
        for p, average in zip(state.parameters, state.ema.average):
            p.data = average.copy()
        x_T = standard_normal(default_rng("start", 0), (10, 14, 14, 1))
        step = partial(ddim_step, task.schedule, clip=True)
        eps_fn, pairs = classifier_free(model, list(range(10)), 2.0), timestep_pairs(100, 3)
        *_, (_, x_0, _) = sample(step, eps_fn, pairs, x_T, default_rng("way", 0))
    np.testing.assert_array_equal(result.digits, np.clip(x_0.data if isinstance(x_0, Tensor) else x_0, -1, 1))
    assert any((a != b).any() for a, b in zip(result.weights, state.ema.average))  # the last weights are others


def test_the_error_of_a_gradient_is_that_of_the_next_batch(runs, task):
    """Against float64 at the given weights: about 1e-6 in float32, 2^-11 to 2^-8 with rounded factors, and inf where
    fp16 overflows."""
    weights = by_hand(task, 1.0)
    weights = [p.data for p in weights.parameters]
    errors = {run.name: runs.gradient_error(task, weights, None, run) for run in runs.RUNS}
    assert errors["float32"].error < 1e-5 < errors["TF32"].error < errors["bf16"].error < 0.1
    assert errors["bf16"] == errors["bf16, weights too"]
    assert errors["float32"].lost == errors["float32"].overflowed == 0
    huge = runs.gradient_error(task, weights, None, runs.Run("", runs.fp16, 2.0**40))
    tiny = runs.gradient_error(task, weights, None, runs.Run("", runs.fp16, 2.0**-40))
    assert huge.error == np.inf and huge.overflowed > 0 and huge.lost == 0
    assert tiny.error == 1 and tiny.lost == 1 and tiny.overflowed == 0  # every gradient has become 0


def test_the_batch_of_the_error_is_no_batch_of_training(runs, task, monkeypatch):
    """gradient_error draws the batch after the last step, for the run's loss in float32 and the loss in float64."""
    drawn, computed, gradient_at = [], [], runs.gradient_at

    def noting(task, weights, scale, batch, dtype):
        computed.append((scale, dtype))
        return gradient_at(task, weights, scale, batch, dtype)

    class Watched(runs.Task):
        @property
        def draw(self):
            return lambda config, step: drawn.append(step) or task.draw(config, step)

    watched = Watched(task.config, task.schedule, task.num_images)
    monkeypatch.setattr(runs, "gradient_at", noting)
    runs.gradient_error(watched, [p.data for p in task.network().parameters()], None, runs.RUNS[4])
    assert drawn == [3] and computed == [(4096.0, "float32"), (1.0, "float64")]
    batch = task.draw(task.config, 3)
    g = runs.gradient_at(task, [p.data for p in task.network().parameters()], 1.0, batch, "float64")
    assert g.dtype == np.float64 and g.shape == (task.network().num_parameters(),)
    model = task.network()
    noise_prediction_losses(model, batch).backward(np.full(4, 0.25, np.float32))
    np.testing.assert_allclose(g, np.concatenate([p.grad.ravel() for p in model.parameters()]), atol=1e-5)


def test_the_distance_of_two_gradients(runs):
    """|computed - exact| / |exact|: 5 of 10; infinite for a nan or an infinity; 0 for itself."""
    exact = np.array([6.0, 8.0])
    assert runs.relative_error(np.array([9.0, 12.0]), exact) == 0.5 and runs.relative_error(exact, exact) == 0
    assert (
        runs.relative_error(np.array([np.nan, 0]), exact) == runs.relative_error(np.array([np.inf, 0]), exact) == np.inf
    )


def test_small_digits_are_means_of_2_by_2(runs):
    """14x14, each pixel the mean of four of the data set, with the same labels."""
    small, digits = runs.small_digits(20, 3), load("glyphs", num=20, seed=3)
    fours = [digits.images[:, i::2, j::2].astype(float) for i in (0, 1) for j in (0, 1)]
    assert small.images.shape == (20, 14, 14, 1) and np.abs(small.images - sum(fours) / 4).max() < 1
    np.testing.assert_array_equal(small.labels, digits.labels)


def test_the_seed_is_of_weights_digits_and_batches(runs, task):
    """The network of `default_rng("weights", seed)`, the digits of that seed, and their batches."""
    other = replace(task, config=replace(task.config, seed=5))
    unet = UNet(base_channels=16, channel_mults=(1, 2), num_classes=10, rng=default_rng("weights", 5))
    for p, q in zip(other.network().parameters(), unet.parameters(), strict=True):
        np.testing.assert_array_equal(p.data, q.data)
    assert any((p.data != q.data).any() for p, q in zip(task.network().parameters(), other.network().parameters()))
    batch = other.draw(other.config, 2)
    for name, a in draw_batch(runs.small_digits(20, 5), task.schedule, 10, other.config, 2).items():
        np.testing.assert_array_equal(batch[name], a)


def results(runs, num):
    """Runs of `num` steps: run k has the loss k + 1 + step/1000 and moves a share of k/10 of its weights."""
    steps = np.arange(num)
    return [
        runs.Result(k + 1 + steps / 1000, np.full(num, k / 10), [], np.full((10, 14, 14, 1), k / 5 - 0.5))
        for k in range(len(runs.RUNS))
    ]


def errors_of(runs, num):
    """Errors 1e-6, 2e-6, ..., the last infinite."""
    return [runs.GradientError(np.inf if k == num - 1 else (k + 1) * 1e-6, k / 100, 0.0) for k in range(num)]


def test_the_rows_of_the_table(load_demo, runs):
    """The mean of the last 50 of 60 losses, the error, the lost share and the last step's share, run by run."""
    rows = load_demo("precision/precision").table(results(runs, 60), errors_of(runs, 6))
    assert [row["run"] for row in rows] == [run.name for run in runs.RUNS]
    assert [row["loss, last 50 steps"] for row in rows] == [f"{k + 1 + 0.0345:.4f}" for k in range(6)]
    assert [row["gradient's error"] for row in rows] == [f"{k}.0e-06" for k in range(1, 6)] + ["overflow"]
    assert [row["gradients turned to 0"] for row in rows] == [f"{k}.00%" for k in range(6)]
    assert [row["weights moved by the last step"] for row in rows] == [f"{10 * k}.0%" for k in range(6)]


def test_the_mean_of_the_last_steps_at_each_step(load_demo):
    """Of 1, 2, 3, ... 60: the mean of all until the 50th, then of the 50 that end here."""
    means = load_demo("precision/precision").running_mean(np.arange(1.0, 61))
    np.testing.assert_allclose(means, [(1 + n) / 2 if n <= 50 else n - 24.5 for n in range(1, 61)])


def test_what_the_picture_shows(load_demo, runs):
    """Left: % above the first run.  Middle: % of the weights.  Right: fp16 over the scale, with the levels of TF32
    and bf16; an overflow has no point."""
    errors, scaled = errors_of(runs, 6), errors_of(runs, len(runs.SCALES))
    page = load_demo("precision/precision").figure(results(runs, 60), errors, scaled)
    left, middle, right = page.axes
    names = [run.name for run in runs.RUNS]
    for axes in (left, middle):
        assert [line.get_label() for line in axes.lines] == names and axes.get_xlabel() == "step"
    assert len({line.get_color() for line in left.lines}) == 6
    for k, (line, share) in enumerate(zip(left.lines, middle.lines)):
        np.testing.assert_array_equal(line.get_xdata(), np.arange(1, 61))
        assert line.get_ydata()[0] == pytest.approx(100 * k) and line.get_color() == share.get_color()
        np.testing.assert_allclose(share.get_ydata(), 10 * k)
    fp16, *levels = right.lines
    np.testing.assert_array_equal(fp16.get_xdata(), runs.SCALES)
    np.testing.assert_array_equal(fp16.get_ydata(), [e.error for e in scaled[:-1]] + [np.nan])
    assert [(line.get_label(), line.get_ydata()[0]) for line in levels] == [
        ("TF32, loss x 1", errors[1].error),
        ("bf16, loss x 1", errors[2].error),
    ]
    assert right.get_xscale() == right.get_yscale() == "log"
    page.canvas.draw()
    for axes in page.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            assert (
                sum(bool(t.get_text()) for t, x in zip(axis.get_ticklabels(), axis.get_ticklocs()) if low <= x <= high)
                > 1
            )


def test_every_run_has_its_own_figures_in_table_and_pictures(load_demo, tmp_path, monkeypatch):
    """All gradients are taken at the weights of float32.  The table has the six of the runs, the picture also those of
    fp16 with each scale; a row of digits is its run's.  A batch has 32 images, and no run waits for a worker."""
    demo, asked, figures, grids, workers = load_demo("precision/precision"), [], [], [], []
    result, error = (demo.trained.__globals__[name] for name in ("Result", "GradientError"))

    def trained(task, _, run):
        k = demo.RUNS.index(run)
        return result(np.full(60, k + 1.0), np.array([0.9, k / 10]), [run.name], np.full((10, 4, 4, 1), k / 10))

    def gradient_error(task, weights, _, run):
        asked.append((weights, run.name, task.config.batch_size))
        return error(len(asked) * 1e-6, 0.0, 0.0)

    def figure(*arguments):
        figures.append(arguments)
        return Figure()

    for f in (trained, gradient_error, figure):
        monkeypatch.setattr(demo, f.__name__, f)
    monkeypatch.setattr(demo.plots, "save_grid", lambda *arguments, **options: grids.append((arguments, options)))
    ranks = SimpleNamespace(workers=lambda build, n: workers.append(n) or OneProcess(build))
    ranks.default_workers = lambda most=64: most
    monkeypatch.setattr(demo.cli, "start", lambda *_: ranks)
    rows = demo.main(steps=1, out=tmp_path / "new")
    assert workers == [6]
    names = [run.name for run in demo.RUNS]
    assert asked == [(["float32"], name, 32) for name in (*names, *(f"fp16, loss x {s:g}" for s in demo.SCALES))]
    assert [(row["run"], row["gradient's error"]) for row in rows] == [
        (n, f"{k}.0e-06") for k, n in enumerate(names, 1)
    ]
    ((results, errors, scaled),) = figures
    assert [each.losses[0] for each in results] == [1, 2, 3, 4, 5, 6]
    assert [e.error for e in errors + scaled] == [k * 1e-6 for k in range(1, 19)] and len(errors) == 6
    ((path, digits), options), title = grids[0], "1 training step, and the same noise at the start of each column"
    assert path == tmp_path / "new" / "samples.png" and digits.shape == (60, 4, 4, 1)
    assert digits[::10, 0, 0, 0].tolist() == [k / 10 for k in range(6)]
    assert options == {"columns": 10, "title": title, "row_labels": names}


def test_main_in_its_smallest_form(load_demo, runs, tmp_path, capsys):
    """Two steps: the rows it returns are printed and written, beside two pictures."""
    demo = load_demo("precision/precision")
    small = replace(runs.Task(CONFIG), num_images=40)
    demo.Task = lambda config: replace(small, config=replace(config, batch_size=2))
    demo.SCALES = (1.0,)
    rows = demo.main(steps=2, out=tmp_path / "new", workers=1)
    printed = capsys.readouterr().out
    assert [row["run"] for row in rows] == [run.name for run in runs.RUNS]
    assert all(row["loss, last 50 steps"] in printed and row["run"] in printed for row in rows)
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["precision.png", "samples.png", "table.csv"]
    assert (tmp_path / "new" / "table.csv").read_text().splitlines()[0].startswith("run,")


def test_the_six_runs(runs):
    """What each name rounds: factors, weights, and the scale of the loss."""
    found = [(run.name, run.factors, run.loss_scale, run.weights) for run in runs.RUNS]
    exact, tf32, bf16, fp16 = runs.float32, runs.tf32, runs.bf16, runs.fp16
    assert [f.__name__ for f in (exact, tf32, bf16, fp16)] == ["float32", "tf32", "bf16", "fp16"]
    assert found == [
        ("float32", exact, 1, exact),
        ("TF32", tf32, 1, exact),
        ("bf16", bf16, 1, exact),
        ("fp16", fp16, 1, exact),
        ("fp16, loss x 4,096", fp16, 4096, exact),
        ("bf16, weights too", bf16, 1, bf16),
    ]
