"""What is wrong with a number that a reader's code has computed, in one sentence.

A Small is one value of a small case: what the code gave, what is right, and what the usual mistakes would give.
`verdict` compares them, and tells an answer that is wrong from one that is right up to rounding.
Read next: cases.py.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

# A smaller relative difference is one of digits: no usual mistake changes a number of a case so little.
ROUNDING = 1e-3
OF_NAN = "NaN comes from the root or the log of a negative number, from 0/0, and from 0 times infinity."
OF_INFINITY = "Infinity comes from a division by 0 and from the exp of a large number."
EARLY = "A number was rounded on the way: compute in the dtype of the inputs, or in float64, and cast last."


class Small(NamedTuple):
    """One value of a small case.

    what: its name.  case: where it was computed, such as "T = 3, t = 2".  got: what the reader's code gave.
    usual: for each sentence the value that the mistake gives of which the sentence tells.
    digits: how to keep the digits that an answer loses which is right up to rounding.
    exact: the relative difference that two right answers may have.
    """

    what: str
    case: str
    got: Any
    right: Any
    usual: Mapping[str, Any] = {}
    digits: str = ""
    exact: float = 1e-14


class Verdict(NamedTuple):
    """A sentence.  rounding: above 0 the answer is right but for its last digits, off by this share of its value."""

    sentence: str
    rounding: float = 0.0


def verdict(small: Small) -> Verdict | None:
    """What is wrong with the value, or None if it is right."""
    right = np.asarray(small.right)
    if small.got is None:
        return Verdict(f"{small.what} is None. Is there a return?")
    if reason := _not_an_array(small.got):
        return Verdict(f"{small.what} is {reason}, and should be an array.")
    got = np.asarray(small.got)
    if _equal(got, right, small.exact) and got.dtype == right.dtype:
        return None
    for sentence, value in small.usual.items():
        value = np.asarray(value)
        if _equal(got, value, ROUNDING) and not _equal(value, right, ROUNDING):
            return Verdict(f"{_values(small.what, got, right)}{sentence}")
    if got.shape != right.shape:
        return Verdict(f"{small.what} has the shape {got.shape}, and should have {right.shape}.")
    if got.dtype != right.dtype:
        return Verdict(f"{small.what} is {got.dtype}, and should be {right.dtype}.")
    for name, bad, cause in (("NaN", np.isnan(got), OF_NAN), ("infinite", np.isinf(got), OF_INFINITY)):
        if (bad & np.isfinite(right)).any():
            where = f" at {_index(bad)}, {bad.sum()} of {bad.size} numbers" if got.size > 1 else ""
            return Verdict(f"{small.what} is {name}{where}. {cause}")
    if _equal(got, right, ROUNDING):
        size = np.maximum(abs(right), np.finfo(float).tiny)
        error = float((abs(got - right) / size).max())
        text = f"{small.what} is right up to rounding: it is off by {error:.0e} of its value."
        return Verdict(f"{text} {small.digits or EARLY}", error)
    return Verdict(f"{_values(small.what, got, right)}{_relation(got, right)}")


def _not_an_array(got: Any) -> str:
    """What the value is, unless it is an array or a number of NumPy or Python."""
    if isinstance(got, np.ndarray | np.generic | int | float) and not isinstance(got, bool):
        return "an array of objects" if np.asarray(got).dtype.kind == "O" else ""
    kind = type(got).__name__
    return f"{'an' if kind[0] in 'aeiouAEIOU' else 'a'} {kind}"


def _equal(a: np.ndarray, b: np.ndarray, rtol: float) -> bool:
    """Equal shapes, and numbers that differ by at most rtol of b.  A 0 must be met to within rtol."""
    if a.shape != b.shape or a.dtype.kind not in "fiub":
        return False
    return bool(np.allclose(a, b, rtol=rtol, atol=0 if b.all() else rtol, equal_nan=True))


def _index(wrong: np.ndarray) -> str:
    """The first True of an array, as one would write it: [0, 2]."""
    return str([int(i) for i in np.argwhere(wrong)[0]])


def _values(what: str, got: np.ndarray, right: np.ndarray) -> str:
    """The first number that is wrong, and what it should be; nothing if the shapes differ."""
    if got.shape != right.shape:
        return f"{what} has the shape {got.shape}, and should have {right.shape}: "
    wrong = ~np.isclose(got, right, rtol=ROUNDING, atol=0 if right.all() else ROUNDING, equal_nan=True)
    first = tuple(np.argwhere(wrong)[0])
    place = _index(wrong) if got.ndim and got.size > 1 else ""
    return f"{what}{place} is {got[first]:.4g}, and should be {right[first]:.4g}: "


def _relation(got: np.ndarray, right: np.ndarray) -> str:
    """How wrong numbers are related to the right ones."""
    if _equal(got, -right, ROUNDING):
        return "the sign is wrong."
    if right.all() and np.ptp(ratio := got / right) <= ROUNDING * abs(ratio).max() and ratio.any():
        return f"it is {ratio.flat[0]:.4g} times what it should be."
    if got.size > 1 and _equal(np.sort(got, None), np.sort(right, None), ROUNDING):
        return "the numbers are right, and their order is not."
    wrong = ~np.isclose(got, right, rtol=ROUNDING, atol=ROUNDING, equal_nan=True)
    return f"{wrong.sum()} of {wrong.size} numbers are wrong." if got.size > 1 else "this is another number."


class Wrong(Exception):
    """A mistake that no single value shows: the sentence about it."""


def two(got, *names):
    """What a function returned, if it is two things; else Wrong, which names them."""
    if not isinstance(got, tuple | list) or len(got) != 2:
        several = isinstance(got, tuple | list) and len(got) > 1
        kind = "nothing" if got is None else f"{len(got)} things" if several else "one thing"
        raise Wrong(f"the function returns {kind}, and should return two: {' and '.join(names)}.")
    return got
