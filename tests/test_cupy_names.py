"""The same source on CuPy, read but not run: each xp.NAME and each argument is one that CuPy has (cupy_lint.py)."""

import importlib.util
import inspect
import re
import sys
import warnings
from pathlib import Path

import make_cupy_api
import numpy as np
import pytest
import strict
from cupy_lint import AVOID, NAMES, RULES, SAME_ORDER, TABLE, Finding, lint

import tinydiff

pytestmark = pytest.mark.engine

ROOT = Path(tinydiff.__file__).parents[1]
SOURCES = {
    path.relative_to(ROOT).as_posix(): path.read_text("utf-8")
    for folder in ("tinydiff", "demos")
    for path in sorted((ROOT / folder).rglob("*.py"))
}

# What stands in the source all the same: (name of the file, what the lint says of it) -> why it may.
EXCEPTIONS = {
    ("winograd.py", "xp.ndarray", "order"): "strided views of a buffer; it runs on NumPy only (`pays`)",
    ("kernels.py", ".ctypes", "attribute"): "`address` asks a NumPy array there, a CuPy array otherwise",
    ("roofline.py", "xp", "hidden"): "the demo wraps two of xp's functions to count what a CPU does in them",
    ("device.py", "xp.cuda.runtime", "name"): "asked on a GPU only; the dry run of real CuPy runs it",
    ("tensor_cores.py", "xp.cuda.runtime", "name"): "the same",
    ("gpu_parts.py", "xp.cuda.runtime", "name"): "asked in a session on a GPU only",
    ("device.py", "xp.cuda.get_current_stream", "name"): "the same",
    ("graph.py", "xp.cuda.MemoryPool", "name"): "the same",
    ("graph.py", "xp.cuda.Stream", "name"): "the same",
    ("graph.py", "xp.cuda.using_allocator", "name"): "the same",
}


def test_the_source_says_nothing_that_cupy_would_not_understand():
    """Every name and argument in tinydiff/ and demos/ is CuPy's too, and none of CuPy's differences is walked into."""
    found = [
        f"{path}:{line}: {what}: {RULES[rule]}"
        for path, source in SOURCES.items()
        for line, what, rule in lint(source)
        if (Path(path).name, what, rule) not in EXCEPTIONS
    ]
    assert found == []


@pytest.mark.parametrize("name, what, rule", EXCEPTIONS)
def test_each_exception_is_still_needed(name, what, rule):
    """What is excepted is there to be found, in one file; a line that was put right takes its exception with it."""
    (source,) = (source for path, source in SOURCES.items() if Path(path).name == name)
    assert (what, rule) in {(found.what, found.rule) for found in lint(source)}


def test_no_file_with_arrays_of_the_backend_is_passed_over():
    """Wherever the text has xp.NAME or makes an array, a mistake that is added at the end is found."""
    holds_arrays = re.compile(r"(?<![\w.])(xp\.\w|asarray\(|standard_normal\()")
    # Two speak of arrays in their sentences only, one has those of the host.
    texts = {"exercises.py", "small_engine.py", "row_rng.py"}
    paths = [path for path in SOURCES if Path(path).name not in texts and holds_arrays.search(SOURCES[path])]
    assert len(paths) > 20
    for path in paths:
        end = len(SOURCES[path].splitlines()) + 1
        assert Finding(end, ".ctypes", "attribute") in lint(SOURCES[path] + "f(x).ctypes\n"), path


# The lint itself.

