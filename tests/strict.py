"""A device that is not there: `strict.cupy` follows CuPy in what it refuses, and NumPy computes.

It stands in for CuPy on a machine without a GPU.  Within `strict.backend("cupy")` it is the backend, and
`pytest --backend strict` runs the whole suite on it.  Three kinds of mistakes show:

    refused     what raises on CuPy: a host array among device arrays, np.asarray(dev), a name or argument it lacks
    refused     what CuPy lets pass, slowly or wrongly: xp.sum(host), dev[host indices], boolean masks, float32 that
                turns into float64, indices out of range, two values assigned to one place
    visible     what only a device shows: `empty` holds NaN, memory has one owner, `syncs` counts each time the host
                waits for the device

Kernels run by their own text, compiled for the host (emulate.py), so every op goes the way that it goes on a GPU.  A
step can be recorded and replayed (tape.py).

A device array wraps an ndarray.  It is no subclass: np.asarray of a subclass asks nobody.  What it cannot show are
races, the order of atomics, the rounding of a GPU's own functions, its memory and its speed.  Names and arguments come
from cupy_api.json, a table of the real CuPy.  Proven in test_strict.py.
"""

import json
import re
import sys
import types
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import emulate
import numpy as np
import tape

from tinydiff.backend import FAST, backend_name, precision, use_backend
from tinydiff.fast import kernels, tensor_cores

_fits = tensor_cores.fits
syncs: Counter[str] = Counter()  # how often the host waited for the device, by what it asked for

NAMES: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_name("cupy_api.json").read_text("utf-8"))["names"]
# CuPy has these, and they are refused here.
REFUSED = {
    *("argwhere", "compress", "extract", "flatnonzero", "nonzero", "unique"),  # the host waits to learn a shape
    *("dump", "dumps", "tobytes", "tofile", "lib.stride_tricks.sliding_window_view"),  # or for what it sends or reads
    *("add.at", "subtract.at"),  # adds up in no fixed order
    "random",  # a seed means other numbers than on NumPy
}
IN_PLACE = {"copyto", "fill_diagonal", "ndarray.fill", "ndarray.sort", "ndarray.put"}  # what writes to its argument
JOINS = ("concatenate", "stack", "hstack", "vstack", "dstack")
PLAIN = ("dtype", "flags", "itemsize", "nbytes", "ndim", "shape", "size", "strides")  # what the host knows of an array


def has_tensor_cores(there: bool) -> None:
    """Whether products run by conv.cu, which takes a hundred times as long here, or as on an older GPU."""
    tensor_cores.fits = _fits if there else lambda *arrays, largest=0: False


class DeviceArray:
    """An array of the device, xp.ndarray: made by the functions of `cupy` only, brought to the host by `get` only."""

    __slots__ = ("__weakref__", "_array")
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, *args: Any, **kwargs: Any):
        raise TypeError("a device array is made by xp.empty or xp.asarray, a view by xp.lib.stride_tricks.as_strided")

    # What brings numbers to the host, and so waits for them.

    def get(self) -> np.ndarray:
        return self._wait("get", np.copy)

    def item(self) -> Any:
        return self._wait("item", np.ndarray.item)

    def tolist(self) -> Any:
        return self._wait("tolist", np.ndarray.tolist)

    def __float__(self) -> float:
        return self._wait("float", float)

    def __int__(self) -> int:
        return self._wait("int", int)

    def __bool__(self) -> bool:
        return self._wait("bool", bool)

    def __repr__(self) -> str:
        return self._wait("repr", "device {!r}".format)

    def __format__(self, spec: str) -> str:
        return self._wait("format", lambda a: format(a[()], spec))

    def _wait(self, what: str, read: Callable) -> Any:
        tape.refuse_while_noting()
        syncs[what] += 1
        return read(self._array)

    # What NumPy would do to it.

    def __array__(self, *args: Any, **kwargs: Any) -> np.ndarray:
        raise TypeError("a device array does not become a NumPy array by itself: use to_numpy")

    def __array_function__(self, function: Callable, *_: Any) -> Any:
        raise TypeError(f"np.{function.__name__} of a device array: use xp.{function.__name__}, or to_numpy first")

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Any:
        if method == "__call__" and isinstance(inputs[0], np.generic):  # np.float32(2) * dev
            return Ufunc(ufunc.__name__)(*inputs, **kwargs)
        raise TypeError(f"np.{ufunc.__name__} of a device array: use xp.{ufunc.__name__}, with device arrays only")

    # Elements and methods.

    def __len__(self) -> int:
        return len(self._array)

    def __iter__(self) -> Iterator["DeviceArray"]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: Any) -> "DeviceArray":
        return _device(tape.compute(self._array.__getitem__, (_index(index),), {}))

    def __setitem__(self, index: Any, value: Any) -> None:
        index, value = _index(index), _host(value)
        tape.order(lambda: self._set(index, value))

    def _set(self, index: tuple, value: Any) -> None:
        if any(isinstance(part, np.ndarray) for part in index):
            places = np.arange(self._array.size).reshape(self._array.shape)[index]
            if np.unique(places).size < places.size:
                raise ValueError("two values for one place: which of them stays is not defined on a device")
        self._array[index] = value

    def __getattr__(self, name: str) -> Any:
        if name in REFUSED or NAMES.get(f"ndarray.{name}", {}).get("kind") != "function":
            raise AttributeError(f"a device array has no {name!r} to use: CuPy lacks it, or waits for the device")
        return Function(f"ndarray.{name}", getattr(self._array, name), self)

    @property
    def data(self) -> Any:
        return types.SimpleNamespace(ptr=self._array.ctypes.data)

    @property
    def T(self) -> "DeviceArray":
        return self.transpose()


