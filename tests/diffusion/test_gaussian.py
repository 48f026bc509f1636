"""The closed forms against each other and against Bayes' rule, for random schedules, times, shapes and rows.

A distribution is affine in what it is given, so its coefficients are its answers to arrays of ones and zeros: most laws
here are laws of numbers, held at every t of a chain at once.
"""

import math
from fractions import Fraction

import numpy as np
import pytest
from chains import any_schedule, assert_close, normal, seeds
from exact import told_of_last_noise
from hypothesis import assume, given
from hypothesis import strategies as st

from tinydiff.backend import asarray, default_rng, standard_normal, to_numpy
from tinydiff.diffusion import (
    Schedule,
    eps_from_v,
    eps_from_x_0,
    q_sample,
    q_x_s_given_x_t_x_0,
    q_x_t_given_x_s,
    v_from_x_0_eps,
    x_0_from_eps,
    x_0_from_v,
)

pytestmark = pytest.mark.process

shapes = st.lists(st.integers(1, 4), min_size=1, max_size=4).map(tuple)
dtypes = st.sampled_from(["float32", "float64"])


def log_error(schedule, t):
    """What a difference of two entries of log_alpha_bar may be off by: a rounding or two of the larger one."""
    return 1e-15 * (1 - schedule.log_alpha_bar[t])


def ones(n, dtype="float64"):
    return asarray(np.ones(n, dtype))


def mixing(schedule, t):
    """The coefficients of x_0 and eps in q_sample, at each of the times t."""
    one = ones(len(t))
    return to_numpy(q_sample(schedule, one, t, 0 * one)), to_numpy(q_sample(schedule, 0 * one, t, one))


def jump(schedule, s, t):
    """The coefficient of x_s and the variance of q(x_t | x_s), at each of the pairs (s, t)."""
    mean, var = q_x_t_given_x_s(schedule, ones(len(t)), s, t)
    return to_numpy(mean), to_numpy(var)


def posterior(schedule, t, s, dtype="float64"):
    """The coefficients of x_0 and x_t and the variance of q(x_s | x_t, x_0), at each of the pairs (t, s)."""
    one = ones(len(t), dtype)
    x_0_coef, var = q_x_s_given_x_t_x_0(schedule, 0 * one, one, t, s)
    x_t_coef, same_var = q_x_s_given_x_t_x_0(schedule, one, 0 * one, t, s)
    np.testing.assert_array_equal(to_numpy(var), to_numpy(same_var))
    return to_numpy(x_0_coef), to_numpy(x_t_coef), to_numpy(var)


# ---------------------------------------------------------------------------------------------- the forward process


@given(any_schedule)
def test_one_step_is_the_markov_kernel(schedule):
    """q(x_t | x_{t-1}) = N(sqrt(1 - beta_t) x_{t-1}, beta_t I), at every t of the chain (Ho et al. 2020, eq. 2)."""
    t = np.arange(1, schedule.T + 1)
    mean, var = jump(schedule, t - 1, t)
    np.testing.assert_allclose(mean**2, 1 - schedule.beta[t], rtol=3 * log_error(schedule, schedule.T))
    assert (abs(var - schedule.beta[t]) <= 1e-14 * schedule.beta[t] + log_error(schedule, t)).all()


@given(any_schedule)
def test_the_markov_chain_composes_to_the_closed_form(schedule):
    """t steps of eq. 2 in turn are q(x_t | x_0), the same mean and variance, at every t (Ho et al. 2020, eq. 4)."""
    mean, var = [1.0], [0.0]
    for beta in schedule.beta[1:].tolist():
        mean.append(math.sqrt(1 - beta) * mean[-1])
        var.append((1 - beta) * var[-1] + beta)
    signal, noise = mixing(schedule, np.arange(schedule.T + 1))
    # A rounding or two of 1e-16 at each of up to 4,000 steps; alpha_bar itself leaves float64 at 1e-308.
    np.testing.assert_allclose(signal, mean, rtol=3e-12, atol=1e-150)
    np.testing.assert_allclose(noise**2, var, rtol=3e-12)


