"""Scaled dot-product attention (Vaswani et al. 2017, eq. 1) as one op.

    y = p v,    p = softmax(q k^T / sqrt(D))

Axes: L queries, M keys, D features of one head; batch and heads are leading axes.  Read next: nn/module.py.
"""

import math

from tinydiff.autograd import op
from tinydiff.backend import asarray, xp
from tinydiff.ops.reduce import softmax_array, softmax_gradient


@op
def attention(q, k, v, *, mask=None):
    """Each query's mean of the values, weighted by the softmax of its scaled products with the keys.

    q (..., L, D), k (..., M, D), v (..., M, E) with equal leading axes -> (..., L, E); M, D >= 1; else ValueError.
    mask: None, or booleans that broadcast to (..., L, M): a key where it is False has weight 0, exactly.  Every query
    must keep a key: without one its result is nan.
    """
    if q.shape[:-2] != k.shape[:-2] or k.shape[:-1] != v.shape[:-1] or q.shape[-1] != k.shape[-1] or 0 in k.shape[-2:]:
        raise ValueError(f"attention: q {q.shape}, k {k.shape} and v {v.shape} do not fit")
    scale = 1 / math.sqrt(q.shape[-1])
    scores = xp.matmul(q * scale, k.swapaxes(-1, -2))
    p = softmax_array(scores if mask is None else xp.where(asarray(mask), scores, -xp.inf), -1)

    def vjp(g):
        dp = xp.matmul(g, v.swapaxes(-1, -2))
        ds = softmax_gradient(p, dp, -1)
        ds *= scale
        return xp.matmul(ds, k), xp.matmul(ds.swapaxes(-1, -2), q), xp.matmul(p.swapaxes(-1, -2), g)

    return xp.matmul(p, v), vjp
