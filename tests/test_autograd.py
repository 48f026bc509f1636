"""The laws of the engine: sums over paths, accumulation, memory, threads, dtypes, and what it refuses.

That each op's own gradient is right is shown in ops/test_every_op.py.
"""

import copy
import gc
import math
import operator
import pickle
import threading
import weakref

import numpy as np
import pytest
from draws import SEEDS, leaves, normal, same
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tinydiff import ops
from tinydiff.autograd import OPS, Tensor, enable_grad, mark_written, no_grad, op, pointwise, unbroadcast
from tinydiff.backend import asarray, default_rng, to_numpy, xp

pytestmark = pytest.mark.engine

BINARY = [operator.add, operator.sub, operator.mul, operator.truediv]
binary = pytest.mark.parametrize("f", BINARY, ids=lambda f: f.__name__)


@pytest.fixture
def registry():
    """Ops that a test registers are forgotten after it."""
    before = dict(OPS)
    yield OPS
    OPS.clear()
    OPS.update(before)


# Sums over paths.


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_an_axis_that_was_stretched_to_any_size_is_summed(size):
    """From size 1 to 1, 2, 3, 4: the sum over the axis, which stays with size 1."""
    g = asarray(np.arange(3.0 * size).reshape(3, size))
    np.testing.assert_array_equal(to_numpy(unbroadcast(g, (3, 1))), to_numpy(g).sum(1, keepdims=True))


@given(st.data())
def test_unbroadcast_is_the_adjoint_of_broadcasting(data):
    """<g, broadcast(x)> = <unbroadcast(g), x>, exactly on integers, for all shapes that broadcast, empty ones too."""
    shape, other = data.draw(hnp.mutually_broadcastable_shapes(num_shapes=2, min_side=0, max_dims=4)).input_shapes
    wide = np.broadcast_shapes(shape, other)
    rng = default_rng(data.draw(SEEDS))
    x, g = asarray(rng.integers(-9, 10, shape)), asarray(rng.integers(-9, 10, wide))
    back = unbroadcast(g, shape)
    assert back.shape == shape
    assert (g * xp.broadcast_to(x, wide)).sum() == (back * x).sum()


class Dual:
    """A value and its rate of change along one direction: forward mode, which shares nothing with the engine."""

    def __init__(self, value, rate):
        self.value, self.rate = value, rate

    def __add__(self, y):
        y = y if isinstance(y, Dual) else Dual(y, np.zeros_like(y))
        return Dual(self.value + y.value, self.rate + y.rate)

    def __neg__(self):
        return Dual(-self.value, -self.rate)

    def __sub__(self, y):
        return self + -y

    def __rsub__(self, x):
        return -self + x

    def __mul__(self, y):
        y = y if isinstance(y, Dual) else Dual(y, np.zeros_like(y))
        return Dual(self.value * y.value, self.rate * y.value + self.value * y.rate)

    def __truediv__(self, y):
        return Dual(self.value / y.value, (self.rate - self.value * y.rate / y.value) / y.value)

    def __matmul__(self, y):
        return Dual(self.value @ y.value, self.rate @ y.value + self.value @ y.rate)

    def __getitem__(self, index):
        return Dual(self.value[index], self.rate[index])

    __radd__, __rmul__ = __add__, __mul__


def bump(x):
    """exp(-x^2), which is bounded, so that no chain of steps overflows."""
    if not isinstance(x, Dual):
        return ops.exp(-x * x)
    y = np.exp(-(x.value**2))
    return Dual(y, -2 * x.value * y * x.rate)


def square(x):
    """x, of any shape that broadcasts to (3, 3), as a full 3x3 matrix."""
    return x + (SQUARE if isinstance(x, Dual) else asarray(SQUARE))


def row_means(x):
    if not isinstance(x, Dual):
        return ops.mean(x, axis=-1)[..., None]
    return Dual(x.value.mean(-1, keepdims=True), x.rate.mean(-1, keepdims=True))


