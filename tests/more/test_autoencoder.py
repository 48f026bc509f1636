"""The autoencoder: its code's law and the bound's two terms, sizes, labels, and the gradient of the whole of it."""

import inspect
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinydiff.autograd import Tensor, no_grad
from tinydiff.backend import asarray, default_rng, to_numpy
from tinydiff.diffusion.likelihood import gaussian_kl
from tinydiff.more.autoencoder import Autoencoder, kl_to_standard_normal, negative_elbo, reparameterised

pytestmark = pytest.mark.network

SEEDS = st.integers(0, 2**32 - 1)
FEWER = settings(max_examples=max(1, settings().max_examples // 3))


def tiny(rng, dtype="float64", **options):
    """A small one of random weights, none of them 0: 16 channels below, so that winograd.py has a part in it."""
    model = Autoencoder(**{"latent_channels": 2, "channels": (8, 16), "num_groups": 4} | options, rng=rng)
    for p in model.parameters():
        scale = math.sqrt(p.size / p.shape[-1]) if p.ndim > 1 else 2  # so that maps stay near 1 whatever the widths
        p.data = asarray((p.ndim == 1) + rng.standard_normal(p.shape) / scale, dtype)
    return model


def normal(rng, *shape, dtype="float64"):
    return asarray(rng.standard_normal(shape), dtype)


def along(h, inputs, starts, directions, value):
    """value() with each input at start + h direction."""
    for x, start, d in zip(inputs, starts, directions):
        x.data = start + h * d
    with no_grad():
        return value()


# The law of the code.


@given(SEEDS, st.integers(1, 3), st.integers(1, 3))
def test_the_kl_is_the_sum_of_gaussian_kls(seed, n, c):
    """Latent by latent it is KL(N(mean, var) || N(0, 1)) of the likelihood, summed over all of an example's."""
    rng = default_rng(seed)
    mean, log_var = 3 * rng.standard_normal((2, n, 2, 3, c))
    found = kl_to_standard_normal(Tensor(asarray(mean)), Tensor(asarray(log_var)))
    each = to_numpy(gaussian_kl(asarray(mean), asarray(np.exp(log_var)), 0.0, 1.0))
    # 1e-12: a few float64 roundings of numbers up to exp(9)
    np.testing.assert_allclose(to_numpy(found), each.sum((1, 2, 3)), rtol=1e-12)


@given(st.floats(-3, 3), st.floats(-4, 2))
def test_the_kl_is_the_integral_that_defines_it(mean, log_var):
    """KL = integral of q log(q/p), q = N(mean, exp(log_var)), p = N(0, 1), by the sum over a fine grid."""
    std = math.exp(log_var / 2)
    z = mean + std * np.linspace(-12, 12, 4801)
    log_q = -0.5 * ((z - mean) / std) ** 2 - math.log(std)
    q = np.exp(log_q) / math.sqrt(2 * math.pi)
    integral = (q * (log_q + 0.5 * z**2)).sum() * (z[1] - z[0])
    found = kl_to_standard_normal(Tensor(asarray([[mean]])), Tensor(asarray([[log_var]])))
    # The sum of a smooth function over all of a line is exact beyond all digits; its terms are up to about 10.
    assert float(found.data[0]) == pytest.approx(integral, rel=1e-10, abs=1e-12)


@given(SEEDS)
def test_a_draw_has_its_gradient_law(seed):
    """z = mean + sigma eps, and for a cotangent g: d/dmean = g, d/dlog_var = g eps sigma/2."""
    rng = default_rng(seed)
    mean, log_var = (Tensor(normal(rng, 2, 3, 1, 2), requires_grad=True) for _ in range(2))
    eps, g = normal(rng, 2, 3, 1, 2), normal(rng, 2, 3, 1, 2)
    z = reparameterised(mean, log_var, eps)
    sigma = np.exp(to_numpy(log_var) / 2)
    np.testing.assert_allclose(to_numpy(z), to_numpy(mean) + sigma * to_numpy(eps), rtol=1e-14)
    z.backward(g)
    np.testing.assert_array_equal(to_numpy(mean.grad), to_numpy(g))
    np.testing.assert_allclose(to_numpy(log_var.grad), to_numpy(g) * to_numpy(eps) * sigma / 2, rtol=1e-14)


@given(st.floats(-2, 2), st.floats(-2, 2), st.integers(0, 4))
def test_its_gradient_is_unbiased(mean, log_var, degree):
    """E over eps of d f(z) is d E f(z), for f = z^degree: eps at Gauss-Hermite nodes, where the mean over eps is exact.

    E z^k is known: with s = exp(log_var), 1, m, m^2 + s, m^3 + 3 m s, m^4 + 6 m^2 s + 3 s^2.
    """
    eps, weights = np.polynomial.hermite_e.hermegauss(8)
    weights = weights / weights.sum()
    m, s = (
        Tensor(asarray(np.full(8, mean)), requires_grad=True),
        Tensor(asarray(np.full(8, log_var)), requires_grad=True),
    )
    z = reparameterised(m, s, eps)
    math.prod([z] * degree, start=z * 0 + 1).backward(asarray(weights))
    var = math.exp(log_var)
    to_mean = (0, 1, 2 * mean, 3 * mean**2 + 3 * var, 4 * mean**3 + 12 * mean * var)[degree]
    to_var = (0, 0, 1, 3 * mean, 6 * mean**2 + 6 * var)[degree]
    # 1e-11: eight float64 terms of up to some thousands each
    assert float(m.grad.sum()) == pytest.approx(to_mean, abs=1e-11 * 1e3)
    assert float(s.grad.sum()) == pytest.approx(to_var * var, abs=1e-11 * 1e3)


@given(SEEDS, st.floats(0.05, 2))
def test_the_bound_is_the_log_density_of_the_picture_and_the_kl(seed, sigma):
    """negative_elbo + D log(2 pi sigma^2)/2 = -sum log N(x; x_hat, sigma^2) + KL."""
    rng = default_rng(seed)
    x, x_hat = rng.standard_normal((2, 3, 4, 2, 1))
    mean, log_var = (Tensor(normal(rng, 3, 1, 1, 2)) for _ in range(2))
    found = to_numpy(negative_elbo(x, Tensor(asarray(x_hat)), mean, log_var, sigma)) + 4 * math.log(
        2 * math.pi * sigma**2
    )
    density = np.exp(-((x - x_hat) ** 2) / (2 * sigma**2) / 8) / (2 * math.pi * sigma**2) ** (1 / 16)  # its 8th root
    expected = -8 * np.log(density).sum((1, 2, 3)) + to_numpy(kl_to_standard_normal(mean, log_var))
    np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-11)  # float64 sums of 8 terms up to 1e4


# Sizes and labels.


@given(SEEDS, st.integers(1, 3), st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.sampled_from([None, 3]))
def test_pictures_of_any_size_come_back_in_it(seed, n, h, w, c, num_classes):
    """(N, 4h, 4w, C) -> mean and log variance (N, h, w, latent_channels) -> (N, 4h, 4w, C), float32 throughout."""
    rng = default_rng(seed)
    model = tiny(rng, "float32", in_channels=c, num_classes=num_classes)
    labels = None if num_classes is None else rng.integers(0, num_classes, n)
    eps = normal(rng, n, h, w, 2, dtype="float32")
    found = model(normal(rng, n, 4 * h, 4 * w, c, dtype="float32"), eps, labels)
    assert [(a.shape, a.dtype.name) for a in found] == [((n, 4 * h, 4 * w, c), "float32")] + 2 * [
        ((n, h, w, 2), "float32")
    ]


@pytest.mark.parametrize(
    "shape, said",
    [
        ((1, 8, 6, 1), "x: height and width must be divisible by 4, got 8 x 6"),
        ((1, 10, 8, 1), "x: height and width must be divisible by 4, got 10 x 8"),
        ((1, 8, 8, 2), r"x must have shape \(N, H, W, 1\), got \(1, 8, 8, 2\)"),
        ((8, 8, 1), r"x must have shape \(N, H, W, 1\), got \(8, 8, 1\)"),
    ],
)
def test_other_pictures_are_refused(rng, shape, said):
    """Sides that cannot be halved twice, other channels, no batch: each is named."""
    with pytest.raises(ValueError, match=said):
        tiny(rng, "float32").encode(np.zeros(shape, "float32"))


def test_other_codes_labels_and_settings_are_refused(rng):
    """A code of other channels, a label too many, too few or out of range, no levels."""
    x, plain, told = np.zeros((2, 4, 4, 1), "float32"), tiny(rng, "float32"), tiny(rng, "float32", num_classes=3)
    with pytest.raises(ValueError, match=r"z must have shape \(N, H, W, 2\), got \(2, 4, 4, 1\)"):
        plain.decode(x)
    for call in (plain.encode, lambda x, labels: plain.decode(np.zeros((2, 1, 1, 2), "float32"), labels)):
        with pytest.raises(ValueError, match="and for no other, got 1"):
            call(x, 1)
    with pytest.raises(ValueError, match="must be given for an autoencoder with num_classes"):
        told.encode(x)
    with pytest.raises(ValueError, match=r"labels must lie in 0\.\.2, got 3"):
        told.encode(x, [0, 3])
    with pytest.raises(ValueError, match=r"channels must name at least one level, got \(\)"):
        tiny(rng, channels=())


def test_a_label_changes_the_code_and_the_picture(rng):
    """Each row answers to its own label, in the encoder and in the decoder."""
    model = tiny(rng, num_classes=3)
    x, z, labels = normal(rng, 3, 8, 8, 1), normal(rng, 3, 2, 2, 2), np.array([0, 1, 2])
    for call, a in (
        (lambda a, k: model.encode(a, k)[0], x),
        (lambda a, k: model.encode(a, k)[1], x),
        (model.decode, z),
    ):
        before, after = to_numpy(call(a, labels)), to_numpy(call(a, np.array([0, 2, 2])))
        changed = abs(after - before).max((1, 2, 3))
        np.testing.assert_allclose(changed[[0, 2]], 0, atol=1e-12)  # the same sums, in float64
        assert changed[1] > 1e-3


def test_its_config_makes_it_again(rng):
    """Through JSON, as a checkpoint keeps it: the same network, bit for bit."""
    model = Autoencoder(2, 3, (8, 8, 16), 4, 5, rng=default_rng(1))
    again = Autoencoder(**json.loads(json.dumps(model.config)), rng=default_rng(1))
    assert {*model.config, "rng"} == set(inspect.signature(Autoencoder).parameters)
    first, second = model.state_dict(), again.state_dict()
    assert list(first) == list(second) and all((first[name] == second[name]).all() for name in first)
    assert again.encode(normal(rng, 1, 16, 8, 2, dtype="float32"), 4)[0].shape == (
        1,
        2,
        1,
        3,
    )  # three levels: an eighth


# Gradients.


@pytest.mark.parametrize("num_classes", [None, 3])
def test_a_gradient_reaches_every_parameter(rng, num_classes):
    """As it starts, of default size, the bound has a gradient for each parameter that is not 0."""
    model = Autoencoder(num_classes=num_classes, rng=rng)
    x, labels = normal(rng, 3, 8, 8, 1, dtype="float32"), None if num_classes is None else np.arange(3)
    negative_elbo(x, *model(x, normal(rng, 3, 2, 2, 4, dtype="float32"), labels), 0.5).backward(
        normal(rng, 3, dtype="float32")
    )
    for name, p in model.named_parameters():
        assert p.grad is not None and float(abs(p.grad).max()) > 1e-4, name


@FEWER
@given(SEEDS, st.booleans())
def test_the_gradient_is_the_derivative_along_a_random_direction(seed, labelled):
    """sum <dp, d> = d/dh <g, bound(x + h d_x; p + h d_p)> at h = 0, over the picture and all parameters together."""
    rng = default_rng(seed)
    model = tiny(rng, num_classes=3 if labelled else None)
    inputs = [*model.parameters(), Tensor(normal(rng, 2, 8, 4, 1), requires_grad=True)]
    eps, g, target = normal(rng, 2, 2, 1, 2), normal(rng, 2), normal(rng, 2, 8, 4, 1)
    labels = rng.integers(0, 3, 2) if labelled else None

    def bound():
        return negative_elbo(target, *model(inputs[-1], eps, labels), 0.7)

    bound().backward(g)
    starts = [p.data for p in inputs]
    directions = [asarray(0.1 * rng.standard_normal(p.shape)) for p in inputs]
    f = [
        along(h, inputs, starts, directions, lambda: float((g * bound().data).sum()))
        for h in (1e-3, -1e-3, 2e-3, -2e-3)
    ]
    slope = (8 * (f[0] - f[1]) - (f[2] - f[3])) / 12e-3
    parts = [float((p.grad * d).sum()) for p, d in zip(inputs, directions)]
    # The quotient is off by h^4/30 = 3e-14 times the fifth derivative (up to 1e6 here) and by 1e-15 |f| / h.
    assert abs(sum(parts) - slope) < 1e-6 * sum(map(abs, parts))


@pytest.mark.parametrize("sigma", [0.0, -1.0, float("nan"), float("inf")])
def test_a_width_of_the_decoder_is_a_positive_number(sigma):
    """sigma is finite and above 0, else ValueError: the bound divides by its square."""
    x = Tensor(asarray(np.zeros((1, 4, 4, 1))))
    with pytest.raises(ValueError, match="sigma must be finite and above 0"):
        negative_elbo(x.data, x, x, x, sigma)


@pytest.mark.parametrize("name", ["in_channels", "latent_channels", "num_groups", "num_classes"])
@pytest.mark.parametrize("value", [0, -1, 1.5, float("nan")])
def test_a_size_out_of_range_is_refused(name, value, rng):
    """Whole numbers from 1, else ValueError or TypeError."""
    with pytest.raises((ValueError, TypeError)):
        Autoencoder(**{name: value}, rng=rng)
