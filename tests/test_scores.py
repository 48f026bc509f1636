"""Scores that lead a sampler: each is the gradient it says, row by row, and leaves no trace in its network."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ideal import gaussian_eps_fn

from tinydiff import ops
from tinydiff.autograd import Tensor, no_grad
from tinydiff.backend import asarray, default_rng, standard_normal, to_numpy
from tinydiff.classify import build_classifier
from tinydiff.diffusion import Schedule, classifier_guided, x_0_from_eps
from tinydiff.generate import build_unet
from tinydiff.nn import Module
from tinydiff.scores import class_score, known_score

pytestmark = pytest.mark.sampler

NOISY = {"channels": [4, 8], "num_classes": 3, "num_groups": 2, "time": True}
UNET = {"base_channels": 4, "channel_mults": [1, 1], "num_groups": 2, "num_heads": 2, "num_classes": 3}
SCHEDULE = Schedule.linear(100)


def in_float64(model, seed):
    """Every parameter moved at random, so that none is 0, and in float64, for differences."""
    for p in model.parameters():
        p.data = asarray(to_numpy(p.data) + 0.3 * default_rng(seed, p.size).standard_normal(p.shape), "float64")
    return model


def classifier(seed):
    return in_float64(build_classifier(NOISY, seed), seed)


@given(st.integers(0, 99), st.integers(1, 1000), st.lists(st.integers(0, 2), min_size=1, max_size=3))
def test_the_score_is_the_gradient_of_each_rows_log_probability(seed, t, labels):
    """<score, d> = d/dh log p(label | x + h d), row by row, along a random direction; each row alone gives its own."""
    model, n = classifier(seed), len(labels)
    x, d = (standard_normal(default_rng(seed, k), (n, 6, 6, 1), "float64") for k in (1, 2))
    score = class_score(model, labels)(x, t)
    assert score.shape == x.shape and score.dtype == x.dtype

    def log_p(x):
        logits = to_numpy(model(x, t))
        return (logits - np.logaddexp.reduce(logits, 1, keepdims=True))[np.arange(n), labels]

    h = 1e-5  # differences are off by h^2 times a third derivative, and by 1e-15 / h: both near 1e-10
    slope = (log_p(x + h * d) - log_p(x - h * d)) / (2 * h)
    np.testing.assert_allclose(to_numpy((score * d).sum((1, 2, 3))), slope, rtol=1e-5, atol=1e-6)
    alone = class_score(model, labels[0])(x[:1], t)
    np.testing.assert_allclose(to_numpy(alone), to_numpy(score[:1]), rtol=1e-9, atol=1e-12)


def test_the_score_leaves_no_trace_and_needs_no_recording(rng):
    """Inside no_grad as outside; no parameter gets a gradient, and each still wants one, after an error too."""
    model = build_classifier(NOISY, 0)
    x = asarray(rng.standard_normal((2, 6, 6, 1), dtype="float32"))
    score_fn = class_score(model, [0, 1])
    outside = score_fn(x, 5)
    with no_grad():
        assert np.array_equal(to_numpy(score_fn(x, 5)), to_numpy(outside))
        assert not model(x, 5).requires_grad
    assert outside.dtype == "float32" and float(abs(outside).max()) > 0
    with pytest.raises(ValueError, match="labels must"):
        class_score(model, [0, 3])(x, 5)
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert len(model.parameters()) == len(build_classifier(NOISY, 1).parameters())


def test_no_gradient_of_a_parameter_is_even_computed(rng, monkeypatch):
    """While the score is computed no parameter requires a gradient, so no vjp of one is called."""
    model, wanted = build_classifier(NOISY, 0), []
    forward = type(model).forward
    record = lambda self, *a: wanted.extend(p.requires_grad for p in everything) or forward(self, *a)  # noqa: E731
    everything = model.parameters()
    monkeypatch.setattr(type(model), "forward", record)
    class_score(model, 1)(asarray(rng.standard_normal((2, 6, 6, 1), dtype="float32")), 5)
    assert wanted == [False] * len(everything)


def masks(seed, n):
    """Known pixels of each row, and what they hold."""
    return default_rng(seed, 7).random((n, 4, 4, 1)) < 0.5, asarray(default_rng(seed, 8).standard_normal((n, 4, 4, 1)))


@given(st.integers(0, 99), st.integers(1, 100), st.integers(1, 3))
def test_the_score_of_known_pixels_is_the_gradient_of_each_rows_log_density(seed, t, n):
    """<score, d> = d/dh log p(known | x_t + h d), with x_0_hat as diffusion/ has it; each row alone gives its own."""
    model, (known, x_0) = in_float64(build_unet(UNET, seed), seed), masks(seed, n)
    x, d = (standard_normal(default_rng(seed, k), (n, 4, 4, 1), "float64") for k in (1, 2))
    score = known_score(SCHEDULE, model, x_0, known)(x, t)
    assert score.shape == x.shape and score.dtype == x.dtype

    def log_p(x):
        with no_grad():
            x_0_hat = x_0_from_eps(SCHEDULE, x, t, model(x, t).data)
        square = (to_numpy(x_0_hat - x_0)[..., 0] ** 2 * known[..., 0]).sum((1, 2))
        return -square / (2 * (1 - SCHEDULE.alpha_bar[t]))

    h = 1e-5  # as above, but the square is up to 1e4 at the largest t: a relative bound
    slope = (log_p(x + h * d) - log_p(x - h * d)) / (2 * h)
    scale = np.abs(log_p(x)).max() + 1
    np.testing.assert_allclose(to_numpy((score * d).sum((1, 2, 3))), slope, rtol=1e-5, atol=1e-6 * scale)
    alone = known_score(SCHEDULE, model, x_0[:1], known[:1])(x[:1], t)
    np.testing.assert_allclose(to_numpy(alone), to_numpy(score[:1]), rtol=1e-9, atol=1e-12 * scale)


def test_the_score_of_known_pixels_leaves_no_trace(rng):
    """Inside no_grad as outside, in float32; no parameter of the network has a gradient or stops wanting one."""
    model, (known, x_0) = build_unet(UNET, 0), masks(0, 2)
    x, x_0 = asarray(rng.standard_normal((2, 4, 4, 1), dtype="float32")), x_0.astype("float32")
    score_fn = known_score(SCHEDULE, model, x_0, known)
    outside = score_fn(x, 5)
    with no_grad():
        np.testing.assert_array_equal(to_numpy(score_fn(x, 5)), to_numpy(outside))
    assert outside.dtype == "float32" and float(abs(outside).max()) > 0
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


class Gaussian(Module):
    """The exact denoiser of data N(mean, cov) as a network: eps_hat = sqrt(1 - alpha_bar_t) S_t^-1 (x_t - ...)."""

    num_classes = None

    def __init__(self, mean, cov):
        self.mean, self.cov = mean, cov
        self.w = Tensor(asarray(np.ones(1)), requires_grad=True)  # a network has parameters

    def forward(self, x_t, t, labels=None):
        a = SCHEDULE.alpha_bar[t]
        matrix = np.linalg.inv(a * self.cov + (1 - a) * np.eye(len(self.cov))) * math.sqrt(1 - a)
        return ops.matmul(x_t - asarray(math.sqrt(a) * self.mean[None]), asarray(matrix)) * self.w


@given(st.integers(0, 999), st.integers(1, 100), st.integers(2, 4))
def test_with_one_known_number_the_guided_eps_is_that_of_the_conditional_distribution(seed, t, d):
    """For Gaussian data with any covariance, at the scale var_t/(true variance of the known number given x_t)."""
    rng = default_rng(seed)
    mean, root = rng.standard_normal(d), rng.standard_normal((d, d))
    cov = root @ root.T + 0.1 * np.eye(d)
    x_0, x_t, k = rng.standard_normal((1, d)), rng.standard_normal((3, d)), int(rng.integers(d))
    known = np.arange(d) == k
    a = SCHEDULE.alpha_bar[t]
    left = np.linalg.inv(np.linalg.inv(cov) + a / (1 - a) * np.eye(d))[k, k]  # Var(x_0[k] | x_t)
    model = Gaussian(mean, cov)
    unled = lambda x_t, t: model(Tensor(x_t), t).data  # noqa: E731
    led = classifier_guided(SCHEDULE, unled, known_score(SCHEDULE, model, np.repeat(x_0, 3, 0), known), (1 - a) / left)(
        asarray(x_t), t
    )
    # The conditional distribution of data whose k-th number is x_0[k].
    gain = cov[:, k] / cov[k, k]
    conditional = gaussian_eps_fn(SCHEDULE, mean + gain * (x_0[0, k] - mean[k]), cov - np.outer(gain, cov[k]))
    size = float(abs(led).max())
    np.testing.assert_allclose(to_numpy(led), to_numpy(conditional(asarray(x_t), t)), rtol=1e-8, atol=1e-8 * size)


@given(st.integers(0, 99), st.integers(1, 100))
def test_of_independent_numbers_of_variance_1_scale_1_is_exact(seed, t):
    """var_t is theirs: known ones are led to what they are, and nothing is said of the others."""
    rng = default_rng(seed)
    x_0, x_t, known = rng.standard_normal((2, 5)), rng.standard_normal((2, 5)), rng.random(5) < 0.5
    model = Gaussian(np.zeros(5), np.eye(5))
    unled = lambda x_t, t: model(Tensor(x_t), t).data  # noqa: E731
    led = classifier_guided(SCHEDULE, unled, known_score(SCHEDULE, model, x_0, known), 1.0)(asarray(x_t), t)
    a = SCHEDULE.alpha_bar[t]
    exact = np.where(known, (x_t - math.sqrt(a) * x_0) / math.sqrt(1 - a), math.sqrt(1 - a) * x_t)
    np.testing.assert_allclose(to_numpy(led), exact, rtol=1e-9, atol=1e-9)
