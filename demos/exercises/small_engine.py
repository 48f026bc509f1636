"""Small cases of the exercises about gradients and ops: graphs of a few nodes, images of 3 x 3 pixels.

A convolution is compared with plain loops.  Read next: small_training.py.
"""

import numpy as np
from verdicts import Small, Wrong


def unbroadcast(book):
    f, g = book("autograd").unbroadcast, np.array([[1.0, 2.0, 4.0], [8.0, 16.0, 32.0]])
    for shape, right, mean in (
        ((3,), g.sum(0), g.mean(0)),
        ((2, 1), g.sum(1, keepdims=True), g.mean(1, keepdims=True)),
        ((1, 3), g.sum(0, keepdims=True), g.mean(0, keepdims=True)),
        ((), g.sum(), g.mean()),
        ((1, 1), g.sum((0, 1), keepdims=True), g.mean((0, 1), keepdims=True)),
        ((2, 3), g, None),
    ):
        added, kept = 2 - len(shape), np.array(right)
        usual = {} if mean is None else {"this is a mean. Each use counts in full, so the gradient is a sum.": mean}
        if added:
            usual["this is the gradient of one of the uses. Sum over the axes in front."] = g[(0,) * added]
            usual[
                "the axes that broadcasting put in front are still there. Sum over the first g.ndim - len(shape)."
            ] = g
        else:
            usual["the stretched axes are still there. Sum over those that have size 1 in `shape`."] = g
            usual["the stretched axes are gone. keepdims=True leaves them at size 1."] = kept.squeeze()
        if shape == (3,):
            usual["the sum runs over the last axes. Broadcasting adds axes in front."] = g.sum(1)
        yield Small("the result", f"g = [[1, 2, 4], [8, 16, 32]], shape = {shape}", f(g.copy(), shape), right, usual)


class _Place:
    """A node for the order of the walk alone.  looks: how often its inputs were looked at."""

    def __init__(self, number, *inputs):
        self.number, self._inputs, self.looks = number, inputs, 0

    @property
    def inputs(self):
        self.looks += 1
        return self._inputs


def backward_walk(book):
    autograd, calls = book("autograd"), []

    def a_product(x, y):
        return x * y, lambda g: (calls.append("vjp") or g * y, lambda: g * x)

    def a_sum(x, y):
        return x + y, lambda g: (g, g)

    def with_a_constant(x, y):
        def of_y():
            raise Wrong("a gradient was computed where none is wanted: call dx() only if the input is not None.")

        return x * y, lambda g: (lambda: g * y, of_y)

    times, plus = autograd.op(a_product), autograd.op(a_sum)

    def leaf(*values):
        return autograd.Tensor(np.array(values), requires_grad=True)

    def back(y, *g):
        y.backward(np.array(g or (1.0,)))

    first = _Place(1)
    middle = _Place(2, first, None)
    last = _Place(3, first, middle)
    order = autograd._inputs_first(last)
    if not isinstance(order, list):
        raise Wrong(f"_inputs_first returns a {type(order).__name__}, and should return a list of places.")
    yield Small(
        *("the numbers of the places in their order", "three nodes: 1, 2 with the input 1, 3 with the inputs 1 and 2"),
        np.array([getattr(place, "number", -1) for place in order]),
        np.array([1, 2, 3]),
        {
            "the output comes first. Each place comes after its inputs, so the output is last.": [3, 2, 1],
            "a node comes before one of its inputs. Sort by the number, which is larger than those of the inputs.": [
                2,
                1,
                3,
            ],
            "the output is missing from the list.": [1, 2],
            "a place is in the list twice.": [1, 1, 2, 3],
        },
    )
    chain = [_Place(0)]
    for number in range(1, 13):
        chain.append(_Place(number, chain[-1], chain[-1]))
    autograd._inputs_first(chain[-1])
    if (looks := sum(place.looks for place in chain)) > 100:
        raise Wrong(
            f"12 nodes in a row, each the input of the next twice: the inputs were looked at {looks:,} times. Visit "
            "each place once, not once for each path: remember those that were seen."
        )
    x = leaf(3.0)
    back(times(x, x))
    usual = {"one of the two uses is lost. A place that is used twice gets the sum of both gradients.": [3.0]}
    yield Small("the gradient of x", "y = x * x at x = 3", x.grad, [6.0], usual)
    back(times(x, x))
    usual = {"the gradient that was in .grad is lost. backward adds to it.": [6.0]}
    yield Small("the gradient of x", "y = x * x at x = 3, with backward called twice", x.grad, [12.0], usual)
    x = leaf(3.0)
    a = times(x, x)
    back(times(a, times(a, x)))
    early = "a node was walked before all nodes that use it: its gradient was not complete."
    case = "a = x * x, y = a * (a * x) at x = 3"
    yield Small("the gradient of x", case, x.grad, [405.0], {early: [243.0], f"{early} ": [324.0]})
    x, y, g = leaf(1.0, 2.0), leaf(3.0, 4.0), np.array([5.0, 7.0])
    plus(x, y).backward(g)
    case = "z = x + y, whose vjp returns g itself for both"
    yield Small("the gradient of x", case, x.grad, [5.0, 7.0])
    for name, a in (("g", g), ("y.grad", y.grad)):
        if np.shares_memory(x.grad, a):
            raise Wrong(
                f"with {case}, x.grad and {name} are one array: whoever changes one changes the other. Copy it."
            )
    x, one = leaf(2.0, 3.0), autograd.Tensor(np.ones(2))
    a = times(x, one)
    plus(a, a).backward(g)
    if g.tolist() != [5.0, 7.0]:
        raise Wrong("y = a + a: the walk has changed g, which its caller holds. Write total + dx, not total += dx.")
    yield Small("the gradient of x", "a = 1 x, y = a + a, with g = 5, 7", x.grad, [10.0, 14.0])
    y, x = leaf(1.0), leaf(1.0)
    for _ in range(10):
        y = times(y, y)
    del calls[:]
    back(y)
    if len(calls) != 10:
        raise Wrong(
            f"10 squares one after the other: vjp was called {len(calls)} times, and should be called 10 times."
        )
    x = leaf(3.0)
    back(autograd.op(with_a_constant)(x, autograd.Tensor(np.array([2.0]))))
    yield Small("the gradient of x", "y = x * c at x = 3, c = 2, a constant", x.grad, [2.0])
    x = y = leaf(1.0)
    for _ in range(3000):
        y = plus(y, x)
    try:
        back(y)
    except RecursionError:
        raise Wrong(
            "3,000 sums one after the other: the walk calls itself for each, and Python allows about 1,000 calls. Keep "
            "a list of the places still to be visited."
        ) from None
    yield Small("the gradient of x", "y = x + x + ... + x, 3,000 sums", x.grad, [3001.0])


