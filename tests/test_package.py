"""The rules of the package, read off its sources: who may import whom, which arrays, how long, how documented."""

import ast
import builtins
import graphlib
import importlib
import io
import os
import re
import runpy
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import tinydiff
from tinydiff import ops
from tinydiff.autograd import OPS

pytestmark = pytest.mark.program

PACKAGE = Path(tinydiff.__file__).parent
DEMOS, TESTS = PACKAGE.parent / "demos", PACKAGE.parent / "tests"

ROOMS = ("fast", "more", "app")  # beside the book, which is everything else
# What a room may import beside itself; the book is open to all.
STANDS_ON = {"book": set(), "fast": set(), "more": set(), "app": {"fast", "more"}}
# The words of the engine room.
FAST_WORDS = re.compile(r"\b(kernels|chunks|ranks|workers|available)\b", re.IGNORECASE)
# Work on host arrays: files, tables, pictures, processes.  Everything else computes with xp.
HOST_SIDE = {
    "backend",
    "data",
    "diffusion.schedule",
    "diffusion.edm",
    "train",
    "app",
    "fast.workers",
    "fast.processes",
    "fast.mpi",
    "fast.gpu",
    "fast.graph",
    "fast.kernels",
}
THIRD_PARTY = {"numpy", "matplotlib", "PIL", "tqdm"}  # Pillow comes with matplotlib


def module_name(path: Path) -> str:
    """tinydiff/nn/unet.py -> "nn.unet", tinydiff/nn/__init__.py -> "nn", tinydiff/__init__.py -> ""."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {module_name(path): path.read_text("utf-8") for path in sorted(PACKAGE.rglob("*.py"))}
DEMO_SOURCES = {path.stem: path.read_text("utf-8") for path in sorted(DEMOS.rglob("*.py"))}
EVERY_SOURCE = SOURCES | {f"demos.{name}": source for name, source in DEMO_SOURCES.items()}


def imports(source: str) -> Iterator[str]:
    """Dotted name of every module that is imported anywhere in it, within functions too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, "write imports in full: from tinydiff.a import b"
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                yield submodule if submodule.removeprefix("tinydiff.") in SOURCES else node.module


@cache
def own_imports(source: str) -> frozenset[str]:
    """The modules of tinydiff that it imports, without the package's name; "" is the package itself."""
    found = (name.partition(".") for name in imports(source))
    return frozenset(rest for package, _, rest in found if package == "tinydiff")


def top(name: str) -> str:
    return name.split(".")[0]


def within(name: str, names: set[str]) -> bool:
    """Whether `names` holds the module or a package that it is in."""
    return any(name == other or name.startswith(other + ".") for other in names)


def room(name: str) -> str:
    """The room of a module, or "book"."""
    return top(name) if top(name) in ROOMS else "book"


BOOK = {name: source for name, source in SOURCES.items() if room(name) == "book"}

# Rooms.


def test_the_book_imports_only_the_book():
    """No file of the book imports one of another room, within functions neither; but for the front door, which
    introduces the engine room to the backend."""
    found = {(name, other) for name in BOOK for other in own_imports(BOOK[name]) if room(other) != "book"}
    assert found == {("", "fast.install")}


def test_the_words_of_the_engine_room_do_not_occur_in_the_book():
    """Not in code, comments or docstrings: what only makes it faster is named nowhere."""
    found = [(name, word) for name in BOOK for word in FAST_WORDS.findall(BOOK[name])]
    assert found == []


def test_rooms_stand_on_each_other_in_one_direction():
    """fast and more stand on the book, app on these two; nobody imports demos."""
    for name in SOURCES:
        others = {room(other) for other in own_imports(SOURCES[name])} - {room(name), "book"}
        assert others <= STANDS_ON[room(name)] or name == "", f"{name} imports from {others}"
    modules = {path.stem for path in DEMOS.rglob("*.py")}
    for name, source in SOURCES.items():
        assert not {top(other) for other in imports(source)} & modules - {"classify"}, name


