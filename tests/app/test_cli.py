"""Every demo reads its options and ends in the same way: a clear message, the right exit code."""

import argparse
import contextlib
import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinydiff.app import choices, cli, outputs
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
    for arguments in ([], ["--precision=float32"], ["--backend=cupy", "--precision=bf16"], ["--backend=cupy"]):
        monkeypatch.setattr(sys, "argv", ["demo", *arguments])
        cli.run(main, parser)
    assert seen == [("numpy", None), ("numpy", "float32"), ("cupy", "bf16"), ("cupy", None)]
    for arguments, words in (
        (["--precision=tf32"], "needs --backend cupy"),
        (["--precision=bf16"], "needs --backend cupy"),
        (["--precision=half"], "choose from"),
    ):
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


STRANGE = "\x1b[31mred\x1b[2J\u202e\x07\r\udcff"
SHOWN = r"\x1b[31mred\x1b[2J\u202e\x07\r\udcff"


def test_what_comes_from_outside_is_printed_escaped(monkeypatch, capsys, tmp_path):
    """Names and paths cannot steer the terminal: neither in a message, nor in what a program prints, nor in a path."""

    def main():
        print(f"data: {STRANGE}", "größe", sep="\n")
        print(f"a bar's line {STRANGE}", end="", flush=True)
        raise TinydiffError(f"{STRANGE} is wrong\nmake it new")

    with pytest.raises(SystemExit, match="2"):
        _run(monkeypatch, main)
    out, err = capsys.readouterr()
    assert out == f"data: {SHOWN}\ngröße\na bar's line {SHOWN}"
    assert err == f"error: {SHOWN} is wrong\nmake it new\n"
    (tmp_path / "\x1b[1m").write_text("in the way")
    with pytest.raises(SystemExit, match="2"):
        _run(monkeypatch, (tmp_path / "\x1b[1m" / "folder").mkdir)
    assert r"\x1b[1m/folder: Not a directory" in " ".join(capsys.readouterr().err.split())
    before = sys.stdout
    with pytest.raises(SystemExit, match="2"):
        _run(monkeypatch, main)
    assert sys.stdout is before  # importers print as before


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


def test_a_name_without_end_is_shortened(monkeypatch, capsys):
    """A path of 100,000 letters, or such a number, does not fill the terminal: both ends of it are shown."""
    long = "/begin" + 100_000 * "x" + "end"
    for error in (TinydiffError(f"{long} does not exist"), OSError(36, "File name too long", long)):
        with pytest.raises(SystemExit, match="2"):
            _run(monkeypatch, _raises(error))
        err = capsys.readouterr().err
        assert len(err) < 600 and "/begin" in err and "xend" in err and (" exist" in err or "too long" in err)
    with pytest.raises(SystemExit, match="2"):
        _run(monkeypatch, lambda *, size=None: None, f"--size={long}", options=[("size", cli.positive_int)])
    assert len(capsys.readouterr().err) < 800


@pytest.mark.parametrize("error", [None, TinydiffError("x"), ValueError("x"), KeyboardInterrupt()])
def test_a_program_gives_its_folders_back(monkeypatch, tmp_path, error):
    """However main ends, another process may then write there."""

    def main():
        outputs.own_folder(tmp_path, "a.png")
        if error:
            raise error

    with pytest.raises((SystemExit, ValueError)) if error else contextlib.nullcontext():
        _run(monkeypatch, main)
    assert outputs._owned == {}


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


def _talk(redirection, lines="1", **environment):
    """(exit code, standard output, standard error) of the program above, started by a shell."""
    command = f'exec "$0" -c "$1" {lines} {redirection}'
    environment = {**os.environ, "PYTHONPATH": ROOT, **environment}
    child = subprocess.run(
        ["sh", "-c", command, sys.executable, _TALK], capture_output=True, text=True, env=environment
    )
    return child.returncode, child.stdout, child.stderr


