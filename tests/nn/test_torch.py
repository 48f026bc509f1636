"""An outside witness: PyTorch's ops, and the reference U-Net written a second time on them, agree with ours.

Skipped where torch is not installed.  On a GPU (pytest --backend cupy) torch takes our device's arrays by DLPack, which
copies nothing, and answers on that device; where torch cannot use it, it answers on the CPU, and one skipped test says
so.  Torch keeps channels first: maps are transposed on the way in and out, filters (KH, KW, C, O) become
(O, C, KH, KW), and a linear layer's (in, out) becomes (out, in).
"""

import importlib.util
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import strict
from draws import SEEDS
from hypothesis import given
from hypothesis import strategies as st
from witnesses import agree, note

from tinydiff import ops
from tinydiff.autograd import Tensor
from tinydiff.backend import asarray, backend_name, default_rng, to_numpy, xp
from tinydiff.fast.norm import group_norm_silu
from tinydiff.nn import UNet

pytestmark = pytest.mark.network

torch: Any = pytest.importorskip("torch")
F = torch.nn.functional
torch.set_num_threads(1)  # its threads wait for each other on a busy machine: five times slower

ON_GPU = backend_name() == "cupy" and sys.modules["cupy"] is not strict.cupy
SHARED = ON_GPU and torch.cuda.is_available()


def in_torch(a):
    """A host array as torch's: on a GPU through our backend's array, whose memory torch then shares."""
    return torch.from_dlpack(asarray(a)) if SHARED else torch.tensor(a)


def from_torch(z):
    """Back again, as a host array."""
    return to_numpy(xp.from_dlpack(z.detach().contiguous())) if SHARED else z.detach().numpy()


@pytest.mark.skipif(not ON_GPU, reason="needs a GPU: pytest --backend cupy")
def test_torch_shares_the_devices_memory():
    """What torch writes is read by CuPy without a copy: the tests below compare on one device."""
    if not SHARED:
        pytest.skip("this torch has no CUDA, or finds no GPU: its answers below come from the CPU")
    a = asarray(np.arange(4, dtype="float32"))
    torch.from_dlpack(a).mul_(2)
    torch.cuda.synchronize()
    np.testing.assert_array_equal(to_numpy(a), [0, 2, 4, 6])


def first(x):
    """(N, H, W, C) -> (N, C, H, W)."""
    return x.permute(0, 3, 1, 2)


def last(x):
    """(N, C, H, W) -> (N, H, W, C)."""
    return x.permute(0, 2, 3, 1)


# Single ops, each as a function of channels-last tensors like ours.


def compare(ours, theirs, arrays, rng):
    """Values, and every gradient from one random cotangent, agree in float64."""
    leaves = [Tensor(asarray(a), requires_grad=True) for a in arrays]
    y = ours(*leaves)
    others = [in_torch(a).requires_grad_() for a in arrays]
    z = theirs(*others)
    assert y.shape == tuple(z.shape)
    g = rng.standard_normal(y.shape)
    y.backward(asarray(g))
    z.backward(in_torch(g))
    found = [to_numpy(a) for a in (y, *(leaf.grad for leaf in leaves))]
    expected = [from_torch(a) for a in (z, *(other.grad for other in others))]
    # 1e-9: float64 sums of some hundred products, amplified where a norm meets a group of two near numbers.
    agree("PyTorch, ops on random shapes: values and gradients", found, expected, 1e-9)


@given(SEEDS, st.data())
def test_conv2d_is_torchs(seed, data):
    """Any kernel, stride and padding, few channels (im2col) and many (Winograd)."""
    rng = default_rng(seed)
    kh, kw, stride, padding = (data.draw(st.integers(low, 3)) for low in (1, 1, 1, 0))
    c, o = data.draw(st.sampled_from([(1, 2), (3, 1), (16, 17)]))
    if data.draw(st.booleans()):
        kh, kw, stride, padding = 3, 3, 1, 1
    h, w = data.draw(st.integers(3, 9)), data.draw(st.integers(3, 9))
    compare(
        lambda x, w, b: ops.conv2d(x, w, b, stride=stride, padding=padding),
        lambda x, w, b: last(F.conv2d(first(x), w.permute(3, 2, 0, 1).contiguous(), b, stride, padding)),
        [rng.standard_normal(shape) for shape in [(2, h, w, c), (kh, kw, c, o), (o,)]],
        rng,
    )


