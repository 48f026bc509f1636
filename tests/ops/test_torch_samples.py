"""An outside witness: the samples on which PyTorch tests its own operators, through ours.

torch.testing keeps a table of operators with samples of their arguments: broadcast shapes, empty axes, strides, masks.
A function below translates such a call to our op, layout included, and says with `only` which arguments our op has.
Every sample that it takes gives PyTorch's result and PyTorch's gradients, in float64.

Skipped where torch is not installed, or expecttest, which this part of torch imports.
"""

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
from witnesses import agree

from tinydiff import ops
from tinydiff.autograd import Tensor
from tinydiff.backend import asarray, default_rng, to_numpy

pytestmark = [
    pytest.mark.engine,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # within torch
]

REASON = 'no torch or expecttest: pip install -e ".[witness]"'
torch: Any = pytest.importorskip("torch", reason=REASON)
pytest.importorskip("expecttest", reason=REASON)

OURS: dict[str, Callable] = {}  # by PyTorch's name of an operator: the same call by our ops


class NotOurs(Exception):
    """The call has an argument that our op has not."""


def only(condition: Any) -> None:
    if not condition:
        raise NotOurs


def ours(*names: str) -> Callable:
    return lambda call: OURS.update(dict.fromkeys(names, call))


# Layouts: PyTorch keeps channels second, and filters as (O, C, KH, KW).


def channels_last(x):
    return ops.transpose(x, axes=(0, *range(2, x.ndim), 1))


def channels_second(x):
    return ops.transpose(x, axes=(0, x.ndim - 1, *range(1, x.ndim - 1)))


def zeros(n):
    return Tensor(asarray(np.zeros(n)))


def pair(a):
    """The one number that an integer or a pair of equal ones stands for."""
    a = (a,) if isinstance(a, int) else tuple(a)
    only(len(set(a)) == 1)
    return a[0]


# Arithmetic.


@ours("add")
def _(x, y, alpha=1):
    return x + alpha * y


@ours("sub")
def _(x, y, alpha=1):
    return x - alpha * y


@ours("mul")
def _(x, y):
    return x * y


@ours("div")
def _(x, y, rounding_mode=None):
    only(rounding_mode is None)
    return x / y


@ours("neg")
def _(x):
    return -x


@ours("matmul", "bmm", "mm")
def _(x, y):
    only(min(x.ndim, y.ndim) >= 2)
    return x @ y


@ours("__getitem__")
def _(x, index):
    parts = index if isinstance(index, tuple) else (index,)
    only(all(part is None or part is ... or type(part) in (int, slice) for part in parts))  # no arrays
    return x[index]


# Pointwise, sums.


@ours("exp")
def _(x):
    return ops.exp(x)


@ours("log")
def _(x):
    return ops.log(x)


@ours("nn.functional.silu")
def _(x):
    return ops.silu(x)


@ours("softmax")
def _(x, dim, dtype=None):
    only(x.ndim and dim % x.ndim == x.ndim - 1 and x.shape[-1] and dtype is None)
    return ops.softmax(x)


@ours("logsumexp")
def _(x, dim, keepdim=False):
    dims = (dim,) if isinstance(dim, int) else tuple(dim)
    only(x.ndim and [d % x.ndim for d in dims] == [x.ndim - 1] and not keepdim)
    return ops.logsumexp(x)


def axis_of(x, dim):
    return dim if dim is None or isinstance(dim, int) else tuple(dim) or None


@ours("sum")
def _(x, dim=None, keepdim=False):
    only(x.ndim and not keepdim)
    return ops.total(x, axis=axis_of(x, dim))


@ours("mean")
def _(x, dim=None, keepdim=False, dtype=None):
    only(x.ndim and not keepdim and dtype is None)
    return ops.mean(x, axis=axis_of(x, dim))


# Shapes.


@ours("reshape", "view")
def _(x, *shape):
    return ops.reshape(x, shape=shape[0] if isinstance(shape[0], tuple | list) else shape)


@ours("permute")
def _(x, *dims):
    dims = dims[0] if isinstance(dims[0], tuple | list) else dims
    return ops.transpose(x, axes=tuple(d % x.ndim for d in dims))


@ours("transpose")
def _(x, a, b):
    only(x.ndim)
    axes = list(range(x.ndim))
    axes[a], axes[b] = axes[b], axes[a]
    return ops.transpose(x, axes=tuple(axes))


@ours("cat")
def _(xs, dim=0):
    only(len({x.ndim for x in xs}) == 1 and dim % xs[0].ndim == xs[0].ndim - 1)
    return ops.concat(*xs)


