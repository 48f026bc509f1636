"""The options of precision.py: runs and gradients note their task and cost nothing."""

import numpy as np
from option_rows import DIFFERS, WORKERS
from recorder import note_pictures

WORDS = "--steps=8"


def stand_ins(program, notes, patch):
    runs = program.names["trained"].__globals__

    def trained(task, _, run):
        notes.add(**{name: getattr(task.config, name) for name in ("num_steps", "seed", "warmup", "batch_size")})
        return runs["Result"](np.ones(3), np.ones(3), ["weights"], np.zeros((10, 4, 4, 1)))

    def gradient_error(task, weights, _, run):
        notes.add(error_seed=task.config.seed, error_step=task.config.num_steps, at=weights, loss_scale=run.loss_scale)
        return runs["GradientError"](1e-3, 0.0, 0.0)

    patch.setitem(program.names, "trained", trained)

    class Page:
        def savefig(self, file, format):
            file.write(b"")

    patch.setitem(program.names, "gradient_error", gradient_error)
    patch.setitem(program.names, "figure", lambda *_: Page())
    note_pictures(notes, patch)


def all_runs(first, second, runs=6):
    return [first] * runs, [second] * runs


ROWS = {
    **{name: (first, second, {"workers": (5, 3)}) for name, (first, second, _) in WORKERS.items()},
    "--steps": (
        "",
        "--steps=200",
        {
            "num_steps": all_runs(8, 200),
            "warmup": all_runs(4, 50),
            "error_step": all_runs(8, 200, 18),
            "save_grid title": DIFFERS,
        },
    ),
    "--seed": ("", "--seed=1", {"seed": all_runs(0, 1), "error_seed": all_runs(0, 1, 18)}),
    "--out": (
        "",
        "--out=x",
        {
            "save_grid path": ("runs/precision/samples.png", "x/samples.png"),
            "files": (
                ["runs/precision/precision.png", "runs/precision/table.csv"],
                ["x/precision.png", "x/table.csv"],
            ),
            "printed": DIFFERS,
        },
    ),
}
