"""CIFAR-10 from its own archive, cifar-10-python.tar.gz: 50,000 and 10,000 photographs of 32 x 32, in ten classes.

The archive contains pickles, and a pickle can run code.  So it is read only if its SHA-256 is the published one, and
even then its pickles may contain nothing but dictionaries, lists, numbers, text and arrays of bytes.  No file is
unpacked to the disk.  Source: Krizhevsky 2009, "Learning multiple layers of features from tiny images".
Read next: folder.py.
"""

import io
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tinydiff.data.dataset import DataError, Dataset
from tinydiff.data.releases import RELEASES, find

BATCHES = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}


def load_cifar10(split: str, data_dir: str | Path | None, say: Callable[[str], object]) -> Dataset:
    """Return a split of CIFAR-10, (N, 32, 32, 3).  `say` is called before a download.  Raises as load_mnist does."""
    place, content = find("cifar10", "cifar-10-python.tar.gz", data_dir, say)
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        files = [archive.extractfile(f"cifar-10-batches-py/{batch}") for batch in BATCHES[split]]
        batches = [read_pickle(file.read()) for file in files if file is not None]
    rows = np.concatenate([batch[b"data"].pixels for batch in batches])  # a plane of red, one of green, one of blue
    images = np.ascontiguousarray(rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))  # (N, C, H, W) -> (N, H, W, C)
    labels = np.concatenate([np.array(batch[b"labels"], np.uint8) for batch in batches])
    return Dataset("cifar10", images, labels, f"CIFAR-10 ({split} split) {place}", RELEASES["cifar10"].classes)


def read_pickle(content: bytes) -> Any:
    """The content of a pickle.  It can hold plain data of Python, with bytes for text of Python 2, and uint8 arrays.

    Nothing of NumPy is called: an array is an _Array, with its numbers in `pixels`.  Raises DataError for a pickle with
    anything else.
    """
    try:
        return _Reader(io.BytesIO(content), encoding="bytes").load()
    except DataError:
        raise
    except Exception as error:  # wrong bytes can raise anything
        raise DataError(f"a pickle in the archive cannot be read ({type(error).__name__}: {error})") from None


class _Array:
    """What a pickle makes in the place of a NumPy array, and of the dtype of an array."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if len(state) == 5:  # an array's; the state of a dtype has 8 parts
            _, shape, dtype, fortran, numbers = state
            if dtype.arguments[0] not in (b"u1", "u1"):
                raise DataError(f"the archive contains an array of {dtype.arguments[0]!r}, not of uint8")
            self.pixels = np.ndarray(shape, np.uint8, numbers, order="F" if fortran else "C")


class _Reader(pickle.Unpickler):
    """An Unpickler that knows the three names of an array.  Python's own calls any function of any module."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in (("numpy.core.multiarray", "_reconstruct"), ("numpy", "ndarray"), ("numpy", "dtype")):
            raise DataError(f"the archive asks for {module}.{name}, which could run code: it is not loaded")
        return _Array
