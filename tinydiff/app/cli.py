"""What all programs share: a parser that takes its defaults from main, option types with checks, and a clean end.

    def main(*, backend="numpy", precision=None, plain=False, steps=20_000):
        cli.start(backend, precision, plain=plain)
        ...

    if __name__ == "__main__":
        parser = cli.parser(__doc__, main)
        cli.add_backend(parser)
        parser.add_argument("--steps", type=cli.positive_int, help="how many batches to train on")
        cli.run(main, parser)

A default is written once, as a keyword default of main.  Importers, tests and the command line all use this default,
and --help shows it.  Read next: alone.py.
"""

import argparse
import contextlib
import inspect
import math
import os
import shutil
import sys
import textwrap
from collections.abc import Callable
from typing import Any

from tinydiff.app.alone import one_process
from tinydiff.app.archive import printable
from tinydiff.backend import TinydiffError, use_backend


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows the default of each option, except None and False, which mean that the option is off."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        off = action.default is None or action.default is False
        return action.help if off else super()._get_help_string(action)


def parser(description: str | None, main: Callable[..., Any]) -> argparse.ArgumentParser:
    """An argument parser.  Each option has the default of main's keyword argument of the same name.

    description: the text that --help shows, line by line as it is written, such as the docstring of the program.
    """
    new = argparse.ArgumentParser(description=description, formatter_class=_Help, allow_abbrev=False)
    parameters = inspect.signature(main).parameters.values()
    new.set_defaults(**{p.name: p.default for p in parameters if p.default is not p.empty})
    return new


def add_backend(to: argparse.ArgumentParser) -> None:
    """Add --backend, --precision and --plain, the options of every program that trains or draws."""
    precision = "of a GPU's matrix products: tf32 (its default) rounds each factor to 10 bits and is faster"
    to.add_argument("--backend", choices=["numpy", "cupy"], help="arrays on the CPU, or on an NVIDIA GPU")
    to.add_argument("--precision", choices=["float32", "tf32"], help=precision)
    to.add_argument("--plain", action="store_true", help="compute with the plain functions of the book: slower")


def add_parallel(to: Any) -> None:
    """Add --workers and --parallel to a parser, or to a group of a parser."""
    to.add_argument("--workers", type=positive_int, help="processes to share the work (default: all cores)")
    to.add_argument("--parallel", choices=["local", "mpi"], help="mpi: each rank that mpiexec started is a worker")


def start(backend: str, precision: str | None, parallel: str = "local", plain: bool = False) -> Any:
    """Choose the backend, print the name of the GPU if one is used, and return the ranks (see alone.Alone).

    main calls this function first.  Raises TinydiffError for a choice that cannot work on this machine.
    """
    ranks = None
    if parallel == "mpi" and plain:
        raise TinydiffError("--plain --parallel mpi: with --plain one process does all the work")
    if parallel == "mpi":
        from tinydiff.fast import mpi  # imported only for --parallel mpi

        ranks = mpi.world()
    use_backend(backend, precision, ranks.local_rank if ranks else 0, plain=plain)
    if backend != "numpy":
        from tinydiff.fast.device import describe

        print(describe())
    return ranks or one_process()


def run(main: Callable[..., Any], using: argparse.ArgumentParser) -> None:
    """Call main(**options) and end the program as a user expects.

    Exit code 2 and a message without a traceback: for a TinydiffError, for too little memory, and for a file that
    cannot be opened or created.  Exit code 130: after Ctrl-C.  Exit code 141 and no message: if the reader of the
    output has closed it (`| head`).  Any other exception is a bug and keeps its traceback.
    """
    options = vars(using.parse_args())
    if options.get("precision") == "tf32" and options["backend"] == "numpy":
        using.error("--precision tf32 needs --backend cupy: NumPy multiplies in float32")
    try:
        with contextlib.redirect_stdout(_Escaped(sys.stdout)):
            main(**options)
        sys.stdout.flush()  # if the reader has closed the output, the error comes here, not at exit
    except (TinydiffError, MemoryError) as error:  # on both backends one line describes the array that was too large
        width, message = shutil.get_terminal_size().columns, f"error: {escaped(str(error)) or 'out of memory'}"
        fill = textwrap.TextWrapper(width, break_long_words=False, break_on_hyphens=False).fill  # paths stay whole
        using.exit(2, "".join(fill(line) + "\n" for line in message.splitlines()))
    except KeyboardInterrupt:
        using.exit(130, "\ninterrupted\n")
    except BrokenPipeError:
        _end_if_nobody_reads()
        raise
    except OSError as error:
        if error.filename is None:  # the error is not about a file that the user named
            raise
        using.exit(2, f"error: {escaped(str(error.filename))}: {error.strerror}\n")


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


def escaped(text: str) -> str:
    """Lines of text for a terminal.  Names and paths may come from a stranger, so what is not printable is escaped."""
    return "\n".join(printable(line, 10_000) for line in text.split("\n"))


class _Escaped:
    """Standard output that escapes what it writes."""

    def __init__(self, stream: Any):
        self._stream = stream

    def write(self, text: str) -> int:
        return self._stream.write(escaped(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _number(text: str, kind: type, what: str, fits: Callable[[Any], bool]) -> Any:
    with contextlib.suppress(ValueError):
        if fits(value := kind(text)):
            return value
    raise argparse.ArgumentTypeError(f"must be {what}, got {text!r}")


def _end_if_nobody_reads() -> None:
    """Exit with code 141 (128 + SIGPIPE) if the broken pipe is standard output.  A worker's broken pipe is a bug."""
    try:
        print(flush=True)  # a flush alone would not raise again: the unwritten text is already dropped
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python prints an error at exit
        sys.exit(141)
