"""The switch between NumPy and CuPy, and the few things that differ between the two.

Every numerical file writes `xp.exp(x)` in NumPy's spelling.  `xp` is one object for the life of the process, and
`use_backend("cupy")` makes it answer with CuPy's functions instead.  Host means the CPU and its memory, device the GPU
and its memory.  Arrays leave the device through `to_numpy` only, single numbers also through `float`.  All random
numbers are drawn on the host, so one seed gives the same noise on both backends.

In TF32 a GPU multiplies matrices several times faster than in float32.  TF32 rounds each factor to a mantissa of 10
bits, a relative error of at most 2^-11 = 4.9e-4; products and sums stay float32.  TF32 is the default on CuPy.  bf16
rounds each factor to 7 bits (2^-8 = 3.9e-3); sums, weights and maps stay float32.  NumPy has float32 only.

The table FAST gives, by name, a faster form of a plain function: see `fusable`.  Before use_backend is called, `xp` is
NumPy and FAST is empty.  This is the only file that imports CuPy.

Read next: autograd.py.
"""

import functools
import importlib
from collections.abc import Callable
from typing import Any

import numpy as np

FAST: dict[str, Callable] = {}  # faster forms of functions, by name; where there is none the plain function runs


class TinydiffError(RuntimeError):
    """An error that the user can correct: the message says what is wrong and what to do.

    Programs print it without a traceback and exit with code 2.
    """


class BackendError(TinydiffError):
    """The backend asked for cannot work on this machine."""


class _ArrayModule:
    """Finds a name in the chosen array module at its first use and keeps it: later uses are plain attributes (33
    ns)."""

    module: Any = np
    precision = "float32"

    def __getattr__(self, name: str) -> Any:
        value = getattr(type(self).module, name)
        self.__dict__[name] = value
        return value


xp: Any = _ArrayModule()
_prepare: list[Callable[[], None]] = []


