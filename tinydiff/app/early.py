"""An early average of a run's weights.  Later it guides the trained network: autoguidance (Karras et al. 2024).

    eps_hat = eps_early + w (eps - eps_early)                       diffusion/moderation.py, guided

The average of the weights after a part of all steps is a weaker version of the trained network.  A run that remembers
it saves it in its checkpoint, in arrays `weak/...`, beside the average of all steps, `ema/...`.
Read next: memory.py.
"""

from collections.abc import Iterable
from typing import Any

from tinydiff.backend import xp
from tinydiff.train import Training

SHARE = 0.25  # of all steps
START = "weak/"  # of the names of the arrays in a checkpoint


class Remembering(Training):
    """A Training that also holds an early average of its weights.  early: arrays like ema.average, or None."""

    early: list[Any] | None = None


def early_step(state: Training) -> int:
    """The number of steps after which the early average is taken.

    It is a share of all steps, and not before the end of the warm-up: there a clock sets the number of all steps.
    """
    return max(1, state.config.warmup, round(SHARE * state.num_steps))


def remember(state: Training) -> None:
    """Take the early average if its step has just been done, and if it is not the last one.

    Called again at the same step, as at the start of a run that goes on, it takes the same numbers.  A run that is made
    longer takes a new one, if the new step is still to come.
    """
    if isinstance(state, Remembering) and state.step == early_step(state) < state.num_steps:
        state.early = [a.copy() for a in state.ema.average]


def why_none(state: Training) -> str:
    """The reason why this run will end without an early average; "" if it has one or will take one."""
    step = early_step(state)
    if getattr(state, "early", None) is not None or state.step <= step < state.num_steps:
        return ""
    run = f"a run of {state.num_steps:,} steps" if step >= state.num_steps else f"this run, at step {state.step:,},"
    return f"{run} has no early average of its weights, which would be that of step {step}"


def expect(state: Training, arrays: dict[str, Any]) -> Training:
    """The state, with space for the early average of a checkpoint, or without it if these arrays contain none."""
    if isinstance(state, Remembering):
        state.early = list(map(xp.zeros_like, state.ema.average)) if any(map(is_early, arrays)) else None
    return state


def early_buffers(state: Training) -> dict[str, list[Any]]:
    """{start of the names: the arrays of the early average}, if the state holds one."""
    early = getattr(state, "early", None)
    return {} if early is None else {START.rstrip("/"): early}


def is_early(name: str) -> bool:
    """Whether an array of a checkpoint, by its name, belongs to an early average."""
    return name.startswith(START)


def there(starts: Iterable[str], names: Iterable[str]) -> list[str]:
    """The starts of the names of arrays, without that of an early average if no array has it."""
    return [start for start in starts if start != START or any(map(is_early, names))]
