"""Functions applied element by element, each beside its derivative.

SiLU goes through tanh, which cannot overflow:    x sigmoid(x) = x (1 + tanh(x/2))/2

Read next: reduce.py.
"""

from tinydiff.autograd import pointwise
from tinydiff.backend import xp


@pointwise
def exp(x):
    y = xp.exp(x)
    return y, lambda g: (g * y,)


@pointwise
def log(x):
    """Natural logarithm."""
    return xp.log(x), lambda g: (g / x,)


@pointwise
def silu(x):
    """x s, s = sigmoid(x): the activation of the U-Net (Hendrycks & Gimpel 2016).  Derivative: s + x s (1 - s)."""
    s = 0.5 * (1 + xp.tanh(0.5 * x))
    return x * s, lambda g: (g * (s + x * s * (1 - s)),)
