"""A network becomes eps_fn(x_t, t): with no label, or led towards one by classifier-free guidance.

    eps_hat = eps_u + scale (eps_c - eps_u)            Ho & Salimans 2022, eq. 6, where scale is 1 + w

scale 0 is unconditional, 1 is conditional, and more than 1 goes past the label's own mean away from the crowd's.
The samplers never hear of labels: guidance is a function around a function.

A model is called as model(x_t, t, labels) and may return an array or anything that keeps one in .data (a Tensor).  Its
.num_classes is None or the number of classes, and label num_classes means "no label".  Gradients are the caller's
affair: sample inside no_grad().
"""

import math
from collections.abc import Callable
from typing import Any

from tinydiff.backend import asarray, host_integers, xp

EpsFn = Callable[[Any, int], Any]


def unconditional(model: Any) -> EpsFn:
    """eps_fn of a model with no classes, or of a model with classes that is told none."""
    return lambda x_t, t: asarray(model(x_t, t, model.num_classes))


def classifier_free(model: Any, labels: Any, scale: float) -> EpsFn:
    """eps_fn led towards labels: 0 = unconditional, 1 = conditional (Ho & Salimans 2022, eq. 6).

        eps_hat = eps_u + scale (eps_c - eps_u)

    labels: one integer or (N,) host integers in 0..num_classes, else ValueError.  scale: any finite number.
    At scale 0 and 1 the model runs once on N images, otherwise once on 2N: one call has half the launches of two,
    and without gradients the memory of a double batch is small.
    """
    if model.num_classes is None:
        raise ValueError("classifier_free needs a model with classes, got one whose num_classes is None")
    if not math.isfinite(scale):
        raise ValueError(f"scale must be finite, got {scale}")
    no_label = model.num_classes
    labels = host_integers("labels", labels, 0, no_label)
    scale = float(scale)  # a NumPy scalar would turn float32 into float64

    def eps_fn(x_t: Any, t: int) -> Any:
        n = len(x_t)
        row_labels = host_integers("labels", labels, 0, no_label, n)
        if scale == 0:
            return unconditional(model)(x_t, t)
        if scale == 1:
            return asarray(model(x_t, t, row_labels))
        both = host_integers("labels", [no_label] * n + row_labels.tolist(), 0, no_label)
        eps = asarray(model(xp.concatenate([x_t, x_t]), t, both))
        eps_u, eps_c = eps[:n], eps[n:]
        return eps_u + scale * (eps_c - eps_u)

    return eps_fn
