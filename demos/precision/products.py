"""A network whose matrix products multiply rounded factors: what a tensor core does with TF32, bf16 or fp16.

    with rounded_products(Rounder(bf16)):
        model(x_t, t)                       # and its backward pass

conv2d, linear and attention are the ops that multiply matrices, forward and backward.  Each factor is rounded: the
input, the filter and the gradient that arrives.  Sums stay in float32, as on tensor cores.  The forms are put into the
table FAST for the time of the block, so no op of the book changes.
"""

import math
from contextlib import contextmanager

import numpy as np

from tinydiff import ops
from tinydiff.backend import FAST
from tinydiff.ops.reduce import softmax_array, softmax_gradient

FUSED = ("ResBlock.forward", "Upsample.forward", "UNet.head")  # faster forms that would pass conv2d by


class Rounder:
    """A rounding of `forward` factors and of gradients, which counts what becomes of the gradients.

    seen: gradients that are not 0.  lost: those of them that become 0.  overflowed: those that become infinite.
    """

    def __init__(self, rounding):
        self.rounding = rounding
        self.seen = self.lost = self.overflowed = 0

    def factor(self, x):
        """x rounded."""
        return self.rounding(x)

    def gradient(self, g):
        """g rounded, and counted."""
        rounded = self.rounding(g)
        self.seen += np.count_nonzero(g)
        self.lost += np.count_nonzero(g) - np.count_nonzero(rounded)
        self.overflowed += np.count_nonzero(np.isinf(rounded) & np.isfinite(g))
        return rounded


@contextmanager
def rounded_products(rounder):
    """Within the block conv2d, linear and attention round their factors by `rounder`."""
    before = dict(FAST)
    affine = {name: _affine(before.get(name, getattr(ops, name).__wrapped__), rounder) for name in ("conv2d", "linear")}
    for name in FUSED:
        FAST.pop(name, None)
    FAST.update(affine, attention=_attention(rounder))
    try:
        yield
    finally:
        FAST.clear()
        FAST.update(before)


def _affine(form, rounder):
    """conv2d or linear: y is x times w, plus b.  b is no factor, so it is not rounded."""

    def rounded(x, w, b, **options):
        y, vjp = form(rounder.factor(x), rounder.factor(w), b, **options)
        return y, lambda g: vjp(rounder.gradient(g))

    return rounded


def _attention(rounder):
    """ops.attention without a mask: softmax(q k^T / sqrt(D)) v is two products, and its gradient four."""

    def rounded(q, k, v, *, mask=None):
        assert mask is None  # the U-Net has none
        scale, r = 1 / math.sqrt(q.shape[-1]), rounder.factor
        q, k, v = r(q * scale), r(k), r(v)
        p = softmax_array(q @ k.swapaxes(-1, -2))
        factor = r(p)

        def vjp(g):
            g = rounder.gradient(g)
            ds = rounder.gradient(softmax_gradient(p, g @ v.swapaxes(-1, -2)))
            return ds @ k * scale, ds.swapaxes(-1, -2) @ q, factor.swapaxes(-1, -2) @ g

        return factor @ v, vjp

    return rounded