def test_no_two_files_need_each_other():
    """The imports have no cycle, within functions neither: there is an order in which to load the package."""
    graph = {name: own_imports(SOURCES[name]) - {""} for name in SOURCES if name}
    order = list(graphlib.TopologicalSorter(graph).static_order())
    assert order.index("backend") < order.index("autograd") < order.index("nn.unet") < order.index("train")


def test_no_two_demos_need_each_other():
    """Demos that share something have no cycle either."""
    by_name = {path.stem: path for path in DEMOS.rglob("*.py")}
    graph = {
        name: {top(m) for m in imports(path.read_text("utf-8"))} & by_name.keys() for name, path in by_name.items()
    }
    assert len(list(graphlib.TopologicalSorter(graph).static_order())) == len(by_name)


CHAIN = [
    *("diffusion/schedule", "diffusion/gaussian", "diffusion/samplers", "diffusion/guidance", "train", "backend"),
    *("autograd", "ops/arithmetic", "ops/pointwise", "ops/reduce", "ops/shape", "ops/matrix", "ops/conv", "ops/norm"),
    *("nn/module", "nn/layers", "nn/unet", "optim"),
]


def read_next(path: Path) -> Path | None:
    """The file that a file of the package names as the next to be read: its first "Read next", if it has one."""
    doc = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
    found = re.search(r"Read\s+next:\s+([\w./]+?)[.,;]?(?:\s|$)", doc)
    return None if found is None else (path.parent / found[1]).resolve()


def walk(path: Path) -> list[str]:
    """The files that "Read next" leads through from one on, by their path in the package, as far as it holds Python."""
    names = []
    while path is not None and path.suffix == ".py" and PACKAGE in path.parents:
        assert path.is_file(), f"{names[-1]} names {path.name}, which is not there"
        assert path.relative_to(PACKAGE).as_posix() not in names, f"{path.name} is read twice"
        names.append(path.relative_to(PACKAGE).as_posix())
        path = read_next(path)
    return names


def test_read_next_leads_through_the_whole_book():
    """From the package's docstring on, in the one order, to every file of the book."""
    names = walk(PACKAGE / "__init__.py")[1:]
    assert names == [f"{name}.py" for name in CHAIN]
    counted = {name for name in COUNTER["count_package"](PACKAGE) if COUNTER["room_of"](name) == COUNTER["BOOK"]}
    assert counted - set(names) == {name for name in counted if name.endswith("__init__.py")}


STARTS = ["diffusion/times.py", "data/__init__.py", "fast/install.py", "more/__init__.py", "app/__init__.py"]


@pytest.mark.parametrize("start", STARTS)
def test_read_next_leads_through_every_other_room(start):
    """The further chapters, the data sets and each other room have one chain of their own."""
    names, folder = walk(PACKAGE / start), start.split("/")[0]
    files = {path.relative_to(PACKAGE).as_posix() for path in (PACKAGE / folder).glob("*.py")}
    if folder == "diffusion":
        files = {name for name in files if COUNTER["room_of"](name) == COUNTER["CHAPTERS"]}
    assert files - set(names) <= {f"{folder}/__init__.py"}, "not on the chain"


def test_the_package_lists_the_book_in_the_order_of_the_chain():
    """The docstring of tinydiff names its parts in the order in which "Read next" leads through them."""
    doc = ast.get_docstring(ast.parse(SOURCES[""])) or ""
    words = re.findall(r"[a-z]+", doc)
    order = ["schedule", "gaussian", "samplers", "guidance", "train", "backend", "autograd", "ops", "nn", "optim"]
    assert [word for word in words if word in order][: len(order)] == order


def closure(path: Path, skip: tuple[str, ...] = ()) -> set[str]:
    """The modules of the package that a program needs, those that it opens within functions included."""
    todo, needed = set(own_imports(path.read_text("utf-8"))), {""}
    while todo:
        name = todo.pop()
        parts = {".".join(name.split(".")[: i + 1]) for i in range(name.count(".") + 1)}  # packages open first
        for part in parts - needed:
            if part in SOURCES and not within(part, set(skip)):
                needed.add(part)
                todo |= own_imports(SOURCES[part])
    return needed


