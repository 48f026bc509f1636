"""The classifier is the network that its docstring draws, and its loss is the cross entropy."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinydiff.autograd import Tensor
from tinydiff.backend import asarray, default_rng, to_numpy
from tinydiff.data import load
from tinydiff.more.classifier import Classifier, cross_entropy
from tinydiff.nn.unet import time_code
from tinydiff.optim import Adam

pytestmark = pytest.mark.network

SMALL = {"channels": (4, 8), "num_classes": 3, "num_groups": 2}
seeds = st.integers(0, 2**32)


def randomised(config, rng):
    """A classifier none of whose parameters is 0 or 1, as biases and scales are at the start."""
    model = Classifier(**config, rng=rng)
    for p in model.parameters():
        p.data[...] += asarray(rng.uniform(-0.3, 0.3, p.shape), "float32")
    return model


def loop_conv(x, w, b, stride):
    """3x3 convolution of padding 1, one output pixel after another."""
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    y = np.zeros((len(x), -(-x.shape[1] // stride), -(-x.shape[2] // stride), w.shape[3]))
    for i in range(y.shape[1]):
        for j in range(y.shape[2]):
            window = padded[:, i * stride : i * stride + 3, j * stride : j * stride + 3]
            y[:, i, j] = np.einsum("nklc,klco->no", window, w) + b
    return y


def loop_norm_silu(x, gamma, beta, num_groups):
    z = np.empty_like(x)
    size = x.shape[3] // num_groups
    for image, out in zip(x, z):
        for c in range(0, x.shape[3], size):
            group = image[..., c : c + size]
            out[..., c : c + size] = (group - group.mean()) / np.sqrt(group.var() + 1e-5)
    z = z * gamma + beta
    return z / (1 + np.exp(-z))


@given(seeds, st.integers(1, 3), st.integers(3, 9), st.integers(3, 9), st.integers(1, 3))
def test_the_network_is_the_one_its_docstring_draws(seed, n, height, width, in_channels):
    """Two convolutions a level, the first of stride 2, each normalised and through SiLU; then the mean, then linear."""
    rng = default_rng(seed)
    model = randomised({**SMALL, "in_channels": in_channels}, rng)
    x = rng.standard_normal((n, height, width, in_channels), dtype="float32")
    p = {name: a.astype("float64") for name, a in model.state_dict().items()}
    h = x.astype("float64")
    for i, stride in enumerate((2, 1, 2, 1)):
        h = loop_conv(h, p[f"convs.{i}.w"], p[f"convs.{i}.b"], stride)
        h = loop_norm_silu(h, p[f"norms.{i}.gamma"], p[f"norms.{i}.beta"], num_groups=2)
    expected = h.mean((1, 2)) @ p["out.w"] + p["out.b"]
    logits = model(asarray(x))
    assert logits.shape == (n, 3) and logits.dtype == "float32"
    # 1e-3: a group of a few nearly equal float32 values has its rounding divided by its own small deviation.
    np.testing.assert_allclose(to_numpy(logits), expected, atol=1e-3)


def test_a_gradient_reaches_every_parameter(rng):
    """No parameter is left out of the logits: each gets a gradient that is not zero."""
    model = Classifier(rng=rng)
    logits = model(asarray(rng.standard_normal((4, 28, 28, 1), dtype="float32")))
    logits.backward(asarray(rng.standard_normal(logits.shape, dtype="float32")))
    for name, p in model.named_parameters():
        assert p.grad is not None and float(abs(p.grad).max()) > 1e-6, name


def test_the_logits_are_linear_in_the_features(rng):
    """logits = features w + b: the features, (N, channels[-1]), are all that the answer hangs on."""
    model = randomised(SMALL, rng)
    x = asarray(rng.standard_normal((3, 9, 8, 1), dtype="float32"))
    features = model.features(x)
    assert features.shape == (3, 8) and features.dtype == "float32"
    expected = to_numpy(features) @ to_numpy(model.out.w) + to_numpy(model.out.b)
    np.testing.assert_allclose(to_numpy(model(x)), expected, atol=1e-5)  # float32 sums of 8 numbers of size 1


@given(seeds, st.integers(1, 4))
def test_each_pictures_own_time_is_a_bias_of_its_first_maps(seed, n):
    """model(x, t) row by row is the clean network whose first bias is b + time_code(t) w + b_time."""
    rng = default_rng(seed)
    model = randomised({**SMALL, "time": True}, rng)
    x, t = rng.standard_normal((n, 9, 7, 1), dtype="float32"), rng.integers(0, 1001, n)
    state = model.state_dict()
    w, b = state.pop("time.w"), state.pop("time.b")
    clean = Classifier(**SMALL, rng=rng)
    for row, k in enumerate(t.tolist()):
        bias = to_numpy(time_code([k], 128))[0] @ w + b
        clean.load_state_dict({**state, "convs.0.b": state["convs.0.b"] + bias})
        alone = to_numpy(clean(asarray(x[row : row + 1])))[0]
        # 1e-3: as above, float32 divided by a small deviation
        np.testing.assert_allclose(to_numpy(model(asarray(x), t))[row], alone, atol=1e-3)
    assert np.abs(to_numpy(model(asarray(x), 1)) - to_numpy(model(asarray(x), 900))).max() > 1e-3  # t does matter


def test_a_gradient_reaches_the_times_parameters(rng):
    """With time=True two more parameters, trained like the others; the rest start as without."""
    model, clean = (Classifier(**SMALL, time=time, rng=default_rng(3)) for time in (True, False))
    assert model.state_dict().keys() - clean.state_dict().keys() == {"time.w", "time.b"}
    for name, p in clean.state_dict().items():
        assert np.array_equal(p, model.state_dict()[name]), name
    logits = model(asarray(rng.standard_normal((4, 8, 8, 1), dtype="float32")), [1, 10, 100, 1000])
    logits.backward(asarray(rng.standard_normal(logits.shape, dtype="float32")))
    for name, p in model.named_parameters():
        assert p.grad is not None and float(abs(p.grad).max()) > 1e-6, name


def test_a_time_where_none_belongs_and_none_where_one_does_are_refused(rng):
    """The clean classifier has no use for t, and the noisy one does not guess it; a t out of range is named."""
    x = np.zeros((2, 8, 8, 1), "float32")
    with pytest.raises(ValueError, match="t must be None for a classifier with time=False and a time otherwise, got 3"):
        Classifier(**SMALL, rng=rng)(x, 3)
    noisy = Classifier(**SMALL, time=True, rng=rng)
    with pytest.raises(ValueError, match="a time otherwise, got None"):
        noisy(x)
    with pytest.raises(ValueError, match=r"t must lie in 0\.\..*, got -1"):
        noisy(x, [3, -1])


@given(seeds, st.integers(2, 12))
def test_logits_permute_with_the_batch(seed, n):
    """Each picture is read alone: reordering the batch reorders the logits and changes nothing else."""
    rng = default_rng(seed)
    model = randomised({"channels": (16, 16)}, rng)
    x, order = rng.standard_normal((n, 14, 14, 1), dtype="float32"), rng.permutation(n)
    together, reordered = to_numpy(model(asarray(x))), to_numpy(model(asarray(x[order])))
    np.testing.assert_allclose(reordered, together[order], atol=1e-4)  # float32 sums in another order
    np.testing.assert_allclose(to_numpy(model(asarray(x[:1]))), together[:1], atol=1e-4)


def test_every_pixel_counts(rng):
    """The logits of the default network depend on each pixel of a 28x28 picture, the corners among them."""
    x = Tensor(asarray(rng.standard_normal((1, 28, 28, 1), dtype="float32")), requires_grad=True)
    logits = Classifier(rng=rng)(x)
    logits.backward(asarray(rng.standard_normal(logits.shape, dtype="float32")))
    assert float(abs(x.grad).min()) > 0


def test_its_config_makes_it_again(rng):
    """Through JSON, as a checkpoint keeps it: the same network, which takes the old one's parameters."""
    model = Classifier(2, **SMALL, rng=rng)
    again = Classifier(**json.loads(json.dumps(model.config)), rng=default_rng(1))
    x = asarray(rng.standard_normal((2, 8, 8, 2), dtype="float32"))
    assert not np.array_equal(to_numpy(again(x)), to_numpy(model(x)))
    again.load_state_dict(model.state_dict())
    assert np.array_equal(to_numpy(again(x)), to_numpy(model(x)))


