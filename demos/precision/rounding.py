"""Round float32 numbers to the formats that tensor cores multiply.

    format    bits of the fraction    smallest normal number    largest number
    float32   23                      2^-126                    3.4e38
    TF32      10                      2^-126                    3.4e38
    bf16      7                       2^-126                    3.4e38
    fp16      10                      2^-14                     65,504

Each function rounds to the nearest number of the format, and a tie to the number whose last bit is 0.  The result is
float32 again.  A number beyond the largest becomes infinite.  Below its smallest normal number fp16 has steps of 2^-24;
half such a step and less becomes 0.
"""

import numpy as np

FRACTION = 23  # bits of the fraction of a float32


def float32(x):
    """x as it is: a float32 array."""
    return x


def tf32(x):
    """x with a fraction of 10 bits.  x: float32 of any shape, else ValueError."""
    return _with_fraction(x, 10)


def bf16(x):
    """x with a fraction of 7 bits: the upper half of a float32.  x: float32 of any shape, else ValueError."""
    return _with_fraction(x, 7)


def fp16(x):
    """x as an IEEE half.  x: float32 of any shape, else ValueError."""
    _check(x)
    with np.errstate(over="ignore", under="ignore"):  # an overflow is part of the format
        return x.astype(np.float16).astype(np.float32)


def _with_fraction(x, bits):
    """Round at a bit of the number's representation.  A carry out of the fraction goes into the exponent."""
    _check(x)
    dropped = np.uint32(FRACTION - bits)
    pattern = np.ascontiguousarray(x).view(np.uint32)
    last = (pattern >> dropped) & np.uint32(1)  # the last bit that is kept: 1 turns a tie upwards
    rounded = pattern + (np.uint32((1 << int(dropped) - 1) - 1) + last)
    rounded &= np.uint32(0xFFFFFFFF << int(dropped) & 0xFFFFFFFF)
    return np.where(np.isfinite(x), rounded.view(np.float32), x)


def _check(x):
    if getattr(x, "dtype", None) != np.float32:
        raise ValueError(f"x must be a float32 array, got {getattr(x, 'dtype', type(x).__name__)}")
