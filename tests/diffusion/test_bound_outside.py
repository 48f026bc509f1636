"""An outside witness of the variational bound: the published formulas of others, and PyTorch's distributions.

`Published` states the tables and the terms as Ho et al. and Nichol & Dhariwal publish them in their code (diffusion,
improved-diffusion and guided-diffusion: gaussian_diffusion.py): times from 0, log-variances instead of variances, bits
instead of nats.  It needs no package.  The tests with PyTorch are skipped where it is not installed.
"""

import math
from functools import partial

import numpy as np
import pytest
from chains import seeds
from hypothesis import given
from hypothesis import strategies as st
from witnesses import agree

from tinydiff.backend import asarray, default_rng, to_numpy
from tinydiff.diffusion import Schedule
from tinydiff.diffusion.likelihood import (
    bound_term,
    discretized_log_prob,
    gaussian_kl,
    gaussian_log_density,
    variational_bound,
)
from tinydiff.diffusion.variance import interpolated

pytestmark = [pytest.mark.likelihood, pytest.mark.filterwarnings("ignore::tinydiff.diffusion.ScheduleWarning")]

# Both sides subtract numbers near 1 where the other does not: a beta of 1e-4 leaves 12 digits, a KL of 1e-3 less.
TOLERANCE = 1e-9
REASON = 'no torch: pip install -e ".[witness]"'


class Published:
    """The tables of the published code, indexed by t - 1 = 0..T-1."""

    def __init__(self, beta):
        alpha_bar = np.cumprod(1 - beta)
        before = np.append(1.0, alpha_bar[:-1])
        self.alpha_bar, self.beta = alpha_bar, beta
        self.posterior_var = beta * (1 - before) / (1 - alpha_bar)
        self.clipped_log_var = np.log(np.append(self.posterior_var[1], self.posterior_var[1:]))
        self.x_0_coef = beta * np.sqrt(before) / (1 - alpha_bar)
        self.x_t_coef = (1 - before) * np.sqrt(1 - beta) / (1 - alpha_bar)

    def log_var(self, kind, i, share):
        """The model's: the least, the largest, or the line between the two, share in 0..1 (eq. 15)."""
        low, high = self.clipped_log_var[i], np.log(self.beta[i])
        return {"small": low, "large": high, "learned": share * high + (1 - share) * low}[kind]

    def term(self, x_0, x_t, eps_hat, i, log_var, clip):
        """L_{t-1} in bits per dimension; at i = 0 that of a Gaussian decoder."""
        x_0_hat = np.sqrt(1 / self.alpha_bar[i]) * x_t - np.sqrt(1 / self.alpha_bar[i] - 1) * eps_hat
        x_0_hat = np.clip(x_0_hat, -1, 1) if clip else x_0_hat
        mean = self.x_0_coef[i] * x_0_hat + self.x_t_coef[i] * x_t
        if i == 0:
            nats = 0.5 * (math.log(2 * math.pi) + log_var + (x_0 - mean) ** 2 * np.exp(-log_var))
        else:
            nats = log_normal_kl(
                self.x_0_coef[i] * x_0 + self.x_t_coef[i] * x_t, self.clipped_log_var[i], mean, log_var
            )
        return nats.mean(1) / math.log(2)

    def prior(self, x_0):
        """L_T in bits per dimension."""
        a = self.alpha_bar[-1]
        return log_normal_kl(np.sqrt(a) * x_0, np.log(1 - a), 0.0, 0.0).mean(1) / math.log(2)


def log_normal_kl(mean_1, log_var_1, mean_2, log_var_2):
    return 0.5 * (
        -1 + log_var_2 - log_var_1 + np.exp(log_var_1 - log_var_2) + (mean_1 - mean_2) ** 2 * np.exp(-log_var_2)
    )


