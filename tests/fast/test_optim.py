"""The optimizer on one flat buffer: views, gradients gathered from anywhere, and the numbers of the plain optimizer."""

import copy
import math
import pickle

import numpy as np
import pytest
from draws import SEEDS, host_normal
from hypothesis import given
from hypothesis import strategies as st
from plain import plain

from tinydiff import ops
from tinydiff.autograd import Tensor
from tinydiff.backend import asarray, backend_name, default_rng, to_numpy, xp
from tinydiff.fast import optim
from tinydiff.fast.optim import Flat
from tinydiff.muon import Muon
from tinydiff.nn import Linear
from tinydiff.optim import EMA, Adam, clip_grad_norm

pytestmark = pytest.mark.training

SHAPES = st.lists(st.lists(st.integers(1, 4), max_size=3).map(tuple), min_size=1, max_size=4)


def tensors(rng, shapes, dtype="float64"):
    return [Tensor(asarray(rng.standard_normal(shape), dtype), requires_grad=True) for shape in shapes]


def joined(arrays):
    """All values in one row."""
    return np.concatenate([to_numpy(a).reshape(-1) for a in arrays])


def numbers(parameters):
    return joined(p.data for p in parameters)


def gradients(parameters):
    return joined(p.grad for p in parameters)


def is_view(flat, p):
    """Whether a parameter's gradient lies in the flat one: what is written there shows here."""
    before, flat._grad[...] = flat._grad.copy(), 7
    shows = bool((to_numpy(p.grad) == 7).all())
    flat._grad[...] = before
    return shows


# The buffer.


@given(SEEDS, SHAPES)
def test_flat_keeps_every_value(seed, shapes):
    """Flat leaves the parameters' shapes and values as they were, in order in `data`; their gradients start at 0."""
    parameters = tensors(default_rng(seed), shapes)
    before = numbers(parameters)
    flat = Flat(parameters)
    assert [p.shape for p in parameters] == shapes
    np.testing.assert_array_equal(numbers(parameters), before)
    np.testing.assert_array_equal(to_numpy(flat.data), before)
    np.testing.assert_array_equal(gradients(parameters), np.zeros(len(before)))


@given(SEEDS, SHAPES)
def test_parameters_and_gradients_are_views_of_the_flat_arrays(seed, shapes):
    """What is written to flat.data is in the parameters, and what backward adds to them is in flat.grad."""
    rng = default_rng(seed)
    parameters = tensors(rng, shapes)
    flat = Flat(parameters)
    flat.data[...] = asarray(rng.standard_normal(len(flat.data)))
    np.testing.assert_array_equal(numbers(parameters), to_numpy(flat.data))
    parameters[0].data[...] = 7
    assert (to_numpy(flat.data)[: parameters[0].size] == 7).all()
    cotangents = [asarray(rng.standard_normal(p.shape)) for p in parameters]
    for _ in range(2):
        for p, g in zip(parameters, cotangents):
            (p * 3.0).backward(g)
    expected = joined(cotangents) * 3.0
    np.testing.assert_array_equal(to_numpy(flat.grad), expected + expected)


@given(SEEDS, SHAPES)
def test_moving_takes_the_new_arrays_as_they_are(seed, shapes):
    """After move(data, grad) the parameters and gradients are views of those two arrays, and the old ones are left."""
    rng = default_rng(seed)
    parameters = tensors(rng, shapes)
    flat = Flat(parameters)
    old, before = flat.data, numbers(parameters)
    data, grad = flat.data.copy(), asarray(rng.standard_normal(len(before)))
    flat.move(data, grad)
    assert flat.data is data and flat.grad is grad
    np.testing.assert_array_equal(numbers(parameters), before)  # a copy of the values keeps them
    np.testing.assert_array_equal(gradients(parameters), to_numpy(grad))
    data += 1
    grad *= 2
    np.testing.assert_array_equal(numbers(parameters), to_numpy(data))
    np.testing.assert_array_equal(gradients(parameters), to_numpy(grad))
    np.testing.assert_array_equal(to_numpy(old), before)


