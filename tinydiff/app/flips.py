"""Pictures that are mirrored at random: more examples of anything that may face left or right.  Not for digits.

    x_0 -> x_0 with its columns in reverse order, with probability 1/2, anew each time that a picture is in a batch

Which pictures of a batch are mirrored depends on the seed and the step alone, so a resumed run draws the same batches.
Read next: plots.py.
"""

from typing import Any

import numpy as np

from tinydiff.backend import default_rng
from tinydiff.data import Dataset
from tinydiff.diffusion import Schedule
from tinydiff.train import Batch, TrainConfig, draw_batch


def draw_flipped_batch(
    dataset: Dataset, schedule: Schedule, num_classes: int | None, config: TrainConfig, step: int
) -> Batch:
    """draw_batch, with half of the pictures mirrored.  All other random numbers are those of draw_batch."""
    flipped: Any = _Flipped(dataset, default_rng("flip", config.seed, step))
    return draw_batch(flipped, schedule, num_classes, config, step)


class _Flipped:
    """The data set of one batch."""

    def __init__(self, dataset: Dataset, rng: Any):
        self._dataset, self._rng = dataset, rng

    def __len__(self) -> int:
        return len(self._dataset)

    def batch(self, indices: np.ndarray) -> tuple[np.ndarray, Any]:
        x_0, labels = self._dataset.batch(indices)
        mirrored = self._rng.random(len(x_0)) < 0.5
        x_0[mirrored] = x_0[mirrored, :, ::-1]
        return x_0, labels