STEPS = [
    lambda x, y: x + y,
    lambda x, y: x - y,
    lambda x, y: bump(x * y),
    lambda x, y: x / (y * y + 2.0),
    lambda x, y: 0.5 - bump(x) * y,
    lambda x, y: 3 * x / (x * x + 1) - -y,
    lambda x, y: bump(square(x) @ square(y)),
    lambda x, y: x - row_means(square(y)),
    lambda x, y: bump(square(x)[::-1, None, 1] * y),
]
SQUARE = np.linspace(-1, 1, 9).reshape(3, 3)
DAG_SHAPES = [(), (3,), (3, 1), (1, 3), (3, 3)]


@given(SEEDS, st.integers(1, 4), st.integers(1, 12))
def test_random_graphs_agree_with_forward_mode(seed, num_leaves, num_steps):
    """<g, dy along d> = sum of <dx, d> over the leaves x, when any node may feed any number of later ones."""
    rng = default_rng(seed)
    points = [rng.standard_normal(DAG_SHAPES[i]) for i in rng.integers(len(DAG_SHAPES), size=num_leaves)]
    directions = [rng.standard_normal(point.shape) for point in points]
    steps = [(STEPS[rng.integers(len(STEPS))], *rng.integers(num_leaves + k, size=2)) for k in range(num_steps)]
    heights = rng.standard_normal(num_leaves + num_steps)

    def run(nodes):
        for f, i, j in steps:
            nodes = [*nodes, f(nodes[i], nodes[j])]
        y = float(heights[0]) * nodes[0]
        for height, node in zip(heights[1:], nodes[1:]):  # every node is an output too
            y = y + float(height) * node
        return y

    x = [Tensor(asarray(point), requires_grad=True) for point in points]
    y, dual = run(x), run([Dual(point, d) for point, d in zip(points, directions)])
    np.testing.assert_allclose(to_numpy(y), dual.value, rtol=1e-12, atol=1e-11)
    g = rng.standard_normal(y.shape)
    y.backward(asarray(g))
    terms = [to_numpy(leaf.grad) * d for leaf, d in zip(x, directions)]
    size = sum(abs(term).sum() for term in terms)  # what rounding, 2^-53 each of some hundred times, is relative to
    assert abs(sum(term.sum() for term in terms) - (g * dual.rate).sum()) <= 1e-12 * (size + 1)


def test_one_tensor_as_both_inputs_counts_twice():
    """x + x, x * x, x - x and x / x pass 2 g, 2 g x, 0 and 0."""
    for f, expected in zip(BINARY, (lambda x: 2, lambda x: 0, lambda x: 2 * x, lambda x: 0)):
        (x,), (g,) = leaves(0, (3,)), normal(1, (3,))
        f(x, x).backward(g)
        np.testing.assert_allclose(to_numpy(x.grad), to_numpy(g * expected(x.data)), rtol=1e-14, atol=1e-15)


def test_a_shared_node_passes_the_sum_of_its_gradients_once():
    """60 doublings y + y are 2^60 paths and 60 nodes: the gradient is exactly 2^60 g, at once."""
    (x,), (g,) = leaves(0, (2,)), normal(1, (2,))
    y = x
    for _ in range(60):
        y = y + y
    y.backward(g)
    same(x.grad, g * 2.0**60)


def test_a_node_waits_for_all_that_use_it():
    """A node used directly and through a longer way is not passed on before both gradients are in."""
    (x,), (g,) = leaves(0, (2,)), normal(1, (2,))
    y = x * 3
    (y + ((y * 5) * 7) * y).backward(g)
    np.testing.assert_allclose(to_numpy(x.grad), to_numpy(g * (3 + 2 * 35 * 9 * x.data)), rtol=1e-14)


def test_five_thousand_ops_deep_is_no_recursion():
    """A chain of 5,000 ops is differentiated, and taken down, without recursion."""
    (x,), (g,) = leaves(0, (2,)), normal(1, (2,))
    y = x
    for _ in range(2500):
        y = -y + x
    y.backward(g)
    same(x.grad, g)  # y = x after an even number of steps y -> x - y
    del y