@pytest.mark.parametrize(("data", "grad"), [(6, 7), (8, 7), (7, 6), (7, 8), (0, 7), (7, 14)])
def test_a_buffer_of_another_length_is_refused(data, grad, rng):
    """move raises ValueError where a length does not fit, and everything stays where it was."""
    parameters = tensors(rng, [(2, 3), ()])
    flat = Flat(parameters)
    own = flat.data, flat.grad
    with pytest.raises(ValueError):
        flat.move(xp.zeros(data), xp.zeros(grad))
    assert flat.data is own[0] and flat.grad is own[1]
    flat.data[...], flat.grad[...] = 5, 6
    assert (numbers(parameters) == 5).all() and (gradients(parameters) == 6).all()


@pytest.mark.parametrize("size", [0, 6, 8])
def test_a_buffer_that_does_not_fit_is_named(rng, size):
    """The error says how many numbers there are and how many the parameters have."""
    for sizes in ((size, 7), (7, size)):
        with pytest.raises(ValueError, match=f"flat buffer has {size} numbers, the parameters have 7"):
            Flat(tensors(rng, [(2, 3), ()])).move(*map(xp.zeros, sizes))


def test_parameters_of_two_dtypes_or_none_are_refused(rng):
    """Flat needs at least one parameter, and all of one dtype."""
    with pytest.raises(ValueError, match="parameters must be some tensors of one dtype, got 0"):
        Flat([])
    with pytest.raises(ValueError, match="parameters must be some tensors of one dtype, got 2"):
        Flat(tensors(rng, [(2,)]) + tensors(rng, [(2,)], "float32"))


@pytest.mark.parametrize(
    "choose", [lambda p: p, lambda p: p[:1], lambda p: p[::-1], lambda p: [*p, Tensor(xp.zeros(2), True)]]
)
def test_parameters_are_not_taken_from_another_flat(choose, rng):
    """The same, fewer, more or reordered parameters of a buffer in use are refused, and its user still trains them."""
    parameters = tensors(rng, [(3,), (2,)])
    flat, before = Flat(parameters), numbers(parameters)
    with pytest.raises(ValueError, match="some belong to another Flat"):
        Flat(choose(parameters))
    flat.grad[...] = asarray(rng.standard_normal(5))
    Adam([flat]).step()
    assert (numbers(parameters) != before).all()


def test_parameters_are_free_when_their_buffers_users_are_gone(rng):
    """Once nobody holds the old buffer, a new one may be made of any of its parameters, with their values."""
    parameters = tensors(rng, [(3,), (2,)])
    optimizer, before = Adam([Flat(parameters)]), numbers(parameters)
    del optimizer
    np.testing.assert_array_equal(to_numpy(Flat(parameters[::-1]).data), np.concatenate([before[3:], before[:3]]))


# Gradients that have moved.


def test_gradients_are_gathered_from_wherever_backward_left_them():
    """Forgotten, then left elsewhere by backward: grad holds them in order, 0 where none came, as views again."""
    x, y, unused = (Tensor(asarray(a), requires_grad=True) for a in host_normal(0, (2, 3), (3,), (4,)))
    flat = Flat([x, unused, y])
    flat.grad[...] = 7
    flat.grad = None
    assert [p.grad for p in (x, unused, y)] == [None] * 3
    (g,) = host_normal(1, (2, 3))
    (x * y).backward(asarray(g))
    expected = [g * to_numpy(y.data), np.zeros(4), (g * to_numpy(x.data)).sum(0)]
    np.testing.assert_allclose(to_numpy(flat.grad), joined(expected), atol=1e-15)
    flat.grad[...] = 5
    assert all((to_numpy(p.grad) == 5).all() and p.grad.shape == p.shape for p in (x, unused, y))


