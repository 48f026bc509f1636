"""The IDX format of the MNIST files: two zero bytes, a type, the number of axes, the axes' lengths, the numbers.

Each length is a big-endian 32-bit integer.  Source: the format's description on the MNIST page (LeCun, Cortes, Burges).
Read next: download.py.
"""

import numpy as np


def parse_idx(content: bytes) -> np.ndarray:
    """Return the uint8 array of an IDX file of unsigned bytes (type 8). It is read-only.

    Raises ValueError for a file of another kind, and for a file that is shorter or longer than its header says.
    """
    if len(content) < 4 or content[:3] != bytes([0, 0, 8]):
        raise ValueError(f"not an IDX file of unsigned bytes: it begins with {content[:4].hex(' ')}")
    header = 4 + 4 * content[3]
    shape = np.frombuffer(content[4:header], ">u4")
    return np.frombuffer(content, np.uint8)[header:].reshape(shape)