# Accumulation in leaves.


def test_backward_adds_to_what_is_there(rng):
    """Two backward passes, through graphs that share a part or not, add up; setting grad to None starts again."""
    (x,), (g, h) = leaves(0, (3, 2)), normal(1, (3, 2), (3, 2))
    y = ops.exp(x * 4)
    z = y * 2
    (y + 1).backward(g)
    z.backward(h)
    (x * 8).backward(g)
    rate = 4 * y.data
    np.testing.assert_allclose(to_numpy(x.grad), to_numpy(rate * g + rate * 2 * h + 8 * g), rtol=1e-13, atol=1e-13)
    x.grad = None
    (x * 4).backward(g)
    same(x.grad, 4 * g)


def test_backward_takes_its_graph_down():
    """What only the graph held is gone when it was used; the tensor depends on nothing then, and says so."""
    (x,), (g,) = leaves(0, (3,)), normal(1, (3,))
    alive = []

    def watched(y):
        """y, and at the time of its gradient the number of arrays in `alive` that still live."""
        node, vjp = weakref.ref(y._node), y._node.vjp
        y._node.vjp = lambda g: (alive.append(sum(ref() is not None for ref in kept)), vjp(g))[1]
        return y, node

    a, a_node = watched(ops.exp(x))
    b, b_node = watched(ops.exp(a))
    c, c_node = watched(ops.exp(b))
    kept = [weakref.ref(t.data) for t in (a, b, c)]  # exp keeps its result, and nothing else does
    loss = ops.total(c)
    del a, b, c
    gc.disable()
    try:
        loss.backward()
        assert alive == [3, 2, 1]
        assert a_node() is b_node() is c_node() is None
    finally:
        gc.enable()
    assert x.grad is not None and not loss.requires_grad
    with pytest.raises(RuntimeError, match="or backward was called before"):
        loss.backward()
    with pytest.raises(ValueError, match="left out"):
        (x * 2).backward()
    y = x * 2
    with pytest.raises(ValueError):
        y.backward(g[:2])
    y.backward(g)  # a cotangent that was refused has taken nothing down


def test_only_leaves_that_require_one_get_a_gradient():
    """Neither intermediates nor leaves without requires_grad have a .grad after backward."""
    (x,), (a, g) = leaves(0, (3,)), normal(1, (3,), (3,))
    constant = Tensor(a)
    y = x * constant
    z = y + constant
    z.backward(g)
    assert constant.grad is None and y.grad is None and z.grad is None
    same(x.grad, g * a)


def test_a_gradient_that_was_there_is_not_written_to():
    """The sum of both passes is a new array: whoever holds the first gradient holds it unchanged."""
    (x,), (g,) = leaves(0, (2, 3)), normal(1, (2, 3))
    (x * 2).backward(g)
    first, before = x.grad, x.grad.copy()
    (x * 2).backward(g)
    assert x.grad is not first
    same(first, before)
    same(x.grad, 4 * g)


def test_gradients_are_nobody_elses_array():
    """Leaves that receive the same g, and g itself, can each be overwritten without the others changing."""
    (x, y), (g,) = leaves(0, (3,), (3,)), normal(1, (3,))
    before = g.copy()
    (x + y).backward(g)
    z = Tensor(xp.zeros(3), requires_grad=True)
    z.backward(g)
    for i, leaf in enumerate((x, y, z)):
        same(leaf.grad, before)
        leaf.grad += i + 1
    same(g, before)
    for i, leaf in enumerate((x, y, z)):
        same(leaf.grad, before + (i + 1))


def test_the_gradient_of_a_single_number_is_an_array_too():
    """A leaf of shape () gets an array of shape (), after one pass and after two."""
    (x,) = leaves(0, ())
    for passes in (1, 2):
        (x * x).backward()
        assert isinstance(x.grad, xp.ndarray) and x.grad.shape == ()
        np.testing.assert_allclose(to_numpy(x.grad), to_numpy(2 * passes * x.data), rtol=1e-15)


