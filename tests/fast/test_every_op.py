"""The ops that tinydiff/fast alone has: one row each, which obeys the laws of ops/test_every_op.py."""

from functools import partial

import pytest
from hypothesis import strategies as st
from ops import test_every_op as laws
from ops.test_every_op import MAYBE_EMPTY, SIZES, Row, a_geometry, a_map_in_groups, normal

from tinydiff.backend import backend_name
from tinydiff.fast.conv import output_shape

pytestmark = pytest.mark.engine
ROWS: dict[str, Row] = {}
row = partial(laws.row, rows=ROWS)

# All of them but one: no op here is linear in all its inputs together.
globals().update({name: law for name, law in vars(laws).items() if name.startswith("test_")})
del test_an_op_whose_gradient_needs_no_input_keeps_none  # noqa: F821


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
