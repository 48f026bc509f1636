"""A run that is made longer, and a run that starts from the weights of another.

    train ... --steps 2000            the rate of step k is learning_rate(k, 2000)
    train ... --resume --steps 4000   from here on it is learning_rate(k, 4000): it rises once, then falls to 0
    train ... --resume --minutes 60   a finished run: as many steps more as fit into that time
    train ... --from CHECKPOINT       a new run; its weights begin with the average of the weights of another

Read next: flips.py.
"""

import statistics
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import numpy as np

from tinydiff.app import checkpoint
from tinydiff.app.archive import CheckpointError
from tinydiff.app.choices import class_names
from tinydiff.app.generate import current, side_multiple
from tinydiff.app.run import UNLIMITED
from tinydiff.app.training import gradient_seconds
from tinydiff.data import Dataset
from tinydiff.nn import Module
from tinydiff.optim import learning_rate
from tinydiff.train import TrainConfig, Training

LENGTH = {"num_steps", "minutes"}
LABELS = "label."  # the start of the names of parameters that belong to the classes


def continued(config: TrainConfig, meta: dict[str, Any], wanted: dict[str, Any]) -> tuple[TrainConfig, bool]:
    """The settings of a run that goes on, and whether they make it longer.

    config, meta: of the checkpoint.  wanted: the settings that the user has given.  They must be those of the
    checkpoint, else CheckpointError.  But the number of steps may be larger, and a finished run may get minutes.
    """
    checkpoint.check_same(asdict(config), wanted, wanted.keys() - LENGTH)
    steps, minutes, planned = wanted.get("num_steps"), wanted.get("minutes"), meta["num_steps"]
    if steps is not None and steps != planned:
        if steps < planned and (planned < UNLIMITED or steps <= meta["step"]):
            raise CheckpointError(f"--steps {steps}: the run has {planned:,} steps, and can only be made longer")
        return replace(config, num_steps=steps, minutes=None), True
    if minutes is not None and meta["step"] == planned:
        return replace(config, num_steps=UNLIMITED, minutes=minutes), True
    if minutes is not None:
        checkpoint.check_same(asdict(config), wanted, ["minutes"])
    return config, False


def lengthen(state: Training, ranks: Any) -> None:
    """Give a restored run the length of its new settings, and print the new learning rate.

    The time of some gradients tells how many steps fit into the minutes.  A run in its warm-up leaves this to the clock
    of training.steps, because the learning rate of the warm-up does not depend on the number of steps.
    """
    config: Any = state.config
    step, before = state.step, state.num_steps
    state.num_steps = config.num_steps
    if config.minutes is not None and step >= max(1, config.warmup):
        seconds = gradient_seconds(state.gradients, state.losses_of, state.draw, config)
        state.num_steps = step + ranks.broadcast(partial(_fitting, config.minutes, seconds))
    if max(before, state.num_steps) < UNLIMITED:
        old, new = (
            learning_rate(step, n, peak=config.peak_lr, warmup=config.warmup) for n in (before, state.num_steps)
        )
        course = f"the learning rate of step {step + 1:,} is {new:.3g} in place of {old:.3g}, and falls to 0 at the end"
        print(f"longer: {before:,} steps before, {state.num_steps:,} now; {course}")


def network_from(meta: dict[str, Any], dataset: Dataset, channels: int | None) -> dict[str, Any]:
    """The arguments of the UNet of a run that starts from a checkpoint: its own, with the classes of this data set.

    channels: of the first level, if the user has given them.  Raises CheckpointError if the pictures, or the user,
    want another network.
    """
    network, (height, width, in_channels) = current(meta["model"]), dataset.images.shape[1:]
    wanted = {"in_channels": in_channels, "base_channels": channels or network["base_channels"]}
    checkpoint.check_same(network, wanted, wanted)
    multiple = side_multiple(network)
    if height % multiple or width % multiple:
        size = f"pictures of {height} x {width} pixels"
        raise CheckpointError(f"{size}: the network of --from needs sides that are multiples of {multiple}; use --size")
    return network | {"num_classes": None if dataset.labels is None else len(dataset.classes)}


def start_from(model: Module, arrays: dict[str, np.ndarray], meta: dict[str, Any], classes: tuple[str, ...]) -> None:
    """Copy the average of the weights of a checkpoint to a network of network_from, and print what is copied.

    If the classes differ, in number or in name, the network keeps its own embedding of the classes.
    """
    num = meta["model"]["num_classes"]
    names = [] if num is None else [*class_names(meta["data"], num)]
    mine, new = model.state_dict(), []
    for name in mine:
        if name.startswith(LABELS) and names != [*classes]:
            new.append(name)
        else:
            mine[name] = arrays[f"ema/{name}"]
    model.load_state_dict(mine)
    said = f"; new: {', '.join(new)}, for {len(classes)} other classes" if new else ""
    print(f"weights: the average of {meta['step']:,} steps on {meta['data']['name']}{said}")


def _fitting(minutes: float, seconds: list[float]) -> int:
    return min(UNLIMITED // 2, max(1, int(minutes * 60 / statistics.median(seconds))))
