"""The U-Net: its size, what its output depends on, what it refuses, and the gradient of the whole of it."""

import gc
import inspect
import json
import math
import re
import weakref

import numpy as np
import pytest
from draws import SEEDS
from hypothesis import given
from hypothesis import strategies as st
from tiny_unet import (
    FEWER,
    assert_close,
    configs,
    every_parameter_is_trained,
    graph,
    images,
    modules,
    run,
    sizes_seen,
    the_gradient_is_the_derivative,
    tiny,
)

from tinydiff import ops
from tinydiff.autograd import Tensor, no_grad
from tinydiff.backend import FAST, asarray, backend_name, default_rng, to_numpy, xp
from tinydiff.nn import Attention, Module, UNet
from tinydiff.nn.unet import ResBlock, time_code

pytestmark = pytest.mark.network


# Its size and shape.


def test_the_reference_network_has_1062497_parameters(rng):
    """The U-Net that every speed figure is taken on has the size that DESIGN.md says, by default."""
    model = UNet(rng=rng)
    assert model.num_parameters() == 1_062_497
    assert model.config["channel_mults"] == [1, 2, 2] and model.config["num_classes"] is None


def test_classes_cost_one_vector_each_and_one_for_no_label(rng):
    """num_classes = 10 adds 11 vectors of 128 numbers to the reference network and nothing else."""
    assert UNet(num_classes=10, rng=rng).num_parameters() == 1_062_497 + 11 * 128


@given(configs(), SEEDS)
def test_any_configuration_maps_images_to_images_and_trains_all_of_itself(drawn, seed):
    """The output has the input's shape, everything is float32, and every parameter gets a gradient that is not 0."""
    config, shape = drawn
    rng = default_rng(seed)
    model, x = tiny(rng, "float32", **config), images(rng, *shape, dtype="float32")
    labels = None if config["num_classes"] is None else np.arange(shape[0]) % (config["num_classes"] + 1)
    every_parameter_is_trained(model, lambda: (x, model(x, np.array([1, 50, 1000]), labels)), rng)


@FEWER
@given(configs(), SEEDS)
def test_a_configuration_makes_the_same_network_again(drawn, seed):
    """config holds every argument, and makes the same bits from the same generator, also after a way through JSON."""
    arguments, _ = drawn
    first = UNet(**arguments, rng=default_rng(seed))
    assert first.config == {name: list(a) if isinstance(a, tuple) else a for name, a in arguments.items()}
    assert {*first.config, "rng"} == set(inspect.signature(UNet).parameters)
    again = UNet(**json.loads(json.dumps(first.config)), rng=default_rng(seed))
    assert again.config == first.config
    state, other = first.state_dict(), again.state_dict()
    assert list(state) == list(other)
    for name in state:
        np.testing.assert_array_equal(state[name], other[name])


@FEWER
@given(configs(), SEEDS)
def test_attention_is_in_the_middle_and_at_the_levels_that_ask_for_it(drawn, seed):
    """One at the lowest resolution, and one after each of a level's 2 num_res_blocks + 1 blocks, at its resolution."""
    config, shape = drawn
    model, x = tiny(default_rng(seed), "float32", **config), images(default_rng(seed), *shape, dtype="float32")
    sizes = [(shape[1] >> level, shape[2] >> level) for level in range(len(config["channel_mults"]))]
    blocks = 2 * config["num_res_blocks"] + 1
    expected = [sizes[-1]] + [sizes[level] for level in config["attention_levels"] for _ in range(blocks)]
    assert sizes_seen(model, Attention, lambda: model(x, 1)) == sorted(expected)


def test_the_network_begins_by_predicting_nothing(rng):
    """conv_out starts at zero: the first output is exactly 0, and its gradient does not vanish, so it can leave."""
    model = UNet(base_channels=8, num_groups=4, rng=rng)
    y = model(images(rng, 2, 8, 8, dtype="float32"), 5)
    np.testing.assert_array_equal(to_numpy(y), np.zeros((2, 8, 8, 1)))
    y.backward(images(rng, 2, 8, 8, dtype="float32"))
    assert float(abs(model.conv_out.w.grad).min()) > 0


