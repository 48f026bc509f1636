"""conv2d in one of four ways, and upsample_nearest.  The device and the shapes decide which way is the fastest.

The first way is that of ops/conv.py, for a few images at a time: their windows then stay in a core's cache.  The second
way is for few output channels.  It computes the convolution as the input gradient of the convolution with the flipped
filter.  The third way is winograd.py, for 3x3 filters of stride 1.  The fourth way is tensor_cores.py, for float32 on a
GPU that has tensor cores.  Each way can also add one more array to the result.  Axes as in ops/conv.py.
Read next: winograd.py.
"""

from functools import cache, reduce
from operator import iadd

from tinydiff.autograd import op
from tinydiff.backend import xp
from tinydiff.fast import kernels, tensor_cores, winograd
from tinydiff.fast.cache import chunks
from tinydiff.fast.linear import add_bias, product, product_of_transposed, sum_rows, transposed
from tinydiff.ops.conv import check_conv2d, output_shape


def conv2d(x, w, b, *plus, stride=1, padding=0):
    """The faster form of ops.conv2d.  If plus contains an array, that array is added to the result.

    plus: empty, or one array.  An array (N, O) is a further bias for each image; a residual block adds the code of the
    time like this.  An array (N, OH, OW, O) is added pixel by pixel; a residual block adds its other branch like this.
    Raises ValueError for any other shape.
    """
    check_conv2d(x, w, b, stride, padding)
    check_plus(x, w, plus, stride, padding)
    if tensor_cores.fits_conv(x, w, stride, padding):
        return tensor_cores.conv2d(x, w, b, *plus, stride=stride, padding=padding)
    if winograd.pays(x, w, stride, padding):
        bias, residual = bias_and_map(b, plus)
        y = winograd.correlate(x, w, bias)
        if residual is not None:
            y += residual

        def vjp(g):
            return (
                lambda: winograd.correlate(g, winograd.flipped(w)),
                lambda: winograd.filter_gradient(x, g),
                *bias_gradients(g, plus),
            )
    elif stride == 1 and w.shape[0] == w.shape[1] > padding and 4 * w.shape[3] <= w.shape[2]:
        # At most a quarter as many channels out as in.  The convolution is the input gradient of the convolution with
        # the flipped filter.  The windows of that gradient lie in y, so they have few channels and are short.
        turned, inner = winograd.flipped(w), w.shape[0] - 1 - padding
        y = _input_gradient(output_shape(x.shape, w.shape, 1, padding), turned, x, 1, inner)
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
            gradients = cache(lambda: _filter_gradient(x, w, g, stride, padding, one=db is None))
            taps = w.size // w.shape[3]
            return (
                lambda: _input_gradient(x.shape, w, g, stride, padding),
                lambda: gradients()[:taps].reshape(w.shape),
                db or (lambda: gradients()[taps]),
                *dplus,
            )

    return y, vjp


@op
def conv2d_plus(x, w, b, plus, *, stride=1, padding=0):
    """conv2d with an array `plus` to add, as an op with a gradient for each of the four arrays."""
    return conv2d(x, w, b, plus, stride=stride, padding=padding)


def _correlate(x, w, stride, padding, b=None, plus=()):
    y = xp.empty(output_shape(x.shape, w.shape, stride, padding), x.dtype)
    for part in _parts(y, w):
        product(_columns(x[part], w, stride, padding), w.reshape(-1, w.shape[3]), y[part].reshape(-1, w.shape[3]))
        if b is not None:
            _add(y[part], b, [p[part] for p in plus])
    return y


def _add(y, b, plus):
    """y += b + plus in place.  b and plus are those of conv2d."""
    if kernels.available():
        kernels.add_bias(y, b, *plus)
        return
    bias, residual = bias_and_map(b, plus)
    add_bias(y, bias)
    if residual is not None:
        y += residual


