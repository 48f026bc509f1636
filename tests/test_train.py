"""Training: what a batch holds, what the loss means, and that a stopped run continues bit for bit."""

import math
import warnings
from dataclasses import asdict, replace
from functools import partial
from types import SimpleNamespace

import emulate
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinydiff import checkpoint, train
from tinydiff.autograd import Tensor
from tinydiff.backend import asarray, backend_name, default_rng, to_numpy
from tinydiff.checkpoint import CheckpointError
from tinydiff.data import Dataset, epoch_indices
from tinydiff.diffusion import Schedule, ScheduleWarning, min_snr_weight
from tinydiff.generate import build_unet
from tinydiff.optim import EMA, Adam, clip_grad_norm, learning_rate
from tinydiff.parallel import Workers
from tinydiff.train import TARGETS, TrainConfig, Training, TrainingError, draw_batch, noise_prediction_losses

pytestmark = pytest.mark.training

NETWORK = {"base_channels": 8, "channel_mults": [1, 2], "num_heads": 2, "num_groups": 4, "num_classes": 10}
CONFIG = TrainConfig(num_steps=6, minutes=None, batch_size=8, warmup=2, seed=5)


@pytest.fixture(scope="module")
def dataset():
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (50, 8, 8), dtype=np.uint8)
    return Dataset("noise", images, rng.integers(0, 10, 50).astype(np.uint8), "random pixels", tuple("0123456789"))


@pytest.fixture
def make(dataset):
    def make(config=CONFIG, network=NETWORK):
        return Training(Workers(partial(build_unet, network, config.seed)), Schedule.linear(100), config)

    return make


def buffers(state):
    return {name: to_numpy(a).copy() for name, a in state._buffers().items()}


def same_bits(a, b):
    return all((a[name].view(np.uint32) == b[name].view(np.uint32)).all() for name in a)


def test_batch_is_a_pure_function_of_seed_and_step(dataset):
    """The same seed and step give the same bits; another seed or step gives other noise, times and images."""
    schedule = Schedule.linear(100)
    draw = partial(draw_batch, dataset, schedule)
    first, again = draw(CONFIG, 10, 3), draw(CONFIG, 10, 3)
    assert all((to_numpy(first[k]) == to_numpy(again[k])).all() for k in first)
    for other in (draw(CONFIG, 10, 4), draw(replace(CONFIG, seed=6), 10, 3)):
        assert all((to_numpy(first[k]) != to_numpy(other[k])).any() for k in first)


