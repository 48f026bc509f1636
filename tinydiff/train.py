"""Training: predict the noise (Ho et al. 2020, algorithm 1).

    L_simple = E || eps - eps_theta(sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps, t) ||^2    Ho et al. 2020, eq. 14

with t uniform in 1..T and eps ~ N(0, I).  One image in ten loses its label, so that the network also learns the
unconditional noise that guidance needs (Ho & Salimans 2022, algorithm 1).

    state = Training(model, config, lambda config, step: draw_batch(dataset, schedule, num_classes, config, step))
    for state in train(state):
        ...                                                     # print, save, draw: all of that stands outside

Seed and step name every random stream.  So the random state of a run is its seed and its step, and a run that is
stopped and resumed draws what it would have drawn.  The loop trains any network: what it descends is `losses_of`.
Read next: backend.py.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from tinydiff import ops
from tinydiff.autograd import Tensor
from tinydiff.backend import TinydiffError, asarray, default_rng, fusable, to_numpy, xp
from tinydiff.data import Dataset, epoch_indices
from tinydiff.diffusion import Schedule, q_sample
from tinydiff.diffusion.targets import TARGETS, min_snr_weight
from tinydiff.nn import Module
from tinydiff.optim import EMA, Adam, clip_grad_norm, forget_gradients, learning_rate

Batch = dict[str, Any]  # arrays whose first axis runs over the examples
Losses = Callable[[Any, Batch], Tensor]  # losses_of(model, batch) -> (N,): each example's loss
NUM_BUCKETS = 4  # the loss is also kept by quarter of 1..T: it differs a hundredfold between them
METRICS = ("loss", "grad_norm", "learning_rate", *(f"loss_t_bucket_{i + 1}" for i in range(NUM_BUCKETS)))


class TrainingError(TinydiffError):
    """Training cannot go on: the loss or its gradient is no longer a finite number."""


@dataclass(frozen=True)
class LoopConfig:
    """What every training run has, besides its network, its data and its loss."""

    num_steps: int
    batch_size: int = 128
    peak_lr: float = 3e-3
    warmup: int = 100  # steps
    betas: tuple[float, float] = (0.9, 0.999)  # of Adam
    clip_norm: float = 1.0  # of a gradient
    ema_decay: float = 0.995
    seed: int = 0


@dataclass(frozen=True)
class TrainConfig(LoopConfig):
    """A run of noise prediction.

    minutes: None, or the time that training may take: see app/run.py.
    target: what the network learns to predict, of TARGETS.  min_snr: gamma of min_snr_weight; None: all t weigh alike.
    """

    num_steps: int = 2000
    minutes: float | None = 8.0
    batch_size: int = 64
    peak_lr: float = 2e-3
    label_drop: float = 0.1
    target: str = "eps"
    min_snr: float | None = None


def draw_batch(dataset: Dataset, schedule: Schedule, num_classes: int | None, config: TrainConfig, step: int) -> Batch:
    """The training examples of 0-based `step`, a pure function of its arguments: on the host, whatever the backend.

    x_t, target: (B, H, W, C) float32.  t: (B,) uniform in 1..T.  labels: (B,), num_classes where the label was dropped;
    absent for a network without classes.  weight: (B,) float32, absent where every t weighs alike.
    """
    n, target = config.batch_size, TARGETS[config.target]
    rng = default_rng("batch", config.seed, step)
    t = rng.integers(1, schedule.T + 1, n)
    x_0, labels = dataset.batch(epoch_indices(len(dataset), n, config.seed, step))
    eps = rng.standard_normal(x_0.shape, dtype="float32")
    batch = {"x_t": q_sample(schedule, x_0, t, eps), "target": target.of(schedule, x_0, t, eps), "t": t}
    if config.min_snr is not None:
        batch["weight"] = min_snr_weight(target, schedule, t, config.min_snr).astype("float32")
    if num_classes is not None:
        batch["labels"] = np.where(rng.random(n) < config.label_drop, num_classes, labels)
    return batch


def noise_prediction_losses(model: Any, batch: Batch) -> Tensor:
    """Mean over pixels of (eps_hat - eps)^2 for each example (N,) (Ho et al. 2020, eq. 14).

    For another target (x_0 or v) the error is taken in that quantity.  If the batch has weights, each multiplies its
    own example's loss.
    """
    error = model(batch["x_t"], batch["t"], batch.get("labels")) - asarray(batch["target"])
    losses = ops.mean(error * error, axis=(1, 2, 3))
    return losses * asarray(batch["weight"]) if "weight" in batch else losses


def gradients_of(model: Module, losses_of: Losses, batch: Batch) -> Any:
    """Losses (N,) of the batch's examples; the gradient of their mean goes to the parameters' .grad."""
    forget_gradients(model.parameters())
    losses = losses_of(model, batch)
    losses.backward(xp.full(losses.shape, 1 / len(losses), losses.dtype))
    return losses.data


class Training:
    """The state of a run: network, moments, average, the step to come, and the metrics so far.

    draw(config, step) -> the batch of 0-based `step`.  T: None, or of the schedule: see METRICS.
    gradients(losses_of, batch): None, or a function that does what gradients_of(model, ...) does.
    parameters: what the optimizer moves: the network's, or one buffer that holds them all.
    """

    def __init__(
        self,
        model: Module,
        config: LoopConfig,
        draw: Callable[[Any, int], Batch],
        losses_of: Losses = noise_prediction_losses,
        T: int | None = None,
        gradients: Callable[[Losses, Batch], Any] | None = None,
        parameters: Sequence[Any] | None = None,
    ):
        self.model, self.config, self.draw, self.losses_of, self.T = model, config, draw, losses_of, T
        self.gradients = gradients or partial(gradients_of, model)
        self.parameters = model.parameters() if parameters is None else parameters
        self.adam, self.ema = Adam(self.parameters, betas=config.betas), EMA(self.parameters, config.ema_decay)
        self.step, self.num_steps = 0, config.num_steps  # steps done, steps in all
        self.rows: list[tuple[float, ...]] = []

    @fusable
    def note(self, losses: Any, norm: Any, rate: float, batch: Batch) -> None:
        """Add this step's row to the metrics; TrainingError if its loss or its gradient is nan or infinite."""
        self.rows.append(metrics_row(self, to_numpy(losses), float(norm), rate, batch))

    @fusable
    def metrics(self) -> list[tuple[float, ...]]:
        """One row of METRICS for each step done; without the quarters if there is no T."""
        return self.rows