class NoDefaults:
    """Base class of Tensor.  What Python and NumPy do with any object is a TypeError: they would not look at the array.

    By default a tensor of zero is true, x == 1 is False, and np.asarray(x) is an array of objects.
    """

    __slots__ = ()
    __array_ufunc__ = None  # array + tensor goes to Tensor.__radd__, not element by element through NumPy

    def _refuse(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("a Tensor has no truth value, no == and no conversion: use x.item(), x.data, or to_numpy(x)")

    __bool__ = __eq__ = __float__ = __int__ = __array__ = __array_function__ = _refuse
    __hash__ = object.__hash__  # by identity


def use_backend(name: str, precision: str | None = None, device: int = 0, plain: bool = False) -> None:
    """Make `xp` answer with "numpy" or "cupy".  Call it first: arrays made before belong to the other backend.

    precision: how the factors of a matrix product are rounded: "float32", or on CuPy "tf32", its default, or "bf16".
    device: the number of the GPU, modulo the number of GPUs.
    plain: use the functions of the book as they are; else FAST is filled with faster ones.
    Raises BackendError if CuPy or a GPU is missing or does not work, ValueError for any other name or precision.
    """
    require(name in ("numpy", "cupy"), "backend must be 'numpy' or 'cupy'", repr(name))
    choices = ("float32",) if name == "numpy" else ("tf32", "float32", "bf16")  # the default first
    precision = choices[0] if precision is None else precision
    if precision not in choices:
        raise ValueError(f"precision must be {' or '.join(map(repr, choices))} on backend {name!r}, got {precision!r}")
    _ArrayModule.module = np if name == "numpy" else _load_cupy(precision, device)
    _ArrayModule.precision = precision
    xp.__dict__.clear()
    FAST.clear()
    for prepare in [] if plain else _prepare:
        prepare()


def when_chosen(prepare: Callable[[], None]) -> None:
    """Register prepare(), a function that fills FAST.  use_backend calls it last, unless plain is True."""
    _prepare.append(prepare)


def fusable(f: Callable) -> Callable:
    """Let FAST replace f: a call runs FAST[f.__qualname__] if it is there, else f.

    Functions that have a faster form carry this mark.
    """

    @functools.wraps(f)
    def apply(*args: Any, **kwargs: Any) -> Any:
        return FAST.get(f.__qualname__, f)(*args, **kwargs)

    return apply


def backend_name() -> str:
    """The array module that `xp` stands for now: "numpy" or "cupy"."""
    return _ArrayModule.module.__name__


def precision() -> str:
    """The precision of matrix products now: "float32", "tf32" or "bf16"."""
    return _ArrayModule.precision


def asarray(a: Any, dtype: Any = None) -> Any:
    """`a` (host array, backend array or Tensor) as an array of the current backend, copied only if it must be."""
    data = getattr(a, "data", None)  # a Tensor's array; an ndarray's .data is a raw buffer instead
    return xp.asarray(data if isinstance(data, xp.ndarray) else a, dtype=dtype)


def to_numpy(a: Any) -> np.ndarray:
    """`a` (backend array, Tensor or host array) as a NumPy array: the only way for arrays off the device."""
    data = getattr(a, "data", None)
    a = data if isinstance(data, xp.ndarray) else a
    return a.get() if hasattr(a, "get") else np.asarray(a)


def default_rng(*name: int | str) -> np.random.Generator:
    """The random stream of a name, on the host: default_rng(seed), or default_rng("batch", seed, step).

    name: non-negative integers and words.  Different names give independent streams.  A word keeps
    purposes apart: ("epoch", 3) and ("batch", 3) are two streams.  The number of parts of the name is part of the seed,
    because NumPy itself treats (1, 2) and (1, 2, 0) alike.
    """
    entropy = [int.from_bytes(part.encode(), "little") if isinstance(part, str) else part for part in name]
    return np.random.default_rng([*entropy, len(name)])


def standard_normal(rng: Any, shape: tuple[int, ...], dtype: Any = "float32") -> Any:
    """Standard normal noise, drawn on the host and moved to the backend: a seed means the same noise on both."""
    return xp.asarray(rng.standard_normal(shape, dtype=np.dtype(dtype)))


def host_integers(name: str, value: Any, low: int, high: int, size: int | None = None) -> np.ndarray:
    """Check integers that select a time, a class or a row, on the host, and return them as int64.

    CuPy wraps an index that is out of range, where NumPy raises; so the range is checked here.
    value: an integer or an array of integers, each in low..high, else ValueError naming `name` and the value.
    size: if given, an integer is repeated to shape (size,) and an array must have that shape.
    """
    a = np.asarray(value)
    if a.dtype.kind not in "iu":
        raise ValueError(f"{name} must be integers, got {a.dtype} {value!r}")
    if a.size and (a.min() < low or a.max() > high):
        bad = a[(a < low) | (a > high)].flat[0]
        raise ValueError(f"{name} must lie in {low}..{high}, got {bad}")
    if size is not None:
        a = np.full(size, a) if a.ndim == 0 else a
        if a.shape != (size,):
            raise ValueError(f"{name} must be one integer or have shape ({size},), got shape {a.shape}")
    return a.astype(np.int64)


def require(ok: bool, rule: str, value: Any) -> None:
    """ValueError with the rule and the value, unless ok.  A comparison with NaN is False, so NaN is refused."""
    if not ok:
        raise ValueError(f"{rule}, got {value}")


def _load_cupy(precision: str, device: int) -> Any:
    """Import CuPy, compile a kernel and multiply two matrices: whatever is missing shows now and not in mid-run.

    This costs next to nothing: the first step would load the same libraries (CUDA's context, NVRTC, cuBLAS).
    """
    try:
        cupy = importlib.import_module("cupy")
        driver, made = cupy.cuda.runtime.driverGetVersion(), cupy.cuda.runtime.runtimeGetVersion()
    except (ImportError, RuntimeError) as error:
        extra = "pip install 'tinydiff[cuda13x]' (or cuda12x, to match the driver's CUDA version)"
        raise BackendError(f"backend 'cupy' needs CuPy, which does not import here ({error}): {extra}") from None
    if driver == 0:
        raise BackendError("backend 'cupy' finds no NVIDIA driver: install it, or use the numpy backend")
    extra = f"pip install 'tinydiff[cuda{min(driver, made) // 1000}x]'"
    if driver // 1000 < made // 1000:
        remedy = f"pip uninstall cupy-cuda{made // 1000}x, {extra}" if driver >= 12000 else "install a newer driver"
        versions = f"CuPy is made for CUDA {cuda_version(made)}, the driver for {cuda_version(driver)}"
        raise BackendError(f"backend 'cupy' does not work here: {versions}; {remedy}")
    try:
        if device:  # CuPy starts on GPU 0
            cupy.cuda.Device(device % cupy.cuda.runtime.getDeviceCount()).use()
        # Set here: otherwise CuPy would silently take the environment's CUPY_TF32.
        linalg = cupy._core._routines_linalg
        kind = linalg.COMPUTE_TYPE_TF32 if precision == "tf32" else linalg.COMPUTE_TYPE_DEFAULT
        linalg.set_compute_type("float32", kind)
        a = cupy.ones((2, 2), "float32")
        float((a @ a)[0, 0])
    except Exception as error:  # errors of a dozen types, those of the compiler among them
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        hint = f"nvidia-smi should show a GPU with free memory, and {extra} brings CUDA's libraries and headers"
        raise BackendError(f"backend 'cupy' does not work here ({reason}): {hint}") from None
    return cupy


def cuda_version(number: int) -> str:
    """CUDA's 12040 as 12.4."""
    return f"{number // 1000}.{number % 1000 // 10}"
