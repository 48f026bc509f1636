"""Guidance of both kinds: around a stand-in model with known rows, and around exact denoisers of Gaussian classes."""

from functools import partial

import numpy as np
import pytest
from chains import assert_same, normal
from draws import NOT_LIKE
from exact import ExactModel, gaussian_eps_fn, guided_stds, mixture_eps_fn, mixture_score_fn
from hypothesis import given
from hypothesis import strategies as st
from samples import PLACES, WEIGHTS, push_gaussian

from tinydiff.backend import asarray, default_rng, to_numpy, xp
from tinydiff.diffusion import (
    classifier_free,
    classifier_guided,
    ddim_step,
    ddpm_step,
    sample,
    timestep_pairs,
    unconditional,
    x_0_from_eps,
)

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


some_labels = st.lists(st.integers(0, NO_LABEL), min_size=1, max_size=5)


@given(some_labels, st.floats(-3, 10), st.integers(1, 1000), st.integers(0, 99))
def test_guidance_is_affine_in_scale(labels, scale, t, seed):
    """eps_hat = eps_u + scale (eps_c - eps_u), each half being the model's own answer for that label alone.

    (Ho & Salimans 2022, eq. 6, where scale is 1 + w.)
    """
    x_t, model = normal(seed, len(labels), 3, 2, 1), Model()
    eps_u = model(x_t, t, [NO_LABEL] * len(labels))
    eps_c = model(x_t, t, labels)
    expected = to_numpy(eps_u + scale * (eps_c - eps_u))
    eps_hat = to_numpy(classifier_free(model, labels, scale)(x_t, t))
    np.testing.assert_allclose(eps_hat, expected, rtol=0, atol=1e-13)  # at scale 1 eps_c itself, without the rounding


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


# ---------------------------------------------------------------------------------------------------- Gaussian classes
# Where p(x | c) and p(x) are Gaussian, both are at every t, N(sqrt(alpha_bar_t) m, S_t), and guided sampling is affine.


def gaussian_classes(schedule, means, covs):
    """A model of exact denoisers: label k has the data N(means[k], covs[k]), and "no label" the last pair."""
    return ExactModel([gaussian_eps_fn(schedule, mean, cov) for mean, cov in zip(means, covs)])


@given(st.integers(1, 3), st.floats(-2, 5), st.integers(1, 1000), st.integers(0, 999))
def test_guided_eps_is_the_score_of_the_tilted_density(linear, D, scale, t, seed):
    """eps_hat is the score of p_t(x)^(1 - scale) p_t(x | c)^scale, in closed form (Ho & Salimans 2022, section 3.2).

    eps_hat = -sqrt(1 - alpha_bar_t) grad log of it; of Gaussians it has the precision P = (1 - scale) S_u^-1 + scale
    S_c^-1, and -grad log is P x - sqrt(alpha_bar_t) ((1 - scale) S_u^-1 m_u + scale S_c^-1 m_c).
    """
    rng, a = default_rng(seed), float(linear.alpha_bar[t])
    means, roots = rng.normal(size=(3, D)), rng.normal(size=(3, D, D))
    covs = roots @ roots.transpose(0, 2, 1) + 0.1 * np.eye(D)
    x, labels = rng.normal(size=(4, D)), [0, 1, 1, 2]
    eps_hat = classifier_free(gaussian_classes(linear, means, covs), labels, scale)(asarray(x), t)
    precision = np.linalg.inv(a * covs + (1 - a) * np.eye(D))
    for row, label in enumerate(labels):
        P = (1 - scale) * precision[2] + scale * precision[label]
        shift = a**0.5 * ((1 - scale) * precision[2] @ means[2] + scale * precision[label] @ means[label])
        expected = (1 - a) ** 0.5 * (P @ x[row] - shift)
        np.testing.assert_allclose(to_numpy(eps_hat)[row], expected, rtol=1e-9, atol=1e-9)  # precisions up to 100


