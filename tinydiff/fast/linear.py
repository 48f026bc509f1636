"""linear as one matrix product: all axes of x but the last become the rows of a matrix.

The product is cut into pieces of rows, because the BLAS library multiplies small matrices faster.  Read next: conv.py.
"""

import math
from functools import cache, lru_cache

from tinydiff.backend import backend_name, xp
from tinydiff.fast import kernels, tensor_cores
from tinydiff.ops.matrix import check_linear

_SMALL = 1_000_000  # multiplications; up to here OpenBLAS does not copy the matrices first, and is a quarter faster
_FEW = 64  # rows in a piece; with fewer, adding up the products x^T g costs more than the pieces save


def linear(x, w, b, *plus):
    """The faster form of ops.linear.  If plus contains an array of the result's shape, that array is added."""
    check_linear(x, w, b)
    i, o = w.shape
    lead = x.shape[:-1]
    rows = x.reshape(math.prod(lead), i)  # not -1: with an empty axis it cannot be inferred
    y, rows_vjp = _linear_of_rows(rows, w, b, [p.reshape(rows.shape[0], o) for p in plus], lead[-1] if lead else 1)

    def vjp(g):
        dx, dw, db, *_ = rows_vjp(g.reshape(len(rows), o))
        return lambda: dx().reshape(x.shape), dw, db

    return y.reshape(*lead, o), vjp


def _linear_of_rows(x, w, b, plus, width):
    """linear for rows x (M, I): (y, vjp).  width: the length of a row of pixels, or 1."""
    if kernels.available() and len(x) <= kernels.FEW_ROWS and not plus:

        def vjp(g):
            gradients = cache(lambda: kernels.linear_backward(x, w, g))
            return tuple((lambda k=k: gradients()[k]) for k in range(3))

        return kernels.linear(x, w, b), vjp
    if tensor_cores.fits(x, w, largest=len(x) * w.shape[1]):
        y, vjp = tensor_cores.conv2d(x[:, None, None], w[None, None], b, *(p[:, None, None] for p in plus), of=w)
        return y, lambda g: vjp(g[:, None, None])
    y = product(x, w)
    add_bias(y.reshape(len(x) // max(width, 1), 1, width, len(b)), b)
    for p in plus:
        y += p
    return y, lambda g: (
        lambda: product(g, transposed(w)),
        lambda: product_of_transposed(x, g),
        lambda: sum_rows(g),
    )


def product(x, w, out=None):
    """x w for many rows: (M, I) and (I, O) -> (M, O), in pieces of rows that the BLAS library multiplies fastest."""
    (m, i), o, size = x.shape, w.shape[1], _piece(len(x), w.size, backend_name())
    if size == m:  # always on a GPU: for a stack, CuPy would copy a transposed matrix.  dot can write to out
        return xp.dot(x, w, out=out)
    out = xp.empty((m, o), x.dtype) if out is None else out
    xp.matmul(x.reshape(m // size, size, i), w, out=out.reshape(m // size, size, o))
    return out


def transposed(w):
    """w^T as a factor of `product`.  On a CPU it is a copy, which multiplies faster; a GPU's library needs no copy."""
    return w.T if kernels.available() else xp.ascontiguousarray(w.T)


def product_of_transposed(x, g):
    """x^T g for many rows: (M, I) and (M, O) -> (I, O), in pieces too, unless these have fewer than _FEW rows."""
    (m, i), o = x.shape, g.shape[1]
    size = _piece(m, i * o, backend_name())
    if size == m or size < _FEW:
        return xp.dot(x.T, g)
    x, g = x.reshape(m // size, size, i), g.reshape(m // size, size, o)
    return xp.matmul(x.transpose(0, 2, 1), g).sum(0)


@lru_cache
def _piece(m, work, backend):
    """The number of rows in a piece, of m rows in all; each row takes `work` multiplications.  It divides m; it is m
    itself if no suitable divisor exists."""
    if backend != "numpy":
        return m
    most = _SMALL // max(work, 1)
    return next((size for size in range(min(m, most), most // 4, -1) if m % size == 0), m)


def add_bias(y, b):
    """Add b, (O,) or (N, O), to every pixel of y (N, H, W, O), in place.  Adding whole image rows is faster."""
    if kernels.available():
        kernels.add_bias(y, b)
        return
    n, h, w, o = y.shape
    rows = y.reshape(n, h, w * o)
    rows += image_row(b[None] if b.ndim == 1 else b, w)


def image_row(v, width):
    """Repeat channel values (n, C) along an image row: (n, 1, width C).  NumPy broadcasts faster over long axes."""
    n, c = v.shape
    row = xp.empty((n, width, c), v.dtype)
    row[...] = v[:, None]
    return row.reshape(n, 1, width * c)


def sum_rows(g):
    """Sum over the last axis but one, (..., M, O) -> (..., O).  A product with ones is 9 times faster than np.sum."""
    if kernels.available():
        return kernels.sum_rows(g)
    return xp.matmul(xp.ones((1, g.shape[-2]), g.dtype), g)[..., 0, :]
