"""What `Dataset.from_arrays` checks: dtypes, ranges, labels and names, each refused with a sentence on what helps.

Read next: epochs.py.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

MOST_CLASSES = 1000
HINTS = {  # what makes uint8 in 0..255 of other numbers
    "bool": "images.astype('uint8') * 255 makes black and white of False and True",
    "int8": "an int8 ends at 127; images.view('uint8') gives back bytes that were stored as int8",
    "uint16": "(images >> 8).astype('uint8') keeps the upper 8 of 16 bits",
}


def checked(
    images: np.ndarray,
    labels: np.ndarray | None,
    *,
    value_range: tuple[float, float] | None = None,
    classes: Sequence[str] | None = None,
    name: str = "own",
    source: str = "arrays in memory",
) -> dict[str, Any]:
    """The settings of a Dataset, from the arguments of Dataset.from_arrays.  Raises ValueError as that does."""
    names = _names(labels) if classes is None else tuple(classes)
    if len(names) > MOST_CLASSES:
        raise ValueError(f"at most {MOST_CLASSES:,} classes are possible, got {len(names):,}")
    return {"name": name, "images": _pixels(images, value_range), "labels": labels, "source": source, "classes": names}


def _pixels(images: np.ndarray, value_range: tuple[float, float] | None) -> np.ndarray:
    """(N, H, W) or (N, H, W, C) of uint8, or of floats in value_range, as (N, H, W, C) uint8.

    Floats are converted image by image, so that no second array of floats is made.
    """
    if not isinstance(images, np.ndarray):
        raise ValueError(f"images must be a NumPy array, got {type(images).__name__}")
    if images.ndim not in (3, 4) or images.size == 0:
        raise ValueError(f"images must have shape (N, H, W) or (N, H, W, C) with N >= 1, got {images.shape}")
    images = images if images.ndim == 4 else images[..., None]
    if images.dtype.kind != "f":
        if images.dtype != np.uint8:
            hint = HINTS.get(images.dtype.name, "convert them to uint8 in 0..255")
            raise ValueError(f"images must be uint8 in 0..255, or float with a value_range, got {images.dtype}: {hint}")
        if value_range is not None:
            raise ValueError(f"value_range is for float images; uint8 images are in 0..255, got {value_range}")
        return images
    if value_range is None:
        rule = "float images need value_range=(0, 1) or (-1, 1), their black and white, as an argument or in the file"
        raise ValueError(f"{rule}, got {images.dtype} in {images.min():g}..{images.max():g}")
    low, high = map(float, value_range)
    if not -np.inf < low < high < np.inf:
        raise ValueError(f"value_range must be two finite numbers, the lower one first, got {value_range}")
    made = np.empty(images.shape, np.uint8)
    for row, image in enumerate(images):
        if not (low <= image.min() and image.max() <= high):  # a comparison with NaN is False
            bad = image[~((image >= low) & (image <= high))][0]
            raise ValueError(f"images must lie in value_range {low:g}..{high:g}; row {row} contains {bad:g}")
        made[row] = np.rint((image.astype(np.float64) - low) * (255 / (high - low)))
    return made


def _names(labels: np.ndarray | None) -> tuple[str, ...]:
    """The names "0".."K-1" of integer labels that count from 0 without a gap.  Dataset refuses all other labels."""
    if not isinstance(labels, np.ndarray) or labels.dtype.kind not in "iu":
        return ()
    values, rows = np.unique(labels, return_index=True)
    for k, (value, row) in enumerate(zip(values, rows)):
        if value > k:
            gap = f"labels must lie in 0..K-1 for K classes; row {row} has the label {value}"
            raise ValueError(f"{gap}, and no row has {k}: count from 0, or name all classes with `classes`")
    return tuple(str(k) for k in range(len(values)))
