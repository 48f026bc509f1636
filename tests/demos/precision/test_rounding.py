"""Rounding to TF32, bf16 and fp16: known bit patterns, and the definition for any float32."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinydiff.backend import backend_name

pytestmark = [
    pytest.mark.program,
    pytest.mark.skipif(backend_name() != "numpy", reason="the demo rounds on the host"),
]

PATTERNS = st.integers(0, 2**32 - 1)  # of any float32, nan and infinity among them
FRACTIONS = {"tf32": 10, "bf16": 7}


def number(pattern):
    return np.array([pattern], np.uint32).view(np.float32)


@pytest.fixture(params=FRACTIONS)
def rounding(request, module):
    """(the function, the bits of its fraction)."""
    return getattr(module("rounding"), request.param), FRACTIONS[request.param]


def test_known_numbers_are_rounded_to_nearest_and_ties_to_even(module):
    """1 + a step, half a step and one and a half steps above 1; the largest number becomes infinite; nan stays nan."""
    r = module("rounding")
    for f, bits in ((r.tf32, 10), (r.bf16, 7), (r.fp16, 10)):
        step = 2.0**-bits
        given = [1 + step, 1 + step / 2, 1 + 3 * step / 2, 1 + step / 2 + 2.0**-23, -1 - step / 2, 0.0]
        np.testing.assert_array_equal(f(np.float32(given)), np.float32([1 + step, 1, 1 + 2 * step, 1 + step, -1, 0]))
    largest = np.finfo(np.float32).max
    special = np.float32([np.inf, -np.inf, largest, -largest])
    for f in (r.tf32, r.bf16):
        np.testing.assert_array_equal(f(special), np.float32([np.inf, -np.inf, np.inf, -np.inf]))
        assert np.isnan(f(np.float32([np.nan]))).all()


def test_fp16_overflows_and_has_steps_of_2_to_the_minus_24(module):
    """65,519 is rounded down to 65,504 and 65,520 becomes infinite; half a smallest step becomes 0, a little more does
    not."""
    fp16, tiny = module("rounding").fp16, 2.0**-24
    assert fp16(np.float32([65519, 65520])).tolist() == [65504, np.inf]
    assert fp16(np.float32([tiny / 2, tiny * 0.51, tiny * 1.5])).tolist() == [0, tiny, 2 * tiny]


def test_the_result_is_a_neighbour_and_no_other_is_nearer(rounding):
    """For any number: the dropped bits are 0, the distance is at most half a step, and a tie has an even last bit."""
    f, bits = rounding
    drop = 23 - bits

    @given(PATTERNS)
    def law(pattern):
        x = number(pattern)
        y = f(x)
        if not np.isfinite(x[0]):
            assert y.view(np.uint32)[0] == pattern
            return
        result = int(y.view(np.uint32)[0])
        assert result % (1 << drop) == 0 and result >> 31 == pattern >> 31
        distance = abs((result & 0x7FFFFFFF) - (pattern & 0x7FFFFFFF))  # patterns of one sign are in order
        assert distance <= 1 << drop - 1
        assert distance < 1 << drop - 1 or (result >> drop) % 2 == 0

    law()


def test_a_rounded_number_stays_and_an_array_is_rounded_number_by_number(rounding, module):
    """f(f(x)) = f(x); a strided view with several axes has the numbers of its elements; x itself is not written to."""
    f, _ = rounding
    x = np.random.default_rng(0).standard_normal((4, 6, 5)).astype(np.float32)
    before, view = x.copy(), x.transpose(2, 0, 1)[::2]
    for g in (f, module("rounding").fp16):
        np.testing.assert_array_equal(g(g(view)), g(view))
        np.testing.assert_array_equal(
            g(view), np.float32([g(np.float32([v]))[0] for v in view.ravel()]).reshape(3, 4, 6)
        )
    np.testing.assert_array_equal(x, before)
    assert module("rounding").float32(view) is view


def test_another_dtype_is_refused(module):
    """Formats are those of float32 numbers: float64 would be rounded at a wrong bit."""
    for name in ("tf32", "bf16", "fp16"):
        with pytest.raises(ValueError, match="x must be a float32 array, got float64"):
            getattr(module("rounding"), name)(np.zeros(3))
