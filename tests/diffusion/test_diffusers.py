"""An outside witness: diffusers' schedulers, in float64, pass through the same x_t as our samplers.

Skipped where diffusers is not installed.  diffusers computes its tables in float32, and rounds a sample to it; here its
modules see a torch and a NumPy whose float32 is float64.  Both sides have one beta table, one network and one noise.
Their times run from 0, ours from 1.

Where the two differ, a law of this package's chapters decides between them; the last tests say which.
"""

from functools import partial
from itertools import islice, pairwise
from typing import Any

import numpy as np
import pytest
from chains import assert_close, seeds
from hypothesis import assume, given
from hypothesis import strategies as st
from witnesses import agree, in_float64

from tinydiff.backend import asarray, default_rng, to_numpy
from tinydiff.diffusion import Schedule, ddim_step, ddpm_step, dpm_solver_2m, q_sample, sample
from tinydiff.diffusion.targets import EPS, X_0, V, as_eps_fn
from tinydiff.diffusion.variance import interpolated, remembered

pytestmark = [
    pytest.mark.sampler,
    pytest.mark.filterwarnings("ignore::tinydiff.diffusion.ScheduleWarning"),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # torch's, under NumPy 2
]

REASON = 'no diffusers: pip install -e ".[witness]"'
torch: Any = pytest.importorskip("torch", reason=REASON)
ddpm: Any = pytest.importorskip("diffusers.schedulers.scheduling_ddpm", reason=REASON)
ddim: Any = pytest.importorskip("diffusers.schedulers.scheduling_ddim", reason=REASON)
multistep: Any = pytest.importorskip("diffusers.schedulers.scheduling_dpmsolver_multistep", reason=REASON)


@pytest.fixture(scope="module", autouse=True)
def their_precision_and_noise():
    """Tables and samples in float64, and noise that is given as the generator."""
    modules = (ddpm, ddim, multistep)
    with in_float64(*modules), pytest.MonkeyPatch.context() as patch:
        for module in modules:
            patch.setattr(module, "randn_tensor", lambda shape, generator, **_: torch.from_numpy(next(generator)))
        yield


TARGETS = {"epsilon": EPS, "sample": X_0, "v_prediction": V}
VARIANCES = {"fixed_small": Schedule.beta_tilde, "fixed_large": Schedule.beta_t_given_s}
SHAPE = (2, 3)


@st.composite
def tables(draw):
    """2 to 80 betas from 1e-4 on: even, rising or scattered.

    diffusers subtracts 1 - alpha_bar, which loses digits of a smaller beta.  The sum of all betas is at most 12.  So
    alpha_bar_T, by whose root both divide, is at least 5e-7; the linear schedule of T = 1000 ends at 4e-5.
    """
    T = draw(st.integers(2, 80))
    high = draw(st.floats(1e-4, min(0.3, 12 / T)))
    low = draw(st.floats(1e-4, high))
    rng = np.random.default_rng(draw(seeds))
    return low + (high - low) * draw(st.sampled_from([np.zeros(T), np.linspace(0, 1, T), rng.random(T)]))


def network(x, t):
    """What both sides take for the network's prediction, on host arrays."""
    return np.tanh(x + np.sin(t))


def noises(seed, shape=SHAPE):
    """The noise that sample() draws from default_rng(seed), step by step."""
    rng = default_rng(seed)
    while True:
        yield rng.standard_normal(shape)


def walk(scheduler, x_T, predict=network, **options):
    """Every x of their loop; predict(x, t) with t from 1."""
    x, xs = torch.from_numpy(x_T), []
    for t in scheduler.timesteps:
        x = scheduler.step(torch.from_numpy(predict(x.numpy(), int(t) + 1)), t, x, **options).prev_sample
        xs.append(x.numpy())
    return xs


def our_walk(step, schedule, target, times, x_T, seed, predict=network):
    eps_fn = as_eps_fn(target, schedule, lambda x, t: asarray(predict(to_numpy(x), t)))
    return [to_numpy(x) for _, x, _ in sample(step, eps_fn, pairwise(times), asarray(x_T), default_rng(seed))]


def times_of(scheduler, last=0):
    return [int(t) + 1 for t in scheduler.timesteps] + [last]


def compare(witness, ours, theirs):
    assert len(ours) == len(theirs)
    for x, y in zip(ours, theirs):
        agree(witness, x, y, 1e-12)


