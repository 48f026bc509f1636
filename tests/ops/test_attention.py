"""Scaled dot-product attention against plain loops over its definition, and what it must leave unchanged."""

import math

import numpy as np
import pytest
from draws import SEEDS, host_normal
from hypothesis import given
from hypothesis import strategies as st

from tinydiff import ops
from tinydiff.autograd import Tensor
from tinydiff.backend import asarray, default_rng, to_numpy

pytestmark = pytest.mark.engine

SIZES = st.integers(1, 4)


def attention(*arrays, mask=None):
    return to_numpy(ops.attention(*map(asarray, arrays), mask=mask))


def attention_loops(q, k, v, mask=True):
    """The definition, one query at a time: weights exp(q . k / sqrt(D)) over their sum, then the mean of the values.

    A key that the mask hides is passed over.
    """
    y = np.zeros((*q.shape[:-1], v.shape[-1]))
    keep = np.broadcast_to(mask, (*q.shape[:-1], k.shape[-2]))
    for lead in np.ndindex(*q.shape[:-2]):
        for l in range(q.shape[-2]):
            weights = []
            for m in range(k.shape[-2]):
                product = sum(q[lead][l, d] * k[lead][m, d] for d in range(q.shape[-1]))
                weights.append(math.exp(product / math.sqrt(q.shape[-1])) if keep[lead][l, m] else 0)
            for m, weight in enumerate(weights):
                y[lead][l] += weight / sum(weights) * v[lead][m]
    return y


@given(SEEDS, st.lists(SIZES, max_size=2), SIZES, SIZES, SIZES, SIZES)
def test_attention_is_its_definition(seed, lead, l, m, d, e):
    """For any number of leading axes, queries, keys, and features of either."""
    q, k, v = host_normal(seed, (*lead, l, d), (*lead, m, d), (*lead, m, e))
    # 1e-14: a dozen roundings of numbers about 1; exp doubles none of them much.
    np.testing.assert_allclose(attention(q, k, v), attention_loops(q, k, v), rtol=0, atol=1e-13)


@given(SEEDS, SIZES, SIZES, SIZES)
def test_the_order_of_the_keys_does_not_matter(seed, l, m, d):
    """Keys and values in another, common order give the same means."""
    q, k, v = host_normal(seed, (2, l, d), (2, m, d), (2, m, d))
    order = default_rng(seed).permutation(m)
    np.testing.assert_allclose(attention(q, k[:, order], v[:, order]), attention(q, k, v), rtol=0, atol=1e-13)


@given(SEEDS, SIZES, SIZES, st.floats(0.1, 1e4))
def test_weights_are_a_partition_of_one(seed, l, m, c):
    """Equal values come out as they are, and a shift of all keys along one vector changes nothing."""
    q, k, _ = host_normal(seed, (l, 3), (m, 3), (m, 1))
    y = attention(q, k, np.full((m, 2), c))
    np.testing.assert_allclose(y, np.full((l, 2), c), rtol=1e-14)
    (v,) = host_normal(seed + 1, (m, 2))
    np.testing.assert_allclose(attention(q, k + 1.5, v), attention(q, k, v), rtol=0, atol=1e-13)


def draw_mask(seed, shape):
    """Random booleans, in each row of which one is True."""
    rng = default_rng(seed, 1)
    mask = rng.random(shape) < 0.5
    np.put_along_axis(mask, rng.integers(0, shape[-1], (*shape[:-1], 1)), True, -1)
    return mask


@given(SEEDS, st.integers(0, 2), SIZES, SIZES, SIZES, SIZES, SIZES)
def test_a_mask_leaves_the_other_keys_as_if_they_were_all(seed, stretched, n, heads, l, m, d):
    """Against loops that pass hidden keys over, whichever axes the mask is given for, on the backend or on the host."""
    q, k, v = host_normal(seed, (n, heads, l, d), (n, heads, m, d), (n, heads, m, 2))
    mask = draw_mask(seed, [(n, heads, l, m), (n, 1, 1, m), (l, m)][stretched])
    expected = attention_loops(q, k, v, mask)
    np.testing.assert_allclose(attention(q, k, v, mask=asarray(mask)), expected, rtol=0, atol=1e-13)  # as above
    np.testing.assert_array_equal(attention(q, k, v, mask=mask), attention(q, k, v, mask=asarray(mask)))


