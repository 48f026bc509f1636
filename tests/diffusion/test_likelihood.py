"""The variational bound: each term is the integral it stands for, and on Gaussian data the whole is known exactly.

Nothing here is averaged over draws.  With Gaussian data and an affine eps_hat every term is a quadratic in x_0 and eps,
and the mean of a quadratic over N(m, v) is its mean over the two points m - sqrt(v) and m + sqrt(v).
"""

import math
import os
import warnings
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest
from chains import any_schedule, normal, seeds
from draws import NOT_LIKE
from exact import gaussian_eps_fn
from hypothesis import example, given
from hypothesis import strategies as st

from tinydiff.backend import asarray, default_rng, standard_normal, to_numpy
from tinydiff.data import load
from tinydiff.data.mnist import FILES
from tinydiff.diffusion import (
    Schedule,
    ScheduleWarning,
    bound_term,
    discretized_log_prob,
    eps_from_x_0,
    gaussian_kl,
    gaussian_log_density,
    prior_kl,
    q_sample,
    sampled_bound,
    timestep_pairs,
    variational_bound,
)

pytestmark = pytest.mark.likelihood

LEVELS = np.arange(256) / 127.5 - 1
means, stds = st.floats(-3, 3), st.floats(-2, 1).map(lambda exponent: 10**exponent)
continuous = partial(bound_term, decoder=gaussian_log_density)
VARIANCES = [Schedule.beta_tilde, Schedule.beta_t_given_s]


@st.composite
def schedules(draw, least=2):
    """2 to 30 steps with beta in 1e-4..0.5: no x_0_hat loses more than 6 of 16 digits."""
    T, rng = draw(st.integers(least, 30)), np.random.default_rng(draw(seeds))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ScheduleWarning)
        return Schedule(10 ** rng.uniform(-4, -0.3, T))


def assert_close(a, b, rtol=1e-9, atol=1e-9):
    np.testing.assert_allclose(to_numpy(a), to_numpy(b), rtol=rtol, atol=atol)


def draw_pair(data, schedule, lowest_s=0):
    t = data.draw(st.integers(lowest_s + 1, schedule.T), label="t")
    return t, data.draw(st.integers(lowest_s, t - 1), label="s")


def per_pixel(a):
    """Mean over all axes but the first, on the host."""
    a = to_numpy(a)
    return a.reshape(len(a), -1).mean(1)


# ------------------------------------------------------------------------------------------- Gaussians and the decoders


@given(means, stds, means, stds)
def test_the_kl_of_two_gaussians_is_its_integral(mean_1, std_1, mean_2, std_2):
    """gaussian_kl is the integral of p log(p/q), and positive unless they are one."""
    z = np.linspace(-12, 12, 2001)  # the trapezoid rule is exact to rounding for what falls like exp(-z^2/2)
    x = mean_1 + std_1 * z
    log_p = -(z**2) / 2 - math.log(std_1)
    log_q = -(((x - mean_2) / std_2) ** 2) / 2 - math.log(std_2)
    integral = (np.exp(-(z**2) / 2) / (2 * math.pi) ** 0.5 * (log_p - log_q)).sum() * (z[1] - z[0])
    kl = float(gaussian_kl(asarray(mean_1), asarray(std_1**2), asarray(mean_2), asarray(std_2**2)))
    assert kl == pytest.approx(integral, rel=1e-9, abs=1e-9)
    assert kl > 0 or (mean_1, std_1) == pytest.approx((mean_2, std_2), rel=1e-6, abs=1e-6)
    assert float(gaussian_kl(asarray(mean_1), asarray(std_1), asarray(mean_1), asarray(std_1))) == 0


@given(means, stds, st.floats(-30, 30))
def test_the_gaussian_decoder_is_the_normal_density(mean, std, z):
    """gaussian_log_density is the logarithm of the standard library's pdf."""
    x_0 = mean + z * std
    log_density = float(gaussian_log_density(asarray(x_0), asarray(mean), asarray(std**2)))
    assert log_density == pytest.approx(math.log(NormalDist(mean, std).pdf(x_0)), rel=1e-9, abs=1e-9)


def level_log_probs(mean, std):
    return to_numpy(discretized_log_prob(asarray(LEVELS), asarray(mean), asarray(std**2)))


