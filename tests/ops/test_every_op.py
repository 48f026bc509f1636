"""Every gradient is right: one row a registered op, and the laws that each row obeys.

A row draws an op's arguments: random shapes with axes of size 1 and empty ones, broadcasting where the op broadcasts,
every static argument.  The laws then put the arrays into a random memory layout (any order of axes, reversed, with
gaps), since ops must not depend on it, and differentiate with a random cotangent: one of ones is blind to a
normalisation.
What the values themselves should be is tested beside each op (test_conv.py, test_norm.py, ...).
"""

import gc
import importlib
import inspect
import re
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from draws import SEEDS
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import tinydiff.ops
from tinydiff.autograd import OPS, Tensor
from tinydiff.backend import asarray, backend_name, default_rng, to_numpy, xp

pytestmark = pytest.mark.engine

SIZES = st.integers(1, 3)
MAYBE_EMPTY = st.sampled_from([1, 2, 3] * 3 + [0])  # an axis of length 0 now and then, or little would be left to test
FEWER = settings(max_examples=max(1, settings().max_examples // 3))
FIRST = settings(max_examples=2000, phases=[Phase.generate], derandomize=True, database=None)


class Row(NamedTuple):
    """arguments: strategy of (host arrays, static arguments).  linear: the inputs in each of which the op is affine."""

    arguments: Any
    linear: tuple[int, ...]


ROWS: dict[str, Row] = {}


def row(*names: str, linear: tuple[int, ...] = ()) -> Callable:
    def add(draw_arguments):
        for name in names:
            ROWS[name] = Row(st.composite(draw_arguments)(), linear)
        return draw_arguments

    return add


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


def one_axis(draw, ndim):
    return draw(st.integers(-ndim, ndim - 1))


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


@row("exp", "tanh", "sigmoid", "silu")
def one_input(draw):
    return [normal(draw, draw(shapes()))], {}


row("neg", linear=(0,))(one_input)


@row("log", "sqrt")
def one_positive_input(draw):
    return [positive(draw, draw(shapes()))], {}


@row("relu")
def one_input_off_the_kink(draw):
    return [apart(draw, draw(shapes()))], {}


@row("add", "sub", "mul", linear=(0, 1))
def two_inputs(draw):
    return [normal(draw, shape) for shape in broadcastable(draw)], {}


@row("div", linear=(0,))
def a_quotient(draw):
    x, y = broadcastable(draw)
    return [normal(draw, x), positive(draw, y) * draw(st.sampled_from([1, -1]))], {}


@row("maximum")
def two_inputs_that_never_tie(draw):
    x, y = broadcastable(draw)
    return [apart(draw, x), apart(draw, y) + 0.15], {}  # 0.03 apart at least: jitter is 0.12 about the lattice


@row("where", linear=(0, 1))
def two_inputs_and_a_condition(draw):
    x, y, condition = broadcastable(draw, 3)
    return [normal(draw, x), normal(draw, y)], {"condition": asarray(normal(draw, condition) > 0)}


@row("power")
def a_power(draw):
    exponent = draw(st.sampled_from([0, 1, 2, 3, 0.0, 2.0, 0.5, -0.5, -1, -2, 1.7]))
    values = normal if exponent in (0, 1, 2, 3) else positive
    return [values(draw, draw(shapes()))], {"exponent": exponent}


class _SameDraw:
    """A generator that draws the same numbers at every call, so that dropout has one mask."""

    def __init__(self, seed):
        self.seed = seed

    def random(self, shape, dtype):
        return default_rng(self.seed).random(shape, dtype=dtype)


@row("dropout", linear=(0,))
def a_mask(draw):
    p = draw(st.sampled_from([0, 0.1, 0.5, 0.9]))
    return [normal(draw, draw(shapes(1)))], {"p": p, "rng": _SameDraw(draw(SEEDS))}


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


@row("conv2d", linear=(0, 1, 2, 3))
def a_convolution(draw):
    n, o = draw(MAYBE_EMPTY), draw(SIZES)
    if draw(st.booleans()):  # wide 3x3 convolutions that keep the size take the way of winograd.py
        kh, kw, c, o, stride, padding = 3, 3, 16 + draw(SIZES), 15 + o, 1, 1
    else:
        kh, kw, c, stride = draw(st.integers(1, 5)), draw(st.integers(1, 5)), draw(SIZES), draw(SIZES)
        padding = draw(st.integers(0, 3))
    # The smallest map, which is empty where padding alone makes room for the kernel, or up to four pixels more.
    h, w = (max(0, k - 2 * padding) + draw(st.sampled_from([1, 2, 3, 4, 0])) for k in (kh, kw))
    oh, ow = ((size + 2 * padding - k) // stride + 1 for size, k in ((h, kh), (w, kw)))
    plus = draw(st.sampled_from([(n, o), (n, oh, ow, o)]))
    arrays = [normal(draw, shape) for shape in [(n, h, w, c), (kh, kw, c, o), (o,), plus]]
    return arrays, {"stride": stride, "padding": padding}


def a_wide_convolution(draw, c):
    """Map, filter and bias of a 3x3 convolution that keeps the size, wide enough for winograd.py."""
    n, h, w, o = draw(MAYBE_EMPTY), draw(st.integers(1, 6)), draw(st.integers(1, 6)), 15 + draw(SIZES)
    return [normal(draw, shape) for shape in [(n, h, w, c), (3, 3, c, o), (o,)]]


@row("norm_silu_winograd", linear=(3, 4, 5))
def a_norm_and_a_convolution(draw):
    num_groups = draw(st.sampled_from([1, 2, 4]))
    c = 16 + num_groups * draw(st.integers(0, 1)) * 4
    x, w, b = a_wide_convolution(draw, c)
    plus = normal(draw, draw(st.sampled_from([(len(x), len(b)), (*x.shape[:3], len(b))])))
    return [x, normal(draw, (c,)), normal(draw, (c,)), w, b, plus], {"num_groups": num_groups}


@row("upsample_winograd", linear=(0, 1, 2))
def a_small_map_and_a_convolution(draw):
    return a_wide_convolution(draw, 15 + draw(SIZES)), {}


@row("attention", linear=(2,))
def queries_keys_and_values(draw):
    lead, l, m, d, e = draw(shapes(0, 2)), draw(MAYBE_EMPTY), draw(SIZES), draw(SIZES), draw(MAYBE_EMPTY)
    mask = default_rng(draw(SEEDS)).random(draw(st.sampled_from([(m,), (l, m), (*lead, 1, m)]))) < 0.5
    mask[..., draw(st.integers(0, m - 1))] = True
    arrays = [normal(draw, (*lead, *shape)) for shape in [(l, d), (m, d), (m, e)]]
    return arrays, draw(st.sampled_from([{}, {"mask": mask}]))


# Maps.


@row("upsample_nearest", linear=(0,))
def a_map(draw):
    return [normal(draw, draw(shapes(4, 4)))], {}


@row("avg_pool2d", linear=(0,))
def a_map_of_even_size(draw):
    n, h, w, c = draw(shapes(4, 4))
    return [normal(draw, (n, 2 * h, 2 * w, c))], {}


@row("group_norm", linear=(1, 2))
def a_map_in_groups(draw):
    num_groups = draw(SIZES)
    c = num_groups * draw(SIZES)
    x = apart(
        draw, (draw(MAYBE_EMPTY), *draw(shapes(0, 2, SIZES)), c), gap=1
    )  # else a group's deviation could be near 0
    static = {"num_groups": num_groups} | draw(st.sampled_from([{}, {"eps": 0.1}]))
    return [x, normal(draw, (c,)), normal(draw, (c,))], static


row("group_norm_silu")(a_map_in_groups)


# Reductions.


@row("sum", linear=(0,))
def axes_to_sum(draw):
    shape = draw(shapes())
    return [normal(draw, shape)], {"axis": any_axes(draw, len(shape)), "keepdims": draw(st.booleans())}


@row("mean", linear=(0,))
def axes_to_average(draw):
    shape, axis = values_on_axes(draw)
    return [normal(draw, shape)], {"axis": axis, "keepdims": draw(st.booleans())}


@row("logsumexp")
def axes_to_reduce_after_exp(draw):
    shape, axis = values_on_axes(draw, least=1)
    static = {"axis": axis} if shape[-1] == 0 or draw(st.booleans()) else {}
    return [normal(draw, shape)], static | {"keepdims": draw(st.booleans())}


@row("max")
def axes_to_search(draw):
    shape, axis = values_on_axes(draw)
    return [apart(draw, shape)], {"axis": axis, "keepdims": draw(st.booleans())}


@row("softmax")
def axes_to_normalise(draw):
    shape, axis = values_on_axes(draw, least=1)
    return [normal(draw, shape)], {"axis": axis} if shape[-1] == 0 or draw(st.booleans()) else {}


# Shapes.


@row("reshape", linear=(0,))
def a_new_shape(draw):
    shape = draw(shapes(1))
    size = int(np.prod(shape))
    divisor = draw(st.sampled_from([d for d in range(1, size + 2) if size % d == 0]))
    new = draw(st.sampled_from([(-1,), -1, (divisor, size // divisor), (divisor, 1, -1), tuple(reversed(shape))]))
    return [normal(draw, shape)], {"shape": new}


@row("transpose", linear=(0,))
def an_order_of_axes(draw):
    shape = draw(shapes())
    order = draw(st.permutations(range(len(shape))))
    signed = tuple(axis - len(shape) * draw(st.booleans()) for axis in order)
    return [normal(draw, shape)], draw(st.sampled_from([{}, {"axes": signed}]))


@row("concat", linear=(0, 1, 2))
def arrays_to_join(draw):
    shape = draw(shapes(1, 3))
    axis = one_axis(draw, len(shape))
    arrays = []
    for _ in range(3):
        sizes = list(shape)
        sizes[axis] = draw(st.integers(0, 3))
        arrays.append(normal(draw, sizes))
    return arrays, {"axis": axis} if axis != len(shape) - 1 else {}


@row("pad", linear=(0,))
def a_frame(draw):
    shape = draw(shapes(1))
    return [normal(draw, shape)], {"widths": [(draw(st.integers(0, 2)), draw(st.integers(0, 2))) for _ in shape]}


@row("take", linear=(0,))
def picks(draw):
    shape = draw(shapes(1, 3))
    axis = one_axis(draw, len(shape))
    wanted = draw(shapes(0, 2)) if shape[axis] else (0,)
    indices = default_rng(draw(SEEDS)).integers(0, max(1, shape[axis]), wanted)  # often one index twice, or none
    return [normal(draw, shape)], {"indices": indices} | ({"axis": axis} if axis else {})


@row("getitem", linear=(0,))
def a_view(draw):
    shape = draw(shapes(1))
    index = draw(hnp.basic_indices(shape, allow_newaxis=True, allow_ellipsis=True))
    return [normal(draw, shape)], {"index": index}


# The laws.

on_numpy = pytest.mark.skipif(backend_name() != "numpy", reason="winograd.py computes on NumPy only")
NAMES = {name: pytest.param(name, marks=on_numpy if "winograd" in name else ()) for name in sorted(ROWS)}
each_op = pytest.mark.parametrize("name", NAMES.values())


def placed(draw, a, dtype="float64"):
    """a on the backend, its axes stored in a random order, each with a step of its own, backwards if negative."""
    order = draw(st.permutations(range(a.ndim)))
    steps = draw(st.lists(st.sampled_from([1, -1, 2, -2]), min_size=a.ndim, max_size=a.ndim))
    stored = xp.zeros([abs(step) * a.shape[i] for i, step in zip(order, steps)], dtype)
    view = stored[(*(slice(None, None, step) for step in steps), ...)].transpose(np.argsort(order).tolist())
    view[...] = asarray(a.astype(dtype))
    return view


def draw_case(data, name, dtype="float64"):
    """(the op with its static arguments filled in, its inputs on the backend)."""
    arrays, static = data.draw(ROWS[name].arguments)
    op = OPS[name]
    return lambda *inputs: op(*inputs, **static), [placed(data.draw, a, dtype) for a in arrays]


def gradients(f, inputs, g):
    leaves = [Tensor(x, requires_grad=True) for x in inputs]
    f(*leaves).backward(g)
    return [leaf.grad for leaf in leaves]


def inner(x, y):
    return float((x * y).sum())


def test_every_op_has_a_row():
    """The rows are exactly the ops that the package registers: a new op without a gradient test fails here."""
    package = Path(tinydiff.__file__).parent
    for path in package.rglob("*.py"):
        if re.search(r"^@(op|pointwise)\b", path.read_text(encoding="utf-8"), re.MULTILINE):
            importlib.import_module(".".join(["tinydiff", *path.relative_to(package).with_suffix("").parts]))
    assert set(OPS) == set(ROWS)


@each_op
def test_what_is_differentiable_is_positional_and_what_is_not_has_a_name(name):
    """An op's arrays are its positional parameters, its static arguments are keyword-only."""
    case = find(ROWS[name].arguments, lambda case: True, settings=FIRST)
    parameters = inspect.signature(OPS[name]).parameters.values()
    named = {p.name for p in parameters if p.kind == p.KEYWORD_ONLY}
    assert set(case[1]) <= named
    assert len(parameters) - len(named) == len(case[0]) or name == "concat"  # of any number of arrays


@each_op
@pytest.mark.parametrize("size", [0, 1, 3])
def test_each_row_draws_an_empty_axis_one_of_one_and_a_longer_one(name, size):
    """What the laws below say of an op they say of an axis of length 0, of length 1 and of a longer one."""
    find(ROWS[name].arguments, lambda case: any(size in a.shape for a in case[0]), settings=FIRST)  # else NoSuchExample


@each_op
@given(st.data())
def test_the_gradient_is_the_derivative_along_a_random_direction(name, data):
    """sum_i <dx_i, d_i> = d/dh <g, f(x + h d)> at h = 0, for random g and d over all inputs together."""
    f, inputs = draw_case(data, name)
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


@each_op
@FEWER
@given(st.data())
def test_the_memory_layout_of_inputs_and_cotangent_does_not_matter(name, data):
    """Transposed, reversed and strided views give the results and gradients of their contiguous copies."""
    f, inputs = draw_case(data, name)
    y = f(*inputs).data
    g = placed(data.draw, normal(data.draw, y.shape))
    contiguous = [x.copy() for x in inputs]
    found = [y, *gradients(f, inputs, g)]
    expected = [f(*contiguous).data, *gradients(f, contiguous, g.copy())]
    for a, b in zip(found, expected):
        # Sums in another order: a hundred roundings of 2^-53, relative to all values; 300 times that in a group norm.
        np.testing.assert_allclose(to_numpy(a), to_numpy(b), rtol=0, atol=1e-11 * (1 + float(abs(b).sum())))


@pytest.mark.parametrize("name", [NAMES[name] for name in NAMES if ROWS[name].linear])
@given(st.data())
def test_the_gradient_of_a_linear_op_is_its_adjoint(name, data):
    """<g, A d> = <A^T g, d> for each input in which the op is affine: exact, so no finite differences."""
    f, inputs = draw_case(data, name)
    g = placed(data.draw, normal(data.draw, f(*inputs).shape))
    for i in ROWS[name].linear:
        d = placed(data.draw, normal(data.draw, inputs[i].shape))
        at_d, at_0 = (f(*inputs[:i], x, *inputs[i + 1 :]).data for x in (d, xp.zeros_like(d)))
        found = inner(gradients(f, inputs, g)[i], d)
        # 1e-12: 4,000 roundings of 2^-52, relative to what the sum would be without cancellation.
        assert abs(inner(g, at_d - at_0) - found) <= 1e-12 * inner(abs(g), abs(at_d) + abs(at_0)) + 1e-14


@each_op
@FEWER
@given(st.data())
def test_float32_stays_float32_and_agrees_with_float64(name, data):
    """From float32 inputs come float32 results and gradients, those of float64 but for rounding."""
    f, inputs = draw_case(data, name, "float32")
    y = f(*inputs)
    g = placed(data.draw, normal(data.draw, y.shape), "float32")
    found = [y.data, *gradients(f, inputs, g)]
    inputs, g = [asarray(x, "float64") for x in inputs], asarray(g, "float64")
    expected = [f(*inputs).data, *gradients(f, inputs, g)]
    for a, b in zip(found, expected):
        assert a.dtype == xp.float32 and b.dtype == xp.float64
        # Sums of a few hundred products of numbers up to 30, times 300 = 1 / sqrt(eps) in a group of one number.
        np.testing.assert_allclose(to_numpy(a), to_numpy(b), rtol=1e-4, atol=1e-3)


@each_op
@FEWER
@given(st.data())
def test_an_op_writes_to_nothing_it_was_given_and_its_gradients_are_its_own(name, data):
    """Inputs and cotangent stay as they were, and overwriting one gradient changes no other and none of them."""
    f, inputs = draw_case(data, name)
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


BLIND = [
    *["add", "sub", "neg", "sum", "mean", "where", "dropout"],
    *["reshape", "transpose", "concat", "pad", "take", "getitem", "upsample_nearest", "avg_pool2d"],
]


@pytest.mark.parametrize("name", BLIND)
@FEWER
@given(st.data())
def test_an_op_whose_gradient_needs_no_input_keeps_none(name, data):
    """What is linear in all its inputs together lets go of them: a network's sums and skips hold no maps."""
    f, inputs = draw_case(data, name)
    tensors = [Tensor(x, requires_grad=True) * 1 for x in inputs]
    arrays = [weakref.ref(x.data) for x in tensors]
    node = f(*tensors)._node
    del tensors
    assert [array() for array in arrays if array() is not None] == []
    assert node.shape is not None


@each_op
@FEWER
@given(st.data())
def test_what_a_gradient_function_returns_is_new(name, data):
    """backward adds to it in place: it is neither g nor an input nor the result, and another call returns another."""
    f, inputs = draw_case(data, name)
    y = f(*(Tensor(x, requires_grad=True) for x in inputs))
    g = xp.ones_like(y.data)
    first, second = ([d for d in y._node.vjp(g) if callable(d)] for _ in range(2))
    known = [*inputs, g, y.data, *(d() for d in second)]
    for dx in (d() for d in first):
        assert not any(xp.may_share_memory(dx, a) for a in known)  # CuPy's exact form is wrong without axes
        known.append(dx)


@each_op
@FEWER
@given(st.data())
def test_what_an_op_keeps_is_freed_at_once(name, data):
    """In backward, or when the last name of a result goes: its node and what its gradient kept, with no collector."""
    f, inputs = draw_case(data, name)
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
