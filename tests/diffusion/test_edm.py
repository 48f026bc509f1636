"""EDM is the same process: its noise levels, its network of variance 1, and its times."""

import math
import warnings
from itertools import pairwise

import numpy as np
import pytest
from chains import any_schedule, assert_close, assert_same, normal, seeds
from exact import mixture_eps_fn
from hypothesis import assume, given
from hypothesis import strategies as st
from witnesses import agree, note

from tinydiff.backend import asarray, default_rng, to_numpy
from tinydiff.diffusion import (
    F_from_x_0_eps,
    Schedule,
    ScheduleWarning,
    dpm_solver_2m,
    from_noise_levels,
    karras_pairs,
    log_snr_pairs,
    noise_levels,
    preconditioning,
    q_sample,
    quadratic_pairs,
    sample,
    straight,
    v_from_x_0_eps,
    x_0_from_F,
    x_0_from_v,
)

pytestmark = pytest.mark.process

shapes = st.sampled_from([(1,), (3,), (2, 5), (2, 3, 4, 1)])
stds = st.floats(1e-3, 1e3) | st.just(0.5) | st.just(1.0)  # of the data; 0.5 is the paper's
NAMED = [Schedule.linear, Schedule.cosine, Schedule.quadratic, Schedule.sigmoid, straight]


