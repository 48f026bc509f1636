"""What a source that computes with `xp` would meet on CuPy, as far as it can be read off.

CuPy lacks some of NumPy's functions and many of their arguments, and does a few things otherwise.  `lint` holds every
xp.NAME and its arguments to cupy_api.json, a table of the real CuPy; RULES says what else it looks for, and why.  The
type of an expression cannot be read off: a method is taken for an array's if arrays have one of its name, and indices,
most dtypes, and whether an array is on the host or on the device are left to tests that run.
"""

import ast
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import numpy as np

TABLE = json.loads(Path(__file__).with_name("cupy_api.json").read_text("utf-8"))
NAMES: dict[str, dict[str, Any]] = TABLE["names"]

RULES = {
    "name": f"CuPy {TABLE['cupy']} has nothing of this name, or refuses to run it",
    "keyword": "CuPy takes no argument of this name",
    "count": "CuPy takes fewer arguments by position",
    "order": "CuPy means other arguments by the later positions: write them by name",
    "attribute": "CuPy's arrays have nothing of this name",
    "float64": "a NumPy number, or an array made of a number, turns float32 into float64: use math and plain numbers",
    "waits": "the host waits for the device, to learn a shape or to send a copy",
    "at": "CuPy adds up repeated indices in no fixed order: a product with a one-hot matrix does it in one",
    "random": "a seed means other numbers on CuPy: draw from the host generator",
    "hidden": "xp by another name, or handed on, is out of sight: write xp.NAME",
}

# How many positional arguments mean the same in both, where that is not all of them.
SAME_ORDER = {
    "argmax": 2,  # (a, axis, out), but (a, axis, dtype, out) in CuPy
    "argmin": 2,
    "histogram2d": 4,  # (..., density, weights), but (..., weights, density)
    "histogramdd": 3,
    "nanargmax": 2,
    "nanargmin": 2,
    "ndarray": 2,  # (shape, dtype, buffer, offset, strides), but (shape, dtype, device pointer, strides)
    "unpackbits": 2,  # (a, axis, count, bitorder), but (a, axis, bitorder)
}
AVOID = {  # what CuPy has, but otherwise: name -> rule
    "add.at": "at",
    "argwhere": "waits",
    "compress": "waits",
    "extract": "waits",
    "flatnonzero": "waits",
    "lib.stride_tricks.sliding_window_view": "waits",
    "nonzero": "waits",
    "random": "random",
    "subtract.at": "at",
    "unique": "waits",
}
MAKERS = {"xp", "asarray", "standard_normal"}  # a file that imports one of them has arrays of the backend
ARRAY_LACKS = {name for name in dir(np.ndarray) if not name.startswith("_") and f"ndarray.{name}" not in NAMES}


class Finding(NamedTuple):
    """A line that CuPy would refuse, or take otherwise; rule: a key of RULES."""

    line: int
    what: str
    rule: str


