"""The mathematics of diffusion on plain arrays: no network, no autograd.

    schedule     the tables                            times        which t to visit
    gaussian     the closed forms                      targets      what a network may predict
    samplers     the reverse steps                     likelihood   what the model spends on an image, in nats
    guidance     from a network to eps_fn              editing      existing images edited
                                                       solver       a reverse step of second order
                                                       moderation   guidance by a weaker self, and with limits
                                                       edm          noise levels; a network of variance 1
                                                       flow         straight paths

The left column is the book; the right one holds further chapters.  README.md derives every formula.
Read next: schedule.py.
"""

from typing import Any

from tinydiff.diffusion.gaussian import (
    eps_from_v,
    eps_from_x_0,
    q_sample,
    q_x_s_given_x_t_x_0,
    q_x_t_given_x_s,
    v_from_x_0_eps,
    x_0_from_eps,
    x_0_from_v,
)
from tinydiff.diffusion.guidance import classifier_free, classifier_guided, unconditional
from tinydiff.diffusion.samplers import ddim_step, ddpm_step, sample
from tinydiff.diffusion.schedule import Schedule, ScheduleWarning
from tinydiff.diffusion.times import log_snr_pairs, quadratic_pairs, timestep_pairs

__all__ = [
    "Schedule", "ScheduleWarning", "classifier_free", "classifier_guided", "ddim_step", "ddpm_step", "dpm_solver_2m",
    "eps_from_v", "eps_from_x_0", "guided", "log_snr_pairs", "q_sample", "q_x_s_given_x_t_x_0", "q_x_t_given_x_s",
    "quadratic_pairs", "rescaled", "sample", "timestep_pairs", "unconditional", "v_from_x_0_eps", "within",
    "x_0_from_eps", "x_0_from_v",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import a name of another chapter when it is first asked for."""
    # The import below asks for each of these names, and because there is none it imports the file.
    if name not in ("editing", "edm", "flow", "likelihood", "moderation", "solver", "targets", "variance"):
        from tinydiff.diffusion import editing, edm, flow, likelihood, moderation, solver, targets, variance

        for chapter in (editing, edm, flow, likelihood, moderation, solver, targets, variance):
            if getattr(getattr(chapter, name, None), "__module__", "") == chapter.__name__:
                return getattr(chapter, name)
    raise AttributeError(f"tinydiff.diffusion has no {name}")
