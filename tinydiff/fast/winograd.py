"""The 3x3 convolution of stride 1 with a quarter of the multiplications (Winograd; Lavin & Gray 2016, F(4x4, 3x3)).

A 4x4 tile of the output depends on a 6x6 tile of the padded input.  Input tiles and filter are transformed to a basis
in which the convolution of one tile is 36 products instead of 144.  The result is transformed back:

    V = B^T x B,   U = G w G^T,   M = V U for each of the 36 places (a product over channels),   y = A^T M A

The filter gradient uses V and the adjoints of the other two transforms.  The input gradient is the convolution of g
with the flipped filter.  In float32 the error of the result is about 1e-5 of the largest value, ten times the error of
the direct sum: B and A have entries up to 8, and large products cancel.

The transforms are fast because each is a small matrix times long rows.  A frame contains the maps of some images,
pixels first (row, column, image, channel), with zeros around the maps.  In a frame one pixel of all images is one row
in memory, and a tile is a strided view.  Each product writes its result in the order in which the next product reads
it, so no step has to gather numbers.  The functions take some rows of tiles at a time, so that the transforms of these
tiles stay in a core's cache.

Axes: n images of a frame, P Q rows and columns of a frame, C O channels, I J tiles down and across, k l places in a
tile.  conv.py uses this file where `pays` is True; on a GPU it never is.  Read next: silu.py.
"""

from functools import lru_cache

from tinydiff.backend import asarray, backend_name, xp
from tinydiff.fast.cache import chunks

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
    """Whether to use this file: on a CPU, if the convolution is 3x3, of stride 1, keeps the size and has enough
    channels."""
    same_size = w.shape[:2] == (3, 3) and stride == padding == 1 and x.size > 0
    return same_size and min(w.shape[2:]) >= _MIN_CHANNELS and backend_name() == "numpy"


def correlate(x, w, b=None):
    """y[n,i,j,o] = b[o] + sum_{k,l,c} x_padded[n,i+k,j+l,c] w[k,l,c,o]: x (N, H, W, C), w (3, 3, C, O) -> (N, H, W, O).

    b: None, (O,) or (N, O).
    """
    u = filter_tiles(w)
    y = xp.empty((*x.shape[:3], w.shape[3]), x.dtype)
    b = None if b is None else xp.broadcast_to(b, (len(x), w.shape[3]))
    for part in parts(y.shape, max(w.shape[2:]), x.itemsize):
        correlate_frame(framed(x[part]), u, y[part], None if b is None else b[part])
    return y


def filter_gradient(x, g):
    """dw[k,l,c,o] = sum_{n,i,j} x_padded[n,i+k,j+l,c] g[n,i,j,o]: x (N, H, W, C), g (N, H, W, O) -> (3, 3, C, O)."""
    c, o = x.shape[3], g.shape[3]
    du = xp.zeros((36, c, o), x.dtype)
    for part in parts(g.shape, max(c, o), x.itemsize):
        add_filter_gradient(framed(x[part]), framed(g[part]), du)
    return from_filter_tiles(du)


def flipped(w):
    """The filter of the input gradient: w turned by 180 degrees, with input and output channels exchanged."""
    return xp.ascontiguousarray(w[::-1, ::-1].transpose(0, 1, 3, 2))


# The steps of the functions above.  fused.py calls them, because its ops fill frames themselves.


def parts(shape, channels, itemsize):
    """Slices of a batch of maps (N, H, W, .).  One row of tiles of all images of a slice, with `channels` channels,
    fits the cache."""
    return chunks(shape[0], 36 * _count(shape[2]) * channels * itemsize)


def frame(shape, dtype):
    """Return (frame, view) for maps (n, H, W, C).  frame: (P, Q, n, C), with zeros around the maps.  view: (n, H, W,
    C), the part of the frame to which the caller writes the maps."""
    n, h, w, c = shape
    a = xp.empty((4 * _count(h) + 2, 4 * _count(w) + 2, n, c), dtype)
    a[0] = a[h + 1 :] = a[:, 0] = a[:, w + 1 :] = 0
    return a, a[1 : h + 1, 1 : w + 1].transpose(2, 0, 1, 3)


def framed(x):
    """Copy maps (n, H, W, C) into a new frame."""
    a, inside = frame(x.shape, x.dtype)
    inside[...] = x
    return a