@given(seeds, st.integers(1, 6), st.integers(2, 7), st.sampled_from([1.0, 100.0, 1e4]))
def test_cross_entropy_is_minus_the_log_of_the_labels_probability(seed, n, num_classes, size):
    """Loss and gradient against the definition, example by example, also where a probability underflows to 0."""
    rng = default_rng(seed)
    logits = Tensor(asarray(size * rng.standard_normal((n, num_classes))), requires_grad=True)
    labels, g = rng.integers(0, num_classes, n), rng.standard_normal(n)
    losses = cross_entropy(logits, labels)
    losses.backward(asarray(g))
    for row, label, loss, dx, cotangent in zip(
        to_numpy(logits), labels, to_numpy(losses), to_numpy(logits.grad), g, strict=True
    ):
        expected = math.log(math.fsum(math.exp(z - max(row)) for z in row)) + max(row) - row[label]
        assert loss == pytest.approx(expected, abs=1e-12 * size)  # a difference of numbers of that size
        for k in range(num_classes):
            probability = math.exp(row[k] - row[label] - expected)
            assert dx[k] == pytest.approx(cotangent * (probability - (k == label)), abs=1e-11)  # exp of size 1e4


def test_one_label_serves_the_whole_batch(rng):
    """An integer stands for the same label for every example."""
    logits = Tensor(asarray(rng.standard_normal((4, 5))))
    assert np.array_equal(to_numpy(cross_entropy(logits, 2)), to_numpy(cross_entropy(logits, np.full(4, 2))))


