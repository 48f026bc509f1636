"""The Gaussians of the forward process: every closed form that training and sampling stand on.

    q(x_t | x_0)        the noised data, drawn in one step                     Ho et al. 2020, eq. 4
    q(x_t | x_s)        a forward jump, s < t; the Markov step is s = t - 1    eq. 2 and its composition
    q(x_s | x_t, x_0)   the posterior, the ideal reverse step, s < t           eq. 6 and 7
    x_0 <-> eps <-> v   given x_t, each one determines the other two           eq. 4 solved for x_0 and for eps
    v                   the velocity of x_t as it turns from x_0 into eps      Salimans & Ho 2022, appendix D

This file has no networks and no randomness: noise is an argument, a distribution is a pair (mean, var).  Each
coefficient is computed in float64 on the host and cast last, to the dtype of the array that it multiplies.

A time is one integer, or (N,) host integers, one for each row of the batch; all arrays are (N, ...) of one dtype.
Read next: samplers.py, and times.py for the times that a sampler visits.
"""

from typing import Any

from tinydiff.backend import asarray, host_integers, xp
from tinydiff.diffusion.schedule import Schedule


def q_sample(schedule: Schedule, x_0: Any, t: Any, eps: Any) -> Any:
    """Draw x_t ~ q(x_t | x_0) from given standard normal noise eps (Ho et al. 2020, eq. 4).

        x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps

    x_0, eps: (N, ...) of one float dtype.  t: host integers in 0..T, else ValueError; t = 0 returns x_0 unchanged.
    """
    check_alike("eps", eps, "x_0", x_0)
    t = _check_time(schedule, "t", t, x_0)
    signal_std = schedule.alpha_bar[t] ** 0.5
    noise_std = schedule.one_minus_alpha_bar[t] ** 0.5
    return per_row(signal_std, x_0) * x_0 + per_row(noise_std, x_0) * eps


def q_x_t_given_x_s(schedule: Schedule, x_s: Any, s: Any, t: Any) -> tuple[Any, Any]:
    """Mean and variance of q(x_t | x_s), the forward process from s to any later t (Ho et al. 2020, eq. 2).

        mean = sqrt(alpha_{t|s}) x_s,   var = beta_{t|s} = 1 - alpha_{t|s},   alpha_{t|s} = alpha_bar_t/alpha_bar_s

    x_s: (N, ...).  0 <= s < t <= T, else ValueError.  var: () or (N, 1, ..., 1), of x_s's dtype.
    """
    check_float("x_s", x_s)
    t, s = _check_time(schedule, "t", t, x_s), _check_time(schedule, "s", s, x_s)
    mean = per_row(schedule.alpha_t_given_s(t, s) ** 0.5, x_s) * x_s
    return mean, per_row(schedule.beta_t_given_s(t, s), x_s)


def q_x_s_given_x_t_x_0(schedule: Schedule, x_t: Any, x_0: Any, t: Any, s: Any) -> tuple[Any, Any]:
    """Mean and variance of the posterior q(x_s | x_t, x_0) for any s < t (Ho et al. 2020, eq. 6 and 7, with s = t - 1).

        mean = sqrt(alpha_bar_s) beta_{t|s}/(1 - alpha_bar_t) x_0
             + sqrt(alpha_{t|s}) (1 - alpha_bar_s)/(1 - alpha_bar_t) x_t
        var  = beta_tilde_{t|s} = (1 - alpha_bar_s)/(1 - alpha_bar_t) beta_{t|s}

    x_t, x_0: (N, ...) of one dtype.  0 <= s < t <= T, else ValueError.  var: () or (N, 1, ..., 1), of that dtype.
    At s = 0 the three coefficients are 1, 0 and 0 exactly: the mean is x_0 and the variance 0.
    """
    check_alike("x_0", x_0, "x_t", x_t)
    t, s = _check_time(schedule, "t", t, x_t), _check_time(schedule, "s", s, x_t)
    one_minus_alpha_bar = schedule.one_minus_alpha_bar
    x_0_coef = schedule.alpha_bar[s] ** 0.5 * (schedule.beta_t_given_s(t, s) / one_minus_alpha_bar[t])
    x_t_coef = schedule.alpha_t_given_s(t, s) ** 0.5 * (one_minus_alpha_bar[s] / one_minus_alpha_bar[t])
    mean = per_row(x_0_coef, x_t) * x_0 + per_row(x_t_coef, x_t) * x_t
    return mean, per_row(schedule.beta_tilde(t, s), x_t)


def x_0_from_eps(schedule: Schedule, x_t: Any, t: Any, eps: Any) -> Any:
    """The x_0 that noise eps took to x_t: q_sample solved for x_0 (Ho et al. 2020, eq. 4).

        x_0 = (x_t - sqrt(1 - alpha_bar_t) eps) / sqrt(alpha_bar_t)

    x_t, eps: (N, ...) of one dtype.  t in 0..T, else ValueError; ValueError too where alpha_bar_t is so small that
    this dtype has no number for 1/sqrt(alpha_bar_t).
    """
    check_alike("eps", eps, "x_t", x_t)
    t = _check_time(schedule, "t", t, x_t)
    signal_std = schedule.alpha_bar[t] ** 0.5
    _check_divisor("x_0", "sqrt(alpha_bar_t)", signal_std, t, x_t)
    noise_std = schedule.one_minus_alpha_bar[t] ** 0.5
    return (x_t - per_row(noise_std, x_t) * eps) / per_row(signal_std, x_t)


