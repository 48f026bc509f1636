"""Adam against its algorithm number by number, the average against its closed form, clipping, rates, flat buffers."""

import math
import re

import numpy as np
import pytest
from draws import host_normal
from hypothesis import given
from hypothesis import strategies as st

from tinydiff import optim
from tinydiff.autograd import Tensor
from tinydiff.backend import asarray, default_rng, to_numpy, xp
from tinydiff.nn import Linear, Module
from tinydiff.optim import EMA, Adam, Flat, clip_grad_norm, learning_rate

pytestmark = pytest.mark.training

SEEDS = st.integers(0, 2**32 - 1)
SHAPES = st.lists(st.lists(st.integers(1, 4), max_size=3).map(tuple), min_size=1, max_size=4)


def tensors(rng, shapes, dtype="float64"):
    return [Tensor(asarray(rng.standard_normal(shape), dtype), requires_grad=True) for shape in shapes]


def give_gradients(parameters, rng):
    for p in parameters:
        p.grad[...] = asarray(rng.standard_normal(p.shape), p.dtype)


def numbers(parameters):
    """All values in one row."""
    return np.concatenate([to_numpy(p).reshape(-1) for p in parameters])


def gradients(parameters):
    return np.concatenate([to_numpy(p.grad).reshape(-1) for p in parameters])


# Flat buffers.


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
    expected = np.concatenate([to_numpy(g).reshape(-1) for g in cotangents]) * 3.0
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


# Adam.


def adam_by_the_number(theta, gs, lrs, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0):
    """Algorithm 1 of Kingma & Ba 2015 for one number, the decay taken from the value itself and not through g."""
    m = v = 0.0
    for k, (g, lr) in enumerate(zip(gs, lrs), start=1):
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g * g
        m_hat = m / (1 - beta1**k)
        v_hat = v / (1 - beta2**k)
        theta = theta - lr * (m_hat / (math.sqrt(v_hat) + eps) + weight_decay * theta)
    return theta


def run_adam(optimizer, gradient_rows, lrs):
    for row, lr in zip(gradient_rows, lrs):
        optimizer.flat.grad[...] = asarray(row)
        optimizer.step(lr)


RATES = st.floats(1e-4, 1.0)


@given(
    SEEDS,
    SHAPES,
    st.lists(RATES, min_size=1, max_size=6),
    st.tuples(st.floats(0, 0.99), st.floats(0, 0.9999)),
    st.sampled_from([1e-8, 1e-3, 0.5]),
    st.sampled_from([0.0, 0.01, 0.3]),
)
def test_adam_is_the_algorithm_of_the_paper(seed, shapes, lrs, betas, eps, weight_decay):
    """Every number follows algorithm 1 with decoupled decay, for any betas, eps and rate of each step."""
    rng = default_rng(seed)
    parameters = tensors(rng, shapes)
    start = numbers(parameters)
    rows = rng.standard_normal((len(lrs), len(start))) * 10.0 ** rng.integers(-3, 3, len(start))
    run_adam(Adam(parameters, betas=betas, eps=eps, weight_decay=weight_decay), rows, lrs)
    expected = [
        adam_by_the_number(theta, gs, lrs, *betas, eps, weight_decay)
        for theta, gs in zip(start.tolist(), rows.T.tolist())
    ]
    # 1e-11: 1 - beta2^k loses 4 of 16 digits where beta2 = 0.9999, in both, but not in the same place.
    np.testing.assert_allclose(numbers(parameters), expected, rtol=1e-11, atol=1e-11)


def test_adam_starts_from_the_settings_of_the_paper(rng):
    """Without arguments: lr 1e-3, betas 0.9 and 0.999, eps 1e-8, no decay; step() uses lr, step(lr) that lr."""
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


@given(SEEDS, st.floats(1e-3, 0.5), st.floats(1e-3, 0.5))
def test_decay_does_not_pass_through_the_gradient(seed, lr, weight_decay):
    """Without a gradient the decay alone shrinks theta, by 1 - lr weight_decay a step: it is not divided by sqrt(v)."""
    parameters = tensors(default_rng(seed), [(5,)])
    start = numbers(parameters)
    run_adam(Adam(parameters, lr, weight_decay=weight_decay), np.zeros((3, 5)), [None] * 3)
    np.testing.assert_allclose(numbers(parameters), start * (1 - lr * weight_decay) ** 3, rtol=1e-14)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("piece", [1, 7, 100, 99, 101])
