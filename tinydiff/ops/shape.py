"""Moving elements without changing them.  The gradient moves them back, and adds up the copies of an element.

Read next: matrix.py.
"""

import math
from itertools import accumulate

from tinydiff.autograd import Tensor, op
from tinydiff.backend import asarray, host_integers, require, xp


@op
def reshape(x, *, shape):
    before = x.shape
    return x.reshape(shape), lambda g: (g.reshape(before),)


@op
def transpose(x, *, axes):
    """Permute the axes: axis i of the result is axis axes[i] of x.  Each axis must occur once, else ValueError."""
    require(sorted(axes) == list(range(x.ndim)), f"transpose: axes must name each of {x.ndim} axes once", axes)
    back = sorted(range(x.ndim), key=axes.__getitem__)  # the inverse permutation
    return x.transpose(axes), lambda g: (g.transpose(back),)


@op
def concat(*xs):
    """Put arrays side by side on the last axis.  Gradients are copies, because a view would keep all of g in memory."""
    ends = list(accumulate(x.shape[-1] for x in xs))

    def vjp(g):
        return [lambda start=start, end=end: g[..., start:end].copy() for start, end in zip([0, *ends], ends)]

    return xp.concatenate(xs, -1), vjp


def split(x: Tensor, sections: int) -> list[Tensor]:
    """Cut the last axis into `sections` equal parts; ValueError if it cannot be."""
    if sections < 1 or x.shape[-1] % sections:
        raise ValueError(f"split: cannot cut {x.shape[-1]} channels into sections={sections} equal parts")
    size = x.shape[-1] // sections
    return [x[..., i * size : (i + 1) * size] for i in range(sections)]


@op
def take(x, *, indices):
    """The rows x[indices]; a row may be picked several times: x (R, ...), indices (...) -> indices.shape + x.shape[1:].

    indices: host integers in 0..R-1, else ValueError.  The gradient of a row is the sum over its picks.  A product with
    a one-hot matrix makes this sum, in the same order every time, on either backend.
    """
    size, shape = len(x), x.shape
    indices = asarray(host_integers("indices", indices, 0, size - 1))

    def vjp(g):
        one_hot = (xp.arange(size)[:, None] == indices.reshape(-1)).astype(g.dtype)  # (R, picks)
        return ((one_hot @ g.reshape(indices.size, math.prod(shape[1:]))).reshape(shape),)

    return x[indices], vjp
