"""Convolution against plain loops over its definition, and the doubling of resolution."""

from itertools import product

import numpy as np
import pytest
from draws import SEEDS, host_normal
from hypothesis import given
from hypothesis import strategies as st

from tinydiff import ops
from tinydiff.autograd import Tensor
from tinydiff.backend import FAST, asarray, to_numpy
from tinydiff.fast import winograd
from tinydiff.ops.conv import output_shape

pytestmark = pytest.mark.conv

SIZES = st.integers(1, 3)
# 3x3, stride 1, padding 1 with 16 channels or more has a faster form of its own (fast/winograd.py).
GEOMETRIES = [(3, 3, 16, 18, 1, 1), (3, 3, 17, 16, 2, 1), (3, 3, 5, 20, 1, 1), (1, 1, 16, 16, 1, 0), (2, 4, 3, 4, 1, 2)]


def conv2d(*arrays, **static):
    return to_numpy(ops.conv2d(*map(asarray, arrays), **static))


def taps(x, w, stride, padding):
    """The definition: (image, i, j, k, l, row, column) for each output pixel and filter tap that sees a pixel of x."""
    (n, height, width, _), (kh, kw) = x.shape, w.shape[:2]
    oh, ow = (height + 2 * padding - kh) // stride + 1, (width + 2 * padding - kw) // stride + 1
    for image, i, j, k, l in product(range(n), range(oh), range(ow), range(kh), range(kw)):
        row, column = i * stride + k - padding, j * stride + l - padding
        if 0 <= row < height and 0 <= column < width:
            yield image, i, j, k, l, row, column


def conv2d_loops(x, w, b, *, stride, padding):
    """One tap at a time."""
    oh, ow = ((x.shape[i + 1] + 2 * padding - w.shape[i]) // stride + 1 for i in (0, 1))
    y = np.zeros((len(x), oh, ow, w.shape[3])) + b
    for image, i, j, k, l, row, column in taps(x, w, stride, padding):
        y[image, i, j] += x[image, row, column] @ w[k, l]
    return y


def gradients_loops(x, w, b, *, g, stride, padding):
    """dx, dw and db, one tap at a time."""
    dx, dw = np.zeros(x.shape), np.zeros(w.shape)
    for image, i, j, k, l, row, column in taps(x, w, stride, padding):
        dx[image, row, column] += w[k, l] @ g[image, i, j]
        dw[k, l] += np.outer(x[image, row, column], g[image, i, j])
    return dx, dw, g.sum((0, 1, 2))


def gradients(*arrays, g, **static):
    leaves = [Tensor(asarray(a), requires_grad=True) for a in arrays]
    ops.conv2d(*leaves, **static).backward(asarray(g))
    return [to_numpy(leaf.grad) for leaf in leaves]


@pytest.mark.parametrize("kh, stride, padding", [*product(range(1, 6), range(1, 4), range(4))])
def test_conv2d_is_its_definition_for_every_kernel_stride_and_padding(kh, stride, padding):
    """Kernels 1 to 5 high and another size wide, strides 1 to 3, paddings 0 to 3: values and all gradients."""
    kw = (kh + stride) % 5 + 1
    static = {"stride": stride, "padding": padding}
    # 1e-12: sums of at most 200 products of numbers about 1, each rounded to 1e-16.
    is_its_definition(*host_normal(kh, (2, 5, 6, 2), (kh, kw, 2, 3), (3,)), **static)


def is_its_definition(*arrays, **static):
    """Values and all gradients of conv2d are those of the loops over taps, to 1e-12: each caller says why."""
    y = conv2d(*arrays, **static)
    assert y.shape == output_shape(arrays[0].shape, arrays[1].shape, **static)
    (g,) = host_normal(1, y.shape)
    np.testing.assert_allclose(y, conv2d_loops(*arrays, **static), rtol=0, atol=1e-12)
    for found, expected in zip(gradients(*arrays, g=g, **static), gradients_loops(*arrays, g=g, **static), strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "kh, kw, stride, padding",
    [(3, 3, 1, 1), (3, 3, 1, 0), (3, 3, 1, 2), (3, 3, 2, 1), (5, 5, 1, 2), (3, 1, 1, 1), (1, 3, 1, 1), (5, 3, 1, 1)],
)
@pytest.mark.parametrize("c, o", [(16, 16), (16, 3), (3, 16)])
def test_wide_convolutions_are_their_definition_whichever_way_they_go(kh, kw, c, o, stride, padding):
    """On both sides of the border between the two methods, in kernel, stride, padding and channels."""
    static = {"stride": stride, "padding": padding}
    # 9 and 10: three of Winograd's 4x4 tiles each way; the first sees the edge, the second none, the third is cut.
    shapes = (1, 9, 10, c), (kh, kw, c, o)
    # 1e-12: 400 products of numbers about 1, each rounded to 1e-16; Winograd's transforms reach 100 before they cancel.
    is_its_definition(*host_normal(0, *shapes, (o,)), **static)


@given(st.data(), SEEDS, st.booleans())
def test_conv2d_is_its_definition_for_every_size(data, seed, wide):
    """Random sizes down to one pixel and channel, narrow and wide: values and all gradients."""
    if wide:
        n, c, o, stride, padding, kernel, height, width = data.draw(SIZES), 16, 17, 1, 1, (3, 3), 1, 1
    else:
        n, c, o, stride, padding = (data.draw(s) for s in (SIZES, SIZES, SIZES, SIZES, st.integers(0, 3)))
        kernel = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 5))
        height, width = (max(1, k - 2 * padding) for k in kernel)
    height, width = height + data.draw(st.integers(0, 8)), width + data.draw(st.integers(0, 5))
    static = {"stride": stride, "padding": padding}
    shapes = (n, height, width, c), (*kernel, c, o)
    # 1e-12: 300 products of numbers about 1; in a Winograd tile their transforms reach 100 before they cancel.
    is_its_definition(*host_normal(seed, *shapes, (o,)), **static)


