"""Guidance by a weaker self, and with limits: an interval of times, and the contrast of the conditional estimate."""

import math
from functools import partial

import numpy as np
import pytest
from chains import assert_same, normal
from draws import NOT_LIKE
from exact import gaussian_eps_fn
from hypothesis import given
from hypothesis import strategies as st

from tinydiff.backend import asarray, default_rng, to_numpy, xp
from tinydiff.diffusion import classifier_free, guided, rescaled, unconditional, within, x_0_from_eps

pytestmark = pytest.mark.sampler


class Model:
    """eps_hat row i = x_t[i] (1 + label_i / 3) + t / 100, of 10 classes."""

    num_classes = 10

    def __call__(self, x_t, t, labels):
        label = xp.asarray(np.broadcast_to(np.asarray(labels), len(x_t)).astype(to_numpy(x_t).dtype))
        return x_t * (1 + label / 3).reshape((-1,) + (1,) * (x_t.ndim - 1)) + t / 100


# -------------------------------------------------------------------------------------------------------- a weaker self

times, weights = st.integers(1, 1000), st.floats(-3, 10)


@given(weights, times, st.integers(0, 99))
def test_a_network_guided_by_itself_is_itself(w, t, seed):
    """eps + w (eps - eps), to the last bit, in float32 too and where w is a NumPy float64."""
    for dtype in ("float64", "float32"):
        x_t, eps_fn = normal(seed, 2, 3, dtype=dtype), lambda x, t: x * 0.7 + t / 100
        eps_hat = guided(eps_fn, eps_fn, np.float64(w))(x_t, t)
        assert_same(eps_hat, eps_fn(x_t, t))
        assert eps_hat.dtype == dtype


@pytest.mark.parametrize("number", [int, float, np.float32, np.float64])
def test_w_1_is_the_network_and_w_0_the_weak_one(number):
    """The very function: the other network is not called, so it costs nothing."""
    eps_fn, weak_fn = (lambda x, t: x), (lambda x, t: -x)
    assert guided(eps_fn, weak_fn, number(1)) is eps_fn
    assert guided(eps_fn, weak_fn, number(0)) is weak_fn


@given(weights, times, st.integers(0, 99))
def test_each_network_is_called_once_with_x_t_and_t(w, t, seed):
    """eps_weak + w (eps - eps_weak) of the two answers, in this order of the arguments."""
    x_t, calls, answers = normal(seed, 2, 3), [], (normal(seed + 100, 2, 3), normal(seed + 200, 2, 3))
    fns = [lambda *given, i=i: (calls.append((i, *given)), answers[i])[1] for i in (0, 1)]
    eps_hat = guided(*fns, w)(x_t, t)
    eps, weak = map(to_numpy, answers)
    np.testing.assert_allclose(to_numpy(eps_hat), weak + w * (eps - weak), rtol=0, atol=1e-13)
    if w not in (0, 1):
        assert len(calls) == 2 and {i for i, *_ in calls} == {0, 1}
        assert all(x is x_t and at == t for _, x, at in calls)


@given(st.lists(st.integers(0, 10), min_size=1, max_size=4), weights, times)
def test_classifier_free_guidance_is_guidance_by_the_network_without_a_label(labels, w, t):
    """The sisters: the weaker estimate is that of the same network without the label; one call less, nothing else."""
    model, x_t = Model(), normal(0, len(labels), 3)
    conditional = classifier_free(model, labels, 1)
    eps_hat, sister = guided(conditional, unconditional(model), w)(x_t, t), classifier_free(model, labels, w)(x_t, t)
    np.testing.assert_allclose(to_numpy(eps_hat), to_numpy(sister), rtol=0, atol=1e-12)  # numbers up to 10 times 30


def gaussian(rng, schedule, D):
    """(eps_fn, mean, covariance) of a random Gaussian."""
    root, mean = rng.normal(size=(D, D)), rng.normal(size=D)
    return gaussian_eps_fn(schedule, mean, cov := root @ root.T + 0.1 * np.eye(D)), mean, cov


