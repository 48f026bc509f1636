"""Rectified flow is the same process: its paths, its velocity, and its sampler, which is DDIM."""

import warnings
from fractions import Fraction
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
from chains import any_schedule, assert_close, assert_same, normal, seeds
from draws import draw_pair
from exact import mixture_eps_fn
from hypothesis import assume, given
from hypothesis import strategies as st
from samples import WEIGHTS
from witnesses import in_float64, note

from tinydiff.backend import asarray, default_rng, to_numpy
from tinydiff.diffusion import (
    FLOW,
    Schedule,
    ScheduleWarning,
    as_eps_fn,
    ddim_step,
    eps_from_u,
    from_noise_levels,
    q_sample,
    sample,
    straight,
    timestep_pairs,
    u_from_x_0_eps,
    x_0_from_eps,
)

pytestmark = pytest.mark.process

shapes = st.sampled_from([(1,), (3,), (2, 5), (2, 3, 4, 1)])


def quiet(make, *args):
    """make(*args) without the warning that so little noise leaves a part of x_0."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ScheduleWarning)
        return make(*args)


def sums(schedule):
    """The size of x_t beside that of x: sqrt(alpha_bar_t) + sqrt(1 - alpha_bar_t), (T+1,)."""
    return schedule.alpha_bar**0.5 + schedule.one_minus_alpha_bar**0.5


def tau(schedule):
    """The place on the path, (T+1,)."""
    return schedule.one_minus_alpha_bar**0.5 / sums(schedule)


# --------------------------------------------------------------------------------------------------------- the schedule


@given(st.integers(1, 4000) | st.just(1000))
def test_on_the_straight_schedule_tau_grows_evenly(T):
    """tau_t = t/(T + 1) for t = 0..T, so that t uniform in 1..T is tau uniform between the ends, which are left out."""
    schedule = quiet(straight, T)
    assert schedule.T == T
    # 4,000 roundings in the sum of logarithms, of numbers up to 17.
    np.testing.assert_allclose(tau(schedule), np.arange(T + 1) / (T + 1), rtol=1e-11, atol=0)


@given(st.integers(1, 60))
def test_straight_is_exact(T):
    """alpha_bar_t = (T + 1 - t)^2/((T + 1 - t)^2 + t^2), and beta_t = 1 - alpha_bar_t/alpha_bar_{t-1}, as fractions."""
    schedule = quiet(straight, T)
    alpha_bar = [Fraction((T + 1 - t) ** 2, (T + 1 - t) ** 2 + t**2) for t in range(T + 1)]
    beta = [1 - b / a for a, b in pairwise(alpha_bar)]
    # The difference of neighbours that differ by a 60th of their size or more, so 60 roundings.
    np.testing.assert_allclose(schedule.beta[1:], [float(b) for b in beta], rtol=1e-14)
    np.testing.assert_allclose(schedule.alpha_bar, [float(a) for a in alpha_bar], rtol=2e-14)


def test_the_straight_schedule_ends_one_step_before_pure_noise():
    """alpha_bar_T = 1/(1 + T^2): the next tau would be 1.  From T = 10 on too little of x_0 is left to warn of."""
    assert straight().T == 1000
    for T in (10, 1000, 50_000):
        # A product of T factors, each rounded by 1e-16.
        assert straight(T).alpha_bar[-1] == pytest.approx(1 / (1 + T**2), rel=2e-16 * T)
    with pytest.warns(ScheduleWarning, match="sqrt\\(alpha_bar_T\\) = 0.110"):
        straight(9)


@pytest.mark.parametrize("T", [0, -1, 1_000_001, 10.0, True])
def test_a_T_that_no_schedule_has_is_refused(T):
    """T is an integer in 1..1,000,000."""
    with pytest.raises(ValueError, match="T must"):
        straight(T)


# ------------------------------------------------------------------------------------------------------------ the paths


@given(any_schedule, st.data(), shapes, seeds)
def test_under_each_schedule_x_t_runs_along_the_straight_path(schedule, data, shape, seed):
    """x_t over the sum of its coefficients is (1 - tau_t) x_0 + tau_t eps, and tau grows from 0 towards 1."""
    t = data.draw(st.integers(0, schedule.T))
    x_0, eps = normal(seed, 2, *shape)
    at = tau(schedule)[t]
    assert_close(q_sample(schedule, x_0, t, eps) / sums(schedule)[t], (1 - at) * x_0 + at * eps)
    assert tau(schedule)[0] == 0 and (tau(schedule) <= 1).all()
    assert (np.diff(tau(schedule)) >= -1e-15).all()


@given(any_schedule, st.data(), shapes, seeds)
def test_u_is_the_speed_along_the_path(schedule, data, shape, seed):
    """Between any two times x moves by u for each unit of tau: the path is straight, and its speed is even."""
    t, s = draw_pair(data, schedule)
    x_0, eps = normal(seed, 2, *shape)
    x, x_before = (q_sample(schedule, x_0, k, eps) / sums(schedule)[k] for k in (t, s))
    u = u_from_x_0_eps(schedule, x_0, t, eps)
    assert_close(x - x_before, (tau(schedule)[t] - tau(schedule)[s]) * u, atol=1e-14)
    assert_same(u, eps - x_0)


@given(any_schedule, st.data(), shapes, seeds)
def test_eps_and_x_0_are_the_two_ends_of_the_path(schedule, data, shape, seed):
    """Given x_t and any u: eps = x + (1 - tau) u, and eps - u is the x_0 that leads with this eps to x_t, at each t."""
    t = data.draw(st.integers(0, schedule.T))
    x_t, u = normal(seed, 2, *shape)
    eps = eps_from_u(schedule, x_t, t, u)
    assert_close(eps, x_t / sums(schedule)[t] + (1 - tau(schedule)[t]) * u, rtol=1e-14, atol=1e-14)
    assert_close(q_sample(schedule, eps - u, t, eps), x_t, rtol=1e-14, atol=1e-14)
    assert_close(u_from_x_0_eps(schedule, eps - u, t, eps), u, rtol=1e-14, atol=1e-14)


# ---------------------------------------------------------------------------------------------------------- the sampler


@given(any_schedule, st.data(), shapes, seeds)
def test_an_euler_step_of_the_flow_is_ddim_step(schedule, data, shape, seed):
    """x <- x + (tau_s - tau_t) u_hat, for any u_hat, schedule and pair; on the schedule `straight` too."""
    schedule = data.draw(st.sampled_from([schedule, straight()]))
    t, s = draw_pair(data, schedule)
    x_t, u_hat = normal(seed, 2, *shape)
    x_s, x_0_hat = ddim_step(schedule, x_t, eps_from_u(schedule, x_t, t, u_hat), t, s, None)
    euler = x_t / sums(schedule)[t] + (tau(schedule)[s] - tau(schedule)[t]) * u_hat
    # ddim_step computes x_0_hat by a division by sqrt(alpha_bar_t), and multiplies it by sqrt(alpha_bar_s).
    grown = (schedule.alpha_bar[s] / schedule.alpha_bar[t]) ** 0.5
    assert_close(x_s / sums(schedule)[s], euler, rtol=1e-14, atol=2e-15 * (1 + grown))
    lost = 1 / schedule.alpha_bar[t] ** 0.5
    assert_close(x_0_hat, x_t / sums(schedule)[t] - tau(schedule)[t] * u_hat, rtol=1e-14, atol=2e-15 * (1 + lost))


@given(st.sampled_from([Schedule.linear, Schedule.cosine, straight]), st.integers(1, 50), seeds)
def test_the_flows_sampler_is_ddim(kind, num_steps, seed):
    """Euler's loop in x and tau, written in two lines, ends where `sample` ends with ddim_step and the target FLOW."""
    schedule, pairs = kind(1000), timestep_pairs(1000, num_steps)
    eps_fn = mixture_eps_fn(schedule, WEIGHTS, np.eye(5, 3), 0.01)

    def velocity(x_t, t):  # of the exact denoiser
        eps_hat = eps_fn(x_t, t)
        return FLOW.of(schedule, x_0_from_eps(schedule, x_t, t, eps_hat), t, eps_hat)

    x_T = normal(seed, 4, 3)
    *_, (_, x_0, _) = sample(
        partial(ddim_step, schedule), as_eps_fn(FLOW, schedule, velocity), pairs, x_T, default_rng(0)
    )
    x = x_T / sums(schedule)[1000]
    for t, s in pairs:
        x = x + (tau(schedule)[s] - tau(schedule)[t]) * velocity(x * sums(schedule)[t], t)
    # Near t = T an x_0 is told from x_t to 1e-16/sqrt(alpha_bar_T), 5e-12 for cosine, and 50 steps keep or shrink it.
    assert_close(x, x_0, rtol=0, atol=1e-9)


