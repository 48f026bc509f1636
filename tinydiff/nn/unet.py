"""The U-Net that predicts the noise in x_t (Ho et al. 2020, appendix B, in a small form).

    conv_in -> [blocks, down] x levels -> block, attention, block -> [blocks, up] x levels -> norm, silu, conv_out

Every map made on the way down is put beside the map of the same size on the way up (a skip).  The time t enters each
residual block as a bias of its first convolution; a class label is added to the time code, and one more label stands
for "no label", so that one network serves conditional and unconditional sampling (Ho & Salimans 2022).  A text comes in
by cross-attention, at every resolution but the first (Rombach et al. 2022).  The last convolution of each block starts
at zero: the network begins as a short, nearly linear one.

    model(x_t, t, labels) -> eps_hat (N, H, W, C)

Read next: text.py, ../train.py.
"""

import math
from functools import lru_cache
from typing import Any

from tinydiff import ops
from tinydiff.autograd import Tensor
from tinydiff.backend import asarray, host_integers
from tinydiff.nn.layers import Attention, Conv2d, CrossAttention, Embedding, GroupNorm, Linear, norm_silu_conv
from tinydiff.nn.module import Module

TIME_FEATURES = 128  # width of the time code that every block sees
LONGEST_PERIOD = 10_000  # of the sinusoids, in steps

Text = tuple[Tensor, Any]  # features (N, M, F), and present (N, M): see CrossAttention


