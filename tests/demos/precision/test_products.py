"""Products of rounded factors: which factors are rounded, forward and backward, and what is counted."""

import numpy as np
import pytest

from tinydiff import ops
from tinydiff.autograd import Tensor
from tinydiff.backend import FAST, backend_name
from tinydiff.nn import UNet

pytestmark = [
    pytest.mark.program,
    pytest.mark.skipif(backend_name() != "numpy", reason="the demo rounds on the host"),
]


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def value_and_gradients(op, arrays, g, **options):
    """y and the gradients of all arrays, for the cotangent g."""
    inputs = [Tensor(a, requires_grad=True) for a in arrays]
    y = op(*inputs, **options)
    y.backward(g)
    return [y.data, *(x.grad for x in inputs)]


@pytest.mark.parametrize("name", ["conv2d", "linear"])
def test_an_affine_op_of_rounded_factors(module, name):
    """y and every gradient are those of the op on factors that were rounded before; the bias is not rounded."""
    products, bf16 = module("products"), module("rounding").bf16
    shapes = {"conv2d": ((2, 5, 5, 3), (3, 3, 3, 4), (4,)), "linear": ((6, 3), (3, 4), (4,))}[name]
    op, options = getattr(ops, name), {"stride": 2, "padding": 1} if name == "conv2d" else {}
    x, w, b = (normal(k, *shape) for k, shape in enumerate(shapes))
    g = normal(3, *op(Tensor(x), Tensor(w), Tensor(b), **options).shape)
    with products.rounded_products(products.Rounder(bf16)):
        rounded = value_and_gradients(op, (x, w, b), g, **options)
    wanted = value_and_gradients(op, (bf16(x), bf16(w), b), bf16(g), **options)
    exact = value_and_gradients(op, (x, w, b), g, **options)
    for a, same, other in zip(rounded, wanted, exact):
        np.testing.assert_array_equal(a, same)
        assert (a != other).any()


def test_attention_rounds_the_factors_of_its_six_products(module):
    """The products written out: scores, the mean of the values, and the gradients of q, k, v."""
    products, r = module("products"), module("rounding").bf16
    q, k, v, g = (normal(i, 2, 3, n, 8) for i, n in enumerate((5, 6, 6, 5)))
    scale = 8**-0.5  # no power of two, so q is rounded before or after it, which differs

    def turned(a):
        return a.swapaxes(-1, -2)

    with products.rounded_products(products.Rounder(r)):
        y, dq, dk, dv = value_and_gradients(ops.attention, (q, k, v), g)
    scores = r(q * scale) @ turned(r(k))
    p = np.exp(scores - scores.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    dp = r(g) @ turned(r(v))
    ds = r(p * (dp - (p * dp).sum(-1, keepdims=True)))
    wanted = r(p) @ r(v), ds @ r(k) * scale, turned(ds) @ r(q * scale), turned(r(p)) @ r(g)
    for a, b in zip((y, dq, dk, dv), wanted):
        assert np.mean(np.abs(a - b) > 1e-5) < 0.05  # float32 sums; p and ds may fall on the other side of a tie
        np.testing.assert_allclose(a, b, atol=0.02)  # a step of bf16 in one of six terms
    plain = value_and_gradients(ops.attention, (q, k, v), g)
    with products.rounded_products(products.Rounder(module("rounding").float32)):
        for a, b in zip(value_and_gradients(ops.attention, (q, k, v), g), plain):
            np.testing.assert_allclose(a, b, atol=1e-6)  # rounding of float32


def test_a_whole_network_without_rounding_is_itself(module):
    """Within the block no fused form passes the products by; with nothing to round the gradients stay the same."""
    products, rounding = module("products"), module("rounding")
    model = UNet(base_channels=8, channel_mults=(1, 2), rng=np.random.default_rng(0))
    for p in model.parameters():
        p.data += 0.1 * normal(1, *p.shape)
    x, g = normal(2, 2, 8, 8, 1), normal(3, 2, 8, 8, 1)

    def gradients():
        for p in model.parameters():
            p.grad = None
        model(x, 5).backward(g)
        return np.concatenate([p.grad.ravel() for p in model.parameters()])

    plain, table = gradients(), dict(FAST)
    rounder = products.Rounder(rounding.float32)
    with products.rounded_products(rounder):
        same = gradients()
        assert rounder.seen > 0 and (rounder.lost, rounder.overflowed) == (0, 0)
    with products.rounded_products(products.Rounder(rounding.bf16)):
        other = gradients()
    norm = np.linalg.norm(plain)
    assert np.linalg.norm(same - plain) < 1e-5 * norm  # float32 sums in another order
    assert 1e-3 * norm < np.linalg.norm(other - plain) < 0.1 * norm  # 8 significant bits
    assert table == FAST


def test_every_product_of_the_network_is_rounded(module):
    """Each filter and matrix is a factor once, and a gradient arrives as often: no fused form is left."""
    products, factors, gradients = module("products"), [], []
    model = UNet(base_channels=8, channel_mults=(1, 2), rng=np.random.default_rng(0))

    class Noting(products.Rounder):
        def factor(self, x):
            factors.append(x)
            return super().factor(x)

        def gradient(self, g):
            gradients.append(g)
            return super().gradient(g)

    with products.rounded_products(Noting(module("rounding").bf16)):
        model(normal(2, 2, 8, 8, 1), 5).backward(normal(3, 2, 8, 8, 1))
    weights = [p.data for p in model.parameters() if p.ndim > 1]
    assert [sum(factor is w for factor in factors) for w in weights] == [1] * len(weights)
    # Beside each weight stands its input; the one attention has the factors q, k, v, p, and rounds g and ds.
    assert len(factors) == 2 * len(weights) + 4 and len(gradients) == len(weights) + 2


def test_gradients_are_counted(module):
    """seen: those that are not 0.  lost: those that become 0.  overflowed: finite ones that become infinite."""
    rounder = module("products").Rounder(module("rounding").fp16)
    g = np.float32([0, 1e-9, -1e-9, 1e-3, 7e4, -np.inf])
    np.testing.assert_array_equal(rounder.gradient(g), module("rounding").fp16(g))
    assert (rounder.seen, rounder.lost, rounder.overflowed) == (5, 2, 1)
    rounder.factor(np.float32([1e-9, 7e4]))  # factors are not counted
    rounder.gradient(g)
    assert (rounder.seen, rounder.lost, rounder.overflowed) == (10, 4, 2)


def test_the_table_is_put_back_after_an_error(module):
    table = dict(FAST)
    with pytest.raises(KeyError), module("products").rounded_products(module("products").Rounder(np.zeros_like)):
        raise KeyError
    assert table == FAST
