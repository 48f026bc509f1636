"""Checkpoints that a stranger could forge, each with a right digest, made from the content of a real one.

    settings    each one missing, of another type, zero, negative, huge, not a number
    arrays      each one missing, of another shape or type, not finite; and others beside them
    files       members twice, compressed, larger than the file; tables, settings and names that are too long

A forgery is a pair: what was changed, and the bytes of the file.  app/test_kinds.py reads all of them.
"""

import copy
import hashlib
import io
import json
import struct
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np

Arrays, Meta = dict[str, np.ndarray], dict[str, Any]

MARK = "tinydiff checkpoint.npy"
OTHERS = {  # what may stand in the place of a setting
    "null": None,
    "true": True,
    "a text": "8",
    "escape codes": "\x1b[2J\x1b[31m",
    "a long text": "a" * 100_000,
    "a list": [[]],
    "a group": {"a": 1},
    "zero": 0,
    "negative": -1,
    "a fraction": 1.5,
    "a float": 8.0,
    "a million": 10**6,
    "huge": 10**12,
    "beyond int64": 10**30,
    "nan": float("nan"),
    "infinite": float("inf"),
}


class Member(NamedTuple):
    """A member of a zip file: what it states of itself, and its bytes, which may be compressed (method 8)."""

    name: str
    content: bytes
    size: int
    crc: int
    method: int = 0
    count: int = 1  # how often the table lists it, each time under another name


def stored(name: str, content: bytes) -> Member:
    return Member(name, content, len(content), zlib.crc32(content))


def array(name: str, a: np.ndarray) -> Member:
    file = io.BytesIO()
    np.lib.format.write_array(file, np.asarray(a, order="C"), version=(1, 0), allow_pickle=a.dtype.hasobject)
    return stored(f"{name}.npy", file.getvalue())


def settings(text: str) -> Member:
    return array(MARK.removesuffix(".npy"), np.frombuffer(text.encode(), np.uint8))


def text_of(meta: Any, version: Any = 1) -> str:
    return json.dumps({"version": version, "meta": meta}, sort_keys=True)


def sealed(members: list[Member]) -> bytes:
    """A zip file of these members, with the digest that belongs to it."""
    body, table, at = [], [], 0
    for member in members:
        name, sizes = member.name.encode(), (member.crc, len(member.content), member.size)
        body.append(struct.pack("<4s5H3L2H", b"PK\3\4", 20, 0, member.method, 0, 33, *sizes, len(name), 0) + name)
        body.append(member.content)
        for i in range(member.count):
            listed = name if i == 0 else f"{i}{member.name}".encode()
            entry = 20, 20, 0, member.method, 0, 33, *sizes, len(listed), 0, 0, 0, 0, 0, at
            table.append(struct.pack("<4s6H3L5H2L", b"PK\1\2", *entry) + listed)
        at += len(body[-2]) + len(body[-1])
    return resealed(b"".join([*body, *table, _end(min(len(table), 65535), sum(map(len, table)), at), bytes(64)]))


def _end(count: int, size: int, at: int) -> bytes:
    """The end record of a zip file with a comment of 64 bytes: the number of members, size and place of the table."""
    return struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, count, count, size, at, 64)


def resealed(data: bytes) -> bytes:
    """The same file with the digest that belongs to it."""
    return data[:-64] + hashlib.sha256(data[:-64]).hexdigest().encode()


class Forgery(NamedTuple):
    """What was changed, and make() -> the bytes of the file."""

    what: str
    make: Callable[[], bytes]


