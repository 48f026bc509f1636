"""A variance for each pixel: its two ends, the best one, and what the bound and the samples are with it.

With independent Gaussian pixels everything is known exactly: the best variance is that of q(x_s | x_t), the bound is
then the entropy plus KL(q(x_T) || N(0, I)) for every number of steps, and samples have the mean and variance of the
data.  Means over noise are exact too, as in test_likelihood.py: a quadratic has its mean at -1 and 1.
"""

import math
import warnings
from functools import partial

import numpy as np
import pytest
from chains import any_schedule, assert_close, assert_same, normal, seeds
from draws import NOT_LIKE, draw_pair
from exact import gaussian_eps_fn
from hypothesis import given
from hypothesis import strategies as st
from samples import push_gaussian

from tinydiff.backend import asarray, to_numpy, xp
from tinydiff.diffusion import (
    Schedule,
    ScheduleWarning,
    VarianceTable,
    bound_term,
    cells,
    clipped_beta_tilde,
    ddpm_step,
    decoder_log_probs,
    discretized_log_prob,
    error_variance,
    gaussian_log_density,
    interpolated,
    prior_kl,
    q_sample,
    remembered,
    snr_levels,
    squared_errors,
    timestep_pairs,
)
from tinydiff.diffusion.variance import CELLS, DECODERS, GREYS, LEVELS, PRIOR, RANGES

pytestmark = pytest.mark.likelihood

MEANS, VARIANCES = np.array([0.7, -0.2, 0.0, 0.4]), np.array([0.01, 0.3, 1.0, 2.5])  # of four independent pixels
FORMS = ["error", "v"]


@st.composite
def schedules(draw, least=1):
    """1 to 30 steps with beta in 1e-4..0.5: no x_0_hat loses more than 6 of 16 digits."""
    T, rng = draw(st.integers(least, 30)), np.random.default_rng(draw(seeds))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ScheduleWarning)
        return Schedule(10 ** rng.uniform(-4, -0.3, T))


# ------------------------------------------------------------------------------------------------------------ the forms


@given(schedules(2), st.data(), seeds, st.sampled_from(["float32", "float64"]))
def test_v_leads_from_beta_tilde_to_beta_along_their_logs(schedule, data, seed, dtype):
    """v = 0 is beta_tilde and v = 1 beta, at any s < t, and log var is affine in v (Nichol & Dhariwal 2021, eq. 15)."""
    t, s = draw_pair(data, schedule, lowest_s=1)
    v = normal(seed, 3, 2, dtype=dtype)
    low, high = schedule.beta_tilde(t, s), schedule.beta_t_given_s(t, s)
    tolerance = {"rtol": 1e-5 if dtype == "float32" else 1e-12, "atol": 0}  # exp(x) has the roundings of x, up to 30
    assert_close(interpolated(schedule, 0 * v, t, s), np.full((3, 2), low), **tolerance)
    assert_close(interpolated(schedule, 0 * v + 1, t, s), np.full((3, 2), high), **tolerance)
    var = interpolated(schedule, v, t, s)
    assert var.dtype == dtype
    v = to_numpy(v).astype("float64")
    assert_close(var, np.exp(v * np.log(high) + (1 - v) * np.log(low)), **tolerance)


@given(schedules(2), st.data())
def test_every_row_has_its_own_ends(schedule, data):
    """Rows of other times are the rows of each time alone; so they are for both forms."""
    pairs = [draw_pair(data, schedule) for _ in range(3)]
    t, s = np.array(pairs).T
    v = normal(0, 3, 2, 2, 1)
    for form, x in ((interpolated, v), (error_variance, v**2)):
        together = form(schedule, x, t, s)
        for row, pair in enumerate(pairs):
            assert_close(together[row], form(schedule, x[row : row + 1], *pair)[0])


@pytest.mark.filterwarnings("ignore::tinydiff.diffusion.ScheduleWarning")
def test_a_step_without_noise_has_next_to_no_variance():
    """A beta of 3e-17 is lost beside 1: both ends are 0, whose logarithm is none; the result is finite all the same."""
    v = asarray(np.array([[0.0, 0.5, 1.0, 3.0]]))
    for dtype in ("float32", "float64"):
        var = to_numpy(interpolated(Schedule([0.5, 3e-17]), v.astype(dtype), 2, 1))
        assert ((var >= 0) & (var < 1e-30)).all()


