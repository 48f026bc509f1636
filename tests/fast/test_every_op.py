"""The ops that tinydiff/fast alone has: one row each, which obeys the laws of ops/test_every_op.py."""

from functools import partial

import emulate
import pytest
from hypothesis import strategies as st
from ops import test_every_op as laws
from ops.test_every_op import MAYBE_EMPTY, SIZES, Row, a_geometry, a_map_in_groups, apart, normal

from tinydiff.backend import backend_name
from tinydiff.fast.conv import output_shape

pytestmark = pytest.mark.engine
ROWS: dict[str, Row] = {}
row = partial(laws.row, rows=ROWS)

# All of them but one: no op here is linear in all its inputs together.
globals().update({name: law for name, law in vars(laws).items() if name.startswith("test_")})
del test_an_op_whose_gradient_needs_no_input_keeps_none  # noqa: F821


@pytest.fixture(autouse=True)
def on_a_gpu(request, monkeypatch):
    """Ops of a GPU only run on the kernels' text, compiled for the host."""
    params = getattr(request.node, "callspec", None)
    names = {row.name for row in (params.params.values() if params else ()) if isinstance(row, Row)}
    if names & {"block", "block_of_equals", "residual_attention"} and backend_name() == "numpy":
        if emulate.COMPILER is None:
            pytest.skip(emulate.REASON)
        emulate.install(monkeypatch)


def pytest_generate_tests(metafunc):
    laws.pytest_generate_tests(metafunc)


def test_every_op_has_a_row():
    """The rows are exactly the ops that tinydiff/fast registers."""
    assert laws.registered(fast=True) == set(ROWS)


row("group_norm_silu")(a_map_in_groups)


@row("conv2d_plus", linear=(0, 1, 2, 3))
def a_convolution_and_what_is_added(draw):
    """One bias for each image, or a map."""
    shapes, static = a_geometry(draw)
    result = output_shape(*shapes[:2], **static)
    plus = draw(st.sampled_from([(result[0], result[3]), result]))
    return [normal(draw, shape) for shape in (*shapes, plus)], static


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


@pytest.fixture(autouse=True)
def on_numpy(request):
    if backend_name() != "numpy" and "winograd" in request.node.name:
        pytest.skip("winograd.py computes on NumPy only")


def a_residual_block(draw, skip):
    num_groups = draw(st.sampled_from([1, 2]))
    n, c, d = draw(MAYBE_EMPTY), num_groups * draw(SIZES), draw(SIZES)
    h, w = draw(SIZES) + 1, draw(SIZES) + 2  # some pixels, so that no group has a deviation near 0
    o = num_groups * draw(SIZES) if skip else c
    first = (c,), (c,), (3, 3, c, o), (o,), (d, o), (o,)
    second = (o,), (o,), (3, 3, o, o), (o,), *([(c, o), (o,)] if skip else [])
    return [normal(draw, shape) for shape in ((n, h, w, c), (n, d), *first, *second)], {"num_groups": num_groups}


@row("block")
def a_block_with_a_convolution_in_its_shortcut(draw):
    return a_residual_block(draw, skip=True)


@row("block_of_equals")
def a_block_with_a_plain_shortcut(draw):
    return a_residual_block(draw, skip=False)


@row("residual_attention")
def attention_within_a_map(draw):
    """Maps, and rows of tokens."""
    num_groups, num_heads = draw(st.sampled_from([1, 2])), draw(st.sampled_from([1, 2]))
    c, pixels = 2 * draw(SIZES), [3 + size for size in draw(st.lists(SIZES, min_size=1, max_size=2))]
    x = apart(draw, (draw(MAYBE_EMPTY), *pixels, c), gap=1)  # else a group's deviation could be near 0
    gamma, beta, out_b = (normal(draw, (c,)) for _ in range(3))
    # Scores far above 1 make a softmax so steep that a difference quotient is no derivative.
    qkv_w, qkv_b = 0.3 * normal(draw, (c, 3 * c)), 0.3 * normal(draw, (3 * c,))
    static = {"num_groups": num_groups, "num_heads": num_heads}
    return [x, gamma, beta, qkv_w, qkv_b, normal(draw, (c, c)), out_b], static
