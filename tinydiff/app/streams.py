"""Standard streams as programs need them: open, written line by line, and with an escape for each foreign letter.

A stream may be closed (`>&-`), full (`> /dev/full`), without a reader (`| head`), or of an encoding that lacks a letter
of a file's name.

Read next: outputs.py.
"""

import os
import sys


def prepare() -> None:
    """Open each closed stream to nowhere, write whole lines at once, and escape letters that the encoding lacks."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            nowhere = os.open(os.devnull, os.O_RDWR)  # the lowest free number, which is that of the closed stream
            os.set_inheritable(nowhere, True)
            setattr(sys, name, os.fdopen(nowhere, mode))
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a notebook's and a test's streams have no such method
            errors = "backslashreplace" if stream.errors == "strict" else stream.errors
            stream.reconfigure(errors=errors, line_buffering=True)


def broken() -> tuple[str, OSError] | None:
    """The name of the first stream that cannot be written, with its error.  Such a stream then leads to nowhere."""
    found = None
    for name, stream in (("standard output", sys.stdout), ("standard error", sys.stderr)):
        try:
            print(file=stream, flush=True)  # a flush alone would not raise again: the unwritten text is already dropped
        except OSError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # else Python prints an error at exit
            found = found or (name, error)
            if isinstance(error, BrokenPipeError):
                break  # nothing will be said on the other stream
    return found
