"""The rules of the package, read off its sources: who may import whom, which arrays, how long, how documented."""

import ast
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
from pathlib import Path

import pytest

import tinydiff
from tinydiff import ops
from tinydiff.autograd import OPS

pytestmark = pytest.mark.program

PACKAGE = Path(tinydiff.__file__).parent
DEMOS, TESTS = PACKAGE.parent / "demos", PACKAGE.parent / "tests"

# What stands on what (DESIGN.md, section 2): the first name under tinydiff -> its layer.
LAYERS = {
    "backend": 0,
    "autograd": 1,
    "kernels": 1,
    "ops": 2,
    "nn": 3,
    "optim": 3,
    "diffusion": 1,  # stands beside the engine: see test_the_mathematics_knows_the_backend_only
    "data": 4,
    "checkpoint": 4,
    "cli": 4,
    "parallel": 4,
    "plots": 4,
    "train": 4,
    "generate": 4,
    "classify": 4,
    "metrics": 4,
}
# Work on host arrays: files, tables, pictures, processes.  Everything else computes with xp.
HOST_SIDE = {
    "backend",
    "data",
    "diffusion.schedule",
    "checkpoint",
    "parallel",
    "plots",
    "train",
    "generate",
    "classify",
    "metrics",
}
# Demos that another one takes its runs from: the explorer shows what they do.
EXPLORED = {"explorer_runs", "forward_process", "pitfalls", "points_2d"}
THIRD_PARTY = {"numpy", "matplotlib", "PIL", "tqdm"}  # Pillow comes with matplotlib


def module_name(path: Path) -> str:
    """tinydiff/nn/unet.py -> "nn.unet", tinydiff/nn/__init__.py -> "nn", tinydiff/__init__.py -> ""."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {module_name(path): path.read_text("utf-8") for path in sorted(PACKAGE.rglob("*.py"))}
DEMO_SOURCES = {path.stem: path.read_text("utf-8") for path in sorted(DEMOS.glob("*.py"))}
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


def own_imports(source: str) -> set[str]:
    """The modules of tinydiff that it imports, without the package's name; "" is the package itself."""
    found = (name.partition(".") for name in imports(source))
    return {rest for package, _, rest in found if package == "tinydiff"}


def top(name: str) -> str:
    return name.split(".")[0]


def within(name: str, names: set[str]) -> bool:
    """Whether `names` holds the module or a package that it is in."""
    return any(name == other or name.startswith(other + ".") for other in names)


# Layers.


def test_every_file_has_a_layer():
    """A new part of the package has to say what it stands on."""
    assert {top(name) for name in SOURCES} == {"", *LAYERS}


def test_imports_point_down_only():
    """A file imports lower layers, its own package and, in the top layer, its neighbours; none imports `tinydiff`."""

    def may(name, other):
        mine, its = LAYERS.get(top(name), 2), LAYERS.get(top(other), 9)  # the package itself is the engine's front door
        return other in SOURCES and (its < mine or top(name) == top(other) or mine == its == 4)

    assert [(name, other) for name in SOURCES for other in own_imports(SOURCES[name]) if not may(name, other)] == []


def test_no_two_files_need_each_other():
    """The imports have no cycle: there is an order in which to read the package."""
    order = list(graphlib.TopologicalSorter({name: own_imports(SOURCES[name]) for name in SOURCES}).static_order())
    assert order.index("backend") < order.index("autograd") < order.index("nn.unet") < order.index("train")


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


# Arrays.


def test_nobody_who_does_not_ask_for_mpi_loads_it():
    """A demo's modules come without mpi4py: only mpi.world() imports it."""
    code = "import sys, tinydiff.cli, tinydiff.train, tinydiff.generate; print('mpi4py' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": str(PACKAGE.parent)}
    out = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert out.stdout == "False\n", out.stderr


def test_numerical_code_computes_with_xp():
    """NumPy is imported by the backend and by code that works on the host, and by nothing else."""
    users = {name for name in SOURCES if "numpy" in {top(other) for other in imports(SOURCES[name])}}
    assert {name for name in users if not within(name, HOST_SIDE)} == set()