def test_the_cotangent_of_a_single_number_is_one():
    """backward() without g is backward(1), for shapes () and (1, 1)."""
    for shape in [(), (1, 1)]:
        (x,) = leaves(0, shape)
        (x * 5).backward()
        assert float(x.grad.sum()) == 5


def test_a_cotangent_may_be_a_tensor():
    """backward(Tensor(g)) is backward(g)."""
    (x,), (g,) = leaves(0, (3,)), normal(1, (3,))
    (x * 2).backward(Tensor(g))
    same(x.grad, 2 * g)


# What is computed, and what is kept.


def test_intermediates_are_freed_at_once():
    """With no garbage collector: an array lives while a name or a gradient needs it, a node while its graph does."""
    (x,), (g,) = leaves(0, (3,)), normal(1, (3,))
    gc.disable()
    try:
        y = x * 2
        z = ops.exp(y)
        w = ops.log(z * z)
        inner, outer, node = weakref.ref(y.data), weakref.ref(z.data), weakref.ref(y._node)
        del y, z
        assert inner() is None  # exp keeps what came out, not what went in
        assert outer() is not None  # the product keeps its factors
        assert node() is not None
        w.backward(g)
        assert outer() is None and node() is None
        with no_grad():
            y = ops.exp(x * 2)
        assert y._node is None
    finally:
        gc.enable()


def test_gradients_that_nobody_wants_are_not_computed(registry):
    """Of a vjp's functions without arguments only those are called whose input requires a gradient."""
    called = []

    @op
    def product(x, y):
        def gradient(name, other, g):
            called.append(name)
            return g * other

        return x * y, lambda g: (lambda: gradient("x", y, g), lambda: gradient("y", x, g))

    (x, y), (g, a) = leaves(0, (3,), (3,)), normal(1, (3,), (3,))
    for inputs, expected in [((x, a), ["x"]), ((a, y), ["y"]), ((x, y), ["x", "y"]), ((a, Tensor(a)), [])]:
        called.clear()
        z = product(*inputs)
        assert z.requires_grad == bool(expected)
        if expected:
            z.backward(g)
        assert called == expected


def test_an_op_registers_under_its_name(registry):
    """Both decorators enter the function they return, with its name and docstring."""

    @op
    def some_op(x):
        """What it does."""
        return x, lambda g: (g,)

    @pointwise
    def some_pointwise(x):
        return x, lambda g: (g,)

    assert registry["some_op"] is some_op and registry["some_pointwise"] is some_pointwise
    assert some_op.__name__ == "some_op" and some_op.__doc__ == "What it does."


def test_no_grad_records_nothing_and_ends_with_its_block():
    """Within the block results require no gradient; after it, nested or left by an error, they do as before."""
    (x,) = leaves(0, (3,))
    with no_grad():
        with no_grad():
            assert not (x * 2).requires_grad
        assert not (x * 2).requires_grad
    with pytest.raises(KeyError), no_grad():
        raise KeyError
    assert (x * 2).requires_grad and x.requires_grad


def test_enable_grad_records_inside_no_grad_and_no_longer():
    """A gradient that sampling needs: within the block it is there, and after it the outer block's rule is back."""
    (x,) = leaves(0, (3,))
    with no_grad():
        with enable_grad():
            y = x * 2
        assert not (x * 2).requires_grad
    y.backward(asarray(np.array([1.0, 2.0, 3.0])))
    assert to_numpy(x.grad).tolist() == [2, 4, 6]
    assert (x * 2).requires_grad


