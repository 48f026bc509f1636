"""Count the package's lines of code, room by room, and hold each room's limits: python tests/count_lines.py

A line counts if it holds code: blank lines, comments and docstrings are free.  Exit code 1 if a room, a file or a
function is longer than it may be.  The book's limits are never raised: what comes in puts something out.  Those of the
other rooms are what they hold, rounded up to 50; whoever raises one says why in the first line of the commit.
The GPU's kernels, in CUDA, are one file with the limit of a file of fast/.
"""

import ast
import io
import re
import sys
import tokenize
from functools import cache
from pathlib import Path
from typing import NamedTuple

PACKAGE = Path(__file__).resolve().parents[1] / "tinydiff"


class Room(NamedTuple):
    """The most lines of code in all, in a file and in a function."""

    total: int
    file: int
    function: int


BOOK, CHAPTERS = "the book", "further chapters"
ROOMS = {
    BOOK: Room(1200, 150, 40),
    CHAPTERS: Room(500, 150, 40),
    "data": Room(900, 150, 40),
    "fast": Room(2100, 350, 60),
    "more": Room(300, 150, 60),
    "app": Room(2100, 150, 60),
}
CHAPTER_NAMES = ("times", "solver", "moderation", "targets", "likelihood", "editing", "variance", "edm", "flow")
FURTHER = {"muon.py", *(f"diffusion/{name}.py" for name in CHAPTER_NAMES)}
NOT_CODE = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


def room_of(name: str) -> str:
    """The room of a file, by its path in the package."""
    folder = name.split("/")[0]
    return CHAPTERS if name in FURTHER else folder if folder in ROOMS else BOOK


@cache  # the tests count the same files again and again
def code_lines(source: str) -> set[int]:
    """The numbers of the lines of `source` that hold code."""
    text, docstrings, code = source.splitlines(), _docstrings(ast.parse(source)), set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in NOT_CODE and token.start not in docstrings:
            code.update(range(token.start[0], token.end[0] + 1))
    return {line for line in code if text[line - 1].strip()}  # a long string may hold blank lines


def count(source: str) -> int:
    """How many lines of `source` hold code."""
    return len(code_lines(source))


def count_functions(source: str) -> dict[str, int]:
    """Lines of code of each function by its name, its signature and the functions within it included."""
    code = code_lines(source)
    functions = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    return {f.name: len(code & set(range(f.lineno, f.end_lineno + 1))) for f in functions}


def count_cuda(source: str) -> int:
    """How many lines of CUDA hold code."""
    code = re.sub(r"/\*.*?\*/|//[^\n]*", lambda comment: "\n" * comment[0].count("\n"), source, flags=re.DOTALL)
    return sum(bool(line.strip()) for line in code.splitlines())


def sources(package: Path = PACKAGE) -> dict[str, str]:
    """Every file of the package that holds code, by its path in the package."""
    paths = sorted(path for path in package.rglob("*") if path.suffix in COUNT)
    return {path.relative_to(package).as_posix(): path.read_text("utf-8") for path in paths}


def count_package(package: Path = PACKAGE) -> dict[str, int]:
    """Lines of code of each file, by its path in the package."""
    return {name: COUNT[Path(name).suffix](source) for name, source in sources(package).items()}


def totals(lines: dict[str, int]) -> dict[str, int]:
    """Lines of Python in each room."""
    return {
        room: sum(n for name, n in lines.items() if room_of(name) == room and name.endswith(".py")) for room in ROOMS
    }


def over_limit(files: dict[str, str]) -> list[str]:
    """One sentence for each limit that is passed; files: sources by their path in the package."""
    lines = {name: COUNT[Path(name).suffix](source) for name, source in files.items()}
    found = []
    for room, n in totals(lines).items():
        if n > ROOMS[room].total:
            found.append(f"{room}: {n} lines of code, at most {ROOMS[room].total}")
    for name, n in lines.items():
        limits = ROOMS[room_of(name)]
        if n > limits.file:
            found.append(f"{name}: {n} lines of code, at most {limits.file}")
        functions = count_functions(files[name]) if name.endswith(".py") else {}
        found += [
            f"{name}: {f}: {k} lines of code, at most {limits.function}"
            for f, k in functions.items()
            if k > limits.function
        ]
    return found


def main() -> int:
    files = sources()
    lines = count_package()
    for room, n in totals(lines).items():
        print(f"{n:6,}  {room}, of {ROOMS[room].total:,}")
        for name in sorted(name for name in lines if room_of(name) == room):
            print(f"{lines[name]:14,}  {name}")
    found = over_limit(files)
    print(*found, sep="\n", end="\n" if found else "", file=sys.stderr)
    return 1 if found else 0


def _docstrings(tree: ast.AST) -> set[tuple[int, int]]:
    """Where the docstrings begin, as (line, column)."""
    found = set()
    for node in ast.walk(tree):
        documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if documented and ast.get_docstring(node, clean=False) is not None:
            found.add((node.body[0].lineno, node.body[0].col_offset))
    return found


COUNT = {".py": count, ".cu": count_cuda}

if __name__ == "__main__":
    sys.exit(main())
