"""silu and softmax in fewer passes:    silu(x) = h (1 + tanh h),  h = x/2.    Read next: norm.py."""

from tinydiff.backend import xp
from tinydiff.fast import kernels


def silu(x):
    """The faster form of ops.silu."""
    if kernels.available():
        return kernels.silu(x), lambda g: (kernels.silu_backward(x, g),)
    return silu_of_double(0.5 * x), lambda g: (g * (0.5 * silu_of_double_and_slope(0.5 * x)[1]),)


def softmax(x):
    """reduce.softmax_array, in one array."""
    if kernels.available():
        return kernels.softmax(x)
    y = x - x.max(-1, keepdims=True)
    xp.exp(y, out=y)
    y /= y.sum(-1, keepdims=True)
    return y


def softmax_gradient(p, g):
    """reduce.softmax_gradient, in one array."""
    if kernels.available():
        return kernels.softmax_backward(p, g)
    dx = g - (g * p).sum(-1, keepdims=True)
    dx *= p
    return dx


def silu_of_double(h, out=None):
    """silu(2h) = h (1 + tanh h), as a new array or written to out.  out must not be h."""
    t = xp.tanh(h)
    t += 1
    return xp.multiply(h, t, out=out)


def silu_of_double_and_slope(h, out=None):
    """Return silu(2h) and its derivative with respect to h.  The derivative is written over h.

        derivative = t (1 + h (2 - t)),    t = 1 + tanh h

    silu(2h) is a new array, or is written to out.
    """
    t = xp.tanh(h)
    t += 1
    y = xp.multiply(h, t, out=out)
    u = 2 - t
    h *= u
    h += 1
    h *= t
    return y, h