def test_adam_and_average_do_not_depend_on_the_size_of_a_piece(piece, dtype, rng, monkeypatch):
    """Updating 100 numbers piece by piece gives the bits of updating them at once, in the parameters' dtype."""
    shapes, rows = [(3, 5), (), (4, 7, 3)], rng.standard_normal((3, 100))

    def run(size):
        monkeypatch.setattr(optim, "PIECE", size)
        parameters = tensors(default_rng(1), shapes, dtype)
        optimizer = Adam(parameters, 0.1, weight_decay=0.1)
        average = EMA(optimizer.flat, 0.9)
        for row in rows:
            run_adam(optimizer, [row], [None])
            average.update()
        return [to_numpy(a) for a in (optimizer.flat.data, optimizer.m, optimizer.v, average.data)]

    for found, expected in zip(run(piece), run(10**6)):
        assert found.dtype == dtype
        np.testing.assert_array_equal(found, expected)


def test_each_parameter_is_updated_as_if_it_were_alone(rng):
    """Adam on several parameters is Adam on each of them: they share nothing but the step count."""
    shapes = [(3, 5), (), (4,)]
    together = tensors(default_rng(1), shapes)
    alone = tensors(default_rng(1), shapes)
    optimizer, optimizers = Adam(together, 0.1), [Adam([p], 0.1) for p in alone]
    for seed in range(3):
        give_gradients(together, default_rng(seed))
        give_gradients(alone, default_rng(seed))
        for one in (optimizer, *optimizers):
            one.step()
    np.testing.assert_array_equal(numbers(together), numbers(alone))


def test_zero_grad_clears_every_gradient_in_place(rng):
    """After zero_grad all gradients are 0 and still views of flat.grad; the values stay."""
    parameters = tensors(rng, [(2, 3), (4,)])
    optimizer = Adam(parameters)
    give_gradients(parameters, rng)
    before = numbers(parameters)
    optimizer.zero_grad()
    assert not gradients(parameters).any()
    give_gradients(parameters, rng)
    np.testing.assert_array_equal(to_numpy(optimizer.flat.grad), gradients(parameters))
    np.testing.assert_array_equal(numbers(parameters), before)


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
    np.testing.assert_allclose(to_numpy(average.data), expected, rtol=1e-13, atol=1e-13)  # 30 roundings of 1e-16
    np.testing.assert_array_equal(numbers(parameters), thetas[-1])  # looking does not touch


@given(SEEDS, st.floats(0, 0.9999), st.integers(1, 20))
def test_the_average_of_what_stands_still_is_itself(seed, decay, n):
    """The weights add up to 1: parameters that do not move are their own average, bit for bit."""
    parameters = tensors(default_rng(seed), [(5,)], "float32")
    average = EMA(parameters, decay)
    for _ in range(n):
        average.update()
    np.testing.assert_array_equal(to_numpy(average.data), numbers(parameters))
    assert average.num_updates == n


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
    assert len(average.data) == model.num_parameters() == 9
    assert model.buffer.data is array


@pytest.mark.parametrize("decay", [-0.1, 1.0, 1.5, math.nan])
def test_a_decay_out_of_range_is_refused(decay, rng):
    """0 <= decay < 1, else ValueError with the value: at 1 the average would never move."""
    with pytest.raises(ValueError, match=re.escape(f"decay must lie in 0 <= decay < 1, got {decay}")):
        EMA(tensors(rng, [(2,)]), decay)


# Several users of the same parameters.


@pytest.mark.parametrize("build", [EMA, Adam])
def test_users_of_the_same_parameters_share_one_buffer(build, rng):
    """Adam and another user, each given a list of the same tensors or the Flat, look at the same numbers."""
    parameters = tensors(rng, [(3,), (2,)])
    optimizer, before = Adam(parameters), numbers(parameters)
    other, third = build(list(parameters)), build(optimizer.flat)
    assert other.flat is optimizer.flat is third.flat
    give_gradients(parameters, rng)
    optimizer.step()
    assert (numbers(parameters) != before).all()
    np.testing.assert_array_equal(to_numpy(other.flat.data), numbers(parameters))


