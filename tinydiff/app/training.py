"""What attaches to the training loop from outside: a clock, too little memory, saving and resuming; and the short run.

    state = diffusion_training(workers, schedule, config, dataset)      # a Training of workers or ranks
    for state in steps(state, ranks, config.minutes):                   # train(state), under a clock
        save(state, path, dataset, schedule, workers.num_workers)

With the same number of workers a resumed run has the weights of an uninterrupted one, bit for bit.  Read next: run.py.
"""

import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tinydiff.app import checkpoint
from tinydiff.app.alone import one_process
from tinydiff.app.blocks import in_blocks
from tinydiff.app.checkpoint import CheckpointError
from tinydiff.backend import FAST, asarray, backend_name, precision, to_numpy
from tinydiff.data import Dataset
from tinydiff.diffusion import Schedule
from tinydiff.nn import Module
from tinydiff.train import METRICS, Batch, LoopConfig, Losses, TrainConfig, Training, TrainingError, draw_batch, train

Draw = Callable[[Any, int], Batch]


def diffusion_training(
    workers: Any, schedule: Schedule, config: TrainConfig, dataset: Dataset, draw: Draw | None = None
) -> Training:
    """A fresh run of noise prediction; draw: None, or what draws a batch in place of draw_batch."""
    if draw is None:

        def draw_from(source: Dataset) -> Draw:
            return partial(draw_batch, source, schedule, workers.model.num_classes)

        draw = in_blocks(draw_from, dataset, workers.ranks.part)
    if FAST and backend_name() != "numpy":
        from tinydiff.fast.gpu import Ahead

        draw = Ahead(draw)
    return Training(workers.model, config, draw, T=schedule.T, **_shared(workers))


def steps(state: Training, ranks: Any, minutes: float | None = None) -> Iterator[Training]:
    """train(state); raises TrainingError as train does, and if memory does not suffice.

    minutes: None, or the time that training may take.  At the end of the warm-up the speed so far tells how many steps
    fit, and num_steps is lowered to that.  Only there does a clock enter, and the checkpoint keeps what was decided.
    """
    config, first, began = state.config, state.step, time.monotonic()

    def fitting(minutes: float) -> int:
        return max(state.step + 1, int(minutes * 60 * (state.step - first) / (time.monotonic() - began)))

    try:
        for _ in train(state):
            if minutes is not None and state.step == max(1, config.warmup):
                state.metrics()  # on a GPU this waits until the steps are really done
                state.num_steps = min(state.num_steps, ranks.broadcast(partial(fitting, minutes)))  # one clock for all
            if state.step >= state.num_steps:
                state.metrics()
            yield state
    except MemoryError as error:
        if ranks.size > 1:  # the others wait in this step, and would not follow a search
            raise
        raise out_of_memory(error, config.batch_size, partial(_gradient, state)) from None


def fit(workers: Any, losses_of: Losses, draw: Draw, config: LoopConfig) -> Iterator[float]:
    """Train the workers' network on any loss, yielding the mean loss of each step's batch: a run of minutes.

    losses_of, draw: see Training.  Raises TrainingError as `steps` does.
    """
    state = Training(workers.model, config, draw, losses_of, **_shared(workers))
    for _ in steps(state, one_process()):
        yield state.metrics()[-1][0]


def steps_that_fit(workers: Any, losses_of: Losses, draw: Draw, config: LoopConfig, minutes: float) -> int:
    """How many steps of `fit` take these minutes, at least one: by the time of ten gradients, the first three apart."""
    began = 0.0
    for step in range(10):
        if step == 3:
            began = time.monotonic()
        workers.gradients(losses_of, draw(config, step))
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


def whole(state: Training) -> bool:
    """Whether all parts stand at the same step, so that it may be saved: not so within an update."""
    noted = len(state.rows) + len(vars(state).get("late", ()))
    return state.adam.num_steps == state.ema.num_updates == state.step == noted


def by_name(model: Module, arrays: list[Any]) -> dict[str, np.ndarray]:
    """Numbers for every parameter, one array each or all in one, as host arrays by the parameter's name."""
    flat, parts, start = np.concatenate([to_numpy(a).reshape(-1) for a in arrays]), {}, 0
    for name, p in model.named_parameters():
        parts[name] = flat[start : start + p.size].reshape(p.shape)
        start += p.size
    return parts


def save(state: Training, path: Path, dataset: Dataset, schedule: Schedule, num_workers: int, **more: Any) -> None:
    """Write everything that `restore` and sampling need, atomically.  Raises TrainingError as Training.metrics.

    more: further settings to keep, or others in place of these, such as the kind.
    """
    arrays = {"schedule/beta": schedule.beta, "metrics": np.array(state.metrics()).reshape(-1, len(METRICS))}
    for kind, buffers in _buffers(state).items():
        arrays |= {f"{kind}/{name}": a for name, a in by_name(state.model, buffers).items()}
    data = {"name": dataset.name, "source": dataset.source, "num": len(dataset)}
    meta = {
        "kind": "diffusion",
        "step": state.step,
        "num_steps": state.num_steps,
        "num_workers": num_workers,
        "precision": precision(),
        "noise": "host",  # NumPy's streams, whatever the backend
        "model": state.model.config,
        "train": asdict(state.config),
        "data": data | {"image_shape": [*dataset.images.shape[1:3], 1]},
    }
    checkpoint.save(path, arrays, meta | more)


def restore(state: Training, path: Path, arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> None:
    """Continue from what `save` wrote: CheckpointError if it was written for another network."""
    shapes = {name: p.shape for name, p in state.model.named_parameters()}
    for kind in _buffers(state):
        for name, shape in shapes.items():
            saved = arrays.get(f"{kind}/{name}")
            if saved is None or saved.shape != shape:
                found = "missing" if saved is None else f"of shape {saved.shape}"
                raise CheckpointError(f"{path}: {kind}/{name} is {found}, this network's has shape {shape}")
    for kind, buffers in _buffers(state).items():
        flat, start = np.concatenate([arrays[f"{kind}/{name}"].reshape(-1) for name in shapes]), 0
        for a in buffers:
            a[...] = asarray(flat[start : start + a.size].reshape(a.shape), a.dtype)
            start += a.size
    state.step, state.num_steps = meta["step"], meta["num_steps"]
    state.adam.num_steps = state.ema.num_updates = state.step
    state.rows[:] = [tuple(row) for row in arrays["metrics"].tolist()]


def saved_config(meta: dict[str, Any]) -> TrainConfig:
    """The TrainConfig of a checkpoint; CheckpointError if it was trained with an option that this version lacks."""
    settings = dict(meta["train"])
    if settings.pop("weight_decay", 0.0):  # earlier versions had it
        raise CheckpointError("the checkpoint was trained with weight_decay, which this version does not have")
    betas = tuple(settings.get("betas", TrainConfig.betas))  # JSON has made it a list
    return TrainConfig(**settings | {"betas": betas})


def _shared(workers: Any) -> dict[str, Any]:
    """How workers attach to a Training: they compute the gradients, and keep the parameters in their own buffer."""
    return {"gradients": workers.gradients, "parameters": workers.parameters}


def _gradient(state: Training, n: int) -> None:
    """The gradient of n examples of the step to come."""
    state.gradients(state.losses_of, state.draw(replace(state.config, batch_size=n), state.step))


def _buffers(state: Training) -> dict[str, list[Any]]:
    weights = [p.data for p in state.parameters]
    return {"weights": weights, "ema": state.ema.average, "adam_m": state.adam.m, "adam_v": state.adam.v}