@pytest.mark.skipif(os.name != "posix", reason="a shell's redirections")
@pytest.mark.parametrize("redirection", ["<&-", ">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_a_closed_stream_is_no_error(redirection):
    """The program does its work; what it says there is lost, and nothing else."""
    code, out, err = _talk(redirection)
    assert (code, err) == (0, "") and out == ("" if ">&-" in redirection.replace("2>&-", "") else "a line\n")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device that is always full")
@pytest.mark.parametrize("lines", ["1", "100000"])
def test_a_full_stream_is_named_on_the_other_one(lines):
    """A full disk under `> log` is found with the first line, not after the work: one sentence and exit code 2."""
    said = "error: standard output cannot be written: No space left on device"
    assert _talk(">/dev/full", lines) == (2, "", f"\n{said}\n")
    assert _talk(">/dev/full 2>/dev/full", lines) == (2, "", "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device that is always full")
def test_a_full_standard_error_is_named_on_standard_output(monkeypatch, capsys):
    """The progress bar cannot be drawn: one sentence on the stream that is left, exit code 2."""
    full = open("/dev/full", "w")  # noqa: SIM115
    monkeypatch.setattr(sys, "stderr", full)

    def main():
        print("a bar", file=sys.stderr, flush=True)

    with pytest.raises(SystemExit) as end:
        _run(monkeypatch, main)
    assert end.value.code == 2
    assert capsys.readouterr().out.split("\n", 1)[1].startswith("error: standard error cannot be written: No space")
    full.close()  # it leads to nowhere by now, or this would raise


@pytest.mark.skipif(os.name != "posix", reason="an encoding of the environment")
def test_a_letter_that_the_encoding_lacks_is_escaped(tmp_path):
    """A folder's name on a terminal of another alphabet: shown with an escape, in place of a UnicodeEncodeError."""
    script = _TALK.replace("a line", "z\N{LATIN SMALL LETTER A WITH DIAERESIS}h")
    environment = {**os.environ, "PYTHONPATH": ROOT, "PYTHONIOENCODING": "ascii"}
    child = subprocess.run([sys.executable, "-c", script, "1"], capture_output=True, env=environment)
    assert (child.returncode, child.stdout, child.stderr) == (0, b"z\\xe4h\n", b"")


@pytest.mark.skipif(os.name != "posix", reason="a folder that is in use cannot be removed elsewhere")
def test_a_folder_that_is_gone_is_said_at_once(tmp_path):
    """The current folder was removed: one sentence, exit code 2, before any work."""
    (tmp_path / "gone").mkdir()
    command = 'cd "$2" && rmdir "$2" && exec "$0" -c "$1" 1'
    words = ["sh", "-c", command, sys.executable, _TALK, str(tmp_path / "gone")]
    child = subprocess.run(words, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": ROOT})
    if "SystemError" in child.stderr and "numpy" in child.stderr:
        pytest.skip("NumPy cannot be imported in such a folder, as with Python 3.13.0")
    assert (child.returncode, child.stdout) == (2, "")
    assert " ".join(child.stderr.split()).startswith("error: the current folder does not exist any more")


def test_a_limit_of_the_system_is_no_bug(monkeypatch, capsys):
    """Too many open files, and others of that kind: a sentence that says where the limit is, and exit code 2."""
    for number in (errno.EMFILE, errno.EAGAIN, errno.EFBIG):
        with pytest.raises(SystemExit, match="2"):
            _run(monkeypatch, _raises(OSError(number, os.strerror(number))))
        err = " ".join(capsys.readouterr().err.split())
        assert os.strerror(number) in err and "(ulimit -a)" in err


def test_a_message_stays_readable_on_a_terminal_without_a_width(monkeypatch, capsys):
    """COLUMNS=1 does not make a column of words."""
    monkeypatch.setenv("COLUMNS", "1")
    with pytest.raises(SystemExit, match="2"):
        _run(monkeypatch, _raises(TinydiffError("a few words")))
    assert capsys.readouterr().err == "error: a few words\n"


_WAIT = """
import signal
import sys
import tempfile
from tinydiff.app import cli

def main():
    with tempfile.TemporaryDirectory(dir=folder):
        print("here", flush=True)
        signal.pause()

folder = sys.argv.pop()
cli.run(main, cli.parser(None, main))
"""


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_signal_ends_a_program_in_order_with_its_code(tmp_path, name):
    """What `finally` and temporary folders promise is done; the exit code is the shell's, and one line says why."""
    process = subprocess.Popen(
        [sys.executable, "-c", _WAIT, str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": ROOT},
        preexec_fn=lambda: signal.signal(getattr(signal, name), signal.SIG_DFL),
    )
    assert process.stdout.readline() == "here\n" and len(os.listdir(tmp_path)) == 1
    process.send_signal(getattr(signal, name))
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (128 + getattr(signal, name), f"ended by {name}\n")
    assert os.listdir(tmp_path) == []


def test_a_command_can_be_typed_as_it_is_shown(tmp_path, monkeypatch):
    """Paths from the current folder, quoted for a shell; the program's own command with words that it lacks."""
    monkeypatch.chdir(tmp_path)
    assert cli.command(tmp_path / "demos" / "sample.py", "a b/c.npz", 3) == "python demos/sample.py 'a b/c.npz' 3"
    assert cli.command("/elsewhere/sample.py") == "python /elsewhere/sample.py"
    monkeypatch.setattr(sys, "argv", ["demos/train.py", "--out", "x y"])
    assert cli.again("--resume") == "python demos/train.py --out 'x y' --resume"
    monkeypatch.setattr(sys, "argv", ["demos/train.py", "--resume"])
    assert cli.again("--resume") == "python demos/train.py --resume"


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_ctrl_c_while_modules_are_imported_is_one_word():
    """Other errors keep their traceback; the process ends by the signal, which a shell shows as 130."""
    script = "import signal, sys\nfrom tinydiff.app import cli\n"
    for what, code, said in (("signal.raise_signal(2)", -2, "\ninterrupted\n"), ("1 / 0", 1, "Traceback")):
        child = subprocess.run(
            [sys.executable, "-c", script + what],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": ROOT},
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        assert child.returncode == code and child.stderr.startswith(said)
        assert (child.stderr == said) == (code == -2)
