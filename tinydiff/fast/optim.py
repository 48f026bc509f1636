"""The optimizer on one flat buffer.  An update is a few passes over one long array; on a GPU it is a few launches.

`Flat` copies all parameters into one long array and all gradients into another.  The parameters and gradients become
views of these two arrays.  Adam, EMA and clip_grad_norm take a Flat as if it were one parameter:

    buffer = Flat(model.parameters())
    adam, average = Adam([buffer]), EMA([buffer])

Read next: workers.py.
"""

import math
import weakref
from operator import attrgetter, is_
from typing import Any

from tinydiff import muon, optim
from tinydiff.autograd import Tensor, mark_written
from tinydiff.backend import asarray, require, xp
from tinydiff.fast import kernels
from tinydiff.fast.shares import layout

_flat_of: "weakref.WeakValueDictionary[int, Flat]" = weakref.WeakValueDictionary()  # id of a parameter -> its Flat
PIECE = 1 << 15  # numbers updated at a time: a few arrays of this length stay in a core's cache


class Flat:
    """Parameters and their gradients as views of two flat arrays, `data` and `grad`, in the order of the parameters.

    norm: on a GPU, the norm of the gradient that clip_grad_norm computed.  Adam and EMA update nothing while it is not
    finite.
    A gradient may be another array; `grad` gathers it.  A parameter's data may not be: `data` raises RuntimeError for a
    parameter whose data was replaced.  A copy of a Flat is a Flat of copies of its parameters.
    Raises ValueError if there are no parameters, if they have several dtypes, or if some belong to another Flat.
    """

    recorder: Any = None  # while steps are recorded: the RecordedStep that launches the update, see graph.py
    shared: Any = None  # where several workers share this buffer: their function that orthogonalises matrices
    requires_grad = True  # as a parameter of Adam; adam_update leaves frozen tensors alone
    _data: Any
    _grad: Any

    def __init__(self, parameters: list[Tensor]):
        if not parameters or len({p.dtype for p in parameters}) > 1:
            raise ValueError(f"parameters must be some tensors of one dtype, got {len(parameters)} of them")
        if any(id(p) in _flat_of for p in parameters):
            raise ValueError("parameters: some belong to another Flat: use that one")
        self.parameters = list(parameters)
        for p in self.parameters:
            _flat_of[id(p)] = self  # the Flat keeps p alive, so no other tensor can get the same id
        values = xp.concatenate([p.data.reshape(-1) for p in parameters])
        gradients = [p.grad for p in parameters]
        self.move(values, xp.zeros_like(values))
        for p, g in zip(self.parameters, gradients):
            p.grad = p.grad if g is None else g
        self.norm = xp.zeros((), values.dtype)

    def __reduce__(self) -> Any:
        return Flat, (self.parameters,), {"norm": self.norm}

    def move(self, data: Any = None, grad: Any = None) -> None:
        """Use these two 1-D arrays from now on, without a copy.  None: use a copy of the present one.

        Raises ValueError if a length does not fit.
        """
        data, grad = self._data.copy() if data is None else data, self._grad.copy() if grad is None else grad
        self._thetas, self._views = self.split(data), self.split(grad)
        self._data, self._grad = data, grad
        for p, theta, g in zip(self.parameters, self._thetas, self._views):
            p.data, p.grad = theta, g

    @property
    def data(self) -> Any:
        """The parameters as one array.  Raises RuntimeError if a parameter's data is no longer a view of it."""
        if not all(map(is_, map(attrgetter("data"), self.parameters), self._thetas)):
            raise RuntimeError("a parameter of a Flat has another array now: write p.data[...] = a, not p.data = a")
        return self._data

    @data.setter
    def data(self, a: Any) -> None:
        """After flat.data += a: note that the parameters were written to.  a must be the array itself."""
        if a is not self._data:
            raise ValueError("write flat.data[...] = a, not flat.data = a: the parameters would keep another array")
        mark_written(self.parameters)

    def _write(self, number: int) -> None:
        for p in self.parameters:
            p.written = number if p.requires_grad else p.written

    written = property(fset=_write, doc="Set by Adam: `written` of each parameter that is not frozen.")

    @property
    def grad(self) -> Any:
        """The gradients of all parameters as one array.  Gradients that are no longer views of it are gathered
        first."""
        if not all(map(is_, map(attrgetter("grad"), self.parameters), self._views)):
            self.gather()
        return self._grad

    @grad.setter
    def grad(self, g: None) -> None:
        """Set the gradients of all parameters to None.  g must be None."""
        if g is not None:
            raise ValueError("g must be None: the gradient of a Flat is that of its parameters")
        optim.forget_gradients(self.parameters)

    def gather(self) -> None:
        """Copy the gradients into the flat array and make them views of it again.  A missing gradient becomes 0."""
        assert self.data is self._data  # which raises first for a parameter with another array, of another size maybe
        if kernels.available():
            gradients = [p.grad for p in self.parameters]
            shares = [(1, 0) if g is None else layout(g) for g in gradients]
            kernels.gather(gradients, [p.size for p in self.parameters], self._grad, shares)
        else:
            gradients = [xp.zeros(p.size, p.dtype) if p.grad is None else p.grad.reshape(-1) for p in self.parameters]
            xp.concatenate(gradients, out=self._grad)
        for p, view in zip(self.parameters, self._views):
            p.grad = view

    def kept(self, *flats: Any) -> list[tuple[Any, Any]]:
        """(view, copy) of each part of these flat arrays that belongs to a frozen parameter."""
        if all(map(attrgetter("requires_grad"), self.parameters)):
            return []
        views = [view for flat in flats for view, p in zip(self.split(flat), self.parameters) if not p.requires_grad]
        return [(view, view.copy()) for view in views]

    def split(self, flat: Any) -> list[Any]:
        """Cut a flat array into one piece for each parameter.  Each piece is a view with the shape of its parameter."""
        size = sum(p.size for p in self.parameters)
        if len(flat) != size:
            raise ValueError(f"flat buffer has {len(flat)} numbers, the parameters have {size}")
        views, start = [], 0
        for p in self.parameters:
            views.append(flat[start : start + p.size].reshape(p.shape))
            start += p.size
        return views


