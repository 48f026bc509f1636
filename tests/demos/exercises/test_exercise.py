"""The exercises: the original and the plain way solve each, no usual mistake does, and the program says why."""

import ast
import difflib
import importlib.util
import multiprocessing
import os
import re
import runpy
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import laws
import pytest
from right_answers import RIGHT
from wrong_answers import WRONG

from tinydiff.backend import TinydiffError, backend_name

pytestmark = [
    pytest.mark.program,
    pytest.mark.skipif(backend_name() != "numpy", reason="a check runs on numpy, whatever the suite does"),
]

ROOT = Path(__file__).parents[3]

# Each takes seconds: a few are tried each time, the others with  pytest -m slow.  test_cases.py tries all of them with
# the small cases each time.
FEW = {("closed_form", "1 - alpha_bar"), ("posterior", "1 - alpha_bar"), ("ema", "rounded away from itself")}
FEW |= {("guidance", "the other way"), ("unbroadcast", "mean for sum")}
CASES = [
    pytest.param(name, mistake, id=f"{name}-{mistake}", marks=[] if (name, mistake) in FEW else pytest.mark.slow)
    for name, mistakes in WRONG.items()
    for mistake in mistakes
]


def few(names):
    """Two exercises each time, the others with  pytest -m slow: the suite itself runs the laws on the originals."""
    return [pytest.param(name, marks=[] if name in ("ema", "time_code") else pytest.mark.slow) for name in names]


@pytest.fixture(scope="module")
def judge():
    """judge(folder, laws, only_first): laws.run in a process that has loaded pytest, but never another tinydiff."""
    way = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(way)
    context.set_forkserver_preload(["numpy", "pytest", "hypothesis"])
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("COVERAGE_")]:  # the copies do not stay
            patch.delenv(name)
        with context.Pool(1, maxtasksperchild=1) as pool:
            # A process that has died never answers.
            yield lambda *arguments: pool.apply_async(laws.run, arguments).get(timeout=300)


@pytest.fixture(scope="module")
def copy(copies, exercises, tmp_path_factory):
    """copy(name, text): the folder of one working copy, with text(source, cuts) in place of the exercise's files."""
    folder = tmp_path_factory.mktemp("exercise")
    copies.make_copy(exercises["closed_form"], folder)
    changed = {cut.file for cut in exercises["closed_form"].cuts}

    def write(name, text):
        cuts = exercises[name].cuts
        for file in changed | {cut.file for cut in cuts}:
            path, source = folder / "tinydiff" / file, (ROOT / "tinydiff" / file).read_text(encoding="utf-8")
            path.write_text(text(source, [cut for cut in cuts if cut.file == file]), encoding="utf-8")
            Path(importlib.util.cache_from_source(path)).unlink(missing_ok=True)  # its stamp has whole seconds
        changed.update(cut.file for cut in cuts)
        return folder

    return write


def wrong(copies, mistake):
    """A change of source within the lines that an exercise is about, for `copy`; `made` says how often it was made."""
    old, new, _ = mistake
    made = []

    def text(source, cuts):
        lines = source.splitlines(keepends=True)
        for first, last in sorted(copies.region(source, cut) for cut in cuts)[::-1]:
            part = "".join(lines[first - 1 : last])
            made.extend([old] * part.count(old))
            lines[first - 1 : last] = [part.replace(old, new)]
        return "".join(lines)

    return text, made


@pytest.mark.parametrize("name", few(WRONG))
def test_the_original_solves_it(name, exercises, copy, judge):
    """Every law holds for the package as it is, and every law that the exercise names is among them."""
    results = judge(str(copy(name, lambda source, cuts: source)), exercises[name].laws)
    assert [law for law in results if not law["passed"]] == []
    assert {law["law"] for law in results} == set(exercises[name].laws)


def write(folder, exercise, bodies):
    """Write an answer into a working copy, cut by cut."""
    for cut, body in zip(exercise.cuts, bodies, strict=True):
        path = folder / "tinydiff" / cut.file
        source = path.read_text(encoding="utf-8")
        (line,) = (line for line in source.splitlines() if f'"your turn: {cut.turn}"' in line)
        indent = line[: -len(line.lstrip())]
        path.write_text(source.replace(line, textwrap.indent(textwrap.dedent(body).strip(), indent)), encoding="utf-8")


@pytest.mark.parametrize("name", few(RIGHT))
def test_another_right_answer_solves_it(name, copies, exercises, copy, judge):
    """The laws ask for the right numbers and not for the original's words."""
    folder = copy(name, copies.without)
    write(folder, exercises[name], RIGHT[name])
    assert [law for law in judge(str(folder), exercises[name].laws) if not law["passed"]] == []


@pytest.mark.parametrize("name", few(WRONG))
def test_every_law_waits_for_the_reader(name, copies, exercises, copy, judge):
    """On an untouched copy each law fails, because it is the reader's turn."""
    results = judge(str(copy(name, copies.without)), exercises[name].laws)
    assert [law for law in results if law["passed"] or "your turn: " not in law["error"]] == []