def test_it_learns_a_handful_of_digits_by_heart(rng):
    """Sixty steps on a dozen glyphs bring their loss from that of guessing to nearly nothing."""
    x, labels = load("glyphs", num=12).batch(np.arange(12))
    model = Classifier(channels=(16, 32), rng=rng)
    adam = Adam(model.parameters(), lr=5e-3)
    losses = []
    for _ in range(60):
        adam.zero_grad()
        loss = cross_entropy(model(x), labels)
        loss.backward(asarray(np.full(12, 1 / 12, "float32")))
        adam.step()
        losses.append(float(loss.data.mean()))
    assert 1.5 < losses[0] < 3.5  # log 10 = 2.3 and a random network's error
    assert losses[-1] < 0.1  # 0.02 is usual
    assert np.array_equal(to_numpy(model(x)).argmax(1), labels)


@pytest.mark.parametrize("shape", [(2, 8, 8), (2, 8, 8, 3), (8, 8, 1)])
def test_a_wrong_input_is_refused_by_its_shape(shape, rng):
    """Anything but (N, H, W, in_channels) is named in the error."""
    with pytest.raises(ValueError, match=r"x must have shape \(N, H, W, 1\), got \(" + str(shape[0])):
        Classifier(**SMALL, rng=rng)(np.zeros(shape, "float32"))


def test_wrong_settings_and_labels_are_refused(rng):
    """No levels, groups that do not divide the channels, a label of no class: each is named with its value."""
    with pytest.raises(ValueError, match=r"channels must name at least one level, got \(\)"):
        Classifier(channels=(), rng=rng)
    with pytest.raises(ValueError, match="num_groups=4 does not divide channels=6"):
        Classifier(channels=(6,), rng=rng)
    logits = Tensor(asarray(rng.standard_normal((2, 3))))
    with pytest.raises(ValueError, match=r"labels must lie in 0\.\.2, got 3"):
        cross_entropy(logits, [0, 3])
    with pytest.raises(ValueError, match="labels"):
        cross_entropy(logits, [0, 1, 2])


@pytest.mark.parametrize(
    "logits", [np.zeros((2, 3)), None, Tensor(asarray(np.zeros(3))), Tensor(asarray(np.zeros((1, 2, 3))))]
)
def test_logits_are_a_tensor_with_a_row_for_each_example(logits):
    """(N, num_classes), else ValueError with what came instead."""
    with pytest.raises(ValueError, match=r"logits must be a Tensor \(N, num_classes\), got"):
        cross_entropy(logits, 0)


@pytest.mark.parametrize("name", ["in_channels", "num_classes", "num_groups"])
@pytest.mark.parametrize("value", [0, -1, 1.5, math.nan])
def test_a_size_out_of_range_is_refused(name, value, rng):
    """Whole numbers from 1, for the channels of each level too: else ValueError or TypeError."""
    with pytest.raises((ValueError, TypeError)):
        Classifier(**{**SMALL, name: value}, rng=rng)
    if value != 1.5:
        with pytest.raises((ValueError, TypeError)):
            Classifier(**{**SMALL, "channels": (value,)}, rng=rng)
