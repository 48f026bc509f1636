"""Take a part out of the package, write it anew, and let the laws of the suite judge it: learn by building.

    python demos/exercises/exercise.py list               fifteen exercises, 10 to 30 minutes each
    python demos/exercises/exercise.py start closed_form  a copy without a few statements
    python demos/exercises/exercise.py check              the laws of this exercise judge your copy
    python demos/exercises/exercise.py hint               one more hint, of three
    python demos/exercises/exercise.py solution           the statements that were taken out

A copy lies in runs/exercise/NAME/.  Nothing else is touched, so any number of exercises may be under way.  Without a
name, start takes the next exercise, and the other commands take the one that was worked on last.  A check runs the
functions of the book as they stand: nothing faster takes the place of what you write.

The exercises need the tests (pip install -e ".[test]"), and neither a network nor MNIST.
Read next: exercises.py, which is the table of them.
"""

import ast
import difflib
import json
import os
import shutil
import subprocess
import sys
import textwrap
from importlib.util import find_spec
from pathlib import Path

from exercises import EXERCISES

from tinydiff.app import cli
from tinydiff.app.checkpoint import atomic_write
from tinydiff.app.outputs import own_folder
from tinydiff.backend import TinydiffError
from tinydiff.fast.mpi import source_digest

ROOT = Path(__file__).resolve().parents[2]
FOLDER = "runs/exercise"
LIMIT = 60  # seconds that a check may take: a loop without an end is stopped


def main(action="list", name=None, *, dir=FOLDER, fresh=False):
    """Do one of the five actions; a check that fails ends with exit code 1."""
    folder = Path(dir)
    if fresh and action != "start":
        raise TinydiffError(f"--fresh goes with start, not with {action}")
    if name and action == "list":
        raise TinydiffError(f"list shows every exercise; for {name} alone choose start, check, hint or solution")
    if action == "list":
        show_list(folder)
    elif action == "start":
        start(find(name) if name else next_one(folder), folder, fresh)
    else:
        exercise = find(name) if name else latest(folder)
        if progress(exercise, folder) is None:
            raise TinydiffError(f"{exercise.name} has not been started: {command(f'start {exercise.name}', folder)}")
        if action == "check":
            sys.exit(0 if check(exercise, folder) else 1)
        (hint if action == "hint" else solution)(exercise, folder)


# -------------------------------------------------------------------------------------------------------- five actions


def show_list(folder):
    """Print every exercise in reading order, and whether it is started or solved."""
    for number, exercise in enumerate(EXERCISES, 1):
        notes = progress(exercise, folder)
        state = "" if notes is None else "solved" if notes["solved"] else "started"
        print(f"{number:2}  {exercise.name:20} {exercise.minutes:2} min  {state:8} {exercise.title}")
        show(exercise.teaches, "    ")
    solved = sum((progress(exercise, folder) or {}).get("solved", False) for exercise in EXERCISES)
    print(f"\n{solved} of {len(EXERCISES)} solved.  {command('start NAME', folder)}")


def start(exercise, folder, fresh=False):
    """Make the working copy, and print what to do."""
    check_tools()
    copy = folder / exercise.name
    if copy.exists() and not fresh:
        raise TinydiffError(
            f"{copy} contains your work on {exercise.name}. Continue with {command(f'check {exercise.name}', folder)}, "
            f"or throw your work away with {command(f'start {exercise.name} --fresh', folder)}"
        )
    own_folder(copy, "progress.json", option="--dir")
    make_copy(exercise, copy)
    keep(exercise, folder, hints=0, solved=False, source=source_digest())
    places = [f"{copy / 'tinydiff' / file}:{line}" for file, line in turns(exercise, copy)]
    print(f"Exercise {number_of(exercise)} of {len(EXERCISES)}: {exercise.title} (about {exercise.minutes} minutes)\n")
    show(f"It teaches {exercise.teaches}.")
    print()
    show(exercise.task)
    print("\nWrite in", *places, sep="\n    ")
    print(f"\nWhen it is written:\n    {command('check', folder)}\nIf you are stuck:\n    {command('hint', folder)}")


