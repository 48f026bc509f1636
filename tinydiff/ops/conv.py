"""Convolution of channels-last maps, and doubling their resolution.

    y[n, i, j, o] = b[o] + sum_{k, l, c} x_padded[n, i stride + k, j stride + l, c] w[k, l, c, o]

im2col writes the window of each output pixel as one row of a matrix X.  W is the filter as a matrix, g the gradient of
y with one row for each pixel.  Then the convolution and its gradients are matrix products:

    y = X W + b        dX = g W^T        dW = X^T g        db = sum of g

dx is dX moved back: col2im adds each entry of dX to the pixel of x from which im2col copied it.  col2im is the adjoint
(the transpose) of im2col.

Axes: N batch, H and W rows and columns, C channels in, O channels out, KH and KW those of the kernel.

Read next: norm.py.
"""

from tinydiff.autograd import op
from tinydiff.backend import xp


@op
def conv2d(x, w, b, *, stride=1, padding=0):
    """2-D convolution (cross-correlation): x (N, H, W, C), w (KH, KW, C, O), b (O,) -> (N, OH, OW, O).

        OH = (H + 2 padding - KH) // stride + 1,  OW likewise

    Raises ValueError where channels do not agree, w is empty or the padded image is smaller than the kernel.
    """
    check_conv2d(x, w, b, stride, padding)
    filters = w.reshape(-1, w.shape[3])  # (KH KW C, O)
    y = im2col(x, w.shape, stride, padding) @ filters + b

    def vjp(g):
        def dw():
            columns = im2col(x, w.shape, stride, padding)  # computed again: kept, they would take KH KW times x
            return (columns.reshape(-1, len(filters)).T @ g.reshape(-1, g.shape[3])).reshape(w.shape)

        return lambda: col2im(g @ filters.T, x.shape, w.shape, stride, padding), dw, lambda: g.sum((0, 1, 2))

    return y, vjp


def im2col(x, w_shape, stride, padding):
    """The window of each output pixel as a row: x (N, H, W, C) -> (N, OH, OW, KH KW C)."""
    padded = xp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    taps = _taps(x.shape, w_shape, stride, padding)
    return xp.concatenate([padded[:, rows, columns] for rows, columns in taps], -1)


def col2im(columns, x_shape, w_shape, stride, padding):
    """The adjoint of im2col: add each entry of a row to the pixel that it was copied from; drop those of the
    padding."""
    n, h, width, c = x_shape
    dx = xp.zeros((n, h + 2 * padding, width + 2 * padding, c), columns.dtype)
    for k, (rows, cols) in enumerate(_taps(x_shape, w_shape, stride, padding)):
        dx[:, rows, cols] += columns[..., k * c : (k + 1) * c]
    return dx[:, padding : padding + h, padding : padding + width]


def _taps(x_shape, w_shape, stride, padding):
    """The rows and columns of padded x that each tap multiplies.  A tap is one entry (k, l) of the filter; their order
    is that of w."""
    _, oh, ow, _ = output_shape(x_shape, w_shape, stride, padding)
    for k in range(w_shape[0]):
        for l in range(w_shape[1]):
            yield slice(k, k + stride * oh, stride), slice(l, l + stride * ow, stride)


def output_shape(x_shape, w_shape, stride, padding):
    """The shape (N, OH, OW, O) of conv2d's result."""
    oh, ow = ((x_shape[i + 1] + 2 * padding - w_shape[i]) // stride + 1 for i in (0, 1))
    return x_shape[0], oh, ow, w_shape[3]


def check_conv2d(x, w, b, stride, padding):
    """ValueError unless x, w, b, stride and padding fit together."""
    if x.ndim != 4 or w.ndim != 4 or x.shape[3] != w.shape[2]:
        raise ValueError(f"conv2d: x must be (N, H, W, C) and w (KH, KW, C, O), got {x.shape} and {w.shape}")
    if 0 in w.shape:
        raise ValueError(f"conv2d: w must have a tap and channels on either side, got {w.shape}")
    if b.shape != (w.shape[3],):
        raise ValueError(f"conv2d: b must be (O,) with O = {w.shape[3]}, got {b.shape}")
    if stride < 1 or padding < 0:
        raise ValueError(f"conv2d: stride must be 1 or more and padding 0 or more, got {stride} and {padding}")
    if min(output_shape(x.shape, w.shape, stride, padding)[1:3]) < 1:
        raise ValueError(f"conv2d: the kernel {w.shape[:2]} is larger than the padded image of x {x.shape}")


@op
def upsample_nearest(x):
    """Double the resolution by repeating each pixel: x (N, H, W, C) -> (N, 2H, 2W, C).

    The gradient of a pixel is the sum over its four copies.
    """
    n, h, w, c = x.shape
    return x.repeat(2, 1).repeat(2, 2), lambda g: (g.reshape(n, h, 2, w, 2, c).sum((2, 4)),)
