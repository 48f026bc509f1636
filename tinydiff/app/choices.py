"""The choices of a user who draws images: labels, guidance, samplers and times.  Read next: rules.py."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from tinydiff.app import cli
from tinydiff.app.generate import Recipe, by_label
from tinydiff.backend import TinydiffError
from tinydiff.diffusion import Schedule, ddim_step, dpm_solver_2m, guided
from tinydiff.diffusion.guidance import EpsFn
from tinydiff.diffusion.times import Pairs, quadratic_pairs

# The defaults of a pair.  SCALE: of the points that demos/README.md compares, the nearest to the data with 99% read as
# asked.  AUTO: without classes; it brought unguided digits nearer to the data.
SCALE, AUTO = 1.5, 1.5
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


def add_guidance(to: Any) -> None:
    """Add the options that guidance() takes."""
    scale = f"(default: {SCALE:g}; 1 beside --auto; {Recipe.scale:g} for a checkpoint without an early average)"
    auto = f"1 is none (default: 1; {AUTO:g} for a network without classes)"
    to.add_argument(
        "--scale",
        type=cli.non_negative_float,
        help=f"classifier-free guidance: 0 ignores the label, 1 follows it {scale}",
    )
    to.add_argument(
        "--auto",
        metavar="W",
        type=cli.non_negative_float,
        help=f"autoguidance: away from the same network early in its training; {auto}",
    )


def guidance(model: Any, scale: float | None, auto: float | None) -> tuple[dict[str, Any], str]:
    """(settings of a Recipe, a text for titles) of the guidance that a user asks for.

    scale: of classifier-free guidance.  auto: the weight of autoguidance by the network early in its training.  Each is
    1, which is none, if only the other one is given.  Without either, a model with classes has the scale SCALE, or that
    of Recipe if it has no early average; a model without classes has the weight AUTO.  Raises TinydiffError for what
    the model cannot do.
    """
    classes, early = model.num_classes is not None, hasattr(model, "weak")
    if scale is not None and not classes:
        raise TinydiffError(f"--scale {scale:g}: guidance by labels needs a network with classes, and this has none")
    if auto not in (None, 1) and not early:
        needs = "autoguidance needs an early average of the weights, and the checkpoint has none"
        raise TinydiffError(f"--auto {auto:g}: {needs}; its run was too short, or of an earlier version")
    if scale is None and auto is None:
        scale, auto = SCALE if early else Recipe.scale, AUTO if early and not classes else 1
    scale, auto = float(1 if scale is None or not classes else scale), float(1 if auto is None else auto)
    texts = [f"guidance {scale:g}"] if classes and (auto == 1 or scale != 1) else []
    texts += [f"autoguidance {auto:g}"] if auto != 1 else []
    guide = partial(by_early, auto) if auto != 1 else by_label
    return {"scale": scale, "guide": guide}, ", ".join(texts) or "no labels"


def by_early(w: float, model: Any, labels: Sequence[int], scale: float) -> EpsFn:
    """The guide of a Recipe: autoguidance of weight w, away from the early network, around classifier-free guidance.

    model: a Pair of trained.py, with the early network as model.weak.
    """
    return guided(by_label(model, labels, scale), by_label(model.weak, labels, 1.0), w)


def DDIM(schedule: Schedule, eta: float = 0.0) -> Callable:
    """ddim_step in the form that a Recipe takes.  For another eta use partial(DDIM, eta=1.0)."""
    return partial(ddim_step, schedule, eta=eta, clip=True)


def DPM_SOLVER_2M(schedule: Schedule) -> Callable:
    """A new dpm_solver_2m in the form that a Recipe takes."""
    return dpm_solver_2m(schedule, clip=True)


def quadratic(schedule: Schedule, num_steps: int) -> Pairs:
    """quadratic_pairs in the form that a Recipe takes."""
    return quadratic_pairs(schedule.T, num_steps)