@given(any_schedule)
def test_the_first_steps_compose_exactly(schedule):
    """The same in fractions, which round nothing: after nine steps what is left is float64's own last digit or two."""
    t = np.arange(min(schedule.T, 9) + 1)
    signal, noise = mixing(schedule, t)
    mean_squared, var = Fraction(1), Fraction(0)
    for k in t:
        beta = Fraction(float(schedule.beta[k]))
        mean_squared, var = (1 - beta) * mean_squared, (1 - beta) * var + beta
        assert mean_squared + var == 1
        assert signal[k] ** 2 == pytest.approx(float(mean_squared), rel=1e-14)
        assert noise[k] ** 2 == pytest.approx(float(var), rel=1e-14)


@given(any_schedule, st.data(), shapes, seeds)
def test_a_jump_is_two_jumps(schedule, data, shape, seed):
    """Chapman-Kolmogorov: q(x_t | x_r) is q(x_s | x_r) followed by q(x_t | x_s), for any r < s < t."""
    assume(schedule.T >= 2)
    r, s, t = sorted(data.draw(st.lists(st.integers(0, schedule.T), min_size=3, max_size=3, unique=True)))
    x_r = normal(seed, *shape)
    direct_mean, direct_var = q_x_t_given_x_s(schedule, x_r, r, t)
    mean, var = q_x_t_given_x_s(schedule, x_r, r, s)
    mean, last_var = q_x_t_given_x_s(schedule, mean, s, t)
    error = 10 * log_error(schedule, t)
    assert_close(
        mean, direct_mean, rtol=error, atol=1e-150
    )  # below 1e-308 alpha_{t|s} loses digits, its root at 1e-154
    assert_close((1 - schedule.beta_t_given_s(t, s)) * to_numpy(var) + to_numpy(last_var), direct_var, rtol=error)


@given(any_schedule, st.data(), shapes, seeds)
def test_a_jump_from_the_data_is_q_sample(schedule, data, shape, seed):
    """With s = 0, mean + sqrt(var) eps of q(x_t | x_s) is q_sample."""
    t = data.draw(st.integers(1, schedule.T))
    x_0, eps = normal(seed, 2, *shape)
    mean, var = q_x_t_given_x_s(schedule, x_0, 0, t)
    assert_close(mean + var**0.5 * eps, q_sample(schedule, x_0, t, eps))


@given(any_schedule)
def test_unit_variance_is_kept(schedule):
    """Data and noise of variance 1 give x_t of variance 1 at every t: the squares of the two coefficients sum to 1."""
    signal, noise = mixing(schedule, np.arange(schedule.T + 1))
    # alpha_bar is a product of up to 4,000 factors, 1 - alpha_bar comes from a sum: 1e-16 a step each.
    np.testing.assert_allclose(signal**2 + noise**2, 1, rtol=0, atol=1e-12)


