"""Adam against its algorithm number by number, the average against its closed form, clipping, rates."""

import math
import re

import numpy as np
import pytest
from draws import SEEDS
from hypothesis import given
from hypothesis import strategies as st

from tinydiff.autograd import Tensor
from tinydiff.backend import asarray, default_rng, to_numpy, xp
from tinydiff.nn import Linear, Module
from tinydiff.optim import EMA, Adam, clip_grad_norm, forget_gradients, learning_rate

pytestmark = pytest.mark.training

SHAPES = st.lists(st.lists(st.integers(1, 4), max_size=3).map(tuple), min_size=1, max_size=4)


def tensors(rng, shapes, dtype="float64"):
    return [Tensor(asarray(rng.standard_normal(shape), dtype), requires_grad=True) for shape in shapes]


def give_gradients(parameters, row):
    """One long row of numbers as the parameters' gradients, in order."""
    start = 0
    for p in parameters:
        p.grad = asarray(row[start : start + p.size].reshape(p.shape).astype(p.dtype))
        start += p.size


def joined(arrays):
    """All values in one row."""
    return np.concatenate([to_numpy(a).reshape(-1) for a in arrays])


def numbers(parameters):
    return joined(p.data for p in parameters)


def gradients(parameters):
    return joined(p.grad for p in parameters)


# Adam.


def adam_by_the_number(theta, gs, lrs, beta1=0.9, beta2=0.999, eps=1e-8):
    """Algorithm 1 of Kingma & Ba 2015 for one number."""
    m = v = 0.0
    for k, (g, lr) in enumerate(zip(gs, lrs), start=1):
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g * g
        m_hat = m / (1 - beta1**k)
        v_hat = v / (1 - beta2**k)
        theta = theta - lr * m_hat / (math.sqrt(v_hat) + eps)
    return theta


def run_adam(optimizer, gradient_rows, lrs):
    for row, lr in zip(gradient_rows, lrs):
        give_gradients(optimizer.parameters, row)
        optimizer.step(lr)


RATES = st.floats(1e-4, 1.0)


@given(
    SEEDS,
    SHAPES,
    st.lists(RATES, min_size=1, max_size=6),
    st.tuples(st.floats(0, 0.99), st.floats(0, 0.9999)),
    st.sampled_from([1e-8, 1e-3, 0.5]),
)
def test_adam_is_the_algorithm_of_the_paper(seed, shapes, lrs, betas, eps):
    """Every number follows algorithm 1, for any betas, eps and rate of each step."""
    rng = default_rng(seed)
    parameters = tensors(rng, shapes)
    start = numbers(parameters)
    rows = rng.standard_normal((len(lrs), len(start))) * 10.0 ** rng.integers(-3, 3, len(start))
    run_adam(Adam(parameters, betas=betas, eps=eps), rows, lrs)
    expected = [adam_by_the_number(a, gs, lrs, *betas, eps) for a, gs in zip(start.tolist(), rows.T.tolist())]
    # 1e-11: 1 - beta2^k loses 4 of 16 digits where beta2 = 0.9999, in both, but not in the same place.
    np.testing.assert_allclose(numbers(parameters), expected, rtol=1e-11, atol=1e-11)


def test_adam_starts_from_the_settings_of_the_paper(rng):
    """Without arguments: lr 1e-3, betas 0.9 and 0.999, eps 1e-8; step() uses lr, step(lr) that lr."""
    parameters = tensors(rng, [(3,)])
    start, rows = numbers(parameters), rng.standard_normal((4, 3)) * 1e-8  # so small that eps shows
    optimizer = Adam(parameters)
    run_adam(optimizer, rows, [None, 0.5, None, None])
    expected = [adam_by_the_number(a, gs, [1e-3, 0.5, 1e-3, 1e-3]) for a, gs in zip(start.tolist(), rows.T.tolist())]
    np.testing.assert_allclose(numbers(parameters), expected, rtol=1e-12)
    assert optimizer.num_steps == 4


