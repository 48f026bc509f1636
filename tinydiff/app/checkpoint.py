"""Checkpoints: named arrays and their settings in one .npz file that is either whole or not there.

A save goes to a temporary file in the same folder, reaches the disk, and only then takes the old file's place: at any
moment, also after kill -9 or with a full disk, the last good checkpoint is kept.  A load checks a SHA-256 digest of the
whole file before it parses anything, and never unpickles: a file from a stranger can be refused, not run.
The same content gives the same bytes, so `cmp` compares two runs.

Pictures are written through `atomic_write` too.  Read next: train.py, which decides what goes into a checkpoint.
"""

import contextlib
import glob
import hashlib
import io
import json
import os
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from tinydiff.backend import TinydiffError

FORMAT = "tinydiff checkpoint"
VERSION = 1

_MARK = f"{FORMAT}.npy"  # the first member's name, which a zip file spells out from byte 30 on
_DIGEST_SIZE = 64  # SHA-256 in hexadecimal
_KINDS = "biufcSU"  # bool, integers, floats, complex, bytes, text: what a .npy holds without pickle


class CheckpointError(TinydiffError):
    """A file cannot be written, or is not a checkpoint that can be used: the message names the file and says which."""


def save(path: str | os.PathLike, arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> None:
    """Write a checkpoint in place of `path`, whole or not at all.

    An uncompressed zip file that `np.load` reads too:

        "tinydiff checkpoint.npy"   first, uint8: UTF-8 JSON {"meta": {...}, "version": 1}, its keys sorted
        "NAME.npy"                  one for each array, in the order given, in C order
        the zip comment             64 hex digits that end the file: SHA-256 of all bytes before them

    arrays: host arrays of numbers or text.  meta: what JSON can hold (tuples come back as lists), else ValueError.
    Raises CheckpointError if the file cannot be written; the file that was there is then unchanged.
    """
    body = _pack(arrays, meta)
    with atomic_write(path) as file:
        file.write(body)
        file.write(hashlib.sha256(body).hexdigest().encode())


def load(path: str | os.PathLike) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read a checkpoint: (arrays, meta) exactly as saved.

    Raises CheckpointError saying which: no such file, not an .npz file, of other software, cut short, damaged, of a
    newer version, or holding pickled objects, which are never loaded.
    """
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from None
    if hashlib.sha256(data[:-_DIGEST_SIZE]).hexdigest().encode() != data[-_DIGEST_SIZE:]:
        raise CheckpointError(f"{path} {_what_is_wrong(data)}")
    try:
        return _unpack(path, data)
    except CheckpointError:
        raise
    except Exception as error:  # zipfile, json and NumPy raise a dozen kinds for bytes that are not what they expect
        raise CheckpointError(f"{path} is not a checkpoint that this version can read ({error!r})") from None


def check_same(found: dict[str, Any], wanted: dict[str, Any], keys: Iterable[str]) -> None:
    """Check that a checkpoint's settings `found` agree with the `wanted` ones under each of `keys`.

    Values compare as JSON gives them back (a tuple equals a list); a key that is not there counts as None.
    Raises CheckpointError naming every key that differs and both its values.
    """
    differing = []
    for key in keys:
        old, new = (json.loads(json.dumps(settings.get(key))) for settings in (found, wanted))
        if old != new:
            differing.append(f"{key} is {old!r} in the checkpoint, {new!r} is wanted")
    if differing:
        raise CheckpointError(f"the checkpoint fits another configuration: {'; '.join(differing)}")


def set_aside(path: str | os.PathLike) -> Path | None:
    """Give a file that a new run would overwrite another name, PATH's stem and the first free number: that, or None."""
    path = Path(path)
    if not path.exists():
        return None
    number = 1
    while (aside := path.with_name(f"{path.stem}.{number}{path.suffix}")).exists():
        number += 1
    path.rename(aside)
    print(f"{path} of an earlier run is now {aside}")
    return aside


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """Open a temporary file beside `path` for writing bytes; when the block ends well, it takes the place of `path`.

    If the block or the disk fails, `path` stays as it was and the temporary file is removed.  One that a killed process
    left behind is removed by the next write of the same path.  Raises CheckpointError for an OSError.
    """
    target = Path(os.path.realpath(path))  # the file that a link names, so that the link stays a link
    temporary = target.with_name(f".{target.name}.{os.urandom(4).hex()}.tmp")
    try:
        _remove_stale(target)
        try:
            with open(temporary, "xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
    except OSError as error:
        raise CheckpointError(
            f"cannot write {path}: {error.strerror or error} (the old file, if any, is unchanged)"
        ) from error
    _sync_folder(target.parent)


def _pack(arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> memoryview:
    """The bytes of a checkpoint without the digest that ends it."""
    try:
        header = json.dumps({"version": VERSION, "meta": meta}, sort_keys=True)
    except (TypeError, ValueError) as error:
        raise ValueError(f"meta must hold what JSON can hold: {error}") from None
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.comment = bytes(_DIGEST_SIZE)  # the end record tells its length: leave room
        _add(archive, FORMAT, np.frombuffer(header.encode(), np.uint8))
        for name, array in arrays.items():
            if not name or name == FORMAT or not name.isprintable() or "\\" in name:
                raise ValueError(f"array name {name!r} must be printable, without a backslash, and not {FORMAT!r}")
            _add(archive, name, array)
    return buffer.getbuffer()[:-_DIGEST_SIZE]


def _add(archive: zipfile.ZipFile, name: str, array: np.ndarray) -> None:
    if not isinstance(array, np.ndarray) or array.dtype.kind not in _KINDS:
        kind = getattr(array, "dtype", type(array).__name__)
        raise ValueError(f"array {name!r} must be a NumPy array of numbers or text, got {kind}")
    member = zipfile.ZipInfo(f"{name}.npy")  # dated 1980: the same content gives the same bytes
    member.create_system = 3  # the default differs between systems
    member.external_attr = 0o644 << 16  # an unzipped array can be opened
    npy = io.BytesIO()
    np.lib.format.write_array(npy, np.asarray(array, order="C"), allow_pickle=False)
    archive.writestr(member, npy.getbuffer())


def _unpack(path: str | os.PathLike, data: bytes) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        first, *rest = archive.infolist()
        if first.filename != _MARK:
            raise CheckpointError(f"{path} is not a tinydiff checkpoint: an .npz file of other software")
        header = json.loads(_read(path, archive, first).tobytes())
        if header["version"] > VERSION:
            raise CheckpointError(f"{path} has version {header['version']}, newer than {VERSION}: update tinydiff")
        arrays = {member.filename.removesuffix(".npy"): _read(path, archive, member) for member in rest}
        return arrays, dict(header["meta"])


def _read(path: str | os.PathLike, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    npy = io.BytesIO(archive.read(member))
    if np.lib.format.read_magic(npy) != (1, 0):
        raise ValueError(f"{member.filename} is not an array")
    if np.lib.format.read_array_header_1_0(npy)[2].hasobject:
        raise CheckpointError(f"{path} holds pickled objects, which could run code: {member.filename} is not loaded")
    npy.seek(0)
    return np.lib.format.read_array(npy, allow_pickle=False)


def _what_is_wrong(data: bytes) -> str:
    """Name what most likely happened to a file whose digest does not fit."""
    if not data.startswith(b"PK"):
        return "is not a tinydiff checkpoint: not an .npz file" if data else "is empty"
    if not _MARK.encode().startswith(data[30 : 30 + len(_MARK)]):
        return "is not a tinydiff checkpoint: an .npz file of other software"
    if data[-_DIGEST_SIZE - 22 :][:4] != b"PK\5\6":  # the zip end record, 22 bytes and the comment
        return "is cut short: the end of the file is missing"
    return "is damaged: its content does not fit its SHA-256 digest"


def _remove_stale(target: Path) -> None:
    # Another live writer of the same path loses its temporary file and fails cleanly: no mixture of two writers.
    for stale in target.parent.glob(f".{glob.escape(target.name)}.????????.tmp"):
        with contextlib.suppress(OSError):
            stale.unlink()


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return
    with contextlib.suppress(OSError):  # some network file systems refuse it; the file itself is on the disk by now
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
