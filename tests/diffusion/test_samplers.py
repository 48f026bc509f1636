"""Reverse steps and the loop: exact with oracle noise, exact on Gaussian data, true to mixtures and finite sets."""

import math
from functools import cache, partial
from itertools import pairwise

import numpy as np
import pytest
from chains import any_schedule, assert_close, assert_same, normal, seeds
from draws import NOT_LIKE, draw_pair
from exact import gaussian_eps_fn, mixture_eps_fn
from hypothesis import example, given
from hypothesis import strategies as st
from samples import PLACES, WEIGHTS, chi_square_p_value, nearest, push_gaussian

from tinydiff.backend import asarray, default_rng, standard_normal, to_numpy
from tinydiff.diffusion import (
    Schedule,
    ddim_step,
    ddpm_step,
    eps_from_x_0,
    q_sample,
    q_x_s_given_x_t_x_0,
    sample,
    timestep_pairs,
    x_0_from_eps,
)

pytestmark = pytest.mark.sampler

shapes = st.sampled_from([(1,), (3,), (2, 5), (2, 3, 4, 1)])


# --------------------------------------------------------------------------------------------------- exact step by step


@given(any_schedule, st.data(), shapes, seeds)
def test_ddim_with_oracle_noise_walks_the_closed_form(schedule, data, shape, seed):
    """Told the true eps, DDIM passes through q_sample(x_0, s, eps) at any stride, sees x_0 always, and ends on it.

    (Song et al. 2021, DDIM, eq. 12 with sigma = 0.)
    """
    t, s = draw_pair(data, schedule)
    x_0, eps = normal(seed, 2, *shape)
    stops = sorted({t, s, 0, *data.draw(st.lists(st.integers(0, t), max_size=4))}, reverse=True)
    pairs = list(pairwise(stops))
    x_t = q_sample(schedule, x_0, t, eps)
    # x_0_hat divides roundings of 1e-16 by sqrt(alpha_bar_t) >= 1e-6, once for all steps: later ones shrink it.
    atol = 1e-14 / schedule.alpha_bar[t] ** 0.5
    seen = []
    for at, x, x_0_hat in sample(partial(ddim_step, schedule), lambda x, t: eps, pairs, x_t, default_rng(0)):
        assert_close(x, q_sample(schedule, x_0, at, eps), atol=atol)
        assert_close(x_0_hat, x_0, atol=atol)
        seen.append(at)
    assert seen == stops[1:] and seen[-1] == 0
    assert_close(x, x_0, atol=atol)


@given(any_schedule, st.data(), shapes, seeds)
def test_ddpm_with_the_true_noise_is_the_posterior(schedule, data, shape, seed):
    """x_s = mean + sqrt(var) noise of q(x_s | x_t, x_0) if eps_hat is the true noise (Ho et al. 2020, eq. 6 and 7)."""
    t, s = draw_pair(data, schedule)
    x_0, eps, noise = normal(seed, 3, *shape)
    x_t = q_sample(schedule, x_0, t, eps)
    x_s, x_0_hat = ddpm_step(schedule, x_t, eps, t, s, noise)
    mean, var = q_x_s_given_x_t_x_0(schedule, x_t, x_0, t, s)
    atol = 1e-14 / schedule.alpha_bar[t] ** 0.5  # x_0_hat divides roundings by sqrt(alpha_bar_t)
    assert_close(x_0_hat, x_0, atol=atol)
    assert_close(x_s, mean + var**0.5 * noise, atol=atol)