@given(SEEDS, st.floats(1e-4, 0.5), st.floats(0, 0.99), st.floats(0, 0.9999))
def test_the_first_step_has_length_lr(seed, lr, beta1, beta2):
    """Both corrections cancel at k = 1: theta moves by -lr g / (|g| + eps), which is -lr sign(g)."""
    rng = default_rng(seed)
    parameters = tensors(rng, [(4, 3)])
    start = numbers(parameters)
    g = rng.uniform(0.5, 2, 12) * rng.choice([-1, 1], 12)
    run_adam(Adam(parameters, lr, (beta1, beta2)), [g], [None])
    # eps / |g| <= 2e-8 of the step, and the rounding of theta itself.
    np.testing.assert_allclose(numbers(parameters), start - lr * np.sign(g), rtol=1e-14, atol=3e-8 * lr)


@given(SEEDS, st.lists(RATES, min_size=1, max_size=30), st.floats(0, 0.99), st.floats(0, 0.999))
def test_a_constant_gradient_moves_by_the_rates_alone(seed, lrs, beta1, beta2):
    """For one g at every step m_hat = g and v_hat = g^2 exactly, so theta = theta_0 - sum(lrs) g / (|g| + eps)."""
    rng = default_rng(seed)
    parameters, eps = tensors(rng, [(7,)]), 0.5
    start, g = numbers(parameters), rng.uniform(0.1, 10, 7) * rng.choice([-1, 1], 7)
    run_adam(Adam(parameters, betas=(beta1, beta2), eps=eps), [g] * len(lrs), lrs)
    # 1e-11: 1 - beta2^k loses 3 of 16 digits where beta2 = 0.999.
    np.testing.assert_allclose(numbers(parameters), start - sum(lrs) * g / (abs(g) + eps), rtol=1e-11, atol=1e-11)


def test_each_parameter_is_updated_as_if_it_were_alone(rng):
    """Adam on several parameters is Adam on each of them: they share nothing but the step count."""
    shapes = [(3, 5), (), (4,)]
    together = tensors(default_rng(1), shapes)
    alone = tensors(default_rng(1), shapes)
    optimizer, optimizers = Adam(together, 0.1), [Adam([p], 0.1) for p in alone]
    for row in rng.standard_normal((3, 20)):
        give_gradients(together, row)
        give_gradients(alone, row)
        for one in (optimizer, *optimizers):
            one.step()
    np.testing.assert_array_equal(numbers(together), numbers(alone))


def test_updates_are_written_in_place(rng):
    """Whoever shares a parameter's array, the moments or the average sees each update; gradients stay as they are."""
    parameters = tensors(rng, [(2, 3), (4,)])
    adam, average = Adam(parameters), EMA(parameters)
    arrays = [p.data for p in parameters], adam.m, adam.v, average.average
    held, before = [list(group) for group in arrays], [joined(group) for group in arrays]
    give_gradients(parameters, row := rng.standard_normal(10))
    adam.step()
    average.update()
    for group, same, old in zip(arrays, held, before):
        assert all(a is b for a, b in zip(group, same))
        assert (joined(same) != old).all()
    np.testing.assert_array_equal(numbers(parameters), joined(arrays[0]))
    np.testing.assert_array_equal(gradients(parameters), row)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_moments_and_average_have_the_parameters_dtype(dtype, rng):
    """No step turns a float32 parameter, its moments or its average into float64."""
    parameters = tensors(rng, [(2, 3), ()], dtype)
    adam, average = Adam(parameters), EMA(parameters)
    give_gradients(parameters, rng.standard_normal(7))
    clip_grad_norm(parameters, 0.1)
    adam.step()
    average.update()
    arrays = [p.data for p in parameters] + [p.grad for p in parameters] + adam.m + adam.v + average.average
    assert {a.dtype.name for a in arrays} == {dtype}


def test_a_parameter_that_waits_for_its_gradient_counts_as_one_of_gradient_0(rng):
    """Its moments fade and the last ones move it on, as with a gradient of zeros, bit for bit."""
    waiting, of_zeros = (tensors(default_rng(1), [(3,), (2, 2)]) for _ in range(2))
    adams = [Adam(parameters, 0.1) for parameters in (waiting, of_zeros)]
    for step, row in enumerate(rng.standard_normal((3, 7))):
        for parameters, adam in zip((waiting, of_zeros), adams):
            give_gradients(parameters, np.where(np.arange(7) < 3, row, 0) if step else row)
            if step and parameters is waiting:
                parameters[1].grad = None
            adam.step()
    np.testing.assert_array_equal(numbers(waiting), numbers(of_zeros))
    assert waiting[1].grad is None


