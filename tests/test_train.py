"""Training: what a batch holds, what the loss means, and that the loop is its parts in order."""

import copy
import math
import warnings
from dataclasses import asdict, replace
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from plain import fast, plain
from small_run import CONFIG, DATASET, NETWORK, SCHEDULE, arrays_of, same_bits, small_run

from tinydiff import ops
from tinydiff import train as loop
from tinydiff.app.generate import build_unet
from tinydiff.autograd import Tensor
from tinydiff.backend import asarray, default_rng, to_numpy
from tinydiff.data import epoch_indices
from tinydiff.diffusion import Schedule, ScheduleWarning, min_snr_weight
from tinydiff.diffusion.targets import TARGETS
from tinydiff.fast.optim import Flat
from tinydiff.muon import OPTIMIZERS
from tinydiff.nn import Linear
from tinydiff.optim import EMA, clip_grad_norm, learning_rate
from tinydiff.train import (
    METRICS,
    LoopConfig,
    TrainConfig,
    Training,
    TrainingError,
    draw_batch,
    gradients_of,
    metrics_row,
    noise_prediction_losses,
    train,
)

pytestmark = pytest.mark.training


# A batch.


def draw(config, step=0, num_classes=10, schedule=SCHEDULE):
    return draw_batch(DATASET, schedule, num_classes, config, step)


def test_batch_is_a_pure_function_of_seed_and_step():
    """The same seed and step give the same bits; another seed or step gives other noise, times and images."""
    first, again = draw(CONFIG, 3), draw(CONFIG, 3)
    assert all((to_numpy(first[k]) == to_numpy(again[k])).all() for k in first)
    for other in (draw(CONFIG, 4), draw(replace(CONFIG, seed=6), 3)):
        assert all((to_numpy(first[k]) != to_numpy(other[k])).any() for k in first)


@pytest.mark.parametrize("name", ["x_t", "target", "t", "labels"])
def test_every_step_draws_anew(name):
    """Of steps that follow each other, and of seeds that do, no two have the same images, noise, times or labels."""
    settings = [replace(CONFIG, batch_size=64, seed=seed) for seed in range(3)]
    drawn = [to_numpy(draw(config, step)[name]).tobytes() for config in settings for step in range(6)]
    assert len(set(drawn)) == 18


def test_a_batch_opens_its_stream_once():
    """Times, noise and dropped labels follow each other in one stream, the step's own: none is drawn from the start."""
    opened = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "default_rng", lambda *name: opened.append(name) or default_rng(*name))
        draw(CONFIG, 3)
    assert opened == [("batch", CONFIG.seed, 3)]


def test_batch_obeys_the_closed_form():
    """x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps for an image x_0 of the data set and its own label."""
    batch = draw(replace(CONFIG, label_drop=0.0))
    x_t, eps = to_numpy(batch["x_t"]).astype(np.float64), to_numpy(batch["target"])
    alpha_bar = SCHEDULE.alpha_bar[batch["t"]][:, None, None, None]
    x_0 = (x_t - np.sqrt(1 - alpha_bar) * eps) / np.sqrt(alpha_bar)
    data, _ = DATASET.batch(np.arange(len(DATASET)))
    for image, label, signal in zip(x_0, batch["labels"], np.sqrt(alpha_bar.ravel())):
        distance = np.abs(data - image).max((1, 2, 3))
        # x_t is float32, and dividing by the signal magnifies its rounding.
        assert distance.min() < 1e-6 / signal + 1e-6
        assert DATASET.labels[distance.argmin()] == label
    assert batch["x_t"].dtype == batch["target"].dtype == np.float32 and "weight" not in batch


class Every:
    """A generator that gives, in turn, every integer it may give, and the uniform numbers it is made with."""

    def __init__(self, uniform):
        self.uniform, self.normal = np.asarray(uniform), default_rng(0)

    def integers(self, low, high=None, size=None, endpoint=False):
        low, high = (0, low) if high is None else (low, high)
        high += endpoint
        if low >= high:
            raise ValueError(f"low >= high: {low} >= {high}")
        return low + np.arange(size) % (high - low)  # low..high - 1, as NumPy's

    def random(self, size):
        assert self.uniform.shape == (size,)
        return self.uniform

    def standard_normal(self, size, dtype):
        return self.normal.standard_normal(size, dtype)


