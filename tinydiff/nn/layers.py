"""The layers of the U-Net: an op together with its parameters.

Weights start uniform with variance 1 / mean(fan_in, fan_out) (Glorot & Bengio 2010, as in Ho et al. 2020), biases at 0.
`zero=True` starts the weights at 0 as well, so that a residual branch begins as the identity.  Parameters are float32.
Read next: unet.py.
"""

import math
from collections.abc import Callable
from typing import Any

from tinydiff import ops
from tinydiff.autograd import Tensor
from tinydiff.backend import asarray, xp
from tinydiff.nn.module import Module


class Linear(Module):
    """y = x w + b on the last axis: (..., in_features) -> (..., out_features).  On maps it is the 1x1 convolution."""

    def __init__(self, in_features: int, out_features: int, *, rng: Any, zero: bool = False):
        self.w = _weights(rng, (in_features, out_features), in_features, out_features, zero)
        self.b = _filled(out_features, 0)

    def forward(self, x: Tensor) -> Tensor:
        return ops.linear(x, self.w, self.b)


class Conv2d(Module):
    """kernel_size x kernel_size convolution of maps (N, H, W, in_channels); padding None keeps H and W at stride 1."""

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
        self.stride = stride
        self.padding = kernel_size // 2 if padding is None else padding
        area = kernel_size * kernel_size
        shape = (kernel_size, kernel_size, in_channels, out_channels)
        self.w = _weights(rng, shape, area * in_channels, area * out_channels, zero)
        self.b = _filled(out_channels, 0)

    def forward(self, x: Tensor, *plus: Tensor) -> Tensor:
        return ops.conv2d(x, self.w, self.b, *plus, stride=self.stride, padding=self.padding)


class GroupNorm(Module):
    """Group normalisation with a learned scale and shift a channel; silu=True applies SiLU in the same op."""

    def __init__(self, num_groups: int, channels: int, *, silu: bool = False):
        if channels % num_groups:
            raise ValueError(f"num_groups={num_groups} does not divide channels={channels}")
        self.num_groups = num_groups
        self.op = ops.group_norm_silu if silu else ops.group_norm
        self.gamma = _filled(channels, 1)
        self.beta = _filled(channels, 0)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x, self.gamma, self.beta, num_groups=self.num_groups)


def norm_silu_conv(norm: GroupNorm, conv: Conv2d, x: Tensor, *plus: Tensor) -> Tensor:
    """conv(silu(norm(x))) for a 3x3 convolution that keeps the size, in one pass where that is faster.

    plus: nothing, or what is added to the result: see ops.conv2d.
    """
    return ops.norm_silu_conv(x, norm.gamma, norm.beta, conv.w, conv.b, *plus, num_groups=norm.num_groups)


class Embedding(Module):
    """A learned vector for each of num_embeddings integers: indices (N,) in range, else ValueError -> (N, features)."""

    def __init__(self, num_embeddings: int, features: int, *, rng: Any):
        self.w = Tensor(asarray(rng.standard_normal((num_embeddings, features), dtype="float32")), requires_grad=True)

    def forward(self, indices: Any) -> Tensor:
        return ops.take(self.w, indices=indices)


class Attention(Module):
    """Self-attention over the pixels of a map, on group-normalised input, added to the map: x + out(attention(...)).

    x: (N, H, W, channels); num_heads must divide channels, else ValueError.
    """

    def __init__(self, channels: int, *, num_heads: int, num_groups: int, rng: Any):
        check_heads(num_heads, channels)
        self.num_heads = num_heads
        self.norm = GroupNorm(num_groups, channels)
        self.qkv = Linear(channels, 3 * channels, rng=rng)
        self.out = Linear(channels, channels, rng=rng, zero=True)

    def forward(self, x: Tensor) -> Tensor:
        qkv = split_heads(self.qkv(self.norm(x)), 3, self.num_heads)
        return x + self.out(join_heads(ops.attention(qkv[0], qkv[1], qkv[2]), x.shape))


class CrossAttention(Module):
    """What each pixel of a map takes from a text, added to the map: x + out(attention(q, k, v)).

        q = q(group norm of x),   k, v = kv(features)                                   Rombach et al. 2022, section 3.3

    x: (N, H, W, channels).  features: (N, M, text_features), one vector a token.  present: (N, M) booleans, at least
    one True in each row: other tokens have no influence.  num_heads must divide channels, else ValueError.
    attend: ops.attention; whoever wants to see the weights may put a function of the same arguments in its place.
    """

    def __init__(self, channels: int, text_features: int, *, num_heads: int, num_groups: int, rng: Any):
        check_heads(num_heads, channels)
        self.num_heads = num_heads
        self.attend: Callable[..., Tensor] = ops.attention
        self.norm = GroupNorm(num_groups, channels)
        self.q = Linear(channels, channels, rng=rng)
        self.kv = Linear(text_features, 2 * channels, rng=rng)
        self.out = Linear(channels, channels, rng=rng, zero=True)

    def forward(self, x: Tensor, features: Tensor, present: Any) -> Tensor:
        q = split_heads(self.q(self.norm(x)), 1, self.num_heads)
        kv = split_heads(self.kv(features), 2, self.num_heads)
        y = self.attend(q[0], kv[0], kv[1], mask=asarray(present)[:, None, None])  # (N, 1, 1, M)
        return x + self.out(join_heads(y, x.shape))


def check_heads(num_heads: int, channels: int) -> None:
    """Raise a ValueError unless the channels can be dealt out evenly to the heads."""
    if channels % num_heads:
        raise ValueError(f"num_heads={num_heads} does not divide channels={channels}")


def split_heads(x: Tensor, parts: int, num_heads: int) -> Tensor:
    """(N, ..., parts C) -> (parts, N, heads, L, C / heads): queries, keys, values, whichever stand side by side."""
    n, size, c = x.shape[0], math.prod(x.shape[1:-1]), x.shape[-1] // parts
    x = ops.reshape(x, shape=(n, size, parts, num_heads, c // num_heads))
    return ops.transpose(x, axes=(2, 0, 3, 1, 4))


def join_heads(y: Tensor, shape: tuple[int, ...]) -> Tensor:
    """(N, heads, L, C / heads) -> shape (N, ..., C): heads side by side again."""
    return ops.reshape(ops.transpose(y, axes=(0, 2, 1, 3)), shape=shape)


def _weights(rng: Any, shape: tuple[int, ...], fan_in: int, fan_out: int, zero: bool) -> Tensor:
    if zero:
        return Tensor(xp.zeros(shape, "float32"), requires_grad=True)
    bound = math.sqrt(3 / ((fan_in + fan_out) / 2))  # a uniform variable on (-bound, bound) has variance bound^2 / 3
    return Tensor(asarray(rng.uniform(-bound, bound, shape).astype("float32")), requires_grad=True)


def _filled(size: int, value: float) -> Tensor:
    return Tensor(xp.full(size, value, "float32"), requires_grad=True)
