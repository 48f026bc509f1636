"""Option types of a command line: they read what a user types, and say what is wrong with it; and the way back.

Read next: alone.py.
"""

import argparse
import contextlib
import itertools
import re
import reprlib
import shlex
from collections.abc import Callable
from typing import Any

_RANGE = re.compile(r"(\d{1,9})\s*-\s*(\d{1,9})", re.ASCII)
_LONGEST = 1000  # numbers in a range


def whole(least: int, most: int) -> Callable[[str], int]:
    """Option type: an integer in least..most."""
    return lambda text: _number(text, int, f"a whole number from {least} to {most:,}", lambda n: least <= n <= most)


positive_int = whole(1, 10**9)
up_to_a_million = whole(1, 10**6)  # a number of images to draw
non_negative_int = whole(0, 2**63 - 1)


def positive_float(text: str) -> float:
    """Option type: a number above 0, at most 1e9."""
    return _number(text, float, "a number above 0, at most 1,000,000,000", lambda x: 0 < x <= 1e9)


def non_negative_float(text: str) -> float:
    """Option type: a number from 0 to 1e6."""
    return _number(text, float, "a number from 0 to 1,000,000", lambda x: 0 <= x <= 1e6)


def below_1(text: str) -> float:
    """Option type: a number from 0 to less than 1."""
    return _number(text, float, "a number from 0 to less than 1", lambda x: 0 <= x < 1 - 1e-9)


def list_of(item: Callable[[str], Any], repeats: bool = False) -> Callable[[str], tuple[Any, ...]]:
    """Option type: items separated by commas, such as 5,10.  2-5 is the list 2,3,4,5.

    item: the option type of each item.  repeats: whether an item may occur twice.
    """

    def items(text: str) -> tuple[Any, ...]:
        words: list[str] = []
        for part in map(str.strip, text.split(",")):
            first, last = map(int, ends.groups()) if (ends := _RANGE.fullmatch(part)) else (0, -1)
            if ends and not first < last < first + _LONGEST:
                raise argparse.ArgumentTypeError(f"a range must rise, by less than {_LONGEST:,}, got {part!r}")
            words += map(str, range(first, last + 1)) if ends else [part]
        try:
            found = tuple(map(item, words))
        except argparse.ArgumentTypeError as error:
            raise argparse.ArgumentTypeError(f"each item {error} in {reprlib.repr(text)}") from None
        if not repeats and len(set(found)) < len(found):
            raise argparse.ArgumentTypeError(f"each item must occur once, got {reprlib.repr(text)}")
        return found

    return items


def counted(n: int, thing: str) -> str:
    """A number of things: "1 step", "2,000 steps"."""
    return f"{n:,} {thing}{'' if n == 1 else 's'}"


def as_typed(value: Any) -> str:
    """A default as a user would type it: 5,10 for a list, 0-9 for a run of three or more whole numbers, 'a word'."""
    if not isinstance(value, list | tuple):
        return f"{value:g}" if isinstance(value, float) else shlex.quote(str(value))
    if not all(isinstance(item, int) for item in value):
        return ",".join(map(as_typed, value))
    numbered = itertools.groupby(enumerate(value), lambda pair: pair[1] - pair[0])  # rising by 1: one difference
    runs = [[item for _, item in run] for _, run in numbered]
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 2 else ",".join(map(str, run)) for run in runs)


def _number(text: str, kind: type, what: str, fits: Callable[[Any], bool]) -> Any:
    with contextlib.suppress(ValueError):
        if text.isascii() and fits(value := kind(text)):
            return value
    raise argparse.ArgumentTypeError(f"must be {what}, got {reprlib.repr(text)}")