@given(n=st.integers(1, 40), data=st.data())
def test_rows_of_a_batch_are_those_of_the_whole(dataset, n, data):
    """Whatever rows are asked for, they hold the bits of the whole batch; so do all times, and who has lost a label."""
    a = data.draw(st.integers(0, n))
    rows = slice(a, data.draw(st.integers(a, n)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "NOISE_BLOCK", 4)
        draw = partial(draw_batch, dataset, Schedule.linear(100), replace(CONFIG, batch_size=n, min_snr=5.0), 10, 3)
        whole, part = draw(), draw(rows)
    for name in ("x_t", "target", "labels"):
        assert part[name].shape == whole[name].shape and (part[name][rows] == whole[name][rows]).all(), name
    assert (part["t"] == whole["t"]).all() and (part["weight"] == whole["weight"]).all()


def test_each_block_of_a_batch_has_its_own_noise(dataset, monkeypatch):
    """Streams are named by seed, step and block: no row repeats another's noise, not even beside the same picture.

    A rank skips the blocks that are not its own; a batch of one block is drawn as it was before there were blocks.
    """
    config = replace(CONFIG, batch_size=2 * train.NOISE_BLOCK + 5)
    draw = partial(draw_batch, dataset, Schedule.linear(100), config, 10, 3)
    eps = draw()["target"].reshape(config.batch_size, -1)
    assert np.abs(np.corrcoef(eps) - np.eye(config.batch_size)).max() < 0.65  # 64 numbers each: 5 standard deviations
    made = []
    monkeypatch.setattr(train, "default_rng", lambda *name: made.append(name) or default_rng(*name))
    draw(slice(train.NOISE_BLOCK + 1, train.NOISE_BLOCK + 2))
    assert made == [("batch", 5, 3), ("batch", 5, 3, train.NOISE_BLOCK)]


def test_batch_obeys_the_closed_form(dataset):
    """x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps for an image x_0 of the data set and its own label."""
    schedule = Schedule.linear(100)
    batch = draw_batch(dataset, schedule, replace(CONFIG, label_drop=0.0), 10, 0)
    x_t, eps = to_numpy(batch["x_t"]).astype(np.float64), to_numpy(batch["target"])
    alpha_bar = schedule.alpha_bar[batch["t"]][:, None, None, None]
    x_0 = (x_t - np.sqrt(1 - alpha_bar) * eps) / np.sqrt(alpha_bar)
    data, _ = dataset.batch(np.arange(len(dataset)))
    for image, label, signal in zip(x_0, batch["labels"], np.sqrt(alpha_bar.ravel())):
        distance = np.abs(data - image).max((1, 2, 3))
        assert (
            distance.min() < 1e-6 / signal + 1e-6
        )  # x_t is float32, and dividing by the signal magnifies its rounding
        assert dataset.labels[distance.argmin()] == label
    assert batch["x_t"].dtype == batch["target"].dtype == np.float32 and "weight" not in batch


class Every:
    """A generator that gives, in turn, every integer it may give, and the uniform numbers it is made with."""

    def __init__(self, uniform):
        self.uniform, self.normal = np.asarray(uniform), default_rng(0)

    def integers(self, low, high, size):
        if low >= high:
            raise ValueError(f"low >= high: {low} >= {high}")
        return low + np.arange(size) % (high - low)  # low..high - 1, as NumPy's

    def random(self, size):
        assert self.uniform.shape == (size,)
        return self.uniform

    def standard_normal(self, shape, dtype):
        return self.normal.standard_normal(shape, dtype)


def draw_every(dataset, schedule, config, uniform=0.5):
    """A batch drawn with the generator Every in place of the step's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "default_rng", lambda *name: Every(np.broadcast_to(uniform, config.batch_size)))
        return draw_batch(dataset, schedule, config, 10, 0)


@given(T=st.integers(1, 60), rounds=st.integers(1, 3))
def test_t_may_be_any_of_1_to_T_and_nothing_else(dataset, T, rounds):
    """Exact: where the stream gives each integer asked for once, t is each of 1..T once (Ho et al. 2020, alg. 1)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ScheduleWarning)
        schedule = Schedule(np.full(T, 0.9))
    t = draw_every(dataset, schedule, replace(CONFIG, batch_size=rounds * T))["t"]
    np.testing.assert_array_equal(np.bincount(t, minlength=T + 1), [0] + [rounds] * T)


@given(label_drop=st.floats(0, 1), uniform=st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=8))
def test_a_label_is_dropped_where_its_number_is_below_the_rate(dataset, label_drop, uniform):
    """Exact: u uniform in [0, 1) drops its label iff u < label_drop, with probability label_drop; else it is its own.

    So rate 0 drops none, not even where u = 0, and rate 1 drops all (Ho & Salimans 2022, algorithm 1).
    """
    for u in (uniform, np.full(len(uniform), min(label_drop, 1 - 2**-53))):  # the second: on the edge
        config = replace(CONFIG, batch_size=len(u), label_drop=label_drop)
        labels = draw_every(dataset, Schedule.linear(100), config, u)["labels"]
        own = dataset.labels[epoch_indices(len(dataset), len(u), config.seed, 0)]
        assert labels.tolist() == [10 if x < label_drop else label for x, label in zip(u, own.tolist())]


def test_t_is_even_in_fact(dataset):
    """The real stream's t on 1..T: chi-square with a false-alarm rate of 1e-6."""
    T, n = 5, 4000
    t = draw_batch(dataset, Schedule.linear(100), replace(CONFIG, batch_size=1), None, 0)["t"]
    assert t.shape == (1,)
    config = replace(CONFIG, batch_size=n)
    schedule = Schedule(np.full(T, 0.9))
    t = draw_batch(dataset, schedule, config, None, 0)["t"]
    counts = np.bincount(t, minlength=T + 1)
    assert len(counts) == T + 1 and counts[0] == 0
    # 4 degrees of freedom: P(chi2 > x) = exp(-x/2) (1 + x/2) = 1e-6 at x = 33.4
    assert ((counts[1:] - n / T) ** 2 / (n / T)).sum() < 33.4


