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
import io
import itertools
import json
import os
import zipfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from tinydiff.app.archive import DIGEST_SIZE, FORMAT, KINDS, VERSION, CheckpointError, load

__all__ = ["FORMAT", "VERSION", "CheckpointError", "atomic_write", "check_same", "load", "save", "set_aside"]


def save(path: str | os.PathLike, arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> None:
    """Write a checkpoint to `path`, completely or not at all.  It replaces an older file.

    The file is an uncompressed zip file, which np.load reads too:

        "tinydiff checkpoint.npy"   first, uint8: UTF-8 JSON {"meta": {...}, "version": 1}, its keys sorted
        "NAME.npy"                  one for each array, in the order given, in C order
        the zip comment             64 hex digits that end the file: SHA-256 of all bytes before them

    arrays: host arrays of numbers or text, else ValueError.  meta: values that JSON can store, else ValueError.  A
    tuple is loaded as a list.  Raises CheckpointError if the file cannot be written; an older file is then unchanged.
    """
    body = _pack(arrays, meta)
    with atomic_write(path) as file:
        file.write(body)
        file.write(hashlib.sha256(body).hexdigest().encode())


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
    if path.exists():
        names = (path.with_name(f"{path.stem}.{number}{path.suffix}") for number in itertools.count(1))
        aside = next(name for name in names if not name.exists())
        path.rename(aside)
        print(f"{path} of an earlier run is now {aside}")


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """Open a temporary file beside `path` for writing bytes.  If the block ends without an error, it replaces `path`.

    If the block or the disk fails, `path` stays as it was and the temporary file is removed.  The next write of the
    same path removes a temporary file that a killed process left.  Raises CheckpointError for an OSError.
    """
    target = Path(os.path.realpath(path))  # follow a link to its file, so that the link stays a link
    temporary = target.with_name(f".{target.name}.{os.urandom(4).hex()}.tmp")
    try:
        # A live writer of the same path loses its temporary file and fails cleanly: two writers never mix their bytes.
        for stale in target.parent.glob(f".{glob.escape(target.name)}.????????.tmp"):
            with contextlib.suppress(OSError):
                stale.unlink()
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
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


def _pack(arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> memoryview:
    """The bytes of a checkpoint without the digest at the end."""
    try:
        header = json.dumps({"version": VERSION, "meta": meta}, sort_keys=True)
    except (TypeError, ValueError) as error:
        raise ValueError(f"meta must hold what JSON can hold: {error}") from None
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.comment = bytes(DIGEST_SIZE)  # space for the digest: the end record contains the length of the comment
        _add(archive, FORMAT, np.frombuffer(header.encode(), np.uint8))
        for name, array in arrays.items():
            if not name or name == FORMAT or not name.isprintable() or "\\" in name:
                raise ValueError(f"array name {name!r} must be printable, without a backslash, and not {FORMAT!r}")
            _add(archive, name, array)
    return buffer.getbuffer()[:-DIGEST_SIZE]


def _add(archive: zipfile.ZipFile, name: str, array: np.ndarray) -> None:
    if not isinstance(array, np.ndarray) or array.dtype.kind not in KINDS:
        got = getattr(array, "dtype", type(array))
        raise ValueError(f"array {name!r} must be a NumPy array of numbers or text, got {got}")
    member = zipfile.ZipInfo(f"{name}.npy")  # dated 1980: equal content gives equal bytes
    member.create_system = 3  # Unix, on every system
    member.external_attr = 0o644 << 16  # the permissions of an unzipped array
    npy = io.BytesIO()
    np.lib.format.write_array(npy, np.asarray(array, order="C"), allow_pickle=False)
    archive.writestr(member, npy.getbuffer())
