"""From a network to eps_fn(x_t, t): without a label, or guided to a label, by the network itself or by a classifier.

    eps_hat = eps_u + scale (eps_c - eps_u)                                  Ho & Salimans 2022, eq. 6, scale is 1 + w
    eps_hat = eps_u - scale sqrt(1 - alpha_bar_t) grad log p(y | x_t)        Dhariwal & Nichol 2021, eq. 14

eps_c is the network's estimate with the label, eps_u its estimate without a label.  scale 0 is unconditional, 1 is
conditional.  A scale above 1 goes beyond eps_c, away from eps_u.  By Bayes' rule eps_c - eps_u = -sqrt(1 - alpha_bar_t)
grad log p(y | x_t), so the two equations are the same if the estimates are exact.  The samplers do not know labels:
guidance is a function that wraps eps_fn.

A model is called as model(x_t, t, labels) and returns an array or a Tensor.  model.num_classes is None or the number of
classes; the label num_classes means "no label".  Sample inside no_grad(), so that no graph is recorded.

Read next: ../train.py.
"""

import math
from collections.abc import Callable
from typing import Any

from tinydiff.backend import asarray, host_integers, xp
from tinydiff.diffusion.gaussian import check_alike, eps_from_x_0, per_row, x_0_from_eps
from tinydiff.diffusion.schedule import Schedule

EpsFn = Callable[[Any, int], Any]


def unconditional(model: Any) -> EpsFn:
    """eps_fn of a model without classes, or of a model with classes that is given "no label"."""
    return lambda x_t, t: asarray(model(x_t, t, model.num_classes))


def classifier_free(
    model: Any, labels: Any, scale: float, correct: Callable[[Any, int, Any, Any], Any] | None = None
) -> EpsFn:
    """eps_fn guided to labels; scale 0 is unconditional, scale 1 conditional (Ho & Salimans 2022, eq. 6).

        eps_hat = eps_u + scale (eps_c - eps_u)

    labels: one integer or (N,) host integers in 0..num_classes, else ValueError.  scale: any finite number.
    correct: None, or a function correct(x_t, t, eps_hat, eps_c) -> the eps_hat to return, such as partial(rescaled,
    schedule, phi).  It is not called at scale 1, where eps_hat is eps_c.
    The model runs once: on N images at scale 1, and at scale 0 without `correct`; otherwise on 2N.  One call on 2N
    starts half as many array operations as two calls on N, and without gradients a double batch needs little memory.
    """
    if model.num_classes is None:
        raise ValueError("classifier_free needs a model with classes, got one whose num_classes is None")
    no_label = model.num_classes
    labels = host_integers("labels", labels, 0, no_label)
    scale = _finite("scale", scale)

    def eps_fn(x_t: Any, t: int) -> Any:
        n = len(x_t)
        row_labels = host_integers("labels", labels, 0, no_label, n)
        if scale == 0 and correct is None:
            return unconditional(model)(x_t, t)
        if scale == 1:
            return asarray(model(x_t, t, row_labels))
        twice = host_integers("labels", [no_label] * n + row_labels.tolist(), 0, no_label)
        eps = asarray(model(xp.concatenate([x_t, x_t]), t, twice))
        eps_u, eps_c = eps[:n], eps[n:]
        eps_hat = eps_u + scale * (eps_c - eps_u)
        return eps_hat if correct is None else correct(x_t, t, eps_hat, eps_c)

    return eps_fn


def rescaled(schedule: Schedule, phi: float, x_t: Any, t: int, eps_hat: Any, eps_c: Any) -> Any:
    """eps_hat whose contrast moves by phi towards that of the conditional estimate (Lin et al. 2023, eq. 15-16).

        x_0_hat' = x_0_hat (phi std(x_0_c)/std(x_0_hat) + 1 - phi),   each image's std over its own pixels

    x_0_c is the x_0 that eps_c implies.  phi: 0 changes nothing, 1 gives the std of x_0_c.  x_0_hat is rescaled, not
    eps_hat.  At large t eps_hat is nearly x_t.  Scaling eps_hat by 1.01 would therefore add 1% of x_t/sqrt(alpha_bar_t)
    to x_0_hat, and this is mostly noise.  (The network of the paper predicts v, which is nearly -x_0 at large t.)
    x_t, eps_hat, eps_c: (N, ...) of one dtype.  t in 1..T.  An image without any contrast stays as it is.
    """
    phi, axes = _finite("phi", phi), tuple(range(1, x_t.ndim))
    x_0_hat, x_0_c = (x_0_from_eps(schedule, x_t, t, eps) for eps in (eps_hat, eps_c))
    std, std_c = (x_0.std(axes, keepdims=True) for x_0 in (x_0_hat, x_0_c))
    contrast = std > 1e-6  # below, there is only rounding
    ratio = xp.where(contrast, std_c / xp.where(contrast, std, 1), 1)
    return eps_from_x_0(schedule, x_t, t, x_0_hat * (1 + phi * (ratio - 1)))


def within(t_low: int, t_high: int, inside: EpsFn, outside: EpsFn) -> EpsFn:
    """eps_fn that is `inside` for t_low < t <= t_high, and `outside` at other times (Kynkaanniemi et al. 2024).

    `within` limits guidance to the times where guidance helps.  At large t guidance makes the samples less varied; at
    small t nothing is left to decide.  0 <= t_low <= t_high, else ValueError.
    """
    if not 0 <= t_low <= t_high:
        raise ValueError(f"0 <= t_low <= t_high must hold, got t_low = {t_low} and t_high = {t_high}")
    return lambda x_t, t: inside(x_t, t) if t_low < t <= t_high else outside(x_t, t)


def classifier_guided(schedule: Schedule, eps_fn: EpsFn, score_fn: EpsFn, scale: float) -> EpsFn:
    """eps_fn guided by the gradient of a classifier (Dhariwal & Nichol 2021, eq. 14).

        eps_hat = eps_fn(x_t, t) - scale sqrt(1 - alpha_bar_t) score_fn(x_t, t)

    eps_fn: with or without labels.  score_fn(x_t, t) -> grad_{x_t} log p(y | x_t), an array like x_t; the classifier
    must have been trained on noised data.  scale: any finite number; with 0, eps_fn itself is returned.
    """
    scale = _finite("scale", scale)

    def guided(x_t: Any, t: int) -> Any:
        score = score_fn(x_t, t)
        check_alike("score_fn(x_t, t)", score, "x_t", x_t)
        return eps_fn(x_t, t) - per_row(scale * schedule.one_minus_alpha_bar[t] ** 0.5, x_t) * score

    return guided if scale else eps_fn


def _finite(name: str, value: float) -> float:
    """value as a Python float: a NumPy float64 would turn float32 arrays into float64; ValueError unless finite."""
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite, got {value}")
    return float(value)
