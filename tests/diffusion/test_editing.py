"""Edits: known pixels are kept to the bit, and with the exact denoiser of Gaussian data each edit has a closed form."""

from functools import partial
from itertools import pairwise

import numpy as np
import pytest
from chains import assert_same, normal, seeds
from draws import NOT_LIKE
from exact import gaussian_eps_fn, mixture_eps_fn
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from samples import PLACES, WEIGHTS, chi_square_p_value, nearest

from tinydiff.autograd import Tensor
from tinydiff.backend import asarray, backend_name, default_rng, standard_normal, to_numpy, xp
from tinydiff.diffusion import (
    Schedule,
    classifier_free,
    ddim_invert,
    ddim_step,
    ddpm_step,
    inpaint,
    known_probs,
    pairs_below,
    q_sample,
    sample,
    sdedit,
    slerp,
    timestep_pairs,
    with_drawn_labels,
)

pytestmark = pytest.mark.sampler

shapes = st.sampled_from([(1,), (5,), (4, 3), (4, 3, 2)])
VAR = 0.3
FEWER = settings(max_examples=max(1, settings().max_examples // 3))  # for long chains
LARGE = partial(ddpm_step, variance=Schedule.beta_t_given_s)


def assert_close(a, b, tolerance=1e-10):
    np.testing.assert_allclose(to_numpy(a), to_numpy(b), rtol=tolerance, atol=tolerance)


def last(states):
    *_, (t, x_t, _) = states
    return t, x_t


def fake_eps_fn(x_t, t):
    """Any function of x_t and t."""
    return 0.5 * x_t + 0.001 * t


class UnitNoise:
    """Noise in place of a generator's that moves row 1 + i by one unit along the i-th number drawn, and row 0 never.

    A linear sampler then returns its whole matrix, a column a row: the output for any noise, not a draw of it.
    """

    def __init__(self):
        self.drawn = 0

    def spawn(self, n):
        return n * [self]

    def standard_normal(self, shape, dtype):
        _, D = shape
        units = np.zeros(shape, dtype)
        units[1 + self.drawn + np.arange(D), np.arange(D)] = 1
        self.drawn += D
        return units


def law_of(walk, D, num_draws):
    """Mean (D,) and covariance (D, D) of what walk(rows, rng) returns, rows of D numbers made of num_draws draws."""
    rows, rng = 1 + D * num_draws, UnitNoise()
    out = to_numpy(walk(rows, rng))
    assert rng.drawn == D * num_draws  # every draw has its rows
    return out[0], (out[1:] - out[0]).T @ (out[1:] - out[0])


# ------------------------------------------------------------------------------------------------------------- inpaint


@pytest.mark.parametrize("step", [ddpm_step, ddim_step, partial(ddpm_step, clip=True)])
@given(data=st.data(), shape=shapes, seed=seeds, num_steps=st.integers(1, 6), resample=st.integers(1, 3))
def test_known_pixels_end_as_they_were(step, data, shape, seed, num_steps, resample):
    """For any mask that broadcasts, the known part of the result is x_0's bit for bit, and the rest is not."""
    schedule, x_0 = Schedule.linear(30), normal(seed, 2, *shape, dtype="float32")
    mask_shape = (data.draw(st.sampled_from([1, 2])), *(data.draw(st.sampled_from([1, n])) for n in shape))
    mask_shape = mask_shape[data.draw(st.integers(0, len(shape))) :]
    known = default_rng("mask", seed).random(mask_shape) < 0.5
    pairs, x_T = timestep_pairs(30, num_steps), normal(seed + 100, 2, *shape, dtype="float32")
    walk = inpaint(
        schedule,
        partial(step, schedule),
        fake_eps_fn,
        pairs,
        x_T,
        x_0,
        asarray(known),
        default_rng(1),
        resample=resample,
    )
    t, out = last(walk)
    everywhere = np.broadcast_to(known, (2, *shape))
    assert t == 0 and out.dtype == "float32"
    assert_same(to_numpy(out)[everywhere], to_numpy(x_0)[everywhere])
    assert (to_numpy(out)[~everywhere] != to_numpy(x_0)[~everywhere]).all()


@pytest.mark.parametrize("step", [ddpm_step, ddim_step])
@given(seed=seeds, num_steps=st.integers(1, 30))
def test_with_nothing_known_it_is_plain_sampling(step, seed, num_steps):
    """An empty mask and resample = 1 give every state of sample(), bit for bit, from the same generator."""
    schedule, x_T = Schedule.linear(30), normal(seed, 2, 3, 1, dtype="float32")
    rest = (partial(step, schedule), fake_eps_fn, timestep_pairs(30, num_steps), x_T)
    edited = inpaint(schedule, *rest, 0 * x_T, asarray(np.array(False)), default_rng(seed))
    for mine, plain in zip(edited, sample(*rest, default_rng(seed)), strict=True):
        assert mine[0] == plain[0]
        assert_same(mine[1], plain[1])
        assert_same(mine[2], plain[2])


@given(seed=seeds, resample=st.integers(1, 4), num_steps=st.integers(1, 8))
def test_each_step_but_the_last_is_taken_resample_times(seed, resample, num_steps):
    """One state a pair, and resample (num_steps - 1) + 1 evaluations, each at its pair's t (algorithm 1)."""
    schedule, x, times = Schedule.linear(30), normal(seed, 2, 3), []

    def eps_fn(x_t, t):
        times.append(t)
        return x_t

    pairs = timestep_pairs(30, num_steps)
    known = asarray(np.array([True, False, False]))
    walk = inpaint(
        schedule, partial(ddpm_step, schedule), eps_fn, pairs, x, x, known, default_rng(0), resample=resample
    )
    assert [t for t, _, _ in walk] == [s for _, s in pairs]
    assert times == [t for t, s in pairs for _ in range(resample if s > 0 else 1)]


def test_on_the_way_known_pixels_have_the_law_of_q():
    """After each step the known part of x_s is N(sqrt(alpha_bar_s) x_0, 1 - alpha_bar_s), whatever is beside it."""
    schedule, D = Schedule.linear(100), 3
    x_0, known = np.array([0.7, -0.4, 0.2]), np.array([True, True, False])
    eps_fn = gaussian_eps_fn(schedule, np.zeros(D), np.eye(D) + 0.5)
    pairs, resample = timestep_pairs(100, 5)[:3], 2

    def walk(rows, rng):
        x_T, target = asarray(rng.standard_normal((rows, D), "float64")), asarray(np.tile(x_0, (rows, 1)))
        step = partial(ddpm_step, schedule)
        return last(inpaint(schedule, step, eps_fn, pairs, x_T, target, asarray(known), rng, resample=resample))[1]

    # x_T, then for each pair: the step's own noise and the known pixels' twice, one jump
    mean, cov = law_of(walk, D, 1 + 3 * 5)
    alpha_bar = schedule.alpha_bar[pairs[-1][1]]
    assert_close(mean[:2], alpha_bar**0.5 * x_0[:2])
    assert_close(cov[:2, :2], (1 - alpha_bar) * np.eye(2))


def inpainting_errors(num_steps, resample):
    """Errors of the unknown part's mean (largest) and covariance (largest) against Gaussian conditioning, no draws."""
    schedule, D, k = Schedule.linear(), 3, 1
    mean, cov = np.array([0.3, -0.2, 0.1]), np.array([[0.5, 0.4, 0.2], [0.4, 0.5, 0.3], [0.2, 0.3, 0.5]])
    x_0 = np.array([1.3, 0.0, 0.0])
    gain = cov[k:, :k] / cov[0, 0]
    true_mean, true_cov = mean[k:] + gain @ (x_0 - mean)[:k], cov[k:, k:] - gain @ cov[:k, k:]
    pairs, known = timestep_pairs(1000, num_steps), asarray(np.arange(D) < k)

    def walk(rows, rng):
        x_T, target = asarray(rng.standard_normal((rows, D), "float64")), asarray(np.tile(x_0, (rows, 1)))
        eps_fn, step = gaussian_eps_fn(schedule, mean, cov), partial(LARGE, schedule)
        return last(inpaint(schedule, step, eps_fn, pairs, x_T, target, known, rng, resample=resample))[1]

    # x_T; for each of the evaluations two, but no step noise at s = 0; and the jumps between
    draws = 1 + 2 * (resample * (num_steps - 1) + 1) - 1 + (resample - 1) * (num_steps - 1)
    out_mean, out_cov = law_of(walk, D, draws)
    return abs(out_mean[k:] - true_mean).max(), abs(out_cov[k:, k:] - true_cov).max()


def test_resampling_leads_to_the_conditional_distribution():
    """On correlated Gaussian data the mean and covariance approach those of the unknown pixels given the known.

    Exact numbers, no draws.  With the variance of eq. 6 that is exact for broad data (Schedule.beta_t_given_s); under
    beta_tilde the spread of each repeated step is too small, and stays so.
    """
    errors = [inpainting_errors(40, resample) for resample in (1, 3, 10)]
    for kind in zip(*errors):
        assert kind[0] > 1.5 * kind[1] > 1.5**2 * kind[2]
    # What is left comes from the noise that known pixels have at the lowest t: shorter strides, less of it.
    assert all(fine < 0.7 * coarse for coarse, fine in zip(inpainting_errors(10, 30), inpainting_errors(40, 30)))


@pytest.mark.parametrize(
    "known", [np.ones((2, 3)), np.ones(3, int), np.ones((3, 3), bool), np.ones((1, 1, 2, 3), bool)]
)
def test_a_mask_that_is_none_is_refused(linear, known):
    """Numbers, which may be anything between 0 and 1, and shapes that are not x_0's raise ValueError naming known."""
    x = normal(0, 2, 3)
    with pytest.raises(ValueError, match=r"known must be boolean and broadcast to \(2, 3\), got"):
        next(inpaint(linear, partial(ddim_step, linear), fake_eps_fn, [(9, 0)], x, x, asarray(known), default_rng(0)))


@pytest.mark.parametrize("resample", [0, -1, 1.5])
def test_a_number_of_resamplings_that_is_none_is_refused(linear, resample):
    """resample is an integer, at least 1; x_0 must be like x_T."""
    x, known = normal(0, 2, 3), asarray(np.array(True))
    rest = (linear, partial(ddim_step, linear), fake_eps_fn, [(9, 0)], x)
    with pytest.raises(ValueError, match="resample must"):
        next(inpaint(*rest, x, known, default_rng(0), resample=resample))
    with pytest.raises(ValueError, match=r"x_0 must be float64 \(2, 3\) like x_T"):
        next(inpaint(*rest, x[:1], known, default_rng(0)))


# -------------------------------------------------------------------------------------------------------------- sdedit


@given(T=st.integers(1, 500), data=st.data())
def test_a_cut_chain_begins_at_t_start_and_stays_a_chain(T, data):
    """pairs_below ends at 0, has no gap, keeps every s below t_start, and is the whole chain at T and empty at 0."""
    pairs = timestep_pairs(T, data.draw(st.integers(1, T)))
    t_start = data.draw(st.integers(1, T))
    cut = pairs_below(pairs, t_start)
    assert cut[0][0] == t_start and cut[-1][1] == 0
    assert all(t > s for t, s in cut) and all(s == t for (_, s), (t, _) in pairwise(cut))
    assert [s for _, s in cut] == [s for _, s in pairs if s < t_start]
    assert pairs_below(pairs, T) == pairs and pairs_below(pairs, 0) == []


@given(seed=seeds, t_start=st.integers(0, 30), num_steps=st.integers(1, 30))
def test_sdedit_is_noise_then_plain_sampling(seed, t_start, num_steps):
    """First q_sample(x_0, t_start), then the states of sample() below it; at t_start = 0 it is x_0, bit for bit."""
    schedule, x_0 = Schedule.linear(30), normal(seed, 2, 3, 1, dtype="float32")
    pairs, step = timestep_pairs(30, num_steps), partial(ddpm_step, schedule)
    states = list(sdedit(schedule, step, fake_eps_fn, pairs, x_0, t_start, default_rng(seed)))
    rng = default_rng(seed)
    x = q_sample(schedule, x_0, t_start, standard_normal(rng, x_0.shape))
    expected = [(t_start, x, x_0), *sample(step, fake_eps_fn, pairs_below(pairs, t_start), x, rng)]
    assert [t for t, _, _ in states] == [t for t, _, _ in expected] and states[-1][0] == 0
    for mine, other in zip(states, expected):
        assert_same(mine[1], other[1])
        assert_same(mine[2], other[2])
    if t_start == 0:
        assert_same(states[-1][1], x_0)


@given(t_start=st.integers(1, 1000), num_steps=st.integers(1, 40), seed=seeds)
def test_sdedit_remembers_x_0_as_the_noise_left_it(linear, t_start, num_steps, seed):
    """On Gaussian data the mean result is E[x_0 | x_t] averaged over the noise, at any stride: no draws.

        mean + alpha_bar_t cov S_t^-1 (x_0 - mean),   S_t = alpha_bar_t cov + (1 - alpha_bar_t) I,   t = t_start

    It is near x_0 for small t_start; at T the slope is alpha_bar_T cov, 4e-5 here: x_0 is forgotten.
    """
    rng = default_rng(seed)
    mean, root, x_0 = rng.uniform(-1, 1, 2), rng.normal(size=(2, 2)), rng.normal(size=2)
    cov, a = root @ root.T, linear.alpha_bar[t_start]
    pairs, eps_fn = timestep_pairs(1000, num_steps), gaussian_eps_fn(linear, mean, cov)

    class NoNoise:
        def standard_normal(self, shape, dtype):
            return np.zeros(shape, dtype)

    walk = sdedit(linear, partial(ddpm_step, linear), eps_fn, pairs, asarray(x_0[None]), t_start, NoNoise())
    S_t = a * cov + (1 - a) * np.eye(2)
    expected = mean + a * cov @ np.linalg.solve(S_t, x_0 - mean)
    assert_close(last(walk)[1][0], expected, 1e-9)  # x_0_hat divides by sqrt(alpha_bar_T) = 6e-3 at most


# ----------------------------------------------------------------------------------------------------------- inversion


def round_trip(schedule, eps_fn, num_steps, x_0, **options):
    """x_T of the inversion, and what ddim_step makes of it."""
    pairs = timestep_pairs(schedule.T, num_steps)
    t, x_T = last(ddim_invert(schedule, eps_fn, pairs, x_0, **options))
    assert t == schedule.T
    return x_T, last(sample(partial(ddim_step, schedule), eps_fn, pairs, x_T, default_rng(0)))[1]


@FEWER
@given(seed=seeds)
def test_the_round_trips_error_halves_as_steps_double(linear, seed):
    """Inversion is of first order: with the exact denoiser of Gaussian data x_0 comes back but for O(1/num_steps)."""
    rng = default_rng(seed)
    root = rng.uniform(0.4, 1, (3, 1)) * np.linalg.qr(rng.normal(size=(3, 3)))[0]  # every std in 0.4..1
    eps_fn, x_0 = gaussian_eps_fn(linear, rng.uniform(-1, 1, 3), root.T @ root), normal(seed, 50, 3)
    errors = [
        float(((round_trip(linear, eps_fn, n, x_0, iterations=1)[1] - x_0) ** 2).mean()) ** 0.5 for n in (125, 250, 500)
    ]
    for coarse, fine in pairwise(errors):  # 2 in the limit
        assert 1.6 < coarse / fine < 2.4
    assert errors[-1] < 0.03


@FEWER
@given(seed=seeds, num_steps=st.integers(20, 40))
def test_iterations_make_the_inversion_exact(linear, seed, num_steps):
    """Each brings x_t nearer to the point that the step down takes to x_s; after many only rounding is left."""
    eps_fn, x_0 = gaussian_eps_fn(linear, np.array([0.3, -0.2]), np.array([[0.5, 0.3], [0.3, 0.6]])), normal(seed, 9, 2)
    errors = [
        float(abs(round_trip(linear, eps_fn, num_steps, x_0, iterations=k)[1] - x_0).max()) for k in (1, 2, 4, 30)
    ]
    assert errors[0] > 2 * errors[1] > 4 * errors[2]
    assert errors[3] < 1e-9


@given(seed=seeds, num_steps=st.integers(1, 50), iterations=st.integers(1, 3))
def test_a_point_mass_comes_back_exactly(linear, seed, num_steps, iterations):
    """Where the data are one point every x_T leads to it, and its own does; on the way x_0_hat is that point."""
    x_0 = normal(seed, 2, 3)
    eps_fn = lambda x_t, t: (x_t - linear.alpha_bar[t] ** 0.5 * x_0) / linear.one_minus_alpha_bar[t] ** 0.5  # noqa: E731
    pairs = timestep_pairs(1000, num_steps)
    for _, _, x_0_hat in ddim_invert(linear, eps_fn, pairs[-1:], x_0, iterations=iterations):
        assert_same(x_0_hat, x_0)  # from s = 0, where x_s is the data
    _, back = round_trip(linear, eps_fn, num_steps, x_0, iterations=iterations)
    assert_close(back, x_0, 1e-10)  # roundings divided by sqrt(alpha_bar_T) = 6e-3


@given(seed=seeds)
def test_inversion_maps_gaussian_data_to_noise(linear, seed):
    """x_T is (x_0 - mean)/std, as the flow of Gaussian data has it, to the first order of the steps."""
    x_0 = normal(seed, 4, 3)
    eps_fn = gaussian_eps_fn(linear, np.full(3, 0.2), 0.25 * np.eye(3))
    x_T, _ = round_trip(linear, eps_fn, 200, x_0, iterations=1)
    size = float(abs(x_0 - 0.2).max()) / 0.5
    # First order: at 200 steps the slope is off by 0.3% and the mean by 0.007, at 100 by twice that; and x_T keeps
    # sqrt(alpha_bar_T) = 6e-3 of the mean.
    assert float(abs(x_T - (x_0 - 0.2) / 0.5).max()) < 0.006 * size + 0.012


def test_eps_is_asked_for_at_trained_times_only(linear):
    """The time of each evaluation is the upper end of its pair: never 0, always a Python int; once an iteration."""
    times = []

    def eps_fn(x_t, t):
        times.append(t)
        return 0 * x_t

    states = list(ddim_invert(linear, eps_fn, timestep_pairs(1000, 4), normal(0, 2, 3), iterations=2))
    assert times == [250, 250, 500, 500, 750, 750, 1000, 1000] and all(type(t) is int for t in times)
    assert [t for t, _, _ in states] == [250, 500, 750, 1000]


@pytest.mark.parametrize("iterations", [0, 1.0])
def test_no_iteration_is_refused(linear, iterations):
    """iterations is an integer, at least 1."""
    with pytest.raises(ValueError, match="iterations must"):
        next(ddim_invert(linear, fake_eps_fn, [(9, 0)], normal(0, 2, 3), iterations=iterations))


# --------------------------------------------------------------------------------------------------------------- slerp


def angle(x, y):
    """Angle between the rows of x and y, accurate at every size (Kahan)."""
    x, y = (to_numpy(z).reshape(len(z), -1).astype("float64") for z in (x, y))
    x, y = (z / np.linalg.norm(z, axis=1, keepdims=True) for z in (x, y))
    return 2 * np.arctan2(np.linalg.norm(x - y, axis=1), np.linalg.norm(x + y, axis=1))


@given(seed=seeds, shape=shapes, u=st.floats(0, 1), dtype=st.sampled_from(["float32", "float64"]))
def test_slerp_turns_evenly_and_keeps_the_norm(seed, shape, u, dtype):
    """Between rows of one norm: that norm, the share u of the angle from x, the rest to y; and the ends to the bit."""
    assume(shape != (1,))  # two numbers are parallel or opposite
    x, y = normal(seed, 2, 3, *shape, dtype=dtype)
    norm = lambda z: (z * z).sum(tuple(range(1, z.ndim)), keepdims=True) ** 0.5  # noqa: E731
    y = y * (norm(x) / norm(y))
    assert_same(slerp(x, y, 0), x)
    assert_same(slerp(x, y, 1), y)
    z, whole = slerp(x, y, u), angle(x, y)
    assert z.dtype == dtype and z.shape == x.shape
    # a rounding of theta is divided by sin(theta), 3e-3 or more on these seeds
    tolerance = {"float32": 1e-3, "float64": 1e-10}[dtype]
    assert_close(norm(z), norm(x), tolerance)
    assert_close(angle(x, z), u * whole, tolerance)
    assert_close(angle(z, y), (1 - u) * whole, tolerance)


@given(seed=seeds, u=st.floats(0, 1), small=st.sampled_from([0.0, 1e-30, 1e-12, 1e-6]))
def test_slerp_of_nearly_parallel_rows_is_the_line(seed, u, small):
    """Where the angle is tiny, or 0, or a row is 0, nothing is divided by it: x + u (y - x)."""
    x, other = normal(seed, 2, 2, 5)
    y = (x + small * other) * asarray(np.array([[1.0], [3.0]]))
    assert_close(slerp(x, y, u), (1 - u) * x + u * y, 1e-11)  # off by the angle squared
    assert_close(slerp(0 * x, y, u), u * y, 1e-15)


def test_slerp_of_opposite_rows_is_refused():
    """No one arc leads from x to -x; one such row among others is enough, and shapes must agree."""
    x, y = normal(0, 2, 3, 4)
    with pytest.raises(ValueError, match="x and y must not be opposite"):
        slerp(x, asarray(np.where(np.arange(3)[:, None] == 1, -2 * to_numpy(x), to_numpy(y))), 0.5)
    with pytest.raises(ValueError, match=r"y must be float64 \(3, 4\) like x"):
        slerp(x, y[:1], 0.5)


# Labels that are drawn at every step.


class Components:
    """The exact denoiser of N(PLACES[k], var I) for label k, and p(k | x_t) where k has the weight WEIGHTS[k]."""

    num_classes = 5

    def __init__(self, schedule, var):
        self.schedule, self.var = schedule, var

    def __call__(self, x_t, t, labels):
        a, labels = float(self.schedule.alpha_bar[t]), np.broadcast_to(labels, len(x_t))
        return (1 - a) ** 0.5 / (a * self.var + 1 - a) * (x_t - asarray(a**0.5 * PLACES[labels]))

    def class_probs(self, x_t, t):
        a, x = float(self.schedule.alpha_bar[t]), to_numpy(x_t)
        log_p = np.log(WEIGHTS) - ((x[:, None] - a**0.5 * PLACES) ** 2).sum(2) / (2 * (a * self.var + 1 - a))
        p = np.exp(log_p - log_p.max(1, keepdims=True))
        return p / p.sum(1, keepdims=True)


class Even:
    """In place of a generator: as many evenly spread numbers in 0..1 as are asked for."""

    def random(self, shape):
        return ((np.arange(np.prod(shape)) + 0.5) / np.prod(shape)).reshape(shape)


@given(st.integers(1, 1000), st.integers(0, 999))
def test_over_all_drawn_labels_the_mean_is_the_unconditional_eps(linear, t, seed):
    """sum_k p(k | x_t) eps(x_t, k) = eps(x_t): each label is drawn as often as it is likely, to one row in 1,000."""
    model, x_t = Components(linear, VAR), xp.repeat(normal(seed, 1, 2), 1000, 0)
    eps_hat = to_numpy(with_drawn_labels(model.class_probs, partial(classifier_free, model, scale=1), Even())(x_t, t))
    expected = to_numpy(mixture_eps_fn(linear, WEIGHTS, PLACES, VAR)(x_t[:1], t))[0]
    # a label's count is off by less than one row; where two labels' eps differ, by the distance of the extremes at most
    assert (abs(eps_hat.mean(0) - expected) <= 5 * (eps_hat.max(0) - eps_hat.min(0)) / 1000 + 1e-12).all()


def test_sampling_with_drawn_labels_recovers_the_weights_of_a_mixture(linear):
    """No label is given, and each component is drawn as often as its weight says; p as in test_samplers.py."""
    model, rng = Components(linear, 0.01), default_rng(0)
    eps_fn = with_drawn_labels(model.class_probs, partial(classifier_free, model, scale=1), default_rng(1))
    x_T = standard_normal(rng, (3000, 2), "float64")
    *_, (_, x_0, _) = sample(partial(ddpm_step, linear), eps_fn, timestep_pairs(1000, 200), x_T, rng)
    counts = nearest(x_0, PLACES)
    assert chi_square_p_value(counts, 3000 * WEIGHTS) > 1e-4
    assert chi_square_p_value(counts, np.full(5, 600)) < 1e-9  # it has eyes


@given(st.integers(1, 1000), st.integers(0, 999))
def test_what_is_known_of_x_0_judges_labels_by_bayes_rule(linear, t, seed):
    """p(y | x_0's first number, x_t) of independent Gaussians: the first number of x_t then says nothing more."""
    model, x_0, x_t = Components(linear, VAR), normal(seed, 3, 2), normal(seed + 1, 3, 2)
    found = known_probs(linear, model, model.class_probs, x_0, np.array([True, False]), VAR)(x_t, t)
    a, x, known = float(linear.alpha_bar[t]), to_numpy(x_t)[:, 1], to_numpy(x_0)[:, 0]
    of_known = (known[:, None] - PLACES[:, 0]) ** 2 / (2 * VAR)
    of_other = (x[:, None] - a**0.5 * PLACES[:, 1]) ** 2 / (2 * (a * VAR + 1 - a))
    expected = WEIGHTS * np.exp(-of_known - of_other)
    np.testing.assert_allclose(found, expected / expected.sum(1, keepdims=True), rtol=0, atol=1e-10)


def test_where_nothing_is_known_labels_stay_as_likely_as_they_were(linear):
    """The classifier's answer, and one that has underflowed to 0 stays finite."""
    model, x_t = Components(linear, VAR), normal(0, 3, 2)
    probs = model.class_probs(x_t, 500)
    found = known_probs(linear, model, lambda x, t: probs, xp.zeros((3, 2)), np.array([False, False]), VAR)(x_t, 500)
    np.testing.assert_allclose(found, probs, rtol=1e-12)
    certain = np.eye(5)[[0, 0, 4]]
    found = known_probs(linear, model, lambda x, t: certain, xp.zeros((3, 2)), np.array([True, True]), VAR)(x_t, 500)
    np.testing.assert_allclose(found, certain, atol=1e-12)


@pytest.mark.parametrize("u", [0.0, 0.5, 1 - 2**-53])
def test_a_label_without_probability_is_never_drawn(linear, u):
    """Nor one past the last, whatever the number drawn; each row has its own."""
    model, x_t = Components(linear, VAR), normal(0, 3, 2)
    probs = np.eye(5, dtype="float32")[[0, 2, 4]]

    class Fixed:
        def random(self, shape):
            return np.full(shape, u)

    eps_hat = with_drawn_labels(lambda x, t: probs, partial(classifier_free, model, scale=1), Fixed())(x_t, 7)
    assert_same(eps_hat, classifier_free(model, [0, 2, 4], 1)(x_t, 7))


# What is handed over.


def every_edit(schedule, eps_fn, pairs, t_start):
    """Each edit that walks a chain, to be started."""
    x, known, step, rng = normal(0, 2, 3), asarray(np.ones(3, bool)), partial(ddim_step, schedule), default_rng(0)
    return [
        lambda: inpaint(schedule, step, eps_fn, pairs, x, x, known, rng),
        lambda: ddim_invert(schedule, eps_fn, pairs, x),
        lambda: sdedit(schedule, step, eps_fn, pairs, x, t_start, rng),
    ]


@pytest.mark.parametrize("pairs", [[(9, 5), (4, 0)], [(9, 5), (5, 5)], [(5, 9)], [(9, 0), (9, 0)]])
def test_edits_refuse_pairs_that_do_not_join(linear, pairs):
    """As sample does: every edit walks a chain of steps."""
    for edit in every_edit(linear, fake_eps_fn, pairs, 9):
        with pytest.raises(ValueError, match="down that join"):
            list(edit())


def test_an_edit_does_not_start_above_its_chain(linear):
    """sdedit noises to t_start: a chain that begins below it would take x_t for one of less noise."""
    x, step = normal(0, 2, 3), partial(ddim_step, linear)
    with pytest.raises(ValueError, match="t_start must lie within the chain of pairs, got 800"):
        list(sdedit(linear, step, fake_eps_fn, timestep_pairs(500, 5), x, 800, default_rng(0)))
    assert pairs_below(timestep_pairs(500, 5), 500)[0][0] == 500


@pytest.mark.parametrize("spoil", NOT_LIKE.values(), ids=NOT_LIKE)
def test_edits_refuse_what_is_no_eps_hat(linear, spoil):
    """An array like x_t, else ValueError."""
    for edit in every_edit(linear, lambda x_t, t: spoil(x_t), timestep_pairs(1000, 3), 900):
        with pytest.raises(ValueError, match="must be"):
            list(edit())


class OfThree:
    """A model of three classes."""

    num_classes = 3

    def __call__(self, x_t, t, label):
        return x_t


NOT_PROBABILITIES = {
    "logarithms": np.log(np.full((2, 3), 1 / 3)),
    "logits": np.full((2, 3), 5.0),
    "nan": np.full((2, 3), np.nan),
    "zeros": np.zeros((2, 3)),
    "one row": np.full((1, 3), 1 / 3),
    "one vector": np.full(3, 1 / 3),
    "a list": [[0.5, 0.5], [0.5, 0.5]],
    "a Tensor": Tensor(np.full((2, 3), 1 / 3)) if backend_name() == "numpy" else None,
    "nothing": None,
}


@pytest.mark.parametrize("p", NOT_PROBABILITIES.values(), ids=NOT_PROBABILITIES)
def test_what_are_no_probabilities_of_the_classes_are_refused(linear, p):
    """class_probs returns (N, num_classes), rows >= 0 of sum 1, on the host: log-probabilities would draw label 0."""
    x, known = normal(0, 2, 3), asarray(np.ones(3, bool))
    with pytest.raises(ValueError, match=r"class_probs\(x_t, t\) must return"):
        with_drawn_labels(lambda x_t, t: p, lambda labels: fake_eps_fn, default_rng(0))(x, 5)
    with pytest.raises(ValueError, match=r"class_probs\(x_t, t\) must return"):
        known_probs(linear, OfThree(), lambda x_t, t: p, x, known, 1.0)(x, 5)


def test_probabilities_must_be_of_the_models_classes(linear):
    """known_probs asks the model for each of its classes: a classifier of others is refused."""
    x, known = normal(0, 2, 3), asarray(np.ones(3, bool))
    with pytest.raises(ValueError, match=r"must return \(2, num_classes\), got \(2, 99\)"):
        known_probs(linear, OfThree(), lambda x_t, t: np.full((2, 99), 1 / 99), x, known, 1.0)(x, 5)


@pytest.mark.parametrize("pixel_var", [0.0, -1.0, float("nan"), float("inf")])
def test_a_variance_of_pixels_is_a_positive_number(linear, pixel_var):
    """ValueError before anything is computed, and for a mask that is none."""
    x = normal(0, 2, 3)
    with pytest.raises(ValueError, match="pixel_var must be finite and above 0"):
        known_probs(linear, None, None, x, asarray(np.ones(3, bool)), pixel_var)
    with pytest.raises(ValueError, match="known must be boolean and broadcast to"):
        known_probs(linear, None, None, x, asarray(np.ones(3)), 1.0)


@pytest.mark.parametrize("u", [-0.1, 1.1, float("nan"), float("inf")])
def test_a_share_of_the_arc_lies_between_its_ends(u):
    """0 <= u <= 1, else ValueError."""
    with pytest.raises(ValueError, match=r"u must lie in 0\.\.1, got"):
        slerp(normal(0, 2, 3), normal(1, 2, 3), u)
