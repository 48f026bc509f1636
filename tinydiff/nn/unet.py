"""The U-Net that predicts the noise in x_t (Ho et al. 2020, appendix B, in a small form).

    conv_in -> [blocks, down] x levels -> block, attention, block -> [blocks, up] x levels -> norm, silu, conv_out

(no down after the last level, no up after level 0).  Every map of the way down is joined, channels side by side, to the
map of the same size on the way up (a skip).  With the defaults the maps of a 28x28 picture on the way down are

    28x28x32 (conv_in)  28x28x32 | 14x14x32 (down)  14x14x64 | 7x7x64 (down)  7x7x64

and the middle works on 7x7x64.  On the way up the blocks of the three levels take 128, 128 | 128, 96 | 96, 64 channels
and give 64, 64, 32.  demos/network.py draws these maps, and trains the same network without its skips.

Sinusoids of t and two linear layers give a code, and each residual block adds a linear map of the code to every pixel.
A class label adds its own vector to the code.  One more label stands for "no label", so one network serves with and
without labels (Ho & Salimans 2022).  The last convolution of each block starts at zero, so each block begins as its
shortcut; conv_out starts at zero too, so the untrained network predicts 0.

    model(x_t, t, labels) -> eps_hat (N, H, W, C)

Read next: ../optim.py.
"""

import math
from functools import lru_cache
from typing import Any

from tinydiff import ops
from tinydiff.autograd import Tensor
from tinydiff.backend import asarray, fusable, host_integers, require
from tinydiff.nn.layers import Attention, Conv2d, Embedding, GroupNorm, Linear
from tinydiff.nn.module import Module

TIME_FEATURES = 128  # width of the code that every block sees
FREQUENCY_RANGE = 10_000  # the sinusoids' frequencies fall from 1 towards 1/10,000 radians for each unit of t


