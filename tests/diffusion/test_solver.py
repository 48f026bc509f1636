"""DPM-Solver++(2M): the paper's algorithm, DDIM at both ends, second order in between, one trajectory each."""

import math
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
from chains import any_schedule, assert_close, assert_same, normal, seeds
from draws import NOT_LIKE, draw_pair
from exact import gaussian_eps_fn, mixture_eps_fn
from hypothesis import given
from hypothesis import strategies as st

from tinydiff.backend import asarray, default_rng, to_numpy, xp
from tinydiff.diffusion import (
    Schedule,
    ddim_step,
    dpm_solver_2m,
    eps_from_x_0,
    log_snr_pairs,
    quadratic_pairs,
    sample,
    timestep_pairs,
    x_0_from_eps,
)

pytestmark = pytest.mark.sampler

shapes = st.sampled_from([(1,), (3,), (2, 5), (2, 3, 4, 1)])


def paper_2m(schedule, eps_fn, pairs, x_t):
    """Lu et al. 2022, DPM-Solver++, algorithm 2, line by line, with x_0_hat = data prediction, lambda = log(a/sigma):
    x_s = sigma_s/sigma_t x_t - a_s (exp(-h) - 1) D,   D = (1 + 1/2r) x_0_hat - 1/2r x_0_hat_before,   r = h_before/h.
    """
    a, sigma = schedule.alpha_bar**0.5, (1 - schedule.alpha_bar) ** 0.5
    before = None
    for t, s in pairs:
        x_0_hat = (x_t - sigma[t] * eps_fn(x_t, t)) / a[t]
        h = math.log(a[s] / sigma[s]) - math.log(a[t] / sigma[t])
        D = x_0_hat
        if before is not None:
            r = before[0] / h
            D = (1 + 1 / (2 * r)) * x_0_hat - 1 / (2 * r) * before[1]
        x_t = sigma[s] / sigma[t] * x_t - a[s] * math.expm1(-h) * D
        before = h, x_0_hat
    return x_t


@given(seed=seeds, stops=st.sets(st.integers(10, 900), min_size=2, max_size=9))
def test_2m_is_algorithm_2_of_the_paper(linear, seed, stops):
    """From any t to any s > 0, in steps of any sizes: the paper's own update."""
    pairs = list(pairwise(sorted(stops, reverse=True)))
    eps_fn = gaussian_eps_fn(linear, np.array([0.7, -0.2]), np.array([[0.5, 0.1], [0.1, 0.02]]))
    x = normal(seed, 3, 2)
    *_, (_, x_s, _) = sample(dpm_solver_2m(linear), eps_fn, pairs, x, default_rng(0))
    assert_close(
        x_s, paper_2m(linear, eps_fn, pairs, x), rtol=1e-9, atol=1e-9
    )  # 1 - alpha_bar loses 4 digits at t = 10


@given(any_schedule, st.data(), shapes, seeds, st.booleans())
def test_the_first_step_of_2m_is_ddims(schedule, data, shape, seed, clip):
    """Nothing to extrapolate from: bit for bit with clip; without, 2M takes eps from x_0_hat, DDIM as given."""
    t, s = draw_pair(data, schedule)
    x_t, eps_hat = normal(seed, 2, *shape)
    x_s, x_0_hat = dpm_solver_2m(schedule, clip=clip)(x_t, eps_hat, t, s, None)
    ddim_x_s, ddim_x_0_hat = ddim_step(schedule, x_t, eps_hat, t, s, None, clip=clip)
    assert_same(x_0_hat, ddim_x_0_hat)
    if clip:
        assert_same(x_s, ddim_x_s)
    else:  # eps is off by roundings of x_t, over sqrt(1 - alpha_bar_t), and is then shrunk by sqrt(1 - alpha_bar_s)
        assert_close(x_s, ddim_x_s, rtol=1e-12, atol=1e-12 * (1 + float(abs(to_numpy(x_0_hat)).max())))


