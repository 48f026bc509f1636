"""Training: predict the noise, one step after another, from a state that can be saved and continued.

    L_simple = E || eps - eps_theta(sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps, t) ||^2    Ho et al. 2020, eq. 14

with t uniform in 1..T and eps ~ N(0, I).  One image in ten loses its label, so that the network also learns the
unconditional noise that guidance needs (Ho & Salimans 2022, algorithm 1).

Everything random in step k comes from streams named by the seed and k.  So the random state of a run is its seed and
its step, and a run that is stopped and resumed draws what it would have drawn: with the same number of workers its
weights are the same bit for bit.  `train` is a generator that yields its state; printing, saving and plotting stay
outside.  `fit` is the short form, for any loss.
Read next: generate.py, then ../demos/train_mnist.py.
"""

import math
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tinydiff import checkpoint, kernels, ops
from tinydiff.autograd import Tensor
from tinydiff.backend import TinydiffError, asarray, default_rng, precision, to_numpy, xp
from tinydiff.checkpoint import CheckpointError
from tinydiff.data import Dataset, epoch_indices
from tinydiff.diffusion import EPS, X_0, Schedule, V, min_snr_weight, q_sample
from tinydiff.nn import Module
from tinydiff.optim import EMA, Adam, clip_grad_norm, learning_rate
from tinydiff.parallel import Batch, Losses, Workers

NUM_BUCKETS = 4  # the loss is also kept by quarter of 1..T: it differs a hundredfold between them
CLIP_NORM = 1.0  # of a gradient
ALL = slice(0, 1 << 62)  # rows
NOISE_BLOCK = 512  # images of a batch whose noise comes from one stream, so that a rank need not draw all of it
PERIOD = 50  # steps between two looks at what a GPU has computed, for each of which the host waits
TARGETS = {"eps": EPS, "x_0": X_0, "v": V}  # as a checkpoint names them
METRICS = ("loss", "grad_norm", "learning_rate", *(f"loss_t_bucket_{i + 1}" for i in range(NUM_BUCKETS)))


class TrainingError(TinydiffError):
    """Training cannot go on: the loss or its gradient is no longer a finite number."""


@dataclass(frozen=True)
class TrainConfig:
    """What a run is, besides its network, its data and its schedule.

    minutes: None, or the time that training may take: at the end of the warm-up the speed so far tells how many steps
    fit, and num_steps is lowered to that.  Only there does a clock enter, and the checkpoint keeps what was decided.
    target: what the network learns to say, of TARGETS.  min_snr: gamma of min_snr_weight, None where all t weigh alike.
    """

    num_steps: int = 2000
    minutes: float | None = 8.0
    batch_size: int = 64
    peak_lr: float = 2e-3
    warmup: int = 100  # steps
    weight_decay: float = 0.0
    clip_norm: float = CLIP_NORM
    ema_decay: float = 0.995
    label_drop: float = 0.1
    seed: int = 0
    target: str = "eps"
    min_snr: float | None = None


def draw_batch(
    dataset: Dataset, schedule: Schedule, config: TrainConfig, num_classes: int | None, step: int, rows: slice = ALL
) -> Batch:
    """The training examples of 0-based `step`, a pure function of its arguments: on the host, whatever the backend.

    x_t, target: (B, H, W, C) float32.  t: (B,) uniform in 1..T.  labels: (B,), num_classes where the label was dropped;
    absent for a network without classes.  weight: (B,) float32, absent where every t weighs alike.
    rows: those that will be looked at; pictures and labels of others may be left unwritten.
    """
    n, name, target = config.batch_size, ("batch", config.seed, step), TARGETS[config.target]
    rng = default_rng(*name)
    t = rng.integers(1, schedule.T + 1, n)
    indices = epoch_indices(len(dataset), n, config.seed, step)
    x_t, y, labels = np.empty(0), np.empty(0), np.zeros(n, np.int64)
    for block, x_0, eps, digits in _draw_blocks(dataset, indices, rng, name, rows):
        labels[block] = digits
        if block.start == 0:
            x_t, y = np.empty((2, n, *x_0.shape[1:]), x_0.dtype)
        x_t[block] = q_sample(schedule, x_0, t[block], eps)
        y[block] = target.of(schedule, x_0, t[block], eps)
    batch: Batch = {"x_t": x_t, "target": y, "t": t}
    if config.min_snr is not None:
        batch["weight"] = min_snr_weight(target, schedule, t, config.min_snr).astype("float32")
    if num_classes is not None:
        dropped = rng.random(n) < config.label_drop
        batch["labels"] = np.where(dropped, num_classes, labels)
    return batch


