"""Every demo reads its options and ends in the same way: a clear message, the right exit code."""

import argparse
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinydiff.app import choices, cli
from tinydiff.app.alone import Alone
from tinydiff.backend import TinydiffError
from tinydiff.fast import device
from tinydiff.fast.workers import Ranks

pytestmark = pytest.mark.program

ROOT = str(Path(cli.__file__).parents[2])


def _run(monkeypatch, main, *arguments, options=()):
    """Run main with a parser of --name=type options, as if called with these arguments."""
    parser = cli.parser("About it.", main)
    for name, kind in options:
        parser.add_argument(f"--{name}", type=kind, help=f"the {name}")
    monkeypatch.setattr(sys, "argv", ["demo", *arguments])
    cli.run(main, parser)


def _raises(error):
    def main():
        raise error

    return main


def test_defaults_are_those_of_main_and_help_shows_them(monkeypatch, capsys):
    """An option that is not given has main's keyword default; --help shows it, but not a None or a False."""
    seen = {}

    def main(*, steps=123, seed=0, out=None, resume=False):
        seen.update(steps=steps, seed=seed, out=out, resume=resume)

    parser = cli.parser("About it.\n\n    python demo.py", main)
    parser.add_argument("--steps", type=cli.positive_int, help="how long")
    parser.add_argument("--seed", type=cli.non_negative_int, help="which stream")
    parser.add_argument("--out", help="where")
    parser.add_argument("--resume", action="store_true", help="go on")
    monkeypatch.setattr(sys, "argv", ["demo"])
    cli.run(main, parser)
    assert seen == {"steps": 123, "seed": 0, "out": None, "resume": False}
    monkeypatch.setattr(sys, "argv", ["demo", "--steps", "5", "--resume", "--out", "x"])
    cli.run(main, parser)
    assert seen == {"steps": 5, "seed": 0, "out": "x", "resume": True}
    text = parser.format_help()
    assert "how long (default: 123)" in text and "which stream (default: 0)" in text
    assert "None" not in text and "False" not in text
    assert "About it.\n\n    python demo.py\n" in text  # the description keeps its lines
    monkeypatch.setattr(sys, "argv", ["demo", "--res"])
    with pytest.raises(SystemExit, match="2"):  # no abbreviations: a new option must not change an old command
        cli.run(main, parser)
    assert "unrecognized arguments: --res" in capsys.readouterr().err


def test_the_backend_is_one_of_two(monkeypatch, capsys):
    """--backend takes main's default and refuses any other name with exit code 2, naming the choices."""
    seen = []

    def main(*, backend="numpy", precision=None, plain=False):
        seen.append(backend)

    parser = cli.parser(None, main)
    cli.add_backend(parser)
    for arguments in ([], ["--backend", "cupy"], ["--backend", "torch"]):
        monkeypatch.setattr(sys, "argv", ["demo", *arguments])
        try:
            cli.run(main, parser)
        except SystemExit as end:
            assert end.code == 2 and arguments[-1:] == ["torch"]
    assert seen == ["numpy", "cupy"]
    message = capsys.readouterr().err
    assert "torch" in message and "numpy" in message and "cupy" in message


def test_precision_goes_with_the_backend(monkeypatch, capsys):
    """--precision reaches main; on NumPy tf32 is refused before main runs, with exit code 2 and the remedy."""
    seen = []

    def main(*, backend="numpy", precision=None, plain=False):
        seen.append((backend, precision))

    parser = cli.parser(None, main)
    cli.add_backend(parser)
    for arguments in ([], ["--precision=float32"], ["--backend=cupy", "--precision=tf32"], ["--backend=cupy"]):
        monkeypatch.setattr(sys, "argv", ["demo", *arguments])
        cli.run(main, parser)
    assert seen == [("numpy", None), ("numpy", "float32"), ("cupy", "tf32"), ("cupy", None)]
    for arguments, words in ((["--precision=tf32"], "needs --backend cupy"), (["--precision=half"], "choose from")):
        monkeypatch.setattr(sys, "argv", ["demo", *arguments])
        with pytest.raises(SystemExit, match="2"):
            cli.run(main, parser)
        assert words in capsys.readouterr().err
    assert len(seen) == 4


