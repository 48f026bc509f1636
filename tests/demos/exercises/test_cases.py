"""The small cases of the exercises: right answers pass, and each usual mistake gets its own sentence.

Here an answer is loaded into this process, in place of the modules that it changes: a thousandth of the time that a
check takes.  test_exercise.py tries the same answers with the laws, in a process of their own.
"""

import importlib
import math
import sys
import textwrap
import types
import warnings
from pathlib import Path

import numpy as np
import pytest
from right_answers import RIGHT
from wrong_answers import WRONG

from tinydiff.autograd import OPS, Tensor
from tinydiff.backend import FAST, backend_name

pytestmark = [
    pytest.mark.program,
    pytest.mark.skipif(backend_name() != "numpy", reason="a check runs on numpy, whatever the suite does"),
]

ROOT = Path(__file__).parents[3]
SOURCES = {path.relative_to(ROOT / "tinydiff"): path.read_text("utf-8") for path in (ROOT / "tinydiff").rglob("*.py")}


@pytest.fixture(scope="module")
def cases(load_demo):
    return load_demo("exercises/cases")


@pytest.fixture(scope="module")
def verdicts(cases):
    return sys.modules["verdicts"]


@pytest.fixture(autouse=True)
def plain(monkeypatch):
    """The functions of the book as they stand; what an answer registers is forgotten afterwards."""
    monkeypatch.setattr("tinydiff.backend.FAST", {})
    before, fast = dict(OPS), dict(FAST)
    FAST.clear()
    yield
    OPS.clear(), OPS.update(before), FAST.update(fast)


def book(changed):
    """book(file) as cases.py wants it: the package's modules, but for those whose source is in `changed`."""
    made = {}

    def load(file):
        if f"{file}.py" not in changed:
            return importlib.import_module("tinydiff." + file.replace("/", "."))
        if file not in made:
            module = types.ModuleType("tinydiff." + file.replace("/", "."))
            module.__package__ = module.__name__.rpartition(".")[0]
            with pytest.MonkeyPatch.context() as patch:
                patch.setitem(sys.modules, module.__name__, module)  # dataclasses look there
                exec(compile(changed[f"{file}.py"], file, "exec"), module.__dict__)
            made[file] = module
        return made[file]

    return load


def answered(copies, exercise, bodies=None, mistake=None):
    """{file: source} of an answer: the original, other statements in place of each cut, or the original with a mistake.

    A mistake is (words, other words), within the cuts; it must be there.
    """
    sources, found = {}, 0
    for file in dict.fromkeys(cut.file for cut in exercise.cuts):
        source = SOURCES[Path(file)]
        lines = source.splitlines(keepends=True)
        places = [(*copies.region(source, cut), n) for n, cut in enumerate(exercise.cuts) if cut.file == file]
        for first, last, n in sorted(places)[::-1]:
            part = "".join(lines[first - 1 : last])
            if bodies:
                indent = part[: -len(part.lstrip())]
                part = textwrap.indent(textwrap.dedent(bodies[n]).strip(), indent) + "\n"
            if mistake:
                found += part.count(mistake[0])
                part = part.replace(*mistake)
            lines[first - 1 : last] = [part]
        sources[file] = "".join(lines)
    assert found or not mistake, "the original has no such words"
    return sources


def told(cases, name, sources):
    """(case, sentence, whether it is about rounding) of what is wrong, or None."""
    try:
        found = cases.first_wrong(name, book(sources))
    except sys.modules["verdicts"].Wrong as wrong:
        return "", str(wrong), False
    return found and (found[0], found[1].sentence, bool(found[1].rounding))


def test_every_exercise_has_a_small_case_its_mistakes_and_an_answer(cases, exercises):
    """Five mistakes or more each, and no two of an exercise are answered with one sentence."""
    assert list(WRONG) == list(RIGHT) == list(exercises) and set(cases.CASES) == set(exercises)
    for rows in WRONG.values():
        sentences = [row[2] for row in rows.values() if "nearly equal" not in row[2]]
        assert len(rows) >= 5 and len(set(sentences)) == len(sentences)
    for name, exercise in exercises.items():
        assert len(RIGHT[name]) == len(exercise.cuts)


