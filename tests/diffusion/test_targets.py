"""Four names for one estimate: whatever a network says, the samplers get one eps_hat and training one objective."""

import math
import pickle
from functools import partial

import numpy as np
import pytest
from chains import any_schedule, normal, seeds
from draws import NOT_LIKE
from hypothesis import assume, given
from hypothesis import strategies as st

from tinydiff.backend import default_rng, standard_normal, to_numpy
from tinydiff.diffusion import (
    EPS,
    FLOW,
    X_0,
    Schedule,
    V,
    as_eps_fn,
    ddim_step,
    ddpm_step,
    min_snr_weight,
    q_sample,
    sample,
    timestep_pairs,
    x_0_from_eps,
)

pytestmark = pytest.mark.process

shapes = st.lists(st.integers(1, 4), min_size=1, max_size=4).map(tuple)
gammas = st.one_of(st.floats(1e-3, 1e3), st.just(math.inf))
TARGETS = {"eps": EPS, "x_0": X_0, "v": V, "flow": FLOW}
every_target = pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS.keys())


def times(data, schedule, n, least):
    """n times at which alpha_bar and 1 - alpha_bar are both at least `least`."""
    possible = np.flatnonzero((schedule.alpha_bar >= least) & (schedule.one_minus_alpha_bar >= least))
    assume(len(possible))
    return possible[np.array(data.draw(st.lists(st.integers(0, len(possible) - 1), min_size=n, max_size=n)))]


@every_target
@given(any_schedule, st.data(), shapes, seeds)
def test_what_a_target_says_of_a_pair_is_read_back(target, schedule, data, shape, seed):
    """to_eps(x_t, of(x_0, eps)) = eps, and the x_0 that goes with it is x_0, for any x_0, eps and rows of times."""
    t = times(data, schedule, shape[0], 1e-16)
    x_0, eps = normal(seed, 2, *shape)
    x_t = q_sample(schedule, x_0, t, eps)
    eps_hat = target.to_eps(schedule, x_t, t, target.of(schedule, x_0, t, eps))
    # signal^2 + noise^2 = 1 to 1e-12, alpha_bar being a product of up to 4,000 factors and 1 - alpha_bar a sum.
    # X_0 divides what x_t's rounding has left by the noise, x_0_from_eps by the signal, each above 1e-8.
    signal, noise = schedule.alpha_bar[t] ** 0.5, schedule.one_minus_alpha_bar[t] ** 0.5
    name = next(k for k in TARGETS if TARGETS[k] is target)
    worst = {"eps": 0, "v": 1e-11, "x_0": 1e-14 / noise, "flow": 1e-14}[name]
    error = abs(to_numpy(eps_hat - eps)).reshape(len(t), -1).max(1)
    assert (error <= worst).all()
    x_0_hat = x_0_from_eps(schedule, x_t, t, eps_hat)
    assert (abs(to_numpy(x_0_hat - x_0)).reshape(len(t), -1).max(1) <= (worst * noise + 1e-14) / signal).all()


@every_target
@given(any_schedule, st.data(), gammas, st.integers(1, 5), seeds)
def test_the_weighted_loss_is_one_number_under_every_name(target, schedule, data, gamma, n, seed):
    """Any network's weighted squared error is the same in its own target as after conversion to each of the others."""
    t = times(data, schedule, n, 1e-8)
    x_0, eps, mistake = normal(seed, 3, n, 6)
    x_t = q_sample(schedule, x_0, t, eps)
    eps_hat = target.to_eps(schedule, x_t, t, target.of(schedule, x_0, t, eps) + mistake)
    x_0_hat = x_0_from_eps(schedule, x_t, t, eps_hat)
    losses = {}
    for name, other in TARGETS.items():
        error = other.of(schedule, x_0_hat, t, eps_hat) - other.of(schedule, x_0, t, eps)
        losses[name] = min_snr_weight(other, schedule, t, gamma) * to_numpy((error**2).mean(1))
    # The mistake is of size 1, the numbers that it is added to, too; it shrinks, and rounding grows, by 1e4 at most
    # where noise or signal are that small; 1e-12 as above, of the square twice as much.
    for loss in losses.values():
        np.testing.assert_allclose(loss, losses["x_0"], rtol=1e-6)


