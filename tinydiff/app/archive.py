"""Reading a checkpoint file, which may come from a stranger: every size is compared before memory is allocated.

    digest   SHA-256 of the whole file, read block by block, before anything else is believed
    table    at the end of the zip file: no compressed member, no name twice, all members together within the file
    headers  of the settings and of every array: shape and dtype must fit the member's size
    check    by the caller, from settings, shapes and dtypes alone (kinds.py)
    arrays   last

So a file cannot make this process allocate more than about the size of the file.  Nothing is ever unpickled: a file
can be refused, but it cannot run code.  checkpoint.py describes the format and writes it.
Read next: blocks.py.
"""

import hashlib
import io
import json
import math
import os
import struct
import zipfile
from collections.abc import Callable
from functools import lru_cache
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from tinydiff.backend import TinydiffError
from tinydiff.data.limits import check_regular

FORMAT = "tinydiff checkpoint"
VERSION = 1
KINDS = "biufcSU"  # bool, integers, floats, complex, bytes, text: a .npy file stores these without pickle
DIGEST_SIZE = 64  # SHA-256 in hexadecimal

_MARK = f"{FORMAT}.npy"  # the name of the first member, which stands at byte 30 of the zip file
_END = struct.Struct("<4s4H2LH")  # the zip end record: mark, ..., size and offset of the table, length of the comment
_MOST_SETTINGS, _MOST_TABLE = 1 << 20, 1 << 21  # bytes: of the settings as JSON, and of the zip file's table
_MOST_MEMBERS = 10_000


class CheckpointError(TinydiffError):
    """A file cannot be written, or is not a usable checkpoint.  The message names the file and the reason."""


class Header(NamedTuple):
    """What a .npy file says of its array, and where the numbers start."""

    shape: tuple[int, ...]
    dtype: np.dtype
    order: Any
    start: int


Meta = dict[str, Any]
Check = Callable[[dict[str, Header], Meta], None]


def load(path: str | os.PathLike, check: Check = lambda headers, meta: None) -> tuple[dict[str, np.ndarray], Meta]:
    """Read a checkpoint: (arrays, meta), exactly as saved.

    check({name: Header}, meta): is called before any array is read, and may raise CheckpointError.
    Raises CheckpointError with the reason: the file does not exist, is not an .npz file, comes from other software, is
    cut short or damaged, has a newer version, or contains what `save` does not write, such as pickled objects.
    """
    try:
        check_regular(path)
        with open(path, "rb") as file:
            _check_digest(file)
            _check_table(file)
            with zipfile.ZipFile(file) as archive:
                return _unpack(archive, file.seek(0, os.SEEK_END), check)
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from None
    except CheckpointError as error:
        raise CheckpointError(f"{path} {error}") from None
    except MemoryError:
        raise CheckpointError(f"{path} needs more memory than there is") from None
    except Exception as error:  # zipfile, json and NumPy raise a dozen kinds of errors for wrong bytes
        raise CheckpointError(
            f"{path} is not a checkpoint that this version can read ({printable(repr(error))})"
        ) from None


def printable(text: str, most: int = 200) -> str:
    """A text from outside for a terminal: in one line, with other than printable letters escaped, and cut at `most`."""
    escaped = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text[:most])
    return escaped if len(text) <= most else f"{escaped}..."


def _check_digest(file: BinaryIO) -> None:
    left, digest = file.seek(0, os.SEEK_END) - DIGEST_SIZE, hashlib.sha256()
    file.seek(0)
    while block := file.read(max(0, min(left, 1 << 20))):
        digest.update(block)
        left -= len(block)
    if digest.hexdigest().encode() != file.read():
        raise CheckpointError(_what_is_wrong(file))


