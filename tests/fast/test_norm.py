"""The norm that is followed by SiLU obeys the laws of ops/test_norm.py; how maps are cut for both norms."""

import math
from itertools import product

import numpy as np
import pytest
from draws import host_normal
from ops import test_norm as laws

from tinydiff import ops
from tinydiff.backend import asarray, backend_name
from tinydiff.fast import norm
from tinydiff.fast.norm import group_norm_silu

pytestmark = pytest.mark.engine

globals().update({name: law for name, law in vars(laws).items() if name.startswith("test_")})


@pytest.fixture(scope="module")
def op():
    return group_norm_silu


@pytest.fixture(scope="module")
def after():
    return silu_loops


def silu_loops(z):
    return np.array([v / (1 + math.exp(-v)) for v in z.ravel().tolist()]).reshape(z.shape)


@pytest.mark.skipif(backend_name() != "numpy", reason="on a GPU a kernel takes the whole batch")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_slices_of_the_batch_are_cut_by_one_map(dtype, monkeypatch):
    """Bytes an image: those of its map, whatever axes it has."""
    asked = []
    monkeypatch.setattr(norm, "chunks", lambda n, bytes_each: asked.append((n, bytes_each)) or [slice(0, n)])
    for op, lead in product((ops.group_norm, group_norm_silu), [(), (5,), (3, 5)]):
        (x,) = host_normal(0, (2, *lead, 6), dtype=dtype)
        laws.run(op, x, np.ones(6, dtype), np.zeros(6, dtype), num_groups=3)
        assert asked.pop() == (2, x[0].nbytes) and not asked


def test_a_row_is_the_most_pixels_that_divide_the_map_and_are_not_too_many(monkeypatch):
    """At most _ROW numbers, unless one pixel has more."""
    monkeypatch.setattr(norm, "_ROW", 24)
    for pixels, c in product(range(1, 40), (1, 2, 3, 5, 24, 30)):
        x, gamma = (asarray(np.zeros(shape)) for shape in [(2, pixels, c), (c,)])
        widths = [width for width in range(1, pixels + 1) if pixels % width == 0 and (width * c <= 24 or width == 1)]
        assert norm.Passes(x, gamma, gamma, 1).width == max(widths)