def moved(p, how, g):
    """Give a parameter the gradient g in one of several ways; the numbers that it then has."""
    if how == "stays":
        return to_numpy(p.grad)
    if how == "None":
        p.grad = None
        return np.zeros(p.shape)
    if how == "in place":
        p.grad[...] = g
    elif how == "rebound":
        p.grad = g
    elif how == "a transposed array":
        p.grad = xp.ascontiguousarray(g.T).T
    elif how == "backward":  # on top of what stands there
        before = 0 if p.grad is None else to_numpy(p.grad)
        (p * 2.0).backward(g)
        return before + 2 * to_numpy(g)
    return to_numpy(g)


WAYS = st.sampled_from(["stays", "None", "in place", "rebound", "a transposed array", "backward"])


@given(SEEDS, SHAPES, st.data())
def test_grad_gathers_what_was_rebound_set_to_none_or_left_elsewhere(seed, shapes, data):
    """However each parameter came by its gradient, flat.grad is all of them in one row, time and again."""
    rng = default_rng(seed)
    parameters = tensors(rng, shapes)
    flat = Flat(parameters)
    flat.grad[...] = asarray(rng.standard_normal(len(flat.data)))
    array = flat.grad
    for _ in range(2):
        expected = [moved(p, data.draw(WAYS), asarray(rng.standard_normal(p.shape))).copy() for p in parameters]
        assert flat.grad is array
        np.testing.assert_array_equal(to_numpy(flat.grad), joined(expected))
        assert all(is_view(flat, p) for p in parameters)


@pytest.mark.parametrize("use", ["clip", "Adam"])
def test_optimizer_and_clipping_see_a_gradient_that_was_rebound(use, rng):
    """Not only whoever asks for flat.grad by hand: a step from a rebound gradient is the step from that gradient."""
    parameters, alone = (tensors(default_rng(1), [(3,), (2, 2)]) for _ in range(2))
    flat = Flat(parameters)
    for p, q in zip(parameters, alone):
        p.grad = asarray(rng.standard_normal(p.shape))
        q.grad = p.grad.copy()
    if use == "clip":
        assert math.isclose(float(clip_grad_norm([flat], 0.1)), float(clip_grad_norm(alone, 0.1)), rel_tol=1e-14)
        np.testing.assert_allclose(gradients(parameters), gradients(alone), rtol=1e-14)
    else:
        Adam([flat]).step()
        Adam(alone).step()
        np.testing.assert_allclose(numbers(parameters), numbers(alone), rtol=1e-14)


def test_a_flats_gradient_is_its_parameters():
    """It can be forgotten, but not replaced: the parameters would keep another one."""
    flat = Flat(tensors(default_rng(0), [(3,)]))
    with pytest.raises(ValueError, match="g must be None: the gradient of a Flat is that of its parameters"):
        flat.grad = xp.zeros(3)


# Updates, against the plain forms; each form alone is held to its plain one in test_install.py.


def run(make, rows, norms, dtype):
    """Weights, gradients, moments, average and norms of some steps of clipping, Adam and the average."""
    parameters = tensors(default_rng(1), [(3, 5), (), (4, 7, 3)], dtype)
    taken = make(parameters)
    adam, average, found = Adam(taken, 0.1, (0.8, 0.99), 1e-3), EMA(taken, 0.9), []
    for row, max_norm in zip(rows, norms):
        start = 0
        for p in parameters:
            p.grad = None if row is None else asarray(row[start : start + p.size].reshape(p.shape).astype(dtype))
            start += p.size
        if row is not None:
            found.append(float(clip_grad_norm(taken, max_norm)))
        adam.step()
        average.update()
    arrays = [[p.data for p in parameters], adam.m, adam.v, average.average]
    return [np.array(found), *map(joined, arrays)]


@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-5), ("float64", 1e-13)])
@pytest.mark.parametrize("make", [lambda p: [Flat(p)], lambda p: p], ids=["flat", "list"])
def test_clipping_adam_and_average_are_the_plain_ones(make, dtype, bound):
    """Some steps, clipped and not, the last without a gradient: all numbers, of one Flat and of a list of tensors.

    The corrections of Adam are folded into its rate: some roundings, of numbers near 1.
    """
    rows = [*default_rng(0).standard_normal((3, 100)), None]
    found = run(make, rows, (1.0, 100.0, 5.0, 1.0), dtype)
    with plain():
        expected = run(lambda p: p, rows, (1.0, 100.0, 5.0, 1.0), dtype)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=bound, atol=bound)


