"""Moving elements without changing them.  Each gradient moves them back, and adds where one element went to several.

Read next: linear.py.
"""

from itertools import accumulate

from tinydiff import kernels
from tinydiff.autograd import Tensor, op
from tinydiff.backend import asarray, host_integers, xp


@op
def reshape(x, *, shape):
    before = x.shape
    return x.reshape(shape), lambda g: (g.reshape(before),)


@op
def transpose(x, *, axes=None):
    """Permute the axes: axis i of the result is axis axes[i] of x; None reverses them."""
    axes = tuple(reversed(range(x.ndim))) if axes is None else tuple(axes)
    if sorted(a + x.ndim if a < 0 else a for a in axes) != list(range(x.ndim)):
        raise ValueError(f"transpose: axes must name each of {x.ndim} axes once, got {axes}")
    axes = tuple(a % x.ndim for a in axes)
    back = tuple(sorted(range(x.ndim), key=axes.__getitem__))
    return x.transpose(axes), lambda g: (g.transpose(back),)


@op
def concat(*xs, axis=-1):
    """Join arrays along `axis`, whose sizes may differ.  Gradients are copies: a view would keep all of g in memory."""
    sizes = [x.shape[axis] for x in xs]
    if kernels.available() and len(xs) == 2 and axis in (-1, xs[0].ndim - 1):
        return kernels.concat(*xs), lambda g: [lambda part=part: part for part in kernels.split(g, sizes[0])]

    ends = list(accumulate(sizes))

    def vjp(g):
        parts = [_slice(g.ndim, axis, end - size, end) for size, end in zip(sizes, ends)]
        return [lambda part=part: g[part].copy() for part in parts]

    return xp.concatenate(xs, axis), vjp


def split(x: Tensor, sections: int, *, axis: int = -1) -> list[Tensor]:
    """Cut `axis` into `sections` equal parts; ValueError if it cannot be."""
    if sections < 1 or x.shape[axis] % sections:
        raise ValueError(f"split: cannot cut axis {axis} of size {x.shape[axis]} into sections={sections} equal parts")
    size = x.shape[axis] // sections
    return [x[_slice(x.ndim, axis, i * size, (i + 1) * size)] for i in range(sections)]


@op
def pad(x, *, widths):
    """Surround x with zeros: widths is one (before, after) pair an axis, else ValueError."""
    if len(widths) != x.ndim:
        raise ValueError(f"pad: widths must be one pair for each of {x.ndim} axes, got {widths}")
    inside = tuple(slice(before, before + size) for (before, _), size in zip(widths, x.shape))
    return xp.pad(x, widths), lambda g: (g[inside],)


@op
def take(x, *, indices, axis=0):
    """Pick slices x[..., indices, ...] along `axis`, any of them any number of times.

    indices: host integers of any shape in 0..size-1, else ValueError.  The gradient adds up what went to one index by a
    product with a one-hot matrix: the same order of summation every time, on either backend.
    """
    size, axis = x.shape[axis], axis % x.ndim
    indices = asarray(host_integers("indices", indices, 0, size - 1))

    def vjp(g):
        one_hot = (xp.arange(size)[:, None] == indices.reshape(-1)).astype(g.dtype)  # (size, picks)
        inner = tuple(range(axis, axis + indices.ndim))
        rest = tuple(i for i in range(g.ndim) if i not in inner)
        picked = g.transpose(inner + rest).reshape(indices.size, *(g.shape[i] for i in rest))
        return (xp.moveaxis(xp.tensordot(one_hot, picked, 1), 0, axis),)

    return xp.take(x, indices, axis), vjp


def _slice(ndim, axis, start, stop):
    index = [slice(None)] * ndim
    index[axis] = slice(start, stop)
    return tuple(index)
