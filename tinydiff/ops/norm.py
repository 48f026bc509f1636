"""Group normalisation (Wu & He 2018), alone and followed by SiLU.

Each image's channels are cut into groups; a group's values over all pixels are brought to mean 0 and variance 1, then
each channel gets its own scale and shift:

    x_hat = (x - mean) / sqrt(var + eps)        z = gamma x_hat + beta        [ y = silu(z) ]

The variance is taken of the centred values: E[x^2] - mean^2 would lose its digits where |mean| is much larger than the
deviation.  Work goes through the batch a few images at a time, so that the passes over a map run in cache, and what the
backward pass needs of a map is computed again rather than kept.  Sums over pixels and means over groups are matrix
products.  Axes: N batch, P pixels, C channels, G groups.  Read next: attention.py.
"""

import math

from tinydiff.autograd import op
from tinydiff.backend import chunks, xp
from tinydiff.ops.linear import image_row, sum_rows
from tinydiff.ops.pointwise import silu_array, silu_derivative


@op
def group_norm(x, gamma, beta, *, num_groups, eps=1e-5):
    """z = gamma (x - mean) / sqrt(var + eps) + beta: x (N, ..., C), gamma and beta (C,).

    Mean and variance are taken over each image's pixels and over the channels of a group, all in x's dtype.
    Raises ValueError unless num_groups divides C and there is a pixel.
    """
    norm = _GroupNorm(x, gamma, beta, num_groups, eps)
    return norm.forward(None), lambda g: norm.backward(g, None)


@op
def group_norm_silu(x, gamma, beta, *, num_groups, eps=1e-5):
    """silu(group_norm(x)) as one op: z is neither written to memory nor kept."""
    norm = _GroupNorm(x, gamma, beta, num_groups, eps)
    return norm.forward(silu_array), lambda g: norm.backward(g, silu_derivative)


class _GroupNorm:
    """The two passes over a map, in slices of the batch."""

    def __init__(self, x, gamma, beta, num_groups, eps):
        c = x.shape[-1]
        if x.ndim < 2 or 0 in x.shape[1:]:
            raise ValueError(f"group_norm: x must be (N, ..., C) with pixels and channels, got {x.shape}")
        if num_groups < 1 or c % num_groups:
            raise ValueError(f"group_norm: num_groups={num_groups} does not divide {c} channels")
        if gamma.shape != (c,) or beta.shape != (c,):
            raise ValueError(f"group_norm: gamma {gamma.shape} and beta {beta.shape} must be ({c},)")
        self.x, self.gamma, self.beta, self.eps = x, gamma, beta, eps
        self.width = x.shape[-2] if x.ndim > 2 else 1
        pixels, size = math.prod(x.shape[1:-1]), c // num_groups
        self.maps = x.reshape(-1, pixels, c)  # (N, P, C)
        group = xp.arange(c) // size
        # (C, C): a product with it replaces each channel's sum over pixels by the mean over its group.
        self.group_mean = (group[:, None] == group).astype(x.dtype) * (1 / (pixels * size))
        self.parts = chunks(len(x), pixels * c * x.itemsize)
        self.mean, self.rstd = xp.empty((2, len(x), c), x.dtype)

    def forward(self, activation):
        y = xp.empty(self.maps.shape, self.x.dtype)
        for part in self.parts:
            maps = self.maps[part]
            self.mean[part] = xp.matmul(sum_rows(maps), self.group_mean)
            d = self._centred(part)
            var = xp.matmul(self._sum_pixels(d * d), self.group_mean)
            self.rstd[part] = 1 / xp.sqrt(var + self.eps)
            if activation is None:
                self._affine(d, part, y[part])
            else:
                activation(self._affine(d, part, d), out=self._rows(y[part]))
        return y.reshape(self.x.shape)

    def backward(self, g, derivative):
        g = g.reshape(self.maps.shape)
        dx = xp.empty(self.maps.shape, self.x.dtype)
        dgamma, dbeta = xp.empty((2, *self.mean.shape), self.x.dtype)
        for part in self.parts:
            d, dz, rstd = self._centred(part), self._rows(g[part]), self.rstd[part]
            if derivative is not None:
                dz = derivative(self._affine(d, part, xp.empty_like(d))) * dz
            dgamma[part] = self._sum_pixels(d * dz) * rstd
            dbeta[part] = self._sum_pixels(dz)
            # dx = rstd (gamma dz - mean(gamma dz) - x_hat mean(gamma dz x_hat)), means over the group
            along = xp.matmul(dgamma[part] * self.gamma, self.group_mean) * rstd * rstd
            level = xp.matmul(dbeta[part] * self.gamma, self.group_mean) * rstd
            out = xp.multiply(dz, self._tile(rstd * self.gamma), out=self._rows(dx[part]))
            d *= self._tile(along)
            d += self._tile(level)
            out -= d
        return dx.reshape(self.x.shape), sum_rows(dgamma), sum_rows(dbeta)

    def _centred(self, part):
        """x - mean as whole image rows, (n, H, W C)."""
        return self._rows(self.maps[part]) - self._tile(self.mean[part])

    def _affine(self, d, part, out):
        """gamma d rstd + beta, written to out."""
        out = self._rows(out)
        xp.multiply(d, self._tile(self.rstd[part] * self.gamma), out=out)
        out += self._tile(self.beta[None])
        return out

    def _rows(self, maps):
        """Image rows of W C numbers: NumPy broadcasts over them three times faster than over C."""
        _, pixels, c = self.maps.shape
        return maps.reshape(-1, pixels // self.width, self.width * c)

    def _sum_pixels(self, rows):
        """(n, H, W C) -> (n, C)."""
        return sum_rows(rows.reshape(-1, *self.maps.shape[1:]))

    def _tile(self, v):
        return image_row(v, self.width)
