"""The layers of the other models: each against its formula, how it starts, and that each of its parameters matters."""

import inspect
import math

import layer_laws
import numpy as np
import pytest
from draws import SEEDS
from hypothesis import given
from hypothesis import strategies as st
from layer_laws import (
    PRESENT,
    Row,
    assert_close,
    convolution,
    group_norm,
    numpy_parameters,
    random_parameters,
    tensor,
)

from tinydiff.autograd import Tensor
from tinydiff.backend import asarray, default_rng, to_numpy
from tinydiff.more import layers
from tinydiff.more.layers import CrossAttention, NormSilu, NormSiluConv, UpConv

pytestmark = pytest.mark.network

SIZES = st.integers(1, 4)
ROWS = {
    "NormSilu": Row(lambda rng: NormSilu(2, 6), (2, 3, 4, 6)),
    "NormSiluConv": Row(lambda rng: NormSiluConv(4, 3, 2, rng), (2, 3, 4, 4)),
    "NormSiluConv wide": Row(lambda rng: NormSiluConv(16, 17, 4, rng), (2, 5, 6, 16)),
    "UpConv": Row(lambda rng: UpConv(3, 2, rng=rng), (2, 3, 2, 3)),
    "UpConv wide": Row(lambda rng: UpConv(16, 17, rng=rng), (2, 3, 4, 16)),
    "CrossAttention": Row(
        lambda rng: CrossAttention(8, 5, num_heads=2, num_groups=4, rng=rng), (2, 3, 2, 8), layer_laws.beside_a_text
    ),
}
each_layer = pytest.mark.parametrize("name", ROWS)


# What a layer computes.


def norm_silu(x, gamma, beta, num_groups):
    z = group_norm(x, gamma, beta, num_groups)
    return z / (1 + np.exp(-z))


@given(SEEDS, SIZES, st.integers(2, 4), st.lists(st.integers(1, 3), max_size=2))
def test_norm_silu_is_silu_of_the_normalised_groups(seed, num_groups, width, pixels):
    """z / (1 + exp(-z)) of z = gamma (x - mean) / sqrt(var + 1e-5) + beta over a group."""
    rng = default_rng(seed)
    layer = random_parameters(NormSilu(num_groups, num_groups * width), rng)
    x = 2 + 3 * rng.standard_normal((3, *pixels, num_groups * width))
    p = numpy_parameters(layer)
    expected = norm_silu(x, p["gamma"], p["beta"], num_groups)
    # 1e-8: two numbers may be near each other, and their deviation then amplifies rounding up to 1 / sqrt(1e-5) fold.
    np.testing.assert_allclose(to_numpy(layer(tensor(x))), expected, rtol=1e-8, atol=1e-8)


@given(SEEDS, st.sampled_from([(2, 3), (4, 17), (16, 16)]), st.integers(2, 9), st.integers(2, 9))
def test_norm_silu_conv_is_the_convolution_of_norm_silu(seed, channels, h, w):
    """conv(silu(norm(x))): 3x3, of the same size, for few channels and for many."""
    rng, (c, o) = default_rng(seed), channels
    layer = random_parameters(NormSiluConv(c, o, 2, rng), rng)
    x, p = rng.standard_normal((2, h, w, c)), numpy_parameters(layer)
    y = norm_silu(x, p["norm.gamma"], p["norm.beta"], 2)
    expected = convolution(y, p["conv.w"], p["conv.b"][None], 1, 1)
    np.testing.assert_allclose(to_numpy(layer(tensor(x))), expected, rtol=1e-8, atol=1e-8)  # as above


@given(SEEDS, st.sampled_from([(2, 3), (16, 17)]), st.integers(1, 5), st.integers(1, 5))
def test_up_conv_is_the_convolution_of_repeated_pixels(seed, channels, h, w):
    """Each pixel becomes four, and then a 3x3 convolution: twice the size, for few channels and for many."""
    rng, (c, o) = default_rng(seed), channels
    layer = random_parameters(UpConv(c, o, rng=rng), rng)
    x, p = rng.standard_normal((2, h, w, c)), numpy_parameters(layer)
    assert_close(layer(tensor(x)), convolution(np.kron(x, np.ones((1, 2, 2, 1))), p["w"], p["b"][None], 1, 1))


@given(SEEDS, st.integers(1, 3), st.integers(2, 4), SIZES, SIZES, SIZES)
def test_cross_attention_mixes_the_values_of_the_words_that_are_there(seed, num_heads, features, h, w, m):
    """x + out(softmax(q k^T / sqrt(D)) v), word by word: q from the normalised pixel, k and v from the text."""
    rng, c = default_rng(seed), num_heads * features
    layer = random_parameters(CrossAttention(c, 5, num_heads=num_heads, num_groups=num_heads, rng=rng), rng)
    x, text, present = rng.standard_normal((2, h, w, c)), rng.standard_normal((2, m, 5)), rng.random((2, m)) < 0.6
    present[:, rng.integers(m)] = True
    p = numpy_parameters(layer)
    q = group_norm(x, p["norm.gamma"], p["norm.beta"], num_heads) @ p["q.w"] + p["q.b"]
    mixed = np.zeros_like(x)
    for image, i, j in np.ndindex(2, h, w):
        words = [word @ p["kv.w"] + p["kv.b"] for word, there in zip(text[image], present[image]) if there]
        for head in range(num_heads):
            part = slice(head * features, (head + 1) * features)
            weights = [math.exp(q[image, i, j, part] @ word[:c][part] / math.sqrt(features)) for word in words]
            for weight, word in zip(weights, words):
                mixed[image, i, j, part] += weight / sum(weights) * word[c:][part]
    expected = x + mixed @ p["out.w"] + p["out.b"]
    # 1e-8: rounding amplified by the norm and by the exponential.
    np.testing.assert_allclose(to_numpy(layer(tensor(x), tensor(text), present)), expected, rtol=1e-8, atol=1e-8)


