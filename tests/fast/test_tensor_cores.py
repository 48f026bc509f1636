"""The kernels of conv.cu, run thread by thread on the host (warps.cpp), against sums in float64.

Each factor is rounded here once more, by NumPy, and so the bounds are those of float32 sums in every precision.
"""

import functools
import math
import re
from contextlib import nullcontext
from itertools import product

import emulate
import numpy as np
import pytest
from draws import SEEDS, host_normal
from hypothesis import given
from hypothesis import strategies as st
from plain import plain

from tinydiff import ops
from tinydiff.autograd import Tensor
from tinydiff.backend import backend_name, default_rng, xp
from tinydiff.fast import shares, tensor_cores, winograd
from tinydiff.fast.optim import Flat
from tinydiff.nn import UNet
from tinydiff.train import gradients_of, noise_prediction_losses

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(emulate.COMPILER is None, reason=emulate.REASON),
    pytest.mark.skipif(backend_name() != "numpy", reason="the kernels are run on the host, on NumPy arrays"),
]
PRECISIONS = ("exact", *tensor_cores.PRECISIONS)  # exact: factors are not rounded
each_precision = pytest.mark.parametrize("precision", PRECISIONS)
# A sum of n products in float32, one after the other, is off by some sqrt(n) 6e-8 of the sum of their sizes; FLOAT32
# leaves out 2^-22 of each product.
BOUND = 2e-6


def rounded(a, precision):
    """The factors that the device multiplies, in float64."""
    if precision in ("exact", "float32"):
        return a.astype("float64")
    cut = 13 if precision == "tf32" else 16
    bits = a.view(np.uint32).astype(np.uint64)
    half = np.uint64(1 << (cut - 1))
    even = half - np.uint64(1) + (bits >> np.uint64(cut) & np.uint64(1))  # of two as near: bf16 takes the even one
    bits += half if precision == "tf32" else even
    bits &= ~np.uint64((1 << cut) - 1)
    return bits.astype(np.uint32).view(np.float32).astype("float64")