def test_no_grad_holds_for_its_own_thread_only():
    """While one thread is inside no_grad, a thread that ran before and one that starts now both record."""
    (x,) = leaves(0, (3,))
    seen = []
    turn = threading.Barrier(2, timeout=10)

    def other():
        seen.append((x * 2).requires_grad)
        turn.wait()  # main enters no_grad
        turn.wait()
        seen.append((x * 2).requires_grad)

    thread = threading.Thread(target=other)
    thread.start()
    turn.wait()
    with no_grad():
        turn.wait()
        thread.join()
        late = threading.Thread(target=lambda: seen.append((x * 2).requires_grad))
        late.start()
        late.join()
        assert not (x * 2).requires_grad
    assert seen == [True, True, True]


def test_a_tensor_describes_itself():
    """shape, ndim, size, dtype and len are the array's; repr names the op that made it."""
    x = Tensor(xp.zeros((2, 3), "float32"), requires_grad=True)
    assert (x.shape, x.ndim, x.size, x.dtype, len(x)) == ((2, 3), 2, 6, xp.float32, 2)
    assert repr(x) == "Tensor(leaf, shape=(2, 3), dtype=float32, requires_grad=True)"
    assert repr(x * 2) == "Tensor(mul, shape=(2, 3), dtype=float32, requires_grad=True)"
    assert Tensor([1, 2]).shape == (2,)


# What is refused.


@pytest.mark.parametrize("data", [[1, 2], [True], [1j]])
def test_only_float_tensors_require_gradients(data):
    """Integers, booleans and complex numbers are a TypeError naming the dtype, and fine without a gradient."""
    a = xp.asarray(data)
    assert Tensor(a).data is a
    with pytest.raises(TypeError, match=f"only a float tensor can require a gradient, got dtype {a.dtype}"):
        Tensor(a, requires_grad=True)


@binary
def test_float64_cannot_leak_into_a_float32_graph(f):
    """Arrays or tensors of two float dtypes in one op are a TypeError naming both, on either side, of any shape."""
    (x,) = leaves(0, (3,), dtype="float32")
    for other in normal(1, (3,), (1,), ()):
        other = asarray(other)
        for inputs in [(x, other), (other, x), (x, Tensor(other)), (Tensor(other), x)]:
            with pytest.raises(TypeError, match=r"arrays of one dtype are needed, got \['float32', 'float64'\]"):
                f(*inputs)


def test_an_op_whose_result_has_another_dtype_is_caught(registry):
    """A forward pass that promotes is a TypeError at once, not a slow float64 network."""

    @op
    def promotes(x):
        return x.astype("float64"), lambda g: (g,)

    with pytest.raises(TypeError, match=r"promotes: the result is float64, the inputs are \['float32'\]"):
        promotes(*leaves(0, (3,), dtype="float32"))


def test_numbers_alone_are_no_input():
    """Without a tensor or an array there is no dtype to keep: a TypeError that says so."""
    for name, numbers in [("exp", [1.0]), ("add", [1.0, 2])]:
        with pytest.raises(TypeError, match=f"^{name}: arrays of one dtype are needed, got none$"):
            getattr(ops, name)(*numbers)


@pytest.mark.parametrize(
    "wrong, words",
    [
        (lambda g: g.sum(0), r"float32 \(3,\)"),
        (lambda g: g[None], r"float32 \(1, 2, 3\)"),
        (lambda g: g[:, :1], r"float32 \(2, 1\)"),
        (lambda g: g.T, r"float32 \(3, 2\)"),
        (lambda g: g.astype("float64"), r"float64 \(2, 3\)"),
        (lambda g: lambda: g.sum(0), r"float32 \(3,\)"),
    ],
)
def test_a_gradient_of_the_wrong_shape_or_dtype_is_caught(registry, wrong, words):
    """A vjp that returns what does not fit its input is a ValueError naming the op and both shapes."""

    @op
    def first(x, y):
        return x + y, lambda g: (g, wrong(g))

    (x, y), (g,) = leaves(0, (2, 3), (2, 3), dtype="float32"), normal(1, (2, 3), dtype="float32")
    with pytest.raises(ValueError, match=rf"first: a gradient is {words}, its tensor is float32 \(2, 3\)"):
        first(x, y).backward(g)


