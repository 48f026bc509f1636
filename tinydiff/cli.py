"""What the demos share: a parser that takes its defaults from main, checked option types, a clean end.

    def main(*, backend="numpy", steps=20_000): ...

    if __name__ == "__main__":
        parser = cli.parser(__doc__, main)
        cli.add_backend(parser)
        parser.add_argument("--steps", type=cli.positive_int, help="how many batches to train on")
        cli.run(main, parser)

A default is written once, in main, where it serves importers and tests too; `--help` shows it.
Read next: demos/train_mnist.py.
"""

import argparse
import contextlib
import csv
import inspect
import io
import math
import os
import re
import shutil
import signal
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from tqdm import tqdm

from tinydiff.backend import TinydiffError, describe, use_backend
from tinydiff.checkpoint import atomic_write
from tinydiff.parallel import ALONE, Ranks, mpi


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Show a default only where it says something: not for a switch, nor for an option that is off."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        silent = action.default is None or action.default is False
        return action.help if silent else super()._get_help_string(action)


def parser(description: str | None, main: Callable[..., Any]) -> argparse.ArgumentParser:
    """An argument parser whose options take their defaults from the keyword defaults of `main`, by name.

    description: shown by --help as it is, such as the demo's docstring.
    """
    made = argparse.ArgumentParser(description=description, formatter_class=_Help, allow_abbrev=False)
    parameters = inspect.signature(main).parameters.values()
    made.set_defaults(**{p.name: p.default for p in parameters if p.default is not p.empty})
    return made


def add_backend(to: argparse.ArgumentParser) -> None:
    """Add --backend and --precision, the options that every demo has."""
    to.add_argument("--backend", choices=["numpy", "cupy"], help="arrays on the CPU, or on an NVIDIA GPU")
    to.add_argument(
        "--precision",
        choices=["float32", "tf32"],
        help="of a GPU's matrix products: tf32 (its default) rounds each factor to 10 bits and is faster",
    )


def add_parallel(to: Any) -> None:
    """Add --workers and --parallel, to a parser or a group: the processes to share the work, of here or of MPI."""
    to.add_argument("--workers", type=positive_int, help="processes to share the work (default: all cores)")
    to.add_argument("--parallel", choices=["local", "mpi"], help="mpi: each rank that mpiexec started is a worker")


def start(backend: str, precision: str | None, parallel: str = "local") -> Ranks:
    """Choose the backend, as the first thing in main, say which GPU will work, and return who shares the work."""
    ranks = mpi.world() if parallel == "mpi" else ALONE
    use_backend(backend, precision, ranks.local_rank)
    if backend != "numpy":
        print(describe())
    return ranks


