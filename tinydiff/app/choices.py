"""The choices of a user who draws images: labels, samplers and times.  Read next: rules.py."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from tinydiff.app import cli
from tinydiff.backend import TinydiffError
from tinydiff.diffusion import Schedule, ddim_step, dpm_solver_2m
from tinydiff.diffusion.times import Pairs, quadratic_pairs

labels = cli.list_of(cli.whole(0, 999), repeats=True)  # option type: "7", "0-9", "3,3,7-9"


def check_classes(path: Any, model: Any) -> None:
    """Raise TinydiffError for a checkpoint whose network was trained without classes."""
    if model.num_classes is None:
        raise TinydiffError(f"{path}: this program needs a network with classes, and this one has none")


def check_labels(model: Any, **labels: Any) -> None:
    """Raise TinydiffError for an option of main with a label, or a list of labels, that the network does not have."""
    for option, label in labels.items():
        if model.num_classes is None:
            raise TinydiffError(f"--{option} {cli.as_typed(label)}: the network has no classes")
        if (largest := max(np.atleast_1d(label))) >= model.num_classes:
            raise TinydiffError(f"--{option} {largest}: must be at most {model.num_classes - 1}, the last class")


def class_names(data: dict[str, Any], num_classes: int) -> Sequence[str]:
    """The names of a network's classes.  data: the settings of the data set, from the network's checkpoint.

    An old checkpoint contains no names: they are those of Fashion-MNIST, or the numbers of the classes.
    """
    if data["name"] == "fashion" and num_classes == 10:
        from tinydiff.data.releases import CLOTHES  # a run opens only the files of its own data set

        return CLOTHES
    return data.get("classes") or [str(k) for k in range(num_classes)]


def DDIM(schedule: Schedule, eta: float = 0.0) -> Callable:
    """ddim_step in the form that a Recipe takes.  For another eta use partial(DDIM, eta=1.0)."""
    return partial(ddim_step, schedule, eta=eta, clip=True)


def DPM_SOLVER_2M(schedule: Schedule) -> Callable:
    """A new dpm_solver_2m in the form that a Recipe takes."""
    return dpm_solver_2m(schedule, clip=True)


def quadratic(schedule: Schedule, num_steps: int) -> Pairs:
    """quadratic_pairs in the form that a Recipe takes."""
    return quadratic_pairs(schedule.T, num_steps)
