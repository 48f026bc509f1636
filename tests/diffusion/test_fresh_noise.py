"""Every noise is drawn anew: of one chain, of one bound, of one edit, no two are alike, and no second chain repeats it.

An array that is drawn once and used at every step has the right law at each of them, so only the joint law is wrong.
Here each noise is recovered from what a chain passes on, and compared with all others, number by number.
"""

from functools import partial

import numpy as np
import pytest

from tinydiff.backend import asarray, default_rng, standard_normal, to_numpy
from tinydiff.diffusion import (
    Schedule,
    ddim_step,
    ddpm_step,
    inpaint,
    sample,
    sampled_bound,
    sdedit,
    timestep_pairs,
    variational_bound,
    with_drawn_labels,
)

pytestmark = pytest.mark.sampler

SCHEDULE, SHAPE, PAIRS = Schedule.linear(60), (3, 4, 5), timestep_pairs(60, 6)
X_0, X_T = (standard_normal(default_rng("fresh", k), SHAPE, "float64") for k in range(2))
KNOWN = np.arange(60).reshape(SHAPE) % 2 == 0
STEPS = [ddpm_step, partial(ddim_step, eta=1.0), partial(ddim_step, eta=0.5)]


def noise_in(x_t, t):
    """The eps of x_t = q_sample(x_0, t, eps), to rounding."""
    alpha_bar = SCHEDULE.alpha_bar[np.asarray(t)].reshape(-1, *[1] * (len(SHAPE) - 1))
    return (to_numpy(x_t) - alpha_bar**0.5 * to_numpy(X_0)) / (1 - alpha_bar) ** 0.5


def half(x_t, t):
    return 0.5 * x_t


def recording(step, drawn):
    """The step, which notes the noise that it is given."""

    def recorded(x_t, eps_hat, t, s, noise):
        drawn.extend([] if noise is None else [to_numpy(noise).copy()])
        return step(SCHEDULE, x_t, eps_hat, t, s, noise)

    return recorded


def of_sample(step, rng):
    drawn = []
    list(sample(recording(step, drawn), half, PAIRS, X_T, rng))
    return drawn, 5


def of_sdedit(step, rng):
    drawn = []
    (t, x_t, _), *_ = sdedit(SCHEDULE, recording(step, drawn), half, PAIRS, X_0, 50, rng)
    return [noise_in(x_t, t), *drawn], 5


def of_inpaint(step, rng):
    """The step's own noises, and those of the known pixels.  Each step but the last is taken twice."""
    drawn = []
    states = list(inpaint(SCHEDULE, recording(step, drawn), half, PAIRS, X_T, X_0, asarray(KNOWN), rng, resample=2))
    return [*drawn, *(noise_in(x_s, s)[KNOWN] for s, x_s, _ in states[:-1])], 10 + 5


def of_bound(bound):
    """The noise of each term, at the times that the network is asked about."""

    def of_terms(step, rng):
        drawn = []

        def eps_fn(x_t, t):
            drawn.append(noise_in(x_t, t))
            return half(x_t, t)

        bound(eps_fn, rng)
        return drawn, 6

    return of_terms


def gaussian_term(schedule, x_0, x_t, eps_hat, t, s):
    return x_t.sum((1, 2))


CHAINS = {
    "sample": of_sample,
    "sdedit": of_sdedit,
    "inpaint": of_inpaint,
    "variational_bound": of_bound(lambda f, rng: variational_bound(SCHEDULE, f, X_0, 6, rng, gaussian_term)),
    "sampled_bound": of_bound(lambda f, rng: sampled_bound(SCHEDULE, f, X_0, 6, 5, rng, gaussian_term)),
}


@pytest.mark.parametrize("step", STEPS, ids=["ddpm", "eta 1", "eta 0.5"])
@pytest.mark.parametrize("chain", CHAINS)
def test_no_number_is_drawn_twice(chain, step):
    """Within a chain, and in a second one with the same generator; a new one of the same seed draws the same again."""
    rng = default_rng("chain", 0)
    (first, count), (second, _), (again, _) = (CHAINS[chain](step, r) for r in (rng, rng, default_rng("chain", 0)))
    assert len(first) == len(second) == count
    numbers = np.concatenate([a.reshape(-1) for a in (*first, *second, to_numpy(X_T))])
    assert len(np.unique(numbers.round(9))) == len(numbers)  # recovered to 1e-12
    assert all((a == b).all() for a, b in zip(first, again, strict=True))


def test_labels_are_drawn_anew_at_every_step_and_for_every_row():
    """Of 40 rows and 30 steps with two labels, equally likely, no two steps and no two rows have the same labels."""
    drawn = []

    def by_label(labels):
        drawn.append(labels)
        return half

    eps_fn = with_drawn_labels(lambda x_t, t: np.full((40, 2), 0.5), by_label, default_rng("labels"))
    for _ in range(30):
        eps_fn(asarray(np.zeros((40, 1))), 7)
    table = np.stack(drawn)  # two columns of 30 are equal with probability 1e-9, and there are 780 pairs
    assert len(np.unique(table, axis=0)) == 30 and len(np.unique(table, axis=1).T) == 40
    assert 0.4 < table.mean() < 0.6
