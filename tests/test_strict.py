"""The strict device: it refuses what a mistake is on CuPy, counts what waits for a GPU, and computes as NumPy does.

Whole computations of the package then have the same bits on it as on NumPy, and a training step does not wait.
"""

import math
import sys
import types
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import emulate
import numpy as np
import pytest
import strict

from tinydiff import ops
from tinydiff.app import run
from tinydiff.app.alone import one_process
from tinydiff.app.training import diffusion_training
from tinydiff.autograd import Tensor, no_grad
from tinydiff.backend import FAST, asarray, backend_name, default_rng, standard_normal, to_numpy, xp
from tinydiff.data import Dataset
from tinydiff.diffusion import (
    Schedule,
    classifier_free,
    ddim_step,
    ddpm_step,
    q_sample,
    sample,
    sampled_bound,
    timestep_pairs,
    unconditional,
    variational_bound,
)
from tinydiff.fast import gpu, kernels, winograd
from tinydiff.fast.optim import Flat
from tinydiff.fast.workers import Workers
from tinydiff.more.classifier import Classifier, cross_entropy
from tinydiff.nn import UNet
from tinydiff.optim import EMA, Adam, clip_grad_norm
from tinydiff.train import TrainConfig, draw_batch, noise_prediction_losses, train

pytestmark = pytest.mark.engine


with_kernels = pytest.mark.skipif(emulate.COMPILER is None, reason=emulate.REASON)
on_numpy, on_device = partial(strict.backend, "numpy"), partial(strict.backend, "cupy", rounding="float32")


@contextmanager
def counted():
    """The waits within the block, once it is left."""
    found: dict[str, int] = {}
    before = strict.syncs.copy()
    yield found
    found.update(strict.syncs - before)


def host():
    return np.arange(6, dtype="float32").reshape(2, 3)


def assign(x, index, value):
    x[index] = value
    return x


def add_in_place(x, y):
    x += y


def add_at(x, index, value):
    x[index] += value