MISTAKES = [
    # Names that NumPy has and CuPy has not.
    ("with xp.errstate(all='ignore'): pass", "xp.errstate", "name"),
    ("y = xp.insert(x, 0, 1)", "xp.insert", "name"),
    ("y = xp.block([[x, x]])", "xp.block", "name"),
    ("y = xp.vecdot(x, x)", "xp.vecdot", "name"),
    ("y = xp.linalg.vector_norm(x)", "xp.linalg.vector_norm", "name"),
    ("y = backend.xp.nditer(x)", "xp.nditer", "name"),
    ("f = xp.einsum_path", "xp.einsum_path", "name"),
    ("y = xp.maximum.reduce(x)", "xp.maximum.reduce", "name"),
    ("y = xp.subtract.accumulate(x)", "xp.subtract.accumulate", "name"),
    ("xp.multiply.at(y, i, x)", "xp.multiply.at", "name"),
    ("y = map(xp.ndarray.resize, xs)", "xp.ndarray.resize", "name"),
    # Arguments.
    ("y = xp.exp(x, where=x > 0)", "xp.exp(where=)", "keyword"),
    ("y = xp.sum(x, axis=0, where=x > 0)", "xp.sum(where=)", "keyword"),
    ("y = xp.max(x, initial=0)", "xp.max(initial=)", "keyword"),
    ("y = xp.add.reduce(x, where=x > 0)", "xp.add.reduce(where=)", "keyword"),
    ("y = xp.add.reduce(x, initial=0)", "xp.add.reduce(initial=)", "keyword"),
    ("xp.einsum('ij->i', x, out=y)", "xp.einsum(out=)", "keyword"),
    ("y = xp.clip(x, min=0, max=1)", "xp.clip(max=)", "keyword"),
    ("y = xp.zeros(3, like=x)", "xp.zeros(like=)", "keyword"),
    ("y = xp.take(x, i, mode='clip')", "xp.take(mode=)", "keyword"),
    ("y = xp.pad(x, 1, constant_value=2)", "xp.pad(constant_value=)", "keyword"),
    ("y = xp.ndarray((2, 2), 'float32', buffer=x)", "xp.ndarray(buffer=)", "keyword"),
    ("y = (x * x).mean(0, where=x > 0)", ".mean(where=)", "keyword"),
    ("y = x[0].max(initial=0)", ".max(initial=)", "keyword"),
    ("y = xp.take(x, i, 0, y, 'clip')", "xp.take", "count"),
    ("y = x.item(0)", ".item", "count"),
    ("y = xp.ndarray((2, 2), x.dtype, x, 0, (4, 4))", "xp.ndarray", "order"),
    ("y = xp.argmax(x, 0, y)", "xp.argmax", "order"),
    ("y = xp.argmin(*arguments)", "xp.argmin", "order"),
    # Arrays.
    ("p = x.ctypes.data", ".ctypes", "attribute"),
    ("x[0].resize(3)", ".resize", "attribute"),
    # float64 from a number.
    ("y = x * xp.sqrt(2.0)", "xp.sqrt", "float64"),
    ("y = x / np.sqrt(2)", "np.sqrt", "float64"),
    ("y = x * xp.exp(-0.5 * math.pi)", "xp.exp", "float64"),
    ("y = x / xp.sqrt(x.shape[-1])", "xp.sqrt", "float64"),
    ("y = x - xp.log(len(x))", "xp.log", "float64"),
    ("y = x * np.float64(scale)", "np.float64", "float64"),
    ("y = x * xp.float64(scale)", "xp.float64", "float64"),
    ("y = x - xp.log(x.size + math.sqrt(n) * float(n))", "xp.log", "float64"),
    ("y = x * xp.asarray(0.5)", "xp.asarray", "float64"),
    ("y = x * xp.array(1e-3)", "xp.array", "float64"),
    # Done otherwise.
    ("y = xp.lib.stride_tricks.sliding_window_view(x, 3)", "xp.lib.stride_tricks.sliding_window_view", "waits"),
    ("i = xp.nonzero(x)", "xp.nonzero", "waits"),
    ("(i,) = (x > 0).nonzero()", ".nonzero", "waits"),
    ("i = xp.where(x > 0)", "xp.where", "waits"),
    ("xp.add.at(y, i, x)", "xp.add.at", "at"),
    ("eps = xp.random.default_rng(0)", "xp.random", "random"),
    # Out of sight.
    ("from tinydiff.backend import xp as arrays", "xp as arrays", "hidden"),
    ("f = getattr(xp, 'exp')", "xp", "hidden"),
    ("module = xp", "xp", "hidden"),
]