@pytest.mark.parametrize("step", [ddpm_step, partial(ddim_step, eta=0.5), ddim_step])
@given(st.floats(-2, 5), st.integers(1, 30), st.integers(0, 999))
def test_between_gaussians_of_one_width_guidance_moves_the_mean_alone(linear, step, scale, num_steps, seed):
    """With one covariance for all, guided sampling is plain sampling of N(m_u + scale (m_c - m_u), cov), at any steps.

    So its output's mean is linear in the scale, past the class for scale > 1, and its covariance does not change.
    """
    rng, pairs, step = default_rng(seed), timestep_pairs(1000, num_steps), partial(step, linear)
    (m_c, m_u), root = rng.normal(size=(2, 2)), rng.normal(size=(2, 2))
    cov = root @ root.T
    guided = classifier_free(gaussian_classes(linear, [m_c, m_u], [cov, cov]), 0, scale)
    led_to = gaussian_eps_fn(linear, m_u + scale * (m_c - m_u), cov)
    mean, out_cov = push_gaussian(step, guided, pairs, np.zeros(2), np.eye(2))
    expected_mean, expected_cov = push_gaussian(step, led_to, pairs, np.zeros(2), np.eye(2))
    # x_0_hat divides by sqrt(alpha_bar_T) = 6e-3, with roundings of means up to 20 in it.
    np.testing.assert_allclose(mean, expected_mean, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(out_cov, expected_cov, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("scale", [0.25, 2.0])
@pytest.mark.parametrize("step", [ddpm_step, ddim_step])
def test_between_gaussians_of_one_mean_guidance_narrows_as_its_differential_equation_says(linear, step, scale):
    """The class has std 0.5, all data have 1: in the limit of many steps the guided output's std is a closed form.

    guided_stds has the differential equations, one for each sampler.
    """
    v_u, v_c = 1.0, 0.25
    std = guided_stds(scale, v_u, v_c)["DDPM" if step is ddpm_step else "DDIM"]
    eps_fn = classifier_free(gaussian_classes(linear, np.zeros((2, 1)), np.array([[[v_c]], [[v_u]]])), 0, scale)

    def measured(num_steps):
        pairs = timestep_pairs(1000, num_steps)
        _, cov = push_gaussian(partial(step, linear), eps_fn, pairs, np.zeros(1), np.eye(1))
        return float(cov[0, 0]) ** 0.5

    few, many = measured(200), measured(400)
    assert abs(many / std - 1) < 0.6 * abs(
        few / std - 1
    )  # of first order in the stride: twice the steps, half the error
    # and extrapolated, 2 many - few, of second order: the 3% that 400 steps are off, squared, and 1% with some room.
    assert 2 * many - few == pytest.approx(std, rel=0.01)


# -------------------------------------------------------------------------------------------------- classifier guidance
# Five Gaussian classes, N(PLACES[k], 0.3 I) with probability WEIGHTS[k]: the exact eps_hat without a label, and the
# exact gradient of log p(label | x_t), from demos/exact.py.


VAR = 0.3
classes = st.lists(st.integers(0, 4), min_size=1, max_size=5)


def of_classes(schedule, labels):
    """(eps_fn of all classes, eps_fn of row n's own class, score_fn of it)."""
    own = [gaussian_eps_fn(schedule, PLACES[k], VAR * np.eye(2)) for k in labels]

    def conditional(x_t, t):
        return xp.concatenate([eps_fn(x_t[n : n + 1], t) for n, eps_fn in enumerate(own)])

    everything = mixture_eps_fn(schedule, WEIGHTS, PLACES, VAR)
    return everything, conditional, mixture_score_fn(schedule, WEIGHTS, PLACES, VAR, labels)


@given(classes, st.integers(1, 1000), st.integers(0, 999))
def test_with_the_exact_classifier_scale_1_is_bayes_rule(linear, labels, t, seed):
    """grad log p(x_t | y) = grad log p(x_t) + grad log p(y | x_t): together they are the conditional."""
    everything, conditional, score_fn = of_classes(linear, labels)
    x_t = normal(seed, len(labels), 2)
    guided = classifier_guided(linear, everything, score_fn, 1)(x_t, t)
    np.testing.assert_allclose(to_numpy(guided), to_numpy(conditional(x_t, t)), rtol=0, atol=1e-12)  # float64, size 1


@given(classes, st.floats(-2, 8), st.integers(1, 1000), st.integers(0, 999))
def test_both_kinds_of_guidance_are_one_where_all_is_exact(linear, labels, scale, t, seed):
    """eps_u + scale (eps_c - eps_u) by classifier; and around the conditional, scale counts from 1 (section 4.2)."""
    everything, conditional, score_fn = of_classes(linear, labels)
    x_t = normal(seed, len(labels), 2)
    eps_u, eps_c = everything(x_t, t), conditional(x_t, t)
    expected = to_numpy(eps_u + scale * (eps_c - eps_u))
    for eps_fn, w in ((everything, scale), (conditional, scale - 1)):
        guided = to_numpy(classifier_guided(linear, eps_fn, score_fn, w)(x_t, t))
        np.testing.assert_allclose(guided, expected, rtol=0, atol=1e-11)  # 8 times numbers of size 1, float64


@given(classes, st.floats(-2, 8), st.integers(1, 1000), st.integers(0, 999))
def test_the_guided_x_0_hat_is_a_closed_form_for_gaussian_classes(linear, labels, scale, t, seed):
    """E[x_0 | x_t, y] of each class is x_t's own, and the classes' means mix: with r the classes' probabilities at x_t,

    x_0_hat = ((1 - alpha_bar) m + sqrt(alpha_bar) v x_t)/S,   m = scale m_y + (1 - scale) sum_k r_k m_k
    """
    everything, _, score_fn = of_classes(linear, labels)
    x_t, a = normal(seed, len(labels), 2), float(linear.alpha_bar[t])
    x = to_numpy(x_t)
    density = WEIGHTS * np.exp(-((x[:, None] - a**0.5 * PLACES) ** 2).sum(2) / (2 * (a * VAR + 1 - a)))
    mixed = density / density.sum(1, keepdims=True) @ PLACES
    m = scale * PLACES[labels] + (1 - scale) * mixed
    expected = ((1 - a) * m + a**0.5 * VAR * x) / (a * VAR + 1 - a)
    eps_hat = classifier_guided(linear, everything, score_fn, scale)(x_t, t)
    # x_0_hat divides by sqrt(alpha_bar_T) = 6e-3
    np.testing.assert_allclose(to_numpy(x_0_from_eps(linear, x_t, t, eps_hat)), expected, rtol=0, atol=1e-9)


@given(classes, st.floats(-2, 8), st.integers(2, 1000), st.integers(0, 999))
def test_the_mean_of_a_step_moves_by_its_noise_along_the_gradient(linear, labels, scale, t, seed):
    """DDPM's mean is mu + scale beta_t/sqrt(alpha_t) grad log p(y | x_t): algorithm 1's mu + scale Sigma grad, to
    first order in beta_t."""
    everything, _, score_fn = of_classes(linear, labels)
    x_t, none = normal(seed, len(labels), 2), xp.zeros((len(labels), 2))
    plain, _ = ddpm_step(linear, x_t, everything(x_t, t), t, t - 1, none)
    guided, _ = ddpm_step(linear, x_t, classifier_guided(linear, everything, score_fn, scale)(x_t, t), t, t - 1, none)
    moved = scale * linear.beta[t] / linear.alpha[t] ** 0.5 * to_numpy(score_fn(x_t, t))
    np.testing.assert_allclose(to_numpy(guided - plain), moved, rtol=0, atol=1e-12)  # float64


def test_at_scale_0_the_classifier_is_not_asked(linear):
    """eps_fn itself, and no gradient is computed for nothing."""
    assert classifier_guided(linear, eps_fn := unconditional(Model()), None, 0.0) is eps_fn


def test_what_is_no_gradient_of_x_t_is_refused(linear):
    """Another shape or dtype than that of x_t would be broadcast, or turn float32 into float64."""
    x_t = normal(0, 2, 4, dtype="float32")
    for wrong in (x_t[:1], x_t.astype("float64")):
        with pytest.raises(ValueError, match=r"score_fn\(x_t, t\) must be float32 \(2, 4\) like x_t, got"):
            classifier_guided(linear, unconditional(Model()), lambda x_t, t: wrong, 1.0)(x_t, 5)  # noqa: B023
    guided = classifier_guided(linear, unconditional(Model()), lambda x_t, t: x_t, np.float64(1.5))(x_t, 5)
    assert guided.dtype == "float32"


# ----------------------------------------------------------------------------------------------------------- correction


def test_a_correction_is_asked_at_scale_0_too(linear):
    """The unconditional answer is one of the guided ones: it is corrected by the conditional's like any other."""
    x_t, labels = normal(0, 2, 4), [3, 4]
    model, heard = Model(), []
    eps_hat = classifier_free(model, labels, 0, lambda *arguments: heard.append(arguments) or arguments[2] * 2)(x_t, 7)
    ((x, t, eps_u, eps_c),) = heard
    assert x is x_t and t == 7
    assert_same(eps_u, model(x_t, 7, NO_LABEL))
    assert_same(eps_c, model(x_t, 7, labels))
    assert_same(eps_hat, 2 * eps_u)


# -------------------------------------------------------------------------------------------------------- bad arguments


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
    with pytest.raises(ValueError, match="scale must be finite, got"):
        classifier_guided(None, None, None, scale)


def test_a_model_without_classes_is_refused():
    """There is nothing to guide towards."""
    model = Model()
    model.num_classes = None
    with pytest.raises(ValueError, match="num_classes is None"):
        classifier_free(model, 3, 2.0)


class Spoiled(Model):
    """A model whose answer is spoiled."""

    def __init__(self, spoil):
        super().__init__()
        self.spoil = spoil

    def __call__(self, x_t, t, labels):
        return self.spoil(super().__call__(x_t, t, labels))


OF_A_MODEL = {name: spoil for name, spoil in NOT_LIKE.items() if name not in ("a Tensor", "a list")}  # which may be


@pytest.mark.parametrize("scale", [0, 1, 2.5])
@pytest.mark.parametrize("spoil", OF_A_MODEL.values(), ids=OF_A_MODEL)
def test_what_a_model_must_not_return_is_refused(linear, spoil, scale):
    """An array or Tensor like x_t, for both halves of a doubled batch too; else ValueError, in the sampler at least."""
    eps_fn = classifier_free(Spoiled(spoil), [3, 4], scale)
    with pytest.raises((ValueError, TypeError)):
        list(sample(partial(ddim_step, linear), eps_fn, timestep_pairs(1000, 3), normal(0, 2, 3), default_rng(0)))


def test_a_model_that_answers_half_of_the_rows_is_refused():
    """At other scales than 0 and 1 the model gets both halves in one batch: N rows would be taken for all of one."""
    for n in (1, 2):
        with pytest.raises(ValueError, match=r"model\(x_t, t, labels\) must be"):
            classifier_free(Spoiled(lambda eps, n=n: eps[:n]), 3, 2.5)(normal(0, n, 3), 5)


@pytest.mark.parametrize("spoil", NOT_LIKE.values(), ids=NOT_LIKE)
def test_what_is_no_eps_hat_or_no_score_is_refused(linear, spoil):
    """classifier_guided adds two arrays like x_t: neither is broadcast."""
    own, x_t = (lambda x, t: x), normal(0, 2, 3)
    with pytest.raises(ValueError, match=r"eps_fn\(x_t, t\) must be"):
        classifier_guided(linear, lambda x, t: spoil(x), own, 1.0)(x_t, 5)
    with pytest.raises(ValueError, match=r"score_fn\(x_t, t\) must be"):
        classifier_guided(linear, own, lambda x, t: spoil(x), 1.0)(x_t, 5)