@pytest.mark.parametrize("label_drop", [0.0, 0.1, 1.0])
def test_labels_are_dropped_at_the_stated_rate(dataset, label_drop):
    """The real stream: a dropped label becomes num_classes, at rate label_drop within 5 sigma (false alarm 6e-7)."""
    n = 5000
    labels = draw_batch(dataset, Schedule.linear(100), replace(CONFIG, batch_size=n, label_drop=label_drop), 10, 0)[
        "labels"
    ]
    dropped = (labels == 10).sum()
    assert abs(dropped - n * label_drop) <= 5 * math.sqrt(n * label_drop * (1 - label_drop))
    assert labels.min() >= 0 and labels.max() <= 10


def test_network_without_classes_gets_no_labels(dataset):
    """num_classes None: the batch has no labels."""
    assert "labels" not in draw_batch(dataset, Schedule.linear(100), CONFIG, None, 0)


def test_loss_is_the_mean_square_over_pixels(dataset, rng):
    """losses[n] = mean over pixels of (eps_hat_n - eps_n)^2, one number an example (Ho et al. 2020, eq. 14)."""
    batch = draw_batch(dataset, Schedule.linear(100), CONFIG, 10, 0)
    answer = rng.standard_normal(batch["target"].shape).astype(np.float32)
    calls = []

    def forward(x_t, t, labels, rng):
        calls.append((x_t, t, labels))
        return Tensor(answer)

    losses = to_numpy(noise_prediction_losses(SimpleNamespace(forward=forward), batch, rng))
    expected = [np.mean((a.astype(np.float64) - e) ** 2) for a, e in zip(answer, to_numpy(batch["target"]))]
    np.testing.assert_allclose(losses, expected, rtol=1e-5)  # float32 sums of 64 numbers
    assert calls[0][0] is batch["x_t"] and calls[0][1] is batch["t"] and calls[0][2] is batch["labels"]


@pytest.mark.parametrize("name", TARGETS)
def test_a_batch_holds_its_target_and_its_weight(dataset, name):
    """Beside the same x_t, t and labels as for eps: the target of the same x_0 and eps, and min-SNR's weight of t."""
    schedule, drop = Schedule.linear(100), replace(CONFIG, label_drop=0.0)
    plain = draw_batch(dataset, schedule, drop, 10, 3)
    batch = draw_batch(dataset, schedule, replace(drop, target=name, min_snr=0.05), 10, 3)
    for key in ("x_t", "t", "labels"):
        np.testing.assert_array_equal(batch[key], plain[key])
    eps, t = plain["target"], batch["t"]
    x_0, _ = dataset.batch(epoch_indices(len(dataset), drop.batch_size, drop.seed, 3))
    assert batch["target"].dtype == batch["weight"].dtype == np.float32
    np.testing.assert_array_equal(batch["target"], to_numpy(TARGETS[name].of(schedule, x_0, t, eps)))
    np.testing.assert_array_equal(batch["weight"], min_snr_weight(TARGETS[name], schedule, t, 0.05).astype("float32"))
    assert len(set(batch["weight"].tolist())) > 1  # they do differ


def test_a_weight_multiplies_its_examples_loss(dataset, make):
    """With min_snr the losses are those without times the weights, and so is the gradient of each example."""
    state = make()
    state.advance(dataset)  # away from the start, where most gradients are 0
    batch = draw_batch(dataset, state.schedule, replace(CONFIG, target="v", min_snr=2.0), 10, 1)
    plain = {name: a for name, a in batch.items() if name != "weight"}
    losses, unweighted = (to_numpy(state.workers.gradients(noise_prediction_losses, b, (0,))) for b in (batch, plain))
    np.testing.assert_allclose(losses, batch["weight"] * unweighted, rtol=1e-6)  # one rounding each
    grads = []
    for example in (batch, plain):
        state.workers.gradients(noise_prediction_losses, {name: a[:1] for name, a in example.items()}, (0,))
        grads.append(to_numpy(state.workers.flat.grad).astype("float64"))
    scale = abs(grads[1]).max()
    np.testing.assert_allclose(grads[0], float(batch["weight"][0]) * grads[1], rtol=1e-4, atol=1e-5 * scale)  # float32