@pytest.mark.parametrize("other_data", [("glyphs", "fields"), ("mnist", "releases", "download", "idx")])
def test_the_plain_run_needs_about_half_of_the_package(other_data):
    """train_mnist.py --plain: at most 3,250 lines, none of them of fast/, whichever data set it opens."""
    chapters = ("editing", "likelihood", "moderation", "solver", "variance")
    other_data = (*other_data, "arrays", "own")  # only for other pictures than those of train_mnist.py
    unopened = ("fast", *(f"diffusion.{name}" for name in chapters), *(f"data.{name}" for name in other_data))
    counts = COUNTER["count_package"](PACKAGE).items()
    lines = {module_name(PACKAGE / name): n for name, n in counts if name.endswith(".py")}
    needed = closure(DEMOS / "train_mnist.py", skip=unopened)
    assert {"train", "app.run", "app.plots", "data"} <= needed
    assert sum(lines[name] for name in needed) <= 3250


def test_the_mathematics_knows_the_backend_only():
    """diffusion/ imports nothing of the engine: it meets the network as a function from arrays to an array."""
    for name in SOURCES:
        if top(name) == "diffusion":
            assert {top(other) for other in own_imports(SOURCES[name])} <= {"backend", "diffusion"}, name


def test_the_package_opens_without_the_tools_of_the_demos():
    """`import tinydiff` loads neither plotting, nor progress bars, nor processes, nor a GPU's libraries."""
    heavy = ["matplotlib", "PIL", "tqdm", "multiprocessing", "cupy"]
    code = f"import sys, tinydiff; print(*[name for name in {heavy} if name in sys.modules])"
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")
    }  # it loads some
    environment["PYTHONPATH"] = str(PACKAGE.parent)
    out = subprocess.run([sys.executable, "-W", "error", "-c", code], env=environment, capture_output=True, text=True)
    assert (out.returncode, out.stdout, out.stderr) == (0, "\n", "")


def test_a_wheel_holds_the_kernels_and_the_sign_that_the_package_is_typed_and_has_one_version():
    """pyproject.toml names every file that is no Python; it reads the version in tinydiff/__init__.py, a literal."""
    project = (PACKAGE.parent / "pyproject.toml").read_text("utf-8")
    listed = re.search(r"\[tool\.setuptools\.package-data\]\n((?:.+\n)+)", project)[1]
    shipped = set()
    for folder, patterns in re.findall(r'^"([\w.]+)" = \[(.+)\]$', listed, re.MULTILINE):
        for pattern in re.findall(r'"([^"]+)"', patterns):
            shipped |= set(PACKAGE.parent.joinpath(*folder.split(".")).glob(pattern))
    others = {p for p in PACKAGE.rglob("*.*") if p.is_file() and p.suffix not in (".py", ".pyc", ".md")}
    assert shipped == others and PACKAGE / "py.typed" in shipped and PACKAGE / "fast" / "kernels.cu" in shipped
    assert re.search(r'^dynamic = \["version"\]$', project, re.MULTILINE) and '\nversion = "' not in project
    assert 'version = { attr = "tinydiff.__version__" }' in project
    (version,) = re.findall(r'^__version__ = "(\d+\.\d+\.\d+)"', SOURCES[""], re.MULTILINE)
    assert tinydiff.__version__ == version


# Arrays.


def test_nobody_who_does_not_ask_for_mpi_loads_it():
    """A demo's modules come without mpi4py: only mpi.world() imports it."""
    code = "import sys, tinydiff.app.cli, tinydiff.app.training, tinydiff.app.generate; print('mpi4py' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": str(PACKAGE.parent)}
    out = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert out.stdout == "False\n", out.stderr


def test_numerical_code_computes_with_xp():
    """NumPy is imported by the backend and by code that works on the host, and by nothing else."""
    users = {name for name in SOURCES if "numpy" in {top(other) for other in imports(SOURCES[name])}}
    assert {name for name in users if not within(name, HOST_SIDE)} == set()