def _draw_blocks(dataset: Dataset, indices: Any, rng: Any, name: tuple, rows: slice) -> Iterator[tuple]:
    """(rows, pictures, noise, labels) of each NOISE_BLOCK rows of a batch that hold some of `rows`, and of the first.

    Each has a stream of noise of its own, the first has rng: a rank need not draw all of a batch.
    """
    for start in range(0, len(indices), NOISE_BLOCK):
        block = slice(start, min(start + NOISE_BLOCK, len(indices)))
        if start == 0 or (start < rows.stop and rows.start < block.stop):
            x_0, labels = dataset.batch(indices[block])
            own = default_rng(*name, start) if start else rng
            yield block, x_0, own.standard_normal(x_0.shape, dtype="float32"), labels


def noise_prediction_losses(model: Module, batch: Batch, rng: np.random.Generator) -> Tensor:
    """Mean over pixels of (eps_hat - eps)^2 for each example (N,) (Ho et al. 2020, eq. 14).  rng drives dropout.

    With another target it is what stands in the place of eps, and an example's weight multiplies its loss.
    """
    error = model.forward(batch["x_t"], batch["t"], batch.get("labels"), rng=rng) - asarray(batch["target"])
    losses = ops.mean(error * error, axis=(1, 2, 3))
    return losses * asarray(batch["weight"]) if "weight" in batch else losses


