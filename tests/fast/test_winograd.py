"""Winograd's way to a 3x3 convolution against nine shifted products, on every small map, and where it is taken.

That conv2d, by whichever way, is its definition tap by tap is shown in ops/test_conv.py.
"""

from itertools import product

import numpy as np
import pytest
from draws import host_normal

from tinydiff.backend import asarray, backend_name, to_numpy
from tinydiff.fast import winograd

pytestmark = pytest.mark.conv

on_numpy = pytest.mark.skipif(backend_name() != "numpy", reason="winograd.py computes on NumPy only")

TAPS = list(product(range(3), repeat=2))


def nine_products(x, w, b):
    """y[n,i,j] = b + sum_{k,l} x_padded[n,i+k,j+l] w[k,l]."""
    _, height, width, _ = x.shape
    padded = np.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)])
    return sum(padded[:, k : k + height, l : l + width] @ w[k, l] for k, l in TAPS) + b


def filter_gradient_in_nine(x, g):
    """dw[k,l] = sum_{n,i,j} x_padded[n,i+k,j+l] g[n,i,j]^T."""
    _, height, width, _ = x.shape
    padded = np.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)])
    dw = [np.tensordot(padded[:, k : k + height, l : l + width], g, [(0, 1, 2)] * 2) for k, l in TAPS]
    return np.reshape(dw, (3, 3, *dw[0].shape))


def input_gradient_in_nine(w, g):
    """dx_padded[n,i+k,j+l] += g[n,i,j] w[k,l]^T, without the frame."""
    n, height, width, _ = g.shape
    padded = np.zeros((n, height + 2, width + 2, w.shape[2]))
    for k, l in TAPS:
        padded[:, k : k + height, l : l + width] += g @ w[k, l].T
    return padded[:, 1:-1, 1:-1]


def agree(found, expected, bound):
    np.testing.assert_allclose(to_numpy(found), expected, rtol=0, atol=bound)


@on_numpy
def test_values_and_gradients_are_nine_shifted_products_on_every_map_up_to_9_by_9():
    """Tiles of 4 that fit or are cut, in either direction; a bias of none, of the channels, and of each image."""
    w, b, b_each = host_normal(0, (3, 3, 2, 3), (3,), (2, 3))
    for height, width in product(range(1, 10), repeat=2):
        x, g = host_normal(10 * height + width, (2, height, width, 2), (2, height, width, 3))
        # 1e-12: 162 products of numbers about 1, each rounded to 1e-16, transformed to 100 before they cancel.
        agree(winograd.correlate(asarray(x), asarray(w)), nine_products(x, w, 0), 1e-12)
        agree(winograd.correlate(*map(asarray, (x, w, b))), nine_products(x, w, b), 1e-12)
        agree(winograd.correlate(*map(asarray, (x, w, b_each))), nine_products(x, w, b_each[:, None, None]), 1e-12)
        agree(winograd.filter_gradient(asarray(x), asarray(g)), filter_gradient_in_nine(x, g), 1e-12)
        agree(winograd.correlate(asarray(g), winograd.flipped(asarray(w))), input_gradient_in_nine(w, g), 1e-12)


@on_numpy
@pytest.mark.parametrize("height, width", [(16, 16), (14, 17)])
def test_a_batch_in_several_slices_is_nine_shifted_products_too(height, width):
    """2 or 3 MB of tiles while a slice holds 1: images do not meet, and their filter gradients add up."""
    x, w, b, g = host_normal(0, (29, height, width, 9), (3, 3, 9, 16), (29, 16), (29, height, width, 16))
    agree(winograd.correlate(*map(asarray, (x, w, b))), nine_products(x, w, b[:, None, None]), 1e-11)
    agree(winograd.filter_gradient(asarray(x), asarray(g)), filter_gradient_in_nine(x, g), 1e-10)  # 7,000 products
    agree(winograd.correlate(asarray(g), winograd.flipped(asarray(w))), input_gradient_in_nine(w, g), 1e-11)


def test_it_is_for_wide_3x3_convolutions_that_keep_the_size_on_a_cpu(monkeypatch):
    """It pays for kernel 3x3, stride 1, padding 1 and enough channels on both sides, and there only.

    Not on a GPU, nor for a batch of no images.
    """
    enough = winograd._MIN_CHANNELS
    for name in ("numpy", "cupy"):
        monkeypatch.setattr(winograd, "backend_name", lambda name=name: name)
        for kh, kw, c, o in product((2, 3, 4), (2, 3, 4), (enough - 1, enough, 99), (enough - 1, enough, 99)):
            for stride, padding, n in product((1, 2), (0, 1, 2), (0, 1)):
                pays = winograd.pays(np.zeros((n, 5, 5, c)), np.zeros((kh, kw, c, o)), stride, padding)
                right_shape = kh == kw == 3 and stride == padding == n == 1
                assert pays == (right_shape and c >= enough and o >= enough and name == "numpy")


@on_numpy
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("c, o", [(17, 20), (20, 17)])
def test_the_work_is_cut_so_that_the_tiles_stay_in_cache(monkeypatch, dtype, c, o):
    """First by images, so that a row of their tiles fits; then by rows of tiles.

    A row of one image's tiles holds 36 numbers for each 4x4 tile and each channel of the wider side.
    """
    asked = []
    monkeypatch.setattr(winograd, "chunks", lambda n, each: asked.append((n, each)) or [slice(0, n)])
    x, w, g = map(asarray, host_normal(0, (5, 9, 14, c), (3, 3, c, o), (5, 9, 14, o), dtype=dtype))
    row = 36 * 4 * 20 * x.itemsize
    winograd.correlate(x, w)
    winograd.filter_gradient(x, g)
    assert asked == [(5, row), (3, 5 * row)] * 2


def test_the_frame_around_the_maps_is_zero_and_their_places_are_theirs():
    """frame() gives maps room for whole tiles and one pixel more all round, (row, column, image, channel)."""
    for height, width in product(range(1, 10), repeat=2):
        x = asarray(*host_normal(0, (2, height, width, 3)))
        a = to_numpy(winograd.framed(x))
        after = [(0, 0), (1, -height % 4 + 1), (1, -width % 4 + 1), (0, 0)]
        np.testing.assert_array_equal(a, np.pad(to_numpy(x), after).transpose(1, 2, 0, 3))
