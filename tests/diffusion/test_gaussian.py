"""The closed forms against each other and against Bayes' rule, for random schedules, times, shapes and rows."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tinydiff.backend import asarray, default_rng, standard_normal, to_numpy
from tinydiff.diffusion import (
    Schedule,
    eps_from_x_0,
    q_sample,
    q_x_s_given_x_t_x_0,
    q_x_t_given_x_s,
    x_0_from_eps,
)

pytestmark = pytest.mark.process

any_schedule = st.from_type(Schedule)
shapes = st.sampled_from([(1,), (3,), (2, 5), (2, 3, 4, 1)])


def normal(seed, *shape, dtype="float64"):
    return standard_normal(default_rng(seed), shape, dtype)


def assert_close(a, b, rtol=1e-12, atol=1e-12):
    """Equal to a few hundred float64 roundings of numbers near 1, unless a test says what costs it more."""
    np.testing.assert_allclose(to_numpy(a), to_numpy(b), rtol=rtol, atol=atol)


def log_error(schedule, t):
    """What a difference of two entries of log_alpha_bar may be off by: a rounding or two of the larger one."""
    return 1e-15 * (1 - schedule.log_alpha_bar[t])


# ---------------------------------------------------------------------------------------------- the forward process


@given(any_schedule, st.data(), shapes, st.integers(0, 99))
def test_the_markov_chain_composes_to_the_closed_form(schedule, data, shape, seed):
    """q(x_t | x_0) is q(x_1 | x_0), q(x_2 | x_1), ..., q(x_t | x_{t-1}) in turn: same mean, same variance."""
    t = data.draw(st.integers(1, min(schedule.T, 60)))
    x_0 = normal(seed, *shape)
    mean, var = x_0, 0.0
    for k in range(1, t + 1):
        mean, step_var = q_x_t_given_x_s(schedule, mean, k - 1, k)
        var = (1 - schedule.beta[k]) * var + step_var
    closed_mean = q_sample(schedule, x_0, t, 0 * x_0)
    closed_std = q_sample(schedule, 0 * x_0, t, 0 * x_0 + 1)
    # A beta of 1e-6 comes out of a logarithm of size 60 with an error of 1e-14 at most.
    assert_close(mean, closed_mean, rtol=1e-11)
    assert_close(0 * x_0 + var, closed_std**2, rtol=1e-10)


@given(any_schedule, st.data(), shapes, st.integers(0, 99))
def test_a_jump_is_two_jumps(schedule, data, shape, seed):
    """Chapman-Kolmogorov: q(x_t | x_r) is q(x_s | x_r) followed by q(x_t | x_s), for any r < s < t."""
    assume(schedule.T >= 2)
    r, s, t = sorted(data.draw(st.lists(st.integers(0, schedule.T), min_size=3, max_size=3, unique=True)))
    x_r = normal(seed, *shape)
    direct_mean, direct_var = q_x_t_given_x_s(schedule, x_r, r, t)
    mean, var = q_x_t_given_x_s(schedule, x_r, r, s)
    mean, last_var = q_x_t_given_x_s(schedule, mean, s, t)
    assert_close(mean, direct_mean, rtol=1e-10)
    assert_close((1 - schedule.beta_t_given_s(t, s)) * to_numpy(var) + to_numpy(last_var), direct_var, rtol=1e-10)


@given(any_schedule, st.data(), shapes, st.integers(0, 99))
def test_a_jump_from_the_data_is_q_sample(schedule, data, shape, seed):
    """With s = 0, mean + sqrt(var) eps of q(x_t | x_s) is q_sample."""
    t = data.draw(st.integers(1, schedule.T))
    x_0, eps = normal(seed, 2, *shape)
    mean, var = q_x_t_given_x_s(schedule, x_0, 0, t)
    assert_close(mean + var**0.5 * eps, q_sample(schedule, x_0, t, eps))


@given(any_schedule, st.data())
def test_unit_variance_is_kept(schedule, data):
    """Data and noise of variance 1 give x_t of variance 1: the squares of the two coefficients sum to 1."""
    t = data.draw(st.integers(0, schedule.T))
    one, zero = normal(0, 1) * 0 + 1, normal(0, 1) * 0
    signal, noise = q_sample(schedule, one, t, zero), q_sample(schedule, zero, t, one)
    assert_close(signal**2 + noise**2, one)


@given(any_schedule, shapes, st.sampled_from(["float32", "float64"]), st.integers(0, 99))
def test_at_t_0_nothing_happens(schedule, shape, dtype, seed):
    """q_sample at t = 0 returns x_0, bit for bit, and so does x_0_from_eps."""
    x_0, eps = normal(seed, 2, *shape, dtype=dtype)
    np.testing.assert_array_equal(to_numpy(q_sample(schedule, x_0, 0, eps)), to_numpy(x_0))
    np.testing.assert_array_equal(to_numpy(x_0_from_eps(schedule, x_0, 0, eps)), to_numpy(x_0))


# ------------------------------------------------------------------------------------------------------ the posterior


@given(any_schedule, st.data(), shapes, st.integers(0, 99))
def test_the_posterior_is_bayes_rule(schedule, data, shape, seed):
    """q(x_s | x_t, x_0) is proportional to q(x_t | x_s) q(x_s | x_0): precisions add, means weigh by precision."""
    t = data.draw(st.integers(2, schedule.T)) if schedule.T >= 2 else assume(False)
    s = data.draw(st.integers(1, t - 1))
    x_t, x_0 = normal(seed, 2, *shape)
    prior_mean, prior_var = q_x_t_given_x_s(schedule, x_0, 0, s)
    a, jump_var = q_x_t_given_x_s(schedule, 0 * x_0 + 1, s, t)
    precision = 1 / prior_var + a * a / jump_var
    expected = (prior_mean / prior_var + a * x_t / jump_var) / precision
    mean, var = q_x_s_given_x_t_x_0(schedule, x_t, x_0, t, s)
    # 1/beta with beta down to 1e-6 magnifies the error of the logarithms that beta comes from.
    slack = log_error(schedule, t) * 10 / float(jump_var)
    assert_close(mean, expected, rtol=1e-11 + slack, atol=1e-11 + slack)
    assert_close(var, 1 / precision, rtol=1e-11 + slack)


@given(any_schedule, st.data(), shapes, st.sampled_from(["float32", "float64"]), st.integers(0, 99))
def test_the_posterior_of_the_data_is_the_data_exactly(schedule, data, shape, dtype, seed):
    """At s = 0 the coefficients of x_0, x_t and the variance are 1, 0 and 0, bit for bit, from any t."""
    t = data.draw(st.one_of(st.just(1), st.integers(1, schedule.T)))
    x_t, x_0 = normal(seed, 2, *shape, dtype=dtype)
    mean, var = q_x_s_given_x_t_x_0(schedule, x_t, x_0, t, 0)
    np.testing.assert_array_equal(to_numpy(mean), to_numpy(x_0))
    assert to_numpy(var) == 0


@given(any_schedule, st.data())
def test_the_posterior_leads_back_to_the_marginal(schedule, data):
    """x_t ~ q(x_t | x_0), then x_s ~ q(x_s | x_t, x_0), is x_s ~ q(x_s | x_0): same mean, same variance."""
    t = data.draw(st.integers(1, schedule.T))
    s = data.draw(st.integers(0, t - 1))
    one, zero = normal(0, 1) * 0 + 1, normal(0, 1) * 0
    x_0_coef, var = q_x_s_given_x_t_x_0(schedule, zero, one, t, s)
    x_t_coef, _ = q_x_s_given_x_t_x_0(schedule, one, zero, t, s)
    slack = log_error(schedule, t) / schedule.one_minus_alpha_bar[t]
    mean = x_0_coef + x_t_coef * q_sample(schedule, one, t, zero)
    assert_close(mean, q_sample(schedule, one, s, zero), atol=1e-11 + slack)
    spread = x_t_coef**2 * q_sample(schedule, zero, t, one) ** 2 + var
    assert_close(spread, q_sample(schedule, zero, s, one) ** 2, atol=1e-11 + slack)


# -------------------------------------------------------------------------------------------------------- x_0 and eps


@given(any_schedule, st.data(), shapes, st.integers(0, 99))
def test_x_0_and_eps_are_two_names_for_one_estimate(schedule, data, shape, seed):
    """Given x_t, x_0 -> eps -> x_0 and eps -> x_0 -> eps are identities, and both recover what q_sample mixed."""
    t = data.draw(st.integers(1, schedule.T))
    signal, noise = schedule.alpha_bar[t] ** 0.5, schedule.one_minus_alpha_bar[t] ** 0.5
    assume(signal > 1e-8)
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
    """alpha_bar_t below what the dtype can hold: ValueError naming t, not inf; float64 holds on for longer."""
    schedule = Schedule([0.9] * 400)  # sqrt(alpha_bar_t) = 10^(-t/2)
    x = normal(0, 2, 3, dtype="float32")
    assert np.isfinite(to_numpy(x_0_from_eps(schedule, x * 0 + 1, 74, x * 0))).all()
    for t in (80, 400, [5, 80]):
        with pytest.raises(ValueError, match=r"x_0 cannot be told.* float32 at t = (80|400)"):
            x_0_from_eps(schedule, x, t, x)
    x = normal(0, 2, 3)
    assert np.isfinite(to_numpy(x_0_from_eps(schedule, x, 300, x))).all()


# --------------------------------------------------------------------------------------- rows, precision, bad arguments


def every_function(schedule, x, y, t, s):
    """All arrays that this file's functions return for one pair of inputs."""
    return [
        q_sample(schedule, x, t, y),
        *q_x_t_given_x_s(schedule, x, s, t),
        *q_x_s_given_x_t_x_0(schedule, x, y, t, s),
        x_0_from_eps(schedule, x, t, y),
        eps_from_x_0(schedule, x, t, y),
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


def test_integer_images_are_refused(linear):
    """Coefficients cast to uint8 would all be 0: ValueError naming the array."""
    x = asarray(np.full((2, 3), 200, dtype=np.uint8))
    for name, call in {
        "x_0": lambda: q_sample(linear, x, 3, x),
        "x_s": lambda: q_x_t_given_x_s(linear, x, 1, 3),
        "x_t": lambda: q_x_s_given_x_t_x_0(linear, x, x, 3, 1),
    }.items():
        with pytest.raises(ValueError, match=f"{name} must be a floating array, got uint8"):
            call()


@pytest.mark.parametrize("t", [-1, 1001, [3, 1001], 2.0, [3], [3, 3, 3], [[3, 3]]])
def test_a_time_outside_the_chain_is_refused(linear, t):
    """t must be an integer, or one for each row, in range: a negative index would wrap round silently."""
    x = normal(0, 2, 3)
    for call in (
        lambda: q_sample(linear, x, t, x),
        lambda: x_0_from_eps(linear, x, t, x),
        lambda: eps_from_x_0(linear, x, t, x),
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
