"""The layers of the U-Net: an op together with its parameters.

Weights start uniform, with variance 1/mean(fan_in, fan_out) (Glorot & Bengio 2010, as in Ho et al. 2020); biases start
at 0.  `zero=True` starts the weights at 0 too: a residual branch then adds nothing at first.  An Embedding starts from
N(0, 1).  Parameters are float32.
Read next: unet.py.
"""

import math
from typing import Any

from tinydiff import ops
from tinydiff.autograd import Tensor
from tinydiff.backend import asarray, fusable, host_integers, xp
from tinydiff.nn.module import Module


class Linear(Module):
    """y = x w + b on the last axis: (..., in_features) -> (..., out_features).  On maps it is the 1x1 convolution."""

    def __init__(self, in_features: int, out_features: int, *, rng: Any, zero: bool = False):
        self.w = weights(rng, (in_features, out_features), zero)
        self.b = filled(out_features, 0)

    def forward(self, x: Tensor) -> Tensor:
        return ops.linear(x, self.w, self.b)


class Conv2d(Module):
    """A convolution of maps (N, H, W, in_channels) by an odd square kernel; padding None keeps H and W at stride 1."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        *,
        stride: int = 1,
        padding: int | None = None,
        rng: Any,
        zero: bool = False,
    ):
        self.stride, self.padding = stride, kernel_size // 2 if padding is None else padding
        self.w = weights(rng, (kernel_size, kernel_size, in_channels, out_channels), zero)
        self.b = filled(out_channels, 0)

    def forward(self, x: Tensor) -> Tensor:
        return ops.conv2d(x, self.w, self.b, stride=self.stride, padding=self.padding)


class GroupNorm(Module):
    """Group normalisation, a learned scale and shift for each channel; num_groups divides channels, else ValueError."""

    def __init__(self, num_groups: int, channels: int):
        if not num_groups >= 1 or num_groups % 1 or channels % num_groups:
            raise ValueError(f"num_groups={num_groups} does not divide channels={channels}")
        self.num_groups = num_groups
        self.gamma, self.beta = filled(channels, 1), filled(channels, 0)

    def forward(self, x: Tensor) -> Tensor:
        return ops.group_norm(x, self.gamma, self.beta, num_groups=self.num_groups)


class Embedding(Module):
    """One learned vector for each of num_embeddings integers: indices (N,) -> (N, features); ValueError if out of
    range."""

    def __init__(self, num_embeddings: int, features: int, *, rng: Any):
        host_integers("num_embeddings and features", (num_embeddings, features), 1, 1 << 30)
        self.w = Tensor(asarray(rng.standard_normal((num_embeddings, features), dtype="float32")), requires_grad=True)

    def forward(self, indices: Any) -> Tensor:
        return ops.take(self.w, indices=indices)


class Attention(Module):
    """Self-attention over the pixels of a map, on group-normalised input, added to the map: x + out(attention(...)).

    x: (N, H, W, channels); num_heads must divide channels, else ValueError.
    """

    def __init__(self, channels: int, *, num_heads: int, num_groups: int, rng: Any):
        if not num_heads >= 1 or num_heads % 1 or channels % num_heads:
            raise ValueError(f"num_heads={num_heads} does not divide channels={channels}")
        self.num_heads = num_heads
        self.norm = GroupNorm(num_groups, channels)
        self.qkv = Linear(channels, 3 * channels, rng=rng)
        self.out = Linear(channels, channels, rng=rng, zero=True)

    @fusable
    def forward(self, x: Tensor) -> Tensor:
        qkv = split_heads(self.qkv(self.norm(x)), 3, self.num_heads)
        return x + self.out(join_heads(ops.attention(qkv[0], qkv[1], qkv[2]), x.shape))


def split_heads(x: Tensor, parts: int, num_heads: int) -> Tensor:
    """Split the last axis into `parts` (queries, keys, values) and each part into heads: (N, ..., parts C) -> (parts,
    N, heads, L, C / heads), L being the number of pixels or tokens."""
    n, size, c = x.shape[0], math.prod(x.shape[1:-1]), x.shape[-1] // parts
    x = ops.reshape(x, shape=(n, size, parts, num_heads, c // num_heads))
    return ops.transpose(x, axes=(2, 0, 3, 1, 4))


def join_heads(y: Tensor, shape: tuple[int, ...]) -> Tensor:
    """(N, heads, L, C / heads) -> shape (N, ..., C): heads side by side again."""
    return ops.reshape(ops.transpose(y, axes=(0, 2, 1, 3)), shape=shape)


def weights(rng: Any, shape: tuple[int, ...], zero: bool) -> Tensor:
    """A parameter of shape (..., in, out), uniform on (-bound, bound), whose variance is bound^2 / 3; or zeros."""
    host_integers("the sizes of a layer", shape, 1, 1 << 30)
    fan_in, fan_out = (math.prod(shape[:-2]) * size for size in shape[-2:])
    bound = math.sqrt(3 / ((fan_in + fan_out) / 2))
    values = xp.zeros(shape, "float32") if zero else asarray(rng.uniform(-bound, bound, shape).astype("float32"))
    return Tensor(values, requires_grad=True)


def filled(size: int, value: float) -> Tensor:
    """A parameter of shape (size,) that starts at one value."""
    return Tensor(xp.full(size, value, "float32"), requires_grad=True)