CORRECT = [
    "y = xp.exp(x, out=y)",
    "y = xp.maximum(x, 0)",
    "y = xp.sum(x, (1, 2), keepdims=True) + x.sum(axis=-1, keepdims=True) + xp.add.reduce(x, 0, keepdims=True)",
    "y = xp.matmul(x, x.swapaxes(-1, -2), out=y)",
    "y = xp.einsum('nij,njk->nik', x, x, optimize=True)",
    "y = xp.pad(x, ((1, 1), (0, 0)), constant_values=2) + xp.linalg.norm(x, axis=0)",
    "y = xp.lib.stride_tricks.as_strided(x, (2, 3), (4, 4))",
    "y = xp.where(x > 0, x, 0.0) + xp.clip(x, -1, 1) + xp.take(x, i, 0)",
    "y = xp.zeros((2, 3), 'float32') + xp.full(3, 0.5, x.dtype) + xp.asarray(0.5, x.dtype) + xp.array(1, dtype='int8')",
    "y = xp.concatenate([x, x], axis=-1).reshape(2, -1).transpose(1, 0).astype('float32', copy=False)",
    "y = isinstance(x, xp.ndarray) and x.dtype == xp.float64 and xp.finfo(x.dtype).tiny > 0",
    "y = xp.sqrt(x) / math.sqrt(2.0) + xp.log(var) + xp.exp(-0.5 * x) + xp.asarray(x.shape[1:])",
    "y = xp.argmax(x, 0) + xp.argmin(x, axis=0, out=y)",
    "y = xp.multiply(*pair, **options) + x.mean(*axes)",
    "y = ops.sum(x, where=m) + picture.rotate(3) + ctypes.c_int(3).value + np.sqrt(table) + xp.exp.__name__.count('e')",
    "y = xp.asarray(a=x) + xp.asarray(True) + xp.sqrt(norm.var[0])",
    "import tinydiff; y = tinydiff.resize(x)",
]
HEAD = "import ctypes, math; import numpy as np; from tinydiff import backend, ops; from tinydiff.backend import xp\n"


@pytest.mark.parametrize("line, what, rule", MISTAKES, ids=[line for line, _, _ in MISTAKES])
def test_a_mistake_is_found(line, what, rule):
    """A line that CuPy refuses, or takes otherwise than NumPy, is found where it stands, and by the rule meant."""
    found = lint(HEAD + line)
    assert Finding(2, what, rule) in found and {each.rule for each in found} == {rule}


@pytest.mark.parametrize("line", CORRECT)
def test_a_correct_line_is_passed(line):
    """What CuPy understands as NumPy does is left alone, and so is what only looks like an array's method."""
    assert lint(HEAD + line) == []


def test_what_is_found_comes_in_the_order_of_lines():
    """However deep in the source it stands."""
    found = lint(HEAD + "def f(x):\n    return xp.insert(x, 0, 1)\n\n\ny = xp.block([x])\n")
    assert found == [Finding(3, "xp.insert", "name"), Finding(6, "xp.block", "name")]


def test_each_rule_finds_a_mistake():
    """No rule stands for nothing: each has a mistake above that it finds."""
    assert {rule for _, _, rule in MISTAKES} == RULES.keys()


def test_a_file_without_arrays_of_the_backend_is_left_alone():
    """On the host NumPy may do what it likes."""
    assert lint("import numpy as np\ntable = np.insert(np.zeros(3), 0, np.float64(1)).setflags(write=False)") == []


# The table.


def test_what_is_avoided_or_in_another_order_is_in_the_table():
    """A name that CuPy drops, and that is then found to be missing, needs no other rule."""
    assert AVOID.keys() | SAME_ORDER.keys() <= NAMES.keys()


def test_every_change_of_order_is_known():
    """Where both take an argument by position, it is the same position, or SAME_ORDER says up to where."""
    moved = {}
    for name, entry in NAMES.items():
        try:
            known = inspect.signature(getattr(np, name, None)).parameters.values()
        except (TypeError, ValueError):  # no function, or a compiled one
            continue
        by_place = [each.name for each in known if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)]
        theirs = entry["keywords"][: entry["positional"]] if entry["kind"] == "function" and entry["positional"] else []
        places = [i for i, each in enumerate(by_place) if each in theirs and theirs.index(each) != i]
        if places:
            moved[name] = places[0]
    assert "argmax" in moved  # it does compare
    assert {name: place for name, place in moved.items() if place < SAME_ORDER.get(name, np.inf)} == {}


