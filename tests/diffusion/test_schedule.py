"""The tables: exact against rational arithmetic, each named schedule against its published formulas.

The log tables grow by one rounded addition a step, so that an entry of size L after t steps is off by t L 1e-16 at
most, and the difference of neighbours by L 1e-16.  L is 10 in a schedule that anyone uses, and 144,000 in the worst.
"""

import math
import warnings
from fractions import Fraction

import numpy as np
import pytest
from chains import any_schedule
from hypothesis import given
from hypothesis import strategies as st

from tinydiff.diffusion import Schedule, ScheduleWarning

pytestmark = pytest.mark.process

NAMED = [Schedule.linear, Schedule.cosine, Schedule.quadratic, Schedule.sigmoid, Schedule.constant]


def exact_alpha(schedule, s, t):
    """alpha_{s+1} ... alpha_t in rational arithmetic: nothing is rounded."""
    return math.prod((1 - Fraction(float(b)) for b in schedule.beta[s + 1 : t + 1]), start=Fraction(1))


@given(any_schedule)
def test_tables_have_one_entry_for_the_data_and_one_for_each_step(schedule):
    """Every table is float64 of length T+1, is read-only, and says at t = 0 that x_0 is the data."""
    entry_0 = {"beta": 0, "alpha": 1, "alpha_bar": 1, "log_alpha_bar": 0, "one_minus_alpha_bar": 0}
    for name, first in entry_0.items():
        table = getattr(schedule, name)
        assert table.shape == (schedule.T + 1,) and table.dtype == np.float64, name
        assert table[0] == first, name
        with pytest.raises(ValueError, match="read-only"):
            table[0] = 0.5