@given(any_schedule, st.data(), shapes, seeds)
def test_ddpm_is_the_ancestral_step_of_the_paper(schedule, data, shape, seed):
    """One step of stride one is x_{t-1} = (x_t - beta_t/sqrt(1 - alpha_bar_t) eps)/sqrt(alpha_t) + sigma_t z.

    (Ho et al. 2020, eq. 11 and algorithm 2, which has no z at t = 1.)
    """
    t, _ = draw_pair(data, schedule)
    x_t, eps_hat, noise = normal(seed, 3, *shape)
    beta, alpha = float(schedule.beta[t]), float(schedule.alpha[t])
    at_t, at_s = (-math.expm1(float(np.log1p(-schedule.beta[1 : u + 1]).sum())) for u in (t, t - 1))  # 1 - alpha_bar
    mean = (x_t - beta / at_t**0.5 * eps_hat) / alpha**0.5
    sigmas = {Schedule.beta_t_given_s: beta**0.5, Schedule.beta_tilde: (at_s / at_t * beta) ** 0.5}
    # log(alpha_bar) is held down to -28, to 4e-15; a variance is a difference of two, and sigma the root of that.
    tolerance = 5e-7
    for variance, sigma in sigmas.items():
        x_s, _ = ddpm_step(schedule, x_t, eps_hat, t, t - 1, noise, variance=variance)
        assert_close(x_s, mean + (sigma if t > 1 else 0) * noise, rtol=tolerance, atol=tolerance)


@given(any_schedule, st.data(), shapes, seeds, st.booleans())
def test_ddim_at_eta_1_is_ddpm(schedule, data, shape, seed, clip):
    """At any s < t, clipped or not, ddim_step(eta=1) is ddpm_step with beta_tilde (Song et al. 2021, section 4.1)."""
    t, s = draw_pair(data, schedule)
    x_t, eps_hat, noise = normal(seed, 3, *shape)
    ddim, ddim_x_0_hat = ddim_step(schedule, x_t, eps_hat, t, s, noise, eta=1.0, clip=clip)
    ddpm, ddpm_x_0_hat = ddpm_step(schedule, x_t, eps_hat, t, s, noise, clip=clip)
    assert_same(ddim_x_0_hat, ddpm_x_0_hat)
    # 1 - alpha_bar_s - beta_tilde cancels down to 1e-12 at worst, which leaves 4 digits, of a term of size 1e-6.
    scale = 1 + float(abs(to_numpy(ddpm_x_0_hat)).max()) * schedule.alpha_bar[s] ** 0.5
    assert_close(ddim, ddpm, rtol=0, atol=1e-9 * scale)


@pytest.mark.filterwarnings("ignore::tinydiff.diffusion.ScheduleWarning")
def test_eta_1_never_takes_the_root_of_a_rounding_error():
    """1 - alpha_bar_s - beta_tilde may round to below 0 where beta_s is next to nothing; the step stays finite."""
    x = normal(0, 3)
    for beta in np.linspace(0.05, 0.95, 60):
        x_s, _ = ddim_step(Schedule([3e-18, beta]), x, x, 2, 1, x, eta=1.0)
        assert np.isfinite(to_numpy(x_s)).all()


@given(any_schedule, st.data(), st.floats(0, 1), seeds)
def test_every_eta_keeps_the_marginal(schedule, data, eta, seed):
    """With oracle noise x_s has the mean and variance of q(x_s | x_0) for every eta: eps^2 + var = 1 - alpha_bar_s.

    (Song et al. 2021, eq. 7 and lemma 1, with the var of eq. 16.)
    """
    t, s = draw_pair(data, schedule, lowest_s=1)
    zero = normal(seed, 3) * 0
    one = zero + 1
    at_t = q_sample(schedule, zero, t, one)
    eps_coef, _ = ddim_step(schedule, at_t, one, t, s, zero, eta=eta)
    noise_coef = ddim_step(schedule, at_t, one, t, s, one, eta=eta)[0] - eps_coef
    atol = 1e-14 / schedule.alpha_bar[t] ** 0.5
    assert_close(eps_coef**2 + noise_coef**2, q_sample(schedule, zero, s, one) ** 2, atol=atol)
    assert_close(noise_coef**2, eta**2 * schedule.beta_tilde(t, s) * one, rtol=1e-9, atol=atol)


# -------------------------------------------------------------------------------------------------------------- noise

STEPS = [
    ddpm_step,
    partial(ddpm_step, variance=Schedule.beta_t_given_s),
    partial(ddim_step, eta=1.0),
    partial(ddim_step, eta=0.3),
    ddim_step,
]