@given(any_schedule, shapes, dtypes, seeds)
def test_at_t_0_nothing_happens(schedule, shape, dtype, seed):
    """q_sample at t = 0 returns x_0, bit for bit, and so does x_0_from_eps."""
    x_0, eps = normal(seed, 2, *shape, dtype=dtype)
    np.testing.assert_array_equal(to_numpy(q_sample(schedule, x_0, 0, eps)), to_numpy(x_0))
    np.testing.assert_array_equal(to_numpy(x_0_from_eps(schedule, x_0, 0, eps)), to_numpy(x_0))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_draws_have_the_stated_mean_and_covariance(linear, dtype):
    """x_t ~ N(sqrt(alpha_bar_t) x_0, (1 - alpha_bar_t) I): over the pixels of two images at two times, all entries.

    50,000 draws of a batch of two 2 x 2 images, each at its own t.  For n independent standard normal z and z', sums of
    n terms stray as follows, with probability at most 2 exp(-a) each (Laurent & Massart 2000 for the squares):

        |mean of z| > sqrt(2a/n)      |mean of z^2 - 1| > 2 sqrt(a/n) + 2a/n      |mean of z z'| > the same

    the last with 4 exp(-a), since 2 z z' is the difference of two such squares.  With 8 pixels that is 8 means, 8
    variances and 28 covariances: at a = 18.8 the false alarm rate over fresh seeds is below 144 exp(-a) = 1e-6.
    """
    n, a, t = 50_000, 18.8, np.array([120, 430])
    alpha_bar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))[t - 1]
    images = normal(1, 2, 2, 2, 1, dtype=dtype)
    x_0 = asarray(np.tile(to_numpy(images), (n, 1, 1, 1)))
    x_t = q_sample(linear, x_0, np.tile(t, n), standard_normal(default_rng(2), x_0.shape, dtype))
    mean = np.sqrt(alpha_bar)[:, None] * to_numpy(images).reshape(2, 4)
    # Whitened by the stated law, one row a draw: (n, 2 images of 4 pixels).
    z = (to_numpy(x_t).reshape(n, 2, 4).astype(float) - mean) / np.sqrt(1 - alpha_bar)[:, None]
    z = z.reshape(n, 8)
    assert abs(z.mean(0)).max() <= (2 * a / n) ** 0.5  # 0.027
    assert abs(z.T @ z / n - np.eye(8)).max() <= 2 * (a / n) ** 0.5 + 2 * a / n  # 0.040


# ------------------------------------------------------------------------------------------------------ the posterior


@given(any_schedule, dtypes)
def test_at_t_1_the_posterior_is_exactly_1_0_0(schedule, dtype):
    """The coefficients of x_0 and x_1 and the variance are 1, 0 and 0, bit for bit; so they are at s = 0 from any t."""
    t = np.arange(1, schedule.T + 1)
    for answer, exact in zip(posterior(schedule, t, 0, dtype), (1, 0, 0)):
        np.testing.assert_array_equal(answer, np.full(schedule.T, exact, dtype))


@given(any_schedule)
def test_the_posterior_is_bayes_rule_for_every_pair_of_the_first_steps(schedule):
    """q(x_s | x_t, x_0) ~ q(x_t | x_s) q(x_s | x_0) in fractions, for all 0 <= s < t <= 9 (Ho et al. 2020, eq. 6, 7).

    With prior N(m, V), m = sqrt(A) x_0, and likelihood N(x_t; sqrt(a) x_s, B), completing the square gives

        mean = (B m + sqrt(a) V x_t)/(a V + B)        var = V B/(a V + B)
    """
    alphas = [1 - Fraction(float(b)) for b in schedule.beta[:10]]
    pairs = [(t, s) for t in range(1, len(alphas)) for s in range(t)]
    expected = []
    for t, s in pairs:
        A, a = math.prod(alphas[: s + 1]), math.prod(alphas[s + 1 : t + 1])
        V, B = 1 - A, 1 - a
        total = a * V + B
        x_0_coef, x_t_coef = math.sqrt(A) * float(B / total), math.sqrt(a) * float(V / total)
        expected.append((x_0_coef, x_t_coef, float(V * B / total), float(B)))
    t, s = np.array(pairs).T
    x_0_coef, x_t_coef, var, B = np.array(expected).T
    # A variance B far below 1 comes out of a difference of logarithms.
    slack = 10 * log_error(schedule, t)
    for got, exact, error in zip(
        posterior(schedule, t, s), (x_0_coef, x_t_coef, var), (slack + slack / B, slack, slack + slack / B)
    ):
        assert (abs(got - exact) <= error * exact).all()