def test_each_block_begins_as_its_skip(rng):
    """The second convolution of a block starts at zero: where channels agree the block is the identity, bit for bit."""
    model = UNet(base_channels=8, num_groups=4, channel_mults=(1, 1), attention_levels=(0,), rng=rng)
    block = next(modules(model, ResBlock))
    x = Tensor(images(rng, 2, 4, 4, 8, dtype="float32"))
    code = Tensor(asarray(rng.standard_normal((2, 128), dtype="float32")))
    np.testing.assert_array_equal(to_numpy(block(x, code)), to_numpy(x))


# What it computes.


def silu(x):
    return x / (ops.exp(-x) + 1)


def block_by_hand(block, x, code):
    """skip(x) + conv2(silu(norm2(conv1(silu(norm1(x))) + time))), from ops alone; then the block's attention."""
    p = dict(block.named_parameters())

    def norm(h, name):
        return silu(ops.group_norm(h, p[f"{name}.gamma"], p[f"{name}.beta"], num_groups=4))

    def conv(h, name):
        return ops.conv2d(h, p[f"{name}.w"], p[f"{name}.b"], padding=1)

    time = ops.reshape(code @ p["time.w"] + p["time.b"], shape=(len(x), 1, 1, -1))
    h = conv(norm(conv(norm(x, "norm1"), "conv1") + time, "norm2"), "conv2")
    h = h + (ops.linear(x, p["skip.w"], p["skip.b"]) if "skip.w" in p else x)
    return block.attention(h) if block.attention else h


@FEWER
@given(SEEDS, st.booleans())
def test_the_network_is_its_diagram(seed, labelled):
    """Two levels spelled out: which block sees which map, what is put beside what, how time and label come in."""
    rng = default_rng(seed)
    model = tiny(rng, in_channels=2, num_classes=3 if labelled else None)
    x, t, labels = Tensor(images(rng, 2, c=2)), np.array([3, 500]), np.array([3, 1]) if labelled else None

    code = model.time2(silu(model.time1(Tensor(time_code(t, 8, "float64")))))
    code = silu(code + model.label.w.data[asarray(labels)] if labelled else code)
    h0 = model.conv_in(x)
    h1 = block_by_hand(model.down[0], h0, code)
    h2 = ops.conv2d(h1, model.down[1].w, model.down[1].b, stride=2, padding=1)
    h3 = block_by_hand(model.down[2], h2, code)
    h = block_by_hand(model.middle[0], h3, code)
    assert model.middle[0].attention and not model.middle[1].attention
    h = block_by_hand(model.middle[1], h, code)
    h = block_by_hand(model.up[0], ops.concat(h, h3), code)
    h = block_by_hand(model.up[1], ops.concat(h, h2), code)
    h = ops.conv2d(ops.upsample_nearest(h), model.up[2].conv.w, model.up[2].conv.b, padding=1)
    h = block_by_hand(model.up[3], ops.concat(h, h1), code)
    h = block_by_hand(model.up[4], ops.concat(h, h0), code)
    h = silu(ops.group_norm(h, model.norm_out.gamma, model.norm_out.beta, num_groups=4))
    assert_close(run(model, x, t, labels), to_numpy(model.conv_out(h)))


# What the output depends on.


def test_the_output_depends_on_the_time_and_on_the_label(rng):
    """Another t, and another label, each give another picture: both codes arrive."""
    model, x = tiny(rng, num_classes=3), images(rng, 1)
    outputs = [run(model, x, t, label) for t in (1, 2, 1000) for label in (0, 1, 2, 3)]
    gaps = [abs(a - b).max() for i, a in enumerate(outputs) for b in outputs[:i]]
    assert min(gaps) > 1e-4  # rounding would be 1e-13


@given(SEEDS, st.data())
def test_each_image_goes_its_own_way(seed, data):
    """Row i of a batch is what the model makes of x[i], t[i] and labels[i] alone, wherever in the batch it stands."""
    rng = default_rng(seed)
    model, n = tiny(rng, num_classes=3, attention_levels=(0,)), data.draw(st.integers(1, 5))
    x, t, labels = images(rng, n), rng.integers(1, 1001, n), rng.integers(0, 4, n)
    order = np.array(data.draw(st.permutations(range(n))))
    together = run(model, x, t, labels)
    assert_close(run(model, asarray(to_numpy(x)[order]), t[order], labels[order]), together[order])
    i = data.draw(st.integers(0, n - 1))
    assert_close(run(model, x[i : i + 1], t[i : i + 1], labels[i : i + 1]), together[i : i + 1])


