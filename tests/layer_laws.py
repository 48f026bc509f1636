"""What the tests of layers share: random parameters, loops that compute what a layer computes, laws of every layer."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from tinydiff.autograd import Tensor
from tinydiff.backend import asarray, default_rng, to_numpy
from tinydiff.nn import Module

PRESENT = np.array([[True, True, False, True], [False, True, False, False]])


def on_a_map(layer, x):
    return layer(x if isinstance(x, Tensor) else Tensor(x))


def beside_a_text(layer, x):
    """The same features every time, five for each token of PRESENT."""
    features = asarray(default_rng(1).standard_normal((*PRESENT.shape, 5)), x.dtype)
    return layer(x if isinstance(x, Tensor) else Tensor(x), Tensor(features), PRESENT)


class Row(NamedTuple):
    """A kind of layer: how to make it, the shape of an input for it (None: integers 0..3), and how to call it."""

    build: Callable[[Any], Module]
    shape: tuple[int, ...] | None
    call: Callable[[Any, Any], Tensor] = on_a_map


def random_parameters(module, rng, dtype="float64"):
    """Give every parameter random values, so that none is 0 or 1 and none hides another."""
    for p in module.parameters():
        p.data = asarray(rng.standard_normal(p.shape), dtype)
    return module


def numpy_parameters(module):
    return {name: to_numpy(p) for name, p in module.named_parameters()}


def tensor(a):
    return Tensor(asarray(a))


def assert_close(found, expected):
    # 1e-11: sums of up to a hundred float64 products of numbers up to about 10.
    np.testing.assert_allclose(to_numpy(found), expected, rtol=1e-11, atol=1e-11)


# Loops.


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


def group_norm(x, gamma, beta, num_groups):
    """Group by group of each image: centre, divide by the deviation, scale and shift."""
    y = np.empty_like(x)
    for image, out in zip(x, y):
        for channels in np.split(np.arange(x.shape[-1]), num_groups):
            group = image[..., channels]
            out[..., channels] = (group - group.mean()) / np.sqrt(group.var() + 1e-5)
    return y * gamma + beta


# Laws of every layer.


def make(row, rng, dtype="float64"):
    """(layer with random parameters, an input that suits it, a Tensor that wants a gradient where it may)."""
    if row.shape is None:
        return random_parameters(row.build(rng), rng, dtype), np.array([3, 1, 1, 0, 2])
    x = Tensor(asarray(rng.standard_normal(row.shape), dtype), requires_grad=True)
    return random_parameters(row.build(rng), rng, dtype), x


def every_parameter_has_a_gradient(row, rng):
    layer, x = make(row, rng)
    y = row.call(layer, x)
    y.backward(asarray(rng.standard_normal(y.shape)))
    for key, p in layer.named_parameters():
        grad = abs(to_numpy(p.grad))
        if key in ("qkv.b", "kv.b"):
            *of_queries, of_keys, of_values = grad.reshape(len(key) - 2, -1)
            assert of_keys.max() < 1e-12  # one shift of all keys shifts each softmax's input, which it does not notice
            grad = np.stack([*of_queries, of_values])
        assert grad.min() > 1e-9, key  # rounding alone would leave 1e-15


def the_gradient_is_the_derivative(row, rng):
    """Along a random direction of the input and all parameters together."""
    layer, x = make(row, rng)
    inputs = layer.parameters() + [x] * isinstance(x, Tensor)
    y = row.call(layer, x)
    g = asarray(rng.standard_normal(y.shape))
    y.backward(g)
    directions = [asarray(rng.standard_normal(p.shape)) for p in inputs]
    starts = [p.data for p in inputs]

    def along(h):
        for p, start, d in zip(inputs, starts, directions):
            p.data = start + h * d
        return float((g * row.call(layer, x).data).sum())

    h = 1e-4
    slope = (8 * (along(h) - along(-h)) - (along(2 * h) - along(-2 * h))) / (12 * h)
    parts = [float((p.grad * d).sum()) for p, d in zip(inputs, directions)]
    # The quotient is off by h^4/30 = 3e-18 times the fifth derivative (1e9 in attention) and by 1e-16 |y| / h = 1e-9.
    assert abs(sum(parts) - slope) < 1e-8 * (1 + sum(map(abs, parts)))


def float32_stays_float32(row, rng):
    layer, x = make(row, rng, "float32")
    y = row.call(layer, x)
    y.backward(asarray(rng.standard_normal(y.shape), "float32"))
    inputs = layer.parameters() + [x] * isinstance(x, Tensor)
    assert {str(a.dtype) for a in [y.data, *(p.grad for p in inputs)]} == {"float32"}


def the_generator_alone_decides_the_start(row, draws):
    """draws: whether the layer draws anything."""
    states = [row.build(default_rng(seed)).state_dict() for seed in (1, 1, 2)]
    for key, first in states[0].items():
        assert first.dtype == np.float32
        np.testing.assert_array_equal(first, states[1][key])
    same = all(np.array_equal(first, states[2][key]) for key, first in states[0].items())
    assert same != draws
