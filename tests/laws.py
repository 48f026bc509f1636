"""Run some laws of this suite on a copy of the package, and say of each what became of it.

    python tests/laws.py FOLDER LAW ...        FOLDER holds the package tinydiff that is to be tested

A law is a test's id below tests/, such as diffusion/test_gaussian.py::test_a_jump_is_two_jumps; its cases are told as
one.  What it prints is JSON: a list of laws as `run` returns it.  demos/exercise.py shows it to its reader.
"""

import contextlib
import io
import json
import os
import re
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
QUIET = ["-q", "--tb=no", "--no-header", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning"]


class Report:
    """A pytest plugin that keeps a dictionary for each law, in order, and passes over what it needs no more.

    law: its name.  says: its docstring's first paragraph, or its name in words.  passed: of all its cases.  Where one
    failed: error, the exception in a line or two; file, line and code, the last place of the copy or of the law that it
    came through; example, what hypothesis had drawn.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.laws: dict[str, dict] = {}

    def _of(self, item):
        name = item.originalname
        doc = (item.function.__doc__ or name.removeprefix("test_").replace("_", " ")).strip()
        says = " ".join(doc.split("\n\n")[0].split())
        return self.laws.setdefault(name, {"law": name, "says": says, "passed": True})

    def pytest_runtest_setup(self, item):
        if not self._of(item)["passed"]:
            pytest.skip("a case of it has failed")

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item, call):
        report = yield
        if report.failed:
            self._of(item).update(passed=False, **self._reason(call.excinfo))
        return report

    def pytest_collectreport(self, report):
        if report.failed:
            error = str(report.longrepr).strip().splitlines()[-1].removeprefix("E").strip()
            law = {"law": report.nodeid, "says": "The tests can be loaded.", "passed": False, "error": error}
            self.laws[report.nodeid] = law | {"file": None, "line": None, "code": "", "example": ""}

    def _reason(self, excinfo):
        error = excinfo.value
        within = [
            entry
            for entry in excinfo.traceback
            if {self.folder, TESTS} & set(Path(entry.path).parents) and not entry.name.startswith(("assert_", "same"))
        ]
        place = (within or excinfo.traceback)[-1]
        where = {"file": str(place.path), "line": place.lineno + 1, "code": str(place.statement).strip()}
        return {"error": in_short(error), **where, "example": example(getattr(error, "__notes__", []))}


def in_short(error: BaseException) -> str:
    """An exception as a line: of an assertion what is compared, and by how much it is off."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [*lines[:1], *(line for line in lines[1:] if line.startswith(("Mismatched", "Max absolute")))]
    name = [] if isinstance(error, AssertionError) else [f"{type(error).__name__}:"]
    return " ".join([*name, "; ".join(told)])


def example(notes: list[str]) -> str:
    """What hypothesis says of the case that failed, without what a reader cannot read."""
    text = "\n".join(notes)
    drawn = re.findall(r"^    (\w+)=(?!<|data\()(.*),$", text, re.MULTILINE)
    drawn += re.findall(r"^Draw \d+ \((\w+)\): (.*)$", text, re.MULTILINE)
    noted = re.findall(r"^T = .*$", text, re.MULTILINE)
    return ", ".join(noted + [f"{name} = {value}" for name, value in drawn])


def run(folder: str, laws: list[str], only_first: bool = False) -> list[dict]:
    """The laws in turn, in this process, which has not imported tinydiff yet; only_first: no more after a failure."""
    sys.path.insert(0, folder)
    os.environ["PYTHONPATH"] = folder  # for processes that a test starts
    import tinydiff

    if Path(tinydiff.__file__).parents[1] != Path(folder).resolve():
        raise RuntimeError(f"{tinydiff.__file__} would be tested in place of the copy in {folder}")
    report = Report(Path(folder).resolve())
    ids = [str(TESTS / law) for law in laws]
    place = [f"--rootdir={TESTS.parent}", "-c", str(TESTS.parent / "pyproject.toml")]
    with contextlib.redirect_stdout(io.StringIO()):
        status = pytest.main([*QUIET, *["-x"] * only_first, *place, *ids], [report])
    if status not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED) and not report.laws:
        raise RuntimeError(f"pytest ended with {status!r}: are the laws {laws} all there?")
    return list(report.laws.values())


if __name__ == "__main__":
    print(json.dumps(run(sys.argv[1], sys.argv[2:])))