@given(means, st.floats(-9, 3).map(lambda exponent: 10**exponent))
def test_the_decoders_256_probabilities_add_up_to_1(mean, std):
    """Whatever mean and std, every bin has a finite log probability and nothing is lost between bins or outside."""
    log_probs = level_log_probs(mean, std)
    assert np.isfinite(log_probs).all() and (log_probs <= 0).all()
    # The bins' own digits remain of 1/255 divided by a std of 1e3: 1e-16 of each edge over a width of 8e-6.
    assert np.exp(log_probs).sum() == pytest.approx(1, abs=1e-9)


@given(means, stds)
def test_a_decoders_probability_is_a_difference_of_two_normal_cdfs(mean, std):
    """p(level) = Phi at its upper edge - Phi at its lower edge, open at both ends (Ho et al. 2020, eq. 13)."""
    edges = np.concatenate([[-math.inf], (LEVELS[1:] + LEVELS[:-1]) / 2, [math.inf]])
    cdf = np.array([NormalDist(mean, std).cdf(edge) for edge in edges])
    assert_close(np.exp(level_log_probs(mean, std)), np.diff(cdf), rtol=0, atol=1e-13)


@given(st.integers(1, 254), st.floats(-60, 60), st.floats(-0.5, 1))
@example(100, 26.0, -0.5)  # where the series begins and its terms count most
@example(100, -26.0, -0.5)
def test_a_decoders_log_is_right_far_out_in_the_tails(level, z, log_width):
    """It is the log of the density's integral over the bin, in logs throughout, where Phi itself is 1e-784 or 1."""
    std = 10**-log_width / 255
    mean = LEVELS[level] - z * std
    nodes, weights = np.polynomial.legendre.leggauss(150)  # over 20 std at most
    log_f = gaussian_log_density(asarray(LEVELS[level] + nodes / 255), asarray(mean), asarray(std**2))
    log_f = to_numpy(log_f) + np.log(weights / 255)
    integral = log_f.max() + math.log(np.exp(log_f - log_f.max()).sum())
    # At z = 25, where it begins, the series for log Phi is right to 105/z^8 = 7e-10.
    assert level_log_probs(mean, std)[level] == pytest.approx(integral, rel=1e-12, abs=2e-9)


@given(means, stds)
def test_black_and_white_are_alike(mean, std):
    """The mirror image of data and mean has the same probabilities, bit for bit in the bins away from 0."""
    assert_close(level_log_probs(mean, std), level_log_probs(-mean, std)[::-1], rtol=1e-9)


@given(st.integers(0, 255), st.floats(-0.98, 0.98))
def test_without_noise_the_decoder_is_certain(level, inside):
    """In the limit of a tiny std the bin that holds the mean has probability 1; the outer bins hold all beyond."""
    log_probs = level_log_probs(LEVELS[level] + inside / 255, 1e-8)
    assert log_probs[level] == 0 and np.delete(log_probs, level).max() < -1e3
    assert level_log_probs(-1 - abs(inside) * 100, 1e-8)[0] == level_log_probs(1 + abs(inside) * 100, 1e-8)[255] == 0


def test_the_decoder_takes_float32s_levels_and_nothing_else():
    """The 256 levels as a data set has them are accepted; half levels, values outside and NaN are refused."""
    float32_levels = np.arange(256, dtype=np.uint8) / np.float32(127.5) - np.float32(1)
    mean, var = asarray(0.3), asarray(0.04)
    found = discretized_log_prob(asarray(float32_levels, "float64"), mean, var)
    assert_close(found, level_log_probs(0.3, 0.2), rtol=0, atol=0)  # the bin is that of the level, not of its rounding
    for bad in (-1 - 2 / 255, 1 + 2 / 255, 1 / 255 + 1 / 255 / 2, math.nan, math.inf, 200.0):
        with pytest.raises(ValueError, match="x_0 must hold the 8-bit values"), np.errstate(invalid="ignore"):
            discretized_log_prob(asarray([LEVELS[25], bad]), mean, var)


# -------------------------------------------------------------------------------------------------------- the terms


@given(any_schedule, seeds, st.sampled_from([(1,), (5,), (2, 3, 1)]))
def test_L_T_is_what_is_left_of_the_data(schedule, seed, shape):
    """L_T = (alpha_bar_T x_0^2 - alpha_bar_T - log(1 - alpha_bar_T))/2, mean over the pixels of each image."""
    x_0 = normal(seed, 3, *shape, dtype="float32")
    a, noise = float(schedule.alpha_bar[-1]), float(schedule.one_minus_alpha_bar[-1])
    L_T = prior_kl(schedule, x_0)
    assert L_T.dtype == "float64" and L_T.shape == (3,)
    squares = (to_numpy(x_0).astype("float64") ** 2).reshape(3, -1).mean(1)
    assert_close(L_T, (a * squares - a - math.log(noise)) / 2, rtol=1e-9, atol=1e-15)


