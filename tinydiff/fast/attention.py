"""Attention on a GPU: its products are kernels that read and write views, so nothing is transposed or copied.

The products are sums of float32 in every precision: they take a hundredth of a step.  Axes as in ops/matrix.py.
Read next: gpu_block.py.
"""

import math

from tinydiff.backend import asarray, xp
from tinydiff.fast import kernels
from tinydiff.ops.matrix import attention as plain_attention
from tinydiff.ops.reduce import softmax_array, softmax_gradient


def attention(q, k, v, *, mask=None):
    """The faster form of ops.attention."""
    mask = None if mask is None else asarray(mask)
    scores = (*q.shape[:-1], *k.shape[-2:-1])
    fits = q.shape[:-2] == k.shape[:-2] and k.shape[:-1] == v.shape[:-1] and q.shape[-1] == k.shape[-1]
    if mask is not None and fits:
        stretched = all(size in (1, whole) for size, whole in zip(mask.shape[::-1], scores[::-1]))
        fits = mask.dtype == bool and mask.ndim <= len(scores) and stretched
    if not fits or 0 in k.shape[-2:]:
        return plain_attention.__wrapped__(q, k, v, mask=mask)  # type: ignore[attr-defined]  # raises the error
    if mask is not None:
        mask = xp.broadcast_to(mask, scores).reshape(stack(q).shape[:2] + scores[-2:])
    y, stacked_vjp = attend(stack(q), stack(k), stack(v), mask)

    def vjp(g):
        return [dx.reshape(x.shape) for dx, x in zip(stacked_vjp(stack(g)), (q, k, v))]

    return y.reshape(*q.shape[:-1], v.shape[-1]), vjp


def stack(x):
    """(..., L, D) -> (N, heads, L, D): an array with other leading axes is a stack with one head."""
    return x if x.ndim == 4 else x.reshape(math.prod(x.shape[:-2]), 1, *x.shape[-2:])


def attend(q, k, v, mask=None):
    """(y, vjp) for q (N, heads, L, D), k and v (N, heads, M, ...).  vjp(g, outs=None) -> the three gradients, which are
    written to the three arrays outs if given.

    y is a view of an array (N, L, heads, E), so the heads already lie side by side.
    """
    (n, heads, rows, _), scale = q.shape, 1 / math.sqrt(q.shape[-1])
    scores = _product(q, k.swapaxes(-1, -2), scale=scale)
    p = softmax_array(scores if mask is None else xp.where(mask, scores, -xp.inf))
    y = xp.empty((n, rows, heads, v.shape[-1]), q.dtype).transpose(0, 2, 1, 3)
    kernels.product(p, v, y)

    def vjp(g, outs=None):
        dq, dk, dv = outs or (None, None, None)
        ds = softmax_gradient(p, _product(g, v.swapaxes(-1, -2)))
        return (
            _product(ds, k, dq, scale),
            _product(ds.swapaxes(-1, -2), q, dk, scale),
            _product(p.swapaxes(-1, -2), g, dv),
        )

    return y, vjp


def _product(a, b, out=None, scale=1.0):
    out = xp.empty((*a.shape[:3], b.shape[3]), a.dtype) if out is None else out
    kernels.product(a, b, out, scale)
    return out