@pytest.mark.parametrize("forget", [lambda adam: adam.zero_grad(), lambda adam: forget_gradients(adam.parameters)])
def test_forgotten_gradients_are_none_and_the_next_ones_are_not_added_to_them(forget, rng):
    """Afterwards every parameter waits; the values stay, and backward then leaves its own gradients alone."""
    parameters = tensors(rng, [(2, 3), (4,)])
    adam, before = Adam(parameters), numbers(parameters)
    give_gradients(parameters, rng.standard_normal(10))
    forget(adam)
    assert [p.grad for p in parameters] == [None, None]
    np.testing.assert_array_equal(numbers(parameters), before)
    for p in parameters:
        (p * 3.0).backward(xp.full(p.shape, 2.0))
    np.testing.assert_array_equal(gradients(parameters), np.full(10, 6.0))


# The average.


@given(SEEDS, st.one_of(st.just(0.0), st.floats(0, 0.9999)), st.integers(0, 30))
def test_the_average_is_a_weighted_sum_of_all_values_so_far(seed, decay, n):
    """sum_k theta_k (1 - d_k) prod_{j > k} d_j + theta_start prod_j d_j, where d_k = min(decay, (1 + k) / (10 + k))."""
    rng = default_rng(seed)
    parameters = tensors(rng, [(2, 3), ()])
    average = EMA(parameters, decay)
    thetas = [numbers(parameters)]
    for _ in range(n):
        for p in parameters:
            p.data[...] = asarray(rng.standard_normal(p.shape))
        thetas.append(numbers(parameters))
        average.update()
    d = [min(decay, (1 + k) / (10 + k)) for k in range(n)]
    weights = [math.prod(d)] + [(1 - d[k]) * math.prod(d[k + 1 :]) for k in range(n)]
    expected = sum(weight * theta for weight, theta in zip(weights, thetas))
    np.testing.assert_allclose(joined(average.average), expected, rtol=1e-13, atol=1e-13)  # 30 roundings of 1e-16
    np.testing.assert_array_equal(numbers(parameters), thetas[-1])  # looking does not touch


@given(SEEDS, st.floats(0, 0.9999), st.integers(1, 20))
def test_the_average_of_what_stands_still_is_itself(seed, decay, n):
    """The weights add up to 1: parameters that do not move are their own average, bit for bit."""
    parameters = tensors(default_rng(seed), [(5,)], "float32")
    average = EMA(parameters, decay)
    for _ in range(n):
        average.update()
    np.testing.assert_array_equal(joined(average.average), numbers(parameters))
    assert average.num_updates == n


def test_one_call_puts_the_average_into_a_network(rng):
    """Bit for bit, into the parameters that are averaged or a copy of them; later updates change neither."""
    parameters, twin = tensors(default_rng(1), [(2, 3), (), (4,)]), tensors(default_rng(2), [(2, 3), (), (4,)])
    average = EMA(parameters)
    for p in parameters:
        p.data[...] = asarray(rng.standard_normal(p.shape))
    average.update()
    arrays, expected = [p.data for p in twin], joined(average.average)
    average.copy_to(twin)
    assert all(p.data is a for p, a in zip(twin, arrays))  # in place
    np.testing.assert_array_equal(numbers(twin), expected)
    assert (numbers(parameters) != expected).all()
    average.copy_to(parameters)
    np.testing.assert_array_equal(numbers(parameters), expected)
    for p in parameters:
        p.data += 1
    average.update()
    np.testing.assert_array_equal(numbers(twin), expected)
    assert (joined(average.average) != expected).all()


def test_a_graph_from_before_the_average_is_refused(rng):
    """copy_to writes to the parameters, as a step of Adam does: backward would read the new values."""
    (p,) = tensors(rng, [(3,)])
    average, y = EMA([p]), p * p
    average.copy_to([p])
    with pytest.raises(RuntimeError, match="an update has changed an input of mul"):
        y.backward(xp.ones(3))