class Original:
    """The content of a real checkpoint, and what a forger could make of it."""

    def __init__(self, arrays: Arrays, meta: Meta):
        self.arrays, self.meta = arrays, meta
        self.members = {name: array(name, a) for name, a in arrays.items()}

    def file(self, meta: Any = None, others: tuple[Member, ...] = (), without: str = "") -> bytes:
        """The file with other settings, with other members at its end, without one of its own."""
        text = meta if isinstance(meta, str) else text_of(self.meta if meta is None else meta)
        return sealed([settings(text), *(m for name, m in self.members.items() if name != without), *others])

    def settings(self) -> Iterator[Forgery]:
        """Every setting missing, and every other value in its place.  The arrays are the right ones."""
        for at in _places(self.meta):
            name = ".".join(map(str, at))
            yield Forgery(f"{name} missing", partial(self.file, _changed(self.meta, at)))
            for what, value in OTHERS.items():
                new = _changed(self.meta, at, value)
                if json.dumps(new) != json.dumps(self.meta):
                    yield Forgery(f"{name} {what}", partial(self.file, new))

    def texts(self) -> Iterator[Forgery]:
        """Settings that are none."""
        deep = "[" * 10_000 + "]" * 10_000
        for what, text in {
            "no JSON": "{",
            "a list": "[]",
            "no version": json.dumps({"meta": self.meta}),
            "no meta": '{"version": 1}',
            "meta a list": text_of([]),
            "meta a list of pairs": text_of(list(self.meta.items())),
            "meta nested": f'{{"version": 1, "meta": {deep}}}',
            "a setting nested": text_of({**self.meta, "deep": 0}).replace('"deep": 0', f'"deep": {deep}'),
            "a number of 5,000 digits": text_of({**self.meta, "long": 0}).replace('"long": 0', f'"long": {"9" * 5000}'),
            "a megabyte of lists": text_of({**self.meta, "many": [[]] * 400_000}),
            **{f"version {what}": text_of(self.meta, value) for what, value in OTHERS.items()},
        }.items():
            yield Forgery(f"settings: {what}", partial(self.file, text))

    def changed_arrays(self) -> Iterator[Forgery]:
        """Every array missing and changed."""
        for name, a in self.arrays.items():
            yield Forgery(f"{name} missing", partial(self.file, without=name))
            for what, change in _CHANGES.items():
                yield Forgery(f"{name} {what}", partial(self._with, name, a, change))

    def _with(self, name: str, a: np.ndarray, change: Callable[[np.ndarray], np.ndarray]) -> bytes:
        return self.file(others=(array(name, change(a)),), without=name)

    def further_members(self) -> Iterator[Forgery]:
        """One member too many."""
        first, a = next(iter(self.arrays)), np.zeros(3, np.float32)
        for name in (
            "other",
            f"{first}.more",
            f"{first}/more",
            "a" * 60_000,
            "\x1b[31mred",
            "../up",
            "kind",
            "ema/rng",
        ):
            yield Forgery(f"a further array {name[:20]!r}", partial(self.file, others=(array(name, a),)))
        for what, member in {
            "a member that is no array": stored("README", b"text"),
            "a name without .npy": array(first, a)._replace(name=first),
            "pickled objects": array("other", np.array([{}, None], object)),
            "a member twice": self.members[first],
            "the settings twice": settings("{}"),
        }.items():
            yield Forgery(what, partial(self.file, others=(member,)))

    def files(self) -> Iterator[Forgery]:
        """Files that are not what they state."""
        first = next(iter(self.arrays))
        shapes = ("(1000000000000,)", "(-1,)", "(3, 0, 1000000000000000000)", "(True, 3)", "(4,)", "3", "(3.0,)", "()")
        dtypes = ("|V4", "|O", "<M8[s]", "(3,)<f4", "|S2000000000", "<f16", ">f4")
        for shape, dtype in [*((shape, "<f4") for shape in shapes), *(("(3,)", dtype) for dtype in dtypes)]:
            member = stored(f"{first}.npy", _stated(shape, dtype) + bytes(12))
            yield Forgery(f"{first} states {shape} {dtype}", partial(self.file, others=(member,), without=first))
        real = self.members[first]
        for what, member in {
            "compressed": real._replace(content=_packed(real.content), method=8),
            "compressed by an unknown method": real._replace(method=77),
            "larger than stated": real._replace(size=real.size - 1),
            "smaller than stated": real._replace(size=real.size + 1),
            "of another checksum": real._replace(crc=1),
        }.items():
            yield Forgery(f"{first} {what}", partial(self.file, others=(member,), without=first))
        for what, forged in {
            "nothing but a digest": b"",
            "not a zip file": b"PK\3\4" + bytes(500),
            "without members": _end(0, 0, 0),
            "without settings": sealed(list(self.members.values()))[:-64],
            "without arrays": sealed([settings(text_of(self.meta))])[:-64],
            "with another end": self.file()[:-86] + _end(9, 10**9, 0),
            "with the end of a large file": self.file()[:-86] + b"PK\6\7" + bytes(16) + _end(9, 100, 0),
        }.items():
            yield Forgery(what, partial(resealed, forged + bytes(64)))

    def bombs(self, size: int = 320 << 20) -> Iterator[Forgery]:
        """Small files that would take much memory or time.  Settings that are too large are among `settings`."""
        first, count = next(iter(self.arrays)), (size - 128) // 4
        for name, without in (("unused", ""), (first, first)):
            member = _deflated(f"{name}.npy", _stated(f"({count},)", "<f4"), size)
            yield Forgery(
                f"{name} compressed, of {size >> 20} MB", partial(self.file, others=(member,), without=without)
            )
        member = _deflated(MARK, _stated(f"({size - 128},)", "|u1"), size)
        yield Forgery("settings compressed", lambda: sealed([member, *self.members.values()]))
        many = stored("many.npy", _stated(f"({1 << 18},)", "|u1") + bytes(1 << 18))._replace(count=2000)
        yield Forgery("one member under 2,000 names", partial(self.file, others=(many,)))
        for count in (15_000, 50_000, 300_000):
            empty = stored("empty.npy", _stated("(0,)", "<f4"))._replace(count=count)
            room = stored("room.npy", _stated(f"({count * 128},)", "|u1") + bytes(count * 128))
            yield Forgery(f"a table of {count:,} members", partial(self.file, others=(empty, room)))
        yield Forgery("settings of 16 MB", partial(self.file, text_of(self.meta) + " " * (1 << 24)))
        unused = array("unused", np.zeros(24 << 20, np.uint8))
        yield Forgery("an unused array of 24 MB", partial(self.file, others=(unused,)))