def test_one_time_or_label_for_all_is_the_same_for_each(rng):
    """t and labels given as one integer are what they are as an array that repeats it, bit for bit."""
    model, x = tiny(rng, num_classes=3), images(rng, 3)
    found = run(model, x, 7, 2)
    np.testing.assert_array_equal(found, run(model, x, np.full(3, 7), np.full(3, 2)))
    np.testing.assert_array_equal(found, run(model, x, [7, 7, 7], np.full(3, 2, "uint8")))


def test_without_a_label_it_has_the_label_none(rng):
    """labels=None is the label num_classes for every image, and no other one."""
    model, x = tiny(rng, num_classes=3), images(rng, 2)
    unlabelled = run(model, x, 7)
    np.testing.assert_array_equal(unlabelled, run(model, x, 7, np.array([3, 3])))
    assert abs(unlabelled - run(model, x, 7, 0)).max() > 1e-4


def test_a_label_trains_its_own_vector_only(rng):
    """The gradient of the label table is nonzero in the rows of the batch's labels and exactly 0 elsewhere."""
    model, x = tiny(rng, num_classes=4), images(rng, 3)
    y = model(x, 7, np.array([0, 2, 2]))
    y.backward(images(rng, 3))
    np.testing.assert_array_equal(to_numpy(model.label.w.grad).any(1), [True, False, True, False, False])


# The time code.


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=5), st.integers(1, 32))
def test_the_time_code_holds_sines_then_cosines(t, half):
    """code[n] = sin(t_n f), cos(t_n f) with f_i = 10000^(-i / half), from frequency 1 down."""
    f = np.array([10_000.0 ** -(i / half) for i in range(half)])
    angle = np.array(t)[:, None] * f
    expected = np.concatenate([np.sin(angle), np.cos(angle)], 1)
    found = to_numpy(time_code(np.array(t), 2 * half, "float64"))
    # An angle of 1e6 is rounded to 1e-10.
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9)


def test_the_time_code_is_rounded_last(rng):
    """The float32 code is the float64 code rounded once: 1000 f in float32 would be off by 3e-5."""
    t = np.arange(1001)
    exact, rounded = to_numpy(time_code(t, 32, "float64")), to_numpy(time_code(t, 32))
    assert rounded.dtype == np.float32
    np.testing.assert_array_equal(rounded, exact.astype("float32"))


