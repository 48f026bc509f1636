"""Scores for guidance: gradients with respect to x_t of what a network says, by a backward pass of our own engine.

    class_score    grad log p(label | x_t), of a classifier that reads noise        Dhariwal & Nichol 2021
    known_score    grad log p(known pixels | x_t), of the diffusion model itself    Ho et al. 2022; Song et al. 2023

Both are what diffusion.classifier_guided asks for, so that a sampler is led by either in the same way.  Networks'
parameters get no gradient, and nothing is computed for them.  Both work inside no_grad().
Read next: ../demos/guidance.py and ../demos/edit.py.
"""

from collections.abc import Callable
from typing import Any

from tinydiff import ops
from tinydiff.autograd import Tensor, enable_grad
from tinydiff.backend import asarray, xp
from tinydiff.diffusion import Schedule
from tinydiff.nn import Module
from tinydiff.nn.classifier import cross_entropy

ScoreFn = Callable[[Any, int], Any]


def class_score(model: Module, labels: Any) -> ScoreFn:
    """score_fn(x_t, t) = grad_{x_t} log p(labels | x_t).

    model: a noisy classifier.  labels: one integer or (N,).
    """
    return _score(model, lambda x_t, t: -cross_entropy(model(x_t, t), labels))


def known_score(schedule: Schedule, model: Module, x_0: Any, known: Any, labels: Any = None) -> ScoreFn:
    """score_fn(x_t, t) = grad_{x_t} log p(x_0 where known | x_t, labels), as a diffusion model itself answers.

        log p = -|known (x_0 - x_0_hat(x_t))|^2 / (2 var_t),   var_t = 1 - alpha_bar_t
        x_0_hat = (x_t - sqrt(1 - alpha_bar_t) eps_hat)/sqrt(alpha_bar_t),   eps_hat = model(x_t, t, labels)

    x_0 is taken for Gaussian around x_0_hat (Ho et al. 2022, "Video diffusion models", eq. 7), and with the variance
    of a pixel of unit variance that was seen in x_t (Song et al. 2023, "Pseudoinverse-guided diffusion models", r_t^2).
    x_0, known: as in diffusion.inpaint.  labels: as the model takes them, None for "no label".
    The network's gradient is needed, because the pixels that are not known move x_0_hat where they are: it is how what
    is known reaches them.
    """
    x_0, known = asarray(x_0), asarray(known)

    def log_p(x_t: Tensor, t: int) -> Tensor:
        signal_std, noise_std = (float(a[t]) ** 0.5 for a in (schedule.alpha_bar, schedule.one_minus_alpha_bar))
        x_0_hat = (x_t - model(x_t, t, labels) * noise_std) * (1 / signal_std)
        error = (x_0_hat - x_0) * xp.where(known, 1, 0).astype(x_0.dtype)
        return ops.sum(error * error, axis=tuple(range(1, x_0.ndim))) * (-0.5 / noise_std**2)

    return _score(model, log_p)


def _score(model: Module, log_p: Callable[[Tensor, int], Tensor]) -> ScoreFn:
    """Row by row the gradient of log_p(x_t, t) (N,): no row enters another's."""
    parameters = model.parameters()

    def score_fn(x_t: Any, t: int) -> Any:
        x = Tensor(x_t, requires_grad=True)
        for p in parameters:
            p.requires_grad = False  # nothing is then computed for them, only what leads to x_t
        try:
            with enable_grad():
                rows = log_p(x, t)
        finally:
            for p in parameters:
                p.requires_grad = True
        rows.backward(xp.ones_like(rows.data))
        return x.grad

    return score_fn