def test_L_T_of_integers_is_refused():
    """x_0 as uint8 is not in [-1, 1]."""
    with pytest.raises(ValueError, match="x_0 must be a floating array, got uint8"):
        prior_kl(Schedule.linear(), asarray([[0, 255]], "uint8"))


def mnist_folder():
    """The folder that holds MNIST's test files, in $TINYDIFF_DATA or beside the repository, or None."""
    roots = [Path(os.environ.get("TINYDIFF_DATA", "")), Path(__file__).parents[3] / "shared" / "data"]
    folders = [folder for root in roots for folder in (root / "mnist", root)]
    return next((folder for folder in folders if all((folder / file).is_file() for file in FILES["test"])), None)


@pytest.mark.skipif(mnist_folder() is None, reason="the MNIST files are not at hand")
def test_L_T_of_mnist_is_the_known_figure(linear):
    """2.7e-5 bits/dim on MNIST's test images for the linear schedule with T = 1,000."""
    data = load("mnist", "test", mnist_folder())
    x_0, _ = data.batch(np.arange(0, 10_000, 10))  # the mean of 1,000 is within 1% of that of all
    assert to_numpy(prior_kl(linear, asarray(x_0))).mean() / math.log(2) == pytest.approx(2.7e-5, rel=0.02)


@given(schedules(), st.data(), seeds, st.sampled_from([(1,), (5,), (2, 3, 1)]))
def test_with_beta_tilde_a_term_is_a_fall_of_the_snr_times_the_error(schedule, data, seed, shape):
    """L = (SNR_s - SNR_t)/2 |x_0 - x_0_hat|^2 for any s < t, each row at its own (Kingma et al. 2021, VDM, eq. 13)."""
    pairs = [draw_pair(data, schedule, lowest_s=1) for _ in range(3)]
    t, s = (np.array(times) for times in zip(*pairs))
    x_0, x_0_hat, eps = normal(seed, 3, 3, *shape)
    x_t = q_sample(schedule, x_0, t, eps)
    term = bound_term(schedule, x_0, x_t, eps_from_x_0(schedule, x_t, t, x_0_hat), t, s)
    snr = np.exp(schedule.log_snr)
    assert term.shape == (3,) and term.dtype == "float64"
    assert_close(term, (snr[s] - snr[t]) / 2 * per_pixel((x_0 - x_0_hat) ** 2), rtol=1e-6)
    for row in range(3):
        one = slice(row, row + 1)
        eps_hat = eps_from_x_0(schedule, x_t[one], int(t[row]), x_0_hat[one])
        alone = bound_term(schedule, x_0[one], x_t[one], eps_hat, *pairs[row])
        assert_close(alone, term[one])


@given(schedules(), st.data(), seeds)
def test_with_beta_a_term_is_the_papers_weighted_error_of_eps(schedule, data, seed):
    """L_{t-1} = beta_t^2/(2 sigma^2 alpha_t (1 - alpha_bar_t)) |eps - eps_hat|^2 + C (Ho et al. 2020, eq. 12).

    C is the KL of two Gaussians with one mean, as sigma^2 = beta_t is not the posterior's variance.
    """
    t = data.draw(st.integers(2, schedule.T))
    x_0, eps, eps_hat = normal(seed, 3, 2, 4)
    beta, alpha, alpha_bar = schedule.beta[t], schedule.alpha[t], schedule.alpha_bar[t]
    ratio = (1 - schedule.alpha_bar[t - 1]) / (1 - alpha_bar)
    constant = (ratio - 1 - math.log(ratio)) / 2
    weight = beta**2 / (2 * beta * alpha * (1 - alpha_bar))
    term = bound_term(
        schedule, x_0, q_sample(schedule, x_0, t, eps), eps_hat, t, t - 1, variance=Schedule.beta_t_given_s
    )
    assert_close(term, constant + weight * per_pixel((eps - eps_hat) ** 2), rtol=1e-6)


