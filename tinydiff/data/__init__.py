"""Data sets by name.  MNIST and Fashion-MNIST are read from files or downloaded; glyphs are drawn on this machine.

`load` is the only function that a demo needs.  It returns a `Dataset`: uint8 images, their labels, and batches of x_0
in [-1, 1].  `epoch_indices` gives the rows of each training step's batch.

Read next: dataset.py.
"""

from collections.abc import Callable
from pathlib import Path

from tinydiff.data.dataset import DataError, Dataset
from tinydiff.data.epochs import epoch_indices

__all__ = ["NAMES", "DataError", "Dataset", "epoch_indices", "load"]

NAMES = ("auto", "mnist", "fashion", "glyphs")


def load(
    name: str,
    split: str = "train",
    data_dir: str | Path | None = None,
    seed: int = 0,
    num: int | None = None,
    say: Callable[[str], object] = print,
) -> Dataset:
    """Return one split, "train" or "test", of a data set.

    name: "mnist" and "fashion" are read from the folder data_dir, or else from $TINYDIFF_DATA.  If neither is given,
    they are read from the cache folder or downloaded to it.  "glyphs" is drawn from `seed`.  "auto" is MNIST.  If no
    folder is named, and MNIST is not on this machine and cannot be downloaded, "auto" passes the reason to `say` and
    draws glyphs.  A missing file in a named folder and a damaged file are errors under "auto" too.
    num: only the first `num` images.  The default is all of them.
    Raises DataError for a missing or damaged file, and for a data_dir with "glyphs", which are not read from files.
    Raises ValueError for an unknown name or split, or for a num that is less than 1 or more than the set has.
    """
    if name not in NAMES:
        raise ValueError(f"data must be one of {', '.join(NAMES)}, got {name!r}")
    if split not in ("train", "test"):
        raise ValueError(f"split must be 'train' or 'test', got {split!r}")
    if name == "glyphs" and data_dir is not None:
        raise DataError(f"--data-dir {data_dir}: glyphs are drawn on this machine, not read from files; leave it out")
    if name != "glyphs":
        from tinydiff.data.mnist import DataMissing, load_mnist  # a run opens only the files of its own data set

        try:
            return load_mnist("mnist" if name == "auto" else name, split, data_dir, say).first(num)
        except DataMissing:
            if name != "auto":
                raise
            say("MNIST is not on this machine and cannot be downloaded: drawn digits (glyphs) take its place.")
            say("To use MNIST, name the folder of its files with --data-dir; --data mnist tells what went wrong.")
    from tinydiff.data.glyphs import load_glyphs

    return load_glyphs(split, seed, num)
