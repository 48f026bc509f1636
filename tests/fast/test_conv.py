"""What a convolution adds to its result in the same pass, against plain loops; and how the batch is cut.

That conv2d is its definition is shown in ops/test_conv.py.
"""

from itertools import product

import numpy as np
import pytest
from draws import SEEDS, host_normal
from hypothesis import given
from hypothesis import strategies as st
from ops.test_conv import GEOMETRIES, SIZES, conv2d_loops, gradients_loops

from tinydiff import ops
from tinydiff.autograd import Tensor
from tinydiff.backend import asarray, backend_name, to_numpy
from tinydiff.fast import conv
from tinydiff.fast.conv import conv2d_plus, output_shape

pytestmark = pytest.mark.conv

PLUS = pytest.mark.parametrize("plus", ["biases", "map"])


def plus_of(kind, y):
    """The shape of what is added to a result of shape y: a bias of each image's own, or another map."""
    return {"biases": (y[0], y[3]), "map": y}[kind]


def run(op, *arrays, **static):
    return to_numpy(op(*map(asarray, arrays), **static))


def gradients(op, *arrays, g, **static):
    leaves = [Tensor(asarray(a), requires_grad=True) for a in arrays]
    op(*leaves, **static).backward(asarray(g))
    return [to_numpy(leaf.grad) for leaf in leaves]


def is_its_definition(plus, seed, *shapes, **static):
    """Values and all gradients of conv2d_plus are those of the loops over taps, to 1e-12: each caller says why."""
    y_shape = output_shape(*shapes, **static)
    x, w, b, p, g = host_normal(seed, *shapes, shapes[1][3:], plus_of(plus, y_shape), y_shape)
    expected = conv2d_loops(x, w, b, **static) + (p if plus == "map" else p[:, None, None])
    np.testing.assert_allclose(run(conv2d_plus, x, w, b, p, **static), expected, rtol=0, atol=1e-12)
    expected = *gradients_loops(x, w, b, g=g, **static), g if plus == "map" else g.sum((1, 2))
    for found, dx in zip(gradients(conv2d_plus, x, w, b, p, g=g, **static), expected, strict=True):
        np.testing.assert_allclose(found, dx, rtol=0, atol=1e-12)


@PLUS
@pytest.mark.parametrize("kh, stride, padding", [*product(range(1, 6), range(1, 4), range(4))])
def test_it_is_its_definition_for_every_kernel_stride_and_padding(kh, stride, padding, plus):
    """Kernels 1 to 5 high and another size wide, strides 1 to 3, paddings 0 to 3: values and all gradients."""
    kw = (kh + stride) % 5 + 1
    # 1e-12: sums of at most 200 products of numbers about 1, each rounded to 1e-16.
    is_its_definition(plus, kh, (2, 5, 6, 2), (kh, kw, 2, 3), stride=stride, padding=padding)


@PLUS
@pytest.mark.parametrize(
    "kh, kw, stride, padding",
    [(3, 3, 1, 1), (3, 3, 1, 0), (3, 3, 1, 2), (3, 3, 2, 1), (5, 5, 1, 2), (3, 1, 1, 1), (1, 3, 1, 1), (5, 3, 1, 1)],
)
@pytest.mark.parametrize("c, o", [(16, 16), (16, 3), (3, 16)])
def test_wide_ones_are_their_definition_whichever_way_they_go(kh, kw, c, o, stride, padding, plus):
    """On both sides of the borders between the three methods, in kernel, stride, padding and channels."""
    # 9 and 10: three of Winograd's 4x4 tiles each way; the first sees the edge, the second none, the third is cut.
    # 1e-12: 400 products of numbers about 1, each rounded to 1e-16; Winograd's transforms reach 100 before they cancel.
    is_its_definition(plus, 0, (1, 9, 10, c), (kh, kw, c, o), stride=stride, padding=padding)


@PLUS
@given(st.data(), SEEDS, st.booleans())
def test_it_is_its_definition_for_every_size(plus, data, seed, wide):
    """Random sizes down to one pixel and channel, wide ones through winograd.py: values and all gradients."""
    if wide:
        n, c, o, stride, padding, kernel, height, width = data.draw(SIZES), 16, 17, 1, 1, (3, 3), 1, 1
    else:
        n, c, o, stride, padding = (data.draw(s) for s in (SIZES, SIZES, SIZES, SIZES, st.integers(0, 3)))
        kernel = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 5))
        height, width = (max(1, k - 2 * padding) for k in kernel)
    height, width = height + data.draw(st.integers(0, 8)), width + data.draw(st.integers(0, 5))
    # 1e-12: 300 products of numbers about 1; in a Winograd tile their transforms reach 100 before they cancel.
    is_its_definition(plus, seed, (n, height, width, c), (*kernel, c, o), stride=stride, padding=padding)


