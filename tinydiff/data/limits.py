"""Sizes are compared before a file is read and before memory is taken.

A path that a user gives may lead to a pipe, which blocks for ever, to a device without an end, or to a few bytes that
unpack to gigabytes.  Read next: idx.py.
"""

import errno
import os
import stat
from pathlib import Path

from tinydiff.backend import TinydiffError


def read_file(path: str | os.PathLike, most: int | None = None) -> bytes:
    """Return the content of a regular file.  most: the largest size in bytes; None means the memory of this machine.

    Raises OSError for a file that is missing, too large or cannot be read, and for a folder, pipe, socket or device.
    """
    size, most = check_regular(path), memory() if most is None else most
    if size > most:
        raise OSError(errno.EFBIG, f"it has {size:,} bytes, and at most {most:,} are possible", os.fspath(path))
    with open(path, "rb") as file:
        return file.read()


def check_regular(path: str | os.PathLike) -> int:
    """Return the size of a regular file in bytes.

    Raises OSError for a file that is missing, and for a folder, pipe, socket or device.
    """
    status = os.stat(path)
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is a pipe, a socket or a device, not a file", os.fspath(path))
    return status.st_size


def check_memory(what: str, num_bytes: float) -> None:
    """Raise TinydiffError if this machine has less than num_bytes of memory.  what: the option and its value."""
    if num_bytes > memory():
        needed, there = (f"{n / 1e9:,.1f} GB" for n in (num_bytes, memory()))
        raise TinydiffError(f"{what}: that needs about {needed} of memory, and this machine has {there}; ask for less")


def memory() -> int:
    """Return the number of bytes of memory that this process may use: the machine's, or less in a container."""
    limit = Path("/sys/fs/cgroup/memory.max")  # Linux, cgroup v2
    try:
        machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        container = limit.read_text().strip() if limit.exists() else "max"
    except (OSError, ValueError, AttributeError):  # Windows has no sysconf
        return 1 << 62
    return machine if container == "max" else min(machine, int(container))
