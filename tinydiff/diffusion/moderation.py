"""Guidance in moderation: three ways to have its labels without its flat, similar images.

    guided      away from a weaker network, which knows the label too       Karras et al. 2024 (autoguidance)
    rescaled    the contrast of the conditional estimate                    Lin et al. 2023, eq. 15-16
    within      guidance at some noise levels only                          Kynkaanniemi et al. 2024

All work on the functions of guidance.py.  Read next: edm.py.
"""

from typing import Any

from tinydiff.backend import require, xp
from tinydiff.diffusion.gaussian import check_alike, eps_from_x_0, x_0_from_eps
from tinydiff.diffusion.guidance import EpsFn, finite
from tinydiff.diffusion.schedule import Schedule


def guided(eps_fn: EpsFn, weak_fn: EpsFn, w: float) -> EpsFn:
    """eps_fn led away from the errors of a weaker estimate of the same noise (Karras et al. 2024, eq. 3).

        eps_hat = eps_weak + w (eps - eps_weak)

    Autoguidance: weak_fn is the same network early in its training, and both know the label.  Where the early network
    errs, the later one errs a little in the same direction, so the way from one to the other goes on to the data.
    Classifier-free guidance leads away from the pictures of other classes instead, and so towards fewer pictures.
    The two combine: eps_fn may be classifier_free(model, labels, scale).
    w: any finite number.  With 1 the result is eps_fn itself, with 0 weak_fn itself: the other one is not called.
    """
    w = finite("w", w)

    def eps_hat_fn(x_t: Any, t: int) -> Any:
        eps, eps_weak = eps_fn(x_t, t), weak_fn(x_t, t)
        check_alike("eps_fn(x_t, t)", eps, "x_t", x_t)
        check_alike("weak_fn(x_t, t)", eps_weak, "x_t", x_t)
        return eps_weak + w * (eps - eps_weak)

    return {0.0: weak_fn, 1.0: eps_fn}.get(w, eps_hat_fn)


def rescaled(schedule: Schedule, phi: float, x_t: Any, t: int, eps_hat: Any, eps_c: Any) -> Any:
    """eps_hat whose contrast moves by phi towards that of the conditional estimate (Lin et al. 2023, eq. 15-16).

        x_0_hat' = x_0_hat (phi std(x_0_c)/std(x_0_hat) + 1 - phi),   each image's std over its own pixels

    x_0_c is the x_0 that eps_c implies.  phi: 0 changes nothing, 1 gives the std of x_0_c.  x_0_hat is rescaled, not
    eps_hat.  At large t eps_hat is nearly x_t.  Scaling eps_hat by 1.01 would therefore add 1% of x_t/sqrt(alpha_bar_t)
    to x_0_hat, and this is mostly noise.  (The network of the paper predicts v, which is nearly -x_0 at large t.)
    x_t, eps_hat, eps_c: (N, ...) of one dtype.  t in 1..T.  An image without any contrast stays as it is.
    """
    phi, axes = finite("phi", phi), tuple(range(1, x_t.ndim))
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
    require(0 <= t_low <= t_high, "0 <= t_low <= t_high must hold", f"t_low = {t_low} and t_high = {t_high}")
    return lambda x_t, t: inside(x_t, t) if t_low < t <= t_high else outside(x_t, t)
