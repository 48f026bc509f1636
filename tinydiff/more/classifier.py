"""A small convolutional network that classifies images.

    [conv (stride 2), norm, silu, conv, norm, silu] x levels -> mean over pixels -> linear

    logits = model(x)                               probability of class k = softmax(logits)_k
    cross_entropy(logits, labels) = -log probability of the right class: training minimises it

The classifier judges generated digits.  Its first layer halves the resolution, which makes the network fast.  At the
last level the receptive field of a pixel is 43 x 43, larger than the image.  With time=True the network classifies
noised images, for classifier guidance: logits = model(x_t, t).  A linear map of the code of t is then added to the
output of the first convolution.
Read next: autoencoder.py.
"""

from typing import Any

from tinydiff import ops
from tinydiff.autograd import Tensor
from tinydiff.backend import asarray, host_integers, xp
from tinydiff.more.layers import NormSilu
from tinydiff.nn.layers import Conv2d, Linear
from tinydiff.nn.module import Module
from tinydiff.nn.unet import TIME_FEATURES, time_code


class Classifier(Module):
    """logits = model(x): unnormalised log-probabilities of the classes, (N, num_classes).

    x: (N, H, W, in_channels) array or Tensor, else ValueError; H and W of any size.
    channels: the channels of each level, each divisible by num_groups, else ValueError.  The first level has half the
    resolution of x, and each further level half the resolution of the level before, rounded up.
    time: True for a network that is called as model(x_t, t), with t an integer or (N,) host integers, t >= 0.  With
    time=True a call without t raises ValueError; with time=False a call with t does.
    """

    def __init__(
        self,
        in_channels: int = 1,
        channels: tuple[int, ...] = (32, 64, 128),
        num_classes: int = 10,
        num_groups: int = 4,
        time: bool = False,
        *,
        rng: Any,
    ):
        if not channels:
            raise ValueError("channels must name at least one level, got ()")
        self.config = {
            "in_channels": in_channels,
            "channels": list(channels),
            "num_classes": num_classes,
            "num_groups": num_groups,
            "time": time,
        }
        self.in_channels, self.num_classes = in_channels, num_classes
        self.convs: list[Module] = []
        self.norms: list[Module] = []
        c = in_channels
        for width in channels:
            for stride in (2, 1):
                self.convs.append(Conv2d(c, width, stride=stride, rng=rng))
                self.norms.append(NormSilu(num_groups, width))
                c = width
        self.out = Linear(c, num_classes, rng=rng)
        self.time = Linear(TIME_FEATURES, channels[0], rng=rng) if time else None

    def forward(self, x: Any, t: Any = None) -> Tensor:
        return self.out(self.features(x, t))  # (N, C) -> (N, num_classes)

    def features(self, x: Any, t: Any = None) -> Tensor:
        """The input of the last layer: the mean of each last map over its pixels, (N, H, W, C) -> (N, channels[-1])."""
        h = x if isinstance(x, Tensor) else Tensor(asarray(x))
        if h.ndim != 4 or h.shape[3] != self.in_channels:
            raise ValueError(f"x must have shape (N, H, W, {self.in_channels}), got {h.shape}")
        if (t is None) != (self.time is None):
            raise ValueError(f"t must be None for a classifier with time=False and a time otherwise, got {t!r}")
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms)):
            h = conv(h)
            if i == 0 and self.time is not None:
                t = host_integers("t", t, 0, 2**31, len(h))
                h = h + self.time(Tensor(time_code(t, TIME_FEATURES, self.time.w.dtype)))[:, None, None]
            h = norm(h)
        return ops.mean(h, axis=(1, 2))  # (N, H, W, C) -> (N, C)


def cross_entropy(logits: Tensor, labels: Any) -> Tensor:
    """-log p(label) for each example: logsumexp(logits) - logits[label], (N, num_classes) -> (N,).

    labels: an integer or (N,) host integers in 0..num_classes - 1, else ValueError.
    """
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        got = f"{type(logits).__name__} {getattr(logits, 'shape', '')}"
        raise ValueError(f"logits must be a Tensor (N, num_classes), got {got}")
    n, num_classes = logits.shape
    labels = asarray(host_integers("labels", labels, 0, num_classes - 1, n))
    one_hot = (labels[:, None] == xp.arange(num_classes)).astype(logits.dtype)
    return ops.logsumexp(logits) - ops.total(logits * one_hot, axis=1)
