"""Training on any loss, as a part of a program.  What a signal or a crash cuts short can be continued.

    state = any_training(workers, losses_of, draw, config)
    finish(state, workers, path, settings, resume, "autoencoder")       # saves at `path` on the way
    ...                                                                 # save what the network was trained for
    path.unlink()

Read next: classify.py.
"""

import statistics
from functools import partial
from pathlib import Path
from typing import Any

from tinydiff.app import checkpoint
from tinydiff.app.run import resumed_workers, run
from tinydiff.app.training import Draw, arrays_of, attached, gradient_seconds, restore
from tinydiff.backend import backend_name, precision
from tinydiff.train import LoopConfig, Losses, Training

KIND = "unfinished training"
SAVE_EVERY = 100  # steps


def any_training(workers: Any, losses_of: Losses, draw: Draw, config: LoopConfig) -> Training:
    """The state of a new training run on any loss.  losses_of, draw: as for Training."""
    return Training(workers.model, config, draw, losses_of, **attached(workers))


def finish(state: Training, workers: Any, path: Path, settings: dict[str, Any], resume: bool, name: str = "") -> None:
    """Train to the end, and save at `path` on the way and at the end.  Raises as `run` does if a signal stops it.

    settings: what decides the run, as JSON stores it.  resume: continue from `path`, if it is there.
    Raises CheckpointError if `path` has other settings, or is not what `finish` saves.
    """
    if resume and path.exists():
        arrays, meta = checkpoint.load(path)
        checkpoint.check_same(meta, {"kind": KIND}, ["kind"])
        checkpoint.check_same(meta["settings"], settings, settings)
        resumed_workers(meta, workers.num_workers, backend_name())
        restore(state, path, arrays, meta)
        print(f"continued at step {state.step} of {state.num_steps}, from {path}")
    else:
        checkpoint.set_aside(path)
    run(state, workers.ranks, partial(_save, state, workers, path, settings), SAVE_EVERY, name=name)


def steps_that_fit(workers: Any, losses_of: Losses, draw: Draw, config: LoopConfig, minutes: float) -> int:
    """The number of steps that can be taken in so many minutes, at least 1: by the median time of some gradients."""
    seconds = statistics.median(gradient_seconds(workers.gradients, losses_of, draw, config))
    return max(1, int(minutes * 60 / seconds))


def _save(state: Training, workers: Any, path: Path, settings: dict[str, Any]) -> None:
    meta = {"kind": KIND, "step": state.step, "num_steps": state.num_steps, "settings": settings}
    meta |= {"num_workers": workers.num_workers, "precision": precision()}
    checkpoint.save(path, arrays_of(state), meta)