def noise_of(x, a, parts):
    """eps of the density that has the product of p_t(x)^weight: its precision and its shift are weighted sums.

    parts: (weight, mean, covariance) of the Gaussians p_0; a is alpha_bar_t.
    """
    D = x.shape[1]
    precisions = [weight * np.linalg.inv(a * cov + (1 - a) * np.eye(D)) for weight, _, cov in parts]
    shift = sum(P @ mean for P, (_, mean, _) in zip(precisions, parts))
    return (1 - a) ** 0.5 * (x @ sum(precisions) - a**0.5 * shift)


@given(st.integers(1, 3), weights, times, st.integers(0, 999))
def test_of_two_gaussians_it_is_the_gaussian_of_their_weighted_precisions(linear, D, w, t, seed):
    """Precision w/S + (1 - w)/S_weak: the score of p_t(x)^w p_weak,t(x)^(1 - w), in closed form.

    So with w > 1 a weaker network, whose Gaussian is too wide, makes the guided one narrower than either.
    """
    rng, a = default_rng(seed), float(linear.alpha_bar[t])
    (eps_fn, *own), (weak_fn, *weak) = (gaussian(rng, linear, D) for _ in range(2))
    x = rng.normal(size=(4, D))
    eps_hat = to_numpy(guided(eps_fn, weak_fn, w)(asarray(x), t))
    np.testing.assert_allclose(eps_hat, noise_of(x, a, [(w, *own), (1 - w, *weak)]), rtol=1e-9, atol=1e-9)


@given(weights, weights, times, st.integers(0, 999))
def test_it_combines_with_classifier_free_guidance_in_closed_form(linear, w, scale, t, seed):
    """Powers w scale of p(x | c), w (1 - scale) of p(x), 1 - w of the weak p(x | c): they add up to 1."""
    rng, a = default_rng(seed), float(linear.alpha_bar[t])
    (c_fn, *c), (u_fn, *u), (weak_fn, *weak) = (gaussian(rng, linear, 2) for _ in range(3))

    def model(x_t, t, labels):
        given = xp.asarray(np.broadcast_to(np.asarray(labels) == 0, len(x_t)))[:, None]
        return xp.where(given, c_fn(x_t, t), u_fn(x_t, t))

    model.num_classes = 1
    x = rng.normal(size=(4, 2))
    eps_hat = to_numpy(guided(classifier_free(model, 0, scale), weak_fn, w)(asarray(x), t))
    expected = noise_of(x, a, [(w * scale, *c), (w * (1 - scale), *u), (1 - w, *weak)])
    np.testing.assert_allclose(eps_hat, expected, rtol=1e-9, atol=1e-8)  # powers up to 100 of precisions up to 10


@pytest.mark.parametrize("spoil", NOT_LIKE.values(), ids=NOT_LIKE)
def test_what_is_no_eps_hat_of_x_t_is_refused(spoil):
    """Neither estimate is broadcast to the other one's shape."""
    x_t, own = normal(0, 2, 3), (lambda x, t: x)
    with pytest.raises(ValueError, match=r"^eps_fn\(x_t, t\) must be"):
        guided(lambda x, t: spoil(x), own, 2.0)(x_t, 5)
    with pytest.raises(ValueError, match=r"^weak_fn\(x_t, t\) must be"):
        guided(own, lambda x, t: spoil(x), 2.0)(x_t, 5)


@pytest.mark.parametrize("w", [math.nan, math.inf])
def test_a_weight_that_is_no_number_is_refused(w):
    """w is finite."""
    with pytest.raises(ValueError, match="w must be finite, got"):
        guided(None, None, w)


# --------------------------------------------------------------------------------------------------------------- limits


@given(st.integers(0, 1000), st.integers(0, 1000))
def test_an_interval_holds_its_upper_end_and_not_its_lower(a, b):
    """(t_low, t_high]: empty is all outside, (0, T] all inside, and two that meet share no time."""
    (low, high), x_t = sorted((a, b)), normal(0, 2, 3)
    inside, outside = (lambda x, t: x + t), (lambda x, t: x - t)
    for t in {low, low + 1, high, high + 1}:  # at its ends and beside them
        expected = inside if t in range(low + 1, high + 1) else outside
        assert_same(within(low, high, inside, outside)(x_t, t), expected(x_t, t))
        assert_same(within(low, low, inside, outside)(x_t, t), outside(x_t, t))
        if 1 <= t <= 1000:
            assert_same(within(0, 1000, inside, outside)(x_t, t), inside(x_t, t))


