"""A data set in memory: uint8 images, perhaps their labels, and a sentence on where the images come from.

Training reads batches of x_0 in [-1, 1], channels last (Ho et al. 2020, section 3.3).  `Dataset.from_arrays` makes a
data set of arrays of one's own.  Read next: arrays.py.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tinydiff.backend import TinydiffError, host_integers

NAMES = ("auto", "mnist", "fashion", "glyphs")  # the data sets of 28 x 28 in grey, of ten classes
COLOUR = ("sprites", "cifar10")  # those in three channels, square, of ten classes
DIGITS = tuple("0123456789")


class DataError(TinydiffError):
    """A data file is missing, damaged or another file than its name says."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images of one size, grey or in colour, with labels or without.

    name: any name; the built-in ones are in `NAMES` and `COLOUR`.  images: (N, H, W, C) uint8, N >= 1; 0 is background
    or dark, 255 is ink or bright.  labels: (N,) integers in 0..len(classes) - 1, or None.  source: one sentence on
    where the images come from.  classes: the names of the labels; () without labels.  A name is a line of 1 to 100
    printable letters, which a checkpoint can hold.  Raises ValueError for anything else: pixels in 0..1 would be nearly
    black, and the label len(classes) would mean "no label".
    """

    name: str
    images: np.ndarray
    labels: np.ndarray | None
    source: str
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        images, labels, last = self.images, self.labels, len(self.classes) - 1
        for name, a in (("images", images), ("labels", labels)):
            if not isinstance(a, np.ndarray) and (name, a) != ("labels", None):
                raise ValueError(f"{name} must be a NumPy array, got {type(a).__name__}")
        for text in (self.name, *self.classes):
            if not (isinstance(text, str) and 0 < len(text) <= 100 and text.isprintable()):
                raise ValueError(f"a name must be a line of 1 to 100 printable letters, got {text!r}")
        rule = "images must be uint8 in 0..255, where 255 is ink, of shape (N, H, W, C) with N >= 1"
        if images.dtype != np.uint8 or images.ndim != 4 or images.size == 0:
            raise ValueError(f"{rule}, got {images.dtype} of shape {images.shape}")
        if images.max() == 1:
            raise ValueError(f"{rule}, got pixels in 0..1: multiply them by 255")
        if labels is None:
            if self.classes:
                raise ValueError(f"images without labels have no classes, got {len(self.classes)} names of classes")
            return
        if labels.dtype.kind not in "iu" or labels.shape != images.shape[:1]:
            raise ValueError(f"labels must be {len(images)} integers, got {labels.dtype} of shape {labels.shape}")
        for row in np.flatnonzero((labels < 0) | (labels > last))[:1]:
            raise ValueError(f"labels must lie in 0..{last}, one for each class; row {row} has the label {labels[row]}")

    @classmethod
    def from_arrays(cls, images: np.ndarray, labels: np.ndarray | None = None, **options: Any) -> "Dataset":
        """Make a data set of arrays of one's own.

            pixel = rint(255 (value - low) / (high - low))        low, high = value_range

        images: (N, H, W) or (N, H, W, C), uint8 or float.  labels: (N,) integers, or None.  They count from 0 without a
        gap, unless `classes` names each of them.
        options: value_range, which float images need, because 0..1 and -1..1 cannot be told apart: (0, 1), (-1, 1) or
        another pair of black and white.  classes, name, source: as above.
        Raises ValueError for another dtype or shape, for values that are not finite or outside value_range, and for
        labels that are not 0..K-1; the message contains the row.
        """
        from tinydiff.data.arrays import checked  # a run on a built-in data set does not open that file

        return cls(**checked(images, labels, **options))

    def first(self, num: int | None) -> "Dataset":
        """The first `num` images, or all for None.  Raises ValueError unless num is in 1..N."""
        if num is not None and not 1 <= num <= len(self):
            raise ValueError(f"num must lie in 1..{len(self)} for {self.name}, got {num}")
        return replace(self, images=self.images[:num], labels=None if self.labels is None else self.labels[:num])

    def __len__(self) -> int:
        return len(self.images)

    def known_labels(self) -> np.ndarray:
        """The labels, for a program that needs them.  Raises DataError for images without labels."""
        if self.labels is None:
            raise DataError(f"{self.source}: these images have no labels, and this program needs labels")
        return self.labels

    def batch(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Return (x_0, labels) of the images `indices`, on the host: x_0 = pixel / 127.5 - 1.

        indices: (B,) integers in 0..N-1, else ValueError.  x_0: (B, H, W, C) float32 in [-1, 1].  labels: (B,) int64,
        or None for images without labels.
        """
        rows = host_integers("indices", indices, 0, len(self) - 1)
        x_0 = self.images[rows] / np.float32(127.5) - np.float32(1)
        return x_0, None if self.labels is None else self.labels[rows].astype(np.int64)
