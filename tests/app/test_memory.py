"""A step that needs too much memory: the search for a batch size that fits, on a device of a known size."""

import weakref

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tinydiff.app.memory import out_of_memory
from tinydiff.train import TrainingError

pytestmark = pytest.mark.training


def search(batch_size, room):
    """The message of a step that did not fit, where `room` examples fit, and the sizes that were tried."""
    tried = []

    def gradient(n):
        tried.append(n)
        if n > room:
            raise MemoryError

    error = out_of_memory(MemoryError("no room for 8 bytes."), batch_size, gradient)
    assert type(error) is TrainingError
    return str(error), tried


@given(batch_size=st.integers(1, 5000), share=st.floats(0, 1, exclude_max=True))
@example(batch_size=1, share=0.0)  # nothing is left to try
@example(batch_size=2, share=0.0)
@example(batch_size=2, share=0.5)
@example(batch_size=17, share=8 / 17)  # to one example below 8, to 2 from 8 on
@example(batch_size=4096, share=4095 / 4096)
def test_the_largest_size_that_fits_is_found_to_within_an_eighth(batch_size, share):
    """Bisection: each size tried is the middle of what is left, and the search ends with the first gap within it."""
    room = int(share * batch_size)
    said, tried = search(batch_size, room)
    fits, fails = 0, batch_size
    for n in tried:
        assert fails - fits > 1 + fits // 8  # else the search should have ended
        assert n == (fits + fails) // 2 and fits < n < fails
        fits, fails = (n, fails) if n <= room else (fits, n)
    assert fits <= room < fails <= fits + 1 + fits // 8
    remedy = f"batch size {fits} fits" if room else "not even one example fits"
    assert said == f"batch size {batch_size} needs more memory than there is, {remedy} (no room for 8 bytes)"


def test_an_error_without_words_is_out_of_memory():
    """NumPy names the array that had no room; Python itself does not."""
    assert str(out_of_memory(MemoryError(), 1, None)).endswith("fits (out of memory)")


def test_what_the_failed_step_held_is_freed_before_the_search():
    """The traceback of the error keeps the step's arrays alive until the frames are cleared."""
    alive = []

    def step():
        array = np.zeros(9)
        alive.append(weakref.ref(array))
        raise MemoryError

    try:
        step()
    except MemoryError as error:
        out_of_memory(error, 2, lambda n: alive.append(alive[0]() is None))
    assert alive[1:] == [True]


def test_another_error_ends_the_search():
    """Only a lack of memory makes a size too large."""
    with pytest.raises(ZeroDivisionError):
        out_of_memory(MemoryError(), 8, lambda n: 1 / 0)
