"""A working copy of the package, without the statements that an exercise is about, and without their formula.

Signatures and docstrings stay, and so do all other lines.  Where a docstring has the formula of what was taken out, the
copy has the place where it is published: to read an equation of a paper is a part of the exercise.
"""

import ast
import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def make_copy(exercise, copy):
    """Write the package into the folder `copy`, without the statements that the exercise is about."""
    shutil.rmtree(copy / "tinydiff", ignore_errors=True)
    shutil.copytree(ROOT / "tinydiff", copy / "tinydiff", ignore=shutil.ignore_patterns("__pycache__"))
    for file in {place.file for place in (*exercise.cuts, *exercise.formulas)}:
        path = copy / "tinydiff" / file
        source = path.read_text(encoding="utf-8")
        source = without_formulas(source, [formula for formula in exercise.formulas if formula.file == file])
        path.write_text(without(source, [cut for cut in exercise.cuts if cut.file == file]), encoding="utf-8")


def without_formulas(source, formulas):
    """The source with the replacement of each formula in its place; ValueError unless each is there exactly once."""
    for formula in formulas:
        if source.count(formula.text) != 1:
            raise ValueError(f"{formula.file}: {formula.text!r} is there {source.count(formula.text)} times")
        source = source.replace(formula.text, formula.instead)
    return source


def without(source, cuts):
    """The source with an error in place of each cut's statements, at their indentation."""
    lines = source.splitlines(keepends=True)
    for first, last, turn in sorted((*region(source, cut), cut.turn) for cut in cuts)[::-1]:  # from below: lines shift
        indent = lines[first - 1][: -len(lines[first - 1].lstrip())]
        lines[first - 1 : last] = [f'{indent}raise NotImplementedError("your turn: {turn}")\n']
    return "".join(lines)


def region(source, cut):
    """First and last line of what is cut out, counted from 1."""
    body = ast.parse(source).body
    for name in cut.function.split("."):
        (node,) = (node for node in body if getattr(node, "name", None) == name)
        body = node.body
    if ast.get_docstring(node) is not None:
        body = body[1:]
    begins = [ast.get_source_segment(source, statement) for statement in body]
    firsts = [i for i, text in enumerate(begins) if text.startswith(cut.first)]
    lasts = [i for i, text in enumerate(begins) if text.startswith(cut.last) and i >= firsts[0]] if firsts else []
    if not lasts:
        raise ValueError(f"{cut.file}: {cut.function} has no statements from {cut.first!r} to {cut.last!r}")
    return body[firsts[0]].lineno, body[lasts[0] if cut.last else -1].end_lineno


def turns(exercise, copy):
    """(file, line) of each place in the copy that is still to be written."""
    for file in dict.fromkeys(cut.file for cut in exercise.cuts):
        lines = (copy / "tinydiff" / file).read_text(encoding="utf-8").splitlines()
        yield from ((file, number) for number, line in enumerate(lines, 1) if '"your turn: ' in line)