@pytest.mark.parametrize("name", WRONG)
def test_nothing_is_said_to_a_right_answer(name, copies, cases, exercises):
    """To the original, and to another right one."""
    assert told(cases, name, answered(copies, exercises[name])) is None
    assert told(cases, name, answered(copies, exercises[name], RIGHT[name])) is None


@pytest.mark.parametrize("name", WRONG)
def test_each_usual_mistake_gets_its_own_sentence(name, copies, cases, exercises):
    """And an answer that is right but for its last digits is told so, with how to keep them."""
    for mistake, (*words, sentence) in WRONG[name].items():
        case, said, rounding = told(cases, name, answered(copies, exercises[name], mistake=words))
        assert said.endswith(sentence), mistake
        assert ("right up to rounding: it is off by " in said) == rounding, mistake
        assert len(case) < 140, mistake  # the case is a small one


@pytest.mark.parametrize("name", WRONG)
def test_what_is_not_written_yet_is_the_readers_turn(name, copies, cases, exercises):
    """On an untouched copy the first place that a case needs raises, whichever it is."""
    files = {cut.file for cut in exercises[name].cuts}
    cut = {file: [cut for cut in exercises[name].cuts if cut.file == file] for file in files}
    with pytest.raises(NotImplementedError, match="your turn: "):
        cases.first_wrong(name, book({file: copies.without(SOURCES[Path(file)], cut[file]) for file in files}))


def test_every_sentence_of_a_usual_mistake_can_be_told(cases):
    """In each case the value of a usual mistake, where it differs from the right one, gets that mistake's sentence."""
    for name, case in cases.CASES.items():
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            smalls = [*case(book({}))]
        for small in smalls:
            assert cases.verdict(small) is None
            for sentence, value in small.usual.items():
                value = np.asarray(value)
                if np.array_equal(value, small.right, equal_nan=True):
                    continue  # in this case of several the mistake makes no difference
                found = cases.verdict(small._replace(got=value))
                assert found and not found.rounding, (name, small.case, sentence)
                same = [words for words, other in small.usual.items() if np.array_equal(other, value, equal_nan=True)]
                assert any(found.sentence.endswith(words) for words in same), (name, small.case, sentence)


# -------------------------------------------------------------------------------------------------------- the verdicts


@pytest.fixture
def say(verdicts):
    """say(got, right, ...): the sentence about a value x."""

    def say(got, right, **more):
        found = verdicts.verdict(verdicts.Small("x", "a case", got, right, **more))
        return found and found.sentence

    return say


def test_what_a_value_is_comes_before_what_it_should_be(say):
    """None, a Tensor, a list of objects, another shape, another dtype, NaN and infinity are named."""
    one = np.ones(2)
    assert say(None, one) == "x is None. Is there a return?"
    assert say(Tensor(one), one) == "x is a Tensor, and should be an array."
    assert say(np.array([None, 1]), one) == "x is an array of objects, and should be an array."
    assert say(True, 1.0) == "x is a bool, and should be an array."
    assert say(np.ones((2, 1)), one) == "x has the shape (2, 1), and should have (2,)."
    assert say(one.astype("float32"), one) == "x is float32, and should be float64."
    assert say(np.array([1, math.nan]), one).startswith("x is NaN at [1], 1 of 2 numbers. NaN comes from the root")
    assert say(math.inf, 1.0).startswith("x is infinite. Infinity comes from a division by 0")
    assert say(np.array([1, math.nan]), np.array([1, math.nan])) is None
    beside = say(np.array([math.nan, 2.0]), np.array([math.nan, 1.0]))  # the NaN is right
    assert beside == "x[1] is 2, and should be 1: 1 of 2 numbers are wrong."
    assert say(1.0, 1.0) is None and say(1, np.int64(1)) is None