# One mistake a line: what it is, the code, and what the device says.  x: an array of the backend, h: the same on the
# host.  Each runs on NumPy.
MISTAKES: list[tuple[str, Any, str]] = [
    # From the device to the host by the way.
    ("np.asarray(x)", lambda x, h: np.asarray(x), "use to_numpy"),
    ("np.array([x, x])", lambda x, h: np.array([x, x]), "use to_numpy"),
    ("np.exp(x)", lambda x, h: np.exp(x), "use xp.exp"),
    ("np.sum(x)", lambda x, h: np.sum(x), "use xp.sum"),
    ("np.add.reduce(x)", lambda x, h: np.add.reduce(x), "use xp.add"),
    ("np.concatenate([x, x])", lambda x, h: np.concatenate([x, x]), "use xp.concatenate"),
    ("np.testing", lambda x, h: np.testing.assert_array_equal(x, x), "use to_numpy"),
    ("x.tobytes()", lambda x, h: x.tobytes(), "waits"),
    # Host and device in one expression.
    ("x + h", lambda x, h: x + h, "a host array"),
    ("h + x", lambda x, h: h + x, "device arrays only"),
    ("h == x", lambda x, h: h == x, "device arrays only"),
    ("x @ h.T", lambda x, h: x @ h.T, "a host array"),
    ("x += h", add_in_place, "a host array"),
    ("h += x", lambda x, h: add_in_place(h, x), "device arrays only"),
    ("np.array(2) * x", lambda x, h: np.array(2, "float32") * x, "device arrays only"),
    ("x[0] = h[0]", lambda x, h: assign(x, 0, h[0]), "a host array"),
    ("h[0] = x[0]", lambda x, h: assign(h, 0, x[0]), "use to_numpy"),
    ("np.float32(x[0, 0])", lambda x, h: np.float32(x[0, 0]), "use to_numpy"),
    ("h[x]", lambda x, h: h[x.astype("int64") % 2], "use to_numpy"),
    ("list[x]", lambda x, h: list(range(99))[x.astype("int64").sum()], "integers or slices"),
    ("x[:n]", lambda x, h: x[: x.astype("int64").min()], "integers or None"),
    ("x + list", lambda x, h: x + [1.0, 2.0, 3.0], "a list"),
    ("xp.exp(x, out=h)", lambda x, h: xp.exp(x, out=h), "a host array"),
    ("xp.add(x, x, h)", lambda x, h: xp.add(x, x, h), "a host array"),
    ("xp.where(m, h, x)", lambda x, h: xp.where(x > 0, h, x), "a host array"),
    ("xp.stack of numbers", lambda x, h: xp.stack([1.0, 2.0]), "joins arrays only"),
    ("xp.concatenate([x, list])", lambda x, h: xp.concatenate([x, [[1.0, 2.0, 3.0]]]), "joins arrays only"),
    ("xp.concatenate([x, h])", lambda x, h: xp.concatenate([x, h]), "a host array"),
    ("xp.full(2, h[0])", lambda x, h: xp.full((2, 3), h[0]), "a host array"),
    # What CuPy computes on the host, or copies at each use.
    ("xp.sum(h)", lambda x, h: xp.sum(h), "a host array"),
    ("xp.tanh(h)", lambda x, h: xp.tanh(h), "a host array"),
    ("xp.ascontiguousarray(h)", lambda x, h: xp.ascontiguousarray(h), "a host array"),
    ("x[host indices]", lambda x, h: x[np.array([1, 0])], "indices on the host"),
    ("x[list]", lambda x, h: x[:, [0, 2]], "indices on the host"),
    ("x[host indices] = 1", lambda x, h: assign(x, np.array([1, 0]), 1), "indices on the host"),
    ("xp.take(x, host indices)", lambda x, h: xp.take(x, np.array([0, 1]), 0), "a host array"),
    # The host has to learn a number before it can go on.
    ("x[mask]", lambda x, h: x[x > 2], "a boolean mask"),
    ("x[mask] = 0", lambda x, h: assign(x, x > 2, 0), "a boolean mask"),
    ("x[True]", lambda x, h: x[True], "a boolean mask"),
    ("xp.where(mask)", lambda x, h: xp.where(x > 2), "has to count"),
    ("xp.nonzero(x)", lambda x, h: xp.nonzero(x), "'nonzero' to use"),
    ("x.nonzero()", lambda x, h: x.nonzero(), "'nonzero' to use"),
    ("xp.unique(x)", lambda x, h: xp.unique(x), "'unique' to use"),
    ("sliding windows", lambda x, h: xp.lib.stride_tricks.sliding_window_view(x, (2, 2)), "'lib.stride_tricks.sliding"),
    # Not defined where many threads write at once.
    ("x[twice] = y", lambda x, h: assign(x, asarray(np.array([0, 0])), x), "two values for one place"),
    ("x[-1 and 1] = y", lambda x, h: assign(x, asarray(np.array([-1, 1])), x), "two values for one place"),
    ("x[twice] += 1", lambda x, h: add_at(x, asarray(np.array([0, 0])), 1), "two values for one place"),
    ("xp.add.at", lambda x, h: xp.add.at(x, asarray(np.array([0, 0])), 1), "no fixed order"),
    ("xp.random", lambda x, h: xp.random.default_rng(0), "'random' to use"),
    # float64 where nobody asked for it.
    ("x * np.float64", lambda x, h: x * np.float64(2), "float32 became float64"),
    ("np.float64 * x", lambda x, h: np.float64(2) * x, "float32 became float64"),
    ("x * xp.sqrt(2.0)", lambda x, h: x * xp.sqrt(2.0), "float32 became float64"),
    ("x * xp.ones(3)", lambda x, h: x * xp.ones(3), "float32 became float64"),
    ("x * xp.arange(3)", lambda x, h: x * xp.arange(3), "float32 became float64"),
    ("x.clip(np.float64)", lambda x, h: x.clip(np.float64(1), None), "float32 became float64"),
    ("xp.where(m, x, float64)", lambda x, h: xp.where(x > 0, x, xp.zeros(3)), "float32 became float64"),
    ("xp.concatenate([x, float64])", lambda x, h: xp.concatenate([x, xp.zeros((1, 3))]), "float32 became float64"),
    # Names and arguments that CuPy lacks.
    ("xp.errstate", lambda x, h: xp.errstate(), "'errstate' to use"),
    ("xp.insert", lambda x, h: xp.insert(x, 0, 1), "'insert' to use"),
    ("xp.linalg.vector_norm", lambda x, h: xp.linalg.vector_norm(x), "'linalg.vector_norm' to use"),
    ("xp.maximum.reduce", lambda x, h: xp.maximum.reduce(x), r"xp\.maximum\.reduce"),
    ("xp.sum(where=)", lambda x, h: xp.sum(x, where=x > 0), r"takes no \['where'\]"),
    ("x.mean(where=)", lambda x, h: x.mean(where=x > 0), r"takes no \['where'\]"),
    ("x.max(initial=)", lambda x, h: x.max(initial=9), r"takes no \['initial'\]"),
    ("xp.exp(where=)", lambda x, h: xp.exp(x, out=x.copy(), where=x > 0), r"takes no \['where'\]"),
    ("xp.clip(where=)", lambda x, h: xp.clip(x, 0, 1, out=x.copy(), where=x > 0), r"takes no \['where'\]"),
    ("xp.einsum(out=)", lambda x, h: xp.einsum("ij->i", x, out=x[:, 0]), r"takes no \['out'\]"),
    ("xp.max of six", lambda x, h: xp.max(x, 0, None, False, -9.0, x > -1), "6 arguments by position, CuPy takes 4"),
    ("xp.ndarray(buffer)", lambda x, h: xp.ndarray((2, 2), x.dtype, x, 0, (4, 4)), "made by xp.empty"),
    ("x.setflags", lambda x, h: x.setflags(write=False), "'setflags' to use"),
    ("x.flat", lambda x, h: x.flat, "'flat' to use"),
]


