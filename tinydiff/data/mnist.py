"""MNIST and Fashion-MNIST from their four files.  Read next: releases.py."""

from collections.abc import Callable
from pathlib import Path

from tinydiff.data.dataset import Dataset
from tinydiff.data.idx import parse_idx
from tinydiff.data.releases import RELEASES, find

FILES = {
    "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
}


def load_mnist(name: str, split: str, data_dir: str | Path | None, say: Callable[[str], object]) -> Dataset:
    """Return a split of "mnist" or "fashion" from checked files.  `say` is called before a file is downloaded.

    Raises DataMissing if no folder is named and a file is not on this machine and cannot be downloaded.  Raises
    DataError if a file is wrong, or is not in the folder that is named.
    """
    (place, images), (_, labels) = (find(name, file, data_dir, say) for file in FILES[split])
    source = f"{RELEASES[name].title} ({split} split) {place}"
    return Dataset(name, parse_idx(images)[..., None], parse_idx(labels), source, RELEASES[name].classes)