class Function:
    """A function or method of arrays, with the arguments that CuPy has."""

    def __init__(self, name: str, compute: Callable, owner: Any = None):
        self.name, self.compute, self.owner, self.entry = name, compute, owner, NAMES[name]
        self.by_element = self.entry["kind"] == "ufunc" or name in ("where", "clip", "ndarray.clip")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.check(args, kwargs)
        args_of_numpy, kwargs_of_numpy = _host(args), _host(kwargs)
        if kwargs.get("out") is not None or self.name in IN_PLACE:
            tape.order(lambda: self.compute(*args_of_numpy, **kwargs_of_numpy))
            return kwargs.get("out")
        layout = "C" if self.by_element else None  # where NumPy's result lies as its operands do
        result = tape.compute(self.compute, args_of_numpy, kwargs_of_numpy, layout)
        if "dtype" not in kwargs and not any(isinstance(a, str | type | np.dtype) for a in args):
            _check_promotion(self.name, (self.owner, *args), result)
        return _device(result, layout)

    def check(self, args: tuple, kwargs: dict) -> None:
        """TypeError for more arguments than CuPy's function has, or for a keyword that it does not know."""
        most, known = self.entry["positional"], self.entry["keywords"]
        if most is not None and len(args) > most:
            raise TypeError(f"{self.name}: {len(args)} arguments by position, CuPy takes {most}")
        if known is not None and kwargs.keys() - set(known):
            raise TypeError(f"{self.name}: CuPy takes no {sorted(kwargs.keys() - set(known))}")
        if self.name == "where" and len(args) == 1:
            raise TypeError("where(condition) waits for the device, which has to count: give it x and y")
        if self.by_element and any(isinstance(a, list | tuple) for a in args):
            raise TypeError(f"{self.name}: a list among device arrays: move it once, with asarray")
        if self.name in JOINS and not all(isinstance(a, DeviceArray | np.ndarray) for a in args[0]):
            raise TypeError(f"{self.name}: CuPy joins arrays only: move numbers and lists with asarray")


class Ufunc(Function):
    """A function of elements."""

    def __init__(self, name: str):
        super().__init__(name, getattr(np, name))

    def __getattr__(self, method: str) -> Function:
        name = f"{self.name}.{method}"
        if name not in NAMES or name in REFUSED:
            raise AttributeError(f"xp.{name}: CuPy lacks it, or adds up in no fixed order")
        return Function(name, getattr(getattr(np, self.name), method))