@pytest.mark.parametrize("features", [8, 32, 64])
def test_no_two_times_have_one_code(features):
    """The codes of t = 1..1000, in float32, are all far from each other."""
    code = to_numpy(time_code(np.arange(1, 1001), features))
    squared = 2 * (features // 2) - 2 * (code.astype("float64") @ code.T.astype("float64"))
    # |code_s - code_t|^2 = sum_i 2 (1 - cos((s - t) f_i)): 4 frequencies leave 0.416 at s - t = 63, more leave more.
    assert squared[~np.eye(1000, dtype=bool)].min() > 0.4


@given(st.integers(2, 64).map(lambda half: 2 * half), st.integers(1, 1000), st.integers(1, 1000))
def test_near_times_have_similar_codes(features, t, s):
    """<code_t, code_s> = sum_i cos((t - s) f_i): it depends on the distance alone, and falls from 0 to 3 steps."""
    codes = to_numpy(time_code([t, s, 1000, 1001, 1002, 1003], features, "float64"))
    distances = [abs(t - s), 0, 1, 2, 3]
    f = 10_000.0 ** (-np.arange(features // 2) / (features // 2))
    similar = [codes[0] @ codes[1], *(codes[2] @ codes[2:].T)]
    np.testing.assert_allclose(similar, [np.cos(d * f).sum() for d in distances], rtol=0, atol=1e-10)  # t is up to 1000
    assert (np.diff(similar[1:]) < 0).all()


# Bad input.


@given(st.integers(2, 3), st.integers(1, 20), st.integers(1, 20))
def test_a_size_that_does_not_halve_is_refused(levels, h, w):
    """H and W must be divisible by 2^(levels - 1), else ValueError naming the size."""
    model = UNet(base_channels=4, channel_mults=(1,) * levels, num_groups=2, rng=default_rng(0))
    unit = 2 ** (levels - 1)
    x = images(default_rng(0), 1, h, w, dtype="float32")
    if h % unit or w % unit:
        said = f"H and W divisible by {unit}, got (1, {h}, {w}, 1)"
        with pytest.raises(ValueError, match=re.escape(said)):
            model(x, 1)
    else:
        assert run(model, x, 1).shape == (1, h, w, 1)


@pytest.mark.parametrize("shape", [(2, 4, 4, 3), (2, 4, 4, 0), (2, 4, 4), (4, 4, 1), (2, 1, 4, 4), (2, 4, 4, 1, 1)])
def test_images_of_another_kind_are_refused(shape, rng):
    """x_t must be (N, H, W, in_channels), else ValueError with the shape it has."""
    said = f"x_t must have shape (N, H, W, 1), H and W divisible by 2, got {shape}"
    with pytest.raises(ValueError, match=re.escape(said)):
        tiny(rng, "float32")(xp.zeros(shape, "float32"), 1)


BAD_CALLS = [
    ({"t": -1}, "t must lie in 0.*got -1"),
    ({"t": [1, -3]}, "t must lie in 0.*got -3"),
    ({"t": 2**31 + 1}, r"t must lie in 0\.\.2147483648, got 2147483649"),
    ({"t": 1.0}, "t must be integers"),
    ({"t": [1, 2, 3]}, r"t must be one integer or have shape \(2,\), got shape \(3,\)"),
    ({"labels": 4}, r"labels must lie in 0\.\.3, got 4"),
    ({"labels": [0, -1]}, r"labels must lie in 0\.\.3, got -1"),
    ({"labels": [0, 1, 2]}, r"labels must be one integer or have shape \(2,\)"),
    ({"labels": 0.5}, "labels must be integers"),
]


@pytest.mark.parametrize(("arguments", "said"), BAD_CALLS)
def test_times_and_labels_out_of_range_are_refused(arguments, said, rng):
    """t: integers >= 0, labels: integers in 0..num_classes, one for all or one an image, else ValueError."""
    with pytest.raises(ValueError, match=said):
        tiny(rng, num_classes=3)(images(rng, 2), **({"t": 1} | arguments))


def test_a_network_without_classes_takes_no_label(rng):
    """A label that the network would not look at is refused, not ignored."""
    with pytest.raises(ValueError, match="labels must be None for a network without num_classes, got 0"):
        tiny(rng)(images(rng, 1), 1, 0)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"base_channels": 9, "num_groups": 3}, "base_channels must be even .*got 9, "),
        ({"channel_mults": ()}, r"channel_mults not empty, got 8, \(\)"),
        ({"attention_levels": (0, 2)}, r"attention_levels must be some of the levels 0\.\.1, got \(0, 2\)"),
        ({"attention_levels": (-1,)}, r"attention_levels must be some of the levels 0\.\.1, got \(-1,\)"),
        ({"channel_mults": (1, 1, 1), "attention_levels": (3,)}, r"some of the levels 0\.\.2, got \(3,\)"),
        ({"num_groups": 3}, "num_groups=3 does not divide channels=8"),
        ({"num_heads": 3}, "num_heads=3 does not divide channels=16"),
    ],
)
def test_a_network_that_cannot_be_is_refused(options, said, rng):
    """A configuration that does not fit together is a ValueError that names the argument and its value."""
    with pytest.raises(ValueError, match=said):
        tiny(rng, **options)


def test_a_float64_picture_does_not_enter_a_float32_network(rng):
    """Dtypes do not mix silently: the caller casts."""
    with pytest.raises(TypeError, match=r"float32.*float64"):
        tiny(rng, "float32")(images(rng, 1), 1)


# The gradient of the whole.


