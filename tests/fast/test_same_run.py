"""The book as it stands and the engine room in its place are one program: the same run, but for rounding."""

from dataclasses import replace
from functools import cache, partial

import numpy as np
import pytest
from plain import fast, plain
from small_run import CONFIG, DATASET, NETWORK, SCHEDULE, arrays_of

from tinydiff.app.alone import OneProcess
from tinydiff.app.generate import build_unet
from tinydiff.backend import asarray, to_numpy
from tinydiff.fast.workers import Workers
from tinydiff.nn import UNet
from tinydiff.train import Training, draw_batch, train

pytestmark = pytest.mark.training

WIDE = {**NETWORK, "base_channels": 16}  # wide enough for Winograd's convolution
FORMS = {"plain": plain, "installed": fast}


def build(dtype):
    """All parameters are cast before any optimizer sees them."""
    model = build_unet(WIDE, 5)
    for p in model.parameters():
        p.data = p.data.astype(dtype)
    return model


def draw(dtype, config, step):
    batch = draw_batch(DATASET, SCHEDULE, 10, config, step)
    return {name: a.astype(dtype) if a.dtype == np.float32 else a for name, a in batch.items()}


@cache
def run(forms, kind, dtype):
    """(losses, weights in one row) of 20 steps."""
    with FORMS[forms](), kind(partial(build, dtype)) as workers:
        attached = {"gradients": workers.gradients, "parameters": workers.parameters}
        config = replace(CONFIG, num_steps=20, peak_lr=2e-3)
        state = Training(workers.model, config, partial(draw, dtype), T=SCHEDULE.T, **attached)
        for _ in train(state):
            pass
        losses = np.array([row[0] for row in state.metrics()])
        weights = [a.reshape(-1) for name, a in arrays_of(state).items() if name.startswith("weights")]
        return losses, np.concatenate(weights)


# Float32: 4e-7 is usual.  Rounding of the gradient, 1e-6 of it with Winograd's convolution, is not much enlarged by
# Adam in 20 steps.  Float64: 1e-15 is usual, 5e8 times less.
@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-5), ("float64", 1e-10)])
@pytest.mark.parametrize(
    ("forms", "kind"),
    [("plain", Workers), ("installed", OneProcess), ("installed", Workers)],
    ids=["plain workers", "installed one process", "installed workers"],
)
def test_a_run_has_the_same_losses_whatever_computes_it(forms, kind, dtype, bound):
    """20 steps of a small U-Net: each loss is that of the plain functions in one process, to a few roundings."""
    losses, weights = run(forms, kind, dtype)
    expected, plain_weights = run("plain", OneProcess, dtype)
    assert losses.shape == (20,) and weights.dtype == plain_weights.dtype == dtype
    np.testing.assert_allclose(losses, expected, rtol=bound)
    assert abs(weights - plain_weights).max() < 1e3 * bound * abs(plain_weights).max()
    assert expected[-1] < 0.6 * expected[0]  # it has learned something


def test_float32_is_float64_but_for_rounding():
    """The plain run in either dtype has the same losses to 1e-5: no constant of the other dtype is in it."""
    np.testing.assert_allclose(
        run("plain", OneProcess, "float32")[0], run("plain", OneProcess, "float64")[0], rtol=1e-5
    )


def test_the_fast_float32_gradient_is_the_plain_float64_one_but_for_rounding(rng):
    """The reference network: fused ops and Winograd in float32 against im2col and one op at a time in float64."""
    model = UNet(rng=rng)
    for p in model.parameters():
        if not to_numpy(p.data).any():  # what starts at 0 would hide what lies behind it
            p.data = asarray(0.05 * rng.standard_normal(p.shape), "float32")
    x, g = (asarray(rng.standard_normal((2, 28, 28, 1))) for _ in range(2))
    t = rng.integers(1, 1001, 2)

    def output_and_gradients(dtype):
        for p in model.parameters():
            p.data, p.grad = p.data.astype(dtype), None
        y = model(x.astype(dtype), t)
        y.backward(g.astype(dtype))
        return [to_numpy(a) for a in (y.data, *(p.grad for p in model.parameters()))]

    installed = output_and_gradients("float32")
    with plain():
        expected = output_and_gradients("float64")
    # A Winograd convolution is off by 1e-6 to 1e-5 of its largest value; some twenty follow each other, some cancel.
    assert max(abs(a - b).max() / abs(b).max() for a, b in zip(installed, expected)) < 1e-4
    assert {a.dtype.name for a in installed} == {"float32"} and {b.dtype.name for b in expected} == {"float64"}