@pytest.mark.skipif(backend_name() != "numpy", reason="on a GPU nothing is cut into pieces")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("piece", [1, 7, 100, 99, 101])
def test_adam_and_average_do_not_depend_on_the_size_of_a_piece(piece, dtype, rng, monkeypatch):
    """Updating 100 numbers piece by piece gives the bits of updating them at once, in the parameters' dtype."""
    rows = rng.standard_normal((3, 100))

    def pieces_of(size):
        monkeypatch.setattr(optim, "PIECE", size)
        flats = []
        states = run(lambda p: flats.append(Flat(p)) or flats, rows, (1e9,) * 3, dtype)
        assert flats[0].data.dtype == dtype
        return states

    for found, expected in zip(pieces_of(piece), pieces_of(10**6)):
        assert found.dtype in (dtype, np.float64)
        np.testing.assert_array_equal(found, expected)


@given(SEEDS, st.floats(0, 0.9999), st.integers(1, 20))
def test_the_average_of_what_stands_still_is_itself(seed, decay, n):
    """The weights add up to 1: parameters that do not move are their own average, bit for bit."""
    flat = Flat(tensors(default_rng(seed), [(5,)], "float32"))
    average = EMA([flat], decay)
    for _ in range(n):
        average.update()
    np.testing.assert_array_equal(joined(average.average), to_numpy(flat.data))


# Clipping a Flat.


def with_gradients(seed, shapes, scale):
    parameters = tensors(default_rng(seed), shapes)
    flat = Flat(parameters)
    flat.grad[...] = asarray(scale * default_rng(seed + 1).standard_normal(len(flat.data)))
    return flat, parameters


@given(SEEDS, SHAPES, st.floats(1e-3, 1e3), st.floats(1e-3, 1e3))
def test_clipping_bounds_the_norm_and_keeps_the_direction(seed, shapes, scale, max_norm):
    """g <- g min(1, max_norm / |g|) over all parameters together; the norm before is returned."""
    flat, parameters = with_gradients(seed, shapes, scale)
    before = gradients(parameters)
    norm = math.sqrt(math.fsum((before**2).tolist()))
    assert math.isclose(float(clip_grad_norm([flat], max_norm)), norm, rel_tol=1e-12)
    np.testing.assert_allclose(gradients(parameters), before * min(1, max_norm / norm), rtol=1e-12)
    assert np.linalg.norm(gradients(parameters)) <= max_norm * (1 + 1e-12)


@given(SEEDS, SHAPES, st.floats(1.001, 1e3))
def test_gradients_within_the_bound_are_not_touched(seed, shapes, slack):
    """A norm below max_norm leaves every bit of the gradients."""
    flat, parameters = with_gradients(seed, shapes, 1.0)
    before = gradients(parameters)
    clip_grad_norm([flat], slack * float(np.linalg.norm(before)))
    np.testing.assert_array_equal(gradients(parameters), before)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_norm_that_is_not_finite_is_returned_and_scales_nothing(bad):
    """One nan or infinite number makes the norm nan or inf, and the gradients stay for the caller to look at."""
    flat, parameters = with_gradients(0, [(3,), (2, 2)], 1.0)
    parameters[1].grad[0, 1] = bad
    before = gradients(parameters)
    np.testing.assert_equal(float(clip_grad_norm([flat], 1e-3)), abs(bad))
    np.testing.assert_array_equal(gradients(parameters), before)


# One truth: the parameters and the buffer.


def network(seed=0):
    return Linear(3, 2, rng=default_rng(seed))


def loss_after(model, adam, steps):
    """The loss of fitting noise after some steps."""
    x, y = (Tensor(asarray(a)) for a in host_normal(0, (8, 3), (8, 2), dtype="float32"))
    for _ in range(steps):
        for p in model.parameters():
            p.grad = None
        error = model(x) - y
        loss = ops.mean(error * error)
        loss.backward()
        adam.step()
    return float(loss.data)