def test_the_gradient_is_the_mean_of_those_of_the_examples(dataset, make):
    """The loss of a step is the mean over the drawn (image, t, eps), and so is its gradient: none counts twice."""
    state = make()
    state.advance(dataset)  # away from the start, where most gradients are 0
    batch = draw_batch(dataset, state.schedule, CONFIG, 10, 1)
    losses = to_numpy(state.workers.gradients(noise_prediction_losses, batch, (0,)))
    grad, parts = to_numpy(state.workers.flat.grad).astype("float64"), []
    for i in range(CONFIG.batch_size):
        one = {name: a[i : i + 1] for name, a in batch.items()}
        alone = to_numpy(state.workers.gradients(noise_prediction_losses, one, (0,)))
        np.testing.assert_allclose(alone, losses[i : i + 1], rtol=1e-5)  # float32 sums in another order
        parts.append(to_numpy(state.workers.flat.grad).astype("float64"))
    assert np.linalg.norm(np.mean(parts, 0) - grad) < 1e-4 * np.linalg.norm(grad)
    assert min(np.linalg.norm(part - grad) for part in parts) > 0.1 * np.linalg.norm(grad)  # they do differ


@pytest.mark.parametrize("clip_norm", [0.01, 100.0])
def test_a_step_is_its_parts_in_order(dataset, make, clip_norm):
    """The step's batch, gradient of the mean loss, clipping, Adam at the step's rate, the average; bit for bit."""
    config = replace(CONFIG, clip_norm=clip_norm, weight_decay=0.1, ema_decay=0.2, peak_lr=0.01)
    state, model = make(config), build_unet(NETWORK, config.seed)
    adam, ema = Adam(model.parameters(), weight_decay=0.1), EMA(model.parameters(), 0.2)
    for step in range(4):
        batch = draw_batch(dataset, state.schedule, config, 10, step)
        adam.zero_grad()
        losses = noise_prediction_losses(model, batch, None)
        losses.backward(asarray(np.full(8, 1 / 8), "float32"))
        norm = clip_grad_norm(adam.flat, clip_norm)
        rate = learning_rate(step, config.num_steps, peak=0.01, warmup=config.warmup)
        adam.step(rate)
        ema.update()
        state.advance(dataset)
        expected = {"weights": adam.flat.data, "ema": ema.data, "adam_m": adam.m, "adam_v": adam.v}
        assert same_bits(buffers(state), {name: to_numpy(a) for name, a in expected.items()})
        assert state.metrics[-1][:3] == (float(to_numpy(losses).mean()), norm, rate)
        assert (norm > clip_norm) == (clip_norm == 0.01)
        assert state.step == len(state.metrics) == step + 1


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(dataset, make, tmp_path):
    """6 steps = 3 steps, a checkpoint, a fresh state, 3 steps: weights, moments, average, metrics, file bytes."""
    whole = make()
    for _ in train.train(whole, dataset):
        pass
    first = make()
    for state in train.train(first, dataset):
        if state.step == 3:
            break
    first.save(tmp_path / "half.npz", dataset)
    second = make(replace(CONFIG, num_steps=999))  # overwritten by what the checkpoint says
    second.restore(tmp_path / "half.npz", *checkpoint.load(tmp_path / "half.npz"))
    assert second.step == 3 and len(second.metrics) == 3
    assert same_bits(buffers(first), buffers(second))
    second.config = CONFIG
    steps = [state.step for state in train.train(second, dataset)]
    assert steps == [4, 5, 6] and whole.step == 6
    assert same_bits(buffers(whole), buffers(second))
    assert not same_bits(buffers(first), buffers(second))
    np.testing.assert_array_equal(second.metrics, whole.metrics)
    whole.save(tmp_path / "whole.npz", dataset)
    second.save(tmp_path / "second.npz", dataset)
    assert (tmp_path / "whole.npz").read_bytes() == (tmp_path / "second.npz").read_bytes()


