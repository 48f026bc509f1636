"""An IDX file of one's own as a data set, with the labels beside it, if they are there.

This is the last file of data/.
"""

import gzip
import re
import zlib
from pathlib import Path

import numpy as np

from tinydiff.data.dataset import DataError, Dataset
from tinydiff.data.idx import parse_idx
from tinydiff.data.limits import check_memory, check_regular, memory


def load_idx(path: Path) -> Dataset:
    """Read a data set from an IDX file of images of one's own, (N, H, W) or (N, H, W, C), packed with gzip or not.

    The labels (N,) are in a file beside it, packed or not, with the name that MNIST's would have: those of
    my-images-idx3-ubyte are in my-labels-idx1-ubyte.  If there is no such file, the images have no labels.
    Raises DataError for a file that is missing, damaged or no such file, and for arrays that Dataset.from_arrays
    refuses.  Raises TinydiffError if the images need more memory than this machine has.
    """
    name, changed = re.subn(r"images([-.])idx\d", r"labels\1idx1", path.name.removesuffix(".gz"))
    beside = [path.with_name(f"{name}{end}") for end in ("", ".gz")]
    try:
        images = _read(path)
        labels = next((file for file in beside if changed and file.exists()), None)
        found = f"labels in {labels.name}" if labels else f"no file {name} beside it" if changed else "no labels"
        options = {"name": path.name, "source": f"{path}: images {images.shape} uint8, {found}"}
        return Dataset.from_arrays(images, _read(labels) if labels else None, **options)
    except ValueError as error:
        raise DataError(f"{path}: {error}") from None


def _read(path: Path) -> np.ndarray:
    """The array of a file."""
    try:
        check_regular(path)
        with open(path, "rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        with (gzip.open if packed else open)(path, "rb") as file:
            content = file.read(memory() // 3 + 1)
        check_memory(f"{path}", 3.0 * len(content))
        if content[:2] != b"\0\0":
            raise ValueError(f"neither an .npz file by its name nor an IDX file: it begins with {content[:4].hex(' ')}")
        return parse_idx(content)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DataError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
