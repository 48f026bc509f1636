"""Which images make up the batch of a training step: shuffled epochs, laid end to end and read B images at a time.

The batch depends on (num, batch_size, seed, step) alone.  A run that resumes at any step therefore reads the same
batches as a run that never stopped, and a checkpoint contains nothing about the order.

Read next: glyphs.py.
"""

from functools import lru_cache

import numpy as np

from tinydiff.backend import default_rng


def epoch_indices(num: int, batch_size: int, seed: int, step: int) -> np.ndarray:
    """Return the rows of the batch of a step, (batch_size,) int64.  Steps count from 0.

    The batch takes the positions p = step B .. step B + B - 1 of the endless sequence of epochs, with B = batch_size:

        row at position p = permutation of epoch (p // num) [p % num]

    Each epoch contains every row 0..num-1 once.  A batch may begin in one epoch and end in another.
    Raises ValueError unless num, batch_size >= 1 and seed, step >= 0.
    """
    for name, value, least in (("num", num, 1), ("batch_size", batch_size, 1), ("seed", seed, 0), ("step", step, 0)):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    epoch, index = np.divmod(step * batch_size + np.arange(batch_size), num)
    return np.concatenate([_permutation(num, seed, e)[index[epoch == e]] for e in range(epoch[0], epoch[-1] + 1)])


@lru_cache(maxsize=2)  # a batch rarely spans more than two epochs
def _permutation(num: int, seed: int, epoch: int) -> np.ndarray:
    return default_rng("epoch", seed, epoch).permutation(num)
