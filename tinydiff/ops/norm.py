"""Group normalisation (Wu & He 2018): remove the mean and the scale of a map, and give it learned ones.

    x_hat = (x - mean)/sqrt(var + eps)        y = gamma x_hat + beta

Mean and variance are taken over the pixels of one image and the channels of one group; gamma and beta are one number
for each channel.  (Here eps, gamma and beta are not the symbols of diffusion/.)  Let d = gamma g.  Mean and variance
depend on x, so dx is d without its mean and without its part along x_hat, divided by the standard deviation:

    dx = (d - mean(d) - x_hat mean(d x_hat))/sqrt(var + eps)

Axes: N batch, P pixels, G groups, C channels.

Read next: ../nn/module.py.
"""

import math

from tinydiff.autograd import op
from tinydiff.backend import xp


@op
def group_norm(x, gamma, beta, *, num_groups, eps=1e-5):
    """y = gamma (x - mean)/sqrt(var + eps) + beta: x (N, ..., C), gamma and beta (C,).

    Mean and variance are taken over each image's pixels and over the channels of a group, all in x's dtype.
    Raises ValueError unless num_groups divides C and there is a pixel.
    """
    check_group_norm(x, gamma, beta, num_groups)
    shape = x.shape
    groups = x.reshape(len(x), math.prod(shape[1:-1]), num_groups, shape[-1] // num_groups)  # (N, P, G, C/G)
    centred = groups - groups.mean((1, 3), keepdims=True)
    rstd = 1 / xp.sqrt((centred * centred).mean((1, 3), keepdims=True) + eps)
    x_hat = centred * rstd

    def vjp(g):
        d = (gamma * g).reshape(x_hat.shape)
        along = x_hat * (d * x_hat).mean((1, 3), keepdims=True)
        dx = rstd * (d - d.mean((1, 3), keepdims=True) - along)
        pixels = tuple(range(g.ndim - 1))
        return dx.reshape(shape), (g * x_hat.reshape(shape)).sum(pixels), g.sum(pixels)

    return gamma * x_hat.reshape(shape) + beta, vjp


def check_group_norm(x, gamma, beta, num_groups):
    """ValueError unless x, gamma, beta and num_groups fit together."""
    c = x.shape[-1]
    if x.ndim < 2 or 0 in x.shape[1:]:
        raise ValueError(f"group_norm: x must be (N, ..., C) with pixels and channels, got {x.shape}")
    if num_groups < 1 or c % num_groups:
        raise ValueError(f"group_norm: num_groups={num_groups} does not divide {c} channels")
    if gamma.shape != (c,) or beta.shape != (c,):
        raise ValueError(f"group_norm: gamma {gamma.shape} and beta {beta.shape} must be ({c},)")