@given(schedules(), st.data(), seeds)
def test_with_the_true_noise_and_beta_tilde_a_term_is_0(schedule, data, seed):
    """One data point and its own eps: the reverse step is the posterior, and nothing is left to say."""
    t, s = draw_pair(data, schedule, lowest_s=1)
    x_0, eps = normal(seed, 2, 2, 4)
    assert_close(bound_term(schedule, x_0, q_sample(schedule, x_0, t, eps), eps, t, s), np.zeros(2))


@given(schedules(), st.data(), seeds)
def test_a_variance_of_ones_own_is_taken(schedule, data, seed):
    """variance(schedule, t, s) may be any function: twice the variance halves what an error of the mean costs."""
    t, s = draw_pair(data, schedule, lowest_s=1)
    x_0, eps, error = normal(seed, 3, 2, 4)
    x_t = q_sample(schedule, x_0, t, eps)

    def cost(var):
        of = partial(bound_term, schedule, x_0, x_t, t=t, s=s, variance=lambda *_: var)
        return to_numpy(of(eps_hat=eps + error) - of(eps_hat=eps))

    assert_close(cost(0.5), 2 * cost(1.0), rtol=1e-6)


@given(schedules(1), st.data(), seeds, st.sampled_from(VARIANCES))
def test_the_step_to_the_data_is_the_decoder_at_x_0_hat(schedule, data, seed, variance):
    """s = 0: -log p(x_0) for a Gaussian around x_0_hat of variance 1 - alpha_bar_t, whatever the variance elsewhere."""
    t = data.draw(st.integers(1, schedule.T))
    x_0_hat, eps = normal(seed, 2, 3, 2, 2)
    x_0 = asarray(LEVELS[default_rng(seed).integers(0, 256, (3, 2, 2))])
    x_t = q_sample(schedule, x_0, t, eps)
    eps_hat, var = eps_from_x_0(schedule, x_t, t, x_0_hat), asarray(1 - schedule.alpha_bar[t])
    for options, decoder in (
        ({}, discretized_log_prob),
        ({"decoder": gaussian_log_density}, gaussian_log_density),
        ({"decoder": lambda x_0, mean, var: mean - var}, lambda x_0, mean, var: mean - var),
    ):
        L_0 = bound_term(schedule, x_0, x_t, eps_hat, t, 0, variance=variance, **options)
        assert_close(L_0, -per_pixel(decoder(x_0, x_0_hat, var)), rtol=1e-6)


def test_a_batch_is_led_to_the_data_as_a_whole_or_not_at_all(linear):
    """L_0 and L_{t-1} are different things: s = 0 for some rows only is refused."""
    x = normal(0, 2, 3)
    with pytest.raises(ValueError, match=r"s must be 0 for all rows or for none, got \[0, 5\]"):
        bound_term(linear, x, x, x, [9, 9], [0, 5])


@given(schedules(), st.data(), seeds, st.sampled_from(VARIANCES))
def test_clip_acts_on_x_0_hat_and_never_costs(schedule, data, seed, variance):
    """For images in [-1, 1] the term with clip is that of clip(x_0_hat), and no larger than the term without."""
    t, s = draw_pair(data, schedule, lowest_s=1)
    x_0, (x_0_hat, eps) = normal(seed, 4, 5).clip(-1, 1), normal(seed + 1, 2, 4, 5) * 2
    x_t = q_sample(schedule, x_0, t, eps)
    term = partial(bound_term, schedule, x_0, x_t, t=t, s=s, variance=variance)
    free = term(eps_hat=eps_from_x_0(schedule, x_t, t, x_0_hat))
    clipped = term(eps_hat=eps_from_x_0(schedule, x_t, t, x_0_hat), clip=True)
    assert_close(clipped, term(eps_hat=eps_from_x_0(schedule, x_t, t, x_0_hat.clip(-1, 1))), rtol=1e-6)
    assert (to_numpy(clipped) <= to_numpy(free) + 1e-9).all()
    assert (to_numpy(clipped) < to_numpy(free)).any()  # 20 values of spread 2: some lie outside


# --------------------------------------------------------------------------------- Gaussian data, the exact denoiser


