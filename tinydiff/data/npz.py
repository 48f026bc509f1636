"""A NumPy file as a data set: np.savez("mine.npz", images=..., labels=...), packed or not.

    images    (N, H, W) or (N, H, W, C), uint8, or float with a value_range
    labels    (N,) integers, optional          classes   (K,) text, the names of the labels, optional
    value_range   the values of black and white in float images, optional

Nothing is unpickled, so a file cannot run code, and the sizes that it states are compared with the memory before any is
taken.  Read next: own_idx.py.
"""

import math
import zipfile
from pathlib import Path

import numpy as np

from tinydiff.backend import TinydiffError
from tinydiff.data.dataset import DataError, Dataset
from tinydiff.data.limits import check_memory, check_regular

MEMBERS = ("images", "labels", "classes", "value_range")


def load_npz(path: Path, value_range: tuple[float, float] | None = None) -> Dataset:
    """Read a data set from an .npz file.  value_range: as in Dataset.from_arrays; it replaces that of the file.

    Raises DataError for a file that is missing, damaged or no such file, and for arrays that from_arrays refuses.
    Raises TinydiffError if the arrays need more memory than this machine has.
    """
    try:
        check_regular(path)
        with zipfile.ZipFile(path) as archive:
            there = archive.namelist()
            if "images.npy" not in there:
                found = ", ".join(repr(name.removesuffix(".npy")) for name in there[:10]) or "nothing"
                raise DataError(
                    f"{path}: no array 'images' in it, found {found}; np.savez(path, images=...) writes one"
                )
            wanted = [archive.getinfo(f"{name}.npy") for name in MEMBERS if f"{name}.npy" in there]
            check_memory(f"{path}", 2.0 * sum(member.file_size for member in wanted))
            arrays = {member.filename[:-4]: _read(archive, member) for member in wanted}
        images, labels = arrays.pop("images"), arrays.pop("labels", None)
        options = {name: a.tolist() for name, a in arrays.items()} | {"name": path.name}
        options |= {} if value_range is None else {"value_range": value_range}
        return Dataset.from_arrays(images, labels, source=f"{path}: images {images.shape} {images.dtype}", **options)
    except TinydiffError:
        raise
    except Exception as error:  # zipfile and NumPy raise a dozen kinds of errors for wrong bytes
        raise DataError(f"{path}: {getattr(error, 'strerror', None) or error}") from None


def _read(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    """Read an array whose header fits the size that the file states for it, so that no more memory is taken."""
    with archive.open(member) as file:
        old = np.lib.format.read_magic(file) == (1, 0)
        shape, _, dtype = (np.lib.format.read_array_header_1_0 if old else np.lib.format.read_array_header_2_0)(file)
        if dtype.hasobject:
            raise ValueError(f"{member.filename} contains Python objects, which could run code: it is not loaded")
        if file.tell() + math.prod(shape) * dtype.itemsize != member.file_size:
            raise ValueError(f"{member.filename} is damaged: its size is not that of {shape} {dtype}")
    with archive.open(member) as file:
        return np.lib.format.read_array(file, allow_pickle=False)
