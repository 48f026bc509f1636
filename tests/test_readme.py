"""The README keeps its word: its map, its glossary, its example and its pictures are those of the source."""

import pkgutil
import re
import runpy
from pathlib import Path

import pytest

from tinydiff import diffusion, train
from tinydiff.backend import backend_name

pytestmark = pytest.mark.program

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_map_names_every_file_with_its_size():
    """Every file of the package is on the map, or its folder is, with its lines of code to 10% and 5 lines."""
    lines = runpy.run_path(str(ROOT / "tests" / "count_lines.py"))["count_package"](ROOT / "tinydiff")
    table = dict(re.findall(r"^\| `tinydiff/([\w/.]+)` \| (\d+) \|", README, re.MULTILINE))
    for name in table:
        size = sum(
            count for file, count in lines.items() if file == name or (name[-1] == "/" and file.startswith(name))
        )
        assert abs(int(table[name]) - size) <= 5 + size / 10, f"{name} has {size} lines"
    folders = tuple(name for name in table if name[-1] == "/")
    missing = {file for file in lines if not file.endswith("__init__.py")} - table.keys()
    assert {file for file in missing if not file.startswith(folders)} == set()


def test_each_file_imports_only_from_rows_above_its_own():
    """The map is in reading order: nothing is used before it was read."""
    rows = re.findall(r"^\| `tinydiff/([\w/.]+)` \|", README, re.MULTILINE)
    for place, name in enumerate(rows):
        for path in [ROOT / "tinydiff" / name] if name.endswith(".py") else (ROOT / "tinydiff" / name).glob("*.py"):
            for module in re.findall(r"^from tinydiff\.([\w.]+) import", path.read_text(), re.MULTILINE):
                file = module.replace(".", "/")
                above = [row for row in rows[:place] if row in (f"{file}.py", f"{file}/") or row.startswith(f"{file}/")]
                own = name[-1] == "/" and file.startswith(name[:-1])
                assert above or own, f"{path.name} imports {module}, which stands below it"


def test_the_glossarys_names_exist():
    """Each function that the glossary gives for a symbol is one of diffusion/, of Schedule, or of train.py."""
    glossary = README.split("## Glossary")[1].split("\n## ")[0]
    cells = [row.split("|")[2] for row in glossary.splitlines() if row.startswith("| ") and "in code" not in row]
    names = [name for cell in cells for name in re.findall(r"`([^`]+)`", cell)]
    assert len(names) > 15
    arguments = {"x_0", "x_t", "eps", "eps_hat", "x_0_hat", "eta"}
    schedule = diffusion.Schedule.linear(100)
    for name in set(names) - arguments:
        if name.startswith("schedule."):
            assert hasattr(schedule, re.match(r"schedule\.(\w+)", name)[1]), name
        else:
            word = re.match(r"\w+", name)[0]
            assert hasattr(diffusion, word) or hasattr(train, word), name


@pytest.mark.skipif(backend_name() != "numpy", reason="the example is run as it stands, on numpy")
def test_the_example_runs_and_ends_on_the_data(capsys):
    """The Python block runs as it stands, and what it samples is the point that its ideal eps belongs to."""
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names = {}
    exec(code, names)
    assert names["t"] == 0 and abs(names["x_t"] - names["x_0"]).max() < 1e-12  # float64, ten exact steps
    assert len(capsys.readouterr().out.splitlines()) == 10


def test_files_and_demos_that_it_names_are_there():
    """Pictures and demos named in the README exist, and every demo is named."""
    for name in re.findall(r"\]\((demos/[\w/.]+)\)", README) + re.findall(r"python (demos/\w+\.py)", README):
        assert (ROOT / name).is_file(), name
    demos = {path.name for path in (ROOT / "demos").glob("*.py")} - {
        "contestant.py",
        "torch_peer.py",
        "long_run.py",
        "explorer_runs.py",
        "exercises.py",
    }  # others' parts
    assert {name for name in demos if f"demos/{name}" not in README} == set()


# ------------------------------------------------------------------------------------------------- the equation index


def equation_index():
    """(equation, functions, tests) of each row of the index, a test as (file, name)."""
    section = README.split("## Equation index")[1].split("\n## ")[0]
    rows = [row.strip("| ").split(" | ") for row in section.splitlines() if row.startswith("| ")]
    rows = [[cell.strip() for cell in row] for row in rows if row[0] != "eq."]
    assert {len(row) for row in rows} == {4}
    return [(row[0], re.findall(r"`([\w.]+)`", row[2]), re.findall(r"`(\w+)::(\w+)`", row[3])) for row in rows]


def test_every_function_and_test_of_the_equation_index_exists():
    """A row names functions of the package and tests that hold them to their equation; none of them is gone."""
    tests = {}
    for path in (ROOT / "tests").rglob("test_*.py"):
        names = re.findall(r"^def (test_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
        tests.setdefault(path.stem, set()).update(names)
    index = equation_index()
    assert len(index) > 20
    for equation, functions, named in index:
        assert functions and named, f"eq. {equation} without a function or a test"
        for function in functions:
            pkgutil.resolve_name(f"tinydiff.{function}")  # raises where it does not exist
        for file, test in named:
            assert test in tests.get(file, set()), f"eq. {equation} names {file}::{test}"


def test_every_public_function_of_the_process_is_in_the_equation_index():
    """No formula of diffusion/ stands without its equation and its test, Schedule's own included."""
    listed = {name for _, functions, _ in equation_index() for name in functions}
    classes = {name for name in diffusion.__all__ if isinstance(getattr(diffusion, name), type)}
    methods = {f"Schedule.{name}" for name, f in vars(diffusion.Schedule).items() if name[0] != "_"}
    public = {f"diffusion.{name}" for name in {*diffusion.__all__, *methods} - classes - {"Schedule.check_times"}}
    assert public - listed == set()
