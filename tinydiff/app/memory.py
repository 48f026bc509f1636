"""A step that needs more memory than there is: which batch size would fit?

Read next: run.py.
"""

import traceback
from collections.abc import Callable
from typing import Any

from tinydiff.train import TrainingError


def out_of_memory(error: MemoryError, batch_size: int, gradient: Callable[[int], Any]) -> TrainingError:
    """The error to raise after a step with too little memory.  Its message contains a batch size that fits.

    gradient(n): computes the gradient of n examples.  Bisection finds the largest size that fits, to within an eighth.
    """
    fits, fails, reason = 0, batch_size, str(error).rstrip(".") or "out of memory"
    traceback.clear_frames(error.__traceback__)  # the frames still hold the arrays of the failed step
    while fails - fits > 1 + fits // 8:
        n = (fits + fails) // 2
        try:
            gradient(n)
            fits = n
        except MemoryError:
            fails = n
    remedy = f"batch size {fits} fits" if fits else "not even one example fits"
    return TrainingError(f"batch size {batch_size} needs more memory than there is, {remedy} ({reason})")
