"""The 3x3 convolution of stride 1 with a quarter of the multiplications (Winograd; Lavin & Gray 2016, F(4x4, 3x3)).

A 4x4 tile of the output depends on a 6x6 tile of the padded input.  Both, and the filter, are taken to a basis in which
the convolution of one tile is 36 products instead of 144:

    V = B^T x B,   U = G w G^T,   M = V U for each of the 36 places (a product over channels),   y = A^T M A

The filter gradient runs the same way backwards; the input gradient is the convolution of g with the flipped filter.
Every transform is separable: a small matrix times all image rows at once, then times all columns.  The batch goes
through in slices whose transformed tiles stay in a core's cache.  In float32 the result is off by about 1e-5 of its
largest value, ten times the direct sum's error: B and A have entries up to 8 whose products cancel.

Axes: N batch, H W rows and columns, C O channels, I J tiles down and across, k l places in a tile.
`pays` says where conv2d uses this; conv.py holds the plain form that it equals.
"""

from functools import lru_cache

from tinydiff.backend import asarray, backend_name, chunks, xp
from tinydiff.ops.linear import add_bias

# Interpolation at 0, 1, -1, 2, -2, infinity: A^T ((G f) * (B^T d)) correlates a row d of 6 with a filter f of 3.
_BT = (
    (4, 0, -5, 0, 1, 0),
    (0, -4, -4, 1, 1, 0),
    (0, 4, -4, -1, 1, 0),
    (0, -2, -1, 2, 1, 0),
    (0, 2, -1, -2, 1, 0),
    (0, 4, 0, -5, 0, 1),
)
_G = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)
_AT = ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1))
_MIN_CHANNELS = 16  # with fewer, the transforms cost more than the products save


def pays(x, w, stride, padding) -> bool:
    """Whether this is a 3x3 convolution of stride 1 that keeps the size, wide enough to gain, on a CPU."""
    same_size = w.shape[:2] == (3, 3) and stride == padding == 1
    return same_size and min(w.shape[2:]) >= _MIN_CHANNELS and backend_name() == "numpy"


def correlate(x, w, b=None):
    """y[n,i,j,o] = b[o] + sum_{k,l,c} x_padded[n,i+k,j+l,c] w[k,l,c,o]: x (N, H, W, C), w (3, 3, C, O) -> (N, H, W, O).

    b: None, (O,) or (N, O).
    """
    c, o = w.shape[2:]
    u = _filter_tiles(w)
    y = xp.empty((*x.shape[:3], o), x.dtype)
    for part in _parts(x, max(c, o)):
        _output(xp.matmul(_input_tiles(x[part]), u), y[part])
        if b is not None:
            add_bias(y, b, part)
    return y


def filter_gradient(x, g):
    """dw[k,l,c,o] = sum_{n,i,j} x_padded[n,i+k,j+l,c] g[n,i,j,o]: x (N, H, W, C), g (N, H, W, O) -> (3, 3, C, O)."""
    c, o = x.shape[3], g.shape[3]
    du = xp.zeros((36, c, o), x.dtype)
    for part in _parts(x, max(c, o)):
        v, dm = _input_tiles(x[part]), _gradient_tiles(g[part])
        du += xp.matmul(v.transpose(0, 2, 1), dm)
    dw = _both_ways(_matrix("G", x.dtype).T, du.reshape(6, 6, c * o))  # places as (l, k)
    return dw.reshape(3, 3, c, o).swapaxes(0, 1)


def flipped(w):
    """The filter of the input gradient: turned by 180 degrees, channels in and out exchanged."""
    return xp.ascontiguousarray(w[::-1, ::-1].transpose(0, 1, 3, 2))


def _filter_tiles(w):
    """U = G w G^T: (3, 3, C, O) -> (36, C, O), the places as (l, k)."""
    c, o = w.shape[2:]
    return _both_ways(_matrix("G", w.dtype), w.swapaxes(0, 1).reshape(3, 3, c * o)).reshape(36, c, o)


def _input_tiles(x):
    """V = B^T x B for the 6x6 tile behind each 4x4 tile of the output: (n, H, W, C) -> (36, n I J, C)."""
    n, h, w, c = x.shape
    i, j = _tile_counts(h, w)
    padded = xp.zeros((n, 4 * i + 2, 4 * j + 2, c), x.dtype)
    padded[:, 1 : h + 1, 1 : w + 1] = x
    return _tiles(padded, 6, _matrix("BT", x.dtype))


def _gradient_tiles(g):
    """A g A^T, the adjoint of _output: (n, H, W, O) -> (36, n I J, O)."""
    n, h, w, o = g.shape
    i, j = _tile_counts(h, w)
    if (h, w) == (4 * i, 4 * j):
        g = xp.ascontiguousarray(g)
    else:
        padded = xp.zeros((n, 4 * i, 4 * j, o), g.dtype)
        padded[:, :h, :w] = g
        g = padded
    return _tiles(g, 4, _matrix("AT", g.dtype).T)


def _tiles(x, size, matrix):
    """Cut contiguous x (n, P, Q, C) into tiles of `size` at steps of 4, and take each to matrix tile matrix^T.

    matrix: (6, size).  Returns (36, n I J, C), the places in a tile as (l, k).
    """
    n, p, q, c = x.shape
    i, j = (p - size) // 4 + 1, (q - size) // 4 + 1
    strided = xp.lib.stride_tricks.as_strided
    image, row, column, one = x.strides
    bands = strided(x, (n, i, size, q * c), (image, 4 * row, row, one))
    bands = xp.matmul(matrix, bands)  # (n, I, 6, Q C): down the columns, whole rows at a time
    tiles = xp.empty((size, 6, n, i, j, c), x.dtype)
    tiles[...] = strided(bands, tiles.shape, (column, row, 6 * i * row, 6 * row, 4 * column, one))
    return xp.matmul(matrix, tiles.reshape(size, -1)).reshape(36, n * i * j, c)


def _output(m, y):
    """A^T m A put in its place: m (36, n I J, O) with the places as (l, k) -> y (n, H, W, O), written."""
    n, h, w, o = y.shape
    i, j = _tile_counts(h, w)
    at = _matrix("AT", m.dtype)
    tiles = _both_ways(at, m.reshape(6, 6, -1)).reshape(4, 4, n, i, j, o)
    tiles = tiles.transpose(2, 3, 1, 4, 0, 5)  # (l, k, n, I, J, O) -> (n, I, k, J, l, O)
    if (h, w) == (4 * i, 4 * j):
        y.reshape(n, i, 4, j, 4, o)[...] = tiles
    else:
        y[...] = xp.ascontiguousarray(tiles).reshape(n, 4 * i, 4 * j, o)[:, :h, :w]


def _both_ways(matrix, x):
    """matrix x_r matrix^T for each r of x (q, q, R) -> (p, p, R), matrix (p, q)."""
    p, q = matrix.shape
    x = xp.matmul(matrix, x.reshape(q, -1)).reshape(p, q, -1)
    return xp.matmul(matrix, x)


def _parts(x, channels):
    n, h, w, _ = x.shape
    i, j = _tile_counts(h, w)
    return chunks(n, 36 * i * j * channels * x.itemsize)


def _tile_counts(h, w):
    """How many 4x4 tiles cover a map, down and across."""
    return -(-h // 4), -(-w // 4)


@lru_cache
def _matrix(name, dtype):
    return asarray({"BT": _BT, "G": _G, "AT": _AT}[name], dtype)
