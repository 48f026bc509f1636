"""Additions to the training loop of train.py: workers, a clock, a batch size that fits into memory, and checkpoints.

    state = diffusion_training(workers, schedule, config, dataset)      # a Training of workers or ranks
    for state in steps(state, ranks, config.minutes):                   # train(state), under a clock
        save(state, path, dataset, schedule, workers.num_workers)

With the same number of workers, a resumed run ends with the same weights as an uninterrupted run, bit for bit.
Read next: early.py.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tinydiff.app import checkpoint
from tinydiff.app.blocks import in_blocks
from tinydiff.app.checkpoint import CheckpointError
from tinydiff.app.early import early_buffers, expect
from tinydiff.app.flips import draw_flipped_batch
from tinydiff.app.kinds import PROGRESS, about, data_settings, rows
from tinydiff.app.memory import out_of_memory
from tinydiff.app.rules import check_numbers, check_settings, check_weights
from tinydiff.autograd import mark_written
from tinydiff.backend import FAST, asarray, backend_name, precision, require, to_numpy
from tinydiff.data import Dataset
from tinydiff.diffusion import Schedule
from tinydiff.nn import Module
from tinydiff.train import METRICS, NUM_BUCKETS, Batch, Losses, TrainConfig, Training, TrainingError, draw_batch, train

Draw = Callable[[Any, int], Batch]
FEW = 10  # steps: fewer say too little about the speed of a run


def diffusion_training(
    workers: Any,
    schedule: Schedule,
    config: TrainConfig,
    dataset: Dataset,
    draw: Draw | None = None,
    flip: bool = False,
    make: type[Training] = Training,
) -> Training:
    """The state of a new training run of a diffusion model.

    draw: None, or a function draw(config, step) -> batch that replaces draw_batch.  flip: mirror half of the pictures.
    make: Training, or early.Remembering, which also keeps an early average of its weights.
    """
    if draw is None:
        once, num_classes = draw_flipped_batch if flip else draw_batch, workers.model.num_classes
        draw = in_blocks(lambda source: partial(once, source, schedule, num_classes), dataset, workers.ranks.part)
    if FAST and backend_name() != "numpy":
        from tinydiff.fast.gpu import Ahead

        draw = Ahead(draw)
    return make(workers.model, config, draw, T=schedule.T, **attached(workers))


def steps(
    state: Training, ranks: Any, minutes: float | None = None, report: Callable[[str], Any] = print
) -> Iterator[Training]:
    """train(state), under a clock.  Raises TrainingError as `train` does, and also for too little memory.

    report(line): tells the user once whether the steps are recorded, which only happens on a GPU (fast/graph.py).
    minutes: None, or the time that training may take.  At the end of the warm-up the median time of a step predicts how
    many steps fit into that time, and num_steps is lowered to this number.  A pause of the process or of the machine
    changes no median.  The clock has no other effect.  Checkpoints after the warm-up contain the lowered number, so a
    run that is resumed from them needs no clock.
    """
    config, seconds, began, ordered = state.config, list[float](), time.monotonic(), state.gradients

    def fitting(minutes: float) -> int:
        return max(state.step + 1, int(minutes * 60 / statistics.median(seconds)))

    try:
        for _ in _recorded(state, ranks, report):
            if minutes is not None and state.step <= max(1, config.warmup):
                state.metrics()  # a GPU has computed the step when its row is here
            seconds.append(time.monotonic() - began)
            if minutes is not None and state.step == max(1, config.warmup):
                if len(seconds) < FEW:  # a run that was resumed at the end of its warm-up
                    seconds = gradient_seconds(ordered, state.losses_of, state.draw, config)
                state.num_steps = min(state.num_steps, ranks.broadcast(partial(fitting, minutes)))  # one clock for all
            if state.step >= state.num_steps:
                state.metrics()
            yield state
            began = time.monotonic()  # what the caller does between two steps takes no time of training
    except MemoryError as error:
        if ranks.size > 1:  # the other ranks still wait in this step and cannot take part in the search
            raise
        raise out_of_memory(error, config.batch_size, partial(_gradient, state)) from None


def gradient_seconds(
    gradients: Callable, losses_of: Losses, draw: Draw, config: Any, num: int = 7, slow: int = 3
) -> list[float]:
    """The seconds of `num` gradients, after the first `slow` ones, which take longer.  No parameter changes."""
    seconds = []
    for step in range(slow + num):
        began = time.monotonic()
        to_numpy(gradients(losses_of, draw(config, step)))  # the losses: a GPU has computed its step when they are here
        seconds.append(time.monotonic() - began)
    return seconds[slow:]


def whole(state: Training) -> bool:
    """Whether all parts of the state belong to the same step and can be saved.  During an update this is False."""
    noted = len(state.rows) + len(vars(state).get("late", ()))
    return state.adam.num_steps == state.ema.num_updates == state.step == noted


def by_name(model: Module, arrays: list[Any]) -> dict[str, np.ndarray]:
    """{parameter name: host array}.  arrays: together one number for each number of the parameters, in their order."""
    names, parameters = zip(*model.named_parameters())
    sizes = sum(a.size for a in arrays), model.num_parameters()
    require(sizes[0] == sizes[1], "the network must have as many numbers as when its Training was made", sizes)
    return dict(zip(names, _cut([to_numpy(a) for a in arrays], parameters)))


def save(
    state: Training, path: str | Path, dataset: Dataset, schedule: Schedule, num_workers: int = 1, **more: Any
) -> None:
    """Write a checkpoint with everything that `restore` and sampling need, complete or not at all.

    more: further settings.  They replace settings of the same name, such as `kind`.
    Raises TrainingError as Training.metrics does, and if a number is not finite, and CheckpointError if the file cannot
    be written.
    """
    arrays = arrays_of(state)
    check_finite(path, {name: a for name, a in arrays.items() if name != "metrics"})  # an empty quarter's loss is nan
    meta = {
        "kind": "diffusion",
        "step": state.step,
        "num_steps": state.num_steps,
        "num_workers": num_workers,
        "precision": precision(),
        "noise": "host",  # random numbers come from NumPy, on every backend
        "model": state.model.config,
        "train": asdict(state.config),
        "data": data_settings(dataset),
    }
    checkpoint.save(path, {"schedule/beta": schedule.beta} | arrays, meta | more)


def arrays_of(state: Training) -> dict[str, np.ndarray]:
    """All numbers of a run on the host: the metrics of its steps, weights, averages and moments.

    Raises TrainingError as Training.metrics does.
    """
    columns = len(METRICS) - (NUM_BUCKETS if state.T is None else 0)
    arrays = {"metrics": np.array(state.metrics()).reshape(-1, columns)}
    for kind, buffers in _buffers(state).items():
        arrays |= {f"{kind}/{name}": a for name, a in by_name(state.model, buffers).items()}
    return arrays


def check_finite(path: str | Path, arrays: dict[str, np.ndarray]) -> None:
    """TrainingError, before anything is written, if one of the arrays of a network is not finite."""
    for name, a in arrays.items():
        if not np.isfinite(a).all():
            raise TrainingError(f"{name} is not finite: {path} is not written, so the last checkpoint is finite")


def restore(state: Training, path: Path, arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> None:
    """Continue from a checkpoint that `save` has written.

    Raises CheckpointError if the network is another one, or if its numbers are not finite.
    """
    shapes = {name: p.shape for name, p in state.model.named_parameters()}
    wanted = {f"{kind}/{name}": shape for kind in _buffers(expect(state, arrays)) for name, shape in shapes.items()}
    columns = len(METRICS) - (NUM_BUCKETS if state.T is None else 0)
    with about(path):
        check_settings(meta, PROGRESS)
        check_weights(arrays, wanted)
        mine = {name: a for name, a in arrays.items() if name in wanted or name == "metrics"}
        check_numbers(mine, {"metrics": rows(columns)}, meta)
    for kind, buffers in _buffers(state).items():
        for a, part in zip(buffers, _cut([arrays[f"{kind}/{name}"] for name in shapes], buffers)):
            a[...] = asarray(part, a.dtype)
    mark_written(state.model.parameters())
    state.step, state.num_steps = meta["step"], meta["num_steps"]
    state.adam.num_steps = state.ema.num_updates = state.step
    state.rows[:] = [tuple(row) for row in arrays["metrics"].tolist()]
    vars(state).pop("late", None)  # records of steps on a GPU that have no row yet


def saved_config(meta: dict[str, Any]) -> TrainConfig:
    """The TrainConfig of a checkpoint.  Raises CheckpointError for an option that this version does not have."""
    settings: dict[str, Any] = {"optimizer": "adam"} | meta["train"]  # earlier versions had no other
    for name in settings.keys() - {field.name for field in fields(TrainConfig)}:  # weight_decay of earlier versions
        if settings.pop(name):
            raise CheckpointError(f"the checkpoint was trained with {name:.100}, which this version does not have")
    # JSON stores the tuple as a list.
    return TrainConfig(**settings | {"betas": tuple(settings.get("betas", TrainConfig.betas))})


def attached(workers: Any) -> dict[str, Any]:
    """The arguments that attach workers to a Training.  The workers compute the gradients and hold the parameters."""
    return {"gradients": workers.gradients, "parameters": workers.parameters}


def _recorded(state: Training, ranks: Any, report: Callable[[str], Any]) -> Iterator[Training]:
    """train(state); on a GPU its steps are recorded and replayed."""
    if not FAST or backend_name() == "numpy":
        yield from train(state)
        return
    from tinydiff.fast.graph import recording

    with recording(state, ranks, report):
        yield from train(state)


def drawing(workers: Any, state: Training) -> Any:
    """Within the block the workers have the average of the run's weights, and not the weights of its last step."""
    return workers.weights(state.ema.average)


def _gradient(state: Training, n: int) -> None:
    """Compute the gradient of n examples of the next step."""
    state.gradients(state.losses_of, state.draw(replace(state.config, batch_size=n), state.step))


def _cut(arrays: Sequence[np.ndarray], like: Sequence[Any]) -> list[np.ndarray]:
    """All numbers of `arrays` in order, cut again into arrays with the shapes of `like`."""
    ends = np.cumsum([a.size for a in like])[:-1]
    flat = np.concatenate([a.reshape(-1) for a in arrays])
    return [part.reshape(a.shape) for part, a in zip(np.split(flat, ends), like)]


def _buffers(state: Training) -> dict[str, list[Any]]:
    buffers = {"weights": [p.data for p in state.parameters], "ema": state.ema.average}
    return buffers | early_buffers(state) | {"adam_m": state.adam.m, "adam_v": state.adam.v}
