"""Layers of the other models: combinations of the book's layers, and attention to a text.  Read next: classifier.py."""

from collections.abc import Callable
from typing import Any

from tinydiff import ops
from tinydiff.autograd import Tensor
from tinydiff.backend import asarray, fusable
from tinydiff.nn.layers import Conv2d, GroupNorm, Linear, join_heads, split_heads
from tinydiff.nn.module import Module


class NormSilu(GroupNorm):
    """silu(group norm of x)."""

    @fusable
    def forward(self, x: Tensor) -> Tensor:
        return ops.silu(super().forward(x))


class NormSiluConv(Module):
    """conv(silu(norm(x))).  The 3x3 convolution keeps the size of the map."""

    def __init__(self, in_channels: int, out_channels: int, num_groups: int, rng: Any):
        self.norm = GroupNorm(num_groups, in_channels)
        self.conv = Conv2d(in_channels, out_channels, rng=rng)

    @fusable
    def forward(self, x: Tensor) -> Tensor:
        return self.conv(ops.silu(self.norm(x)))


class UpConv(Conv2d):
    """conv(upsample(x)), with a 3x3 convolution: a map of twice the size."""

    @fusable
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(ops.upsample_nearest(x))


class CrossAttention(Module):
    """Each pixel of a map attends to the tokens of a text: y = x + out(attention(q, k, v)).

        q = q(group norm of x),   k, v = kv(features)                                   Rombach et al. 2022, section 3.3

    x: (N, H, W, channels).  features: (N, M, text_features), one vector a token.  present: (N, M) booleans, at least
    one True in each row; a token that is not present has no influence.
    num_heads must divide channels, else ValueError.
    attend: the function ops.attention.  To record the attention weights, put another function with the same arguments
    in its place.
    """

    def __init__(self, channels: int, text_features: int, *, num_heads: int, num_groups: int, rng: Any):
        if not num_heads >= 1 or num_heads % 1 or channels % num_heads:
            raise ValueError(f"num_heads={num_heads} does not divide channels={channels}")
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
