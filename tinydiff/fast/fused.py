"""The layers of the U-Net, and of the networks in more/, in fewer passes over the maps.

    ResBlock.forward, NormSiluConv.forward      conv2d(silu(group_norm(x))), and the array added to it: one pass
    Upsample.forward, UpConv.forward            conv2d(upsample_nearest(x)): one pass
    UNet.head, NormSilu.forward                 silu(group_norm(x)): one pass

Winograd's convolution reads its input from a frame, a map with zeros around it.  The op before the convolution writes
its result directly into that frame, for some images at a time.  So no map is copied to be padded.  The frame is not
kept: the backward pass computes it again.  So a network keeps half as many maps.  Where Winograd's convolution is not
used, the ops run one after the other.  Axes as in winograd.py and norm.py.  Read next: optim.py.
"""

from typing import Any

from tinydiff import ops
from tinydiff.autograd import Tensor, op
from tinydiff.backend import xp
from tinydiff.fast import gpu_block, kernels, winograd
from tinydiff.fast.conv import bias_and_map, bias_gradients, check_plus, conv2d_plus, sum_2x2
from tinydiff.fast.norm import Passes, group_norm_silu
from tinydiff.fast.silu import silu_of_double, silu_of_double_and_slope
from tinydiff.ops.conv import check_conv2d
from tinydiff.ops.norm import check_group_norm


def res_block(block: Any, x: Tensor, code: Tensor) -> Tensor:
    """The faster form of ResBlock.forward."""
    if kernels.available():
        return gpu_block.res_block(block, x, code)
    h = norm_silu_conv(block.norm1, block.conv1, x, block.time(code))
    y = norm_silu_conv(block.norm2, block.conv2, h, x if block.skip is None else block.skip(x))
    return y if block.attention is None else block.attention(y)


def head(network: Any, h: Tensor) -> Tensor:
    """The faster form of UNet.head."""
    return norm_silu_conv(network.norm_out, network.conv_out, h)


def norm_silu(norm: Any, x: Tensor) -> Tensor:
    """The faster form of NormSilu.forward."""
    return group_norm_silu(x, norm.gamma, norm.beta, num_groups=norm.num_groups)


def norm_silu_conv(norm: Any, conv: Any, x: Tensor, *plus: Tensor) -> Tensor:
    """conv(silu(norm(x))) for a 3x3 convolution that keeps the size.  plus: as in conv.conv2d."""
    if winograd.pays(x, conv.w, 1, 1):
        return norm_silu_winograd(x, norm.gamma, norm.beta, conv.w, conv.b, *plus, num_groups=norm.num_groups)
    y = norm_silu(norm, x)
    return conv2d_plus(y, conv.w, conv.b, *plus, padding=1) if plus else conv(y)


def upsample_conv(conv: Any, x: Tensor) -> Tensor:
    """conv(upsample_nearest(x)) for a 3x3 convolution that keeps the size."""
    if winograd.pays(x, conv.w, 1, 1):
        return upsample_winograd(x, conv.w, conv.b)
    return ops.conv2d(ops.upsample_nearest(x), conv.w, conv.b, padding=1)


@op
def norm_silu_winograd(x, gamma, beta, w, b, *plus, num_groups):
    """conv2d(silu(group_norm(x)), w, b), with `plus` added as in conv.conv2d."""
    check_conv2d(x, w, b, 1, 1)
    check_plus(x, w, plus, 1, 1)
    check_group_norm(x, gamma, beta, num_groups)
    norm = Passes(x, gamma / 2, beta / 2, num_groups)  # z/2, as in group_norm_silu
    (n, height, width, c), o = x.shape, w.shape[3]
    u, y = winograd.filter_tiles(w), xp.empty((n, height, width, o), x.dtype)
    bias, residual = bias_and_map(b, plus)
    parts, bias = winograd.parts(x.shape, max(c, o), x.itemsize), xp.broadcast_to(bias, (n, o))
    for part in parts:
        frame, inside = winograd.frame(x[part].shape, x.dtype)
        for images, inner in _within(norm, part):
            silu_of_double(norm.forward(images), out=inside[inner])
        winograd.correlate_frame(frame, u, y[part], bias[part])
        if residual is not None:
            y[part] += residual[part]

    def vjp(g):
        u, du = winograd.filter_tiles(winograd.flipped(w)), xp.zeros((36, c, o), x.dtype)
        dx = xp.empty(x.shape, x.dtype)
        for part in parts:
            frame, inside = winograd.frame(x[part].shape, x.dtype)
            slopes = [
                silu_of_double_and_slope(norm.again(images), out=inside[inner])[1]
                for images, inner in _within(norm, part)
            ]
            g_frame = winograd.framed(g[part])
            winograd.add_filter_gradient(frame, g_frame, du)
            dy = xp.empty(x[part].shape, x.dtype)
            winograd.correlate_frame(g_frame, u, dy)
            for (images, inner), slope in zip(_within(norm, part), slopes):
                slope *= dy[inner]
                norm.backward(images, slope, dx[images])
        dgamma, dbeta = norm.parameter_gradients()
        return lambda: dx, dgamma / 2, dbeta / 2, winograd.from_filter_tiles(du), *bias_gradients(g, plus)

    return y, vjp


@op
def upsample_winograd(x, w, b):
    """conv2d(upsample_nearest(x), w, b)."""
    check_conv2d(x, w, b, 1, 1)
    (n, height, width, c), o = x.shape, w.shape[3]
    u, y = winograd.filter_tiles(w), xp.empty((n, 2 * height, 2 * width, o), x.dtype)
    parts, each_bias = winograd.parts(y.shape, max(c, o), x.itemsize), xp.broadcast_to(b, (n, o))

    def doubled(x):
        frame, inside = winograd.frame((len(x), 2 * height, 2 * width, c), x.dtype)
        for k in (0, 1):
            for l in (0, 1):
                inside[:, k::2, l::2] = x
        return frame

    for part in parts:
        winograd.correlate_frame(doubled(x[part]), u, y[part], each_bias[part])

    def vjp(g):
        u, du = winograd.filter_tiles(winograd.flipped(w)), xp.zeros((36, c, o), x.dtype)
        dx = xp.empty(x.shape, x.dtype)
        for part in parts:
            g_frame = winograd.framed(g[part])
            winograd.add_filter_gradient(doubled(x[part]), g_frame, du)
            dy = xp.empty((len(x[part]), *g.shape[1:3], c), x.dtype)
            winograd.correlate_frame(g_frame, u, dy)
            dx[part] = sum_2x2(dy)
        return lambda: dx, winograd.from_filter_tiles(du), *bias_gradients(g, ())

    return y, vjp


def _within(norm, part):
    """Cut the slice `part` of the batch into the norm's slices.  Each is given twice: as a slice of the batch, and as a
    slice of `part`."""
    return [(s, slice(s.start - part.start, s.stop - part.start)) for s in norm.parts(part)]
