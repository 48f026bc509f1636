"""Take a part out of the package, write it anew, and let the laws of the suite judge it: learn by building.

    python demos/exercises/exercise.py list               fifteen exercises, 10 to 30 minutes each
    python demos/exercises/exercise.py start closed_form  a copy without a few statements
    python demos/exercises/exercise.py check              a small case and the laws judge your copy
    python demos/exercises/exercise.py see                what your copy draws, below the original's
    python demos/exercises/exercise.py hint               one more hint, of three
    python demos/exercises/exercise.py solution           the statements that were taken out
    python demos/exercises/exercise.py answer             its question: first your answer, then ours
    python demos/exercises/exercise.py answer stop3       the same for a stop of the tour, 1 to 11

A copy lies in runs/exercise/NAME/.  Nothing else is touched, so any number of exercises may be under way.  Without a
name, start takes the next exercise, and the other commands take the one that was worked on last.  A check runs the
functions of the book as they stand: nothing faster takes the place of what you write.  It ends with exit code 1 if
something is wrong.  see draws digits with the checkpoint of train_mnist.py.  Where there is none, and where the
exercise is about training, it trains a small network on stripes first, with your copy: 10 s, of which nothing is kept.

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

import see as pictures
from answers import ANSWERS, STOPS
from copies import ROOT, make_copy, region, turns
from exercises import EXERCISES

from tinydiff.app import cli
from tinydiff.app.checkpoint import atomic_write
from tinydiff.app.outputs import own_folder
from tinydiff.backend import TinydiffError
from tinydiff.fast.mpi import source_digest

FOLDER = "runs/exercise"
LIMIT = 120  # seconds that a check may take: the last resort, where the judge has stopped no law


LONGEST = 400  # characters of a reason
WORDS = 5  # that an answer must have before ours is shown


def main(action="list", name=None, *, dir=FOLDER, fresh=False, checkpoint=None):
    """Do one of the seven actions; a check that fails, and a copy that cannot draw, end with exit code 1."""
    folder = Path(dir)
    if fresh and action != "start":
        raise TinydiffError(f"--fresh goes with start, not with {action}")
    if checkpoint and action != "see":
        raise TinydiffError(f"--checkpoint goes with see, not with {action}")
    if name and action == "list":
        raise TinydiffError(f"list shows every exercise; for {name} alone choose start, check, see, hint or solution")
    if action == "list":
        show_list(folder)
    elif action == "start":
        start(find(name) if name else next_one(folder), folder, fresh)
    elif action == "answer":
        answer(name if name in STOPS else (find(name) if name else latest(folder)).name, folder)
    else:
        exercise = find(name) if name else latest(folder)
        if progress(exercise, folder) is None:
            raise TinydiffError(f"{exercise.name} has not been started: {command(f'start {exercise.name}', folder)}")
        if action == "check":
            right = check(exercise, folder)
        elif action == "see":
            right = see(exercise, folder, checkpoint)
        else:
            right = True
            (hint if action == "hint" else solution)(exercise, folder)
        if not right:
            sys.exit(1)


# ------------------------------------------------------------------------------------------------------- seven actions


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
    """Run the small case and the laws on the copy and explain what failed; True if all laws hold.

    Where the small case shows what is wrong, the laws that fail give no reason of their own: there the same mistake may
    show as thousands of numbers.
    """
    copy = folder / exercise.name
    print(f"{exercise.name}: a small case and {len(exercise.laws)} laws of tests/ on {copy / 'tinydiff'}\n", flush=True)
    if progress(exercise, folder).get("source", source_digest()) != source_digest():
        again = command(f"start {exercise.name} --fresh", folder)
        show(f"note: the package has changed since this copy was made, and the laws with it: {again}")
    if broken := broken_files(exercise, copy):
        for file in broken:
            show_result(exercise, file)
        keep(exercise, folder, solved=False)
        return False
    small, *laws = judge(exercise, copy)
    held = sum(law["passed"] for law in laws)
    rounding = small.get("rounding", False)
    solved = bool(laws) and held == len(laws) and (small["passed"] or rounding)
    keep(exercise, folder, solved=solved)
    if printed := small.get("printed", "").strip():
        show(f"Your code prints:\n{printed}\n")
    show_result(exercise, small if not solved else small | {"passed": True}, "DIGITS  " if rounding else "FAILED  ")
    before = None
    for law in laws:
        reason = law.get("error"), law.get("places", [])[-1:]
        show_result(exercise, law, words=None if small["passed"] else "", again=reason == before)
        before = before if law["passed"] else reason
    if not solved:
        if laws:
            print(f"\n{held} of {len(laws)} laws hold.", end="")
            print("  The formula is right. What it loses are digits." if rounding else "", end="")
            stopped = laws[-1].get("error", "").startswith("stopped after ")
            print("  Those after the one that was stopped were not run." if stopped else "", end="")
        print(f"\nStuck?  {command('hint', folder)}")
        return False
    print(f"\nSolved: all laws hold.  See what it draws:\n    {command('see', folder)}")
    print("A question that you can answer now:")
    show(exercise.question, "    ")
    print(f"    {command('answer', folder)}")
    print("Read next:")
    show(exercise.read_next, "    ")
    later = EXERCISES[number_of(exercise) :] + EXERCISES[: number_of(exercise)]
    left = [other.name for other in later if not (progress(other, folder) or {}).get("solved")]
    print(f"Next exercise:\n    {command(f'start {left[0]}', folder)}" if left else "That was the last one.")
    return True


def show_result(exercise, law, mark="FAILED  ", words=None, again=False):
    """Print whether a law holds, and why not: in `words`, by default those of the law; again: as above."""
    show(law["name"], "    ok  " if law["passed"] else mark)
    if not law["passed"]:
        show(law["text"], " " * 8)
        show("as above" if again and words is None else in_words(law, exercise) if words is None else words, "     -> ")


def see(exercise, folder, checkpoint=None):
    """Draw with the original and with the copy, and write the picture; False if the copy cannot draw."""
    check_tools()
    path = Path(checkpoint or pictures.CHECKPOINT)
    if checkpoint and not path.is_file():
        raise TinydiffError(f"--checkpoint {path}: there is no such file. python demos/train_mnist.py makes one")
    found = exercise.scene == "draw" and path.is_file()
    if exercise.scene == "draw" and not found:
        show(f"{path} is not there. python demos/train_mnist.py makes it, and then see draws digits. Until then:")
    what = "one digit noised to some t" if exercise.scene == "noise" else f"ten pictures, drawn with {path}"
    if exercise.scene != "noise" and not found:
        what = "ten pictures of stripes that lie or stand, drawn by a small network that your copy trains"
    show(f"{exercise.name}: {what}.")
    print(end="", flush=True)
    original, yours, error = pictures.drawn(exercise, folder / exercise.name, path.resolve() if found else None)
    if error:
        show("your copy cannot draw yet:")
        show(in_words(error, exercise), "     -> ")
        return False
    target = folder / exercise.name / "see.png"
    said = pictures.save(target, exercise, original, yours, f"{exercise.name}: {exercise.title}")
    show(f"{said}\npicture: {target}")
    return True


def answer(name, folder):
    """Print a question, read the reader's answer from standard input, keep it, and only then print ours."""
    if name in STOPS:
        question, ours = STOPS[name]
    else:
        question, ours = find(name).question, ANSWERS[name]
    show(question)
    path = folder / "answers" / f"{name}.txt"
    if path.exists():
        written = path.read_text(encoding="utf-8")
        print("\nYou wrote:")
        show(written, "    ")
    else:
        print(f"\nWrite your answer, {WORDS} words or more. An empty line ends it.\n", flush=True)
        lines = []
        for line in sys.stdin:
            if not line.strip():
                break
            lines.append(line.strip())
        written = "\n".join(lines)
        if len(written.split()) < WORDS:
            raise TinydiffError(f"an answer has {WORDS} words or more: ours is shown when yours is written")
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            file.write(written.encode())
    print("\nOurs:")
    show(ours, "    ")


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


