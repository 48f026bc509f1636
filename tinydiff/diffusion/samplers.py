"""From noise to data: one reverse step, DDPM, DDIM or DPM-Solver++(2M), and the loop that repeats it.

    ddpm_step        p(x_s | x_t) = N(posterior mean at x_0_hat, var)                     Ho et al. 2020, eq. 6, 7, 11
    ddim_step        x_s = sqrt(alpha_bar_s) x_0_hat + sqrt(1 - alpha_bar_s - var) eps_hat + sqrt(var) noise
                                                                                          Song et al. 2021, eq. 12
    dpm_solver_2m    DDIM along a straight line through the last two x_0_hat              Lu et al. 2022, algorithm 2

Each step goes from t to any earlier s.  So a full chain and one that skips times use the same code, with other pairs.
A sampler knows the network only as a function eps_fn(x_t, t) -> eps_hat on arrays, which guidance.py makes.

    step = partial(ddim_step, schedule, clip=True)
    for s, x_s, x_0_hat in sample(step, eps_fn, timestep_pairs(schedule.T, 50), x_T, rng):
        ...

Read next: guidance.py.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from tinydiff.backend import host_integers, standard_normal, xp
from tinydiff.diffusion.gaussian import check_alike, eps_from_x_0, per_row, q_sample, q_x_s_given_x_t_x_0, x_0_from_eps
from tinydiff.diffusion.schedule import Schedule

Pairs = Iterable[tuple[int, int]]
Variance = Callable[[Schedule, Any, Any], Any]


def ddpm_step(
    schedule: Schedule,
    x_t: Any,
    eps_hat: Any,
    t: Any,
    s: Any,
    noise: Any,
    *,
    variance: Variance = Schedule.beta_tilde,
    clip: bool = False,
) -> tuple[Any, Any]:
    """Draw x_s from the posterior q(x_s | x_t, x_0_hat), where x_0_hat follows from eps_hat (Ho et al. 2020, alg. 2).

        x_s = posterior_mean(x_t, x_0_hat) + sqrt(variance(schedule, t, s)) noise,   no noise where s = 0

    x_t, eps_hat, noise: (N, ...) of one dtype; noise may be None where s = 0.  0 <= s < t <= T, else ValueError.
    variance: Schedule.beta_tilde, exact if x_0 is one point, or Schedule.beta_t_given_s, exact if x_0 ~ N(0, I)
    (Ho et al. 2020, section 3.2).  clip: keep x_0_hat in [-1, 1], where images lie.  Returns (x_s, x_0_hat).
    """
    x_0_hat = _x_0_hat(schedule, x_t, eps_hat, t, clip)
    mean, _ = q_x_s_given_x_t_x_0(schedule, x_t, x_0_hat, t, s)
    return _add_noise(schedule, mean, variance(schedule, t, s), s, noise), x_0_hat


def ddim_step(
    schedule: Schedule, x_t: Any, eps_hat: Any, t: Any, s: Any, noise: Any, *, eta: float = 0.0, clip: bool = False
) -> tuple[Any, Any]:
    """Move x_t to the noise level of s along eps_hat (Song et al. 2021, DDIM, eq. 12 and 16).

        var = eta^2 beta_tilde_{t|s}
        x_s = sqrt(alpha_bar_s) x_0_hat + sqrt(1 - alpha_bar_s - var) eps_hat + sqrt(var) noise

    eta: with 0 no noise is added, with 1 the step is ddpm_step with beta_tilde; ValueError outside 0..1.
    noise may be None where eta = 0 or s = 0.  clip: keep x_0_hat in [-1, 1], and replace eps_hat by the noise that
    belongs to the clipped x_0_hat.  The other arguments are as in ddpm_step.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must lie in 0..1, got {eta}")
    x_0_hat = _x_0_hat(schedule, x_t, eps_hat, t, clip)
    if clip:
        eps_hat = eps_from_x_0(schedule, x_t, t, x_0_hat)
    var = eta**2 * schedule.beta_tilde(t, s)
    signal_std = schedule.alpha_bar[s] ** 0.5
    eps_std = (schedule.one_minus_alpha_bar[s] - var).clip(0) ** 0.5  # at eta = 1 rounding may leave -1e-17
    mean = per_row(signal_std, x_t) * x_0_hat + per_row(eps_std, x_t) * eps_hat
    return _add_noise(schedule, mean, var, s, noise), x_0_hat


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
        x_0_hat = D = _x_0_hat(schedule, x_t, eps_hat, t, clip)
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


def sample(
    step: Callable[..., tuple[Any, Any]], eps_fn: Callable[[Any, int], Any], pairs: Pairs, x_T: Any, rng: Any
) -> Iterator[tuple[int, Any, Any]]:
    """Make one step for each pair (t, s), from x_T on, and yield (s, x_s, x_0_hat) after each step; the last s is 0.

    step(x_t, eps_hat, t, s, noise) -> (x_s, x_0_hat): ddpm_step or ddim_step with its schedule filled in, or a fresh
    dpm_solver_2m(schedule).
    eps_fn(x_t, t) -> eps_hat, an array like x_t; t is a Python int.  x_T: (N, ...), standard normal for a fresh sample.
    rng: a generator on the host.  It draws noise at every step with s > 0, even if the step does not use it.  So with
    one seed and the same pairs every sampler gets the same noise.
    """
    x_t = x_T
    for t, s in pairs:
        eps_hat = eps_fn(x_t, t)
        noise = standard_normal(rng, x_t.shape, x_t.dtype) if s > 0 else None
        x_t, x_0_hat = step(x_t, eps_hat, t, s, noise)
        yield s, x_t, x_0_hat


def _x_0_hat(schedule: Schedule, x_t: Any, eps_hat: Any, t: Any, clip: bool) -> Any:
    check_alike("eps_hat", eps_hat, "x_t", x_t)
    x_0_hat = x_0_from_eps(schedule, x_t, t, eps_hat)
    return xp.clip(x_0_hat, -1, 1) if clip else x_0_hat


def _add_noise(schedule: Schedule, mean: Any, var: Any, s: Any, noise: Any) -> Any:
    """mean + sqrt(var) noise; where s = 0 the mean alone, because x_0 is the data and has no noise."""
    var = var * (host_integers("s", s, 0, schedule.T) > 0)
    if not var.any():
        return mean
    if noise is None:
        raise ValueError(f"noise is needed for a random step to s = {s}, got None")
    check_alike("noise", noise, "x_t", mean)
    return mean + per_row(var**0.5, mean) * noise
