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

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tinydiff.backend import xp
from tinydiff.fast import kernels


class _Open(threading.local):
    """What each thread has open.  owners: the parameters whose gradients may be shares, by the id of their array.
    shares: the address of a first share -> the number of shares, and how many numbers they are apart."""

    def __init__(self) -> None:
        self.owners: dict[int, Any] = {}
        self.shares: dict[int, tuple[int, int]] = {}


_open = _Open()


class Shares:
    """Gradients side by side in rows, (shares, width): the sum of all rows is meant."""

    def __init__(self, rows: Any):
        self.rows = rows
        self._sum: Any = None

    def of(self, parameter: Any, start: int) -> Any:
        """The gradient of a parameter's array, which begins at the column `start`: its sum, or its first share."""
        columns, owner = slice(start, start + parameter.size), _open.owners.get(id(parameter))
        if owner is not None and owner.grad is not None:  # of an earlier backward pass: the engine will add both
            owner.grad, owner = whole(owner.grad), None
        if owner is None or len(self.rows) < 2:
            if self._sum is None:
                self._sum = self.rows[0] if len(self.rows) == 1 else kernels.sum_rows(self.rows)
            return self._sum[columns].reshape(parameter.shape)
        first = self.rows[0, columns].reshape(parameter.shape)
        _open.shares[kernels.address(first)] = self.rows.shape
        return first


@contextmanager
def gathered(flat: Any) -> Iterator[None]:
    """Within the block gradients of the parameters of a Flat may be shares; at its end they are gathered."""
    if kernels.available():
        _open.owners.update((id(p.data), p) for p in flat.parameters)
    try:
        yield
        flat.gather()
    finally:
        _open.owners.clear()
        _open.shares.clear()


def whole(g: Any) -> Any:
    """The sum of the shares of which g is the first; any other array comes back as it is."""
    if not _open.shares or (found := _open.shares.pop(kernels.address(g), None)) is None:
        return g
    out = xp.empty(g.shape, g.dtype)
    kernels.gather([g], [g.size], out.reshape(-1), [found])
    return out


def layout(g: Any) -> tuple[int, int]:
    """How many shares there are of which g is the first, and how many numbers apart they are: (1, 0) for any other."""
    return _open.shares.get(kernels.address(g), (1, 0))