@given(
    st.integers(2, 40),
    st.floats(1e-4, 0.01),
    st.floats(0.01, 0.3),
    seeds,
    st.sampled_from(["small", "large", "learned"]),
)
@pytest.mark.parametrize("clip", [False, True])
def test_every_term_of_the_bound_is_that_of_the_published_formulas(clip, T, first, last, seed, kind):
    """L_T, every L_{t-1} and L_0 of the whole chain, with the same noise; variances of a pixel included."""
    beta = np.linspace(first, last, T)
    schedule, peer = Schedule(beta), Published(beta)
    x_0, share = default_rng(seed, 1).uniform(-1, 1, (2, 3, 4))
    noise = default_rng(seed).standard_normal((T, *x_0.shape))

    def network(x, t):
        return np.tanh(x + np.sin(t))

    def variance(schedule, t, s):
        return {
            "small": lambda: interpolated(schedule, asarray(0 * share), t, s),
            "large": lambda: schedule.beta_t_given_s(t, s),
            "learned": lambda: interpolated(schedule, asarray(share), t, s),
        }[kind]()

    found = variational_bound(
        schedule,
        lambda x, t: asarray(network(to_numpy(x), t)),
        asarray(x_0),
        T,
        default_rng(seed),
        partial(bound_term, variance=variance, decoder=gaussian_log_density, decoder_variance=variance, clip=clip),
    )
    expected = [peer.prior(x_0)]
    for t, eps in zip(range(T, 0, -1), noise):
        x_t = np.sqrt(peer.alpha_bar[t - 1]) * x_0 + np.sqrt(1 - peer.alpha_bar[t - 1]) * eps
        log_var = peer.log_var(kind, t - 1, share)
        expected.append(peer.term(x_0, x_t, network(x_t, t), t - 1, log_var, clip))
    for row, bits in zip(to_numpy(found), expected, strict=True):
        relative("published formulas: terms of the bound", row / math.log(2), bits)


def relative(witness, found, expected, floor=0.0):
    """Each number to TOLERANCE of itself, or of `floor` if that is larger."""
    size = np.maximum(abs(expected), floor)
    agree(witness, found / size, expected / size, TOLERANCE)


@given(seeds)
def test_kl_and_density_are_those_of_torchs_distributions(seed):
    """torch.distributions.kl_divergence and Normal.log_prob, variances from 1e-6 to 1e6."""
    torch = pytest.importorskip("torch", reason=REASON)
    rng = default_rng(seed)
    mean_1, mean_2, x = rng.standard_normal((3, 50))
    var_1, var_2 = 10 ** rng.uniform(-6, 6, (2, 50))
    p, q = (
        torch.distributions.Normal(torch.from_numpy(m), torch.from_numpy(v**0.5))
        for m, v in [(mean_1, var_1), (mean_2, var_2)]
    )
    kl = gaussian_kl(*(asarray(a) for a in (mean_1, var_1, mean_2, var_2)))
    relative("PyTorch: KL of two Gaussians", to_numpy(kl), torch.distributions.kl_divergence(p, q).numpy())
    density = gaussian_log_density(*(asarray(a) for a in (x, mean_1, var_1)))
    relative("PyTorch: log density of a Gaussian", to_numpy(density), p.log_prob(torch.from_numpy(x)).numpy())


@given(seeds)
def test_the_probability_of_a_bin_is_that_of_torchs_normal_distribution(seed):
    """log(Phi(high) - Phi(low)) by torch.special.log_ndtr, from the middle to thousands of nats out in the tails."""
    torch = pytest.importorskip("torch", reason=REASON)
    rng = default_rng(seed)
    level, mean = rng.integers(0, 256, 300), rng.uniform(-1.5, 1.5, 300)
    var = 10 ** rng.uniform(-4, 1, 300)
    low = np.where(level == 0, -np.inf, ((level - 0.5) / 127.5 - 1 - mean) / var**0.5)
    high = np.where(level == 255, np.inf, ((level + 0.5) / 127.5 - 1 - mean) / var**0.5)
    right = low > 0  # there Phi is near 1: take the mirror image
    low, high = np.where(right, -high, low), np.where(right, -low, high)
    log_low, log_high = (torch.special.log_ndtr(torch.from_numpy(z)) for z in (low, high))
    expected = log_high + torch.log1p(-torch.exp(log_low - log_high))
    found = discretized_log_prob(*(asarray(a) for a in (level / 127.5 - 1, mean, var)))
    # The log of a probability near 1 is near 0, and keeps the 1e-16 that the probability was rounded to.
    relative("PyTorch: log probability of a bin", to_numpy(found), expected.numpy(), floor=1e-6)