def run(main: Callable[..., Any], using: argparse.ArgumentParser) -> None:
    """Call main(**options) and end the program as a user expects.

    A TinydiffError, a lack of memory, or a file that cannot be opened or made, is printed without traceback, exit code
    2; Ctrl-C gives 130; a reader of the output who has gone away (`| head`) gives 141 in silence.  Any other exception
    is a bug and keeps its traceback.
    """
    options = vars(using.parse_args())
    if options.get("precision") == "tf32" and options["backend"] == "numpy":
        using.error("--precision tf32 needs --backend cupy: NumPy multiplies in float32")
    try:
        main(**options)
        sys.stdout.flush()  # a reader gone away shows here, not after the end
    except (TinydiffError, MemoryError) as error:  # arrays of either backend say in a line what they lack memory for
        width, said = shutil.get_terminal_size().columns, str(error) or "out of memory"
        for line in f"error: {said}".splitlines():  # a path or a command to copy stays in one piece
            print(textwrap.fill(line, width, break_long_words=False, break_on_hyphens=False), file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        _end_if_nobody_reads()
        raise
    except OSError as error:
        if error.filename is None:  # not about a file that the user named
            raise
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
        sys.exit(2)


def positive_int(text: str) -> int:
    """Option type: an integer of at least 1."""
    return _number(text, int, "a whole number of at least 1", lambda n: n >= 1)


def non_negative_int(text: str) -> int:
    """Option type: an integer of at least 0."""
    return _number(text, int, "a whole number of at least 0", lambda n: n >= 0)


def positive_float(text: str) -> float:
    """Option type: a finite number above 0."""
    return _number(text, float, "a number above 0", lambda x: 0 < x < math.inf)


def non_negative_float(text: str) -> float:
    """Option type: a finite number of at least 0."""
    return _number(text, float, "a number of at least 0", lambda x: 0 <= x < math.inf)


def labels(text: str) -> tuple[int, ...]:
    """Option type: digits 0..9 and ranges of them, separated by commas, in the order given: "7", "0-9", "3,3,7-9"."""
    chosen: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*([0-9])\s*(?:-\s*([0-9])\s*)?", part)
        if not match or (match[2] and match[2] < match[1]):
            raise argparse.ArgumentTypeError(f"must be digits or rising ranges such as 7, 0-9 or 1,3,5-7, got {text!r}")
        chosen += range(int(match[1]), int(match[2] or match[1]) + 1)
    return tuple(chosen)


@dataclass
class Stop:
    """Whether a signal has asked the program to stop, and which: "" until then, then "SIGINT" or "SIGTERM"."""

    requested: bool = False
    signal: str = ""


@contextlib.contextmanager
def stop_signals(at_once: Callable[[], Any] | None = None) -> Iterator[Stop]:
    """Turn the first Ctrl-C (SIGINT) or SIGTERM into `stop.requested`, so that a loop can end its step and save.

        with stop_signals() as stop:
            for state in train(...):
                if stop.requested: break

    A second signal does what it did before (Ctrl-C raises KeyboardInterrupt); leaving the block restores that too.  A
    signal that the caller ignores (nohup) stays ignored.  Outside the main thread nothing is caught.
    at_once(): what the handler itself does, in the middle of whatever runs.
    """
    stop = Stop()
    before: dict[int, Any] = {}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def request(number: int, frame: FrameType | None) -> None:
        stop.requested, stop.signal = True, signal.Signals(number).name
        restore()
        if at_once is not None:
            at_once()

    try:
        if threading.current_thread() is threading.main_thread():
            for number in (getattr(signal, name, None) for name in ("SIGINT", "SIGTERM")):  # Windows may lack one
                if number is not None and signal.getsignal(number) not in (None, signal.SIG_IGN):
                    before[number] = signal.getsignal(number)
                    signal.signal(number, request)
        yield stop
    finally:
        restore()


def progress(losses: Iterator[float], num_steps: int, batch_size: int, name: str = "") -> Iterator[float]:
    """Pass on what train.fit yields, under a bar that shows images, rate, time left and the loss, a running mean."""
    with tqdm(total=num_steps * batch_size, unit="img", desc=name or None, dynamic_ncols=True) as bar:
        smooth = 0.0
        for step, loss in enumerate(losses):
            smooth += (loss - smooth) / min(step + 1, 50)
            bar.set_postfix_str(f"step {step + 1}, loss {smooth:.4g}", refresh=False)
            bar.update(batch_size)
            yield loss


def write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    """Print rows of one set of keys as a table, and write them as .csv, or as Markdown where the path ends in .md."""
    widths = {key: max(len(key), *(len(str(row[key])) for row in rows)) for key in rows[0]}
    for row in [{key: key for key in rows[0]}, *rows]:
        print("  ".join(f"{row[key]!s:>{width}}" for key, width in widths.items()))
    text = io.StringIO()
    if path.suffix == ".md":
        for cells in (rows[0], ["---"] * len(rows[0]), *(row.values() for row in rows)):
            text.write("| " + " | ".join(map(str, cells)) + " |\n")
    else:
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    with atomic_write(path) as file:
        file.write(text.getvalue().encode())


def _number(text: str, kind: type, what: str, fits: Callable[[Any], bool]) -> Any:
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not fits(value):
        raise argparse.ArgumentTypeError(f"must be {what}, got {text!r}")
    return value


def _end_if_nobody_reads() -> None:
    """Exit with 141 (128 + SIGPIPE) if standard output is what broke; a worker's broken pipe is a bug to be shown."""
    try:
        print(flush=True)  # a flush alone does not tell: what could not be written is dropped by now
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains when it flushes at exit
        sys.exit(141)
