"""A second-order step: DPM-Solver++(2M), which needs fewer steps than DDIM for the same error.

    dpm_solver_2m    DDIM along a straight line through the last two x_0_hat              Lu et al. 2022, algorithm 2

Like the steps of samplers.py it leads from t to any earlier s, and `sample` takes it.

Heun's method, the second-order step of EDM (Karras et al. 2022, algorithm 1), is not here.  It evaluates the network
twice for each step, and at equal cost it gains little or nothing.  With the exact denoiser of 20 narrow Gaussians in 16
dimensions and times even in sigma^(1/7), 23 evaluations of the network leave an error of 0.058 with Heun's step and of
0.054 with 2M; 49 evaluations leave 0.0067 and 0.0029.

Read next: moderation.py.
"""

from collections.abc import Callable
from typing import Any

from tinydiff.diffusion.gaussian import eps_from_x_0, q_sample
from tinydiff.diffusion.samplers import predicted_x_0
from tinydiff.diffusion.schedule import Schedule


def dpm_solver_2m(schedule: Schedule, *, clip: bool = False) -> Callable[..., tuple[Any, Any]]:
    """Make a second-order step: DDIM along an extrapolated x_0_hat (Lu et al. 2022, algorithm 2).  Each call of
    sample() needs a new one.

        D   = x_0_hat + (x_0_hat - x_0_hat_before)/(2 r),   r = h_before/h,   h = (log_snr(s) - log_snr(t))/2
        x_s = sqrt(alpha_bar_s) D + sqrt(1 - alpha_bar_s)/sqrt(1 - alpha_bar_t) (x_t - sqrt(alpha_bar_t) D)

    x_0_hat changes on the way from t to s.  D estimates x_0_hat in the middle of the step, in log SNR.  D assumes that
    x_0_hat changes as fast as in the step before.  D = x_0_hat in the first step, and at s = 0, where h is infinite;
    these two steps are ddim_step.

    Returns step(x_t, eps_hat, t, s, noise) -> (x_s, x_0_hat) as sample() takes it; t and s are one integer each, and
    noise is not used.  The function remembers the last x_0_hat, so make a new one for each trajectory; ValueError if t
    is not the s of the step before.  clip: keep x_0_hat in [-1, 1]; D may leave this interval, but the last result,
    x_0, does not.
    """
    log_snr = schedule.log_snr
    before: tuple[int, int, Any] | None = None  # t, s and x_0_hat of the last step

    def step(x_t: Any, eps_hat: Any, t: int, s: int, noise: Any) -> tuple[Any, Any]:
        nonlocal before
        t, s = (int(time) for time in schedule.check_times(t, s))
        x_0_hat = D = predicted_x_0(schedule, x_t, eps_hat, t, clip)
        if before is not None:
            t_before, s_before, x_0_hat_before = before
            if t != s_before:
                raise ValueError(f"t must be {s_before}, which the last step reached, got {t}: one step a trajectory")
            if s > 0:
                h, h_before = log_snr[s] - log_snr[t], log_snr[t] - log_snr[t_before]  # twice those above
                D = x_0_hat + float(h / h_before / 2) * (x_0_hat - x_0_hat_before)
        before = t, s, x_0_hat
        return q_sample(schedule, D, s, eps_from_x_0(schedule, x_t, t, D)), x_0_hat

    return step