def test_only_the_backend_knows_cupy():
    """No other file names it, or imports by a string; in prose, or as the choice of an option, it may be a word."""
    forbidden = {"cupy", "cp", "get_array_module", "import_module", "__import__"}
    for name in EVERY_SOURCE.keys() - {"backend"}:
        tokens = tokenize.generate_tokens(io.StringIO(EVERY_SOURCE[name]).readline)
        assert {token.string for token in tokens if token.type == tokenize.NAME} & forbidden == set(), name


def test_no_view_of_a_buffer_may_outlive_it():
    """A BytesIO that is freed before a view of it, as in a traceback's cycle, crashes Python 3.12.1."""
    for name in EVERY_SOURCE:
        tokens = tokenize.generate_tokens(io.StringIO(EVERY_SOURCE[name]).readline)
        assert {token.string for token in tokens if token.type == tokenize.NAME} & {
            "getbuffer",
            "memoryview",
        } == set(), name


def test_nothing_is_borrowed():
    """Only the standard library, NumPy and what draws pictures and bars: no other framework does the work."""
    allowed = sys.stdlib_module_names | THIRD_PARTY | DEMO_SOURCES.keys() | {"tinydiff"}
    for name, source in EVERY_SOURCE.items():
        witness = {"torch"} if name == "demos.torch_peer" else set()  # which stands there to be compared with
        mpi = {"mpi4py"} if name == "fast.mpi" else set()  # and nobody else has a line of MPI
        judges = {"laws"} if name in ("demos.judge", "demos.drawing") else set()  # of tests/: they judge an exercise
        assert {top(other) for other in imports(source)} - allowed <= witness | mpi | judges, name


# Size.

COUNTER = runpy.run_path(str(Path(__file__).with_name("count_lines.py")))