def adam_update(p: Any, m: Any, v: Any, *, lr: float, betas: tuple[float, float], eps: float, k: int) -> None:
    """The faster form of optim.adam_update.  The two bias corrections become part of the numbers rate and eps."""
    beta1, beta2 = betas
    rate, eps = _corrected(lr, betas, eps, k)
    if kernels.available():
        _update_on_a_gpu(adam_on_a_gpu, p, m, v, betas, [rate, eps])
    else:
        grad, theta = xp.zeros_like(m) if p.grad is None else p.grad, p.data
        kept = p.kept(theta, m, v) if isinstance(p, Flat) else []
        for piece in _pieces(m):
            g, m_piece, v_piece = grad[piece], m[piece], v[piece]
            m_piece *= beta1
            m_piece += (1 - beta1) * g
            v_piece *= beta2
            v_piece += (1 - beta2) * (g * g)
            theta[piece] -= rate * m_piece / (xp.sqrt(v_piece) + eps)
        for view, values in kept:
            view[...] = values


def muon_update(p: Any, m: Any, v: Any, *, lr: float, betas: tuple[float, float], eps: float, k: int) -> None:
    """muon.muon_update on a GPU: the launch of Adam, and one for all matrices."""
    _update_on_a_gpu(muon_on_a_gpu, p, m, v, betas, [*_corrected(lr, betas, eps, k), lr])


def orthogonalize(p: Any, ns: list[Any]) -> list[Any]:
    """The faster form of muon.orthogonalize: workers that share the parameters orthogonalise a part of the matrices
    each.

    Each worker multiplies on one thread.  In this process BLAS has a thread for each core, and they keep spinning for
    a while after a product, beside workers that need the cores: a step of two workers took 11% longer.
    """
    shared = getattr(p, "shared", None)
    return list(map(muon.orthogonalized, ns)) if shared is None else shared(ns)


