"""Each layer against its formula, written here with plain loops; how it starts; that each of its parameters matters."""

import inspect
import math

import layer_laws
import numpy as np
import pytest
from draws import SEEDS
from hypothesis import given
from hypothesis import strategies as st
from layer_laws import Row, assert_close, convolution, group_norm, numpy_parameters, random_parameters, tensor

from tinydiff.backend import default_rng, to_numpy
from tinydiff.nn import Attention, Conv2d, Embedding, GroupNorm, Linear, Module, layers

pytestmark = pytest.mark.network

SIZES = st.integers(1, 4)
ROWS = {
    "Linear": Row(lambda rng: Linear(5, 3, rng=rng), (2, 4, 5)),
    "Conv2d": Row(lambda rng: Conv2d(3, 4, rng=rng), (2, 5, 4, 3)),
    "Conv2d stride 2": Row(lambda rng: Conv2d(2, 3, stride=2, rng=rng), (2, 5, 6, 2)),
    "Conv2d wide": Row(lambda rng: Conv2d(16, 17, rng=rng), (2, 5, 6, 16)),
    "GroupNorm": Row(lambda rng: GroupNorm(3, 6), (2, 3, 4, 6)),
    "Embedding": Row(lambda rng: Embedding(4, 3, rng=rng), None, lambda layer, x: layer(x)),
    "Attention": Row(lambda rng: Attention(8, num_heads=2, num_groups=4, rng=rng), (2, 3, 2, 8)),
}
each_layer = pytest.mark.parametrize("name", ROWS)


# What a layer computes.


@given(SEEDS, st.lists(SIZES, max_size=3).map(tuple), SIZES, SIZES)
def test_linear_is_an_affine_map_of_the_last_axis(seed, lead, i, o):
    """y[..., o] = sum_i x[..., i] w[i, o] + b[o], whatever the leading axes."""
    rng = default_rng(seed)
    layer, x = random_parameters(Linear(i, o, rng=rng), rng), rng.standard_normal((*lead, i))
    p = numpy_parameters(layer)
    assert_close(layer(tensor(x)), np.einsum("...i,io->...o", x, p["w"]) + p["b"])


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


@given(SEEDS, SIZES, st.integers(2, 4), st.lists(st.integers(1, 3), max_size=2))
def test_group_norm_normalises_each_group_of_each_image(seed, num_groups, width, pixels):
    """(x - mean) / sqrt(var + 1e-5) over a group, times gamma, plus beta."""
    rng = default_rng(seed)
    layer = random_parameters(GroupNorm(num_groups, num_groups * width), rng)
    x = 2 + 3 * rng.standard_normal((3, *pixels, num_groups * width))
    p = numpy_parameters(layer)
    expected = group_norm(x, p["gamma"], p["beta"], num_groups)
    # 1e-8: two numbers may be near each other, and their deviation then amplifies rounding up to 1 / sqrt(1e-5) fold.
    np.testing.assert_allclose(to_numpy(layer(tensor(x))), expected, rtol=1e-8, atol=1e-8)


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


# How a layer starts.


def test_attention_starts_as_the_identity(rng):
    """Its last map starts at zero, so that at first x + out(...) is x, bit for bit; the others do not."""
    x = rng.standard_normal((2, 3, 4, 8), dtype="float32")
    layer = ROWS["Attention"].build(rng)
    np.testing.assert_array_equal(to_numpy(layer(tensor(x))), x)
    assert {key for key, p in layer.named_parameters() if key[-1] == "w" and not to_numpy(p).any()} == {"out.w"}


@pytest.mark.parametrize(
    ("build", "fan_in", "fan_out"),
    [
        (lambda rng: Linear(40, 361, rng=rng), 40, 361),
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
    layer_laws.the_generator_alone_decides_the_start(ROWS[name], draws=name != "GroupNorm")


# What training sees of it.


def test_every_layer_has_a_row():
    """A new layer is put to these laws too."""
    found = {k for k, v in vars(layers).items() if inspect.isclass(v) and issubclass(v, Module) and v is not Module}
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


def test_groups_must_divide_the_channels():
    """GroupNorm names both numbers where num_groups does not divide channels."""
    with pytest.raises(ValueError, match="num_groups=4 does not divide channels=6"):
        GroupNorm(4, 6)


def test_heads_must_divide_the_channels(rng):
    """Attention names both numbers where num_heads does not divide channels; its norm checks the groups."""
    with pytest.raises(ValueError, match="num_heads=4 does not divide channels=6"):
        Attention(6, num_heads=4, num_groups=2, rng=rng)
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
