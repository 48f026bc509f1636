"""Exact denoisers: data whose ideal eps_hat is known in closed form, to run a sampler or a training against.

    q(x_t) is the data's density, shrunk by sqrt(alpha_bar_t) and blurred by N(0, (1 - alpha_bar_t) I), and
    E[eps | x_t] = -sqrt(1 - alpha_bar_t) grad log q(x_t)                      Ho et al. 2020, eq. 4; Tweedie's formula

For a Gaussian it is affine in x_t, for a mixture a softmax over the components, and a finite set of points is a mixture
of components without width.  Beside them, what a test of samples needs: the sampler's output where it is Gaussian, and
draws, counts and a chi-square p-value where it is not.

Nothing here comes from tinydiff/diffusion but the table schedule.alpha_bar.  Proven in test_ideal.py; read next:
diffusion/test_samplers.py.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from tinydiff.backend import asarray, to_numpy, xp
from tinydiff.diffusion import Schedule

EpsFn = Callable[[Any, Any], Any]

# The mixture that exact denoiser and trained network are both tested on: five places on a circle, of unequal weights.
WEIGHTS = np.array([0.1, 0.15, 0.2, 0.25, 0.3])
_CIRCLE = np.exp(2j * np.pi * np.arange(5) / 5)
PLACES = np.stack([_CIRCLE.real, _CIRCLE.imag], 1)


def gaussian_eps_fn(schedule: Schedule, mean: Any, cov: Any) -> EpsFn:
    """E[eps | x_t] for data N(mean, cov).

        eps = sqrt(1 - alpha_bar_t) S_t^-1 (x_t - sqrt(alpha_bar_t) mean),   S_t = alpha_bar_t cov + (1 - alpha_bar_t) I

    mean: (D,).  cov: (D, D), symmetric.  Returns eps_fn(x_t, t): x_t (N, D), t in 1..T, one or (N,); float64 within,
    x_t's dtype outside.
    """
    eigenvalues, axes = np.linalg.eigh(np.asarray(cov, "float64"))  # S_t is diagonal along the axes of cov at every t
    mean, eigenvalues, axes = (asarray(a, "float64") for a in (mean, eigenvalues, axes))

    def eps_fn(x_t: Any, t: Any) -> Any:
        a, x = _alpha_bar(schedule, t), x_t.astype("float64")
        along = (x - a**0.5 * mean) @ axes
        return ((1 - a) ** 0.5 * (along / (a * eigenvalues + 1 - a)) @ axes.T).astype(x_t.dtype)

    return eps_fn


def mixture_eps_fn(schedule: Schedule, weights: Any, means: Any, var: float) -> EpsFn:
    """E[eps | x_t] for data that are N(means[k], var I) with probability weights[k].

        r_k proportional to weights_k exp(-|x_t - sqrt(alpha_bar_t) means_k|^2 / (2 S_t)),   sum_k r_k = 1
        eps = sqrt(1 - alpha_bar_t)/S_t (x_t - sqrt(alpha_bar_t) sum_k r_k means_k)
        S_t = alpha_bar_t var + 1 - alpha_bar_t

    weights: (K,), positive.  means: (K, D).  var = 0 is a finite set of points.  Returns eps_fn as gaussian_eps_fn.
    """
    log_weights, means = xp.log(asarray(weights, "float64")), asarray(means, "float64")
    half_squares = (means**2).sum(1) / 2

    def eps_fn(x_t: Any, t: Any) -> Any:
        a, x = _alpha_bar(schedule, t), x_t.astype("float64")
        S = a * var + 1 - a
        logits = log_weights + (a**0.5 * (x @ means.T) - a * half_squares) / S  # without |x_t|^2, which all k share
        r = xp.exp(logits - logits.max(1, keepdims=True))  # the largest is exp(0): no underflow to 0/0 far out
        r /= r.sum(1, keepdims=True)
        return ((1 - a) ** 0.5 / S * (x - a**0.5 * (r @ means))).astype(x_t.dtype)

    return eps_fn


def mixture_score_fn(schedule: Schedule, weights: Any, means: Any, var: float, labels: Any) -> EpsFn:
    """grad_{x_t} log p(y | x_t) for row n's component y = labels[n] of the mixture of mixture_eps_fn, by Bayes' rule.

    log p(y | x_t) = log weights_y - |x_t - sqrt(alpha_bar_t) means_y|^2/(2 S_t) - log sum_k (the same of k, exp)
    grad = sqrt(alpha_bar_t)/S_t (means_y - sum_k r_k means_k),   S_t and r_k as in mixture_eps_fn
    """
    weights, means, labels = (np.asarray(a) for a in (weights, means, labels))

    def score_fn(x_t: Any, t: Any) -> Any:
        a, x = schedule.alpha_bar[t], to_numpy(x_t).astype("float64")
        S = a * var + 1 - a
        logits = np.log(weights) - ((x[:, None] - a**0.5 * means) ** 2).sum(2) / (2 * S)
        r = np.exp(logits - logits.max(1, keepdims=True))
        r /= r.sum(1, keepdims=True)
        return asarray((a**0.5 / S * (means[labels] - r @ means)).astype(x_t.dtype))

    return score_fn


def push_gaussian(step: Callable[..., Any], eps_fn: EpsFn, pairs: Any, mean: Any, cov: Any) -> tuple[Any, Any]:
    """Mean (D,) and covariance (D, D) of what a sampler makes of x_T ~ N(mean, cov), where eps_fn is affine: no draws.

        x_s = A x_t + B noise + b   read off one call with 2D + 1 rows;   mean' = A mean + b,   cov' = A cov A^T + B B^T

    step(x_t, eps_hat, t, s, noise) -> (x_s, x_0_hat) as sample() takes it.  Host float64 in and out.
    """
    D = len(mean)
    origin, axes, none = np.zeros((1, D)), np.eye(D), np.zeros((D, D))
    x_t, noise = asarray(np.concatenate([origin, axes, none])), asarray(np.concatenate([origin, none, axes]))
    for t, s in pairs:
        b, *rows = to_numpy(step(x_t, eps_fn(x_t, t), t, s, noise)[0])
        A, B = (rows[:D] - b).T, (rows[D:] - b).T
        mean, cov = A @ mean + b, A @ cov @ A.T + B @ B.T
    return mean, cov


def draw_mixture(rng: np.random.Generator, n: int, weights: Any, means: Any, var: float) -> Any:
    """n independent draws of the mixture, (n, D) float64."""
    means = np.asarray(means, "float64")
    centres = means[rng.choice(len(means), n, p=weights)]
    return asarray(centres + var**0.5 * rng.standard_normal(centres.shape))


def nearest(x: Any, means: Any) -> np.ndarray:
    """How many rows of x (N, D) lie nearest to each of means (K, D): host counts, (K,), that sum to N."""
    which = ((asarray(x, "float64")[:, None, :] - asarray(means, "float64")) ** 2).sum(2).argmin(1)
    return np.bincount(to_numpy(which), minlength=len(means))


def chi_square_p_value(counts: Any, expected: Any) -> float:
    """Probability that counts as expected would stray from it as far as these: Pearson's test, K odd, else ValueError.

        x = sum_k (counts_k - expected_k)^2 / expected_k,   p = exp(-x/2) sum_{j < (K-1)/2} (x/2)^j / j!

    The sum is the exact tail of chi-square with an even number K - 1 of degrees of freedom, hence K odd.  That x has
    this distribution holds for many counts: let each of expected, which sums to what counts sum to, be 100 or more.
    """
    counts, expected = np.asarray(counts, "float64"), np.asarray(expected, "float64")
    if counts.shape != expected.shape or counts.ndim != 1 or counts.size % 2 == 0:
        raise ValueError(f"counts and expected must both be (K,), K odd, got {counts.shape} and {expected.shape}")
    if not math.isclose(counts.sum(), expected.sum(), rel_tol=1e-9):
        raise ValueError(f"expected must sum to the {counts.sum()} that were counted, got {expected.sum()}")
    half = float(((counts - expected) ** 2 / expected).sum()) / 2
    return math.exp(-half) * sum(half**j / math.factorial(j) for j in range(counts.size // 2))


def _alpha_bar(schedule: Schedule, t: Any) -> Any:
    """alpha_bar_t as (1,) or (N, 1), to stand beside rows."""
    return asarray(schedule.alpha_bar[t])[..., None]
