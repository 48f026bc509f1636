"""NumPy and the device give the same numbers: networks, every op, a training step and a sampling run, in one process.

On a GPU (pytest --backend cupy) the device is CuPy's; elsewhere it is strict.py, whose kernels are the GPU's own text.
Errors are largest difference over largest value, an array at a time (networks: over no less than a hundredth of the
largest gradient, as a bias that the next norm takes away again has none but rounding errors).
"""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import emulate
import numpy as np
import pytest
import strict
from fast.test_every_op import ROWS as FAST_ROWS
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from ops.test_every_op import ROWS

from tinydiff import ops
from tinydiff.app.alone import one_process
from tinydiff.app.generate import Recipe, build_unet, generate
from tinydiff.autograd import OPS, Tensor, no_grad
from tinydiff.backend import asarray, backend_name, default_rng, standard_normal, to_numpy, use_backend
from tinydiff.diffusion import Schedule, classifier_free, ddim_step, ddpm_step, sample, timestep_pairs
from tinydiff.fast.optim import Flat
from tinydiff.more.classifier import Classifier, cross_entropy
from tinydiff.nn import UNet
from tinydiff.optim import EMA, Adam, clip_grad_norm

pytestmark = [pytest.mark.engine, pytest.mark.skipif(emulate.COMPILER is None, reason=emulate.REASON)]

ON_GPU = backend_name() == "cupy" and sys.modules["cupy"] is not strict.cupy
# In float32 each sum rounds by 6e-8 of itself, a few tens of layers one after another.  TF32 keeps 10 bits: 5e-4 each.
BOUNDS = {"float32": 1e-5, "tf32": 3e-3}
PRECISIONS = ["float32", "tf32"] if ON_GPU else ["float32"]  # strict.py's products are NumPy's
each_precision = pytest.mark.parametrize("precision", PRECISIONS)


def on(name, precision, compute):
    """What compute() gives on a backend, as host arrays; the device is CuPy's where the suite runs on it."""
    with strict.backend(name, sys.modules["cupy"] if ON_GPU and name == "cupy" else strict.cupy):
        use_backend(name, precision)
        return [to_numpy(a) for a in compute()]


def same_numbers(compute, precision, times=1, least=0.0):
    """The device's arrays are NumPy's, within the bound (times) the largest value of each, `least` of all or more."""
    expected, found = on("numpy", "float32", compute), on("cupy", precision, compute)
    bound = times * BOUNDS[precision]
    assert len(found) == len(expected) > 0
    floor = least * max(abs(a).max(initial=0) for a in expected)
    for i, (a, b) in enumerate(zip(found, expected)):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        assert abs(a - b).max(initial=0) <= bound * max(abs(b).max(initial=0), floor), f"result {i} of {len(found)}"


def without_zeros(model, rng):
    """New weights for a network, none of them 0, which would hide what stands before it."""
    for p in model.parameters():
        start = (
            rng.standard_normal(p.shape) / (p.size / p.shape[-1]) ** 0.5
            if p.ndim > 1
            else rng.normal(0.5, 0.3, p.shape)
        )
        p.data = asarray(start, p.dtype)
    return model


def unet(**shape):
    """The reference U-Net on a GPU.  The stand-in's products are slow: half of the channels there."""
    shape |= {} if ON_GPU else {"base_channels": 16, "num_groups": 4}
    return without_zeros(UNet(rng=default_rng("unet"), **shape), default_rng("weights"))


def images(n=2):
    return standard_normal(default_rng("images"), (n, 28, 28, 1))


def reference_network():
    model, x = unet(), Tensor(images(), requires_grad=True)
    y = model(x, np.array([1, 1000]))
    y.backward(standard_normal(default_rng("cotangent"), y.shape))
    return [y.data, x.grad, *(p.grad for p in model.parameters())]


def classifier():
    model, x = without_zeros(Classifier(rng=default_rng("classifier")), default_rng("weights")), Tensor(images(), True)
    losses = cross_entropy(model(x), [0, 9])
    losses.backward(standard_normal(default_rng("cotangent"), losses.shape))
    return [losses.data, x.grad, *(p.grad for p in model.parameters())]


@each_precision
@pytest.mark.parametrize("network", [reference_network, classifier])
def test_networks_output_and_gradients(network, precision):
    """The reference U-Net and the classifier, forward and backward from one random cotangent."""
    same_numbers(network, precision, least=0.01)