@given(tables(), st.data(), seeds, st.sampled_from([*TARGETS]), st.booleans(), st.sampled_from([*VARIANCES]))
def test_every_x_t_of_ddpm_is_that_of_diffusers(beta, data, seed, prediction_type, clip, variance_type):
    """Any table, number of steps and spacing, both variances, three targets, clipped or not."""
    spacing, n = data.draw(st.sampled_from(["leading", "linspace", "trailing"])), data.draw(st.integers(1, len(beta)))
    theirs = ddpm.DDPMScheduler(
        len(beta),
        trained_betas=beta,
        variance_type=variance_type,
        clip_sample=clip,
        prediction_type=prediction_type,
        timestep_spacing=spacing,
    )
    theirs.set_timesteps(n)
    schedule, x_T = Schedule(beta), next(noises(seed + 100))
    step = partial(ddpm_step, schedule, clip=clip, variance=VARIANCES[variance_type])
    ours = our_walk(step, schedule, TARGETS[prediction_type], times_of(theirs), x_T, seed)
    expected = walk(theirs, x_T, generator=noises(seed))
    if theirs.timesteps[-1] > 0:  # their last jump from t > 1 adds noise: see below
        ours, expected = ours[:-1], expected[:-1]
    compare("diffusers, DDPM: every x_t", ours, expected)


@given(tables(), st.data(), seeds, st.booleans())
def test_every_x_t_of_ddpm_with_a_learned_variance_is_that_of_diffusers(beta, data, seed, clip):
    """The network predicts the variance of each pixel, beside eps (Nichol & Dhariwal 2021, eq. 15).

    As in the code of that paper its number runs from -1 to 1, where `interpolated` has 0 to 1.
    """
    theirs = ddpm.DDPMScheduler(len(beta), trained_betas=beta, variance_type="learned_range", clip_sample=clip)
    theirs.set_timesteps(data.draw(st.integers(1, len(beta))))
    schedule, x_T = Schedule(beta), next(noises(seed + 100))

    def both(x, t):
        return network(x, t), np.cos(3 * x + t)

    def predict(x, t):
        eps_hat, share = both(to_numpy(x), t)
        return asarray(eps_hat), asarray((1 + share) / 2)

    eps_fn, variance = remembered(predict, interpolated)
    step = partial(ddpm_step, schedule, variance=variance, clip=clip)
    pairs = pairwise(times_of(theirs))
    ours = [to_numpy(x) for _, x, _ in sample(step, eps_fn, pairs, asarray(x_T), default_rng(seed))]
    expected = walk(theirs, x_T, lambda x, t: np.concatenate(both(x, t), 1), generator=noises(seed))
    compare("diffusers, DDPM with a learned variance: every x_t", ours, expected)


@given(tables(), st.data(), seeds, st.sampled_from([*TARGETS]), st.booleans(), st.sampled_from([0.0, 0.3, 1.0]))
def test_every_x_t_of_ddim_is_that_of_diffusers(beta, data, seed, prediction_type, clip, eta):
    """Any table, number of steps and eta, three targets; where it clips, told to correct its eps_hat."""
    T = len(beta)
    spacing = data.draw(st.sampled_from(["leading", "trailing"]))
    n = data.draw(st.sampled_from([n for n in range(1, T + 1) if spacing == "leading" or T % n == 0]))  # see below
    theirs = ddim.DDIMScheduler(
        T, trained_betas=beta, clip_sample=clip, prediction_type=prediction_type, timestep_spacing=spacing
    )
    theirs.set_timesteps(n)
    schedule, x_T = Schedule(beta), next(noises(seed + 100))
    step = partial(ddim_step, schedule, clip=clip, eta=eta)
    ours = our_walk(step, schedule, TARGETS[prediction_type], times_of(theirs), x_T, seed)
    options = {"eta": eta, "use_clipped_model_output": clip, "generator": noises(seed)}
    compare("diffusers, DDIM: every x_t", ours, walk(theirs, x_T, **options))


@given(tables(), st.data(), seeds, st.sampled_from([*TARGETS]), st.sampled_from(["zero", "sigma_min"]))
def test_every_x_t_of_dpm_solver_2m_is_that_of_diffusers(beta, data, seed, prediction_type, final):
    """Any table, number of steps and spacing, three targets, down to x_0 or to x_1."""
    spacing = data.draw(st.sampled_from(["leading", "linspace", "trailing"]))
    n = data.draw(st.integers(1, len(beta) - 1))
    theirs = multistep.DPMSolverMultistepScheduler(
        len(beta),
        trained_betas=beta,
        prediction_type=prediction_type,
        timestep_spacing=spacing,
        final_sigmas_type=final,
        lower_order_final=False,
    )
    theirs.set_timesteps(n)
    schedule, x_T = Schedule(beta), next(noises(seed + 100))
    times = times_of(theirs, last=int(final == "sigma_min"))
    assume(times[-2] > times[-1])
    ours = our_walk(dpm_solver_2m(schedule), schedule, TARGETS[prediction_type], times, x_T, seed)
    compare("diffusers, DPM-Solver++(2M): every x_t", ours, walk(theirs, x_T))


# Where they differ, and the law that decides.  The table is that of Ho et al.: T = 1000, beta from 1e-4 to 0.02.

LINEAR = Schedule.linear()
BETAS = LINEAR.beta[1:]


