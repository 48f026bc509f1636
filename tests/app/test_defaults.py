"""Defaults are laws: what each default is chosen for holds with the default, and not only with a value of the tests."""

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from small_run import DATASET, SCHEDULE, small_run, small_workers

from tinydiff.app.alone import one_process
from tinydiff.app.classify import ClassifierConfig
from tinydiff.app.fit import any_training, finish
from tinydiff.app.generate import Recipe, build_unet
from tinydiff.app.training import steps
from tinydiff.autograd import Tensor
from tinydiff.backend import to_numpy, xp
from tinydiff.data import Dataset, load
from tinydiff.diffusion import Schedule, ddpm_step, timestep_pairs
from tinydiff.optim import EMA
from tinydiff.train import LoopConfig, TrainConfig, draw_batch, gradients_of, noise_prediction_losses

pytestmark = pytest.mark.training


def test_one_label_in_ten_is_dropped():
    """Of 64,000 labels of the default run, whatever the class: 10% within 5 sigma, 0.6% (false alarm 6e-7)."""
    pixels = Dataset(
        "pixels", np.zeros((50, 1, 1, 1), np.uint8), np.arange(50, dtype=np.uint8) % 10, "", tuple("0123456789")
    )
    config = TrainConfig()
    dropped = np.concatenate([draw_batch(pixels, SCHEDULE, 10, config, step)["labels"] == 10 for step in range(1000)])
    assert len(dropped) == 64_000 and abs(dropped.mean() - 0.1) < 0.006


@pytest.mark.parametrize("num_steps", [TrainConfig.num_steps, ClassifierConfig.num_steps, 1551])
def test_after_a_run_the_average_holds_less_than_1_percent_of_the_start(num_steps):
    """A weight that is 1 at the start and 0 in every step: its average is the share of the start.  1,551: README."""
    weight = Tensor(xp.ones(1))
    ema = EMA([weight], TrainConfig.ema_decay)
    weight.data[...] = 0
    for _ in range(num_steps):
        ema.update()
    assert 0 < float(ema.average[0][0]) < 0.01


def test_a_classifier_sees_each_picture_of_mnist_at_least_three_times():
    """60,000 pictures, each time displaced otherwise, in batches of the default size."""
    config = ClassifierConfig()
    assert config.num_steps * config.batch_size >= 3 * 60_000


def test_the_average_is_of_many_steps():
    """The last step alone has less than 1% of the average; the last 1,000 of 2,000 have more than 99%."""
    shares = []
    for rows in (slice(1999, 2000), slice(1000, 2000)):
        weight = Tensor(xp.zeros(1))
        ema = EMA([weight], TrainConfig.ema_decay)
        for k in range(2000):
            weight.data[...] = float(rows.start <= k < rows.stop)
            ema.update()
        shares.append(float(ema.average[0][0]))
    assert 0.001 < shares[0] < 0.01 and shares[1] > 0.99


def test_the_first_gradient_of_the_default_network_is_clipped():
    """The network of train_mnist.py, before its first step.  The norm was 3.1 to 4.3 for eight seeds."""
    data = load("glyphs", num=50)
    model = build_unet({"base_channels": 32, "num_classes": 10}, 0)
    batch = draw_batch(data, Schedule.linear(), 10, TrainConfig(batch_size=8), 0)
    gradients_of(model, noise_prediction_losses, batch)
    norm = math.sqrt(sum(float((to_numpy(p.grad) ** 2).sum()) for p in model.parameters() if p.grad is not None))
    assert norm > TrainConfig.clip_norm


def test_clipping_acts_in_the_first_steps_and_seldom_at_the_end():
    """Within the warm-up already: of the first 30 steps every one is clipped, of the last 15 of 100 at most one.

    The norm was 1.5 to 2.3 in the first 30 steps and 0.4 to 0.93 in the last 15, for three seeds.
    """
    glyphs = load("glyphs", num=256)
    small = replace(glyphs, images=glyphs.images[:, 2:26:3, 2:26:3])
    state = small_run(TrainConfig(num_steps=100, minutes=None, batch_size=16), dataset=small)
    for _ in steps(state, one_process()):
        pass
    norms = np.array(state.metrics())[:, 1]
    assert (norms[:30] > state.config.clip_norm).all() and (norms[-15:] > state.config.clip_norm).sum() <= 1


def written_out(config, num_steps):
    """Linear warm-up to the peak, then half a cosine from the peak down to 0 at num_steps, without learning_rate."""
    up = [config.peak_lr * (k + 1) / config.warmup for k in range(config.warmup)]
    down = [k / (num_steps - config.warmup) for k in range(num_steps - config.warmup)]
    return (up + [config.peak_lr * (1 + math.cos(math.pi * x)) / 2 for x in down])[:num_steps]


def of_part(config, tmp_path):
    """A part of a program: any_training and finish."""
    workers = small_workers()
    draw = partial(draw_batch, DATASET, SCHEDULE, 10)
    state = any_training(
        workers, noise_prediction_losses, lambda c, step: draw(TrainConfig(batch_size=2), step), config
    )
    finish(state, workers, tmp_path / "part.npz", {}, False)
    return state


def of_main_job(config, tmp_path):
    """The main job: diffusion_training and steps."""
    state = small_run(TrainConfig(**vars(config) | {"minutes": None}))
    for _ in steps(state, one_process()):
        pass
    return state


@pytest.mark.parametrize("trained", [of_part, of_main_job])
def test_the_rate_warms_up_and_falls_in_a_part_as_in_the_main_job(trained, tmp_path):
    """The rates in the metrics are the formula's: the last is near 0, and never 0."""
    config = LoopConfig(9, batch_size=2, warmup=3, peak_lr=2e-3)
    rates = np.array(trained(config, tmp_path).metrics())[:, 2]
    np.testing.assert_allclose(rates, written_out(config, 9), rtol=1e-12)  # float64
    assert rates.argmax() in (2, 3) and 0 < rates[-1] < 0.1 * config.peak_lr


def test_images_are_drawn_with_50_steps_of_ddpm_and_without_an_early_average_with_guidance_2():
    """The defaults of Recipe, which sample.py and train_mnist.py show as theirs: by identity of the step."""
    recipe = Recipe(Schedule.linear(), (28, 28, 1))
    step = recipe.step(recipe.schedule)
    assert (step.func, step.args, step.keywords) == (ddpm_step, (recipe.schedule,), {"clip": True})
    assert recipe.pairs(recipe.schedule, 50) == timestep_pairs(1000, 50)
    assert (recipe.num_steps, recipe.scale, recipe.keep) == (50, 2.0, 1)