def bias_and_map(b, plus):
    """Return conv2d's b and plus as (bias, map).  bias: (O,) or (N, O), for all pixels of an image.  map: (N, OH, OW,
    O), or None if plus contains no map."""
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
    """The filter's gradient, (KH KW C, O): a row for each tap.  With one=True every window ends in a 1 (see _columns).
    The row after the last tap is then the bias's gradient, and any further rows are 0."""
    o = w.shape[3]
    shares = (
        product_of_transposed(_columns(x[part], w, stride, padding, one), g[part].reshape(-1, o))
        for part in _parts(g, w)
    )
    return reduce(iadd, shares)


def bias_gradients(g, plus, elsewhere=False):
    """The gradients of conv2d's b and plus, from the gradient g of the result.  With elsewhere=True the caller computes
    b's gradient, and None is returned for it."""
    n, oh, ow, o = g.shape
    if plus and plus[0].ndim == 2:
        per_image = sum_rows(g.reshape(n, oh * ow, o))
        db = None if elsewhere else sum_rows(per_image)
        return db if db is None else (lambda: db), lambda: per_image
    return None if elsewhere else (lambda: sum_rows(g.reshape(n * oh * ow, o))), *(g for _ in plus)


def upsample_nearest(x):
    """The faster form of ops.upsample_nearest."""
    n, h, w, c = x.shape
    y = xp.empty((n, h, 2, w, 2, c), x.dtype)
    y[:] = x[:, :, None, :, None]
    return y.reshape(n, 2 * h, 2 * w, c), lambda g: (sum_2x2(g),)


def sum_2x2(x):
    """The sum of each 2x2 block.  On a CPU four strided reads are faster than a sum over two short axes."""
    if kernels.available():
        n, h, w, c = x.shape
        return x.reshape(n, h // 2, 2, w // 2, 2, c).sum((2, 4))
    return x[:, ::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, ::2] + x[:, 1::2, 1::2]


def check_plus(x, w, plus, stride, padding):
    """Raise ValueError if conv2d cannot add plus."""
    shapes = (len(x), w.shape[3]), output_shape(x.shape, w.shape, stride, padding)
    if len(plus) > 1 or any(p.shape not in shapes for p in plus):
        shapes_given = ", ".join(str(p.shape) for p in plus)
        raise ValueError(f"conv2d: plus must be one array of shape {shapes[0]} or {shapes[1]}, got {shapes_given}")


def _parts(y, w):
    """Slices of the batch whose windows stay in cache.  y: the output, or its gradient."""
    _, oh, ow, o = y.shape
    return chunks(len(y), oh * ow * w.size // o * y.itemsize)


def _columns(x, w, stride, padding, one=False):
    """The window of each output pixel as a row: (N OH OW, KH KW C).  With one=True, on a GPU, each row ends in a 1.

    On a CPU the copy moves long pieces of contiguous memory.  Such a piece is one row of a window, with its channels.
    If the pieces would be short, the copy goes over the pixels of one tap instead; then the columns of the result are
    contiguous, not its rows.
    """
    n, h, wd, c = x.shape
    kh, kw = w.shape[:2]
    if kernels.available():
        _, oh, ow, _ = output_shape(x.shape, w.shape, stride, padding)
        return kernels.im2col(x, kh, kw, oh, ow, stride, padding, one)
    padded = xp.zeros((n, h + 2 * padding, wd + 2 * padding, c), x.dtype)
    padded[:, padding : padding + h, padding : padding + wd] = x
    oh, ow = (padded.shape[1] - kh) // stride + 1, (padded.shape[2] - kw) // stride + 1
    image, row, column, channel = padded.strides
    strides = image, stride * row, stride * column, row, column, channel
    windows = xp.lib.stride_tricks.as_strided(padded, (n, oh, ow, kh, kw, c), strides)
    if kw * c < ow:
        columns = xp.ascontiguousarray(windows.transpose(3, 4, 5, 0, 1, 2))
        return columns.reshape(kh * kw * c, n * oh * ow).T
    return windows.reshape(n * oh * ow, kh * kw * c)  # overlapping windows: this copies


def _add_columns(columns, shape, w, stride, padding):
    """The adjoint of _columns: add each entry of a row to the pixel from which it was copied."""
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
