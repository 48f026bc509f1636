"""The Gaussians of the forward process: all closed forms that training and sampling use.

    q(x_t | x_0)        the noised data, drawn directly, without the chain     Ho et al. 2020, eq. 4
    q(x_t | x_s)        a forward jump, s < t                                  eq. 2 where s = t - 1
    q(x_s | x_t, x_0)   the posterior, the ideal reverse step, s < t           eq. 6 and 7
    x_0 <-> eps <-> v   given x_t, each one determines the other two           eq. 4 solved for x_0 and for eps
    v                   the velocity of x_t as it turns from x_0 into eps      Salimans & Ho 2022, appendix D

This file has no network and no randomness: noise is an argument, and a distribution is a pair (mean, var).  Each
coefficient is computed in float64 on the host, and only then cast to the dtype of its array.

A time is one integer, or (N,) host integers, one for each row of the batch; all arrays are (N, ...) of one dtype.
times.py, a further chapter, chooses the times that a sampler visits.

Read next: samplers.py.
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
    t = check_time(schedule, "t", t, x_0)
    signal_std = schedule.alpha_bar[t] ** 0.5
    noise_std = schedule.one_minus_alpha_bar[t] ** 0.5
    return per_row(signal_std, x_0) * x_0 + per_row(noise_std, x_0) * eps


def q_x_t_given_x_s(schedule: Schedule, x_s: Any, s: Any, t: Any) -> tuple[Any, Any]:
    """Mean and variance of q(x_t | x_s), the forward process from s to any later t.

    For s = t - 1 it is Ho et al. 2020, eq. 2.

        mean = sqrt(alpha_{t|s}) x_s,   var = beta_{t|s} = 1 - alpha_{t|s},   alpha_{t|s} = alpha_bar_t/alpha_bar_s

    x_s: (N, ...).  0 <= s < t <= T, else ValueError.  var: () or (N, 1, ..., 1), of x_s's dtype.
    """
    check_float("x_s", x_s)
    t, s = check_time(schedule, "t", t, x_s), check_time(schedule, "s", s, x_s)
    mean = per_row(schedule.alpha_t_given_s(t, s) ** 0.5, x_s) * x_s
    return mean, per_row(schedule.beta_t_given_s(t, s), x_s)


def q_x_s_given_x_t_x_0(schedule: Schedule, x_t: Any, x_0: Any, t: Any, s: Any) -> tuple[Any, Any]:
    """Mean and variance of the posterior q(x_s | x_t, x_0) for any s < t.

    For s = t - 1 it is Ho et al. 2020, eq. 6 and 7.

        mean = sqrt(alpha_bar_s) beta_{t|s}/(1 - alpha_bar_t) x_0
             + sqrt(alpha_{t|s}) (1 - alpha_bar_s)/(1 - alpha_bar_t) x_t
        var  = beta_tilde_{t|s} = (1 - alpha_bar_s)/(1 - alpha_bar_t) beta_{t|s}

    x_t, x_0: (N, ...) of one dtype.  0 <= s < t <= T, else ValueError.  var: () or (N, 1, ..., 1), of that dtype.
    At s = 0 the coefficient of x_0 is exactly 1, and that of x_t and the variance are exactly 0: the mean is x_0.
    """
    check_alike("x_0", x_0, "x_t", x_t)
    t, s = check_time(schedule, "t", t, x_t), check_time(schedule, "s", s, x_t)
    one_minus_alpha_bar = schedule.one_minus_alpha_bar
    x_0_coef = schedule.alpha_bar[s] ** 0.5 * (schedule.beta_t_given_s(t, s) / one_minus_alpha_bar[t])
    x_t_coef = schedule.alpha_t_given_s(t, s) ** 0.5 * (one_minus_alpha_bar[s] / one_minus_alpha_bar[t])
    mean = per_row(x_0_coef, x_t) * x_0 + per_row(x_t_coef, x_t) * x_t
    return mean, per_row(schedule.beta_tilde(t, s), x_t)


def x_0_from_eps(schedule: Schedule, x_t: Any, t: Any, eps: Any) -> Any:
    """The x_0 from which the noise eps leads to x_t: q_sample solved for x_0 (Ho et al. 2020, eq. 4).

        x_0 = (x_t - sqrt(1 - alpha_bar_t) eps) / sqrt(alpha_bar_t)

    x_t, eps: (N, ...) of one dtype.  t in 0..T, else ValueError; ValueError too where sqrt(alpha_bar_t) is below the
    smallest normal number of this dtype.
    """
    check_alike("eps", eps, "x_t", x_t)
    t = check_time(schedule, "t", t, x_t)
    signal_std = schedule.alpha_bar[t] ** 0.5
    _check_divisor("x_0", "sqrt(alpha_bar_t)", signal_std, t, x_t)
    noise_std = schedule.one_minus_alpha_bar[t] ** 0.5
    return (x_t - per_row(noise_std, x_t) * eps) / per_row(signal_std, x_t)


def eps_from_x_0(schedule: Schedule, x_t: Any, t: Any, x_0: Any) -> Any:
    """The noise that leads from x_0 to x_t: q_sample solved for eps (Ho et al. 2020, eq. 4).

        eps = (x_t - sqrt(alpha_bar_t) x_0) / sqrt(1 - alpha_bar_t)

    x_t, x_0: (N, ...) of one dtype.  t in 1..T, else ValueError: at t = 0 there is no noise; ValueError too where
    sqrt(1 - alpha_bar_t) is below the smallest normal number of this dtype.
    """
    check_alike("x_0", x_0, "x_t", x_t)
    t = check_time(schedule, "t", t, x_t, first=1)
    signal_std = schedule.alpha_bar[t] ** 0.5
    noise_std = schedule.one_minus_alpha_bar[t] ** 0.5
    _check_divisor("eps", "sqrt(1 - alpha_bar_t)", noise_std, t, x_t)
    return (x_t - per_row(signal_std, x_t) * x_0) / per_row(noise_std, x_t)


def v_from_x_0_eps(schedule: Schedule, x_0: Any, t: Any, eps: Any) -> Any:
    """The velocity v of x_t as it turns from x_0 into eps (Salimans & Ho 2022, appendix D).

        v = sqrt(alpha_bar_t) eps - sqrt(1 - alpha_bar_t) x_0

    Let alpha_bar_t = cos(phi)^2.  Then v = d x_t/d phi, and (x_t, v) is (x_0, eps) turned by the angle phi.  So v is
    eps at t = 0, and -x_0 in pure noise.  x_0, eps: (N, ...) of one dtype.  t in 0..T, else ValueError.
    """
    check_alike("eps", eps, "x_0", x_0)
    return q_sample(schedule, eps, t, -x_0)


def x_0_from_v(schedule: Schedule, x_t: Any, t: Any, v: Any) -> Any:
    """The x_0 that belongs to x_t and v: the rotation by phi undone (Salimans & Ho 2022, section 4).

        x_0 = sqrt(alpha_bar_t) x_t - sqrt(1 - alpha_bar_t) v

    x_t, v: (N, ...) of one dtype.  t in 0..T, else ValueError.  x_0_from_v does not divide, so it loses no digits in
    pure noise, unlike x_0_from_eps.
    """
    check_alike("v", v, "x_t", x_t)
    return q_sample(schedule, x_t, t, -v)


def eps_from_v(schedule: Schedule, x_t: Any, t: Any, v: Any) -> Any:
    """The eps that belongs to x_t and v: the rotation by phi undone (Salimans & Ho 2022, appendix D).

        eps = sqrt(1 - alpha_bar_t) x_t + sqrt(alpha_bar_t) v

    Arguments as in x_0_from_v.
    """
    check_alike("v", v, "x_t", x_t)
    return q_sample(schedule, v, t, x_t)


def per_row(coef: Any, x: Any) -> Any:
    """Coefficients (host float64), cast to x.dtype, in the shape that scales the rows of x: (N,) becomes (N, 1, ...,
    1).  A coefficient for each pixel, of the shape of x, keeps its shape.

    The result lies where x lies, so the functions of this file also work on host arrays while the backend is a GPU.
    """
    a = coef.astype(x.dtype)
    if not a.ndim:
        return a[()]  # one number goes to a GPU as an argument, without a copy
    a = a if a.shape == x.shape else a.reshape(-1, *(1,) * (x.ndim - 1))
    return asarray(a) if isinstance(x, xp.ndarray) else a


def check_float(name: str, x: Any) -> None:
    """ValueError unless x is a floating array: in the dtype of a uint8 image a coefficient below 1 would become 0."""
    if not hasattr(x, "astype") or x.dtype.kind != "f":  # a Tensor has no astype
        raise ValueError(f"{name} must be a floating array, got {getattr(x, 'dtype', '')} {type(x).__name__}")


def check_alike(name: str, y: Any, x_name: str, x: Any) -> None:
    """ValueError unless x is a floating array and y has the shape and dtype of x: nothing is broadcast silently."""
    check_float(x_name, x)
    check_float(name, y)
    if y.shape != x.shape or y.dtype != x.dtype:
        raise ValueError(f"{name} must be {x.dtype} {x.shape} like {x_name}, got {y.dtype} {y.shape}")


def _check_divisor(name: str, formula: str, std: Any, t: Any, x: Any) -> None:
    """ValueError that names t, where std, the value of `formula`, is too small to divide by in the dtype of x."""
    lost = std < float(xp.finfo(x.dtype).tiny)
    if lost.any():
        raise ValueError(f"{name} cannot be told from x_t: {formula} underflows {x.dtype} at t = {t[lost][0]}")


def check_time(schedule: Schedule, name: str, t: Any, x: Any, first: int = 0) -> Any:
    """t as host int64: () or one for each row of x.  The schedule checks later that s < t."""
    t = host_integers(name, t, first, schedule.T)
    return host_integers(name, t, first, schedule.T, len(x)) if t.ndim else t
