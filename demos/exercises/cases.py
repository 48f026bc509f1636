"""A small case of every exercise, and what the usual mistakes give there: the sentence that a check shows first.

The laws judge: they hold for any schedule, shape and seed, and so a case in which one fails may have thousands of
numbers.  What is wrong is seen best where T = 3 and an array has one number or a few.  Each function of this table
computes such numbers with the functions of one exercise, and yields them as Small, the simplest first.  What is right
there is computed from the definition, with plain loops where there is one.

Read next: verdicts.py, small_process.py.
"""

import warnings

import numpy as np
from small_engine import attention, backward_walk, conv2d, conv2d_backward, group_norm_backward, unbroadcast
from small_process import closed_form, posterior, schedules
from small_sampler import ddim_step, ddpm_step, guidance
from small_training import ema, time_code, training_loss
from verdicts import verdict

CASES = {
    f.__name__: f
    for f in (
        *(closed_form, posterior, schedules, training_loss, ddpm_step, ddim_step, guidance, unbroadcast, backward_walk),
        *(conv2d, conv2d_backward, group_norm_backward, attention, ema, time_code),
    )
}


def first_wrong(name, book):
    """(case, Verdict) of the first value of an exercise's small cases that is wrong, or None if all are right.

    A value that is right up to rounding is returned only if no other value is wrong: the one that is off most.  What
    the reader's code raises passes through.
    """
    rounded = []
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # three steps do not end in noise
        for small in CASES[name](book):
            found = verdict(small)
            if found and not found.rounding:
                return small.case, found
            if found:
                rounded.append((small.case, found))
    return max(rounded, key=lambda pair: pair[1].rounding, default=None)
