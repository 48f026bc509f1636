"""Data sets by name: MNIST and Fashion-MNIST from files that are checked or fetched, glyphs drawn on the spot.

`load` is all that a demo needs; a `Dataset` holds uint8 images and hands out batches of x_0 in [-1, 1].

Read next: dataset.py (what comes back), mnist.py (files and their hashes), glyphs.py (digits without a download),
epochs.py (which images make up a step's batch).
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from tinydiff.data.dataset import DataError, Dataset
from tinydiff.data.epochs import epoch_indices
from tinydiff.data.glyphs import load_glyphs
from tinydiff.data.mnist import DataMissing, load_mnist

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
    """The `split` ("train" or "test") of a data set.

    name: "mnist" and "fashion" are read from data_dir, $TINYDIFF_DATA or the cache folder, else downloaded; "glyphs"
    is drawn from `seed`; "auto" is MNIST, or glyphs where MNIST can be neither found nor downloaded, and then `say` is
    told why.  A file that is damaged raises under "auto" too.  num: the first `num` images, all of them by default.
    Raises ValueError for an unknown name or split or a num the set cannot give, DataError for missing or damaged files.
    """
    if name not in NAMES:
        raise ValueError(f"data must be one of {', '.join(NAMES)}, got {name!r}")
    if split not in ("train", "test"):
        raise ValueError(f"split must be 'train' or 'test', got {split!r}")
    if name == "glyphs":
        return load_glyphs(split, seed, num)
    try:
        dataset = load_mnist("mnist" if name == "auto" else name, split, data_dir, say)
    except DataMissing as error:
        if name != "auto":
            raise
        say(f"Using the embedded glyphs instead of MNIST. {error}")
        return load_glyphs(split, seed, num)
    if num is None:
        return dataset
    if not 1 <= num <= len(dataset):
        raise ValueError(f"num must lie in 1..{len(dataset)} for {name}, got {num}")
    return replace(dataset, images=dataset.images[:num], labels=dataset.labels[:num])