@pytest.mark.parametrize("shapes", [[(2, 3)], [(2, 3), (1,)], [(4,), (2, 3)], [(2, 3), (4,), ()], []])
def test_the_average_goes_into_parameters_of_its_shapes_only(shapes, rng):
    """Too few, too many, another order, a shape that would be broadcast: ValueError, and nothing is written."""
    average, others = EMA(tensors(rng, [(2, 3), (4,)])), tensors(rng, shapes)
    before = [to_numpy(p).copy() for p in others]
    with pytest.raises(ValueError, match=f"must be 2 of the average's shapes, got {len(shapes)} others"):
        average.copy_to(others)
    for p, a in zip(others, before):
        np.testing.assert_array_equal(to_numpy(p), a)


def test_adam_takes_leaves_only(rng):
    """One tensor in place of a list would be its rows, and the result of an op has no gradient: neither would move."""
    (p,) = tensors(rng, [(2, 3)])
    p.requires_grad = True
    for given_ in (p, [p * 2.0], [p, p[0]]):
        with pytest.raises(ValueError, match="Adam takes a list of leaves, got"):
            Adam(given_)
    with pytest.raises(TypeError, match="not iterable"):
        Adam(Linear(2, 3, rng=rng))
    assert Adam(iter([p])).parameters == [p]


def test_the_average_is_of_parameters_only(rng):
    """A buffer beside the parameters is neither averaged nor moved."""

    class WithBuffer(Module):
        def __init__(self):
            self.buffer = Tensor(xp.full(1000, 3.0, "float32"))
            self.layer = Linear(2, 3, rng=rng)

    model = WithBuffer()
    array = model.buffer.data
    average = EMA(model.parameters())
    average.update()
    assert sum(a.size for a in average.average) == model.num_parameters() == 9
    assert model.buffer.data is array


@pytest.mark.parametrize("decay", [-0.1, 1.0, 1.5, math.nan])
def test_a_decay_out_of_range_is_refused(decay, rng):
    """0 <= decay < 1, else ValueError with the value: at 1 the average would never move."""
    with pytest.raises(ValueError, match=re.escape(f"decay must lie in 0 <= decay < 1, got {decay}")):
        EMA(tensors(rng, [(2,)]), decay)


# Clipping.


def with_gradients(seed, shapes, scale):
    rng = default_rng(seed)
    parameters = tensors(rng, shapes)
    give_gradients(parameters, scale * rng.standard_normal(len(numbers(parameters))))
    return parameters


@given(SEEDS, SHAPES, st.floats(1e-3, 1e3), st.floats(1e-3, 1e3))
def test_clipping_bounds_the_norm_and_keeps_the_direction(seed, shapes, scale, max_norm):
    """g <- g min(1, max_norm / |g|) over all parameters together; the norm before is returned."""
    parameters = with_gradients(seed, shapes, scale)
    before = gradients(parameters)
    norm = math.sqrt(math.fsum((before**2).tolist()))
    returned = clip_grad_norm(parameters, max_norm)
    assert type(returned) is float
    assert math.isclose(returned, norm, rel_tol=1e-12)
    np.testing.assert_allclose(gradients(parameters), before * min(1, max_norm / norm), rtol=1e-12)
    assert np.linalg.norm(gradients(parameters)) <= max_norm * (1 + 1e-12)


@given(SEEDS, SHAPES, st.floats(1.001, 1e3))
def test_gradients_within_the_bound_are_not_touched(seed, shapes, slack):
    """A norm below max_norm leaves every bit of the gradients."""
    parameters = with_gradients(seed, shapes, 1.0)
    before = gradients(parameters)
    clip_grad_norm(parameters, slack * float(np.linalg.norm(before)))
    np.testing.assert_array_equal(gradients(parameters), before)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_norm_that_is_not_finite_is_returned_and_scales_nothing(bad):
    """One nan or infinite number makes the norm nan or inf, and the gradients stay for the caller to look at."""
    parameters = with_gradients(0, [(3,), (2, 2)], 1.0)
    parameters[1].grad[0, 1] = bad
    before = gradients(parameters)
    np.testing.assert_equal(float(clip_grad_norm(parameters, 1e-3)), abs(bad))
    np.testing.assert_array_equal(gradients(parameters), before)