@pytest.fixture
def chosen(monkeypatch):
    """What start chooses, in place of use_backend; nothing is installed."""
    choices = []
    monkeypatch.setattr(cli, "use_backend", lambda *choice, plain=False: choices.append((*choice, plain)))
    monkeypatch.setattr(device, "describe", lambda: "a GPU")
    return choices


def test_a_demo_on_a_gpu_begins_by_naming_it(chosen, capsys):
    """start passes its choices on; one line on a GPU, none on NumPy."""
    cli.start("numpy", None)
    assert capsys.readouterr().out == ""
    cli.start("cupy", "tf32")
    assert capsys.readouterr().out == "a GPU\n"
    cli.start("numpy", "float32", plain=True)
    assert chosen == [("numpy", None, 0, False), ("cupy", "tf32", 0, False), ("numpy", "float32", 0, True)]


@pytest.mark.parametrize("installed, alone", [({}, Alone), ({"silu": None}, Ranks)])
def test_who_shares_the_work_goes_with_what_is_installed(chosen, monkeypatch, installed, alone):
    """One process of the book where nothing is installed, as with --plain; else the engine room's workers."""
    monkeypatch.setattr("tinydiff.app.alone.FAST", installed)
    ranks = cli.start("numpy", None)
    assert type(ranks) is alone and (ranks.rank, ranks.size) == (0, 1)


def test_ranks_share_the_work_where_they_are_asked_for(chosen, monkeypatch):
    """--parallel mpi: the ranks that mpiexec has started, each with the GPU of its number on its machine."""
    world = Ranks()
    world.local_rank = 3
    monkeypatch.setattr("tinydiff.fast.mpi.world", lambda: world)
    assert cli.start("numpy", None, "mpi") is world
    assert chosen == [("numpy", None, 3, False)]


def test_the_plain_functions_work_in_one_process(chosen):
    """--plain --parallel mpi is refused before anything is chosen."""
    with pytest.raises(TinydiffError, match="--plain --parallel mpi: with --plain one process does all the work"):
        cli.start("numpy", None, "mpi", plain=True)
    assert chosen == []


def test_a_lack_of_memory_is_one_line(monkeypatch, capsys):
    """A MemoryError says what could not be had, without a traceback and with exit code 2."""
    for error, said in (
        (MemoryError("Out of memory allocating 9 bytes"), "allocating 9"),
        (MemoryError(), "of memory"),
    ):
        with pytest.raises(SystemExit, match="2"):
            _run(monkeypatch, _raises(error))
        err = capsys.readouterr().err
        assert said in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (cli.positive_int, {"1": 1, "20_000": 20000}, ["0", "-1", "1.0", "1e3", "", "ten", "1000000001"]),
        (cli.non_negative_int, {"0": 0, f"{2**63 - 1}": 2**63 - 1}, ["-1", "0.5", "nan", "1e30", f"{2**63}"]),
        (cli.positive_float, {"1e-3": 1e-3, "2": 2.0}, ["0", "-1", "nan", "inf", "1e999", "x", "1e30"]),
        (cli.non_negative_float, {"0": 0.0, "2.5": 2.5}, ["-0.1", "nan", "inf", "1e30"]),
    ],
)
def test_a_number_out_of_range_is_refused_with_its_value(monkeypatch, capsys, kind, good, bad):
    """Each type takes its range, ends included, and refuses the rest with exit code 2, the option, rule and value."""
    seen = []

    def main(*, size=None):
        seen.append(size)

    for text, value in good.items():
        _run(monkeypatch, main, f"--size={text}", options=[("size", kind)])
        assert seen[-1] == value and type(seen[-1]) is type(value)
    for text in bad:
        with pytest.raises(SystemExit, match="2"):
            _run(monkeypatch, main, f"--size={text}", options=[("size", kind)])
        message = capsys.readouterr().err
        assert f"argument --size: must be a {'whole ' * (type(value) is int)}number" in message
        assert f"got {text!r}" in message
    assert len(seen) == len(good)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)).map(sorted), min_size=1), st.sampled_from([",", ", "]))
