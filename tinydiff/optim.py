"""Adam, the moving average of the weights, gradient clipping, and the learning rate.

All of them work on one flat buffer: `Flat` moves every parameter and its gradient into two long arrays of which they
become views, so that an update is a few passes over one array (and on a GPU a few kernels) whatever the network.
Read next: train.py.
"""

import math
import weakref
from typing import Any

from tinydiff import kernels
from tinydiff.autograd import Tensor
from tinydiff.backend import xp

_flat_of: "weakref.WeakValueDictionary[int, Flat]" = weakref.WeakValueDictionary()  # by the id of each parameter
PIECE = 1 << 15  # numbers updated at a time: a few arrays of this length stay in a core's cache


class Flat:
    """Parameters and their gradients as views of two flat arrays, `data` and `grad`, in the order of the parameters.

    norm: on a GPU the gradient's norm as clip_grad_norm found it: while it is not finite, nothing is updated.

    Raises ValueError if there are no parameters, if they have several dtypes, or if some belong to another Flat.
    """

    def __init__(self, parameters: list[Tensor]):
        if not parameters or len({p.dtype for p in parameters}) > 1:
            raise ValueError(f"parameters must be some tensors of one dtype, got {len(parameters)} of them")
        if any(_owner(p) is not None for p in parameters):
            raise ValueError(
                "parameters: some belong to another optimizer's buffer; use the same list, or pass its Flat"
            )
        self.parameters = list(parameters)
        for p in self.parameters:
            _flat_of[id(p)] = self
        values = xp.concatenate([p.data.reshape(-1) for p in parameters])
        self.move(values, xp.zeros_like(values))
        self.norm = xp.zeros((), values.dtype)

    def move(self, data: Any, grad: Any) -> None:
        """Use these two 1-D arrays from now on, as they are: ValueError where a length does not fit."""
        views = list(zip(self.parameters, self.split(data), self.split(grad)))
        self.data, self.grad = data, grad
        self._grads = [g for _, _, g in views]
        for p, theta, g in views:
            p.data, p.grad = theta, g

    def forget(self) -> None:
        """Have the parameters wait for new gradients, wherever backward leaves them; `collect` then gathers them."""
        for p in self.parameters:
            p.grad = None

    def collect(self) -> None:
        """Gather the gradients in `grad`, 0 where there is none, and make them views of it again."""
        if kernels.available():
            kernels.gather([p.grad for p in self.parameters], [p.size for p in self.parameters], self.grad)
        else:
            found = [xp.zeros(p.size, p.dtype) if p.grad is None else p.grad.reshape(-1) for p in self.parameters]
            xp.concatenate(found, out=self.grad)
        for p, g in zip(self.parameters, self._grads):
            p.grad = g

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


def flat(parameters: "Flat | list[Tensor]") -> Flat:
    """The Flat of these parameters: itself, the one that already holds this very list, or a new one."""
    if isinstance(parameters, Flat):
        return parameters
    owner = _owner(parameters[0]) if parameters else None
    if owner is not None and list(map(id, owner.parameters)) == list(map(id, parameters)):
        return owner
    return Flat(parameters)


def _pieces(n: int) -> list[slice]:
    """Slices of a flat array whose pass stays in a core's cache."""
    return [slice(start, start + PIECE) for start in range(0, n, PIECE)]


def _owner(p: Tensor) -> Flat | None:
    return _flat_of.get(id(p))  # a Flat keeps its parameters alive: no id in here can be another tensor's