def quiet(sigma):
    """from_noise_levels without the warning that so little noise leaves a part of x_0."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ScheduleWarning)
        return from_noise_levels(sigma)


# ------------------------------------------------------------------------------------------------------------ the names


@given(any_schedule)
def test_a_noise_level_is_the_std_of_the_noise_beside_an_x_0_that_is_not_scaled(schedule):
    """sigma_t^2 alpha_bar_t = 1 - alpha_bar_t; 0 at the data, rising from there; log SNR is -2 log sigma."""
    sigma = noise_levels(schedule)
    assert sigma.shape == (schedule.T + 1,) and sigma.dtype == np.float64 and sigma[0] == 0
    felt = np.flatnonzero(schedule.alpha_bar > 1e-290)
    # exp of half a log SNR, which sums up to 4,000 roundings of numbers up to 670: 4,000 x 1e-13 at worst, as a ratio.
    np.testing.assert_allclose(sigma[felt] ** 2 * schedule.alpha_bar[felt], schedule.one_minus_alpha_bar[felt], 1e-9)
    assert (np.diff(sigma[felt]) >= -1e-12 * sigma[felt][1:]).all() and (sigma[1:] > 0).all()
    np.testing.assert_allclose(-2 * np.log(sigma[felt[1:]]), schedule.log_snr[felt[1:]], rtol=0, atol=1e-12)


@given(any_schedule, st.data(), shapes, seeds)
def test_x_t_over_its_signal_is_x_0_and_noise_of_that_level(schedule, data, shape, seed):
    """x_t/sqrt(alpha_bar_t) = x_0 + sigma_t eps."""
    possible = np.flatnonzero(schedule.alpha_bar > 1e-12)
    t = int(data.draw(st.sampled_from(list(possible))))
    x_0, eps = normal(seed, 2, *shape)
    sigma = float(noise_levels(schedule)[t])
    x = q_sample(schedule, x_0, t, eps) / schedule.alpha_bar[t] ** 0.5
    assert_close(x, x_0 + sigma * eps, rtol=1e-11, atol=1e-11 * (1 + sigma))


@given(st.lists(st.floats(1e-4, 5), min_size=1, max_size=40), st.floats(-8, 3))
def test_rising_noise_levels_are_a_schedule_and_come_back(ratios, start):
    """noise_levels(from_noise_levels(sigma)) = sigma, for neighbours that differ by 0.01% up to a factor of 150."""
    sigma = np.exp(start + np.cumsum(ratios))
    assume(sigma[-1] < 1e6)
    schedule = quiet(sigma)
    assert len(sigma) == schedule.T
    # beta has a relative error of 1e-16/1e-4 at most; 40 of them are added to 1 - alpha_bar, or multiply alpha_bar.
    np.testing.assert_allclose(noise_levels(schedule)[1:], sigma, rtol=1e-10)


@given(any_schedule)
def test_a_schedule_comes_back_from_its_noise_levels(schedule):
    """from_noise_levels(noise_levels(schedule)) is the schedule: sigma and t are two names of one time."""
    sigma = noise_levels(schedule)[1:]
    # Where alpha_bar is 1e-14 or less, a rounding of log SNR would be felt; a beta near a rounding of 1 is lost.
    assume(schedule.alpha_bar[-1] > 1e-14 and schedule.beta[1:].min() > 1e-9)
    again = quiet(sigma)
    np.testing.assert_allclose(again.alpha_bar, schedule.alpha_bar, rtol=1e-10)
    np.testing.assert_allclose(again.one_minus_alpha_bar, schedule.one_minus_alpha_bar, rtol=1e-10)
    np.testing.assert_allclose(again.beta, schedule.beta, rtol=1e-9, atol=1e-11)


def test_the_noise_levels_of_a_straight_path_are_tau_over_1_minus_tau():
    """sigma_t = t/(T + 1 - t), and twice the noise levels is the shift of tau to 2 tau/(1 + tau) (Esser et al. 2024,
    eq. 23)."""
    tau = np.arange(1001) / 1001
    sigma = noise_levels(straight())
    np.testing.assert_allclose(sigma, tau / (1 - tau), rtol=1e-11)
    shifted = noise_levels(from_noise_levels(2 * sigma[1:]))
    np.testing.assert_allclose(shifted / (1 + shifted), 2 * tau / (1 + tau), rtol=1e-11)


@pytest.mark.parametrize(
    "sigma",
    [[], [0.0, 1.0], [-1.0, 20.0], [1.0, 1.0], [2.0, 1.0], [1.0, math.nan], [1.0, math.inf], [[1.0, 20.0]], 3.0],
    ids=repr,
)
def test_levels_that_do_not_rise_are_refused(sigma):
    """The sequence must begin above 0, rise strictly and stay finite."""
    with pytest.raises(ValueError, match="noise levels must rise from above 0"):
        from_noise_levels(sigma)


@pytest.mark.parametrize("sigma", [[1e-170, 20.0], [1e9], [1.0, 1e200]], ids=repr)
def test_levels_whose_beta_is_rounded_away_are_refused(sigma):
    """beta_t must be above 0 and below 1, as for every schedule; a beta_1 of 0 is not taken for beta_0."""
    with np.errstate(all="ignore"), pytest.raises(ValueError, match="beta must lie strictly between 0 and 1"):
        from_noise_levels(sigma)


# ---------------------------------------------------------------------------------------------- a network of variance 1


@given(any_schedule, stds)
def test_the_factors_are_those_of_table_1(schedule, std):
    """In x = x_t/sqrt(alpha_bar_t) they are the paper's, of sigma and sigma_data; c_out^2 is 1/lambda."""
    t = np.flatnonzero(schedule.alpha_bar > 1e-12)
    sigma, signal_std = noise_levels(schedule)[t], schedule.alpha_bar[t] ** 0.5
    c_skip, c_out, c_in = preconditioning(schedule, t, std)
    assert c_skip.dtype == c_out.dtype == c_in.dtype == np.float64
    # sigma and the table 1 - alpha_bar are good to 1e-12 each.
    np.testing.assert_allclose(c_skip * signal_std, std**2 / (sigma**2 + std**2), rtol=1e-10)
    np.testing.assert_allclose(c_out, sigma * std / np.sqrt(std**2 + sigma**2), rtol=1e-10)
    np.testing.assert_allclose(c_in * signal_std, 1 / np.sqrt(sigma**2 + std**2), rtol=1e-10)
    weight = (sigma[1:] ** 2 + std**2) / (sigma[1:] * std) ** 2  # lambda(sigma), the paper's weight of an error of x_0
    np.testing.assert_allclose(weight * c_out[1:] ** 2, 1, rtol=1e-10)


def units(schedule, std):
    """At each t, what one unit of x_0 and one of eps add to F: two arrays (T+1,)."""
    t = np.arange(schedule.T + 1)
    one, none = asarray(np.ones(len(t))), asarray(np.zeros(len(t)))
    parts = [F_from_x_0_eps(schedule, x_0, t, eps, std) for x_0, eps in ((one, none), (none, one))]
    return [to_numpy(part) for part in parts]