@given(any_schedule)
def test_alpha_bar_is_the_product_of_all_alphas_so_far(schedule):
    """alpha_bar_t = (1 - beta_1) ... (1 - beta_t), in each of the three forms that are kept (Ho et al. 2020, eq. 4)."""
    # Exact fractions for the first steps; each step adds a rounding or two of 1e-16.
    for t in range(1, min(schedule.T, 8) + 1):
        exact = exact_alpha(schedule, 0, t)
        assert schedule.alpha[t] == pytest.approx(1 - schedule.beta[t], rel=1e-15)
        assert schedule.alpha_bar[t] == pytest.approx(float(exact), rel=1e-14)
        assert schedule.one_minus_alpha_bar[t] == pytest.approx(float(1 - exact), rel=1e-14)
    # The whole chain: 4,000 roundings of 1e-16 in each running total or product; exp makes those of 700 relative.
    at = [1, schedule.T // 2, schedule.T]
    log_alpha_bar = np.array([math.fsum(np.log1p(-schedule.beta[: t + 1])) for t in at])
    np.testing.assert_allclose(schedule.log_alpha_bar[at], log_alpha_bar, rtol=1e-12)
    np.testing.assert_allclose(schedule.alpha_bar[at], np.exp(log_alpha_bar), rtol=1e-11, atol=1e-300)
    np.testing.assert_allclose(schedule.one_minus_alpha_bar[at], -np.expm1(log_alpha_bar), rtol=1e-12)


@given(any_schedule)
def test_the_data_fades_strictly(schedule):
    """The signal-to-noise ratio falls at every step, from infinity, and alpha_bar with it."""
    log_snr, log_alpha_bar = schedule.log_snr, schedule.log_alpha_bar
    assert log_snr[0] == np.inf and np.isfinite(log_snr[1:]).all()
    # A beta below a rounding of the total that it is added to may leave it as it is, but nothing ever rises.
    rounding = 1e-15 * (1 - log_alpha_bar[1:])
    felt = schedule.beta[1:] > rounding
    for table in (log_alpha_bar, schedule.alpha_bar, -schedule.one_minus_alpha_bar):
        assert (np.diff(table) <= 0).all()
    assert (np.diff(log_alpha_bar)[felt] < 0).all()
    held = felt & (schedule.alpha_bar[1:] > 1e-300)
    assert (np.diff(schedule.alpha_bar)[held] < 0).all()
    # log SNR is the difference of two logarithms: of alpha_bar, and of 1 - alpha_bar, which is -60 at beta_1 = 1e-26.
    rounding = rounding + 1e-15 * abs(log_snr[1:])
    change = np.diff(log_snr)
    assert (change <= rounding).all() and (change[schedule.beta[1:] > rounding] < 0).all()


@given(any_schedule)
def test_signal_and_noise_variances_sum_to_one(schedule):
    """alpha_bar_t + (1 - alpha_bar_t) = 1: data of unit variance keep it, at every t."""
    # Two tables, each good to 1e-16 a step: 4,000 steps make 8e-13.
    np.testing.assert_allclose(schedule.alpha_bar + schedule.one_minus_alpha_bar, 1, rtol=0, atol=1e-12)


@given(any_schedule, st.data())
def test_log_snr_is_the_log_of_signal_over_noise(schedule, data):
    """exp(log_snr_t) (1 - alpha_bar_t) = alpha_bar_t."""
    t = data.draw(st.integers(1, schedule.T))
    # As long as float64 holds alpha_bar, log_alpha_bar is above -750, good to 3e-10 after 4,000 steps; exp keeps that.
    signal = math.exp(schedule.log_snr[t]) * schedule.one_minus_alpha_bar[t]
    assert signal == pytest.approx(schedule.alpha_bar[t], rel=1e-9, abs=1e-300)


@given(any_schedule, st.data())
def test_beta_t_given_s_is_the_noise_of_all_steps_between(schedule, data):
    """1 - beta_{t|s} = alpha_{t|s} = alpha_{s+1} ... alpha_t for any s < t, and beta_t itself for one step."""
    t = data.draw(st.integers(1, schedule.T))
    s = data.draw(st.integers(max(0, t - 8), t - 1))
    # The difference of two entries of the log table, at most eight roundings apart.
    atol = 2e-15 * (1 - schedule.log_alpha_bar[t])
    exact = exact_alpha(schedule, s, t)
    assert schedule.beta_t_given_s(t, s) == pytest.approx(float(1 - exact), rel=1e-13, abs=atol)
    assert schedule.alpha_t_given_s(t, s) == pytest.approx(float(exact), rel=1e-13 + atol)
    assert schedule.beta_t_given_s(t, t - 1) == pytest.approx(schedule.beta[t], rel=1e-13, abs=atol)
    assert schedule.beta_t_given_s(t, 0) == schedule.one_minus_alpha_bar[t]


@given(any_schedule, st.data())
def test_beta_tilde_is_beta_seen_from_the_data(schedule, data):
    """1/beta_tilde_{t|s} = (1 - beta_{t|s})/beta_{t|s} + 1/(1 - alpha_bar_s): precisions add; 0 at s = 0; <= beta."""
    t = data.draw(st.integers(1, schedule.T))
    s = data.draw(st.integers(0, t - 1))
    tilde, beta, var = schedule.beta_tilde(t, s), schedule.beta_t_given_s(t, s), schedule.one_minus_alpha_bar[s]
    assert schedule.beta_tilde(t, 0) == 0
    assert 0 <= tilde <= beta * (1 + 1e-15)
    # Multiplied by beta and 1 - alpha_bar_s, so that nothing is divided.  What is left is one difference of logarithms.
    assert tilde * ((1 - beta) * var + beta) == pytest.approx(var * beta, rel=1e-14 * (1 - schedule.log_alpha_bar[t]))


@given(any_schedule, st.data())
def test_jumps_take_a_time_for_each_row(schedule, data):
    """For (N,) times, each entry is that of its own row, and an integer stands for all rows."""
    t = np.array(data.draw(st.lists(st.integers(1, schedule.T), min_size=1, max_size=5)))
    s = t // 2
    for jump in (Schedule.alpha_t_given_s, Schedule.beta_t_given_s, Schedule.beta_tilde):
        np.testing.assert_array_equal(jump(schedule, t, s), [jump(schedule, a, b) for a, b in zip(t, s)])
        np.testing.assert_array_equal(jump(schedule, t, 0), [jump(schedule, a, 0) for a in t])


def ramp(t, T, low, high):
    return low + (high - low) * (t - 1) / (T - 1)


PUBLISHED = {
    "linear": lambda t, T: 1000 / T * ramp(t, T, 1e-4, 0.02),
    "quadratic": lambda t, T: 1000 / T * ramp(t, T, math.sqrt(1e-4), math.sqrt(0.02)) ** 2,
    "sigmoid": lambda t, T: 1000 / T * (1e-4 + 0.0199 / (1 + math.exp(-ramp(t, T, -6, 6)))),
    "constant": lambda t, T: 1000 / T * 0.01005,
}


def log_product(t, first, last, T):
    """log of the product of t numbers that start at first and, evenly spaced, would reach last as number T."""
    step = abs(last - first) / (T - 1)
    low = min(first, first + (t - 1) / (T - 1) * (last - first)) / step
    # step^t low (low + 1) ... (low + t - 1)
    return t * math.log(step) + math.lgamma(low + t) - math.lgamma(low)


# log alpha_bar_t without a sum over steps.  Evenly spaced are 1 - beta_t under linear and sqrt(beta_t) under quadratic,
# whose 1 - beta_t = (1 - sqrt(beta_t))(1 + sqrt(beta_t)) is a number of one such row times one of another.
CLOSED_LOG_ALPHA_BAR = {
    "linear": lambda t, T: log_product(t, 1 - 0.1 / T, 1 - 20 / T, T),
    "quadratic": lambda t, T: (
        log_product(t, 1 - math.sqrt(0.1 / T), 1 - math.sqrt(20 / T), T)
        + log_product(t, 1 + math.sqrt(0.1 / T), 1 + math.sqrt(20 / T), T)
    ),
    "sigmoid": lambda t, T: math.fsum(math.log1p(-PUBLISHED["sigmoid"](k, T)) for k in range(1, t + 1)),  # has none
    "constant": lambda t, T: t * math.log1p(-10.05 / T),
}


@pytest.mark.parametrize("name", PUBLISHED)
@given(T=st.one_of(st.just(1000), st.integers(21, 4000)))
def test_each_beta_schedule_is_its_published_formula(name, T):
    """beta_t is the stated function of t and T at every t, and alpha_bar_t the product's closed form."""
    schedule = getattr(Schedule, name)(T)
    assert schedule.T == T
    expected = [PUBLISHED[name](t, T) for t in range(1, T + 1)]
    np.testing.assert_allclose(schedule.beta[1:], expected, rtol=1e-12)  # a handful of roundings
    at = [1, 2, T // 3, T - 1, T]
    log_alpha_bar = [CLOSED_LOG_ALPHA_BAR[name](t, T) for t in at]
    # lgamma(a) is about a log(a), 1e7 where a = T^2/20 and T = 4,000, and good to 1e-16 of that.
    np.testing.assert_allclose(schedule.alpha_bar[at], np.exp(log_alpha_bar), rtol=1e-7)


def test_linear_at_its_default_is_the_schedule_of_the_paper(linear):
    """beta_1 = 1e-4 and beta_1000 = 0.02, as Ho et al. 2020, section 4 have it: t is not off by one."""
    assert linear.T == 1000
    assert linear.beta[[1, 1000]].tolist() == [1e-4, 0.02]


@given(T=st.one_of(st.just(1000), st.integers(1, 4000)))
def test_cosine_is_its_published_formula(T):
    """alpha_bar_t = f(t)/f(0) until the cap on beta, 0.999, takes hold at the end (Nichol & Dhariwal 2021, eq. 17)."""
    schedule = Schedule.cosine(T)
    assert schedule.T == T
    f = [math.cos((t / T + 0.008) / 1.008 * math.pi / 2) ** 2 for t in range(T + 1)]
    assert 1 - f[T] / f[T - 1] > 0.999 and schedule.beta[T] == 0.999
    free = [t for t in range(1, T + 1) if 1 - f[t] / f[t - 1] < 0.999]
    # f passes near the zero of the cosine: an error of 1e-16 in its argument, over at least 1e-3.
    np.testing.assert_allclose(schedule.alpha_bar[free], np.array(f)[free] / f[0], rtol=1e-9)


@pytest.mark.parametrize("make", NAMED)
@given(T=st.one_of(st.integers(21, 60), st.integers(21, 4000)))
def test_every_named_schedule_ends_in_noise_at_any_length(make, T):
    """However short the chain, x_T holds less than a tenth of x_0, and no warning is given."""
    assert make(T).alpha_bar[-1] ** 0.5 < 0.1


@pytest.mark.parametrize("make, shortest", [(m, n) for m, n in zip(NAMED, (21, 1, 21, 20, 11))])
def test_a_chain_too_short_for_its_schedule_is_refused(make, shortest):
    """The shortest T that a schedule can carry is the one that it states; below, beta >= 1 is refused."""
    make(shortest)
    for T in range(1, shortest):
        with pytest.raises(ValueError, match=rf"got [\d.]+ at t = \d+ of T = {T}$"):
            make(T)


@pytest.mark.parametrize("make", NAMED)
@pytest.mark.parametrize("T", [0, -3, 100.0, "100", 1_000_001])
def test_a_length_that_is_not_a_positive_integer_is_refused(make, T):
    """T is a count of steps, a million at most: what is longer is a mistake, and would fill the memory."""
    with pytest.raises(ValueError, match="T must"):
        make(T)


def test_a_million_steps_are_a_schedule():
    """The longest chain allowed ends like the usual one: alpha_bar_T = exp(-T beta) nearly (constant beta)."""
    # log(1 - beta) is -beta - beta^2/2 ..., beta = 1e-5.
    assert Schedule.constant(1_000_000).alpha_bar[-1] == pytest.approx(math.exp(-10.05), rel=1e-4)


@given(any_schedule, st.data(), st.sampled_from([1.0, 1.5, -0.25, float("nan"), float("inf")]))
def test_a_beta_outside_0_1_is_refused_by_time_and_value(schedule, data, bad):
    """The message names t, counted from 1, and the value, at the first step and the last as well."""
    for t in (1, data.draw(st.integers(1, schedule.T)), schedule.T):
        beta = schedule.beta[1:].copy()
        beta[t - 1] = bad
        with pytest.raises(ValueError, match=rf"got {bad:.6g} at t = {t} of T = {schedule.T}"):
            Schedule(beta)


def test_a_zero_beta_is_refused_but_in_front():
    """beta_t = 0 is no step; only entry 0 of a whole table is 0."""
    for beta in ([0.0], [0.5, 0.0], [0.0, 0.0, 0.5], [-0.0, 0.5, 0.0]):
        with pytest.raises(ValueError, match=r"got -?0 at t = "):
            Schedule(beta)


@pytest.mark.parametrize("beta", [[], 0.5, [[0.1, 0.2]]])
def test_beta_must_be_a_row_of_numbers(beta):
    """An empty chain, a number and a matrix are no schedule."""
    with pytest.raises(ValueError, match="shape"):
        Schedule(beta)


@given(any_schedule)
def test_a_schedule_is_its_beta_table(schedule):
    """Schedule(schedule.beta) and Schedule(schedule.beta[1:]) are the same schedule, bit for bit."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ScheduleWarning)
        for again in (Schedule(schedule.beta), Schedule(schedule.beta[1:]), Schedule(schedule.beta[1:].tolist())):
            assert again.T == schedule.T
            for name in ("beta", "alpha", "alpha_bar", "log_alpha_bar", "one_minus_alpha_bar"):
                np.testing.assert_array_equal(getattr(again, name), getattr(schedule, name))


@given(any_schedule)
def test_a_schedule_warns_exactly_when_x_T_still_shows_the_data(schedule):
    """ScheduleWarning if and only if sqrt(alpha_bar_T) > 0.1, and it points at the caller's line."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        Schedule(schedule.beta)
    assert [w.category for w in caught] == [ScheduleWarning] * (math.exp(schedule.log_alpha_bar[-1] / 2) > 0.1)
    assert {w.filename for w in caught} <= {__file__}


def test_a_tenth_of_the_data_is_noise_enough():
    """sqrt(alpha_bar_T) = 0.1 to the last bit gives no warning, and the next smaller beta gives one."""
    step = (
        2.0**-53
    )  # between numbers in 1/2..1; alpha_1 near 1/3 and alpha_2 near 0.03 meet 0.1 for a few i, k below 20
    tables = ((2 / 3 + i * step, 0.97 + k * step) for i in range(20) for k in range(20))
    beta_1, beta_2 = next((a, b) for a, b in tables if ((1 - a) * (1 - b)) ** 0.5 == 0.1)
    Schedule([beta_1, beta_2])
    with pytest.warns(ScheduleWarning, match=r"= 0\.100 of x_0"):
        Schedule([beta_1 - step, beta_2])


def test_a_linear_schedule_cut_short_without_scaling_warns():
    """The usual mistake, 1e-4..0.02 in 50 steps, leaves sqrt(0.60) of the data in x_T, and says so."""
    with pytest.warns(ScheduleWarning, match=r"sqrt\(alpha_bar_T\) = 0\.77\d of x_0 is left at T = 50"):
        Schedule(np.linspace(1e-4, 0.02, 50))


def test_a_schedule_keeps_its_own_copy_of_beta():
    """Changing the caller's array afterwards changes nothing, and the array stays writable."""
    for zero in ([], [0.0]):
        beta = np.concatenate([zero, np.full(20, 0.4)])
        schedule = Schedule(beta)
        beta[:] = 0.1
        assert (schedule.beta[1:] == 0.4).all()


@pytest.mark.parametrize(
    "t, s, message",
    [
        (5, 5, "got s = 5 and t = 5"),
        (3, 7, "got s = 7 and t = 3"),
        ([5, 4], [2, 4], "got s = 4 and t = 4"),
        ([9, 4], 6, "got s = 6 and t = 4"),
        (5, -1, r"s must lie in 0\.\.1000, got -1"),
        (1001, 5, r"t must lie in 1\.\.1000, got 1001"),
        (0, 0, r"t must lie in 1\.\.1000, got 0"),
        (2.5, 1, "t must be integers"),
        ([5, 4], [1, 2, 3], "one shape"),
        ([5, 4, 6], [1, 2], "one shape"),
    ],
)
def test_a_pair_of_times_that_is_no_reverse_step_is_refused(linear, t, s, message):
    """Unless 0 <= s < t <= T, the message names the argument and the value, for each kind of jump."""
    for jump in (Schedule.alpha_t_given_s, Schedule.beta_t_given_s, Schedule.beta_tilde):
        with pytest.raises(ValueError, match=message):
            jump(linear, t, s)
