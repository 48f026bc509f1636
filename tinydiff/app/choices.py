"""The choices of a user who draws images: labels, samplers and times.  Read next: rules.py."""

import argparse
import re
from collections.abc import Callable
from functools import partial

from tinydiff.diffusion import Schedule, ddim_step, dpm_solver_2m
from tinydiff.diffusion.times import Pairs, quadratic_pairs


def labels(text: str) -> tuple[int, ...]:
    """Option type: digits 0..9 and ranges of digits, separated by commas, in the order given: "7", "0-9", "3,3,7-9"."""
    chosen: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*([0-9])\s*(?:-\s*([0-9])\s*)?", part)
        if not match or (match[2] and match[2] < match[1]):
            raise argparse.ArgumentTypeError(f"must be digits or rising ranges such as 7, 0-9 or 1,3,5-7, got {text!r}")
        chosen += range(int(match[1]), int(match[2] or match[1]) + 1)
    return tuple(chosen)


def DDIM(schedule: Schedule, eta: float = 0.0) -> Callable:
    """ddim_step in the form that a Recipe takes.  For another eta use partial(DDIM, eta=1.0)."""
    return partial(ddim_step, schedule, eta=eta, clip=True)


def DPM_SOLVER_2M(schedule: Schedule) -> Callable:
    """A new dpm_solver_2m in the form that a Recipe takes."""
    return dpm_solver_2m(schedule, clip=True)


def quadratic(schedule: Schedule, num_steps: int) -> Pairs:
    """quadratic_pairs in the form that a Recipe takes."""
    return quadratic_pairs(schedule.T, num_steps)