@pytest.mark.parametrize("code, message", [pytest.param(*row[1:], id=row[0]) for row in MISTAKES])
def test_a_mistake_that_numpy_lets_pass_is_refused(code, message):
    """Each line of MISTAKES runs on NumPy, and on the device is an error that says why."""
    with on_numpy():
        code(asarray(host()), host())
    with on_device():
        x = asarray(host())
        with pytest.raises((TypeError, AttributeError, ValueError), match=message):
            code(x, host())


WAITS: list[tuple[str, Any, str]] = [
    ("to_numpy(x)", to_numpy, "get"),
    ("float(x.sum())", lambda x: float(x.sum()), "float"),
    ("int(x[1, 2])", lambda x: int(x[1, 2]), "int"),
    ("math.sqrt(x.sum())", lambda x: math.sqrt(x.sum()), "float"),
    ("if x.any()", lambda x: 1 if x.any() else 0, "bool"),
    ("x.max() > 3 and ...", lambda x: x.max() > 3 and 1, "bool"),
    ("max of two sums", lambda x: max(x[0].sum(), x[1].sum()), "bool"),
    ("h[0, 0] = x[1, 2]", lambda x: assign(host(), (0, 0), x[1, 2]), "float"),
    ("x.sum().item()", lambda x: x.sum().item(), "item"),
    ("x.tolist()", lambda x: x.tolist(), "tolist"),
    ("f'{x.sum():.2f}'", lambda x: f"{x.sum():.2f}", "format"),
    ("print(x)", repr, "repr"),
]


@pytest.mark.parametrize("code, kind", [pytest.param(*row[1:], id=row[0]) for row in WAITS])
def test_what_waits_for_the_device_is_counted_and_answers_as_numpy_does(code, kind):
    """Each line of WAITS counts one wait, under the name of what was asked for."""
    with on_numpy():
        expected = code(asarray(host()))
    with on_device():
        x = asarray(host())
        with counted() as waits:
            found = code(x)
        assert waits == {kind: 1}
        assert found == f"device {expected}" if kind == "repr" else np.array_equal(to_numpy(found), expected)