@pytest.mark.parametrize("name, mistake", CASES)
def test_a_usual_mistake_does_not_solve_it(name, mistake, copies, exercises, copy, judge):
    """At least one law fails, not because the program cannot run, and the reason is given in words."""
    text, made = wrong(copies, WRONG[name][mistake])
    folder = copy(name, text)
    assert made, "the original has no such words"
    results = judge(str(folder), exercises[name].laws, True)
    assert [law["passed"] for law in results] == [True] * (len(results) - 1) + [False]
    assert results[-1]["error"] and results[-1]["text"]


# ----------------------------------------------------------------------------------------------------- the plain forms


def test_a_faster_form_does_not_stand_in_for_the_readers(copies, exercises, copy, judge):
    """A wrong im2col fails although the copy's fast conv2d is right, and with the fast one installed it would pass."""
    exercise = exercises["conv2d"]
    text, _ = wrong(copies, WRONG["conv2d"]["kernel flipped"])
    folder = copy("conv2d", text)
    for file in ("fast/conv.py", "fast/install.py"):
        assert (folder / "tinydiff" / file).read_bytes() == (ROOT / "tinydiff" / file).read_bytes()
    (result,) = judge(str(folder), exercise.laws[:1])
    assert not result["passed"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", ROOT / "tests" / exercise.laws[0]]
    environment = os.environ | {"PYTHONPATH": str(folder), "HYPOTHESIS_PROFILE": "mutation"}
    assert subprocess.run(command, cwd=ROOT, env=environment, capture_output=True).returncode == 0


def test_the_laws_run_with_nothing_installed(copy, judge):
    """The table FAST is empty while a law runs: a copy that installs all the same is refused, by the forms' names."""
    folder = copy("posterior", lambda source, cuts: source)
    path = folder / "tinydiff" / "backend.py"
    source = path.read_text(encoding="utf-8")
    right, wrong = "for prepare in [] if plain else _prepare:", "for prepare in _prepare:"
    assert source.count(right) == 1
    law = ("diffusion/test_schedule.py::test_beta_tilde_is_beta_seen_from_the_data",)
    path.write_text(source.replace(right, wrong), encoding="utf-8")
    try:
        with pytest.raises(RuntimeError, match=r"faster forms would be tested in place of the copy's .*conv2d"):
            judge(str(folder), law)
    finally:
        path.write_text(source, encoding="utf-8")
        Path(importlib.util.cache_from_source(path)).unlink(missing_ok=True)


def test_a_law_that_never_ends_is_stopped(copies, copy, judge):
    """It fails, at the line of the loop, and no law is run after it.  (It is no case for hypothesis to run again.)"""
    laws = (
        "diffusion/test_gaussian.py::test_unit_variance_is_kept",
        "diffusion/test_gaussian.py::test_at_t_0_nothing_happens",
    )
    old = "noise_std = schedule.one_minus_alpha_bar[t] ** 0.5"
    text, _ = wrong(copies, (old, f"while True:\n        pass\n    {old}", ""))
    (law,) = judge(str(copy("closed_form", text)), laws, False, True, 0.3)
    assert law["error"] == "stopped after 0.3 s: is there a loop that never ends?" and not law["passed"]
    assert law["places"][-1]["function"] == "q_sample" and law["places"][-1]["code"] in ("while True:", "pass")


def test_the_smallest_case_is_looked_for_if_it_is_asked_for(copies, copy, judge):
    """A mistake from T = 3 on is shown at T = 3.  Else the first case that fails is enough, which may be a long one."""
    law = ("diffusion/test_gaussian.py::test_unit_variance_is_kept",)
    old = "noise_std = schedule.one_minus_alpha_bar[t] ** 0.5"
    text, _ = wrong(copies, (old, f"{old} * (1.1 if schedule.T > 2 else 1)", ""))
    folder = copy("closed_form", text)
    (smallest,), (first,) = judge(str(folder), law, False, True), judge(str(folder), law)
    assert smallest["example"].startswith("T = 3, beta = [") and first["example"].startswith("T = ")
    assert not first["example"].startswith("T = 3,")


@pytest.mark.parametrize("law", ["test_optim.py::test_no_such_law", "test_package.py::test_nothing_is_borrowed"])
def test_a_law_that_has_not_run_does_not_hold(law, copy, judge):
    """A law that does not exist, and one that --plain leaves out, are refused by name."""
    folder = copy("ema", lambda source, cuts: source)
    with pytest.raises(RuntimeError, match=f"has not run {law}"):
        judge(str(folder), ("test_optim.py::test_updates_are_written_in_place", law))


# ---------------------------------------------------------------------------------------------------------- the program


@pytest.fixture
def do(demo, tmp_path, capsys):
    """do("start", "ema") runs main in a new folder and returns its exit code and its output on one line."""

    def do(*arguments, **options):
        try:
            code = demo.main(*arguments, dir=tmp_path, **options)
        except SystemExit as end:
            code = end.code
        return code or 0, " ".join(capsys.readouterr().out.split())

    return do


def solve(demo, folder, exercise):
    """Put what was taken out back into a working copy."""
    for cut in exercise.cuts:
        (folder / exercise.name / "tinydiff" / cut.file).write_text(
            (ROOT / "tinydiff" / cut.file).read_text(encoding="utf-8"), encoding="utf-8"
        )


@pytest.fixture
def judged(demo, monkeypatch):
    """judged(law, ...): the next checks get these laws from the judge.  law(...) makes one."""
    monkeypatch.setattr(demo, "source_digest", lambda: "digest")

    def give(*laws):
        monkeypatch.setattr(demo, "judge", lambda exercise, copy: list(laws))

    return give


SMALL = {"name": "a small case", "text": "", "passed": True, "error": "", "places": [], "example": ""}


def law(name, error="", places=(), example=""):
    """A law that holds, or one that failed with an error at some places (file, line, code, function)."""
    keys = ("file", "line", "code", "function")
    places = [dict(zip(keys, place)) for place in places]
    failed = {"error": error, "places": places, "example": example} if error else {}
    return {"name": name, "text": f"text of {name}", "passed": not error} | failed


def test_an_exercise_from_start_to_end(demo, exercises, do, tmp_path):
    """Untouched it fails as the reader's turn, by the laws themselves; start shows the places."""
    _, output = do("start")
    place = tmp_path / "closed_form" / "tinydiff" / "diffusion" / "gaussian.py"
    number = 1 + place.read_text(encoding="utf-8").splitlines().index(
        '    raise NotImplementedError("your turn: x_t from x_0, t and eps (Ho et al. 2020, eq. 4)")'
    )
    first = exercises["closed_form"]
    assert f"Exercise 1 of {len(exercises)}: The closed form (about 10 minutes)" in output
    assert f"It teaches {' '.join(first.teaches.split())}. {' '.join(first.task.split())} Write in" in output
    assert f"{place}:{number} When it is written:" in output and output.count("exercise.py") == 2
    assert f"exercise.py check --dir {tmp_path}" in output and f"exercise.py hint --dir {tmp_path}" in output
    do("start", "time_code")
    path = tmp_path / "time_code" / "tinydiff" / "nn" / "unet.py"
    lines = path.read_text(encoding="utf-8").splitlines()
    (number,) = (n for n, line in enumerate(lines, 1) if '"your turn: ' in line)
    code, output = do("check")
    assert code == 1 and output.count("FAILED") == 1 and "hold" not in output and "Stuck?" in output
    assert f"FAILED a small case -> still to be written, {path}:{number}: sines and cosines of k times the" in output


def test_a_check_counts_the_laws_that_hold_and_ends_with_1_unless_all_do(demo, exercises, do, judged, tmp_path):
    """2 of 3, then all: the question, what to read, and the next exercise that is not solved."""
    do("start", "ema")
    path = str(tmp_path / "ema" / "tinydiff" / "optim.py")
    at = (path, 31, "m[...] = m", "adam_update")
    judged(SMALL, law("one holds"), law("two fails", "AssertionError: 1 is not 2", [at], "lr = 3"), law("three holds"))
    code, output = do("check")
    laws, copy = len(exercises["ema"].laws), tmp_path / "ema" / "tinydiff"
    assert code == 1 and f"ema: a small case and {laws} laws of tests/ on {copy}" in output
    assert "ok a small case ok one holds FAILED two fails text of two fails -> AssertionError: 1 is not 2" in output
    assert f"{path}:31: m[...] = m with lr = 3 ok three holds 2 of 3 laws hold. Stuck?" in output
    assert f"exercise.py hint --dir {tmp_path}" in output and "text of one holds" not in output
    notes = demo.progress(demo.find("ema"), tmp_path)
    assert notes == {"hints": 0, "solved": False, "source": "digest"}
    judged(SMALL, law("one"), law("two"))
    do("start", "time_code")  # begun, but not solved
    code, output = do("check", "ema")
    assert code == 0 and "ok a small case ok one ok two Solved: all laws hold." in output and "FAILED" not in output
    assert f"exercise.py see --dir {tmp_path}" in output and f"exercise.py answer --dir {tmp_path}" in output
    for part in (exercises["ema"].question, exercises["ema"].read_next):
        assert " ".join(part.split()) in output
    assert f"Next exercise: python demos/exercises/exercise.py start time_code --dir {tmp_path}" in output
    assert demo.progress(demo.find("ema"), tmp_path)["solved"] is True
    do("check", "time_code")
    assert "start closed_form" in do("check", "time_code")[1]  # after the last the first
    for results in (
        [SMALL, law("one fails", "AssertionError")],
        [law("a small case", "wrong"), law("one")],
        [SMALL],
    ):
        judged(*results)
        demo.keep(demo.find("ema"), tmp_path, solved=True)
        assert do("check", "ema")[0] == 1 and demo.progress(demo.find("ema"), tmp_path)["solved"] is False
    assert do("check", "ema")[0] == 1 and demo.progress(demo.find("ema"), tmp_path)["solved"] is False
    judged(SMALL, law("one"), law("two"))
    for exercise in demo.EXERCISES:
        (tmp_path / exercise.name).mkdir(exist_ok=True)
        demo.keep(exercise, tmp_path, hints=0, solved=True)
    assert "That was the last one." in do("check", "ema")[1]


def test_a_small_case_that_fails_is_the_reason(do, judged):
    """The laws that fail are named and give no reasons: there the same mistake may be thousands of numbers."""
    do("start", "ema")
    small = law("a small case", "m is 1, and should be 2: it is half.") | {"text": "g = 2, k = 1"}
    judged(small, law("one", "3999 of 4001 numbers are wrong", [], "T = 4000"), law("two"))
    code, output = do("check")
    assert code == 1 and "FAILED a small case g = 2, k = 1 -> m is 1, and should be 2: it is half." in output
    assert (
        "FAILED one text of one -> ok two" in output.replace("-> ok", "-> ok")
        or "FAILED one text of one ok two" in output
    )
    assert "4000" not in output and "1 of 2 laws hold." in output and "digits" not in output and "run" not in output
    judged(small, law("one"), law("two", "stopped after 10 s: is there a loop that never ends?"))
    assert "1 of 2 laws hold. Those after the one that was stopped were not run." in do("check")[1]


def test_right_up_to_rounding_is_said(demo, do, judged, tmp_path):
    """The formula is right, the digits are not.  If all laws hold all the same, it is solved, and nothing is said."""
    do("start", "ema")
    small = law("a small case", "x is right up to rounding: keep digits.") | {"rounding": True}
    judged(small, law("one", "wrong"), law("two"))
    code, output = do("check")
    assert code == 1 and "DIGITS a small case text of a small case -> x is right up to rounding: keep" in output
    assert "1 of 2 laws hold. The formula is right. What it loses are digits." in output and "Solved" not in output
    judged(small, law("one"), law("two"))
    code, output = do("check")
    assert code == 0 and "ok a small case ok one ok two Solved" in output and "digits" not in output


def test_what_the_readers_code_prints_is_shown(do, judged):
    """Before the results: printing is how one looks into a function."""
    do("start", "ema")
    judged(law("a small case", "wrong") | {"printed": "m = [1.]\n"}, law("one"))
    assert "Your code prints: m = [1.] FAILED a small case" in do("check")[1]


def test_the_same_reason_is_given_once(do, judged, tmp_path):
    """As above: the same error at the same last place.  Another place or another error is told anew."""
    do("start", "ema")
    here, there = (str(tmp_path / "ema" / "tinydiff" / "optim.py"), 3, "x", "f"), ("/elsewhere.py", 4, "y", "g")
    judged(
        SMALL,
        law("a", "wrong", [here]),
        law("b", "wrong", [there, here]),
        law("c", "wrong", [here, there]),
        law("d", "worse", [there]),
        law("e", "worse"),
    )
    output = do("check")[1]
    marks = [output.index(f"text of {name}") for name in "abcde"]
    told = [output[start:end] for start, end in zip(marks, [*marks[1:], None])]
    assert ["as above" in text for text in told] == [False, True, False, False, False]
    assert "/elsewhere.py:4: y" in told[2] and "optim.py" not in told[2] and "0 of 5 laws hold" in told[4]


def test_a_reason_names_the_last_line_that_the_reader_writes(demo, exercises):
    """Else the last of all; what is still to be written is named as that; a long error is cut to 400 characters."""
    inside = [
        ("/copy/tinydiff/optim.py", n, f"line {n}", f) for n, f in ((1, "adam_update"), (2, "update"), (3, "step"))
    ]
    after = [("/tests/test_optim.py", 9, "assert", "test_x")]
    for places, where in ((inside + after, ":2: line 2"), (inside[2:] + after, "test_optim.py:9: assert"), ([], "")):
        words = demo.in_words(law("x", "wrong", places), exercises["ema"])
        assert words.splitlines()[0] == "wrong" and words.endswith(where) and words.count("\n") == bool(places)
    turn = law("x", "NotImplementedError: your turn: m, v", inside[:1])
    assert demo.in_words(turn, exercises["ema"]) == "still to be written, /copy/tinydiff/optim.py:1: m, v"
    assert demo.in_words(law("x", "w", example="t = 3"), exercises["ema"]) == "w\nwith t = 3"
    long = " ".join(["word"] * 200)
    assert 395 <= len(demo.in_words(law("x", long), exercises["ema"])) <= 400
    assert demo.in_words(law("x", long[:399]), exercises["ema"]) == long[:399]
    other_file = [("/copy/tinydiff/train.py", 7, "other", "update")]
    assert ":1: line 1" in demo.in_words(law("x", "wrong", inside[:1] + other_file), exercises["ema"])


def test_the_list_shows_each_exercise_in_order_with_its_state(demo, exercises, do, judged, tmp_path):
    """Its number, minutes and title; nothing, started or solved; how many are solved."""
    do("start", "ema")
    do("start", "conv2d")
    judged(SMALL, law("holds"))
    do("check")
    output = do("list")[1]
    places = []
    for number, exercise in enumerate(exercises.values(), 1):
        state = {"ema": "started ", "conv2d": "solved "}.get(exercise.name, "")
        line = f"{number} {exercise.name} {exercise.minutes} min {state}{exercise.title} "
        places.append(output.index(line + " ".join(exercise.teaches.split())))
    assert places == sorted(places)
    assert output.endswith(f"1 of 15 solved. python demos/exercises/exercise.py start NAME --dir {tmp_path}")


def test_start_takes_the_first_that_is_not_begun_and_the_others_the_one_worked_on_last(demo, do, judged, tmp_path):
    """By the time of its notes; a number is a name."""
    judged(SMALL, law("holds"))
    do("start")
    assert "Exercise 2 of 15" in do("start")[1] and "Exercise 15 of 15" in do("start", "15")[1]
    stamps = {"closed_form": 3, "posterior": 9, "time_code": 5}
    for name, seconds in stamps.items():
        os.utime(tmp_path / name / "progress.json", (seconds, seconds))
    assert demo.latest(tmp_path).name == "posterior"
    assert "posterior: " in do("check")[1]
    for name in ("0", "16"):
        with pytest.raises(TinydiffError, match=f"no exercise is called {name}"):
            do("start", name)


def test_the_judge_is_asked_for_the_laws_of_the_exercise(demo, exercises, monkeypatch, tmp_path):
    """In a process of its own, with a limit; its answer is the JSON that it prints; its last line of errors is told."""
    asked = []

    def answer(returncode, stdout, stderr):
        def run(arguments, **options):
            asked.append((arguments, options))
            return SimpleNamespace(returncode=returncode, stdout=stdout, stderr=stderr)

        monkeypatch.setattr(demo.subprocess, "run", run)

    answer(0, 'a word of the reader\n[{"passed": true}]', "noise")
    assert demo.judge(exercises["ema"], tmp_path) == [{"passed": True}]
    ((arguments, options),) = asked
    code = "import sys, judge; judge.main(*sys.argv[1:])"
    assert arguments == [sys.executable, "-c", code, str(tmp_path), "ema", *exercises["ema"].laws]
    options.pop("stdin")
    assert options == {"cwd": ROOT / "demos/exercises", "capture_output": True, "text": True, "timeout": 120}
    for stderr, reason in (("first\nRuntimeError: last\n", "RuntimeError: last"), ("", "no reason is given")):
        answer(1, "", stderr)
        with pytest.raises(TinydiffError, match=f"the laws could not be run: {reason}$"):
            demo.judge(exercises["ema"], tmp_path)
    answer(0, "", "")  # the reader's code has ended the process
    with pytest.raises(TinydiffError, match=r"the laws could not be run: no reason is given$"):
        demo.judge(exercises["ema"], tmp_path)


def test_a_region_is_whole_statements_of_its_function(demo, copies):
    """From the first to the last that begin so; without words the first and the last statement; never the docstring."""
    lines = ["def g():", "    a = 1", "", "class C:", "    def f(self):", '        """Text."""', "        a = 1"]
    lines += ["        b = (", "            2", "        )", "        a = 3", "        return b", ""]
    source = "\n".join(lines)
    exercise = importlib.import_module(demo.EXERCISES[0].__class__.__module__)
    cases = {("", ""): (7, 12), ("b", ""): (8, 12), ("b", "b"): (8, 10), ("a", "a"): (7, 7), ("b", "a"): (8, 11)}
    for (first, last), place in cases.items():
        assert copies.region(source, exercise.Cut("x.py", "C.f", "t", first, last)) == place
    for first, last in (("z", ""), ("a = 3", "b")):
        with pytest.raises(ValueError, match=f"x.py: C.f has no statements from '{first}' to '{last}'"):
            copies.region(source, exercise.Cut("x.py", "C.f", "t", first, last))
    assert copies.region(source, exercise.Cut("x.py", "g", "t")) == (2, 2)
    left = copies.without(source, [exercise.Cut("x.py", "C.f", "two", "b", "b"), exercise.Cut("x.py", "g", "one")])
    assert left.count("NotImplementedError") == 2
    assert '    raise NotImplementedError("your turn: one")\n\nclass' in left
    assert '        a = 1\n        raise NotImplementedError("your turn: two")\n        a = 3\n' in left


def test_text_is_wrapped_to_the_terminal(demo, monkeypatch, capsys):
    """At most 120 columns; the first line stands after its mark, the others below it; a path stays in one piece."""
    monkeypatch.setattr(demo.shutil, "get_terminal_size", lambda fallback=None: os.terminal_size((20, 9)))
    demo.show("one two three four\nfive /a/long/path/that-is/whole", "->  ")
    lines = ["->  one two three", "    four", "    five", "    /a/long/path/that-is/whole"]
    assert capsys.readouterr().out.splitlines() == lines
    monkeypatch.setattr(demo.shutil, "get_terminal_size", lambda fallback=None: os.terminal_size((500, 9)))
    demo.show("word " * 50)
    assert max(map(len, capsys.readouterr().out.splitlines())) == 119


def test_a_path_is_told_from_here_unless_it_lies_outside(demo, tmp_path, monkeypatch):
    """And the folder of the copies is told only if it is not the default."""
    monkeypatch.chdir(tmp_path)
    assert demo.near(str(tmp_path / "a" / "b.py")) == str(Path("a", "b.py"))
    assert demo.near(str(tmp_path.parent / "c.py")) == str(tmp_path.parent / "c.py")
    assert demo.command("check", Path("runs/exercise")) == "python demos/exercises/exercise.py check"
    assert demo.command("check", Path("x")) == "python demos/exercises/exercise.py check --dir x"


def test_no_python_and_no_end_are_told(demo, do, tmp_path, monkeypatch):
    """A syntax error is a law that fails, with its line; a loop without an end is stopped."""
    do("start", "time_code")
    path = tmp_path / "time_code" / "tinydiff" / "nn" / "unet.py"
    source = path.read_text(encoding="utf-8")
    (line,) = (line for line in source.splitlines() if '"your turn' in line)
    path.write_text(source.replace(line, "    f = = 1"), encoding="utf-8")
    demo.keep(demo.find("time_code"), tmp_path, solved=True)
    code, output = do("check")
    assert demo.progress(demo.find("time_code"), tmp_path)["solved"] is False
    assert code == 1 and "FAILED nn/unet.py is Python" in output and "SyntaxError: invalid syntax" in output
    assert f"{path}:{source.splitlines().index(line) + 1}: f = = 1" in output
    for content, said in ((b"f = '\xff'\n", "is Python -> UnicodeDecodeError: "), (b"f\0", "is Python -> ")):
        path.write_bytes(content)
        code, output = do("check")
        assert code == 1 and said in output
    path.write_text(source.replace(line, "    while True:\n        pass"), encoding="utf-8")
    monkeypatch.setattr(demo, "LIMIT", 1)
    with pytest.raises(TinydiffError, match="stopped after 1 s: is there a loop in your code that never ends"):
        do("check")


def test_hints_come_one_at_a_time(demo, exercises, do):
    """One, two, three, and then no more; each exercise counts its hints separately."""
    do("start", "ema")
    hints = [" ".join(hint.split()) for hint in exercises["ema"].hints]
    for given in (1, 2, 3, 3):
        output = do("hint")[1]
        assert [hint in output for hint in hints] == [k < given for k in range(3)]
        assert ("no more hints" in output) == (given == 3)
    do("start", "time_code")
    assert "2. " not in do("hint")[1]
    assert hints[2] in do("hint", "ema")[1]  # from here on ema was worked on last
    assert hints[2] in do("hint")[1]


def test_the_solution_is_the_original(do):
    """Every line that was taken out, with its place in the package."""
    do("start", "10")
    output = do("solution")[1]
    assert all(f", {function} " in output for function in ("conv2d", "im2col", "_taps"))
    for line in ("tinydiff/ops/conv.py:", "y = im2col(x, w.shape, stride, padding) @ filters + b", "padded = xp.pad("):
        assert line in output
    assert "your turn" not in output


def test_a_solution_has_its_place_and_whole_lines(demo, exercises, tmp_path, capsys):
    """Of each cut the file, its first line in the package, the function, and the lines from the first to the last."""
    demo.main("start", "ema", dir=tmp_path)
    capsys.readouterr()
    demo.main("solution", "ema", dir=tmp_path)
    expected = []
    for cut in exercises["ema"].cuts:
        source = (ROOT / "tinydiff" / cut.file).read_text(encoding="utf-8")
        first, last = demo.region(source, cut)
        lines = source.splitlines()
        expected += [f"tinydiff/{cut.file}:{first}, {cut.function}", "", *lines[first - 1 : last], ""]
        assert lines[first - 1].strip() and not lines[last - 1].strip().endswith(":")
    assert capsys.readouterr().out.splitlines() == expected


@pytest.mark.parametrize("action", ["start", "check"])
def test_without_the_tests_an_exercise_says_so_at_once(demo, do, tmp_path, monkeypatch, action):
    """Before anything is written, and not after an hour of work: what is missing, and how to install it."""
    if action == "check":
        do("start", "ema")
    before = list(tmp_path.rglob("*"))
    monkeypatch.setattr(demo, "find_spec", lambda name: None if name == "hypothesis" else name)
    with pytest.raises(TinydiffError, match=r'the laws need hypothesis: pip install -e "\.\[test\]"'):
        do(action, "ema")
    assert list(tmp_path.rglob("*")) == before


def test_work_is_not_overwritten_unless_asked(demo, do, tmp_path):
    """A second start is refused and names the way to start again, which takes the hints back as well."""
    do("start", "ema")
    do("hint")
    path = tmp_path / "ema" / "tinydiff" / "optim.py"
    path.write_text("my work", encoding="utf-8")
    with pytest.raises(TinydiffError, match=r"contains your work on ema. .* check ema .* start ema --fresh --dir "):
        do("start", "ema")
    assert path.read_text(encoding="utf-8") == "my work"
    do("start", "ema", fresh=True)
    assert "your turn" in path.read_text(encoding="utf-8") and demo.progress(demo.find("ema"), tmp_path)["hints"] == 0


@pytest.mark.parametrize(
    "name, words", [("postrior", "did you mean posterior?"), ("16", "there are closed_form,"), ("x", "there are")]
)
def test_a_name_that_is_none_is_refused_with_those_near_it(do, name, words):
    """The nearest names, or all."""
    with pytest.raises(TinydiffError, match=f"no exercise is called {name}: {re.escape(words)}"):
        do("start", name)


@pytest.mark.parametrize("action", ["list", "check", "hint", "solution"])
def test_only_a_start_is_fresh(do, action):
    """--fresh is refused where it would do nothing."""
    with pytest.raises(TinydiffError, match=f"--fresh goes with start, not with {action}"):
        do(action, fresh=True)


def test_a_list_is_of_all(do):
    """A name would do nothing there."""
    with pytest.raises(TinydiffError, match="list shows every exercise; for ema alone choose start"):
        do("list", "ema")


def test_a_copy_of_another_version_of_the_package_is_known(demo, do, tmp_path, monkeypatch):
    """The laws go with the package: a check of a copy that was made before the package changed says so."""
    monkeypatch.setattr(demo, "judge", lambda *_: [SMALL])
    monkeypatch.setattr(demo, "source_digest", lambda: "first")
    do("start", "ema")
    assert "note" not in do("check")[1]
    monkeypatch.setattr(demo, "source_digest", lambda: "second")
    assert "note: the package has changed since this copy was made, and the laws with it" in do("check")[1]
    demo.keep(demo.find("ema"), tmp_path, source="second")
    assert "note" not in do("check")[1]


def test_a_folder_in_which_nothing_can_be_written_is_named(demo, tmp_path):
    """Before anything is copied."""
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(TinydiffError, match=r"--dir .*ema: the folder cannot be made"):
        demo.main("start", "ema", dir=tmp_path / "file")


@pytest.mark.parametrize("action", ["check", "hint", "solution"])
def test_before_a_start_there_is_nothing_to_work_on(do, action):
    """With a name or without, the error says how to start."""
    with pytest.raises(TinydiffError, match=r"no exercise is under way in .*exercise\.py start"):
        do(action)
    with pytest.raises(TinydiffError, match=r"ema has not been started: .* start ema"):
        do(action, "ema")


def test_when_all_are_begun_start_wants_a_name(demo, do, tmp_path):
    """There is no next one to take."""
    for exercise in demo.EXERCISES:
        (tmp_path / exercise.name).mkdir()
        demo.keep(exercise, tmp_path, hints=0, solved=True)
    with pytest.raises(TinydiffError, match="every exercise has been started"):
        do("start")


def test_as_a_script_it_ends_with_an_exit_code(tmp_path, monkeypatch, capsys):
    """2 for what a user got wrong, 0 else; --help shows the five commands; without a command it lists."""
    script = ROOT / "demos" / "exercises" / "exercise.py"
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(script.parent)

    def run(*arguments):
        monkeypatch.setattr("sys.argv", [str(script), *arguments])
        code = 0
        try:
            runpy.run_path(str(script), run_name="__main__")
        except SystemExit as end:
            code = end.code or 0
        written = capsys.readouterr()
        return code, written.out + written.err

    assert run("start", "nonsense")[0] == run("check")[0] == 2
    assert run() == run("list") and "0 of 15 solved" in run()[1]
    assert run("start", "ema")[0] == 0 and (tmp_path / "runs" / "exercise" / "ema" / "tinydiff").is_dir()
    code, output = run("--help")
    assert code == 0 and all(
        f"exercise.py {word} " in output for word in ("list", "start", "check", "hint", "solution")
    )


def test_another_package_is_never_tested_in_the_copys_place(tmp_path):
    """If the folder has no tinydiff and another one can be imported, the laws are not run, and the error names it."""
    command = [sys.executable, ROOT / "tests" / "laws.py", tmp_path, "test_optim.py"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == ""
    assert f"{ROOT / 'tinydiff' / '__init__.py'} would be tested in place of the copy in {tmp_path}" in done.stderr


# ----------------------------------------------------------------------------------------------------------- the table


def test_a_copy_is_the_package_but_for_what_was_taken_out(copies, exercises):
    """Signatures and all lines around a cut stay: with the cut lines and formulas put back it is the package's file."""
    for exercise in exercises.values():
        for file in {cut.file for cut in exercise.cuts}:
            cuts = [cut for cut in exercise.cuts if cut.file == file]
            source = (ROOT / "tinydiff" / file).read_text(encoding="utf-8")
            lines, left = source.splitlines(), copies.without(source, cuts).splitlines()
            for first, last in sorted(copies.region(source, cut) for cut in cuts):
                assert left[first - 1].strip().startswith('raise NotImplementedError("your turn: ')
                left[first - 1 : first] = lines[first - 1 : last]
            assert left == lines


def copy_files(source, target, ignore):
    """The files of the book alone, in place of the whole package: shutil.copytree takes a second for some copies."""
    for path in [*source.glob("*.py"), *source.glob("*/*.py")]:
        if path.parent.name in ("tinydiff", "diffusion", "nn", "ops"):
            (target / path.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
            (target / path.relative_to(source)).write_bytes(path.read_bytes())


def test_a_copy_has_no_formula_of_what_was_taken_out(demo, copies, exercises, tmp_path, monkeypatch):
    """In its docstrings "your turn" takes the place of each formula, and nothing else of the docstrings is changed."""
    monkeypatch.setattr(copies.shutil, "copytree", copy_files)
    for exercise in exercises.values():
        copies.make_copy(exercise, tmp_path)
        for file in {place.file for place in (*exercise.cuts, *exercise.formulas)}:
            source = (ROOT / "tinydiff" / file).read_text(encoding="utf-8")
            copy = (tmp_path / "tinydiff" / file).read_text(encoding="utf-8")
            cuts = [cut for cut in exercise.cuts if cut.file == file]
            formulas = [formula for formula in exercise.formulas if formula.file == file]
            assert all(formula.text in source and formula.text not in copy for formula in formulas)
            before, after = copies.without(source, cuts).splitlines(), copy.splitlines()
            changed = [line for line in difflib.ndiff(before, after) if line.startswith("+ ")]
            assert len(changed) == len(formulas)
            assert all(
                "your turn" in line or '"""Add noise of' in line or '"""Write the next' in line for line in changed
            )
    named = {exercise.name for exercise in exercises.values() if exercise.formulas}
    assert set(exercises) - named == {"unbroadcast", "backward_walk"}  # their docstrings have none
    with pytest.raises(ValueError, match=r"x\.py: 'a = b' is there 2 times"):
        copies.without_formulas("a = b, a = b", [demo.EXERCISES[0].formulas[0]._replace(file="x.py", text="a = b")])


def test_what_the_table_names_exists(exercises):
    """Files to read next exist, an exercise takes 5 to 30 minutes, and no exercise names a law twice."""
    for exercise in exercises.values():
        assert 5 <= exercise.minutes <= 30 and len(exercise.hints) == 3
        (place,) = re.findall(r"(?:tinydiff|demos)/[\w/]+\.py", exercise.read_next)
        assert (ROOT / place).is_file()
        assert len(set(exercise.laws)) == len(exercise.laws)
        assert exercise.question.endswith("?")


def test_each_exercise_is_seen_where_it_acts(exercises):
    """What no network needs is seen as noised digits, and what acts in training alone after a training."""
    scenes = {}
    for exercise in exercises.values():
        scenes.setdefault(exercise.scene, set()).add(exercise.name)
    assert scenes.pop("noise") == {"closed_form", "schedules"}
    backward = {"unbroadcast", "backward_walk", "conv2d_backward", "group_norm_backward"}
    assert scenes.pop("train") == backward | {"training_loss", "ema"} and set(scenes) == {"draw"}
    assert [exercise.name for exercise in exercises.values() if exercise.sampler != "ddpm_step"] == ["ddim_step"]


def test_every_law_that_the_table_names_exists(exercises):
    """Each is the name of a test below tests/, and what a check prints for it is not empty."""
    trees = {}
    for law in {law for exercise in exercises.values() for law in exercise.laws}:
        file, name = law.partition("[")[0].split("::")
        if file not in trees:
            trees[file] = ast.parse((ROOT / "tests" / file).read_text(encoding="utf-8"))
        tree = trees[file]
        (test,) = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name)
        assert ast.get_docstring(test), law
