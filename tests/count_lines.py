"""Count the package's lines of code and hold its budget: python tests/count_lines.py

A line counts if it holds code: blank lines, comments and docstrings are free.  Exit code 1 if the package or one of its
files is longer than it should be; a design that does not fit is too complicated.  The total is of the Python; the GPU's
kernels, in CUDA, are one file with the limit of a file.
"""

import ast
import io
import re
import sys
import tokenize
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "tinydiff"
MOST_IN_ALL, MOST_IN_A_FILE = 4_275, 350

NOT_CODE = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


def count(source: str) -> int:
    """How many lines of `source` hold code."""
    text, docstrings, code = source.splitlines(), _docstrings(ast.parse(source)), set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in NOT_CODE and token.start not in docstrings:
            code.update(range(token.start[0], token.end[0] + 1))
    return sum(bool(text[line - 1].strip()) for line in code)  # a long string may hold blank lines


def count_cuda(source: str) -> int:
    """How many lines of CUDA hold code."""
    code = re.sub(r"/\*.*?\*/|//[^\n]*", lambda comment: "\n" * comment[0].count("\n"), source, flags=re.DOTALL)
    return sum(bool(line.strip()) for line in code.splitlines())


def count_package(package: Path = PACKAGE) -> dict[str, int]:
    """Lines of code of each file, by its path in the package."""
    paths = sorted(path for path in package.rglob("*") if path.suffix in COUNT)
    return {path.relative_to(package).as_posix(): COUNT[path.suffix](path.read_text("utf-8")) for path in paths}


def over_budget(lines: dict[str, int]) -> list[str]:
    """One sentence for each limit that is passed."""
    total = _total(lines)
    said = [f"{name}: {n} lines of code, at most {MOST_IN_A_FILE}" for name, n in lines.items() if n > MOST_IN_A_FILE]
    return said + ([f"the package: {total} lines of code, at most {MOST_IN_ALL}"] if total > MOST_IN_ALL else [])


def main() -> int:
    lines = count_package()
    for name, n in lines.items():
        print(f"{n:6,}  {name}")
    print(f"{_total(lines):6,}  of Python in all, of {MOST_IN_ALL:,}")
    said = over_budget(lines)
    print(*said, sep="\n", end="\n" if said else "", file=sys.stderr)
    return 1 if said else 0


def _total(lines: dict[str, int]) -> int:
    return sum(n for name, n in lines.items() if name.endswith(".py"))


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
