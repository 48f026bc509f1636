"""A folder of pictures as a data set: each subfolder is a class, or the pictures lie in the folder itself.

Hidden files and folders are passed over.  Everything else that is not used, and every odd thing in a picture that is
used, is named: nothing is dropped in silence.  Read next: pictures.py.
"""

import os
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from tinydiff.backend import default_rng
from tinydiff.data.dataset import DataError, Dataset
from tinydiff.data.limits import check_memory
from tinydiff.data.pictures import Picture, read_picture

SUFFIXES = (".png", ".jpg", ".jpeg", ".gif", ".bmp", ".webp")  # in capitals too
NAMED = 20  # names in a line of remarks
AHEAD = 256  # pictures that threads read ahead
Remarks = dict[str, list[Path]]  # what was noticed -> where


def load_folder(
    folder: Path, size: int | None, channels: int | None, num: int | None, say: Callable[[str], object]
) -> Dataset:
    """Read the pictures of a folder, (N, size, size, channels), in an order that depends on their names alone.

    size: as in read_picture; None asks for pictures of one size.  channels: 1 or 3; None is 1 if every picture is grey.
    num: only the first `num` pictures of the order, which is random, so that they are of all classes.
    say: receives a line for each kind of remark, with the names of the files.
    Raises DataError if there is no picture that can be read, or fewer than num, for pictures beside folders of
    pictures, and without size for pictures of several sizes.  Raises TinydiffError if they need more memory than this
    machine has.
    """
    remarks: Remarks = defaultdict(list)
    try:
        classes, paths = _find(folder, remarks)
        check_memory(f"{folder}", 3.0 * (size or 1) ** 2 * min(num or len(paths), len(paths)))
        order = [paths[i] for i in default_rng("folder").permutation(len(paths))]
        images, labels = _collect(order, size, channels, num, remarks)
        n, h, w, c = images.shape
        source = f"{folder}: {n:,} pictures of {w} x {h}, {'grey' if c == 1 else 'in colour'}"
        name = f"{Path(os.path.abspath(folder)).name}/"  # no built-in data set has a name with a slash
        return Dataset.from_arrays(images, labels if classes else None, classes=classes, name=name, source=source)
    except (OSError, ValueError) as error:  # a name, or the number of classes, can be more than a checkpoint can hold
        raise DataError(f"{folder}: {error}") from None
    finally:
        for remark, where in remarks.items():
            names = ", ".join(str(path.relative_to(folder)) for path in where[:NAMED])
            more = f" and {len(where) - NAMED:,} more" if len(where) > NAMED else ""
            say(f"{folder}: {remark}: {names if names.isprintable() else ascii(names)}{more}")


def _find(folder: Path, remarks: Remarks) -> tuple[list[str], list[tuple[Path, int]]]:
    """The names of the classes, or [], and (path, label) of each file that may be a picture, in order."""
    found: dict[str, list[Path]] = {}
    read = {os.path.realpath(folder)}

    def look(here: Path, name: str) -> None:
        for path in sorted(path for path in here.iterdir() if not path.name.startswith(".")):
            if not path.is_dir():
                picture = path.suffix.lower() in SUFFIXES
                (found.setdefault(name, []) if picture else remarks["passed over, not a picture by its name"]).append(
                    path
                )
            elif name or os.path.realpath(path) in read:
                remarks["passed over, a folder within a class or a link to one that is read"].append(path)
            else:
                read.add(os.path.realpath(path))
                look(path, path.name)
        if name and name not in found:
            remarks["no class, because no picture is in it"].append(here)

    look(folder, "")
    if not found:
        raise ValueError(
            f"no pictures ({', '.join(SUFFIXES)}) in it, nor in its folders; name an .npz or IDX file itself"
        )
    if "" in found and len(found) > 1:
        raise ValueError(
            f"{len(found['']):,} pictures lie beside folders of pictures; move each into its class's folder"
        )
    names = sorted(found, key=int if all(name.isdecimal() for name in found) else None)  # 2 before 10
    return [name for name in names if name], [(path, k) for k, name in enumerate(names) for path in found[name]]


def _collect(
    order: list[tuple[Path, int]], size: int | None, channels: int | None, num: int | None, remarks: Remarks
) -> tuple[np.ndarray, np.ndarray]:
    """The images and labels of the first `num` files that can be read."""
    images, labels, grey = [], [], channels is None
    for (path, label), picture in zip(order, _read_all([path for path, _ in order], size, channels)):
        for remark in picture.remarks:
            remarks[remark].append(path)
        if picture.pixels is not None:
            images.append(picture.pixels)
            labels.append(label)
            grey = grey and picture.grey
        if len(images) == num:
            break
    if len(images) < (num or 1):
        raise ValueError(f"{len(images):,} of {len(order):,} pictures can be read, and {num or 1:,} are needed")
    if len(sizes := sorted({f"{image.shape[1]} x {image.shape[0]}" for image in images})) > 1:
        several = f"pictures of {len(sizes)} sizes, such as {sizes[0]} and {sizes[-1]}"
        raise ValueError(f"{several}; size=32 (--size 32) crops and resizes them to one size")
    return np.stack(images)[..., : 1 if grey else 3].copy(), np.array(labels)  # grey: the three channels are alike


def _read_all(paths: list[Path], size: int | None, channels: int | None) -> Iterator[Picture]:
    """Yield the picture of each path, as read_picture returns it.  Threads read ahead."""
    from tqdm import tqdm

    bar = tqdm(total=len(paths), desc="reading pictures", unit="img", delay=5, leave=False)
    with warnings.catch_warnings(), ThreadPoolExecutor(os.cpu_count()) as pool, bar:
        warnings.simplefilter("ignore")  # Pillow's, about what it passes over in a file
        for start in range(0, len(paths), AHEAD):
            for picture in pool.map(lambda path: read_picture(path, size, channels), paths[start : start + AHEAD]):
                bar.update()
                yield picture
