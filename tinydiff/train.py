"""Training: predict the noise (Ho et al. 2020, algorithm 1).

    L_simple = E || eps - eps_theta(sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps, t) ||^2    Ho et al. 2020, eq. 14

with t uniform in 1..T and eps ~ N(0, I).  eps is all the noise in x_t.  It is not the noise of the step from t - 1 to
t: of that noise x_t tells only the share beta_t/(1 - alpha_bar_t), 1% at t = 500 (demos/ideal.py shows it).  The code
takes the mean over the pixels in place of their sum.  On average one image in ten loses its label (label_drop), so that
the network also learns to predict the noise without a label, which guidance needs (Ho & Salimans 2022, algorithm 1).

    state = Training(model, config, lambda config, step: draw_batch(dataset, schedule, num_classes, config, step))
    for state in train(state):
        ...                                                     # print, save, draw: all of that stands outside

Each random stream is named by the seed and the step.  So a run that is stopped and resumed draws the same numbers as a
run that never stopped.  `train` can train any network: the function `losses_of` gives the loss.  Tensor, Module and
fusable are explained in the files that follow.

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
from tinydiff.backend import TinydiffError, asarray, default_rng, fusable, host_integers, require, to_numpy, xp
from tinydiff.data import Dataset, epoch_indices
from tinydiff.diffusion import Schedule, q_sample
from tinydiff.diffusion.targets import TARGETS, min_snr_weight
from tinydiff.muon import OPTIMIZERS
from tinydiff.nn import Module
from tinydiff.optim import EMA, Adam, clip_grad_norm, forget_gradients, learning_rate

Batch = dict[str, Any]  # arrays whose first axis runs over the examples
Losses = Callable[[Any, Batch], Tensor]  # losses_of(model, batch) -> (N,): each example's loss
NUM_BUCKETS = 4  # the loss is also recorded by quarter of 1..T: the four differ by up to a factor of 100
METRICS = ("loss", "grad_norm", "learning_rate", *(f"loss_t_bucket_{i + 1}" for i in range(NUM_BUCKETS)))


class TrainingError(TinydiffError):
    """Training cannot go on: the loss or its gradient is no longer a finite number."""


@dataclass(frozen=True)
class LoopConfig:
    """The settings of any training run.  The network, the data and the loss are given apart.

    A setting outside its range raises ValueError.
    """

    num_steps: int
    batch_size: int = 128
    peak_lr: float = 3e-3
    warmup: int = 100  # steps
    optimizer: str = "adam"  # a name in OPTIMIZERS
    betas: tuple[float, float] = (0.9, 0.999)  # of Adam
    clip_norm: float = 1.0  # the largest norm of a step's gradient
    ema_decay: float = 0.995  # of the average of the weights
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in {"num_steps": 0, "batch_size": 1, "warmup": 0, "seed": 0}.items():
            host_integers(name, [getattr(self, name)], least, 2**62, 1)
        require(self.optimizer in OPTIMIZERS, f"optimizer must be one of {', '.join(OPTIMIZERS)}", self.optimizer)
        learning_rate(0, 1, peak=self.peak_lr, warmup=self.warmup)  # as the next three it checks its own settings
        Adam([], betas=self.betas), EMA([], self.ema_decay), clip_grad_norm([], self.clip_norm)


@dataclass(frozen=True)
class TrainConfig(LoopConfig):
    """A run of noise prediction.  It replaces some defaults of LoopConfig.

    minutes: None, or a limit of the training time.  `train` ignores it; `steps` of app/training.py obeys it.
    target: a name in TARGETS, what the network learns to predict.  min_snr: gamma of min_snr_weight; None gives every t
    the same weight.
    """

    num_steps: int = 2000
    minutes: float | None = 8.0
    batch_size: int = 64
    optimizer: str = "muon"
    label_drop: float = 0.1  # the share of examples that lose their label
    target: str = "eps"
    min_snr: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.minutes is None or 0 <= self.minutes < math.inf, "minutes must be a number or None", self.minutes)
        require(0 <= self.label_drop <= 1, "label_drop must lie in 0..1", self.label_drop)
        require(self.target in TARGETS, f"target must be one of {', '.join(TARGETS)}", self.target)
        require(self.min_snr is None or self.min_snr > 0, "min_snr must be above 0, or None", self.min_snr)


def draw_batch(dataset: Dataset, schedule: Schedule, num_classes: int | None, config: TrainConfig, step: int) -> Batch:
    """The batch of `step`, counted from 0.  It depends on the arguments alone, and its arrays are on the host.

    x_t, target: (B, H, W, C) float32.  t: (B,) uniform in 1..T.  labels: (B,); where a label was dropped the entry is
    num_classes, "no label".  There is no entry "labels" for a network without classes, and no "weight" (B,) where every
    t weighs the same.
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
        labels = host_integers("labels", labels, 0, num_classes - 1)
        batch["labels"] = np.where(rng.random(n) < config.label_drop, num_classes, labels)
    return batch