@pytest.mark.parametrize("index", [[0, 2], [-3]])
def test_an_index_out_of_range_is_an_error_as_in_numpy(index):
    """CuPy would wrap it around and take another element."""
    with on_device():
        x, index = asarray(host()), asarray(np.array(index))
        for code in (lambda: x[index], lambda: assign(x, index, 1), lambda: xp.take(x, index, 0)):
            with pytest.raises(IndexError, match="out of bounds"):
                code()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_memory_that_nobody_wrote_to_holds_no_number(dtype):
    """empty and empty_like are full of NaN, which every sum then shows; integers are the largest there are."""
    with on_device():
        for a in (xp.empty((2, 3), dtype), xp.empty_like(xp.zeros((2, 3), dtype))):
            assert a.dtype == dtype and np.isnan(to_numpy(a)).all()
            a[:, :2] = 1
            assert np.isnan(to_numpy(a.sum(1))).all()
        assert (to_numpy(xp.empty(3, "uint8")) == 255).all()


RIGHT = [
    lambda x: (2 - x) / (1 + x) + x**2 - x // 2 + x % 2,
    lambda x: [x > 2, x == 2, (x >= 1) & ~(x < 4) | (x != 0), abs(-x), +x],
    lambda x: [np.float32(2) * x, x * np.float32(0.1), xp.sqrt(2.0), x + True],
    lambda x: [x.T @ x, (x + Tensor(x)).data, (Tensor(x.T) @ x).data, (x - Tensor(x + 1)).data],
    lambda x: [x[1, 2], x[..., None, ::2], x[asarray(np.array([1, 0, 1]))], x[:, -1], *x],
    lambda x: [x.sum(), x.mean(0), x.max((0, 1), keepdims=True), x.std(0, ddof=1), x.argmax()],
    lambda x: xp.where(x.T > 2, x.T, -math.inf).reshape(-1),
    lambda x: xp.stack([x, x]).transpose(2, 0, 1).astype("float64").swapaxes(0, 1).copy(),
    lambda x: xp.lib.stride_tricks.as_strided(x, (2, 2, 2), (12, 4, 4)),
    lambda x: [xp.linalg.norm(x), xp.tensordot(x, x, 2), xp.divmod(x, 2)[0], x.sum(0, dtype="float64")],
    lambda x: [asarray(x) is x, xp.array(x) is x, asarray(x, "float64")],
    lambda x: [xp.shares_memory(x, x[1:]), xp.shares_memory(x, x.copy()), xp.pi, len(x), x.T.strides == (4, 12)],
]


@pytest.mark.parametrize("code", RIGHT, ids=range(len(RIGHT)))
def test_what_is_right_runs_and_gives_numpys_bits_without_a_wait(code):
    """Operators, indices, reductions, views: none is refused, and none waits."""

    def run():
        result = code(asarray(host()))
        return result if isinstance(result, list) else [result]

    with on_numpy():
        expected = run()
    with on_device():
        with counted() as waits:
            found = run()
        assert waits == {}
        same_bits(list(map(to_numpy, found)), list(map(np.asarray, expected)))


def test_changes_in_place_reach_the_memory_and_the_names_that_share_it():
    """x += y, x[i] = y and out= write where a view of x looks, and asarray takes a copy from the host."""
    h = host()
    with on_device():
        x = asarray(h)
        view, corner, same = x[1], x[0, 0], x
        x += 1
        corner[...] += 6
        x[1, :2] = -1
        xp.multiply(x[:, 2], 2, out=x[:, 2])
        assert same is x
        np.testing.assert_array_equal(to_numpy(view), [-1, -1, 12])
        np.testing.assert_array_equal(to_numpy(x[0]), [7, 2, 6])
        np.testing.assert_array_equal(h, host())
        to_numpy(x)[...] = 0
        assert to_numpy(x).any()


def test_new_arrays_lie_in_c_order_as_on_a_device():
    """A ufunc of transposed arrays, where and clip give C order on CuPy; NumPy follows its operands."""
    with on_device():
        x = asarray(host()).T
        for y in (x + x, xp.exp(x), xp.where(x > 0, x, 0), xp.clip(x, 0, 1), x.copy()):
            assert y.flags.c_contiguous and not x.flags.c_contiguous