@given(any_schedule, stds)
def test_input_and_target_of_the_network_have_variance_1_at_every_t(schedule, std):
    """For data of variance sigma_data^2, whatever their distribution: Var F = a^2 sigma_data^2 + b^2 = 1."""
    x_0_part, eps_part = units(schedule, std)
    np.testing.assert_allclose(x_0_part**2 * std**2 + eps_part**2, 1, rtol=1e-13)
    t = np.arange(schedule.T + 1)
    _, _, c_in = preconditioning(schedule, t, std)
    np.testing.assert_allclose(c_in**2 * (schedule.alpha_bar * std**2 + schedule.one_minus_alpha_bar), 1, rtol=1e-13)


@given(any_schedule, stds)
def test_F_is_what_no_multiple_of_x_t_can_tell(schedule, std):
    """F and x_t are not correlated: c_skip x_t is the best linear estimate of x_0, all of it if the data are Gaussian,
    and of all c_skip it gives the network's errors the smallest factor c_out."""
    x_0_part, eps_part = units(schedule, std)
    signal_std, noise_std = schedule.alpha_bar**0.5, schedule.one_minus_alpha_bar**0.5
    size = (schedule.alpha_bar * std**2 + schedule.one_minus_alpha_bar) ** 0.5
    covariance = x_0_part * signal_std * std**2 + eps_part * noise_std
    np.testing.assert_allclose(covariance / size, 0, atol=1e-13)
    c_skip, c_out, _ = preconditioning(schedule, np.arange(schedule.T + 1), std)

    def left(c):  # the variance of x_0 - c x_t, which F must have times c_out^2
        return (1 - c * signal_std) ** 2 * std**2 + c**2 * noise_std**2

    np.testing.assert_allclose(left(c_skip), c_out**2, rtol=1e-9, atol=1e-13 * std**2)
    for other in (0.9, 1.1):
        assert (left(other * c_skip) >= left(c_skip) * (1 - 1e-9)).all()


@given(any_schedule, st.data(), shapes, seeds)
def test_F_is_minus_v_if_the_data_have_variance_1(schedule, data, shape, seed):
    """And the denoiser is x_0_from_v, the input is x_t: EDM's network is that of the target V."""
    t = data.draw(st.integers(0, schedule.T))
    x, y = normal(seed, 2, *shape)
    # signal^2 + noise^2 = 1 to 1e-12, after up to 4,000 roundings in each table.
    assert_close(F_from_x_0_eps(schedule, x, t, y, 1.0), -v_from_x_0_eps(schedule, x, t, y), rtol=0, atol=1e-11)
    assert_close(x_0_from_F(schedule, x, t, y, 1.0), x_0_from_v(schedule, x, t, -y), rtol=0, atol=1e-11)
    np.testing.assert_allclose(preconditioning(schedule, t, 1.0)[2], 1, rtol=1e-12)


@given(any_schedule, st.data(), shapes, stds, seeds)
def test_the_denoiser_reads_x_0_off_F(schedule, data, shape, std, seed):
    """x_0_from_F(q_sample(x_0, eps), F_from_x_0_eps(x_0, eps)) = x_0, at any time of each row, t = 0 included."""
    t = data.draw(st.lists(st.integers(0, schedule.T), min_size=shape[0], max_size=shape[0]))
    x_0, eps = normal(seed, 2, *shape)
    F = F_from_x_0_eps(schedule, x_0, t, eps, std)
    again = x_0_from_F(schedule, q_sample(schedule, x_0, t, eps), t, F, std)
    # Two terms that cancel: of c_skip x_t and c_out F the larger is at most 1 + sigma_data times x_0 or eps.
    assert_close(again, x_0, rtol=0, atol=1e-13 * (1 + std))


def test_float32_stays_and_what_does_not_fit_is_refused():
    """The arrays have one dtype, which stays; t lies in 0..T; sigma_data is above 0 and finite."""
    x, y = normal(0, 2, 3, 2, dtype="float32")
    for function in (F_from_x_0_eps, x_0_from_F):
        whole = function(straight(), x, [0, 5, 1000], y, 0.5)
        assert whole.dtype == np.float32
        for i, t in enumerate([0, 5, 1000]):
            assert_same(whole[i : i + 1], function(straight(), x[i : i + 1], t, y[i : i + 1], 0.5))
        with pytest.raises(ValueError, match="must be float32"):
            function(straight(), x, 3, y[:, :1], 0.5)
        for t in (-1, 1001, 2.0, [1, 2]):
            with pytest.raises(ValueError, match="t must"):
                function(straight(), x, t, y, 0.5)
        for std in (0.0, -1.0, math.nan, math.inf):
            with pytest.raises(ValueError, match="sigma_data must be above 0"):
                function(straight(), x, 3, y, std)
    for t in (-1, 1001, 2.0):
        with pytest.raises(ValueError, match="t must"):
            preconditioning(straight(), t, 0.5)


