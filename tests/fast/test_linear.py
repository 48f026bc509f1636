"""Matrix products in pieces: what they are equal to, and where the pieces are cut.

That linear is x w + b is shown in ops/test_linear.py, that it equals the plain form in test_install.py.
"""

from itertools import product

import numpy as np
import pytest
from draws import SEEDS, host_normal
from hypothesis import given
from hypothesis import strategies as st

from tinydiff.backend import asarray, to_numpy, xp
from tinydiff.fast import linear

pytestmark = pytest.mark.engine

SIZES = st.integers(1, 4)


@given(SEEDS, st.integers(0, 200), SIZES, SIZES, st.integers(1, 300))
def test_a_product_in_pieces_is_the_product(seed, m, i, o, small):
    """x w and x^T g for any number of rows, wherever the border between one product and many small ones lies."""
    x, w, g = map(asarray, host_normal(seed, (m, i), (i, o), (m, o)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(linear, "_SMALL", small)
        patch.setattr(linear, "_FEW", 3)
        linear._piece.cache_clear()
        y, dw = to_numpy(linear.product(x, w)), to_numpy(linear.product_of_transposed(x, g))
        piece = linear._piece(m, i * o, linear.backend_name())
    linear._piece.cache_clear()
    # 1e-13: at most 200 products of numbers about 1, each rounded to 1e-16.
    np.testing.assert_allclose(y, to_numpy(x) @ to_numpy(w), rtol=0, atol=1e-13)
    np.testing.assert_allclose(dw, to_numpy(x).T @ to_numpy(g), rtol=0, atol=1e-13)
    assert piece == m or (m % piece == 0 and piece * i * o <= small)


def test_a_piece_is_the_largest_part_of_the_rows_that_is_small_but_not_too_small(monkeypatch):
    """It divides their number and takes at most _SMALL multiplications, over a quarter of that; else all rows."""
    for backend, small, work, m in product(("numpy", "cupy"), (1, 9, 100, 300), (0, 1, 2, 5, 200), range(50)):
        monkeypatch.setattr(linear, "_SMALL", small)
        most = small // work if work else small
        parts = [part for part in range(1, m + 1) if m % part == 0 and most // 4 < part <= most]
        assert linear._piece.__wrapped__(m, work, backend) == max(parts if backend == "numpy" else [], default=m)


def test_a_piece_is_that_of_the_backend_in_use(monkeypatch):
    """A process that changes its backend gets no piece that was remembered for the other one."""
    asked = []
    monkeypatch.setattr(linear, "_piece", lambda m, work, backend: asked.append(backend) or m)
    for backend in ("numpy", "cupy", "numpy"):
        monkeypatch.setattr(linear, "backend_name", lambda backend=backend: backend)
        linear.product(asarray(np.ones((2, 3))), asarray(np.ones((3, 1))))
        linear.product_of_transposed(asarray(np.ones((2, 3))), asarray(np.ones((2, 1))))
    assert asked == ["numpy", "numpy", "cupy", "cupy", "numpy", "numpy"]


def test_both_products_go_in_such_pieces_and_the_transposed_one_in_no_short_ones(monkeypatch):
    """A row is I O multiplications; x^T g of pieces shorter than _FEW is one plain product, as of all rows at once."""
    x, w, g = map(asarray, host_normal(0, (12, 5), (5, 7), (12, 7)))
    asked, multiplied = [], []
    for name in ("matmul", "dot"):
        multiply = getattr(xp, name)
        monkeypatch.setattr(xp, name, lambda a, b, out=None, f=multiply: multiplied.append(a.shape) or f(a, b, out=out))
    monkeypatch.setattr(linear, "_FEW", 4)
    for piece in (1, 3, 4, 6, 12):
        monkeypatch.setattr(linear, "_piece", lambda m, work, _, piece=piece: asked.append((m, work)) or piece)
        linear.product(x, w)
        linear.product_of_transposed(x, g)
        assert multiplied.pop() == ((5, 12) if piece in (1, 3, 12) else (12 // piece, 5, piece))
        assert multiplied.pop() == ((12, 5) if piece == 12 else (12 // piece, piece, 5))
    assert asked == [(12, 5 * 7)] * 10 and not multiplied