def training_step():
    """Weights and their average after clipping, Adam and EMA, from one step of noise prediction."""
    model, x = unet(num_classes=10), images()
    flat = Flat(model.parameters())
    adam, average = Adam([flat]), EMA([flat])
    error = model(x, np.array([37, 500]), np.array([3, 10])) - images()
    ops.mean(error * error).backward()
    norm = clip_grad_norm([flat], 1.0)
    adam.step(1e-3)
    average.update()
    return [flat.data, *average.average, *adam.m, np.array(float(norm))]


@each_precision
def test_a_training_step(precision):
    """Weights, average and first moment, after one step; the step of a weight is 1e-3 whatever its gradient's size.

    So a gradient near 0, of which rounding leaves few digits, moves its weight by a few percent of 1e-3 more or less.
    """
    same_numbers(training_step, precision, times=3)


@each_precision
def test_a_seed_draws_the_same_images(precision):
    """NumPy in slices of 2, the device in one slice, its network recorded: image i of a seed is one image."""
    network = {"base_channels": 8, "channel_mults": [1, 2], "num_heads": 2, "num_groups": 4, "num_classes": 3}

    def drawn():
        workers = one_process().workers(partial(build_unet, network, 0), 1)
        without_zeros(workers.model, default_rng("weights"))
        at_once = 2 if backend_name() == "numpy" else None
        recipe = Recipe(Schedule.linear(100), (8, 8, 1), num_steps=8, at_once=at_once)
        return [np.concatenate(list(generate(workers, recipe, [0, 1, 2, 0, 1], 3)), 1)]

    same_numbers(drawn, precision, times=10)  # eight steps, each on the last one's images


@each_precision
@pytest.mark.parametrize("step", [ddpm_step, ddim_step])
def test_a_sampling_run(step, precision):
    """Three steps with guidance: the images at each time."""

    def run():
        schedule, rng = Schedule.linear(1000), default_rng("chain")
        eps_fn = classifier_free(unet(num_classes=10), [7], 2.0)
        with no_grad():
            pairs, one = timestep_pairs(1000, 3), lambda *args: step(schedule, *args, clip=True)
            return [x_t for _, x_t, _ in sample(one, eps_fn, pairs, standard_normal(rng, (1, 28, 28, 1)), rng)]

    # Guidance triples the network's error, 1 / sqrt(alpha_bar_T) = 158 enlarges it before the clip: 1.5e-4 was seen.
    same_numbers(run, precision, times=30)


GPU_ONLY = {"block", "block_of_equals", "residual_attention"}  # NumPy's way is their parts, see fast/test_install.py
BOTH = {name: row for name, row in (ROWS | FAST_ROWS).items() if name not in GPU_ONLY}
ONE = settings(max_examples=2, phases=[Phase.generate], derandomize=True, database=None)


@each_precision
@pytest.mark.parametrize("name", sorted(name for name in BOTH if "winograd" not in name))
@ONE
@given(data=st.data())
def test_every_op(name, precision, data):
    """Value and gradients, on arguments of the rows in ops/ and fast/; winograd.py's ops are NumPy's alone."""
    arrays, static = data.draw(BOTH[name].arguments)

    def run():
        leaves = [Tensor(asarray(a, "float32"), requires_grad=True) for a in arrays]
        y = OPS[name](*leaves, **static)
        y.backward(standard_normal(default_rng("cotangent"), y.shape))
        return [y.data, *(leaf.grad for leaf in leaves)]

    same_numbers(run, precision, times=10, least=1.0)  # 10: a group of few near numbers, 1 / deviation = 10


def test_a_device_that_is_not_there_fails_the_suite():
    """pytest --backend cupy without a usable GPU is an error that says so, with no test run: never green."""
    run = [sys.executable, "-m", "pytest", "--backend", "cupy", "-p", "no:cacheprovider", "tests/test_backend.py"]
    hidden = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1"}  # where there is one
    out = subprocess.run(run, capture_output=True, text=True, timeout=120, cwd=Path(__file__).parents[1], env=hidden)
    assert out.returncode == pytest.ExitCode.USAGE_ERROR and "backend 'cupy'" in out.stderr
    assert "passed" not in out.stdout and "skipped" not in out.stdout
