"""From noise to data: one reverse step, DDPM or DDIM, and the loop that repeats it.

    ddpm_step        p(x_s | x_t) = N(posterior mean at x_0_hat, var)                     Ho et al. 2020, eq. 6, 7, 11
    ddim_step        x_s = sqrt(alpha_bar_s) x_0_hat + sqrt(1 - alpha_bar_s - var) eps_hat + sqrt(var) noise
                                                                                          Song et al. 2021, eq. 12

Each step goes from t to any earlier s.  So a full chain and one that skips times use the same code, with other pairs.
A sampler knows the network only as a function eps_fn(x_t, t) -> eps_hat on arrays, which guidance.py makes.

    step = partial(ddim_step, schedule, clip=True)
    for s, x_s, x_0_hat in sample(step, eps_fn, timestep_pairs(schedule.T, 50), x_T, rng):
        ...

Read next: guidance.py.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from tinydiff.backend import host_integers, require, standard_normal, to_numpy, xp
from tinydiff.diffusion.gaussian import check_alike, eps_from_x_0, per_row, q_x_s_given_x_t_x_0, x_0_from_eps
from tinydiff.diffusion.schedule import Schedule
from tinydiff.diffusion.times import joined

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
    (Ho et al. 2020, section 3.2).  It may also return an array like x_t, a variance for each pixel (variance.py).
    clip: keep x_0_hat in [-1, 1], where images lie.  Returns (x_s, x_0_hat).
    """
    x_0_hat = predicted_x_0(schedule, x_t, eps_hat, t, clip)
    mean, _ = q_x_s_given_x_t_x_0(schedule, x_t, x_0_hat, t, s)
    return _add_noise(schedule, mean, to_numpy(variance(schedule, t, s)), s, noise), x_0_hat


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
    require(0 <= eta <= 1, "eta must lie in 0..1", eta)
    x_0_hat = predicted_x_0(schedule, x_t, eps_hat, t, clip)
    if clip:
        eps_hat = eps_from_x_0(schedule, x_t, t, x_0_hat)
    var = eta**2 * schedule.beta_tilde(t, s)
    signal_std = schedule.alpha_bar[s] ** 0.5
    eps_std = (schedule.one_minus_alpha_bar[s] - var).clip(0) ** 0.5  # at eta = 1 rounding may leave -1e-17
    mean = per_row(signal_std, x_t) * x_0_hat + per_row(eps_std, x_t) * eps_hat
    return _add_noise(schedule, mean, var, s, noise), x_0_hat


def sample(
    step: Callable[..., tuple[Any, Any]], eps_fn: Callable[[Any, int], Any], pairs: Pairs, x_T: Any, rng: Any
) -> Iterator[tuple[int, Any, Any]]:
    """Make one step for each pair (t, s), from x_T on, and yield (s, x_s, x_0_hat) after each step; the last s is 0.

    step(x_t, eps_hat, t, s, noise) -> (x_s, x_0_hat), arrays like x_t: ddpm_step or ddim_step with its schedule filled
    in, or a fresh dpm_solver_2m(schedule).  pairs: each begins where the one before ended.
    eps_fn(x_t, t) -> eps_hat, an array like x_t; t is a Python int.  x_T: (N, ...), standard normal for a fresh sample.
    Raises ValueError for pairs that do not join, and for a result of eps_fn or step that is not like x_t.
    rng: a generator on the host.  It draws noise at every step with s > 0, even if the step does not use it.  So with
    one seed and the same pairs every sampler gets the same noise.
    """
    x_t = x_T
    for t, s in joined(pairs):
        eps_hat = eps_fn(x_t, t)
        check_alike("eps_fn(x_t, t)", eps_hat, "x_t", x_t)
        noise = standard_normal(rng, x_t.shape, x_t.dtype) if s > 0 else None
        x_t, x_0_hat = step(x_t, eps_hat, t, s, noise)
        check_alike("the step's x_s", x_t, "x_t", eps_hat)
        check_alike("the step's x_0_hat", x_0_hat, "x_t", eps_hat)
        yield s, x_t, x_0_hat


def predicted_x_0(schedule: Schedule, x_t: Any, eps_hat: Any, t: Any, clip: bool) -> Any:
    """x_0_hat, the x_0 that belongs to x_t and eps_hat.  clip: keep it in [-1, 1]."""
    check_alike("eps_hat", eps_hat, "x_t", x_t)
    x_0_hat = x_0_from_eps(schedule, x_t, t, eps_hat)
    return xp.clip(x_0_hat, -1, 1) if clip else x_0_hat


def _add_noise(schedule: Schedule, mean: Any, var: Any, s: Any, noise: Any) -> Any:
    """mean + sqrt(var) noise; where s = 0 the mean alone, because x_0 is the data and has no noise."""
    require(var.shape in ((), mean.shape[:1], mean.shape), "a variance must be (), (N,) or like x_t", var.shape)
    var = var * per_row(host_integers("s", s, 0, schedule.T) > 0, var)
    require(((var >= 0) & (var < xp.inf)).all(), "the variance must be finite and not negative", var)
    if not var.any():
        return mean
    require(noise is not None, f"noise is needed for a random step to s = {s}", noise)
    check_alike("noise", noise, "x_t", mean)
    return mean + per_row(var**0.5, mean) * noise