def conv2d(book):
    f = book("ops/conv").conv2d.__wrapped__
    image, zero = np.arange(1.0, 10).reshape(1, 3, 3, 1), np.zeros(1)
    w = np.array([[1.0, 10.0], [100.0, 1000.0]]).reshape(2, 2, 1, 1)

    def flipped(w):
        return w[::-1, ::-1]

    def turned(w):
        return w.swapaxes(0, 1)

    case = "the image [[1, 2, 3], [4, 5, 6], [7, 8, 9]], the filter [[1, 10], [100, 1000]]"
    yield Small(
        *("y", case, f(image, w, zero, stride=1, padding=0)[0], _conv(image, w, zero, 1, 0)),
        {
            "the filter is flipped. Here tap (k, l) meets pixel (i + k, j + l), with no flip.": _conv(
                image, flipped(w), zero, 1, 0
            ),
            "rows and columns of the filter have changed places.": _conv(image, turned(w), zero, 1, 0),
        },
    )
    b = np.array([2000.0])
    usual = {"the bias is missing.": _conv(image, w, zero, 1, 0)}
    yield Small("y", f"{case}, b = 2000", f(image, w, b, stride=1, padding=0)[0], _conv(image, w, b, 1, 0), usual)
    dot = np.full((1, 1, 1, 1), 2.0)
    after = np.pad(image, ((0, 0), (0, 2), (0, 2), (0, 0)))
    before = np.pad(image, ((0, 0), (2, 0), (2, 0), (0, 0)))
    one_side = "the padding is on one side only. Each side gets `padding` zeros."
    usual = {"the image is not padded.": _conv(image, dot, zero, 1, 0), one_side: _conv(after, dot, zero, 1, 0)}
    usual[f"{one_side} "] = _conv(before, dot, zero, 1, 0)
    got = f(image, dot, zero, stride=1, padding=1)[0]
    yield Small("y", "a filter of one number, 2, padding = 1", got, _conv(image, dot, zero, 1, 1), usual)
    usual = {
        "the padding is not made of zeros.": _conv(
            np.pad(image, ((0, 0), (1, 1), (1, 1), (0, 0)), "edge"), w, zero, 1, 0
        ),
    }
    right = _conv(image, w, zero, 1, 1)
    yield Small("y", f"{case}, padding = 1", f(image, w, zero, stride=1, padding=1)[0], right, usual)
    large = np.arange(1.0, 26).reshape(1, 5, 5, 1)
    right = _conv(large, w, zero, 2, 0)
    usual = {
        "the stride is ignored: the filter moves by 1.": _conv(large, w, zero, 1, 0)[:, :2, :2],
        "the rows end too early. They are oh rows, each `stride` below the last: the slice ends at k + stride "
        "oh.": right[:, :1],
        "the columns end too early. They are ow columns, each `stride` from the last: the slice ends at l + stride "
        "ow.": right[:, :, :1],
        "rows and columns have changed places.": right.swapaxes(1, 2),
    }
    case = "the image of 5 x 5 pixels 1, 2, ..., 25, the filter [[1, 10], [100, 1000]], stride = 2"
    yield Small("y", case, f(large, w, zero, stride=2, padding=0)[0], right, usual)
    wide = np.arange(1.0, 13).reshape(1, 3, 4, 1)
    yield Small(
        *("y", "an image of 3 x 4 pixels", f(wide, w, zero, stride=1, padding=0)[0], _conv(wide, w, zero, 1, 0)),
        {"rows and columns of the filter have changed places.": _conv(wide, turned(w), zero, 1, 0)},
    )
    image = np.arange(1.0, 19).reshape(1, 3, 3, 2)
    w = 10.0 ** np.arange(8).reshape(2, 2, 2, 1)
    mixed = w.reshape(2, 4).T.reshape(2, 2, 2, 1)
    usual = {
        "the pixels of a window are in another order than w: tap by tap, and each tap with all its channels.": _conv(
            image, np.ascontiguousarray(w.reshape(4, 2).reshape(2, 4).T.reshape(4, 2)).reshape(2, 2, 2, 1), zero, 1, 0
        ),
        "the pixels of a window are in another order than w: tap by tap, and each tap with all its channels. ": _conv(
            image, mixed, zero, 1, 0
        ),
    }
    got = f(image, w, zero, stride=1, padding=0)[0]
    yield Small("y", "an image of 2 channels, a filter of 1, 10, ..., 1e7", got, _conv(image, w, zero, 1, 0), usual)


