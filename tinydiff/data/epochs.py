"""Which images make up the batch of a training step: an endless sequence of shuffled epochs, read B at a time.

The order is a pure function of (num, batch_size, seed, step): nothing is carried from step to step, so a run that
resumes at any step reads on exactly where it stopped, and no state of a loader has to be saved.

Read next: ../train.py.
"""

from functools import lru_cache

import numpy as np

from tinydiff.backend import default_rng


def epoch_indices(num: int, batch_size: int, seed: int, step: int) -> np.ndarray:
    """Rows of the batch of 0-based `step`: positions step B .. step B + B - 1 of the epochs laid end to end.

        index at position p = permutation of epoch (p // num) [p % num]

    Each epoch holds every row 0..num-1 once; a batch may span epochs.  Returns (batch_size,) int64.
    Raises ValueError unless num, batch_size >= 1 and seed, step >= 0.
    """
    for name, value, least in (("num", num, 1), ("batch_size", batch_size, 1), ("seed", seed, 0), ("step", step, 0)):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    epoch, start = divmod(step * batch_size, num)
    pieces = [_permutation(num, seed, epoch)[start : start + batch_size]]
    while (missing := batch_size - sum(map(len, pieces))) > 0:
        epoch += 1
        pieces.append(_permutation(num, seed, epoch)[:missing])
    return np.concatenate(pieces)


@lru_cache(maxsize=2)
def _permutation(num: int, seed: int, epoch: int) -> np.ndarray:
    return default_rng("epoch", seed, epoch).permutation(num)
