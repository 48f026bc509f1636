"""Muon against the singular value decomposition, and against Adam for whatever is no matrix."""

import math

import numpy as np
import pytest
from draws import SEEDS
from hypothesis import given
from hypothesis import strategies as st
from test_optim import give_gradients, joined, numbers, tensors

from tinydiff.backend import asarray, default_rng, to_numpy
from tinydiff.muon import OPTIMIZERS, Muon, matrices_of, orthogonalized
from tinydiff.nn import UNet
from tinydiff.optim import Adam

pytestmark = pytest.mark.training

SIDES = st.integers(16, 40)
BETAS = st.tuples(st.floats(0, 0.99), st.floats(0, 0.999))
SMALL = [(), (5,), (15, 50), (50, 15), (3, 3, 1, 40), (3, 3, 40, 15), (112,)]  # Adam's


def five_rounds(s):
    """The polynomial of Jordan et al. 2024, five times, for each number."""
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return s


def by_svd(n):
    """The same singular vectors; each singular value is the polynomial of its share in the matrix's norm."""
    u, s, vt = np.linalg.svd(n, full_matrices=False)
    return u * five_rounds(s / math.sqrt((s**2).sum())) @ vt


# The direction.


@given(SEEDS, st.integers(1, 30), st.integers(1, 30), st.floats(1e-6, 1e6))
def test_singular_values_become_the_polynomial_and_singular_vectors_stay(seed, rows, columns, size):
    """For tall, wide and square matrices, of full rank or not, and of any size."""
    rng = default_rng(seed)
    rank = rng.integers(1, min(rows, columns) + 1)
    n = size * rng.standard_normal((rows, rank)) @ rng.standard_normal((rank, columns))
    got = to_numpy(orthogonalized(asarray(n)))
    # 1e-7: a round multiplies a small singular value by 3.4, so R's rounding of 1e-16 grows to 3.4^10 1e-16.
    np.testing.assert_allclose(got, by_svd(n), atol=1e-7)


@given(SEEDS, SIDES, SIDES)
def test_every_direction_of_a_random_matrix_gets_a_length_near_1(seed, rows, columns):
    """Jordan et al. 2024: singular values that are not tiny end between 0.68 and 1.13."""
    n = default_rng(seed).standard_normal(
        (rows + 40, columns)
    )  # no tiny ones: the ratio of largest to least is below 9
    s = np.linalg.svd(to_numpy(orthogonalized(asarray(n))), compute_uv=False)
    assert s.min() > 0.65 and s.max() < 1.15


def test_a_matrix_of_zeros_gives_zeros():
    assert not to_numpy(orthogonalized(asarray(np.zeros((4, 3), "float32")))).any()


@given(SEEDS, st.sampled_from(["float32", "float64"]), SIDES, SIDES)
def test_the_result_has_the_dtype_and_shape_of_the_matrix_which_stays_as_it_was(seed, dtype, rows, columns):
    n = asarray(default_rng(seed).standard_normal((rows, columns)), dtype)
    before = to_numpy(n).copy()
    got = orthogonalized(n)
    assert (got.shape, got.dtype) == (n.shape, n.dtype)
    np.testing.assert_array_equal(to_numpy(n), before)


# The step.


@given(
    SEEDS,
    st.lists(st.tuples(SIDES, SIDES), min_size=1, max_size=2),
    st.lists(st.floats(1e-4, 1.0), min_size=1, max_size=3),
    BETAS,
)
def test_a_matrix_moves_along_its_orthogonalised_momentum(seed, shapes, lrs, betas):
    """theta <- theta - lr 0.2 sqrt(max(rows, columns)) O((1 - beta1) g + beta1 m), with the m of Adam."""
    rng = default_rng(seed)
    parameters = tensors(rng, shapes)
    theta, m = [p.data.copy() for p in parameters], [np.zeros(shape) for shape in shapes]
    muon = Muon(parameters, betas=betas)
    for lr in lrs:
        gs = [rng.standard_normal(shape) for shape in shapes]
        give_gradients(parameters, joined(gs))
        muon.step(lr)
        for i, (g, shape) in enumerate(zip(gs, shapes)):
            m[i] = betas[0] * m[i] + (1 - betas[0]) * g
            n = (1 - betas[0]) * g + betas[0] * m[i]
            theta[i] = to_numpy(theta[i]) - lr * 0.2 * math.sqrt(max(shape)) * by_svd(n)
    np.testing.assert_allclose(numbers(parameters), joined(theta), atol=1e-6)


