"""The variance of a reverse step, one for each pixel, as a part of the model.

    log var = v log beta_{t|s} + (1 - v) log beta_tilde_{t|s}            Nichol & Dhariwal 2021, eq. 15
    var     = beta_tilde_{t|s} + c^2 E[(x_0 - x_0_hat)^2 | x_t]          Bao et al. 2022, the best there is
    c       = sqrt(alpha_bar_s) beta_{t|s}/(1 - alpha_bar_t),            the coefficient of x_0 in the posterior's mean

beta_tilde is exact if x_0 is known, and beta if nothing is known of x_0 (Ho et al. 2020, section 3.2).  A pixel of the
background is known early, a pixel at the edge of a stroke late; so the best variance lies between the two, and differs
from pixel to pixel.  If x_0_hat is the exact mean, the second line is the variance of q(x_s | x_t).

Such a variance follows from what the network predicts at x_t.  `remembered` brings it to samplers and to the bound:

    eps_fn, variance = remembered(predict, interpolated)      # predict(x_t, t) -> (eps_hat, v)
    step = partial(ddpm_step, schedule, variance=variance)

Bao, Li, Sun, Zhu, Zhang 2022, Estimating the Optimal Covariance with Imperfect Mean.  Read next: editing.py.
"""

from collections.abc import Callable
from typing import Any

from tinydiff.backend import require, xp
from tinydiff.diffusion.gaussian import check_alike, check_float, per_row
from tinydiff.diffusion.schedule import Schedule


def clipped_beta_tilde(schedule: Schedule, t: Any, s: Any) -> Any:
    """beta_tilde_{t|s}; where s = 0 that of the step before in an even chain, beta_tilde_{2t|t}, which is not 0.

    At t = 1 it is beta_tilde_2, the variance of L_0 in the code of Ho et al. and of Nichol & Dhariwal.  In a
    chain that ends at T < 2t the step before is the one from T, and where t = T there is none: then it is beta_{t|0}.
    t, s and the result are as in Schedule.beta_tilde.
    """
    t, s = schedule.check_times(t, s)
    last, inner = (s == 0) & (t == schedule.T), (s == 0) & (t < schedule.T)
    t_before, s_before = t + inner * ((2 * t).clip(max=schedule.T) - t), s + inner * t
    return schedule.beta_tilde(t_before, s_before) + last * schedule.beta_t_given_s(t, s)


def interpolated(schedule: Schedule, v: Any, t: Any, s: Any) -> Any:
    """The variance between clipped_beta_tilde, v = 0, and beta_{t|s}, v = 1 (Nichol & Dhariwal 2021, eq. 15).

        log var = v log beta_{t|s} + (1 - v) log beta_tilde_{t|s}

    v: (N, ...) floating, any number: beyond 0 and 1 the line goes on.  t, s: as in Schedule.beta_tilde, one integer or
    one for each row.  Returns an array like v.
    """
    check_float("v", v)
    ends = clipped_beta_tilde(schedule, t, s), schedule.beta_t_given_s(t, s)
    low, high = (var.clip(float(xp.finfo(v.dtype).tiny)) for var in ends)  # an extreme schedule underflows to 0
    return per_row(low, v) * xp.exp(xp.log(per_row(high / low, v)) * v)


def error_variance(schedule: Schedule, error: Any, t: Any, s: Any) -> Any:
    """The variance that makes the bound's term of the step from t to s the least, given E[(x_0 - x_0_hat)^2 | x_t].

        var = beta_tilde_{t|s} + c^2 error,   c = sqrt(alpha_bar_s) beta_{t|s}/(1 - alpha_bar_t)

    error: (N, ...) floating, not negative.  At s = 0, c is 1 and var is the error itself: that of the decoder.  t, s
    and the result are as in `interpolated`.
    """
    check_float("error", error)
    t, s = schedule.check_times(t, s)
    c = schedule.alpha_bar[s] ** 0.5 * schedule.beta_t_given_s(t, s) / schedule.one_minus_alpha_bar[t]
    return per_row(schedule.beta_tilde(t, s), error) + per_row(c**2, error) * error


def remembered(
    predict: Callable[[Any, Any], tuple[Any, Any]], form: Callable[[Schedule, Any, Any, Any], Any]
) -> tuple[Callable[[Any, Any], Any], Callable[[Schedule, Any, Any], Any]]:
    """(eps_fn, variance) of a model that predicts more than the noise.  `variance` is that of the last call of eps_fn.

    predict(x_t, t) -> (eps_hat, more), two arrays like x_t, else ValueError.
    form(schedule, more, t, s) -> the variance of the step from t to s, an array like x_t: `interpolated` or
    `error_variance`.
    """
    last: list[Any] = []

    def eps_fn(x_t: Any, t: Any) -> Any:
        eps_hat, more = predict(x_t, t)
        check_alike("what predict(x_t, t) returns beside eps_hat", more, "x_t", x_t)
        last[:] = [more]
        return eps_hat

    def variance(schedule: Schedule, t: Any, s: Any) -> Any:
        require(len(last) == 1, "eps_fn must be called before the variance of its step is asked for", "no call")
        return form(schedule, last[0], t, s)

    return eps_fn, variance
