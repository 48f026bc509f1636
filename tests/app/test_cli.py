"""Every demo reads its options and ends in the same way: a clear message, the right exit code, no lost signal."""

import argparse
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinydiff import cli
from tinydiff.backend import TinydiffError
from tinydiff.cli import stop_signals

pytestmark = pytest.mark.program

ROOT = str(Path(cli.__file__).parents[1])


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

    def main(*, backend="numpy", precision=None):
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

    def main(*, backend="numpy", precision=None):
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


def test_a_demo_on_a_gpu_begins_by_naming_it(monkeypatch, capsys):
    """start passes both choices on; one line on a GPU, none on NumPy."""
    chosen = []
    monkeypatch.setattr(cli, "use_backend", lambda *choice: chosen.append(choice))
    monkeypatch.setattr(cli, "describe", lambda: "a GPU")
    cli.start("numpy", None)
    assert capsys.readouterr().out == ""
    cli.start("cupy", "tf32")
    assert capsys.readouterr().out == "a GPU\n"
    assert chosen == [("numpy", None, 0), ("cupy", "tf32", 0)]


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
        (cli.positive_int, {"1": 1, "20_000": 20000}, ["0", "-1", "1.0", "1e3", "", "ten"]),
        (cli.non_negative_int, {"0": 0, "7": 7}, ["-1", "0.5", "nan"]),
        (cli.positive_float, {"1e-3": 1e-3, "2": 2.0}, ["0", "-1", "nan", "inf", "1e999", "x"]),
        (cli.non_negative_float, {"0": 0.0, "2.5": 2.5}, ["-0.1", "nan", "inf"]),
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
    assert cli.labels(text) == tuple(i for a, b in ranges for i in range(a, b + 1))


@pytest.mark.parametrize("text", ["", "10", "-1", "9-0", "1,,2", "a", "0-", "3;4", "1.0", "\N{ARABIC-INDIC DIGIT ONE}"])
def test_labels_that_are_no_digits_are_refused(text):
    """Anything else is refused with the rule and the value."""
    with pytest.raises(argparse.ArgumentTypeError) as error:
        cli.labels(text)
    assert "0-9" in str(error.value) and repr(text) in str(error.value)


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
from tinydiff import cli

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


@pytest.fixture
def handlers():
    """Python's own handlers during the test, whatever pytest was born with: a background job ignores SIGINT."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    for number, handler in usual.items():
        signal.signal(number, handler)
    yield usual
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_the_first_signal_sets_the_flag_and_the_second_acts(handlers, name):
    """One signal: only `stop` changes.  A second one, of either kind, does what it did before the block."""
    seen = []
    for number in handlers:
        signal.signal(number, lambda number, frame: seen.append(number))
    with stop_signals() as stop:
        assert (stop.requested, stop.signal) == (False, "")
        signal.raise_signal(getattr(signal, name))
        assert (stop.requested, stop.signal) == (True, name) and seen == []
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        assert seen == [signal.SIGINT, signal.SIGTERM] and stop.signal == name


def test_a_second_ctrl_c_is_a_keyboard_interrupt(handlers):
    """With Python's own handler in place, impatience works: the second Ctrl-C raises KeyboardInterrupt."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with pytest.raises(KeyboardInterrupt), stop_signals():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("error", [None, ValueError])
def test_the_handlers_are_restored_at_the_end(handlers, error):
    """After the block, left normally or by an exception, both handlers are what they were."""
    try:
        with stop_signals():
            assert all(signal.getsignal(number) is not handler for number, handler in handlers.items())
            if error:
                raise error
    except ValueError:
        pass
    assert {number: signal.getsignal(number) for number in handlers} == handlers


def test_an_ignored_signal_stays_ignored(handlers):
    """Under nohup or in the background SIGINT is ignored by the caller's wish: it stays so; SIGTERM is caught."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with stop_signals() as stop:
        signal.raise_signal(signal.SIGINT)
        assert not stop.requested and signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) is not handlers[signal.SIGTERM]


def test_outside_the_main_thread_no_handler_is_touched(handlers):
    """Python allows handlers in the main thread only; elsewhere the block works and the flag stays down."""
    found = []

    def work():
        with stop_signals() as stop:
            found.append(stop.requested)
            found.append({number: signal.getsignal(number) for number in handlers} == handlers)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [False, True]


def test_a_system_without_sigterm_still_stops_on_ctrl_c(handlers, monkeypatch):
    """Where the signal module has no SIGTERM, SIGINT alone is caught."""
    monkeypatch.delattr(signal, "SIGTERM")
    with stop_signals() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.signal == "SIGINT"


def test_a_table_is_printed_and_written_by_its_suffix(tmp_path, capsys):
    """As .csv, or as the rows of a Markdown table; every cell is in each."""
    rows = [{"name": "a", "value": 1.5}, {"name": "long", "value": ""}]
    cli.write_table(tmp_path / "t.csv", rows)
    cli.write_table(tmp_path / "t.md", rows)
    assert (tmp_path / "t.csv").read_text() == "name,value\na,1.5\nlong,\n"
    assert (tmp_path / "t.md").read_text() == "| name | value |\n| --- | --- |\n| a | 1.5 |\n| long |  |\n"
    assert capsys.readouterr().out == 2 * "name  value\n   a    1.5\nlong       \n"


def test_progress_passes_losses_on_and_shows_them(capsys):
    """What comes out is what went in, each when it is there; the bar counts images and shows the mean loss."""
    made = []

    def losses():
        for loss in (3.0, 1.0):
            made.append(loss)
            yield loss

    bar = cli.progress(losses(), 2, 32, "net")
    assert next(bar) == 3.0 and made == [3.0]
    assert list(bar) == [1.0]
    shown = capsys.readouterr().err
    assert "net" in shown and "64/64" in shown and "step 2, loss 2" in shown
