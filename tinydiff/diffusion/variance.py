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

A network that predicts only the noise needs nothing more: VarianceTable holds the mean squared error of its x_0_hat, as
pictures of the training set have it, for pixels of one noise level, one grey level and one range of neighbours.  The
decoder has a table of its own.  With v in 0..1 its variance would lie between beta_tilde_2 and beta_1, 5.5e-5 and 1e-4
for the linear schedule; but a black pixel is known to far better than one of 256 grey levels.

Bao, Li, Sun, Zhu, Zhang 2022, Estimating the Optimal Covariance with Imperfect Mean.  Read next: editing.py.
"""

import math
from collections.abc import Callable
from typing import Any

from tinydiff.backend import asarray, require, to_numpy, xp
from tinydiff.diffusion.gaussian import check_alike, check_float, per_row
from tinydiff.diffusion.likelihood import discretized_log_prob
from tinydiff.diffusion.schedule import Schedule

LEVELS = 20  # of the noise, even in log SNR
GREYS, RANGES = 30, 14  # of x_0_hat, and of its 3 x 3 neighbours; both fine where they are small
CELLS = GREYS * RANGES
FINEST_GREY, FINEST_RANGE = 2e-4, 2e-3
DECODERS = tuple(10 ** (k / 4 - 7) for k in range(25))  # variances that a decoder may have
PRIOR = 10  # pixels that are added to each cell, so that a cell of few pixels says little


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


def remembered(predict: Callable[..., Any], form: Callable[..., Any]) -> tuple[Callable[..., Any], Callable[..., Any]]:
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


def snr_levels(schedule: Schedule, t: Any) -> Any:
    """The row of a VarianceTable for each time: 0 in pure noise, LEVELS - 1 at t = 1.  t: host integers in 1..T."""
    share = (schedule.log_snr[t] - schedule.log_snr[-1]) / max(schedule.log_snr[1] - schedule.log_snr[-1], 1e-12)
    return (share * LEVELS).clip(0, LEVELS - 1).astype("int64")


def cells(x_0_hat: Any) -> Any:
    """The column of a VarianceTable for each pixel, by its grey level and by the range of its 3 x 3 neighbours.

    x_0_hat: (N, H, W, C), each channel for itself.  Beyond [-1, 1] it counts as -1 or 1.  Beyond its edges a picture
    goes on with the pixels of the edge.  Returns integers of the same shape, in 0..CELLS - 1.
    """
    check_float("x_0_hat", x_0_hat)
    x, (height, width) = xp.clip(x_0_hat, -1, 1), x_0_hat.shape[1:3]
    padded = xp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    windows = xp.stack([padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)])
    from_end = _place(1 - abs(x), 1, FINEST_GREY, GREYS // 2)
    grey = xp.where(x < 0, from_end, GREYS - 1 - from_end)
    return grey * RANGES + _place(windows.max(0) - windows.min(0), 2, FINEST_RANGE, RANGES)


def squared_errors(schedule: Schedule, x_0: Any, x_0_hat: Any, t: Any) -> Any:
    """How many pixels each cell of a VarianceTable has, and the sum of their (x_0 - x_0_hat)^2: (2, LEVELS, CELLS).

    x_0, x_0_hat: (N, H, W, C); x_0_hat is clipped to [-1, 1].  t: (N,) host integers.  Counts and sums of several
    batches may be added.  Returns a host array.
    """
    check_alike("x_0_hat", x_0_hat, "x_0", x_0)
    level = asarray(snr_levels(schedule, t)).reshape(-1, 1, 1, 1)
    places = (level * CELLS + cells(x_0_hat)).reshape(-1)
    square = (x_0.astype("float64") - xp.clip(x_0_hat, -1, 1)) ** 2
    found = [xp.bincount(places, weights, LEVELS * CELLS) for weights in (xp.ones(places.shape), square.reshape(-1))]
    return to_numpy(xp.stack(found)).reshape(2, LEVELS, CELLS)


def decoder_log_probs(x_0: Any, x_0_hat: Any) -> Any:
    """How many pixels each cell has, and the sums of their log p(x_0) for each variance of DECODERS: (26, CELLS).

    x_0: 8-bit values, as discretized_log_prob takes them.  x_0_hat: that of the last step, from t to 0, clipped here.
    Counts and sums of several batches may be added.  Returns a host array.
    """
    check_alike("x_0_hat", x_0_hat, "x_0", x_0)
    places, mean = cells(x_0_hat).reshape(-1), xp.clip(x_0_hat, -1, 1).astype("float64")
    log_p = [discretized_log_prob(x_0.astype("float64"), mean, asarray(var)).reshape(-1) for var in DECODERS]
    return to_numpy(xp.stack([xp.bincount(places, a, CELLS) for a in (xp.ones(places.shape), *log_p)]))


class VarianceTable:
    """The variance of a reverse step by noise level, grey level and range of neighbours, fitted to pictures.

    errors: the sum of squared_errors over batches.  A cell has the mean error of its pixels and of PRIOR more, which
    have the mean error of its noise level.  log_probs: the sum of decoder_log_probs.  A cell has the variance of
    DECODERS with the largest sum over its pixels and PRIOR more, which have the mean of all pixels.
    """

    def __init__(self, errors: Any, log_probs: Any):
        self.errors = _with_prior(errors[0], errors[1])
        self.decoder = asarray(DECODERS)[asarray(_with_prior(log_probs[0], log_probs[1:]).argmax(0))]

    def variance(self, schedule: Schedule, x_0_hat: Any, t: Any, s: Any) -> Any:
        """error_variance of each pixel, and at s = 0 that of the decoder; `remembered` takes this as its form."""
        t, s = schedule.check_times(t, s)
        if not s.any():
            return self.decoder[cells(x_0_hat)]
        level = asarray(snr_levels(schedule, t)).reshape(-1, 1, 1, 1)
        return error_variance(schedule, asarray(self.errors)[level, cells(x_0_hat)], t, s)


def _with_prior(count: Any, total: Any) -> Any:
    """The mean total of each cell, if it had PRIOR pixels more, with the mean of all cells of its row."""
    mean = total.sum(-1, keepdims=True) / count.sum(-1, keepdims=True).clip(1)
    return (total + PRIOR * mean) / (count + PRIOR)


def _place(x: Any, most: float, finest: float, n: int) -> Any:
    """Which of n parts of 0..most holds x; the parts are even in log(x + finest)."""
    return xp.clip(xp.log1p(x / finest) / math.log1p(most / finest) * n, 0, n - 1).astype("int64")
