"""Functions applied element by element, each beside its derivative.

Sigmoid and SiLU go through tanh, which NumPy evaluates faster than exp and which cannot overflow:

    sigmoid(x) = (1 + tanh(x/2)) / 2        silu(x) = x sigmoid(x) = h (1 + tanh h),  h = x/2

Read next: reduce.py, then conv.py.
"""

from tinydiff import kernels
from tinydiff.autograd import op, pointwise
from tinydiff.backend import asarray, xp


@pointwise
def exp(x):
    y = xp.exp(x)
    return y, lambda g: (g * y,)


@pointwise
def log(x):
    """Natural logarithm."""
    return xp.log(x), lambda g: (g / x,)


@pointwise
def sqrt(x):
    y = xp.sqrt(x)
    return y, lambda g: (g / (2 * y),)


@pointwise
def tanh(x):
    y = xp.tanh(x)
    return y, lambda g: (g * (1 - y * y),)


@pointwise
def sigmoid(x):
    """1 / (1 + exp(-x))."""
    y = 0.5 * xp.tanh(0.5 * x) + 0.5
    return y, lambda g: (g * (y * (1 - y)),)


@pointwise
def silu(x):
    """x sigmoid(x), the activation of the U-Net (Hendrycks & Gimpel 2016)."""
    if kernels.available():
        return kernels.silu(x), lambda g: (kernels.silu_backward(x, g),)
    return silu_of_double(0.5 * x), lambda g: (g * (0.5 * silu_of_double_and_slope(0.5 * x)[1]),)


@pointwise
def relu(x):
    """max(x, 0), with derivative 0 at 0."""
    return xp.maximum(x, 0), lambda g: (g * (x > 0),)


@pointwise
def maximum(x, y):
    """The larger of x and y; where they are equal each gets half of the gradient."""
    z = xp.maximum(x, y)

    def vjp(g):
        to_x = (0.5 * ((x >= y).astype(g.dtype) + (x > y))).astype(g.dtype)
        return g * to_x, g * (1 - to_x)

    return z, vjp


@pointwise
def where(x, y, *, condition):
    """x where condition holds, else y.  condition: boolean array that broadcasts with x and y."""
    condition = xp.asarray(condition)
    if condition.dtype != bool:
        raise ValueError(f"where: condition must be boolean, got dtype {condition.dtype}")
    z = xp.where(condition, x, y)
    return z, lambda g: (xp.where(condition, g, 0), xp.where(condition, 0, g))


@op
def dropout(x, *, p, rng):
    """Zero each element with probability p and divide the rest by 1 - p, so that the mean is kept (Srivastava 2014).

    rng: host generator that draws the mask.  p: 0 <= p < 1, else ValueError.
    """
    if not 0 <= p < 1:
        raise ValueError(f"dropout: p must lie in 0 <= p < 1, got {p}")
    keep = asarray(rng.random(x.shape, dtype="float32") >= p).astype(x.dtype) * (1 / (1 - p))
    return x * keep, lambda g: (g * keep,)


def silu_of_double(h, out=None):
    """silu(2h) = h (1 + tanh h), as a new array or into out (which must not be h)."""
    t = xp.tanh(h)
    t += 1
    return xp.multiply(h, t, out=out)


def silu_of_double_and_slope(h, out=None):
    """silu(2h), and its derivative by h, t (1 + h (2 - t)) with t = 1 + tanh h, which is written over h."""
    t = xp.tanh(h)
    t += 1
    y = xp.multiply(h, t, out=out)
    u = 2 - t
    h *= u
    h += 1
    h *= t
    return y, h
