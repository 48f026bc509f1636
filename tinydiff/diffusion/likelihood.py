"""How many nats the model spends on an image: the variational bound on -log p(x_0), term by term.

    -log p(x_0) <= L_T + sum over t > 1 of L_{t-1} + L_0                              Ho et al. 2020, eq. 5
    L_T     = KL(q(x_T | x_0) || N(0, I))                 has nothing to learn
    L_{t-1} = KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t))     two Gaussians         eq. 5, and 8 where var_p is fixed
    L_0     = -log p(x_0 | x_1)                           the decoder                 eq. 13 for 8-bit data

x_t is a draw from q(x_t | x_0), so a term is a random number whose mean is right.  As in samplers.py a step leads from
t to any earlier s, and the bound holds for a strided chain as well.

Everything is per dimension, in nats (bits are nats / log 2), one value for each image: (N,) float64.  Means, variances
and sums are float64 here, whatever the dtype of the network.  Read next: variance.py.
"""

import math
from collections.abc import Callable
from typing import Any

from tinydiff.backend import asarray, host_integers, require, standard_normal, to_numpy, xp
from tinydiff.diffusion.gaussian import (
    check_alike,
    check_float,
    per_row,
    q_sample,
    q_x_s_given_x_t_x_0,
    q_x_t_given_x_s,
    x_0_from_eps,
)
from tinydiff.diffusion.samplers import Variance
from tinydiff.diffusion.schedule import Schedule
from tinydiff.diffusion.times import timestep_pairs

EpsFn = Callable[[Any, Any], Any]  # (x_t, t) -> eps_hat, t being one integer or (N,) host integers
Term = Callable[..., Any]  # bound_term, or a partial of it with its options filled in

_FAR = -25.0  # below it log Phi is computed by its asymptotic series, whose error is below 1e-9 of more than 300 nats


def gaussian_kl(mean_1: Any, var_1: Any, mean_2: Any, var_2: Any) -> Any:
    """KL(N(mean_1, var_1) || N(mean_2, var_2)) in nats, element by element; 0 only where the two are equal.

    KL = (var_1/var_2 - 1 - log(var_1/var_2) + (mean_1 - mean_2)^2/var_2)/2
    """
    ratio = var_1 / var_2
    return 0.5 * (ratio - 1 - xp.log(ratio) + (mean_1 - mean_2) ** 2 / var_2)


def gaussian_log_density(x_0: Any, mean: Any, var: Any) -> Any:
    """log N(x_0; mean, var) in nats, element by element: the decoder for data from a continuous law."""
    return -0.5 * ((x_0 - mean) ** 2 / var + xp.log(2 * math.pi * var))


def discretized_log_prob(x_0: Any, mean: Any, var: Any) -> Any:
    """log of the probability of each 8-bit value's bin under N(mean, var): the decoder for images (Ho et al., eq. 13).

        log(Phi((x_0 + 1/255 - mean)/std) - Phi((x_0 - 1/255 - mean)/std)),   open below x_0 = -1 and above x_0 = 1

    x_0: float64 array of the 256 values k/127.5 - 1, else ValueError.  The 256 probabilities add up to 1.  The log
    stays finite and right far out in the tails, where the probability itself has underflowed.
    """
    level = xp.rint((x_0 + 1) * 127.5)
    # Written so that NaN is off the grid; 1e-3 is more than float32 or float64 can round.
    if not ((abs((x_0 + 1) * 127.5 - level) < 1e-3) & (level >= 0) & (level <= 255)).all():
        raise ValueError("x_0 must hold the 8-bit values k/127.5 - 1, k = 0..255, for a discretized decoder")
    std = xp.sqrt(var)
    low = xp.where(level > 0, ((2 * level - 1) / 255 - 1 - mean) / std, -math.inf)
    high = xp.where(level < 255, ((2 * level + 1) / 255 - 1 - mean) / std, math.inf)
    # A bin right of the mean is mirrored to its left, where Phi is small and keeps its digits.
    flip = low > 0
    low, high = xp.where(flip, -high, low), xp.where(flip, -low, high)
    log_low, log_high = _log_normal_cdf(low), _log_normal_cdf(high)
    return log_high + xp.log(-xp.expm1(log_low - log_high))


