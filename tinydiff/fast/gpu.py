"""Functions for a GPU only: concat and take in few launches, batches drawn ahead, and losses read late.

A small network on a GPU spends its time on launches and on waiting for the host, not on arithmetic.  So no training
step should wait: threads draw the next batches (`Ahead`), and losses and norms stay on the device for PERIOD steps.
Read next: graph.py.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import accumulate
from typing import Any

import numpy as np

from tinydiff.backend import asarray, host_integers, to_numpy, xp
from tinydiff.fast import kernels
from tinydiff.ops.shape import concat as plain_concat
from tinydiff.train import Batch, Training, metrics_row

ALIGNED = 256  # bytes, as CUDA aligns the arrays that it allocates
AHEAD = 4  # batches, each drawn by a thread
PERIOD = 50  # steps between two copies of the losses to the host; the host waits for each copy


def concat(*xs):
    """The faster form of ops.concat: one launch for two arrays."""
    if len(xs) != 2:
        return plain_concat.__wrapped__(*xs)  # type: ignore[attr-defined]
    size = xs[0].shape[-1]
    return kernels.concat(*xs), lambda g: [lambda part=part: part for part in kernels.split(g, size)]


def take(x, *, indices):
    """The faster form of ops.take: its gradient is one launch, without a one-hot matrix and a product."""
    indices, shape = asarray(host_integers("indices", indices, 0, len(x) - 1)), x.shape  # the gradient needs no x
    return x[indices], lambda g: (lambda: kernels.take_gradient(g, indices, shape),)


def note(state: Training, losses: Any, norm: Any, rate: float, batch: Batch) -> None:
    """Training.note, which leaves losses and norm on the device.  The next call of `metrics` reads them; so does `note`
    when PERIOD earlier steps are waiting.  It does not read those of its own step, which may not have been launched.

    So a nan is found up to PERIOD steps later.  A step with a nan or infinite gradient updates nothing, because Adam
    and EMA check the norm of a Flat.  Without a Flat the norm is a number on the host, and the plain `note` checks it.
    """
    if isinstance(norm, float):
        Training.note.__wrapped__(state, losses, norm, rate, batch)  # type: ignore[attr-defined]
        return
    late = vars(state).setdefault("late", [])
    if len(late) >= PERIOD:
        metrics(state)
    late.append((losses, norm, rate, {"t": batch.get("t")}))  # without the images, which nobody reads again


def metrics(state: Training) -> list[tuple[float, ...]]:
    """Training.metrics.  It first copies all waiting losses and norms to the host, in one copy each, and adds their
    rows.

    Raises TrainingError for the first step whose loss or gradient is nan or infinite.  Every later call raises the same
    error, so such a run can no longer be saved.
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
    """draw(config, step), with the batches of the next AHEAD steps drawn by threads while the device computes.

    draw must be a pure function of its arguments, which several threads may call at once.  The threads work on host
    arrays only, and pack each batch into one buffer.  NumPy releases the interpreter's lock during long operations, so
    the threads run side by side.  Only the calling thread gives work to the device.
    """

    def __init__(self, draw: Callable[[Any, int], Batch]):
        self._draw, self._config = draw, None
        self._threads = ThreadPoolExecutor(AHEAD)  # a thread starts with its first job
        self._batches: dict[int, Future] = {}  # of the steps to come

    def __reduce__(self) -> Any:
        return Ahead, (self._draw,)

    def __call__(self, config: Any, step: int) -> Batch:
        if config != self._config:
            self._config, self._batches = config, {}
        steps, drawn = range(step, step + 1 + AHEAD), self._batches
        self._batches = {k: drawn.get(k) or self._threads.submit(self._packed, config, k) for k in steps}
        return self._batches.pop(step).result()  # raises what the thread raised

    def _packed(self, config: Any, step: int) -> Batch:
        batch = self._draw(config, step)
        return Packed.of(batch) if all(isinstance(a, np.ndarray) for a in batch.values()) else batch


class Packed(dict[Any, Any]):
    """A batch of host arrays that lie in one buffer of bytes, which one copy brings to the device.

    Each array starts at a multiple of ALIGNED bytes.
    """

    def __init__(self, batch: dict[Any, Any]):
        sizes = (-(-a.nbytes // ALIGNED) * ALIGNED for a in batch.values())
        self._starts = list(accumulate(sizes, initial=0))
        self.buffer = np.zeros(self._starts[-1], np.uint8)
        super().__init__(batch)
        self.update(self.views(self.buffer))
        for name, a in batch.items():
            self[name][...] = a

    @classmethod
    def of(cls, batch: Batch) -> "Packed":
        """The batch itself if it is packed."""
        return batch if isinstance(batch, cls) else cls(batch)

    def views(self, buffer: Any) -> dict[Any, Any]:
        """The arrays in such a buffer, of the host or of the device."""
        ends = [start + a.nbytes for start, a in zip(self._starts, self.values())]
        parts = [buffer[start:end] for start, end in zip(self._starts, ends)]
        return {name: part.view(a.dtype).reshape(a.shape) for part, (name, a) in zip(parts, self.items())}
