"""Each GPU kernel's text, compiled for the host, does what the NumPy way of its op does."""

import math
import re

import emulate
import numpy as np
import pytest
from draws import SEEDS, host_normal
from hypothesis import given
from hypothesis import strategies as st

from tinydiff import ops
from tinydiff.autograd import Tensor
from tinydiff.backend import backend_name, default_rng, xp
from tinydiff.fast import kernels, winograd
from tinydiff.fast.conv import conv2d_plus
from tinydiff.fast.norm import group_norm_silu
from tinydiff.fast.optim import Flat
from tinydiff.muon import Muon
from tinydiff.nn import UNet
from tinydiff.optim import EMA, Adam, clip_grad_norm

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(emulate.COMPILER is None, reason=emulate.REASON),
    pytest.mark.skipif(backend_name() != "numpy", reason="the kernels are run on the host, on NumPy arrays"),
]

SIZES = st.integers(1, 4)


def each_way(compute, lanes=1):
    """What compute() returns the NumPy way, and the GPU's way with so many lanes."""
    results = []
    for gpu in (False, True):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(winograd, "pays", lambda *_: False)
            if gpu:
                emulate.install(patch, lanes)
                patch.setattr(xp, "empty", lambda shape, dtype=float: np.full(shape, np.nan, dtype))  # all is written
            results.append(compute())
    return results


def both_ways(f, *arrays, g_seed=1, lanes=1, **static):
    """[output, gradient of each input] the NumPy way and the GPU's way."""

    def compute():
        leaves = [Tensor(a.copy(), requires_grad=True) for a in arrays]
        y = f(*leaves, **static)
        y.backward(*host_normal(g_seed, y.shape, dtype=y.dtype))
        return [y.data, *(leaf.grad for leaf in leaves)]

    return each_way(compute, lanes)


