"""Convolutions and matrix products on a GPU's tensor cores: the functions that launch conv.cu.

Arrays must be float32; `fits` says whether these functions can be used.  The precision of backend.py says how factors
are rounded.  A 3x3 convolution of stride 1 that keeps the size reads the map directly.  Any other convolution is a
matrix product with the columns of im2col.  A matrix product is a convolution with a 1x1 filter.  Axes: ops/conv.py.
Read next: attention.py.
"""

from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from tinydiff.backend import precision, xp
from tinydiff.fast import kernels
from tinydiff.fast.shares import Shares
from tinydiff.ops.conv import output_shape

SOURCE = Path(__file__).with_name("conv.cu").read_text("utf-8")
PRECISIONS = ("float32", "tf32", "bf16")  # by the numbers that conv.cu has for them
_SLAB, _CHUNK = 32, 64  # channels, and pixels of conv_filter, in shared memory at a time; as in conv.cu
_BUSY = 264  # blocks that keep a large GPU busy: two for each of 132 multiprocessors
_LEAST = 48 << 10  # bytes of shared memory: more than a 1x1 filter needs
_MAJOR, _SHARED = 75, 97  # CUDA's numbers of two attributes: the compute capability, and the most shared memory


def fits(*arrays: Any, largest: int = 0) -> bool:
    """Whether this file can work on the arrays: on a GPU with such tensor cores, in float32, not empty, not huge.

    largest: the size of the largest array that will be made.
    """
    if not kernels.available() or not kernels.short(largest, *[a.size for a in arrays]) or why_not() is not None:
        return False
    return all(a.dtype.char == "f" and a.size for a in arrays)