def test_labels_are_the_digits_and_ranges_in_order(ranges, comma):
    """ "a-b" stands for a..b with both ends, "a" for itself; commas join them, repeats and order kept."""
    text = comma.join(f"{a}-{b}" if a < b else f"{a}" for a, b in ranges)
    assert choices.labels(text) == tuple(i for a, b in ranges for i in range(a, b + 1))


@pytest.mark.parametrize(
    "text",
    ["", "1000", "-1", "9-0", "3-3", "1,,2", "a", "0-", "3;4", "1.0", "\N{ARABIC-INDIC DIGIT ONE}", "0-99999999"],
)
def test_labels_that_are_no_numbers_are_refused(text):
    """Anything else is refused with the rule and the value; a range of a million is refused before it is made."""
    with pytest.raises(argparse.ArgumentTypeError) as error:
        choices.labels(text)
    part = "" if ",," in text else text
    assert repr(part) in str(error.value) and ("range" in str(error.value) or "from 0 to 999" in str(error.value))


@given(st.lists(st.integers(1, 10**9), min_size=1, max_size=30))
def test_a_list_is_what_is_typed_for_it(numbers):
    """as_typed and list_of are inverses; runs are written as ranges; an item that occurs twice is refused by name."""
    text = cli.as_typed(tuple(numbers))
    assert cli.list_of(cli.positive_int, repeats=True)(text) == tuple(numbers) and " " not in text
    if len(set(numbers)) < len(numbers):
        with pytest.raises(argparse.ArgumentTypeError, match="must occur once"):
            cli.list_of(cli.positive_int)(text)
    else:
        assert cli.list_of(cli.positive_int)(text) == tuple(numbers)


@given(st.lists(st.integers(0, 10**6).map(lambda n: n / 8), min_size=1, unique=True), st.integers(0, 30))
def test_the_item_that_is_wrong_is_named(numbers, place):
    """Wherever it stands in the list; the other items are read as they are."""
    words = [repr(number) for number in numbers]
    assert cli.list_of(cli.non_negative_float)(",".join(words)) == tuple(numbers)
    words.insert(min(place, len(words)), "nan")
    with pytest.raises(argparse.ArgumentTypeError, match="each item must be a number from 0 to 1,000,000, got 'nan'"):
        cli.list_of(cli.non_negative_float)(",".join(words))


def test_defaults_are_written_as_one_types_them():
    """Numbers without zeros at the end, lists with commas, runs as ranges, and quotes where a shell needs them."""
    typed = {(5, 10): "5,10", tuple(range(10)): "0-9", (1, 2, 4, 5, 6): "1,2,4-6"}
    typed |= {2.0: "2", 1e-3: "0.001", 10_000: "10000"}
    typed |= {(0.0, 1.5, 20.0): "0,1.5,20", "runs/mnist": "runs/mnist", "a thick two": "'a thick two'", "": "''"}
    for value, text in typed.items():
        assert cli.as_typed(value) == text


def test_paragraphs_of_the_description_fill_the_terminal(monkeypatch):
    """Commands and lists, whose lines are indented, stay as they are."""
    monkeypatch.setenv("COLUMNS", "52")
    command = "    python demos/long.py --with options    what it does"
    text = "Do it. " + "A word and a word. " * 20 + f"\n\n{command}\n\nEnd."
    lines = cli.parser(text, lambda: None).format_help().splitlines()
    assert command in lines and "End." in lines
    assert all(len(line) <= 50 for line in lines if line != command)


def test_a_list_with_spaces_is_refused_with_the_way_to_write_it(monkeypatch, capsys):
    """--steps 5 10 was a list once."""
    with pytest.raises(SystemExit, match="2"):
        options = [("steps", cli.list_of(cli.positive_int))]
        _run(monkeypatch, lambda *, steps=(1,): steps, "--steps", "5", "10", options=options)
    assert "unrecognized arguments: 10; a list is written with commas, such as 5,10" in capsys.readouterr().err