def check(exercise, folder):
    """Run the laws on the copy and explain what failed; True if all hold."""
    copy = folder / exercise.name
    print(f"{exercise.name}: {len(exercise.laws)} laws of tests/ on {copy / 'tinydiff'}\n")
    if progress(exercise, folder).get("source", source_digest()) != source_digest():
        again = command(f"start {exercise.name} --fresh", folder)
        show(f"note: the package has changed since this copy was made, and the laws with it: {again}")
    laws = broken_files(exercise, copy) or judge(exercise, copy)
    before = None
    for law in laws:
        show(law["name"], "    ok  " if law["passed"] else "FAILED  ")
        if not law["passed"]:
            show(law["text"], " " * 8)
            reason = law["error"], law["places"][-1:]
            show("as above" if reason == before else in_words(law, exercise), "     -> ")
            before = reason
    held, solved = sum(law["passed"] for law in laws), all(law["passed"] for law in laws)
    keep(exercise, folder, solved=solved)
    if not solved:
        print(f"\n{held} of {len(laws)} hold.  Stuck?  {command('hint', folder)}")
        return False
    print("\nSolved: all laws hold.  A question that you can answer now:")
    show(exercise.question, "    ")
    print("Read next:")
    show(exercise.read_next, "    ")
    later = EXERCISES[number_of(exercise) :] + EXERCISES[: number_of(exercise)]
    left = [other.name for other in later if not (progress(other, folder) or {}).get("solved")]
    print(f"Next exercise:\n    {command(f'start {left[0]}', folder)}" if left else "That was the last one.")
    return True


def hint(exercise, folder):
    """Print the hints given so far and one more, up to all three."""
    given = min(progress(exercise, folder)["hints"] + 1, len(exercise.hints))
    keep(exercise, folder, hints=given)
    for number, text in enumerate(exercise.hints[:given], 1):
        show(text, f"{number}.  ")
    if given == len(exercise.hints):
        print(f"\nThere are no more hints.  {command('solution', folder)} shows the original.")


def solution(exercise, folder):
    """Print the statements that were taken out, as the package has them."""
    for cut in exercise.cuts:
        path = ROOT / "tinydiff" / cut.file
        lines = path.read_text(encoding="utf-8").splitlines()
        first, last = region("\n".join(lines), cut)
        print(f"tinydiff/{cut.file}:{first}, {cut.function}\n", *lines[first - 1 : last], "", sep="\n")


# ------------------------------------------------------------------------------------------------------------ the copy


def make_copy(exercise, copy):
    """Write the package into the folder `copy`, without the statements that the exercise is about."""
    shutil.rmtree(copy / "tinydiff", ignore_errors=True)
    shutil.copytree(ROOT / "tinydiff", copy / "tinydiff", ignore=shutil.ignore_patterns("__pycache__"))
    for file in {cut.file for cut in exercise.cuts}:
        path = copy / "tinydiff" / file
        source = path.read_text(encoding="utf-8")
        path.write_text(without(source, [cut for cut in exercise.cuts if cut.file == file]), encoding="utf-8")


def without(source, cuts):
    """The source with an error in place of each cut's statements, at their indentation."""
    lines = source.splitlines(keepends=True)
    for first, last, turn in sorted((*region(source, cut), cut.turn) for cut in cuts)[::-1]:  # from below: lines shift
        indent = lines[first - 1][: -len(lines[first - 1].lstrip())]
        lines[first - 1 : last] = [f'{indent}raise NotImplementedError("your turn: {turn}")\n']
    return "".join(lines)


def region(source, cut):
    """First and last line of what is cut out, counted from 1."""
    body = ast.parse(source).body
    for name in cut.function.split("."):
        (node,) = (node for node in body if getattr(node, "name", None) == name)
        body = node.body
    if ast.get_docstring(node) is not None:
        body = body[1:]
    begins = [ast.get_source_segment(source, statement) for statement in body]
    firsts = [i for i, text in enumerate(begins) if text.startswith(cut.first)]
    lasts = [i for i, text in enumerate(begins) if text.startswith(cut.last) and i >= firsts[0]] if firsts else []
    if not lasts:
        raise ValueError(f"{cut.file}: {cut.function} has no statements from {cut.first!r} to {cut.last!r}")
    return body[firsts[0]].lineno, body[lasts[0] if cut.last else -1].end_lineno


def turns(exercise, copy):
    """(file, line) of each place in the copy that is still to be written."""
    for file in dict.fromkeys(cut.file for cut in exercise.cuts):
        lines = (copy / "tinydiff" / file).read_text(encoding="utf-8").splitlines()
        yield from ((file, number) for number, line in enumerate(lines, 1) if '"your turn: ' in line)


# ----------------------------------------------------------------------------------------------------------- the check


def broken_files(exercise, copy):
    """A failed law for each of the exercise's files that is not Python."""
    laws = []
    for file in dict.fromkeys(cut.file for cut in exercise.cuts):
        path = copy / "tinydiff" / file
        try:
            ast.parse(path.read_text(encoding="utf-8"))
        except SyntaxError as error:
            place = {"file": str(path), "line": error.lineno, "code": (error.text or "").strip(), "function": ""}
            law = {"name": f"{file} is Python", "text": "", "passed": False, "error": f"SyntaxError: {error.msg}"}
            laws.append(law | {"places": [place], "example": ""})
    return laws


