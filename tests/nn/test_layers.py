"""Each layer against its formula, written here with plain loops; how it starts; that each of its parameters matters."""

import inspect
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinydiff.autograd import Tensor
from tinydiff.backend import asarray, default_rng, to_numpy, xp
from tinydiff.nn import Attention, Conv2d, CrossAttention, Embedding, GroupNorm, Linear, Module, layers

pytestmark = pytest.mark.network

SEEDS = st.integers(0, 2**32 - 1)
SIZES = st.integers(1, 4)

# One row a kind of layer: how to make it, and an input for it.
ROWS = {
    "Linear": (lambda rng: Linear(5, 3, rng=rng), (2, 4, 5)),
    "Conv2d": (lambda rng: Conv2d(3, 4, rng=rng), (2, 5, 4, 3)),
    "Conv2d stride 2": (lambda rng: Conv2d(2, 3, stride=2, rng=rng), (2, 5, 6, 2)),
    "Conv2d wide": (lambda rng: Conv2d(16, 17, rng=rng), (2, 5, 6, 16)),
    "GroupNorm": (lambda rng: GroupNorm(3, 6), (2, 3, 4, 6)),
    "GroupNorm silu": (lambda rng: GroupNorm(2, 6, silu=True), (2, 3, 4, 6)),
    "Embedding": (lambda rng: Embedding(4, 3, rng=rng), None),
    "Attention": (lambda rng: Attention(8, num_heads=2, num_groups=4, rng=rng), (2, 3, 2, 8)),
    "CrossAttention": (lambda rng: CrossAttention(8, 5, num_heads=2, num_groups=4, rng=rng), (2, 3, 2, 8)),
}
PRESENT = np.array([[True, True, False, True], [False, True, False, False]])
each_layer = pytest.mark.parametrize("name", ROWS)


def random_parameters(module, rng, dtype="float64"):
    """Give every parameter random values, so that none is 0 or 1 and none hides another."""
    for p in module.parameters():
        p.data = asarray(rng.standard_normal(p.shape), dtype)
    return module


def make(name, rng, dtype="float64"):
    """(layer with random parameters, an input that suits it)."""
    build, shape = ROWS[name]
    x = np.array([3, 1, 1, 0, 2]) if shape is None else asarray(rng.standard_normal(shape), dtype)
    return random_parameters(build(rng), rng, dtype), x


def call(name, layer, x):
    """layer(x), beside the same text every time where it takes one."""
    if name == "Embedding":
        return layer(x)
    if name != "CrossAttention":
        return layer(x if isinstance(x, Tensor) else Tensor(x))
    features = asarray(default_rng(1).standard_normal((*PRESENT.shape, 5)), x.dtype)
    return layer(x if isinstance(x, Tensor) else Tensor(x), Tensor(features), PRESENT)


def numpy_parameters(module):
    return {name: to_numpy(p) for name, p in module.named_parameters()}


def tensor(a):
    return Tensor(asarray(a))


def assert_close(found, expected):
    # 1e-11: sums of up to a hundred float64 products of numbers up to about 10.
    np.testing.assert_allclose(to_numpy(found), expected, rtol=1e-11, atol=1e-11)


# What a layer computes.


@given(SEEDS, st.lists(SIZES, max_size=3).map(tuple), SIZES, SIZES)
def test_linear_is_an_affine_map_of_the_last_axis(seed, lead, i, o):
    """y[..., o] = sum_i x[..., i] w[i, o] + b[o], whatever the leading axes."""
    rng = default_rng(seed)
    layer, x = random_parameters(Linear(i, o, rng=rng), rng), rng.standard_normal((*lead, i))
    p = numpy_parameters(layer)
    assert_close(layer(tensor(x)), np.einsum("...i,io->...o", x, p["w"]) + p["b"])


