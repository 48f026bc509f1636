"""The GPU's own kernels: what takes NumPy's way many passes over a map takes a GPU one launch.

A small network on a GPU waits for launches (some microseconds each), not for arithmetic.  So each op that would be a
chain of array functions has its kernels in kernels.cu, each launched by a function here.  The tests compile that text
for the host and hold it to the NumPy way.  Axes as in ops/conv.py and ops/norm.py.  Read next: ops/linear.py.
"""

import math
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

from tinydiff.backend import address, backend_name, raw_module, struct, xp

SOURCE = Path(__file__).with_name("kernels.cu").read_text("utf-8")
_THREADS = 256  # of a block
_PARTS = 240  # arrays that one launch gathers: PARTS in kernels.cu
_SHORT = 64  # rows: so few one thread adds up sooner than a second launch begins


def available() -> bool:
    """Whether the arrays are on a GPU, so that these kernels are the way to go."""
    return backend_name() == "cupy"


def launch(name: str, size: int, *arguments: Any) -> None:
    """Run a kernel over `size` results.  Arrays must be contiguous, numbers int or float, all arrays of one dtype."""
    if size:
        dtype = next(a.dtype for a in arguments if isinstance(a, xp.ndarray))
        _kernel(name, dtype.name)((-(-size // _THREADS),), (_THREADS,), (size, *arguments))


@lru_cache(None)
def _kernel(name: str, dtype: str) -> Any:
    return _module(dtype).get_function(name)


@lru_cache(None)
def _module(dtype: str) -> Any:
    t = {"float32": "float", "float64": "double"}[dtype]
    first, step = "(I(blockIdx.x) * blockDim.x + threadIdx.x)", "(I(gridDim.x) * blockDim.x)"
    return raw_module(f"#define T {t}\n#define FIRST {first}\n#define STEP {step}\n{SOURCE}")


def segments(rows: int) -> int:
    """Into how many parts to cut a sum: a short one stays whole, a long one gets about as many as each has rows."""
    return 1 if rows <= _SHORT else math.isqrt(rows)


def im2col(x: Any, kh: int, kw: int, oh: int, ow: int, stride: int, padding: int, ones: int = 0) -> Any:
    """The window of each output pixel of x (N, H, W, C) as a row, and a 1 where ones = 1: (N OH OW, KH KW C + ones)."""
    n, h, w, c = x.shape
    out = xp.empty((n * oh * ow, kh * kw * c + ones), x.dtype)
    launch("im2col", out.size, xp.ascontiguousarray(x), out, h, w, c, oh, ow, kh, kw, stride, padding, ones)
    return out


def col2im(columns: Any, shape: tuple, kh: int, kw: int, oh: int, ow: int, stride: int, padding: int) -> Any:
    """The adjoint of im2col: columns (N OH OW, KH KW C) added up to a map of `shape` (N, H, W, C)."""
    out = xp.empty(shape, columns.dtype)
    launch("col2im", out.size, xp.ascontiguousarray(columns), out, *shape[1:], oh, ow, kh, kw, stride, padding)
    return out


def add_bias(y: Any, b: Any) -> None:
    """y (N, ..., O) += b, (O,) or (N, O), in place; y contiguous."""
    launch("add_bias", y.size, y, xp.ascontiguousarray(b), math.prod(y.shape[1:-1]), y.shape[-1], b.ndim - 1)


def sum_rows(g: Any) -> Any:
    """Sum the last axis but one, (..., M, O) -> (..., O)."""
    *lead, rows, o = g.shape
    g, count = xp.ascontiguousarray(g), math.prod(lead)
    parts = segments(rows)
    out = xp.empty((*lead, o), g.dtype)
    if parts > 1:
        partial = xp.empty((count, parts, o), g.dtype)
        launch("sum_segments", partial.size, g, partial, rows, parts, o)
        g, rows = partial, parts
    launch("sum_segments", out.size, g, out, rows, 1, o)
    return out


def concat(a: Any, b: Any) -> Any:
    """a and b joined along their last axis."""
    a, b, c, d = xp.ascontiguousarray(a), xp.ascontiguousarray(b), a.shape[-1], b.shape[-1]
    out = xp.empty((*a.shape[:-1], c + d), a.dtype)
    launch("concat", out.size, a, b, out, c, d, 0)
    return out


def split(x: Any, c: int) -> tuple[Any, Any]:
    """x cut into its first c numbers along the last axis and the rest, both new."""
    d = x.shape[-1] - c
    a, b = xp.empty((*x.shape[:-1], c), x.dtype), xp.empty((*x.shape[:-1], d), x.dtype)
    launch("concat", x.size, a, b, xp.ascontiguousarray(x), c, d, 1)
    return a, b


def silu(x: Any) -> Any:
    """x sigmoid(x), for each element."""
    x, y = xp.ascontiguousarray(x), xp.empty(x.shape, x.dtype)
    launch("silu", x.size, x, y)
    return y


def silu_backward(x: Any, g: Any) -> Any:
    """The gradient of silu's input."""
    dx = xp.empty(x.shape, x.dtype)
    launch("silu_backward", x.size, xp.ascontiguousarray(x), xp.ascontiguousarray(g), dx)
    return dx


def softmax(x: Any) -> Any:
    """Softmax over the last axis."""
    p = xp.empty(x.shape, x.dtype)
    launch("softmax", math.prod(x.shape[:-1]), xp.ascontiguousarray(x), p, x.shape[-1])
    return p


def softmax_backward(p: Any, g: Any) -> Any:
    """The gradient of softmax's input from p, its result, and g."""
    dx = xp.empty(p.shape, p.dtype)
    launch("softmax_backward", math.prod(p.shape[:-1]), p, xp.ascontiguousarray(g), dx, p.shape[-1])
    return dx


class GroupNorm:
    """Group norm of x (N, ..., C), followed by SiLU where silu is True."""

    def __init__(self, x: Any, gamma: Any, beta: Any, num_groups: int, eps: float, silu: bool):
        self.x, self.gamma, self.beta = map(xp.ascontiguousarray, (x, gamma, beta))
        self.groups, self.eps, self.silu = num_groups, float(eps), int(silu)
        self.pixels = math.prod(x.shape[1:-1])
        self.parts = segments(self.pixels)
        self.mean, self.rstd = xp.empty((2, len(x), x.shape[-1]), x.dtype)

    def forward(self) -> Any:
        """y, of x's shape."""
        (n, c), y = self.mean.shape, xp.empty(self.x.shape, self.x.dtype)
        partial = xp.empty((2, n, self.parts, c), y.dtype)
        sizes = self.pixels, self.parts, c
        launch("norm_segments", n * self.parts * c, self.x, *partial, *sizes)
        launch("norm_moments", n * self.groups, *partial, self.mean, self.rstd, *sizes, self.groups, self.eps)
        launch("norm_apply", y.size, self.x, *self._scale(), y, self.pixels, c, self.silu)
        return y

    def backward(self, g: Any) -> tuple[Any, Any, Any]:
        """dx, dgamma, dbeta, each as a function that returns it: see autograd.op."""
        (n, c), g, dx = self.mean.shape, xp.ascontiguousarray(g), xp.empty(self.x.shape, self.x.dtype)
        partial, sums = xp.empty((2, n, self.parts, c), g.dtype), xp.empty((2, n, c), g.dtype)
        means = xp.empty((2, n, self.groups), g.dtype)
        inputs, sizes = (self.x, g, *self._scale()), (self.pixels, self.parts, c)
        launch("norm_backward_segments", n * self.parts * c, *inputs, *partial, *sizes, self.silu)
        launch("norm_backward_sums", n * self.groups, *partial, self.gamma, *sums, *means, *sizes, self.groups)
        total = xp.empty((2, c), g.dtype)
        last = n, self.pixels, c, self.groups, self.silu
        launch("norm_backward_apply", dx.size + total.size, *inputs, *means, sums, dx, total, *last)
        dgamma, dbeta = total
        return lambda: dx, lambda: dgamma, lambda: dbeta

    def _scale(self) -> tuple:
        return self.mean, self.rstd, self.gamma, self.beta


def adam(theta: Any, g: Any, m: Any, v: Any, norm: Any, *numbers: float) -> None:
    """One step of Adam in place: see optim.py; numbers: beta1, beta2, rate, eps, 1 - lr weight_decay."""
    launch("adam", theta.size, theta, g, m, v, norm, *map(float, numbers))


def ema(average: Any, theta: Any, norm: Any, rest: float) -> None:
    """average += rest (theta - average), in place."""
    launch("ema", average.size, average, theta, norm, float(rest))


def clip(g: Any, max_norm: float) -> Any:
    """Scale g (n,) in place so that its norm is at most max_norm; return the norm before, (), still on the device."""
    square, norm = xp.asarray(xp.vdot(g, g)), xp.empty((), g.dtype)
    launch("clip", g.size, g, square, norm, float(max_norm))
    return norm


def gather(arrays: list[Any], sizes: list[int], out: Any) -> None:
    """Lay arrays, of these sizes, end to end in out (n,): zeros for one that is None."""
    for k in range(0, len(arrays), _PARTS):
        part = [None if a is None else xp.ascontiguousarray(a) for a in arrays[k : k + _PARTS]]
        ends = list(accumulate(sizes[k : k + _PARTS]))
        rest = [0] * (_PARTS - len(part))
        table = struct([*(0 if a is None else address(a) for a in part), *rest, *ends, *rest])
        launch("gather", ends[-1], out[: ends[-1]], table, len(part))
        out = out[ends[-1] :]