def time_code(t: Any, features: int, dtype: Any = "float32") -> Any:
    """Sinusoids of t at geometrically spaced frequencies (Vaswani et al. 2017, section 3.5).

        [sin(t f_0), ..., sin(t f_{h-1}), cos(t f_0), ..., cos(t f_{h-1})],  f_i = LONGEST_PERIOD^(-i/h), h = features/2

    t: (N,) host integers.  Returns (N, features), computed in float64 on the host and cast last.
    """
    return asarray([_time_code(int(k), features // 2) for k in t], dtype)


@lru_cache(1 << 14)  # a sampler asks for one t again and again, a training run for the T there are
def _time_code(k: int, half: int) -> tuple[float, ...]:
    return tuple(wave(k * LONGEST_PERIOD ** (-i / half)) for wave in (math.sin, math.cos) for i in range(half))


class ResBlock(Module):
    """x -> skip(x) + conv2(silu(norm2(conv1(silu(norm1(x))) + time))), then attention where `attend` says so.

    The skip is the identity, or a 1x1 convolution where the numbers of channels differ.  text_features: of a text that
    is attended to at the end, else None.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        num_groups: int,
        num_heads: int,
        attend: bool,
        text_features: int | None,
        dropout: float,
        rng: Any,
    ):
        self.dropout = dropout
        self.norm1 = GroupNorm(num_groups, in_channels, silu=True)
        self.conv1 = Conv2d(in_channels, out_channels, rng=rng)
        self.time = Linear(TIME_FEATURES, out_channels, rng=rng)
        self.norm2 = GroupNorm(num_groups, out_channels, silu=True)
        self.conv2 = Conv2d(out_channels, out_channels, rng=rng, zero=True)
        self.skip = Linear(in_channels, out_channels, rng=rng) if in_channels != out_channels else None
        options: dict[str, Any] = {"num_heads": num_heads, "num_groups": num_groups, "rng": rng}
        self.attention = Attention(out_channels, **options) if attend else None
        self.cross = CrossAttention(out_channels, text_features, **options) if text_features else None

    def forward(self, x: Tensor, code: Tensor, rng: Any, text: Text | None = None) -> Tensor:
        h = norm_silu_conv(self.norm1, self.conv1, x, self.time(code))
        other = x if self.skip is None else self.skip(x)
        if rng is not None and self.dropout > 0:
            h = self.conv2(ops.dropout(self.norm2(h), p=self.dropout, rng=rng), other)
        else:
            h = norm_silu_conv(self.norm2, self.conv2, h, other)
        h = h if self.attention is None else self.attention(h)
        return h if self.cross is None or text is None else self.cross(h, *text)


class Downsample(Conv2d):
    """Halve the resolution by a 3x3 convolution of stride 2."""

    def __init__(self, channels: int, *, rng: Any):
        super().__init__(channels, channels, stride=2, rng=rng)


class Upsample(Module):
    """Double the resolution by repeating pixels, then smooth by a 3x3 convolution."""

    def __init__(self, channels: int, *, rng: Any):
        self.conv = Conv2d(channels, channels, rng=rng)

    def forward(self, x: Tensor) -> Tensor:
        return ops.upsample_conv(x, self.conv.w, self.conv.b)


class UNet(Module):
    """eps_hat = model(x_t, t, labels): the noise that the network sees in x_t.

    x_t: (N, H, W, in_channels) array or Tensor; H and W divisible by 2^(levels - 1), else ValueError.
    t: an integer or (N,) host integers, t >= 0.  labels: None, an integer or (N,) in 0..num_classes, where num_classes
    is the "no label"; None means "no label" for every image.
    channel_mults: one entry a level, the level's channels as a multiple of base_channels.
    attention_levels: levels (0 = full size) whose blocks are followed by attention; the middle always has one.
    dropout: probability in each residual block, active in calls that pass `rng` (training), not otherwise.
    text_features: None, or the features F of each token of a text, which the blocks of every level but the first and
    the middle attend to: text is then (features (N, M, F), present (N, M)), as CrossAttention takes it.
    """

    def __init__(
        self,
        in_channels: int = 1,
        base_channels: int = 32,
        channel_mults: tuple[int, ...] = (1, 2, 2),
        num_res_blocks: int = 1,
        attention_levels: tuple[int, ...] = (),
        num_heads: int = 4,
        num_groups: int = 8,
        num_classes: int | None = None,
        dropout: float = 0.0,
        text_features: int | None = None,
        *,
        rng: Any,
    ):
        if base_channels % 2:
            raise ValueError(f"base_channels must be even (sines and cosines), got {base_channels}")
        if not channel_mults:
            raise ValueError("channel_mults must name at least one level, got ()")
        for level in attention_levels:
            if not 0 <= level < len(channel_mults):
                raise ValueError(f"attention_levels: {level} is not one of the levels 0..{len(channel_mults) - 1}")
        self.config = {
            "in_channels": in_channels,
            "base_channels": base_channels,
            "channel_mults": list(channel_mults),
            "num_res_blocks": num_res_blocks,
            "attention_levels": list(attention_levels),
            "num_heads": num_heads,
            "num_groups": num_groups,
            "num_classes": num_classes,
            "dropout": dropout,
            "text_features": text_features,
        }
        self.base_channels, self.num_classes, self.num_levels = base_channels, num_classes, len(channel_mults)

        def block(c_in: int, c_out: int, attend: bool, reads: bool) -> ResBlock:
            return ResBlock(
                c_in,
                c_out,
                num_groups=num_groups,
                num_heads=num_heads,
                attend=attend,
                text_features=text_features if reads else None,
                dropout=dropout,
                rng=rng,
            )

        self.time1 = Linear(base_channels, TIME_FEATURES, rng=rng)
        self.time2 = Linear(TIME_FEATURES, TIME_FEATURES, rng=rng)
        self.label = Embedding(num_classes + 1, TIME_FEATURES, rng=rng) if num_classes is not None else None

        c = base_channels
        self.conv_in = Conv2d(in_channels, c, rng=rng)
        skips = [c]  # channels of the maps kept for the way up
        self.down: list[Module] = []
        for level, mult in enumerate(channel_mults):
            for _ in range(num_res_blocks):
                self.down.append(block(c, base_channels * mult, level in attention_levels, level > 0))
                c = base_channels * mult
                skips.append(c)
            if level < self.num_levels - 1:
                self.down.append(Downsample(c, rng=rng))
                skips.append(c)
        self.middle = [block(c, c, True, True), block(c, c, False, False)]
        self.up: list[Module] = []
        for level, mult in reversed(list(enumerate(channel_mults))):
            for _ in range(num_res_blocks + 1):
                self.up.append(block(c + skips.pop(), base_channels * mult, level in attention_levels, level > 0))
                c = base_channels * mult
            if level > 0:
                self.up.append(Upsample(c, rng=rng))
        self.norm_out = GroupNorm(num_groups, c, silu=True)
        self.conv_out = Conv2d(c, in_channels, rng=rng, zero=True)

    def forward(self, x_t: Any, t: Any, labels: Any = None, *, text: Text | None = None, rng: Any = None) -> Tensor:
        x = x_t if isinstance(x_t, Tensor) else Tensor(asarray(x_t))
        self._check_size(x.shape)
        if (text is None) != (self.config["text_features"] is None):
            said = "missing" if text is None else "given"
            raise ValueError(f"text is {said}, for a network whose text_features is {self.config['text_features']}")
        code = self._time_and_label(t, labels, len(x))
        h = self.conv_in(x)
        skips = [h]
        for layer in self.down:
            h = layer(h, code, rng, text) if isinstance(layer, ResBlock) else layer(h)
            skips.append(h)
        for layer in self.middle:
            h = layer(h, code, rng, text)
        for layer in self.up:
            h = layer(ops.concat(h, skips.pop()), code, rng, text) if isinstance(layer, ResBlock) else layer(h)
        return norm_silu_conv(self.norm_out, self.conv_out, h)

    def _time_and_label(self, t: Any, labels: Any, n: int) -> Tensor:
        """(N, TIME_FEATURES): the time's sinusoids through two layers, plus the label's vector."""
        t = host_integers("t", t, 0, 2**31, n)
        code = self.time2(ops.silu(self.time1(Tensor(time_code(t, self.base_channels, self.time1.w.dtype)))))
        if self.label is None or self.num_classes is None:
            if labels is not None:
                raise ValueError(f"labels must be None for a network without num_classes, got {labels!r}")
            return ops.silu(code)
        labels = self.num_classes if labels is None else labels
        return ops.silu(code + self.label(host_integers("labels", labels, 0, self.num_classes, n)))

    def _check_size(self, shape: tuple[int, ...]) -> None:
        multiple, c = 2 ** (self.num_levels - 1), self.config["in_channels"]
        if len(shape) != 4 or shape[3] != c:
            raise ValueError(f"x_t must have shape (N, H, W, {c}), got {shape}")
        if shape[1] % multiple or shape[2] % multiple:
            raise ValueError(
                f"x_t: height and width must be divisible by {multiple} for {self.num_levels} levels, "
                f"got {shape[1]} x {shape[2]}"
            )