@given(SEEDS, st.integers(1, 3), st.integers(2, 4), st.booleans())
def test_group_norm_is_torchs(seed, num_groups, width, silu):
    """group_norm, and group_norm_silu, with torch's default eps."""
    rng, c = default_rng(seed), num_groups * width

    def theirs(x, gamma, beta):
        z = last(F.group_norm(first(x), num_groups, gamma, beta))
        return F.silu(z) if silu else z

    op = group_norm_silu if silu else ops.group_norm
    arrays = [1 + rng.standard_normal((2, 3, 2, c)), rng.standard_normal(c), rng.standard_normal(c)]
    compare(lambda *leaves: op(*leaves, num_groups=num_groups), theirs, arrays, rng)


@given(SEEDS, st.integers(1, 5), st.integers(1, 5), st.integers(1, 4), st.integers(1, 4))
def test_attention_is_torchs(seed, queries, keys, features, out):
    """scaled_dot_product_attention, with other numbers of keys than queries and of values' features too."""
    rng = default_rng(seed)
    arrays = [rng.standard_normal((2, 3, *shape)) for shape in [(queries, features), (keys, features), (keys, out)]]
    compare(ops.attention, F.scaled_dot_product_attention, arrays, rng)


ONE_INPUT = {
    "silu": (ops.silu, F.silu),
    "upsample_nearest": (ops.upsample_nearest, lambda x: last(F.interpolate(first(x), scale_factor=2))),
    "softmax": (ops.softmax, lambda x: torch.softmax(x, -1)),
    "logsumexp": (ops.logsumexp, lambda x: torch.logsumexp(x, -1)),
}


@pytest.mark.parametrize("name", ONE_INPUT)
@given(seed=SEEDS, scale=st.sampled_from([0.1, 1.0, 30.0]))
def test_other_ops_are_torchs(name, seed, scale):
    """Ops of one input, small and large values alike."""
    rng = default_rng(seed)
    compare(*ONE_INPUT[name], [scale * rng.standard_normal((2, 4, 6, 3))], rng)


# The reference network, a second time: demos/measure/torch_peer.py.

spec = importlib.util.spec_from_file_location(
    "torch_peer", Path(__file__).parents[2] / "demos" / "measure" / "torch_peer.py"
)
assert spec is not None and spec.loader is not None
torch_peer: Any = importlib.util.module_from_spec(spec)
spec.loader.exec_module(torch_peer)


torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False


# Float32: Winograd is off by 1e-5 of a map's largest value, and norms pass errors on.  Float64: the same, 5e8 smaller.
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("float64", 1e-11)])
def test_the_reference_network_is_torchs(dtype, tolerance, rng):
    """The same weights, none of them 0, and one random cotangent: the output and every gradient agree."""
    model = UNet(rng=rng)
    for p in model.parameters():
        fan_in = p.size / p.shape[-1]
        start = rng.standard_normal(p.shape) / math.sqrt(fan_in) if p.ndim > 1 else rng.normal(0.5, 0.3, p.shape)
        p.data = asarray(start, dtype)
    twin = torch_peer.Reference().to(getattr(torch, dtype))
    shapes = {name: p.shape for name, p in twin.named_parameters()}
    state = dict(torch_peer.in_torch(name, to_numpy(p), shapes) for name, p in model.named_parameters())
    twin.load_state_dict({name: torch.tensor(a.copy()) for name, a in state.items()})
    if SHARED:
        twin = twin.cuda()
        twin.frequencies = twin.frequencies.cuda()

    x, g = rng.standard_normal((2, 4, 28, 28, 1)).astype(dtype)
    t = np.array([1, 37, 500, 1000])
    y = model(asarray(x), t)
    y.backward(asarray(g))
    z = twin(first(in_torch(x)), in_torch(t))
    z.backward(first(in_torch(g)))

    found = {"output": to_numpy(y)} | dict(
        torch_peer.in_torch(name, to_numpy(p.grad), shapes) for name, p in model.named_parameters()
    )
    expected = {"output": from_torch(last(z))} | {name: from_torch(p.grad) for name, p in twin.named_parameters()}
    assert found.keys() == expected.keys() and len(found) == 1 + len(shapes)
    off = {name: abs(found[name] - a).max() / abs(a).max() for name, a in expected.items()}
    note(f"PyTorch, the reference network in {dtype}: output and gradients", max(off.values()))
    assert max(off.values()) < tolerance, max(off, key=off.__getitem__)