@given(SEEDS, SIZES, SIZES, st.sampled_from(["float32", "float64"]))
def test_a_hidden_key_has_no_influence_at_all(seed, l, m, dtype):
    """Whatever stands at a hidden key and its value, however large, results and gradients are the same bits."""
    q, k, v, g = host_normal(seed, (2, l, 3), (2, m, 3), (2, m, 2), (2, l, 2), dtype=dtype)
    mask = draw_mask(seed, (2, 1, m))
    hidden = ~mask[:, 0]
    found = []
    for size in (1, 1e4):
        k[hidden], v[hidden] = size * k[hidden], size * v[hidden]
        leaves = [Tensor(asarray(a.copy()), requires_grad=True) for a in (q, k, v)]
        y = ops.attention(*leaves, mask=mask)
        y.backward(asarray(g))
        dq, dk, dv = (to_numpy(leaf.grad) for leaf in leaves)
        found.append([to_numpy(y), dq, dk[~hidden], dv])
        assert not dk[hidden].any() and not dv[hidden].any()
    for a, b in zip(*found):
        np.testing.assert_array_equal(a, b)


@given(SEEDS, SIZES, SIZES)
def test_a_mask_that_hides_nothing_changes_nothing(seed, l, m):
    """All True is as no mask, bit for bit."""
    q, k, v = host_normal(seed, (2, l, 3), (2, m, 3), (2, m, 2))
    np.testing.assert_array_equal(attention(q, k, v, mask=np.ones(m, bool)), attention(q, k, v))


def test_scores_of_ten_thousand_pick_one_value(rng):
    """Where one key's score is far above the others the result is that key's value, in float32, without overflow."""
    v = rng.standard_normal((3, 2)).astype("float32")
    q = np.array([[1e4], [-1e4]], "float32")
    k = np.array([[-1.0], [0.0], [1.0]], "float32")
    np.testing.assert_array_equal(attention(q, k, v), v[[2, 0]])


@pytest.mark.parametrize(
    "q, k, v",
    [
        ((2, 3, 4), (2, 5, 3), (2, 5, 4)),  # features of q and k
        ((2, 3, 3), (2, 5, 4), (2, 5, 4)),
        ((2, 3, 4), (2, 5, 4), (2, 6, 4)),  # positions of k and v
        ((2, 3, 4), (2, 6, 4), (2, 5, 4)),
        ((2, 3, 4), (1, 5, 4), (1, 5, 4)),  # leading axes
        ((3, 4), (2, 5, 4), (2, 5, 4)),
        ((2, 3, 4), (2, 0, 4), (2, 0, 4)),  # a mean of no values
        ((2, 3, 0), (2, 5, 0), (2, 5, 4)),  # a score of no features
    ],
)
def test_attention_refuses_what_does_not_fit(q, k, v):
    """Shapes that do not agree are a ValueError naming all three; leading axes do not broadcast."""
    with pytest.raises(ValueError) as error:
        attention(*map(np.zeros, (q, k, v)))
    assert str(error.value) == f"attention: q {q}, k {k} and v {v} do not fit"


@pytest.mark.parametrize("mask", [np.zeros((3, 3)), np.zeros((3, 3), int), np.ones((5, 2, 3, 3), bool)])
def test_attention_refuses_a_mask_of_numbers_or_of_another_shape(mask):
    """A mask of 0 and -inf, to be added, would keep the wrong keys here; a wider mask would widen the result."""
    q = asarray(np.ones((2, 3, 4)))
    with pytest.raises(ValueError, match="mask must be boolean and broadcast to"):
        ops.attention(q, q, q, mask=asarray(mask))
