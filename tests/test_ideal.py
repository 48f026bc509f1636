"""The exact denoisers that other tests trust, against densities and integrals that share no formula with them."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ideal import (
    chi_square_p_value,
    draw_mixture,
    gaussian_eps_fn,
    mixture_eps_fn,
    mixture_score_fn,
    nearest,
    push_gaussian,
)

from tinydiff.backend import asarray, default_rng, to_numpy
from tinydiff.diffusion import Schedule

pytestmark = pytest.mark.sampler

SCHEDULE = Schedule.linear(100)
seeds = st.integers(0, 999)
times = st.integers(1, 100)


def log_normal(x, mean, cov):
    """log N(x; mean, cov) of one point, by solving and by the determinant."""
    d = x - mean
    return -0.5 * (d @ np.linalg.solve(cov, d) + np.linalg.slogdet(cov)[1] + len(x) * math.log(2 * math.pi))


def eps_by_differences(log_q, x, a):
    """-sqrt(1 - a) grad log_q at each row of x, by central differences."""
    # h = 1e-4 of q's narrowest scale: the error is h^2 of a third derivative, and roundings over h, both near 1e-8.
    h = 1e-4 * (1 - a) ** 0.5
    steps = h * np.eye(x.shape[1])
    return [[-((1 - a) ** 0.5) * (log_q(row + e) - log_q(row - e)) / (2 * h) for e in steps] for row in x]


def assert_close(a, b, rtol=1e-6, atol=1e-6):
    np.testing.assert_allclose(to_numpy(a), b, rtol=rtol, atol=atol)


@given(st.integers(1, 4), times, seeds)
def test_gaussian_eps_is_the_score_of_the_noised_density(D, t, seed):
    """eps = -sqrt(1 - alpha_bar_t) grad log N(x_t; sqrt(alpha_bar_t) mean, alpha_bar_t cov + (1 - alpha_bar_t) I)."""
    rng, a = default_rng(seed), float(SCHEDULE.alpha_bar[t])
    mean, root, x = rng.normal(size=D), rng.normal(size=(D, D)), rng.normal(size=(5, D))
    cov = root @ root.T
    at_t = a * cov + (1 - a) * np.eye(D)
    expected = eps_by_differences(lambda row: log_normal(row, a**0.5 * mean, at_t), x, a)
    assert_close(gaussian_eps_fn(SCHEDULE, mean, cov)(asarray(x), t), expected)


@given(st.integers(1, 3), st.integers(1, 4), times, st.sampled_from([0.0, 0.01, 1.0]), seeds)
def test_mixture_eps_is_the_score_of_the_noised_density(D, K, t, var, seed):
    """eps = -sqrt(1 - alpha_bar_t) grad log sum_k w_k N(x_t; sqrt(alpha_bar_t) mu_k, S_t I), also for points."""
    rng, a = default_rng(seed), float(SCHEDULE.alpha_bar[t])
    weights, means = rng.dirichlet(np.ones(K)), rng.normal(size=(K, D))
    S = (a * var + 1 - a) * np.eye(D)
    # Rows where the density lies: far out, its logarithm is large, and its rounding over h would be seen.
    x = a**0.5 * means[rng.choice(K, 5)] + (a * var + 1 - a) ** 0.5 * rng.normal(size=(5, D))

    def log_q(row):
        return np.logaddexp.reduce([math.log(w) + log_normal(row, a**0.5 * m, S) for w, m in zip(weights, means)])

    expected = eps_by_differences(log_q, x, a)
    assert_close(mixture_eps_fn(SCHEDULE, weights, means, var)(asarray(x), t), expected)


@given(st.integers(1, 3), st.integers(2, 4), times, st.floats(0.01, 2), seeds)
def test_mixture_score_is_the_gradient_of_the_log_posterior(D, K, t, var, seed):
    """grad log p(y | x_t) by central differences of log(weights_y N_y(x) / sum_k weights_k N_k(x))."""
    rng, a = default_rng(seed), float(SCHEDULE.alpha_bar[t])
    weights, means, labels = rng.dirichlet(np.ones(K)), rng.normal(size=(K, D)), rng.integers(0, K, 3)
    x, cov = rng.normal(size=(3, D)), (a * var + 1 - a) * np.eye(D)

    def log_posterior(point, y):
        log_joint = [math.log(w) + log_normal(point, a**0.5 * m, cov) for w, m in zip(weights, means)]
        return log_joint[y] - np.logaddexp.reduce(log_joint)

    scores = mixture_score_fn(SCHEDULE, weights, means, var, labels)(asarray(x), t)
    for row, y, score in zip(x, labels, to_numpy(scores)):
        (eps,) = eps_by_differences(lambda point, y=y: log_posterior(point, y), row[None], a)
        assert_close(score, -np.array(eps) / (1 - a) ** 0.5, atol=1e-6 / (1 - a) ** 0.5)  # see there for the error


@given(times, seeds)
def test_mixture_eps_is_the_conditional_mean_of_the_noise(t, seed):
    """E[eps | x_t] by summing eps p(x_0) q(x_t | x_0) over a grid of x_0, by Bayes' rule and nothing else."""
    rng, a = default_rng(seed), float(SCHEDULE.alpha_bar[t])
    weights, means, var = [0.2, 0.5, 0.3], np.array([[-1.0], [0.3], [1.5]]), 0.04
    x = rng.normal(size=4)
    x_0 = np.linspace(-4, 5, 20_001)  # equal steps of a smooth function that ends in zeros: exact to rounding
    prior = sum(w * np.exp(-((x_0 - m) ** 2) / (2 * var)) for w, (m,) in zip(weights, means))
    eps = (x[:, None] - a**0.5 * x_0) / (1 - a) ** 0.5
    joint = prior * np.exp(-(eps**2) / 2)
    expected = (eps * joint).sum(1) / joint.sum(1)
    eps_hat = mixture_eps_fn(SCHEDULE, weights, means, var)(asarray(x[:, None]), t)
    assert_close(eps_hat[:, 0], expected, rtol=1e-9, atol=1e-9)


