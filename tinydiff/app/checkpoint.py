"""Checkpoints: named arrays and their settings in one .npz file, which is either complete or absent.

A save writes to a temporary file in the same folder, waits until the bytes are on the disk, and only then puts the
temporary file in the place of the old one.  So a good checkpoint exists at any moment, also after kill -9 or on a full
disk.  `load` is in archive.py: it checks a SHA-256 digest of the whole file before it parses anything, and it never
unpickles: a file from a stranger can be refused, but it cannot run code.  Equal content gives equal bytes, so `cmp`
compares two runs.

Pictures and tables are written through `atomic_write` too.  kinds.py describes what a checkpoint contains.
Read next: archive.py.
"""

import contextlib
import glob
import hashlib
import itertools
import json
import os
import zipfile
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from tinydiff.app.archive import DIGEST_SIZE, FORMAT, KINDS, VERSION, CheckpointError, load
from tinydiff.app.outputs import check_replaceable, lock, temporary_name

__all__ = [
    "FORMAT",
    "VERSION",
    "CheckpointError",
    "atomic_write",
    "check_same",
    "load",
    "save",
    "set_aside",
    "set_aside_run",
]


def save(path: str | os.PathLike, arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> None:
    """Write a checkpoint to `path`, completely or not at all.  It replaces an older file.

    The file is an uncompressed zip file, which np.load reads too:

        "tinydiff checkpoint.npy"   first, uint8: UTF-8 JSON {"meta": {...}, "version": 1}, its keys sorted
        "NAME.npy"                  one for each array, in the order given, in C order
        the zip comment             64 hex digits that end the file: SHA-256 of all bytes before them

    arrays: host arrays of numbers or text, else ValueError.  meta: values that JSON can store, else ValueError.  A
    tuple is loaded as a list.  Raises CheckpointError if the file cannot be written; an older file is then unchanged.
    """
    try:
        header = json.dumps({"version": VERSION, "meta": meta}, sort_keys=True)
    except (TypeError, ValueError) as error:
        raise ValueError(f"meta must hold what JSON can hold: {error}") from None
    for name, array in arrays.items():
        _check(name, array)
    with atomic_write(path) as file:
        _pack(file, {FORMAT: np.frombuffer(header.encode(), np.uint8), **arrays})
        _seal(file)


def check_same(saved: dict[str, Any], wanted: dict[str, Any], keys: Collection[str]) -> None:
    """Check that the settings `saved` in a checkpoint equal the `wanted` ones under each of `keys`.

    Values are compared as JSON stores them (a tuple equals a list).  A key that is absent counts as None.
    Raises CheckpointError that lists each different key with both values.
    """
    old, new = (json.loads(json.dumps({key: settings.get(key) for key in keys})) for settings in (saved, wanted))
    differing = [f"{k} is {old[k]!r} in the checkpoint, {new[k]!r} is wanted" for k in keys if old[k] != new[k]]
    if differing:
        raise CheckpointError(f"the checkpoint fits another configuration: {'; '.join(differing)}")


def set_aside(path: str | os.PathLike) -> None:
    """Rename a file that a new run would overwrite: model.npz becomes model.1.npz, or the first number that is free."""
    path = Path(path)
    for number in itertools.count(1) if path.exists() else ():
        aside = path.with_name(f"{path.stem}.{number}{path.suffix}")
        with contextlib.suppress(FileExistsError):
            aside.touch(exist_ok=False)  # no other process can get this number now
            os.replace(path, aside)
            print(f"{path} of an earlier run is now {aside}")
            return


def set_aside_run(folder: Path, names: Sequence[str]) -> None:
    """Move what an earlier run has left in a folder to earlier.1 in it, or to the first number that is free.

    names: the files and folders of a run, in the order in which they are moved.  The checkpoint should be the last, so
    that a run whose process is killed on the way can still be resumed.  Empty folders stay.
    """
    left = [path for path in map(folder.joinpath, names) if path.is_file() or (path.is_dir() and any(path.iterdir()))]
    for number in itertools.count(1) if left else ():
        aside = folder / f"earlier.{number}"
        with contextlib.suppress(FileExistsError):
            aside.mkdir()  # no other process can get this number now
            for path in left:
                os.replace(path, aside / path.name)
            print(f"the files of an earlier run are now in {aside}/")
            return


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """Open a temporary file beside `path` for writing bytes.  If the block ends without an error, it replaces `path`.

    If the block or the disk fails, `path` stays as it was and the temporary file is removed.  The next write of the
    same path removes a temporary file that a killed process left.  Two processes may write the same path: each writes
    a complete file, and the last one stays.  Raises CheckpointError for an OSError, and if something that is not a file
    stands at `path`.
    """
    target = Path(os.path.realpath(path))  # follow a link to its file, so that the link stays a link
    temporary = temporary_name(target)
    try:
        check_replaceable(target)
        for stale in target.parent.glob(f".{glob.escape(target.name)}.????????.tmp"):
            with contextlib.suppress(OSError), open(stale, "r+b") as left:
                if lock(left.fileno()):  # else its writer is alive
                    stale.unlink()
        temporary, file = _new_file(target)
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            if os.name == "nt":  # Windows moves no open file.  Elsewhere the lock lasts until the file is in its place
                file.close()
            os.replace(temporary, target)
    except OSError as error:
        raise CheckpointError(f"cannot write {path}: {error.strerror or error} (an older file is unchanged)") from error
    finally:
        with contextlib.suppress(OSError):  # after a success the temporary file is gone
            temporary.unlink()
    with contextlib.suppress(OSError):  # Windows and some network file systems refuse to sync a folder
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _new_file(target: Path) -> tuple[Path, BinaryIO]:
    """A new temporary file, locked while it is open, so that other processes see that its writer is alive."""
    while True:
        path = temporary_name(target)
        file, mine = open(path, "x+b"), True  # noqa: SIM115
        with contextlib.suppress(OSError):  # a file system without locks
            mine = lock(file.fileno())
        if mine and path.exists():
            return path, file
        file.close()  # another process takes it for one that was left, because it was not locked at once


def _check(name: str, array: np.ndarray) -> None:
    if not name or name == FORMAT or not name.isprintable() or "\\" in name:
        raise ValueError(f"array name {name!r} must be printable, without a backslash, and not {FORMAT!r}")
    if not isinstance(array, np.ndarray) or array.dtype.kind not in KINDS:
        got = getattr(array, "dtype", type(array))
        raise ValueError(f"array {name!r} must be a NumPy array of numbers or text, got {got}")


def _pack(file: BinaryIO, arrays: dict[str, np.ndarray]) -> None:
    """Write the zip file of a checkpoint, with zeros in the place of the digest.

    The arrays go straight to the file.  Views of a BytesIO would crash Python 3.12 when an exception ends a save.
    """
    with zipfile.ZipFile(file, "w") as archive:
        archive.comment = bytes(DIGEST_SIZE)  # the end record contains the length of the comment
        try:
            for name, array in arrays.items():
                _add(archive, name, array)
        except BaseException:
            archive.fp = None  # the file is dropped; closing it could raise another error in place of this one
            raise


def _add(archive: zipfile.ZipFile, name: str, array: np.ndarray) -> None:
    member = zipfile.ZipInfo(f"{name}.npy")  # dated 1980: equal content gives equal bytes
    member.create_system = 3  # Unix, on every system
    member.external_attr = 0o644 << 16  # the permissions of an unzipped array
    member.file_size = array.nbytes  # it decides whether zipfile writes a header for more than 2 GB
    with archive.open(member, "w") as npy:
        np.lib.format.write_array(npy, np.asarray(array, order="C"), allow_pickle=False)


def _seal(file: BinaryIO) -> None:
    """Replace the last 64 bytes of the file by the digest of all bytes before them."""
    file.seek(-DIGEST_SIZE, os.SEEK_END)
    file.truncate()
    file.seek(0)
    digest = hashlib.sha256()
    while part := file.read(1 << 20):
        digest.update(part)
    file.write(digest.hexdigest().encode())
