"""A short training run on any loss.  It writes no file and cannot be resumed.

    for loss in fit(workers, losses_of, draw, config):
        ...

Read next: classify.py.
"""

import time
from collections.abc import Iterator
from typing import Any

from tinydiff.app.alone import one_process
from tinydiff.app.training import Draw, attached, steps
from tinydiff.train import LoopConfig, Losses, Training


def fit(workers: Any, losses_of: Losses, draw: Draw, config: LoopConfig) -> Iterator[float]:
    """Train the workers' network on any loss, and yield the mean loss over the batch of each step.

    losses_of, draw: as for Training.  Raises TrainingError as `steps` does.
    """
    state = Training(workers.model, config, draw, losses_of, **attached(workers))
    for _ in steps(state, one_process()):
        yield state.metrics()[-1][0]


def steps_that_fit(workers: Any, losses_of: Losses, draw: Draw, config: LoopConfig, minutes: float) -> int:
    """The number of steps that `fit` can take in so many minutes, at least 1.

    Ten gradients are computed.  The first three are slower than the rest, so only the last seven are timed.
    """
    began = 0.0
    for step in range(10):
        if step == 3:
            began = time.monotonic()
        workers.gradients(losses_of, draw(config, step))
    return max(1, int(minutes * 60 / ((time.monotonic() - began) / 7)))
