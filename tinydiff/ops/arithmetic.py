"""The ops behind Python's operators: x + y, x - y, x * y, x / y, -x, x @ y, x[index].

Read next: pointwise.py.
"""

from tinydiff.autograd import op, pointwise, unbroadcast
from tinydiff.backend import require, xp


@pointwise
def add(x, y):
    return x + y, lambda g: (g, g)


@pointwise
def sub(x, y):
    return x - y, lambda g: (g, lambda: -g)


@pointwise
def mul(x, y):
    return x * y, lambda g: (lambda: g * y, lambda: g * x)


@pointwise
def div(x, y):
    return x / y, lambda g: (lambda: g / y, lambda: -g * x / (y * y))


@pointwise
def neg(x):
    return -x, lambda g: (-g,)


@op
def matmul(x, y):
    """Matrix products of stacks: x (..., M, K) @ y (..., K, N) -> (..., M, N), leading axes broadcast."""
    require(min(x.ndim, y.ndim) >= 2, "matmul: x and y need two axes or more", f"shapes {x.shape} and {y.shape}")

    def vjp(g):
        return unbroadcast(g @ y.swapaxes(-1, -2), x.shape), unbroadcast(x.swapaxes(-1, -2) @ g, y.shape)

    return x @ y, vjp


@op
def getitem(x, *, index):
    """x[index] for integers, slices, None and Ellipsis: a view, so no element is picked twice; `take` picks by
    array."""
    for part in index if isinstance(index, tuple) else (index,):
        if not isinstance(part, int | xp.integer | slice | type(None) | type(...)) or isinstance(part, bool):
            raise TypeError(f"getitem: index may hold integers, slices, None and ..., got {type(part).__name__}")

    shape, y = x.shape, x[index]

    def vjp(g):
        dx = xp.zeros(shape, g.dtype)
        dx[index] = g
        return (dx,)

    return y, vjp
