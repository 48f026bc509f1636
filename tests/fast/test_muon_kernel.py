"""Muon's kernel, its text compiled for the host: each matrix moves as muon.py says, whatever else is in the launch."""

import math

import emulate
import numpy as np
import pytest
from draws import SEEDS
from hypothesis import given
from hypothesis import strategies as st

from tinydiff import muon
from tinydiff.autograd import Tensor
from tinydiff.backend import backend_name, xp
from tinydiff.fast import kernels
from tinydiff.fast.optim import Flat
from tinydiff.optim import clip_grad_norm

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(emulate.COMPILER is None, reason=emulate.REASON),
    pytest.mark.skipif(backend_name() != "numpy", reason="the kernels are run on the host, on NumPy arrays"),
]

SIDES = st.one_of(st.sampled_from([16, 17, 31, 32, 33, 64]), st.integers(16, 72))  # a tile is 8 wide for each lane
BETA, LR = 0.9, 0.5
SETTINGS = BETA, muon.A, muon.B, muon.C, muon.ROUNDS
# A round multiplies what is rounded by 3.4 at most: 3.4^5 = 480 times some roundings of 6e-8 or 1e-16.
BOUNDS = {"float32": 3e-4, "float64": 1e-12}


def case(seed, shapes, dtype, gap=3):
    """theta (7 everywhere), before, g and m with these matrices, gaps around them, and where the matrices are."""
    matrices, start = [], gap
    for rows, columns in shapes:
        matrices.append((start, rows, columns))
        start += rows * columns + gap
    rng = np.random.default_rng(seed)
    before, g, m = (rng.standard_normal(start).astype(dtype) for _ in range(3))
    return [np.full(start, 7, dtype), before, g, m], matrices


def launch(arrays, matrices, lanes=1, norm=1.0, lr=LR):
    """What the kernel leaves in theta, and the scratch that it was given, with 99 numbers behind it."""
    theta, *given = (a.copy() for a in arrays)
    made = []

    def empty(shape, dtype):
        made.append(np.full(shape + 99, np.nan, dtype))
        return made[-1][:shape]

    with pytest.MonkeyPatch.context() as patch:
        emulate.install(patch, lanes)
        patch.setattr(xp, "empty", empty)
        numbers = np.array(norm, theta.dtype), np.full(1, lr, theta.dtype)
        kernels.muon(theta, *given, *numbers, matrices, *SETTINGS)
    for a, b in zip(given, arrays[1:]):
        np.testing.assert_array_equal(a, b)
    return theta, made


def expected(arrays, matrices):
    """theta by the equation, in float64; what is no matrix stays."""
    theta, before, g, m = (a.astype("float64") for a in arrays)
    for start, rows, columns in matrices:
        old, g_of, m_of = (a[start : start + rows * columns].reshape(rows, columns) for a in (before, g, m))
        step = muon.orthogonalized((1 - BETA) * g_of + BETA * m_of)
        moved = old - LR * 0.2 * math.sqrt(max(rows, columns)) * step
        theta[start : start + rows * columns] = moved.reshape(-1)
    return theta


@pytest.mark.parametrize("dtype", BOUNDS)
@given(SEEDS, st.lists(st.tuples(SIDES, SIDES), min_size=1, max_size=3))
def test_each_matrix_moves_along_its_orthogonalised_momentum(dtype, seed, shapes):
    """Tall, wide and square ones in one launch; numbers between them keep their bits."""
    arrays, matrices = case(seed, shapes, dtype)
    found, _ = launch(arrays, matrices)
    right = expected(arrays, matrices)
    assert found.dtype == dtype
    assert abs(found - right).max() <= BOUNDS[dtype] * abs(right - arrays[1])[right != 7].max()
    np.testing.assert_array_equal(found[right == 7], 7)