def test_what_a_function_returns_is_counted(verdicts):
    """Two things, in a tuple or a list; else the sentence says how many there are, and names what is wanted."""
    assert verdicts.two((1, 2), "mean", "var") == (1, 2) and verdicts.two([1, 2], "mean", "var") == [1, 2]
    for got, kind in ((None, "nothing"), (np.ones(2), "one thing"), ((1,), "one thing"), ((1, 2, 3), "3 things")):
        with pytest.raises(verdicts.Wrong, match=f"returns {kind}, and should return two: mean and var"):
            verdicts.two(got, "mean", "var")


def test_a_vjp_returns_a_gradient_for_each_input(cases):
    """Arrays, or functions that return one; another number of them is told, and what else was returned."""
    gradients, Wrong = sys.modules["small_engine"]._gradients, sys.modules["verdicts"].Wrong
    assert gradients((1, lambda: 2, 3), 3) == [1, 2, 3]
    for found, kind in (((1, 2), "2 things"), (np.ones(3), "a ndarray"), (None, "a NoneType")):
        with pytest.raises(Wrong, match=f"vjp returns {kind}, and should return 3 gradients"):
            gradients(found, 3)


def test_digits_are_told_from_mistakes(verdicts):
    """Up to 1e-3 of each number it is rounding, unless it is within `exact`; above it is another number."""
    small = verdicts.Small("x", "a case", None, np.array([1.0, 1000.0]), digits="Keep them.", exact=1e-9)

    def found(second):
        return verdicts.verdict(small._replace(got=np.array([1.0, second])))

    assert found(1000 * (1 + 5e-10)) is None
    assert found(1000 * (1 + 2e-4)) == (
        "x is right up to rounding: it is off by 2e-04 of its value. Keep them.",
        pytest.approx(2e-4),
    )
    assert found(1002.0) == ("x[1] is 1002, and should be 1000: 1 of 2 numbers are wrong.", 0.0)
    zero = small._replace(right=np.array([0.0, 1.0]))  # of a 0 there are no digits
    assert verdicts.verdict(zero._replace(got=np.array([1e-10, 1.0]))) is None
    assert verdicts.verdict(zero._replace(got=np.array([0.01, 1.0]))).sentence.startswith("x[0] is 0.01, and should")
    harmless = small._replace(got=np.array([1.0, 1000.01]), usual={"a mistake that changes nothing here.": small.right})
    assert verdicts.verdict(harmless).sentence.endswith("Keep them.")
    early = verdicts.verdict(small._replace(got=np.array([1.0, 1000.01]), digits=""))
    assert early.sentence.endswith("cast last.")


def test_a_wrong_number_is_shown_beside_the_right_one(say):
    """The first that is wrong, with its place; and the sign, a factor or another order, if it is that."""
    right = np.array([[1.0, 2.0], [3.0, 4.0]])
    assert say(-right, right) == "x[0, 0] is -1, and should be 1: the sign is wrong."
    assert say(right / 4, right) == "x[0, 0] is 0.25, and should be 1: it is 0.25 times what it should be."
    assert say(right.T, right) == "x[0, 1] is 3, and should be 2: the numbers are right, and their order is not."
    assert say(right + [[0, 0], [0, 1]], right) == "x[1, 1] is 5, and should be 4: 1 of 4 numbers are wrong."
    assert say(2.5, 0.0) == "x is 2.5, and should be 0: this is another number."
    assert say(0 * right, right) == "x[0, 0] is 0, and should be 1: 4 of 4 numbers are wrong."
    usual = {"this is its square.": right**2}
    assert say(right**2, right, usual=usual) == "x[0, 1] is 4, and should be 2: this is its square."
    assert (
        say(right[:1], right, usual={"one row.": right[:1]})
        == "x has the shape (1, 2), and should have (2, 2): one row."
    )