# ------------------------------------------------------------------------------------------------------------ the times


@given(any_schedule, st.data(), st.floats(0.05, 1e4))
def test_the_rho_times_lead_from_T_to_0(schedule, data, rho):
    """n pairs, the first t is T, the last s is 0 and comes after t = 1, each s is the next t, all times fall."""
    T = schedule.T
    n = data.draw(st.sampled_from([1, T, min(2, T)]) | st.integers(1, T))
    pairs = karras_pairs(schedule, n, rho)
    assert len(pairs) == n
    assert pairs[0][0] == T and pairs[-1] == (T if n == 1 else 1, 0)
    assert all(s == next_t for (_, s), (next_t, _) in pairwise(pairs))
    assert all(t > s and type(t) is int and type(s) is int for t, s in pairs)


@pytest.mark.parametrize("n", [5, 18, 40])
@pytest.mark.parametrize("rho", [1.0, 3.0, 7.0])
def test_the_rho_times_are_eq_5_of_the_paper(n, rho):
    """Each sigma(t_i) is (sigma_max^(1/rho) + i/(n-1) (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho up to half a step of
    the schedule; the paper's own range, 0.002 to 80, on a schedule of 20,000 levels even in log sigma."""
    schedule = from_noise_levels(np.geomspace(0.002, 80, 20_000))
    i = np.arange(n)
    paper = (80 ** (1 / rho) + i / (n - 1) * (0.002 ** (1 / rho) - 80 ** (1 / rho))) ** rho
    times = [t for t, _ in karras_pairs(schedule, n, rho)]
    half = 80 / 0.002
    # Neighbours differ by 0.053%; the nearest in sigma^(1/rho) is nearest in log sigma, but for that much of it.
    np.testing.assert_allclose(noise_levels(schedule)[times], paper, rtol=0.51 * math.log(half) / 19_999)


@pytest.mark.parametrize("kind", NAMED)
def test_rho_leads_from_even_in_sigma_to_even_in_log_snr(kind):
    """As rho grows the times become those of log_snr_pairs, each at most a step of the schedule away; the smaller rho
    is, the more times are above the middle of the noise levels; the default is 7."""
    schedule = kind(1000)
    for n in (5, 12):
        limit, far = ([t for t, _ in pairs] for pairs in (log_snr_pairs(schedule, n), karras_pairs(schedule, n, 1e6)))
        assert max(abs(a - b) for a, b in zip(limit, far)) <= 1
        sums = [sum(t for t, _ in karras_pairs(schedule, n, rho)) for rho in (1.0, 3.0, 7.0, 20.0, 1e6)]
        assert sums == sorted(sums, reverse=True) and sums[0] > sums[2] > sums[4]
        assert karras_pairs(schedule, n) == karras_pairs(schedule, n, 7.0)


@pytest.mark.parametrize("rho", [0.0, -1.0, math.nan, math.inf])
def test_a_rho_without_meaning_is_refused(rho):
    """rho is above 0 and finite; num_steps lies in 1..T."""
    with pytest.raises(ValueError, match="rho must be above 0"):
        karras_pairs(straight(), 10, rho)
    for num_steps in (0, 1001, 10.0):
        with pytest.raises(ValueError, match="num_steps must"):
            karras_pairs(straight(), num_steps)


# -------------------------------------------------------------------------------------------- the step that is not here


