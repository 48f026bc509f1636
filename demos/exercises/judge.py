"""Judge a working copy: the small case of its exercise, then its laws.

exercise.py calls main in a new process, which has imported no other tinydiff.  The last line of the output is JSON: a
list of results in the form of tests/laws.py, the small case first.  There `rounding` is True if the case is right but
for its last digits, and `printed` is what the reader's code has printed.
Read next: ../../tests/laws.py.
"""

import contextlib
import io
import json
import sys
import traceback
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2] / "tests"))

import laws

SECONDS = 10  # of a processor; a small case takes a fraction of one


def small_case(folder, name):
    """The result of the small case of an exercise: what is wrong in the first value that is, or what was raised."""
    result = {"law": "a small case", "name": "a small case", "text": "", "cases": 1, "passed": True, "error": ""}
    result |= {"places": [], "example": "", "rounding": False, "loaded": False}
    with contextlib.redirect_stdout(io.StringIO()) as printed, laws.limited(SECONDS):
        try:
            laws.load(folder)
            result["loaded"] = True
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
        except (Exception, SystemExit, laws.Endless) as error:
            places = [
                {"file": entry.filename, "line": entry.lineno, "code": entry.line, "function": entry.name}
                for entry in traceback.extract_tb(error.__traceback__)[-50:]
                if str(Path(folder).resolve()) in entry.filename
            ]
            result |= {"passed": False, "error": laws.in_short(error), "places": places}
    return result | {"printed": printed.getvalue()[:2000]}


def main(folder, name, *names):
    """Print the results of the small case of an exercise and of the laws of these names.

    A case that shows what is still to be written, a loop that never ends, or a copy that cannot be imported, is the
    only result.
    """
    small = small_case(folder, name)
    if small["error"].startswith("stopped after ") or "your turn: " in small["error"] or not small["loaded"]:
        rest = []
    else:
        rest = laws.run(folder, list(names), smallest=small["passed"])
    print(json.dumps([small, *rest]))
