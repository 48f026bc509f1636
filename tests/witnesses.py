"""How far outside witnesses are from this package: python tests/witnesses.py

The tests that compare with another code base call `agree`, which counts the comparisons and keeps the largest
difference of each witness.  Run as a program, this file runs these tests and prints both as a table.  A witness that is
not installed is left out: pip install -e ".[witness]".
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

TESTS = Path(__file__).resolve().parent
FILES = [
    "diffusion/test_published_sums.py",
    "diffusion/test_diffusers.py",
    "diffusion/test_flow.py",
    "diffusion/test_edm.py",
    "diffusion/test_bound_outside.py",
    "nn/test_torch.py",
    "ops/test_torch_samples.py",
    "test_torch_optim.py",
]

RECORD: dict[str, tuple[int, float]] = {}  # of each witness: how many comparisons, the largest difference


def agree(witness: str, found, expected, tolerance: float) -> None:
    """One comparison: two host arrays, or two lists of as many, differ by at most `tolerance`.

    A difference is relative to the largest number in the expected array, or to 1 if that is larger.
    """
    found, expected = ([a] if isinstance(a, np.ndarray) else list(a) for a in (found, expected))
    assert [a.shape for a in found] == [a.shape for a in expected]
    off = max(float(abs(a - b).max(initial=0) / abs(b).max(initial=1)) for a, b in zip(found, expected))
    note(witness, off)
    assert off <= tolerance, f"{off:.2g} off {witness}, allowed are {tolerance:.2g}"


def note(witness: str, off: float) -> None:
    """Count a comparison."""
    count, largest = RECORD.get(witness, (0, 0.0))
    RECORD[witness] = count + 1, max(largest, off)


@contextmanager
def in_float64(*modules: Any) -> Iterator[None]:
    """Modules of diffusers compute in float64: they see a torch and a NumPy whose float32 is float64."""
    with pytest.MonkeyPatch.context() as patch:
        for module in modules:
            for name in ("torch", "np"):
                library = getattr(module, name)
                patch.setattr(module, name, SimpleNamespace(**vars(library) | {"float32": library.float64}))
        yield


def main() -> int:
    import witnesses  # the module that the tests import, which is not this one, __main__

    chosen = [str(TESTS / name) for name in FILES]
    failed = pytest.main(["-q", "--no-header", "-k", "diffusers or torch or published", *chosen])
    for witness, (count, largest) in witnesses.RECORD.items():
        print(f"{count:6,} comparisons, largest difference {largest:.1e}: {witness}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