def test_the_device_ends_with_its_block():
    """After it the backend is what it was, also where the block raised; within it the device may be entered again."""
    before = backend_name(), xp.ndarray, sys.modules.get("cupy")
    with pytest.raises(ZeroDivisionError):
        with on_device():
            with on_device(numpy_for_cupy()):
                assert backend_name() == "cupy" and xp.ndarray is np.ndarray
            assert xp.ndarray is strict.DeviceArray
            1 / 0  # noqa: B018
    assert (backend_name(), xp.ndarray, sys.modules.get("cupy")) == before


@with_kernels
def test_the_kernels_of_one_backend_are_not_kept_for_another():
    """Each block has its own: within, those of host arrays; after it, those that refuse them again."""
    with on_device():
        x = asarray(host())
        expected = to_numpy(kernels.silu(x))
        with on_device(numpy_for_cupy()):
            np.testing.assert_array_equal(kernels.silu(host()), expected)
        with pytest.raises(TypeError, match="a host array"):
            kernels.launch("silu", 6, x, host())


@with_kernels
def test_a_kernel_takes_contiguous_arrays_of_the_device_only():
    """A host array is a TypeError as elsewhere; one that does not lie as the kernel walks it never gets there."""
    with on_device():
        x = asarray(host())
        out = xp.empty(x.shape, x.dtype)
        kernels.launch("silu", 4, x, out)
        np.testing.assert_array_equal(np.isnan(to_numpy(out)), [[False] * 3, [False, True, True]])
        for arguments in [(host(), out), (x, host())]:
            with pytest.raises(TypeError, match="a host array"):
                kernels.launch("silu", 6, *arguments)
        for arguments in [(x.T, out), (x.astype("float64"), out)]:
            with pytest.raises(AssertionError):
                kernels.launch("silu", 6, *arguments)


# Whole computations, each a function of the dtype that returns host arrays.

LABELS = [2, 0, 2]  # one of them twice: its gradients add up


def numpy_for_cupy():
    """NumPy under CuPy's name: it goes the ways of a device, with plain arrays."""
    module: Any = types.ModuleType("cupy")
    module.__getattr__ = partial(getattr, np)
    module.cuda, module.RawModule = strict.cupy.cuda, partial(strict.RawModule, host_too=True)
    module._core = strict.cupy._core
    return module


def network(dtype):
    """A U-Net of every kind of layer, wide enough for winograd.py, no weight of which is 0."""
    rng = default_rng("network")
    shape = {"base_channels": 16, "channel_mults": (1, 2), "attention_levels": (1,), "num_groups": 4}
    model = UNet(**shape, num_heads=2, num_classes=3, rng=rng)
    for p in model.parameters():
        p.data = asarray(0.2 * rng.standard_normal(p.shape), dtype)
    return model


def example(dtype):
    """(x_0, eps, t), x_0 of 8-bit values."""
    rng = default_rng("example")
    x_0 = rng.integers(0, 256, (3, 8, 8, 1)) / 127.5 - 1
    return asarray(x_0, dtype), standard_normal(rng, x_0.shape, dtype), rng.integers(1, 101, 3)


def loss_of(model, dtype):
    x_0, eps, t = example(dtype)
    batch = {"x_t": q_sample(Schedule.linear(100), x_0, t, eps), "target": eps, "t": t, "labels": np.array(LABELS)}
    return ops.mean(noise_prediction_losses(model, batch))


def gradients(dtype):
    model = network(dtype)
    loss = loss_of(model, dtype)
    loss.backward()
    return [to_numpy(loss), *(to_numpy(p.grad) for p in model.parameters())]


def training_steps(dtype):
    model = network(dtype)
    parameters = [Flat(model.parameters())] if FAST else model.parameters()
    adam, ema, norms = Adam(parameters), EMA(parameters), []
    for _ in range(3):
        adam.zero_grad()
        loss_of(model, dtype).backward()
        norms.append(np.array(float(clip_grad_norm(parameters, 0.1))))
        adam.step(1e-2)
        ema.update()
    weights, grads = zip(*((p.data, p.grad) for p in parameters))
    return [*norms, *(to_numpy(a) for a in (*weights, *grads, *adam.m, *adam.v, *ema.average))]


