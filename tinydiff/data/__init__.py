"""Data sets by name, or by the path of one's own pictures.

MNIST, Fashion-MNIST and CIFAR-10 are read from files or downloaded; glyphs and sprites are drawn on this machine; a
folder of pictures, an .npz file and IDX files are read from where they are.

`load` is the only function that a demo needs.  It returns a `Dataset`: uint8 images, perhaps their labels, and batches
of x_0 in [-1, 1].  `epoch_indices` gives the rows of each training step's batch.

Read next: dataset.py.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tinydiff.data.dataset import COLOUR, NAMES, DataError, Dataset
from tinydiff.data.epochs import epoch_indices

__all__ = ["COLOUR", "NAMES", "DataError", "Dataset", "epoch_indices", "load"]


def load(
    name: str | Path,
    split: str = "train",
    data_dir: str | Path | None = None,
    seed: int = 0,
    num: int | None = None,
    say: Callable[[str], object] = print,
    **options: Any,
) -> Dataset:
    """Return one split, "train" or "test", of a data set.

    name: "mnist", "fashion" and "cifar10" are read from the folder data_dir, or else from $TINYDIFF_DATA.  If neither
    is given, they are read from the cache folder or downloaded to it.  "glyphs" and "sprites" are drawn from `seed`.
    "auto" is MNIST.  If no folder is named, and MNIST is not on this machine and cannot be downloaded, "auto" passes
    the reason to `say` and draws glyphs.  A missing file in a named folder and a damaged file are errors under "auto"
    too.  Any other name is the path of a folder of pictures, of an .npz file or of an IDX file.
    num: only the first `num` images.  The default is all of them.
    options: size, channels and value_range of own.py, for other data sets than NAMES.
    Raises DataError for a missing or damaged file, an unknown name, and an option that the data set does not have.
    Raises ValueError for an unknown split, or for a num that is less than 1 or more than the set has.
    """
    name = os.fspath(name)
    if split not in ("train", "test"):
        raise ValueError(f"split must be 'train' or 'test', got {split!r}")
    if name not in NAMES:
        from tinydiff.data.own import load_own  # a run opens only the files of its own data set

        return load_own(name, split, seed, num, say, data_dir=data_dir, **options)
    for option in (option for option in options if options[option] is not None):
        raise DataError(f"--{option} {options[option]}: {name} is 28 x 28 and grey; leave it out")
    if name == "glyphs" and data_dir is not None:
        raise DataError(f"--data-dir {data_dir}: glyphs are drawn on this machine, not read from files; leave it out")
    if name != "glyphs":
        from tinydiff.data.mnist import load_mnist
        from tinydiff.data.releases import DataMissing

        try:
            return load_mnist("mnist" if name == "auto" else name, split, data_dir, say).first(num)
        except DataMissing:
            if name != "auto":
                raise
            say("MNIST is not on this machine and cannot be downloaded: drawn digits (glyphs) take its place.")
            say("To use MNIST, name the folder of its files with --data-dir; --data mnist tells what went wrong.")
    from tinydiff.data.glyphs import load_glyphs

    return load_glyphs(split, seed, num)
