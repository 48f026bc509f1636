"""The README keeps its word: its map, its glossary, its example and its pictures are those of the source."""

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
    demos = {path.name for path in (ROOT / "demos").glob("*.py")} - {"torch_peer.py"}  # benchmark.py's
    assert {name for name in demos if f"demos/{name}" not in README} == set()