def draw_every(config, uniform=0.5, schedule=SCHEDULE):
    """A batch drawn with the generator Every in place of the step's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "default_rng", lambda *name: Every(np.broadcast_to(uniform, config.batch_size)))
        return draw(config, schedule=schedule)


@given(T=st.integers(1, 60), rounds=st.integers(1, 3))
def test_t_may_be_any_of_1_to_T_and_nothing_else(T, rounds):
    """Exact: where the stream gives each integer asked for once, t is each of 1..T once (Ho et al. 2020, alg. 1)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ScheduleWarning)
        schedule = Schedule(np.full(T, 0.9))
    t = draw_every(replace(CONFIG, batch_size=rounds * T), schedule=schedule)["t"]
    np.testing.assert_array_equal(np.bincount(t, minlength=T + 1), [0] + [rounds] * T)


@given(label_drop=st.floats(0, 1), uniform=st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=8))
def test_a_label_is_dropped_where_its_number_is_below_the_rate(label_drop, uniform):
    """Exact: u uniform in [0, 1) drops its label iff u < label_drop, with probability label_drop; else it is its own.

    So rate 0 drops none, not even where u = 0, and rate 1 drops all (Ho & Salimans 2022, algorithm 1).
    """
    for u in (uniform, np.full(len(uniform), min(label_drop, 1 - 2**-53))):  # the second: on the edge
        config = replace(CONFIG, batch_size=len(u), label_drop=label_drop)
        labels = draw_every(config, u)["labels"]
        own = DATASET.labels[epoch_indices(len(DATASET), len(u), config.seed, 0)]
        assert labels.tolist() == [10 if x < label_drop else label for x, label in zip(u, own.tolist())]


def test_t_is_even_in_fact():
    """The real stream's t on 1..T: chi-square with a false-alarm rate of 1e-6."""
    T, n = 5, 4000
    assert draw(replace(CONFIG, batch_size=1), num_classes=None)["t"].shape == (1,)
    t = draw(replace(CONFIG, batch_size=n), num_classes=None, schedule=Schedule(np.full(T, 0.9)))["t"]
    counts = np.bincount(t, minlength=T + 1)
    assert len(counts) == T + 1 and counts[0] == 0
    # 4 degrees of freedom: P(chi2 > x) = exp(-x/2) (1 + x/2) = 1e-6 at x = 33.4
    assert ((counts[1:] - n / T) ** 2 / (n / T)).sum() < 33.4


@pytest.mark.parametrize("label_drop", [0.0, 0.1, 1.0])
def test_labels_are_dropped_at_the_stated_rate(label_drop):
    """The real stream: a dropped label becomes num_classes, at rate label_drop within 5 sigma (false alarm 6e-7)."""
    n = 5000
    labels = draw(replace(CONFIG, batch_size=n, label_drop=label_drop))["labels"]
    dropped = (labels == 10).sum()
    assert abs(dropped - n * label_drop) <= 5 * math.sqrt(n * label_drop * (1 - label_drop))
    assert labels.min() >= 0 and labels.max() <= 10


@pytest.mark.parametrize("num_classes", [1, 5, 9])
def test_a_label_of_the_data_is_never_taken_for_no_label(num_classes):
    """Data of 10 classes for a network of fewer: label num_classes would be "no label", so it is a ValueError."""
    config = replace(CONFIG, batch_size=50)
    with pytest.raises(ValueError, match=rf"labels must lie in 0\.\.{num_classes - 1}, got \d"):
        draw(config, num_classes=num_classes)
    assert draw(config, num_classes=10)["labels"].max() <= 10


def test_network_without_classes_gets_no_labels():
    """num_classes None: the batch has no labels."""
    assert "labels" not in draw(CONFIG, num_classes=None)


def test_a_label_that_is_no_class_is_refused():
    """A label of num_classes would be "no label", which the network would learn as a class of the data."""
    num_classes = int(draw(replace(CONFIG, label_drop=0.0))["labels"].max())
    with pytest.raises(ValueError, match=rf"labels must lie in 0\.\.{num_classes - 1}, got {num_classes}"):
        draw(CONFIG, num_classes=num_classes)