@pytest.mark.parametrize("kh, kw, c, o, stride, padding", GEOMETRIES)
def test_a_batch_is_the_stack_of_its_images(kh, kw, c, o, stride, padding):
    """Whatever slices the batch is cut into: images do not meet, and their filter gradients add up."""
    n, size = 67, 16  # 2 to 20 MB of windows or tiles, while a slice of the faster forms holds 1: unequal slices
    x, w, b = host_normal(0, (n, size, size, c), (kh, kw, c, o), (o,))
    static = {"stride": stride, "padding": padding}
    y = conv2d(x, w, b, **static)
    (g,) = host_normal(1, y.shape)
    dx, dw, db = gradients(x, w, b, g=g, **static)
    sum_dw = 0
    for i in range(n):
        one = slice(i, i + 1)
        np.testing.assert_allclose(conv2d(x[one], w, b, **static), y[one], rtol=0, atol=1e-12)
        dx_i, dw_i, db_i = gradients(x[one], w, b, g=g[one], **static)
        np.testing.assert_allclose(dx_i, dx[one], rtol=0, atol=1e-12)
        np.testing.assert_allclose(db_i, g[i].sum((0, 1)), rtol=0, atol=1e-12)
        sum_dw = sum_dw + dw_i
    np.testing.assert_allclose(sum_dw, dw, rtol=0, atol=1e-10)  # 67 * 256 products of numbers about 1
    np.testing.assert_allclose(db, g.sum((0, 1, 2)), rtol=0, atol=1e-10)


@pytest.mark.parametrize("size", [7, 14, 28])
@pytest.mark.parametrize("kh, kw, c, o, stride, padding", GEOMETRIES)
def test_conv2d_in_float32_is_the_one_in_float64_but_for_rounding(kh, kw, c, o, stride, padding, size):
    """Values and all gradients, at the U-Net's resolutions, relative to the largest."""
    arrays = host_normal(size, (5, size, size, c), (kh, kw, c, o), (o,), dtype="float32")
    static = {"stride": stride, "padding": padding}
    # 6e-8 a rounding, some tens of times in sums of 4,000 products, and ten times that where Winograd's terms cancel.
    bound = 4e-5 if FAST and winograd.pays(*arrays[:2], stride, padding) else 4e-6
    y = conv2d(*arrays, **static)
    (g,) = host_normal(1, y.shape, dtype="float32")
    wide = [a.astype("float64") for a in arrays]
    expected = [conv2d(*wide, **static), *gradients(*wide, g=g.astype("float64"), **static)]
    for a, a_64 in zip([y, *gradients(*arrays, g=g, **static)], expected):
        assert a.dtype == np.float32
        assert abs(a - a_64).max() <= bound * abs(a_64).max()


