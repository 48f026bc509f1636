"""--plain: every program that has a backend to choose takes it, and hands it on before it computes anything."""

import ast
from pathlib import Path

import pytest

pytestmark = pytest.mark.program

DEMOS = Path(__file__).parents[2] / "demos"
# In demos/measure --plain asks for one contestant more: what is measured there is the difference.
PROGRAMS = [
    path
    for path in sorted(DEMOS.rglob("*.py"))
    if all(words in path.read_text("utf-8") for words in ("cli.add_backend(", '__name__ == "__main__"'))
    and path.parent.name != "measure"
]


def test_there_are_programs():
    """The search above finds them."""
    assert len(PROGRAMS) > 15


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.stem)
def test_every_main_passes_plain_to_start(path):
    """main(plain=False) calls cli.start with plain, as the argument of that name or the fourth."""
    tree = ast.parse(path.read_text("utf-8"))
    (main,) = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "main"]
    names = [a.arg for a in (*main.args.args, *main.args.kwonlyargs)]
    defaults = [*main.args.defaults, *main.args.kw_defaults]
    default = dict(zip(names[::-1], defaults[::-1]))["plain"]
    assert isinstance(default, ast.Constant) and default.value is False
    calls = [node for node in ast.walk(main) if isinstance(node, ast.Call) and ast.unparse(node.func) == "cli.start"]
    assert calls
    for call in calls:
        passed = [*call.args[3:4], *(keyword.value for keyword in call.keywords if keyword.arg == "plain")]
        assert [ast.unparse(value) for value in passed] == ["plain"]