@pytest.mark.parametrize(
    "lanes, shapes", [(2, [(19, 16), (16, 19)]), (4, [(30, 16), (17, 40)]), (32, [(150, 20)]), (32, [(20, 150)])]
)
def test_lanes_that_wait_for_each_other_move_it_too(lanes, shapes):
    """4 in a row, and 32 in two rows of 16, as on a GPU.  They give the same bits again."""
    arrays, matrices = case(0, shapes, "float64")
    found, again = (launch(arrays, matrices, lanes)[0] for _ in range(2))
    assert abs(found - expected(arrays, matrices)).max() <= 1e-12
    np.testing.assert_array_equal(found, again)


@given(SEEDS, st.lists(st.tuples(SIDES, SIDES), min_size=2, max_size=4))
def test_no_block_writes_where_another_one_works(seed, shapes):
    """On a GPU they run at one time.  Each has room for four squares of its side: it fills these, and nothing else."""
    _, made = launch(*case(seed, shapes, "float64"))
    (scratch,) = made
    rooms, behind = scratch[:-99].reshape(len(shapes), -1), scratch[-99:]
    assert np.isnan(behind).all()
    for room, shape in zip(rooms, shapes):
        assert np.isfinite(room).sum() == np.isfinite(room[: 4 * min(shape) ** 2]).sum() == 4 * min(shape) ** 2


def test_more_matrices_than_a_launch_takes():
    """161 and more: the second launch begins where the first one ended."""
    arrays, matrices = case(0, [(16, 16), (17, 16)] * 81, "float64")
    found, made = launch(arrays, matrices)
    assert len(made) == 2
    # 1e-9: of 162 square matrices some have a singular value near 0, whose roundings grow most.
    assert abs(found - expected(arrays, matrices)).max() <= 1e-9


@pytest.mark.parametrize("dtype", BOUNDS)
def test_a_momentum_of_zeros_leaves_the_matrix_as_it_was(dtype):
    """Bit for bit, and beside a matrix that moves."""
    (theta, before, g, m), matrices = case(0, [(20, 16), (16, 20)], dtype, gap=0)
    g[:320], m[:320] = 0, 0
    found, _ = launch([theta, before, g, m], matrices)
    np.testing.assert_array_equal(found[:320], before[:320])
    assert (found[320:] != before[320:]).all()


@pytest.mark.parametrize("name", ["norm", "lr"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_where_the_norm_or_the_rate_is_not_finite_nothing_is_written(name, bad):
    arrays, matrices = case(0, [(16, 16)], "float32")
    found, made = launch(arrays, matrices, **{name: bad})
    np.testing.assert_array_equal(found, 7)
    assert np.isnan(made[0]).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e200])
def test_a_gradient_that_is_not_finite_leaves_everything_until_it_is(bad, monkeypatch):
    """One bad number among those of a vector: no bit of weights and moments changes, of the matrix beside it either."""
    emulate.install(monkeypatch)
    rng = np.random.default_rng(0)
    flat = Flat([Tensor(rng.standard_normal(shape), requires_grad=True) for shape in ((7,), (20, 16))])
    optimizer, states = muon.Muon([flat]), []
    for step in range(3):
        flat.grad[...] = rng.standard_normal(327)
        flat.grad[3] = bad if step == 1 else 1
        clip_grad_norm([flat], 1.0)
        optimizer.step(0.1)
        states.append([a.copy() for a in (flat.data, *optimizer.m, *optimizer.v)])
    for first, second, third in zip(*states):
        np.testing.assert_array_equal(first, second)
        assert (second != third).all() and np.isfinite(third).all()


@pytest.mark.parametrize("norm", [1.0, math.nan])
@pytest.mark.parametrize("dtype", BOUNDS)
def test_numpys_way_that_other_tests_take_is_the_kernel(dtype, norm, monkeypatch):
    """muon_by_numpy of emulate.py: the same matrices, moved as far."""
    arrays, matrices = case(0, [(40, 20), (20, 40), (30, 16)], dtype)
    found, _ = launch(arrays, matrices, norm=norm)
    monkeypatch.setattr(emulate, "muon_by_text", False)
    by_numpy, _ = launch(arrays, matrices, norm=norm)
    assert abs(found - by_numpy).max() <= BOUNDS[dtype]
    assert (by_numpy == 7).sum() == (12 if math.isfinite(norm) else len(by_numpy))