def test_only_the_backend_knows_cupy():
    """No other file names it, or imports by a string; to a reader, or as the choice of an option, it may be a word."""
    forbidden = {"cupy", "cp", "get_array_module", "import_module", "__import__"}
    for name in EVERY_SOURCE.keys() - {"backend"}:
        tokens = tokenize.generate_tokens(io.StringIO(EVERY_SOURCE[name]).readline)
        assert {token.string for token in tokens if token.type == tokenize.NAME} & forbidden == set(), name


def test_nothing_is_borrowed():
    """Only the standard library, NumPy and what draws pictures and bars: no other framework does the work."""
    in_demos = {"contestant", "captions", "long_run", "exercises", *EXPLORED}
    allowed = sys.stdlib_module_names | THIRD_PARTY | in_demos | {"tinydiff"}
    witness = {"demos.benchmark", "demos.gpu_benchmark", "demos.torch_peer"}  # PyTorch stands there to be compared with
    for name, source in EVERY_SOURCE.items() - {(name, EVERY_SOURCE[name]) for name in witness}:
        here = {"mpi4py"} if name == "parallel.mpi" else set()  # and nobody else has a line of MPI
        assert {top(other) for other in imports(source)} - allowed == here, name


# Size.

COUNTER = runpy.run_path(str(Path(__file__).with_name("count_lines.py")))


def test_the_package_keeps_its_budget():
    """4,275 lines of Python in all and 350 a file, CUDA too: `python tests/count_lines.py` says where they are."""
    lines = COUNTER["count_package"](PACKAGE)
    files = (path for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    assert set(lines) == {path.relative_to(PACKAGE).as_posix() for path in files}  # nothing is left out
    assert lines["kernels.cu"] > 50
    assert lines["backend.py"] > 50  # it does count
    assert COUNTER["over_budget"](lines) == []


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


def test_a_budget_that_is_passed_is_said():
    """One line too many in a file, or in all, is a sentence that names it; the limits themselves are not."""
    most = COUNTER["MOST_IN_ALL"]
    assert COUNTER["over_budget"]({"k.py": 350, **{f"{i}.py": 1 for i in range(most - 350)}}) == []
    too_long, too_many = COUNTER["over_budget"]({"k.py": 351, **{f"{i}.py": 1 for i in range(most - 350)}})
    assert "k.py: 351 lines" in too_long and f"{most + 1} lines" in too_many
    assert COUNTER["over_budget"]({"k.cu": 351}) == ["k.cu: 351 lines of code, at most 350"]


def test_a_line_of_cuda_counts_if_it_holds_code():
    """Comments of either kind and blank lines are free; code beside a comment counts."""
    assert COUNTER["count_cuda"]("// a\nint b; // c\n/* d\n e */\n\nint f; /* g\n h */ int i;\n") == 3


def test_the_counter_fails_over_the_budget(monkeypatch, capsys):
    """Its exit code, by which the checks stop, is 1 over the budget and 0 within it."""
    main = COUNTER["main"]
    assert main() == 0
    monkeypatch.setitem(main.__globals__, "MOST_IN_A_FILE", 10)
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
    assert {name: OPS[name] for name in OPS} == {name: getattr(ops, name, None) for name in OPS}
    assert set(OPS) <= set(ops.__all__)


OFFERED = {
    "tinydiff": "use_backend to_numpy Tensor no_grad",
    "tinydiff.nn": "Module Linear Conv2d GroupNorm Embedding Attention CrossAttention UNet TextUNet Prompted",
    "tinydiff.optim": "Adam EMA clip_grad_norm",
    "tinydiff.diffusion": "Schedule q_sample q_x_t_given_x_s q_x_s_given_x_t_x_0 x_0_from_eps eps_from_x_0 ddpm_step "
    "ddim_step dpm_solver_2m timestep_pairs sample classifier_free",
}


@pytest.mark.parametrize("name", OFFERED)
def test_the_names_that_others_rely_on_are_there(name):
    """The README, the demos and outside checks import these (DESIGN.md, section 10)."""
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