@given(schedules(2))
def test_beta_tilde_is_that_of_the_step_before_where_it_would_be_0(schedule):
    """At s = 0 of an even chain of stride t; at t = 1 it is beta_tilde_2, as in the code of both papers.

    Elsewhere it is beta_tilde; where no step comes before, it is beta_{T|0}.  A chain that ends before 2t has a shorter
    step there.
    """
    t = np.arange(1, schedule.T)
    before = np.minimum(2 * t, schedule.T)
    assert_same(clipped_beta_tilde(schedule, t, 0), schedule.beta_tilde(before, t))
    assert clipped_beta_tilde(schedule, 1, 0) == schedule.beta_tilde(2, 1) > 0
    assert clipped_beta_tilde(schedule, schedule.T, 0) == schedule.beta_t_given_s(schedule.T, 0)
    for s in (t, t - 1):
        some = s > 0
        assert_same(clipped_beta_tilde(schedule, t + 1, s)[some], schedule.beta_tilde(t + 1, s)[some])
    assert_same(clipped_beta_tilde(schedule, [1, 2], [0, 1]), schedule.beta_tilde([2, 2], [1, 1]))


@given(any_schedule, st.data(), seeds)
def test_the_best_variance_is_beta_tilde_if_x_0_is_known_and_beta_if_nothing_is(schedule, data, seed):
    """Error 0: beta_tilde, bit for bit.  Error 1 - alpha_bar_t, the variance of x_0 ~ N(0, I) given x_t: beta.

    At s = 0 the variance is the error itself, that of the decoder.
    """
    t, s = draw_pair(data, schedule)
    error = normal(seed, 3, 2) ** 2
    assert_same(error_variance(schedule, 0 * error, t, s), np.full((3, 2), schedule.beta_tilde(t, s)))
    of_noise = error_variance(schedule, 0 * error + schedule.one_minus_alpha_bar[t], t, s)
    assert_close(of_noise, np.full((3, 2), schedule.beta_t_given_s(t, s)), rtol=1e-9, atol=0)
    assert_close(error_variance(schedule, error, t, 0), error, atol=0)


@given(schedules(2), st.data(), seeds)
def test_with_the_mean_squared_error_a_term_is_half_the_log_of_its_variance(schedule, data, seed):
    """With var = beta_tilde + c^2 mean((x_0 - x_0_hat)^2) the mean of L_{t-1} is log(var/beta_tilde)/2.

    The mean is over the draws of x_0, and x_0_hat is any.  With any multiple of var it is larger by
    (1/factor - 1 + log factor)/2.
    """
    t, s = draw_pair(data, schedule, lowest_s=1)
    x_t = np.repeat(to_numpy(normal(seed, 1, 4)), 50, 0)
    x_0, eps_hat = to_numpy(normal(seed + 1, 50, 4)), np.repeat(to_numpy(normal(seed + 2, 1, 4)), 50, 0)
    signal, noise = schedule.alpha_bar[t] ** 0.5, schedule.one_minus_alpha_bar[t] ** 0.5
    error = ((x_0 - (x_t - noise * eps_hat) / signal) ** 2).mean(0) * np.ones((50, 1))
    var = to_numpy(error_variance(schedule, asarray(error), t, s))
    least = np.log(var[0] / schedule.beta_tilde(t, s)).mean() / 2
    for factor in (1.0, 0.8, 1.3):
        terms = bound_term(
            schedule, *map(asarray, (x_0, x_t, eps_hat)), t, s, variance=lambda *_, k=factor: asarray(k * var)
        )
        expected = least + (1 / factor - 1 + math.log(factor)) / 2
        assert float(terms.mean()) == pytest.approx(expected, rel=1e-6, abs=1e-9)


# ------------------------------------------------------------------------------------------ independent Gaussian pixels


def exact(schedule, form):
    """(eps_fn, variance) of the data N(MEANS, diag(VARIANCES)); form: by Var(x_0 | x_t), or by v of that variance."""
    exact_eps, a = gaussian_eps_fn(schedule, MEANS, np.diag(VARIANCES)), schedule.alpha_bar

    def error(t):
        share = a[t][..., None]
        return VARIANCES * (1 - share) / (share * VARIANCES + 1 - share)

    def predict(x_t, t):
        return exact_eps(x_t, t), asarray(np.broadcast_to(error(t), x_t.shape))

    def by_v(schedule, known, t, s):
        var = to_numpy(error_variance(schedule, known, t, s))
        low, high = (np.log(ends(schedule, t, s))[..., None] for ends in (clipped_beta_tilde, Schedule.beta_t_given_s))
        span = np.where(high > low, high - low, 1)  # at s = 0 of a chain of one step, v has no effect
        by_v = to_numpy(interpolated(schedule, asarray((np.log(var) - low) / span), t, s))
        return asarray(np.where(high > low, by_v, var))

    return remembered(predict, error_variance if form == "error" else by_v)


