"""Reverse-mode differentiation: Tensor, @op, backward.

An op is a function on raw arrays that returns its output and its vector-Jacobian product

    y = f(x_1, ..., x_k)        vjp(g) = (g^T dy/dx_1, ..., g^T dy/dx_k)

with forward and gradient side by side.  The vjp is a closure that keeps the arrays which the gradient needs.  A node
keeps no other array, so an array that no gradient needs is freed as soon as its Tensor is gone.  A place in
the graph is a node, that is, one use of an op, or a leaf Tensor.  `backward` walks the graph from the output to the
leaves, frees it on the way, and writes `.grad` of leaves only.  There are no second derivatives:
training, sampling and guidance of a diffusion model need none.

Read next: ops/arithmetic.py.
"""

import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from operator import attrgetter
from typing import Any
from weakref import ref

from tinydiff.backend import FAST, NoDefaults, fusable, require, xp

OPS: dict[str, Callable] = {}  # every op by name: the test suite fails for one that has no gradient test
_numbers = count(1)  # of nodes and of writes, in the order in which they are made
_last_write = [0]  # the number of the last write: younger nodes need no check


class Tensor(NoDefaults):
    """An array, and the place in the graph at which it was computed.

    data: array of the current backend.  grad: None, or an array of data's shape and dtype: the gradient so far.
    requires_grad: True for a leaf whose gradient is wanted (float data only, else TypeError).
    is_parameter: True for a Tensor that was made with requires_grad=True.  A parameter that is frozen stays one.
    written: when the package last wrote to data in place, in the numbers of nodes; see `mark_written`.
    """

    __slots__ = ("__weakref__", "_node", "data", "grad", "is_parameter", "requires_grad", "written")

    def __init__(self, data: Any, requires_grad: bool = False):
        self.data = data if isinstance(data, xp.ndarray) else xp.asarray(data)
        if requires_grad and self.data.dtype.kind != "f":
            raise TypeError(f"only a float tensor can require a gradient, got dtype {self.data.dtype}")
        self.requires_grad = self.is_parameter = requires_grad
        self.grad: Any = None
        self.written = 0
        self._node: _Node | None = None  # None for a leaf, which is its own place in the graph

    shape, ndim, size, dtype = (property(attrgetter(f"data.{name}")) for name in ("shape", "ndim", "size", "dtype"))
    item = property(attrgetter("data.item"))  # x.item(): the value of a single number, without its graph

    def __len__(self) -> int:
        return len(self.data)

    def __repr__(self) -> str:
        name = "leaf" if self._node is None else self._node.op
        return f"Tensor({name}, shape={self.shape}, dtype={self.dtype}, requires_grad={self.requires_grad})"

    def backward(self, g: Any = None) -> None:
        """Add the gradient of sum(g * self) to the `.grad` of every leaf that requires a gradient.

        g: an array of self's shape and dtype; a single number may leave it out, then g = 1.
        Afterwards self has no graph; other tensors keep theirs.
        Raises ValueError for a missing g or one of another shape, RuntimeError if no leaf requires a gradient, or if a
        tensor of the graph was written to after its node was made: the values that its gradient needs are gone.
        """
        if not self.requires_grad:
            raise RuntimeError("backward: no input of this tensor requires a gradient, or backward was called before")
        if g is None and self.size != 1:
            raise ValueError(f"backward: g may be left out for a single number only, not for shape {self.shape}")
        g = xp.ones_like(self.data) if g is None else g.data if isinstance(g, Tensor) else g
        require(isinstance(g, xp.ndarray), "backward: g must be an array", type(g).__name__)
        _check("backward", "g", g, self.data)
        places, is_leaf = _inputs_first(self._node or self), self._node is None
        _refuse_written([place for place in places if isinstance(place, _Node) and place.number < _last_write[0]])
        self._node, self.requires_grad = None, is_leaf
        _push_back(places, xp.array(g) if is_leaf else g)  # a leaf must not share memory with g

    # These ops are defined in ops/arithmetic.py, which imports this file; so they are looked up by name.

    def __getitem__(self, index: Any) -> "Tensor":
        return OPS["getitem"](self, index=index)

    __add__, __sub__, __mul__, __truediv__, __matmul__, __neg__ = (
        lambda *inputs, name=name: OPS[name](*inputs) for name in ("add", "sub", "mul", "div", "matmul", "neg")
    )
    __radd__, __rmul__ = __add__, __mul__
    __rsub__, __rtruediv__ = (lambda x, y, name=name: OPS[name](y, x) for name in ("sub", "div"))

    def __iter__(self) -> Iterator["Tensor"]:
        return (self[i] for i in range(len(self)))


class _Node:
    """One application of an op: its vjp, and the place of each input in the graph (None where no gradient goes).

    number: larger than the numbers of its inputs, which are older.  constants: weak references to the input tensors
    where no gradient goes.
    """

    __slots__ = ("__weakref__", "constants", "dtype", "inputs", "number", "op", "shape", "vjp")

    def __init__(self, op: str, inputs: "list[_Node | Tensor | None]", vjp: Callable, y: Any, constants: list):
        self.op, self.inputs, self.vjp, self.number, self.constants = op, inputs, vjp, next(_numbers), constants
        self.shape, self.dtype = y.shape, y.dtype

    def __reduce__(self) -> Any:
        raise TypeError(f"a Tensor with a graph, here of {self.op}, cannot be copied or pickled: copy its array")


