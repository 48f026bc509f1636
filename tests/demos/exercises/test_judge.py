"""The process that judges a working copy: its small case, what its code raises and prints, and then the laws."""

import json
import signal
import sys
import time

import laws
import pytest

from tinydiff.backend import FAST, backend_name

pytestmark = [
    pytest.mark.program,
    pytest.mark.skipif(backend_name() != "numpy", reason="a check runs on numpy, whatever the suite does"),
]


@pytest.fixture
def judge(load_demo, monkeypatch):
    """The module, for a copy that is loaded already."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(laws, "load", lambda folder: folder)
    monkeypatch.syspath_prepend(load_demo("exercises/exercise").ROOT / "demos" / "exercises")
    return load_demo("exercises/judge")


@pytest.fixture
def case(judge, monkeypatch, tmp_path):
    """case(f): the result of the small case of an exercise, which is f(book)."""
    import cases

    def result(f):
        monkeypatch.setitem(cases.CASES, "ema", f)
        return judge.small_case(str(tmp_path), "ema")

    return result


def test_a_small_case_tells_what_is_wrong(case):
    """Nothing, a value, a mistake that no value shows, a loss of digits; and what the code has printed."""
    from verdicts import Small, Wrong

    def right(book):
        assert book("diffusion/gaussian").q_sample and book("nn/unet").time_code and book("data").Dataset
        assert not FAST  # nothing faster takes the place of the reader's functions
        print("a word")
        yield Small("x", "T = 3", 1.0, 1.0)

    result = case(right)
    assert result["passed"] and result["error"] == result["text"] == "" and result["printed"] == "a word\n"
    result = case(lambda book: [Small("x", "T = 3", -1.0, 1.0)])
    assert not result["passed"] and not result["rounding"] and result["text"] == "T = 3"
    assert result["error"] == "x is -1, and should be 1: the sign is wrong."
    result = case(lambda book: [Small("x", "T = 3", 1.00001, 1.0, digits="Keep them."), Small("y", "", 1.0, 1.0)])
    assert not result["passed"] and result["rounding"] and result["error"].endswith("Keep them.")
    several = [Small("x", "first", 1.00001, 1.0), Small("y", "second", 1.0001, 1.0), Small("z", "third", 2.0, 1.0)]
    assert case(lambda book: several)["text"] == "third" and case(lambda book: several[:2])["text"] == "second"

    def wrong(book):
        raise Wrong("t = T is never drawn.")

    assert case(wrong)["error"] == "t = T is never drawn." and not case(wrong)["passed"]


def test_what_the_code_raises_is_told_with_its_place(judge, case, tmp_path, monkeypatch):
    """In the copy, and nowhere else; a loop that never ends is stopped, at its line."""
    path = tmp_path / "copy.py"
    path.write_text("def f(book):\n    return book[0]\ndef loop(book):\n    while True:\n        pass\n")
    names = {}
    exec(compile(path.read_text(), str(path), "exec"), names)
    result = case(names["f"])
    assert result["error"] == "TypeError: 'function' object is not subscriptable" and not result["passed"]
    assert [(place["line"], place["function"]) for place in result["places"]] == [(2, "f")]
    monkeypatch.setattr(judge, "SECONDS", 0.05)
    start = time.monotonic()
    result = case(names["loop"])
    assert result["error"] == "stopped after 0.05 s: is there a loop that never ends?"
    assert result["places"][-1]["function"] == "loop" and time.monotonic() - start < 5
    assert case(lambda book: [])["passed"]
    assert signal.getitimer(signal.ITIMER_PROF) == (0.0, 0.0)  # no alarm rings in the laws


def test_the_laws_follow_unless_nothing_can_hold(judge, monkeypatch, capsys):
    """If the case holds, they look for the smallest failure; a turn of the reader and an endless loop stand alone."""
    asked = []
    monkeypatch.setattr(laws, "run", lambda *given, **options: asked.append((given, options)) or [{"name": "a law"}])

    def judged(**small):
        result = {"error": "", "passed": False, "loaded": True} | small
        monkeypatch.setattr(judge, "small_case", lambda folder, name: result)
        judge.main("folder", "ema", "one", "two")
        return json.loads(capsys.readouterr().out)

    assert judged(passed=True)[1:] == judged(error="x is 1, and should be 2")[1:] == [{"name": "a law"}]
    assert asked == [(("folder", ["one", "two"]), {"smallest": smallest}) for smallest in (True, False)]
    assert len(judged(error="NotImplementedError: your turn: x")) == len(judged(error="stopped after 10 s")) == 1
    assert len(judged(error="ImportError: no name", loaded=False)) == 1 and len(asked) == 2


def test_a_copy_that_cannot_be_imported_is_told_so(judge, monkeypatch, tmp_path):
    """The error stands alone, with its place; and code that ends the process is an error too."""

    def load(folder):
        raise ImportError("cannot import name 'q_sample'")

    def case(book):
        sys.exit("the reader's end")

    import cases

    monkeypatch.setitem(cases.CASES, "ema", case)
    result = judge.small_case(str(tmp_path), "ema")
    assert result["error"] == "SystemExit: the reader's end" and result["loaded"] and not result["passed"]
    monkeypatch.setattr(laws, "load", load)
    result = judge.small_case(str(tmp_path), "ema")
    assert result["error"] == "ImportError: cannot import name 'q_sample'" and not result["loaded"]


@pytest.mark.parametrize(
    "error, said",
    [
        (
            "Arrays are not equal\n\nnan location mismatch:\n ACTUAL: array(nan)",
            "there is NaN where a number should be",
        ),
        ("Arrays are not equal\n\nx and y nan location mismatch:\n x: 1", "there is NaN where a number should be"),
        ("Not equal to tolerance\n\n+inf location mismatch:", "there is infinity where a number should be"),
        ("Arrays are not equal\n\n(shapes (2,), (3,) mismatch)", "the shapes are not the same: (2,), (3,)"),
        ("assert dtype('float64') == dtype('float32')", "the dtype is float64, and should be float32"),
        ("assert dtype('float64') == 'float32'", "the dtype is float64, and should be float32"),
        ("assert dtype('float64') == <class 'numpy.float32'>", "the dtype is float64, and should be float32"),
        (
            "Mismatched elements: 1 / 5 (20%)\nMax absolute difference among violations: 2e-13\n"
            "Max relative difference among violations: 7.42e-12",
            "1 of 5 numbers are right only up to rounding, off by up to 7e-12 of their value: keep more digits",
        ),
        (
            "Mismatched elements: 1 / 5 (20%)\nMax absolute difference: 0.25\nMax relative difference: 0.5",
            "1 of 5 numbers are wrong, by up to 0.25",
        ),
        ("assert False", "False does not hold"),
    ],
)
def test_an_assertion_that_fails_is_told_in_words(error, said):
    """NaN, infinity, shapes, dtypes and roundings are named, in whichever words NumPy has for them."""
    assert laws.in_short(AssertionError(error)).startswith(said)
