"""Sums over axes, and what is built on them: mean, max, softmax, logsumexp.

`axis` is None (all axes), an integer or a tuple of integers, as in NumPy.  Read next: shape.py.
"""

from tinydiff import kernels
from tinydiff.autograd import op
from tinydiff.backend import xp


@op
def sum(x, *, axis=None, keepdims=False):
    """Sum over `axis`."""
    shape = x.shape
    return x.sum(axis, keepdims=keepdims), lambda g: (_spread(g, shape, axis, keepdims).copy(),)


@op
def mean(x, *, axis=None, keepdims=False):
    """Mean over `axis`."""
    y, shape = x.mean(axis, keepdims=keepdims), x.shape
    weight = y.size / (x.size or 1)
    return y, lambda g: (_spread(g, shape, axis, keepdims) * weight,)


@op
def max(x, *, axis=None, keepdims=False):
    """Largest value over `axis`; equal largest values share the gradient evenly."""
    top = x.max(axis, keepdims=True)

    def vjp(g):
        is_top = (x == top).astype(g.dtype)
        return (_spread(g, x.shape, axis, keepdims) * (is_top / is_top.sum(axis, keepdims=True)),)

    return x.max(axis, keepdims=keepdims), vjp


@op
def softmax(x, *, axis=-1):
    """exp(x) / sum(exp(x)) over `axis`, computed after subtracting the largest x so that nothing overflows."""
    y = softmax_array(x, axis)
    return y, lambda g: (softmax_gradient(y, g, axis),)


@op
def logsumexp(x, *, axis=-1, keepdims=False):
    """log(sum(exp(x))) over `axis`; its gradient is the softmax."""
    top = x.max(axis, keepdims=True)
    y = top + xp.log(xp.exp(x - top).sum(axis, keepdims=True))

    def vjp(g):
        return (_spread(g, x.shape, axis, keepdims) * softmax_array(x, axis),)  # exp(x - y) would round y first

    return (y if keepdims else y.squeeze(axis)), vjp


def softmax_array(x, axis):
    """Softmax of an array, as a new array."""
    if kernels.available() and axis in (-1, x.ndim - 1):
        return kernels.softmax(x)
    y = x - x.max(axis, keepdims=True)
    xp.exp(y, out=y)
    y /= y.sum(axis, keepdims=True)
    return y


def softmax_gradient(y, g, axis):
    """The gradient of softmax's input, y (g - sum(y g)), from its result y, as a new array."""
    if kernels.available() and axis in (-1, y.ndim - 1):
        return kernels.softmax_backward(y, g)
    return y * (g - (g * y).sum(axis, keepdims=True))


def _spread(g, shape, axis, keepdims):
    """Broadcast the gradient of a reduction back to its input's shape: a read-only view."""
    if axis is not None and not keepdims:
        g = xp.expand_dims(g, axis)
    return xp.broadcast_to(g, shape)
