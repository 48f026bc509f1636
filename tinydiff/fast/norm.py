"""group_norm in few passes, with or without SiLU after it:

    x_hat = (x - mean) / sqrt(var + eps)        z = gamma x_hat + beta        [ y = silu(z) ]

The variance is the mean square of x - mean.  The formula E[x^2] - mean^2 would lose digits if |mean| is much larger
than the standard deviation.  The passes take a few images of the batch at a time, so that these images stay in cache.
x_hat is not kept; the backward pass computes it again.  Sums over pixels and means over groups are matrix products.
Axes: N batch, P pixels, C channels, G groups.  Read next: fused.py.
"""

import math

from tinydiff.autograd import op
from tinydiff.backend import xp
from tinydiff.fast import kernels
from tinydiff.fast.cache import chunks
from tinydiff.fast.linear import image_row, sum_rows
from tinydiff.fast.shares import Shares
from tinydiff.fast.silu import silu_of_double, silu_of_double_and_slope
from tinydiff.ops.norm import check_group_norm

_ROW = 8000  # numbers in a row, at most: see _rows


def group_norm(x, gamma, beta, *, num_groups, eps=1e-5):
    """The faster form of ops.group_norm."""
    check_group_norm(x, gamma, beta, num_groups, eps)
    if kernels.available():
        return on_a_gpu(x, gamma, beta, num_groups, eps, silu=False)
    norm = Passes(x, gamma, beta, num_groups, eps)
    y = xp.empty(x.shape, x.dtype)
    for part in norm.parts():
        y[part] = norm.forward(part)

    def vjp(g):
        dx = xp.empty(x.shape, x.dtype)
        for part in norm.parts():
            norm.backward(part, g[part], dx[part])
        return dx, *norm.parameter_gradients()

    return y, vjp


@op
def group_norm_silu(x, gamma, beta, *, num_groups, eps=1e-5):
    """silu(group_norm(x)) as one op: z is neither written to memory nor kept.

    The norm computes h = z/2, which saves SiLU a pass: silu(z) = h (1 + tanh h).
    """
    check_group_norm(x, gamma, beta, num_groups, eps)
    if kernels.available():
        return on_a_gpu(x, gamma, beta, num_groups, eps, silu=True)
    norm = Passes(x, gamma / 2, beta / 2, num_groups, eps)
    y = xp.empty(x.shape, x.dtype)
    for part in norm.parts():
        silu_of_double(norm.forward(part), out=y[part])

    def vjp(g):
        dx = xp.empty(x.shape, x.dtype)
        for part in norm.parts():
            dh = silu_of_double_and_slope(norm.again(part))[1]
            dh *= g[part]
            norm.backward(part, dh, dx[part])
        dgamma, dbeta = norm.parameter_gradients()
        return dx, dgamma / 2, dbeta / 2

    return y, vjp


def on_a_gpu(x, gamma, beta, num_groups, eps, silu):
    """(y, vjp) of group_norm on a GPU, followed by SiLU if silu is True.  vjp(g, plus=None) adds plus to dx."""
    y, norm_vjp = kernels.group_norm(x, gamma, beta, num_groups, eps, silu)

    def vjp(g, plus=None):
        dx, rows = norm_vjp(g, plus)
        shares = Shares(rows)
        return lambda: dx, lambda: shares.of(gamma, 0), lambda: shares.of(beta, gamma.size)

    return y, vjp


class Passes:
    """The passes over the maps x (N, ..., C).  Each pass takes one slice of the batch; `parts` cuts the batch into
    slices that stay in cache."""

    def __init__(self, x, gamma, beta, num_groups, eps=1e-5):
        c = x.shape[-1]
        self.x, self.gamma, self.beta, self.eps = x, gamma, beta, eps
        self.pixels, size = math.prod(x.shape[1:-1]), c // num_groups
        widths = range(max(1, min(self.pixels, _ROW // c)), 0, -1)
        self.width = next(width for width in widths if self.pixels % width == 0)  # pixels in a row: see _rows
        group = xp.arange(c) // size
        # (C, C): a product with it replaces each channel's sum over pixels by the mean over its group.
        self.group_mean = (group[:, None] == group).astype(x.dtype) * (1 / (self.pixels * size))
        self.mean, self.rstd, self.dgamma, self.dbeta = xp.empty((4, len(x), c), x.dtype)

    def parts(self, images=None):
        """Slices of the batch, or of a slice `images` of it, whose maps stay in cache."""
        first, last, _ = (images or slice(None)).indices(len(self.x))
        bytes_each = self.pixels * self.x.shape[-1] * self.x.itemsize
        return [slice(first + part.start, first + part.stop) for part in chunks(last - first, bytes_each)]

    def forward(self, part):
        """gamma (x - mean) / sqrt(var + eps) + beta for x[part], as a new array."""
        rows = self._rows(self.x[part])
        mean = self.mean[part] = xp.matmul(self._sum_pixels(rows), self.group_mean)
        centred = rows - image_row(mean, self.width)
        centred *= centred
        var = xp.matmul(self._sum_pixels(centred), self.group_mean)
        self.rstd[part] = 1 / xp.sqrt(var + self.eps)
        return self.again(part, out=centred)

    def again(self, part, out=None):
        """The result of `forward`, computed again from the mean and the deviation that `forward` kept."""
        scale = self.rstd[part] * self.gamma
        z = xp.multiply(self._rows(self.x[part]), image_row(scale, self.width), out=out)
        z += image_row(self.beta - self.mean[part] * scale, self.width)
        return z.reshape(self.x[part].shape)

    def backward(self, part, dz, dx):
        """Write the gradient of x[part] to dx, and keep the gradients of gamma and beta for `parameter_gradients`.  dz:
        the gradient of the result of `forward`."""
        rows, dz, mean, rstd = self._rows(self.x[part]), self._rows(dz), self.mean[part], self.rstd[part]
        product = rows * dz
        dbeta = self.dbeta[part] = self._sum_pixels(dz)
        dgamma = self.dgamma[part] = (self._sum_pixels(product) - mean * dbeta) * rstd
        # dx = rstd (gamma dz - mean(gamma dz) - x_hat mean(gamma dz x_hat)), means over the group
        along = xp.matmul(dgamma * self.gamma, self.group_mean) * rstd * rstd
        level = xp.matmul(dbeta * self.gamma, self.group_mean) * rstd - mean * along
        xp.multiply(rows, image_row(along, self.width), out=product)
        product += image_row(level, self.width)
        out = xp.multiply(dz, image_row(rstd * self.gamma, self.width), out=dx.reshape(rows.shape))
        out -= product

    def parameter_gradients(self):
        """Return (dgamma, dbeta).  Call it after `backward` has run for every slice of the batch."""
        return sum_rows(self.dgamma), sum_rows(self.dbeta)

    def _rows(self, maps):
        """Maps as rows of some thousand numbers, (n, P / width, width C).  Broadcasting over C only is four times
        slower."""
        return maps.reshape(len(maps), self.pixels // self.width, self.width * maps.shape[-1])

    def _sum_pixels(self, rows):
        """Sum over the pixels: (n, P / width, width C) -> (n, C)."""
        return sum_rows(rows.reshape(len(rows), self.pixels, self.x.shape[-1]))