class Training:
    """The state of a run: weights, moments, average, the step to come, and the metrics so far.

    draw: what draws a batch, with draw_batch's arguments.
    step: steps done.  rows: one row of METRICS for each of them; on a GPU the last few come with the next `settle`.
    """

    def __init__(
        self, workers: Workers, schedule: Schedule, config: TrainConfig, draw: Callable[..., Batch] = draw_batch
    ):
        self.workers, self.schedule, self.config, self.draw = workers, schedule, config, draw
        self.num_steps = config.num_steps
        self._clock: tuple[float, int] | None = None  # when this process began its first step, and which that was
        self.adam = Adam(workers.flat, weight_decay=config.weight_decay)
        self.ema = EMA(workers.flat, config.ema_decay)
        self.step = 0
        self.rows: list[tuple[float, ...]] = []
        self._pending: list[tuple] = []  # losses, norm, times and rate of the steps that have no row yet
        self._period = PERIOD if kernels.available() else 1
        self._thread = ThreadPoolExecutor(1)  # that draws ahead for a GPU; it starts with its first job
        self._ahead: tuple[Any, Future | None] = None, None  # what for, and the batch to come

    @property
    def whole(self) -> bool:
        """Whether all parts stand at the same step, so that it may be saved: not so within an update."""
        return self.adam.num_steps == self.step == len(self.rows) + len(self._pending)

    @property
    def metrics(self) -> list[tuple[float, ...]]:
        """One row of METRICS a step done; on a GPU this waits.  Raises TrainingError as `settle`."""
        self.settle()
        return self.rows

    def advance(self, dataset: Dataset) -> None:
        """One step.  Raises TrainingError if loss or gradient is nan or infinite: before the update, on a GPU up to
        PERIOD steps later, where a step whose gradient is so has updated nothing.
        """
        config = self.config
        if self._clock is None:
            self._clock = time.monotonic(), self.step
        batch = self._batch(dataset)
        losses = self.workers.gradients(noise_prediction_losses, batch, (config.seed, self.step))
        norm = clip_grad_norm(self.workers.flat, config.clip_norm)
        rate = learning_rate(self.step, self.num_steps, peak=config.peak_lr, warmup=config.warmup)
        self._pending.append((losses, norm, batch["t"], rate))
        if len(self._pending) >= self._period:
            self.settle()
        self.adam.step(rate)
        self.ema.update()
        self.step += 1
        if config.minutes is not None and self.step == max(1, config.warmup):
            self.settle()  # which waits until the steps are really done
            fit = self.workers.ranks.broadcast(partial(self._steps_that_fit, config.minutes))  # one clock for all
            self.num_steps = min(self.num_steps, fit)

    def settle(self) -> None:
        """Make rows of all steps so far: what they left on a GPU comes over together, and the host waits for it.

        Raises TrainingError naming the first step whose loss or gradient is nan or infinite, at every call from then
        on: such a run can no longer be saved.
        """
        if not self._pending:
            return
        losses, norms = (to_numpy(xp.stack(values)) for values in list(zip(*self._pending))[:2])
        for values, norm in zip(losses, norms.tolist()):
            loss = float(values.mean())
            if not (math.isfinite(loss) and math.isfinite(norm)):
                raise TrainingError(
                    f"step {len(self.rows) + 1}: loss is {loss}, gradient norm {norm}; "
                    "nothing was saved since, the last checkpoint is good"
                )
            _, _, t, rate = self._pending.pop(0)
            self.rows.append((loss, norm, rate, *_bucket_means(values, t, self.schedule.T)))

    def save(self, path: Path, dataset: Dataset, **more: Any) -> None:
        """Write everything that `restore` and sampling need, atomically.  Raises TrainingError as `settle`.

        more: further settings to keep, or others in place of these, such as the kind.
        """
        arrays = {"schedule/beta": self.schedule.beta, "metrics": np.array(self.metrics).reshape(-1, len(METRICS))}
        names = [name for name, _ in self.workers.model.named_parameters()]
        for kind, flat in self._buffers().items():
            arrays |= {f"{kind}/{name}": to_numpy(a) for name, a in zip(names, self.workers.flat.split(flat))}
        meta = {
            "kind": "diffusion",
            "step": self.step,
            "num_steps": self.num_steps,
            "num_workers": self.workers.num_workers,
            "precision": precision(),
            "noise": "host",  # NumPy's streams, whatever the backend
            "model": self.workers.model.config,
            "train": asdict(self.config),
            "data": {
                "name": dataset.name,
                "source": dataset.source,
                "num": len(dataset),
                "image_shape": list(dataset.images.shape[1:3]) + [1],
            },
        }
        checkpoint.save(path, arrays, meta | more)

    def restore(self, path: Path, arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> None:
        """Continue from what `save` wrote: CheckpointError if it was written for another network."""
        names = [name for name, _ in self.workers.model.named_parameters()]
        views = {
            f"{kind}/{name}": view
            for kind, flat in self._buffers().items()
            for name, view in zip(names, self.workers.flat.split(flat))
        }
        for name, view in views.items():
            saved = arrays.get(name)
            if saved is None or saved.shape != view.shape:
                found = "missing" if saved is None else f"of shape {saved.shape}"
                raise CheckpointError(f"{path}: {name} is {found}, this network's has shape {view.shape}")
        for name, view in views.items():
            view[...] = asarray(arrays[name])
        self.step, self.num_steps = meta["step"], meta["num_steps"]
        self.adam.num_steps = self.ema.num_updates = self.step
        self.rows, self._pending = [tuple(row) for row in arrays["metrics"].tolist()], []

    def _batch(self, dataset: Dataset) -> Batch:
        """The batch of this step.  For a GPU a thread has drawn it during the step before, and draws the next one now.

        The thread works on host arrays only; NumPy lets go of the interpreter's lock meanwhile.  This thread alone
        gives the device orders, and it takes them in order: the copy, from a pinned buffer which asarray fills and
        which CuPy keeps until an event behind the copy has passed, comes after what still reads the batch before, in
        other memory, and ahead of the kernels that read this one.
        """
        draw = partial(self._draw, dataset, self.config)
        if not kernels.available():
            return draw(self.step)
        asked, future = self._ahead
        if future is None or asked != (dataset, self.config, self.step):  # the first step, or not the one foreseen
            future = self._thread.submit(_joined, draw, self.step)
        self._ahead = (dataset, self.config, self.step + 1), self._thread.submit(_joined, draw, self.step + 1)
        pair, batch = future.result()  # or what was raised there
        x_t, target = asarray(pair)
        return batch | {"x_t": x_t, "target": target}

    def _draw(self, dataset: Dataset, config: TrainConfig, step: int) -> Batch:
        ranks, num_classes = self.workers.ranks, self.workers.model.config.get("num_classes")
        rows = {} if ranks.size == 1 else {"rows": ranks.part(config.batch_size)}
        return self.draw(dataset, self.schedule, config, num_classes, step, **rows)

    def _steps_that_fit(self, minutes: float) -> int:
        assert self._clock is not None
        began, first = self._clock
        seconds = (time.monotonic() - began) / (self.step - first)  # a step
        return max(self.step + 1, int(minutes * 60 / seconds))

    def _buffers(self) -> dict[str, Any]:
        return {"weights": self.workers.flat.data, "ema": self.ema.data, "adam_m": self.adam.m, "adam_v": self.adam.v}


def train(state: Training, dataset: Dataset) -> Iterator[Training]:
    """Advance to state.num_steps, yielding the state after each step.  Raises TrainingError as advance does, or if
    memory does not suffice."""

    def gradient(n: int) -> None:
        batch = state._draw(dataset, replace(state.config, batch_size=n), state.step)
        state.workers.gradients(noise_prediction_losses, batch, (state.config.seed, state.step))

    while state.step < state.num_steps:
        try:
            state.advance(dataset)
        except MemoryError as error:
            if state.workers.ranks.size > 1:  # the others wait in this step, and would not follow a search
                raise
            raise out_of_memory(error, state.config.batch_size, gradient) from None
        if state.step >= state.num_steps:
            state.settle()
        yield state


@dataclass(frozen=True)
class FitConfig:
    """What a short run is, besides its network, its data and its loss."""

    num_steps: int
    batch_size: int = 128
    peak_lr: float = 3e-3
    warmup: int = 100  # steps
    seed: int = 0


def fit(
    workers: Workers,
    losses_of: Losses,
    draw: Callable[[int, int], Batch],
    config: FitConfig,
    betas: tuple[float, float] = (0.9, 0.999),
) -> Iterator[float]:
    """Train the workers' network on any loss, yielding the mean loss of each step's batch: a run of minutes, without
    average or resume.

    losses_of(model, batch, rng) -> Tensor (N,), as Workers.gradients takes it.  draw(n, step) -> the n examples of
    0-based `step`.  betas: of Adam.
    Raises TrainingError, before that step's update, if the loss or its gradient is nan or infinite, or if memory does
    not suffice.
    """
    adam = Adam(workers.flat, betas=betas)

    def losses(n: int) -> np.ndarray:
        return workers.gradients(losses_of, draw(n, step), (config.seed, step))

    for step in range(config.num_steps):
        try:
            loss = float(losses(config.batch_size).mean())
        except MemoryError as error:
            raise out_of_memory(error, config.batch_size, losses) from None
        norm = float(clip_grad_norm(workers.flat, CLIP_NORM))
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise TrainingError(f"step {step + 1}: loss is {loss}, gradient norm {norm}; stopped before the update")
        adam.step(learning_rate(step, config.num_steps, peak=config.peak_lr, warmup=config.warmup))
        yield loss


def steps_that_fit(
    workers: Workers, losses_of: Losses, draw: Callable[[int, int], Batch], batch_size: int, minutes: float
) -> int:
    """How many steps of `fit` take these minutes, at least one: by the time of ten gradients, the first three apart."""
    began = 0.0
    for step in range(10):
        if step == 3:
            began = time.monotonic()
        workers.gradients(losses_of, draw(batch_size, step), (0, step))
    return max(1, int(minutes * 60 / ((time.monotonic() - began) / 7)))


def out_of_memory(error: MemoryError, batch_size: int, gradient: Callable[[int], Any]) -> TrainingError:
    """What to raise for a step that has found too little memory: it names the largest batch size that has enough.

    gradient(n) computes that of n examples.  The size is measured: by bisection, until it is within an eighth.
    """
    fits, fails, said = 0, batch_size, str(error).rstrip(".") or "out of memory"
    traceback.clear_frames(error.__traceback__)  # they hold the maps of the failed step
    while fails - fits > 1 + fits // 8:
        n = (fits + fails) // 2
        try:
            gradient(n)
            fits = n
        except MemoryError:
            fails = n
    remedy = f"batch size {fits} fits" if fits else "not even one example fits"
    return TrainingError(f"batch size {batch_size} needs more memory than there is, {remedy} ({said})")


def _joined(draw: Callable[[int], Batch], step: int) -> tuple[np.ndarray, Batch]:
    """A batch, and its x_t and target as one array: one copy to the device."""
    batch = draw(step)
    return np.stack((batch["x_t"], batch["target"])), batch


def _bucket_means(losses: np.ndarray, t: np.ndarray, T: int) -> list[float]:
    """Mean loss of the examples in each quarter of 1..T; nan where the batch has none there."""
    bucket = (t - 1) * NUM_BUCKETS // T
    return [float(losses[bucket == i].mean()) if (bucket == i).any() else math.nan for i in range(NUM_BUCKETS)]