@ours("chunk")
def _(x, chunks, dim=0):
    only(x.ndim and dim % x.ndim == x.ndim - 1 and x.shape[-1] % chunks == 0)
    return ops.split(x, chunks)


@ours("index_select")
def _(x, dim, indices):
    only(x.ndim and dim % x.ndim == 0)
    return ops.take(x, indices=indices)


@ours("nn.functional.embedding")
def _(weight, indices, **options):
    only(not any(options.values()))
    return ops.take(weight, indices=indices)


# Layers.


@ours("nn.functional.linear")
def _(x, w, b=None):
    only(w.ndim == 2)
    return ops.linear(x, ops.transpose(w, axes=(1, 0)), zeros(w.shape[0]) if b is None else b)


@ours("nn.functional.conv2d")
def _(x, w, b=None, stride=1, padding=0, dilation=1, groups=1):
    only(x.ndim == 4 and pair(dilation) == groups == 1)
    if padding == "same":
        only(pair(w.shape[2:]) % 2 == 1)
        padding = w.shape[2] // 2
    padding = 0 if padding == "valid" else pair(padding)
    b = zeros(w.shape[0]) if b is None else b
    w = ops.transpose(w, axes=(2, 3, 1, 0))
    return channels_second(ops.conv2d(channels_last(x), w, b, stride=pair(stride), padding=padding))


@ours("nn.functional.group_norm")
def _(x, num_groups, weight=None, bias=None, eps=1e-5):
    only(0 not in x.shape[1:] and eps >= 0)
    gamma = zeros(x.shape[1]) + 1.0 if weight is None else weight
    beta = zeros(x.shape[1]) if bias is None else bias
    return channels_second(ops.group_norm(channels_last(x), gamma, beta, num_groups=num_groups, eps=eps))


@ours("nn.functional.scaled_dot_product_attention")
def _(q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
    only(q.shape[:-2] == k.shape[:-2] and dropout_p == 0 and scale in (None, 1 / math.sqrt(q.shape[-1])))
    mask = np.tri(q.shape[-2], k.shape[-2], dtype=bool) if is_causal else attn_mask
    only(mask is None or isinstance(mask, np.ndarray))  # not numbers to add
    return ops.attention(q, k, v, mask=mask)


@cache
def op_db() -> list[Any]:
    from torch.testing._internal import common_methods_invocations

    return common_methods_invocations.op_db


def translated(value, leaves):
    """An argument for our op; the tensors among it that have gradients, as pairs (ours, theirs), go to `leaves`."""
    if isinstance(value, list | tuple):
        return type(value)(translated(part, leaves) for part in value)
    if not isinstance(value, torch.Tensor):
        return value
    array = value.detach().numpy()
    if array.dtype != "float64":
        return array
    leaf = Tensor(asarray(array), requires_grad=value.requires_grad)
    if value.requires_grad:
        leaves.append((leaf, value))
    return leaf


def differs(sample, op, call):
    """Compare one sample: results, and every gradient from random cotangents."""
    leaves: list[tuple[Any, Any]] = []
    arguments = [translated(value, leaves) for value in (sample.input, *sample.args)]
    options = {name: translated(value, leaves) for name, value in sample.kwargs.items()}
    found = call(*arguments, **options)
    expected = op(sample.input, *sample.args, **sample.kwargs)
    found, expected = ([y] if hasattr(y, "shape") else list(y) for y in (found, expected))
    rng = default_rng(0)
    gs = [rng.standard_normal(tuple(z.shape)) for z in expected]
    leaves = [(leaf, z) for leaf, z in leaves if leaf.requires_grad]
    if leaves:
        for y, g in zip(found, gs):
            y.backward(asarray(g))
        grads = torch.autograd.grad(expected, [z for _, z in leaves], [torch.from_numpy(g) for g in gs])
        found += [leaf.grad for leaf, _ in leaves]
        expected += grads
    return [to_numpy(y) for y in found], [z.detach().numpy() for z in expected]


@pytest.mark.parametrize("name", OURS)
def test_every_sample_of_pytorchs_own_tests_gives_its_result_and_gradients(name):
    """In float64, to 1e-13 of the largest number: some hundred roundings."""
    taken = 0
    for info in (info for info in op_db() if info.name == name and torch.float64 in info.dtypes):
        for sample in info.sample_inputs("cpu", torch.float64, requires_grad=True):
            try:
                found, expected = differs(sample, info.op, OURS[name])
            except NotOurs:
                continue
            agree("PyTorch's samples of its operators", found, expected, 1e-13)
            taken += 1
    assert taken > 0