def _what_is_wrong(file: BinaryIO) -> str:
    """The most likely reason why the content of a file does not fit its digest."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    head = file.read(30 + len(_MARK))
    if not head.startswith(b"PK"):
        return "is not a tinydiff checkpoint: not an .npz file" if head else "is empty"
    if not _MARK.encode().startswith(head[30:]):
        return "is not a tinydiff checkpoint: an .npz file of other software"
    file.seek(max(0, size - DIGEST_SIZE - _END.size))
    if file.read(4) != b"PK\5\6":
        return "is cut short: the end of the file is missing"
    return "is damaged: its content does not fit its SHA-256 digest"


def _check_table(file: BinaryIO) -> None:
    """Raise CheckpointError for a table of very many members, because zipfile reads the whole table at once."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - DIGEST_SIZE - _END.size - 20))
    end = file.read(20 + _END.size)
    mark, *_, table, _, comment = _END.unpack(end[20:])
    large = end.startswith(b"PK\6\7")  # only a zip file of more than 4 GB has these 20 bytes before its end record
    if (mark, comment) != (b"PK\5\6", DIGEST_SIZE) or (size < 1 << 32 and (large or table > _MOST_TABLE)):
        raise CheckpointError("is not a tinydiff checkpoint: it ends unlike a file that tinydiff saves")


def _unpack(archive: zipfile.ZipFile, size: int, check: Check) -> tuple[dict[str, np.ndarray], Meta]:
    members = {member.filename: member for member in archive.infolist()}
    if len(members) > _MOST_MEMBERS:
        raise CheckpointError(f"contains {len(members):,} arrays, at most {_MOST_MEMBERS:,} are possible")
    if next(iter(members), None) != _MARK:
        raise CheckpointError("is not a tinydiff checkpoint: an .npz file of other software")
    for member in archive.infolist():
        name, stored = member.filename, (member.compress_type, member.compress_size) == (0, member.file_size)
        if not stored or member is not members[name] or not name.endswith(".npy"):
            problem = "twice" if stored else "in compressed form"
            raise CheckpointError(f"contains {printable(name)} {problem}, which tinydiff does not save")
    if sum(member.file_size for member in members.values()) > size:
        raise CheckpointError("is smaller than the arrays that it should contain")
    headers = {name: _header(archive, member) for name, member in members.items()}
    if members[_MARK].file_size > _MOST_SETTINGS:
        raise CheckpointError(f"contains settings of {members[_MARK].file_size:,} bytes, at most {_MOST_SETTINGS:,}")
    text = json.loads(_read(archive, _MARK, headers.pop(_MARK)).tobytes())
    if type(text["version"]) is int and text["version"] > VERSION:
        raise CheckpointError(f"has version {text['version']}, newer than {VERSION}: update tinydiff")
    if text["version"] != VERSION or type(text["meta"]) is not dict:
        raise CheckpointError("contains settings that tinydiff does not save")
    check({name.removesuffix(".npy"): header for name, header in headers.items()}, text["meta"])
    return {name.removesuffix(".npy"): _read(archive, name, header) for name, header in headers.items()}, text["meta"]


def _header(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Header:
    with archive.open(member) as npy:
        if np.lib.format.read_magic(npy) != (1, 0):  # numbers and text never need a longer header, so save writes none
            raise CheckpointError(f"contains {printable(member.filename)}, which is not an array that tinydiff saves")
        length = npy.read(2)  # of the header's text
        shape, fortran, dtype = _parsed(length + npy.read(int.from_bytes(length, "little")))
        start = npy.tell()
    if dtype.hasobject:
        raise CheckpointError(
            f"contains pickled objects, which could run code: {printable(member.filename)} is not loaded"
        )
    if dtype.kind not in KINDS or start + math.prod(shape) * dtype.itemsize != member.file_size:
        raise CheckpointError(f"contains {printable(member.filename)}, whose size is not that of its numbers")
    return Header(shape, dtype, "F" if fortran else "C", start)


@lru_cache(1000)  # weights, average and moments have the same few shapes, and NumPy takes 0.1 ms for a header
def _parsed(header: bytes) -> tuple[tuple[int, ...], bool, np.dtype]:
    return np.lib.format.read_array_header_1_0(io.BytesIO(header))


def _read(archive: zipfile.ZipFile, name: str, header: Header) -> np.ndarray:
    shape, dtype, order, start = header
    return np.ndarray(shape, dtype, archive.read(name), start, order=order).copy()
