"""The mathematics of diffusion on plain arrays: no network, no autograd.

Read in this order: schedule.py (the tables), gaussian.py (the closed forms), times.py (which t to visit), samplers.py
(the reverse steps), targets.py (what a network may say), guidance.py (from a network to eps_fn), editing.py (existing
images edited), likelihood.py (what the model spends on an image, in nats).
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
from tinydiff.diffusion.guidance import (
    classifier_free,
    classifier_guided,
    known_probs,
    rescaled,
    unconditional,
    with_drawn_labels,
    within,
)
from tinydiff.diffusion.likelihood import (
    bound_term,
    discretized_log_prob,
    gaussian_kl,
    gaussian_log_density,
    prior_kl,
    sampled_bound,
    variational_bound,
)
from tinydiff.diffusion.samplers import ddim_step, ddpm_step, dpm_solver_2m, sample
from tinydiff.diffusion.schedule import Schedule, ScheduleWarning
from tinydiff.diffusion.targets import EPS, X_0, Target, V, as_eps_fn, min_snr_weight
from tinydiff.diffusion.times import log_snr_pairs, quadratic_pairs, timestep_pairs

__all__ = [
    "EPS",
    "X_0",
    "Schedule",
    "ScheduleWarning",
    "Target",
    "V",
    "as_eps_fn",
    "bound_term",
    "classifier_free",
    "classifier_guided",
    "ddim_invert",
    "ddim_step",
    "ddpm_step",
    "discretized_log_prob",
    "dpm_solver_2m",
    "eps_from_v",
    "eps_from_x_0",
    "gaussian_kl",
    "gaussian_log_density",
    "inpaint",
    "known_probs",
    "log_snr_pairs",
    "min_snr_weight",
    "pairs_below",
    "prior_kl",
    "q_sample",
    "q_x_s_given_x_t_x_0",
    "q_x_t_given_x_s",
    "quadratic_pairs",
    "rescaled",
    "sample",
    "sampled_bound",
    "sdedit",
    "slerp",
    "timestep_pairs",
    "unconditional",
    "v_from_x_0_eps",
    "variational_bound",
    "with_drawn_labels",
    "within",
    "x_0_from_eps",
    "x_0_from_v",
]
