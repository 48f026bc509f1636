"""One switch between NumPy and CuPy, and the few things that differ between them.

Every numerical file writes `xp.exp(x)` in NumPy's spelling; `xp` is one object for the life of the process, and
`use_backend("cupy")` makes it answer with CuPy's functions instead.  Arrays leave the device through `to_numpy` only.
Random numbers are drawn from a host generator on both backends, so a seed means the same noise everywhere.

This is the only file that may name CuPy.  Read next: autograd.py.
"""

import importlib
from typing import Any

import numpy as np


class TinydiffError(RuntimeError):
    """Something the user can put right: the message says what is wrong and what to do about it.

    Demos print it without a traceback and exit with code 2.
    """


class BackendError(TinydiffError):
    """The backend asked for cannot work on this machine."""


class _ArrayModule:
    """Looks a name up in the chosen array module once and keeps it: the next look-up is a plain attribute (33 ns)."""

    _module: Any = np

    def __getattr__(self, name: str) -> Any:
        value = getattr(type(self)._module, name)
        self.__dict__[name] = value
        return value


xp: Any = _ArrayModule()


def use_backend(name: str) -> None:
    """Make `xp` answer with "numpy" or "cupy".  Call it first: arrays made before belong to the other backend.

    Raises BackendError if CuPy or a GPU is missing, ValueError for any other name.
    """
    if name not in ("numpy", "cupy"):
        raise ValueError(f"backend must be 'numpy' or 'cupy', got {name!r}")
    _ArrayModule._module = np if name == "numpy" else _load_cupy()
    xp.__dict__.clear()


def backend_name() -> str:
    """ "numpy" or "cupy": the array module that `xp` stands for now."""
    return _ArrayModule._module.__name__


def asarray(a: Any, dtype: Any = None) -> Any:
    """`a` (host array, backend array or Tensor) as an array of the current backend, copied only if it must be."""
    data = getattr(a, "data", None)  # a Tensor's array; an ndarray's .data is a raw buffer instead
    return xp.asarray(data if isinstance(data, xp.ndarray) else a, dtype=dtype)


def to_numpy(a: Any) -> np.ndarray:
    """`a` (backend array, Tensor or host array) as a NumPy array: the only way off the device."""
    data = getattr(a, "data", None)
    a = data if isinstance(data, xp.ndarray) else a
    return a.get() if hasattr(a, "get") else np.asarray(a)


def default_rng(*name: int | str) -> np.random.Generator:
    """The host random stream of a name: default_rng(seed), or default_rng("batch", seed, step) for step's own batch.

    name: non-negative integers and words.  Streams of different names are independent; a word for the purpose keeps
    epoch 3 from drawing the numbers of step 3.  The length is part of it: NumPy alone takes (1, 2, 0) for (1, 2).
    """
    entropy = [int.from_bytes(part.encode(), "little") if isinstance(part, str) else part for part in name]
    return np.random.default_rng([*entropy, len(name)])


def standard_normal(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any = "float32") -> Any:
    """Standard normal noise, drawn on the host and moved to the backend: a seed means the same noise on both."""
    return xp.asarray(rng.standard_normal(shape, dtype=np.dtype(dtype)))


def host_integers(name: str, value: Any, low: int, high: int, size: int | None = None) -> np.ndarray:
    """Check integers that select a time, a class or a row, on the host, and return them as int64.

    Their range is checked here because CuPy wraps an index that is out of range where NumPy raises.
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
        if a.ndim == 0:
            a = np.full(size, a)
        if a.shape != (size,):
            raise ValueError(f"{name} must be one integer or have shape ({size},), got shape {a.shape}")
    return a.astype(np.int64)


def raw_module(source: str) -> Any:
    """CUDA C++ text, compiled for the GPU when the first of its kernels is asked for."""
    return xp.RawModule(code=source, options=("--std=c++17",))


def address(a: Any) -> int:
    """Where the first number of an array lies in its backend's memory."""
    return a.data.ptr if hasattr(a.data, "ptr") else a.ctypes.data


def struct(numbers: list[int]) -> Any:
    """Integers as one argument of a kernel: a struct of them, passed by value."""
    return np.array(numbers, np.int64).view(f"V{8 * len(numbers)}")[0]


def chunks(n: int, bytes_each: int) -> list[slice]:
    """Cut n images that need bytes_each of scratch into nearly equal slices whose scratch stays in a core's cache.

    A GPU has no such cache to stay in: there a slice is as large as its memory comfortably allows.
    """
    budget = 1_000_000 if _ArrayModule._module is np else 1 << 28
    count = max(1, min(n, -(-n * bytes_each // budget)))  # ceil
    return [slice(n * i // count, n * (i + 1) // count) for i in range(count)]


def _load_cupy() -> Any:
    extra = "pip install 'tinydiff[cuda13x]' (or cuda12x, to match the driver's CUDA version)"
    try:
        cupy = importlib.import_module("cupy")
    except ImportError as error:
        raise BackendError(f"backend 'cupy' needs CuPy, which does not import here ({error}): {extra}") from None
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except (ImportError, RuntimeError) as error:  # no driver, or CUDA libraries that are missing or do not match
        raise BackendError(
            f"backend 'cupy' finds no usable GPU ({error}): install the NVIDIA driver and {extra}"
        ) from None
    if count == 0:
        raise BackendError("backend 'cupy' finds no GPU on this machine; use the numpy backend")
    return cupy