def test_the_table_is_sorted_with_a_name_a_line():
    """The file is as make_cupy_api.py writes it, so that what changes with a version can be read in the diff."""
    written = make_cupy_api.TABLE.read_text("utf-8")
    assert written == make_cupy_api.text(TABLE) and len(written.splitlines()) == len(NAMES) + 3


def test_the_table_is_what_the_installed_cupy_says():
    """Asked again, CuPy gives the same answers, on any machine and beside any NumPy."""
    if sys.modules.get("cupy") is strict.cupy:
        pytest.skip("the strict device stands in CuPy's place")
    if importlib.util.find_spec("cupy") is None:
        pytest.skip("needs CuPy (no GPU): pip install cupy-cuda13x")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        new = make_cupy_api.table()
    if new["cupy"] != TABLE["cupy"]:
        pytest.skip(f"the table is of CuPy {TABLE['cupy']}, installed is {new['cupy']}")
    assert make_cupy_api.differences(TABLE, new) == []


def test_a_difference_between_two_tables_is_named():
    """A name more, a name less, another argument and another version are a line each; equal tables give none."""
    one, all_axes = {"positional": 1, "keywords": ["x"]}, {"positional": 2, "keywords": ["x", "axis"]}
    old = {"cupy": "14.2.0", "names": {"abs": one, "gone": one, "max": one}}
    new = {"cupy": "15.0.0", "names": {"abs": one, "max": all_axes, "new": one}}
    assert make_cupy_api.differences(old, old) == []
    assert make_cupy_api.differences(old, new) == [
        "cupy: 14.2.0 -> 15.0.0",
        f"gone: {one} -> missing",
        f"max: {one} -> {all_axes}",
        f"new: missing -> {one}",
    ]


@pytest.mark.parametrize(
    "line, positional, keywords",
    [
        ("f.sum(self, axis=None, dtype=None) -> x", 3, ["self", "axis", "dtype"]),
        (
            "f(self, Py_ssize_t axis1, int axis=-1, sep=', ', shape=(1, 2))",
            5,
            ["self", "axis1", "axis", "sep", "shape"],
        ),
        ("f(*shape, order='C')", None, ["order"]),
        ("f(array, *, device=None)", 1, ["array", "device"]),
        ("f(a, **kwargs)", 1, None),
        ("f()", 0, []),
    ],
)
def test_a_compiled_function_is_read_off_its_docstring(line, positional, keywords):
    """The first line of the docstring tells the arguments of what Python cannot look into."""
    signature = make_cupy_api.documented(f"\n{line}\n\nIt does (what) it does.")
    assert make_cupy_api.parameters(signature, []) == {"positional": positional, "keywords": keywords}


@pytest.mark.parametrize("docstring", [None, "", "Sums (what) it is given.", "Text.\nf(x)"])
def test_a_docstring_that_tells_no_arguments_tells_nothing(docstring):
    """Only a first line that is a call counts: no argument is made up."""
    assert make_cupy_api.documented(docstring) is None


def test_what_a_function_looks_up_in_its_kwargs_is_its_arguments():
    """**kwargs that are asked for one by one are keywords like any others; a word in a docstring is not."""

    def asks(*operands, **kwargs):
        """As in kwargs.get('example')."""
        return kwargs.pop("dtype", None), kwargs.get("axis"), operands

    def hands_on(a, **kwargs):
        return asks(a, **kwargs)

    assert make_cupy_api.asked_by_name(asks) == ["axis", "dtype"]
    assert make_cupy_api.parameters(inspect.signature(asks), ["axis", "dtype"]) == {
        "positional": None,
        "keywords": ["axis", "dtype"],
    }
    assert make_cupy_api.asked_by_name(hands_on) == [] == make_cupy_api.asked_by_name(len)
