"""EDM (Karras et al. 2022): the same process under other names, a network of variance 1, and other times.

    sigma = sqrt((1 - alpha_bar_t)/alpha_bar_t)       the noise level, from 0 up; log SNR is -2 log sigma
    x = x_t/sqrt(alpha_bar_t) = x_0 + sigma eps       the noised data, not scaled down
    x_0_hat = c_skip x + c_out F(c_in x)              the denoiser, with a network F; eq. 7

At every t the input and the target of the network F have variance 1, if the data have variance sigma_data^2.  With
sigma_data = 1 the input is x_t, and F is -v.  So a network with the target V is such an F already, and targets.py has
no other entry for it.

A schedule and a rising sequence of noise levels are one thing; the first two functions lead from one to the other.
Heun's step, the sampler of the paper, is not here; solver.py says why.  Read next: flow.py.
"""

import math
from typing import Any

import numpy as np

from tinydiff.backend import host_integers, require
from tinydiff.diffusion.gaussian import check_alike, check_time, per_row
from tinydiff.diffusion.schedule import Schedule
from tinydiff.diffusion.times import Pairs, even_pairs


def noise_levels(schedule: Schedule) -> np.ndarray:
    """sigma_t for t = 0..T, float64, shape (T+1,): 0 at t = 0, and rising (Karras et al. 2022, section 2).

    sigma_t = sqrt((1 - alpha_bar_t)/alpha_bar_t) = exp(-log_snr_t/2)
    """
    with np.errstate(over="ignore"):  # an extreme schedule ends at inf
        return np.exp(-schedule.log_snr / 2)


def from_noise_levels(sigma: Any) -> Schedule:
    """The schedule with the noise levels sigma_1..sigma_T, shape (T,): noise_levels solved for beta.

        alpha_bar_t = 1/(1 + sigma_t^2),   beta_t = (sigma_t^2 - sigma_{t-1}^2)/(1 + sigma_t^2),   sigma_0 = 0

    ValueError unless 0 < sigma_1 < ... < sigma_T < inf, and where beta_t rounds to 0 or to 1.
    """
    after = np.array(sigma, dtype=np.float64)
    before = np.append(0.0, after)[:-1]
    rises = after.ndim == 1 and after.size > 0 and (before < after).all() and after[-1] < math.inf
    require(bool(rises), "noise levels must rise from above 0, shape (T,), and be finite", sigma)
    return Schedule(np.append(0.0, (after - before) * (after + before) / (1 + after**2)))


def preconditioning(schedule: Schedule, t: Any, sigma_data: float) -> tuple[Any, Any, Any]:
    """(c_skip, c_out, c_in), the factors around the network F (Karras et al. 2022, eq. 7 and table 1).

        x_0_hat = c_skip x_t + c_out F(c_in x_t)
        c_in = 1/sqrt(alpha_bar_t sigma_data^2 + 1 - alpha_bar_t)
        c_skip = sqrt(alpha_bar_t) sigma_data^2 c_in^2,   c_out = sqrt(1 - alpha_bar_t) sigma_data c_in

    These are factors of x_t.  The paper has factors of x = x_t/sqrt(alpha_bar_t): its c_skip and c_in are these, each
    times sqrt(alpha_bar_t), and its c_out is this one.  sigma_data: the std of the data, above 0, else ValueError.
    t: integers in 0..T.  Returns float64 of t's shape, on the host.
    """
    require(0 < sigma_data < math.inf, "sigma_data must be above 0 and finite", sigma_data)
    t = host_integers("t", t, 0, schedule.T)
    signal, noise = schedule.alpha_bar[t], schedule.one_minus_alpha_bar[t]
    c_in = (signal * sigma_data**2 + noise) ** -0.5
    return signal**0.5 * sigma_data**2 * c_in**2, noise**0.5 * sigma_data * c_in, c_in


def F_from_x_0_eps(schedule: Schedule, x_0: Any, t: Any, eps: Any, sigma_data: float) -> Any:
    """What the network F is trained to predict (Karras et al. 2022, eq. 8).

        F = (x_0 - c_skip x_t)/c_out = c_in (sqrt(1 - alpha_bar_t)/sigma_data x_0 - sqrt(alpha_bar_t) sigma_data eps)

    The loss of the paper weighs a squared error of x_0_hat by 1/c_out^2, which gives a squared error of F the weight 1
    at each t.  x_0, eps: (N, ...) of one dtype.  t in 0..T, else ValueError.
    """
    check_alike("eps", eps, "x_0", x_0)
    t = check_time(schedule, "t", t, x_0)
    _, _, c_in = preconditioning(schedule, t, sigma_data)
    x_0_coef = c_in * schedule.one_minus_alpha_bar[t] ** 0.5 / sigma_data
    eps_coef = c_in * schedule.alpha_bar[t] ** 0.5 * sigma_data
    return per_row(x_0_coef, x_0) * x_0 - per_row(eps_coef, x_0) * eps


def x_0_from_F(schedule: Schedule, x_t: Any, t: Any, F: Any, sigma_data: float) -> Any:
    """x_0_hat of a prediction F: the denoiser D of the paper (Karras et al. 2022, eq. 7).

        x_0_hat = c_skip x_t + c_out F

    x_t, F: (N, ...) of one dtype.  t in 0..T, else ValueError.  The function does not divide by a small number.
    """
    check_alike("F", F, "x_t", x_t)
    c_skip, c_out, _ = preconditioning(schedule, check_time(schedule, "t", t, x_t), sigma_data)
    return per_row(c_skip, x_t) * x_t + per_row(c_out, x_t) * F


def karras_pairs(schedule: Schedule, num_steps: int, rho: float = 7.0) -> Pairs:
    """Steps of one size in sigma^(1/rho), from t = T to t = 1, and then to x_0 (Karras et al. 2022, eq. 5).

        sigma(t_i)^(1/rho) = sigma_T^(1/rho) + (sigma_1^(1/rho) - sigma_T^(1/rho)) (n - i)/(n - 1),   n = num_steps

    With rho = 1 the steps are even in sigma, nearly all of them at large t.  As rho grows, the times become those of
    log_snr_pairs; rho = 7 lies between.  A Recipe takes karras_pairs as its `pairs`.  sample.py has no option for it,
    because 2M gains nothing by it: in the measurement of solver.py, with 23 evaluations, the error is 0.053 with
    log_snr_pairs and 0.0035 with quadratic_pairs.

    rho: above 0 and finite, else ValueError.  The rest as in even_pairs.
    """
    require(0 < rho < math.inf, "rho must be above 0 and finite", rho)
    log_snr = schedule.log_snr[1:]
    return even_pairs(np.exp((log_snr[-1] - log_snr) / (2 * rho)), num_steps)  # (sigma_t/sigma_T)^(1/rho), at most 1