def classifier_gradients(dtype):
    model = Classifier(1, (16, 20), 3, rng=default_rng("classifier"))
    for p in model.parameters():
        p.data = asarray(p.data, dtype)
    losses = cross_entropy(model(example(dtype)[0]), LABELS)
    losses.backward(xp.ones_like(losses.data))
    return [to_numpy(losses), *(to_numpy(p.grad) for p in model.parameters())]


def drawn(step, eps_fn, dtype):
    schedule, rng = Schedule.linear(100), default_rng("chain")
    x_T = standard_normal(rng, (3, 8, 8, 1), dtype)
    with no_grad():
        return [
            to_numpy(x_t) for _, x_t, _ in sample(partial(step, schedule), eps_fn, timestep_pairs(100, 5), x_T, rng)
        ]


def ddpm(dtype):
    return drawn(partial(ddpm_step, clip=True), unconditional(network(dtype)), dtype)


def ddim_with_guidance(dtype):
    return drawn(partial(ddim_step, eta=0.5, clip=True), classifier_free(network(dtype), LABELS, 3.0), dtype)


def bound(dtype):
    """Every term of the bound, and the bound from drawn times."""
    schedule, model, x_0 = Schedule.linear(100), network(dtype), example(dtype)[0]
    with no_grad():
        terms = variational_bound(schedule, unconditional(model), x_0, 5, default_rng("bound"))
        rows, t = sampled_bound(schedule, unconditional(model), x_0, 5, 2, default_rng("bound"))
    return [to_numpy(terms), to_numpy(rows), t]


COMPUTATIONS = [gradients, training_steps, classifier_gradients, ddpm, ddim_with_guidance, bound]
BY_CONV_CU = (gradients, classifier_gradients)  # the others call the same networks, and its text takes long here


def same_bits(found, expected):
    assert len(found) == len(expected) > 0
    for a, b in zip(found, expected):
        assert type(a) is type(b) is np.ndarray and (a.dtype, a.shape) == (b.dtype, b.shape)
        assert a.tobytes() == b.tobytes()


@with_kernels
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("compute", COMPUTATIONS)
def test_a_whole_computation_has_the_same_bits_on_the_device(compute, dtype):
    """Where both go the device's way: its kernels, whole batches at once.  So nothing unwritten was read, either."""
    strict.has_tensor_cores(compute in BY_CONV_CU)
    with on_device(numpy_for_cupy()):
        expected = compute(dtype)
    with on_device():
        found = compute(dtype)
    same_bits(found, expected)
    assert all(np.isfinite(a).all() for a in found)


@with_kernels
@pytest.mark.parametrize("dtype, bound", [("float32", 2e-3), ("float64", 1e-10)])
@pytest.mark.parametrize("compute", [c for c in COMPUTATIONS if c is not training_steps])  # Adam makes noise as large
def test_the_ways_of_numpy_and_of_a_device_agree_up_to_rounding(compute, dtype, bound):
    """Winograd, slices that stay in cache, products in pieces, and no kernels: other sums, the same numbers."""
    strict.has_tensor_cores(compute in BY_CONV_CU)
    with on_numpy():
        x = np.zeros((3, 8, 8, 16))
        assert winograd.pays(x, np.zeros((3, 3, 16, 16)), 1, 1)
        expected = compute(dtype)
    with on_device():
        found = compute(dtype)
    scale = max(abs(b).max() for b in expected)
    for a, b in zip(found, expected):
        np.testing.assert_allclose(a, b, rtol=0, atol=bound * scale)


@with_kernels
@pytest.mark.parametrize("dtype, bound", [("float32", 2e-3), ("float64", 1e-10)])
@pytest.mark.parametrize("compute", COMPUTATIONS)
def test_the_plain_forms_run_on_a_device_too(compute, dtype, bound):
    """The book as it stands: CuPy's rules refuse nothing in it, and it needs no kernel."""
    emulate.launched.clear()
    with strict.backend("numpy", plain=True):
        expected = compute(dtype)
    with strict.backend("cupy", plain=True):
        found = compute(dtype)
    assert not emulate.launched
    scale = max(abs(b).max() for b in expected)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=bound * scale)


