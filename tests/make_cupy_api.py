"""Write tests/cupy_api.json, what CuPy offers under the names that `xp` reaches: python tests/make_cupy_api.py

Needs CuPy (`pip install cupy-cuda13x==14.2.0`, or a later one to move to it), but no GPU.  With --check it writes
nothing: it prints where the table and the installed CuPy differ, and exits with 1 if they do.

The table holds a line a name.  Names are those of cupy, cupy.linalg and so on; "ndarray.sum" is a method of arrays, and
"add.reduce" a method of a ufunc, present only where calling it is not refused.  To each belong

    kind        "ufunc", "function", "class", "module", "value", or "numpy": the object is NumPy's own
    positional  how many arguments it takes by position; null: any number, or unknown
    keywords    the arguments that it takes by name, in order; null: any, or unknown
"""

import ast
import inspect
import json
import re
import sys
import textwrap
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

TABLE = Path(__file__).with_name("cupy_api.json")
NAMESPACES = ("", "fft", "lib", "lib.stride_tricks", "linalg", "random")
UFUNC_METHODS = {"accumulate": 1, "at": 3, "reduce": 1, "reduceat": 2}  # with how many arguments each is tried


def table() -> dict[str, Any]:
    """The table for the CuPy that is installed."""
    import cupy
    import numpy as np

    names = {}
    for namespace in NAMESPACES:
        ours, theirs = _reach(np, namespace), _reach(cupy, namespace)
        for name in {*dir(ours), *dir(theirs)}:  # some are loaded when first asked for, and not in dir() before
            if not name.startswith("_") and hasattr(theirs, name):
                value = getattr(theirs, name)
                if not _is_foreign(value):
                    names[f"{namespace}.{name}".lstrip(".")] = _entry(value, cupy)
    for name in [name for name, entry in names.items() if entry["kind"] == "ufunc"]:
        for method in UFUNC_METHODS.keys() | {"outer"}:
            if _has(getattr(cupy, name), method):
                names[f"{name}.{method}"] = _entry(getattr(cupy.ufunc, method), cupy)
    for name in dir(cupy.ndarray):
        if not name.startswith("_"):
            names[f"ndarray.{name}"] = _entry(getattr(cupy.ndarray, name), cupy)
    return {"cupy": cupy.__version__, "names": names}


def text(table: dict[str, Any]) -> str:
    """The table as JSON, sorted, a line a name."""
    lines = [f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in sorted(table["names"].items())]
    return f'{{"cupy": {json.dumps(table["cupy"])},\n"names": {{\n' + ",\n".join(lines) + "\n}}\n"


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """One line for each name that the two tables tell differently, and for another version."""
    before, after = {"cupy": old["cupy"], **old["names"]}, {"cupy": new["cupy"], **new["names"]}
    names = [name for name in sorted(before.keys() | after.keys()) if before.get(name) != after.get(name)]
    return [f"{name}: {before.get(name, 'missing')} -> {after.get(name, 'missing')}" for name in names]


