"""From a network to eps_fn(x_t, t): without a label, or guided to a label, by the network itself or by a classifier.

    eps_hat = eps_u + scale (eps_c - eps_u)                                  Ho & Salimans 2022, eq. 6, scale is 1 + w
    eps_hat = eps_u - scale sqrt(1 - alpha_bar_t) grad log p(y | x_t)        Dhariwal & Nichol 2021, eq. 14

eps_c is the network's estimate with the label, eps_u its estimate without a label.  scale 0 is unconditional, 1 is
conditional.  A scale above 1 goes beyond eps_c, away from eps_u.  By Bayes' rule eps_c - eps_u = -sqrt(1 - alpha_bar_t)
grad log p(y | x_t), so the two equations are the same if the estimates are exact.  The samplers do not know labels:
guidance is a function that wraps eps_fn.

A model is called as model(x_t, t, labels) and returns an array or a Tensor like x_t.  model.num_classes is None or the
number of classes; the label num_classes means "no label".  Sample inside no_grad(), so that no graph is recorded.

Read next: ../train.py.
"""

import math
from collections.abc import Callable
from typing import Any

from tinydiff.backend import asarray, host_integers, require, xp
from tinydiff.diffusion.gaussian import check_alike, per_row
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
    require(model.num_classes is not None, "classifier_free needs classes: num_classes is None", model)
    no_label = model.num_classes
    labels = host_integers("labels", labels, 0, no_label)
    scale = finite("scale", scale)

    def eps_fn(x_t: Any, t: int) -> Any:
        n = len(x_t)
        row_labels = host_integers("labels", labels, 0, no_label, n)
        if scale == 0 and correct is None:
            return unconditional(model)(x_t, t)
        if scale == 1:
            return asarray(model(x_t, t, row_labels))
        twice = xp.concatenate([x_t, x_t])
        eps = asarray(model(twice, t, host_integers("labels", [no_label] * n + row_labels.tolist(), 0, no_label)))
        check_alike("model(x_t, t, labels)", eps, "x_t", twice)
        eps_u, eps_c = eps[:n], eps[n:]
        eps_hat = eps_u + scale * (eps_c - eps_u)
        return eps_hat if correct is None else correct(x_t, t, eps_hat, eps_c)

    return eps_fn


def classifier_guided(schedule: Schedule, eps_fn: EpsFn, score_fn: EpsFn, scale: float) -> EpsFn:
    """eps_fn guided by the gradient of a classifier (Dhariwal & Nichol 2021, eq. 14).

        eps_hat = eps_fn(x_t, t) - scale sqrt(1 - alpha_bar_t) score_fn(x_t, t)

    eps_fn: with or without labels.  score_fn(x_t, t) -> grad_{x_t} log p(y | x_t), an array like x_t; the classifier
    must have been trained on noised data.  scale: any finite number; with 0, eps_fn itself is returned.
    """
    scale = finite("scale", scale)

    def guided(x_t: Any, t: int) -> Any:
        score, eps_hat = score_fn(x_t, t), eps_fn(x_t, t)
        check_alike("score_fn(x_t, t)", score, "x_t", x_t)
        check_alike("eps_fn(x_t, t)", eps_hat, "x_t", x_t)
        return eps_hat - per_row(scale * schedule.one_minus_alpha_bar[t] ** 0.5, x_t) * score

    return guided if scale else eps_fn


def finite(name: str, value: float) -> float:
    """value as a Python float: a NumPy float64 would turn float32 arrays into float64; ValueError unless finite."""
    require(math.isfinite(value), f"{name} must be finite", value)
    return float(value)