WAYS_TO_COPY = [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))]


@pytest.mark.parametrize("way", WAYS_TO_COPY, ids=["deepcopy", "pickle"])
@pytest.mark.parametrize("make", [lambda p: p, lambda p: [Flat(p)]], ids=["list", "flat"])
def test_a_copied_network_and_its_optimizer_train_on_together(make, way):
    """deepcopy or pickle of (network, Adam, average) after some steps: the same bits follow, and nothing is shared."""
    model = network()
    adam = Adam(make(model.parameters()), 0.05)
    average = EMA(adam.parameters)
    loss_after(model, adam, 3)
    twin, its_adam, its_average = way((model, adam, average))
    before = numbers(model.parameters())
    loss = loss_after(twin, its_adam, 30)
    its_average.update()
    np.testing.assert_array_equal(numbers(model.parameters()), before)
    assert loss_after(model, adam, 30) == loss < 0.9 * loss_after(network(), Adam([]), 1)
    average.update()
    np.testing.assert_array_equal(joined(average.average), joined(its_average.average))


def test_a_copied_flat_keeps_gradients_and_norm():
    """Between backward and step a copy takes the step that the original takes."""
    flat, parameters = with_gradients(0, [(3,), (2, 2)], 1.0)
    parameters[0].grad = parameters[0].grad * 2
    clip_grad_norm([flat], 100.0)
    twin = copy.deepcopy(flat)
    np.testing.assert_array_equal(to_numpy(twin.grad), to_numpy(flat.grad))
    assert float(twin.norm) == float(flat.norm) and not set(map(id, twin.parameters)) & set(map(id, parameters))
    with pytest.raises(ValueError, match="some belong to another Flat"):
        copy.copy(flat)


USES = {
    "step": lambda flat, adam, average: adam.step(),
    "clip": lambda flat, adam, average: (flat.gather(), clip_grad_norm([flat], 1.0)),
    "update": lambda flat, adam, average: average.update(),
    "a new average": lambda flat, adam, average: EMA([flat]),
    "a new Adam": lambda flat, adam, average: Adam([flat]),
    "read": lambda flat, adam, average: flat.data,
    "gather": lambda flat, adam, average: flat.gather(),
}


@pytest.mark.parametrize("new", [lambda a: a.copy(), lambda a: a.reshape(-1)[:1], lambda a: a.astype("float32")])
@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_a_parameter_with_another_array_is_refused(use, new):
    """p.data = new: the buffer would train an array that the network does not read.  RuntimeError with the remedy."""
    parameters = tensors(default_rng(0), [(3,), (2, 2)])
    flat = Flat(parameters)
    adam, average = Adam([flat]), EMA([flat])
    kept, parameters[1].data = parameters[1].data, new(parameters[1].data)
    with pytest.raises(RuntimeError, match=r"another array now: write p\.data\[\.\.\.\] = a, not p\.data = a"):
        use(flat, adam, average)
    parameters[1].data = kept
    use(flat, adam, average)


def test_a_flats_data_may_be_updated_but_not_replaced():
    """flat.data += a is an update of the parameters, which older graphs notice; flat.data = a is refused."""
    parameters = tensors(default_rng(0), [(3,)])
    flat, (p,) = Flat(parameters), parameters
    y = p * p
    flat.data += 1
    with pytest.raises(RuntimeError, match="an update has changed an input of mul"):
        y.backward(xp.ones(3))
    with pytest.raises(ValueError, match=r"write flat\.data\[\.\.\.\] = a"):
        flat.data = xp.zeros(3)
    assert flat.data is not None and (numbers(parameters) != 0).all()


