"""Two pairs of ops in one pass: what lies between them is neither written to memory nor kept for the gradient.

    norm_silu_conv(x) = conv2d(group_norm_silu(x))          upsample_conv(x) = conv2d(upsample_nearest(x))

Some images at a time, the first op of a pair writes its result straight into the frame that Winograd's convolution
reads, and in the backward pass does so again.  A network keeps half as many maps, and no map is copied to be padded.
Where Winograd's way does not pay, each is its two ops in turn; the tests hold both ways to the same numbers.

Axes as in winograd.py and norm.py.  Read next: attention.py.
"""

from tinydiff.autograd import Tensor, op
from tinydiff.backend import xp
from tinydiff.ops import winograd
from tinydiff.ops.conv import bias_and_map, bias_gradients, check_conv2d, conv2d, sum_2x2, upsample_nearest
from tinydiff.ops.norm import GroupNorm, check_group_norm, group_norm_silu
from tinydiff.ops.pointwise import silu_of_double, silu_of_double_and_slope


def norm_silu_conv(
    x: Tensor, gamma: Tensor, beta: Tensor, w: Tensor, b: Tensor, *plus: Tensor, num_groups: int
) -> Tensor:
    """conv2d(group_norm_silu(x, gamma, beta), w, b, *plus, padding=1): x (N, H, W, C), w (3, 3, C, O) -> (N, H, W, O).

    gamma, beta: (C,).  b, plus: see conv2d.  Raises what the two ops raise.
    """
    if winograd.pays(x, w, 1, 1):
        return norm_silu_winograd(x, gamma, beta, w, b, *plus, num_groups=num_groups)
    return conv2d(group_norm_silu(x, gamma, beta, num_groups=num_groups), w, b, *plus, padding=1)


def upsample_conv(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """conv2d(upsample_nearest(x), w, b, padding=1): x (N, H, W, C), w (3, 3, C, O) -> (N, 2H, 2W, O); b (O,)."""
    if winograd.pays(x, w, 1, 1):
        return upsample_winograd(x, w, b)
    return conv2d(upsample_nearest(x), w, b, padding=1)


@op
def norm_silu_winograd(x, gamma, beta, w, b, *plus, num_groups):
    """norm_silu_conv where Winograd's way pays."""
    check_conv2d(x, w, b, plus, 1, 1)
    check_group_norm(x, gamma, beta, num_groups)
    norm = GroupNorm(x, gamma / 2, beta / 2, num_groups)  # of half the scale: see group_norm_silu
    (n, height, width, c), o = x.shape, w.shape[3]
    u, y = winograd.filter_tiles(w), xp.empty((n, height, width, o), x.dtype)
    each, other = bias_and_map(b, plus)
    parts, each = winograd.parts(x.shape, max(c, o), x.itemsize), xp.broadcast_to(each, (n, o))
    for part in parts:
        frame, inside = winograd.frame(x[part].shape, x.dtype)
        for images, here in _within(norm, part):
            silu_of_double(norm.forward(images), out=inside[here])
        winograd.correlate_frame(frame, u, y[part], each[part])
        if other is not None:
            y[part] += other[part]

    def vjp(g):
        u, du = winograd.filter_tiles(winograd.flipped(w)), xp.zeros((36, c, o), x.dtype)
        dx = xp.empty(x.shape, x.dtype)
        for part in parts:
            frame, inside = winograd.frame(x[part].shape, x.dtype)
            slopes = [
                silu_of_double_and_slope(norm.again(images), out=inside[here])[1]
                for images, here in _within(norm, part)
            ]
            g_frame = winograd.framed(g[part])
            winograd.add_filter_gradient(frame, g_frame, du)
            dy = xp.empty(x[part].shape, x.dtype)
            winograd.correlate_frame(g_frame, u, dy)
            for (images, here), slope in zip(_within(norm, part), slopes):
                slope *= dy[here]
                norm.backward(images, slope, dx[images])
        dgamma, dbeta = norm.parameter_gradients()
        return lambda: dx, dgamma / 2, dbeta / 2, winograd.from_filter_tiles(du), *bias_gradients(g, plus)

    return y, vjp


@op
def upsample_winograd(x, w, b):
    """upsample_conv where Winograd's way pays."""
    check_conv2d(x, w, b, (), 1, 1)
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
    """The norm's slices of a slice of the batch: (as slices of the batch, as slices of that slice)."""
    return [(s, slice(s.start - part.start, s.stop - part.start)) for s in norm.parts(part)]
