"""The reference U-Net in PyTorch: an outside witness for the tests, and the peer of benchmark.py.

Its parts have our names, so that weights can be copied by name (`in_torch`).  Torch keeps channels first: filters
(KH, KW, C, O) become (O, C, KH, KW), and a linear layer's (in, out) becomes (out, in).
"""

import math

import torch
from torch import nn
from torch.nn import functional as F


class Block(nn.Module):
    """Residual block, followed by attention where asked for."""

    def __init__(self, c_in, c_out, attention=False):
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
    """x + attention over the pixels, 4 heads."""

    def __init__(self, c):
        super().__init__()
        self.norm, self.qkv, self.out = nn.GroupNorm(8, c), nn.Conv2d(c, 3 * c, 1), nn.Conv2d(c, c, 1)

    def forward(self, x):
        n, c, h, w = x.shape
        heads = self.qkv(self.norm(x)).reshape(n, 3, 4, c // 4, h * w).transpose(-1, -2)  # (n, qkv, heads, pixels, D)
        mixed = F.scaled_dot_product_attention(heads[:, 0], heads[:, 1], heads[:, 2])
        return x + self.out(mixed.transpose(-1, -2).reshape(n, c, h, w))


class Up(nn.Module):
    """Each pixel four times, then a convolution."""

    def __init__(self, c):
        super().__init__()
        self.conv = nn.Conv2d(c, c, 3, padding=1)

    def forward(self, x):
        return self.conv(F.interpolate(x, scale_factor=2.0))


class Reference(nn.Module):
    """The reference configuration, spelled out: levels of c, 2c and 2c channels; forward(x, t)."""

    def __init__(self, c=32):
        super().__init__()
        self.frequencies = torch.exp(torch.arange(c // 2, dtype=torch.float64) * (-math.log(10_000) / (c // 2)))
        self.time1, self.time2 = nn.Linear(c, 128), nn.Linear(128, 128)
        self.conv_in = nn.Conv2d(1, c, 3, padding=1)
        down = [Block(c, c), _down(c), Block(c, 2 * c), _down(2 * c), Block(2 * c, 2 * c)]
        up = [
            Block(4 * c, 2 * c),  # beside the last block's map
            Block(4 * c, 2 * c),
            Up(2 * c),
            Block(4 * c, 2 * c),
            Block(3 * c, 2 * c),
            Up(2 * c),
            Block(3 * c, c),
            Block(2 * c, c),  # beside conv_in's map
        ]
        self.down, self.up = nn.ModuleList(down), nn.ModuleList(up)
        self.middle = nn.ModuleList([Block(2 * c, 2 * c, attention=True), Block(2 * c, 2 * c)])
        self.norm_out, self.conv_out = nn.GroupNorm(8, c), nn.Conv2d(c, 1, 3, padding=1)

    def forward(self, x, t):
        angles = t[:, None] * self.frequencies
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
        return self.conv_out(F.silu(self.norm_out(h)))


def in_torch(name, a, shapes):
    """Our parameter (name, host array) as torch's; shapes: torch's, by torch's names."""
    path, _, own = name.rpartition(".")
    name = f"{path}.{ {'w': 'weight', 'b': 'bias', 'gamma': 'weight', 'beta': 'bias'}[own] }"
    if a.ndim == 4:
        a = a.transpose(3, 2, 0, 1)
    elif a.ndim == 2:
        a = a.T
    return name, a.reshape(shapes[name])  # a linear layer on maps is a 1x1 convolution there


def _down(c):
    return nn.Conv2d(c, c, 3, stride=2, padding=1)
