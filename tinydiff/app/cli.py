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
import inspect
import math
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Callable
from typing import Any

from tinydiff.app.alone import one_process
from tinydiff.backend import TinydiffError, describe, use_backend


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
    """Add --backend, --precision and --plain, the options that every program has."""
    to.add_argument("--backend", choices=["numpy", "cupy"], help="arrays on the CPU, or on an NVIDIA GPU")
    to.add_argument(
        "--precision",
        choices=["float32", "tf32"],
        help="of a GPU's matrix products: tf32 (its default) rounds each factor to 10 bits and is faster",
    )
    to.add_argument("--plain", action="store_true", help="compute with the functions of the book as they stand: slower")


def add_parallel(to: Any) -> None:
    """Add --workers and --parallel, to a parser or a group: the processes to share the work, of here or of MPI."""
    to.add_argument("--workers", type=positive_int, help="processes to share the work (default: all cores)")
    to.add_argument("--parallel", choices=["local", "mpi"], help="mpi: each rank that mpiexec started is a worker")


def start(backend: str, precision: str | None, parallel: str = "local", plain: bool = False) -> Any:
    """Choose the backend, as the first thing in main, say which GPU will work, and return who shares the work."""
    if parallel == "mpi" and plain:
        raise TinydiffError("--plain --parallel mpi: with --plain one process does all the work")
    if parallel == "mpi":
        from tinydiff.fast import mpi

        ranks = mpi.world()
        use_backend(backend, precision, ranks.local_rank)
    else:
        use_backend(backend, precision, plain=plain)
        ranks = one_process()
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
