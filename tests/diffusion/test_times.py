"""The times that a sampler visits: they join up, lead from T to 0, and lie where they are said to lie."""

from itertools import pairwise

import numpy as np
import pytest
from chains import any_schedule
from hypothesis import given
from hypothesis import strategies as st

from tinydiff.diffusion import Schedule, log_snr_pairs, quadratic_pairs, timestep_pairs
from tinydiff.diffusion.times import joined

pytestmark = pytest.mark.sampler


# ----------------------------------------------------------------------------------------------------------- all three


@given(any_schedule, st.data())
def test_every_way_leads_from_T_to_0(schedule, data):
    """n pairs, the first t is T, the last s is 0, each s is the next t, each t is after its s; any n of 1..T."""
    T = schedule.T
    n = data.draw(st.sampled_from([1, T, min(2, T)]) | st.integers(1, T))
    for pairs in (timestep_pairs(T, n), quadratic_pairs(T, n), log_snr_pairs(schedule, n)):
        assert len(pairs) == n
        assert pairs[0][0] == T and pairs[-1][1] == 0
        assert all(s == next_t for (_, s), (next_t, _) in pairwise(pairs))
        assert all(t > s and type(t) is int and type(s) is int for t, s in pairs)


@pytest.mark.parametrize("num_steps", [0, -1, 1001, 10.0, True])
def test_a_number_of_steps_that_does_not_fit_is_refused(num_steps):
    """num_steps is an integer in 1..T."""
    schedule = Schedule.linear(1000)
    for pairs in (
        lambda: timestep_pairs(1000, num_steps),
        lambda: quadratic_pairs(1000, num_steps),
        lambda: log_snr_pairs(schedule, num_steps),
    ):
        with pytest.raises(ValueError, match="num_steps must"):
            pairs()


@pytest.mark.parametrize("T", [0, -1, 1_000_001, 10.0])
def test_a_T_that_no_schedule_has_is_refused(T):
    """T is an integer in 1..1,000,000, the limit included, as for a Schedule."""
    for pairs in (timestep_pairs, quadratic_pairs):
        assert pairs(1_000_000, 1) == [(1_000_000, 0)]
        with pytest.raises(ValueError, match="T must"):
            pairs(T, 1)


# ------------------------------------------------------------------------------------------------------------ even in t


@given(st.integers(1, 3000), st.data())
def test_pairs_lead_from_T_to_0_evenly(T, data):
    """num_steps pairs, the first t is T, the last s is 0, each s is the next t, strides differ by one at most."""
    num_steps = data.draw(st.integers(1, T))
    pairs = timestep_pairs(T, num_steps)
    assert len(pairs) == num_steps
    assert pairs[0][0] == T and pairs[-1][1] == 0
    assert all(s == next_t for (_, s), (next_t, _) in pairwise(pairs))
    strides = [t - s for t, s in pairs]
    assert min(strides) >= 1 and max(strides) - min(strides) <= 1
    assert all(type(t) is int and type(s) is int for t, s in pairs)


@given(st.integers(1, 3000), st.data())
def test_each_time_is_the_last_that_is_not_past_its_even_place(T, data):
    """t_i <= i T/n < t_i + 1: no time lies beyond its even place, or a step before it (Song et al. 2021, D.2)."""
    n = data.draw(st.integers(1, T))
    for i, (t, _) in enumerate(reversed(timestep_pairs(T, n)), start=1):
        assert t * n <= i * T < (t + 1) * n