@pytest.mark.parametrize("name", TARGETS)
def test_a_batch_holds_its_target_and_its_weight(name):
    """Beside the same x_t, t and labels as for eps: the target of the same x_0 and eps, and min-SNR's weight of t."""
    kept = replace(CONFIG, label_drop=0.0)
    of_eps, batch = draw(kept, 3), draw(replace(kept, target=name, min_snr=0.05), 3)
    for key in ("x_t", "t", "labels"):
        np.testing.assert_array_equal(batch[key], of_eps[key])
    eps, t = of_eps["target"], batch["t"]
    x_0, _ = DATASET.batch(epoch_indices(len(DATASET), kept.batch_size, kept.seed, 3))
    assert batch["target"].dtype == batch["weight"].dtype == np.float32
    np.testing.assert_array_equal(batch["target"], to_numpy(TARGETS[name].of(SCHEDULE, x_0, t, eps)))
    np.testing.assert_array_equal(batch["weight"], min_snr_weight(TARGETS[name], SCHEDULE, t, 0.05).astype("float32"))
    assert len(set(batch["weight"].tolist())) > 1  # they do differ


# The loss and its gradient.


def test_loss_is_the_mean_square_over_pixels(rng):
    """losses[n] = mean over pixels of (eps_hat_n - eps_n)^2, one number an example (Ho et al. 2020, eq. 14)."""
    batch, calls = draw(CONFIG), []
    answer = rng.standard_normal(batch["target"].shape).astype(np.float32)

    def model(*arguments):
        calls.append(arguments)
        return Tensor(answer)

    losses = to_numpy(noise_prediction_losses(model, batch))
    expected = [np.mean((a.astype(np.float64) - e) ** 2) for a, e in zip(answer, to_numpy(batch["target"]))]
    np.testing.assert_allclose(losses, expected, rtol=1e-5)  # float32 sums of 64 numbers
    assert len(calls) == 1 and all(a is batch[name] for a, name in zip(calls[0], ("x_t", "t", "labels"), strict=True))


def gradient(model, batch):
    """(losses, gradient of their mean), the gradient in one row of float64."""
    losses = to_numpy(gradients_of(model, noise_prediction_losses, batch))
    return losses, np.concatenate([to_numpy(p.grad).reshape(-1) for p in model.parameters()]).astype("float64")


def trained_a_little():
    """A network away from its start, where most gradients are 0."""
    state = small_run()
    next(train(state))
    return state.model


def test_a_weight_multiplies_its_examples_loss():
    """With min_snr the losses are those without times the weights, and so is the gradient of each example."""
    model, batch = trained_a_little(), draw(replace(CONFIG, target="v", min_snr=2.0), 1)
    unweighted = {name: a for name, a in batch.items() if name != "weight"}
    losses, expected = (gradient(model, b)[0] for b in (batch, unweighted))
    np.testing.assert_allclose(losses, batch["weight"] * expected, rtol=1e-6)  # one rounding each
    first = [gradient(model, {name: a[:1] for name, a in b.items()})[1] for b in (batch, unweighted)]
    scale = abs(first[1]).max()
    np.testing.assert_allclose(first[0], float(batch["weight"][0]) * first[1], rtol=1e-4, atol=1e-5 * scale)  # float32


def test_the_gradient_is_the_mean_of_those_of_the_examples():
    """The loss of a step is the mean over the drawn (image, t, eps), and so is its gradient: none counts twice."""
    model, batch = trained_a_little(), draw(CONFIG, 1)
    (losses, grad), parts = gradient(model, batch), []
    for i in range(CONFIG.batch_size):
        alone, part = gradient(model, {name: a[i : i + 1] for name, a in batch.items()})
        np.testing.assert_allclose(alone, losses[i : i + 1], rtol=1e-5)  # float32 sums in another order
        parts.append(part)
    assert np.linalg.norm(np.mean(parts, 0) - grad) < 1e-4 * np.linalg.norm(grad)
    assert min(np.linalg.norm(part - grad) for part in parts) > 0.1 * np.linalg.norm(grad)  # they do differ


# The loop.


def lone_run(config=CONFIG):
    """A Training of a network alone, as the docstring of train.py has it: no workers, no buffer."""
    return Training(build_unet(NETWORK, config.seed), config, partial(draw_batch, DATASET, SCHEDULE, 10), T=SCHEDULE.T)


def flat_run(config=CONFIG):
    """The same, its optimizer on one buffer."""
    state = lone_run(config)
    return Training(state.model, config, state.draw, T=state.T, parameters=[Flat(state.model.parameters())])