# ----------------------------------------------------------------------------------------------------------- the check


def broken_files(exercise, copy):
    """A failed law for each of the exercise's files that is not Python."""
    laws = []
    for file in dict.fromkeys(cut.file for cut in exercise.cuts):
        path = copy / "tinydiff" / file
        try:
            ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, ValueError) as error:  # ValueError: bytes that are no text, or a NUL
            law = {"name": f"{file} is Python", "text": "", "passed": False, "places": [], "example": ""}
            law["error"] = f"{type(error).__name__}: {getattr(error, 'msg', error)}"
            if line := getattr(error, "lineno", None):
                code = (error.text or "").strip()
                law["places"] = [{"file": str(path), "line": line, "code": code, "function": ""}]
            laws.append(law)
    return laws


def check_tools():
    """Raise TinydiffError if the laws could not be run, before anything is written."""
    if missing := [name for name in ("pytest", "hypothesis") if find_spec(name) is None]:
        raise TinydiffError(f'the laws need {" and ".join(missing)}: pip install -e ".[test]"')


def judge(exercise, copy):
    """The results of judge.py for the copy, from a new process that has imported no other tinydiff."""
    check_tools()
    code = "import sys, judge; judge.main(*sys.argv[1:])"
    arguments = [sys.executable, "-c", code, str(copy.resolve()), exercise.name, *exercise.laws]
    here = Path(__file__).resolve().parent
    try:
        options = {"cwd": here, "stdin": subprocess.DEVNULL}  # a breakpoint in the reader's code ends at once
        done = subprocess.run(arguments, **options, capture_output=True, text=True, timeout=LIMIT)
    except subprocess.TimeoutExpired:
        raise TinydiffError(f"stopped after {LIMIT} s: is there a loop in your code that never ends?") from None
    if done.returncode or not done.stdout.strip():
        reason = (done.stderr.strip() or "no reason is given").splitlines()[-1]
        raise TinydiffError(f"the laws could not be run: {reason}")
    return json.loads(done.stdout.splitlines()[-1])


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
    return "\n".join(filter(None, [textwrap.shorten(law["error"], LONGEST), where and where + place["code"], case]))


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
    actions = ["list", "start", "check", "see", "hint", "solution", "answer"]
    parser.add_argument("action", nargs="?", choices=actions, help="what to do")
    parser.add_argument(
        "name",
        nargs="?",
        help="an exercise, by name or number, or a stop of the tour (default: the next or the last exercise)",
    )
    parser.add_argument("--checkpoint", help="network that see draws with (default: runs/mnist/checkpoint.npz)")
    parser.add_argument("--dir", help="folder of the working copies")
    parser.add_argument("--fresh", action="store_true", help="start again, and throw your work away")
    cli.run(main, parser)