def test_parameters_without_a_gradient_do_not_count(rng):
    """A parameter that backward has not reached has no part in the norm and gets no gradient."""
    reached, other = tensors(rng, [(3,), (2,)])
    reached.grad = asarray([3.0, 0.0, 4.0])
    assert clip_grad_norm([reached, other], 1.0) == 5
    np.testing.assert_allclose(to_numpy(reached.grad), [0.6, 0, 0.8], rtol=1e-15)
    assert other.grad is None


# The learning rate.

RUNS = st.integers(0, 50).flatmap(lambda warmup: st.tuples(st.just(warmup), st.integers(warmup + 1, warmup + 200)))


@given(RUNS, st.floats(1e-5, 1.0))
def test_the_rate_rises_to_its_peak_and_falls_to_nothing(run, peak):
    """It rises by equal steps to peak, stays within 0..peak, then falls strictly, to exactly 0 at the end and after."""
    warmup, n = run
    rates = [learning_rate(step, n, peak=peak, warmup=warmup) for step in range(n)]
    np.testing.assert_allclose(rates[:warmup], peak * np.arange(1, warmup + 1) / max(1, warmup), rtol=1e-15)
    assert rates[warmup] == peak
    assert all(a > b > 0 for a, b in zip(rates[warmup:], rates[warmup + 1 :]))
    # 1 - cos(u) <= u^2 / 2: the last step is a second-order distance from the end.
    assert rates[-1] <= peak * (math.pi / (n - warmup)) ** 2 / 4 * (1 + 1e-12)
    assert [learning_rate(n + k, n, peak=peak, warmup=warmup) for k in (0, 1, 1000)] == [0, 0, 0]


@given(RUNS, st.floats(1e-5, 1.0), st.data())
def test_the_fall_is_symmetric_about_its_middle(run, peak, data):
    """Half a cosine: the rates k steps after the peak and k steps before the end add up to the peak."""
    warmup, n = run
    k = data.draw(st.integers(0, n - warmup))
    early, late = (learning_rate(step, n, peak=peak, warmup=warmup) for step in (warmup + k, n - k))
    assert math.isclose(early + late, peak, rel_tol=1e-14)  # roundings of 1e-16
    difference = peak * math.cos(math.pi * k / (n - warmup))
    assert math.isclose(early - late, difference, rel_tol=1e-12, abs_tol=1e-14 * peak)


@given(RUNS, st.floats(1e-5, 1.0))
def test_the_end_points_of_the_rate(run, peak):
    """Step 0 has peak / warmup, or peak without warm-up, and the last step peak sin^2(pi / (2 (n - warmup)))."""
    warmup, n = run
    first, last = (learning_rate(step, n, peak=peak, warmup=warmup) for step in (0, n - 1))
    assert math.isclose(first, peak / max(1, warmup), rel_tol=1e-15)
    # (1 + cos(pi - u)) / 2 = sin^2(u / 2), where cos has lost its digits below 1e-16.
    assert math.isclose(last, peak * math.sin(math.pi / (2 * (n - warmup))) ** 2, rel_tol=1e-12, abs_tol=1e-15 * peak)


@given(st.integers(0, 50), st.data())
def test_a_run_that_ends_in_its_warm_up_has_no_fall(warmup, data):
    """num_steps <= warmup: the rates rise as in any run, the step after the warm-up has the peak, later ones 0."""
    n = data.draw(st.integers(0, warmup))
    rates = [learning_rate(step, n, peak=0.5, warmup=warmup) for step in range(warmup + 3)]
    np.testing.assert_allclose(rates[:warmup], 0.5 * np.arange(1, warmup + 1) / max(1, warmup), rtol=1e-15)
    assert rates[warmup:] == [0.5, 0, 0]


@given(st.integers(1, 50), st.integers(1, 1000), st.integers(1, 1000), st.data())
def test_the_warm_up_does_not_depend_on_the_length_of_the_run(warmup, n, other, data):
    """A run that is later made longer has had the same rates during its warm-up."""
    step = data.draw(st.integers(0, warmup - 1))
    assert learning_rate(step, n, peak=0.1, warmup=warmup) == learning_rate(step, other, peak=0.1, warmup=warmup)


# What is out of range.

NO_RATE = [-1e-3, math.nan, math.inf, -math.inf]


