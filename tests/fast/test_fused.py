"""Each fused op is its two ops in turn: values, every gradient, and whichever way the convolution goes.

That the layers' forms equal the plain ones is shown in test_install.py.
"""

from types import SimpleNamespace

import numpy as np
import pytest
from draws import SEEDS, host_normal
from hypothesis import given
from hypothesis import strategies as st
from plain import plain

from tinydiff import ops
from tinydiff.autograd import Tensor
from tinydiff.backend import asarray, backend_name, default_rng, to_numpy
from tinydiff.fast import fused, winograd
from tinydiff.nn import Conv2d

pytestmark = pytest.mark.conv

CHANNELS = st.sampled_from([4, 16, 20])  # 4 are too few for winograd.py, on either side
PLUS = st.sampled_from(["nothing", "(N, O)", "(N, H, W, O)"])


def norm_then_conv(x, gamma, beta, w, b, *plus):
    with plain():
        y = ops.conv2d(ops.silu(ops.group_norm(x, gamma, beta, num_groups=4)), w, b, padding=1)
        return y + (plus[0] if plus[0].ndim == 4 else plus[0][:, None, None]) if plus else y


def norm_and_conv(x, gamma, beta, w, b, *plus, num_groups=4):
    norm = SimpleNamespace(gamma=gamma, beta=beta, num_groups=num_groups)
    return fused.norm_silu_conv(norm, conv_of(w, b), x, *plus)


def upsample_and_conv(x, w, b):
    return fused.upsample_conv(conv_of(w, b), x)


def conv_of(w, b):
    """A layer Conv2d with these parameters."""
    layer = Conv2d(1, 1, rng=default_rng(0))
    layer.w, layer.b = w, b
    return layer


def upsample_then_conv(x, w, b):
    with plain():
        return ops.conv2d(ops.upsample_nearest(x), w, b, padding=1)


def run(f, arrays, g):
    """[output, gradient of each input]."""
    leaves = [Tensor(asarray(a), requires_grad=True) for a in arrays]
    y = f(*leaves)
    y.backward(asarray(g))
    return [to_numpy(a) for a in (y, *(leaf.grad for leaf in leaves))]


def same(found, expected, bound):
    """Each array within `bound` of its largest value; where its terms cancel to 0, of a hundredth of all arrays'."""
    least = max(abs(b).max() for b in expected) / 100
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape
        assert abs(a - b).max() <= bound * max(abs(b).max(), least)


@given(SEEDS, st.integers(1, 3), st.integers(1, 9), st.integers(1, 9), CHANNELS, CHANNELS, PLUS)
def test_norm_silu_conv_is_group_norm_and_silu_and_conv2d(seed, n, h, w, c, o, plus):
    """In float64, for maps of every size up to 9 x 9 (whole and cut tiles), on both sides of winograd.pays."""
    more = {"nothing": [], "(N, O)": [(n, o)], "(N, H, W, O)": [(n, h, w, o)]}[plus]
    shapes = (n, h, w, c), (c,), (c,), (3, 3, c, o), (o,), *more, (n, h, w, o)
    *arrays, g = host_normal(seed, *shapes)
    # 1e-9: the norm of a map of few pixels may divide by a deviation near 0, which enlarges what was rounded to 1e-16.
    same(run(norm_and_conv, arrays, g), run(norm_then_conv, arrays, g), 1e-9)


@given(SEEDS, st.integers(1, 3), st.integers(1, 5), st.integers(1, 5), CHANNELS, CHANNELS)
def test_upsample_conv_is_upsample_nearest_and_conv2d(seed, n, h, w, c, o):
    """In float64, for maps of every size up to 5 x 5 (10 x 10 after doubling), on both sides of winograd.pays."""
    shapes = (n, h, w, c), (3, 3, c, o), (o,), (n, 2 * h, 2 * w, o)
    *arrays, g = host_normal(seed, *shapes)
    same(run(upsample_and_conv, arrays, g), run(upsample_then_conv, arrays, g), 1e-12)