@given(any_schedule, st.data(), shapes, seeds)
def test_the_posterior_is_bayes_rule(schedule, data, shape, seed):
    """The posterior is Bayes' rule for any s < t, from q(x_s | x_0) and q(x_t | x_s), by a Kalman filter's gain."""
    t = data.draw(st.integers(1, schedule.T))
    s = data.draw(st.integers(0, t - 1))
    x_t, x_0 = normal(seed, 2, *shape)
    prior_mean, prior_var = (x_0, 0) if s == 0 else q_x_t_given_x_s(schedule, x_0, 0, s)
    (a,), (B,) = jump(schedule, [s], [t])
    predicted_mean, predicted_var = a * prior_mean, a**2 * prior_var + B
    gain = a * prior_var / predicted_var
    mean, var = q_x_s_given_x_t_x_0(schedule, x_t, x_0, t, s)
    error = 10 * log_error(schedule, t)
    assert_close(mean, prior_mean + gain * (x_t - predicted_mean), rtol=error, atol=10 * error)  # |x| is up to 5
    assert_close(var, prior_var * B / predicted_var, rtol=error)


@given(any_schedule, st.data(), shapes, seeds)
def test_x_t_tells_a_share_of_the_last_step_s_noise_and_all_noise_tells_the_rest(schedule, data, shape, seed):
    """x_t = sqrt(alpha_{t|s}) x_s + sqrt(beta_{t|s}) z: which z was it, if x_t and x_0 are known?

        E[z | x_t, x_0] = R eps,   Var[z | x_t, x_0] = 1 - R^2,   R^2 = beta_{t|s}/(1 - alpha_bar_t)

    eps is all the noise in x_t, which a network learns to predict; of z it tells the share R^2 and no more.
    """
    t = data.draw(st.integers(1, schedule.T))
    s = data.draw(st.integers(0, t - 1))
    x_0, eps = normal(seed, 2, *shape)
    x_t = q_sample(schedule, x_0, t, eps)
    mean, var = q_x_s_given_x_t_x_0(schedule, x_t, x_0, t, s)
    (a,), (B,) = jump(schedule, [s], [t])
    share = float(told_of_last_noise(schedule, t, s))
    error = 10 * log_error(schedule, t)
    assert_close((x_t - a * mean) / B**0.5, share**0.5 * eps, rtol=error, atol=10 * error / B**0.5)  # |x| is up to 5
    assert_close(a**2 * var / B, 1 - share, rtol=error, atol=error)
    if s == t - 1:
        assert told_of_last_noise(schedule, t) == share


def test_of_the_last_step_s_noise_x_t_tells_little(linear):
    """All of it at t = 1, where there is no other noise; on the linear schedule half of it at t = 2, 1% at t = 500."""
    shares = told_of_last_noise(linear, np.array([1, 2, 100, 500]))
    assert [float(f"{share:.2g}") for share in shares] == [1, 0.55, 0.02, 0.011]


@given(any_schedule, st.data())
def test_the_posterior_leads_back_to_the_marginal(schedule, data):
    """x_t ~ q(x_t | x_0), then x_s ~ q(x_s | x_t, x_0), is x_s ~ q(x_s | x_0): same mean, same variance."""
    t = np.array(data.draw(st.lists(st.integers(1, schedule.T), min_size=1, max_size=9)))
    s = t * data.draw(st.integers(0, 9)) // 10
    (signal_t, noise_t), (signal_s, noise_s) = mixing(schedule, t), mixing(schedule, s)
    x_0_coef, x_t_coef, var = posterior(schedule, t, s)
    error = 1e-12 + 10 * log_error(schedule, t)  # 1e-12 for the 4,000 factors of alpha_bar
    assert (abs(x_0_coef + x_t_coef * signal_t - signal_s) <= error).all()
    assert (abs(x_t_coef**2 * noise_t**2 + var - noise_s**2) <= error * noise_s**2).all()


# -------------------------------------------------------------------------------------------------------- x_0 and eps