def expected_terms(schedule, eps_fn, x_0, num_steps, variance):
    """Each term's mean over eps at the points x_0 (R,), exact where eps_hat is affine: (num_steps + 1, R)."""
    *pairs, (t_1, _) = timestep_pairs(schedule.T, num_steps)
    rows = np.repeat(x_0, 2)[:, None]  # each with eps = -1 and eps = 1
    signs = np.tile([-1.0, 1.0], len(x_0))[:, None]

    def terms(t, s):
        t, s = np.repeat(t, len(rows)), np.repeat(s, len(rows))
        x, eps = (asarray(np.tile(a, (len(t) // len(rows), 1))) for a in (rows, signs))
        x_t = q_sample(schedule, x, t, eps)
        values = continuous(schedule, x, x_t, eps_fn(x_t, t), t, s, variance=variance)
        return to_numpy(values).reshape(-1, len(x_0), 2).mean(2)

    inner = [terms(*np.array(pairs).T)] if pairs else []
    return np.concatenate([to_numpy(prior_kl(schedule, asarray(x_0[:, None])))[None], *inner, terms([t_1], [0])])


def expected_bound(schedule, eps_fn, m, v, num_steps, variance):
    """The bound's mean over data N(m, v), where eps_hat is affine."""
    x_0 = m + v**0.5 * np.array([-1.0, 1.0])
    return expected_terms(schedule, eps_fn, x_0, num_steps, variance).sum(0).mean()


def entropy(v):
    return 0.5 * math.log(2 * math.pi * math.e * v)


@given(schedules(1), st.data(), st.lists(st.floats(-5, 5), min_size=1, max_size=3))
def test_a_perfect_reverse_process_makes_the_bound_an_equality(schedule, data, points):
    """Data N(0, 1), variance beta_{t|s}, exact eps: at every point the terms add up to -log p(x_0), for any stride."""
    num_steps = data.draw(st.integers(1, schedule.T))
    eps_fn = gaussian_eps_fn(schedule, [0.0], [[1.0]])
    bound = expected_terms(schedule, eps_fn, np.array(points), num_steps, Schedule.beta_t_given_s).sum(0)
    assert_close(bound, [-math.log(NormalDist().pdf(x)) for x in points], rtol=1e-7)
    of_all = expected_bound(schedule, eps_fn, 0.0, 1.0, num_steps, Schedule.beta_t_given_s)
    assert of_all == pytest.approx(entropy(1), abs=1e-7)


def scaled(factor):
    return lambda schedule, t, s: factor * schedule.beta_t_given_s(t, s)


@given(schedules(1), st.data(), means, stds, st.sampled_from([*VARIANCES, scaled(0.1), scaled(3.0)]))
def test_the_bound_is_the_entropy_plus_a_kl_for_every_step(schedule, data, m, std, variance):
    """bound - entropy = KL(q(x_T) || N(0, 1)) + sum over steps of KL(q(x_s | x_t) || p(x_s | x_t)) >= 0.

    The exact eps gives each reverse step its true mean; with S_t = alpha_bar_t v + 1 - alpha_bar_t its true variance is
    S_s - alpha_{t|s} S_s^2/S_t, so what is left of a KL is that of two variances.  For every T, stride and variance.
    """
    v, num_steps = std**2, data.draw(st.integers(1, schedule.T))
    a = schedule.alpha_bar
    S = a * v + 1 - a
    excess = (a[-1] * m**2 + S[-1] - 1 - math.log(S[-1])) / 2
    for t, s in timestep_pairs(schedule.T, num_steps):
        var = variance(schedule, t, s) if s > 0 else schedule.beta_t_given_s(t, 0)
        ratio = (S[s] - a[t] / a[s] * S[s] ** 2 / S[t]) / var
        excess += (ratio - 1 - math.log(ratio)) / 2
    eps_fn = gaussian_eps_fn(schedule, [m], [[v]])
    bound = expected_bound(schedule, eps_fn, m, v, num_steps, variance)
    assert bound == pytest.approx(entropy(v) + excess, rel=1e-5, abs=1e-6)
    assert bound >= entropy(v) - 1e-6


def excess_at(make, T, m, v, variance):
    """bound - entropy of the full chain, without the part that no number of steps can lower: KL(q(x_T) || N(0, 1))."""
    schedule = make(T)
    S = schedule.alpha_bar[-1] * v + 1 - schedule.alpha_bar[-1]
    prior = (schedule.alpha_bar[-1] * m**2 + S - 1 - math.log(S)) / 2
    return expected_bound(schedule, gaussian_eps_fn(schedule, [m], [[v]]), m, v, T, variance) - entropy(v) - prior


@pytest.mark.parametrize("make", [Schedule.linear, Schedule.cosine, Schedule.quadratic, Schedule.constant])
@pytest.mark.parametrize("v", [0.25, 2.0])
def test_with_beta_the_bound_converges_to_the_entropy(make, v):
    """Twice the steps halve what the bound is above the entropy, which is O(1/T), for every schedule's shape."""
    excess = [excess_at(make, T, 0.7, v, Schedule.beta_t_given_s) for T in (250, 500, 1000)]
    assert all(few / many == pytest.approx(2, rel=0.05) for few, many in pairwise(excess))  # O(1/T^2) is left
    assert 0 < excess[-1] < 0.005


def test_with_beta_tilde_the_bound_stays_eulers_constant_above_it():
    """However many equal steps: beta_tilde_t is (t-1)/t of the true variance near the data, which costs gamma/2 nats.

    sum over t > 1 of (r - 1 - log r)/2 with r = t/(t - 1) is (1 - log 2 + 1/2 - log 3/2 + ...)/2 -> gamma/2.
    """
    excess = [excess_at(Schedule.constant, T, 0.7, 2.0, Schedule.beta_tilde) for T in (500, 1000, 2000)]
    left = [value - np.euler_gamma / 2 for value in excess]
    assert all(few / many == pytest.approx(2, rel=0.05) for few, many in pairwise(left))
    assert abs(left[-1]) < 0.002


@given(schedules(), st.data(), means, stds, st.floats(-2, 2), st.floats(-1, 1), st.sampled_from(VARIANCES))
def test_a_worse_eps_never_lowers_the_bound(schedule, data, m, std, offset, slope, variance):
    """The exact eps is a conditional mean: an affine function of x_t added to it raises the bound by its square.

    rise = sum over steps of x_0_coef^2 (1 - alpha_bar_t)/alpha_bar_t E[added(x_t)^2] / (2 var)
    """
    v, num_steps = std**2, data.draw(st.integers(1, schedule.T))
    exact, a = gaussian_eps_fn(schedule, [m], [[v]]), schedule.alpha_bar
    best = expected_bound(schedule, exact, m, v, num_steps, variance)
    worse = expected_bound(schedule, lambda x_t, t: exact(x_t, t) + offset + slope * x_t, m, v, num_steps, variance)
    rise = 0.0
    for t, s in timestep_pairs(schedule.T, num_steps):
        square = (offset + slope * a[t] ** 0.5 * m) ** 2 + slope**2 * (a[t] * v + 1 - a[t])
        var = variance(schedule, t, s) if s > 0 else schedule.beta_t_given_s(t, 0)
        x_0_coef = a[s] ** 0.5 * schedule.beta_t_given_s(t, s) / (1 - a[t])
        rise += x_0_coef**2 * (1 - a[t]) / a[t] * square / (2 * var)
    assert worse - best == pytest.approx(rise, rel=1e-5, abs=1e-5)
    assert worse >= best - 1e-6


# ----------------------------------------------------------------------------------- the sum, whole and by drawn times


def oracle(schedule, x_0, offset):
    """eps_fn off the true noise by offset[t]: every L_{t-1} is a number then, whatever the noise drawn."""

    def eps_fn(x_t, t):
        shape = (-1,) + (1,) * (x_0.ndim - 1) if np.ndim(t) else ()
        return eps_from_x_0(schedule, x_t, t, x_0) + asarray(offset[t]).reshape(shape)

    return eps_fn


def oracle_terms(schedule, pairs, offset):
    """Those numbers for beta_tilde: (SNR_s/SNR_t - 1)/2 offset_t^2."""
    t, s = np.array(pairs).T
    return np.expm1(schedule.log_snr[s] - schedule.log_snr[t]) / 2 * offset[t] ** 2


@given(schedules(1), st.data(), seeds)
def test_the_chain_is_all_terms_from_T_to_the_data(schedule, data, seed):
    """Rows are L_T, L_{t-1} from t = T down, L_0; each term sees x_t drawn with fresh noise, at any stride."""
    num_steps = data.draw(st.integers(1, schedule.T))
    pairs = timestep_pairs(schedule.T, num_steps)
    x_0, offset = normal(seed, 2, 3, 1), default_rng(seed, 1).standard_normal(schedule.T + 1)
    rng, seen = default_rng(seed, 2), []
    eps_fn = oracle(schedule, x_0, offset)

    def watched(x_t, t):
        seen.append(t)
        assert_close(x_t, q_sample(schedule, x_0, t, standard_normal(rng, x_0.shape, "float64")))
        return eps_fn(x_t, t)

    terms = variational_bound(schedule, watched, x_0, num_steps, default_rng(seed, 2), continuous)
    assert seen == [t for t, _ in pairs] and terms.shape == (num_steps + 1, 2) and terms.dtype == "float64"
    assert_close(terms[0], prior_kl(schedule, x_0))
    if num_steps > 1:
        expected = oracle_terms(schedule, pairs[:-1], offset)
        assert_close(terms[1:-1], np.repeat(expected[:, None], 2, 1), rtol=1e-6)
    t, var = pairs[-1][0], 1 - schedule.alpha_bar[pairs[-1][0]]
    L_0 = (var / schedule.alpha_bar[t] * offset[t] ** 2 / var + math.log(2 * math.pi * var)) / 2
    assert_close(terms[-1], [L_0, L_0], rtol=1e-6)


def test_the_network_works_in_the_datas_dtype_and_the_sums_in_float64(linear):
    """float32 in, float32 to eps_fn, float64 out; the default decoder is the one for 8-bit images."""
    x_0 = asarray(LEVELS[:, None], "float32")

    def eps_fn(x_t, t):
        assert x_t.dtype == "float32"
        return eps_from_x_0(linear, x_t, t, x_0)

    whole = variational_bound(linear, eps_fn, x_0, 3, default_rng(0))
    drawn, _ = sampled_bound(linear, eps_fn, x_0, 3, 2, default_rng(0))
    expected = -discretized_log_prob(asarray(LEVELS), asarray(LEVELS), asarray(1 - linear.alpha_bar[333]))
    for terms in (whole, drawn):
        assert terms.dtype == "float64"
        assert_close(terms[-1], expected, atol=1e-4)  # eps_hat and x_t are float32, 6e-8, divided by var = 0.7


class Fixed:
    """A generator whose uniform numbers are given: one array for each call of random()."""

    def __init__(self, uniform):
        self.uniform, self.rng = iter(uniform), default_rng(0)

    def random(self, n):
        u = next(self.uniform)
        assert u.shape == (n,)
        return u

    def standard_normal(self, *args, **options):
        return self.rng.standard_normal(*args, **options)


@given(schedules(), st.data(), st.integers(1, 5), seeds)
def test_the_estimate_is_unbiased(schedule, data, num_draws, seed):
    """Its mean over all times that can be drawn, each with its probability, is the sum over the full chain, exactly.

    A draw is a step function of a uniform number; so one row for each of its steps, weighted by the step's length, runs
    through everything that can happen.
    """
    num_steps = data.draw(st.integers(2, schedule.T))
    pairs = timestep_pairs(schedule.T, num_steps)
    t, s = np.array(pairs[:-1]).T
    fall = schedule.log_snr[s] - schedule.log_snr[t]
    edges = fall.cumsum() / fall.sum()
    local = (edges * num_draws - np.arange(num_draws)[:, None]).clip(0, 1)  # in each draw's own part
    ends = np.unique(np.concatenate([[0.0, 1.0], local.ravel()]))
    middles, lengths = (ends[1:] + ends[:-1]) / 2, np.diff(ends)
    offset = default_rng(seed).standard_normal(schedule.T + 1)
    x_0 = asarray(np.full((len(middles), 1), 0.4))
    eps_fn = oracle(schedule, x_0, offset)
    terms, times = sampled_bound(schedule, eps_fn, x_0, num_steps, num_draws, Fixed([middles] * num_draws), continuous)
    whole = variational_bound(schedule, eps_fn, x_0, num_steps, default_rng(0), continuous)
    assert terms.shape == (num_draws + 2, len(middles)) and times.shape == (num_draws, len(middles))
    assert_close(to_numpy(terms).sum(0) @ lengths, to_numpy(whole).sum(0)[0], rtol=1e-6, atol=1e-6)
    assert_close(terms[0], whole[0])
    assert_close(terms[-1], whole[-1], rtol=1e-6)
    # Each draw stays in its part: so much of the fall lies before the drawn step begins, and so much when it ends.
    share = dict(zip(t.tolist(), zip(edges - fall / fall.sum(), edges)))
    for part, row in enumerate(times):
        for t_drawn, u in zip(row.tolist(), middles):
            low, high = share[t_drawn]
            assert low - 1e-9 <= (part + u) / num_draws <= high + 1e-9
    # And each value belongs to the time that is given for it.
    p = dict(zip(t.tolist(), oracle_terms(schedule, pairs[:-1], offset) / (num_draws * fall / fall.sum())))
    assert_close(terms[1:-1], np.vectorize(p.get)(times).astype(float), rtol=1e-6)


@given(schedules(), seeds, st.integers(1, 4))
def test_where_every_term_is_its_times_probability_the_estimate_has_no_spread(schedule, seed, num_draws):
    """p(t) is the share in the fall of log SNR: a model whose terms are just that is estimated exactly by any draw."""
    pairs = timestep_pairs(schedule.T, schedule.T)[:-1]
    offset = np.zeros(schedule.T + 1)
    for t, s in pairs:
        fall = schedule.log_snr[s] - schedule.log_snr[t]
        offset[t] = (2 * fall / math.expm1(fall)) ** 0.5
    x_0 = normal(seed, 6, 2)
    terms, _ = sampled_bound(
        schedule, oracle(schedule, x_0, offset), x_0, schedule.T, num_draws, default_rng(seed), continuous
    )
    assert_close(to_numpy(terms)[1:-1].sum(0), schedule.log_snr[1] - schedule.log_snr[-1], rtol=1e-6)


def test_each_image_draws_times_of_its_own(linear):
    """Nearly as many different times as images, in each draw; the seed decides them all."""
    x_0 = asarray(np.zeros((300, 1)))
    _, times = sampled_bound(linear, oracle(linear, x_0, np.zeros(1001)), x_0, 1000, 2, default_rng(5), continuous)
    assert len(np.unique(times[1])) < len(np.unique(times[0])) and len(np.unique(times[0])) > 150
    _, again = sampled_bound(linear, oracle(linear, x_0, np.zeros(1001)), x_0, 1000, 2, default_rng(5), continuous)
    assert (again == times).all()
    assert times.min() > 1 and times.max() <= 1000


@pytest.mark.parametrize(
    "num_steps, num_draws, message", [(1, 5, "num_steps"), (1001, 5, "num_steps"), (9, 0, "num_draws")]
)
def test_a_chain_with_nothing_to_draw_is_refused(linear, num_steps, num_draws, message):
    """There are times between x_T and the data for 2..T steps, and at least one is drawn."""
    x_0 = normal(0, 2, 3)
    with pytest.raises(ValueError, match=f"{message} must lie in"):
        sampled_bound(linear, oracle(linear, x_0, np.zeros(1001)), x_0, num_steps, num_draws, default_rng(0))


# What is handed over.


@pytest.mark.parametrize("spoil", NOT_LIKE.values(), ids=NOT_LIKE)
def test_the_bound_refuses_what_is_no_eps_hat_term_or_log_density(linear, spoil):
    """Each function returns an array of the shape and dtype that it is asked for, else ValueError with its name."""
    x, rng = standard_normal(default_rng(0), (2, 3), "float64"), default_rng(0)
    for bound in (
        lambda eps_fn, term: variational_bound(linear, eps_fn, x, 3, rng, term),
        lambda eps_fn, term: sampled_bound(linear, eps_fn, x, 3, 2, rng, term),
    ):
        with pytest.raises(ValueError, match=r"eps_fn\(x_t, t\) must be"):
            bound(lambda x_t, t: spoil(x_t), partial(bound_term, decoder=gaussian_log_density))
        with pytest.raises(ValueError, match=r"term must return a number for each image, \(2,\), got"):
            bound(lambda x_t, t: x_t, lambda *arguments: spoil(x))
    with pytest.raises(ValueError, match=r"decoder\(x_0, mean, var\) must be"):
        bound_term(linear, x, x, x, 5, 0, decoder=lambda x_0, mean, var: spoil(x_0))


@pytest.mark.parametrize("var", [0.0, -0.1, float("nan"), float("inf")])
def test_the_bound_refuses_a_variance_that_is_none(linear, var):
    """The model's variance is finite and above 0: the KL to a point would be infinite."""
    x = standard_normal(default_rng(0), (2, 3), "float64")
    with pytest.raises(ValueError, match="the variance must be finite and above 0"):
        bound_term(linear, x, x, x, 5, 4, variance=lambda schedule, t, s: var)
