"""Reverse-mode differentiation: Tensor, @op, backward.

An op is a function on raw arrays that returns its output and its vector-Jacobian product

    y = f(x_1, ..., x_k)        vjp(g) = (g^T dy/dx_1, ..., g^T dy/dx_k)

with forward and gradient side by side.  The closure keeps what the gradient needs.  The nodes of the graph hold no
arrays of their own, so an array that no gradient needs is freed as soon as its Tensor is gone.  `backward` walks the
graph from the output, takes it down on the way, and writes `.grad` on leaves only.  There are no second derivatives:
training, sampling and guidance of a diffusion model need none.

Read next: ops/arithmetic.py.
"""

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from tinydiff.backend import FAST, xp

OPS: dict[str, Callable] = {}  # every op by name: the test suite fails for one that has no gradient test


class Tensor:
    """An array, and the place in the graph at which it was computed.

    data: array of the current backend.  grad: None, or an array of data's shape and dtype: the gradient so far.
    requires_grad: True for a leaf whose gradient is wanted (float data only, else TypeError).
    """

    __slots__ = ("__weakref__", "_node", "data", "grad", "requires_grad")
    __array_ufunc__ = None  # array + tensor goes to Tensor.__radd__, not element by element through NumPy

    def __init__(self, data: Any, requires_grad: bool = False):
        self.data = data if isinstance(data, xp.ndarray) else xp.asarray(data)
        if requires_grad and self.data.dtype.kind != "f":
            raise TypeError(f"only a float tensor can require a gradient, got dtype {self.data.dtype}")
        self.requires_grad = requires_grad
        self.grad: Any = None
        self._node: _Node | None = None  # None for a leaf, which is its own place in the graph

    shape = property(lambda self: self.data.shape)
    ndim = property(lambda self: self.data.ndim)
    size = property(lambda self: self.data.size)
    dtype = property(lambda self: self.data.dtype)

    def __len__(self) -> int:
        return len(self.data)

    def __repr__(self) -> str:
        name = "leaf" if self._node is None else self._node.op
        return f"Tensor({name}, shape={self.shape}, dtype={self.dtype}, requires_grad={self.requires_grad})"

    def backward(self, g: Any = None) -> None:
        """Add d<g, self>/d(leaf) to the `.grad` of every leaf that requires a gradient.

        g: cotangent with self's shape and dtype; may be left out for a single number, where it is 1.
        The graph is taken down on the way: afterwards self depends on nothing, and other tensors are unchanged.
        Raises ValueError for a missing or ill-shaped g, RuntimeError if self depends on no such leaf.
        """
        if not self.requires_grad:
            raise RuntimeError("backward: no input of this tensor requires a gradient, or backward was called before")
        if g is None and self.size != 1:
            raise ValueError(f"backward: g may be left out for a single number only, not for shape {self.shape}")
        g = xp.ones_like(self.data) if g is None else g.data if isinstance(g, Tensor) else g
        if not isinstance(g, xp.ndarray):
            raise ValueError(f"backward: g must be an array, got {type(g).__name__}")
        _check("backward", "g", g, self.data)
        places = _inputs_first(self._node or self)
        if self._node is None:
            g = xp.array(g)  # a leaf's gradient is an array of its own
        else:
            self._node, self.requires_grad = None, False
        _push_back(places, g)

    # The operators' own ops stand above this file, in ops/arithmetic.py, and are found by name.

    def __add__(self, y: Any) -> "Tensor":
        return OPS["add"](self, y)

    def __sub__(self, y: Any) -> "Tensor":
        return OPS["sub"](self, y)

    def __rsub__(self, x: Any) -> "Tensor":
        return OPS["sub"](x, self)

    def __mul__(self, y: Any) -> "Tensor":
        return OPS["mul"](self, y)

    def __truediv__(self, y: Any) -> "Tensor":
        return OPS["div"](self, y)

    def __matmul__(self, y: Any) -> "Tensor":
        return OPS["matmul"](self, y)

    def __neg__(self) -> "Tensor":
        return OPS["neg"](self)

    def __getitem__(self, index: Any) -> "Tensor":
        return OPS["getitem"](self, index=index)

    __radd__, __rmul__ = __add__, __mul__


class _Node:
    """One application of an op: its vjp, and the place of each input in the graph (None where no gradient goes)."""

    __slots__ = ("__weakref__", "dtype", "inputs", "op", "shape", "vjp")

    def __init__(self, op: str, inputs: "tuple[_Node | Tensor | None, ...]", vjp: Callable, y: Any):
        self.op, self.inputs, self.vjp = op, inputs, vjp
        self.shape, self.dtype = y.shape, y.dtype


def _inputs_first(root: "_Node | Tensor") -> "list[_Node | Tensor]":
    """Every place in the graph that root depends on and that wants a gradient, each after all of its inputs."""
    order, seen, stack = [], {id(root)}, [(root, _inputs(root))]
    while stack:  # depth first, without recursion: 5,000 ops deep must work
        place, inputs = stack[-1]
        for x in inputs:
            if x is not None and id(x) not in seen:
                seen.add(id(x))
                stack.append((x, _inputs(x)))
                break
        else:
            stack.pop()
            order.append(place)
    return order


