"""The affine map on the last axis, as one matrix product over all the others.  Read next: conv.py."""

import math

from tinydiff.autograd import op
from tinydiff.backend import xp


@op
def linear(x, w, b):
    """y = x w + b: x (..., I), w (I, O), b (O,) -> (..., O).  On maps (N, H, W, C) it is the 1x1 convolution."""
    i, o = w.shape
    if x.shape[-1] != i or b.shape != (o,):
        raise ValueError(f"linear: x {x.shape} and b {b.shape} do not fit w {w.shape}")
    rows = x.reshape(math.prod(x.shape[:-1]), i)  # not -1, which cannot be found where an axis is empty
    y = xp.matmul(rows, w)
    y += b

    def vjp(g):
        g = g.reshape(len(rows), o)
        return (
            lambda: xp.matmul(g, w.T).reshape(x.shape),
            lambda: xp.matmul(rows.T, g),
            lambda: sum_rows(g),
        )

    return y.reshape(*x.shape[:-1], o), vjp


def add_bias(y, b, part):
    """Add b, (O,) or (N, O), to every pixel of y[part], y (N, H, W, O): by whole image rows, which is faster."""
    n, h, w, o = y[part].shape
    rows = y[part].reshape(n, h, w * o)
    rows += image_row(b[None] if b.ndim == 1 else b[part], w)


def image_row(v, width):
    """Channel values (n, C) repeated along an image row, (n, 1, width C): NumPy broadcasts over long axes faster."""
    n, c = v.shape
    return xp.broadcast_to(v[:, None], (n, width, c)).reshape(n, 1, width * c)


def sum_rows(g):
    """Sum the last axis but one, (..., M, O) -> (..., O): a product with ones is 9 times faster than np.sum."""
    return xp.matmul(xp.ones((1, g.shape[-2]), g.dtype), g)[..., 0, :]