@pytest.mark.parametrize("value", ["-1", "-1,2", "-.5", "-1e5", "-inf", "-nan,1"])
def test_a_value_may_begin_with_a_minus(monkeypatch, capsys, value):
    """It is refused as the value that it is, not taken for an option."""

    def main(*, scales=None):
        raise AssertionError(scales)

    with pytest.raises(SystemExit, match="2"):
        _run(monkeypatch, main, "--scales", value, options=[("scales", cli.list_of(cli.non_negative_float))])
    assert f"got {value.split(',')[0]!r} in {value!r}" in capsys.readouterr().err


def test_a_long_value_is_shown_in_part(monkeypatch, capsys):
    """A message has one line, whatever was typed."""
    for kind in (cli.positive_int, cli.list_of(cli.positive_int)):
        with pytest.raises(SystemExit, match="2"):
            _run(monkeypatch, lambda *, n=1: n, "--n", "9" * 10_000, options=[("n", kind)])
        assert len(capsys.readouterr().err.splitlines()[-1]) < 300


def test_an_error_the_user_can_put_right_has_no_traceback(monkeypatch, capsys):
    """A TinydiffError goes to stderr within the terminal's width, paths and commands unbroken, with exit code 2."""
    monkeypatch.setenv("COLUMNS", "40")
    long = "/a-long/path-with-hyphens/" + 40 * "x"
    with pytest.raises(SystemExit, match="2"):
        _run(monkeypatch, _raises(TinydiffError(f"the file {long} {'is not right ' * 9}\none\ntwo")))
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: the file\n") and err.endswith("\none\ntwo\n")
    lines = err.splitlines()
    assert long in lines and all(len(line) <= 40 for line in lines if line != long)


def test_a_bug_keeps_its_traceback(monkeypatch):
    """Any other exception, a broken pipe that is not the output's too, leaves run as it came."""
    for error in (ValueError("x"), BrokenPipeError("a worker died")):
        with pytest.raises(type(error)) as found:
            _run(monkeypatch, _raises(error))
        assert found.value is error


def test_a_file_that_cannot_be_made_is_named_without_traceback(monkeypatch, capsys, tmp_path):
    """An OSError about a path is one line and exit code 2; one about no path is a bug like any other."""
    (tmp_path / "file").write_text("in the way")

    def make_folder():
        (tmp_path / "file" / "folder").mkdir()

    monkeypatch.setattr(sys, "argv", ["demo"])
    with pytest.raises(SystemExit) as end:
        cli.run(make_folder, cli.parser(None, make_folder))
    assert end.value.code == 2
    assert str(tmp_path / "file" / "folder") in capsys.readouterr().err

    def fail():
        raise OSError("no path here")

    with pytest.raises(OSError, match="no path here"):
        cli.run(fail, cli.parser(None, fail))


def test_ctrl_c_ends_with_130_and_one_line(monkeypatch, capsys):
    """KeyboardInterrupt: no traceback, one line, exit code 128 + 2."""
    with pytest.raises(SystemExit, match="130"):
        _run(monkeypatch, _raises(KeyboardInterrupt()))
    assert capsys.readouterr().err.split() == ["interrupted"]


_TALK = """
import sys
from tinydiff.app import choices, cli
from tinydiff.app.alone import Alone

lines = int(sys.argv.pop())

def main():
    for _ in range(lines):
        print("a line")

cli.run(main, cli.parser(None, main))
"""


@pytest.mark.skipif(os.name != "posix", reason="pipes that close")
@pytest.mark.parametrize(("unbuffered", "lines"), [("1", "1"), ("", "1"), ("", "100000")])
def test_a_reader_that_goes_away_is_no_error(unbuffered, lines):
    """`demo | head` ends with 141 and not a word on stderr, whether the pipe breaks in a print or at the last flush."""
    read, write = os.pipe()
    os.close(read)
    environment = {**os.environ, "PYTHONPATH": ROOT, "PYTHONUNBUFFERED": unbuffered}
    command = [sys.executable, "-c", _TALK, lines]
    child = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, env=environment)
    os.close(write)
    assert (child.returncode, child.stderr) == (141, b"")