RUNS = [pytest.param(lone_run, plain, id="plain"), pytest.param(lone_run, fast, id="installed")]
RUNS += [pytest.param(flat_run, fast, id="installed, flat"), pytest.param(small_run, fast, id="installed, workers")]


@pytest.mark.parametrize(("clip_norm", "optimizer"), [(0.01, "muon"), (100.0, "muon"), (100.0, "adam")])
@pytest.mark.parametrize(("make", "forms"), RUNS)
def test_a_step_is_its_parts_in_order(make, forms, clip_norm, optimizer):
    """Batch, losses, gradient of their mean, clipping, a row, an update at the step's rate, the average: bit for
    bit."""
    config = replace(CONFIG, clip_norm=clip_norm, ema_decay=0.2, peak_lr=0.01, betas=(0.8, 0.9), optimizer=optimizer)
    with forms():
        state, model = make(config), build_unet(NETWORK, config.seed)
        parameters = model.parameters() if make is lone_run else [Flat(model.parameters())]
        adam, ema = OPTIMIZERS[optimizer](parameters, betas=(0.8, 0.9)), EMA(parameters, 0.2)
        for step, yielded in enumerate(train(state)):
            batch = draw(config, step)
            for p in parameters:
                p.grad = None
            losses = noise_prediction_losses(model, batch)
            losses.backward(asarray(np.full(8, 1 / 8, "float32")))
            norm = clip_grad_norm(parameters, clip_norm)
            rate = learning_rate(step, config.num_steps, peak=0.01, warmup=config.warmup)
            adam.step(rate)
            ema.update()
            expected = {"weights": [p.data for p in parameters], "ema": ema.average, "adam_m": adam.m, "adam_v": adam.v}
            for kind, arrays in by_kind(state).items():
                for a, b in zip(arrays, expected[kind], strict=True):
                    np.testing.assert_array_equal(to_numpy(a), to_numpy(b))
            row = metrics_row(state, to_numpy(losses), float(norm), rate, batch)
            np.testing.assert_array_equal(state.metrics()[-1], row)  # nan, of an empty quarter, is nan
            assert row[:3] == (float(to_numpy(losses).mean()), float(norm), rate)
            assert (norm > clip_norm) == (clip_norm == 0.01)
            assert yielded is state and state.step == len(state.metrics()) == step + 1
    assert step == 5


def by_kind(state):
    weights = [p.data for p in state.parameters]
    return {"weights": weights, "ema": state.ema.average, "adam_m": state.adam.m, "adam_v": state.adam.v}


def test_the_loop_ends_where_num_steps_says():
    """Also where num_steps changes on the way; a run that is at its end does nothing more."""
    state = lone_run(replace(CONFIG, num_steps=9))
    for _ in train(state):
        state.num_steps = 4
    assert state.step == 4 and list(train(state)) == []
    state.num_steps = 3
    assert next(train(state), None) is None


@pytest.mark.parametrize("make", [small_run, lone_run])
def test_not_a_number_stops_before_the_update(make):
    """A nan in the loss raises TrainingError naming the step, and nothing of the state has changed."""
    state = make()
    steps = train(state)
    next(steps)
    state.metrics()
    state.model.conv_out.b.data[...] = math.nan
    before = arrays_of(state)
    with pytest.raises(TrainingError, match="step 2: loss is nan"):
        next(steps)
        state.metrics()
    assert same_bits(before, arrays_of(state)) and len(state.rows) == 1


@pytest.mark.parametrize("make", [small_run, lone_run])
def test_an_infinite_gradient_of_a_finite_loss_stops_too(make):
    """Where only the gradient overflows nothing is updated either: TrainingError names both numbers."""
    state = make()
    state.model.norm_out.gamma.data[...] = 1e30  # conv_out starts at zero: the answer is 0, its gradient 1e30
    before = arrays_of(state)
    with pytest.raises(TrainingError, match=r"step 1: loss is [01]\.\d+, gradient norm inf"):
        next(train(state))
        state.metrics()
    assert same_bits(before, arrays_of(state)) and not state.rows


def test_the_names_of_the_metrics():
    """The header of metrics.csv: quarters count from 1."""
    quarters = ("loss_t_bucket_1", "loss_t_bucket_2", "loss_t_bucket_3", "loss_t_bucket_4")
    assert ("loss", "grad_norm", "learning_rate", *quarters) == METRICS