def fits_conv(x: Any, w: Any, stride: int, padding: int) -> bool:
    """Whether `conv2d` can work on x and w; its columns may be larger than all other arrays."""
    n, oh, ow, o = output_shape(x.shape, w.shape, stride, padding)
    return fits(x, w, largest=n * oh * ow * max(o, w.size // o))


@lru_cache(None)
def why_not() -> str | None:
    """The reason why no product on this GPU uses this file, or None."""
    major = _attribute(_MAJOR)
    if major < 8:
        return f"conv.cu needs compute capability 8.0, this GPU has {major}"
    return None if shared_memory() >= _LEAST else f"conv.cu needs blocks with {_LEAST} bytes of shared memory"


@lru_cache(None)
def shared_memory() -> int:
    """The bytes of shared memory that a block can have."""
    return _attribute(_SHARED)


def _attribute(number: int) -> int:
    runtime = xp.cuda.runtime
    return runtime.deviceGetAttribute(number, runtime.getDevice())


def conv2d(x: Any, w: Any, b: Any, *plus: Any, stride: int = 1, padding: int = 0, of: Any = None) -> tuple[Any, Any]:
    """conv.conv2d: (y, vjp).  of: the parameter's array, if w is another view of it; the gradient has its shape."""
    k, of = len(w), w if of is None else of
    direct = stride == 1 and w.shape[:2] == (k, k) and k == 2 * padding + 1 <= 3 and _enough_memory(x.shape[2], k)
    filters = w if direct else w.reshape(1, 1, -1, w.shape[3])
    shape = output_shape(x.shape, w.shape, stride, padding)
    sizes = *w.shape[:2], *shape[1:3], stride, padding

    def windows() -> Any:
        return x if direct else kernels.im2col(x, *sizes).reshape(*shape[:3], -1)

    def vjp(g: Any) -> tuple:
        g = xp.ascontiguousarray(g)
        shares = cache(lambda: filter_gradient(windows(), g, len(filters)))

        def input_gradient() -> Any:
            dx = conv(g, filters, back=True)
            return dx if direct else kernels.col2im(dx.reshape(-1, filters.shape[2]), x.shape, *sizes)

        dplus = [(lambda: image_sums(g)) if p.ndim == 2 else g for p in plus]
        return input_gradient, lambda: shares().of(of, 0), lambda: shares().of(b, w.size), *dplus

    return conv(windows(), filters, b, *plus), vjp


def image_sums(g: Any) -> Any:
    """Sum over the pixels: (N, H, W, C) -> (N, C)."""
    return kernels.sum_rows(g.reshape(len(g), -1, g.shape[3]))


def conv(x: Any, w: Any, b: Any = None, plus: Any = None, back: bool = False) -> Any:
    """x (N, H, W, C) convolved with w (K, K, C, O), K = 1 or 3; stride 1, the size stays.  b and plus are added.

    plus: None, (N, O) or of the result's shape.  back: x is the gradient of the result; the gradient of its input is
    computed.
    """
    (n, h, width, c), k, o = x.shape, len(w), w.shape[2 if back else 3]
    y = xp.empty((n, h, width, o), x.dtype)
    pixels, by_image = n * h * width, int(plus is not None and plus.shape != y.shape)
    mt, nt, places, shared = _plan(pixels, width, k, c, o, back, shared_memory())
    arrays = (0 if a is None else xp.ascontiguousarray(a) for a in (x, w, b, plus, y))
    grid = -(-pixels // (64 * mt)), -(-o // (8 * nt))
    _launch(f"conv_{mt}_{nt}_{int(back)}", grid, 128, shared, *arrays, pixels, h, width, c, o, k, places, by_image)
    return y


@lru_cache(None)
def _plan(pixels: int, width: int, k: int, c: int, o: int, back: bool, most: int) -> tuple[int, int, int, int]:
    """How conv.cu computes `conv`: its MT, NT and places, and the bytes of shared memory.

    Large tiles read less memory; small tiles keep more multiprocessors busy.  There is a second place if two blocks can
    still share a multiprocessor.
    """

    def shared(mt: int, nt: int, places: int) -> int:
        rows = 64 * mt + 2 * (k // 2) * (width + 1)
        filters = 8 * nt * (_SLAB + 4) if back else _SLAB * (8 * nt + 8)
        return 4 * (_SLAB + 4 + places * rows * (_SLAB + 4) + 2 * filters)

    def blocks(mt: int, nt: int) -> int:
        return -(-pixels // (64 * mt)) * -(-o // (8 * nt))

    nt = 8 if o > 32 and blocks(1, 8) >= _BUSY // 2 and shared(1, 8, 1) <= most else 4
    mt = 4 if blocks(4, nt) >= _BUSY // 2 and shared(4, nt, 1) <= most else 1
    places = 2 if (c > _SLAB) and shared(mt, nt, 2) <= most // 2 else 1
    return mt, nt, places, shared(mt, nt, places)


def _enough_memory(width: int, k: int) -> bool:
    """Whether the kernels' smallest tiles of a map of this width fit a block's shared memory."""
    return max(_plan(1, width, k, 1, 1, False, 0)[3], _filter_memory(width, k, 4)) <= shared_memory()


def filter_gradient(x: Any, g: Any, k: int) -> Shares:
    """The gradients of w and b in conv(x, w, b), from the gradient g of its result: shares (shares, K K C O + O)."""
    (n, h, width, c), o = x.shape, g.shape[3]
    pixels, slabs, nt = (
        n * h * width,
        -(-c // _SLAB),
        8 if o > 32 and _filter_memory(width, k, 8) <= shared_memory() else 4,
    )
    columns, chunks = -(-o // (8 * nt)), -(-pixels // _CHUNK)
    most = _BUSY * 4 // nt // (slabs * columns)  # a block of nt = 8 has a multiprocessor to itself
    rows = xp.empty((max(1, min(most, chunks // 2)), (k * k * c + 1) * o), x.dtype)
    arrays = xp.ascontiguousarray(x), xp.ascontiguousarray(g), rows
    shared = _filter_memory(width, k, nt)
    _launch(f"conv_filter_{nt}", (len(rows), slabs, columns), 288, shared, *arrays, pixels, h, width, c, o, k)
    return Shares(rows)


def _filter_memory(width: int, k: int, nt: int) -> int:
    """The bytes of shared memory of a block of conv_filter."""
    rows = _CHUNK + 2 * (k // 2) * (width + 1)
    return 4 * (_SLAB + 8 + 2 * (rows * (_SLAB + 8) + _CHUNK * (8 * nt + 9)))


def _launch(name: str, grid: tuple[int, ...], threads: int, shared: int, *arguments: Any) -> None:
    _function(name, precision())(grid, (threads,), arguments, shared_mem=shared)


@lru_cache(None)
def _function(name: str, precision: str) -> Any:
    function = _module(precision).get_function(name)
    function.max_dynamic_shared_size_bytes = shared_memory()  # without this line a block gets 48 KiB at most
    return function


@lru_cache(None)
def _module(precision: str) -> Any:
    """The kernels for one precision.  They are compiled when the first of them is needed."""
    return xp.RawModule(code=text(precision), options=("--std=c++17",))


def text(precision: str) -> str:
    return f"#define PRECISION {PRECISIONS.index(precision)}\n{SOURCE}"
