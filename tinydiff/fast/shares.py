"""Gradients that a kernel leaves as shares, and where the shares are added up.

On a GPU the blocks of a kernel each compute a share of a filter's gradient: the sum over some of the pixels.  The whole
gradient is the sum of the shares, in their order.  A launch for each of these sums would be a quarter of a training
step's launches.  But each gradient is copied once more anyway, into the flat buffer of all gradients (optim.py), and
the kernel that copies it can add up the shares too.

    with gathered(flat):    # within the block gradients of the flat's parameters may be shares
        losses.backward(...)
    # at the end of the block flat.gather() adds up the shares

Only the gradient of a parameter of the Flat may stay in shares, because nothing else reads it.  If a parameter has a
second gradient, both are added up first (`whole`).  Outside such a block every gradient is added up at once.
Read next: tensor_cores.py.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tinydiff.backend import xp
from tinydiff.fast import kernels

_owners: dict[int, Any] = {}  # the parameters whose gradients may be shares now, by the id of their array
_shares: dict[int, tuple[int, int]] = {}  # address of the first share -> the number of shares, and their distance


class Shares:
    """Gradients side by side in rows, (shares, width): the sum of all rows is meant."""

    def __init__(self, rows: Any):
        self.rows = rows
        self._sum: Any = None

    def of(self, parameter: Any, start: int) -> Any:
        """The gradient of a parameter's array, which begins at the column `start`: its sum, or its first share."""
        columns, owner = slice(start, start + parameter.size), _owners.get(id(parameter))
        if owner is not None and owner.grad is not None:  # of an earlier backward pass: the engine will add both
            owner.grad, owner = whole(owner.grad), None
        if owner is None or len(self.rows) < 2:
            if self._sum is None:
                self._sum = self.rows[0] if len(self.rows) == 1 else kernels.sum_rows(self.rows)
            return self._sum[columns].reshape(parameter.shape)
        first = self.rows[0, columns].reshape(parameter.shape)
        _shares[kernels.address(first)] = self.rows.shape
        return first


@contextmanager
def gathered(flat: Any) -> Iterator[None]:
    """Within the block gradients of the parameters of a Flat may be shares; at its end they are gathered."""
    if kernels.available():
        _owners.update((id(p.data), p) for p in flat.parameters)
    try:
        yield
        flat.gather()
    finally:
        _owners.clear()
        _shares.clear()


def whole(g: Any) -> Any:
    """The sum of the shares of which g is the first; any other array comes back as it is."""
    if not _shares or (found := _shares.pop(kernels.address(g), None)) is None:
        return g
    out = xp.empty(g.shape, g.dtype)
    kernels.gather([g], [g.size], out.reshape(-1), [found])
    return out


def layout(g: Any) -> tuple[int, int]:
    """How many shares there are of which g is the first, and how many numbers apart they are: (1, 0) for any other."""
    return _shares.get(kernels.address(g), (1, 0))