def _inputs_first(root: "_Node | Tensor") -> "list[_Node | Tensor]":
    """All places that want a gradient and from which root was computed, and root; each place comes after its inputs."""
    places, unvisited = {id(root): root}, [root]
    while unvisited:
        place = unvisited.pop()
        for x in () if isinstance(place, Tensor) else place.inputs:
            if x is not None and id(x) not in places:
                places[id(x)] = x
                unvisited.append(x)
    return sorted(places.values(), key=lambda place: 0 if isinstance(place, Tensor) else place.number)


def mark_written(tensors: Sequence[Any]) -> None:
    """Note that the arrays of these tensors were written to in place: `backward` refuses nodes that are older."""
    for x in tensors:
        x.written = _last_write[0] = next(_numbers)


def _refuse_written(nodes: list[Any]) -> None:
    """RuntimeError if an input of a node was written to after the node was made."""
    for node in nodes:
        inputs = (*node.inputs, *(constant() for constant in node.constants))
        if any(isinstance(x, Tensor) and x.written > node.number for x in inputs):
            raise RuntimeError(f"backward: an update has changed an input of {node.op}: call backward before it")


def _push_back(places: "list[_Node | Tensor]", g: Any) -> None:
    """Reverse mode: from the last place to the first, hand the gradient of each place on to its inputs."""
    grads = {id(places[-1]): g}
    while places:
        place = places.pop()  # this assignment frees the previous place and the arrays of its vjp
        g = grads.pop(id(place))
        if isinstance(place, Tensor):
            place.grad = xp.asarray(g if place.grad is None else place.grad + g)
        else:
            _hand_on(place, g, grads)


def _hand_on(node: _Node, g: Any, grads: dict[int, Any]) -> None:
    """Add the gradients of a node's inputs to grads, the sums so far by the id of each place."""
    for x, dx in zip(node.inputs, node.vjp(g)):
        if x is not None:
            new = callable(dx)
            dx = dx() if new else dx
            _check(node.op, "a gradient", dx, x)
            if id(x) in grads:
                dx = sum_of(grads[id(x)], dx, new)
            elif isinstance(x, Tensor) and not new:
                dx = xp.array(dx)  # a leaf must not share memory with g
            grads[id(x)] = dx


@fusable
def sum_of(total: Any, dx: Any, new: bool) -> Any:
    """total + dx.  new: nothing else refers to dx, so a faster form may write the sum to it."""
    return total + dx


_mode = threading.local()  # recording: False within no_grad


@contextmanager
def no_grad(recording: bool = False) -> Iterator[None]:
    """Within the block this thread records no graph: nothing is kept for a backward pass."""
    before, _mode.recording = getattr(_mode, "recording", True), recording
    try:
        yield
    finally:
        _mode.recording = before


# Within the block this thread records the graph, also inside no_grad: guidance by a classifier needs a gradient.
enable_grad = functools.partial(no_grad, recording=True)


def op(f: Callable) -> Callable[..., Tensor]:
    """Turn f(*arrays, **static) -> (y, vjp) into a function of Tensors.

    Positional arguments are differentiable, keyword-only arguments are static.  A positional argument may also be a
    plain array or a Python number.  A number takes the tensors' dtype.  Arrays of two dtypes are a TypeError, so
    float64 cannot leak into a float32 graph.  vjp(g) returns one entry for each input: an array of that input's shape
    and dtype, or a function that is called only if the gradient is wanted.  An entry that is an array may be g or a
    view of g, because nothing writes to it.  The array that a function returns must be new: the engine may write to it.
    The table FAST may contain a faster form of f, under f's name.
    """

    @functools.wraps(f)
    def apply(*inputs: Any, **static: Any) -> Tensor:
        arrays = [x.data if isinstance(x, Tensor) else _weak(x) for x in inputs]
        dtypes = {a.dtype for a in arrays if isinstance(a, xp.ndarray)}
        if len(dtypes) != 1:
            raise TypeError(f"{f.__name__}: arrays of one dtype are needed, got {sorted(map(str, dtypes)) or 'none'}")
        y, vjp = FAST.get(f.__name__, f)(*arrays, **{name: _weak(value) for name, value in static.items()})
        if y.dtype not in dtypes:
            raise TypeError(f"{f.__name__}: the result is {y.dtype}, the inputs are {sorted(map(str, dtypes))}")
        out = Tensor(y)
        if getattr(_mode, "recording", True) and True in [isinstance(x, Tensor) and x.requires_grad for x in inputs]:
            places = [(x._node or x) if isinstance(x, Tensor) and x.requires_grad else None for x in inputs]
            constants = [ref(x) for x in inputs if isinstance(x, Tensor) and not x.requires_grad]
            out.requires_grad, out._node = True, _Node(f.__name__, places, vjp, y, constants)
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
    """Sum one entry of a pointwise op's vjp back to the shape of its input."""
    if callable(dx):
        return lambda: unbroadcast(dx(), shape)
    return dx if dx.shape == shape else lambda: unbroadcast(dx, shape)


def _weak(x: Any) -> Any:
    """Turn np.float64, a subclass of float, into a plain float, which does not change the dtype of an array."""
    return float(x) if isinstance(x, float) else x


def _check(where: str, what: str, g: Any, x: Any) -> None:
    if g.shape != x.shape or g.dtype != x.dtype:
        raise ValueError(f"{where}: {what} is {g.dtype} {g.shape}, its tensor is {x.dtype} {x.shape}")
