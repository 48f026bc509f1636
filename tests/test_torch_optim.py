"""An outside witness: PyTorch's Adam, clipping and average, and diffusers' average with warm-up and learning rate.

Many steps in float64 on the same parameters and gradients.  Where a rule differs, a comment says how.  Skipped where
torch, or diffusers for its two, is not installed.
"""

from typing import Any

import numpy as np
import pytest
from draws import SEEDS
from hypothesis import given
from hypothesis import strategies as st
from witnesses import agree

from tinydiff.autograd import Tensor
from tinydiff.backend import asarray, default_rng, to_numpy
from tinydiff.optim import EMA, Adam, clip_grad_norm, learning_rate

pytestmark = [pytest.mark.training, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

REASON = 'no {}: pip install -e ".[witness]"'
torch: Any = pytest.importorskip("torch", reason=REASON.format("torch"))

SHAPES = [(3, 4), (5,), (2, 1, 3), ()]
STEPS = 60
BETAS = st.tuples(st.floats(0, 0.99), st.floats(0, 0.9999))


def twins(rng):
    """The same parameters twice: ours and torch's."""
    arrays = [np.asarray(rng.standard_normal(shape)) for shape in SHAPES]
    ours = [Tensor(asarray(a.copy()), requires_grad=True) for a in arrays]
    return ours, [torch.nn.Parameter(torch.tensor(a)) for a in arrays]


def give_gradients(rng, ours, theirs, scale=1.0):
    for p, q in zip(ours, theirs):
        g = np.asarray(scale * rng.standard_normal(p.shape))
        p.grad, q.grad = asarray(g.copy()), torch.tensor(g)


def move(rng, ours, theirs):
    for p, q in zip(ours, theirs):
        step = np.asarray(rng.standard_normal(p.shape))
        p.data += asarray(step)
        q.data += torch.tensor(step)


def same(witness, ours, theirs):
    agree(witness, [to_numpy(p) for p in ours], [q.detach().numpy() for q in theirs], 1e-12)


@given(SEEDS, BETAS, st.floats(1e-4, 0.1), st.sampled_from([1e-8, 1e-3]), st.sampled_from(["Adam", "AdamW"]))
def test_every_step_of_adam_is_torchs(seed, betas, lr, eps, name):
    """Also that of AdamW, whose decay of the weights, the one difference, is 0 here; gradients of any size."""
    rng = default_rng(seed)
    ours, theirs = twins(rng)
    adam = Adam(ours, lr, betas, eps)
    peer = getattr(torch.optim, name)(theirs, lr, betas, eps, weight_decay=0)
    for _ in range(STEPS):
        give_gradients(rng, ours, theirs, 10.0 ** rng.integers(-3, 3))
        adam.step()
        peer.step()
        same(f"PyTorch, {name}: the parameters after every step", ours, theirs)


@given(SEEDS, st.floats(0, 0.9999))
def test_the_average_after_its_warm_up_is_torchs(seed, decay):
    """torch has no warm-up: its decay is the same from the first update on."""
    rng = default_rng(seed)
    ours, theirs = twins(rng)
    average = EMA(ours, decay)
    average.num_updates = 10**6
    peers = [q.detach().clone() for q in theirs]
    average_of = torch.optim.swa_utils.get_ema_avg_fn(decay)
    for k in range(STEPS):
        move(rng, ours, theirs)
        average.update()
        peers = [average_of(a, q.detach(), k) for a, q in zip(peers, theirs)]
        same("PyTorch, average of the weights: after every update", average.average, peers)


@given(SEEDS, st.floats(0.01, 100), st.floats(0.01, 100))
def test_clipping_is_torchs_without_its_millionth(seed, scale, max_norm):
    """torch divides by |g| + 1e-6, so its clipped gradient is shorter than max_norm by one part in 10^6 |g|."""
    rng = default_rng(seed)
    ours, theirs = twins(rng)
    give_gradients(rng, ours, theirs, scale)
    norm = clip_grad_norm(ours, max_norm)
    peer = float(torch.nn.utils.clip_grad_norm_(theirs, max_norm))
    assert norm == pytest.approx(peer, rel=1e-13)
    longer = (norm + 1e-6) / norm if norm > max_norm else 1.0
    expected = [q.grad.numpy() * longer for q in theirs]
    if abs(norm - max_norm) > 2e-6:  # between the two only one of them clips
        agree("PyTorch, clipping: every gradient", [to_numpy(p.grad) for p in ours], expected, 1e-12)


@given(SEEDS, st.floats(0.1, 0.9999))
def test_the_average_with_its_warm_up_is_that_of_diffusers(seed, decay):
    """Both take d = (1 + n)/(10 + n) at first.  diffusers copies at n = 0, so the parameters stand still there."""
    training_utils = pytest.importorskip("diffusers.training_utils", reason=REASON.format("diffusers"))
    rng = default_rng(seed)
    ours, theirs = twins(rng)
    average, peer = EMA(ours, decay), training_utils.EMAModel(theirs, decay)
    for k in range(STEPS):
        if k:
            move(rng, ours, theirs)
        average.update()
        peer.step(theirs)
        same("diffusers, average of the weights: after every update", average.average, peer.shadow_params)


@given(st.integers(0, 50), st.integers(1, 300), st.floats(1e-5, 1))
def test_the_learning_rate_is_that_of_diffusers(warmup, fall, peak):
    """The same line up and cosine down.  diffusers begins the line at 0, so that its first step moves nothing."""
    optimization = pytest.importorskip("diffusers.optimization", reason=REASON.format("diffusers"))
    n = warmup + fall
    peer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], peak)
    rates = optimization.get_cosine_schedule_with_warmup(peer, warmup, n)
    ours, theirs = [], []
    for k in range(n):
        theirs.append(rates.get_last_lr()[0])
        ours.append(learning_rate(k, n, peak=peak, warmup=warmup))
        peer.step()
        rates.step()
    found = np.array([*ours[: max(0, warmup - 1)], *ours[warmup:]])
    expected = np.array([*theirs[1:warmup], *theirs[warmup:]])
    agree("diffusers, learning rate: whole runs", found / peak, expected / peak, 1e-12)