class Upload(Function):
    """asarray or array: what takes host arrays."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.check(args, kwargs)
        if isinstance(args[0], DeviceArray):
            result = tape.compute(self.compute, _host(args), kwargs)
            return args[0] if result is args[0]._array else _device(result)
        tape.refuse_while_noting()
        result = self.compute(*_host(args, host_too=True), **kwargs)
        return _device(np.array(result))  # memory of its own, whatever NumPy shares


class Empty(Function):
    """empty or empty_like: memory that nobody has written to holds anything."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.check(args, kwargs)
        result = self.compute(*_host(args), **kwargs)
        kind = result.dtype.kind
        result.fill(np.nan if kind == "f" else np.iinfo(result.dtype).max if kind in "iu" else True)
        return _device(result)


class RawModule:
    """The text of kernels, compiled for the host.  host_too: they take arrays of the host."""

    def __init__(self, code: str, options: tuple, host_too: bool = False):
        self.code, self.host_too = code, host_too

    def get_function(self, name: str) -> Callable:
        run = self._find(name)

        def launch(blocks: tuple, threads: tuple, arguments: tuple, **extra: int) -> None:
            given = _host(arguments, self.host_too)
            tape.order(lambda: run(blocks, threads, given, **extra))

        return launch

    def _find(self, name: str) -> Callable:
        """The function that emulate.py has compiled: of conv.cu for a precision, or of kernels.cu for its types."""
        for rounding in tensor_cores.PRECISIONS:
            if self.code == tensor_cores.text(rounding):
                return emulate.tensor_kernel(name, rounding)
        assert kernels.SOURCE in self.code
        types = dict(reversed(pair) for pair in re.findall(r"^typedef ([\w ]+) ([TI]);", self.code, re.MULTILINE))
        return emulate.kernel(name, {"float": "f", "double": "d"}[types["T"]], types["I"] == "long long")


KINDS = {"asarray": Upload, "array": Upload, "empty": Empty, "empty_like": Empty}


class _Module(types.ModuleType):
    """NumPy's functions under the names that CuPy has."""

    def __getattr__(self, name: str) -> Any:
        name = f"{self.__name__}.{name}".removeprefix("cupy.")
        kind = NAMES.get(name, {}).get("kind")
        if kind in (None, "class") or name in REFUSED:
            raise AttributeError(f"module 'cupy' has no {name!r} to use: CuPy lacks it, or see REFUSED in strict.py")
        if kind == "module":
            return _Module(name)
        if kind == "ufunc":
            return Ufunc(name)
        found: Any = np
        for part in name.split("."):
            found = getattr(found, part)
        return KINDS.get(name, Function)(name, found) if kind == "function" else found


cupy: Any = _Module("cupy", __doc__)
cupy.ndarray, cupy.RawModule = DeviceArray, RawModule
cupy.__version__ = "14.2.0"
cupy.get_default_memory_pool = lambda: tape.default_pool
cupy.cuda = types.SimpleNamespace(
    **tape.cuda,
    runtime=types.SimpleNamespace(
        driverGetVersion=lambda: 13020,
        runtimeGetVersion=lambda: 13020,
        getDevice=lambda: 0,
        deviceGetAttribute=lambda number, device: {75: 9, 97: emulate.SHARED}[number],  # compute capability 9.0
        getDeviceProperties=lambda device: {"name": b"strict"},
        memGetInfo=lambda: (1 << 30, 1 << 30),
    ),
)
cupy._core = types.SimpleNamespace(
    _routines_linalg=types.SimpleNamespace(
        COMPUTE_TYPE_TF32=3, COMPUTE_TYPE_DEFAULT=1, set_compute_type=lambda dtype, kind: None
    )
)


def stand_in(module: Any) -> None:
    """Let `import cupy` find this module from now on; None: what is installed, if anything."""
    if module is None:
        del sys.modules["cupy"]
    else:
        sys.modules["cupy"] = module


@contextmanager
def backend(name: str, module: Any = cupy, plain: bool = False, rounding: str | None = None) -> Iterator[None]:
    """Within the block the backend is the one of this name, and CuPy is this module.  plain, and rounding, the
    precision: see use_backend."""
    before, was_plain, found = (backend_name(), precision()), not FAST, sys.modules.get("cupy")
    stand_in(module)
    try:
        use_backend(name, rounding, plain=plain)
        _forget()
        yield
    finally:
        stand_in(found)
        use_backend(*before, plain=was_plain)
        _forget()