@given(seed=seeds, t=st.integers(3, 1000), clip=st.booleans())
def test_the_step_of_2m_to_the_data_is_ddims(linear, seed, t, clip):
    """At s = 0 the step in log SNR is infinite: x_0 is x_0_hat itself, whatever came before."""
    x_T, first, second = normal(seed, 3, 2, 5)
    step = dpm_solver_2m(linear, clip=clip)
    x_t, _ = step(x_T, first, t, t // 2, None)
    x_0, x_0_hat = step(x_t, second, t // 2, 0, None)
    assert_same(x_0, x_0_hat)
    assert_same(x_0_hat, ddim_step(linear, x_t, second, t // 2, 0, None, clip=clip)[1])


def error_at_fixed_time(schedule, step, n, std):
    """|x_s - exact x_s| after n steps of equal size in log SNR from -3 to 3, data N(0.7, std^2).

    The exact path keeps (x_t - sqrt(alpha_bar_t) mean)/std(x_t): each quantile of q(x_t) flows into its own.
    """
    times = [int(abs(schedule.log_snr[1:] - place).argmin()) + 1 for place in np.linspace(-3, 3, n + 1)]
    x = normal(1, 5, 1)
    eps_fn = gaussian_eps_fn(schedule, np.array([0.7]), np.array([[std**2]]))
    *_, (_, x_s, _) = sample(step, eps_fn, pairwise(times), x, default_rng(0))
    a_t, a_s = schedule.alpha_bar[times[0]], schedule.alpha_bar[times[-1]]
    std_t, std_s = ((a * std**2 + 1 - a) ** 0.5 for a in (a_t, a_s))
    return float(abs(x_s - (a_s**0.5 * 0.7 + std_s / std_t * (x - a_t**0.5 * 0.7))).max())


@pytest.fixture(scope="module")
def fine():
    return Schedule.linear(200_000)


@pytest.mark.parametrize("std", [0.1, 2.0])
@pytest.mark.parametrize("fresh, order", [(lambda s: partial(ddim_step, s), 1), (dpm_solver_2m, 2)], ids=["ddim", "2m"])
def test_the_order_of_convergence(fine, fresh, order, std):
    """Half the step in log SNR, half the error for DDIM, a quarter for 2M (Lu et al. 2022, theorem in section 4).

    T = 200,000, so that a time is off its place by a thousandth of a step at most.  The next order of the error is
    1/n of it, times what the third derivative has beside the second: 5% holds from 64 steps on.
    """
    errors = [error_at_fixed_time(fine, fresh(fine), n, std) for n in (64, 128, 256)]
    for coarse, half in pairwise(errors):
        assert coarse / half == pytest.approx(2**order, rel=0.05)


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("n", [1, 2, 7, 50])
def test_2m_ends_on_the_only_point(linear, n, clip):
    """Data that are one point: x_0_hat is the point at every t, D as well, and the end is the point."""
    x_0 = asarray(np.array([[0.5, -0.25, 1.0]]))
    eps_fn = mixture_eps_fn(linear, [1.0], x_0, 0.0)
    for pairs in (timestep_pairs(1000, n), log_snr_pairs(linear, n), quadratic_pairs(1000, n)):
        seen = list(sample(dpm_solver_2m(linear, clip=clip), eps_fn, pairs, normal(3, 4, 3), default_rng(0)))
        # x_0_hat divides roundings of 1e-16 by sqrt(alpha_bar_T) = 6e-3
        for _, _, x_0_hat in seen:
            assert_close(x_0_hat, xp.broadcast_to(x_0, (4, 3)), atol=1e-12)
        assert_close(seen[-1][1], xp.broadcast_to(x_0, (4, 3)), atol=1e-12)


@given(seed=seeds, num_steps=st.integers(1, 12))
def test_2m_with_clip_ends_within_the_range(linear, seed, num_steps):
    """Every x_0_hat lies in [-1, 1], and so does the end, for an eps_hat that would lead far out of it."""
    eps_fn = lambda x_t, t: 3 * normal(t, *x_t.shape)  # noqa: E731
    pairs, x_T = timestep_pairs(1000, num_steps), normal(seed, 2, 4)
    seen = list(sample(dpm_solver_2m(linear, clip=True), eps_fn, pairs, x_T, default_rng(0)))
    assert max(float(abs(x_0_hat).max()) for _, _, x_0_hat in seen) <= 1
    _, x_t, x_0_hat = seen[-1]
    assert float(abs(x_t).max()) <= 1
    assert_same(x_t, x_0_hat)


def test_2m_extrapolates_what_was_clipped(linear):
    """With clip D leads through the two clipped x_0_hat, as the paper thresholds: 2M of the eps that go with them."""
    x_T, eps = normal(0, 2, 3), [5 * normal(1, 2, 3), 5 * normal(2, 2, 3)]
    clipped, free = dpm_solver_2m(linear, clip=True), dpm_solver_2m(linear)
    x, y = x_T, x_T
    for (t, s), e in zip([(900, 600), (600, 300)], eps):
        inside = xp.clip(x_0_from_eps(linear, y, t, e), -1, 1)
        x, x_0_hat = clipped(x, e, t, s, None)
        y, _ = free(y, eps_from_x_0(linear, y, t, inside), t, s, None)
        assert_close(x_0_hat, inside, atol=1e-10)
        assert_close(x, y, rtol=1e-10, atol=1e-10)  # x_0 -> eps -> x_0 divides by sqrt(alpha_bar_900) = 0.02


def test_2m_refuses_a_second_trajectory(linear):
    """What it remembers belongs to one walk: a t that is not the s it arrived at names both, at the start of another
    walk, after the end, and where two walks share a step."""
    x = normal(0, 1, 2)
    step = dpm_solver_2m(linear)
    step(x, x, 1000, 500, None)
    for t in (1000, 501, 499):
        with pytest.raises(ValueError, match=rf"t must be 500, .* got {t}"):
            step(x, x, t, 100, None)
    step(x, x, 500, 0, None)  # a refusal has changed nothing
    with pytest.raises(ValueError, match=r"t must be 0, .* got 1000"):
        step(x, x, 1000, 500, None)
    one, other = dpm_solver_2m(linear), dpm_solver_2m(linear)
    one(x, x, 1000, 500, None)
    other(x, x, 800, 100, None)  # each has its own memory


@pytest.mark.parametrize("t, s", [(500, 500), (500, 600), (0, 0), (1001, 5), (500, -1)])
def test_2m_refuses_times_out_of_order(linear, t, s):
    """0 <= s < t <= T, as for every step."""
    x = normal(0, 1, 2)
    with pytest.raises(ValueError, match="must"):
        dpm_solver_2m(linear)(x, x, t, s, None)


def test_2m_keeps_the_dtype(linear):
    """float32 in, float32 out: no coefficient of float64 leaks into the arrays."""
    eps_fn = lambda x_t, t: x_t  # noqa: E731
    for _, x_t, x_0_hat in sample(
        dpm_solver_2m(linear), eps_fn, timestep_pairs(1000, 5), normal(0, 2, 3, dtype="float32"), default_rng(0)
    ):
        assert x_t.dtype == x_0_hat.dtype == "float32"


@pytest.mark.parametrize("spoil", NOT_LIKE.values(), ids=NOT_LIKE)
def test_2m_refuses_what_is_no_eps_hat(linear, spoil):
    """An array like x_t, else ValueError; the step remembers nothing of it."""
    x, step = normal(0, 2, 3), dpm_solver_2m(linear)
    with pytest.raises(ValueError, match="eps_hat must be"):
        step(x, spoil(x), 500, 300, None)
    step(x, x, 700, 300, None)