def test_on_the_straight_schedule_one_point_is_reached_in_one_step():
    """If the data are one point, the velocity of a particle does not change on its way: any step ends at the point."""
    schedule, point, x_T = straight(), normal(3, 1, 4), normal(4, 6, 4)

    def velocity(x_t, t):
        x = x_t / sums(schedule)[t]
        return (x - point) / tau(schedule)[t]

    at = tau(schedule)
    for t, s in ((1000, 300), (300, 5), (1000, 999)):
        x = x_T / sums(schedule)[1000]
        x = x + (at[t] - at[1000]) * velocity(x * sums(schedule)[1000], 1000)
        x_t = x * sums(schedule)[t]
        x_s, x_0_hat = ddim_step(schedule, x_t, eps_from_u(schedule, x_t, t, velocity(x_t, t)), t, s, None)
        assert_close(x_0_hat, asarray(np.broadcast_to(to_numpy(point), (6, 4))), atol=1e-11)
        assert_close(velocity(x_s, s), velocity(x_t, t), rtol=1e-10, atol=1e-10)


@given(any_schedule, st.data(), st.floats(0.2, 5), seeds)
def test_diffusers_flow_matching_scheduler_takes_our_steps(schedule, data, shift, seed):
    """FlowMatchEulerDiscreteScheduler, given tau as its sigmas, passes through every x of ddim_step.  Its shift
    multiplies the noise level tau/(1 - tau).

    ddim_step divides by sqrt(alpha_bar_t) and multiplies by sqrt(alpha_bar_s): roundings of 1e-14 grow by this ratio.
    """
    module = pytest.importorskip("diffusers.schedulers.scheduling_flow_match_euler_discrete", reason="no diffusers")
    torch = pytest.importorskip("torch")
    schedule = data.draw(st.sampled_from([schedule, straight()]))
    t, _ = draw_pair(data, schedule)
    times = sorted(data.draw(st.sets(st.integers(1, t), min_size=1, max_size=8)), reverse=True)
    sigma = schedule.one_minus_alpha_bar[times] ** 0.5 / schedule.alpha_bar[times] ** 0.5
    assume((np.diff(sigma) < -1e-6 * sigma[1:]).all() and sigma[-1] > 1e-6)
    ours = quiet(from_noise_levels, shift * sigma[::-1])
    with in_float64(module):
        theirs = module.FlowMatchEulerDiscreteScheduler(shift=shift)
        theirs.set_timesteps(sigmas=list(tau(schedule)[times]))
        x_t, *velocities = normal(seed, 1 + len(times), 2, 3)
        x = torch.from_numpy(to_numpy(x_t / sums(ours)[-1]))
        grown = 1
        for k, u_hat in zip(range(len(times), 0, -1), velocities):
            x = theirs.step(torch.from_numpy(to_numpy(u_hat)), theirs.timesteps[len(times) - k], x).prev_sample
            x_t, _ = ddim_step(ours, x_t, eps_from_u(ours, x_t, k, u_hat), k, k - 1, None)
            grown = max(grown, (ours.alpha_bar[k - 1] / ours.alpha_bar[k]) ** 0.5)
            found = to_numpy(x_t / sums(ours)[k - 1])
            note("diffusers, flow matching: every x, relative to its growth", abs(found - x.numpy()).max() / grown)
            assert_close(found, x.numpy(), rtol=0, atol=1e-14 * grown)