def test_a_flat_of_parameters_with_gradients_keeps_them():
    """A Flat made between backward and step: the step is the one of these gradients."""
    parameters, alone = (tensors(default_rng(1), [(3,), (2, 2)]) for _ in range(2))
    for p in (parameters[0], alone[0]):
        (p * p).backward(xp.ones(3))
    flat = Flat(parameters)
    Adam([flat], 0.1).step()
    Adam(alone, 0.1).step()
    np.testing.assert_allclose(numbers(parameters), numbers(alone), rtol=1e-14)


# Frozen parameters, and graphs that are older than an update.


def test_muon_on_a_flat_moves_its_matrices_and_leaves_a_frozen_one():
    """As on the list of the same parameters: a matrix, a frozen matrix, a vector, a filter without a gradient."""
    shapes = [(16, 20), (16, 20), (7,), (3, 3, 4, 16)]
    flat, alone = tensors(default_rng(0), shapes), tensors(default_rng(0), shapes)
    optimizers = Muon([Flat(flat)], 0.1), Muon(alone, 0.1)
    flat[1].requires_grad = alone[1].requires_grad = False
    before = to_numpy(flat[1].data).copy()
    for step in range(3):
        for parameters, optimizer in zip((flat, alone), optimizers):
            for p, g in zip(parameters, tensors(default_rng(step, 1), shapes)):
                p.grad = g.data.copy()
            parameters[3].grad = None
            optimizer.step()
    np.testing.assert_array_equal(to_numpy(flat[1].data), before)
    for p, q in zip(flat, alone):
        # roundings of float64; a round multiplies those of a singular value by 3.4 at most
        np.testing.assert_allclose(to_numpy(p.data), to_numpy(q.data), atol=1e-11)


def test_frozen_parameters_of_a_flat_stay_as_in_the_plain_optimizer():
    """Frozen from the start, or after some steps, or for some steps: values and moments are those of a list."""
    parameters, alone = (tensors(default_rng(1), [(3,), (2, 2), (4,)]) for _ in range(2))
    adam, plain_adam = Adam([Flat(parameters)], 0.1), Adam(alone, 0.1)
    for step, row in enumerate(default_rng(2).standard_normal((6, 11))):
        for tensors_of_run, optimizer in ((parameters, adam), (alone, plain_adam)):
            tensors_of_run[0].requires_grad = False
            tensors_of_run[1].requires_grad = step not in (2, 3)
            tensors_of_run[1].grad = asarray(row[3:7].reshape(2, 2)) if tensors_of_run[1].requires_grad else None
            tensors_of_run[2].grad = asarray(row[7:])
            optimizer.step()
        np.testing.assert_allclose(numbers(parameters), numbers(alone), rtol=1e-12)
        np.testing.assert_allclose(joined(adam.m), joined(plain_adam.m), rtol=1e-12)
        np.testing.assert_allclose(joined(adam.v), joined(plain_adam.v), rtol=1e-12)
    np.testing.assert_array_equal(numbers(parameters[:1]), numbers(tensors(default_rng(1), [(3,)])))


def test_a_step_of_a_flat_makes_older_graphs_stale_and_no_others():
    """Of each parameter that it moves: not of a frozen one, nor of one in another Flat (a GAN has two)."""
    (w, frozen), (v,), x = tensors(default_rng(0), [(3,), (3,)]), tensors(default_rng(1), [(3,)]), xp.ones(3)
    adam, _ = Adam([Flat([w, frozen])]), Flat([v])
    frozen.requires_grad = False
    old, others = v * w, v * frozen * v
    w.grad = x
    adam.step()
    with pytest.raises(RuntimeError, match="an update has changed an input of mul"):
        old.backward(x)
    others.backward(x)
    (v * w).backward(x)


@pytest.mark.parametrize("max_norm", [-1.0, 0.0, math.nan])
def test_a_bound_that_would_turn_the_gradient_round_is_refused(max_norm):
    """max_norm > 0, else ValueError, in every form of clip_grad_norm."""
    flat, parameters = with_gradients(0, [(3,)], 1.0)
    before = gradients(parameters)
    with pytest.raises(ValueError, match="max_norm must be above 0"):
        clip_grad_norm([flat], max_norm)
    np.testing.assert_array_equal(gradients(parameters), before)