def eps_from_x_0(schedule: Schedule, x_t: Any, t: Any, x_0: Any) -> Any:
    """The noise that took x_0 to x_t: q_sample solved for eps (Ho et al. 2020, eq. 4).

        eps = (x_t - sqrt(alpha_bar_t) x_0) / sqrt(1 - alpha_bar_t)

    x_t, x_0: (N, ...) of one dtype.  t in 1..T, else ValueError: at t = 0 there is no noise to find; ValueError too
    where 1 - alpha_bar_t is so small that this dtype has no number for 1/sqrt(1 - alpha_bar_t).
    """
    check_alike("x_0", x_0, "x_t", x_t)
    t = _check_time(schedule, "t", t, x_t, first=1)
    signal_std = schedule.alpha_bar[t] ** 0.5
    noise_std = schedule.one_minus_alpha_bar[t] ** 0.5
    _check_divisor("eps", "sqrt(1 - alpha_bar_t)", noise_std, t, x_t)
    return (x_t - per_row(signal_std, x_t) * x_0) / per_row(noise_std, x_t)


def v_from_x_0_eps(schedule: Schedule, x_0: Any, t: Any, eps: Any) -> Any:
    """The velocity v of x_t as it turns from x_0 into eps (Salimans & Ho 2022, appendix D).

        v = sqrt(alpha_bar_t) eps - sqrt(1 - alpha_bar_t) x_0

    With alpha_bar_t = cos(phi)^2, v is d x_t/d phi: (x_t, v) is (x_0, eps) turned by the angle phi, so that v is eps at
    t = 0 and -x_0 in pure noise.  x_0, eps: (N, ...) of one dtype.  t in 0..T, else ValueError.
    """
    check_alike("eps", eps, "x_0", x_0)
    return q_sample(schedule, eps, t, -x_0)


def x_0_from_v(schedule: Schedule, x_t: Any, t: Any, v: Any) -> Any:
    """The x_0 that has this v at x_t: the rotation undone (Salimans & Ho 2022, section 4).

        x_0 = sqrt(alpha_bar_t) x_t - sqrt(1 - alpha_bar_t) v

    x_t, v: (N, ...) of one dtype.  t in 0..T, else ValueError.  Unlike x_0_from_eps it divides by nothing, so it loses
    no digits in pure noise.
    """
    check_alike("v", v, "x_t", x_t)
    return q_sample(schedule, x_t, t, -v)


def eps_from_v(schedule: Schedule, x_t: Any, t: Any, v: Any) -> Any:
    """The noise that has this v at x_t: the rotation undone (Salimans & Ho 2022, appendix D).

        eps = sqrt(1 - alpha_bar_t) x_t + sqrt(alpha_bar_t) v

    Arguments as in x_0_from_v.
    """
    check_alike("v", v, "x_t", x_t)
    return q_sample(schedule, v, t, x_t)


def per_row(coef: Any, x: Any) -> Any:
    """Host float64 coefficients in x.dtype to scale the rows of x: (N,) as an array (N, 1, ..., 1), () as one number.

    An array lies where x does: all of this file also works on host arrays beside a GPU.
    """
    a = coef.astype(x.dtype)
    if not a.ndim:
        return a[()]  # a launch takes it as an argument
    a = a.reshape(-1, *(1,) * (x.ndim - 1))
    return asarray(a) if isinstance(x, xp.ndarray) else a


def check_float(name: str, x: Any) -> None:
    """ValueError unless x is a floating array: a coefficient cast to the dtype of a uint8 image would be 0."""
    if x.dtype.kind != "f":
        raise ValueError(f"{name} must be a floating array, got {x.dtype}")


def check_alike(name: str, y: Any, x_name: str, x: Any) -> None:
    """ValueError unless x is a floating array and y has its shape and dtype: no silent broadcast, no float64 leak."""
    check_float(x_name, x)
    if y.shape != x.shape or y.dtype != x.dtype:
        raise ValueError(f"{name} must be {x.dtype} {x.shape} like {x_name}, got {y.dtype} {y.shape}")


def _check_divisor(name: str, formula: str, std: Any, t: Any, x: Any) -> None:
    """ValueError naming t where std, formula's value, has no reciprocal in the dtype of x."""
    lost = std < float(xp.finfo(x.dtype).tiny)
    if lost.any():
        raise ValueError(f"{name} cannot be told from x_t: {formula} underflows {x.dtype} at t = {t[lost][0]}")


def _check_time(schedule: Schedule, name: str, t: Any, x: Any, first: int = 0) -> Any:
    """t as host int64, () or one for each row of x; that s < t is for the schedule to check, where the two meet."""
    t = host_integers(name, t, first, schedule.T)
    return host_integers(name, t, first, schedule.T, len(x)) if t.ndim else t