@given(st.integers(1, 40), seeds, st.sampled_from([*VARIANCES]))
def test_the_last_jump_ends_in_the_data_and_theirs_in_noise(n, seed, variance_type):
    """Where the network knows x_0, a jump to s = 0 ends in x_0: the posterior there is (1, 0, 0).

    With timestep_spacing="trailing" the last jump starts at t = T/n.  Unless t = 1, diffusers adds noise to it: of
    variance beta_{t|0} where the variance is "fixed_large", of 1e-20 where it is "fixed_small" and should be 0.
    """
    x_0, x_T = default_rng(seed, 1).standard_normal((2, *SHAPE))
    theirs = ddpm.DDPMScheduler(
        trained_betas=BETAS, variance_type=variance_type, clip_sample=False, timestep_spacing="trailing"
    )
    theirs.set_timesteps(n)
    times, noise = times_of(theirs), list(islice(noises(seed), n))

    def oracle(x, t):
        return (x - LINEAR.alpha_bar[t] ** 0.5 * x_0) / LINEAR.one_minus_alpha_bar[t] ** 0.5

    step = partial(ddpm_step, LINEAR, variance=VARIANCES[variance_type])
    ours = our_walk(step, LINEAR, EPS, times, x_T, seed, oracle)[-1]
    last = walk(theirs, x_T, oracle, generator=iter(noise))[-1]
    std = {"fixed_small": 1e-10, "fixed_large": LINEAR.one_minus_alpha_bar[times[-2]] ** 0.5}[variance_type]
    # The first x_0_hat divides roundings of 1e-16 by sqrt(alpha_bar_T) = 6e-3.
    assert_close(ours, x_0, atol=1e-12)
    assert_close(last, x_0 + std * noise[-1], atol=1e-12)


@given(st.integers(1, 40), seeds, st.floats(0.01, 1))
def test_clipping_that_finds_the_data_finds_the_noise_too_and_theirs_keeps_a_wrong_one(n, seed, excess):
    """x_t = sqrt(alpha_bar_t) x_0_hat + sqrt(1 - alpha_bar_t) eps_hat after clipping too (Ho et al. 2020, eq. 4).

    Data of -1 and 1, and a network whose x_0_hat lies beyond them: clipping makes x_0_hat right.  Then ddim_step stays
    on q_sample(x_0, s, eps).  By default diffusers goes on with the eps_hat that belongs to the wrong x_0_hat, and
    leaves this path at the first step; use_clipped_model_output=True keeps it there.
    """
    x_0, eps = default_rng(seed, 1).standard_normal((2, *SHAPE))
    x_0 = np.sign(x_0)
    theirs = ddim.DDIMScheduler(trained_betas=BETAS, clip_sample=True)
    theirs.set_timesteps(n)
    times = times_of(theirs)
    x_T = to_numpy(q_sample(LINEAR, asarray(x_0), times[0], asarray(eps)))

    def beyond(x, t):
        return (x - LINEAR.alpha_bar[t] ** 0.5 * (1 + excess) * x_0) / LINEAR.one_minus_alpha_bar[t] ** 0.5

    path = [to_numpy(q_sample(LINEAR, asarray(x_0), t, asarray(eps))) for t in times[1:]]
    assert_close(our_walk(partial(ddim_step, LINEAR, clip=True), LINEAR, EPS, times, x_T, seed, beyond), path)
    assert_close(walk(theirs, x_T, beyond, use_clipped_model_output=True), path)
    if n > 1:
        t, s = times[:2]
        wrong = excess * (LINEAR.alpha_bar[t] / LINEAR.one_minus_alpha_bar[t]) ** 0.5 * x_0
        assert_close(walk(theirs, x_T, beyond)[0], path[0] - LINEAR.one_minus_alpha_bar[s] ** 0.5 * wrong)


@given(st.sampled_from([n for n in range(2, 40) if 1000 % n]), seeds, st.sampled_from(["linspace", "trailing"]))
def test_a_step_ends_where_the_next_begins_and_theirs_elsewhere(n, seed, spacing):
    """With the true noise every x_t of DDIM is q_sample(x_0, t, eps), at any times (Song et al. 2021, eq. 12).

    diffusers' DDIM takes each step T // n times down, wherever the next step begins.
    """
    x_0, eps = default_rng(seed, 1).standard_normal((2, *SHAPE))
    theirs = ddim.DDIMScheduler(trained_betas=BETAS, clip_sample=False, timestep_spacing=spacing)
    theirs.set_timesteps(n)
    times = times_of(theirs)
    x_0s, epses = (asarray(np.stack([a] * 1001)) for a in (x_0, eps))
    at = to_numpy(q_sample(LINEAR, x_0s, np.arange(1001), epses))  # x_t at every t

    def oracle(x, t):
        return eps

    ours = our_walk(partial(ddim_step, LINEAR), LINEAR, EPS, times, at[times[0]], seed, oracle)
    expected = walk(theirs, at[times[0]], oracle)
    assert_close(ours, [at[t] for t in times[1:]])
    first = next(i for i, (t, s) in enumerate(pairwise(times)) if s != t - 1000 // n)
    assert_close(expected[:first], [at[t] for t in times[1 : first + 1]])
    assert_close(expected[first], at[times[first] - 1000 // n])  # and not at[times[first + 1]]
    assert first < n - 1
