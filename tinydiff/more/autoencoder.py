"""A variational autoencoder: from images to small maps of latent numbers, and back (Kingma & Welling 2014).

    encode: [conv (stride 2), x + conv(silu(norm(x)))] x levels -> norm, silu, conv -> mean, log_var
    decode: conv -> [x + conv(silu(norm(x))), up] x levels -> norm, silu, conv -> x_hat

    z = mean + exp(log_var/2) eps                                                                      section 2.4
    -log p(x) <= E[-log p(x | z)] + KL(N(mean, exp(log_var)) || N(0, 1))                               eq. 3

With a decoder p(x | z) = N(x_hat, sigma^2) the first term is |x - x_hat|^2/(2 sigma^2) and a constant.  With a small
sigma x_hat is close to x, but z is far from N(0, 1).  A diffusion model then learns the distribution of z, on maps with
1/16 of the pixels (Rombach et al. 2022).  With a large sigma z is so close to N(0, 1) that z can be drawn from N(0, 1).
Read next: text.py.
"""

import math
from typing import Any

from tinydiff import ops
from tinydiff.autograd import Tensor
from tinydiff.backend import asarray, host_integers, require
from tinydiff.more.layers import NormSiluConv, UpConv
from tinydiff.nn.layers import Conv2d, Embedding
from tinydiff.nn.module import Module


class Autoencoder(Module):
    """x_hat, mean, log_var = model(x, eps, labels): encode x, draw its code z with the noise eps, and decode z.

    x: (N, H, W, in_channels) array or Tensor; H and W divisible by 2^levels, 4 by default, else ValueError.
    eps: standard normal noise of the shape of z.
    channels: the channels of each level, each divisible by num_groups, else ValueError; the first level has half the
    resolution of x.
    num_classes: None, or the number of classes of a conditional autoencoder.  Its encoder and its decoder receive the
    labels: an integer or (N,) host integers in 0..num_classes - 1.  Missing labels, or labels for an autoencoder
    without classes, raise ValueError.
    """

    def __init__(
        self,
        in_channels: int = 1,
        latent_channels: int = 4,
        channels: tuple[int, ...] = (32, 64),
        num_groups: int = 8,
        num_classes: int | None = None,
        *,
        rng: Any,
    ):
        if not channels:
            raise ValueError("channels must name at least one level, got ()")
        self.config = {
            "in_channels": in_channels,
            "latent_channels": latent_channels,
            "channels": list(channels),
            "num_groups": num_groups,
            "num_classes": num_classes,
        }
        self.num_classes, self.latent_channels = num_classes, latent_channels
        first, last = channels[0], channels[-1]
        self.down = [Conv2d(a, b, stride=2, rng=rng) for a, b in zip([in_channels, *channels], channels)]
        self.down_blocks = [NormSiluConv(c, c, num_groups, rng) for c in channels]
        self.code = NormSiluConv(last, 2 * latent_channels, num_groups, rng)
        self.uncode = Conv2d(latent_channels, last, rng=rng)
        self.up_blocks = [NormSiluConv(c, c, num_groups, rng) for c in channels[::-1]]
        self.up = [UpConv(b, a, rng=rng) for a, b in list(zip([first, *channels], channels))[::-1]]
        self.out = NormSiluConv(first, in_channels, num_groups, rng)
        self.labels = [Embedding(num_classes, c, rng=rng) for c in (first, last)] if num_classes is not None else []

    def forward(self, x: Any, eps: Any, labels: Any = None) -> Any:
        mean, log_var = self.encode(x, labels)
        return self.decode(reparameterised(mean, log_var, eps), labels), mean, log_var

    def encode(self, x: Any, labels: Any = None) -> tuple[Tensor, Tensor]:
        """The mean and the log variance of q(z | x), each (N, H/2^levels, W/2^levels, latent_channels)."""
        h = x if isinstance(x, Tensor) else Tensor(asarray(x))
        self._check("x", h, self.config["in_channels"], 2 ** len(self.down))
        label = self._label(0, labels, len(h))
        for i, (down, block) in enumerate(zip(self.down, self.down_blocks)):
            h = down(h) if i or label is None else down(h) + label
            h = h + block(h)
        mean, log_var = ops.split(self.code(h), 2)
        return mean, log_var

    def decode(self, z: Any, labels: Any = None) -> Tensor:
        """x_hat, the mean of p(x | z): z (N, H/2^levels, W/2^levels, latent_channels) -> (N, H, W, in_channels)."""
        h = z if isinstance(z, Tensor) else Tensor(asarray(z))
        self._check("z", h, self.latent_channels, 1)
        label = self._label(1, labels, len(h))
        h = self.uncode(h) if label is None else self.uncode(h) + label
        for block, up in zip(self.up_blocks, self.up):
            h = up(h + block(h))
        return self.out(h)

    def _label(self, part: int, labels: Any, n: int) -> Tensor | None:
        """The vectors (N, 1, 1, C) of the labels, to be added to the first map of the encoder (0) or decoder (1)."""
        if (labels is None) != (self.num_classes is None):
            raise ValueError(
                f"labels must be given for an autoencoder with num_classes, and for no other, got {labels!r}"
            )
        if self.num_classes is None:
            return None
        return self.labels[part](host_integers("labels", labels, 0, self.num_classes - 1, n))[:, None, None]

    def _check(self, name: str, h: Tensor, channels: int, multiple: int) -> None:
        if h.ndim != 4 or h.shape[3] != channels:
            raise ValueError(f"{name} must have shape (N, H, W, {channels}), got {h.shape}")
        if h.shape[1] % multiple or h.shape[2] % multiple:
            raise ValueError(
                f"{name}: height and width must be divisible by {multiple}, got {h.shape[1]} x {h.shape[2]}"
            )


def reparameterised(mean: Tensor, log_var: Tensor, eps: Any) -> Tensor:
    """z = mean + exp(log_var/2) eps: a draw of z through which gradients pass (Kingma & Welling 2014, section 2.4)."""
    return mean + ops.exp(log_var / 2) * asarray(eps)


def negative_elbo(x: Any, x_hat: Tensor, mean: Tensor, log_var: Tensor, sigma: float) -> Tensor:
    """An upper bound on -log p(x) of each example in nats, (N,), without a constant (Kingma & Welling 2014, eq. 3).

        |x - x_hat|^2/(2 sigma^2) + KL(N(mean, exp(log_var)) || N(0, 1))

    p(x | z) = N(x_hat, sigma^2).  The omitted constant is D log(2 pi sigma^2)/2 for images of D numbers.
    """
    require(0 < sigma < math.inf, "sigma must be finite and above 0", sigma)
    error = x_hat - asarray(x)
    return ops.total(error * error, axis=(1, 2, 3)) / (2 * sigma**2) + kl_to_standard_normal(mean, log_var)


def kl_to_standard_normal(mean: Tensor, log_var: Tensor) -> Tensor:
    """KL(N(mean, exp(log_var)) || N(0, 1)) of each example in nats, (N, ...) -> (N,) (Kingma & Welling 2014, app. B).

    KL = sum of (mean^2 + exp(log_var) - 1 - log_var)/2
    """
    return ops.total(mean * mean + ops.exp(log_var) - 1 - log_var, axis=tuple(range(1, mean.ndim))) / 2