def prior_kl(schedule: Schedule, x_0: Any) -> Any:
    """L_T = KL(q(x_T | x_0) || N(0, I)), the cost of starting from pure noise (Ho et al. 2020, eq. 5).

    x_0: (N, ...) floating, else ValueError.  Returns (N,) float64, nats per dimension.
    """
    check_float("x_0", x_0)
    mean, var = q_x_t_given_x_s(schedule, x_0.astype("float64"), 0, schedule.T)
    return _per_image(gaussian_kl(mean, var, 0.0, 1.0))


def bound_term(
    schedule: Schedule,
    x_0: Any,
    x_t: Any,
    eps_hat: Any,
    t: Any,
    s: Any,
    *,
    variance: Variance = Schedule.beta_tilde,
    decoder: Callable[[Any, Any, Any], Any] = discretized_log_prob,
    decoder_variance: Variance = Schedule.beta_t_given_s,
    clip: bool = False,
) -> Any:
    """The term of the step from t to s: L_{t-1} where s > 0, L_0 where s = 0 (Ho et al. 2020, eq. 5, 8 and 13).

        s > 0:  KL(q(x_s | x_t, x_0) || N(p_mean, variance(schedule, t, s)))
        s = 0:  -decoder(x_0, p_mean, decoder_variance(schedule, t, 0))
        p_mean = mean of q(x_s | x_t, x_0_hat)

    x_0, x_t, eps_hat: (N, ...).  0 <= s < t <= T, and s = 0 for all rows or for none, else ValueError.
    variance, decoder_variance: as in ddpm_step, each one number, one for each row, or an array like x_t.  beta_tilde is
    0 at s = 0, so the decoder needs another: beta_{t|0}, or clipped_beta_tilde, as in the code of Ho et al.; a variance
    that is learned may serve as both (variance.py).
    decoder(x_0, mean, var) -> log p(x_0), (N, ...): discretized_log_prob or gaussian_log_density.
    clip: keep x_0_hat in [-1, 1], where images lie; it lowers L_{t-1} or leaves it.  Returns (N,) float64.
    """
    x_0, x_t, eps_hat = (a.astype("float64") for a in (x_0, x_t, eps_hat))
    x_0_hat = x_0_from_eps(schedule, x_t, t, eps_hat)
    if clip:
        x_0_hat = xp.clip(x_0_hat, -1, 1)
    p_mean, _ = q_x_s_given_x_t_x_0(schedule, x_t, x_0_hat, t, s)
    to_data = schedule.check_times(t, s)[1] == 0
    if to_data.all():
        log_p = decoder(x_0, p_mean, _like(x_t, decoder_variance(schedule, t, s)))
        check_alike("decoder(x_0, mean, var)", log_p, "x_0", x_0)
        return -_per_image(log_p)
    if to_data.any():
        raise ValueError(f"s must be 0 for all rows or for none, got {s}")
    q_mean, q_var = q_x_s_given_x_t_x_0(schedule, x_t, x_0, t, s)
    return _per_image(gaussian_kl(q_mean, q_var, p_mean, _like(x_t, variance(schedule, t, s))))


def variational_bound(
    schedule: Schedule, eps_fn: EpsFn, x_0: Any, num_steps: int, rng: Any, term: Term = bound_term
) -> Any:
    """Every term of the bound, each at an x_t of its own: their sum is the bound (Ho et al. 2020, eq. 5).

    x_0: (N, ...); eps_fn sees its dtype.  num_steps: of timestep_pairs; T is the full chain.  rng: a host generator.
    Returns (num_steps + 1, N) float64: L_T, then L_{t-1} from t = T down, the last L_0; sum(0) is the bound.
    """
    rows = [prior_kl(schedule, x_0)]
    rows += [_draw_term(schedule, eps_fn, x_0, t, s, rng, term) for t, s in timestep_pairs(schedule.T, num_steps)]
    return xp.stack(rows)