@given(any_schedule, st.data(), shapes, seeds)
def test_x_0_and_eps_are_two_names_for_one_estimate(schedule, data, shape, seed):
    """Given x_t, x_0 -> eps -> x_0 and eps -> x_0 -> eps are identities, and both recover what q_sample mixed."""
    last = int((schedule.alpha_bar > 1e-16).sum()) - 1
    assume(last > 0)
    t = data.draw(st.integers(1, last))
    signal, noise = schedule.alpha_bar[t] ** 0.5, schedule.one_minus_alpha_bar[t] ** 0.5
    x_0, eps, other = normal(seed, 3, *shape)
    x_t = q_sample(schedule, x_0, t, eps)
    # Each inverse divides roundings of numbers near 1 by its own coefficient.
    x_0_atol, eps_atol = 1e-14 / signal, 1e-14 / noise
    assert_close(x_0_from_eps(schedule, x_t, t, eps), x_0, atol=x_0_atol)
    assert_close(eps_from_x_0(schedule, x_t, t, x_0), eps, atol=eps_atol)
    assert_close(x_0_from_eps(schedule, x_t, t, eps_from_x_0(schedule, x_t, t, other)), other, atol=x_0_atol)
    assert_close(eps_from_x_0(schedule, x_t, t, x_0_from_eps(schedule, x_t, t, other)), other, atol=eps_atol)


def test_the_data_hold_no_noise_to_find(linear):
    """eps_from_x_0 at t = 0 would divide by sqrt(1 - alpha_bar_0) = 0, and is refused; so is one such row of many."""
    x = normal(0, 2, 3)
    for t in (0, [1, 0]):
        with pytest.raises(ValueError, match=r"t must lie in 1\.\.1000, got 0"):
            eps_from_x_0(linear, x, t, x)


def test_where_the_data_are_lost_x_0_is_refused():
    """sqrt(alpha_bar_t) below 2^-126, the least normal number of float32: ValueError naming t; float64 goes further."""
    schedule = Schedule([0.5] * 600)  # sqrt(alpha_bar_t) = 2^(-t/2)
    one = ones((2, 3), "float32")
    assert_close(x_0_from_eps(schedule, one, 252, 0 * one), 2.0**126 * one)
    for t, first in ((253, 253), (600, 600), ([5, 253], 253), ([253, 252], 253), ([600, 253], 600)):
        with pytest.raises(ValueError, match=rf"x_0 cannot be told from x_t: .* float32 at t = {first}$"):
            x_0_from_eps(schedule, one, t, one)
    one = ones((2, 3))
    assert_close(x_0_from_eps(schedule, one, 600, 0 * one), 2.0**300 * one)


def test_where_the_noise_is_lost_eps_is_refused():
    """The same for sqrt(1 - alpha_bar_t), were a schedule to begin with that little noise."""
    one = ones((2, 3), "float32")
    assert_close(eps_from_x_0(Schedule([2.0**-252, 0.999]), one, 1, 0 * one), 2.0**126 * one)
    schedule = Schedule([2.0**-253, 0.999])
    for t in (1, [2, 1]):
        with pytest.raises(ValueError, match=r"eps cannot be told from x_t: .* float32 at t = 1$"):
            eps_from_x_0(schedule, one, t, one)
    assert_close(eps_from_x_0(schedule, ones((2, 3)), 1, 0 * ones((2, 3))), 2.0**126.5 * ones((2, 3)))


# ------------------------------------------------------------------------------------------------------------------- v


@given(any_schedule, st.data(), shapes, seeds)
def test_x_t_and_v_are_x_0_and_eps_turned_by_one_angle(schedule, data, shape, seed):
    """x_t + i v = exp(-i phi) (x_0 + i eps), tan(phi)^2 = 1/SNR, and back, at any t (Salimans & Ho 2022, appendix D).

    So v stands at a right angle to x_t as eps to x_0, and x_t^2 + v^2 = x_0^2 + eps^2.
    """
    t = data.draw(st.integers(0, schedule.T))
    x_0, eps = normal(seed, 2, *shape)
    phi = math.atan2(schedule.one_minus_alpha_bar[t] ** 0.5, schedule.alpha_bar[t] ** 0.5)
    turned = (to_numpy(x_0) + 1j * to_numpy(eps)) * np.exp(-1j * phi)
    # cos(phi)^2 + sin(phi)^2 is 1 to 1e-12, alpha_bar being a product of up to 4,000 factors; |x| is up to 5.
    assert_close(q_sample(schedule, x_0, t, eps), turned.real, atol=1e-11)
    assert_close(v_from_x_0_eps(schedule, x_0, t, eps), turned.imag, atol=1e-11)
    x_t, v = asarray(turned.real), asarray(turned.imag)
    assert_close(x_0_from_v(schedule, x_t, t, v), x_0, atol=1e-11)
    assert_close(eps_from_v(schedule, x_t, t, v), eps, atol=1e-11)