@pytest.mark.parametrize("step", STEPS)
@given(schedule=any_schedule, data=st.data(), shape=shapes, seed=seeds)
def test_no_noise_enters_the_data(step, schedule, data, shape, seed):
    """At s = 0 x_s is x_0_hat, bit for bit, whatever the variance, eta or noise: even noise that is NaN, or None."""
    t, _ = draw_pair(data, schedule)
    x_t, eps_hat = normal(seed, 2, *shape, dtype="float32")
    for noise in (None, x_t * float("nan")):
        x_s, x_0_hat = step(schedule, x_t, eps_hat, t, 0, noise)
        assert_same(x_s, x_0_hat)
        assert np.isfinite(to_numpy(x_s)).all()


@given(any_schedule, st.data(), shapes, seeds)
def test_eta_0_draws_nothing(schedule, data, shape, seed):
    """ddim_step at its default has no use for noise: None, NaN and numbers give one answer, and that one twice."""
    t, s = draw_pair(data, schedule, lowest_s=1)
    x_t, eps_hat, noise = normal(seed, 3, *shape)
    x_s, _ = ddim_step(schedule, x_t, eps_hat, t, s, None)
    for other in (noise, noise * float("nan"), None):
        assert_same(ddim_step(schedule, x_t, eps_hat, t, s, other, eta=0.0)[0], x_s)


@pytest.mark.parametrize("variance", [Schedule.beta_tilde, Schedule.beta_t_given_s, lambda schedule, t, s: 0.25])
@given(schedule=any_schedule, data=st.data(), seed=seeds)
def test_noise_enters_with_the_standard_deviation_of_the_variance(variance, schedule, data, seed):
    """x_s(noise) - x_s(0) = sqrt(variance) noise, for both choices of Ho et al. 2020, section 3.2, and one's own."""
    t, s = draw_pair(data, schedule, lowest_s=1)
    x_t, noise = normal(seed, 2, 3)
    with_noise, _ = ddpm_step(schedule, 0 * x_t, 0 * x_t, t, s, noise, variance=variance)
    assert_close(with_noise, float(variance(schedule, t, s)) ** 0.5 * noise, atol=0)


def test_the_default_variance_is_beta_tilde(linear):
    """ddpm_step without a variance is ddpm_step with Schedule.beta_tilde."""
    x_t, eps_hat, noise = normal(0, 3, 4)
    default, _ = ddpm_step(linear, x_t, eps_hat, 500, 400, noise)
    assert_same(default, ddpm_step(linear, x_t, eps_hat, 500, 400, noise, variance=Schedule.beta_tilde)[0])


# ----------------------------------------------------------------------------------------------------------- clipping


@pytest.mark.parametrize("step", STEPS)
@given(seed=seeds, t=st.integers(2, 1000))
def test_clip_acts_on_x_0_hat_alone(linear, step, seed, t):
    """With clip the step is the unclipped step for the eps that leads to clip(x_0_hat); off, x_0_hat is left alone."""
    x_t, eps_hat, noise = normal(seed, 3, 4, 5)
    s = t // 2
    free = x_0_from_eps(linear, x_t, t, eps_hat)
    assert_same(step(linear, x_t, eps_hat, t, s, noise)[1], free)
    x_s, x_0_hat = step(linear, x_t, eps_hat, t, s, noise, clip=True)
    inside = asarray(np.clip(to_numpy(free), -1, 1))
    assert_same(x_0_hat, inside)
    expected, _ = step(linear, x_t, eps_from_x_0(linear, x_t, t, inside), t, s, noise)
    assert_close(x_s, expected, rtol=1e-10, atol=1e-10)  # x_0 -> eps -> x_0 divides by sqrt(alpha_bar_t) >= 6e-3


# ---------------------------------------------------------------------------------------------------- Gaussian data
# For data N(mean, cov) the ideal eps_hat is affine in x_t, so a sampler maps x_T ~ N(0, I) to a Gaussian whose mean and
# covariance are numbers.  With S_t = alpha_bar_t cov + (1 - alpha_bar_t) I, the covariance of x_t,
#   DDPM:  the mean step is E[x_s | x_t], of slope cov(x_s, x_t) S_t^-1 = sqrt(alpha_bar_t/alpha_bar_s) S_s S_t^-1
#   DDIM:  x_0_hat has slope sqrt(alpha_bar_t) cov S_t^-1 and eps_hat sqrt(1 - alpha_bar_t) S_t^-1; eq. 12 adds them up
# and both take sqrt(alpha_bar_t) mean, the mean of x_t, to sqrt(alpha_bar_s) mean.