# What waits.


@pytest.fixture
def dataset():
    rng = default_rng("pictures")
    images, labels = rng.integers(0, 256, (20, 8, 8, 1), "uint8"), rng.integers(0, 3, 20).astype("uint8")
    return Dataset("noise", images, labels, "", "abc")


@pytest.fixture
def start(dataset):
    """A function that starts a run on the device."""
    config = TrainConfig(num_steps=9, minutes=None, batch_size=4)
    with on_device(), Workers(partial(network, "float32"), 1) as workers:
        yield lambda **more: diffusion_training(workers, Schedule.linear(100), replace(config, **more), dataset)


@with_kernels
def test_a_training_step_that_leaves_the_loss_on_the_device_does_not_wait(start, dataset):
    """Batch, noise, forward, backward, Adam and average: the host only gives orders."""
    state = start()
    next(train(state))
    with counted() as waits:
        batch = draw_batch(dataset, Schedule.linear(100), 3, state.config, state.step)
        state.adam.zero_grad()
        loss = ops.mean(noise_prediction_losses(state.model, batch))
        loss.backward()
        state.adam.step()
        state.ema.update()
    assert waits == {}
    assert math.isfinite(float(loss.data))


@with_kernels
def test_a_training_step_does_not_wait(start):
    """The losses, which become metrics, and the gradient's norm, by which it is clipped, stay on the device."""
    state = start()
    steps = train(state)
    next(steps)
    with counted() as waits:
        next(steps)
    assert waits == {}
    with counted() as waits:
        assert len(state.metrics()) == 2
        assert len(state.metrics()) == 2
    assert waits == {"get": 2}


@with_kernels
def test_the_loop_of_the_demos_waits_where_it_makes_rows_only(start, monkeypatch):
    """app/run.py with its progress bar: no step of its waits for the device but those with a period's rows, and the
    one in which the recorded step is tested against the ordered one."""
    strict.has_tensor_cores(False)
    monkeypatch.setattr(gpu, "PERIOD", 3)
    state = start(num_steps=8)
    waited, steps = [], iter(range(10))

    class Bar(run.tqdm):
        def update(self):
            waited.append(sum(strict.syncs.values()))
            return super().update()

    monkeypatch.setattr(run, "tqdm", Bar)
    run.run(state, one_process(), lambda: next(steps), 100)  # saves at the start and at the end: saving waits
    # After steps 2..8: the test and rows of three steps in step 4, rows in step 7, and at the end.
    assert np.diff(waited).tolist() == [0, 0, 4, 0, 0, 2, 2]
    assert next(steps) == 2 and len(state.rows) == 8


@with_kernels
@pytest.mark.parametrize("step", [ddpm_step, ddim_step])
def test_sampling_does_not_wait(step):
    """A chain runs ahead of the device from x_T to x_0, with guidance too."""
    with on_device():
        schedule, rng = Schedule.linear(100), default_rng("chain")
        eps_fn, x_T = classifier_free(network("float32"), LABELS, 2.0), standard_normal(rng, (3, 8, 8, 1))
        with counted() as waits, no_grad():
            *_, (t, x_0, _) = sample(partial(step, schedule, clip=True), eps_fn, timestep_pairs(100, 5), x_T, rng)
        assert waits == {} and t == 0
        assert np.isfinite(to_numpy(x_0)).all()


@with_kernels
def test_the_bound_waits_for_its_last_term_only():
    """The decoder checks that x_0 holds 8-bit values, and takes erfc, which NumPy and CuPy lack, from Python's math."""
    with on_device():
        x_0, model = example("float32")[0], network("float32")
        with counted() as waits, no_grad():
            variational_bound(Schedule.linear(100), unconditional(model), x_0, 5, default_rng("bound"))
        assert waits == {"bool": 1, "get": 2}
