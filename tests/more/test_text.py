"""The text's side: the encoder against plain loops, what padding may not do, the U-Net that reads, and prompts."""

import inspect
import json
import math

import numpy as np
import pytest
from draws import SEEDS
from hypothesis import given
from hypothesis import strategies as st
from tiny_unet import (
    FEWER,
    TINY,
    assert_close,
    configs,
    every_parameter_is_trained,
    images,
    randomised,
    run,
    sizes_seen,
    the_gradient_is_the_derivative,
    tiny,
)

from tinydiff.autograd import Tensor, no_grad
from tinydiff.backend import asarray, default_rng, to_numpy
from tinydiff.diffusion import classifier_free, unconditional
from tinydiff.more.layers import CrossAttention
from tinydiff.more.text import PADDING, Prompted, ReadingUNet, TextEncoder, TextUNet
from tinydiff.nn import Attention, UNet

pytestmark = pytest.mark.network

ENCODER = {"num_words": 7, "max_length": 6, "features": 8, "num_blocks": 2, "num_heads": 2}


def encoder(rng, dtype="float64"):
    return randomised(TextEncoder(**ENCODER, rng=rng), rng, dtype)


def text_unet(rng, dtype="float64"):
    return randomised(TextUNet(ENCODER, TINY, rng=rng), rng, dtype)


def draw_tokens(rng, n, length):
    """(n, length) tokens, a random number of words in each row, at least one, and then padding."""
    words = rng.integers(1, length + 1, n)
    return np.where(np.arange(length) < words[:, None], rng.integers(1, ENCODER["num_words"], (n, length)), PADDING)


def encode(model, tokens):
    with no_grad():
        features, present = model.encode(tokens)
    return to_numpy(features), to_numpy(present)


# The encoder.


def norm(x, p, name):
    """Each row of x (L, F): centre, divide by the deviation, scale and shift."""
    rows = [(row - row.mean()) / np.sqrt(row.var() + 1e-5) for row in x]
    return np.stack(rows) * p[f"{name}.gamma"] + p[f"{name}.beta"]


