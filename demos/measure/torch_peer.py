"""PyTorch's side of a benchmark: the reference U-Net in PyTorch.  The tests compare tinydiff with it.

The layers of `Reference` have the same names as ours, so that weights can be copied by name (`in_torch`).  In PyTorch
channels come first: filters (KH, KW, C, O) become (O, C, KH, KW), and the weights (in, out) of a linear layer become
(out, in).

`Peer` has the jobs of `Ours` (ours.py).  `OnDevice` has those of ours.OnDevice, eager, compiled or as CUDA graphs.
`largest_difference` checks that both sides have the same network.  Only this file of the demos imports PyTorch.  It is
imported only if PyTorch is installed.
"""

import itertools
import math
from functools import partial

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from tinydiff.backend import asarray, default_rng, to_numpy


class Block(nn.Module):
    """A residual block, followed by self-attention if attention=True."""

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
    """x + attention over the pixels, with 4 heads."""

    def __init__(self, c):
        super().__init__()
        self.norm, self.qkv, self.out = nn.GroupNorm(8, c), nn.Conv2d(c, 3 * c, 1), nn.Conv2d(c, c, 1)

    def forward(self, x):
        n, c, h, w = x.shape
        heads = self.qkv(self.norm(x)).reshape(n, 3, 4, c // 4, h * w).transpose(-1, -2)  # (n, qkv, heads, pixels, D)
        mixed = F.scaled_dot_product_attention(heads[:, 0], heads[:, 1], heads[:, 2])
        return x + self.out(mixed.transpose(-1, -2).reshape(n, c, h, w))


class Up(nn.Module):
    """Each pixel becomes 2 x 2 pixels; a convolution follows."""

    def __init__(self, c):
        super().__init__()
        self.conv = nn.Conv2d(c, c, 3, padding=1)

    def forward(self, x):
        return self.conv(F.interpolate(x, scale_factor=2.0))


class Reference(nn.Module):
    """forward(x, t), with one block a level on the way down and two on the way up.

    The defaults are the reference configuration, with levels of c, 2c and 2c channels.  The arguments besides c have
    the names of our UNet's.
    """

    def __init__(self, c=32, in_channels=1, channel_mults=(1, 2, 2), attention_levels=()):
        super().__init__()
        self.frequencies = torch.exp(torch.arange(c // 2, dtype=torch.float64) * (-math.log(10_000) / (c // 2)))
        self.time1, self.time2 = nn.Linear(c, 128), nn.Linear(128, 128)
        self.conv_in = nn.Conv2d(in_channels, c, 3, padding=1)
        levels = [(c * mult, level in attention_levels) for level, mult in enumerate(channel_mults)]
        down, up, maps = [], [], [c]  # maps: the channels of every map that the way up gets
        for width, attention in levels:
            if down:
                down.append(_down(maps[-1]))
                maps.append(maps[-1])
            down.append(Block(maps[-1], width, attention))
            maps.append(width)
        lowest = above = maps[-1]
        for width, attention in reversed(levels):
            if up:
                up.append(Up(above))
            up += [Block(above + maps.pop(), width, attention), Block(width + maps.pop(), width, attention)]
            above = width
        self.down, self.up = nn.ModuleList(down), nn.ModuleList(up)
        self.middle = nn.ModuleList([Block(lowest, lowest, attention=True), Block(lowest, lowest)])
        self.norm_out, self.conv_out = nn.GroupNorm(8, c), nn.Conv2d(c, in_channels, 3, padding=1)

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
    """(name, host array) of our parameter in PyTorch's form.  shapes: {PyTorch's name: PyTorch's shape}."""
    path, _, parameter = name.rpartition(".")
    name = f"{path}.{ {'w': 'weight', 'b': 'bias', 'gamma': 'weight', 'beta': 'bias'}[parameter] }"
    if a.ndim == 4:
        a = a.transpose(3, 2, 0, 1)
    elif a.ndim == 2:
        a = a.T
    return name, a.reshape(shapes[name])  # in PyTorch a linear layer on maps is a 1x1 convolution


def largest_difference(model, size, layout):
    """The largest difference of our network and the reference with the same weights: (name of the array, difference).

    The output and every gradient are compared.  A difference is the largest difference of two arrays, divided by the
    largest value of the array.  For a gradient the divisor is at least a hundredth of the largest value of all
    gradients, because some gradients consist of rounding errors: those of biases that the next norm removes.
    model: our U-Net.  Its weights are drawn anew without zeros, because a zero would hide the layers before it.
    size: the side of an image.  layout: the name of a memory format of PyTorch.
    Raises RuntimeError if the numbers of parameters differ.
    """
    rng, layout = default_rng(0), getattr(torch, layout)
    for p in model.parameters():
        fan_in = p.size / p.shape[-1]
        start = rng.standard_normal(p.shape) / math.sqrt(fan_in) if p.ndim > 1 else rng.normal(0.5, 0.3, p.shape)
        p.data[...] = asarray(start, p.dtype)
    twin = _twin(model).to(memory_format=layout)
    x, g = rng.standard_normal((2, 4, size, size, model.config["in_channels"]), dtype="float32")
    t = np.array([1, 37, 500, 1000])
    y = model(asarray(x), t)
    y.backward(asarray(g))
    x, g = (torch.tensor(a).permute(0, 3, 1, 2).to(memory_format=layout) for a in (x, g))
    z = twin(x, torch.tensor(t))
    z.backward(g)

    expected = {name: p.grad.numpy() for name, p in twin.named_parameters()}
    shapes = {name: a.shape for name, a in expected.items()}
    found = dict(in_torch(name, to_numpy(p.grad), shapes) for name, p in model.named_parameters())
    least = 0.01 * max(abs(a).max() for a in expected.values())
    off = {name: abs(found[name] - a).max() / max(abs(a).max(), least) for name, a in expected.items()}
    z = z.detach().permute(0, 2, 3, 1).numpy()
    off["output"] = abs(to_numpy(y) - z).max() / abs(z).max()
    return max(off.items(), key=lambda item: (math.isnan(item[1]), item[1]))


def works(device):
    """Whether PyTorch finds the device, "cuda" or "cpu"."""
    return device == "cpu" or torch.cuda.is_available()


class Peer:
    """PyTorch eager, float32, in one memory layout.  The methods are those of `Ours`, and so is `network`."""

    def __init__(self, *, channels, batch_size, cores, layout, size, network):
        torch.set_num_threads(cores)
        self.layout, self.build = getattr(torch, layout), partial(Reference, channels, **network)
        self.model = self.build().to(memory_format=self.layout)
        self.update = _updater(self.model)
        self.x, self.eps = (self._maps(batch_size, network["in_channels"], size) for _ in range(2))
        self.t = torch.randint(1, 1001, (batch_size,))

    def train(self):
        def step(_):
            self.model.zero_grad()
            F.mse_loss(self.model(self.x, self.t), self.eps).backward()
            self.update(1.0)

        return [step]

    def forward(self):
        def forward(_):
            with torch.no_grad():
                self.model(self.x, self.t)

        return [forward]

    def conv(self, n, size, c_in, c_out, stride, input_gradient):
        x, w, b = (
            self._maps(n, c_in, size),
            torch.randn(c_out, c_in, 3, 3).to(memory_format=self.layout),
            torch.randn(c_out),
        )
        leaves = [x, w, b] if input_gradient else [w, b]
        return _forward_and_backward(lambda: F.conv2d(x, w, b, stride, padding=1), leaves)

    def group_norm_silu(self, n, size, c, num_groups):
        x, gamma, beta = self._maps(n, c, size), torch.randn(c), torch.randn(c)
        return _forward_and_backward(lambda: F.silu(F.group_norm(x, num_groups, gamma, beta)), [x, gamma, beta])

    def attention(self, n, heads, pixels, features):
        q, k, v = (torch.randn(n, heads, pixels, features) for _ in range(3))
        return _forward_and_backward(lambda: F.scaled_dot_product_attention(q, k, v), [q, k, v])

    def optimizer(self):
        model = self.build().to(memory_format=self.layout)
        for p in model.parameters():
            p.grad = torch.randn_like(p)
        update = _updater(model)
        calls = itertools.count()
        return [lambda _: update(0.999 ** next(calls))]

    def close(self):
        pass

    def _maps(self, n, c, size):
        return torch.randn(n, c, size, size).to(memory_format=self.layout)


class OnDevice(Peer):
    """The jobs on a GPU, or on "cpu" for a rehearsal.  The last stage of a job waits for the device.

    mode: None for eager, or the mode of torch.compile.  graphed: record each job with torch.cuda.graphs and replay it.
    """

    def __init__(self, *, device, mode, graphed, tf32, **settings):
        torch.set_default_device(device)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
        super().__init__(**settings, cores=1)
        self.cuda, self.graphed = device == "cuda", graphed
        if graphed:
            self.update = _updater(self.model, capturable=True)
        if mode is not None:
            self.model.compile(mode=mode)

    def train(self):
        return [*map(self._graph_of, super().train()), self._wait]

    def forward(self):
        return [*map(self._graph_of, super().forward()), self._wait]

    def peak_mb(self):
        return torch.cuda.max_memory_reserved() / 2**20 if self.cuda else None

    def _graph_of(self, stage):
        """The stage, or the launch of its CUDA graph: three calls on a stream of their own, then the recording."""
        if not self.graphed:
            return stage
        stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                stage(None)
        torch.cuda.current_stream().wait_stream(stream)
        with torch.cuda.graph(graph):
            stage(None)
        return lambda _: graph.replay()

    def _wait(self, _):
        if self.cuda:
            torch.cuda.synchronize()


def _twin(model):
    """The reference with the weights of our network."""
    names = ("base_channels", "in_channels", "channel_mults", "attention_levels")
    twin = Reference(*(model.config[name] for name in names))
    count = sum(p.numel() for p in twin.parameters())
    if count != model.num_parameters():
        raise RuntimeError(f"not the same network: ours has {model.num_parameters():,} parameters, PyTorch's {count:,}")
    shapes = {name: p.shape for name, p in twin.named_parameters()}
    weights = dict(in_torch(name, to_numpy(p), shapes) for name, p in model.named_parameters())
    twin.load_state_dict({name: torch.tensor(a.copy()) for name, a in weights.items()})
    return twin


def _forward_and_backward(f, leaves):
    for leaf in leaves:
        leaf.requires_grad_()
    g = torch.randn_like(f().detach())
    return [lambda _: f(), lambda y: torch.autograd.grad(y, leaves, g)]


def _updater(model, capturable=False):
    """update(max_norm): clipping, Adam, and the average of the weights.  capturable: a CUDA graph may contain it."""
    parameters = list(model.parameters())
    weights = [p.detach() for p in parameters]
    averages = [p.clone() for p in weights]
    adam = torch.optim.Adam(parameters, 1e-3, fused=True, capturable=capturable)

    def update(max_norm):
        nn.utils.clip_grad_norm_(parameters, max_norm)
        adam.step()
        torch._foreach_lerp_(averages, weights, 0.001)

    return update


def _down(c):
    return nn.Conv2d(c, c, 3, stride=2, padding=1)
