"""The ops behind Python's operators: NumPy's values, and arrays and numbers on either side of a tensor."""

import operator

import numpy as np
import pytest
from draws import SEEDS, leaves, normal, same
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tinydiff import ops
from tinydiff.autograd import Tensor
from tinydiff.backend import to_numpy, xp

pytestmark = pytest.mark.engine

OPERATORS = [operator.add, operator.sub, operator.mul, operator.truediv]


@pytest.mark.parametrize("f", OPERATORS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_operators_take_arrays_and_numbers_on_either_side(f, dtype):
    """tensor, array and number in any order: NumPy's value, the tensors' dtype, and each tensor its own gradient."""
    (a, b, g), number = normal(0, (2, 3), (3,), (2, 3), dtype=dtype), 1.75
    for x, y in [(a, b), (b, a), (a, number), (number, a), (a, np.float64(number)), (np.float64(number), a), (a, 3)]:
        plain = [float(v) if isinstance(v, float) else v for v in (x, y)]
        expected = f(*plain)
        both = [Tensor(v if isinstance(v, xp.ndarray) else xp.full((2, 3), v, dtype), True) for v in plain]
        f(*both).backward(g)
        for wanted in [(True, True), (True, False), (False, True)]:
            inputs = [Tensor(v, True) if w and isinstance(v, xp.ndarray) else v for v, w in zip((x, y), wanted)]
            if not any(isinstance(v, Tensor) for v in inputs):
                continue
            z = f(*inputs)
            assert isinstance(z, Tensor) and z.dtype == dtype
            np.testing.assert_allclose(to_numpy(z), to_numpy(expected), rtol=1e-6 if dtype == "float32" else 1e-15)
            z.backward(g)
            for v, twin in zip(inputs, both):
                if isinstance(v, Tensor):
                    assert v.grad.dtype == dtype
                    np.testing.assert_allclose(to_numpy(v.grad), to_numpy(twin.grad), rtol=1e-6)


def test_matmul_takes_an_array_on_either_side():
    """tensor @ array, matmul(array, tensor) and tensor @ tensor are NumPy's product, with the same gradients."""
    (x, y), (g,) = leaves(0, (2, 3, 4), (4, 5)), normal(1, (2, 3, 5))
    (x @ y).backward(g)
    expected = [x.grad, y.grad]
    x.grad = y.grad = None
    for z in (x @ y.data, ops.matmul(x.data, y)):
        np.testing.assert_allclose(to_numpy(z), to_numpy(x.data) @ to_numpy(y.data), rtol=1e-13, atol=1e-14)
        z.backward(g)
    same(x.grad, expected[0])
    same(y.grad, expected[1])


@given(st.data())
def test_getitem_is_numpys_and_its_gradient_is_zero_elsewhere(data):
    """x[index] for integers, slices, None and ...; the gradient is g there and 0 in all other places."""
    shape = data.draw(hnp.array_shapes(max_dims=3, max_side=4))
    index = data.draw(hnp.basic_indices(shape, allow_newaxis=True, allow_ellipsis=True))
    (x,) = leaves(data.draw(SEEDS), shape)
    y = x[index]
    np.testing.assert_array_equal(to_numpy(y), to_numpy(x)[index], strict=True)
    (g,) = normal(data.draw(SEEDS), y.shape)
    y.backward(g)
    expected = np.zeros(shape)
    expected[index] = to_numpy(g)
    same(x.grad, expected)


@pytest.mark.parametrize("index", [np.int64(1), np.int32(-1), np.uint8(0), (np.int64(1), 2), (..., np.intp(-2))])
def test_an_integer_of_numpys_is_an_index(index):
    """Such as argmax returns: the element and the gradient of the Python integer."""
    plain = tuple(i if i is ... else int(i) for i in index) if isinstance(index, tuple) else int(index)
    (x, twin), g = leaves(0, (2, 3), (2, 3)), None
    twin.data[...] = x.data
    for tensor, i in ((x, index), (twin, plain)):
        y = tensor[i]
        (g,) = normal(1, y.shape) if g is None else (g,)
        y.backward(g)
    same(x[index], twin[plain])
    same(x.grad, twin.grad)


def test_neg_is_an_operator():
    """-x with its gradient."""
    (x,), (g,) = leaves(0, (3,)), normal(1, (3,))
    y = -x
    same(y, -x.data)
    y.backward(g)
    same(x.grad, -g)


def test_matmul_and_getitem_refuse_what_they_do_not_do():
    """Vectors in a product are a ValueError with the shapes; picking by array or list is a TypeError with its type."""
    (x, v) = leaves(0, (2, 3), (3,))
    for a, b in [(x, v), (v, x), (v, v)]:
        with pytest.raises(ValueError, match="matmul: x and y need two axes or more, got shapes"):
            _ = a @ b
    for index, kind in [
        ([0, 1], "list"),
        (xp.asarray([0, 1]), xp.ndarray.__name__),
        ((0, 1.0), "float"),
        (x, "Tensor"),
    ]:
        with pytest.raises(TypeError, match=f"index may hold integers, slices, None and ..., got {kind}"):
            x[index]