def test_another_draw_and_further_settings_take_the_place_of_the_usual(dataset, make, tmp_path):
    """A run draws its batches by `draw` with draw_batch's arguments, and keeps the settings that save is given."""
    asked = []

    def draw(*arguments):
        asked.append(arguments)
        return {**draw_batch(*arguments), "t": np.full(CONFIG.batch_size, 7)}

    usual, other = make(), make()
    other.draw = draw
    usual.advance(dataset)
    other.advance(dataset)
    step = usual.workers.model.config["num_classes"], 0
    assert asked[0] == (dataset, other.schedule, CONFIG, *step)  # on a GPU the next one is asked for ahead
    assert usual.metrics != other.metrics
    other.save(tmp_path / "other.npz", dataset, kind="other", held_out=[1])
    _, meta = checkpoint.load(tmp_path / "other.npz")
    assert (meta["kind"], meta["held_out"], meta["step"]) == ("other", [1], 1)


def test_not_a_number_stops_before_the_update(dataset, make):
    """A nan in the loss raises TrainingError naming the step, and nothing of the state has changed."""
    state = make()
    state.advance(dataset)
    state.workers.model.conv_out.b.data[...] = math.nan
    before = buffers(state)
    with pytest.raises(TrainingError, match="step 2: loss is nan"):
        state.advance(dataset)
        state.settle()
    assert same_bits(before, buffers(state)) and len(state.rows) == 1


def test_an_infinite_gradient_of_a_finite_loss_stops_too(dataset, make):
    """Where only the gradient overflows nothing is updated either: TrainingError names both numbers."""
    state = make()
    state.workers.model.norm_out.gamma.data[...] = 1e30  # conv_out starts at zero: the answer is 0, its gradient 1e30
    before = buffers(state)
    with pytest.raises(TrainingError, match=r"step 1: loss is [01]\.\d+, gradient norm inf"):
        state.advance(dataset)
        state.settle()
    assert same_bits(before, buffers(state)) and not state.rows


# What differs on a GPU: rows come later, and batches are drawn ahead.


@pytest.fixture
def gpu():
    """The GPU's way of everything, its kernels run on the host."""
    if emulate.COMPILER is None:
        pytest.skip(emulate.REASON)
    with pytest.MonkeyPatch.context() as patch:
        if backend_name() == "numpy":
            emulate.install(patch)
        yield patch


def run(state, dataset, steps):
    for _ in range(steps):
        state.advance(dataset)
    return state


