"""Classifier-free guidance around a stand-in model whose rows are known functions of x_t, t and label."""

from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinydiff.backend import default_rng, standard_normal, to_numpy, xp
from tinydiff.diffusion import classifier_free, ddim_step, sample, timestep_pairs, unconditional

pytestmark = pytest.mark.sampler

NO_LABEL = 10


class Model:
    """eps_hat row i = x_t[i] (1 + label_i / 3) + t / 100; keeps what it was called with."""

    num_classes = NO_LABEL

    def __init__(self):
        self.calls = []

    def __call__(self, x_t, t, labels):
        self.calls.append((len(x_t), t, None if labels is None else np.broadcast_to(labels, len(x_t)).tolist()))
        label = xp.asarray(np.broadcast_to(np.asarray(labels), len(x_t)).astype(to_numpy(x_t).dtype))
        return x_t * (1 + label / 3).reshape((-1,) + (1,) * (x_t.ndim - 1)) + t / 100


class Wrapped:
    """What a Tensor looks like from here: an array in .data."""

    def __init__(self, data):
        self.data = data


def normal(seed, *shape, dtype="float64"):
    return standard_normal(default_rng(seed), shape, dtype)


def assert_same(a, b):
    np.testing.assert_array_equal(to_numpy(a), to_numpy(b))


some_labels = st.lists(st.integers(0, NO_LABEL), min_size=1, max_size=5)


@given(some_labels, st.floats(-3, 10), st.integers(1, 1000), st.integers(0, 99))
def test_guidance_is_affine_in_scale(labels, scale, t, seed):
    """eps_hat = eps_u + scale (eps_c - eps_u), each half being the model's own answer for that label alone."""
    x_t, model = normal(seed, len(labels), 3, 2, 1), Model()
    eps_u = model(x_t, t, [NO_LABEL] * len(labels))
    eps_c = model(x_t, t, labels)
    assert_same(classifier_free(model, labels, scale)(x_t, t), eps_u + scale * (eps_c - eps_u))


@given(some_labels, st.integers(1, 1000), st.integers(0, 99))
def test_scale_1_is_the_conditional_model_and_0_the_unconditional(labels, t, seed):
    """Exactly the model's answer with and without the label, for one evaluation of N rows each."""
    n = len(labels)
    x_t, model = normal(seed, n, 4), Model()
    for scale, asked in ((1, labels), (0, [NO_LABEL] * n)):
        model.calls.clear()
        eps_hat = classifier_free(model, labels, scale)(x_t, t)
        assert model.calls == [(n, t, asked)]
        assert_same(eps_hat, model(x_t, t, asked))


@given(some_labels, st.sampled_from([-1.0, 0.5, 3.0]), st.integers(1, 1000))
def test_both_halves_come_from_one_call(labels, scale, t):
    """At any other scale the model runs once, on 2N rows, half without labels and half with, at one integer t."""
    model, n = Model(), len(labels)
    classifier_free(model, labels, scale)(normal(0, n, 4), t)
    assert model.calls == [(2 * n, t, [NO_LABEL] * n + labels)]


@given(st.floats(-3, 10), st.integers(0, 99))
def test_no_label_is_not_led_anywhere(scale, seed):
    """With label num_classes both halves are one, and every scale gives the unconditional answer."""
    x_t, model = normal(seed, 3, 4), Model()
    assert_same(classifier_free(model, NO_LABEL, scale)(x_t, 5), unconditional(model)(x_t, 5))


@pytest.mark.parametrize("scale", [0, 1, 2.5])
def test_one_label_stands_for_all_rows(scale):
    """An integer label is that label for each row."""
    x_t, model = normal(0, 3, 4), Model()
    assert_same(classifier_free(model, 7, scale)(x_t, 5), classifier_free(model, [7, 7, 7], scale)(x_t, 5))


@pytest.mark.parametrize("scale", [0, 1, 2.5, np.float64(2.5), np.float32(1)])
def test_a_tensor_is_unwrapped_and_keeps_its_dtype(scale):
    """A model that returns a Tensor gives a plain float32 array for float32 input, even if scale is a NumPy float64."""
    x_t, model = normal(0, 3, 4, dtype="float32"), Model()

    def wrapped(x_t, t, labels):
        return Wrapped(model(x_t, t, labels))

    wrapped.num_classes = NO_LABEL
    for eps_fn in (classifier_free(wrapped, [1, 2, 3], scale), unconditional(wrapped)):
        eps_hat = eps_fn(x_t, 5)
        assert isinstance(eps_hat, xp.ndarray) and eps_hat.dtype == "float32" and eps_hat.shape == x_t.shape


def test_unconditional_tells_the_model_no_label():
    """A model with classes hears num_classes, one without classes hears None."""
    model = Model()
    x_t = normal(0, 2, 4)
    assert_same(unconditional(model)(x_t, 5), model(x_t, 5, NO_LABEL))
    heard = []

    def plain(x_t, t, labels):
        heard.append(labels)
        return x_t

    plain.num_classes = None
    assert_same(unconditional(plain)(x_t, 5), x_t)
    assert heard == [None]


def test_guidance_is_an_eps_fn_for_every_sampler(linear):
    """sample with a guided model is sample with the formula written out."""
    model, labels, x_T = Model(), [3, 4], normal(0, 2, 4)

    def written_out(x_t, t):
        eps_u, eps_c = model(x_t, t, NO_LABEL), model(x_t, t, labels)
        return eps_u + 2.0 * (eps_c - eps_u)

    pairs, step = timestep_pairs(1000, 4), partial(ddim_step, linear, clip=True)
    guided = sample(step, classifier_free(model, labels, 2.0), pairs, x_T, default_rng(0))
    for (_, x, _), (_, expected, _) in zip(guided, sample(step, written_out, pairs, x_T, default_rng(0)), strict=True):
        assert_same(x, expected)


@pytest.mark.parametrize("labels", [-1, 11, [3, 11], 2.0, ["3"], None])
def test_labels_that_are_no_class_are_refused(labels):
    """labels lie in 0..num_classes, or ValueError at once, before any sampling."""
    with pytest.raises(ValueError, match="labels must"):
        classifier_free(Model(), labels, 2.0)


@pytest.mark.parametrize("scale", [0, 1, 2.5])
def test_labels_must_fit_the_batch(scale):
    """(N,) labels for a batch of another N are refused at every scale."""
    with pytest.raises(ValueError, match=r"labels must be one integer or have shape \(3,\), got shape \(2,\)"):
        classifier_free(Model(), [1, 2], scale)(normal(0, 3, 4), 5)


@pytest.mark.parametrize("scale", [float("nan"), float("inf")])
def test_a_scale_that_is_no_number_is_refused(scale):
    """scale is finite."""
    with pytest.raises(ValueError, match="scale must be finite, got"):
        classifier_free(Model(), 3, scale)


def test_a_model_without_classes_is_refused():
    """There is nothing to guide towards."""
    model = Model()
    model.num_classes = None
    with pytest.raises(ValueError, match="num_classes is None"):
        classifier_free(model, 3, 2.0)
