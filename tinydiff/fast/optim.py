"""The optimizer on one flat buffer.  An update is a few passes over one long array; on a GPU it is a few launches.

`Flat` copies all parameters into one long array and all gradients into another.  The parameters and gradients become
views of these two arrays.  Adam, EMA and clip_grad_norm take a Flat as if it were one parameter:

    buffer = Flat(model.parameters())
    adam, average = Adam([buffer]), EMA([buffer])

Read next: workers.py.
"""

import math
import weakref
from typing import Any

from tinydiff import optim
from tinydiff.autograd import Tensor
from tinydiff.backend import xp
from tinydiff.fast import kernels

_flat_of: "weakref.WeakValueDictionary[int, Flat]" = weakref.WeakValueDictionary()  # id of a parameter -> its Flat
PIECE = 1 << 15  # numbers updated at a time: a few arrays of this length stay in a core's cache


class Flat:
    """Parameters and their gradients as views of two flat arrays, `data` and `grad`, in the order of the parameters.

    norm: on a GPU, the norm of the gradient that clip_grad_norm computed.  Adam and EMA update nothing while it is not
    finite.
    Raises ValueError if there are no parameters, if they have several dtypes, or if some belong to another Flat.
    """

    def __init__(self, parameters: list[Tensor]):
        if not parameters or len({p.dtype for p in parameters}) > 1:
            raise ValueError(f"parameters must be some tensors of one dtype, got {len(parameters)} of them")
        if any(id(p) in _flat_of for p in parameters):
            raise ValueError("parameters: some belong to another Flat: use that one")
        self.parameters = list(parameters)
        for p in self.parameters:
            _flat_of[id(p)] = self  # the Flat keeps p alive, so no other tensor can get the same id
        values = xp.concatenate([p.data.reshape(-1) for p in parameters])
        self.move(values, xp.zeros_like(values))
        self.norm = xp.zeros((), values.dtype)

    def move(self, data: Any, grad: Any) -> None:
        """Use these two 1-D arrays from now on, without a copy.  Raises ValueError if a length does not fit."""
        views = list(zip(self.parameters, self.split(data), self.split(grad)))
        self.data, self._grad = data, grad
        self._views = [g for _, _, g in views]
        for p, theta, g in views:
            p.data, p.grad = theta, g

    @property
    def grad(self) -> Any:
        """The gradients of all parameters as one array.  Gradients that are no longer views of it are gathered
        first."""
        if any(p.grad is not view for p, view in zip(self.parameters, self._views)):
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
        if kernels.available():
            kernels.gather([p.grad for p in self.parameters], [p.size for p in self.parameters], self._grad)
        else:
            gradients = [xp.zeros(p.size, p.dtype) if p.grad is None else p.grad.reshape(-1) for p in self.parameters]
            xp.concatenate(gradients, out=self._grad)
        for p, view in zip(self.parameters, self._views):
            p.grad = view

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
    root = math.sqrt(1 - beta2**k)
    rate, eps, grad = lr * root / (1 - beta1**k), eps * root, p.grad
    grad = xp.zeros_like(m) if grad is None else grad
    if kernels.available():
        kernels.adam(p.data, xp.ascontiguousarray(grad), m, v, _norm_of(p), beta1, beta2, rate, eps)
        return
    for piece in _pieces(m):
        g, m_piece, v_piece = grad[piece], m[piece], v[piece]
        m_piece *= beta1
        m_piece += (1 - beta1) * g
        v_piece *= beta2
        v_piece += (1 - beta2) * (g * g)
        p.data[piece] -= rate * m_piece / (xp.sqrt(v_piece) + eps)


def ema_update(average: Any, p: Any, d: float) -> None:
    """The faster form of optim.ema_update."""
    if kernels.available():
        kernels.ema(average, p.data, _norm_of(p), 1 - d)
        return
    for piece in _pieces(average):
        average[piece] += (1 - d) * (p.data[piece] - average[piece])


def clip_grad_norm(parameters: Any, max_norm: float) -> Any:
    """optim.clip_grad_norm on a GPU.  The norm of a Flat is an array without axes that stays on the GPU: the host does
    not wait for it.

    If the norm is nan or infinite, Adam and EMA update nothing.
    """
    if len(parameters) == 1 and isinstance(parameters[0], Flat):
        (flat,) = parameters
        flat.norm = kernels.clip(flat.grad, max_norm)
        return flat.norm
    return optim.clip_grad_norm.__wrapped__(parameters, max_norm)  # type: ignore[attr-defined]


def _norm_of(p: Any) -> Any:
    """The norm that a kernel checks before it updates p.  Only a Flat has such a norm.  For a single tensor the result
    is 0: clip_grad_norm returns the norm of tensors to the caller, who checks it."""
    return p.norm if isinstance(p, Flat) else xp.zeros((), p.dtype)


def _pieces(a: Any) -> list[Any]:
    """Cut a 1-D array into slices that stay in a core's cache.  An array with several axes, or none, is not cut."""
    return [slice(start, start + PIECE) for start in range(0, len(a), PIECE)] if a.ndim == 1 else [...]