def convolution(x, w, b, stride, padding):
    """The sum over each window, pixel by pixel; b (N, O)."""
    x = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    size, (n, h, wd, _) = len(w), x.shape
    y = np.empty((n, (h - size) // stride + 1, (wd - size) // stride + 1, w.shape[3]))
    for i in range(y.shape[1]):
        for j in range(y.shape[2]):
            window = x[:, i * stride : i * stride + size, j * stride : j * stride + size]
            y[:, i, j] = np.einsum("nklc,klco->no", window, w) + b
    return y


@given(SEEDS, st.data())
def test_conv2d_sums_each_window_against_the_filter(seed, data):
    """Conv2d is the convolution of the definition."""
    rng = default_rng(seed)
    kernel, stride = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 3))
    padding = data.draw(st.sampled_from([None, 0, 1, 2]))
    shape = [data.draw(SIZES), data.draw(st.integers(4, 7)), data.draw(st.integers(4, 7)), data.draw(SIZES)]
    layer = random_parameters(Conv2d(shape[3], 5, kernel, stride=stride, padding=padding, rng=rng), rng)
    x = rng.standard_normal(shape)
    p = numpy_parameters(layer)
    padded_by = kernel // 2 if padding is None else padding
    assert_close(layer(tensor(x)), convolution(x, p["w"], p["b"][None], stride, padded_by))


@given(SEEDS, SIZES, st.sampled_from([1, 3, 5]), st.integers(1, 9), st.integers(1, 9))
def test_conv2d_keeps_the_size_unless_told_otherwise(seed, n, kernel, h, w):
    """With an odd kernel and neither stride nor padding given, height and width stay."""
    rng = default_rng(seed)
    layer = Conv2d(2, 3, kernel, rng=rng)
    assert layer(tensor(rng.standard_normal((n, h, w, 2), dtype="float32"))).shape == (n, h, w, 3)


def group_norm(x, gamma, beta, num_groups):
    """Group by group of each image: centre, divide by the deviation, scale and shift."""
    y = np.empty_like(x)
    for image, out in zip(x, y):
        for channels in np.split(np.arange(x.shape[-1]), num_groups):
            group = image[..., channels]
            out[..., channels] = (group - group.mean()) / np.sqrt(group.var() + 1e-5)
    return y * gamma + beta


@given(SEEDS, SIZES, st.integers(2, 4), st.lists(st.integers(1, 3), max_size=2), st.booleans())
def test_group_norm_normalises_each_group_of_each_image(seed, num_groups, width, pixels, silu):
    """(x - mean) / sqrt(var + 1e-5) over a group, times gamma, plus beta; silu=True applies z / (1 + exp(-z))."""
    rng = default_rng(seed)
    layer = random_parameters(GroupNorm(num_groups, num_groups * width, silu=silu), rng)
    x = 2 + 3 * rng.standard_normal((3, *pixels, num_groups * width))
    p = numpy_parameters(layer)
    z = group_norm(x, p["gamma"], p["beta"], num_groups)
    found = to_numpy(layer(tensor(x)))
    # 1e-8: two numbers may be near each other, and their deviation then amplifies rounding up to 1 / sqrt(1e-5) fold.
    np.testing.assert_allclose(found, z / (1 + np.exp(-z)) if silu else z, rtol=1e-8, atol=1e-8)


@given(SEEDS, st.data())
def test_an_embedding_looks_rows_up(seed, data):
    """y[i] = w[indices[i]], any row any number of times."""
    rng = default_rng(seed)
    layer = Embedding(5, 3, rng=rng)
    indices = data.draw(st.lists(st.integers(0, 4), min_size=1, max_size=8))
    w = to_numpy(layer.w)
    np.testing.assert_array_equal(to_numpy(layer(np.array(indices))), np.stack([w[i] for i in indices]))


@given(SEEDS, st.integers(1, 3), st.integers(2, 5), SIZES, SIZES)
def test_attention_mixes_the_values_of_all_pixels(seed, num_heads, features, h, w):
    """x + out(softmax(q k^T / sqrt(D)) v), head by head and image by image, on the normalised map."""
    rng, c = default_rng(seed), num_heads * features
    layer = random_parameters(Attention(c, num_heads=num_heads, num_groups=num_heads, rng=rng), rng)
    x = rng.standard_normal((2, h, w, c))
    p = numpy_parameters(layer)
    normal = group_norm(x, p["norm.gamma"], p["norm.beta"], num_heads).reshape(2, h * w, c)
    mixed = np.empty_like(normal)
    for image, out in zip(normal @ p["qkv.w"] + p["qkv.b"], mixed):
        for head in range(num_heads):
            q, k, v = (image[:, part * c + head * features :][:, :features] for part in range(3))
            weights = np.exp(np.einsum("id,jd->ij", q, k) / math.sqrt(features))
            weights /= weights.sum(1, keepdims=True)
            out[:, head * features : (head + 1) * features] = np.einsum("ij,jd->id", weights, v)
    expected = x + (mixed @ p["out.w"] + p["out.b"]).reshape(x.shape)
    # 1e-8: rounding amplified by the norm, as above, and once more by the exponential.
    np.testing.assert_allclose(to_numpy(layer(tensor(x))), expected, rtol=1e-8, atol=1e-8)


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
    # 1e-8: rounding amplified by the norm and by the exponential, as above.
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