@FEWER
@given(SEEDS, st.booleans())
def test_the_gradient_is_the_derivative_along_a_random_direction(seed, labelled):
    """sum <dp, d> = d/dh <g, model(x + h d_x; p + h d_p)> at h = 0, over the image and all parameters together."""
    rng = default_rng(seed)
    model = tiny(rng, attention_levels=(1,), num_res_blocks=2, num_classes=3 if labelled else None)
    x, t = Tensor(images(rng, 2), requires_grad=True), rng.integers(1, 1001, 2)
    labels = rng.integers(0, 4, 2) if labelled else None
    the_gradient_is_the_derivative(lambda: model(x, t, labels), [*model.parameters(), x], images(rng, 2), rng)


def block_is_a_node():
    """Whether a residual block is one node of the graph, as it is on a GPU."""
    return "ResBlock.forward" in FAST and backend_name() != "numpy"


def test_float64_enters_nowhere(rng):
    """From a float32 network come float32 numbers only: every intermediate, the output and all gradients."""
    model = tiny(rng, "float32", num_classes=3, attention_levels=(0, 1))
    x = Tensor(images(rng, 2, dtype="float32"), requires_grad=True)
    y = model(x, np.array([1, 1000]), np.array([0, 3]))
    nodes = graph(y)
    y.backward(images(rng, 2, dtype="float32"))
    assert {str(node.dtype) for node in nodes} == {"float32"}
    assert {str(p.grad.dtype) for p in [x, *model.parameters()]} == {"float32"}
    assert sum(not isinstance(node, Tensor) for node in nodes) > (25 if block_is_a_node() else 100)  # it was there


@pytest.mark.parametrize("backward", [True, False])
def test_the_graph_is_freed_by_backward_or_with_its_last_name(rng, backward):
    """Every node and what its gradient kept goes in backward, or without one when the output does: no collector."""
    model = tiny(rng, num_classes=3, attention_levels=(1,))
    y, g = model(images(rng, 2), 7, 1), images(rng, 2)
    inner = [place for place in graph(y) if not isinstance(place, Tensor)]
    watched = [weakref.ref(thing) for node in inner for thing in (node, node.vjp)]
    assert len(watched) > (50 if block_is_a_node() else 100)
    gc.collect()
    gc.disable()
    try:
        del inner
        if backward:
            y.backward(g)
        else:
            del y
        assert [ref() for ref in watched if ref() is not None] == []
    finally:
        gc.enable()


def test_without_gradients_nothing_is_kept(rng):
    """Under no_grad the output holds no graph, and its bits are those of a recorded call."""
    model, x = tiny(rng), images(rng, 2)
    with no_grad():
        y = model(x, 7)
    assert not y.requires_grad and len(graph(y)) == 1
    recorded = model(x, 7)
    assert recorded.requires_grad
    np.testing.assert_array_equal(to_numpy(y), to_numpy(recorded))


def test_a_tensor_is_as_good_as_an_array(rng):
    """x_t may be a Tensor, and then has a gradient if it wants one: what guidance by a classifier would need."""
    model, x = tiny(rng), images(rng, 2)
    leaf = Tensor(x, requires_grad=True)
    y = model(leaf, 7)
    np.testing.assert_array_equal(to_numpy(y), run(model, x, 7))
    y.backward(images(rng, 2))
    assert leaf.grad.shape == x.shape and float(abs(leaf.grad).min()) > 0
    assert isinstance(model, Module)


@pytest.mark.parametrize("value", [0, -1, 1.5, math.nan, "2", True, 1 << 40])
@pytest.mark.parametrize(
    "name", ["in_channels", "base_channels", "num_res_blocks", "num_heads", "num_groups", "num_classes"]
)
def test_a_size_of_the_network_out_of_range_is_refused(name, value, rng):
    """Whole numbers from 1 to a million, else ValueError or TypeError, before an array is made."""
    with pytest.raises((ValueError, TypeError)):
        UNet(**{"base_channels": 8, "num_classes": 3, name: value}, rng=rng)


@pytest.mark.parametrize("mults", [(), (0,), (1, -1), (1.5,)])
def test_multiples_of_the_channels_are_whole_numbers_from_1(mults, rng):
    """And there is at least one of them."""
    with pytest.raises(ValueError, match="channel_mults"):
        UNet(base_channels=8, channel_mults=mults, rng=rng)