@given(any_schedule, gammas)
def test_the_weights_are_the_papers(schedule, gamma):
    """min(SNR, gamma) over SNR, 1, SNR + 1 and (sqrt(SNR) + 1)^2 for eps, x_0, v and u, at every t (Hang et al.)."""
    t = np.flatnonzero(schedule.alpha_bar > 1e-290)[1:]
    assume(len(t))
    log_snr = schedule.log_snr[t]
    low = np.minimum(log_snr, math.log(gamma))
    expected = {"eps": low - log_snr, "x_0": low, "v": low - np.logaddexp(log_snr, 0)}
    expected["flow"] = low - 2 * np.logaddexp(log_snr / 2, 0)
    for name, target in TARGETS.items():
        weight = min_snr_weight(target, schedule, t, gamma)
        assert weight.dtype == np.float64
        # Up to 4,000 roundings: of a factor of the product each, and of the sum of logs, which reaches hundreds.
        np.testing.assert_allclose(np.log(weight), expected[name], rtol=4e-13, atol=1e-11)


@given(any_schedule, gammas)
def test_every_weight_is_a_number(schedule, gamma):
    """Finite and above 0 at each t of a schedule, the most brutal too; those of eps, v and u are at most 1."""
    t = np.arange(1, schedule.T + 1)
    for target, most in ((EPS, 1 + 1e-12), (X_0, gamma * (1 + 1e-12)), (V, 1), (FLOW, 1)):
        weight = min_snr_weight(target, schedule, t, gamma)
        assert np.isfinite(weight).all() and (weight > 0).all() and (weight <= most).all()


def test_in_noise_nothing_is_held_back_and_near_the_data_x_0_counts_alike():
    """SNR << gamma: an error in eps counts once.  SNR >> gamma: one in x_0 counts gamma times, in eps hardly."""
    gone = Schedule([0.9] * 1000)  # alpha_bar_t = 10^-t leaves float64 at t = 308
    near = Schedule([1e-12, 0.999])
    np.testing.assert_allclose([min_snr_weight(EPS, gone, t, 5) for t in (2, 300, 400, 1000)], 1, rtol=1e-12)
    np.testing.assert_allclose([min_snr_weight(V, gone, t, 5) for t in (2, 300)], [1e-2, 1e-300], rtol=1e-10)
    assert min_snr_weight(X_0, near, 1, 5) == pytest.approx(5, rel=1e-12)
    assert min_snr_weight(V, near, 1, 5) == pytest.approx(5e-12, rel=1e-10)
    assert min_snr_weight(EPS, near, 1, 5) == pytest.approx(5e-12, rel=1e-10)


def test_without_a_limit_the_error_in_eps_is_what_counts(linear):
    """gamma = inf: weight 1 for eps, SNR for x_0, and for v alpha_bar, at every t."""
    t = np.arange(1, 1001)
    np.testing.assert_array_equal(min_snr_weight(EPS, linear, t, math.inf), 1)
    snr = linear.alpha_bar[t] / linear.one_minus_alpha_bar[t]
    np.testing.assert_array_equal(min_snr_weight(X_0, linear, t, math.inf), snr)
    np.testing.assert_allclose(min_snr_weight(V, linear, t, math.inf), linear.alpha_bar[t], rtol=1e-12)


@every_target
@pytest.mark.parametrize("step", [ddim_step, ddpm_step])
def test_a_sampler_cannot_tell_what_the_network_says(linear, target, step):
    """From one x_T and one noise, a network that says the same of x_t in any of these names draws the same x_0."""
    weights = normal(5, 4, 4)

    def eps_fn(x_t, t):
        return x_t @ weights / 4 + t / 1000

    def predict(x_t, t):
        eps_hat = eps_fn(x_t, t)
        return target.of(linear, x_0_from_eps(linear, x_t, t, eps_hat), t, eps_hat)

    x_T, pairs = normal(1, 2, 4), timestep_pairs(1000, 20)
    ends = []
    for f in (eps_fn, as_eps_fn(target, linear, predict)):
        *_, (_, x_0, _) = sample(partial(step, linear), f, pairs, x_T, default_rng(2))
        ends.append(to_numpy(x_0))
    # 20 steps; the first x_0_hat is eps_hat times 1/sqrt(alpha_bar_T) = 158, and with it its rounding.
    np.testing.assert_allclose(ends[0], ends[1], rtol=0, atol=1e-10 * abs(ends[0]).max())