@given(SEEDS)
def test_one_word_alone_is_one_vector_for_all_pixels(seed):
    """With one token present cross-attention adds out(v(token)) to each pixel, an embedding, whatever the queries."""
    rng = default_rng(seed)
    layer = random_parameters(CrossAttention(6, 5, num_heads=3, num_groups=2, rng=rng), rng)
    x, text = rng.standard_normal((2, 3, 4, 6)), rng.standard_normal((2, 4, 5))
    p = numpy_parameters(layer)
    v = text[[0, 1], [2, 0]] @ p["kv.w"][:, 6:] + p["kv.b"][6:]  # of token 2 of the first, token 0 of the second
    expected = x + (v @ p["out.w"] + p["out.b"])[:, None, None]
    present = np.array([[False, False, True, False], [True, False, False, False]])
    assert_close(layer(tensor(x), tensor(text), present), expected)


def test_a_word_that_is_not_there_has_no_influence(rng):
    """Whatever features an absent token has, the result is the same bits and its gradient is exactly 0."""
    layer = random_parameters(CrossAttention(8, 5, num_heads=2, num_groups=4, rng=rng), rng)
    x, text = rng.standard_normal((2, 3, 4, 8)), rng.standard_normal((*PRESENT.shape, 5))
    other = np.where(PRESENT[..., None], text, 1e3 * text + 7)
    leaf = Tensor(asarray(text), requires_grad=True)
    y = layer(tensor(x), leaf, PRESENT)
    np.testing.assert_array_equal(to_numpy(y), to_numpy(layer(tensor(x), tensor(other), PRESENT)))
    y.backward(asarray(rng.standard_normal(y.shape)))
    np.testing.assert_array_equal(to_numpy(leaf.grad).any(2), PRESENT)


def test_what_attends_may_be_replaced(rng):
    """`attend` is called with queries, keys and values by heads and the mask, and what it returns is what is added."""
    layer = random_parameters(CrossAttention(8, 5, num_heads=2, num_groups=4, rng=rng), rng)
    x, text, seen = tensor(rng.standard_normal((2, 3, 2, 8))), tensor(rng.standard_normal((*PRESENT.shape, 5))), []

    def attend(q, k, v, *, mask):
        seen.append([a.shape for a in (q, k, v, mask)])
        return 0 * q

    layer.attend = attend
    assert_close(layer(x, text, PRESENT), to_numpy(x) + to_numpy(layer.out.b))
    assert seen == [[(2, 2, 6, 4), (2, 2, 4, 4), (2, 2, 4, 4), (2, 1, 1, 4)]]


# How a layer starts.


def test_cross_attention_starts_as_the_identity(rng):
    """Its last map starts at zero, so that at first x + out(...) is x, bit for bit; the others do not."""
    x = rng.standard_normal((2, 3, 4, 8), dtype="float32")
    layer = ROWS["CrossAttention"].build(rng)
    np.testing.assert_array_equal(to_numpy(layer_laws.beside_a_text(layer, asarray(x))), x)
    assert {key for key, p in layer.named_parameters() if key[-1] == "w" and not to_numpy(p).any()} == {"out.w"}


@each_layer
def test_the_generator_alone_decides_the_start(name):
    """The same seed gives the same bits, another seed other ones (but where nothing is drawn), all of them float32."""
    layer_laws.the_generator_alone_decides_the_start(ROWS[name], draws=name != "NormSilu")


# What training sees of it.


def test_every_layer_has_a_row():
    """A new layer is put to these laws too."""
    found = {k for k, v in vars(layers).items() if inspect.isclass(v) and v.__module__ == layers.__name__}
    assert found == {name.split()[0] for name in ROWS}


@each_layer
def test_every_parameter_has_a_gradient(name, rng):
    """A random cotangent reaches every number of every parameter: nothing is made and then left unused."""
    layer_laws.every_parameter_has_a_gradient(ROWS[name], rng)


@each_layer
def test_the_gradient_is_the_derivative_along_a_random_direction(name, rng):
    """sum <dp, d> = d/dh <g, layer(x + h d_x; p + h d_p)> at h = 0, over the input and all parameters together."""
    layer_laws.the_gradient_is_the_derivative(ROWS[name], rng)


@each_layer
def test_float32_stays_float32(name, rng):
    """From float32 parameters and input come float32 results and gradients."""
    layer_laws.float32_stays_float32(ROWS[name], rng)


# Bad input.


def test_heads_must_divide_the_channels(rng):
    """CrossAttention names both numbers where num_heads does not divide channels."""
    with pytest.raises(ValueError, match="num_heads=4 does not divide channels=6"):
        CrossAttention(6, 5, num_heads=4, num_groups=2, rng=rng)


@pytest.mark.parametrize("num_heads", [0, -2, 1.5, float("nan")])
def test_heads_of_cross_attention_are_whole_numbers_from_1(num_heads, rng):
    """ValueError with both numbers, also for one that divides in a sense."""
    with pytest.raises(ValueError, match=f"num_heads={num_heads} does not divide channels=6"):
        CrossAttention(6, 4, num_heads=num_heads, num_groups=2, rng=rng)
