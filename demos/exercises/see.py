"""See what a working copy draws: its pictures below the original's, from the same noise.

Where the copy is right the two rows are the same.  Where a sign is wrong, the digits become grey squares.
Read next: drawing.py, which draws.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from copies import ROOT
from drawing import TIMES

from tinydiff.app import plots
from tinydiff.backend import TinydiffError

CHECKPOINT = Path("runs/mnist/checkpoint.npz")
SECONDS = 300  # the small network is trained in about 10 s
SAME = 1e-3  # of the range from black to white: float32, rounded differently at each of some steps


def drawn(exercise, copy, checkpoint):
    """(pictures of the original, of the copy, None), or (None, None, what went wrong in the copy).

    The two are drawn at the same time, in processes of their own.  TinydiffError if the original cannot be drawn.
    """
    with tempfile.TemporaryDirectory() as folder:
        outs = [Path(folder, f"{name}.npz") for name in ("original", "yours")]
        running = []
        try:
            for package, out in zip((ROOT, Path(copy).resolve()), outs):
                words = (str(package), exercise.scene, exercise.sampler, str(checkpoint or ""), str(out))
                running.append(_started(words))
            results = [_result(process) for process in running]
        finally:
            for process in running:
                process.kill()
                process.communicate()
        if "refused" in results[0]:
            raise TinydiffError(results[0]["refused"])
        if results[0]:
            raise TinydiffError(f"the original could not be drawn: {results[0]['error']}")
        if results[1]:
            error = results[1].get("refused")
            return None, None, results[1] if error is None else {"error": error, "places": [], "example": ""}
        return *(np.load(out)["images"] for out in outs), None


def save(path, exercise, original, yours, title):
    """Write the picture, and return a sentence that compares the two rows."""
    bad = ~np.isfinite(yours)
    shown = [original, np.where(bad, 0, yours)]
    columns = len(TIMES) if exercise.scene == "noise" else len(original)
    rows = len(original) // columns
    title = f"{title}; t = {', '.join(map(str, TIMES))}" if exercise.scene == "noise" else title
    labels = [name for name in ("original", "yours") for _ in range(rows)]
    if rows == 2:
        labels = [f"{name}, {schedule}" for name in ("original", "yours") for schedule in ("linear", "cosine")]
    side = original.shape[1]
    plots.save_grid(
        path,
        np.clip(np.concatenate(shown), -1, 1),
        columns=columns,
        title=title,
        row_labels=labels,
        scale=max(2, 84 // side),
    )
    if bad.any():
        return f"{bad.mean():.0%} of your numbers are NaN or infinite, and are drawn grey."
    if original.shape != yours.shape:
        return "Your pictures have another shape than the original's."
    difference = abs(np.clip(yours, -1, 1) - np.clip(original, -1, 1)).mean() / 2
    if difference < SAME:
        return "Your pictures are the original's."
    return f"Your pictures differ from the original's, by {difference:.1%} of the range from black to white on average."


def _started(words):
    code = "import sys, drawing; drawing.main(*sys.argv[1:])"
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}  # two processes run side by side
    here = Path(__file__).resolve().parent
    command = [sys.executable, "-c", code, *words]
    return subprocess.Popen(
        command,
        cwd=here,
        env=environment,
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def _result(process):
    """The JSON that the process prints; TinydiffError if it is stopped or prints none."""
    try:
        output, errors = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        raise TinydiffError(f"stopped after {SECONDS} s: is there a loop in your code that never ends?") from None
    if process.returncode or not output.strip():
        reason = (errors.strip() or "no reason is given").splitlines()[-1]
        raise TinydiffError(f"nothing could be drawn: {reason}")
    return json.loads(output.splitlines()[-1])
