"""A random generator for a batch whose rows are independent: row i takes its numbers from a generator of its own.

    rng = row_rng("picture", seed, rows=range(40, 60))      # the pictures 40 to 59 of this seed
    x_T = standard_normal(rng, (20, 28, 28, 1))             # row 0 is the noise of picture 40

A sampler draws noise for its whole batch.  With one generator for the batch the noise of a picture would depend on its
place in the batch and on the size of the batch.  Here it depends only on the seed and on the number of the picture.  So
picture i of a seed is one picture, however many pictures are asked for and whichever process draws it.  The network's
products round differently for batches of different sizes, so two such pictures agree up to rounding.

Read next: choices.py.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np

from tinydiff.backend import default_rng, require


class RowRng:
    """The methods of a NumPy Generator that the samplers use.  Row i of every result comes from generators[i].

    Raises ValueError for a size whose first axis is not the number of generators.
    """

    def __init__(self, generators: Iterable[np.random.Generator]):
        self._generators = tuple(generators)

    def standard_normal(self, size: Any, dtype: Any = np.float64) -> np.ndarray:
        """Standard normal numbers, (N, ...) float32 or float64, on the host."""
        return self._filled("standard_normal", size, dtype)

    def random(self, size: Any) -> np.ndarray:
        """Numbers uniform in [0, 1), (N, ...) float64, on the host."""
        return self._filled("random", size, np.float64)

    def spawn(self, n_children: int) -> list["RowRng"]:
        """As Generator.spawn: child k has the children k of all rows."""
        return [RowRng(children) for children in zip(*(rng.spawn(n_children) for rng in self._generators))]

    def _filled(self, method: str, size: Any, dtype: Any) -> np.ndarray:
        a = np.empty(size, dtype)
        require(a.shape[:1] == (len(self._generators),), f"a size must begin with {len(self._generators)}", size)
        for rng, row in zip(self._generators, a if a.ndim > 1 else a[:, None]):
            getattr(rng, method)(dtype=a.dtype, out=row)
        return a


def row_rng(*name: int | str, rows: Iterable[int]) -> RowRng:
    """The generator of a batch with these rows: row i has the stream default_rng(*name, i)."""
    return RowRng(default_rng(*name, i) for i in rows)
