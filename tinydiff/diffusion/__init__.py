"""The mathematics of diffusion on plain arrays: no network, no autograd.

Read in this order: schedule.py (the tables), gaussian.py (the closed forms), samplers.py (the reverse steps),
guidance.py (from a network to eps_fn).
"""

from tinydiff.diffusion.gaussian import eps_from_x_0, q_sample, q_x_s_given_x_t_x_0, q_x_t_given_x_s, x_0_from_eps
from tinydiff.diffusion.guidance import classifier_free, unconditional
from tinydiff.diffusion.samplers import ddim_step, ddpm_step, sample, timestep_pairs
from tinydiff.diffusion.schedule import Schedule, ScheduleWarning

__all__ = [
    "Schedule",
    "ScheduleWarning",
    "classifier_free",
    "ddim_step",
    "ddpm_step",
    "eps_from_x_0",
    "q_sample",
    "q_x_s_given_x_t_x_0",
    "q_x_t_given_x_s",
    "sample",
    "timestep_pairs",
    "unconditional",
    "x_0_from_eps",
]
