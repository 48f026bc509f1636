"""Convolution of channels-last maps, and the two changes of resolution.

    y[n, i, j, o] = b[o] + sum_{k, l, c} x_padded[n, i stride + k, j stride + l, c] w[k, l, c, o]

The plain way: the window of each output pixel is laid out as one row of a matrix (im2col), so that forward, filter
gradient and input gradient are each one product with w or its transpose.  The rows are KH KW times the map; they are
made a few images at a time in a buffer that stays in the core's cache, and made again in the backward pass rather than
kept.  Where few channels come out, the same three functions change places; where winograd.py pays, it does the work.

Axes: N batch, H W rows and columns, C channels in, O channels out, K kernel.  Read next: norm.py.
"""

from functools import cache, reduce
from operator import iadd

from tinydiff import kernels
from tinydiff.autograd import op
from tinydiff.backend import chunks, xp
from tinydiff.ops import winograd
from tinydiff.ops.linear import add_bias, product, product_of_transposed, sum_rows, transposed


@op
def conv2d(x, w, b, *plus, stride=1, padding=0):
    """2-D convolution (cross-correlation): x (N, H, W, C), w (KH, KW, C, O), b (O,) -> (N, OH, OW, O).

        OH = (H + 2 padding - KH) // stride + 1,  OW likewise

    plus: nothing, or one more array to add.  (N, O) is a bias of each image's own, by which the time enters a residual
    block; (N, OH, OW, O) is the block's other branch.
    Raises ValueError where channels do not agree, w is empty or the padded image is smaller than the kernel.
    """
    check_conv2d(x, w, b, plus, stride, padding)
    if winograd.pays(x, w, stride, padding):
        each, other = bias_and_map(b, plus)
        y = winograd.correlate(x, w, each)
        if other is not None:
            y += other

        def vjp(g):
            return (
                lambda: winograd.correlate(g, winograd.flipped(w)),
                lambda: winograd.filter_gradient(x, g),
                *bias_gradients(g, plus),
            )
    elif stride == 1 and w.shape[0] == w.shape[1] > padding and 4 * w.shape[3] <= w.shape[2]:
        # Far fewer channels out than in.  The convolution is the input gradient of the one with the flipped filter, and
        # that way round the windows are taken of the map with few channels.
        turned, inner = winograd.flipped(w), w.shape[0] - 1 - padding
        y = _input_gradient(_output_shape(x, w, 1, padding), turned, x, 1, inner)
        _add(y, b, plus)

        def vjp(g):
            return (
                lambda: _correlate(g, turned, 1, inner),
                lambda: winograd.flipped(_filter_gradient(g, turned, x, 1, inner).reshape(turned.shape)),
                *bias_gradients(g, plus),
            )
    else:
        y = _correlate(x, w, stride, padding, b, plus)

        def vjp(g):
            db, *dplus = bias_gradients(g, plus, kernels.available())
            both = cache(lambda: _filter_gradient(x, w, g, stride, padding, one=db is None))
            taps = w.size // w.shape[3]
            return (
                lambda: _input_gradient(x.shape, w, g, stride, padding),
                lambda: both()[:taps].reshape(w.shape),
                db or (lambda: both()[taps]),
                *dplus,
            )

    return y, vjp


def _correlate(x, w, stride, padding, b=None, plus=()):
    y = xp.empty(_output_shape(x, w, stride, padding), x.dtype)
    for part in _parts(y, w):
        product(_columns(x[part], w, stride, padding), w.reshape(-1, w.shape[3]), y[part].reshape(-1, w.shape[3]))
        if b is not None:
            _add(y[part], b, [p[part] for p in plus])
    return y


def _add(y, b, plus):
    """y += b + plus, see conv2d, in place."""
    if kernels.available():
        kernels.add_bias(y, b, *plus)
        return
    each, other = bias_and_map(b, plus)
    add_bias(y, each)
    if other is not None:
        y += other


def bias_and_map(b, plus):
    """conv2d's b and plus as what all pixels of an image get, (O,) or (N, O), and what each gets, or None."""
    if not plus:
        return b, None
    return (b, plus[0]) if plus[0].ndim == 4 else (b + plus[0], None)


def _input_gradient(shape, w, g, stride, padding):
    o = w.shape[3]
    taps, parts = transposed(w.reshape(-1, o)), _parts(g, w)
    if len(parts) == 1:
        return _add_columns(product(g.reshape(-1, o), taps), shape, w, stride, padding)
    dx = xp.empty(shape, g.dtype)
    for part in parts:
        dx[part] = _add_columns(product(g[part].reshape(-1, o), taps), dx[part].shape, w, stride, padding)
    return dx


def _filter_gradient(x, w, g, stride, padding, one=False):
    """(KH KW C, O), a row for each tap; with a 1 after each window the next is the bias's gradient: see _columns."""
    o = w.shape[3]
    shares = (
        product_of_transposed(_columns(x[part], w, stride, padding, one), g[part].reshape(-1, o))
        for part in _parts(g, w)
    )
    return reduce(iadd, shares)


def bias_gradients(g, plus, elsewhere=False):
    """The gradients of conv2d's b and plus, from its result's; None for b's where it is found elsewhere."""
    n, oh, ow, o = g.shape
    if plus and plus[0].ndim == 2:
        each = sum_rows(g.reshape(n, oh * ow, o))
        db = None if elsewhere else sum_rows(each)  # now: what backward gets of each, it may add to
        return db if db is None else (lambda: db), lambda: each
    return None if elsewhere else (lambda: sum_rows(g.reshape(n * oh * ow, o))), *(g for _ in plus)


