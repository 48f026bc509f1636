"""The IDX format of the MNIST files: two zero bytes, a type, the number of axes, their lengths, then the numbers.

Source: the format's description on the MNIST page (LeCun, Cortes, Burges); all lengths are big-endian 32-bit integers.
Read next: mnist.py, which checks a file's hash before its bytes come here.
"""

import numpy as np

_UNSIGNED_BYTE = 8


def parse_idx(content: bytes) -> np.ndarray:
    """The array of an IDX file of unsigned bytes, (lengths of its axes) uint8, read-only: it shares `content`.

    Raises ValueError if the header is not that of such a file or the size does not match it.
    """
    header = 4 + 4 * content[3] if len(content) >= 4 else 4
    if len(content) < header or content[:3] != bytes([0, 0, _UNSIGNED_BYTE]):
        raise ValueError(f"not an IDX file of unsigned bytes: it begins with {content[:4].hex(' ')}")
    shape = tuple(np.frombuffer(content[4:header], ">u4").tolist())
    data = np.frombuffer(content, np.uint8, offset=header)
    if data.size != int(np.prod(shape, dtype=object)):
        raise ValueError(f"an IDX file of shape {shape} that holds {data.size} bytes")
    return data.reshape(shape)
