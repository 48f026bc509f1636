"""Every option of every program acts, and acts alone: one law, and a table of each program in tests/demos/options/.

The table of demos/prompts/prompt.py is tests/demos/options/prompts/prompt.py.  It has these names:

    ARGUMENTS = {"checkpoint": "c.npz"}          the positional arguments of every run, in their order, if there are any
    WORDS = "--num=4 --steps=3"                  the options of every run of the program, made as small as can be
    def stand_ins(program, notes, patch): ...    replaces the expensive parts; they note what they are called with
    ROWS = {"--scale": ("--scale=1", "--scale=3", {"scale": (1.0, 3.0), "title": DIFFERS}), ...}

A row has the words of two runs, which come after WORDS, and what differs between their notes: the two values that are
noted, or DIFFERS where the values are too long to write down.  All other notes must be equal, bit for bit.  Two values
are compared with `same`, and functions by identity: {"step": (ddpm_step, ddim_step)}.  "" is the option not given.
Every argument needs a row, and may have a list of rows.  A positional argument is named by its dest, and the words of
its row are its values: {"checkpoint": ("a.npz", "b.npz", {"checkpoint": ("a.npz", "b.npz")})}.
BASICS has the rows of --backend, --precision and --plain, which every program passes to cli.start.

tests/recorder.py has the stand-ins and notes by itself what is printed, returned and written, and the arguments of
cli.start.  Within a run the current folder is empty, so that paths can be given by their names.  `patch` is a
MonkeyPatch; patch.setitem(program.names, "sample", f) replaces what main and its neighbours know as `sample`.
If a row is wrong, the law prints each note that differs, and both values.
"""

import argparse
import importlib.util
import reprlib
import shlex
from functools import cache
from pathlib import Path

import pytest
from option_rows import DIFFERS
from recorder import DEMOS, Program, record, same

from tinydiff.backend import backend_name

pytestmark = [
    pytest.mark.program,
    pytest.mark.skipif(backend_name() != "numpy", reason="options are the same on every backend"),
]

TABLES = Path(__file__).with_name("options")
PROGRAMS = sorted(
    path.relative_to(DEMOS).with_suffix("").as_posix()
    for path in DEMOS.rglob("*.py")
    if '__name__ == "__main__"' in path.read_text()
)


def table_of(name):
    """The module of a program's table."""
    spec = importlib.util.spec_from_file_location(f"options of {name}", TABLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def arguments_of(parser):
    """How each argument that --help shows is named in a table: the first option string, or the dest of a word."""
    shown = [action for action in parser._actions if action.help != argparse.SUPPRESS and action.dest != "help"]
    return [action.option_strings[0] if action.option_strings else action.dest for action in shown]


def rows_of(table):
    """(argument, words, other words, what differs) of each row."""
    for argument, rows in table.ROWS.items():
        for first, second, changes in rows if isinstance(rows, list) else [rows]:
            yield argument, first, second, changes


def mistakes(a, b, changes):
    """What is wrong with a row, whose runs have noted a and b: a text for each note."""
    for name in sorted(a.keys() | b.keys() | changes.keys()):
        values = a.get(name), b.get(name)
        if name not in changes:
            if not same(*values):
                yield f"{name} differs too: {reprlib.repr(values)}"
        elif same(*values):
            yield f"{name} does not differ: {reprlib.repr(values[0])}"
        elif changes[name] is not DIFFERS and not all(map(same, values, changes[name])):
            yield f"{name} is {values}, not {changes[name]}"


@cache
def parser_of(path):
    return Program(Path(path).relative_to(DEMOS).with_suffix("").as_posix()).parser


def refused(printed):
    """The commands to type next, of those that a run has printed, which their programs would refuse."""
    for line in printed.splitlines():
        for command in line.removeprefix("next: ").split(" && ") if line.startswith("next: ") else ():
            python, path, *words = shlex.split(command)
            try:
                assert python == "python"
                parser_of(path).parse_args(words)
            except SystemExit:
                yield f"{command}: refused"


def test_every_program_has_a_table():
    """A table for each program, and no table without one."""
    assert sorted(path.relative_to(TABLES).with_suffix("").as_posix() for path in TABLES.rglob("*.py")) == PROGRAMS


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_option_acts_and_acts_alone(name, tmp_path):
    """The two runs of a row differ in what the row names, and in nothing else; every argument has a row.  Each command
    that a run prints to type next can be run."""
    program, table, runs, wrong = Program(name), table_of(name), {}, []
    positional = getattr(table, "ARGUMENTS", {})
    assert set(table.ROWS) == set(arguments_of(program.parser))

    def notes(argument, words):
        if argument in positional:
            options = [*(positional | {argument: words}).values(), table.WORDS]
        else:
            options = [*positional.values(), table.WORDS, words]
        line = " ".join(options)
        if line not in runs:
            folder = tmp_path / str(len(runs))
            folder.mkdir()
            runs[line] = record(program, line, table.stand_ins, folder)
            wrong.extend(refused(runs[line]["printed"]))
        return runs[line]

    for argument, first, second, changes in rows_of(table):
        assert changes, f"{argument}: a row must name what differs"
        wrong += [
            f"{argument}: {mistake}" for mistake in mistakes(notes(argument, first), notes(argument, second), changes)
        ]
    if wrong:
        pytest.fail("\n".join(wrong), pytrace=False)


def test_a_row_that_is_wrong_fails():
    """A note that differs too, one that does not differ, one that is missing, one with another value."""
    a, b = {"x": 1, "y": 2}, {"x": 1, "y": 3}
    assert list(mistakes(a, b, {"y": (2, 3)})) == list(mistakes(a, b, {"y": DIFFERS})) == []
    for changes in ({}, {"x": DIFFERS, "y": DIFFERS}, {"y": (2, 4)}, {"y": (3, 2)}, {"y": DIFFERS, "z": DIFFERS}):
        assert len(list(mistakes(a, b, changes))) == 1