def test_a_missing_or_ill_shaped_cotangent_is_refused():
    """g may be left out for one number only, and must have the result's shape and dtype: ValueError with both."""
    (x,) = leaves(0, (2, 3))
    y = x * 2
    with pytest.raises(ValueError, match=r"g may be left out for a single number only, not for shape \(2, 3\)"):
        y.backward()
    with pytest.raises(ValueError, match=r"single number only, not for shape \(0, 3\)"):
        y[:0].backward()
    for g, words in [(xp.ones((3,)), r"float64 \(3,\)"), (xp.ones((2, 3), "float32"), r"float32 \(2, 3\)")]:
        with pytest.raises(ValueError, match=rf"backward: g is {words}, its tensor is float64 \(2, 3\)"):
            y.backward(g)
    assert x.grad is None


@pytest.mark.parametrize("g", [1.0, [1.0, 2.0, 3.0]])
def test_a_cotangent_that_is_no_array_is_refused(g):
    """A number or a list as g is a ValueError (or TypeError) that names g."""
    (x,) = leaves(0, (3,))
    with pytest.raises((ValueError, TypeError), match="g "):
        (x * 2).backward(g)


def test_backward_without_anything_to_differentiate_is_refused():
    """A result that depends on no leaf with requires_grad is a RuntimeError."""
    (a,) = normal(0, (1,))
    for y in [Tensor(a), Tensor(a) * 2]:
        with pytest.raises(RuntimeError, match="no input of this tensor requires a gradient"):
            y.backward()


# Python's and NumPy's defaults.

VALUE = {
    "bool": bool,
    "not": lambda x: not x,
    "and": lambda x: x and 1,
    "if x > 0": lambda x: 1 if x > 0 else 0,
    "0 < x": lambda x: x > 0,
    "x == 1": lambda x: x == 1,
    "1 == x": lambda x: x == 1,
    "x != 1": lambda x: x != 1,
    "x == x": lambda x: x == x,
    "x == None": lambda x: x == None,  # noqa: E711
    "array == x": lambda x: np.ones(2) == x,
    "np.float64 == x": lambda x: np.float64(1) == x,
    "in a list": lambda x: 1 in [x],
    "in x": lambda x: 1.0 in x,
    "list.index": lambda x: [1, 2].index(x),
    "any": any,
    "max": max,
    "sorted": sorted,
    "float": float,
    "int": int,
    "round": round,
    "index": lambda x: [1, 2][x],
    "range": range,
    "bool of NumPy": np.bool_,
    "complex": complex,
    "math.sqrt": math.sqrt,
    "math.isfinite": math.isfinite,
    "format": lambda x: f"{x:.3f}",
}
ARRAY = {
    "np.asarray": np.asarray,
    "np.array of two": lambda x: np.array([x, x]),
    "a float array": lambda x: np.asarray(x, np.float64),
    "Tensor": Tensor,
    "Tensor of two": lambda x: Tensor([x, x]),
    "xp.asarray": lambda x: xp.asarray(x),
    "asarray of two": lambda x: asarray([x, x]),
    "np.mean": np.mean,
    "np.sum": np.sum,
    "np.exp": np.exp,
    "np.where": lambda x: np.where(x, 1, 0),
    "np.concatenate": lambda x: np.concatenate([x, x]),
    "np.stack": lambda x: np.stack([x, x]),
    "np.isfinite": np.isfinite,
    "np.linalg.norm": np.linalg.norm,
    "np.full": lambda x: np.full(2, x),
    "assignment": lambda x: operator.setitem(np.ones(2), ..., x),
    "a NumPy index": lambda x: np.ones(3)[x],
}


@pytest.mark.parametrize("use", [*VALUE.values(), *ARRAY.values()], ids=[*VALUE, *ARRAY])
def test_what_python_or_numpy_would_do_with_any_object_is_a_type_error(use):
    """A Tensor has no truth value, no equality and no conversion: the answer would not look at its array."""
    for x in (Tensor(xp.asarray([0.0, 1.0]), requires_grad=True), Tensor(xp.asarray([0, 1]))):
        with pytest.raises(TypeError, match=r"\w+ \w+ \w+"):
            use(x)