def correlate_frame(x, u, y, b=None):
    """Convolve a frame (P, Q, n, C) with the filter tiles u, add b (n, O), and write the result to y (n, H, W, O)."""
    for band in _bands(x, max(u.shape[1:])):
        m = xp.matmul(_tiles(x, band, 6, _matrix("BT", x.dtype)), u)
        if b is not None:
            # Column 1 of A^T (from 0) contains only ones, so b at place (1, 1) adds b to every pixel of the tile.
            m[7].reshape((band.stop - band.start) * (x.shape[1] // 4), *b.shape)[...] += b
        _output(m, y[:, 4 * band.start : 4 * band.stop])


def add_filter_gradient(x, g, du):
    """Add the filter gradient of some images, given as frames x and g, to du (36, C, O), in the basis of the tiles."""
    for band in _bands(x, max(du.shape[1:])):
        v = _tiles(x, band, 6, _matrix("BT", x.dtype))
        dm = _tiles(g, band, 4, _matrix("A", g.dtype))  # A g A^T, the adjoint of _output
        du += xp.matmul(v.transpose(0, 2, 1), dm)


def filter_tiles(w):
    """U = G w G^T: (3, 3, C, O) -> (36, C, O)."""
    return _both_ways(_matrix("G", w.dtype), w).reshape(36, *w.shape[2:])


def from_filter_tiles(du):
    """G^T du G, the adjoint of filter_tiles: (36, C, O) -> (3, 3, C, O)."""
    return _both_ways(_matrix("G", du.dtype).T, du.reshape(6, 6, *du.shape[1:]))


def _bands(x, channels):
    """Slices of a frame's rows of tiles.  The transforms of a slice stay in cache."""
    p, q, n, _ = x.shape
    return chunks(p // 4, 36 * (q // 4) * n * channels * x.itemsize)


def _tiles(x, band, size, matrix):
    """matrix tile matrix^T for each tile of some rows of tiles of the frame x (P, Q, n, C): (36, I J n, C).

    matrix: (6, size).  A tile begins every 4 pixels.  A tile of size 4 is the middle of the tile of size 6.
    """
    _, q, n, c = x.shape
    i, j, margin = band.stop - band.start, q // 4, (6 - size) // 2
    row, column, _, number = x.strides
    start = (4 * band.start + margin) * row + margin * column
    down = xp.ndarray((i, q - 2 * margin, size, n * c), x.dtype, x, start, (4 * row, column, row, number))
    down = xp.matmul(matrix, down)  # (I, Q, k, n C)
    row, column, place, number = down.strides
    across = xp.ndarray((i, 6, j, size, n * c), x.dtype, down, 0, (row, place, 4 * column, column, number))
    v = xp.empty((6, 6, i, j, n * c), x.dtype)
    xp.matmul(matrix, across, out=v.transpose(2, 0, 3, 1, 4))  # (k, l, I, J, n C), written as (I, k, J, l, n C)
    return v.reshape(36, i * j * n, c)


def _output(m, y):
    """Write A^T m A to y: m (36, I J n, O) -> y (n, at most 4 I rows, W, O).  Pixels outside y are dropped."""
    n, h, w, o = y.shape
    i, j, at = _count(h), _count(w), _matrix("AT", m.dtype)
    m = m.reshape(6, 6, i, j, n * o).transpose(2, 3, 0, 1, 4)  # (I, J, k, l, n O)
    across = xp.empty((i, j, 4, 6, n * o), m.dtype)
    xp.matmul(at, m, out=across.transpose(0, 1, 3, 2, 4))
    maps = xp.empty((i, 4, 4 * j, n * o), m.dtype)
    xp.matmul(at, across.reshape(i, 4 * j, 6, n * o), out=maps.transpose(0, 2, 1, 3))
    maps = maps.reshape(4 * i, 4 * j, n * o)
    y[...] = maps.reshape(4 * i, 4 * j, n, o)[:h, :w].transpose(2, 0, 1, 3)


def _both_ways(matrix, x):
    """matrix x matrix^T on the first two axes of x: (q, q, ...) -> (p, p, ...).  matrix: (p, q)."""
    p, q = matrix.shape
    down = xp.matmul(matrix, x.reshape(q, -1)).reshape(p, q, -1)
    return xp.matmul(matrix, down).reshape(p, p, *x.shape[2:])


def _count(size):
    """How many 4-wide tiles cover a side of a map."""
    return -(-size // 4)


@lru_cache
def _matrix(name, dtype):
    tables = {"BT": _BT, "G": _G, "AT": _AT, "A": tuple(zip(*_AT))}
    return asarray(tables[name], dtype)
