"""Every gradient is right: one row an op of the book, and the laws that each row obeys.

A row draws an op's arguments: random shapes with axes of size 1 and empty ones, broadcasting where the op broadcasts,
every static argument.  The laws then put the arrays into a random memory layout (any order of axes, reversed, with
gaps), since ops must not depend on it, and differentiate with a random cotangent: one of ones is blind to a
normalisation.
What the values themselves should be is tested beside each op (test_conv.py, test_norm.py, ...).  The laws hold for the
plain forms and for the faster ones; ops that only tinydiff/fast has obey them in fast/test_every_op.py.
"""

import gc
import importlib
import inspect
import re
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from draws import SEEDS
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import tinydiff.ops
from tinydiff.autograd import OPS, Tensor
from tinydiff.backend import asarray, default_rng, to_numpy, xp

pytestmark = pytest.mark.engine

SIZES = st.integers(1, 3)
MAYBE_EMPTY = st.sampled_from([1, 2, 3] * 3 + [0])  # an axis of length 0 now and then, or little would be left to test
FEWER = settings(max_examples=max(1, settings().max_examples // 3))
FIRST = settings(max_examples=2000, phases=[Phase.generate], derandomize=True, database=None)


@dataclass(frozen=True)
class Row:
    """arguments: strategy of (host arrays, static arguments).  linear: the inputs in each of which the op is affine.

    blind: whether its gradient needs no input.
    """

    name: str
    arguments: Any
    linear: tuple[int, ...]
    blind: bool


ROWS: dict[str, Row] = {}


def row(*names: str, linear: tuple[int, ...] = (), blind: bool = False, rows: dict[str, Row] = ROWS) -> Callable:
    def add(draw_arguments):
        for name in names:
            rows[name] = Row(name, st.composite(draw_arguments)(), linear, blind)
        return draw_arguments

    return add


def pytest_generate_tests(metafunc):
    """A law of `row` is one of every row of its file; of `affine` and `blind`, of those rows."""
    kinds = {"row": lambda row: True, "affine": lambda row: row.linear, "blind": lambda row: row.blind}
    for argument in kinds.keys() & metafunc.fixturenames:
        rows = [row for _, row in sorted(metafunc.module.ROWS.items()) if kinds[argument](row)]
        metafunc.parametrize(argument, [pytest.param(row, id=row.name) for row in rows])


# What rows are made of.


def shapes(least=0, most=4, sizes=MAYBE_EMPTY):
    return st.lists(sizes, min_size=least, max_size=most).map(tuple)


def normal(draw, shape):
    return default_rng(draw(SEEDS)).standard_normal(shape)


def positive(draw, shape):
    return 0.5 + abs(normal(draw, shape))


def apart(draw, shape, gap=0.3):
    """Distinct values about `gap` from their neighbours: no step of a difference quotient meets a tie or a kink."""
    rng = default_rng(draw(SEEDS))
    size = int(np.prod(shape))
    return gap * (rng.permutation(size) - size // 2 + rng.uniform(0.3, 0.7, size)).reshape(shape)


def broadcastable(draw, count=2):
    """Shapes of 0 to 3 axes that broadcast together; where one has an empty axis, the others have it or a 1 there."""
    drawn = draw(hnp.mutually_broadcastable_shapes(num_shapes=count, max_dims=3, max_side=3))
    emptied = {-i for i in range(1, 4) if draw(MAYBE_EMPTY) == 0}
    return tuple(
        tuple(
            0 if i - len(shape) in emptied and (size > 1 or draw(st.booleans())) else size
            for i, size in enumerate(shape)
        )
        for shape in drawn.input_shapes
    )


def any_axes(draw, ndim):
    """None, one axis, or several different axes, counted from either end."""
    several = draw(st.lists(st.integers(0, ndim - 1), unique=True, min_size=1, max_size=ndim)) if ndim else [0]
    signed = tuple(axis - ndim * draw(st.booleans()) for axis in several)
    return draw(st.sampled_from([None, signed[0], signed] if ndim else [None]))


def values_on_axes(draw, least=0):
    """(shape, axis) to reduce at least one value for each result: only axes that are kept may be empty."""
    shape = draw(shapes(least, sizes=SIZES))
    axis = any_axes(draw, len(shape))
    gone = range(len(shape)) if axis is None else [a % len(shape) for a in np.atleast_1d(axis)]
    return tuple(size if i in gone else draw(MAYBE_EMPTY) for i, size in enumerate(shape)), axis


# The rows: pointwise.


@row("exp", "silu")
def one_input(draw):
    return [normal(draw, draw(shapes()))], {}


row("neg", linear=(0,), blind=True)(one_input)


@row("log")
def one_positive_input(draw):
    return [positive(draw, draw(shapes()))], {}


@row("mul", linear=(0, 1))
def two_inputs(draw):
    return [normal(draw, shape) for shape in broadcastable(draw)], {}


row("add", "sub", linear=(0, 1), blind=True)(two_inputs)


@row("div", linear=(0,))
def a_quotient(draw):
    x, y = broadcastable(draw)
    return [normal(draw, x), positive(draw, y) * draw(st.sampled_from([1, -1]))], {}


# Products.


@row("matmul", linear=(0, 1))
def stacks_of_matrices(draw):
    m, k, n = draw(MAYBE_EMPTY), draw(MAYBE_EMPTY), draw(MAYBE_EMPTY)
    x, y = broadcastable(draw)
    return [normal(draw, (*x[-2:], m, k)), normal(draw, (*y[-2:], k, n))], {}


@row("linear", linear=(0, 1, 2))
def an_affine_map(draw):
    i, o = draw(MAYBE_EMPTY), draw(MAYBE_EMPTY)
    return [normal(draw, (*draw(shapes(0, 3)), i)), normal(draw, (i, o)), normal(draw, (o,))], {}


def a_geometry(draw):
    """(shapes of x, w and b, static arguments) of a convolution."""
    n, o = draw(MAYBE_EMPTY), draw(SIZES)
    if draw(st.booleans()):  # wide 3x3 convolutions that keep the size have a faster form
        kh, kw, c, o, stride, padding = 3, 3, 16 + draw(SIZES), 15 + o, 1, 1
    else:
        kh, kw, c, stride = draw(st.integers(1, 5)), draw(st.integers(1, 5)), draw(SIZES), draw(SIZES)
        padding = draw(st.integers(0, 3))
    # The smallest map, which is empty where padding alone makes room for the kernel, or up to four pixels more.
    h, w = (max(0, k - 2 * padding) + draw(st.sampled_from([1, 2, 3, 4, 0])) for k in (kh, kw))
    return [(n, h, w, c), (kh, kw, c, o), (o,)], {"stride": stride, "padding": padding}


@row("conv2d", linear=(0, 1, 2))
def a_convolution(draw):
    shapes, static = a_geometry(draw)
    return [normal(draw, shape) for shape in shapes], static


@row("attention", linear=(2,))
def queries_keys_and_values(draw):
    lead, l, m, d, e = draw(shapes(0, 2)), draw(MAYBE_EMPTY), draw(SIZES), draw(SIZES), draw(MAYBE_EMPTY)
    mask = default_rng(draw(SEEDS)).random(draw(st.sampled_from([(m,), (l, m), (*lead, 1, m)]))) < 0.5
    mask[..., draw(st.integers(0, m - 1))] = True
    arrays = [normal(draw, (*lead, *shape)) for shape in [(l, d), (m, d), (m, e)]]
    return arrays, draw(st.sampled_from([{}, {"mask": mask}]))


# Maps.


@row("upsample_nearest", linear=(0,), blind=True)
def a_map(draw):
    return [normal(draw, draw(shapes(4, 4)))], {}


@row("group_norm", linear=(1, 2))
def a_map_in_groups(draw):
    num_groups = draw(SIZES)
    c = num_groups * draw(SIZES)
    x = apart(
        draw, (draw(MAYBE_EMPTY), *draw(shapes(0, 2, SIZES)), c), gap=1
    )  # else a group's deviation could be near 0
    static = {"num_groups": num_groups} | draw(st.sampled_from([{}, {"eps": 0.1}]))
    return [x, normal(draw, (c,)), normal(draw, (c,))], static


# Reductions.


@row("total", linear=(0,), blind=True)
def axes_to_sum(draw):
    shape = draw(shapes())
    return [normal(draw, shape)], {"axis": any_axes(draw, len(shape))}


@row("mean", linear=(0,), blind=True)
def axes_to_average(draw):
    shape, axis = values_on_axes(draw)
    return [normal(draw, shape)], {"axis": axis}


@row("logsumexp", "softmax")
def rows_to_normalise(draw):
    return [normal(draw, (*draw(shapes(0, 3)), draw(SIZES)))], {}


# Shapes.


@row("reshape", linear=(0,), blind=True)
def a_new_shape(draw):
    shape = draw(shapes(1))
    size = int(np.prod(shape))
    divisor = draw(st.sampled_from([d for d in range(1, size + 2) if size % d == 0]))
    new = draw(st.sampled_from([(-1,), -1, (divisor, size // divisor), (divisor, 1, -1), tuple(reversed(shape))]))
    return [normal(draw, shape)], {"shape": new}


@row("transpose", linear=(0,), blind=True)
def an_order_of_axes(draw):
    shape = draw(shapes())
    return [normal(draw, shape)], {"axes": tuple(draw(st.permutations(range(len(shape)))))}


@row("concat", linear=(0, 1, 2), blind=True)
def arrays_to_join(draw):
    lead = draw(shapes(0, 2))
    return [normal(draw, (*lead, draw(st.integers(0, 3)))) for _ in range(3)], {}


@row("take", linear=(0,), blind=True)
def picks(draw):
    shape = draw(shapes(1, 3))
    wanted = draw(shapes(0, 2)) if shape[0] else (0,)
    indices = default_rng(draw(SEEDS)).integers(0, max(1, shape[0]), wanted)  # often one index twice, or none
    return [normal(draw, shape)], {"indices": indices}


@row("getitem", linear=(0,), blind=True)
def a_view(draw):
    shape = draw(shapes(1))
    index = draw(hnp.basic_indices(shape, allow_newaxis=True, allow_ellipsis=True))
    return [normal(draw, shape)], {"index": index}


# The laws.


def placed(draw, a, dtype="float64"):
    """a on the backend, its axes stored in a random order, each with a step of its own, backwards if negative."""
    order = draw(st.permutations(range(a.ndim)))
    steps = draw(st.lists(st.sampled_from([1, -1, 2, -2]), min_size=a.ndim, max_size=a.ndim))
    stored = xp.zeros([abs(step) * a.shape[i] for i, step in zip(order, steps)], dtype)
    view = stored[(*(slice(None, None, step) for step in steps), ...)].transpose(np.argsort(order).tolist())
    view[...] = asarray(a.astype(dtype))
    return view


def draw_case(data, row, dtype="float64"):
    """(the op with its static arguments filled in, its inputs on the backend)."""
    arrays, static = data.draw(row.arguments)
    op = OPS[row.name]
    return lambda *inputs: op(*inputs, **static), [placed(data.draw, a, dtype) for a in arrays]


def gradients(f, inputs, g):
    leaves = [Tensor(x, requires_grad=True) for x in inputs]
    f(*leaves).backward(g)
    return [leaf.grad for leaf in leaves]


def inner(x, y):
    return float((x * y).sum())


def registered(fast):
    """Names of the ops that the package registers: those of tinydiff/fast, or the others."""
    package = Path(tinydiff.__file__).parent
    for path in package.rglob("*.py"):
        if re.search(r"^@(op|pointwise)\b", path.read_text(encoding="utf-8"), re.MULTILINE):
            importlib.import_module(".".join(["tinydiff", *path.relative_to(package).with_suffix("").parts]))
    files = {name: op.__module__ for name, op in OPS.items() if op.__module__.startswith("tinydiff.")}
    return {name for name, file in files.items() if file.startswith("tinydiff.fast.") == fast}


def test_every_op_has_a_row():
    """The rows are exactly the ops that the book registers: a new op without a gradient test fails here."""
    assert registered(fast=False) == set(ROWS)


def test_what_is_differentiable_is_positional_and_what_is_not_has_a_name(row):
    """An op's arrays are its positional parameters, its static arguments are keyword-only."""
    case = find(row.arguments, lambda case: True, settings=FIRST)
    parameters = inspect.signature(OPS[row.name]).parameters.values()
    named = {p.name for p in parameters if p.kind == p.KEYWORD_ONLY}
    assert set(case[1]) <= named
    assert len(parameters) - len(named) == len(case[0]) or row.name == "concat"  # of any number of arrays


@pytest.mark.parametrize("size", [0, 1, 3])
def test_each_row_draws_an_empty_axis_one_of_one_and_a_longer_one(row, size):
    """What the laws below say of an op they say of an axis of length 0, of length 1 and of a longer one."""
    find(row.arguments, lambda case: any(size in a.shape for a in case[0]), settings=FIRST)  # else NoSuchExample


@given(st.data())
def test_the_gradient_is_the_derivative_along_a_random_direction(row, data):
    """sum_i <dx_i, d_i> = d/dh <g, f(x + h d)> at h = 0, for random g and d over all inputs together."""
    f, inputs = draw_case(data, row)
    y = f(*inputs).data
    g = placed(data.draw, normal(data.draw, y.shape))
    directions = [asarray(normal(data.draw, x.shape)) for x in inputs]

    def at(h):
        return f(*[asarray(x + h * d) for x, d in zip(inputs, directions)]).data

    h = 1e-3
    slope = (8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h)
    expected = inner(g, slope)
    found = sum(inner(dx, d) for dx, d in zip(gradients(f, inputs, g), directions))
    # The quotient is off by h^4/30 = 3e-14 times the fifth derivative (up to 1e5 here) and by 1e-16 |y| / h.
    assert abs(found - expected) <= 1e-8 * inner(abs(g), abs(slope) + abs(y))


@FEWER
@given(st.data())
def test_the_memory_layout_of_inputs_and_cotangent_does_not_matter(row, data):
    """Transposed, reversed and strided views give the results and gradients of their contiguous copies."""
    f, inputs = draw_case(data, row)
    y = f(*inputs).data
    g = placed(data.draw, normal(data.draw, y.shape))
    contiguous = [x.copy() for x in inputs]
    found = [y, *gradients(f, inputs, g)]
    expected = [f(*contiguous).data, *gradients(f, contiguous, g.copy())]
    for a, b in zip(found, expected):
        # Sums in another order: a hundred roundings of 2^-53, relative to all values; 300 times that in a group norm.
        np.testing.assert_allclose(to_numpy(a), to_numpy(b), rtol=0, atol=1e-11 * (1 + float(abs(b).sum())))


@given(st.data())
def test_the_gradient_of_a_linear_op_is_its_adjoint(affine, data):
    """<g, A d> = <A^T g, d> for each input in which the op is affine: exact, so no finite differences."""
    f, inputs = draw_case(data, affine)
    g = placed(data.draw, normal(data.draw, f(*inputs).shape))
    for i in affine.linear:
        d = placed(data.draw, normal(data.draw, inputs[i].shape))
        at_d, at_0 = (f(*inputs[:i], x, *inputs[i + 1 :]).data for x in (d, xp.zeros_like(d)))
        found = inner(gradients(f, inputs, g)[i], d)
        # 1e-12: 4,000 roundings of 2^-52, relative to what the sum would be without cancellation.
        assert abs(inner(g, at_d - at_0) - found) <= 1e-12 * inner(abs(g), abs(at_d) + abs(at_0)) + 1e-14


@FEWER
@given(st.data())
def test_float32_stays_float32_and_agrees_with_float64(row, data):
    """From float32 inputs come float32 results and gradients, those of float64 but for rounding."""
    f, inputs = draw_case(data, row, "float32")
    y = f(*inputs)
    g = placed(data.draw, normal(data.draw, y.shape), "float32")
    found = [y.data, *gradients(f, inputs, g)]
    inputs, g = [asarray(x, "float64") for x in inputs], asarray(g, "float64")
    expected = [f(*inputs).data, *gradients(f, inputs, g)]
    for a, b in zip(found, expected):
        assert a.dtype == xp.float32 and b.dtype == xp.float64
        # Sums of a few hundred products of numbers up to 30, times 300 = 1 / sqrt(eps) in a group of one number.
        np.testing.assert_allclose(to_numpy(a), to_numpy(b), rtol=1e-4, atol=1e-3)


@FEWER
@given(st.data())
def test_an_op_writes_to_nothing_it_was_given_and_its_gradients_are_its_own(row, data):
    """Inputs and cotangent stay as they were, and overwriting one gradient changes no other and none of them."""
    f, inputs = draw_case(data, row)
    leaves = [Tensor(x, requires_grad=True) for x in inputs]
    y = f(*leaves)
    g = placed(data.draw, normal(data.draw, y.shape))
    before = [a.copy() for a in (*inputs, g, y.data)]
    y.backward(g)
    grads = [leaf.grad.copy() for leaf in leaves]
    for i, leaf in enumerate(leaves):
        leaf.grad += 1
        for j, other in enumerate(leaves):
            np.testing.assert_array_equal(to_numpy(other.grad), to_numpy(grads[j] + (j <= i)))
    for now, then in zip((*inputs, g, y.data), before):
        np.testing.assert_array_equal(to_numpy(now), to_numpy(then))


@FEWER
@given(st.data())
def test_an_op_whose_gradient_needs_no_input_keeps_none(blind, data):
    """What is linear in all its inputs together lets go of them: a network's sums and skips hold no maps."""
    f, inputs = draw_case(data, blind)
    tensors = [Tensor(x, requires_grad=True) * 1 for x in inputs]
    arrays = [weakref.ref(x.data) for x in tensors]
    node = f(*tensors)._node
    del tensors
    assert [array() for array in arrays if array() is not None] == []
    assert node.shape is not None


@FEWER
@given(st.data())
def test_what_a_gradient_function_returns_is_new(row, data):
    """A leaf keeps it as its gradient: it is neither g nor an input nor the result, nor what another call returns."""
    f, inputs = draw_case(data, row)
    y = f(*(Tensor(x, requires_grad=True) for x in inputs))
    g = xp.ones_like(y.data)
    first, second = ([d for d in y._node.vjp(g) if callable(d)] for _ in range(2))
    known = [*inputs, g, y.data, *(d() for d in second)]
    for dx in (d() for d in first):
        assert not any(xp.may_share_memory(dx, a) for a in known)  # CuPy's exact form is wrong without axes
        known.append(dx)


@FEWER
@given(st.data())
def test_two_results_may_go_back_through_one_node(row, data):
    """The second time the same bits: no gradient function, and nobody who gets its arrays, spoils what a node keeps."""
    f, inputs = draw_case(data, row)
    leaves = [Tensor(x, requires_grad=True) for x in inputs]
    y = f(*leaves)
    g = placed(data.draw, normal(data.draw, y.shape))
    results, found = [y * 1, y * 1], []
    for result in results:
        result.backward(g)
        found.append([leaf.grad.copy() for leaf in leaves])
        for leaf in leaves:
            leaf.grad[...] = np.nan
            leaf.grad = None
    for first, second in zip(*found):
        np.testing.assert_array_equal(to_numpy(second), to_numpy(first))


@FEWER
@given(st.data())
def test_what_an_op_keeps_is_freed_at_once(row, data):
    """In backward, or when the last name of a result goes: its node and what its gradient kept, with no collector."""
    f, inputs = draw_case(data, row)
    leaves = [Tensor(x, requires_grad=True) for x in inputs]
    gc.disable()
    try:
        y = f(*leaves)
        gone = [weakref.ref(y._node), weakref.ref(y._node.vjp)]
        y.backward(xp.ones_like(y.data))
        assert [ref() for ref in gone] == [None] * 2
        y = f(*leaves)
        gone = [weakref.ref(y), weakref.ref(y._node), weakref.ref(y._node.vjp)]
        del y
        assert [ref() for ref in gone] == [None] * 3
    finally:
        gc.enable()
