"""Run some laws of this suite on a copy of the package, and print the result of each.

    python tests/laws.py FOLDER LAW ...        FOLDER contains the package tinydiff that is to be tested

A law is a test's id below tests/, such as diffusion/test_gaussian.py::test_a_jump_is_two_jumps.  The cases of a law are
reported as one.  The output is JSON: a list of laws as `run` returns it.  demos/exercises/exercise.py shows it to the
reader.  The laws run with --plain: they judge the functions of the book, and no faster form may take their place.
"""

import contextlib
import io
import json
import os
import re
import signal
import sys
from pathlib import Path

import pytest
from hypothesis.internal.conjecture import engine

TESTS = Path(__file__).resolve().parent
SECONDS = 2
ROUNDING = 1e-7  # a relative difference below it is one of digits
QUIET = ["-q", "--tb=no", "--no-header", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning"]


class Endless(BaseException):
    """A law, or a small case, is stopped.  Not an Exception: hypothesis would run the example again."""


@contextlib.contextmanager
def limited(seconds):
    """Raise Endless, at the line where it is, if the block takes more seconds of the processor.  Not on Windows, which
    has no such clock."""

    def stop(_, frame):
        if frame.f_lineno is None:  # between two lines, which no traceback can show: a moment later
            signal.setitimer(signal.ITIMER_PROF, 0.001)
            return
        raise Endless(f"stopped after {seconds:g} s: is there a loop that never ends?")

    if hasattr(signal, "ITIMER_PROF"):
        signal.signal(signal.SIGPROF, stop)
        signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        if hasattr(signal, "ITIMER_PROF"):
            signal.setitimer(signal.ITIMER_PROF, 0)


class Report:
    """A pytest plugin that keeps a dictionary for each law, in order, and skips a law's cases after the first failure.

    law: its id.  name: in words.  text: its docstring's first paragraph.  cases: how many were run.  passed: all of
    them.  If one failed: error, what was wrong; places in the law and in the copy that the error passed (file, line,
    code, function); example, the case.
    fast: names in the table FAST while a law ran.
    """

    def __init__(self, folder: Path, ids: list[str], seconds: float):
        self.folder, self.ids, self.seconds = folder, ids, seconds
        self.laws: dict[str, dict] = {}
        self.fast: set[str] = set()

    def _of(self, item):
        case = item.nodeid.removeprefix(f"{TESTS.name}/")
        law = case if case in self.ids else case.partition("[")[0]
        name = item.originalname.removeprefix("test_").replace("_", " ")
        only = f" [{item.callspec.id}]" if "[" in law else ""
        text = " ".join(item.function.__doc__.split("\n\n")[0].split())
        return self.laws.setdefault(law, {"law": law, "name": name + only, "text": text, "cases": 0, "passed": True})

    def pytest_runtest_setup(self, item):
        if not self._of(item)["passed"]:
            pytest.skip("an earlier case has failed")

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item):
        from tinydiff.backend import FAST

        self._of(item)["cases"] += 1
        self.fast |= set(FAST)
        try:
            with limited(self.seconds):
                return (yield)
        except Endless:
            item.session.shouldstop = "a law does not end"
            raise

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item, call):
        report = yield
        if report.failed:
            self._of(item).update(passed=False, **self._reason(item, call.excinfo))
        return report

    def pytest_collectreport(self, report):
        if report.failed:
            error = str(report.longrepr).strip().splitlines()[-1].removeprefix("E").strip()
            law = {
                "law": report.nodeid,
                "name": f"{report.nodeid} can be loaded",
                "text": "",
                "cases": 0,
                "passed": False,
            }
            self.laws[report.nodeid] = law | {"error": error, "places": [], "example": ""}

    def _reason(self, item, excinfo):
        places = [
            {"file": str(entry.path), "line": entry.lineno + 1, "code": " ".join(str(entry.statement).split())}
            | {"function": entry.name}
            for entry in excinfo.traceback[-50:]  # the last ones are enough for a recursion without an end
            if {self.folder, TESTS} & set(Path(entry.path).parents) and Path(entry.path) != Path(__file__)
            if not entry.name.startswith(("assert_", "same"))
        ]
        given = getattr(item, "callspec", None)
        case = example(given.params if given else {}, "\n".join(getattr(excinfo.value, "__notes__", [])))
        return {"error": in_short(excinfo.value), "places": places, "example": case}