@given(st.integers(1, 3000), st.data())
def test_more_steps_keep_the_times_of_fewer(T, data):
    """n steps stop at each time at which n/k steps stop: the chains are nested, and all lie within the full one."""
    few = data.draw(st.integers(1, T))
    many = few * data.draw(st.integers(1, T // few))
    assert {t for t, _ in timestep_pairs(T, few)} <= {t for t, _ in timestep_pairs(T, many)}


@given(st.integers(1, 3000))
def test_as_many_steps_as_times_is_the_full_chain(T):
    """timestep_pairs(T, T) is (T, T-1), ..., (1, 0), and one step is (T, 0)."""
    assert timestep_pairs(T, T) == [(t, t - 1) for t in range(T, 0, -1)]
    assert timestep_pairs(T, 1) == [(T, 0)]


# ------------------------------------------------------------------------------------------------------ even in sqrt(t)


@given(st.integers(1, 3000), st.data())
def test_quadratic_times_are_the_squares_below_T(T, data):
    """t_i n^2 <= i^2 T < (t_i + 1) n^2 wherever i^2 T/n^2 reaches i, and t_i = i below (Song et al. 2021, D.2)."""
    n = data.draw(st.integers(1, T))
    for i, (t, _) in enumerate(reversed(quadratic_pairs(T, n)), start=1):
        if i * i * T >= i * n * n:
            assert t * n * n <= i * i * T < (t + 1) * n * n
        else:
            assert t == i


def test_quadratic_steps_shrink_towards_the_data():
    """From T down each step is shorter than the one before: 19, 17, ..., 1 hundredths of T in ten steps."""
    assert [t - s for t, s in quadratic_pairs(1000, 10)] == [10 * k for k in range(19, 0, -2)]


# ------------------------------------------------------------------------------------------------------ even in log SNR


@pytest.mark.parametrize("kind", [Schedule.linear, Schedule.cosine, Schedule.sigmoid, Schedule.quadratic])
@pytest.mark.parametrize("n", [3, 10, 40])
def test_each_time_is_the_nearest_to_its_even_place_in_log_snr(kind, n):
    """log_snr(t_i), i = 1..n, lies on the line from log_snr(T) to log_snr(1), to half a step of the schedule; a time
    that has no room there stands beside the one before it, or as many before T as there are times to come."""
    schedule = kind(1000)
    log_snr = schedule.log_snr
    times = [0, *(t for t, _ in reversed(log_snr_pairs(schedule, n)))]
    place = np.linspace(log_snr[1], log_snr[1000], n)
    assert times[1] == 1
    free = 0
    for i in range(1, n + 1):
        t = times[i]
        gaps = abs(np.diff(log_snr[max(1, t - 1) : t + 2]))
        if abs(log_snr[t] - place[i - 1]) <= gaps.max() / 2:
            free += 1
        else:
            assert (t == times[i - 1] + 1 and log_snr[t] < place[i - 1]) or (
                t == 1000 - n + i and log_snr[t] > place[i - 1]
            )
    assert free >= 0.6 * n  # the schedule's own steps are longer than the even ones only at its ends


def test_gaps_in_log_snr_are_equal_where_times_lie_close(linear_fine):
    """On a schedule of 200,000 steps all gaps but those of the first ten times are equal to 10%: log SNR falls by about
    1/t from t to t + 1 there, and a time is off its place by half of that at most."""
    pairs = log_snr_pairs(linear_fine, 12)[:-1]
    even = (linear_fine.log_snr[1] - linear_fine.log_snr[-1]) / 11
    gaps = [linear_fine.log_snr[s] - linear_fine.log_snr[t] for t, s in pairs if s >= 10]
    assert len(gaps) >= 8
    np.testing.assert_allclose(gaps, even, rtol=0.1)


def test_two_steps_in_log_snr_are_T_to_1_and_1_to_0():
    """The ends are T and 1, and the step to the data is left over; one step is T to 0."""
    schedule = Schedule.linear(1000)
    assert log_snr_pairs(schedule, 2) == [(1000, 1), (1, 0)]
    assert log_snr_pairs(schedule, 1) == [(1000, 0)]


@pytest.fixture(scope="module")
def linear_fine():
    return Schedule.linear(200_000)


def test_joined_passes_a_chain_on_as_it_is():
    """Any part of a chain, from anywhere, pair by pair as it is asked for."""
    pairs = timestep_pairs(100, 7)
    for part in (pairs, pairs[2:], pairs[:3], []):
        assert list(joined(part)) == part
    walk = joined(iter([(5, 3), (2, 0)]))
    assert next(walk) == (5, 3)
    with pytest.raises(ValueError, match=r"0 <= s < t, got \(2, 0\) after a step to 3"):
        next(walk)
