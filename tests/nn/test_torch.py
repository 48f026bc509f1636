"""An outside witness: PyTorch's ops, and the reference U-Net written a second time on them, agree with ours.

Skipped where torch is not installed.  Torch keeps channels first: maps are transposed on the way in and out, filters
(KH, KW, C, O) become (O, C, KH, KW), and a linear layer's (in, out) becomes (out, in).
"""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinydiff import ops
from tinydiff.autograd import Tensor
from tinydiff.backend import asarray, default_rng, to_numpy
from tinydiff.nn import UNet

torch: Any = pytest.importorskip("torch")
nn, F = torch.nn, torch.nn.functional
torch.set_num_threads(1)  # its threads wait for each other on a busy machine: five times slower

SEEDS = st.integers(0, 2**32 - 1)


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
    others = [torch.tensor(a, requires_grad=True) for a in arrays]
    z = theirs(*others)
    assert y.shape == tuple(z.shape)
    g = rng.standard_normal(y.shape)
    y.backward(asarray(g))
    z.backward(torch.tensor(g))
    for found, expected in [(y, z.detach()), *((leaf.grad, other.grad) for leaf, other in zip(leaves, others))]:
        # 1e-9: float64 sums of some hundred products, amplified where a norm meets a group of two near numbers.
        np.testing.assert_allclose(to_numpy(found), expected.numpy(), rtol=1e-9, atol=1e-9)


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

    op = ops.group_norm_silu if silu else ops.group_norm
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
    "avg_pool2d": (ops.avg_pool2d, lambda x: last(F.avg_pool2d(first(x), 2))),
    "softmax": (ops.softmax, lambda x: torch.softmax(x, -1)),
    "softmax of an axis": (lambda x: ops.softmax(x, axis=1), lambda x: torch.softmax(x, 1)),
    "logsumexp": (ops.logsumexp, lambda x: torch.logsumexp(x, -1)),
    "logsumexp of an axis": (lambda x: ops.logsumexp(x, axis=2, keepdims=True), lambda x: x.logsumexp(2, keepdim=True)),
}


@pytest.mark.parametrize("name", ONE_INPUT)
@given(seed=SEEDS, scale=st.sampled_from([0.1, 1.0, 30.0]))
def test_other_ops_are_torchs(name, seed, scale):
    """Ops of one input, small and large values alike."""
    rng = default_rng(seed)
    compare(*ONE_INPUT[name], [scale * rng.standard_normal((2, 4, 6, 3))], rng)


# The reference network, a second time.


class Block(nn.Module):
    def __init__(self, c_in, c_out, attention):
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(8, c_in), nn.GroupNorm(8, c_out)
        self.conv1, self.conv2 = nn.Conv2d(c_in, c_out, 3, padding=1), nn.Conv2d(c_out, c_out, 3, padding=1)
        self.time = nn.Linear(128, c_out)
        self.skip = nn.Identity() if c_in == c_out else nn.Conv2d(c_in, c_out, 1)
        self.attention = SelfAttention(c_out) if attention else nn.Identity()

    def forward(self, x, code):
        h = self.conv1(F.silu(self.norm1(x)))
        h = h + self.time(F.silu(code))[:, :, None, None]
        h = self.conv2(F.silu(self.norm2(h)))
        return self.attention(h + self.skip(x))