# ------------------------------------------------------------------------------------------------------------- refusals


def test_float32_stays_and_each_row_has_its_time():
    """Coefficients are float64 until they are cast, row by row, and the result has the dtype of the arrays."""
    schedule, t = straight(), [0, 1, 500, 1000]
    x_t, u = normal(0, 2, 4, 3, dtype="float32")
    eps = eps_from_u(schedule, x_t, t, u)
    assert eps.dtype == np.float32 and u_from_x_0_eps(schedule, x_t, t, u).dtype == np.float32
    for i, row_t in enumerate(t):
        assert_same(eps[i : i + 1], eps_from_u(schedule, x_t[i : i + 1], row_t, u[i : i + 1]))
        wide = eps_from_u(schedule, x_t[i : i + 1].astype("float64"), row_t, u[i : i + 1].astype("float64"))
        assert_close(eps[i : i + 1], wide, rtol=0, atol=1e-6)


@pytest.mark.parametrize("function", [u_from_x_0_eps, eps_from_u])
def test_arrays_and_times_must_fit(function):
    """The two arrays have one shape and dtype, t lies in 0..T, and a list of times has one for each row."""
    x, y = normal(0, 2, 3, 2)
    for wrong in (y[:, :1], y.astype("float32")):
        with pytest.raises(ValueError, match="must be float64"):
            function(straight(), x, 3, wrong)
    for t in (-1, 1001, 2.0, [1, 2]):
        with pytest.raises(ValueError, match="t must"):
            function(straight(), x, t, y)