def _forget() -> None:
    """Empty the caches of the ops and kernels: what they hold was made for the other backend."""
    own = ("tinydiff.ops.", "tinydiff.fast.")
    for module in [module for name, module in sys.modules.items() if name.startswith(own)]:
        for value in vars(module).values():
            if hasattr(value, "cache_clear"):
                value.cache_clear()


def _device(result: Any, order: Any = None) -> Any:
    """What NumPy computed, on the device: a number too, as an array without axes.  order: "C", or as it lies."""
    if isinstance(result, list | tuple):
        return type(result)(_device(r, order) for r in result)
    if not isinstance(result, np.ndarray | np.generic):
        return result
    array = object.__new__(DeviceArray)
    array._array = np.asarray(result, order=order)
    if tape.now.tape is not None:
        tape.now.tape.arrays.append(array)
    return array


def _host(value: Any, host_too: bool = False) -> Any:
    """Arguments for NumPy, device arrays unwrapped at any depth.  TypeError for a host array, unless they may be."""
    if isinstance(value, DeviceArray):
        return value._array
    if isinstance(value, np.ndarray) and not host_too:
        raise TypeError(f"a host array of shape {value.shape} among device arrays: move it once, with asarray")
    if isinstance(value, list | tuple):
        return type(value)(_host(v, host_too) for v in value)
    return {key: _host(v, host_too) for key, v in value.items()} if isinstance(value, dict) else value


def _index(index: Any) -> tuple:
    """The index for NumPy, of integers, slices, None, ... and device arrays of integers.

    It holds an Ellipsis: then a single element is an array without axes that shares memory, as on the device.
    """
    parts = index if isinstance(index, tuple) else (index,)
    for part in parts:
        if isinstance(part, np.ndarray | list | tuple):
            raise TypeError("indices on the host are copied to the device at each use: move them once, with asarray")
        if isinstance(part, bool | np.bool_) or (isinstance(part, DeviceArray) and part.dtype == bool):
            raise TypeError("a boolean mask waits for the device, which has to count it: use where")
    return _host(parts if any(part is Ellipsis for part in parts) else (*parts, Ellipsis))


def _check_promotion(name: str, args: tuple, result: Any) -> None:
    """TypeError where float32 went in and float64 came out, which nobody asked for: a GPU is up to 64 times slower."""
    operands = [a for arg in args for a in (arg if isinstance(arg, list | tuple) else [arg])]
    narrow = any(isinstance(a, DeviceArray) and a.dtype == np.float32 for a in operands)
    if narrow and getattr(result, "dtype", None) == np.float64:
        raise TypeError(f"{name}: float32 became float64; cast the other operand, or make it a Python number")


# Python's operators, by the ufuncs behind them.

ARITHMETIC = {
    **{"add": "add", "sub": "subtract", "mul": "multiply", "truediv": "true_divide", "floordiv": "floor_divide"},
    **{"mod": "remainder", "pow": "power", "and": "bitwise_and", "or": "bitwise_or", "xor": "bitwise_xor"},
}
COMPARISONS = {
    **{"eq": "equal", "ne": "not_equal", "lt": "less", "le": "less_equal", "gt": "greater", "ge": "greater_equal"},
    "matmul": "matmul",  # CuPy has no @=
}
OF_ONE = {"neg": "negative", "pos": "positive", "abs": "absolute", "invert": "invert"}


def _operator(ufunc: Ufunc, swapped: bool = False, in_place: bool = False) -> Callable:
    def apply(x: DeviceArray, *others: Any) -> Any:
        if any(getattr(y, "__array_ufunc__", "absent") is None for y in others):
            return NotImplemented  # a Tensor takes over
        return ufunc(*((*others, x) if swapped else (x, *others)), **({"out": x} if in_place else {}))

    return apply


for _name, _ufunc in (ARITHMETIC | COMPARISONS | OF_ONE).items():
    setattr(DeviceArray, f"__{_name}__", _operator(Ufunc(_ufunc)))
    if _name in ARITHMETIC:
        setattr(DeviceArray, f"__i{_name}__", _operator(Ufunc(_ufunc), in_place=True))
    if _name in ARITHMETIC or _name == "matmul":
        setattr(DeviceArray, f"__r{_name}__", _operator(Ufunc(_ufunc), swapped=True))
for _name in PLAIN:
    setattr(DeviceArray, _name, property(lambda x, name=_name: getattr(x._array, name)))
