"""The affine map on the last axis, and what it is equal to."""

import sys
from itertools import product

import numpy as np
import pytest
from draws import SEEDS, host_normal
from hypothesis import given
from hypothesis import strategies as st

from tinydiff import ops
from tinydiff.backend import asarray, to_numpy, xp

pytestmark = pytest.mark.engine
linear = sys.modules["tinydiff.ops.linear"]  # the file; ops.linear is the op

SIZES = st.integers(1, 4)


@given(SEEDS, st.lists(SIZES, max_size=3), SIZES, SIZES)
def test_linear_is_x_w_plus_b_for_each_row(seed, lead, i, o):
    """y[..., p] = b[p] + sum_k x[..., k] w[k, p], whatever axes lead."""
    x, w, b = host_normal(seed, (*lead, i), (i, o), (o,))
    y = to_numpy(ops.linear(*map(asarray, (x, w, b))))
    assert y.shape == (*lead, o)
    for row in np.ndindex(*lead):
        for p in range(o):
            expected = b[p] + sum(x[row][k] * w[k, p] for k in range(i))
            assert abs(y[row][p] - expected) <= 1e-14  # four products of numbers about 1


@given(SEEDS, SIZES, SIZES, SIZES, SIZES)
def test_linear_on_maps_is_the_1x1_convolution(seed, n, size, i, o):
    """linear(x, w, b) = conv2d(x, w as a 1x1 filter, b) on maps (N, H, W, C)."""
    x, w, b = map(asarray, host_normal(seed, (n, size, size, i), (i, o), (o,)))
    a, c = to_numpy(ops.linear(x, w, b)), to_numpy(ops.conv2d(x, w.reshape(1, 1, i, o), b))
    np.testing.assert_allclose(a, c, rtol=0, atol=1e-14)


def test_more_channels_than_256_are_compared_by_value():
    """Python keeps one object for each integer up to 256 only."""
    assert ops.linear(*(asarray(np.zeros(shape)) for shape in [(2, 300), (300, 400), (400,)])).shape == (2, 400)


@pytest.mark.parametrize(
    "x, w, b",
    [
        ((2, 3), (4, 5), (5,)),
        ((2, 8), (4, 5), (5,)),
        ((2, 4), (4, 5), (4,)),
        ((2, 4), (4, 5), (6,)),
        ((2, 4), (4, 5), (1, 5)),
        ((2, 4), (4, 5), ()),
    ],
)
def test_linear_refuses_what_does_not_fit(x, w, b):
    """Shapes that make no affine map are a ValueError naming all three."""
    with pytest.raises(ValueError) as error:
        ops.linear(*(asarray(np.zeros(shape)) for shape in (x, w, b)))
    assert str(error.value) == f"linear: x {x} and b {b} do not fit w {w}"


@given(SEEDS, st.integers(0, 200), SIZES, SIZES, st.integers(1, 300))
def test_a_product_in_pieces_is_the_product(seed, m, i, o, small):
    """x w and x^T g for any number of rows, wherever the border between one product and many small ones lies."""
    x, w, g = map(asarray, host_normal(seed, (m, i), (i, o), (m, o)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(linear, "_SMALL", small)
        patch.setattr(linear, "_FEW", 3)
        linear._piece.cache_clear()
        y, dw = to_numpy(linear.product(x, w)), to_numpy(linear.product_of_transposed(x, g))
        piece = linear._piece(m, i * o)
    linear._piece.cache_clear()
    # 1e-13: at most 200 products of numbers about 1, each rounded to 1e-16.
    np.testing.assert_allclose(y, to_numpy(x) @ to_numpy(w), rtol=0, atol=1e-13)
    np.testing.assert_allclose(dw, to_numpy(x).T @ to_numpy(g), rtol=0, atol=1e-13)
    assert piece == m or (m % piece == 0 and piece * i * o <= small)


def test_a_piece_is_the_largest_part_of_the_rows_that_is_small_but_not_too_small(monkeypatch):
    """It divides their number and takes at most _SMALL multiplications, over a quarter of that; else all rows."""
    for backend, small, work, m in product(("numpy", "cupy"), (1, 9, 100, 300), (0, 1, 2, 5, 200), range(50)):
        monkeypatch.setattr(linear, "backend_name", lambda backend=backend: backend)
        monkeypatch.setattr(linear, "_SMALL", small)
        most = small // work if work else small
        parts = [part for part in range(1, m + 1) if m % part == 0 and most // 4 < part <= most]
        assert linear._piece.__wrapped__(m, work) == max(parts if backend == "numpy" else [], default=m)


def test_both_products_go_in_such_pieces_and_the_transposed_one_in_no_short_ones(monkeypatch):
    """A row is I O multiplications; x^T g of pieces shorter than _FEW is one plain product, as of all rows at once."""
    x, w, g = map(asarray, host_normal(0, (12, 5), (5, 7), (12, 7)))
    asked, multiplied = [], []
    for name in ("matmul", "dot"):
        multiply = getattr(xp, name)
        monkeypatch.setattr(xp, name, lambda a, b, out=None, f=multiply: multiplied.append(a.shape) or f(a, b, out=out))
    monkeypatch.setattr(linear, "_FEW", 4)
    for piece in (1, 3, 4, 6, 12):
        monkeypatch.setattr(linear, "_piece", lambda m, work, piece=piece: asked.append((m, work)) or piece)
        linear.product(x, w)
        linear.product_of_transposed(x, g)
        assert multiplied.pop() == ((5, 12) if piece in (1, 3, 12) else (12 // piece, 5, piece))
        assert multiplied.pop() == ((12, 5) if piece == 12 else (12 // piece, piece, 5))
    assert asked == [(12, 5 * 7)] * 10 and not multiplied