class SelfAttention(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.norm, self.qkv, self.out = nn.GroupNorm(8, c), nn.Conv2d(c, 3 * c, 1), nn.Conv2d(c, c, 1)

    def forward(self, x):
        n, c, h, w = x.shape
        heads = self.qkv(self.norm(x)).view(n, 3, 4, c // 4, h * w).transpose(-1, -2)  # (n, qkv, heads, pixels, D)
        mixed = F.scaled_dot_product_attention(heads[:, 0], heads[:, 1], heads[:, 2])
        return x + self.out(mixed.transpose(-1, -2).reshape(n, c, h, w))


class Up(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.conv = nn.Conv2d(c, c, 3, padding=1)

    def forward(self, x):
        return self.conv(x.repeat_interleave(2, 2).repeat_interleave(2, 3))


class Reference(nn.Module):
    """The reference configuration, spelled out: its parts have our names, so that weights can be copied by name."""

    def __init__(self):
        super().__init__()
        self.time1, self.time2 = nn.Linear(32, 128), nn.Linear(128, 128)
        self.conv_in = nn.Conv2d(1, 32, 3, padding=1)
        self.down = nn.ModuleList(
            [
                Block(32, 32, False),
                nn.Conv2d(32, 32, 3, stride=2, padding=1),
                Block(32, 64, False),
                nn.Conv2d(64, 64, 3, stride=2, padding=1),
                Block(64, 64, False),
            ]
        )
        self.middle = nn.ModuleList([Block(64, 64, True), Block(64, 64, False)])
        self.up = nn.ModuleList(
            [
                Block(64 + 64, 64, False),  # beside the last block's map
                Block(64 + 64, 64, False),  # beside the second downsampling's
                Up(64),
                Block(64 + 64, 64, False),
                Block(64 + 32, 64, False),
                Up(64),
                Block(64 + 32, 32, False),
                Block(32 + 32, 32, False),  # beside conv_in's
            ]
        )
        self.norm_out, self.conv_out = nn.GroupNorm(8, 32), nn.Conv2d(32, 1, 3, padding=1)

    def forward(self, x, t):
        frequencies = torch.exp(torch.arange(16, dtype=torch.float64) * (-math.log(10_000) / 16))
        angles = t[:, None] * frequencies
        code = torch.cat([angles.sin(), angles.cos()], 1).to(x.dtype)
        code = self.time2(F.silu(self.time1(code)))
        h = self.conv_in(x)
        maps = [h]
        for part in self.down:
            h = part(h, code) if isinstance(part, Block) else part(h)
            maps.append(h)
        for part in self.middle:
            h = part(h, code)
        for part in self.up:
            h = part(torch.cat([h, maps.pop()], 1), code) if isinstance(part, Block) else part(h)
        assert not maps
        return self.conv_out(F.silu(self.norm_out(h)))


TORCH_NAMES = {"w": "weight", "b": "bias", "gamma": "weight", "beta": "bias"}


def in_torch(name, p, like):
    """Our parameter's (name, array) as torch's; like: the shapes by torch's names."""
    path, _, own = name.rpartition(".")
    name = f"{path}.{TORCH_NAMES[own]}"
    if p.ndim == 4:
        p = p.transpose(3, 2, 0, 1)
    elif p.ndim == 2:
        p = p.T
    return name, p.reshape(like[name].shape)  # a linear layer on maps is a 1x1 convolution there


# Float32: Winograd is off by 1e-5 of a map's largest value, and norms pass errors on.  Float64: the same, 5e8 smaller.
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("float64", 1e-11)])
def test_the_reference_network_is_torchs(dtype, tolerance, rng):
    """The same weights, none of them 0, and one random cotangent: the output and every gradient agree."""
    model = UNet(rng=rng)
    for p in model.parameters():
        fan_in = p.size / p.shape[-1]
        start = rng.standard_normal(p.shape) / math.sqrt(fan_in) if p.ndim > 1 else rng.normal(0.5, 0.3, p.shape)
        p.data = asarray(start, dtype)
    twin = Reference().to(getattr(torch, dtype))
    like = dict(twin.named_parameters())
    state = dict(in_torch(name, to_numpy(p), like) for name, p in model.named_parameters())
    twin.load_state_dict({name: torch.tensor(a.copy()) for name, a in state.items()})

    x, g = rng.standard_normal((2, 4, 28, 28, 1)).astype(dtype)
    t = np.array([1, 37, 500, 1000])
    y = model(asarray(x), t)
    y.backward(asarray(g))
    z = twin(first(torch.tensor(x)), torch.tensor(t))
    z.backward(first(torch.tensor(g)))

    found = {"output": to_numpy(y)} | dict(
        in_torch(name, to_numpy(p.grad), like) for name, p in model.named_parameters()
    )
    expected = {"output": last(z.detach()).numpy()} | {name: p.grad.numpy() for name, p in twin.named_parameters()}
    assert found.keys() == expected.keys() and len(found) == 1 + len(like)
    off = {name: abs(found[name] - a).max() / abs(a).max() for name, a in expected.items()}
    assert max(off.values()) < tolerance, max(off, key=off.__getitem__)