@given(SEEDS, SIZES, SIZES, SIZES, SIZES)
def test_upsample_nearest_repeats_each_pixel(seed, n, h, w, c):
    """y[2i + k, 2j + l] = x[i, j] for k and l in {0, 1}, exactly."""
    (x,) = host_normal(seed, (n, h, w, c))
    y = to_numpy(ops.upsample_nearest(asarray(x)))
    assert y.shape == (n, 2 * h, 2 * w, c)
    for image, i, j, channel in np.ndindex(y.shape):
        assert y[image, i, j, channel] == x[image, i // 2, j // 2, channel]


def test_more_channels_than_256_are_compared_by_value():
    """Python keeps one object for each integer up to 256 only."""
    assert conv2d(*map(np.zeros, [(1, 1, 2, 300), (1, 1, 300, 400), (400,)])).shape == (1, 1, 2, 400)


@pytest.mark.parametrize(
    "x, w, b, static, words",
    [
        ((2, 5, 5, 3), (3, 3, 4, 6), (6,), {}, r"x must be .*, got \(2, 5, 5, 3\) and \(3, 3, 4, 6\)"),
        ((2, 5, 5, 3), (3, 3, 2, 6), (6,), {}, r"x must be .*, got \(2, 5, 5, 3\) and \(3, 3, 2, 6\)"),
        ((5, 5, 3), (3, 3, 3, 6), (6,), {}, r"x must be .*, got \(5, 5, 3\)"),
        ((1, 2, 5, 3, 3), (3, 3, 3, 6), (6,), {}, r"x must be .*, got \(1, 2, 5, 3, 3\)"),
        ((2, 5, 5, 3), (3, 3, 3, 6, 1), (6,), {}, r"w \(KH, KW, C, O\), got .* and \(3, 3, 3, 6, 1\)"),
        ((2, 5, 5, 3), (3, 3, 3), (6,), {}, r"w \(KH, KW, C, O\), got .* and \(3, 3, 3\)"),
        ((2, 5, 5, 3), (3, 3, 3, 6), (5,), {}, r"b must be .* O = 6, got \(5,\)"),
        ((2, 5, 5, 3), (3, 3, 3, 6), (7,), {}, r"b must be .* O = 6, got \(7,\)"),
        ((2, 5, 5, 3), (3, 3, 3, 6), (1, 6), {}, r"b must be .* O = 6, got \(1, 6\)"),
        ((2, 5, 5, 0), (3, 3, 0, 6), (6,), {}, r"w must have .*, got \(3, 3, 0, 6\)"),
        ((2, 5, 5, 3), (3, 3, 3, 0), (0,), {}, r"w must have .*, got \(3, 3, 3, 0\)"),
        ((2, 5, 5, 3), (3, 0, 3, 6), (6,), {}, r"w must have .*, got \(3, 0, 3, 6\)"),
        ((2, 5, 5, 3), (3, 3, 3, 6), (6,), {"stride": 0}, "stride must be 1 or more .* got 0"),
        ((2, 5, 5, 3), (3, 3, 3, 6), (6,), {"padding": -1}, "padding 0 or more, got 1 and -1"),
        ((2, 5, 2, 3), (3, 3, 3, 6), (6,), {}, r"kernel \(3, 3\) is larger than the padded image of x \(2, 5, 2, 3\)"),
        ((2, 1, 5, 3), (4, 3, 3, 6), (6,), {"padding": 1, "stride": 3}, r"kernel \(4, 3\) is larger"),
    ],
)
def test_conv2d_refuses_what_does_not_fit(x, w, b, static, words):
    """Shapes, strides and paddings that make no convolution are a ValueError naming the argument and its value."""
    with pytest.raises(ValueError, match=f"conv2d: .*{words}"):
        conv2d(*map(np.zeros, (x, w, b)), **static)
