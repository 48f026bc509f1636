"""Judge a working copy: the small case of its exercise, then its laws.

exercise.py calls main in a new process, which has imported no other tinydiff.  The last line of the output is JSON: a
list of results in the form of tests/laws.py, the small case first.  There `rounding` is True if the case is right but
for its last digits, and `printed` is what the reader's code has printed.
Read next: ../../tests/laws.py.
"""

import contextlib
import io
import json
import signal
import sys
import traceback
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2] / "tests"))

import laws

SECONDS = 10  # a small case takes a fraction of a second


def small_case(folder, name):
    """The result of the small case of an exercise: what is wrong in the first value that is, or what was raised."""
    result = {"law": "a small case", "name": "a small case", "text": "", "cases": 1, "passed": True, "error": ""}
    result |= {"places": [], "example": "", "rounding": False}
    with contextlib.redirect_stdout(io.StringIO()) as printed, limited():
        try:
            laws.load(folder)
            from cases import first_wrong
            from verdicts import Wrong

            from tinydiff import train  # noqa: F401  (and with it every file of the book)
            from tinydiff.backend import use_backend

            use_backend("numpy", "float32", plain=True)
            try:
                found = first_wrong(name, lambda file: sys.modules["tinydiff." + file.replace("/", ".")])
            except Wrong as wrong:
                result |= {"passed": False, "error": str(wrong)}
            else:
                if found:
                    case, verdict = found
                    result |= {"passed": False, "text": case, "error": verdict.sentence}
                    result["rounding"] = bool(verdict.rounding)
        except Exception as error:
            places = [
                {"file": entry.filename, "line": entry.lineno, "code": entry.line, "function": entry.name}
                for entry in traceback.extract_tb(error.__traceback__)[-50:]
                if str(Path(folder).resolve()) in entry.filename
            ]
            result |= {"passed": False, "error": laws.in_short(error), "places": places}
    return result | {"printed": printed.getvalue()[:2000]}


@contextlib.contextmanager
def limited():
    """TimeoutError, at the line where it is, if the block takes longer than SECONDS; Windows has no such alarm."""

    def stop(*_):
        raise TimeoutError(f"stopped after {SECONDS} s: is there a loop that never ends?")

    if hasattr(signal, "setitimer"):
        signal.signal(signal.SIGALRM, stop)
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 0)


def main(folder, name, *names):
    """Print the results of the small case of an exercise and of the laws of these names.

    A case that shows what is still to be written, or a loop that never ends, is the only result.
    """
    small = small_case(folder, name)
    if small["error"].startswith("TimeoutError") or "your turn: " in small["error"]:
        rest = []
    else:
        rest = laws.run(folder, list(names), smallest=small["passed"])
    print(json.dumps([small, *rest]))