@given(any_schedule, st.data(), shapes, seeds)
def test_v_is_a_third_name_for_the_same_estimate(schedule, data, shape, seed):
    """Given x_t, any v -> x_0 -> eps -> v, and any eps -> x_0 -> v -> eps, are identities; v agrees with eq. 4."""
    last = int((schedule.alpha_bar > 1e-16).sum()) - 1
    assume(last > 0)
    t = data.draw(st.integers(1, last))
    signal, noise = schedule.alpha_bar[t] ** 0.5, schedule.one_minus_alpha_bar[t] ** 0.5
    x_t, v, eps = normal(seed, 3, *shape)
    x_0_of_v, eps_of_v = x_0_from_v(schedule, x_t, t, v), eps_from_v(schedule, x_t, t, v)
    # As above: what x_0 and eps owe to the division by their coefficients, and 1e-12 for the factors of alpha_bar.
    x_0_atol, eps_atol = 1e-11 / signal, 1e-11 / noise
    assert_close(x_0_from_eps(schedule, x_t, t, eps_of_v), x_0_of_v, atol=x_0_atol)
    assert_close(eps_from_x_0(schedule, x_t, t, x_0_of_v), eps_of_v, atol=eps_atol)
    assert_close(v_from_x_0_eps(schedule, x_0_of_v, t, eps_of_v), v, atol=1e-11)
    v_of_eps = v_from_x_0_eps(schedule, x_0_from_eps(schedule, x_t, t, eps), t, eps)
    assert_close(eps_from_v(schedule, x_t, t, v_of_eps), eps, atol=x_0_atol)


@given(any_schedule, shapes, dtypes, seeds)
def test_v_is_the_noise_in_the_data_and_minus_the_data_in_the_noise(schedule, shape, dtype, seed):
    """At t = 0, v = eps and x_0 = x_t; where alpha_bar_t is lost, v = -x_0 and eps = x_t: bit for bit, no division."""
    a, b = normal(seed, 2, *shape, dtype=dtype)
    gone = Schedule([0.9] * 1000)  # sqrt(alpha_bar_t) = 10^(-t/2)
    for chain, t, v, x_0, eps in ((schedule, 0, b, a, b), (gone, 1000, -a, -b, a)):
        np.testing.assert_array_equal(to_numpy(v_from_x_0_eps(chain, a, t, b)), to_numpy(v))
        np.testing.assert_array_equal(to_numpy(x_0_from_v(chain, a, t, b)), to_numpy(x_0))
        np.testing.assert_array_equal(to_numpy(eps_from_v(chain, a, t, b)), to_numpy(eps))


@given(any_schedule, seeds)
def test_v_loses_nothing_in_float32_at_any_time(schedule, seed):
    """x_0 and eps from a float32 v are right to the last digits from t = 0 to T: nothing is divided."""
    t = np.arange(schedule.T + 1)
    x, y = normal(seed, 2, schedule.T + 1, dtype="float32")
    size = abs(to_numpy(x)) + abs(to_numpy(y))
    for name in (v_from_x_0_eps, x_0_from_v, eps_from_v):
        exact = to_numpy(name(schedule, x.astype("float64"), t, y.astype("float64")))
        # Two products of rounded coefficients and one sum: 4 roundings of 6e-8.
        assert (abs(to_numpy(name(schedule, x, t, y)) - exact) <= 2.4e-7 * size).all()