@pytest.mark.parametrize("low, high", [(5, 4), (-1, 4)])
def test_an_interval_that_is_none_is_refused(low, high):
    """0 <= t_low <= t_high."""
    with pytest.raises(ValueError, match=f"got t_low = {low} and t_high = {high}"):
        within(low, high, None, None)


def std_of_x_0_hat(schedule, x_t, t, eps):
    return to_numpy(x_0_from_eps(schedule, x_t, t, eps)).reshape(len(x_t), -1).std(1)


@given(st.floats(0, 1), st.integers(1, 1000), st.integers(0, 999))
def test_the_contrast_after_rescaling_lies_phi_of_the_way(linear, phi, t, seed):
    """std(x_0_hat') = phi std(x_0_c) + (1 - phi) std(x_0_hat) image by image; and x_0_hat' is a multiple of x_0_hat."""
    x_t, eps_hat, eps_c = (normal(seed + k, 3, 4, 4, 1) for k in (0, 1000, 2000))
    after = rescaled(linear, phi, x_t, t, eps_hat, eps_c)
    before, wanted = (std_of_x_0_hat(linear, x_t, t, eps) for eps in (eps_hat, eps_c))
    stds = std_of_x_0_hat(linear, x_t, t, after)
    np.testing.assert_allclose(stds, phi * wanted + (1 - phi) * before, rtol=1e-9)  # float64 over sqrt(alpha_bar_T)
    x_0, x_0_after = (to_numpy(x_0_from_eps(linear, x_t, t, eps)) for eps in (eps_hat, after))
    ratio = (stds / before).reshape(3, 1, 1, 1)
    np.testing.assert_allclose(x_0_after, ratio * x_0, rtol=0, atol=1e-8)  # x_0_hat is up to 500 here


@given(st.integers(1, 1000), st.integers(0, 999))
def test_rescaling_by_phi_0_changes_nothing_and_by_1_gives_the_conditionals_contrast(linear, t, seed):
    """The ends of the blend (Lin et al. 2023, eq. 15 is phi = 1), through classifier_free, in float32."""
    model, labels, x_t = Model(), [3, 4], normal(seed, 2, 5, 5, 1, dtype="float32")
    plain = classifier_free(model, labels, 4.0)(x_t, t)
    nothing = classifier_free(model, labels, 4.0, partial(rescaled, linear, 0.0))(x_t, t)
    np.testing.assert_allclose(to_numpy(nothing), to_numpy(plain), rtol=1e-5, atol=1e-4)  # there and back, of size 100
    full = classifier_free(model, labels, 4.0, partial(rescaled, linear, 1.0))(x_t, t)
    assert full.dtype == "float32"
    wanted = std_of_x_0_hat(linear, x_t, t, classifier_free(model, labels, 1)(x_t, t))
    np.testing.assert_allclose(std_of_x_0_hat(linear, x_t, t, full), wanted, rtol=1e-3)  # float32 over 6e-3


def test_rescaling_leaves_the_conditional_and_the_flat_image_as_they_are(linear):
    """At scale 1 there is nothing to correct; an image without contrast has none to scale, and stays finite."""
    x_t = normal(0, 2, 3, 3, 1)
    assert_same(
        classifier_free(Model(), 4, 1, partial(rescaled, linear, 1.0))(x_t, 5), classifier_free(Model(), 4, 1)(x_t, 5)
    )
    flat = xp.zeros_like(x_t)
    assert_same(rescaled(linear, 1.0, flat, 500, flat, x_t), flat)


@pytest.mark.parametrize("phi", [math.nan, math.inf])
def test_a_share_of_the_contrast_that_is_no_number_is_refused(phi):
    """phi is finite."""
    with pytest.raises(ValueError, match="phi must be finite, got"):
        rescaled(None, phi, xp.zeros((1, 2)), 1, None, None)


@pytest.mark.parametrize("low, high", [(math.nan, 4), (1, math.nan)])
def test_an_interval_of_no_numbers_is_refused(low, high):
    """nan lies between nothing."""
    with pytest.raises(ValueError, match="0 <= t_low <= t_high must hold"):
        within(low, high, None, None)