def predicted(alpha_bar, pairs, mean, cov, kind):
    """Mean and covariance of the sampler's output, by the slopes above."""
    eye = np.eye(len(mean))
    out_mean, out_cov = 0 * mean, eye
    for t, s in pairs:
        a_t, a_s = alpha_bar[t], alpha_bar[s]
        S_t, S_s = a_t * cov + (1 - a_t) * eye, a_s * cov + (1 - a_s) * eye
        beta = 1 - a_t / a_s if s > 0 else 0.0
        beta_tilde = beta * (1 - a_s) / (1 - a_t)
        if kind.startswith("ddpm"):
            added = beta if kind == "ddpm_large" else beta_tilde
            slope = (a_t / a_s) ** 0.5 * S_s @ np.linalg.inv(S_t)
        else:
            added = {"ddim": 0, "ddim_half": 0.25}[kind] * beta_tilde
            slope = (a_s * a_t) ** 0.5 * cov + ((1 - a_s - added) * (1 - a_t)) ** 0.5 * eye
            slope = slope @ np.linalg.inv(S_t)
        out_mean = a_s**0.5 * mean + slope @ (out_mean - a_t**0.5 * mean)
        out_cov = slope @ out_cov @ slope.T + added * eye
    return out_mean, out_cov


GAUSSIAN_STEPS = {
    "ddpm": ddpm_step,
    "ddpm_large": partial(ddpm_step, variance=Schedule.beta_t_given_s),
    "ddim_half": partial(ddim_step, eta=0.5),
    "ddim": ddim_step,
}


def measured(schedule, pairs, mean, cov, kind):
    """The same two read off the sampler, which is fed the exact denoiser of N(mean, cov)."""
    step, eps_fn = partial(GAUSSIAN_STEPS[kind], schedule), gaussian_eps_fn(schedule, mean, cov)
    return push_gaussian(step, eps_fn, pairs, 0 * mean, np.eye(len(mean)))


def measured_std(schedule, num_steps, std, kind):
    """The standard deviation of the output in one dimension, data N(0.7, std^2)."""
    pairs = timestep_pairs(schedule.T, num_steps)
    _, cov = measured(schedule, pairs, np.array([0.7]), np.array([[std**2]]), kind)
    return float(cov[0, 0]) ** 0.5


@pytest.mark.parametrize("kind", GAUSSIAN_STEPS)
@given(T=st.integers(21, 400), data=st.data(), D=st.integers(1, 4), std=st.floats(0.01, 2), seed=seeds)
def test_the_sampler_maps_gaussians_as_computed_by_hand(kind, T, data, D, std, seed):
    """The ideal denoiser of N(mean, cov) makes every sampler affine, with the slopes of conditional expectation."""
    schedule, pairs = Schedule.linear(T), timestep_pairs(T, data.draw(st.integers(1, min(T, 40))))
    rng = default_rng(seed)
    mean, root = rng.uniform(-2, 2, D), std * rng.normal(size=(D, D))
    expected_mean, expected_cov = predicted(schedule.alpha_bar, pairs, mean, root @ root.T, kind)
    out_mean, out_cov = measured(schedule, pairs, mean, root @ root.T, kind)
    # x_0_hat at t = T divides by sqrt(alpha_bar_T), 3e-8 at T = 21: 16 digits become 8.
    assert_close(out_mean, expected_mean, rtol=1e-6, atol=1e-6)
    assert_close(out_cov, expected_cov, rtol=1e-6, atol=1e-6)


# From a program that shares no line with this one: data N(0.7, 0.5^2), linear beta, T = 1000.
KNOWN_STD = {
    "ddpm": {10: 0.33348, 50: 0.4441, 250: 0.4858, 1000: 0.49611},
    "ddim": {10: 0.36995, 50: 0.4714, 250: 0.49409, 1000: 0.4985},
}


