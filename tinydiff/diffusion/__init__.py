"""The mathematics of diffusion on plain arrays: no network, no autograd.

Read in this order: schedule.py (the tables), gaussian.py (the closed forms), samplers.py (the reverse steps),
guidance.py (from a network to eps_fn), editing.py (existing images edited), likelihood.py (what the model spends on an
image, in nats).
"""

from tinydiff.diffusion.editing import ddim_invert, inpaint, pairs_below, sdedit, slerp
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
from tinydiff.diffusion.guidance import classifier_free, unconditional
from tinydiff.diffusion.likelihood import (
    bound_term,
    discretized_log_prob,
    gaussian_kl,
    gaussian_log_density,
    prior_kl,
    sampled_bound,
    variational_bound,
)
from tinydiff.diffusion.samplers import ddim_step, ddpm_step, sample, timestep_pairs
from tinydiff.diffusion.schedule import Schedule, ScheduleWarning

__all__ = [
    "Schedule",
    "ScheduleWarning",
    "bound_term",
    "classifier_free",
    "ddim_invert",
    "ddim_step",
    "ddpm_step",
    "discretized_log_prob",
    "eps_from_v",
    "eps_from_x_0",
    "gaussian_kl",
    "gaussian_log_density",
    "inpaint",
    "pairs_below",
    "prior_kl",
    "q_sample",
    "q_x_s_given_x_t_x_0",
    "q_x_t_given_x_s",
    "sample",
    "sampled_bound",
    "sdedit",
    "slerp",
    "timestep_pairs",
    "unconditional",
    "v_from_x_0_eps",
    "variational_bound",
    "x_0_from_eps",
    "x_0_from_v",
]
