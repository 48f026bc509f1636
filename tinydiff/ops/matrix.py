"""The two ops that consist mostly of matrix products: the affine map and attention.

    linear       y = x w + b
    attention    y = p v,    p = softmax(q k^T / sqrt(D))                          Vaswani et al. 2017, eq. 1

Axes: I features in, O features out; L queries, M keys, D features of a query or key, E of a value.

Read next: conv.py.
"""

import math

from tinydiff.autograd import op
from tinydiff.backend import asarray, xp
from tinydiff.ops.reduce import softmax_array, softmax_gradient


@op
def linear(x, w, b):
    """y = x w + b on the last axis: x (..., I), w (I, O), b (O,) -> (..., O).  On maps (N, H, W, C) it is the 1x1
    convolution.

        dx = g w^T        dw = x^T g        db = sum of g,        sums over all axes but the last
    """
    check_linear(x, w, b)

    def vjp(g):
        rows = tuple(range(g.ndim - 1))  # all axes but the last
        return lambda: g @ w.T, lambda: xp.tensordot(x, g, (rows, rows)), lambda: g.sum(rows)

    return x @ w + b, vjp


def check_linear(x, w, b):
    """ValueError unless x, w and b fit together."""
    if w.ndim != 2 or x.shape[-1:] != w.shape[:1] or b.shape != w.shape[1:]:
        raise ValueError(f"linear: x {x.shape} and b {b.shape} do not fit w {w.shape}")


@op
def attention(q, k, v, *, mask=None):
    """For each query the weighted mean of the values; the weights are the softmax of q k^T / sqrt(D).

    q (..., L, D), k (..., M, D), v (..., M, E) with equal leading axes -> (..., L, E); M, D >= 1; else ValueError.
    mask: None, or booleans that broadcast to (..., L, M).  Where the mask is False, the key gets the weight 0, exactly.
    Each query must keep at least one key, else its result is nan.  The U-Net needs no mask; a text with padding does
    (more/text.py).
    """
    if q.shape[:-2] != k.shape[:-2] or k.shape[:-1] != v.shape[:-1] or q.shape[-1] != k.shape[-1] or 0 in k.shape[-2:]:
        raise ValueError(f"attention: q {q.shape}, k {k.shape} and v {v.shape} do not fit")
    scale = 1 / math.sqrt(q.shape[-1])
    scores = (q * scale) @ k.swapaxes(-1, -2)
    p = softmax_array(scores if mask is None else xp.where(asarray(mask), scores, -xp.inf))

    def vjp(g):
        ds = softmax_gradient(p, g @ v.swapaxes(-1, -2)) * scale
        return ds @ k, ds.swapaxes(-1, -2) @ q, p.swapaxes(-1, -2) @ g

    return p @ v, vjp