def conv2d_backward(book):
    f = book("ops/conv").conv2d.__wrapped__
    for n, padding in ((1, 0), (2, 1)):
        x = np.arange(1.0, 9 * n + 1).reshape(n, 3, 3, 1) / 10
        w, b = np.array([[1.0, 2.0], [3.0, 5.0]]).reshape(2, 2, 1, 1), np.zeros(1)
        side = 2 + 2 * padding
        g = (1 + np.arange(n * side * side) % 7).reshape(n, side, side, 1).astype(float)
        dx, dw, db = _gradients(f(x, w, b, stride=1, padding=padding)[1](g), 3)
        images = "an image" if n == 1 else "two images"
        case = f"{images} of 3 x 3 pixels, the filter [[1, 2], [3, 5]], padding = {padding}"
        right = _conv_backward(x, w, g, 1, padding)
        last = _conv_backward(x, w, g, 1, padding, add=False)[0]
        first = _conv_backward(x[:1], w, g[:1], 1, padding)
        pixels = g.shape[0] * g.shape[1] * g.shape[2]
        yield Small(
            *("the gradient of x, dx", case, dx, right[0]),
            {
                "col2im keeps the last gradient of each pixel. A pixel that is in several windows gets their "
                "sum.": last,
                "the filter is flipped: column block k belongs to tap number k.": _conv_backward(
                    x, w[::-1, ::-1], g, 1, padding
                )[0],
                "the wrong side of the padding is cut off: the image begins `padding` pixels from the "
                "border.": _conv_backward(x, w, g, 1, padding, cut=0)[0],
            },
            exact=1e-12,
        )
        usual = {"only the first image counts. dw is a sum over all images.": first[1]}
        usual["this is a mean. dw is a sum over all pixels of all images."] = right[1] / pixels
        yield Small("the gradient of w, dw", case, dw, right[1], usual, exact=1e-12)
        usual = {"this is a mean. db is a sum over all pixels of all images.": right[2] / pixels}
        usual["only the first image counts. db is a sum over all pixels of all images."] = first[2]
        yield Small("the gradient of b, db", case, db, right[2], usual, exact=1e-12)
    rng = np.random.default_rng(0)
    x, w, g = (rng.integers(-3, 4, shape).astype(float) for shape in ((1, 5, 5, 2), (2, 2, 2, 3), (1, 2, 2, 3)))
    found = _gradients(f(x, w, np.zeros(3), stride=2, padding=0)[1](g), 3)
    case = "an image of 5 x 5 pixels and 2 channels, 3 filters of 2 x 2, stride = 2"
    transposed = {
        "w is not transposed: dX = g W^T, and filters.T has the rows that g needs.": _conv_backward(
            x, w.reshape(-1, 3).reshape(3, -1).T.reshape(w.shape), g, 2, 0
        )[0]
    }
    for name, got, right in zip("xwb", found, _conv_backward(x, w, g, 2, 0)):
        usual = transposed if name == "x" else {}
        yield Small(f"the gradient of {name}, d{name}", case, got, right, usual, exact=1e-12)


