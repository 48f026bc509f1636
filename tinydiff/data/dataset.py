"""A data set in memory: uint8 images, their labels, and a sentence on where the images come from.

Training reads batches of x_0 in [-1, 1], channels last (Ho et al. 2020, section 3.3).  Read next: epochs.py.
"""

from dataclasses import dataclass

import numpy as np

from tinydiff.backend import TinydiffError, host_integers

DIGITS = tuple("0123456789")


class DataError(TinydiffError):
    """A data file is missing, damaged or another file than its name says."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled grey images.

    name: any name; the built-in ones are "mnist", "fashion" and "glyphs", whose images are 28x28.  images: (N, H, W)
    uint8; 0 is background, 255 is ink.  labels: (N,) uint8 in 0..len(classes) - 1.  source: one sentence on where the
    images come from.  classes: the names of the labels.
    """

    name: str
    images: np.ndarray
    labels: np.ndarray
    source: str
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return (x_0, labels) of the images `indices`, on the host: x_0 = pixel / 127.5 - 1.

        indices: (B,) integers in 0..N-1, else ValueError.  x_0: (B, H, W, 1) float32 in [-1, 1].  labels: (B,) int64.
        """
        rows = host_integers("indices", indices, 0, len(self) - 1)
        x_0 = self.images[rows, :, :, None] / np.float32(127.5) - np.float32(1)
        return x_0, self.labels[rows].astype(np.int64)