# --------------------------------------------------------------------------------------- rows, precision, bad arguments


def every_function(schedule, x, y, t, s):
    """All arrays that this file's functions return for one pair of inputs."""
    return [
        q_sample(schedule, x, t, y),
        *q_x_t_given_x_s(schedule, x, s, t),
        *q_x_s_given_x_t_x_0(schedule, x, y, t, s),
        x_0_from_eps(schedule, x, t, y),
        eps_from_x_0(schedule, x, t, y),
        v_from_x_0_eps(schedule, x, t, y),
        x_0_from_v(schedule, x, t, y),
        eps_from_v(schedule, x, t, y),
    ]


@pytest.mark.parametrize("shape", [(4,), (4, 4), (4, 3, 5, 2)])
@given(seed=st.integers(0, 99), data=st.data())
def test_each_row_has_its_own_time(linear, shape, seed, data):
    """With (N,) times, row i of every result is, bit for bit, the result of row i alone at times t_i and s_i."""
    t = np.array(data.draw(st.lists(st.integers(1, 1000), min_size=4, max_size=4)))
    s = t // 3
    x, y = normal(seed, 2, *shape, dtype="float32")
    for k, batched in enumerate(every_function(linear, x, y, t, s)):
        for i in range(4):
            alone = every_function(linear, x[i : i + 1], y[i : i + 1], int(t[i]), int(s[i]))[k]
            row = to_numpy(batched)[i : i + 1]
            np.testing.assert_array_equal(row, np.broadcast_to(to_numpy(alone), row.shape))


