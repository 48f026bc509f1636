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
    uint8, N >= 1; 0 is background, 255 is ink.  labels: (N,) integers in 0..len(classes) - 1.  source: one sentence on
    where the images come from.  classes: the names of the labels.  Raises ValueError for anything else: pixels in 0..1
    would be nearly black, and the label len(classes) would mean "no label".
    """

    name: str
    images: np.ndarray
    labels: np.ndarray
    source: str
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        images, labels, last = self.images, self.labels, len(self.classes) - 1
        for name, a in (("images", images), ("labels", labels)):
            if not isinstance(a, np.ndarray):
                raise ValueError(f"{name} must be a NumPy array, got {type(a).__name__}")
        rule = "images must be uint8 in 0..255, where 255 is ink, of shape (N, H, W) with N >= 1"
        if images.dtype != np.uint8 or images.ndim != 3 or images.size == 0:
            raise ValueError(f"{rule}, got {images.dtype} of shape {images.shape}")
        if images.max() == 1:
            raise ValueError(f"{rule}, got pixels in 0..1: multiply them by 255")
        if labels.dtype.kind not in "iu" or labels.shape != images.shape[:1]:
            raise ValueError(f"labels must be {len(images)} integers, got {labels.dtype} of shape {labels.shape}")
        for row in np.flatnonzero((labels < 0) | (labels > last))[:1]:
            raise ValueError(f"labels must lie in 0..{last}, one for each class; row {row} has the label {labels[row]}")

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return (x_0, labels) of the images `indices`, on the host: x_0 = pixel / 127.5 - 1.

        indices: (B,) integers in 0..N-1, else ValueError.  x_0: (B, H, W, 1) float32 in [-1, 1].  labels: (B,) int64.
        """
        rows = host_integers("indices", indices, 0, len(self) - 1)
        x_0 = self.images[rows, :, :, None] / np.float32(127.5) - np.float32(1)
        return x_0, self.labels[rows].astype(np.int64)