@pytest.mark.parametrize("kind", KNOWN_STD)
@pytest.mark.parametrize("num_steps", [10, 50, 250, 1000])
def test_the_output_of_the_ideal_denoiser_is_the_known_number(linear, kind, num_steps):
    """The output's standard deviation at 10, 50, 250 and 1,000 steps, to the five digits that are known."""
    assert measured_std(linear, num_steps, 0.5, kind) == pytest.approx(KNOWN_STD[kind][num_steps], abs=5.1e-6)


@pytest.mark.parametrize("kind", GAUSSIAN_STEPS)
def test_more_steps_come_closer_to_the_data(linear, kind):
    """The error of the output's standard deviation falls at least 2.5 times for 5 times the steps, and below 1%."""
    errors = [abs(measured_std(linear, n, 0.5, kind) - 0.5) for n in (8, 40, 200, 1000)]
    if kind == "ddpm_large":
        errors = errors[1:]  # in 8 steps its error changes sign: too small a mean step, too large a noise
    assert all(few > 2.5 * many for few, many in pairwise(errors))
    assert errors[-1] < 0.005


@pytest.mark.parametrize("kind, v", [("ddpm", 0.0), ("ddpm_large", 1.0)])
@given(num_steps=st.integers(1, 60))
def test_each_variance_is_exact_for_its_own_data(linear, kind, v, num_steps):
    """beta_tilde for data that are one point, beta_{t|s} for N(0, I): x_s then has q's mean and variance exactly
    wherever x_t has them (Ho et al. 2020, section 3.2)."""
    mean = np.array([0.7, -0.3]) * (v == 0)
    step, eps_fn = partial(GAUSSIAN_STEPS[kind], linear), gaussian_eps_fn(linear, mean, v * np.eye(2))
    at = [(a**0.5 * mean, (a * v + 1 - a) * np.eye(2)) for a in linear.alpha_bar]
    for t, s in timestep_pairs(1000, num_steps)[:-1]:
        out_mean, out_cov = push_gaussian(step, eps_fn, [(t, s)], *at[t])
        assert_close(out_mean, at[s][0], rtol=1e-10, atol=1e-10)
        assert_close(out_cov, at[s][1], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", GAUSSIAN_STEPS)
def test_samples_of_the_ideal_denoiser_spread_as_predicted(linear, kind):
    """10 steps of 20,000 random chains: each mean and covariance lies within 4.5 standard errors of the prediction.

    False alarm: 7e-6 for each of 5 numbers, 3.4e-5 for a fresh seed.
    """
    n, pairs = 20_000, timestep_pairs(1000, 10)
    data_mean, data_cov = np.array([0.7, -0.2]), np.array([[0.25, 0.15], [0.15, 0.4]])
    mean, cov = predicted(linear.alpha_bar, pairs, data_mean, data_cov, kind)
    rng = default_rng(1)
    x_T, eps_fn = standard_normal(rng, (n, 2), "float64"), gaussian_eps_fn(linear, data_mean, data_cov)
    *_, (t, x_0, _) = sample(partial(GAUSSIAN_STEPS[kind], linear), eps_fn, pairs, x_T, rng)
    assert t == 0
    x_0, var = to_numpy(x_0), cov.diagonal()
    assert (abs(x_0.mean(0) - mean) < 4.5 * (var / n) ** 0.5).all()
    # The product of two centred normals of covariance C_ij has variance C_ii C_jj + C_ij^2.
    assert (abs(np.cov(x_0.T) - cov) < 4.5 * ((np.outer(var, var) + cov**2) / n) ** 0.5).all()


# ------------------------------------------------------------------------------------------- mixtures and finite sets
# Five places on a circle, 1.18 apart, of unequal weights.  With so few steps a sampler's weights are a little off: on
# 400,000 chains, 100 steps of DDPM erred by 0.003 at most, of DDIM by 0.0013.  The error falls as 1/steps; at 200 it
# adds 0.06 to the chi-square of 3,000 chains, which is 4 on average, and is held to 23.5.


@cache
def sample_places(step, var):
    """3,000 chains of 200 steps with the exact denoiser of sum_k WEIGHTS_k N(PLACES_k, var I), from a fixed seed."""
    schedule, rng = Schedule.linear(), default_rng(0)
    x_T, eps_fn = standard_normal(rng, (3000, 2), "float64"), mixture_eps_fn(schedule, WEIGHTS, PLACES, var)
    *_, (_, x_0, _) = sample(partial(step, schedule), eps_fn, timestep_pairs(1000, 200), x_T, rng)
    return x_0


@pytest.mark.parametrize("var", [0.01, 0.0])
@pytest.mark.parametrize("step", [ddpm_step, ddim_step])
def test_sampling_recovers_the_weights_of_a_mixture(step, var):
    """Each component of the data, or each point of a finite set, is sampled as often as its weight says.

    False alarm: 1.2e-4 for a fresh seed.  The test has eyes: with equal weights for the true ones, p would be < 1e-9.
    """
    counts = nearest(sample_places(step, var), PLACES)
    assert chi_square_p_value(counts, 3000 * WEIGHTS) > 1e-4
    assert chi_square_p_value(counts, np.full(5, 600)) < 1e-9


@pytest.mark.parametrize("step", [ddpm_step, ddim_step])
def test_sampling_ends_on_the_points_of_a_finite_set(step):
    """With the exact denoiser of five points every sample is one of them, to rounding.

    At the last t, 5, noise is sigma = 0.026 and points are 44 sigma apart: a sample z sigma off its own gives another
    a share of 3 exp(-44^2/2 + 44 z) at most, 1e-267 for z = 8.  What is left are roundings, of numbers near 1.
    """
    x_0 = to_numpy(sample_places(step, 0.0))
    assert (((x_0[:, None] - PLACES) ** 2).sum(2).min(1) ** 0.5).max() < 1e-13


# ----------------------------------------------------------------------------------------------------------- the loop


def fake_eps_fn(x_t, t):
    """Any function of x_t and t."""
    return 0.5 * x_t + 0.001 * t


@pytest.mark.parametrize("step", STEPS)
@given(seed=seeds, num_steps=st.integers(1, 24))
@example(seed=0, num_steps=24)  # the full chain: s is each of 23..0
def test_sample_is_the_step_repeated(step, seed, num_steps):
    """sample yields (s, x_s, x_0_hat) of each pair in turn, with fresh noise from rng for each step with s > 0."""
    schedule, x_T = Schedule.linear(24), normal(seed, 2, 3, 1, dtype="float32")
    pairs = timestep_pairs(24, num_steps)
    given_rng = default_rng(seed)
    walk = list(sample(partial(step, schedule), fake_eps_fn, pairs, x_T, given_rng))
    assert [t for t, _, _ in walk] == [s for _, s in pairs]
    rng, x = default_rng(seed), x_T
    for (t, s), (_, x_s, x_0_hat) in zip(pairs, walk):
        noise = standard_normal(rng, x.shape, "float32") if s > 0 else None
        x, expected_x_0_hat = step(schedule, x, fake_eps_fn(x, t), t, s, noise)
        assert_same(x_s, x)
        assert_same(x_0_hat, expected_x_0_hat)
        assert x_s.dtype == x_0_hat.dtype == "float32" and x_s.shape == x_0_hat.shape == x_T.shape
    assert_same(walk[-1][1], walk[-1][2])
    assert given_rng.bit_generator.state == rng.bit_generator.state  # drawn as often, and not for s = 0


def test_one_seed_is_one_noise_for_every_sampler(linear):
    """DDIM with eta = 0, which uses no noise, leaves rng where DDPM leaves it."""
    after = []
    for step in STEPS:
        rng = default_rng(7)
        list(sample(partial(step, linear), fake_eps_fn, timestep_pairs(1000, 5), normal(0, 2, 3), rng))
        after.append(rng.integers(2**62))
    assert len(set(after)) == 1


def test_sample_leaves_x_T_and_what_it_yielded_alone(linear):
    """No array that was handed in or out is written to afterwards."""
    x_T = normal(0, 2, 3)
    before, kept = to_numpy(x_T).copy(), []
    for _, x_t, x_0_hat in sample(
        partial(ddpm_step, linear, clip=True), fake_eps_fn, timestep_pairs(1000, 6), x_T, default_rng(0)
    ):
        kept.append((x_t, to_numpy(x_t).copy(), x_0_hat, to_numpy(x_0_hat).copy()))
    assert_same(x_T, before)
    for x_t, x_t_then, x_0_hat, x_0_hat_then in kept:
        assert_same(x_t, x_t_then)
        assert_same(x_0_hat, x_0_hat_then)


def test_eps_fn_gets_the_time_as_a_python_integer(linear):
    """t reaches the model as int, not as a NumPy scalar that would promote what it touches."""
    times = []

    def eps_fn(x_t, t):
        times.append(t)
        return x_t

    list(sample(partial(ddim_step, linear), eps_fn, timestep_pairs(1000, 4), normal(0, 2), default_rng(0)))
    assert times == [1000, 750, 500, 250] and all(type(t) is int for t in times)


# ------------------------------------------------------------------------------------------------- rows, bad arguments


@pytest.mark.parametrize("step", STEPS)
def test_a_step_takes_a_time_for_each_row(linear, step):
    """With (N,) t and s, rows step as they would alone, the row at s = 0 without noise."""
    x_t, eps_hat, noise = normal(3, 3, 4, 2, 3, 1, dtype="float32")
    t, s = np.array([1, 7, 1000, 500]), np.array([0, 6, 0, 250])
    x_s, x_0_hat = step(linear, x_t, eps_hat, t, s, noise)
    for i in range(4):
        row = slice(i, i + 1)
        alone, alone_hat = step(linear, x_t[row], eps_hat[row], int(t[i]), int(s[i]), noise[row])
        assert_same(x_s[row], alone)
        assert_same(x_0_hat[row], alone_hat)
    assert x_s.dtype == "float32"


@pytest.mark.parametrize("step", [ddpm_step, ddim_step])
def test_arguments_may_be_named_and_options_must_be(linear, step):
    """A step takes its six arguments in order or by name, and variance, eta and clip by name only."""
    x = normal(0, 2, 3)
    named = step(schedule=linear, x_t=x, eps_hat=x, t=5, s=4, noise=x)
    assert_same(named[0], step(linear, x, x, 5, 4, x)[0])
    with pytest.raises(TypeError, match="positional"):
        step(linear, x, x, 5, 4, x, Schedule.beta_tilde if step is ddpm_step else 0.0)


@pytest.mark.parametrize("step", STEPS[:-1])
def test_a_random_step_without_noise_is_refused(linear, step):
    """noise=None is an error where noise has a weight, not a silent zero."""
    x = normal(0, 2, 3)
    with pytest.raises(ValueError, match="noise is needed for a random step to s = 4, got None"):
        step(linear, x, x, 5, 4, None)


@pytest.mark.parametrize("step", STEPS)
def test_arrays_that_do_not_match_are_refused_by_name(linear, step):
    """eps_hat and noise must have the shape and dtype of x_t."""
    x = normal(0, 2, 3, dtype="float32")
    for bad in (normal(0, 2, 3), normal(0, 2, 1, dtype="float32"), normal(0, 3, dtype="float32")):
        with pytest.raises(ValueError, match=r"eps_hat must be float32 \(2, 3\) like x_t"):
            step(linear, x, bad, 5, 4, x)
        if step is not ddim_step:
            with pytest.raises(ValueError, match=r"noise must be float32 \(2, 3\) like x_t"):
                step(linear, x, x, 5, 4, bad)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize(
    "t, s, message",
    [
        (5, 5, "got s = 5 and t = 5"),
        (4, 5, "got s = 5"),
        (1001, 5, "t must lie"),
        (5, -1, "s must lie"),
        (0, 0, "t must"),
    ],
)
@pytest.mark.parametrize("clip", [False, True])
def test_a_step_that_does_not_go_back_is_refused(linear, step, t, s, message, clip):
    """0 <= s < t <= T, or ValueError naming the time."""
    x = normal(0, 2, 3)
    with pytest.raises(ValueError, match=message):
        step(linear, x, x, t, s, x, clip=clip)


@pytest.mark.parametrize("eta", [-0.1, 1.01, float("nan")])
def test_eta_outside_0_1_is_refused(linear, eta):
    """Past 1 the eps coefficient would be the root of a negative number."""
    x = normal(0, 2, 3)
    with pytest.raises(ValueError, match=r"eta must lie in 0\.\.1, got"):
        ddim_step(linear, x, x, 5, 4, x, eta=eta)


# ------------------------------------------------------------------------------------------------ what is handed over

JOINED_BADLY = [
    [(9, 5), (4, 0)],
    [(9, 5), (6, 0)],
    [(9, 5), (5, 5)],
    [(5, 9)],
    [(9, 0), (9, 0)],
    [(9, -1)],
    [(float("nan"), 0)],
]


@pytest.mark.parametrize("pairs", JOINED_BADLY)
def test_pairs_that_do_not_join_are_refused(linear, pairs):
    """Each pair leads down and begins where the one before ended, else ValueError, from a list or an iterator."""
    x_T = normal(0, 2, 3)
    for chain in (pairs, iter(pairs)):
        with pytest.raises(ValueError, match=r"pairs must be steps \(t, s\) down that join"):
            list(sample(partial(ddim_step, linear), fake_eps_fn, chain, x_T, default_rng(0)))
    assert list(sample(partial(ddim_step, linear), fake_eps_fn, [], x_T, default_rng(0))) == []


@pytest.mark.parametrize("spoil", NOT_LIKE.values(), ids=NOT_LIKE)
@pytest.mark.parametrize("step", [*STEPS, lambda schedule, x_t, eps_hat, t, s, noise: (x_t, x_t)])
def test_what_is_no_eps_hat_is_refused_before_the_step(linear, step, spoil):
    """eps_fn returns an array of x_t's shape and dtype; nothing is broadcast, converted or taken for an array."""
    eps_fn, x_T = (lambda x_t, t: spoil(x_t)), normal(0, 2, 3)
    with pytest.raises(ValueError, match=r"eps_fn\(x_t, t\) must be"):
        list(sample(partial(step, linear), eps_fn, timestep_pairs(1000, 3), x_T, default_rng(0)))


@pytest.mark.parametrize("spoil", NOT_LIKE.values(), ids=NOT_LIKE)
@pytest.mark.parametrize("which", [0, 1])
def test_what_is_no_step_is_refused(linear, which, spoil):
    """A step returns x_s and x_0_hat, both like x_t."""

    def step(x_t, eps_hat, t, s, noise):
        return (spoil(x_t), x_t) if which == 0 else (x_t, spoil(x_t))

    with pytest.raises(ValueError, match=f"the step's {['x_s', 'x_0_hat'][which]} must be"):
        list(sample(step, fake_eps_fn, timestep_pairs(1000, 3), normal(0, 2, 3), default_rng(0)))


@pytest.mark.parametrize("spoil", [NOT_LIKE[name] for name in ("nothing", "a list", "a Tensor", "integers")])
def test_what_is_no_array_is_no_start(linear, spoil):
    """x_T is an array of floats."""
    with pytest.raises((ValueError, AttributeError), match=r"must be a floating array|shape|attribute"):
        list(sample(partial(ddim_step, linear), lambda x_t, t: x_t, [(5, 0)], spoil(normal(0, 2, 3)), default_rng(0)))


@pytest.mark.parametrize("var", [-0.1, float("nan"), float("inf"), np.array([0.1, -0.1])])
def test_a_variance_that_is_none_is_refused(linear, var):
    """variance returns finite numbers that are not negative: its root would be nan."""
    x = normal(0, 2, 3)
    with pytest.raises(ValueError, match="the variance must be finite and not negative"):
        ddpm_step(linear, x, x, 5, 4, x, variance=lambda schedule, t, s: var)