@pytest.mark.parametrize("kh, kw, c, o, stride, padding", GEOMETRIES)
def test_a_batch_is_the_stack_of_its_images(kh, kw, c, o, stride, padding):
    """Whatever slices the batch is cut into, each image gets its own bias; another map is added to the whole."""
    n, size = 67, 16  # 2 to 20 MB of windows or tiles, while a slice holds 1: the batch goes in unequal slices
    x, w, b, each = host_normal(0, (n, size, size, c), (kh, kw, c, o), (o,), (n, o))
    static = {"stride": stride, "padding": padding}
    y = run(conv2d_plus, x, w, b, each, **static)
    g, other = host_normal(1, y.shape, y.shape)
    deach = gradients(conv2d_plus, x, w, b, each, g=g, **static)[3]
    for i in range(n):
        one = slice(i, i + 1)
        np.testing.assert_allclose(run(conv2d_plus, x[one], w, b, each[one], **static), y[one], rtol=0, atol=1e-12)
        np.testing.assert_allclose(g[i].sum((0, 1)), deach[i], rtol=0, atol=1e-12)
    alone = y - each[:, None, None]
    np.testing.assert_allclose(run(ops.conv2d, x, w, b, **static), alone, rtol=0, atol=1e-12)
    np.testing.assert_allclose(run(conv2d_plus, x, w, b, other, **static), alone + other, rtol=0, atol=1e-12)
    db = gradients(conv2d_plus, x, w, b, other, g=g, **static)[2]
    np.testing.assert_allclose(db, g.sum((0, 1, 2)), rtol=0, atol=1e-10)  # 67 * 256 numbers about 1


@pytest.mark.parametrize("size", [7, 14, 28])
@pytest.mark.parametrize("kh, kw, c, o, stride, padding", GEOMETRIES)
def test_in_float32_it_is_the_one_in_float64_but_for_rounding(kh, kw, c, o, stride, padding, size):
    """Values and all gradients, at the U-Net's resolutions, relative to the largest."""
    arrays = host_normal(size, (5, size, size, c), (kh, kw, c, o), (o,), (5, o), dtype="float32")
    static = {"stride": stride, "padding": padding}
    # 6e-8 a rounding, some tens of times in sums of 4,000 products, and ten times that where Winograd's terms cancel.
    bound = 4e-5 if conv.winograd.pays(*arrays[:2], stride, padding) else 4e-6
    y = run(conv2d_plus, *arrays, **static)
    (g,) = host_normal(1, y.shape, dtype="float32")
    wide = [a.astype("float64") for a in arrays]
    expected = [
        run(conv2d_plus, *wide, **static),
        *gradients(conv2d_plus, *wide, g=g.astype("float64"), **static),
    ]
    for a, a_64 in zip([y, *gradients(conv2d_plus, *arrays, g=g, **static)], expected):
        assert a.dtype == np.float32
        assert abs(a - a_64).max() <= bound * abs(a_64).max()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "kh, kw, c, o, stride, padding, turned",
    [
        (3, 3, 8, 2, 1, 1, True),
        (3, 3, 8, 2, 1, 2, True),
        (3, 3, 8, 2, 1, 3, False),
        (3, 2, 8, 2, 1, 1, False),
        (2, 3, 8, 2, 1, 1, False),
        (3, 3, 8, 2, 2, 1, False),
        (3, 3, 7, 2, 1, 0, False),
        (3, 3, 6, 7, 1, 1, False),
        (2, 3, 3, 7, 2, 2, False),
    ],
)
def test_windows_are_of_the_map_with_far_fewer_channels_and_cut_the_batch(
    monkeypatch, kh, kw, c, o, stride, padding, turned, dtype
):
    """Bytes an image: a window for each pixel of the other map, forward and in the gradients of x and w.

    Of the output they are where it has a quarter of the channels, and stride and kernel make it a convolution too.
    """
    if backend_name() != "numpy" and dtype == "float32":
        pytest.skip("float32 on a GPU goes the way of tensor_cores.py")
    asked = []
    monkeypatch.setattr(conv, "chunks", lambda n, each: asked.append((n, each)) or [slice(0, n)])
    oh, ow = (8 + 2 * padding - kh) // stride + 1, (12 + 2 * padding - kw) // stride + 1
    x, w, b, g = host_normal(0, (2, 8, 12, c), (kh, kw, c, o), (o,), (2, oh, ow, o), dtype=dtype)
    gradients(ops.conv2d, x, w, b, g=g, stride=stride, padding=padding)
    assert asked == [(2, (8 * 12 * o if turned else oh * ow * c) * kh * kw * x.itemsize)] * 3


@pytest.mark.parametrize("plus", [[(3, 6)], [(2, 5)], [(6,)], [(2, 5, 5, 6)], [(2, 3, 3, 1)], [(2, 6), (2, 6)]])
def test_it_refuses_to_add_what_does_not_fit(plus):
    """One bias for each image and channel or one map of the result's shape; nothing is broadcast otherwise."""
    with pytest.raises(ValueError, match=r"plus must be one array of shape \(2, 6\) or \(2, 3, 3, 6\), got \("):
        conv.conv2d(*map(np.zeros, [(2, 5, 5, 3), (3, 3, 3, 6), (6,), *plus]))