def adam_on_a_gpu(p: Any, m: Any, v: Any, betas: tuple[float, float], numbers: Any) -> None:
    """adam_update in one launch.  numbers: rate and eps as a device array (2,)."""
    kept = p.kept(p.data, m, v) if isinstance(p, Flat) else []
    kernels.adam(p.data, _gradient_of(p), m, v, _norm_of(p), numbers, *betas)
    for view, values in kept:
        view[...] = values


def muon_on_a_gpu(p: Any, m: Any, v: Any, betas: tuple[float, float], numbers: Any) -> None:
    """muon_update in two launches.  numbers: rate and eps of Adam and the learning rate, as a device array (3,).

    Adam's launch also moves the matrices, and Muon's launch writes them anew from what they were before.
    """
    matrices = _matrices_of(p)
    before = p.data.copy() if matrices else p.data
    adam_on_a_gpu(p, m, v, betas, numbers[:2])
    if matrices:
        settings = betas[0], muon.A, muon.B, muon.C, muon.ROUNDS
        kernels.muon(p.data, before, _gradient_of(p), m, _norm_of(p), numbers[2:], matrices, *settings)


def ema_update(average: Any, p: Any, d: float) -> None:
    """The faster form of optim.ema_update."""
    theta = p.data
    if isinstance(p, Flat) and p.recorder is not None:
        p.recorder.average(average, 1 - d)
        return
    if kernels.available():
        kernels.ema(average, theta, _norm_of(p), asarray([1 - d], average.dtype))
        return
    for piece in _pieces(average):
        average[piece] += (1 - d) * (theta[piece] - average[piece])


def clip_grad_norm(parameters: Any, max_norm: float) -> Any:
    """optim.clip_grad_norm on a GPU.  The norm of a Flat is an array without axes that stays on the GPU: the host does
    not wait for it.

    If the norm is nan or infinite, Adam and EMA update nothing.
    """
    if len(parameters) == 1 and isinstance(parameters[0], Flat):
        (flat,) = parameters
        require(max_norm > 0, "max_norm must be above 0", max_norm)
        if flat.recorder is not None:
            return flat.recorder.clip(max_norm)
        flat.norm = kernels.clip(flat.grad, max_norm)
        return flat.norm
    return optim.clip_grad_norm.__wrapped__(parameters, max_norm)  # type: ignore[attr-defined]


def _update_on_a_gpu(orders: Any, p: Any, m: Any, v: Any, betas: tuple[float, float], numbers: list[float]) -> None:
    """Call orders(p, m, v, betas, numbers), with the numbers on the device; while steps are recorded, note it."""
    if isinstance(p, Flat) and p.recorder is not None:
        p.recorder.update(orders, m, v, betas, numbers)
    else:
        orders(p, m, v, betas, asarray(numbers, m.dtype))


def _corrected(lr: float, betas: tuple[float, float], eps: float, k: int) -> tuple[float, float]:
    """Adam's rate and eps, with both bias corrections: theta <- theta - rate m / (sqrt(v) + eps)."""
    root = math.sqrt(1 - betas[1] ** k)
    return lr * root / (1 - betas[0] ** k), eps * root


def _gradient_of(p: Any) -> Any:
    """The gradient as a contiguous array; zeros if there is none."""
    return xp.zeros_like(p.data) if p.grad is None else xp.ascontiguousarray(p.grad)


def _matrices_of(p: Any) -> list[tuple[int, int, int]]:
    """(start in p.data, rows, columns) of each matrix that muon.matrices_of finds."""
    first, found = kernels.address(p.data), [theta for theta, _, _ in muon.matrices_of(p, p.data)]
    return [((kernels.address(theta) - first) // theta.itemsize, *theta.shape) for theta in found]


def _norm_of(p: Any) -> Any:
    """The norm that a kernel checks before it updates p.  Only a Flat has such a norm.  For a single tensor the result
    is 0: clip_grad_norm returns the norm of tensors to the caller, who checks it."""
    return p.norm if isinstance(p, Flat) else xp.zeros((), p.dtype)


def _pieces(a: Any) -> list[Any]:
    """Cut a 1-D array into slices that stay in a core's cache.  An array with several axes, or none, is not cut."""
    return [slice(start, start + PIECE) for start in range(0, len(a), PIECE)] if a.ndim == 1 else [...]