@op
def upsample_nearest(x):
    """Double the resolution by repeating each pixel: x (N, H, W, C) -> (N, 2H, 2W, C)."""
    n, h, w, c = x.shape
    y = xp.empty((n, h, 2, w, 2, c), x.dtype)
    y[:] = x[:, :, None, :, None]
    return y.reshape(n, 2 * h, 2 * w, c), lambda g: (sum_2x2(g),)


@op
def avg_pool2d(x):
    """Halve the resolution by 2x2 means: x (N, H, W, C) -> (N, H/2, W/2, C).  H and W even, else ValueError."""
    n, h, w, c = x.shape
    if h % 2 or w % 2:
        raise ValueError(f"avg_pool2d: height and width must be even, got {h} x {w}")

    def vjp(g):
        return (xp.broadcast_to(g[:, :, None, :, None] * 0.25, (n, h // 2, 2, w // 2, 2, c)).reshape(n, h, w, c),)

    return sum_2x2(x) * 0.25, vjp


def sum_2x2(x):
    """Sum each 2x2 block: on a CPU four strided reads are faster than a sum over two short axes."""
    if kernels.available():
        n, h, w, c = x.shape
        return x.reshape(n, h // 2, 2, w // 2, 2, c).sum((2, 4))
    return x[:, ::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, ::2] + x[:, 1::2, 1::2]


def check_conv2d(x, w, b, plus, stride, padding):
    """Raise conv2d's ValueErrors."""
    if x.ndim != 4 or w.ndim != 4 or x.shape[3] != w.shape[2]:
        raise ValueError(f"conv2d: x must be (N, H, W, C) and w (KH, KW, C, O), got {x.shape} and {w.shape}")
    if 0 in w.shape:
        raise ValueError(f"conv2d: w must have a tap and channels on either side, got {w.shape}")
    if b.shape != (w.shape[3],):
        raise ValueError(f"conv2d: b must be (O,) with O = {w.shape[3]}, got {b.shape}")
    if stride < 1 or padding < 0:
        raise ValueError(f"conv2d: stride must be 1 or more and padding 0 or more, got {stride} and {padding}")
    if min(_output_shape(x, w, stride, padding)[1:3]) < 1:
        raise ValueError(f"conv2d: the kernel {w.shape[:2]} is larger than the padded image of x {x.shape}")
    y_shape = _output_shape(x, w, stride, padding)
    if len(plus) > 1 or any(p.shape not in (y_shape, (len(x), w.shape[3])) for p in plus):
        found = ", ".join(str(p.shape) for p in plus)
        raise ValueError(f"conv2d: plus must be one array of shape {(len(x), w.shape[3])} or {y_shape}, got {found}")


def _output_shape(x, w, stride, padding):
    oh, ow = ((x.shape[i + 1] + 2 * padding - w.shape[i]) // stride + 1 for i in (0, 1))
    return len(x), oh, ow, w.shape[3]


def _parts(y, w):
    """Slices of the batch whose windows stay in cache; y: the output, or its gradient."""
    _, oh, ow, o = y.shape
    return chunks(len(y), oh * ow * w.size // o * y.itemsize)


def _columns(x, w, stride, padding, one=False):
    """The window of each output pixel as a row: (N OH OW, KH KW C); on a GPU, if asked for, with a 1 after it.

    A copy runs along the memory of x as far as it can: over the channels of a window's row, or, where these are few,
    over the pixels of one tap, whose column is then what lies together in the result.
    """
    n, h, wd, c = x.shape
    kh, kw = w.shape[:2]
    if kernels.available():
        _, oh, ow, _ = _output_shape(x, w, stride, padding)
        return kernels.im2col(x, kh, kw, oh, ow, stride, padding, one)
    padded = xp.zeros((n, h + 2 * padding, wd + 2 * padding, c), x.dtype)
    padded[:, padding : padding + h, padding : padding + wd] = x
    oh, ow = (padded.shape[1] - kh) // stride + 1, (padded.shape[2] - kw) // stride + 1
    image, row, column, one = padded.strides
    strides = image, stride * row, stride * column, row, column, one
    windows = xp.lib.stride_tricks.as_strided(padded, (n, oh, ow, kh, kw, c), strides)
    if kw * c < ow:
        columns = xp.ascontiguousarray(windows.transpose(3, 4, 5, 0, 1, 2))
        return columns.reshape(kh * kw * c, n * oh * ow).T
    return windows.reshape(n * oh * ow, kh * kw * c)  # overlapping windows: this copies


def _add_columns(columns, shape, w, stride, padding):
    """The adjoint of _columns: each entry of a row is added to the pixel that it was copied from."""
    n, h, wd, c = shape
    kh, kw = w.shape[:2]
    if kernels.available():
        oh, ow = ((size + 2 * padding - k) // stride + 1 for size, k in ((h, kh), (wd, kw)))
        return kernels.col2im(columns, shape, kh, kw, oh, ow, stride, padding)
    padded = xp.zeros((n, h + 2 * padding, wd + 2 * padding, c), columns.dtype)
    oh, ow = (padded.shape[1] - kh) // stride + 1, (padded.shape[2] - kw) // stride + 1
    columns = columns.reshape(n, oh, ow, kh, kw, c)
    for k in range(kh):
        for l in range(kw):
            padded[:, k : k + stride * oh : stride, l : l + stride * ow : stride] += columns[:, :, :, k, l]
    return padded[:, padding : padding + h, padding : padding + wd]