def test_the_settings_of_a_run_that_names_none():
    """What latent.py, train_classifier.py and waves_1d.py train with, and what the READMEs say of the main job."""
    same = {"warmup": 100, "betas": (0.9, 0.999), "clip_norm": 1.0, "seed": 0, "ema_decay": 0.995}
    same |= {"peak_lr": 3e-3}
    assert asdict(LoopConfig(7)) == same | {"num_steps": 7, "batch_size": 128, "optimizer": "adam"}
    main = {"num_steps": 2000, "minutes": 8.0, "batch_size": 64, "optimizer": "muon"}
    assert asdict(TrainConfig()) == same | main | {"label_drop": 0.1, "target": "eps", "min_snr": None}


@pytest.mark.parametrize("T", [10, 7, None])
def test_a_row_of_metrics_against_a_loop(T, rng):
    """Loss, norm, rate; then each example counts in the quarter of 1..T that its t lies in, and an empty one is nan."""
    state = Training(build_unet(NETWORK, 0), LoopConfig(1), draw, T=T)
    t = np.array([1, 2, 3, 5, 6, T or 9, T or 9])
    losses = rng.random(7)
    sums = [[] for _ in range(4)]
    for loss, k in zip(losses, t):
        sums[math.floor((k - 1) / ((T or 9) / 4))].append(loss)
    row = metrics_row(state, losses, 2.0, 0.1, {"t": t})
    assert row[1:3] == (2.0, 0.1) and math.isclose(row[0], losses.mean(), rel_tol=1e-15)
    np.testing.assert_allclose(row[3:], [np.mean(s) if s else math.nan for s in sums] if T else [])
    row = metrics_row(state, losses[:1], 2.0, 0.1, {"t": t[:1]})
    assert [math.isnan(value) for value in row] == [False] * 3 + [False, True, True, True] * (T is not None)


# What the functions of a run must return.

SPOILED = {
    "a single number": lambda losses: ops.mean(losses),
    "too few": lambda losses: losses[1:],
    "a column": lambda losses: losses[:, None],
    "an array": lambda losses: losses.data,
    "a list": lambda losses: list(losses),
    "a number": lambda losses: 1.0,
    "nothing": lambda losses: None,
}


@pytest.mark.parametrize("spoil", [*SPOILED.values()], ids=[*SPOILED])
@pytest.mark.parametrize(("make", "forms"), RUNS)
def test_losses_must_be_a_tensor_with_a_number_for_each_example(make, forms, spoil):
    """Else the gradient would be divided by another number than it is summed over: ValueError, and nothing moves."""
    with forms():
        state = make()
        state.losses_of = lambda model, batch: spoil(noise_prediction_losses(model, batch))
        before = arrays_of(state)
        with pytest.raises(ValueError, match=r"losses_of must return a Tensor of shape \(8,\), got"):
            next(train(state))
        assert same_bits(before, arrays_of(state)) and state.step == 0


def test_losses_of_each_pixel_are_refused():
    """(N, H, W, C) in place of (N,) would count the gradient H W C times."""
    state = lone_run()
    state.losses_of = lambda model, batch: model(batch["x_t"], batch["t"]) - asarray(batch["target"])
    with pytest.raises(ValueError, match=r"shape \(8,\), got Tensor \(8, 8, 8, 1\)"):
        next(train(state))


@pytest.mark.parametrize("spoil", [lambda a: a[1:], lambda a: a[:0], lambda a: np.concatenate([a, a])])
@pytest.mark.parametrize("name", ["t", "x_t", "labels"])
@pytest.mark.parametrize(("make", "forms"), RUNS)
def test_a_batch_must_hold_a_row_for_each_example(make, forms, name, spoil):
    """Each of its arrays has N rows, N >= 1: ValueError with the rows of each."""
    with forms():
        state = make()
        state.draw = lambda config, step: (batch := draw(config, step)) | {name: spoil(batch[name])}
        with pytest.raises(ValueError, match=r"a batch must hold a row for each example, got \{.*'t': \d"):
            next(train(state))


@pytest.mark.parametrize("spoil", [lambda a: a[1:], lambda a: a.mean(), lambda a: None, lambda a: list(a)])
def test_gradients_must_return_the_losses(spoil):
    """What takes the place of gradients_of returns (N,) losses: else ValueError, before the update."""
    state = lone_run()
    inner = state.gradients
    state.gradients = lambda losses_of, batch: spoil(inner(losses_of, batch))
    before = arrays_of(state)
    with pytest.raises(ValueError, match=r"gradients must return the losses \(N,\)"):
        next(train(state))
    assert same_bits(before, arrays_of(state))


