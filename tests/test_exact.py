"""The exact denoisers of demos/exact.py, which other tests trust, against densities and integrals.

None of these shares a formula with what it judges.
"""

import math

import numpy as np
import pytest
from exact import (
    ExactModel,
    gaussian_eps_fn,
    guided_stds,
    ideal_x_0_fn,
    mixture_eps_fn,
    mixture_log_density,
    mixture_probs_fn,
    mixture_score_fn,
    still_matter,
)
from hypothesis import assume, given
from hypothesis import strategies as st

from tinydiff.backend import asarray, default_rng, to_numpy
from tinydiff.diffusion import Schedule, x_0_from_eps

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


# ------------------------------------------------------------------------------------------- points, pictures, labels


@given(st.integers(1, 3), st.integers(1, 5), times, st.sampled_from([0.0, 0.3]), seeds)
def test_the_probabilities_of_the_components_are_bayes_rule(D, K, t, var, seed):
    """weights_k N(x_t; sqrt(alpha_bar_t) means_k, S_t I), divided by their sum; each row has its own t."""
    rng = default_rng(seed)
    weights, means = rng.dirichlet(np.ones(K)), rng.normal(size=(K, D))
    t = np.array([t, 101 - t])
    x = rng.normal(size=(2, D))
    probs = to_numpy(mixture_probs_fn(SCHEDULE, weights, means, var)(asarray(x), t))
    for row, a, found in zip(x, SCHEDULE.alpha_bar[t], probs):
        cov = (a * var + 1 - a) * np.eye(D)
        joint = np.array([math.log(w) + log_normal(row, a**0.5 * m, cov) for w, m in zip(weights, means)])
        assert_close(found, np.exp(joint - np.logaddexp.reduce(joint)), rtol=1e-9, atol=1e-12)


@given(times, st.sampled_from(["float32", "float64"]), seeds)
def test_the_ideal_x_0_hat_is_the_mean_of_all_pictures_that_x_t_may_come_from(t, dtype, seed):
    """Written out: each picture weighs exp(-|x_t - sqrt(alpha_bar_t) picture|^2/(2 (1 - alpha_bar_t))).

    It is the x_0 of the eps_hat of the same points as a mixture without width.  Shape and dtype are those of x_t.
    """
    rng, a = default_rng(seed), float(SCHEDULE.alpha_bar[t])
    pictures = rng.uniform(-1, 1, (6, 3, 2, 1))
    x_t = asarray(a**0.5 * pictures[:4] + (1 - a) ** 0.5 * rng.normal(size=(4, 3, 2, 1)), dtype)
    x_0_hat, w = ideal_x_0_fn(SCHEDULE, pictures)(x_t, t)
    assert x_0_hat.dtype == dtype and x_0_hat.shape == x_t.shape and w.shape == (4, 6)
    squares = ((to_numpy(x_t).astype("float64")[:, None] - a**0.5 * pictures) ** 2).sum((2, 3, 4))
    density = np.exp(-(squares - squares.min(1, keepdims=True)) / (2 * (1 - a)))
    expected = density / density.sum(1, keepdims=True)
    assert_close(w, expected, rtol=1e-7, atol=1e-12)  # squares of size 1, over 2 (1 - alpha_bar_1) = 2e-3
    tolerance = 1e-6 if dtype == "float32" else 1e-12
    assert_close(x_0_hat, np.einsum("nk,k...->n...", expected, pictures), rtol=1e-7, atol=tolerance)
    if dtype == "float64":
        flat = x_t.reshape(4, -1)
        eps_hat = mixture_eps_fn(SCHEDULE, np.full(6, 1 / 6), pictures.reshape(6, -1), 0.0)(flat, t)
        same = to_numpy(x_0_from_eps(SCHEDULE, flat, t, eps_hat)).reshape(x_t.shape)
        assert_close(x_0_hat, same, rtol=0, atol=1e-9)  # divided by sqrt(alpha_bar_T) = 6e-3


def test_in_pure_noise_all_pictures_matter_and_near_the_data_one():
    """At t = T the ideal x_0_hat is nearly the mean of all, at t = 1 the picture itself."""
    pictures = default_rng(0).uniform(-1, 1, (50, 3, 3, 1))
    x_0_fn, x = ideal_x_0_fn(Schedule.linear(), pictures), asarray(default_rng(1).normal(size=(1, 3, 3, 1)))
    blur, w = x_0_fn(x, 1000)
    assert_close(blur, pictures.mean(0)[None], atol=0.02)  # sqrt(alpha_bar_T) = 6e-3 of it, times |x_T| = 3
    assert 49.9 < float(still_matter(w)[0]) <= 50
    near, w = x_0_fn(asarray(pictures[7:8]) + 0.01 * x, 1)
    assert_close(near, pictures[7:8], atol=1e-9)
    assert float(still_matter(w)[0]) == pytest.approx(1, abs=1e-9)


