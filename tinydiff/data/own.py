"""Data sets in colour, and one's own: a folder of pictures, an .npz file, or IDX files.  Read next: sprites.py."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tinydiff.data.dataset import COLOUR, NAMES, DataError, Dataset

OPTIONS = {"sprites": ["size"], "cifar10": ["data_dir", "size"]}
OPTIONS |= {"folder": ["size", "channels"], "npz": ["size", "value_range"], "idx": ["size"]}


def load_own(
    name: str, split: str, seed: int, num: int | None, say: Callable[[str], object], **options: Any
) -> Dataset:
    """Return one split of a data set other than NAMES.  A folder and a file have the split "train" only.

    options: each None, or a value.  data_dir: of CIFAR-10.  size: 8 to 256, the side of sprites, and of the square that
    all other images are cropped and resized to.  channels: 1 for grey or 3 for colour, for a folder.  value_range: of
    float images in an .npz file, as in from_arrays.
    say: is told what is odd in a folder.  Raises as tinydiff.data.load does.
    """
    file = "npz" if name.endswith(".npz") else "idx"
    kind = name if name in COLOUR else "folder" if os.path.isdir(name) else file
    if kind == file and not os.path.exists(name):
        known = ", ".join((*NAMES, *COLOUR))
        raise DataError(f"no data set {name!r}: it must be {known}, or the path of a folder, .npz or IDX file")
    if kind in ("folder", file) and split == "test":
        raise DataError(f"{name}: this program needs test images, and pictures of one's own are training images only")
    for option, value in options.items():
        if value is not None and option not in OPTIONS[kind]:
            raise DataError(f"--{option.replace('_', '-')} {value}: {name} has no use for it; leave it out")
    size = options.get("size")
    if size is not None and not 8 <= size <= 256:
        raise DataError(f"--size {size}: must be 8 to 256")
    if kind == "sprites":
        from tinydiff.data.sprites import SIZE, load_sprites

        return load_sprites(split, seed, num, size or SIZE)
    if kind == "folder":
        from tinydiff.data.folder import load_folder

        return load_folder(Path(name), size, options.get("channels"), num, say)
    if kind == "cifar10":
        from tinydiff.data.cifar import load_cifar10

        whole = load_cifar10(split, options.get("data_dir"), say)
    elif kind == "npz":
        from tinydiff.data.npz import load_npz

        whole = load_npz(Path(name), options.get("value_range"))
    else:
        from tinydiff.data.own_idx import load_idx

        whole = load_idx(Path(name))
    from tinydiff.data.pictures import resized

    return resized(whole.first(num), size)
