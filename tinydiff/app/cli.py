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
and --help shows it as a user would type it.  Read next: options.py.
"""

import argparse
import contextlib
import errno
import inspect
import os
import re
import shlex
import shutil
import sys
import textwrap
from collections.abc import Callable
from typing import Any, NoReturn

from tinydiff.app import streams
from tinydiff.app.alone import one_process
from tinydiff.app.archive import printable
from tinydiff.app.options import (  # noqa: F401  (programs write cli.positive_int)
    as_typed,
    below_1,
    counted,
    list_of,
    non_negative_float,
    non_negative_int,
    positive_float,
    positive_int,
    up_to_a_million,
    whole,
)
from tinydiff.app.outputs import release
from tinydiff.app.signals import Stopped, ending_in_order
from tinydiff.backend import TinydiffError, use_backend

# Too many open files, processes or bytes in a file; no room on a disk or in memory.
LIMITS = {errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.EFBIG, errno.ENOSPC, errno.EDQUOT, errno.ENOMEM}


def _excepthook(kind: type[BaseException], *error: Any) -> None:
    """Ctrl-C while a program still imports its modules, before `run`: one word in place of a traceback."""
    if issubclass(kind, KeyboardInterrupt):
        print("\ninterrupted", file=sys.stderr)
    else:
        sys.__excepthook__(kind, *error)


sys.excepthook = _excepthook

HIDDEN = argparse.SUPPRESS  # the help text of an earlier name of an option, which --help does not show
_NEGATIVE = re.compile(r"-(\d|\.\d|inf|nan).*")  # a value such as -1, not an option


class _Help(argparse.HelpFormatter):
    """Shows the default of each option, except None and False, which mean that the option is off.

    The paragraphs of the description fill the width of the terminal.  Those with indented lines stay as they are.
    """

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if any(action.default is off for off in (None, False, argparse.SUPPRESS)):
            return action.help
        return f"{action.help} (default: {as_typed(action.default).replace('%', '%%')})"

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = text.strip().split("\n\n")
        return "\n\n".join(p if re.search("^ ", p, re.MULTILINE) else _filled(p, width) for p in paragraphs)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        loose = re.match(r"unrecognized arguments: [\d.]+", message)  # --steps 5 10
        super().error(f"{message}; a list is written with commas, such as 5,10" if loose else message)


def parser(description: str | None, main: Callable[..., Any]) -> argparse.ArgumentParser:
    """An argument parser.  Each option has the default of main's keyword argument of the same name.

    description: the text that --help shows, such as the docstring of the program.
    """
    new = _Parser(description=description, formatter_class=_Help, allow_abbrev=False)
    new._negative_number_matcher = _NEGATIVE  # argparse itself takes -1 for a value, but -1,2 and -inf for options
    new.set_defaults(**defaults(main))
    return new


def defaults(function: Callable[..., Any]) -> dict[str, Any]:
    """The default of each argument of a function that has one."""
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def add_backend(to: argparse.ArgumentParser) -> None:
    """Add --backend, --precision and --plain, the options of every program that trains or draws."""
    precision = "of matrix products: tf32 rounds each factor to 10 bits, bf16 to 7 (default: tf32 on a GPU)"
    to.add_argument("--backend", choices=["numpy", "cupy"], help="arrays on the CPU, or on an NVIDIA GPU")
    to.add_argument("--precision", choices=["float32", "tf32", "bf16"], help=precision)
    to.add_argument("--plain", action="store_true", help="compute with the plain functions of the book: slower")


def add_data_dir(to: Any) -> None:
    """Add --data-dir to a parser, or to a group of a parser."""
    where = "(default: $TINYDIFF_DATA, or the user's cache folder)"
    to.add_argument("--data-dir", metavar="DIR", help=f"folder with the files of the data set {where}")


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

    Exit code 2 and a message without a traceback: for a TinydiffError, for too little memory, for a file that cannot be
    opened or created, for a limit of the system, and for a stream that cannot be written.  Exit code 130: after Ctrl-C.
    143 and 129: after SIGTERM and SIGHUP.  141 and no message: if the reader of the output has closed it (`| head`).
    Any other exception is a bug and keeps its traceback.
    """
    streams.prepare()
    try:
        options = vars(using.parse_args())
        if (precision := options.get("precision")) in ("tf32", "bf16") and options["backend"] == "numpy":
            using.error(f"--precision {precision} needs --backend cupy: NumPy multiplies in float32")
        _check_folder()
        # mpiexec ends its ranks by SIGTERM, and leaves them no time for an orderly end.
        with contextlib.nullcontext() if options.get("parallel") == "mpi" else ending_in_order():
            with contextlib.redirect_stdout(_Escaped(sys.stdout)):
                main(**options)
            sys.stdout.flush()  # if the reader has closed the output, the error comes here, not at exit
    except (TinydiffError, MemoryError) as error:  # on both backends one line describes the array that was too large
        _fail(using, str(error) or "out of memory")
    except KeyboardInterrupt:
        using.exit(130, "\ninterrupted\n")
    except Stopped as stopped:
        using.exit(stopped.code, stopped.message)
    except OSError as error:
        if error.filename is not None:  # the error is about a file that the user named
            _fail(using, f"{error.filename}: {error.strerror}")
        if failed := streams.broken():
            _end_without(*failed)
        if error.errno not in LIMITS:
            raise
        _fail(using, f"{error.strerror}: a limit of this machine or of this shell (ulimit -a) is too low")
    finally:
        release()


def _short(text: str) -> str:
    """The text with the middle of very long words left out: a name may have 100,000 letters."""
    return re.sub(r"\S{1000,}", lambda word: f"{word[0][:200]} ... {word[0][-200:]}", text)


def _check_folder() -> None:
    try:
        os.getcwd()
    except FileNotFoundError:
        raise TinydiffError("the current folder does not exist any more: change to another one (cd)") from None


def _fail(using: argparse.ArgumentParser, message: str) -> NoReturn:
    """Print the message within the terminal's width, and exit with code 2."""
    width = max(40, shutil.get_terminal_size().columns)
    lines = f"error: {escaped(_short(message))}".splitlines()
    using.exit(2, "".join(_filled(line, width) + "\n" for line in lines))


def command(program: str | os.PathLike, *words: Any) -> str:
    """What to type to start a program: its path from the current folder, and its words, quoted for a shell."""
    path = os.path.relpath(program)
    return shlex.join(["python", str(program) if path.startswith("..") else path, *map(str, words)])


def again(*more: str) -> str:
    """What to type to start this program as it was started, with further words."""
    program, *words = sys.argv
    return command(program, *words, *(word for word in more if word not in words))


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


def _filled(text: str, width: int) -> str:
    """The text in lines of at most `width` characters.  A longer word, such as a path, stays whole."""
    return textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False)


def _end_without(name: str, error: OSError) -> NoReturn:
    """Exit because a standard stream cannot be written.  The message goes to the other stream."""
    if isinstance(error, BrokenPipeError):
        sys.exit(141)  # 128 + SIGPIPE
    for stream in (sys.stdout, sys.stderr):
        print(f"error: {name} cannot be written: {error.strerror}", file=stream)
    sys.exit(2)