def sampled_bound(
    schedule: Schedule, eps_fn: EpsFn, x_0: Any, num_steps: int, num_draws: int, rng: Any, term: Term = bound_term
) -> tuple[Any, Any]:
    """An unbiased estimate of the same sum from num_draws + 1 calls of eps_fn instead of num_steps.

        sum of L_{t-1} = E[L_{t-1}/p(t)],   p(t) = share of the pair (t, s) in the fall of log SNR from s = 1 to T

    Each image draws its own times, one from each of num_draws equal parts of p's mass: a stratified sample in which
    small t, whose terms are largest, are likely.  Every sum contains L_T and L_0.  num_steps: 2..T, else ValueError.
    Returns (num_draws + 2, N) float64, L_T, then L_{t-1}/(num_draws p(t)), the last L_0, so that sum(0) is the estimate
    of each image; and the times t drawn, (num_draws, N) on the host.
    """
    *pairs, to_data = timestep_pairs(schedule.T, int(host_integers("num_steps", num_steps, 2, schedule.T)))
    t, s = schedule.check_times(*zip(*pairs))
    fall = schedule.log_snr[s] - schedule.log_snr[t]
    p = fall / fall.sum()
    edges = p.cumsum()[:-1]
    rows, drawn = [prior_kl(schedule, x_0)], []
    for part in range(int(host_integers("num_draws", num_draws, 1, 1_000_000))):
        i = edges.searchsorted((part + rng.random(len(x_0))) / num_draws, side="right")
        rows.append(_draw_term(schedule, eps_fn, x_0, t[i], s[i], rng, term) / asarray(num_draws * p[i]))
        drawn.append(i)
    rows.append(_draw_term(schedule, eps_fn, x_0, *to_data, rng, term))
    return xp.stack(rows), t[drawn]


def _draw_term(schedule: Schedule, eps_fn: EpsFn, x_0: Any, t: Any, s: Any, rng: Any, term: Term) -> Any:
    x_t = q_sample(schedule, x_0, t, standard_normal(rng, x_0.shape, x_0.dtype))
    eps_hat = eps_fn(x_t, t)
    check_alike("eps_fn(x_t, t)", eps_hat, "x_t", x_t)
    nats = term(schedule, x_0, x_t, eps_hat, t, s)
    shape = getattr(nats, "shape", type(nats).__name__)
    require(shape == (len(x_0),), f"term must return a number for each image, ({len(x_0)},)", shape)
    return nats


def _like(x_t: Any, var: Any) -> Any:
    """A variance in float64, in a shape that goes with x_t (N, ...); ValueError unless it is one for such an array."""
    var = to_numpy(var)
    require(var.shape in ((), x_t.shape[:1], x_t.shape), "a variance must be (), (N,) or like x_t", var.shape)
    require(bool(((var > 0) & (var < xp.inf)).all()), "the variance must be finite and above 0", var)
    return per_row(var, x_t)


def _per_image(a: Any) -> Any:
    return a.mean(tuple(range(1, a.ndim)))


def _log_normal_cdf(z: Any) -> Any:
    """log Phi(z), float64; below _FAR by log(phi(z)/-z (1 - z^-2 + 3 z^-4 - 15 z^-6)) (Abramowitz & Stegun 26.2.12)."""
    near = xp.maximum(z, _FAR) / -(2**0.5)
    erfc = asarray([math.erfc(x) for x in to_numpy(near).ravel().tolist()]).reshape(z.shape)  # NumPy has none
    far = xp.minimum(z, _FAR)
    w = 1 / far**2
    series = -0.5 * far**2 - xp.log(-far * (2 * math.pi) ** 0.5) + xp.log1p(-w * (1 - 3 * w * (1 - 5 * w)))
    return xp.where(z > _FAR, xp.log(0.5 * erfc), series)