def in_short(error: BaseException) -> str:
    """An exception as one line.  For an assertion: what does not hold, and by how much."""
    text = " ".join(str(error).split())
    if isinstance(error, Endless):
        return text
    if not isinstance(error, AssertionError):
        return f"{type(error).__name__}: {text}"
    if shapes := re.search(r"\(shapes (.*?) mismatch\)", text):
        return f"the shapes are not the same: {shapes[1]}"
    if place := re.search(r"\b(nan|[+-]?inf) location mismatch", text):
        name = {"nan": "NaN"}.get(place[1], "infinity")
        return f"there is {name} where a number should be, or a number where {name} should be"
    if kinds := re.match(r"assert dtype\('(\w+)'\) == (?:dtype\(')?[\w.<> ']*?(\w+)'", text):
        return f"the dtype is {kinds[1]}, and should be {kinds[2]}"
    if wrong := re.search(r"Mismatched elements: (\d+) / (\d+)", text):
        by = re.search(r"Max absolute difference[^:]*: ([\w.+-]+)", text)
        share = re.search(r"Max relative difference[^:]*: ([\w.+-]+)", text)
        if share and float(share[1]) < ROUNDING:
            off = f"off by up to {float(share[1]):.0e} of their value: keep more digits on the way, and round last"
            return f"{wrong[1]} of {wrong[2]} numbers are right only up to rounding, {off}"
        return f"{wrong[1]} of {wrong[2]} numbers are wrong" + (f", by up to {float(by[1]):.3g}" if by else "")
    first = (text and str(error).strip().splitlines()[0]).removeprefix("assert ")
    claim = re.sub(r"np\.\w+\(([^()]*)\)", r"\1", first)
    return "this does not hold" if claim in ("", "np.False_") else f"{claim} does not hold"


def example(given: dict, notes: str) -> str:
    """The case that failed, in what a reader can read of it: its parameters, and what hypothesis has drawn."""
    schedule = re.findall(r"^T = [^\]]*\]", notes, re.MULTILINE)
    values = {name: repr(value) for name, value in given.items() if isinstance(value, int | float | str | tuple)}
    values |= re.findall(r"^    (\w+)=(?!<|data\(|[A-Z]\w*\()(.*),$", notes, re.MULTILINE)
    values |= re.findall(r"^Draw \d+ \((\w+)\): (.*)$", notes, re.MULTILINE)
    unnamed = re.findall(r"^Draw 1: (.{1,100}\))$", notes, re.MULTILINE)
    parts = [*schedule, *(f"{name} = {value}" for name, value in values.items()), *unnamed]
    return ", ".join(" ".join(text.split()) for text in parts)


def load(folder: str) -> Path:
    """Import the copy of the package in this process, which must not have imported another; return its folder.

    RuntimeError if another package has taken the copy's place.
    """
    copy = Path(folder).resolve()
    if str(copy) not in sys.path:
        sys.path.insert(0, str(copy))
        os.environ["PYTHONPATH"] = os.pathsep.join(sys.path[:1] + os.environ.get("PYTHONPATH", "").split(os.pathsep))
    import tinydiff

    if Path(tinydiff.__file__).parents[1] != copy:
        raise RuntimeError(f"{tinydiff.__file__} would be tested in place of the copy in {copy}")
    return copy


def run(
    folder: str, laws: list[str], only_first: bool = False, smallest: bool = False, seconds: float = 10
) -> list[dict]:
    """Run the laws in turn in this process, which must not have imported tinydiff; only_first: stop at a failure.

    smallest: look for the smallest case in which a law fails, SECONDS at most for each.  Else it is the first found.
    seconds: of the processor that a case of a law may take; a law that takes more fails, and is the last one.
    RuntimeError if a law has not run, or if another package or a faster form has taken the copy's place.
    """
    copy = load(folder)
    os.environ["HYPOTHESIS_PROFILE"] = "smallest" if smallest else "mutation"
    engine.MAX_SHRINKING_SECONDS = SECONDS
    report = Report(copy, laws, seconds)
    ids = [str(TESTS / law) for law in laws]
    place = [f"--rootdir={TESTS.parent}", "-c", str(TESTS.parent / "pyproject.toml")]
    with contextlib.redirect_stdout(io.StringIO()):
        status = pytest.main(["--plain", *QUIET, *["-x"] * only_first, *place, *ids], [report])
    if report.fast:
        raise RuntimeError(f"faster forms would be tested in place of the copy's {', '.join(sorted(report.fast))}")
    results = list(report.laws.values())
    idle = set(laws) - {result["law"] for result in results if result["cases"]}
    if idle and all(result["passed"] for result in results):
        raise RuntimeError(f"pytest ended with {status!r} and has not run {', '.join(sorted(idle))}")
    return results


if __name__ == "__main__":
    print(json.dumps(run(sys.argv[1], sys.argv[2:])))
