"""Reverse-mode differentiation in one page: Tensor, @op, backward.

An op is a function on raw arrays that returns its output and its vector-Jacobian product

    y = f(x_1, ..., x_k)        vjp(g) = (g^T dy/dx_1, ..., g^T dy/dx_k)

with forward and backward side by side.  What the gradient needs stays in the closure as local values, so there is no
context object and no reference cycle.  The graph is made of nodes that hold no arrays of their own: an intermediate
that no gradient needs is freed the moment nobody holds its Tensor.  `backward` walks the graph from the output with an
explicit stack, takes it down on the way, and writes `.grad` on leaves only.  There are no second derivatives: nothing
in the training, sampling or guidance of a diffusion model needs them.

The ops behind Python's operators stand at the end of this file.  Read next: ops/pointwise.py, ops/conv.py.
"""

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from tinydiff.backend import xp

OPS: dict[str, Callable] = {}  # every op by name: the test suite fails for one that has no gradient test


class Tensor:
    """An array, and how to push a gradient back to what it was computed from.

    data: array of the current backend.  grad: None, or an array of data's shape and dtype into which backward adds.
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
        self._node: _Node | None = None  # how it was computed; None for a leaf, which is its own place in the graph

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape

    @property
    def ndim(self) -> int:
        return self.data.ndim

    @property
    def size(self) -> int:
        return self.data.size

    @property
    def dtype(self) -> Any:
        return self.data.dtype

    def __len__(self) -> int:
        return len(self.data)

    def __repr__(self) -> str:
        name = "leaf" if self._node is None else self._node.op
        return f"Tensor({name}, shape={self.shape}, dtype={self.dtype}, requires_grad={self.requires_grad})"

    def backward(self, g: Any = None) -> None:
        """Add d<g, self>/d(leaf) to the `.grad` of every leaf that requires a gradient.

        g: cotangent with self's shape and dtype; may be left out for a single number, where it is 1.
        The graph is taken down on the way, so that what only it held is freed as soon as it was used: self depends on
        nothing any more.  What other tensors depend on stays.
        Raises ValueError for a missing or ill-shaped g, RuntimeError if self does not depend on any such leaf.
        """
        if not self.requires_grad:
            raise RuntimeError("backward: no input of this tensor requires a gradient, or backward was called before")
        if g is None:
            if self.size != 1:
                raise ValueError(f"backward: g may be left out for a single number only, not for shape {self.shape}")
            g = xp.ones_like(self.data)
        g = g.data if isinstance(g, Tensor) else g
        if not isinstance(g, xp.ndarray):
            raise ValueError(f"backward: g must be an array, got {type(g).__name__}")
        _check("backward", "g", g, self.data)
        places = _inputs_first(self._node or self)
        if self._node is not None:
            self._node, self.requires_grad = None, False
        grads, ours = {id(places[-1]): g}, set()  # ours: where the gradient so far is an array that nobody else reads
        while places:
            place = places.pop()
            g, own = grads.pop(id(place)), id(place) in ours
            if isinstance(place, Tensor):
                place._add_grad(g, own)
                continue
            for i, (x, dx) in enumerate(zip(place.inputs, place.vjp(g))):
                if x is None:
                    continue
                new = callable(dx)
                dx = dx() if new else dx
                new = new and isinstance(dx, xp.ndarray)  # without axes it may be a number, which nothing is written to
                _check(place.op, f"gradient {i}", dx, x)
                if id(x) in ours:
                    grads[id(x)] += dx
                elif id(x) in grads:
                    grads[id(x)] = xp.add(grads[id(x)], dx, out=dx if new else None)
                    ours.add(id(x))
                else:
                    grads[id(x)] = dx
                    if new:
                        ours.add(id(x))

    def _add_grad(self, g: Any, own: bool) -> None:
        if self.grad is None:  # a copy where g may be shared with another input; an array, even without axes
            self.grad = g if own and isinstance(g, xp.ndarray) else xp.array(g)
        else:
            self.grad += g  # in place: .grad may be a view of a flat buffer

    def __add__(self, y: Any) -> "Tensor":
        return add(self, y)

    def __sub__(self, y: Any) -> "Tensor":
        return sub(self, y)

    def __mul__(self, y: Any) -> "Tensor":
        return mul(self, y)

    def __truediv__(self, y: Any) -> "Tensor":
        return div(self, y)

    def __matmul__(self, y: Any) -> "Tensor":
        return matmul(self, y)

    def __rsub__(self, x: Any) -> "Tensor":
        return sub(x, self)

    def __rtruediv__(self, x: Any) -> "Tensor":
        return div(x, self)

    def __rmatmul__(self, x: Any) -> "Tensor":
        return matmul(x, self)

    def __neg__(self) -> "Tensor":
        return neg(self)

    def __pow__(self, exponent: float) -> "Tensor":
        return power(self, exponent=exponent)

    def __getitem__(self, index: Any) -> "Tensor":
        return getitem(self, index=index)

    __radd__ = __add__
    __rmul__ = __mul__


class _Node:
    """One application of an op: its inputs' places in the graph (None where no gradient goes), and its vjp."""

    __slots__ = ("__weakref__", "dtype", "inputs", "op", "shape", "vjp")

    def __init__(self, op: str, inputs: "tuple[_Node | Tensor | None, ...]", vjp: Callable, y: Any):
        self.op, self.inputs, self.vjp = op, inputs, vjp
        self.shape, self.dtype = y.shape, y.dtype


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

    Positional arguments are differentiable, keyword-only ones are static.  A positional argument may also be a plain
    array or a Python number, which takes the tensors' dtype; float arrays of two dtypes are a TypeError, so float64
    cannot leak into a float32 graph.  vjp(g) returns one entry an input: an array with that input's shape and dtype, or
    a function of no arguments that returns a new one, called only where the gradient is wanted.  To what such a
    function returned, backward adds in place; an array may be g itself, or a view of it.
    """

    @functools.wraps(f)
    def apply(*inputs: Any, **static: Any) -> Tensor:
        arrays = [_raw(x) for x in inputs]
        dtypes = {a.dtype for a in arrays if isinstance(a, xp.ndarray)}
        if not dtypes:
            raise TypeError(f"{f.__name__}: needs a Tensor or an array among its inputs")
        if len(dtypes) > 1:
            raise TypeError(f"{f.__name__}: inputs of different dtypes {sorted(map(str, dtypes))}; cast one of them")
        y, vjp = f(*arrays, **{name: _weak(value) for name, value in static.items()})
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
    """@op for a function applied element by element: each gradient is summed back over the axes that were broadcast.

    The vjp's entries have the result's shape.
    """

    @functools.wraps(f)
    def undo_broadcast(*arrays: Any, **static: Any) -> tuple[Any, Callable]:
        y, vjp = f(*arrays, **static)
        shapes = [x.shape if isinstance(x, xp.ndarray) else None for x in arrays]  # not the arrays: they would stay

        def vjp_to_shape(g: Any) -> list:
            return [None if shape is None else _in_shape(d, shape) for shape, d in zip(shapes, vjp(g))]

        return y, vjp_to_shape

    return op(undo_broadcast)


def unbroadcast(g: Any, shape: tuple[int, ...]) -> Any:
    """Sum g over the axes along which an array of `shape` was broadcast to g's shape: the adjoint of broadcasting."""
    if g.shape == shape:
        return g
    g = g.sum(tuple(range(g.ndim - len(shape))))
    stretched = tuple(i for i, size in enumerate(shape) if size == 1 and g.shape[i] != 1)
    return g.sum(stretched, keepdims=True) if stretched else g