def windows(x, k):
    """(K K, N, H, W, C): for each tap the map that it multiplies."""
    n, h, w, c = x.shape
    padded = np.zeros((n, h + k - 1, w + k - 1, c))
    padded[:, k // 2 : k // 2 + h, k // 2 : k // 2 + w] = x
    return np.stack([padded[:, i : i + h, j : j + w] for i in range(k) for j in range(k)])


def close(found, exact, size):
    """Within BOUND of the largest sum of the products' sizes."""
    assert found.dtype == np.float32 and found.shape == exact.shape
    np.testing.assert_allclose(found, exact, rtol=0, atol=BOUND * max(abs(size).max(), 1e-30))


def check(x, w, b, plus, g, precision):
    """conv, its input gradient and its filter gradient."""
    k, (c, o) = len(w), w.shape[2:]
    taps, turned = w.reshape(k * k, c, o), w.reshape(k * k, c, o)[::-1]
    xs, ws, gs = (rounded(a, precision) for a in (x, taps, g))
    extra = b if plus is None else b + (plus if plus.ndim == 4 else plus[:, None, None]).astype("float64")

    def sums(rows, factors, how):
        return np.einsum(how, rows, factors, optimize=True)

    def both(rows, factors, how):
        return sums(rows, factors, how), sums(abs(rows), abs(factors), how)

    y, size = both(windows(xs, k), ws, "tnijc,tco->nijo")
    close(tensor_cores.conv(x, w, b, plus), y + extra, size + abs(extra))
    dx, size = both(windows(gs, k), rounded(turned, precision), "tnijo,tco->nijc")
    close(tensor_cores.conv(g, w, None, x, back=True), dx + x, size + abs(x))
    rows = tensor_cores.filter_gradient(x, g, k).rows.astype("float64").sum(0)
    dw, size = both(windows(xs, k), gs, "tnijc,nijo->tco")
    close(rows[: dw.size].reshape(dw.shape).astype("float32"), dw, size)
    close(rows[dw.size :].astype("float32"), g.astype("float64").sum((0, 1, 2)), abs(g).sum((0, 1, 2)))


def emulated(patch, precision, text="", seed=0, busy=264, memory=emulate.SHARED):
    """Go the GPU's way in this precision.  busy: how many blocks are wanted; 1 gives the largest tiles."""
    emulate.install(patch)
    patch.setattr(winograd, "pays", lambda *_: False)
    run = functools.partial(emulate.tensor_kernel, text=text, exact=precision == "exact", seed=seed)
    patch.setattr(tensor_cores, "_function", run)
    patch.setattr(tensor_cores, "precision", lambda: "tf32" if precision == "exact" else precision)
    patch.setattr(tensor_cores, "_BUSY", busy)
    patch.setattr(tensor_cores, "shared_memory", lambda: memory)
    tensor_cores._plan.cache_clear()
    patch.setattr(xp, "empty", lambda shape, dtype=float: np.full(shape, np.nan, dtype))  # all is written


def guarded(a):
    """The array in the midst of a larger one of nan, which no sum may have read; it begins at 16 bytes."""
    room = np.full(a.size + 512, np.nan, np.float32)
    start = 256 + -(room.ctypes.data // 4 + 256) % 4
    inner = room[start : start + a.size].reshape(a.shape)
    inner[...] = a
    return inner


def arrays(seed, n, h, w, c, o, k, plus):
    sizes = {"none": (), "image": ((n, o),), "map": ((n, h, w, o),)}[plus]
    x, f, b, g, *more = map(
        guarded, host_normal(seed, (n, h, w, c), (k, k, c, o), (o,), (n, h, w, o), *sizes, dtype="f4")
    )
    return x, f, b, more[0] if more else None, g


SHAPES = [  # n, h, w, c, o, k
    *[(1, 1, 1, 1, 1, k) for k in (1, 3)],
    *[(2, 7, 7, 10, 33, 3), (1, 5, 3, 33, 10, 3), (3, 1, 9, 3, 3, 3), (2, 9, 1, 36, 40, 1), (2, 5, 3, 1, 64, 3)],
    *[(1, 14, 14, 64, 64, 3), (1, 28, 28, 32, 1, 3), (70, 1, 1, 128, 68, 1), (1, 3, 100, 4, 4, 3)],
]


@each_precision
@pytest.mark.parametrize("busy", [264, 1], ids=["small tiles", "large tiles"])
@pytest.mark.parametrize("n, h, w, c, o, k", SHAPES)
def test_a_convolution_and_its_gradients_are_their_sums(monkeypatch, precision, busy, n, h, w, c, o, k):
    """One row, one column and one pixel; channels that fill no slab, no four numbers and no tile; every kernel."""
    emulated(monkeypatch, precision, busy=busy)
    for plus in ("none", "image", "map"):
        check(*arrays(n + c, n, h, w, c, o, k, plus), precision)


@given(
    SEEDS,
    st.integers(1, 3),
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(1, 40),
    st.integers(1, 40),
    st.sampled_from([1, 3]),
    st.sampled_from(PRECISIONS),
    st.sampled_from([264, 1]),
    st.sampled_from(["none", "image", "map"]),
)
def test_of_any_shape(seed, n, h, w, c, o, k, precision, busy, plus):
    """The same for random shapes, in any order of the warps."""
    with pytest.MonkeyPatch.context() as patch:
        emulated(patch, precision, seed=seed % 1000, busy=busy)
        check(*arrays(seed, n, h, w, c, o, k, plus), precision)


@pytest.mark.parametrize("precision", tensor_cores.PRECISIONS)
def test_the_same_bits_in_any_order_of_the_warps(precision):
    """No sum depends on which warp is first."""
    x, w, b, plus, g = arrays(0, 2, 14, 14, 36, 40, 3, "image")
    found = []
    for seed in range(4):
        with pytest.MonkeyPatch.context() as patch:
            emulated(patch, precision, seed=seed)
            rows = tensor_cores.filter_gradient(x, g, 3).rows
            found.append((tensor_cores.conv(x, w, b, plus), tensor_cores.conv(g, w, back=True), rows))
    for other in found[1:]:
        for a, b in zip(found[0], other):
            np.testing.assert_array_equal(a, b)


def test_every_kernel_of_the_text_is_run_by_some_shape(monkeypatch):
    """By its name; a kernel without a shape above fails here."""
    emulate.launched.clear()
    for busy, o in product((264, 4, 1), (32, 64)):
        emulated(monkeypatch, "tf32", busy=busy)
        check(*arrays(0, 1, 8, 16, o, o, 1, "none"), "tf32")
    rows = re.findall(r"^(CONV|FILTER)\(([\d, ]+)\)$", tensor_cores.SOURCE, re.MULTILINE)
    names = {f"conv{'_filter' * (kind == 'FILTER')}_{sizes.replace(', ', '_')}" for kind, sizes in rows}
    assert len(names) == 10 and emulate.launched == names


@pytest.mark.parametrize("precision", tensor_cores.PRECISIONS)
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
def test_the_gpus_compiler_takes_the_text(precision, architecture):
    """NVRTC, which comes with CuPy and needs no GPU."""
    nvrtc = pytest.importorskip("cupy", reason="needs CuPy's NVRTC: pip install 'cupy-cuda13x[ctk]'").cuda.nvrtc
    program = nvrtc.createProgram(tensor_cores.text(precision), "conv.cu", [], [])
    try:
        nvrtc.compileProgram(program, [f"--gpu-architecture={architecture}", "--std=c++17"])
    except nvrtc.NVRTCError:
        pytest.fail(nvrtc.getProgramLog(program))


# Which arrays go this way.


def test_what_does_not_fit_goes_the_other_way(monkeypatch):
    """float64, no numbers, a result that 32 bits do not reach, and an old GPU."""
    emulated(monkeypatch, "tf32")
    a, double, empty = np.zeros(3, "float32"), np.zeros(3), np.zeros(0, "float32")
    assert tensor_cores.fits(a) and tensor_cores.fits(a, largest=1 << 30)
    assert not any(
        (tensor_cores.fits(a, double), tensor_cores.fits(empty), tensor_cores.fits(a, largest=(1 << 30) + 1))
    )
    monkeypatch.setattr(tensor_cores, "why_not", lambda: "old")
    assert not tensor_cores.fits(a)


@pytest.mark.parametrize(
    "major, memory, word", [(7, 1 << 18, "capability"), (8, 40 << 10, "memory"), (8, 99 << 10, None)]
)
def test_why_a_gpu_cannot_use_the_kernels(monkeypatch, major, memory, word):
    """Compute capability below 8.0, or blocks with too little shared memory."""
    tensor_cores.why_not.cache_clear(), tensor_cores.shared_memory.cache_clear()
    monkeypatch.setattr(tensor_cores, "_attribute", {75: major, 97: memory}.get)
    reason = tensor_cores.why_not()
    assert reason is None if word is None else word in reason
    tensor_cores.why_not.cache_clear(), tensor_cores.shared_memory.cache_clear()


@pytest.mark.parametrize("width, names", [(40, {"conv_1_4_0"}), (700, {"im2col", "conv_1_4_0"})])
def test_a_map_too_wide_for_shared_memory_is_multiplied_by_its_columns(monkeypatch, width, names):
    """A row of pixels with both neighbours must fit."""
    emulated(monkeypatch, "float32", memory=99 << 10)
    emulate.launched.clear()
    x, w, b, _, _ = arrays(0, 1, 2, width, 2, 3, 3, "none")
    y = ops.conv2d(x, Tensor(w), b, padding=1).data
    assert emulate.launched == names
    np.testing.assert_allclose(y, np.einsum("tnijc,tco->nijo", windows(x, 3), w.reshape(9, 2, 3)) + b, atol=1e-5)


# Shares.


def one_use(x, w, b):
    return ops.total(ops.conv2d(x, w, b, padding=1) * x)


def two_uses(x, w, b):
    """A loss in which w and b are used twice."""
    y = ops.conv2d(x, w, b, padding=1)
    return ops.total(ops.conv2d(y, w, b, padding=1) * y)


@pytest.mark.parametrize("backward_twice", [False, True])
@pytest.mark.parametrize("loss", [one_use, two_uses])
def test_shares_are_added_up_where_the_gradients_are_gathered(monkeypatch, loss, backward_twice):
    """Inside the block as outside of it, for a parameter with one gradient and with several."""
    emulated(monkeypatch, "float32")
    x, w, b, _, _ = arrays(0, 2, 14, 14, 8, 8, 3, "none")
    found = []
    for block in (shares.gathered, lambda flat: nullcontext()):
        leaves = [Tensor(a.copy(), requires_grad=True) for a in (w, b)]
        flat = Flat(leaves)
        flat.grad = None
        with block(flat):
            for _ in range(1 + backward_twice):
                loss(Tensor(x), *leaves).backward()
            in_shares = bool(shares._open.shares)
        assert in_shares == (block is shares.gathered and loss is one_use and not backward_twice)
        found.append(flat.grad.copy())
        assert not shares._open.shares and not shares._open.owners
    np.testing.assert_allclose(found[0], found[1], rtol=0, atol=1e-6 * abs(found[1]).max())
    assert np.isfinite(found[0]).all() and found[0].any()


# A whole network.


def started(model, rng):
    """The parameters of a network that has begun to learn: layers that start at 0 have small weights."""
    return [
        p.data
        if p.ndim == 1 or p.data.any()
        else (rng.uniform(-0.1, 0.1, p.shape) / math.sqrt(p.size / p.shape[-1])).astype("float32")
        for p in model.parameters()
    ]


def gradient(model, values, dtype):
    """The gradient of the loss of noise prediction, all parameters end to end, in float64."""
    for p, value in zip(model.parameters(), values):
        p.data, p.grad = value.astype(dtype), None
    x_t, eps = (a.astype(dtype) for a in host_normal(3, (2, 28, 28, 1), (2, 28, 28, 1), dtype="float32"))
    gradients_of(model, noise_prediction_losses, {"x_t": x_t, "target": eps, "t": np.array([300, 700])})
    return np.concatenate([p.grad.reshape(-1).astype("float64") for p in model.parameters()])


# Plain functions in float32 on NumPy are off by 6e-7.
LIMITS = {"exact": 1e-6, "float32": 1e-6, "tf32": 2e-3, "bf16": 1e-2}


@pytest.mark.parametrize(
    "precision", [pytest.param(p, marks=[] if p in ("exact", "tf32") else pytest.mark.slow) for p in PRECISIONS]
)
def test_the_gradient_of_the_whole_reference_network(monkeypatch, precision):
    """All kernels together, in all shapes of the network: one relative norm over its million parameters."""
    model = UNet(rng=default_rng(0))
    values = started(model, default_rng(5))
    with plain():
        exact = gradient(model, values, "float64")
    emulated(monkeypatch, precision)
    found = gradient(model, values, "float32")
    error = np.linalg.norm(found - exact) / np.linalg.norm(exact)
    assert LIMITS[precision] / 10 < error < LIMITS[precision]


# Wrong texts.

FAULTS = {  # what is wrong: (text, wrong text)
    "no wait for copies and warps": ("        arrived();\n        bool", "        bool"),
    "no barrier before the next slab": ("            __syncthreads();  // all warps have read the slab\n", ""),
    "a transposed fragment": (
        "e = N == 4 ? i % 2 : 0, k = (N == 4 ? i / 2 : i)",
        "e = N == 4 ? i / 2 : 0, k = (N == 4 ? i % 2 : i)",
    ),
    "a halo one pixel short": (
        "reach = k / 2 * (width + 1), taps = k * k, rows",
        "reach = k / 2 * width, taps = k * k, rows",
    ),
    "factors are not rounded": (
        "bf16(first, value(e, k + 1)) : tf32(first)",
        "bf16(first, value(e, k + 1)) : __float_as_uint(first)",
    ),
    "taps are not reversed": ("w + (taps - 1 - tap) * o * c", "w + tap * o * c"),
    "the neighbours of the next row": (
        "tile<SLAB>(map, LINE, x, first - reach,",
        "tile<SLAB>(map, LINE, x, first - reach + 1,",
    ),
    "pixels outside the image": ("(inside[i][e] >> tap & 1 ? map", "(inside[i][e] >> tap & 1 || true ? map"),
    "a bias for each pixel": ("float more = b && j < o ? b[j] : 0;", "float more = b && j < o ? b[m % o] : 0;"),
    "what is added, by pixel only": (
        "(by_image ? m / (h * width) : m) * o",
        "(by_image > 1 ? m / (h * width) : m) * o",
    ),
    "no small parts": ("        mma(d, a.small, b.big);\n", ""),
    "a filter's tile twice": ("filters + step % 2 * size;\n        if (tap", "filters;\n        if (tap"),
    "no wait in the filter's gradient": ("        arrived();\n        if (chunk", "        if (chunk"),
    "one place in the filter's gradient": ("places + (1 - place) * size);", "places + place * size);"),
    "the bias of the first chunk": ("++m) bias +=", "++m) bias ="),
    "warps that are not added up": ("if (phase == p && p > 0) value += *so_far;", ""),
    "no barrier between the warps": (
        "        __syncthreads();\n        #pragma unroll\n        for (int e = 0; e < NT * 8",
        "        #pragma unroll\n        for (int e = 0; e < NT * 8",
    ),
    "a chunk left out": ("chunk < chunks; chunk += gridDim.x,", "chunk < chunks - 1; chunk += gridDim.x,"),
    "swapped taps": (
        "out[(tap * c + channel) * o + j] = value",
        "out[((taps - 1 - tap) * c + channel) * o + j] = value",
    ),
    "neighbours of the chunk before": (
        "inside[m] = neighbours(first + m,",
        "inside[m] = neighbours(first + m + CHUNK,",
    ),
}
FAST_ONES = (
    "no wait for copies and warps",
    "a transposed fragment",
    "a halo one pixel short",
    "factors are not rounded",
)


@pytest.mark.parametrize("fault", [pytest.param(f, marks=[] if f in FAST_ONES else pytest.mark.slow) for f in FAULTS])
def test_a_wrong_line_is_found(monkeypatch, fault):
    """Some shape and order of the warps gives another result, or none: the comparison above is not blind to it."""
    precision = "float32" if fault == "no small parts" else "tf32"
    right, wrong = FAULTS[fault]
    source = tensor_cores.text(precision)
    assert source.count(right) == 1
    text = source.replace(right, wrong).replace("__float_as_uint", "bits_of")
    with pytest.raises(AssertionError):
        for seed in range(3):
            for k, c, o in ((3, 36, 33), (1, 70, 10)):
                for memory in (emulate.SHARED, 48 << 10):  # two places for the map, and one
                    emulated(monkeypatch, precision, text, seed, memory=memory)
                    check(*arrays(seed, 2, 9, 7, c, o, k, "image"), precision)
