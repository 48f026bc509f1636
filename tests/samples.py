"""What tests of samples need: a sampler's output where it is Gaussian, and draws, counts and a p-value where it is not.

The exact denoisers that the samplers are run with are those of demos/exact.py.  Proven in test_samples.py; read next:
diffusion/test_samplers.py.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from tinydiff.backend import asarray, to_numpy

EpsFn = Callable[[Any, Any], Any]

# The mixture that exact denoiser and trained network are both tested on: five places on a circle, of unequal weights.
WEIGHTS = np.array([0.1, 0.15, 0.2, 0.25, 0.3])
_CIRCLE = np.exp(2j * np.pi * np.arange(5) / 5)
PLACES = np.stack([_CIRCLE.real, _CIRCLE.imag], 1)


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