def _in_shape(d: Any, shape: tuple[int, ...]) -> Any:
    """A pointwise op's gradient, an array or a function that returns a new one, summed back to an input's shape."""
    if callable(d):
        return lambda: unbroadcast(d(), shape)
    return d if d.shape == shape else lambda: unbroadcast(d, shape)


def _raw(x: Any) -> Any:
    return x.data if isinstance(x, Tensor) else _weak(x)


def _weak(x: Any) -> Any:
    """A float made plain: np.float64 is one by inheritance, but NumPy would promote a float32 array to it."""
    return float(x) if isinstance(x, float) else x


def _check(where: str, what: str, g: Any, x: Any) -> None:
    if g.shape != x.shape or g.dtype != x.dtype:
        raise ValueError(f"{where}: {what} is {g.dtype} {g.shape}, its tensor is {x.dtype} {x.shape}")


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


# The ops behind the operators.


@pointwise
def add(x, y):
    return x + y, lambda g: (g, g)


@pointwise
def sub(x, y):
    return x - y, lambda g: (g, lambda: -g)


@pointwise
def mul(x, y):
    return x * y, lambda g: (lambda: g * y, lambda: g * x)


@pointwise
def div(x, y):
    z = x / y
    return z, lambda g: (lambda: g / y, lambda: -g * z / y)


@pointwise
def neg(x):
    return -x, lambda g: (-g,)


@pointwise
def power(x, *, exponent):
    """x ** exponent for a fixed number."""
    if not isinstance(exponent, int | float):
        raise TypeError(f"exponent must be a Python number, got {type(exponent).__name__}")
    if exponent == 0:  # the general rule would compute 0 * x**-1, which is nan at x = 0
        return xp.ones_like(x), lambda g: (xp.zeros_like(g),)
    return x**exponent, lambda g: (g * (exponent * x ** (exponent - 1)),)


@op
def matmul(x, y):
    """Matrix products of stacks: x (..., M, K) @ y (..., K, N) -> (..., M, N), leading axes broadcast."""
    if x.ndim < 2 or y.ndim < 2:
        raise ValueError(f"matmul: x and y need two axes or more, got shapes {x.shape} and {y.shape}")

    def vjp(g):
        return (
            lambda: unbroadcast(xp.matmul(g, y.swapaxes(-1, -2)), x.shape),
            lambda: unbroadcast(xp.matmul(x.swapaxes(-1, -2), g), y.shape),
        )

    return xp.matmul(x, y), vjp


@op
def getitem(x, *, index):
    """x[index] for integers, slices, None and ...: a view, so no element is picked twice (`take` selects by array)."""
    for part in index if isinstance(index, tuple) else (index,):
        if not (part is None or part is Ellipsis or isinstance(part, int | slice)):
            raise TypeError(f"getitem: index may hold integers, slices, None and ..., got {type(part).__name__}")

    shape, y = x.shape, x[index]

    def vjp(g):
        dx = xp.zeros(shape, g.dtype)
        dx[index] = g
        return (dx,)

    return y, vjp
