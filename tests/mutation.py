"""Mutation testing: the command that cosmic-ray runs for each wrong line, and the score at the end.

    git clone . ../mutants && cd ../mutants                   wrong lines are written into the source
    cosmic-ray init .cosmic-ray.toml session.sqlite           every one-token change of the mathematics
    cosmic-ray exec .cosmic-ray.toml session.sqlite           each against the tests: hours on one core
    python tests/mutation.py session.sqlite                   the score, and each survivor without an excuse

Without an argument this file is the test command: git says which file is changed, its own tests run first, then those
of the layers around it.  equivalent_mutants.py names the changes that change nothing, with the reason for each.
"""

import os
import re
import sqlite3
import subprocess
import sys
from collections import Counter
from pathlib import Path

from equivalent_mutants import EQUIVALENT

ROOT = Path(__file__).parents[1]
# The tests that speak about a part of the package, those of its own file apart.
AROUND = {
    "tinydiff/diffusion/": ["tests/diffusion", "tests/test_exact.py", "tests/test_samples.py"],
    "tinydiff/ops/": ["tests/ops", "tests/nn", "tests/test_autograd.py"],
    "tinydiff/nn/": ["tests/nn", "tests/app/test_training.py"],
    "tinydiff/autograd.py": ["tests/ops", "tests/nn"],
    "tinydiff/optim.py": ["tests/test_train.py", "tests/test_learning.py"],
    "tinydiff/train.py": ["tests/app/test_training.py", "tests/test_learning.py", "tests/demos/test_train_mnist.py"],
    "tinydiff/data/": ["tests/data"],
    "tinydiff/app/": ["tests/app", "tests/demos/test_train_mnist.py"],
    "tinydiff/fast/workers.py": ["tests/fast/test_same_run.py", "tests/fast/test_processes.py"],
    "tinydiff/fast/processes.py": ["tests/fast/test_workers.py"],
    "tinydiff/fast/mpi.py": ["tests/demos/test_mpiexec.py"],
    "demos/measure/": ["tests/demos/measure"],
    "demos/prompts/": ["tests/demos/prompts"],
    "demos/explorer/": ["tests/demos/explorer"],
    "demos/exercises/": ["tests/demos/exercises"],
    "demos/exact.py": ["tests/test_exact.py", "tests/diffusion"],
    "demos/": ["tests/demos"],
}
BOOK = ("diffusion/", "ops/", "nn/", "autograd.py", "optim.py", "train.py")  # their tests also pass with --plain
LOOKED_UP = ["tests/fast/test_install.py"]  # with the table full: that each faster form is looked up


def run_tests() -> int:
    """pytest's exit status for the one file that differs from git's: 0 if no test noticed."""
    command = ["git", "diff", "--name-only", "--", "tinydiff", "demos"]
    changed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    rounds, book = [["tests"]], False  # nothing changed: the baseline
    if changed:
        (name,) = changed
        book = name.startswith(tuple(f"tinydiff/{part}" for part in BOOK))
        file = Path(name).with_name(f"test_{Path(name).name}").as_posix()
        own = file.replace("tinydiff", "tests", 1) if name.startswith("tinydiff") else f"tests/{file}"
        around = next(around for part, around in AROUND.items() if name.startswith(part))
        rounds = [[own]] if (ROOT / own).exists() else []
        rounds.append([*around, "tests/test_package.py"])  # most mutants never come so far
        rounds += [LOOKED_UP] if book else []
    # No shrinking: that a test fails is enough.
    environment = {**os.environ, "HYPOTHESIS_PROFILE": "mutation"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
    for tests in rounds:
        plain = ["--plain"] if book and tests is not LOOKED_UP else []
        if rc := subprocess.call([*command, *plain, *tests], cwd=ROOT, env=environment):
            return rc
    return 0


def report(session: str) -> int:
    """Print how many mutants of each file were killed; 1 if one survived that is not known to change nothing."""
    rows = sqlite3.connect(session).execute(
        "select module_path, start_pos_row, operator_name, test_outcome, diff from mutation_specs"
        " join work_results using (job_id) order by module_path, start_pos_row"
    )
    count = Counter()
    for path, row, operator, outcome, diff in rows:
        before, after = (re.findall(rf"^{sign} *(.*)", diff, re.MULTILINE)[-1:] or [""] for sign in ("-", r"\+"))
        excused = any(
            file in path and line in before[0] and re.search(mutant, after[0]) for file, line, mutant, _ in EQUIVALENT
        )
        kind = "killed" if outcome != "SURVIVED" else "equivalent" if excused else "survived"
        count[path, kind] += 1
        if kind == "survived":
            print(f"{path}:{row} {operator}\n  - {before[0]}\n  + {after[0]}")
    for path in sorted({path for path, _ in count}):
        print(f"{path:34}", *(f"{count[path, kind]:6} {kind}" for kind in ("killed", "equivalent", "survived")))
    return int(any(count[path, "survived"] for path, _ in count))


if __name__ == "__main__":
    sys.exit(report(sys.argv[1]) if len(sys.argv) > 1 else run_tests())
