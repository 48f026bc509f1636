"""The runs of precision.py: the same network, weights and batches, each run with roundings of its own."""

from dataclasses import dataclass, field, replace
from functools import cache, partial

import numpy as np
from products import Rounder, rounded_products
from rounding import bf16, float32, fp16, tf32

from tinydiff.autograd import mark_written, no_grad
from tinydiff.backend import default_rng, standard_normal
from tinydiff.data import load
from tinydiff.diffusion import Schedule, classifier_free, ddim_step, sample, timestep_pairs
from tinydiff.nn import UNet
from tinydiff.train import TrainConfig, Training, draw_batch, gradients_of, noise_prediction_losses, train

LOSS_SCALE = 2.0**12
SCALES = tuple(2.0**k for k in range(-8, 37, 4))  # of the picture
SAMPLE_STEPS = 20
CLASSES = 10


@dataclass(frozen=True)
class Run:
    """How a run computes: `factors` rounds the factors of products, `weights` the weights after each step.

    The loss is multiplied by loss_scale, and the gradient is divided by it.
    """

    name: str
    factors: object
    loss_scale: float = 1.0
    weights: object = float32


RUNS = (
    Run("float32", float32),
    Run("TF32", tf32),
    Run("bf16", bf16),
    Run("fp16", fp16),
    Run(f"fp16, loss x {LOSS_SCALE:,.0f}", fp16, LOSS_SCALE),
    Run("bf16, weights too", bf16, weights=bf16),
)


@dataclass(frozen=True)
class Task:
    """What all runs share.  A Task is sent to workers, so it holds settings and no arrays."""

    config: TrainConfig
    schedule: Schedule = field(default_factory=Schedule.linear)
    num_images: int = 5000

    @property
    def draw(self):
        """draw(config, step) -> batch."""
        return partial(draw_batch, small_digits(self.num_images, self.config.seed), self.schedule, CLASSES)

    def network(self):
        """A U-Net of two levels, 14x14 and 7x7."""
        rng = default_rng("weights", self.config.seed)
        return UNet(base_channels=16, channel_mults=(1, 2), num_classes=CLASSES, rng=rng)


@cache
def small_digits(num, seed):
    """Drawn digits at half their size: each pixel is the mean of 2x2."""
    digits = load("glyphs", num=num, seed=seed)
    n, h, w, c = digits.images.shape
    return replace(digits, images=digits.images.reshape(n, h // 2, 2, w // 2, 2, c).mean((2, 4)).astype(np.uint8))


@dataclass(frozen=True)
class Result:
    """What a run leaves.

    losses: (S,), before the multiplication.  moved: (S,), the share of the numbers of the network that a step changed.
    weights: the arrays at the end.  digits: (10, H, W, 1), one of each class, drawn with the averaged weights.
    """

    losses: np.ndarray
    moved: np.ndarray
    weights: list
    digits: np.ndarray


def trained(task, _, run):
    """The Result of a run.  _: the network of the worker; each run makes its own."""
    model = task.network()
    rounder, moved = Rounder(run.factors), []
    gradients = partial(scaled_gradients, model, run.loss_scale)
    state = Training(model, task.config, task.draw, gradients=gradients)
    _round(state, run)
    before = [p.data.copy() for p in state.parameters]
    with rounded_products(rounder):
        for _ in train(state):
            _round(state, run)
            moved.append(share_moved(before, state.parameters))
            before = [p.data.copy() for p in state.parameters]
        state.ema.copy_to(state.parameters)
        _round(state, run)
        digits = drawn(task, model)
    return Result(np.array([row[0] for row in state.rows]), np.array(moved), before, digits)


def scaled_gradients(model, scale, losses_of, batch):
    """gradients_of, with the loss multiplied by `scale` and the gradients divided by it.

    A power of two changes only the exponent of a number: without overflow and underflow the result is the same bits.
    """
    losses = gradients_of(model, lambda model, batch: losses_of(model, batch) * scale, batch)
    for p in model.parameters():
        p.grad = p.grad / scale
    return losses / scale


def share_moved(before, parameters):
    """The share of the numbers of the parameters that differ from those before."""
    changed = sum(np.count_nonzero(old != p.data) for old, p in zip(before, parameters))
    return changed / sum(p.size for p in parameters)


def drawn(task, model):
    """A digit of each class from the same noise: (10, H, W, 1)."""
    shape = small_digits(task.num_images, task.config.seed).images.shape[1:]
    x_T = standard_normal(default_rng("start", task.config.seed), (CLASSES, *shape))
    eps_fn, step = classifier_free(model, list(range(CLASSES)), 2.0), partial(ddim_step, task.schedule, clip=True)
    pairs = timestep_pairs(task.schedule.T, min(SAMPLE_STEPS, task.schedule.T))
    with no_grad():
        *_, (_, x_0, _) = sample(step, eps_fn, pairs, x_T, default_rng("way", task.config.seed))
    return x_0  # the x_0_hat of the last step, which is clipped


@dataclass(frozen=True)
class GradientError:
    """How one gradient of a run differs from float64's.

    error: |g - g64| / |g64| over all parameters; infinite if a number of g is not finite.  lost, overflowed: shares of
    the gradients between layers that the rounding turns to 0 and to infinity.
    """

    error: float
    lost: float
    overflowed: float


def gradient_error(task, weights, _, run):
    """The GradientError of a run, for the batch after the last step of training.

    weights: one array for each parameter.
    """
    rounder, batch = Rounder(run.factors), task.draw(task.config, task.config.num_steps)
    with rounded_products(rounder), np.errstate(over="ignore", invalid="ignore"):  # too large a scale gives inf and nan
        computed = gradient_at(task, weights, run.loss_scale, batch, "float32")
    exact = gradient_at(task, weights, 1.0, batch, "float64")
    lost, overflowed = rounder.lost / rounder.seen, rounder.overflowed / rounder.seen
    return GradientError(relative_error(computed, exact), lost, overflowed)


def gradient_at(task, weights, scale, batch, dtype):
    """The gradient of the batch's mean loss as one array, computed in dtype."""
    model = task.network()
    for p, a in zip(model.parameters(), weights):
        p.data = a.astype(dtype)
    batch = {name: a.astype(dtype) if a.dtype.kind == "f" else a for name, a in batch.items()}
    scaled_gradients(model, scale, noise_prediction_losses, batch)
    return np.concatenate([p.grad.reshape(-1) for p in model.parameters()])


def relative_error(computed, exact):
    """|computed - exact| / |exact|; infinite if a number of `computed` is not finite."""
    if not np.isfinite(computed).all():
        return np.inf
    return float(np.linalg.norm(computed - exact) / np.linalg.norm(exact))


def _round(state, run):
    for p in state.parameters:
        p.data[...] = run.weights(p.data)
    mark_written(state.parameters)