@pytest.mark.skipif(backend_name() != "numpy", reason="a slice that fits a core's cache is for NumPy only")
def test_a_batch_in_several_slices_of_several_slices():
    """More images than one frame holds, and more than one slice of the norm in a frame."""
    n, size, c, o = 70, 16, 32, 32
    map_shape = n, size, size, o
    *arrays, each, other, g = host_normal(
        0, (n, size, size, c), (c,), (c,), (3, 3, c, o), (o,), (n, o), map_shape, map_shape
    )
    parts = winograd.parts(g.shape, c, 8)
    assert len(parts) > 1 and len(fused.Passes(arrays[0], arrays[1], arrays[2], 4).parts(parts[0])) > 1
    for plus in each, other:
        same(run(norm_and_conv, [*arrays, plus], g), run(norm_then_conv, [*arrays, plus], g), 1e-10)
    *arrays, g = host_normal(0, (n, size, size, c), (3, 3, c, o), (o,), (n, 2 * size, 2 * size, o))
    same(run(upsample_and_conv, arrays, g), run(upsample_then_conv, arrays, g), 1e-10)


@pytest.mark.parametrize("size", [7, 14, 28])
def test_in_float32_they_are_the_plain_ops_in_float64_but_for_rounding(size):
    """Against the plain norm, im2col and product in float64: nothing of the fast way is in the reference."""
    x, gamma, beta, w, b, g = host_normal(
        size, (5, size, size, 32), (32,), (32,), (3, 3, 32, 24), (24,), (5, size, size, 24), dtype="float32"
    )
    found = run(norm_and_conv, (x, gamma, beta, w, b), g)
    half = x[:, : size // 2, : size // 2]
    found_up = run(upsample_and_conv, (half, w, b), g[:, : size // 2 * 2, : size // 2 * 2])
    wide = [a.astype("float64") for a in (x, gamma, beta, w, b, g)]
    # 6e-8 a rounding, some tens of times in sums of thousands, ten times that in a Winograd tile, then the norm.
    same(found, run(norm_then_conv, wide[:5], wide[5]), 1e-4)
    expected_up = run(
        upsample_then_conv, (half.astype("float64"), *wide[3:5]), wide[5][:, : size // 2 * 2, : size // 2 * 2]
    )
    same(found_up, expected_up, 4e-5)


@pytest.mark.parametrize("c", [4, 16])
def test_what_does_not_fit_is_refused_either_way(c):
    """Channels, groups and biases that do not agree are the ValueErrors of the two ops."""
    x, gamma, beta, w, b = (Tensor(asarray(np.ones(s))) for s in [(2, 4, 4, c), (c,), (c,), (3, 3, c, 16), (16,)])
    with pytest.raises(ValueError, match="conv2d: b must be"):
        norm_and_conv(x, gamma, beta, w, gamma[:3])
    with pytest.raises(ValueError, match="conv2d: x must be"):
        upsample_and_conv(x[..., :3], w, b)
    with pytest.raises(ValueError, match="num_groups=3 does not divide"):
        norm_and_conv(x, gamma, beta, w, b, num_groups=3)
    with pytest.raises(ValueError, match="group_norm: gamma"):
        norm_and_conv(x, gamma[:3], beta, w, b)
    for op, arguments, static in [
        (fused.norm_silu_winograd, (gamma, beta, w, b), {"num_groups": 1}),
        (fused.upsample_winograd, (w, b), {}),
    ]:
        for empty in (x[:, :0], x[:, :, :0]):
            with pytest.raises(ValueError, match=r"conv2d: the kernel .* is larger than the padded image"):
                op(empty, *arguments, **static)


@pytest.mark.parametrize("c, o", [(15, 16), (16, 15), (16, 16), (20, 99)])
def test_they_are_one_op_where_winograds_way_pays_and_two_elsewhere(c, o):
    """From 16 channels on, on either side; never on a GPU."""
    x, gamma, w, b = (Tensor(asarray(np.ones(s)), True) for s in [(1, 2, 2, c), (c,), (3, 3, c, o), (o,)])
    made_by = [norm_and_conv(x, gamma, gamma, w, b, num_groups=1)._node.op, upsample_and_conv(x, w, b)._node.op]
    one_pass = min(c, o) >= winograd._MIN_CHANNELS and backend_name() == "numpy"
    assert made_by == (["norm_silu_winograd", "upsample_winograd"] if one_pass else ["conv2d", "conv2d"])