class Adam:
    """Adam (Kingma & Ba 2015, algorithm 1) with decoupled weight decay (Loshchilov & Hutter 2019).

        m <- beta1 m + (1 - beta1) g                    m_hat = m / (1 - beta1^k)
        v <- beta2 v + (1 - beta2) g^2                  v_hat = v / (1 - beta2^k)
        theta <- theta - lr (m_hat / (sqrt(v_hat) + eps) + weight_decay theta)

    parameters: a Flat, or a list of Tensors, which then become views of one.  k counts the steps from 1.
    """

    def __init__(
        self,
        parameters: Flat | list[Tensor],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ):
        self.flat = flat(parameters)
        self.lr, self.betas, self.eps, self.weight_decay = lr, betas, eps, weight_decay
        self.num_steps = 0
        self.m, self.v = xp.zeros_like(self.flat.data), xp.zeros_like(self.flat.data)

    def zero_grad(self) -> None:
        self.flat.grad[...] = 0

    def step(self, lr: float | None = None) -> None:
        """One update from the gradients as they stand, with this step's learning rate if given."""
        lr = self.lr if lr is None else lr
        self.num_steps += 1
        beta1, beta2 = self.betas
        root = math.sqrt(1 - beta2**self.num_steps)
        rate, eps = (
            lr * root / (1 - beta1**self.num_steps),
            self.eps * root,
        )  # both corrections, folded into two numbers
        if kernels.available():
            decay = 1 - lr * self.weight_decay
            flat = self.flat
            kernels.adam(flat.data, flat.grad, self.m, self.v, flat.norm, *self.betas, rate, eps, decay)
            return
        for piece in _pieces(len(self.m)):
            theta, g, m, v = self.flat.data[piece], self.flat.grad[piece], self.m[piece], self.v[piece]
            m *= beta1
            m += (1 - beta1) * g
            v *= beta2
            v += (1 - beta2) * (g * g)
            if self.weight_decay:
                theta *= 1 - lr * self.weight_decay
            theta -= rate * m / (xp.sqrt(v) + eps)


class EMA:
    """Exponential moving average of the parameters, the weights to sample with.

        average <- d average + (1 - d) theta,    d = min(decay, (1 + n) / (10 + n)) at update n = 0, 1, ...

    The warm-up of d lets a run forget its random start within its first steps, however slow the final decay.
    """

    def __init__(self, parameters: Flat | list[Tensor], decay: float = 0.999):
        if not 0 <= decay < 1:
            raise ValueError(f"decay must lie in 0 <= decay < 1, got {decay}")
        self.flat = flat(parameters)
        self.decay = decay
        self.num_updates = 0
        self.data = self.flat.data.copy()

    def update(self) -> None:
        d = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        self.num_updates += 1
        if kernels.available():
            kernels.ema(self.data, self.flat.data, self.flat.norm, 1 - d)
            return
        for piece in _pieces(len(self.data)):
            average = self.data[piece]
            average += (1 - d) * (self.flat.data[piece] - average)


def clip_grad_norm(parameters: Flat | list[Tensor], max_norm: float) -> Any:
    """Scale all gradients together so that their Euclidean norm is at most max_norm; return the norm before.

    A norm that is nan or infinite is returned as it is and nothing is scaled: the caller stops.  Of a Flat on a GPU the
    norm stays there, an array without axes: nothing waits, and should the norm be bad, Adam and EMA leave all as it is.
    """
    if isinstance(parameters, Flat) and kernels.available():
        parameters.norm = kernels.clip(parameters.grad, max_norm)
        return parameters.norm
    grads = [parameters.grad] if isinstance(parameters, Flat) else [p.grad for p in parameters if p.grad is not None]
    norm = math.sqrt(sum(float(xp.vdot(g, g)) for g in grads))
    if max_norm < norm < math.inf:
        for g in grads:
            g *= max_norm / norm
    return norm


def learning_rate(step: int, num_steps: int, *, peak: float, warmup: int) -> float:
    """The rate of 0-based `step` of a run of num_steps: linear warm-up to peak, then half a cosine down to 0.

        peak (step + 1) / warmup                                       for step < warmup
        peak (1 + cos(pi (step - warmup) / (num_steps - warmup))) / 2  after that (Loshchilov & Hutter 2017, eq. 5)

    The warm-up does not depend on num_steps.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, num_steps - warmup))))