@given(schedules(), st.data(), st.sampled_from(FORMS))
def test_the_bound_is_the_entropy_plus_what_is_left_at_T_for_every_number_of_steps(schedule, data, form):
    """With beta_tilde + c^2 Var(x_0 | x_t), pixel by pixel, every reverse step is q(x_s | x_t): nothing else is lost,
    and no number of steps is too small."""
    num_steps = data.draw(st.integers(1, schedule.T))
    eps_fn, variance = exact(schedule, form)
    x_0 = asarray(MEANS + VARIANCES**0.5 * np.array([[-1.0], [-1.0], [1.0], [1.0]]))
    eps = asarray(np.array([[-1.0], [1.0], [-1.0], [1.0]]) * np.ones((1, 4)))
    term = partial(bound_term, schedule, variance=variance, decoder=gaussian_log_density, decoder_variance=variance)
    bound = float(prior_kl(schedule, x_0).mean())
    for t, s in timestep_pairs(schedule.T, num_steps):
        x_t = q_sample(schedule, x_0, t, eps)
        bound += float(term(x_0, x_t, eps_fn(x_t, t), t, s).mean())
    a = schedule.alpha_bar[-1]
    S = a * VARIANCES + 1 - a
    left = ((a * MEANS**2 + S - 1 - np.log(S)) / 2).mean()
    entropy = 0.5 * np.log(2 * math.pi * math.e * VARIANCES).mean()
    assert bound == pytest.approx(entropy + left, rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("num_steps", [1, 2, 5, 50])
def test_samples_have_the_mean_and_variances_of_the_data_after_any_number_of_steps(linear, num_steps, form):
    """From x_T ~ q(x_T), with the decoder's noise at the end: exactly the data, where beta_tilde and beta are off."""
    eps_fn, variance = exact(linear, form)
    *pairs, (t, _) = timestep_pairs(linear.T, num_steps)
    a = linear.alpha_bar[-1]
    start = a**0.5 * MEANS, np.diag(a * VARIANCES + 1 - a)

    def drawn(variance):
        mean, cov = push_gaussian(partial(ddpm_step, linear, variance=variance), eps_fn, pairs, *start)
        return push_gaussian(partial(ddpm_step, linear), eps_fn, [(t, 0)], mean, cov)

    mean, cov = drawn(variance)
    assert_close(mean, MEANS, atol=1e-9)
    decoder = to_numpy(variance(linear, t, 0))[0]
    assert_close(cov + np.diag(decoder), np.diag(VARIANCES), rtol=1e-8, atol=1e-9)
    if 1 < num_steps < 50:
        for fixed in (Schedule.beta_tilde, Schedule.beta_t_given_s):
            assert abs(drawn(fixed)[1].diagonal() + decoder - VARIANCES).max() > 0.01


# ------------------------------------------------------------------------------- a variance for each row and each pixel


@given(schedules(2), st.data(), st.sampled_from(["float32", "float64"]), st.booleans())
def test_one_variance_for_all_pixels_of_a_row_is_the_variance_of_the_row(schedule, data, dtype, each_row):
    """ddpm_step and bound_term return the same bits for the numbers of the rows and for arrays that repeat them; a row
    that goes to s = 0 gets no noise."""
    pairs = [draw_pair(data, schedule, lowest_s=1) for _ in range(2)]
    t, s = np.array(pairs).T if each_row else pairs[0]
    x_0, x_t, eps_hat, noise = (normal(seed, 2, 3, 2, 1, dtype=dtype) for seed in range(4))
    rows = schedule.beta_t_given_s(t, s) * np.array([0.5, 2.0])
    pixels = asarray(np.repeat(rows, 6).reshape(2, 3, 2, 1))
    step = partial(ddpm_step, schedule, x_t, eps_hat, t, s, noise)
    assert_same(step(variance=lambda *_: rows)[0], step(variance=lambda *_: pixels)[0])
    term = partial(bound_term, schedule, x_0, x_t, eps_hat, t)
    assert_same(term(s, variance=lambda *_: rows), term(s, variance=lambda *_: pixels))
    own = {"decoder": gaussian_log_density}
    first, second = (term(0, decoder_variance=lambda *_, var=var: var, **own) for var in (rows, pixels))
    assert_same(first, second)
    t, mixed = np.broadcast_to(t, 2), np.array([np.broadcast_to(s, 2)[0], 0])
    x_s, x_0_hat = ddpm_step(schedule, x_t, eps_hat, t, mixed, noise, variance=lambda *_: pixels)
    assert_same(x_s[1], x_0_hat[1])


def test_each_pixel_gets_noise_of_its_own_variance(linear):
    """x_s(noise) - x_s(0) is sqrt(var) noise, pixel by pixel."""
    x_t, eps_hat, noise, var = normal(0, 4, 3, 2, 2, 1)
    step = partial(ddpm_step, linear, x_t, eps_hat, 9, 4, variance=lambda *_: var**2)
    assert_close(step(noise)[0] - step(0 * noise)[0], abs(var) * noise)


@pytest.mark.parametrize("shape", [(1,), (3,), (4,), (2, 1), (1, 3, 2), (2, 3, 1), (3, 2), (2, 2, 3), (2, 3, 2, 1)])
def test_a_variance_of_another_shape_is_refused(linear, shape):
    """One number, one for each of two rows, or (2, 3, 2): nothing else is broadcast, and the sentence has the shape."""
    x = normal(0, 2, 3, 2)
    own = {"variance": lambda *_: asarray(np.ones(shape)), "decoder_variance": lambda *_: asarray(np.ones(shape))}
    for ask in (
        lambda: ddpm_step(linear, x, x, 9, 4, x, variance=own["variance"]),
        lambda: ddpm_step(linear, x, x, 1, 0, None, variance=own["variance"]),
        lambda: bound_term(linear, x, x, x, 9, 4, **own),
        lambda: bound_term(linear, x, x, x, 9, 0, decoder=gaussian_log_density, **own),
    ):
        with pytest.raises(ValueError, match=r"a variance must be \(\), \(N,\) or like x_t, got"):
            ask()


def test_L_0_by_both_conventions_is_the_decoder_at_each(linear):
    """beta_1, which is the default, and beta_tilde_2; a Gaussian around x_0_hat, here x_0 itself."""
    x_0 = asarray(np.arange(256)[:, None] / 127.5 - 1)
    x_1, eps = q_sample(linear, x_0, 1, 0 * x_0), 0 * x_0
    for options, var in (({}, linear.beta[1]), ({"decoder_variance": clipped_beta_tilde}, linear.beta_tilde(2, 1))):
        L_0 = bound_term(linear, x_0, x_1, eps, 1, 0, **options)
        assert_close(L_0, -discretized_log_prob(x_0, x_0, asarray(float(var)))[:, 0], rtol=1e-9)


# --------------------------------------------------------------------------------------------- from the network to both


def test_the_variance_is_that_of_the_last_x_t(linear):
    """remembered: eps_hat as predicted, and form(schedule, what was predicted with it, t, s)."""
    eps_fn, variance = remembered(lambda x_t, t: (2 * x_t, t * x_t), lambda *asked: asked)
    with pytest.raises(ValueError, match="eps_fn must be called before the variance"):
        variance(linear, 5, 4)
    for seed in range(2):
        x_t = normal(seed, 2, 3)
        assert_same(eps_fn(x_t, 5), 2 * x_t)
        for s in (4, 0):
            schedule, more, *times = variance(linear, 5, s)
            assert schedule is linear and times == [5, s]
            assert_same(more, 5 * x_t)


@pytest.mark.parametrize("spoil", NOT_LIKE.values(), ids=NOT_LIKE)
def test_what_is_not_like_x_t_is_no_prediction_of_a_variance(spoil):
    """Each pixel has its own number, of the dtype of x_t."""
    eps_fn, _ = remembered(lambda x_t, t: (x_t, spoil(x_t)), interpolated)
    with pytest.raises(ValueError, match=r"what predict\(x_t, t\) returns beside eps_hat must be"):
        eps_fn(normal(0, 2, 3), 5)


@pytest.mark.parametrize("form", [interpolated, error_variance])
def test_v_and_the_error_are_floating_arrays(linear, form):
    """An integer would be cut to 0 by the dtype of the result."""
    with pytest.raises(ValueError, match="must be a floating array, got int64"):
        form(linear, asarray([[1, 2]], "int64"), 5, 4)


# ------------------------------------------------------------------------------------------- a table, from pictures


def loop_cell(picture, i, j):
    """The cell of pixel (i, j) of a picture (H, W), one number at a time."""
    h, w = picture.shape
    near = [
        min(1, max(-1, picture[min(h - 1, max(0, a)), min(w - 1, max(0, b))]))
        for a in range(i - 1, i + 2)
        for b in range(j - 1, j + 2)
    ]
    x, spread = near[4], max(near) - min(near)
    half = GREYS // 2
    k = min(half - 1, int(math.log((1 - abs(x)) / 2e-4 + 1) / math.log(1 / 2e-4 + 1) * half))
    r = min(RANGES - 1, int(math.log(spread / 2e-3 + 1) / math.log(2 / 2e-3 + 1) * RANGES))
    return (k if x < 0 else GREYS - 1 - k) * RANGES + r


def pictures(seed, n=4, h=5, w=6):
    """x_0 of 8 bits, and x_0_hat near it, some of it beyond [-1, 1], some of it exactly at an end; two channels."""
    rng = np.random.default_rng(seed)
    x_0 = rng.integers(0, 256, (n, h, w, 2)) / 127.5 - 1
    x_0[:, : h // 2] = -1
    noise = rng.standard_normal(x_0.shape) * 10 ** rng.uniform(-4, -0.5, x_0.shape)
    return x_0, np.where(rng.random(x_0.shape) < 0.2, x_0, x_0 + noise)


@given(seeds)
def test_a_cell_is_a_grey_level_and_a_range_of_neighbours(seed):
    """Each pixel of each channel, by loops; an end of a range is in its first or last part, and no cell is outside."""
    _, x_0_hat = pictures(seed)
    found = to_numpy(cells(asarray(x_0_hat)))
    expected = [[[loop_cell(p[..., c], i, j) for c in range(2)] for i in range(5) for j in range(6)] for p in x_0_hat]
    assert (found.reshape(4, 30, 2) == expected).mean() > 0.99  # log1p may round across an edge
    assert found.min() >= 0 and found.max() < CELLS
    flat = asarray(np.array([-1.0, 1.0])[:, None, None, None] * np.ones((2, 3, 3, 1)))
    assert_same(cells(flat)[:, 1, 1, 0], [0, (GREYS - 1) * RANGES])


def test_levels_lie_evenly_in_log_snr(linear):
    """Row 0 is pure noise, the last one t = 1; the row rises by 1 where log SNR has risen by its 20th part."""
    levels = snr_levels(linear, np.arange(1, 1001))
    snr = linear.log_snr[1:]
    expected = np.minimum(LEVELS - 1, np.floor((snr - snr[-1]) / (snr[0] - snr[-1]) * LEVELS))
    assert levels.tolist() == expected.tolist() and (levels[0], levels[-1]) == (LEVELS - 1, 0)
    assert set(levels.tolist()) == set(range(LEVELS))


@given(seeds)
def test_the_table_is_the_mean_squared_error_of_each_cell(linear, seed):
    """By loops: sum and count of (x_0 - clip(x_0_hat))^2 by level and cell; the mean has PRIOR pixels of the level's
    mean.  Sums of slices are the sum of all.  Each pixel then gets error_variance of its cell."""
    x_0, x_0_hat = (asarray(a) for a in pictures(seed))
    t = np.array([1, 40, 300, 1000])
    errors = squared_errors(linear, x_0, x_0_hat, t)
    parts = [squared_errors(linear, x_0[i : i + 1], x_0_hat[i : i + 1], t[i : i + 1]) for i in range(4)]
    assert_close(sum(parts), errors)
    places, level = to_numpy(cells(x_0_hat)), snr_levels(linear, t)
    count, square = np.zeros((2, LEVELS, CELLS))
    host, host_hat = to_numpy(x_0), to_numpy(x_0_hat).clip(-1, 1)
    for index in np.ndindex(places.shape):
        place = level[index[0]], places[index]
        count[place] += 1
        square[place] += (host[index] - host_hat[index]) ** 2
    assert_close(errors, np.stack([count, square]))
    table = VarianceTable(errors, decoder_log_probs(x_0, x_0_hat))
    of_level = square.sum(1) / np.maximum(count.sum(1), 1)
    expected = (square + PRIOR * of_level[:, None]) / (count + PRIOR)
    s = t // 2
    s[0], t[0] = 1, 2  # a step from t to s > 0 in each row
    level = snr_levels(linear, t)
    var = to_numpy(table.variance(linear, x_0_hat, t, s))
    picked = expected[level[:, None, None, None], places]
    assert_close(var, error_variance(linear, asarray(picked), t, s), rtol=1e-9, atol=0)
    one = to_numpy(table.variance(linear, x_0_hat, 300, 299))  # one time for all rows
    assert_close(one, error_variance(linear, asarray(expected[snr_levels(linear, 300), places]), 300, 299), atol=0)


@given(seeds)
def test_the_decoder_has_the_variance_under_which_its_pixels_are_likeliest(linear, seed):
    """For each cell: of DECODERS the one with the largest sum of log p(x_0), with PRIOR pixels of the mean of all."""
    x_0, x_0_hat = (asarray(a) for a in pictures(seed))
    log_probs = decoder_log_probs(x_0, x_0_hat)
    table = VarianceTable(squared_errors(linear, x_0, x_0_hat, np.ones(4, int)), log_probs)
    places, clipped = to_numpy(cells(x_0_hat)), xp.clip(x_0_hat, -1, 1)
    by_var = np.stack([to_numpy(discretized_log_prob(x_0, clipped, asarray(var))) for var in DECODERS])
    mean = by_var.reshape(len(DECODERS), -1).mean(1)
    best = [DECODERS[(by_var[:, places == k].sum(1) + PRIOR * mean).argmax()] for k in range(CELLS)]
    assert_close(table.decoder, best, atol=0)
    assert_same(table.variance(linear, x_0_hat, 1, 0), np.array(best)[places])
    assert log_probs[0].sum() == x_0.size


def test_each_region_gets_its_own_variance(linear):
    """A black half that is known exactly and a grey half with errors of a known size.

    The variance is beta_tilde in the black half, beta_tilde + c^2 0.3^2 in the grey one.  The decoder has 0.3^2 in the
    grey half, within its grid of 10^(1/4), and far less in the black one.
    """
    rng = np.random.default_rng(0)
    x_0_hat = np.full((200, 6, 6, 1), -1.0)
    x_0_hat[:, 3:] = 0.1
    x_0 = np.where(x_0_hat < 0, x_0_hat, x_0_hat + 0.3 * rng.standard_normal(x_0_hat.shape))
    x_0 = np.rint((x_0.clip(-1, 1) + 1) * 127.5) / 127.5 - 1
    x_0, x_0_hat = asarray(x_0), asarray(x_0_hat)
    times = np.full(200, 300)
    table = VarianceTable(squared_errors(linear, x_0, x_0_hat, times), decoder_log_probs(x_0, x_0_hat))
    var = to_numpy(table.variance(linear, x_0_hat[:1], 300, 250))[0, :, 0, 0]
    known = float(linear.beta_tilde(300, 250))
    whole = to_numpy(error_variance(linear, asarray(np.array([0.3**2])), 300, 250))[0]
    assert var[0] == pytest.approx(known, rel=0.01) and var[5] == pytest.approx(whole, rel=0.05)
    decoder = to_numpy(table.variance(linear, x_0_hat[:1], 1, 0))[0, :, 0, 0]
    assert decoder[0] < decoder[5] / 20 and decoder[5] == pytest.approx(0.3**2, rel=0.4)


def test_a_table_of_one_error_is_the_per_row_variance(linear):
    """If every pixel of a level has the same error, so has the table, and a term is that of the row's variance."""
    x_0 = asarray(np.rint(np.linspace(0, 255, 200)).reshape(2, 10, 10, 1) / 127.5 - 1)
    x_0_hat = x_0 - 0.1 * xp.where(x_0 < 0, -1, 1)
    t, s = np.array([40, 300]), np.array([39, 250])
    table = VarianceTable(squared_errors(linear, x_0, x_0_hat, t), decoder_log_probs(x_0, x_0_hat))
    eps = normal(0, 2, 10, 10, 1)
    x_t = q_sample(linear, x_0_hat, t, eps)
    eps_fn, variance = remembered(lambda x, t: (eps, x_0_hat), table.variance)
    rows = to_numpy(error_variance(linear, asarray(np.full((2, 1), 0.01)), t, s))[:, 0]
    term = partial(bound_term, linear, x_0, x_t, eps_fn(x_t, t), t, s)
    assert_close(term(variance=variance), term(variance=lambda *_: rows), rtol=1e-9)
