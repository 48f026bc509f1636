"""The GPU's own kernels: one launch in place of many passes over a map.

A small network on a GPU spends its time on launches (some microseconds each), not on arithmetic.  So an op that would
be a chain of array functions has kernels in kernels.cu, and a function of this file launches each kernel.  Muon's
kernel has a file of its own, muon.cu.  The tests compile both for the host and compare the results with NumPy.  Axes as
in ops/conv.py and ops/norm.py.
Read next: shares.py.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from tinydiff.backend import backend_name, xp

SOURCE = "".join(Path(__file__).with_name(name).read_text("utf-8") for name in ("kernels.cu", "muon.cu"))
THREADS = 256  # of a block; a power of two, as total() in kernels.cu needs
FEW_ROWS = 256  # of `linear`: up to here one thread for each result is fast enough
_MOST_SHORT = 1 << 30  # numbers in an array; for larger arrays a kernel needs 64-bit indices
_PARTS = 160  # arrays that one launch gathers, or matrices that it updates; the same as PARTS in kernels.cu
_SHORT = 1024  # rows; one block adds so few rows faster than two launches do
_TILE = 32  # channels of which a block of sum_segments adds rows, at most; the same as there


def available() -> bool:
    """Whether the arrays are on a GPU, so that these kernels can work on them."""
    return backend_name() == "cupy"


def launch(name: str, size: int, *arguments: Any, each: int = 1) -> None:
    """Run a kernel that computes `size` results.  each: threads for a result; 1, or THREADS if a whole block computes
    it.

    Arrays must be contiguous and of one dtype.  Numbers must be int or float.
    """
    if size:
        arrays = [a for a in arguments if isinstance(a, xp.ndarray)]
        wide = not short(*[a.size for a in arrays])
        _kernel(name, arrays[0].dtype.char, wide)((-(-size * each // THREADS),), (THREADS,), (size, *arguments))


def short(*sizes: int) -> bool:
    """Whether 32-bit indices reach every number of arrays of these sizes."""
    return max(sizes) <= _MOST_SHORT


@lru_cache(None)
def _kernel(name: str, dtype: str, wide: bool) -> Any:
    return _module(dtype, wide).get_function(name)


@lru_cache(None)
def _module(dtype: str, wide: bool) -> Any:
    """The kernels for one dtype and one size of index, as a module.  It is compiled when its first kernel is needed."""
    return xp.RawModule(code=_text(dtype, wide), options=("--std=c++17",))


def _text(dtype: str, wide: bool) -> str:
    types = {"T": {"f": "float", "d": "double"}[dtype], "I": "long long" if wide else "int"}
    # CuPy passes a Python int as eight bytes, the low bytes first.  A kernel with 4-byte integers reads the first four.
    return f"typedef {types['T']} T;\ntypedef {types['I']} I;\n#define THREADS I({THREADS})\n{SOURCE}"


def segments(rows: int) -> int:
    """The number of parts in which to add `rows` rows: 1 for a short sum, else about the square root of rows."""
    return 1 if rows <= _SHORT else math.isqrt(rows)


def im2col(x: Any, kh: int, kw: int, oh: int, ow: int, stride: int, padding: int, one: bool = False) -> Any:
    """The window of each output pixel of x (N, H, W, C) as a row: (N OH OW, KH KW C).

    With one=True each row ends in a 1, and then in zeros up to a multiple of four numbers, which suits tensor cores.
    """
    n, h, w, c = x.shape
    taps = kh * kw * c
    out = xp.empty((n * oh * ow, taps // 4 * 4 + 4 if one else taps), x.dtype)
    x, sizes = xp.ascontiguousarray(x), (h, w, c, oh, ow, kh, kw, stride, padding)
    run = _run(x, out)
    launch("im2col", n * oh * ow * c // run, x, out, *sizes, out.shape[1], run)
    return out


def col2im(columns: Any, shape: tuple, kh: int, kw: int, oh: int, ow: int, stride: int, padding: int) -> Any:
    """The adjoint of im2col: add columns (N OH OW, KH KW C) up to a map of `shape` (N, H, W, C)."""
    columns, out = xp.ascontiguousarray(columns), xp.empty(shape, columns.dtype)
    run = _run(out, columns)
    launch("col2im", out.size // run, columns, out, *shape[1:], oh, ow, kh, kw, stride, padding, run)
    return out


def _run(*arrays: Any) -> int:
    """The number of neighbours along the last axis that one thread computes: 4 if the first array's last axis is a
    multiple of 4 and all addresses are multiples of 16 bytes, else 1."""
    return 1 if arrays[0].shape[-1] % 4 or any(address(a) % 16 for a in arrays) else 4


def add_bias(y: Any, b: Any, plus: Any = None) -> None:
    """y (N, ..., O) += b + plus in place.  b: (O,).  plus: None, (N, O) or of y's shape.  y must be contiguous."""
    b, more = xp.ascontiguousarray(b), y if plus is None else xp.ascontiguousarray(plus)
    sizes, flags = (math.prod(y.shape[1:-1]), y.shape[-1]), (int(plus is not None), int(more.shape != y.shape))
    run = _run(y, b, more)
    launch("add_bias", y.size // run, y, b, more, *sizes, *flags, run)


def linear(x: Any, w: Any, b: Any) -> Any:
    """x w + b, for an x of a few rows."""
    y = xp.empty((len(x), len(b)), x.dtype)
    launch("linear", y.size, *map(xp.ascontiguousarray, (x, w, b)), y, *w.shape)
    return y


def linear_backward(x: Any, w: Any, g: Any) -> tuple[Any, Any, Any]:
    """The gradients of x, w and b in x w + b, for an x of a few rows."""
    dw, dx = xp.empty((x.shape[1] + 1, g.shape[1]), x.dtype), xp.empty(x.shape, x.dtype)
    given = map(xp.ascontiguousarray, (x, w, g))
    launch("linear_backward", dw.size + dx.size, *given, dw, dx, *x.shape, g.shape[1])
    return dx, dw[:-1], dw[-1]


def product(a: Any, b: Any, out: Any, scale: float = 1.0) -> None:
    """out = scale a b for stacks of matrices (N, heads, M, K) and (N, heads, K, L).  All three may be views of any
    strides, so nothing is transposed in memory."""
    strides = struct([step // x.itemsize for x in (a, b, out) for step in x.strides])
    launch("product", out.size, a, b, out, a.shape[1], *a.shape[2:], b.shape[3], strides, float(scale))


def take_gradient(g: Any, indices: Any, shape: tuple[int, ...]) -> Any:
    """The gradient of x (`shape`) in x[indices], from the gradient g of the result."""
    dx = xp.empty(shape, g.dtype)
    launch("take_gradient", dx.size, xp.ascontiguousarray(g), indices, dx, indices.size, math.prod(shape[1:]))
    return dx


def sum_rows(g: Any) -> Any:
    """Sum over the last axis but one, (..., M, O) -> (..., O)."""
    *lead, rows, o = g.shape
    g, count, tiles = xp.ascontiguousarray(g), math.prod(lead), -(-o // _TILE)
    parts = segments(rows)
    out = xp.empty((*lead, o), g.dtype)
    if parts > 1:
        partial = xp.empty((count, parts, o), g.dtype)
        launch("sum_segments", count * parts * tiles, g, partial, rows, parts, o, tiles, each=THREADS)
        g, rows = partial, parts
    launch("sum_segments", count * tiles, g, out, rows, 1, o, tiles, each=THREADS)
    return out


def concat(a: Any, b: Any) -> Any:
    """a and b joined along their last axis."""
    a, b, c, d = xp.ascontiguousarray(a), xp.ascontiguousarray(b), a.shape[-1], b.shape[-1]
    out = xp.empty((*a.shape[:-1], c + d), a.dtype)
    _concat(a, b, out, 0)
    return out


def split(x: Any, c: int) -> tuple[Any, Any]:
    """Cut x after the first c numbers of its last axis; return both parts as new arrays."""
    d = x.shape[-1] - c
    a, b = xp.empty((*x.shape[:-1], c), x.dtype), xp.empty((*x.shape[:-1], d), x.dtype)
    _concat(a, b, xp.ascontiguousarray(x), 1)
    return a, b


def _concat(a: Any, b: Any, out: Any, split: int) -> None:
    run = min(_run(a), _run(b, out))
    launch("concat", out.size // run, a, b, out, a.shape[-1], b.shape[-1], split, run)


def silu(x: Any) -> Any:
    """x sigmoid(x), for each element."""
    x, y = xp.ascontiguousarray(x), xp.empty(x.shape, x.dtype)
    launch("silu", x.size, x, y)
    return y


def silu_backward(x: Any, g: Any) -> Any:
    """The gradient of silu's input x, from the gradient g of the result."""
    dx = xp.empty(x.shape, x.dtype)
    launch("silu_backward", x.size, xp.ascontiguousarray(x), xp.ascontiguousarray(g), dx)
    return dx


def softmax(x: Any) -> Any:
    """Softmax over the last axis.  Raises ValueError if that axis is empty, as NumPy's max does."""
    if x.shape[-1] == 0:
        raise ValueError("softmax: zero-size array has no largest value")
    p = xp.empty(x.shape, x.dtype)
    launch("softmax", math.prod(x.shape[:-1]), xp.ascontiguousarray(x), p, x.shape[-1])
    return p


def softmax_backward(p: Any, g: Any) -> Any:
    """The gradient of softmax's input, from the result p and the gradient g of the result."""
    dx = xp.empty(p.shape, p.dtype)
    launch("softmax_backward", math.prod(p.shape[:-1]), p, xp.ascontiguousarray(g), dx, p.shape[-1])
    return dx


def group_norm(x: Any, gamma: Any, beta: Any, num_groups: int, eps: float, silu: bool) -> tuple[Any, Any]:
    """Return (y, vjp) of the group norm of x (N, ..., C), followed by SiLU if silu is True.

    vjp(g, plus=None) -> (dx + plus, rows).  rows (N, 2 C): each image's share of the gradients of gamma and of beta.
    """
    x, gamma, beta = map(xp.ascontiguousarray, (x, gamma, beta))
    c, sizes = x.shape[-1], (math.prod(x.shape[1:-1]), x.shape[-1], num_groups)
    mean, rstd = xp.empty((2, len(x), num_groups), x.dtype)
    y = xp.empty(x.shape, x.dtype)
    launch("group_norm", mean.size, x, gamma, beta, mean, rstd, y, *sizes, float(eps), int(silu), each=THREADS)

    def vjp(g: Any, plus: Any = None) -> tuple[Any, Any]:
        dx, rows = xp.empty(x.shape, x.dtype), xp.empty((len(x), 2 * c), g.dtype)
        given = x, xp.ascontiguousarray(g), mean, rstd, gamma, beta, 0 if plus is None else xp.ascontiguousarray(plus)
        launch("group_norm_backward", mean.size, *given, dx, rows, *sizes, int(silu), each=THREADS)
        return dx, rows

    return y, vjp


def adam(theta: Any, g: Any, m: Any, v: Any, norm: Any, numbers: Any, *betas: float) -> None:
    """One step of Adam in place, as in adam_update of optim.py.  numbers: (rate, eps), an array.  Nothing is updated if
    the norm or the rate is not finite."""
    launch("adam", theta.size, theta, g, m, v, norm, numbers, *map(float, betas))


def muon(theta: Any, before: Any, g: Any, m: Any, norm: Any, lr: Any, matrices: list, *settings: float) -> None:
    """Muon's step for matrices, (start, rows, columns) in the flat arrays theta, before, g and m; see muon.py.

    theta is written.  before: theta before Adam's step.  m: the moment after it.  lr: (1,), an array.  settings: beta1,
    A, B, C and ROUNDS of muon.py.  Nothing is updated if the norm or lr is not finite.
    """
    *factors, rounds = settings
    for k in range(0, len(matrices), _PARTS):
        part, rest = matrices[k : k + _PARTS], [0] * (_PARTS - len(matrices[k : k + _PARTS]))
        starts, rows, columns = zip(*part)
        room = 4 * max(map(min, rows, columns)) ** 2
        table = struct([*starts, *rest], [*rows, *rest, *columns, *rest])
        given = theta, before, g, m, xp.empty(len(part) * room, theta.dtype), norm, lr, table, room
        launch("muon", len(part), *given, *map(float, factors), int(rounds), each=THREADS)


def ema(average: Any, theta: Any, norm: Any, rest: Any) -> None:
    """average += rest (theta - average) in place.  rest: (1,), an array.  Nothing is updated if the norm or rest is not
    finite."""
    launch("ema", average.size, average, theta, norm, rest)


def clip(g: Any, max_norm: float) -> Any:
    """Scale g (n,) in place so that its norm is at most max_norm.  Return the norm before, as a device array ().

    The squares are added in a fixed order: so many partial sums, and then their sum.
    """
    parts = max(1, min(THREADS, -(-g.size // THREADS)))
    part, norm = xp.empty(parts, g.dtype), xp.empty((), g.dtype)
    launch("squares", parts, g, part, g.size, each=THREADS)
    launch("clip", g.size, g, part, norm, parts, float(max_norm))
    return norm


def gather(arrays: list[Any], sizes: list[int], out: Any, shares: list[tuple[int, int]] | None = None) -> None:
    """Copy arrays of the given sizes end to end into out (n,).  For an entry None the copy is zeros.

    shares: for each array the number of its shares, which are added up, and how many numbers they are apart.
    """
    for k in range(0, len(arrays), _PARTS):
        part = [None if a is None else xp.ascontiguousarray(a) for a in arrays[k : k + _PARTS]]
        ends = list(accumulate(sizes[k : k + _PARTS]))
        rest = [0] * (_PARTS - len(part))
        counts, steps = zip(*(shares[k : k + _PARTS] if shares else [(1, 0)] * len(part)))
        places = [*(0 if a is None else address(a) for a in part), *rest, *ends, *rest]
        table = struct(places, [*counts, *rest, *steps, *rest])
        launch("gather", ends[-1], out[: ends[-1]], table, len(part))
        out = out[ends[-1] :]


def address(a: Any) -> int:
    """The address of an array's first number, in the memory of its backend."""
    return a.data.ptr if hasattr(a.data, "ptr") else a.ctypes.data


def struct(numbers: list[int], short_ones: Sequence[int] = ()) -> Any:
    """A struct of 64-bit integers, and then of an even number of 32-bit integers.  A kernel receives it by value, as
    one argument."""
    numbers = [*numbers, *np.array(short_ones, np.int32).view(np.int64).tolist()]
    return np.array(numbers, np.int64).view(f"V{8 * len(numbers)}")[0]