def _places(value: Any, at: tuple = ()) -> Iterator[tuple]:
    """The keys and indices that lead to each setting, to groups and lists too."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in pairs:
        if not isinstance(key, int) or key < 2:  # the further items of a list are like these
            yield (*at, key)
            yield from _places(inner, (*at, key))


def _changed(meta: Meta, at: tuple, *value: Any) -> Meta:
    """A copy of the settings with this value at a place, or without the place."""
    new = copy.deepcopy(meta)
    group: Any = new
    for key in at[:-1]:
        group = group[key]
    if value:
        group[at[-1]] = value[0]
    else:
        del group[at[-1]]
    return new


def _with(a: np.ndarray, value: float) -> np.ndarray:
    wrong = a.copy()
    wrong.reshape(-1)[[0, -1]] = value
    return wrong


_CHANGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "one row more": lambda a: np.concatenate([a, a[:1]]),
    "one row less": lambda a: a[1:],
    "one axis more": lambda a: a[None],
    "one axis less": lambda a: a.reshape(-1) if a.ndim > 1 else a[0],
    "empty": lambda a: a[:0],
    **{
        f"of dtype {dtype}": lambda a, dtype=dtype: np.nan_to_num(a).astype(dtype)
        for dtype in ("f2", "c8", "i4", "?", "U8", "S8")
    },
    "of the other float": lambda a: a.astype("f4" if a.dtype == "f8" else "f8"),
    **{f"with {value}": lambda a, value=value: _with(a, value) for value in (np.nan, np.inf, -np.inf, -1.0)},
}


def _stated(shape: str, dtype: str) -> bytes:
    """The start of an .npy file, 128 bytes."""
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode()


def _deflated(name: str, start: bytes, size: int) -> Member:
    """A member of so many bytes, zeros after its start, compressed to a thousandth."""
    deflate, block = zlib.compressobj(9, wbits=-15), 1 << 20
    first = deflate.compress(start + bytes(block - len(start))) + deflate.flush(zlib.Z_FULL_FLUSH)
    zeros = deflate.compress(bytes(block)) + deflate.flush(zlib.Z_FULL_FLUSH)
    last = deflate.flush()
    crc = zlib.crc32(start + bytes(block - len(start)))
    for _ in range(size // block - 1):
        crc = zlib.crc32(bytes(block), crc)
    return Member(name, first + zeros * (size // block - 1) + last, size, crc, 8)


def _packed(content: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)  # zlib.compress has had wbits since Python 3.11
    return packer.compress(content) + packer.flush()