def check_tools():
    """Raise TinydiffError if the laws could not be run, before anything is written."""
    if missing := [name for name in ("pytest", "hypothesis") if find_spec(name) is None]:
        raise TinydiffError(f'the laws need {" and ".join(missing)}: pip install -e ".[test]"')


def judge(exercise, copy):
    """The result of tests/laws.py for the copy, from a new process that has imported no other tinydiff."""
    check_tools()
    arguments = [sys.executable, str(ROOT / "tests" / "laws.py"), str(copy.resolve()), *exercise.laws]
    try:
        done = subprocess.run(arguments, cwd=copy, capture_output=True, text=True, timeout=LIMIT)
    except subprocess.TimeoutExpired:
        raise TinydiffError(f"stopped after {LIMIT} s: is there a loop in your code that never ends?") from None
    if done.returncode:
        reason = (done.stderr.strip() or "no reason is given").splitlines()[-1]
        raise TinydiffError(f"the laws could not be run: {reason}")
    return json.loads(done.stdout)


def in_words(law, exercise):
    """Why a law failed: what was wrong, where, and in which case.

    Where: the last line in the functions that the reader writes, or, if the error passed none of them, in the law.
    """
    cuts = [(str(Path("tinydiff", cut.file)), cut.function.split(".")[-1]) for cut in exercise.cuts]
    inside = [at for at in law["places"] if any(at["file"].endswith(file) and at["function"] == f for file, f in cuts)]
    place = (inside or law["places"] or [None])[-1]
    where = f"{near(place['file'])}:{place['line']}: " if place else ""
    if "your turn: " in law["error"]:
        return f"still to be written, {where}{law['error'].partition('your turn: ')[2]}"
    case = f"with {law['example']}" if law["example"] else ""
    return "\n".join(filter(None, [textwrap.shorten(law["error"], 300), where and where + place["code"], case]))


def near(path):
    """The path from the current folder, or the whole path if the file lies outside it."""
    relative = os.path.relpath(path)
    return path if relative.startswith("..") else relative


# -------------------------------------------------------------------------------------------------------- the progress


def find(name):
    """The exercise of this name or number."""
    names = [exercise.name for exercise in EXERCISES]
    if name.isdigit() and 1 <= int(name) <= len(names):
        return EXERCISES[int(name) - 1]
    if name not in names:
        close = difflib.get_close_matches(name, names, cutoff=0.5)
        which = f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(names)}"
        raise TinydiffError(f"no exercise is called {name}: {which}")
    return EXERCISES[names.index(name)]


def number_of(exercise):
    return 1 + EXERCISES.index(exercise)


def next_one(folder):
    left = [exercise for exercise in EXERCISES if progress(exercise, folder) is None]
    if not left:
        raise TinydiffError(f"every exercise has been started in {folder}: name one, and add --fresh to do it again")
    return left[0]


def latest(folder):
    """The exercise that was worked on last."""
    begun = [exercise for exercise in EXERCISES if progress(exercise, folder) is not None]
    if not begun:
        raise TinydiffError(f"no exercise is under way in {folder}: {command('start', folder)}")
    return max(begun, key=lambda exercise: _note(exercise, folder).stat().st_mtime_ns)


def progress(exercise, folder):
    """The number of hints given, and whether it is solved; None if it was not started."""
    path = _note(exercise, folder)
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def keep(exercise, folder, **changes):
    with atomic_write(_note(exercise, folder)) as file:
        file.write(json.dumps((progress(exercise, folder) or {}) | changes).encode())


def _note(exercise, folder):
    return folder / exercise.name / "progress.json"


def command(words, folder):
    """What to type for these words."""
    return f"python demos/exercises/exercise.py {words}" + ("" if folder == Path(FOLDER) else f" --dir {folder}")


def show(text, before=""):
    """Print lines of text, wrapped to the terminal, the first after `before` and the rest below it."""
    width = min(shutil.get_terminal_size().columns, 120)
    wrap = textwrap.TextWrapper(width, break_long_words=False, break_on_hyphens=False)  # a path stays in one piece
    for line in text.splitlines():
        wrap.initial_indent, wrap.subsequent_indent = before, " " * len(before)
        print(wrap.fill(line))
        before = wrap.subsequent_indent


if __name__ == "__main__":
    parser = cli.parser(__doc__, main)
    actions = ["list", "start", "check", "hint", "solution"]
    parser.add_argument("action", nargs="?", choices=actions, help="what to do")
    parser.add_argument("name", nargs="?", help="an exercise, by its name or number (default: the next, or the last)")
    parser.add_argument("--dir", help="folder of the working copies")
    parser.add_argument("--fresh", action="store_true", help="start again, and throw your work away")
    cli.run(main, parser)