@pytest.mark.parametrize("use", [float, int, math.sqrt, bool, np.asarray, np.float32, Tensor])
def test_what_does_not_convert_names_what_does(use):
    """Of a single number too: math.sqrt(x) would be a constant without a gradient.  x.item() says that it is one."""
    with pytest.raises(TypeError, match=r"use x\.item\(\), x\.data, or to_numpy\(x\)"):
        use(Tensor(xp.asarray(4.0), requires_grad=True))


def test_item_is_a_single_number():
    """A Python number, of an array of any shape with one element; the graph stays, and two elements have no item."""
    for a, kind in ((xp.asarray(1.5), float), (xp.asarray([[1.5]], "float32"), float), (xp.asarray([7]), int)):
        number = Tensor(a).item()
        assert type(number) is kind and number == float(a.reshape(-1)[0])
    (x,) = leaves(0, (3,))
    loss = ops.mean(x * x)
    assert loss.item() == pytest.approx(float((to_numpy(x) ** 2).mean()), rel=1e-14)
    loss.backward()
    assert x.grad is not None
    with pytest.raises(ValueError, match=r"\w+ \w+ \w+"):
        x.item()


REFUSED = [
    lambda x: x**2,
    lambda x: 2**x,
    abs,
    lambda x: x // 2,
    lambda x: x % 2,
    lambda x: +x,
    lambda x: ~x,
    lambda x: operator.setitem(x, 0, 1.0),
    lambda x: x @ x[0],
    lambda x: x + None,
    lambda x: x + "1",
    lambda x: x * Tensor(to_numpy(x).astype("float32")),
]


@pytest.mark.parametrize("use", REFUSED)
def test_what_a_tensor_cannot_do_is_an_error_that_says_so(use):
    """An operator that has no op, an assignment, what is no number, another dtype."""
    with pytest.raises((TypeError, ValueError), match=r"\w+ \w+ \w+"):
        use(leaves(0, (2, 2))[0])


def test_a_tensor_is_found_by_identity():
    """In a list, a set or a dictionary it is the object itself: no array is compared."""
    x, y = Tensor(xp.zeros(2)), Tensor(xp.zeros(2))
    assert x in [x, y] and [x, y].index(x) == 0 and {x: 1, y: 2}[y] == 2 and len({x, y, x}) == 2
    assert x is not None


def test_iteration_gives_the_rows_with_their_graph():
    """As of an array: each row is a Tensor, sums reach the leaf, and a single number cannot be iterated over."""
    (x,), (g,) = leaves(0, (3, 2)), normal(1, (2,))
    rows = [*x]
    assert [row.shape for row in rows] == [(2,)] * 3 and len(rows) == len(x)
    first, *_ = x
    (sum(x) + first).backward(g)
    np.testing.assert_array_equal(to_numpy(x.grad), np.outer([2, 1, 1], to_numpy(g)))
    with pytest.raises(TypeError, match="unsized"):
        list(Tensor(1.0))
    assert list(x[:0]) == []


STATIC = [
    lambda x, k: ops.group_norm(x, x[0], x[0], num_groups=k),
    lambda x, k: ops.group_norm(x, x[0], x[0], num_groups=1, eps=k),
    lambda x, k: ops.conv2d(x[:, None, None], x[0, None, None, :, None], x[0, :1], stride=k),
    lambda x, k: ops.total(x, axis=k),
    lambda x, k: ops.reshape(x, shape=k),
    lambda x, k: ops.transpose(x, axes=k),
    lambda x, k: ops.take(x, indices=k),
    lambda x, k: x[k],
]


