"""Guidance with limits: an interval of times, and the contrast of the conditional estimate."""

import math
from functools import partial

import numpy as np
import pytest
from chains import assert_same, normal
from hypothesis import given
from hypothesis import strategies as st

from tinydiff.backend import to_numpy, xp
from tinydiff.diffusion import classifier_free, rescaled, within, x_0_from_eps

pytestmark = pytest.mark.sampler


class Model:
    """eps_hat row i = x_t[i] (1 + label_i / 3) + t / 100, of 10 classes."""

    num_classes = 10

    def __call__(self, x_t, t, labels):
        label = xp.asarray(np.broadcast_to(np.asarray(labels), len(x_t)).astype(to_numpy(x_t).dtype))
        return x_t * (1 + label / 3).reshape((-1,) + (1,) * (x_t.ndim - 1)) + t / 100


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
