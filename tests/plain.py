"""Within a block or a test: the plain forms of the book, or the faster ones of tinydiff/fast."""

from collections.abc import Iterator
from contextlib import contextmanager

from tinydiff.backend import FAST
from tinydiff.fast.install import install


@contextmanager
def plain() -> Iterator[None]:
    """Within the block the table FAST is empty: every function runs as the book has it."""
    before = dict(FAST)
    FAST.clear()
    try:
        yield
    finally:
        FAST.update(before)


@contextmanager
def fast() -> Iterator[None]:
    """Within the block the faster forms of the current backend are installed, under pytest --plain too."""
    before = dict(FAST)
    install()
    try:
        yield
    finally:
        FAST.clear()
        FAST.update(before)