@pytest.mark.parametrize("use", STATIC)
def test_a_tensor_as_an_argument_without_gradient_is_refused(use):
    """Keyword-only arguments and indices pass no gradient: an array or a number must be given."""
    x = leaves(0, (2, 4))[0]
    for k in (Tensor(xp.asarray(1)), Tensor(xp.asarray([1])), Tensor(xp.asarray(0.5), requires_grad=True)):
        with pytest.raises((TypeError, ValueError)):
            use(x, k)


@pytest.mark.parametrize("index", [True, False, (0, True)])
def test_a_boolean_is_no_index(index):
    """x[True] would add an axis, and x[False] would be empty."""
    with pytest.raises(TypeError, match=r"index may hold integers, .* got bool"):
        leaves(0, (2, 3))[0][index]


# Copies.

WAYS_TO_COPY = [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))]


@pytest.mark.parametrize("way", WAYS_TO_COPY[1:])
def test_a_copied_leaf_is_a_leaf_of_its_own(way):
    """deepcopy and pickle keep values, gradient, and whether it is a parameter and frozen; nothing is shared."""
    (x, frozen), constant = leaves(0, (2, 3), (2,)), Tensor(xp.ones(2))
    (x * x).backward(xp.ones((2, 3)))
    frozen.requires_grad = False
    for original in (x, frozen, constant):
        twin = way(original)
        same(twin.data, original.data)
        assert (twin.requires_grad, twin.is_parameter) == (original.requires_grad, original.is_parameter)
        assert twin.data is not original.data
    same(way(x).grad, x.grad)
    twin = way(x)
    (twin * 3.0).backward(xp.ones((2, 3)))
    assert (to_numpy(twin.grad) != to_numpy(x.grad)).any()


@pytest.mark.parametrize("way", WAYS_TO_COPY[1:])
def test_a_tensor_with_a_graph_is_not_copied(way):
    """Its gradient would go to copies of the leaves, which nobody has: TypeError that says what to copy."""
    (x,) = leaves(0, (2,))
    y = (x * 2.0) * 3.0
    with pytest.raises(
        TypeError, match="a Tensor with a graph, here of mul, cannot be copied or pickled: copy its array"
    ):
        way([x, y])
    y.backward(xp.ones(2))
    assert way(y)._node is None  # its graph is gone


# An update between forward and backward.


def test_an_update_after_the_forward_pass_is_refused_by_backward():
    """The gradient needs the values of the forward pass.  RuntimeError before any gradient is written."""
    (x, w), (g,) = leaves(0, (3,), (3,)), normal(1, (3,))
    y = ops.exp(x) * w
    w.data += 1
    mark_written([w])
    with pytest.raises(RuntimeError, match="an update has changed an input of mul: call backward before it"):
        y.backward(g)
    assert x.grad is None and w.grad is None
    with pytest.raises(RuntimeError):  # and again: the graph is as stale as before
        y.backward(g)
    (ops.exp(x) * w).backward(g)  # a new forward pass
    np.testing.assert_allclose(to_numpy(w.grad), to_numpy(g * xp.exp(x.data)), rtol=1e-14)


def test_a_constant_that_was_updated_is_noticed_too():
    """A frozen parameter has no gradient, but the gradients of others need its values."""
    (x, w), (g,) = leaves(0, (3,), (3,)), normal(1, (3,))
    w.requires_grad = False
    y, z = x * w, x * Tensor(xp.ones(3))
    mark_written([w])
    with pytest.raises(RuntimeError, match="an update has changed an input of mul"):
        y.backward(g)
    z.backward(g)
    same(x.grad, g)


def test_only_the_nodes_that_read_the_old_values_are_refused():
    """A graph that began before the update and reads the parameter after it is right, and so is one without it."""
    (x, w, v), (g,) = leaves(0, (3,), (3,), (3,)), normal(1, (3,))
    fake = x * v
    other = ops.exp(fake)
    mark_written([w])  # no node has read it yet
    (fake * w + other).backward(g)
    expected = g * (w.data + xp.exp(x.data * v.data)) * v.data
    np.testing.assert_allclose(to_numpy(x.grad), to_numpy(expected), rtol=1e-13)
