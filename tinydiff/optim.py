"""Adam, the moving average of the weights, gradient clipping and the learning rate, each with its equation.

A parameter is an object with an array .data and a gradient .grad: a Tensor, or one buffer that contains many tensors.
Adam writes to a parameter's array in place, so every other view of that array sees the update.
This is the last file of the book.  What makes the book fast stands in fast/README.md.
"""

import math
from collections.abc import Sequence
from typing import Any

from tinydiff.autograd import mark_written
from tinydiff.backend import fusable, require, xp


@fusable
def adam_update(p: Any, m: Any, v: Any, *, lr: float, betas: tuple[float, float], eps: float, k: int) -> None:
    """Adam's equations for one parameter, written to p.data, m and v."""
    beta1, beta2 = betas
    g = 0 if p.grad is None else p.grad
    m[...] = beta1 * m + (1 - beta1) * g
    v[...] = beta2 * v + (1 - beta2) * (g * g)
    m_hat, v_hat = m / (1 - beta1**k), v / (1 - beta2**k)
    p.data[...] = p.data - lr * m_hat / (xp.sqrt(v_hat) + eps)


class Adam:
    """Adam (Kingma & Ba 2015, algorithm 1).

        m <- beta1 m + (1 - beta1) g                    m_hat = m / (1 - beta1^k)
        v <- beta2 v + (1 - beta2) g^2                  v_hat = v / (1 - beta2^k)
        theta <- theta - lr m_hat / (sqrt(v_hat) + eps)

    k counts the steps from 1.  A parameter without a gradient is treated as if its gradient were 0.  A frozen
    parameter, one whose requires_grad is False, stays as it is.  Settings outside their range raise ValueError.
    """

    update = staticmethod(adam_update)  # Muon has another one

    def __init__(
        self, parameters: Sequence[Any], lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8
    ):
        require(0 <= lr < math.inf and 0 < eps < math.inf, "lr >= 0 and eps > 0 must be finite", f"{lr} and {eps}")
        require(len(betas) == 2 and all(0 <= beta < 1 for beta in betas), "betas must be two, 0 <= beta < 1", betas)
        self.parameters = list(parameters)
        require(not any(getattr(p, "_node", 0) for p in self.parameters), "Adam takes a list of leaves", parameters)
        self.lr, self.betas, self.eps, self.num_steps = lr, betas, eps, 0
        self.m, self.v = ([xp.zeros_like(p.data) for p in self.parameters] for _ in range(2))

    def zero_grad(self) -> None:
        forget_gradients(self.parameters)

    def step(self, lr: float | None = None) -> None:
        """Make one update from the present gradients, with the learning rate lr if it is given."""
        lr = self.lr if lr is None else lr
        require(0 <= lr < math.inf, "lr must be finite and not negative", lr)
        self.num_steps += 1
        mark_written([p for p in self.parameters if p.requires_grad])
        for p, m, v in zip(self.parameters, self.m, self.v):
            if p.requires_grad:
                self.update(p, m, v, lr=lr, betas=self.betas, eps=self.eps, k=self.num_steps)


class EMA:
    """Exponential moving average of the parameters.  The random batch of each step moves the weights a little at
    random.  The average over the last 1/(1 - decay) steps or so (200 at 0.995, the default of LoopConfig) is less
    noisy, so samples are drawn with it.

        average <- d average + (1 - d) theta,    d = min(decay, (1 + n) / (10 + n)) at update n = 0, 1, ...

    d starts at 0.1 and grows, so that the random start is soon forgotten, even with a decay close to 1.
    """

    def __init__(self, parameters: Sequence[Any], decay: float = 0.999):
        require(0 <= decay < 1, "decay must lie in 0 <= decay < 1", decay)
        self.parameters, self.decay, self.num_updates = list(parameters), decay, 0
        self.average = [p.data.copy() for p in self.parameters]

    def update(self) -> None:
        d = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        self.num_updates += 1
        for average, p in zip(self.average, self.parameters):
            ema_update(average, p, d)

    def copy_to(self, parameters: Sequence[Any]) -> None:
        """Write the average to these parameters: the ones that are averaged, or those of a network like theirs.

        ValueError, before anything is written, unless their shapes are those of the average, in the same order.
        """
        alike = [p.data.shape for p in parameters] == [a.shape for a in self.average]
        require(alike, f"parameters must be {len(self.average)} of the average's shapes", f"{len(parameters)} others")
        mark_written(parameters)
        for p, average in zip(parameters, self.average):
            p.data[...] = average


@fusable
def ema_update(average: Any, p: Any, d: float) -> None:
    """average <- average + (1 - d) (theta - average).  If theta equals the average, no bit of it changes."""
    average[...] = average + (1 - d) * (p.data - average)


def forget_gradients(parameters: Sequence[Any]) -> None:
    """Set the gradient of each parameter to None."""
    for p in parameters:
        p.grad = None


@fusable
def clip_grad_norm(parameters: Sequence[Any], max_norm: float) -> Any:
    """Scale all gradients together so that their Euclidean norm is at most max_norm; return the norm before scaling.

    If the norm is nan or infinite, nothing is scaled: the caller must stop.  ValueError unless max_norm > 0.
    """
    require(max_norm > 0, "max_norm must be above 0", max_norm)
    grads = [p.grad for p in parameters if p.grad is not None]
    norm = math.sqrt(sum(float(xp.vdot(g, g)) for g in grads))
    if max_norm < norm < math.inf:
        for g in grads:
            g *= max_norm / norm
    return norm


def learning_rate(step: int, num_steps: int, *, peak: float, warmup: int) -> float:
    """The learning rate of `step`, counted from 0, of num_steps: linear warm-up to peak, then half a cosine down to 0.

        peak (step + 1) / warmup                                       for step < warmup
        peak (1 + cos(pi (step - warmup) / (num_steps - warmup))) / 2  after that (Loshchilov & Hutter 2017, eq. 5)

    The warm-up does not depend on num_steps, because a run under a clock may lower num_steps at its end.
    ValueError for a negative warmup, and for a peak that is negative or not finite.
    """
    require(0 <= peak < math.inf and warmup >= 0, "peak must be finite, peak and warmup not negative", (peak, warmup))
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, num_steps - warmup))))