@pytest.mark.parametrize("t", [5, np.int64(5), np.array(5), [5, 6], np.array([5, 6], dtype=np.uint8)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_no_result_changes_dtype(linear, t, dtype):
    """float32 in, float32 out, whatever kind of integer the time is; a variance multiplies rows as it stands."""
    x, y = normal(0, 2, 2, 3, 4, 1, dtype=dtype)
    for result in every_function(linear, x, y, t, 0) + every_function(linear, x, y, t, [1, 2] if np.ndim(t) else 2):
        assert result.dtype == dtype
        assert result.shape in [x.shape, (2, 1, 1, 1) if np.ndim(t) else ()]
        assert (result * x).dtype == dtype and (result * x).shape == x.shape


def test_float32_coefficients_are_float64_coefficients_rounded_once(linear):
    """In float32, sqrt(alpha_bar_t) and sqrt(1 - alpha_bar_t) are right to the last bit, at t = 1 too."""
    t = np.arange(linear.T + 1)
    one = asarray(np.ones(linear.T + 1, dtype=np.float32))
    beta = np.concatenate([[0], np.linspace(1e-4, 0.02, 1000)])
    alpha_bar = np.exp(np.cumsum(np.log1p(-beta)))
    signal, noise = to_numpy(q_sample(linear, one, t, 0 * one)), to_numpy(q_sample(linear, 0 * one, t, one))
    # Half a unit in the last place of float32, 6e-8, and one part in a thousand for float64 itself.
    np.testing.assert_allclose(signal.astype(float), np.sqrt(alpha_bar), rtol=6e-8)
    np.testing.assert_allclose(noise.astype(float), np.sqrt(-np.expm1(np.cumsum(np.log1p(-beta)))), rtol=6e-8)


def test_arrays_that_do_not_match_are_refused_by_name(linear):
    """A second array of another shape or dtype would broadcast or promote: ValueError naming it."""
    narrow = normal(0, 2, 3, dtype="float32")
    with pytest.raises(ValueError, match=r"eps must be float32 \(2, 3\) like x_0, got float64 \(2, 3\)"):
        q_sample(linear, narrow, 3, normal(0, 2, 3))
    x = normal(0, 2, 3)
    for bad in (normal(0, 2, 3, dtype="float32"), normal(0, 3), normal(0, 2, 1), normal(0, 2, 3, 1)):
        with pytest.raises(ValueError, match="eps must be float64"):
            q_sample(linear, x, 3, bad)
        with pytest.raises(ValueError, match="x_0 must be float64"):
            q_x_s_given_x_t_x_0(linear, x, bad, 3, 1)
        with pytest.raises(ValueError, match="eps must be float64"):
            x_0_from_eps(linear, x, 3, bad)
        with pytest.raises(ValueError, match="x_0 must be float64"):
            eps_from_x_0(linear, x, 3, bad)
        with pytest.raises(ValueError, match=r"eps must be float64 .* like x_0"):
            v_from_x_0_eps(linear, x, 3, bad)
        for name in (x_0_from_v, eps_from_v):
            with pytest.raises(ValueError, match=r"v must be float64 .* like x_t"):
                name(linear, x, 3, bad)


@pytest.mark.parametrize("dtype", ["uint8", "int64", "bool", "complex64"])
def test_images_of_whole_numbers_are_refused(linear, dtype):
    """Coefficients cast to uint8 would all be 0: ValueError naming the array, for all that is no real floating type."""
    x = asarray(np.ones((2, 3), dtype))
    for name, call in [
        ("x_0", lambda: q_sample(linear, x, 3, x)),
        ("x_s", lambda: q_x_t_given_x_s(linear, x, 1, 3)),
        ("x_t", lambda: q_x_s_given_x_t_x_0(linear, x, x, 3, 1)),
        ("x_t", lambda: x_0_from_eps(linear, x, 3, x)),
        ("x_t", lambda: eps_from_x_0(linear, x, 3, x)),
        ("x_0", lambda: v_from_x_0_eps(linear, x, 3, x)),
        ("x_t", lambda: x_0_from_v(linear, x, 3, x)),
        ("x_t", lambda: eps_from_v(linear, x, 3, x)),
    ]:
        with pytest.raises(ValueError, match=f"{name} must be a floating array, got {dtype}"):
            call()


@pytest.mark.parametrize("t", [-1, 1001, [3, 1001], 2.0, [3], [3, 3, 3], [[3, 3]]])
def test_a_time_outside_the_chain_is_refused(linear, t):
    """t must be an integer, or one for each row, in range: a negative index would wrap round silently."""
    x = normal(0, 2, 3)
    for call in (
        lambda: q_sample(linear, x, t, x),
        lambda: x_0_from_eps(linear, x, t, x),
        lambda: eps_from_x_0(linear, x, t, x),
        lambda: v_from_x_0_eps(linear, x, t, x),
        lambda: x_0_from_v(linear, x, t, x),
        lambda: eps_from_v(linear, x, t, x),
        lambda: q_x_t_given_x_s(linear, x, 0, t),
        lambda: q_x_s_given_x_t_x_0(linear, x, x, t, 0),
    ):
        with pytest.raises(ValueError, match="t must"):
            call()


@pytest.mark.parametrize("s", [-1, 1001, 2.0, [1], [1, 1, 1]])
def test_an_s_outside_the_chain_is_refused_by_its_own_name(linear, s):
    """The message says s where s is wrong, its shape included."""
    x = normal(0, 2, 3)
    with pytest.raises(ValueError, match="s must"):
        q_x_t_given_x_s(linear, x, s, 9)
    with pytest.raises(ValueError, match="s must"):
        q_x_s_given_x_t_x_0(linear, x, x, 9, s)


@pytest.mark.parametrize("t, s", [(5, 5), (3, 8), ([9, 4], [2, 6])])
def test_s_must_come_before_t(linear, t, s):
    """s >= t is no jump and no reverse step: ValueError naming both."""
    x = normal(0, 2, 3)
    with pytest.raises(ValueError, match=r"s must be less than t, got s = \d and t = \d"):
        q_x_t_given_x_s(linear, x, s, t)
    with pytest.raises(ValueError, match=r"s must be less than t, got s = \d and t = \d"):
        q_x_s_given_x_t_x_0(linear, x, x, t, s)
