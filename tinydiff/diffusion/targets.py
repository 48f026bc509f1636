"""What a network may be trained to predict from x_t, and how eps_hat follows from the prediction.

    EPS    the noise                                             Ho et al. 2020, eq. 14
    X_0    the data                                              Salimans & Ho 2022, section 4
    V      sqrt(alpha_bar_t) eps - sqrt(1 - alpha_bar_t) x_0     Salimans & Ho 2022, section 4 and appendix D
    FLOW   u = eps - x_0                                         Liu et al. 2023, eq. 1

Given x_t, each of the four determines the others.  An error of sqrt(1 - alpha_bar_t) in x_0 is an error of
sqrt(alpha_bar_t) in eps, of 1 in v, and of the sum of the two roots in u.  So squared errors in x_0, eps, v and u are
in the ratio 1 : SNR : SNR + 1 : (sqrt(SNR) + 1)^2, where SNR = alpha_bar_t/(1 - alpha_bar_t).  The choice of a target
is therefore a choice of a weight for each t, and of what is easy for the network.  min_snr_weight makes the weights of
all targets the same.

Samplers, guidance and the bound know eps_fn only: as_eps_fn makes one from a network of any target.
Read next: likelihood.py.
"""

from collections.abc import Callable
from dataclasses import dataclass
from operator import add
from typing import Any

from tinydiff.backend import host_integers
from tinydiff.diffusion.flow import eps_from_u, u_from_x_0_eps
from tinydiff.diffusion.gaussian import check_alike, eps_from_v, eps_from_x_0, v_from_x_0_eps
from tinydiff.diffusion.schedule import Schedule


@dataclass(frozen=True)
class Target:
    """A quantity that a network may predict.

    of(schedule, x_0, t, eps): the quantity itself.  to_eps(schedule, x_t, t, prediction): the eps_hat that belongs to a
    prediction.  Arrays, times and errors as in gaussian.py: X_0 has no eps_hat at t = 0.
    squared_error(signal, noise): the squared error in this quantity that goes with one of `noise` in x_0, where signal
    is alpha_bar_t and noise 1 - alpha_bar_t.
    """

    of: Callable[[Schedule, Any, Any, Any], Any]
    to_eps: Callable[[Schedule, Any, Any, Any], Any]
    squared_error: Callable[[Any, Any], Any]


def _the_last(schedule: Schedule, x: Any, t: Any, eps: Any) -> Any:
    return eps


def _the_first(schedule: Schedule, x_0: Any, t: Any, eps: Any) -> Any:
    return x_0


def _signal(signal: Any, noise: Any) -> Any:
    return signal


def _noise(signal: Any, noise: Any) -> Any:
    return noise


def _sum_of_roots(signal: Any, noise: Any) -> Any:
    return (signal**0.5 + noise**0.5) ** 2


EPS = Target(_the_last, _the_last, _signal)
X_0 = Target(_the_first, eps_from_x_0, _noise)
V = Target(v_from_x_0_eps, eps_from_v, add)
FLOW = Target(u_from_x_0_eps, eps_from_u, _sum_of_roots)
TARGETS = {"eps": EPS, "x_0": X_0, "v": V, "flow": FLOW}  # as a checkpoint names them


def as_eps_fn(target: Target, schedule: Schedule, predict: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """eps_fn(x_t, t) of a network of this target; predict(x_t, t) is the network's prediction, an array like x_t."""

    def eps_fn(x_t: Any, t: Any) -> Any:
        prediction = predict(x_t, t)
        check_alike("predict(x_t, t)", prediction, "x_t", x_t)
        return target.to_eps(schedule, x_t, t, prediction)

    return eps_fn


def min_snr_weight(target: Target, schedule: Schedule, t: Any, gamma: float) -> Any:
    """The weight of a squared error in this target that counts the error in x_0 by min(SNR, gamma) (Hang et al. 2023).

        eps: min(SNR, gamma)/SNR     v:    min(SNR, gamma)/(SNR + 1)
        x_0: min(SNR, gamma)         flow: min(SNR, gamma)/(sqrt(SNR) + 1)^2

    At small t the SNR is in the thousands; gamma limits the weight of these times.  gamma = inf counts the error in
    eps, for every target; the paper chooses 5.  t: integers in 1..T, else ValueError; ValueError too for gamma <= 0.
    Returns float64 of t's shape, on the host, finite at every t.
    """
    if not gamma > 0:
        raise ValueError(f"gamma must be above 0, got {gamma}")
    t = host_integers("t", t, 1, schedule.T)
    signal = schedule.alpha_bar[t].clip(1e-300)  # an extreme schedule underflows to 0; for eps the signal cancels
    noise = schedule.one_minus_alpha_bar[t]
    return signal.clip(max=gamma * noise) / target.squared_error(signal, noise)