def parameters(signature: inspect.Signature, asked: list[str]) -> dict[str, Any]:
    """How many arguments may come by position, and which by name; asked: what the function looks up in its **kwargs."""
    each = list(signature.parameters.values())
    kinds = {p.kind for p in each}
    by_place = [p for p in each if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    by_name = [p.name for p in each if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    return {
        "positional": None if inspect.Parameter.VAR_POSITIONAL in kinds else len(by_place),
        "keywords": None if inspect.Parameter.VAR_KEYWORD in kinds and not asked else by_name + asked,
    }


def documented(docstring: str | None) -> inspect.Signature | None:
    """The signature in the first line of a compiled function's docstring, "f(self, int axis=-1, *, out=None) -> x"."""
    found = re.match(r"[\w.]+\((.*)\)( ->|$)", (docstring or "").strip().partition("\n")[0])
    if not found:
        return None
    bare = re.sub(r"'[^']*'|\([^)]*\)", "0", found[1])  # a default may hold a comma
    names = [part.partition("=")[0].split()[-1] + ("=0" if "=" in part else "") for part in bare.split(",") if part]
    return inspect.signature(eval(f"lambda {', '.join(names)}: 0"))  # Python reads the list better than we could


def asked_by_name(f: Callable) -> list[str]:
    """The arguments that a function of **kwargs looks up there, kwargs.pop("dtype", None), in its own source."""
    try:
        source = textwrap.dedent(inspect.getsource(f))
    except (OSError, TypeError):
        return []
    found = []
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Call(ast.Attribute(ast.Name("kwargs"), "pop" | "get"), [ast.Constant(str(name)), *_]):
                found.append(name)
    return sorted(set(found))


def main(*options: str) -> int:
    if set(options) - {"--check"}:
        print(__doc__, file=sys.stderr)
        return 2
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no CUDA here; names that are to go
        new = table()
    if not options:
        TABLE.write_text(text(new), "utf-8")
        return 0
    found = differences(json.loads(TABLE.read_text("utf-8")), new)
    print(*found, sep="\n", end="\n" if found else "")
    return 1 if found else 0


def _reach(module: Any, dotted: str) -> Any:
    for name in filter(None, dotted.split(".")):
        module = getattr(module, name)
    return module


def _is_foreign(value: Any) -> bool:
    """Something that CuPy's modules import for themselves: another module, a feature of the language."""
    if inspect.ismodule(value):
        return not value.__name__.startswith("cupy")
    return type(value).__module__ == "__future__"


def _entry(value: Any, cupy: Any) -> dict[str, Any]:
    if isinstance(value, cupy.ufunc):
        return {"kind": "ufunc", "positional": value.nargs, "keywords": _ufunc_keywords(cupy)}
    if inspect.ismodule(value):
        return {"kind": "module"}
    if str(getattr(value, "__module__", None)).partition(".")[0] == "numpy":
        return {"kind": "numpy"}
    if not callable(value):
        return {"kind": "value"}
    return {"kind": "class" if inspect.isclass(value) else "function", **parameters(*_signature(value))}


def _signature(f: Callable) -> tuple[inspect.Signature, list[str]]:
    """What Python knows of the arguments; where that is nothing, what the docstring says; else (*args, **kwargs)."""
    unknown = inspect.signature(lambda *args, **kwargs: 0)
    try:
        signature, asked = inspect.signature(f), asked_by_name(f)
    except (TypeError, ValueError):
        signature, asked = unknown, []
    if inspect.Parameter.VAR_KEYWORD in {p.kind for p in signature.parameters.values()} and not asked:
        signature = documented(f.__doc__) or signature
    rest = [p for p in signature.parameters.values() if p.name != "self"]
    return signature.replace(parameters=rest), asked


def _ufunc_keywords(cupy: Any) -> list[str]:
    """Which of the keywords of NumPy's ufuncs CuPy's take, by trying: they know their arguments only when called."""
    found = []
    for name in ("out", "where", "casting", "order", "dtype", "subok", "signature", "axes", "axis", "keepdims"):
        try:
            cupy.add(1.0, 1.0, **{name: None})
        except TypeError as error:
            if "Wrong arguments" in str(error):
                continue
        except RuntimeError:  # no GPU: it came as far as that
            pass
        found.append(name)
    return found


def _has(ufunc: Any, method: str) -> bool:
    """Whether ufunc.method is there for this ufunc: CuPy refuses most before it looks at their arguments."""
    if method == "outer":
        return ufunc.nin == 2
    try:
        getattr(ufunc, method)(*[object()] * UFUNC_METHODS[method])
    except NotImplementedError:
        return False
    except Exception:  # an object is no array
        return True
    raise AssertionError(f"{ufunc.name}.{method} took objects for arrays")


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