@pytest.mark.parametrize("name", ["Attention", "CrossAttention"])
def test_attention_starts_as_the_identity(name, rng):
    """Its last map starts at zero, so that at first x + out(...) is x, bit for bit; the others do not."""
    x = rng.standard_normal((2, 3, 4, 8), dtype="float32")
    layer = ROWS[name][0](rng)
    np.testing.assert_array_equal(to_numpy(call(name, layer, asarray(x))), x)
    assert {key for key, p in layer.named_parameters() if key[-1] == "w" and not to_numpy(p).any()} == {"out.w"}


@pytest.mark.parametrize(
    ("build", "fan_in", "fan_out"),
    [
        (lambda rng: Linear(40, 360, rng=rng), 40, 360),
        (lambda rng: Conv2d(20, 80, rng=rng), 9 * 20, 9 * 80),
        (lambda rng: Conv2d(10, 60, 5, stride=2, rng=rng), 25 * 10, 25 * 60),
    ],
)
def test_weights_start_with_variance_one_over_the_mean_fan(build, fan_in, fan_out, rng):
    """Weights fill +-sqrt(6 / (fan_in + fan_out)) evenly; biases are 0."""
    layer = build(rng)
    w, bound = to_numpy(layer.w).astype("float64"), math.sqrt(6 / (fan_in + fan_out))
    assert not to_numpy(layer.b).any()
    # Of 14,400 or more draws none comes within 0.2% of the bound with probability exp(-28); float32 rounds it up a bit.
    assert 0.998 * bound < abs(w).max() <= bound * (1 + 1e-6)
    # Five deviations of a mean of n squares, u^2 of variance 4/45 bound^4; the generator is fixed.
    assert abs((w**2).mean() - 2 / (fan_in + fan_out)) < 5 * bound**2 * math.sqrt(4 / 45 / w.size)
    assert abs(w.mean()) < 5 * bound / math.sqrt(3 * w.size)


def test_zero_starts_a_branch_at_nothing(rng):
    """zero=True: weights and bias are 0, and so is what comes out."""
    for layer, shape in [(Linear(4, 3, rng=rng, zero=True), (2, 4)), (Conv2d(4, 3, rng=rng, zero=True), (2, 5, 5, 4))]:
        assert not any(to_numpy(p).any() for p in layer.parameters())
        assert not to_numpy(layer(tensor(rng.standard_normal(shape, dtype="float32")))).any()


def test_a_norm_starts_without_scale_and_shift():
    """gamma = 1 and beta = 0: a norm only normalises at first."""
    layer = GroupNorm(2, 6)
    np.testing.assert_array_equal(to_numpy(layer.gamma), np.ones(6))
    np.testing.assert_array_equal(to_numpy(layer.beta), np.zeros(6))


def test_an_embedding_starts_standard_normal(rng):
    """Mean 0 and variance 1, to five deviations of 10,000 draws from a fixed generator."""
    w = to_numpy(Embedding(100, 100, rng=rng).w)
    assert abs(w.mean()) < 5 / 100 and abs((w**2).mean() - 1) < 5 * math.sqrt(2) / 100


@each_layer
def test_the_generator_alone_decides_the_start(name):
    """The same seed gives the same bits, another seed other ones (but where nothing is drawn), all of them float32."""
    states = [ROWS[name][0](default_rng(seed)).state_dict() for seed in (1, 1, 2)]
    for key, first in states[0].items():
        assert first.dtype == np.float32
        np.testing.assert_array_equal(first, states[1][key])
    same = all(np.array_equal(first, states[2][key]) for key, first in states[0].items())
    assert same == name.startswith("GroupNorm")