@given(st.integers(1, 40), st.integers(0, 10))
def test_of_equal_weights_as_many_matter_as_there_are(n, more):
    """n equal weights are n; others that are 0 do not count; one of 1/2 and two of 1/4 are 8/3."""
    w = np.array([[1 / n] * n + [0.0] * more])
    assert to_numpy(still_matter(asarray(w))).tolist() == pytest.approx([n], rel=1e-12)
    assert float(still_matter(asarray([[0.5, 0.25, 0.25]]))[0]) == pytest.approx(8 / 3, rel=1e-12)


@given(st.integers(1, 3), st.integers(1, 4), st.floats(0.01, 2), seeds)
def test_the_density_of_a_mixture_is_the_sum_of_its_components(D, K, var, seed):
    """log sum_k w_k N(x; means_k, var I), with the determinant."""
    rng = default_rng(seed)
    weights, means, x = rng.dirichlet(np.ones(K)), rng.normal(size=(K, D)), rng.normal(size=(4, D))
    cov = var * np.eye(D)
    expected = [
        np.logaddexp.reduce([math.log(w) + log_normal(row, m, cov) for w, m in zip(weights, means)]) for row in x
    ]
    assert_close(mixture_log_density(x, weights, means, var), expected, rtol=1e-10, atol=1e-10)


def test_a_model_of_exact_denoisers_answers_each_row_by_its_label():
    """Rows of labels 1, 0, none: each has the answer of its own eps_fn; one label stands for all rows."""
    rng = default_rng(2)
    eps_fns = [gaussian_eps_fn(SCHEDULE, rng.normal(size=2), np.eye(2)) for _ in range(3)]
    model, x = ExactModel(eps_fns), asarray(rng.normal(size=(3, 2)), "float32")
    assert model.num_classes == 2
    answers = [to_numpy(eps_fn(x, 40)) for eps_fn in eps_fns]
    mixed = model(x, 40, np.array([1, 0, 2]))
    assert mixed.dtype == "float32"
    np.testing.assert_array_equal(to_numpy(mixed), [answers[1][0], answers[0][1], answers[2][2]])
    np.testing.assert_array_equal(to_numpy(model(x, 40, 1)), answers[1])


# -------------------------------------------------------------------------- what guidance does to the width of a class
# That DDIM and DDPM come to these widths in the limit of many steps is proven in diffusion/test_guidance.py.


@given(st.floats(0.05, 4), st.one_of(st.floats(0.1, 0.9), st.floats(1.1, 10)))
def test_without_guidance_each_width_is_the_class_s_own_and_at_scale_0_that_of_all_data(v_u, ratio):
    """Scale 1 is the class and scale 0 all data, for both samplers and for the density."""
    v_c = ratio * v_u
    assert list(guided_stds(1, v_u, v_c).values()) == pytest.approx([v_c**0.5] * 3, rel=1e-9)
    assert list(guided_stds(0, v_u, v_c).values()) == pytest.approx([v_u**0.5] * 3, rel=1e-9)


@given(st.floats(-1, 8), st.floats(0.2, 2), st.one_of(st.floats(0.1, 0.9), st.floats(1.1, 10)))
def test_the_tilted_width_is_the_integral_of_its_density(scale, v_u, ratio):
    """sqrt(integral of x^2 p(x)^(1 - scale) p(x | c)^scale / integral of it), over a grid; nan where it has none."""
    scale, v_c = scale + 1e-3 * (scale == 0.5), ratio * v_u
    precision = (1 - scale) / v_u + scale / v_c
    assume(abs(precision) > 0.05)
    tilted = guided_stds(scale, v_u, v_c)["tilted"]
    if precision < 0:
        assert math.isnan(tilted)
        return
    x = (
        np.linspace(-10, 10, 20_001) * precision**-0.5
    )  # equal steps of a function that ends in zeros: exact to rounding
    w = np.exp(-(1 - scale) * x**2 / (2 * v_u) - scale * x**2 / (2 * v_c))
    assert tilted == pytest.approx(((x**2 * w).sum() / w.sum()) ** 0.5, rel=1e-9)


@given(st.floats(1.05, 8), st.floats(0.1, 0.9))
def test_guided_chains_are_narrower_than_the_tilted_density(scale, r):
    """Above scale 1, for a class that is narrower than all data: DDIM < DDPM < tilted < the class itself."""
    stds = guided_stds(scale, 1.0, r)
    assert stds["DDIM"] < stds["DDPM"] < stds["tilted"] < r**0.5