def group_norm_backward(book):
    f = book("ops/norm").group_norm.__wrapped__
    x = np.array([1.0, 2.0, 4.0, 3.0, 7.0, 5.0, 0.0, 1.0]).reshape(1, 2, 1, 4)
    gamma, beta, g = np.array([1.0, 2.0, -1.0, 3.0]), np.zeros(4), np.arange(1.0, 9).reshape(1, 2, 1, 4) ** 2 / 10
    found = _gradients(f(x, gamma, beta, num_groups=2)[1](g), 3)
    groups = x.reshape(1, 2, 2, 2)
    centred = groups - groups.mean((1, 3), keepdims=True)
    rstd = 1 / np.sqrt((centred**2).mean((1, 3), keepdims=True) + 1e-5)
    x_hat = centred * rstd

    def dx(d, level=True, along=True, axes=(1, 3), scale=rstd):
        d = d.reshape(x_hat.shape)
        level = d.mean(axes, keepdims=True) if level else 0
        along = x_hat * (d * x_hat).mean(axes, keepdims=True) if along else 0
        return (scale * (d - level - along)).reshape(x.shape)

    d = gamma * g
    case = "an image of 2 pixels and 4 channels in 2 groups"
    yield Small(
        *("the gradient of x, dx", case, found[0], dx(d)),
        {
            "mean and variance are taken for constants. They depend on x too, so two parts of d are removed.": dx(
                d, False, False
            ),
            "mean(d) is not removed: a shift of the whole group changes nothing, so dx must sum to 0.": dx(d, False),
            "the part along x_hat is not removed: a scaling of the whole group changes nothing.": dx(d, along=False),
            "gamma is missing. What x_hat receives is d = gamma g.": dx(g),
            "the means run over the pixels only. A group also has several channels.": dx(d, axes=1),
            "the means run over the channels only. A group also has all pixels.": dx(d, axes=3),
            "the factor rstd is missing.": dx(d, scale=1.0),
            "dx is divided by rstd. It is multiplied by it.": dx(d, scale=1 / rstd),
        },
        exact=1e-10,
    )
    sums = {"dgamma": (g * x_hat.reshape(x.shape)).sum((0, 1, 2)), "dbeta": g.sum((0, 1, 2))}
    usual = {
        "dgamma": {
            "this is made with x. gamma multiplies x_hat, so dgamma is the sum of g x_hat.": (g * x).sum((0, 1, 2)),
            "this is made with d. gamma is not part of its own gradient: dgamma is the sum of g x_hat.": (
                d * x_hat.reshape(x.shape)
            ).sum((0, 1, 2)),
            "this is a mean. dgamma is a sum over all pixels.": sums["dgamma"] / 2,
        },
        "dbeta": {
            "this is made with d = gamma g. dbeta is the sum of g.": d.sum((0, 1, 2)),
            "this is a mean. dbeta is a sum over all pixels.": sums["dbeta"] / 2,
        },
    }
    for got, (name, right) in zip(found[1:], sums.items()):
        yield Small(f"the gradient of {name[1:]}, {name}", case, got, right, usual[name], exact=1e-10)