def lint(source: str) -> list[Finding]:
    """The findings in a file, by line; none in one that takes neither xp nor what makes its arrays from the backend."""
    nodes = list(ast.walk(ast.parse(source)))
    if not any(_is_xp(node) or (isinstance(node, ast.alias) and node.name in MAKERS) for node in nodes):
        return []
    imported = {
        (alias.asname or alias.name).partition(".")[0]
        for node in nodes
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    found = [*_hidden(nodes)]
    for node in nodes:
        if isinstance(node, ast.Attribute):
            found += _attribute(node, imported)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            found += _call(node, node.func, imported)
    return sorted(found)


def _hidden(nodes: list[ast.AST]) -> Iterator[Finding]:
    in_sight = {id(node.value) for node in nodes if isinstance(node, ast.Attribute)}
    for node in nodes:
        if isinstance(node, ast.alias) and node.name == "xp" and node.asname not in (None, "xp"):
            yield Finding(node.lineno, f"xp as {node.asname}", "hidden")
        elif _is_xp(node) and id(node) not in in_sight:
            yield Finding(node.lineno, "xp", "hidden")


def _attribute(node: ast.Attribute, imported: set[str]) -> Iterator[Finding]:
    name = _name_in_xp(node)
    if name is None:
        if node.attr in ARRAY_LACKS and _root(node) not in imported:
            yield Finding(node.lineno, f".{node.attr}", "attribute")
    elif _is_listed(name):
        if name not in NAMES:
            yield Finding(node.lineno, f"xp.{name}", "name")
        elif name in AVOID:
            yield Finding(node.lineno, f"xp.{name}", AVOID[name])


def _call(node: ast.Call, function: ast.Attribute, imported: set[str]) -> Iterator[Finding]:
    name, root = _name_in_xp(function), _root(function)
    if name is not None:
        yield from _arguments(node, f"xp.{name}", name)
    elif root not in imported and hasattr(np.ndarray, function.attr):
        yield from _arguments(node, f".{function.attr}", f"ndarray.{function.attr}")
    if _makes_float64(name or (function.attr if root == "np" else ""), node):
        yield Finding(node.lineno, f"{'xp' if name else 'np'}.{name or function.attr}", "float64")


def _arguments(node: ast.Call, shown: str, name: str) -> Iterator[Finding]:
    by_place, by_name = NAMES.get(name, {}).get("positional"), NAMES.get(name, {}).get("keywords")
    for keyword in node.keywords:
        if keyword.arg and by_name is not None and keyword.arg not in by_name:  # without arg: **options
            yield Finding(node.lineno, f"{shown}({keyword.arg}=)", "keyword")
    count = sum(np.inf if isinstance(each, ast.Starred) else 1 for each in node.args)
    if by_place is not None and by_place < count < np.inf:
        yield Finding(node.lineno, shown, "count")
    if count > SAME_ORDER.get(name, count):
        yield Finding(node.lineno, shown, "order")
    if name == "ndarray.nonzero" or (name == "where" and count == 1):
        yield Finding(node.lineno, shown, "waits")


def _makes_float64(name: str, node: ast.Call) -> bool:
    """np.float64(...), or a function of numbers alone: xp.sqrt(2), xp.log(x.shape[0]), xp.asarray(0.5)."""
    computes = name in ("array", "asarray") or isinstance(getattr(np, name, None), np.ufunc)
    numbers = bool(node.args) and all(map(_is_number, node.args))
    return name == "float64" or (computes and numbers and not any(each.arg == "dtype" for each in node.keywords))


def _is_number(node: ast.expr) -> bool:
    """Whether an expression is plainly a Python number: a literal, math's, a length, or an expression of such."""
    match node:
        case ast.Constant(value):
            return type(value) in (int, float)
        case ast.UnaryOp(operand=operand):
            return _is_number(operand)
        case ast.BinOp(left, _, right):
            return _is_number(left) and _is_number(right)
        case ast.Subscript(ast.Attribute(attr="shape"), index):
            return not isinstance(index, ast.Slice)
        case ast.Call(ast.Name("float" | "int" | "len")) | ast.Call(ast.Attribute(ast.Name("math"))):
            return True
        case ast.Attribute(ast.Name("math")) | ast.Attribute(attr="ndim" | "size"):
            return True
    return False


def _is_listed(name: str) -> bool:
    """Whether the table tells all the names beside this one: not those of a value, or of the switch itself."""
    owner, _, last = name.rpartition(".")
    of_what = NAMES[owner]["kind"] if owner in NAMES else ""
    return not last.startswith("__") and (owner in ("", "ndarray") or of_what in ("module", "ufunc"))


def _is_xp(node: ast.AST) -> TypeGuard[ast.expr]:
    """Whether this reads `xp`, by itself or as a module's: backend.xp."""
    match node:
        case ast.Name("xp", ast.Load()) | ast.Attribute(_, "xp", ast.Load()):
            return True
    return False


def _name_in_xp(node: ast.expr) -> str | None:
    """ "linalg.norm" for xp.linalg.norm; None for what is not a name of xp."""
    names: list[str] = []
    while isinstance(node, ast.Attribute) and not _is_xp(node):
        names.insert(0, node.attr)
        node = node.value
    return ".".join(names) if names and _is_xp(node) else None


def _root(node: ast.expr) -> str:
    """The name at the front of a.b.c; "" where that is no name, as in f(a).b."""
    while isinstance(node, ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""