@pytest.mark.parametrize("build", [EMA, Adam, Flat])
@pytest.mark.parametrize("choose", [lambda p: p[:1], lambda p: p[::-1], lambda p: [*p, Tensor(xp.zeros(2), True)]])
def test_parameters_are_not_taken_from_another_user(build, choose, rng):
    """Fewer, more or reordered parameters of a buffer in use are refused, and its user still trains them."""
    parameters = tensors(rng, [(3,), (2,)])
    optimizer, before = Adam(parameters), numbers(parameters)
    with pytest.raises(ValueError, match="belong to another optimizer's buffer"):
        build(choose(parameters))
    give_gradients(parameters, rng)
    optimizer.step()
    assert (numbers(parameters) != before).all()


def test_parameters_are_free_when_their_buffers_users_are_gone(rng):
    """Once nobody holds the old buffer, a new one may be made of any of its parameters, with their values."""
    parameters = tensors(rng, [(3,), (2,)])
    optimizer, before = Adam(parameters), numbers(parameters)
    del optimizer
    np.testing.assert_array_equal(to_numpy(Flat(parameters[::-1]).data), np.concatenate([before[3:], before[:3]]))


# Clipping.


def with_gradients(seed, shapes, scale, flat):
    """(what clip_grad_norm takes, the parameters), with random gradients."""
    rng = default_rng(seed)
    parameters = tensors(rng, shapes)
    made = Flat(parameters)
    give_gradients(parameters, rng)
    made.grad *= scale
    return (made if flat else parameters), parameters


@given(SEEDS, SHAPES, st.floats(1e-3, 1e3), st.floats(1e-3, 1e3), st.booleans())
def test_clipping_bounds_the_norm_and_keeps_the_direction(seed, shapes, scale, max_norm, flat):
    """g <- g min(1, max_norm / |g|) over all parameters together; the norm before is returned."""
    what, parameters = with_gradients(seed, shapes, scale, flat)
    before = gradients(parameters)
    norm = math.sqrt(math.fsum((before**2).tolist()))
    returned = clip_grad_norm(what, max_norm)
    assert flat or type(returned) is float
    assert math.isclose(float(returned), norm, rel_tol=1e-12)
    np.testing.assert_allclose(gradients(parameters), before * min(1, max_norm / norm), rtol=1e-12)
    assert np.linalg.norm(gradients(parameters)) <= max_norm * (1 + 1e-12)


@given(SEEDS, SHAPES, st.floats(1.001, 1e3), st.booleans())
def test_gradients_within_the_bound_are_not_touched(seed, shapes, slack, flat):
    """A norm below max_norm leaves every bit of the gradients."""
    what, parameters = with_gradients(seed, shapes, 1.0, flat)
    before = gradients(parameters)
    clip_grad_norm(what, slack * float(np.linalg.norm(before)))
    np.testing.assert_array_equal(gradients(parameters), before)


@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_norm_that_is_not_finite_is_returned_and_scales_nothing(bad, flat):
    """One nan or infinite number makes the norm nan or inf, and the gradients stay for the caller to look at."""
    what, parameters = with_gradients(0, [(3,), (2, 2)], 1.0, flat)
    parameters[1].grad[0, 1] = bad
    before = gradients(parameters)
    np.testing.assert_equal(float(clip_grad_norm(what, 1e-3)), abs(bad))
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


def test_gradients_are_gathered_from_wherever_backward_left_them():
    """forget, backward, collect: grad holds them in order, 0 where none came, and the parameters view it again."""
    x, y, unused = (Tensor(asarray(a), requires_grad=True) for a in host_normal(0, (2, 3), (3,), (4,)))
    flat = Flat([x, unused, y])
    flat.grad[...] = 7
    flat.forget()
    (g,) = host_normal(1, (2, 3))
    (x * y).backward(asarray(g))
    expected = [g * to_numpy(y.data), np.zeros(4), (g * to_numpy(x.data)).sum(0)]
    flat.collect()
    np.testing.assert_allclose(to_numpy(flat.grad), np.concatenate([a.reshape(-1) for a in expected]), atol=1e-15)
    flat.grad[...] = 5
    assert all((to_numpy(p.grad) == 5).all() and p.grad.shape == p.shape for p in (x, unused, y))