def attention(book):
    f = book("ops/matrix").attention.__wrapped__
    q = np.array([[1.0, 0.0, 2.0, 1.0], [0.0, 1.0, 0.0, 1.0], [1.0, 2.0, 1.0, 0.0]])
    k, v, g = np.eye(3, 4), np.array([[1.0], [10.0], [100.0]]), np.array([[1.0], [2.0], [4.0]])
    mask = np.array([[True, True, False], [True, False, True], [True, True, True]])

    def softmax(scores, axis=-1):
        e = np.exp(scores - scores.max(axis, keepdims=True))
        return e / e.sum(axis, keepdims=True)

    def y(q, k, v, mask=None, scale=0.5, hidden=-np.inf, axis=-1):
        scores = scale * q @ k.T
        return softmax(scores if mask is None else np.where(mask, scores, hidden), axis) @ v

    case = "3 queries and 3 keys of D = 4 numbers"
    yield Small(
        *("y", case, f(q, k, v)[0], y(q, k, v)),
        {
            "the scores are not divided by sqrt(D).": y(q, k, v, scale=1.0),
            "the scores are divided by D. It is sqrt(D).": y(q, k, v, scale=0.25),
            "the scores are multiplied by sqrt(D). They are divided by it.": y(q, k, v, scale=2.0),
            "the weights sum to 1 over the queries. For each query they sum to 1 over the keys.": y(q, k, v, axis=0),
            "these are the scores without the softmax.": 0.5 * q @ k.T @ v,
        },
        exact=1e-12,
    )
    usual = {
        "a hidden key has the score 0, and its weight is not 0. Its score is -xp.inf.": y(q, k, v, mask, hidden=0.0),
        "the mask is ignored.": y(q, k, v),
        "the mask is the wrong way round: True keeps a key.": y(q, k, v, ~mask),
    }
    yield Small("y", f"{case}, two keys hidden", f(q, k, v, mask=mask)[0], y(q, k, v, mask), usual, exact=1e-12)
    found = _gradients(f(q, k, v)[1](g), 3)
    p, dp = softmax(0.5 * q @ k.T), g @ v.T
    ds = p * (dp - (p * dp).sum(-1, keepdims=True))
    for name, got, right, usual in (
        (
            "q",
            found[0],
            0.5 * ds @ k,
            {"ds is not the softmax's gradient but p dp: use softmax_gradient(p, dp).": 0.5 * p * dp @ k},
        ),
        (
            "k",
            found[1],
            0.5 * ds.T @ q,
            {"ds is not the softmax's gradient but p dp: use softmax_gradient(p, dp).": 0.5 * (p * dp).T @ q},
        ),
        ("v", found[2], p.T @ g, {"the weights are not transposed: dv = p^T g.": p @ g}),
    ):
        if name != "v":
            usual["the factor 1/sqrt(D) is missing. The scores are q k^T / sqrt(D), so their gradient has it too."] = (
                2 * right
            )
        yield Small(f"the gradient of {name}, d{name}", case, got, right, usual, exact=1e-12)


def _gradients(found, n):
    """The gradients that a vjp returned, each computed."""
    if not isinstance(found, tuple | list) or len(found) != n:
        kind = f"{len(found)} things" if isinstance(found, tuple | list) else f"a {type(found).__name__}"
        raise Wrong(f"vjp returns {kind}, and should return {n} gradients, in the order of the inputs.")
    return [dx() if callable(dx) else dx for dx in found]


def _windows(x, w, y_shape, stride, padding):
    """For each output pixel and tap: (n, i, j, k, l, row, column), the last two in the padded image."""
    for n, i, j in np.ndindex(*y_shape[:3]):
        for k, l in np.ndindex(*w.shape[:2]):
            yield n, i, j, k, l, i * stride + k, j * stride + l


def _conv(x, w, b, stride, padding):
    """conv2d by its definition, in plain loops."""
    padded = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    oh, ow = ((padded.shape[a + 1] - w.shape[a]) // stride + 1 for a in (0, 1))
    y = np.zeros((len(x), oh, ow, w.shape[3])) + b
    for n, i, j, k, l, row, column in _windows(x, w, y.shape, stride, padding):
        y[n, i, j] += padded[n, row, column] @ w[k, l]
    return y


def _conv_backward(x, w, g, stride, padding, add=True, cut=None):
    """(dx, dw, db) in plain loops.  add=False: the last gradient of a pixel in place of their sum.

    cut: where the image begins in the padded one, if it is not at `padding`.
    """
    padded = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    dx, dw = np.zeros_like(padded), np.zeros_like(w)
    order = sorted(_windows(x, w, g.shape, stride, padding), key=lambda at: at[3:5])  # tap by tap, as col2im does
    for n, i, j, k, l, row, column in order:
        part = w[k, l] @ g[n, i, j]
        dx[n, row, column] = dx[n, row, column] + part if add else part
        dw[k, l] += np.outer(padded[n, row, column], g[n, i, j])
    cut = padding if cut is None else cut
    return dx[:, cut : cut + x.shape[1], cut : cut + x.shape[2]], dw, g.sum((0, 1, 2))