@pytest.mark.parametrize(("make", "forms"), RUNS)
def test_a_network_that_has_grown_is_refused(make, forms):
    """A layer added after Adam was made would never be trained: ValueError with both numbers."""
    with forms():
        state = make()
        numbers = state.model.num_parameters()
        state.model.extra = Linear(2, 3, rng=np.random.default_rng(0))
        with pytest.raises(ValueError, match=rf"must be those of the network, got \({numbers}, {numbers + 9}\)"):
            next(train(state))


# Settings out of range.

OUT_OF_RANGE = {
    "num_steps": [-1, 1.5, math.nan, "7", None, (1, 2)],
    "batch_size": [0, -1, 1.5, math.nan, None],
    "peak_lr": [-1e-3, math.nan, math.inf, "1"],
    "warmup": [-1, 1.5, math.nan],
    "optimizer": ["Adam", "", None, 1],
    "betas": [(1.0, 0.9), (0.9, -0.1), (0.9, math.nan), (0.9,), 0.9],
    "clip_norm": [-1.0, 0.0, math.nan],
    "ema_decay": [1.0, 1.5, -0.1, math.nan],
    "seed": [-1, 0.5, math.nan],
    "minutes": [-1.0, math.nan, math.inf],
    "label_drop": [-0.1, 1.1, math.nan],
    "target": ["x", "", None],
    "min_snr": [0.0, -1.0, math.nan],
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in OUT_OF_RANGE.items() for value in values]
)
def test_a_setting_out_of_range_is_refused(name, value):
    """When the settings are made, or changed by replace: ValueError or TypeError."""
    with pytest.raises((ValueError, TypeError)):
        TrainConfig(**{name: value})
    with pytest.raises((ValueError, TypeError)):
        replace(CONFIG, **{name: value})
    if name in LoopConfig.__dataclass_fields__:
        with pytest.raises((ValueError, TypeError)):
            LoopConfig(**{"num_steps": 1, name: value})


def test_settings_at_the_ends_of_their_range_are_taken():
    """No steps, no rate, no warm-up, no bound, no average, no time, no label or every label dropped."""
    TrainConfig(num_steps=0, peak_lr=0.0, warmup=0, betas=(0.0, 0.0), clip_norm=math.inf, ema_decay=0.0, minutes=0.0)
    TrainConfig(label_drop=0.0, min_snr=math.inf)
    TrainConfig(label_drop=1.0, minutes=None, min_snr=None)


# Copies and frozen layers.


@pytest.mark.parametrize("make", [lone_run, flat_run, small_run])
def test_a_copied_run_goes_on_alone_with_the_same_bits(make):
    """deepcopy of a Training after some steps: both go on alike, and a step of one is none of the other."""
    state = make()
    for _, _ in zip(range(2), train(state)):
        pass
    twin, before = copy.deepcopy(state), arrays_of(state)
    assert sum(1 for _ in train(twin)) == 4
    assert same_bits(before, arrays_of(state))
    assert sum(1 for _ in train(state)) == 4
    assert same_bits(arrays_of(state), arrays_of(twin)) and not same_bits(before, arrays_of(state))


@pytest.mark.parametrize(("make", "forms"), RUNS)
def test_a_frozen_layer_keeps_its_bits_while_the_others_learn(make, forms):
    """From the start, and frozen on the way: weights, average and moments of the layer stand still."""
    with forms():
        state = make()
        start = arrays_of(state)
        state.model.conv_in.w.requires_grad = False
        for s in train(state):
            if s.step == 3:
                middle = arrays_of(state)
                state.model.conv_out.w.requires_grad = False
        end = arrays_of(state)
    for name in start:
        if name.endswith("/conv_in.w"):
            np.testing.assert_array_equal(start[name], end[name])
        elif name.endswith("/conv_out.w") and not name.startswith("ema"):  # the average still moves up to it
            np.testing.assert_array_equal(middle[name], end[name])
    assert (start["weights/conv_out.w"] != middle["weights/conv_out.w"]).any()
    assert (middle["weights/conv_in.b"] != end["weights/conv_in.b"]).any()