def time_code(t: Any, features: int, dtype: Any = "float32") -> Any:
    """Sinusoids of t at geometrically spaced frequencies (Vaswani et al. 2017, section 3.5).

        [sin(t f_0), ..., sin(t f_{h-1}), cos(t f_0), ..., cos(t f_{h-1})],
        f_i = FREQUENCY_RANGE^(-i/h),  h = features/2

    t: (N,) host integers.  Returns (N, features), computed in float64 on the host and cast last.
    """
    return asarray([_time_code(int(k), features // 2) for k in t], dtype)


@lru_cache(1 << 14)  # a sampler asks for the same t many times, training for at most T different ones
def _time_code(k: int, half: int) -> tuple[float, ...]:
    return tuple(wave(k * FREQUENCY_RANGE ** (-i / half)) for wave in (math.sin, math.cos) for i in range(half))


class ResBlock(Module):
    """h = conv1(silu(norm1(x))) + time(code),    y = conv2(silu(norm2(h))) + skip(x),    then attention if `attend`.

    skip, the shortcut, is the identity, or a 1x1 convolution where the numbers of channels differ.
    x: (N, H, W, in_channels), code: (N, TIME_FEATURES) -> (N, H, W, out_channels).
    """

    def __init__(self, in_channels: int, out_channels: int, *, num_groups: int, num_heads: int, attend: bool, rng: Any):
        self.norm1 = GroupNorm(num_groups, in_channels)
        self.conv1 = Conv2d(in_channels, out_channels, rng=rng)
        self.time = Linear(TIME_FEATURES, out_channels, rng=rng)
        self.norm2 = GroupNorm(num_groups, out_channels)
        self.conv2 = Conv2d(out_channels, out_channels, rng=rng, zero=True)
        self.skip = Linear(in_channels, out_channels, rng=rng) if in_channels != out_channels else None
        self.attention = None
        if attend:
            self.attention = Attention(out_channels, num_heads=num_heads, num_groups=num_groups, rng=rng)

    @fusable
    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        h = self.conv1(ops.silu(self.norm1(x))) + self.time(code)[:, None, None]
        y = self.conv2(ops.silu(self.norm2(h))) + (x if self.skip is None else self.skip(x))
        return y if self.attention is None else self.attention(y)


class Downsample(Conv2d):
    """Halve the resolution by a 3x3 convolution of stride 2."""

    def __init__(self, channels: int, *, rng: Any):
        super().__init__(channels, channels, stride=2, rng=rng)


class Upsample(Module):
    """Double the resolution by repeating pixels, then smooth by a 3x3 convolution."""

    def __init__(self, channels: int, *, rng: Any):
        self.conv = Conv2d(channels, channels, rng=rng)

    @fusable
    def forward(self, x: Tensor) -> Tensor:
        return self.conv(ops.upsample_nearest(x))


class UNet(Module):
    """eps_hat = model(x_t, t, labels): the noise that the network predicts in x_t.

    x_t: (N, H, W, in_channels) array or Tensor; H and W divisible by 2^(levels - 1), else ValueError.
    t: one integer or (N,) host integers, t >= 0.  labels: a network without classes takes None.  A network with
    classes takes one integer or (N,) in 0..num_classes; num_classes means "no label", and so does None.
    channel_mults: for each level its channels as a multiple of base_channels.  base_channels must be even, and
    num_groups must divide the channels of every level.  num_res_blocks: blocks of a level on the way down; there is one
    more on the way up.  attention_levels: the levels (0 = full size) whose blocks end in attention; the first
    block of the middle always does.
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
        *,
        rng: Any,
    ):
        levels, even = len(channel_mults), "base_channels must be even and channel_mults not empty"
        require(base_channels % 2 == 0 and levels > 0, even, f"{base_channels}, {channel_mults}")
        within = set(attention_levels) <= set(range(levels))
        require(within, f"attention_levels must be some of the levels 0..{levels - 1}", attention_levels)
        sizes = {"num_res_blocks": num_res_blocks, "num_heads": num_heads, "num_groups": num_groups}
        lists = {"channel_mults": list(channel_mults), "attention_levels": list(attention_levels)}
        self.config = {"in_channels": in_channels, "base_channels": base_channels, **lists, **sizes}
        self.config["num_classes"] = self.num_classes = num_classes
        for name, value in (self.config | {"attention_levels": 1}).items():
            host_integers(name, 1 if value is None else value, 1, 1 << 20)
        self.time1 = Linear(base_channels, TIME_FEATURES, rng=rng)
        self.time2 = Linear(TIME_FEATURES, TIME_FEATURES, rng=rng)
        self.label = Embedding(num_classes + 1, TIME_FEATURES, rng=rng) if num_classes is not None else None
        self.conv_in = Conv2d(in_channels, base_channels, rng=rng)
        self.down, self.middle, self.up = list[Module](), list[Module](), list[Module]()
        c = self._add_levels([base_channels * mult for mult in channel_mults], num_res_blocks, attention_levels, rng)
        self.norm_out = GroupNorm(num_groups, c)
        self.conv_out = Conv2d(c, in_channels, rng=rng, zero=True)

    def _add_levels(self, widths: list[int], num_res_blocks: int, attention_levels: tuple[int, ...], rng: Any) -> int:
        """Fill down, middle and up; widths: the channels of each level.  Returns the channels that come out."""
        c = self.config["base_channels"]
        skips = [c]  # channels of the maps kept for the way up
        for level, width in enumerate(widths):
            for _ in range(num_res_blocks):
                self.down.append(self.block(c, width, level, level in attention_levels, rng))
                skips.append(c := width)
            if level < len(widths) - 1:
                self.down.append(Downsample(c, rng=rng))
                skips.append(c)
        self.middle += [self.block(c, c, None, attend, rng) for attend in (True, False)]
        for level, width in reversed(list(enumerate(widths))):
            for _ in range(num_res_blocks + 1):
                self.up.append(self.block(c + skips.pop(), width, level, level in attention_levels, rng))
                c = width
            if level > 0:
                self.up.append(Upsample(c, rng=rng))
        return c

    def block(self, c_in: int, c_out: int, level: int | None, attend: bool, rng: Any) -> ResBlock:
        """A block of a level; level None is the middle.  Subclasses may build other blocks by the level."""
        sizes = {name: self.config[name] for name in ("num_heads", "num_groups")}
        return ResBlock(c_in, c_out, attend=attend, rng=rng, **sizes)

    def forward(self, x_t: Any, t: Any, labels: Any = None) -> Tensor:
        x = x_t if isinstance(x_t, Tensor) else Tensor(asarray(x_t))
        return self.walk(x, self.code(t, labels, len(x)))

    def code(self, t: Any, labels: Any, n: int) -> Tensor:
        """The code that every block gets, (N, TIME_FEATURES): the sinusoids of t through two layers, plus the
        label's."""
        t = host_integers("t", t, 0, 2**31, n)
        waves = Tensor(time_code(t, self.config["base_channels"], self.time1.w.dtype))
        code = self.time2(ops.silu(self.time1(waves)))
        if self.label is None or self.num_classes is None:
            if labels is not None:
                raise ValueError(f"labels must be None for a network without num_classes, got {labels!r}")
            return ops.silu(code)
        labels = self.num_classes if labels is None else labels
        return ops.silu(code + self.label(host_integers("labels", labels, 0, self.num_classes, n)))

    def walk(self, x: Tensor, code: Any) -> Tensor:
        """Down, through the middle, up.  A block on the way up gets its input joined with the map of the way down."""
        self._check_size(x.shape)
        h = self.conv_in(x)
        skips = [h]
        for layer in self.down:
            h = layer(h, code) if isinstance(layer, ResBlock) else layer(h)
            skips.append(h)
        for layer in self.middle:
            h = layer(h, code)
        for layer in self.up:
            h = layer(ops.concat(h, skips.pop()), code) if isinstance(layer, ResBlock) else layer(h)
        return self.head(h)

    @fusable
    def head(self, h: Tensor) -> Tensor:
        return self.conv_out(ops.silu(self.norm_out(h)))

    def _check_size(self, shape: tuple[int, ...]) -> None:
        multiple, c = 2 ** (len(self.config["channel_mults"]) - 1), self.config["in_channels"]
        if len(shape) != 4 or shape[3] != c or shape[1] % multiple or shape[2] % multiple:
            raise ValueError(f"x_t must have shape (N, H, W, {c}), H and W divisible by {multiple}, got {shape}")