# What training sees of it.


def test_every_layer_has_a_row():
    """A new layer is put to these laws too."""
    found = {k for k, v in vars(layers).items() if inspect.isclass(v) and issubclass(v, Module) and v is not Module}
    assert found == {name.split()[0] for name in ROWS}


@each_layer
def test_every_parameter_has_a_gradient(name, rng):
    """A random cotangent reaches every number of every parameter: nothing is made and then left unused."""
    layer, x = make(name, rng)
    y = call(name, layer, x)
    y.backward(asarray(rng.standard_normal(y.shape)))
    for key, p in layer.named_parameters():
        grad = abs(to_numpy(p.grad))
        if key in ("qkv.b", "kv.b"):
            *of_queries, of_keys, of_values = grad.reshape(len(key) - 2, -1)
            assert of_keys.max() < 1e-12  # one shift of all keys shifts each softmax's input, which it does not notice
            grad = np.stack([*of_queries, of_values])
        assert grad.min() > 1e-9, key  # rounding alone would leave 1e-15


@each_layer
def test_the_gradient_is_the_derivative_along_a_random_direction(name, rng):
    """sum <dp, d> = d/dh <g, layer(x + h d_x; p + h d_p)> at h = 0, over the input and all parameters together."""
    layer, x = make(name, rng)
    inputs = layer.parameters() + ([] if name == "Embedding" else [Tensor(x, requires_grad=True)])
    y = call(name, layer, x if name == "Embedding" else inputs[-1])
    g = asarray(rng.standard_normal(y.shape))
    y.backward(g)
    directions = [asarray(rng.standard_normal(p.shape)) for p in inputs]
    starts = [p.data for p in inputs]

    def along(h):
        for p, start, d in zip(inputs, starts, directions):
            p.data = start + h * d
        return float((g * call(name, layer, x if name == "Embedding" else inputs[-1]).data).sum())

    h = 1e-4
    slope = (8 * (along(h) - along(-h)) - (along(2 * h) - along(-2 * h))) / (12 * h)
    parts = [float((p.grad * d).sum()) for p, d in zip(inputs, directions)]
    # The quotient is off by h^4/30 = 3e-18 times the fifth derivative (1e9 in attention) and by 1e-16 |y| / h = 1e-9.
    assert abs(sum(parts) - slope) < 1e-8 * (1 + sum(map(abs, parts)))


@each_layer
def test_float32_stays_float32(name, rng):
    """From float32 parameters and input come float32 results and gradients."""
    layer, x = make(name, rng, "float32")
    x = x if name == "Embedding" else Tensor(x, requires_grad=True)
    y = call(name, layer, x)
    y.backward(asarray(rng.standard_normal(y.shape), "float32"))
    assert {str(a.dtype) for a in [y.data, *(p.grad for p in layer.parameters())]} == {"float32"}
    assert name == "Embedding" or x.grad.dtype == xp.float32


# Bad input.


def test_groups_must_divide_the_channels():
    """GroupNorm names both numbers where num_groups does not divide channels."""
    with pytest.raises(ValueError, match="num_groups=4 does not divide channels=6"):
        GroupNorm(4, 6)


def test_heads_must_divide_the_channels(rng):
    """Attention of either kind names both numbers where num_heads does not divide channels; norms check groups."""
    with pytest.raises(ValueError, match="num_heads=4 does not divide channels=6"):
        Attention(6, num_heads=4, num_groups=2, rng=rng)
    with pytest.raises(ValueError, match="num_heads=4 does not divide channels=6"):
        CrossAttention(6, 5, num_heads=4, num_groups=2, rng=rng)
    with pytest.raises(ValueError, match="num_groups=4 does not divide channels=6"):
        Attention(6, num_heads=2, num_groups=4, rng=rng)


@pytest.mark.parametrize(
    ("indices", "said"),
    [([0, 5], r"indices must lie in 0\.\.4, got 5"), ([-1], r"got -1"), ([0.0], "indices must be integers")],
)
def test_an_index_out_of_range_is_refused(indices, said, rng):
    """Embedding takes integers from 0 to num_embeddings - 1 on either backend, and names what is not one."""
    with pytest.raises(ValueError, match=said):
        Embedding(5, 2, rng=rng)(np.array(indices))
