"""A small convolutional network that reads a picture: which of the classes is it?

    [conv (stride 2), norm, silu, conv, norm, silu] x levels -> mean over pixels -> linear

    logits = model(x)                               probability of class k = softmax(logits)_k
    cross_entropy(logits, labels) = -log probability of the right class, which training makes small

It judges generated digits and is trained by the engine that makes them.  Halving the resolution before anything else
is what makes it fast, and at the last level each place sees the whole picture.  Read next: ../classify.py.
"""

from typing import Any

from tinydiff import ops
from tinydiff.autograd import Tensor
from tinydiff.backend import asarray, host_integers, xp
from tinydiff.nn.layers import Conv2d, GroupNorm, Linear
from tinydiff.nn.module import Module


class Classifier(Module):
    """logits = model(x): the network's unnormalised log-probabilities of the classes, (N, num_classes).

    x: (N, H, W, in_channels) array or Tensor, else ValueError; H and W of any size.
    channels: one entry a level, the level's channels, each divisible by num_groups, else ValueError; each level has
    half the resolution of the one before, rounded up, and the first half that of x.
    """

    def __init__(
        self,
        in_channels: int = 1,
        channels: tuple[int, ...] = (32, 64, 128),
        num_classes: int = 10,
        num_groups: int = 4,
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
        }
        self.in_channels, self.num_classes = in_channels, num_classes
        self.convs: list[Module] = []
        self.norms: list[Module] = []
        c = in_channels
        for width in channels:
            for stride in (2, 1):
                self.convs.append(Conv2d(c, width, stride=stride, rng=rng))
                self.norms.append(GroupNorm(num_groups, width, silu=True))
                c = width
        self.out = Linear(c, num_classes, rng=rng)

    def forward(self, x: Any) -> Tensor:
        return self.out(self.features(x))  # (N, C) -> (N, num_classes)

    def features(self, x: Any) -> Tensor:
        """What the last layer sees of x, (N, channels[-1]): two pictures of like features look alike to it."""
        h = x if isinstance(x, Tensor) else Tensor(asarray(x))
        if h.ndim != 4 or h.shape[3] != self.in_channels:
            raise ValueError(f"x must have shape (N, H, W, {self.in_channels}), got {h.shape}")
        for conv, norm in zip(self.convs, self.norms):
            h = norm(conv(h))
        return ops.mean(h, axis=(1, 2))  # (N, H, W, C) -> (N, C)


def cross_entropy(logits: Tensor, labels: Any) -> Tensor:
    """-log p(label) for each example: logsumexp(logits) - logits[label], (N, num_classes) -> (N,).

    labels: an integer or (N,) host integers in 0..num_classes - 1, else ValueError.
    """
    n, num_classes = logits.shape
    labels = asarray(host_integers("labels", labels, 0, num_classes - 1, n))
    one_hot = (labels[:, None] == xp.arange(num_classes)).astype(logits.dtype)
    return ops.logsumexp(logits) - ops.sum(logits * one_hot, axis=1)
