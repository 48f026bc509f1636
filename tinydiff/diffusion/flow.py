"""Rectified flow, also called flow matching: straight paths, as one more schedule and one more target.

    x = (1 - tau) x_0 + tau eps,   tau from 0 to 1        the path                     Liu et al. 2023, eq. 1
    u = dx/dtau = eps - x_0                               its velocity, the target     Liu et al. 2023, eq. 1
    x <- x + (tau_s - tau_t) u_hat                        a step of the sampler, Euler's

These papers count time from noise to data, or write t or sigma for tau.  Each schedule of this package runs along the
same paths.  The path is x_t, divided by the sum of its two coefficients:

    x = x_t/(sqrt(alpha_bar_t) + sqrt(1 - alpha_bar_t))
    tau_t = sqrt(1 - alpha_bar_t)/(sqrt(alpha_bar_t) + sqrt(1 - alpha_bar_t)) = sigma_t/(1 + sigma_t)

So Euler's step is ddim_step, exactly, and u is a target under each schedule, as v is.  Schedules differ in how tau
grows with t, and so in how often training draws each tau.  Rectified flow draws tau evenly: its schedule is `straight`,
because training draws t evenly.  The network is given x_t, not x.  Read next: targets.py.
"""

from typing import Any

from tinydiff.backend import host_integers
from tinydiff.diffusion.edm import from_noise_levels
from tinydiff.diffusion.gaussian import check_alike, check_time, per_row
from tinydiff.diffusion.schedule import Schedule


def straight(T: int = 1000) -> Schedule:
    """The schedule whose tau grows evenly (Liu et al. 2023, eq. 1).

        tau_t = t/(T + 1),   alpha_bar_t = (1 - tau_t)^2/((1 - tau_t)^2 + tau_t^2)

    tau_T is T/(T + 1), not 1: at tau = 1 nothing of x_0 would be left in x_T, so beta_T would be 1, and x_0_hat could
    not be computed from eps_hat.  1/T of x_0 is left at t = T: sqrt(alpha_bar_T) is about 1/T.  T in 1..1,000,000, else
    ValueError.
    """
    T = int(host_integers("T", T, 1, 1_000_000))
    return from_noise_levels([t / (T + 1 - t) for t in range(1, T + 1)])


def u_from_x_0_eps(schedule: Schedule, x_0: Any, t: Any, eps: Any) -> Any:
    """The velocity u = eps - x_0 of a path, the same at each t (Liu et al. 2023, eq. 1).

    x_0, eps: (N, ...) of one dtype.  t in 0..T, else ValueError.
    """
    check_alike("eps", eps, "x_0", x_0)
    check_time(schedule, "t", t, x_0)
    return eps - x_0


def eps_from_u(schedule: Schedule, x_t: Any, t: Any, u: Any) -> Any:
    """The eps that belongs to x_t and u: the end of the path at tau = 1.

        eps = (x_t + sqrt(alpha_bar_t) u)/(sqrt(alpha_bar_t) + sqrt(1 - alpha_bar_t)) = x + (1 - tau_t) u

    x_t, u: (N, ...) of one dtype.  t in 0..T, else ValueError.  The sum is at least 1, so no digits are lost.
    """
    check_alike("u", u, "x_t", x_t)
    t = check_time(schedule, "t", t, x_t)
    signal_std, noise_std = schedule.alpha_bar[t] ** 0.5, schedule.one_minus_alpha_bar[t] ** 0.5
    x_t_coef = 1 / (signal_std + noise_std)
    return per_row(x_t_coef, x_t) * x_t + per_row(signal_std * x_t_coef, x_t) * u