@pytest.mark.parametrize("period", [1, 2, 5])
def test_when_rows_are_made_changes_nothing(dataset, make, gpu, period):
    """Rows made every step or every few are the same rows in the same order, and so are the weights."""
    whole = run(make(), dataset, 6)
    gpu.setattr(train, "PERIOD", period)
    state, counts = make(), []
    for _ in range(6):
        state.advance(dataset)
        counts.append(len(state.rows))
    assert counts == [k // period * period for k in range(1, 7)]
    assert len(state.metrics) == 6 and state.metrics == whole.metrics  # nan, of an empty quarter, is not equal
    assert same_bits(buffers(whole), buffers(state))


def test_the_state_that_train_yields_last_has_every_row(dataset, make, gpu):
    """Rows are complete at the end of a run, and in what is saved on the way."""
    seen = [(state.step, len(state.rows)) for state in train.train(make(), dataset)]
    assert seen == [(1, 0), (2, 0), (3, 0), (4, 0), (5, 0), (6, 6)]


def test_what_follows_a_bad_step_is_never_saved(dataset, make, gpu, tmp_path):
    """A step of nan among good ones updates nothing; the first bad step is named, again and again, and no file made."""
    state = run(make(), dataset, 2)
    before = buffers(state)
    gpu.setattr(train, "noise_prediction_losses", lambda *args: noise_prediction_losses(*args) * math.nan)
    run(state, dataset, 1)
    assert same_bits(before, buffers(state))
    gpu.setattr(train, "noise_prediction_losses", noise_prediction_losses)
    run(state, dataset, 2)
    assert not same_bits(before, buffers(state)) and all(np.isfinite(a).all() for a in buffers(state).values())
    for read in (lambda: state.save(tmp_path / "a.npz", dataset), state.settle, lambda: state.metrics):
        with pytest.raises(TrainingError, match=r"step 3: loss is nan, gradient norm nan; .* the last checkpoint is"):
            read()
        assert len(state.rows) == 2
    assert list(tmp_path.iterdir()) == []


def test_an_infinite_loss_of_a_finite_gradient_is_never_saved(dataset, make, gpu, tmp_path):
    """The device lets such a step pass, but the host sees it before it writes."""
    gpu.setattr(train, "noise_prediction_losses", lambda *args: noise_prediction_losses(*args) + math.inf)
    state = run(make(), dataset, 1)
    with pytest.raises(TrainingError, match=r"step 1: loss is inf, gradient norm \d"):
        state.save(tmp_path / "a.npz", dataset)
    assert list(tmp_path.iterdir()) == []


def test_a_restored_state_forgets_the_steps_that_had_no_row_yet(dataset, make, gpu, tmp_path):
    """Rows are those of the checkpoint, also where the state went on after it."""
    state = run(make(), dataset, 2)
    state.save(tmp_path / "a.npz", dataset)
    run(state, dataset, 3).restore(tmp_path / "a.npz", *checkpoint.load(tmp_path / "a.npz"))
    assert state.step == len(state.metrics) == 2
    whole = run(make(), dataset, 3)
    assert same_bits(buffers(run(state, dataset, 1)), buffers(whole)) and len(state.metrics) == 3


def test_the_speed_is_that_of_finished_steps(dataset, make, gpu):
    """Where the minutes decide, the host waits for the steps of the warm-up before it looks at the clock again."""
    state = run(make(replace(CONFIG, minutes=1.0, warmup=3)), dataset, 2)
    looked = []
    gpu.setattr(train.time, "monotonic", lambda: looked.append(len(state.rows)) or 1e9)
    run(state, dataset, 1)
    assert looked == [3]


def test_batches_drawn_ahead_are_those_of_their_steps(dataset, make, gpu):
    """Bit for bit draw_batch's, also when step, settings or data change between two steps; each is drawn once."""
    drawn = []

    def draw(*args):
        drawn.append(args[-1])
        return draw_batch(*args)

    state, other = make(), replace(dataset, images=255 - dataset.images)
    state.draw = draw
    for step, config, data in [
        *((k, CONFIG, dataset) for k in (0, 1, 2, 7, 8)),
        *((k, replace(CONFIG, seed=6), dataset) for k in (9, 10)),
        *((k, replace(CONFIG, seed=6), other) for k in (11, 12, 3)),
    ]:
        state.step, state.config = step, config
        batch, expected = state._batch(data), draw_batch(data, state.schedule, config, 10, step)
        assert batch.keys() == expected.keys()
        assert all((to_numpy(batch[name]) == expected[name]).all() for name in batch)
    state._thread.shutdown()
    assert drawn == [0, 1, 2, 3, 7, 8, 9, 9, 10, 11, 11, 12, 13, 3, 4]  # drawn in vain: what a change came between


def test_what_drawing_ahead_raises_comes_out_in_its_own_step(dataset, make, gpu):
    """An error in the thread is raised by the step that needed the batch, the state as it was; the run can go on."""
    whole, state = run(make(), dataset, 3), make()

    def fail(*args):
        if args[-1] == 2:
            raise ZeroDivisionError("planted")
        return draw_batch(*args)

    state.draw = fail
    run(state, dataset, 2)
    with pytest.raises(ZeroDivisionError, match="planted"):
        state.advance(dataset)
    assert state.step == 2 == len(state.metrics)
    state.draw = draw_batch
    state.advance(dataset)
    assert same_bits(buffers(whole), buffers(state))


@pytest.mark.skipif(backend_name() != "numpy", reason="on a GPU batches are drawn ahead")
def test_without_a_gpu_nothing_is_drawn_ahead(dataset, make):
    """The cores are the workers': no thread is started."""
    assert not run(make(), dataset, 2)._thread._threads


def test_checkpoint_of_another_network_is_refused(dataset, make, tmp_path):
    """restore names the first parameter that does not fit, with both shapes."""
    make().save(tmp_path / "a.npz", dataset)
    other = make(network={**NETWORK, "base_channels": 16})
    with pytest.raises(CheckpointError, match=r"a\.npz: weights/time1\.w is of shape \(8, 128\), .* \(16, 128\)"):
        other.restore(tmp_path / "a.npz", *checkpoint.load(tmp_path / "a.npz"))


def test_minutes_lower_the_number_of_steps(dataset, make, monkeypatch):
    """At the end of the warm-up the steps that fit are minutes * 60 / (seconds a step); more than asked for never."""
    for seconds, expected in ((0.5, 24), (1e-6, 40)):
        clock = iter([0, 2 * seconds])  # read before step 1 and after step 2
        monkeypatch.setattr(train.time, "monotonic", lambda clock=clock: float(next(clock)))
        state = make(replace(CONFIG, num_steps=40, minutes=0.2))
        for _ in range(3):
            state.advance(dataset)
        assert state.num_steps == expected


@pytest.mark.parametrize("warmup", [0, 1, 3])
def test_minutes_count_once_at_the_end_of_the_warm_up(dataset, make, monkeypatch, warmup):
    """num_steps stands until step max(1, warmup) is done, changes there, and then stands; one step more always fits."""
    monkeypatch.setattr(train.time, "monotonic", iter(range(100)).__next__)  # 1 second from the start to the first look
    state, first = make(replace(CONFIG, num_steps=40, minutes=0.0, warmup=warmup)), max(1, warmup)
    seen = []
    for _ in train.train(state, dataset):
        seen.append(state.num_steps)
    assert seen == [40] * (first - 1) + [first + 1] * 2


def test_a_resumed_run_counts_its_own_steps_only(dataset, make, monkeypatch):
    """Speed is that of the steps of this process: the ones before a restart took none of its time."""
    clock = iter([100.0, 102.0])  # 2 seconds for steps 2 and 3
    monkeypatch.setattr(train.time, "monotonic", lambda: next(clock))
    state = make(replace(CONFIG, num_steps=400, minutes=2.0, warmup=3))
    state.step = 1
    state.advance(dataset)
    state.advance(dataset)
    assert state.num_steps == 120  # two minutes at a second a step


def test_a_checkpoint_says_what_it_was_trained_on(dataset, make, tmp_path):
    """Its description holds the run's and the data's own words and numbers; the shape is that of one x_0."""
    wide = replace(dataset, images=dataset.images[:, :4])
    state = make()
    state.save(tmp_path / "a.npz", wide)
    _, meta = checkpoint.load(tmp_path / "a.npz")
    x_0, _ = wide.batch(np.array([0]))
    assert meta["data"] == {"name": "noise", "source": "random pixels", "num": 50, "image_shape": [*x_0.shape[1:]]}
    assert meta["train"] == asdict(CONFIG) and meta["model"] == state.workers.model.config
    assert (meta["kind"], meta["step"], meta["num_steps"], meta["num_workers"]) == ("diffusion", 0, 6, 1)


def test_bucket_means_against_a_loop(rng):
    """Each example counts in the quarter of 1..T that its t lies in; an empty quarter is nan."""
    T = 10
    t = np.array([1, 2, 3, 5, 6, 10, 10])
    losses = rng.random(7)
    sums = [[] for _ in range(4)]
    for loss, k in zip(losses, t):
        sums[math.floor((k - 1) / (T / 4))].append(loss)
    means = train._bucket_means(losses, t, T)
    np.testing.assert_allclose(means, [np.mean(s) if s else math.nan for s in sums])
    assert math.isnan(train._bucket_means(losses[:1], t[:1], T)[3])


def test_the_steps_that_fit_are_counted_by_gradients_and_at_least_one(monkeypatch, make):
    """Minutes over the seconds of a gradient, the first three of ten not counted: by a clock of the test's own."""
    pool, now, drawn = make().workers, [0.0], []

    def draw(n, step):
        drawn.append((n, step))
        now[0] += 100 if step < 3 else 2
        return {"x": np.zeros((n, 1), np.float32)}

    monkeypatch.setattr(train.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(pool, "gradients", lambda losses_of, batch, seed: None)
    assert train.steps_that_fit(pool, None, draw, 4, 3.0) == 90
    assert drawn == [(4, step) for step in range(10)]
    assert train.steps_that_fit(pool, None, draw, 4, 0.01) == 1