def test_where_x_t_hides_eps_the_target_x_0_says_so(linear):
    """X_0 has no eps_hat at t = 0, nor where 1 - alpha_bar leaves the dtype; EPS and V have one at every t."""
    faint = Schedule([1e-90, 0.999])
    for schedule, t, message in ((linear, 0, "t must lie in 1"), (faint, 1, r"eps cannot be told from x_t.* at t = 1")):
        x, y = normal(0, 2, 3, dtype="float32")
        with pytest.raises(ValueError, match=message):
            X_0.to_eps(schedule, x, t, y)
        for target in (EPS, V):  # signal 1, noise 0: what they say is eps
            np.testing.assert_array_equal(to_numpy(target.to_eps(schedule, x, t, y)), to_numpy(y))
        np.testing.assert_array_equal(to_numpy(FLOW.to_eps(schedule, x, t, y)), to_numpy(x + y))  # x is x_0


def test_where_x_t_hides_x_0_the_target_eps_has_none():
    """In pure noise EPS is eps_hat still, and has no x_0_hat; the others give eps_hat = x_t, and theirs."""
    gone = Schedule([0.9] * 1000)
    x, y = normal(0, 2, 3)
    with pytest.raises(ValueError, match=r"x_0 cannot be told from x_t.* at t = 1000"):
        x_0_from_eps(gone, x, 1000, EPS.to_eps(gone, x, 1000, y))
    for target in (X_0, V, FLOW):
        np.testing.assert_array_equal(to_numpy(target.to_eps(gone, x, 1000, y)), to_numpy(x))


@every_target
def test_float32_stays_and_shapes_must_agree(linear, target):
    """float32 in, float32 out; a said of another shape or dtype is refused where it is converted."""
    x, y = normal(0, 2, 3, 2, dtype="float32")
    for result in (target.of(linear, x, [1, 5, 1000], y), target.to_eps(linear, x, [1, 5, 1000], y)):
        assert result.dtype == np.float32 and result.shape == (3, 2)
    if target is not EPS:
        with pytest.raises(ValueError, match="must be float32"):
            target.to_eps(linear, x, 3, y[:, :1])


@every_target
def test_a_target_travels_to_worker_processes(target):
    """Pickled and read again it is equal to itself, and to no other."""
    again = pickle.loads(pickle.dumps(target))
    assert [other == again for other in TARGETS.values()] == [other is target for other in TARGETS.values()]


@pytest.mark.parametrize("gamma", [0, -1.0, math.nan])
def test_a_gamma_that_weighs_nothing_is_refused(linear, gamma):
    """gamma must be above 0; nan is not."""
    with pytest.raises(ValueError, match=f"gamma must be above 0, got {gamma}"):
        min_snr_weight(EPS, linear, 3, gamma)


@pytest.mark.parametrize("t", [0, 1001, -1, 2.0])
def test_a_time_without_noise_has_no_weight(linear, t):
    """t runs 1..T where a network is trained."""
    with pytest.raises(ValueError, match="t must"):
        min_snr_weight(V, linear, t, 5.0)


@pytest.mark.parametrize("spoil", NOT_LIKE.values(), ids=NOT_LIKE)
@pytest.mark.parametrize("name", TARGETS)
def test_what_is_no_prediction_is_refused(linear, name, spoil):
    """predict returns an array like x_t, for every target."""
    eps_fn = as_eps_fn(TARGETS[name], linear, lambda x_t, t: spoil(x_t))
    with pytest.raises(ValueError, match=r"predict\(x_t, t\) must be"):
        eps_fn(standard_normal(default_rng(0), (2, 3), "float64"), 5)
