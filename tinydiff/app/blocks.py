"""Large batches in blocks: a batch of n examples consists of m smaller batches, so that a rank can draw a part only.

    batch of step k = batches of size n/m at steps k m, k m + 1, ..., k m + m - 1,    n/m at most BLOCK

Each of many ranks needs only its own rows.  Drawing the whole batch would take a rank longer than computing its part.
Every rank that draws a block gets the same block.  Read next: training.py.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from tinydiff.data import Dataset
from tinydiff.train import Batch

BLOCK = 512  # examples
SMALLEST = 64  # a batch is not cut into blocks of fewer examples


def in_blocks(draw_from: Callable[[Any], Callable[[Any, int], Batch]], dataset: Dataset, part: Callable) -> Callable:
    """A function draw(config, step) of a batch in blocks.  The blocks that contain rows of part(n) are complete.

    draw_from(dataset) -> draw(config, step).  part(n) -> the slice of the n rows that the caller needs.
    In all other blocks only t is right, and the other arrays are 0.
    """

    def draw(config: Any, step: int) -> Batch:
        n = config.batch_size
        size = next(size for size in range(min(n, BLOCK), 0, -1) if n % size == 0)
        if size == n or size < SMALLEST:
            return draw_from(dataset)(config, step)
        rows, count, blocks = part(n), n // size, []
        for k in range(count):
            wanted = rows.start < (k + 1) * size and k * size < rows.stop
            source = dataset if wanted else _Blank(len(dataset))
            blocks.append(draw_from(source)(replace(config, batch_size=size), step * count + k))
        return {name: _joined([block[name] for block in blocks]) for name in blocks[0]}

    return draw


class _Blank:
    """A data set of `num` images of one pixel.  draw_batch draws t first, so t is the same as for the real data set."""

    def __init__(self, num: int):
        self._num = num

    def __len__(self) -> int:
        return self._num

    def batch(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.zeros((len(indices), 1, 1, 1), np.float32), np.zeros(len(indices), np.int64)


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    """Parts end to end; the rows of a part stay 0 if its shape is not the largest one."""
    shape = max((a.shape[1:] for a in parts), key=np.prod)
    whole, start = np.zeros((sum(map(len, parts)), *shape), parts[0].dtype), 0
    for a in parts:
        if a.shape[1:] == shape:
            whole[start : start + len(a)] = a
        start += len(a)
    return whole