@pytest.mark.parametrize("lr", NO_RATE)
def test_a_learning_rate_out_of_range_is_refused(lr, rng):
    """0 <= lr < inf, when Adam is made and at each step, before anything moves."""
    parameters = tensors(rng, [(2,)])
    with pytest.raises(ValueError, match=f"lr .* got {lr}"):
        Adam(parameters, lr)
    adam, before = Adam(parameters), numbers(parameters)
    give_gradients(parameters, np.ones(2))
    with pytest.raises(ValueError, match=f"lr must be finite and not negative, got {lr}"):
        adam.step(lr)
    assert adam.num_steps == 0
    np.testing.assert_array_equal(numbers(parameters), before)
    if lr != -1e-3:
        with pytest.raises(ValueError, match="peak must be finite"):
            learning_rate(0, 10, peak=lr, warmup=1)
    with pytest.raises(ValueError, match="peak and warmup not negative"):
        learning_rate(0, 10, peak=1.0, warmup=-1)


@pytest.mark.parametrize("bad", [1.0, -0.1, math.nan, math.inf])
def test_betas_out_of_range_are_refused(bad, rng):
    """Two numbers in [0, 1): at 1 the correction divides by 0."""
    for betas in ((bad, 0.9), (0.9, bad), (0.9,), (0.9, 0.9, 0.9)):
        with pytest.raises(ValueError, match="betas must be two, 0 <= beta < 1"):
            Adam(tensors(rng, [(2,)]), betas=betas)


@pytest.mark.parametrize("eps", [0.0, -1e-8, math.nan, math.inf])
def test_an_eps_out_of_range_is_refused(eps, rng):
    """eps > 0: a parameter without a gradient would be moved by 0 / 0."""
    with pytest.raises(ValueError, match=f"eps > 0 must be finite, got 0.001 and {eps}"):
        Adam(tensors(rng, [(2,)]), eps=eps)


@pytest.mark.parametrize("max_norm", [-1.0, 0.0, math.nan, -math.inf])
def test_a_bound_that_would_turn_the_gradient_round_is_refused(max_norm):
    """max_norm > 0, else ValueError and the gradients stay; with nan nothing would be clipped.  inf is no bound."""
    parameters = with_gradients(0, [(3,)], 1.0)
    before = gradients(parameters)
    with pytest.raises(ValueError, match=f"max_norm must be above 0, got {max_norm}"):
        clip_grad_norm(parameters, max_norm)
    clip_grad_norm(parameters, math.inf)
    np.testing.assert_array_equal(gradients(parameters), before)


# Frozen parameters, and graphs that are older than an update.


def test_a_frozen_parameter_stays_as_it_is(rng):
    """Frozen before Adam is made, or after some steps, when its moments would still move it; then it moves again."""
    frozen, other = tensors(rng, [(3,), (2,)])
    adam, average = Adam([frozen, other], 0.1), EMA([frozen, other])
    moved = []
    for step in range(6):
        frozen.requires_grad = step in (1, 2, 5)
        before = [numbers([frozen]), joined([adam.m[0], adam.v[0]]), numbers([other])]
        give_gradients([frozen, other], rng.standard_normal(5))
        adam.step()
        average.update()
        after = [numbers([frozen]), joined([adam.m[0], adam.v[0]]), numbers([other])]
        moved.append([bool((a != b).all()) for a, b in zip(before, after)])
    assert moved == [[step in (1, 2, 5)] * 2 + [True] for step in range(6)]


def product(x, w):
    return Tensor(x) * w * w


def test_a_step_makes_older_graphs_stale_and_no_others(rng):
    """Adam.step between forward and backward: RuntimeError.  Frozen parameters and those of another Adam are right."""
    (w, v), x = tensors(rng, [(3,), (3,)]), asarray(rng.standard_normal(3))
    adam = Adam([w])
    old, others = product(x, w), product(x, v)
    w.grad = xp.ones_like(w.data)
    adam.step()
    with pytest.raises(RuntimeError, match="an update has changed an input of mul"):
        old.backward(x)
    others.backward(x)  # a step of the discriminator, between the generator's forward and backward
    product(x, w).backward(x)
    w.requires_grad = False
    kept = v * w
    adam.step()
    kept.backward(x)
