"""Sums over axes, and what is built on them: mean, softmax, logsumexp.

`axis` is None (all axes), an integer or a tuple of integers, as in NumPy.  Read next: shape.py.
"""

from tinydiff.autograd import op
from tinydiff.backend import fusable, xp


@op
def total(x, *, axis=None):
    """The sum over `axis`."""
    shape = x.shape
    return x.sum(axis), lambda g: (_spread(g, shape, axis),)


@op
def mean(x, *, axis=None):
    """The mean over `axis`."""
    y, shape = x.mean(axis), x.shape
    weight = y.size / (x.size or 1)  # no division by 0 for an empty array
    return y, lambda g: (_spread(g, shape, axis) * weight,)


@op
def softmax(x):
    """p = exp(x)/sum(exp(x)) over the last axis; the gradient is p (g - sum(p g))."""
    p = softmax_array(x)
    return p, lambda g: (softmax_gradient(p, g),)


@op
def logsumexp(x):
    """log(sum(exp(x))) over the last axis; its gradient is the softmax."""
    largest = x.max(-1, keepdims=True)
    empty = largest == -xp.inf  # log(0) = -inf, with gradient 0
    summed = xp.exp(x - xp.where(xp.isfinite(largest), largest, 0)).sum(-1, keepdims=True)
    y = largest + xp.log(summed + empty)
    # The gradient is not g exp(x - y): y is already rounded.
    return y[..., 0], lambda g: (g[..., None] * ~empty * softmax_array(xp.where(empty, 0, x)),)


@fusable
def softmax_array(x):
    """Softmax of an array over its last axis, after subtracting the largest x so that nothing overflows."""
    y = xp.exp(x - x.max(-1, keepdims=True))
    return y / y.sum(-1, keepdims=True)


@fusable
def softmax_gradient(p, g):
    """The gradient of softmax; p is the result of softmax, g the gradient of p."""
    return p * (g - (g * p).sum(-1, keepdims=True))


def _spread(g, shape, axis):
    """Broadcast the gradient of a reduction back to its input's shape: a read-only view."""
    return xp.broadcast_to(g if axis is None else xp.expand_dims(g, axis), shape)
