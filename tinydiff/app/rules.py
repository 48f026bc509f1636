"""The rules for what a checkpoint contains: settings, the arrays of a network, and tables of numbers.

    check_settings(meta, {"step": whole(0), "data": {"name": LINE}})
    check_weights(headers, shapes_of(make, most))       # the same names, shapes and dtype, before any array is read
    check_numbers(arrays, tables, meta)                 # afterwards: all numbers are finite

shapes_of builds a network without its numbers.  This gives the name and the shape of each parameter, and takes no
memory, whatever the settings are.  Each check raises a CheckpointError that names the first thing that is wrong, its
value and what it must be.  Read next: kinds.py.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from tinydiff.app.archive import CheckpointError, printable
from tinydiff.backend import xp
from tinydiff.nn import Module


class Rule(NamedTuple):
    """What a value must be, in words, and the test of a value.  needed: False if old checkpoints do not contain it."""

    what: str
    fits: Callable[..., bool]
    needed: bool = True


def whole(low: int, high: int = 10**9) -> Rule:
    return Rule(f"a whole number in {low}..{high}", lambda v: type(v) is int and low <= v <= high)


def number(low: float, high: float) -> Rule:
    return Rule(f"a number from {low:g} to {high:g}", lambda v: type(v) in (int, float) and low <= v <= high)


def items(rule: Rule, least: int, most: int) -> Rule:
    what = f"a list of {least} to {most} values, each {rule.what}"
    return Rule(what, lambda v: type(v) is list and least <= len(v) <= most and all(map(rule.fits, v)))


def maybe(rule: Rule) -> Rule:
    return Rule(f"null or {rule.what}", lambda v: v is None or rule.fits(v))


def one_of(*values: Any) -> Rule:
    return Rule(f"one of {values}", lambda v: any(type(v) is type(value) and v == value for value in values))


def old(rule: Rule) -> Rule:
    """The same rule for a setting that old checkpoints do not contain."""
    return rule._replace(needed=False)


LINE = Rule("a line of 1 to 100 printable letters", lambda v: type(v) is str and 0 < len(v) <= 100 and v.isprintable())


def check_settings(found: Any, rules: dict[str, Any], group: str = "") -> None:
    """Check settings, and groups of settings within them.  rules: a Rule for each setting, a dictionary for a group."""
    if not isinstance(found, dict):
        raise CheckpointError(f"contains no group of settings {group.rstrip('.') or 'meta'}, with {', '.join(rules)}")
    for name, rule in rules.items():
        if isinstance(rule, dict):
            check_settings(found.get(name), rule, f"{group}{name}.")
        elif name not in found and rule.needed:
            raise CheckpointError(f"contains no setting {group}{name}, which must be {rule.what}")
        elif name in found and not rule.fits(found[name]):
            raise CheckpointError(f"contains {group}{name} = {printable(repr(found[name]))}, which must be {rule.what}")


def check_weights(arrays: Any, shapes: dict[str, tuple[int, ...]]) -> None:
    """Check that `arrays`, or their headers, have these names and shapes, and are float32."""
    for name, shape in shapes.items():
        a = arrays.get(name)
        if a is None or a.shape != shape or a.dtype.str[1:] != "f4":
            problem = f"no {name}" if a is None else f"{name} of shape {printable(str(a.shape))} and dtype {a.dtype}"
            raise CheckpointError(f"contains {problem}; this network's has shape {shape} and dtype float32")


def check_numbers(arrays: dict[str, np.ndarray], tables: dict[str, Rule], meta: dict[str, Any]) -> None:
    """Check that each table is there and fits its rule, with fits(array, meta), and that other numbers are finite."""
    for name, rule in tables.items():
        a = arrays.get(name)
        if a is None or not rule.fits(a, meta):
            raise CheckpointError(f"contains {'no' if a is None else 'a wrong'} {name}, which must be {rule.what}")
    for name, a in arrays.items():
        if name not in tables and not np.isfinite(a).all():
            raise CheckpointError(f"contains {name} with numbers that are not finite")
        if name.startswith("adam_v/") and (a < 0).any():
            raise CheckpointError(f"contains {name} with negative numbers, which must be means of squares")


def shapes_of(make: Callable[[Any], Module], most: int) -> dict[str, tuple[int, ...]]:
    """{parameter: shape} of the network make(rng), without memory for its numbers.

    Raises CheckpointError if there is no such network, or if it has more than `most` parameters.
    """
    left, before = iter(range(most)), dict(xp.__dict__)

    def array(shape: Any, *_: Any, **__: Any) -> Any:
        if next(left, None) is None:
            raise ValueError(f"it has more than {most} arrays")
        a = SimpleNamespace(shape=shape if isinstance(shape, tuple) else (shape,), dtype=np.dtype("float32"))
        a.astype = lambda dtype: a
        return a

    rng = SimpleNamespace(uniform=lambda low, high, shape: array(shape), standard_normal=array)
    xp.__dict__.update(zeros=array, full=array, asarray=lambda a, **_: a)  # the functions that make parameters
    try:
        return {name: p.shape for name, p in make(rng).named_parameters()}
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"contains settings of no network: {printable(str(error))}") from None
    finally:
        xp.__dict__.clear()
        xp.__dict__.update(before)
