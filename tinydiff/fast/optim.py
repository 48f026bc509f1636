"""The optimizer on one flat buffer: an update is a few passes over one long array, on a GPU a few launches.

`Flat` moves every parameter and its gradient into two long arrays, of which they become views.  It is itself a
parameter, as Adam, EMA and clip_grad_norm take it:

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

_flat_of: "weakref.WeakValueDictionary[int, Flat]" = weakref.WeakValueDictionary()  # by the id of each parameter
PIECE = 1 << 15  # numbers updated at a time: a few arrays of this length stay in a core's cache


class Flat:
    """Parameters and their gradients as views of two flat arrays, `data` and `grad`, in the order of the parameters.

    norm: on a GPU the gradient's norm as clip_grad_norm found it; while it is not finite, nothing is updated.
    Raises ValueError if there are no parameters, if they have several dtypes, or if some belong to another Flat.
    """

    def __init__(self, parameters: list[Tensor]):
        if not parameters or len({p.dtype for p in parameters}) > 1:
            raise ValueError(f"parameters must be some tensors of one dtype, got {len(parameters)} of them")
        if any(id(p) in _flat_of for p in parameters):
            raise ValueError("parameters: some belong to another Flat: use that one")
        self.parameters = list(parameters)
        for p in self.parameters:
            _flat_of[id(p)] = self  # which keeps p alive: no id in here can be another tensor's
        values = xp.concatenate([p.data.reshape(-1) for p in parameters])
        self.move(values, xp.zeros_like(values))
        self.norm = xp.zeros((), values.dtype)

    def move(self, data: Any, grad: Any) -> None:
        """Use these two 1-D arrays from now on, as they are: ValueError where a length does not fit."""
        views = list(zip(self.parameters, self.split(data), self.split(grad)))
        self.data, self._grad = data, grad
        self._views = [g for _, _, g in views]
        for p, theta, g in views:
            p.data, p.grad = theta, g

    @property
    def grad(self) -> Any:
        """The gradients of all parameters, wherever backward left them: gathered first where one has moved."""
        if any(p.grad is not view for p, view in zip(self.parameters, self._views)):
            self.gather()
        return self._grad

    @grad.setter
    def grad(self, g: None) -> None:
        """Only None: the parameters wait for new gradients."""
        if g is not None:
            raise ValueError("g must be None: the gradient of a Flat is that of its parameters")
        optim.forget_gradients(self.parameters)

    def gather(self) -> None:
        """Gather the gradients in one array, 0 where there is none, and make them views of it again."""
        if kernels.available():
            kernels.gather([p.grad for p in self.parameters], [p.size for p in self.parameters], self._grad)
        else:
            gradients = [xp.zeros(p.size, p.dtype) if p.grad is None else p.grad.reshape(-1) for p in self.parameters]
            xp.concatenate(gradients, out=self._grad)
        for p, view in zip(self.parameters, self._views):
            p.grad = view

    def split(self, flat: Any) -> list[Any]:
        """The pieces of a flat array that belong to each parameter, as views in the parameters' shapes."""
        size = sum(p.size for p in self.parameters)
        if len(flat) != size:
            raise ValueError(f"flat buffer has {len(flat)} numbers, the parameters have {size}")
        views, start = [], 0
        for p in self.parameters:
            views.append(flat[start : start + p.size].reshape(p.shape))
            start += p.size
        return views


def adam_update(p: Any, m: Any, v: Any, *, lr: float, betas: tuple[float, float], eps: float, k: int) -> None:
    """optim.adam_update, with both corrections folded into two numbers."""
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
    """optim.ema_update."""
    if kernels.available():
        kernels.ema(average, p.data, _norm_of(p), 1 - d)
        return
    for piece in _pieces(average):
        average[piece] += (1 - d) * (p.data[piece] - average[piece])


def clip_grad_norm(parameters: Any, max_norm: float) -> Any:
    """optim.clip_grad_norm on a GPU.  The norm of a Flat stays there, an array without axes: nothing waits for it.

    Should it be nan or infinite, Adam and EMA leave everything as it is.
    """
    if len(parameters) == 1 and isinstance(parameters[0], Flat):
        (flat,) = parameters
        flat.norm = kernels.clip(flat.grad, max_norm)
        return flat.norm
    return optim.clip_grad_norm.__wrapped__(parameters, max_norm)  # type: ignore[attr-defined]


def _norm_of(p: Any) -> Any:
    """Where a kernel looks whether the gradient is finite; of a lone tensor clip_grad_norm has told the caller."""
    return p.norm if isinstance(p, Flat) else xp.zeros((), p.dtype)


def _pieces(a: Any) -> list[Any]:
    """Slices of a long array whose pass stays in a core's cache; an array of several axes is taken whole."""
    return [slice(start, start + PIECE) for start in range(0, len(a), PIECE)] if a.ndim == 1 else [...]
