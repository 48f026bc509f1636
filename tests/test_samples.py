"""What judges samples in other tests: a Gaussian pushed through steps, draws, counts and their p-value."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from samples import chi_square_p_value, draw_mixture, nearest, push_gaussian

from tinydiff.backend import asarray, default_rng, to_numpy

pytestmark = pytest.mark.sampler

seeds = st.integers(0, 999)
times = st.integers(1, 100)


def assert_close(a, b, rtol=1e-6, atol=1e-6):
    np.testing.assert_allclose(to_numpy(a), b, rtol=rtol, atol=atol)


@given(st.integers(1, 3), st.lists(times, max_size=4), seeds)
def test_a_gaussian_is_pushed_through_affine_steps_as_a_matrix_product(D, pairs, seed):
    """Any affine step: the mean and covariance of A_n (... (A_1 x + B_1 z_1 + b_1) ...) + B_n z_n + b_n."""
    rng = default_rng(seed)
    maps = {t: rng.normal(size=(3, D, D)) for t in pairs}  # A's two terms, in x_t and in eps_hat, and B
    mean, root = rng.normal(size=D), rng.normal(size=(D, D))

    def eps_fn(x_t, t):
        return 2 * x_t + t

    def step(x_t, eps_hat, t, s, noise):
        of_x, of_eps, of_noise = (asarray(m.T) for m in maps[t])
        return x_t @ of_x + eps_hat @ of_eps + noise @ of_noise + s, None

    total, expected = [root], mean  # x - E[x] = sum of total @ z over independent z
    for t in pairs:
        of_x, of_eps, of_noise = maps[t]
        A = of_x + 2 * of_eps
        total = [A @ m for m in total] + [of_noise]
        expected = A @ expected + of_eps @ np.full(D, t) + t // 2
    mean_out, cov_out = push_gaussian(step, eps_fn, [(t, t // 2) for t in pairs], mean, root @ root.T)
    assert_close(mean_out, expected, rtol=1e-9, atol=1e-9 * np.abs(expected).max())
    assert_close(cov_out, sum(m @ m.T for m in total), rtol=1e-9, atol=1e-9 * np.abs(cov_out).max())


def test_draws_are_counted_where_they_were_drawn():
    """Components 20 widths apart, drawn with unequal weights: the counts pass, and equal weights would not.

    False alarm: 1e-4 for a fresh seed, by the first p-value.
    """
    weights, means, n = [0.5, 0.3, 0.2], [[0, 0], [2, 0], [0, 2]], 10_000
    x = draw_mixture(default_rng(0), n, weights, means, 0.01)
    counts = nearest(x, means)
    assert counts.shape == (3,) and counts.sum() == n
    assert chi_square_p_value(counts, n * np.array(weights)) > 1e-4
    assert chi_square_p_value(counts, np.full(3, n / 3)) < 1e-9
    spread = ((to_numpy(x)[:, None] - np.array(means)) ** 2).sum(2).min(1).mean() / 2
    assert abs(spread / 0.01 - 1) < 4 / n**0.5  # 2n squared normals: a relative standard error of 1/sqrt(n)


def test_nearest_counts_every_row_once():
    """Rows at the points themselves are counted there, and a point without rows has 0."""
    means = np.array([[0.0, 0.0], [1.0, 0.0], [5.0, 5.0]])
    assert nearest(asarray(means[[0, 1, 1, 0, 0]]), means).tolist() == [3, 2, 0]


@pytest.mark.parametrize("K", [3, 5, 9, 21])
@given(st.floats(0.01, 60))
def test_p_value_is_the_integral_of_the_chi_square_density(K, x):
    """p = 1 - int_0^x u^(df/2 - 1) exp(-u/2) / (2^(df/2) Gamma(df/2)) du with df = K - 1, by Gauss-Legendre."""
    nodes, node_weights = np.polynomial.legendre.leggauss(60)  # exact to rounding for so smooth a density
    u, df = x * (nodes + 1) / 2, K - 1
    log_density = (df / 2 - 1) * np.log(u) - u / 2 - df / 2 * math.log(2) - math.lgamma(df / 2)
    below = float((node_weights * np.exp(log_density)).sum()) * x / 2
    counts, expected = np.full(K, 100.0), np.full(K, 100.0)
    counts[0] += (100 * x / 2) ** 0.5  # two cells off by d give the statistic 2 d^2/100 = x
    counts[1] -= (100 * x / 2) ** 0.5
    assert chi_square_p_value(counts, expected) == pytest.approx(1 - below, abs=1e-12)


def test_counts_as_expected_have_p_value_1():
    """Nothing strays less than not at all."""
    assert chi_square_p_value([30, 50, 20], [30, 50, 20]) == 1


def test_p_values_of_true_multinomial_counts_are_uniform():
    """Of 4,000 fair experiments a share of 0.1 has p < 0.1 and one of 0.9 has p < 0.9.

    False alarm: 1e-6 for each share; the standard error is sqrt(0.09/4,000), and 5 of them are allowed.
    """
    weights = np.array([0.1, 0.2, 0.3, 0.25, 0.15])
    draws = default_rng(0).multinomial(2000, weights, 4000)
    p = np.array([chi_square_p_value(counts, 2000 * weights) for counts in draws])
    for share in (0.1, 0.9):
        assert abs((p < share).mean() - share) < 5 * (0.09 / 4000) ** 0.5


@pytest.mark.parametrize(
    "counts, expected", [([1, 2], [2, 1]), ([1, 2, 3, 4], [4, 3, 2, 1]), ([1, 2, 3], [6]), ([[1, 2, 3]], [[1, 2, 3]])]
)
def test_only_an_odd_number_of_cells_has_an_exact_tail(counts, expected):
    """K even, two shapes or a table is refused."""
    with pytest.raises(ValueError, match="K odd"):
        chi_square_p_value(counts, expected)


def test_counts_and_expectation_must_have_one_sum():
    """Probabilities in place of expected counts are refused."""
    with pytest.raises(ValueError, match="expected must sum to"):
        chi_square_p_value([30, 50, 20], [0.3, 0.5, 0.2])
