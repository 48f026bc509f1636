"""What a GPU does in its own way: two launches in place of chains of array functions, and losses that are read late.

A small network on a GPU waits for launches and for the host, not for arithmetic.  So nothing in a training step waits:
the next batch is drawn in a thread (`Ahead`), and losses and norms stay on the device for PERIOD steps.
Read next: device.py.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from tinydiff.backend import asarray, to_numpy, xp
from tinydiff.fast import kernels
from tinydiff.ops.shape import concat as plain_concat
from tinydiff.train import Batch, Training, metrics_row

PERIOD = 50  # steps between two looks at what a GPU has computed, for each of which the host waits


def concat(*xs):
    """ops.concat, in one launch for two arrays."""
    if len(xs) != 2:
        return plain_concat.__wrapped__(*xs)  # type: ignore[attr-defined]
    size = xs[0].shape[-1]
    return kernels.concat(*xs), lambda g: [lambda part=part: part for part in kernels.split(g, size)]


def note(state: Training, losses: Any, norm: Any, rate: float, batch: Batch) -> None:
    """Training.note: what the step left on the device is read with the next `metrics`, or after PERIOD steps.

    So a nan is found up to PERIOD steps later.  A step whose gradient is nan or infinite has updated nothing: Adam and
    EMA look at the norm of a Flat.  Without a Flat the norm is a number on the host, and the plain note looks at it.
    """
    if isinstance(norm, float):
        Training.note.__wrapped__(state, losses, norm, rate, batch)  # type: ignore[attr-defined]
        return
    late = vars(state).setdefault("late", [])
    late.append((losses, norm, rate, {"t": batch.get("t")}))  # not the pictures: they would stay on the device
    if len(late) >= PERIOD:
        metrics(state)


def metrics(state: Training) -> list[tuple[float, ...]]:
    """Training.metrics, once the rows of all steps so far are there: the losses come over together.

    Raises TrainingError for the first step whose loss or gradient is nan or infinite, at every call from then on: such
    a run can no longer be saved.
    """
    late = vars(state).get("late", [])
    if late:
        losses, norms = (to_numpy(xp.stack(values)) for values in list(zip(*late))[:2])
        for step_losses, norm in zip(losses, norms.tolist()):
            _, _, rate, batch = late[0]
            state.rows.append(metrics_row(state, step_losses, norm, rate, batch))
            late.pop(0)
    return state.rows


class Ahead:
    """draw(config, step), with the next step's batch drawn in a thread while the device computes this one.

    The thread works on host arrays only; NumPy lets go of the interpreter's lock meanwhile.  The calling thread alone
    gives the device orders, and the device takes them in order: the copy of a batch comes after what still reads the
    batch before, which lies in other memory, and ahead of what reads this one.
    """

    def __init__(self, draw: Callable[[Any, int], Batch]):
        self._draw = draw
        self._thread = ThreadPoolExecutor(1)  # it starts with its first job
        self._next: tuple[Any, Future | None] = None, None  # what for, and the batch to come

    def __call__(self, config: Any, step: int) -> Batch:
        foreseen, future = self._next
        if future is None or foreseen != (config, step):  # the first step, or not the one foreseen
            future = self._thread.submit(self._joined, config, step)
        self._next = (config, step + 1), self._thread.submit(self._joined, config, step + 1)
        pair, batch = future.result()  # or what was raised there
        x_t, target = asarray(pair)
        return batch | {"x_t": x_t, "target": target}

    def _joined(self, config: Any, step: int) -> tuple[np.ndarray, Batch]:
        """A batch, and its x_t and target as one array: one copy to the device."""
        batch = self._draw(config, step)
        return np.stack((batch["x_t"], batch["target"])), batch