@given(SEEDS, st.integers(1, 3), st.integers(1, 3), st.integers(6, 12), SIDES)
def test_a_filter_is_the_matrix_that_multiplies_patches(seed, kh, kw, c, o):
    """A filter (KH, KW, C, O) moves as its matrix (KH KW C, O) does, bit for bit."""
    rng = default_rng(seed)
    shape = kh, kw, 4 * c, o
    (filters,) = tensors(rng, [shape])
    (matrix,) = tensors(default_rng(seed), [(shape[0] * shape[1] * shape[2], o)])
    row = rng.standard_normal(filters.size)
    for p in (filters, matrix):
        give_gradients([p], row)
        Muon([p]).step(0.1)
    assert len(matrices_of(filters, filters.data)) == 1
    np.testing.assert_array_equal(numbers([filters]), numbers([matrix]))


@given(SEEDS, st.lists(st.sampled_from(SMALL), min_size=1, max_size=4), BETAS, st.floats(1e-4, 1.0))
def test_what_is_no_matrix_or_has_a_short_side_follows_adam(seed, shapes, betas, lr):
    """Bit for bit, beside a matrix that does not."""
    shapes = [*shapes, (16, 16)]
    both = [tensors(default_rng(seed), shapes) for _ in range(2)]
    muon, adam = (kind(parameters, betas=betas) for kind, parameters in zip((Muon, Adam), both))
    rng = default_rng(seed, 1)
    for _ in range(2):
        row = rng.standard_normal(sum(p.size for p in both[0]))
        for optimizer in (muon, adam):
            give_gradients(optimizer.parameters, row)
            optimizer.step(lr)
    np.testing.assert_array_equal(numbers(both[0][:-1]), numbers(both[1][:-1]))
    assert (numbers(both[0][-1:]) != numbers(both[1][-1:])).all()


@given(SEEDS, BETAS)
def test_the_state_is_that_of_adam(seed, betas):
    """Both moments and the count of steps, so a checkpoint of either optimizer has the same arrays."""
    shapes = [(20, 30), (7,)]
    both = [tensors(default_rng(seed), shapes) for _ in range(2)]
    optimizers = [kind(parameters, betas=betas) for kind, parameters in zip((Muon, Adam), both)]
    rng = default_rng(seed, 1)
    for _ in range(3):
        row = rng.standard_normal(607)
        for optimizer in optimizers:
            give_gradients(optimizer.parameters, row)
            optimizer.step(0.1)
    for kind in ("m", "v"):
        got, expected = (joined(getattr(optimizer, kind)) for optimizer in optimizers)
        np.testing.assert_array_equal(got, expected)
    assert optimizers[0].num_steps == optimizers[1].num_steps == 3


def test_a_frozen_matrix_stays_and_one_without_a_gradient_counts_as_0(rng):
    """As in Adam: the momentum of a matrix without a gradient goes on."""
    frozen, silent, zero = tensors(rng, [(16, 20)] * 3)
    zero.data = silent.data.copy()
    frozen.requires_grad = False
    before, muon = numbers([frozen]), Muon([frozen, silent, zero], 0.1)
    row = rng.standard_normal(320)
    for gradients in ((row, row, row), (row, None, 0 * row)):
        for p, g in zip(muon.parameters, gradients):
            p.grad = None if g is None else asarray(g.reshape(p.shape))
        start = numbers([silent])
        muon.step()
        assert (numbers([silent]) != start).all()
    np.testing.assert_array_equal(numbers([frozen]), before)
    np.testing.assert_array_equal(numbers([silent]), numbers([zero]))


def test_the_first_and_the_last_filter_and_the_labels_of_a_u_net_follow_adam(rng):
    """Jordan et al. 2024 leave the layers at both ends to Adam.  Nine tenths of the network's numbers are matrices."""
    model = UNet(num_classes=10, rng=rng)
    size = sum(theta.size for p in model.parameters() for theta, _, _ in matrices_of(p, p.data))
    names = {name for name, p in model.named_parameters() if p.data.ndim > 1 and not matrices_of(p, p.data)}
    assert names == {"conv_in.w", "conv_out.w", "label.w"}
    assert size > 0.98 * model.num_parameters()


def test_the_optimizers_by_name():
    assert {"adam": Adam, "muon": Muon} == OPTIMIZERS