def _inputs(place: "_Node | Tensor") -> "Iterator[_Node | Tensor | None]":
    return iter(() if isinstance(place, Tensor) else place.inputs)


def _push_back(places: "list[_Node | Tensor]", g: Any) -> None:
    """Reverse mode: from the last place to the first, hand each place's gradient on to its inputs."""
    grads = {id(places[-1]): g}
    while places:
        place = places.pop()  # which frees what the place before has kept
        g = grads.pop(id(place))
        if isinstance(place, Tensor):
            place.grad = xp.asarray(g if place.grad is None else place.grad + g)
            continue
        for x, dx in zip(place.inputs, place.vjp(g)):
            if x is None:
                continue
            new = callable(dx) or isinstance(x, _Node)
            dx = dx() if callable(dx) else dx
            _check(place.op, "a gradient", dx, x)
            if id(x) in grads:
                grads[id(x)] = grads[id(x)] + dx
            else:
                grads[id(x)] = dx if new else xp.array(dx)  # a leaf's gradient is an array of its own


class _Mode(threading.local):
    recording = True


_mode = _Mode()


def no_grad() -> AbstractContextManager[None]:
    """Within the block this thread records no graph: nothing is kept for a backward pass."""
    return _recording(False)


def enable_grad() -> AbstractContextManager[None]:
    """Within the block this thread records the graph, inside no_grad too: for a gradient that sampling needs."""
    return _recording(True)


@contextmanager
def _recording(on: bool) -> Iterator[None]:
    before, _mode.recording = _mode.recording, on
    try:
        yield
    finally:
        _mode.recording = before


def op(f: Callable) -> Callable[..., Tensor]:
    """Turn f(*arrays, **static) -> (y, vjp) into a function of Tensors.

    Positional arguments are differentiable, keyword-only arguments are static.  A positional argument may also be a
    plain array or a Python number.  A number takes the tensors' dtype; float arrays of two dtypes are a TypeError, so
    float64 cannot leak into a float32 graph.  vjp(g) returns one entry an input: an array with that input's shape and
    dtype, or a function that returns a new one, called only where the gradient is wanted.  Nothing writes to an array
    that a vjp returned, so an entry may be g itself or a view of it.  The table FAST may hold a faster form of f.
    """

    @functools.wraps(f)
    def apply(*inputs: Any, **static: Any) -> Tensor:
        arrays = [x.data if isinstance(x, Tensor) else _weak(x) for x in inputs]
        dtypes = {a.dtype for a in arrays if isinstance(a, xp.ndarray)}
        if len(dtypes) != 1:
            raise TypeError(f"{f.__name__}: arrays of one dtype are needed, got {sorted(map(str, dtypes)) or 'none'}")
        y, vjp = FAST.get(f.__name__, f)(*arrays, **{name: _weak(value) for name, value in static.items()})
        if y.dtype not in dtypes:
            raise TypeError(f"{f.__name__}: {y.dtype} came out of {sorted(map(str, dtypes))}")
        out = Tensor(y)
        if _mode.recording:
            places = tuple((x._node or x) if isinstance(x, Tensor) and x.requires_grad else None for x in inputs)
            if any(place is not None for place in places):
                out.requires_grad, out._node = True, _Node(f.__name__, places, vjp, y)
        return out

    OPS[f.__name__] = apply
    return apply


def pointwise(f: Callable) -> Callable[..., Tensor]:
    """@op for a function applied element by element: each gradient is summed back over the axes that were broadcast."""

    @functools.wraps(f)
    def undo_broadcast(*arrays: Any, **static: Any) -> tuple[Any, Callable]:
        y, vjp = f(*arrays, **static)
        shapes = [getattr(x, "shape", ()) for x in arrays]  # not the arrays: the graph would keep them
        return y, lambda g: [_in_shape(dx, shape) for dx, shape in zip(vjp(g), shapes)]

    return op(undo_broadcast)


def unbroadcast(g: Any, shape: tuple[int, ...]) -> Any:
    """Sum g over the axes along which an array of `shape` was broadcast to g's shape: the adjoint of broadcasting."""
    if g.shape == shape:
        return g
    g = g.sum(tuple(range(g.ndim - len(shape))))
    stretched = tuple(i for i, size in enumerate(shape) if size == 1 and g.shape[i] != 1)
    return g.sum(stretched, keepdims=True) if stretched else g


def _in_shape(dx: Any, shape: tuple[int, ...]) -> Any:
    """An entry of a pointwise op's vjp, summed back to an input's shape."""
    if callable(dx):
        return lambda: unbroadcast(dx(), shape)
    return dx if dx.shape == shape else lambda: unbroadcast(dx, shape)


def _weak(x: Any) -> Any:
    """A float made plain: np.float64 is one by inheritance, but NumPy would promote a float32 array to it."""
    return float(x) if isinstance(x, float) else x


def _check(where: str, what: str, g: Any, x: Any) -> None:
    if g.shape != x.shape or g.dtype != x.dtype:
        raise ValueError(f"{where}: {what} is {g.dtype} {g.shape}, its tensor is {x.dtype} {x.shape}")