@given(times, st.floats(0, 4), seeds)
def test_one_component_is_a_gaussian(t, var, seed):
    """A mixture of one component, or of several in one place, has the eps of N(mean, var I)."""
    rng = default_rng(seed)
    mean, x = rng.normal(size=3), asarray(rng.normal(size=(6, 3)))
    expected = to_numpy(gaussian_eps_fn(SCHEDULE, mean, var * np.eye(3))(x, t))
    for weights in ([1.0], [0.3, 0.7]):
        eps_hat = mixture_eps_fn(SCHEDULE, weights, [mean] * len(weights), var)(x, t)
        assert_close(eps_hat, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_each_row_may_have_its_own_time(dtype):
    """With (N,) t each row has the eps of its own t, in the dtype of x_t."""
    rng = default_rng(0)
    x, t = asarray(rng.normal(size=(4, 2)), dtype), np.array([1, 100, 30, 2])
    means = [[0, 1], [2, 3], [-1, 0]]
    for eps_fn in (
        gaussian_eps_fn(SCHEDULE, [1, 2], [[2, 1], [1, 3]]),
        mixture_eps_fn(SCHEDULE, [0.5, 0.3, 0.2], means, 0.1),
    ):
        rows = [to_numpy(eps_fn(x[i : i + 1], int(t[i])))[0] for i in range(4)]
        eps_hat = eps_fn(x, t)
        assert eps_hat.dtype == dtype and eps_hat.shape == x.shape
        assert_close(eps_hat, rows, rtol=1e-6, atol=0)


def test_far_from_every_point_the_nearest_one_decides():
    """Where every density underflows, eps still leads to the nearest point, and is finite."""
    x = asarray(np.array([[1e3, 2e3], [-1e3, 5.0]]))
    means = np.array([[1.0, 1.0], [-1.0, 0.0]])
    a = float(SCHEDULE.alpha_bar[1])
    eps_hat = to_numpy(mixture_eps_fn(SCHEDULE, [0.5, 0.5], means, 0.0)(x, 1))
    assert_close((to_numpy(x) - (1 - a) ** 0.5 * eps_hat) / a**0.5, means, rtol=0, atol=1e-9)


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