def encode_by_hand(p, words):
    """One sentence without padding, word by word: the transformer of the docstring."""
    features, heads = ENCODER["features"], ENCODER["num_heads"]
    x = np.stack([p["words.w"][word] + p["places.w"][place] for place, word in enumerate(words)])
    for block in (f"blocks.{i}" for i in range(ENCODER["num_blocks"])):
        qkv = norm(x, p, f"{block}.norm1") @ p[f"{block}.qkv.w"] + p[f"{block}.qkv.b"]
        mixed = np.zeros_like(x)
        for place, head in np.ndindex(len(words), heads):
            q, k, v = (qkv[:, i * features :][:, head * features // heads :][:, : features // heads] for i in range(3))
            weights = [math.exp(q[place] @ key / math.sqrt(features // heads)) for key in k]
            mean = sum(weight / sum(weights) * value for weight, value in zip(weights, v))
            mixed[place, head * features // heads :][: features // heads] = mean
        x = x + mixed @ p[f"{block}.out.w"] + p[f"{block}.out.b"]
        h = norm(x, p, f"{block}.norm2") @ p[f"{block}.mlp1.w"] + p[f"{block}.mlp1.b"]
        x = x + h / (1 + np.exp(-h)) @ p[f"{block}.mlp2.w"] + p[f"{block}.mlp2.b"]
    return norm(x, p, "norm")


@FEWER
@given(SEEDS, st.integers(1, 3), st.integers(1, 6))
def test_the_encoder_is_the_transformer_of_its_docstring(seed, n, length):
    """Row by row and word by word with plain loops, padding left away; and `present` says which tokens are words."""
    rng = default_rng(seed)
    model, tokens = encoder(rng), draw_tokens(rng, n, length)
    features, present = encode(model, tokens)
    np.testing.assert_array_equal(present, tokens != PADDING)
    p = model.state_dict()
    for row, found, there in zip(tokens, features, present):
        assert_close(found[there], encode_by_hand(p, row[there]))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_what_padding_holds_does_not_matter(rng, dtype):
    """With another vector for padding the features of all words are the same bits, and that vector is not trained."""
    model, tokens = encoder(rng, dtype), draw_tokens(rng, 4, 6)
    features, present = encode(model, tokens)
    model.words.w.data[PADDING] = 1e3
    again, _ = encode(model, tokens)
    np.testing.assert_array_equal(again[present], features[present])
    y, _ = model.encode(tokens)
    y.backward(asarray(np.where(present[..., None], rng.standard_normal(y.shape), 0), dtype))
    assert not to_numpy(model.words.w.grad)[PADDING].any() and to_numpy(model.words.w.grad)[1:].any(1).any()


@FEWER
@given(SEEDS, st.integers(1, 4), st.integers(1, 2))
def test_longer_padding_changes_nothing_but_rounding(seed, length, more):
    """A sentence means the same beside longer ones, for which its row is filled up."""
    rng = default_rng(seed)
    model, tokens = encoder(rng), draw_tokens(rng, 3, length)
    features, present = encode(model, tokens)
    longer, _ = encode(model, np.pad(tokens, ((0, 0), (0, more))))
    assert_close(longer[:, :length][present], features[present])


def test_the_order_of_the_words_matters(rng):
    """Places count: the same words in another order are another text."""
    model = encoder(rng)
    features, _ = encode(model, [[1, 2, 3], [3, 2, 1]])
    assert abs(features[0] - features[1][::-1]).max() > 1e-3


def test_every_parameter_of_the_encoder_has_a_gradient(rng):
    """A random cotangent reaches every number but the padding's vector and the keys' biases, which nothing sees."""
    model, tokens = encoder(rng), np.array([[1, 2, 3, 4, 5, 6], [6, 5, 0, 0, 0, 0]])
    features, present = model.encode(tokens)
    features.backward(asarray(rng.standard_normal(features.shape) * to_numpy(present)[..., None]))
    for name, p in model.named_parameters():
        grad = abs(to_numpy(p.grad))
        if name == "words.w":
            assert not grad[PADDING].any()
            grad = grad[1:]
        elif name.endswith("qkv.b"):
            assert grad[8:16].max() < 1e-12  # one shift of all keys shifts each softmax's input
            grad = np.concatenate([grad[:8], grad[16:]])
        assert grad.min() > 1e-9, name  # rounding alone would leave 1e-15


@pytest.mark.parametrize(
    ("tokens", "said"),
    [
        ([[1, 7]], r"tokens must lie in 0\.\.6, got 7"),
        ([[1, -1]], "got -1"),
        ([[1.0]], "tokens must be integers"),
        ([1, 2], r"shape \(N, L\), 1 <= L <= 6, and a word in each row, got shape \(2,\)"),
        ([[1] * 7], r"got shape \(1, 7\)"),
        ([[1, 2], [0, 0]], r"a word in each row, got shape \(2, 2\)"),
    ],
)
def test_tokens_of_another_kind_are_refused(tokens, said, rng):
    """Words out of range, too many of them, none at all: a ValueError that says which."""
    with pytest.raises(ValueError, match=said):
        encoder(rng).encode(tokens)


def test_heads_must_divide_the_features(rng):
    """As in the U-Net's own attention."""
    with pytest.raises(ValueError, match="num_heads=3 does not divide features=8"):
        TextEncoder(**ENCODER | {"num_heads": 3}, rng=rng)


# The U-Net that reads.


def reading(rng, dtype="float64", **options):
    return tiny(rng, dtype, ReadingUNet, text_features=5, **options)


def draw_text(rng, n, dtype="float64"):
    """The random features of a text of four tokens for each image, of which one or two are there."""
    present = np.arange(4) >= 2 + np.arange(n)[:, None] % 2
    return Tensor(asarray(rng.standard_normal((n, 4, 5)), dtype)), asarray(present)


@given(configs(), SEEDS)
def test_any_configuration_maps_images_to_images_and_trains_all_of_itself(drawn, seed):
    """The output has the input's shape, everything is float32, and every parameter gets a gradient that is not 0."""
    config, shape = drawn
    rng = default_rng(seed)
    model, x = reading(rng, "float32", **config), images(rng, *shape, dtype="float32")
    text = draw_text(rng, shape[0], "float32")
    every_parameter_is_trained(model, lambda: (x, model(x, np.array([1, 50, 1000]), text)), rng)


@FEWER
@given(configs(), SEEDS)
def test_a_text_is_read_at_every_level_but_the_first_and_once_in_the_middle(drawn, seed):
    """After each block of the levels that read, at their resolution; self-attention is where it is without a text."""
    config, shape = drawn
    rng = default_rng(seed)
    model, x = reading(rng, "float32", **config), images(rng, *shape, dtype="float32")
    text = draw_text(rng, shape[0], "float32")
    sizes = [(shape[1] >> level, shape[2] >> level) for level in range(len(config["channel_mults"]))]
    blocks = 2 * config["num_res_blocks"] + 1
    expected = [sizes[-1]] + [size for size in sizes[1:] for _ in range(blocks)]
    assert sizes_seen(model, CrossAttention, lambda: model(x, 1, text)) == sorted(expected)
    expected = [sizes[-1]] + [sizes[level] for level in config["attention_levels"] for _ in range(blocks)]
    assert sizes_seen(model, Attention, lambda: model(x, 1, text)) == sorted(expected)


@FEWER
@given(configs(), SEEDS)
def test_its_parameters_are_those_of_a_unet_and_one_cross_attention_a_reading_block(drawn, seed):
    """By name and in order, so that checkpoints fit: a block that reads has BLOCK.cross.* behind its other parameters.

    Reading blocks are down.i and up.i of every level but the first, and middle.0.
    """
    config, _ = drawn
    levels, per_level = len(config["channel_mults"]), config["num_res_blocks"]
    down = [f"down.{level * (per_level + 1) + i}" for level in range(1, levels) for i in range(per_level)]
    # On the way up the deepest level comes first.
    up = [f"up.{k * (per_level + 2) + i}" for k in range(levels - 1) for i in range(per_level + 1)]
    layers = ("norm.gamma", "norm.beta", "q.w", "q.b", "kv.w", "kv.b", "out.w", "out.b")
    expected, before = [], ""
    for name in [*UNet(**config, rng=default_rng(0)).state_dict(), "end"]:
        block = ".".join(name.split(".")[:2])
        if before != block and before in {*down, *up, "middle.0"}:
            expected += [f"{before}.cross.{layer}" for layer in layers]
        expected.append(name)
        before = block
    assert list(ReadingUNet(5, **config, rng=default_rng(0)).state_dict()) == expected[:-1]


@FEWER
@given(configs(), SEEDS)
def test_its_configuration_makes_it_again(drawn, seed):
    """config holds every argument, and makes the same bits from the same generator, also after a way through JSON."""
    arguments, _ = drawn
    first = ReadingUNet(5, **arguments, rng=default_rng(seed))
    assert first.config == UNet(**arguments, rng=default_rng(seed)).config | {"text_features": 5}
    again = ReadingUNet(**json.loads(json.dumps(first.config)), rng=default_rng(seed))
    assert again.config == first.config
    state, other = first.state_dict(), again.state_dict()
    assert list(state) == list(other)
    for name in state:
        np.testing.assert_array_equal(state[name], other[name])


def test_it_begins_to_read_as_if_there_were_no_text(rng):
    """With the weights of a UNet it gives the UNet's bits, whatever the text: what it adds is 0."""
    plain = UNet(base_channels=8, num_groups=4, rng=rng)
    model = ReadingUNet(5, base_channels=8, num_groups=4, rng=rng)
    randomised(plain, rng, "float32")
    new = {name: a for name, a in model.state_dict().items() if ".cross." in name}
    assert plain.state_dict().keys() == model.state_dict().keys() - new.keys()
    model.load_state_dict(plain.state_dict() | new)
    x, text = images(rng, 2, 8, 8, dtype="float32"), draw_text(rng, 2, "float32")
    np.testing.assert_array_equal(run(model, x, 7, text), run(plain, x, 7))


@FEWER
@given(SEEDS)
def test_its_gradient_is_the_derivative_along_a_random_direction(seed):
    """Over the image, the text's features and all parameters together."""
    rng = default_rng(seed)
    model, text = reading(rng, attention_levels=(1,), num_res_blocks=2), draw_text(rng, 2)
    x, t = Tensor(images(rng, 2), requires_grad=True), rng.integers(1, 1001, 2)
    text[0].requires_grad = True
    inputs = [text[0], *model.parameters(), x]
    the_gradient_is_the_derivative(lambda: model(x, t, text), inputs, images(rng, 2), rng)


def test_a_missing_text_is_refused(rng):
    """A network that reads does not guess its text."""
    with pytest.raises(ValueError, match="text is missing: features and present"):
        reading(rng)(images(rng, 2), 1)


# The two as one network.


def test_the_network_is_the_unet_on_the_encoders_text(rng):
    """model(x_t, t, tokens) is unet(x_t, t, encode(tokens)), row by row too, and its text matters."""
    model = text_unet(rng)
    x, t, tokens = asarray(rng.standard_normal((3, 6, 4, 1))), np.array([1, 500, 1000]), draw_tokens(rng, 3, 5)
    tokens[:, 0] = [1, 2, 3]
    found = run(model, x, t, tokens)
    with no_grad():
        np.testing.assert_array_equal(found, to_numpy(model.unet(x, t, model.encoder.encode(tokens))))
    assert_close(run(model, x[1:2], t[1:2], tokens[1:2, : (tokens[1] > 0).sum()]), found[1:2])
    assert abs(run(model, x, t, tokens[[1, 2, 0]]) - found).max() > 1e-3


def test_a_configuration_makes_the_same_network_again():
    """config holds every argument of both, and makes the same bits from the same generator, also through JSON."""
    first = TextUNet(ENCODER, TINY, rng=default_rng(3))
    assert {*first.encoder.config, "rng"} == set(inspect.signature(TextEncoder).parameters)
    assert first.config["encoder"] == ENCODER and first.config["unet"]["text_features"] == ENCODER["features"]
    again = TextUNet(**json.loads(json.dumps(first.config)), rng=default_rng(3))
    assert again.config == first.config
    for (name, a), (other, b) in zip(first.state_dict().items(), again.state_dict().items()):
        assert name == other and np.array_equal(a, b)


@FEWER
@given(SEEDS)
def test_the_gradient_of_both_is_the_derivative_along_a_random_direction(seed):
    """sum <dp, d> = d/dh <g, model(x_t, t, tokens; p + h d)> at h = 0, over all parameters of both together."""
    rng = default_rng(seed)
    model, x, tokens, t = text_unet(rng), images(rng, 2, 4, 4), draw_tokens(rng, 2, 4), rng.integers(1, 1001, 2)
    the_gradient_is_the_derivative(lambda: model(x, t, tokens), model.parameters(), images(rng, 2, 4, 4), rng)


def test_float32_stays_float32(rng):
    """From float32 parameters and images come float32 results and gradients."""
    model = text_unet(rng, "float32")
    y = model(asarray(rng.standard_normal((2, 4, 4, 1), dtype="float32")), 7, draw_tokens(rng, 2, 4))
    y.backward(asarray(rng.standard_normal(y.shape, dtype="float32")))
    assert {str(a.dtype) for a in [y.data, *(p.grad for p in model.parameters())]} == {"float32"}


# Prompts as classes.


@FEWER
@given(SEEDS, st.integers(1, 4), st.integers(1, 5))
def test_class_i_is_prompt_i_and_no_label_is_the_negative_prompt(seed, num_prompts, n):
    """Prompted says what the network says of those tokens, for any labels, one for all or one an image."""
    rng = default_rng(seed)
    model, rows = text_unet(rng), draw_tokens(rng, num_prompts + 1, 5)
    prompted = Prompted(model, rows[:-1].tolist(), rows[-1].tolist())
    assert prompted.num_classes == num_prompts
    x, labels = asarray(rng.standard_normal((n, 4, 4, 1))), rng.integers(0, num_prompts + 1, n)
    assert_close(run(prompted, x, 7, labels), run(model, x, 7, rows[labels]))
    assert_close(run(prompted, x, 7, num_prompts), run(model, x, 7, rows[[-1] * n]))
    with pytest.raises(ValueError, match=rf"labels must lie in 0\.\.{num_prompts}, got {num_prompts + 1}"):
        prompted(x, 7, num_prompts + 1)


@FEWER
@given(SEEDS, st.sampled_from([0.0, 1.0, 3.0]))
def test_guidance_leads_from_the_negative_prompt_to_the_prompt(seed, scale):
    """classifier_free as it is: eps of the negative prompt plus scale times what the prompt says beyond it."""
    rng = default_rng(seed)
    model, rows = text_unet(rng), draw_tokens(rng, 3, 5)
    prompted, x = Prompted(model, rows[:2].tolist(), rows[2].tolist()), asarray(rng.standard_normal((2, 4, 4, 1)))
    asked, avoided = run(model, x, 7, rows[[1, 0]]), run(model, x, 7, rows[[2, 2]])
    with no_grad():
        assert_close(to_numpy(classifier_free(prompted, [1, 0], scale)(x, 7)), avoided + scale * (asked - avoided))
        assert_close(to_numpy(unconditional(prompted)(x, 7)), avoided)


def test_each_prompt_is_encoded_once(rng):
    """However often Prompted is called; and it keeps no graph of the encoder's parameters."""
    model, calls = text_unet(rng, "float32"), []
    encode = model.encoder.encode
    model.encoder.encode = lambda tokens: (calls.append(len(tokens)), encode(tokens))[1]
    prompted, x = Prompted(model, [[1, 2], [3, 0]], [4, 0]), Tensor(asarray(np.ones((2, 4, 4, 1), "float32")))
    for t in (3, 2, 1):
        prompted(x, t, [0, 1]).backward(asarray(np.ones((2, 4, 4, 1), "float32")))
    assert calls == [3] and all(p.grad is None for p in model.encoder.parameters())


@pytest.mark.parametrize("name", ["num_words", "max_length", "features", "num_blocks", "num_heads"])
@pytest.mark.parametrize("value", [0, -1, 1.5, float("nan")])
def test_a_size_of_the_encoder_out_of_range_is_refused(name, value, rng):
    """Whole numbers from 1, else ValueError or TypeError."""
    with pytest.raises((ValueError, TypeError)):
        TextEncoder(**{"num_words": 5, "features": 8, name: value}, rng=rng)