def noise_prediction_losses(model: Any, batch: Batch) -> Tensor:
    """The loss of each example, (N,): the mean of (eps_hat - eps)^2 over its pixels (Ho et al. 2020, eq. 14).

    For another target the error is that of its quantity.  If the batch has weights, each example's loss is multiplied
    by its weight.
    """
    error = model(batch["x_t"], batch["t"], batch.get("labels")) - asarray(batch["target"])
    losses = ops.mean(error * error, axis=(1, 2, 3))
    return losses * asarray(batch["weight"]) if "weight" in batch else losses


def rows(batch: Batch) -> int:
    """The number of examples of a batch; ValueError unless each of its arrays has that many rows, at least one."""
    sizes = {name: len(a) for name, a in batch.items()}
    require(len(set(sizes.values())) == 1 and all(sizes.values()), "a batch must hold a row for each example", sizes)
    return next(iter(sizes.values()))


def checked_losses(n: int, losses: Any) -> Tensor:
    """The losses that losses_of has returned for n examples; ValueError unless they are a Tensor of shape (n,)."""
    got = f"{type(losses).__name__} {getattr(losses, 'shape', '')}"
    require(isinstance(losses, Tensor) and losses.shape == (n,), f"losses_of must return a Tensor of shape ({n},)", got)
    return losses


def gradients_of(model: Module, losses_of: Losses, batch: Batch) -> Any:
    """Return the losses (N,) of the batch, and write the gradient of their mean to the .grad of each parameter."""
    forget_gradients(model.parameters())
    losses = checked_losses(rows(batch), losses_of(model, batch))
    losses.backward(xp.full(losses.shape, 1 / len(losses), losses.dtype))
    return losses.data


class Training:
    """The state of a run: the network, Adam's moments, the average of the weights, the steps done, the metrics.

    draw(config, step) -> the batch of `step`.  T: the schedule's T, if the loss is to be recorded by quarter of 1..T.
    gradients(losses_of, batch) -> losses (N,): None, or a replacement for gradients_of(model, ...).
    parameters: what the optimizer updates; by default the network's parameters, else one buffer that contains them.
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
        self.adam = OPTIMIZERS[config.optimizer](self.parameters, betas=config.betas)
        self.ema = EMA(self.parameters, config.ema_decay)
        self.step, self.num_steps = 0, config.num_steps  # steps done, steps in all
        self.rows: list[tuple[float, ...]] = []

    @fusable
    def note(self, losses: Any, norm: Any, rate: float, batch: Batch) -> None:
        """Add the row of this step; TrainingError if the loss or the norm of the gradient is not finite."""
        self.rows.append(metrics_row(self, to_numpy(losses), float(norm), rate, batch))

    @fusable
    def metrics(self) -> list[tuple[float, ...]]:
        """The rows of METRICS, one for each step done.  Without T a row has no losses by quarter."""
        return self.rows


def train(state: Training) -> Iterator[Training]:
    """Run algorithm 1 up to state.num_steps, and yield the state after each step.  Raises TrainingError as `note`
    does, and ValueError if a function of the state returns what it must not."""
    config, sizes = state.config, (sum(p.data.size for p in state.parameters), state.model.num_parameters())
    require(sizes[0] == sizes[1], "the numbers that Adam trains must be those of the network", sizes)
    while state.step < state.num_steps:
        batch = state.draw(config, state.step)
        losses = state.gradients(state.losses_of, batch)
        require((got := getattr(losses, "shape", 0)) == (rows(batch),), "gradients must return the losses (N,)", got)
        norm = clip_grad_norm(state.parameters, config.clip_norm)
        rate = learning_rate(state.step, state.num_steps, peak=config.peak_lr, warmup=config.warmup)
        state.note(losses, norm, rate, batch)
        state.adam.step(rate)
        state.ema.update()
        state.step += 1
        yield state


def metrics_row(state: Training, losses: np.ndarray, norm: float, rate: float, batch: Batch) -> tuple[float, ...]:
    """The row of METRICS of step len(state.rows) + 1, from that step's losses, norm, rate and batch.

    Raises TrainingError if the loss or the norm is not finite.
    """
    loss = float(losses.mean())
    if not (math.isfinite(loss) and math.isfinite(norm)):
        bad = f"step {len(state.rows) + 1}: loss is {loss}, gradient norm {norm}"
        raise TrainingError(f"{bad}; nothing is saved from here on, and the last checkpoint is finite")
    if state.T is None:
        return loss, norm, rate
    quarter = (batch["t"] - 1) * NUM_BUCKETS // state.T
    means = [float(losses[quarter == i].mean()) if (quarter == i).any() else math.nan for i in range(NUM_BUCKETS)]
    return loss, norm, rate, *means