def test_every_room_keeps_its_limits():
    """The book: 1,200 lines, 150 a file, 40 a function; the others theirs: `python tests/count_lines.py`."""
    lines = COUNTER["count_package"](PACKAGE)
    files = (path for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    left_out = {"README.md", "py.typed"}
    counted = {path.relative_to(PACKAGE).as_posix() for path in files if path.name not in left_out}
    assert set(lines) == counted  # nothing is left out
    assert COUNTER["ROOMS"][COUNTER["BOOK"]] == (1200, 150, 40) and COUNTER["ROOMS"][COUNTER["CHAPTERS"]] == (
        500,
        150,
        40,
    )
    assert lines["fast/kernels.cu"] > 50
    assert lines["backend.py"] > 50  # it does count
    assert COUNTER["over_limit"](COUNTER["sources"](PACKAGE)) == []


def test_a_line_counts_if_it_holds_code():
    """Docstrings, comments and blank lines are free; a long string and a wrapped call cost each of their lines."""
    source = '''"""Module
docstring."""

# comment
import os  # 1

class A: "docstring"; x = 1  # 2


def f(x):  # 3
    """Docstring.

        equation
    """
    # why
    text = """4

    5"""  # 5

    return os.path.join(  # 6
        # why
        text,  # 7
        "not a docstring",  # 8
    )  # 9
'''
    assert COUNTER["count"](source) == 9


def test_a_limit_that_is_passed_is_said():
    """One line too many in a room, a file or a function is a sentence that names it; the limits themselves are not."""

    def file(n):
        return "x = 1\n" * n

    function = "def f():\n" + "    x = 1\n" * 39
    full = {f"{i}.py": file(150) for i in range(7)} | {"f.py": function + file(110)}
    assert COUNTER["over_limit"](full) == []
    assert COUNTER["over_limit"](full | {"g.py": "x = 1"}) == ["the book: 1201 lines of code, at most 1200"]
    assert COUNTER["over_limit"]({"g.py": file(151)}) == ["g.py: 151 lines of code, at most 150"]
    assert COUNTER["over_limit"]({"f.py": function + "    y = 1\n"}) == ["f.py: f: 41 lines of code, at most 40"]
    assert COUNTER["over_limit"]({"diffusion/times.py": file(151), "data/a.py": file(151), "fast/k.cu": file(351)}) == [
        "diffusion/times.py: 151 lines of code, at most 150",
        "data/a.py: 151 lines of code, at most 150",
        "fast/k.cu: 351 lines of code, at most 350",
    ]


def test_a_line_of_cuda_counts_if_it_holds_code():
    """Comments of either kind and blank lines are free; code beside a comment counts."""
    assert COUNTER["count_cuda"]("// a\nint b; // c\n/* d\n e */\n\nint f; /* g\n h */ int i;\n") == 3


def test_the_counter_fails_over_a_limit(monkeypatch, capsys):
    """Its exit code, by which the checks stop, is 1 over a limit and 0 within all."""
    main, rooms = COUNTER["main"], COUNTER["ROOMS"]
    assert main() == 0
    monkeypatch.setitem(rooms, COUNTER["BOOK"], rooms[COUNTER["BOOK"]]._replace(file=10))
    assert main() == 1
    assert "autograd.py" in capsys.readouterr().err


# What the package says of itself.


def undocumented(source: str) -> Iterator[str]:
    """Public classes and functions without a docstring, but for functions of two statements, which say it themselves.

    Methods are left to the docstring of their class.
    """
    tree = ast.parse(source)
    if ast.get_docstring(tree) is None:
        yield "the module"
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
            short = isinstance(node, ast.FunctionDef) and len(node.body) <= 2
            if ast.get_docstring(node) is None and not short:
                yield node.name


def test_what_is_public_is_documented():
    """Every module, public class and public function of more than two statements says what it is."""
    assert [(name, missing) for name in SOURCES for missing in undocumented(SOURCES[name])] == []


def test_every_op_is_offered_by_ops():
    """tinydiff.ops is the whole vocabulary: each registered op stands there under its own name."""
    plain = {name for name, op in OPS.items() if op.__module__.startswith("tinydiff.ops")}
    assert {name: OPS[name] for name in plain} == {name: getattr(ops, name, None) for name in plain}
    assert plain | {"split"} == set(ops.__all__)


def test_no_op_hides_a_module_or_a_builtin():
    """`from tinydiff.ops import linear` is the op, and no file has its name; `sum` stays Python's."""
    modules = {path.stem for path in (PACKAGE / "ops").glob("*.py")}
    assert set(ops.__all__) & (modules | set(dir(builtins))) == set()


OFFERED = {
    "tinydiff": "use_backend to_numpy Tensor no_grad",
    "tinydiff.ops": "conv2d group_norm silu softmax matmul attention upsample_nearest concat",
    "tinydiff.nn": "Module Linear Conv2d GroupNorm Embedding Attention UNet",
    "tinydiff.more.text": "TextUNet Prompted",
    "tinydiff.optim": "Adam EMA clip_grad_norm",
    "tinydiff.diffusion": "Schedule q_sample q_x_t_given_x_s q_x_s_given_x_t_x_0 x_0_from_eps eps_from_x_0 ddpm_step "
    "ddim_step dpm_solver_2m timestep_pairs sample classifier_free",
}


@pytest.mark.parametrize("name", OFFERED)
def test_the_names_that_others_rely_on_are_there(name):
    """The README, the demos and programs elsewhere import these."""
    module = importlib.import_module(name)
    assert [word for word in OFFERED[name].split() if not callable(getattr(module, word, None))] == []


def test_every_file_of_tests_is_a_chapter(pytestconfig):
    """It has a docstring, and the marker of its chapter: `pytest -m process -v` is the list of the process's laws."""
    chapters = {line.partition(":")[0] for line in pytestconfig.getini("markers")} - {"slow", "browser", "hosts"}
    files = list(TESTS.rglob("test_*.py"))
    assert len(files) > 30
    for path in files:
        source = path.read_text("utf-8")
        assert ast.get_docstring(ast.parse(source)), path.name
        named = [word for word in re.findall(r"pytest\.mark\.(\w+)", source) if word in chapters]
        assert len(named) == 1, f"{path.name} is marked {named}"


def test_every_argument_may_be_given_by_name():
    """No argument of the package is positional only: names are what callers may rely on, and what a reader sees."""
    for name, source in SOURCES.items():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef):
                assert node.args.posonlyargs == [], f"{name}: {node.name}"