def agree(found, bound):
    for a, b in zip(*found, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(b, a, rtol=bound, atol=bound * max(1, abs(a).max(initial=0)))


@given(st.data(), SEEDS, SIZES, SIZES, SIZES)
def test_convolution(data, seed, n, c, o):
    """im2col, col2im and what is added: every kernel size, stride and padding, narrow and wide, float64."""
    kh, kw, stride, padding = (data.draw(s) for s in (st.integers(1, 5), st.integers(1, 5), SIZES, st.integers(0, 3)))
    h, w = (max(1, k - 2 * padding) + data.draw(st.integers(0, 5)) for k in (kh, kw))
    oh, ow = ((size + 2 * padding - k) // stride + 1 for size, k in ((h, kh), (w, kw)))
    plus = data.draw(st.sampled_from([[], [(n, o)], [(n, oh, ow, o)]]))
    arrays = host_normal(seed, (n, h, w, c), (kh, kw, c, o), (o,), *plus)
    op = conv2d_plus if plus else ops.conv2d
    agree(both_ways(op, *arrays, stride=stride, padding=padding), 1e-12)


@pytest.mark.parametrize("shift", range(4))
def test_where_memory_begins_at_any_number_every_number_is_reached(shift):
    """Four neighbours are moved as one only where their address allows it: maps that begin just after one."""
    x, w, b, plus, g = (np.empty(a.size + 4)[shift:][: a.size].reshape(a.shape) for a in host_normal(0, *ALIGNED))
    for i, a in enumerate((x, w, b, plus, g)):
        a[...] = host_normal(i, a.shape)[0]

    def compute():
        leaves = [Tensor(a, requires_grad=True) for a in (x, w, b, plus)]
        ops.concat(conv2d_plus(*leaves, padding=1), leaves[0]).backward(np.concatenate([g, x], -1))
        return [leaf.grad for leaf in leaves]

    agree(each_way(compute), 1e-12)


ALIGNED = (2, 5, 4, 8), (3, 3, 8, 4), (4,), (2, 4), (2, 5, 4, 4)
LANES = st.sampled_from([1, 2, 4])  # of a block


@given(
    SEEDS, SIZES, st.integers(1, 9), st.integers(1, 9), SIZES, SIZES, st.booleans(), st.sampled_from([1e-5, 0.1]), LANES
)
def test_group_norm(seed, n, h, w, num_groups, width, silu, eps, lanes):
    """Maps of 1 to 81 pixels, by one lane or by several, which add up what each found; with SiLU and without."""
    c = num_groups * width
    x, gamma, beta = host_normal(seed, (n, h, w, c), (c,), (c,))
    op = group_norm_silu if silu else ops.group_norm
    # 1e-9: of few pixels the deviation may be near 0, which enlarges what was rounded to 1e-16.
    agree(both_ways(op, x, gamma, beta, lanes=lanes, num_groups=num_groups, eps=eps), 1e-9)


@pytest.mark.parametrize("mean", [1000, -1000])
def test_group_norm_of_values_far_from_0_keeps_its_digits(mean):
    """All numbers near 1,000 or near -1,000, deviation 1, in float32: as near to the float64 result as NumPy's way."""
    x, gamma, beta = host_normal(0, (3, 14, 14, 16), (16,), (16,), dtype="float32")
    x += np.float32(mean)
    exact, _ = both_ways(group_norm_silu, *(a.astype("float64") for a in (x, gamma, beta)), num_groups=4)
    _, found = both_ways(group_norm_silu, x, gamma, beta, num_groups=4)
    for a, b in zip(found[:2], exact[:2]):
        assert abs(a - b).max() <= 1e-3 * abs(b).max()  # see test_norm.py


@given(SEEDS, SIZES, st.sampled_from([0, 1, 5, 64, 65, 128]), SIZES, SIZES)
def test_linear(seed, n, rows, i, o):
    """An affine map of few rows, one launch each way, and of many: 4 x 64 = 256 is the border."""
    x, w, b = host_normal(seed, (n, rows, i), (i, o), (o,))
    agree(both_ways(ops.linear, x, w, b), 1e-12)


@pytest.mark.parametrize("rows, launched", [(256, ["linear", "linear_backward"]), (257, ["add_bias", "sum_segments"])])
def test_an_affine_map_of_few_rows_is_one_launch_each_way(monkeypatch, rows, launched):
    """Forward, and the gradients of w and b together."""
    emulate.install(monkeypatch)
    emulate.launched.clear()
    x, w, b = (Tensor(a, requires_grad=True) for a in host_normal(0, (rows, 3), (3, 2), (2,)))
    ops.linear(x, w, b).backward(*host_normal(1, (rows, 2)))
    assert sorted(emulate.launched) == launched


def test_rows_with_a_one_are_as_wide_as_tensor_cores_like(monkeypatch):
    """A multiple of four numbers: the taps, a 1, zeros."""
    emulate.install(monkeypatch)
    for c in range(1, 9):
        (x,) = host_normal(c, (2, 5, 4, c))
        rows = kernels.im2col(x, 2, 1, 4, 4, 1, 0, one=True)
        assert rows.shape == (32, 2 * c // 4 * 4 + 4)
        np.testing.assert_array_equal(rows[:, : 2 * c], kernels.im2col(x, 2, 1, 4, 4, 1, 0))
        assert (rows[:, 2 * c] == 1).all() and (rows[:, 2 * c + 1 :] == 0).all()


@given(SEEDS, st.lists(st.integers(0, 3), max_size=3).map(tuple), SIZES, SIZES, st.integers(1, 3))
def test_concat(seed, lead, c, d, count):
    """Two arrays have a kernel, and cutting g has; one or three do without."""
    arrays = host_normal(seed, *[(*lead, c), (*lead, d), (*lead, c)][:count])
    agree(both_ways(ops.concat, *arrays), 0)


@given(SEEDS, st.lists(st.integers(0, 4), max_size=3).map(tuple))
def test_silu(seed, shape):
    """Any shape, an empty one too."""
    agree(both_ways(ops.silu, *host_normal(seed, shape)), 1e-13)


@given(SEEDS, SIZES, SIZES, st.integers(1, 20), st.integers(1, 20))
def test_softmax_and_attention(seed, n, heads, l, m):
    """Rows of 1 to 20 scores, and the whole of attention; large scores do not overflow."""
    (x,) = host_normal(seed, (n, heads, l, m))
    agree(both_ways(ops.softmax, 300 * x), 1e-12)
    q, k, v = host_normal(seed, (n, heads, l, 3), (n, heads, m, 3), (n, heads, m, 2))
    agree(both_ways(ops.attention, q, k, v), 1e-12)


@given(SEEDS, SIZES, SIZES, st.lists(st.integers(0, 3), max_size=2).map(tuple))
def test_taking_rows(seed, rows, width, shape):
    """Rows that are picked several times, once or never; no picks at all."""
    (x,) = host_normal(seed, (rows, width))
    agree(both_ways(ops.take, x, indices=default_rng(seed).integers(0, rows, shape)), 1e-13)


@pytest.mark.parametrize("shift", [-1e5, 1e5])
def test_softmax_of_rows_far_from_0_is_that_of_the_rows(shift):
    """Of numbers far below 0 the largest is one of them, and not 0, from which every other would underflow."""
    (x,) = host_normal(0, (3, 5))
    (still, *_), (moved, *_) = both_ways(ops.softmax, x)[1], both_ways(ops.softmax, x + shift)[1]
    np.testing.assert_allclose(moved, still, rtol=1e-9)  # 1e5 leaves 1e-11 of a number near 1


@pytest.mark.parametrize("size", [1, 2, 300])
def test_the_norm_before_clipping_comes_back_whatever_the_size(size):
    """A gradient of one number has a norm as well."""

    def compute():
        flat = Flat([Tensor(np.zeros(size), requires_grad=True)])
        flat.grad[...] = host_normal(0, (size,))[0]
        return [np.array(float(clip_grad_norm([flat], 0.01))), flat.grad]

    agree(each_way(compute), 1e-14)


def test_clipping_adam_and_the_average():
    """Three steps, two of them clipped (the norm is about 17), with a learning rate that changes."""

    def compute():
        (start,) = host_normal(0, (300,))
        flat = Flat([Tensor(start, requires_grad=True)])
        adam, average, norms = Adam([flat]), EMA([flat], 0.9), []
        for step in range(3):
            flat.grad[...] = host_normal(step, (300,))[0]
            norms.append(float(clip_grad_norm([flat], (1.0, 100.0, 5.0)[step])))
            adam.step(0.1 / (1 + step))
            average.update()
        return [flat.data, flat.grad, *adam.m, *adam.v, *average.average, np.array(norms)]

    agree(each_way(compute), 1e-14)


def test_a_step_of_muon():
    """A matrix and a vector; test_muon_kernel.py says more of the kernel."""

    def compute():
        flat = Flat([Tensor(a, requires_grad=True) for a in host_normal(0, (20, 16), (5,))])
        flat.grad[...] = host_normal(1, (325,))[0]
        optimizer = Muon([flat])
        optimizer.step(0.1)
        return [flat.data, *optimizer.m, *optimizer.v]

    agree(each_way(compute), 1e-12)


@given(SEEDS, st.lists(st.one_of(st.none(), st.integers(0, 5)), min_size=1, max_size=12), st.sampled_from([1, 60]))
def test_gathering(seed, sizes, times):
    """1 to 720 arrays of any size end to end, so in 1 to 3 launches; one that is missing counts as 3 zeros."""
    parts = [None if size is None else host_normal(seed, (2, size))[0].T for size in sizes] * times
    sizes = [3 if part is None else part.size for part in parts]
    out = np.full(sum(sizes), np.nan)
    with pytest.MonkeyPatch.context() as patch:
        emulate.install(patch)
        kernels.gather(parts, sizes, out)
    expected = [np.zeros(3) if part is None else part.reshape(-1) for part in parts]
    np.testing.assert_array_equal(out, np.concatenate(expected))


@given(SEEDS, st.sampled_from([math.nan, math.inf, -math.inf, 1e200]), st.integers(0, 9))
def test_a_bad_norm_lets_nothing_be_updated(seed, bad, place):
    """One number that makes the norm nan or infinite: no bit of weights, moments and average changes, until it is good.

    Without clipping nothing was measured, and the norm counts as good.
    """
    with pytest.MonkeyPatch.context() as patch:
        emulate.install(patch)
        start, *gs = host_normal(seed, (10,), (10,), (10,), (10,))
        flat = Flat([Tensor(start, requires_grad=True)])
        adam, average, states = Adam([flat]), EMA([flat], 0.9), []
        for step, g in enumerate(gs):
            flat.grad[...] = g
            if step:
                flat.grad[place] = bad if step == 1 else g[place]
                clip_grad_norm([flat], 1.0)
            adam.step()
            average.update()
            states.append([a.copy() for a in (flat.data, *adam.m, *adam.v, *average.average)])
    np.testing.assert_array_equal(states[1], states[0])
    assert all((a != b).all() for state in states[::2] for a, b in zip(state, [start, 0 * start, 0 * start, start]))
    assert all((a != b).all() for a, b in zip(states[2], states[1])) and np.isfinite(states[2]).all()


def test_a_rate_that_is_not_finite_lets_nothing_be_updated():
    """The numbers of a step are nan: weights, moments and average keep every bit."""
    start = host_normal(0, (10,), (10,), (10,), (10,), (10,))
    theta, g, m, v, average = (a.copy() for a in start)
    with pytest.MonkeyPatch.context() as patch:
        emulate.install(patch)
        kernels.adam(theta, g, m, v, np.ones(()), np.full(2, math.nan), 0.9, 0.99)
        kernels.ema(average, theta, np.ones(()), np.full(1, math.nan))
    for a, before in zip((theta, g, m, v, average), start):
        np.testing.assert_array_equal(a, before)


@pytest.mark.parametrize("lanes", [1, 2, 8])
@pytest.mark.parametrize("size", [1, 7, 255, 256, 257, 4099, 65_536, 70_001])
def test_the_norm_counts_each_number_once(lanes, size):
    """A few parts of some lanes, up to 256 parts and further rounds: sums of whole numbers are exact."""
    g = np.random.default_rng(size).integers(-50, 51, size).astype(np.float64)
    before = g.copy()
    with pytest.MonkeyPatch.context() as patch:
        emulate.install(patch, lanes)
        norm = kernels.clip(g, 1e9)
    assert float(norm) == math.sqrt((before**2).sum())
    np.testing.assert_array_equal(g, before)


@pytest.mark.parametrize("dtype, bound", [("float64", 1e-9), ("float32", 1e-3)])
def test_a_whole_network(dtype, bound):
    """Output and all gradients of a small U-Net with attention at every level."""
    rng = default_rng(0)
    model = UNet(1, 8, (1, 2), num_heads=2, num_groups=4, attention_levels=(0, 1), rng=rng)
    start = [(0.1 + 0.3 * rng.standard_normal(p.shape)).astype(dtype) for p in model.parameters()]
    (x,) = host_normal(0, (3, 8, 12, 1), dtype=dtype)

    def compute():
        for p, value in zip(model.parameters(), start):
            p.data, p.grad = value.copy(), None
        leaf = Tensor(x, requires_grad=True)
        y = model(leaf, np.array([1, 500, 1000]))
        y.backward(*host_normal(1, y.shape, dtype=dtype))
        return [y.data, leaf.grad, *(p.grad for p in model.parameters())]

    found = each_way(compute)
    for a, b in zip(*found, strict=True):
        assert abs(a - b).max() <= bound * max(abs(a).max(), 1e-3 * max(abs(c).max() for c in found[0]))


def test_every_kernel_was_run():
    """Those of the text, by their names: a new one without a test above fails here."""
    emulate.launched.clear()
    names = set(re.findall(r"__global__ void (\w+)\(", kernels.SOURCE))
    test_a_whole_network("float64", 1e-9)
    test_clipping_adam_and_the_average()
    test_gathering()
    test_taking_rows()
    test_a_step_of_muon()
    assert names == emulate.launched


@pytest.mark.parametrize("dtype, wide", [("f", False), ("d", False), ("f", True)])
def test_the_gpus_compiler_takes_the_text(dtype, wide):
    """NVRTC, which comes with CuPy and needs no GPU: it knows names that the host's compiler does not."""
    nvrtc = pytest.importorskip("cupy", reason="needs CuPy's NVRTC: pip install 'cupy-cuda13x[ctk]'").cuda.nvrtc
    program = nvrtc.createProgram(kernels._text(dtype, wide), "kernels.cu", [], [])
    try:
        nvrtc.compileProgram(program, ["--gpu-architecture=sm_90", "--std=c++17"])
    except nvrtc.NVRTCError:
        pytest.fail(nvrtc.getProgramLog(program))


@pytest.mark.parametrize("size", [0, 1, 255, 256, 257, 10_000])
def test_a_launch_has_a_thread_or_a_block_for_each_result(monkeypatch, size):
    """Blocks of 256 threads, no more than it takes; of nothing there is no launch, which CUDA would refuse."""
    launches = []
    monkeypatch.setattr(kernels, "_kernel", lambda *key: lambda *call: launches.append((key, call)))
    a = xp.zeros(3)
    kernels.launch("name", size, a, 7)
    kernels.launch("name", size, a, 7, each=kernels.THREADS)
    key = "name", "d", False
    expected = [(key, ((blocks,), (256,), (size, a, 7))) for blocks in (-(-size // 256), size)] if size else []
    assert launches == expected


def test_integers_are_as_wide_as_the_largest_array_asks(monkeypatch):
    """Of 32 bits up to 2^30 numbers, which leaves room for the threads past the end of the last block."""
    asked = []
    monkeypatch.setattr(kernels, "_kernel", lambda *key: lambda *call: asked.append(key[2]))
    for size in (1 << 30, (1 << 30) + 1):
        kernels.launch("name", 1, xp.zeros(3), np.broadcast_to(np.zeros(1), (size,)))
    assert asked == [False, True]
    monkeypatch.undo()
    monkeypatch.setattr(kernels, "_MOST_SHORT", 0)
    test_a_whole_network("float64", 1e-9)