def heun(schedule, eps_fn, pairs, x_T):
    """Karras et al. 2022, algorithm 1, from t = T on: x_0, and how often eps_fn was called.  dx/dsigma is eps_hat."""
    signal_std, sigma = schedule.alpha_bar**0.5, noise_levels(schedule)
    x, calls = x_T / signal_std[-1], 0
    for t, s in pairs:
        d = eps_fn(x * signal_std[t], t)
        x_s, calls = x + (sigma[s] - sigma[t]) * d, calls + 1
        if s > 0:
            d_s = eps_fn(x_s * signal_std[s], s)
            x_s, calls = x + (sigma[s] - sigma[t]) * (d + d_s) / 2, calls + 1
        x = x_s
    return x, calls


def test_at_equal_cost_heun_gains_nothing_over_2m():
    """The errors that solver.py gives: 20 Gaussians of std 0.1 in 16 dimensions, 23 and 49 evaluations, rho = 7; and
    those of other times that karras_pairs gives."""
    schedule, rng = Schedule.linear(20_000), np.random.default_rng(0)
    eps_fn = mixture_eps_fn(schedule, np.full(20, 0.05), rng.uniform(-1, 1, (20, 16)), 0.01)
    x_T = asarray(rng.standard_normal((200, 16)))

    def walk(pairs):
        *_, (_, x_0, _) = sample(dpm_solver_2m(schedule), eps_fn, pairs, x_T, default_rng(0))
        return x_0

    exact = walk(karras_pairs(schedule, 500))

    def error(x_0):
        return float(((x_0 - exact) ** 2).mean()) ** 0.5

    for steps, evaluations, with_heun, with_2m in ((12, 23, 0.058, 0.054), (25, 49, 0.0067, 0.0029)):
        x_0, calls = heun(schedule, eps_fn, karras_pairs(schedule, steps), x_T)
        assert calls == evaluations
        found = error(x_0), error(walk(karras_pairs(schedule, evaluations)))
        assert found == pytest.approx((with_heun, with_2m), rel=0.1) and found[1] < found[0]
    others = error(walk(log_snr_pairs(schedule, 23))), error(walk(quadratic_pairs(20_000, 23)))
    assert others == pytest.approx((0.053, 0.0035), rel=0.1)


# --------------------------------------------------------------------------------------------------- an outside witness


@given(st.floats(1e-3, 1e3), st.floats(0.05, 20), seeds)
def test_diffusers_denoiser_is_ours(sigma, std, seed):
    """EDMEulerScheduler: x_0_hat = c_skip x + c_out F, and the input c_in x, at any sigma and sigma_data."""
    module = pytest.importorskip("diffusers.schedulers.scheduling_edm_euler", reason="no diffusers")
    theirs, schedule = module.EDMEulerScheduler(sigma_data=std), from_noise_levels([sigma, 2e3])
    x_t, F = normal(seed, 2, 3, 4)
    x = to_numpy(x_t) / schedule.alpha_bar[1] ** 0.5
    rounding = 1e-15 * (1 + sigma**2)  # alpha_1 is 1 - beta_1, and 1/(1 + sigma^2)
    their_x_0_hat = theirs.precondition_outputs(x, to_numpy(F), sigma)
    found = to_numpy(x_0_from_F(schedule, x_t, 1, F, std))
    note(
        "diffusers, EDM: x_0_hat, relative to sigma^2", abs(found - their_x_0_hat).max() / ((1 + sigma**2) * (1 + std))
    )
    assert_close(found, their_x_0_hat, rtol=0, atol=rounding * (1 + std))
    _, _, c_in = preconditioning(schedule, 1, std)
    assert_close(float(c_in) * x_t, theirs.precondition_inputs(x, sigma), rtol=rounding, atol=0)


@given(st.integers(2, 60), st.floats(1, 20))
def test_diffusers_noise_levels_have_our_rho(n, rho):
    """A schedule made of EDMEulerScheduler's noise levels is passed level by level: they are even in sigma^(1/rho)."""
    module = pytest.importorskip("diffusers.schedulers.scheduling_edm_euler", reason="no diffusers")
    theirs = module.EDMEulerScheduler(rho=rho)
    levels = np.array([theirs._compute_karras_sigmas(i / (n - 1)) for i in range(n)])
    fine = from_noise_levels(np.unique(np.concatenate([levels, np.geomspace(0.002, 80, 500)[1:-1]])))
    found = noise_levels(fine)[[t for t, _ in karras_pairs(fine, n, rho)]]
    agree("diffusers, EDM: noise levels", found / levels, np.ones(n), 1e-9)