def train(state: Training) -> Iterator[Training]:
    """Algorithm 1 until state.num_steps, yielding the state after each step.  Raises TrainingError as `note` does."""
    config = state.config
    while state.step < state.num_steps:
        batch = state.draw(config, state.step)
        losses = state.gradients(state.losses_of, batch)
        norm = clip_grad_norm(state.parameters, config.clip_norm)
        rate = learning_rate(state.step, state.num_steps, peak=config.peak_lr, warmup=config.warmup)
        state.note(losses, norm, rate, batch)
        state.adam.step(rate)
        state.ema.update()
        state.step += 1
        yield state


def metrics_row(state: Training, losses: np.ndarray, norm: float, rate: float, batch: Batch) -> tuple[float, ...]:
    """The row of METRICS of the step whose losses these are, the first without one; TrainingError as `note`."""
    loss = float(losses.mean())
    if not (math.isfinite(loss) and math.isfinite(norm)):
        raise TrainingError(
            f"step {len(state.rows) + 1}: loss is {loss}, gradient norm {norm}; "
            "nothing was saved since, the last checkpoint is good"
        )
    if state.T is None:
        return loss, norm, rate
    quarter = (batch["t"] - 1) * NUM_BUCKETS // state.T
    means = [float(losses[quarter == i].mean()) if (quarter == i).any() else math.nan for i in range(NUM_BUCKETS)]
    return loss, norm, rate, *means
