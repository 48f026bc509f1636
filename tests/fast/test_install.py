"""The law of the table: every faster form equals the plain form that it stands in for.

A row draws a case of its form, and `compute` runs the case with the table empty and with the table full: values and
every gradient from a random cotangent, in float32 and float64, on NumPy and on a device (strict.py where there is no
GPU).  Forms that write to arrays are compared in all that they write, over several steps.
"""

import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import emulate
import numpy as np
import pytest
import strict
from draws import SEEDS, host_normal
from hypothesis import given
from hypothesis import strategies as st
from plain import plain

from tinydiff import ops
from tinydiff.autograd import Tensor
from tinydiff.backend import FAST, asarray, backend_name, default_rng, to_numpy, xp
from tinydiff.fast.gpu import PERIOD
from tinydiff.fast.install import EVERYWHERE, ON_A_GPU
from tinydiff.fast.optim import PIECE, Flat
from tinydiff.more.layers import NormSilu, NormSiluConv, UpConv
from tinydiff.muon import Muon
from tinydiff.nn import Attention, Linear, UNet
from tinydiff.nn.unet import TIME_FEATURES, ResBlock, Upsample
from tinydiff.optim import EMA, Adam, clip_grad_norm
from tinydiff.train import LoopConfig, Training, TrainingError, train

pytestmark = pytest.mark.engine

ROWS: dict[str, Any] = {}
ALSO = {
    "sum_of",
    "adam_update",
    "ema_update",
    "orthogonalize",  # of workers: test_workers.py
    "muon_update",
    "clip_grad_norm",
    "Training.note",
    "Training.metrics",
}  # laws of their own below


def row(*names: str) -> Callable:
    """For a function that draws (make, inputs).  make(dtype) -> (function, its parameters); inputs: host arrays."""

    def add(draw_case):
        for name in names:
            ROWS[name] = st.composite(draw_case)()
        return draw_case

    return add


# What rows are made of.

N = st.integers(1, 3)
SIDE = st.sampled_from([1, 2, 3, 4, 5, 7, 9])  # Winograd's tiles are 4 wide
CHANNELS = st.sampled_from([1, 2, 3, 4, 8, 15, 16, 20])  # on both sides of the 16 from which Winograd's way pays
WIDE = st.sampled_from([16, 17, 20])
GROUPS = st.sampled_from([1, 2, 4])


def normal(draw, *shape):
    return host_normal(draw(SEEDS), shape)[0]


def spread(draw, *shape):
    """Values evenly spread from -2 to 2 in random order: no group of them has a deviation near 0 but of one value."""
    rng, size = default_rng(draw(SEEDS)), math.prod(shape)
    return (4 * (rng.permutation(size) + rng.uniform(0.4, 0.6, size)) / size - 2).reshape(shape)


def pixels(draw):
    """The shape between N and C: none, one axis, or rows and columns."""
    return tuple(draw(st.lists(SIDE, max_size=2)))


def an_op(op, **static):
    return lambda dtype: ((lambda *inputs: op(*inputs, **static)), [])


def a_layer(draw, make, part=lambda layer: (layer, [layer])):
    """A layer whose parameters are random and not 0; part(layer): what of it runs, and whose parameters that uses."""
    seed = draw(SEEDS)

    def made(dtype):
        layer, rng = make(default_rng(0)), default_rng(seed)
        for p in layer.parameters():
            fan_in = max(1, math.prod(p.shape[:-1]))
            p.data = asarray((0.2 + rng.standard_normal(p.shape)) / math.sqrt(fan_in), dtype)
        f, owners = part(layer)
        return f, [p for owner in owners for p in owner.parameters()]

    return made


# The ops.


@row("silu")
def elements(draw):
    return an_op(ops.silu), [10 * normal(draw, *pixels(draw), draw(CHANNELS))]


@row("linear")
def an_affine_map(draw):
    i, o = draw(CHANNELS), draw(CHANNELS)
    lead = draw(st.sampled_from([(), (1,), (3,), (2, 5), (3, 4, 5), (4, 9, 9)]))  # 324 rows: more than a kernel takes
    return an_op(ops.linear), [normal(draw, *lead, i), normal(draw, i, o), normal(draw, o)]


@row("conv2d")
def a_convolution(draw):
    n, c, o, stride, padding = draw(N), draw(CHANNELS), draw(CHANNELS), draw(st.integers(1, 2)), draw(st.integers(0, 2))
    kernel = draw(st.sampled_from([(3, 3)] * 3 + [(1, 1), (2, 3), (5, 5)]))
    if draw(st.booleans()):  # Winograd's way
        kernel, stride, padding, c, o = (3, 3), 1, 1, draw(WIDE), draw(WIDE)
    h, w = (max(draw(SIDE), k - 2 * padding) for k in kernel)
    arrays = [normal(draw, n, h, w, c), normal(draw, *kernel, c, o) / math.sqrt(c), normal(draw, o)]
    return an_op(ops.conv2d, stride=stride, padding=padding), arrays


@row("upsample_nearest")
def a_map(draw):
    return an_op(ops.upsample_nearest), [normal(draw, draw(N), draw(SIDE), draw(SIDE), draw(CHANNELS))]


@row("group_norm")
def a_map_in_groups(draw):
    groups, eps = draw(GROUPS), draw(st.sampled_from([1e-5, 0.1]))
    c = groups * draw(st.integers(1, 5))
    arrays = [spread(draw, draw(N), *pixels(draw), c), normal(draw, c), normal(draw, c)]
    return an_op(ops.group_norm, num_groups=groups, eps=eps), arrays


@row("concat")
def arrays_to_join(draw):
    lead = (draw(N), *pixels(draw))
    return an_op(ops.concat), [normal(draw, *lead, draw(CHANNELS)) for _ in range(draw(st.sampled_from([2, 2, 1, 3])))]


@row("softmax_array", "softmax_gradient")
def scores(draw):
    lead, l, m = tuple(draw(st.lists(N, max_size=2))), draw(SIDE), draw(SIDE)
    if draw(st.booleans()):
        return an_op(ops.softmax), [3 * normal(draw, *lead, l, m)]
    return an_op(ops.attention), [normal(draw, *lead, l, 3), normal(draw, *lead, m, 3), normal(draw, *lead, m, 2)]


@row("attention")
def queries_keys_and_values(draw):
    lead, l, m = draw(st.lists(N, max_size=3)), draw(SIDE), draw(SIDE)
    sizes = [(*lead, l, d := draw(SIDE)), (*lead, m, d), (*lead, m, draw(SIDE))]
    mask = None
    if draw(st.booleans()):  # each query keeps the key of its number; the mask may be short of leading axes
        kept = default_rng(draw(SEEDS)).random((*draw(st.sampled_from([lead, []])), l, m)) < 0.5
        mask = kept | (np.arange(l)[:, None] % m == np.arange(m))
    return an_op(ops.attention, mask=mask), [normal(draw, *size) for size in sizes]


@row("take")
def rows_to_pick(draw):
    shape = (draw(SIDE), *pixels(draw))
    indices = default_rng(draw(SEEDS)).integers(0, shape[0], draw(st.lists(st.integers(1, 4), max_size=2)))
    return an_op(ops.take, indices=indices), [normal(draw, *shape)]


# The layers.


@row("ResBlock.forward")
def a_block(draw):
    n, groups, attend = draw(N), draw(GROUPS), draw(st.booleans())
    c, o = (groups * draw(st.sampled_from([1, 2, 4, 5, 16 // groups])) for _ in range(2))
    heads = draw(st.sampled_from([1, groups]))
    sizes = {"num_groups": groups, "num_heads": heads, "attend": attend}
    inputs = [spread(draw, n, draw(SIDE), draw(SIDE), c), normal(draw, n, TIME_FEATURES)]
    return a_layer(draw, lambda rng: ResBlock(c, o, rng=rng, **sizes)), inputs


@row("Attention.forward")
def self_attention(draw):
    """Maps, and rows of tokens."""
    heads, groups = draw(st.sampled_from([1, 2])), draw(st.sampled_from([1, 2]))
    c = 2 * draw(SIDE)
    make = a_layer(draw, lambda rng: Attention(c, num_heads=heads, num_groups=groups, rng=rng))
    return make, [spread(draw, draw(N), *pixels(draw), c)]


@row("Upsample.forward")
def an_upsampling(draw):
    c = draw(CHANNELS)
    return a_layer(draw, lambda rng: Upsample(c, rng=rng)), [normal(draw, draw(N), draw(SIDE), draw(SIDE), c)]


@row("UpConv.forward")
def an_upsampling_to_other_channels(draw):
    c, o = draw(CHANNELS), draw(CHANNELS)
    return a_layer(draw, lambda rng: UpConv(c, o, rng=rng)), [normal(draw, draw(N), draw(SIDE), draw(SIDE), c)]


@row("UNet.head")
def a_head(draw):
    groups, out = draw(GROUPS), draw(CHANNELS)
    c = 4 * draw(st.sampled_from([1, 2, 4, 5]))
    make = a_layer(
        draw,
        lambda rng: UNet(out, c, (1,), num_heads=1, num_groups=groups, rng=rng),
        lambda network: (network.head, [network.norm_out, network.conv_out]),
    )
    return make, [spread(draw, draw(N), draw(SIDE), draw(SIDE), c)]


@row("NormSilu.forward")
def a_norm(draw):
    groups = draw(GROUPS)
    c = groups * draw(st.integers(1, 5))
    return a_layer(draw, lambda rng: NormSilu(groups, c)), [spread(draw, draw(N), *pixels(draw), c)]


@row("NormSiluConv.forward")
def a_norm_and_a_convolution(draw):
    groups, o = draw(GROUPS), draw(CHANNELS)
    c = groups * draw(st.sampled_from([1, 2, 4, 5, 16 // groups]))
    make = a_layer(draw, lambda rng: NormSiluConv(c, o, groups, rng))
    return make, [spread(draw, draw(N), draw(SIDE), draw(SIDE), c)]


# The law.

# In float32 a rounding is 6e-8: some tens of times in sums of up to 3,000 products, ten times that in a Winograd tile,
# and 1 / deviation, up to 30, in each of two norms.  In float64 the same of 1e-16.
BOUNDS = {"float32": 2e-3, "float64": 1e-10}
DEVICE = pytest.mark.skipif(backend_name() == "numpy" and emulate.COMPILER is None, reason=emulate.REASON)
PLACES = ["numpy", pytest.param("device", marks=DEVICE)] if backend_name() == "numpy" else ["device"]
each_dtype = pytest.mark.parametrize("dtype", BOUNDS)
each_place = pytest.mark.parametrize("place", PLACES)
on_device = pytest.mark.parametrize("place", PLACES[-1:])


def on(place):
    """Within the block arrays are of this place, and the forms that it has are installed."""
    stands_in = place == "device" and backend_name() == "numpy"
    return strict.backend("cupy", rounding="float32") if stands_in else nullcontext()


def each_form(names, compute):
    """What compute() gives with plain forms, and with the faster ones; each of those named must have been used."""
    with plain():
        expected = compute()
    used: set[str] = set()
    with pytest.MonkeyPatch.context() as patch:
        for name in names:
            form = FAST[name]
            patch.setitem(FAST, name, lambda *a, name=name, form=form, **k: used.add(name) or form(*a, **k))
        found = compute()
    assert used == set(names)
    return expected, found


def agree(expected, found, bound, alone=False):
    """Within `bound` of the largest value of an array; unless alone, of a tenth of all arrays', and of 0.1.

    Where terms cancel, what is left has their roundings: inputs are numbers about 1.
    """
    least = 0 if alone else max(1, *(abs(a).max() for a in expected)) / 10
    for a, b in zip(expected, found, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        assert np.isfinite(a).all()
        assert abs(a - b).max() <= bound * max(abs(a).max(), least)


@each_dtype
@each_place
@given(seed=SEEDS)
def test_a_gradient_of_many_parts_is_the_plain_sum(place, dtype, seed):
    """Each tensor is used several times, by ops that return g itself and by ops that return a new array.

    Bit for bit: the parts are added in one order.  Nothing that somebody else reads is written to: neither the
    cotangent nor the gradient of another leaf.
    """
    x, y = host_normal(seed, (3, 4), (3, 4), dtype=dtype)
    g = host_normal(seed + 1, (3, 12), dtype=dtype)[0]
    with on(place):
        runs = []
        for form in (plain, nullcontext):
            leaves, cotangent = [Tensor(asarray(a), requires_grad=True) for a in (x, y)], asarray(g)
            with form():
                product = leaves[0] * leaves[1]
                total = product + leaves[0]  # both get g
                z = ops.concat(product, total, leaves[0]) - ops.concat(total + total, leaves[1] - product, product)
                z.backward(cotangent)
            runs.append([to_numpy(a) for a in (*(leaf.grad for leaf in leaves), cotangent)])
    for a, b in zip(*runs):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(runs[1][2], g)


def test_the_sum_of_gradients_is_looked_up(monkeypatch):
    """The engine adds by the form of the table, which learns what is new: x + x hands on g, 2 x a new array."""
    calls = []
    monkeypatch.setitem(FAST, "sum_of", lambda total, dx, new: calls.append(new) or total + dx)
    x = Tensor(asarray(np.ones(3)), requires_grad=True)
    (x + x).backward(asarray(np.ones(3)))
    (x * 2.0 + x * 3.0).backward(asarray(np.ones(3)))
    assert calls == [False, True]
    np.testing.assert_array_equal(to_numpy(x.grad), np.full(3, 7.0))


def test_every_form_has_a_row():
    """A faster form without a law that holds it to the plain one fails here."""
    assert ROWS.keys() | ALSO == EVERYWHERE.keys() | ON_A_GPU.keys()
    assert not ROWS.keys() & ALSO and not EVERYWHERE.keys() & ON_A_GPU.keys()


@each_dtype
@each_place
@pytest.mark.parametrize("name", sorted(ROWS.keys() & EVERYWHERE.keys()))
@given(data=st.data(), seed=SEEDS)
def test_a_faster_form_is_the_plain_form(name, place, dtype, data, seed):
    """Values and the gradients of every input and parameter, from one random cotangent."""
    hold_to_the_plain_form(name, place, dtype, data, seed)


@each_dtype
@on_device
@pytest.mark.parametrize("name", sorted(ROWS.keys() & ON_A_GPU.keys()))
@given(data=st.data(), seed=SEEDS)
def test_a_faster_form_of_a_gpu_is_the_plain_form(name, place, dtype, data, seed):
    """The same for forms that a GPU alone has."""
    hold_to_the_plain_form(name, place, dtype, data, seed)


def hold_to_the_plain_form(name, place, dtype, data, seed):
    with on(place):
        make, inputs = data.draw(ROWS[name])

        def compute():
            f, parameters = make(dtype)
            leaves = [Tensor(asarray(a, dtype), requires_grad=True) for a in inputs]
            y = f(*leaves)
            y.backward(asarray(host_normal(seed, y.shape)[0], dtype))
            return [to_numpy(a) for a in (y, *(leaf.grad for leaf in (*leaves, *parameters)))]

        agree(*each_form([name], compute), BOUNDS[dtype])


# Forms that write to arrays.

ROUNDINGS = {"float32": 1e-5, "float64": 1e-13}  # some tens of roundings, and a sum of 40,000 squares
SHAPES = st.lists(st.sampled_from([(), (1,), (7,), (2, 3), (3, 2, 4), (PIECE + 77,)]), min_size=1, max_size=3)
SIDED = [(16, 16), (17, 33), (40, 16), (16, 61), (100, 19), (3, 2, 4, 20), (2, 40, 21)]  # Muon's, and then Adam's:
MATRICES = st.lists(st.sampled_from([*SIDED, (), (30,), (15, 40), (40, 15), (3, 3, 1, 40)]), min_size=2, max_size=3)
MISSING = st.sets(st.integers(0, 2))  # which parameters have no gradient
STEPS = 3


def parameters_of(seed, shapes, dtype, flat):
    """Random parameters, and what an optimizer takes: the same list, or one buffer, which the plain forms never see."""
    tensors = [Tensor(asarray(a), requires_grad=True) for a in host_normal(seed, *shapes, dtype=dtype)]
    return tensors, [Flat(tensors)] if flat and FAST else tensors


def in_a_row(arrays):
    return np.concatenate([to_numpy(a).reshape(-1) for a in arrays])


def new_gradients(seed, tensors, missing):
    """As backward leaves them: new arrays that lie in memory in any order, and None for those that have none."""
    for i, p in enumerate(tensors):
        (g,) = host_normal((seed + i) % 2**32, p.shape[::-1], dtype=p.dtype)
        p.grad = None if i in missing else asarray(g).transpose()


@each_dtype
@each_place
@pytest.mark.parametrize("flat", [False, True], ids=["tensors", "flat"])
@given(SEEDS, SHAPES, st.lists(MISSING, min_size=STEPS, max_size=STEPS), st.sampled_from([1e-8, 0.1]))
def test_adam_and_the_average(place, dtype, flat, seed, shapes, missing, eps):
    """Weights, both moments and the average after several steps, in the arrays that they began in."""

    def compute():
        tensors, parameters = parameters_of(seed, shapes, dtype, flat)
        adam, ema = Adam(parameters, betas=(0.8, 0.95), eps=eps), EMA(parameters, 0.9)
        kinds = [[p.data for p in parameters], adam.m, adam.v, ema.average]
        written = [id(a) for arrays in kinds for a in arrays]
        for step in range(STEPS):
            new_gradients(seed + 10 * step, tensors, missing[step])
            adam.step(0.1 / (1 + step))
            ema.update()
        kinds = [[p.data for p in parameters], adam.m, adam.v, ema.average]
        assert written == [id(a) for arrays in kinds for a in arrays]
        return [in_a_row(arrays) for arrays in kinds]

    with on(place):
        agree(*each_form(["adam_update", "ema_update"], compute), ROUNDINGS[dtype])


@each_dtype
@on_device
@pytest.mark.parametrize("flat", [False, True], ids=["tensors", "flat"])
@given(SEEDS, MATRICES, st.lists(MISSING, min_size=STEPS, max_size=STEPS), st.integers(0, 3))
def test_muon(place, dtype, flat, seed, shapes, missing, frozen):
    """Weights and both moments after several steps: of matrices, of filters with four axes, and of what follows Adam.

    A frozen parameter keeps its bits.
    """

    def compute():
        tensors, parameters = parameters_of(seed, shapes, dtype, flat)
        optimizer = Muon(parameters, betas=(0.8, 0.95))
        before = [to_numpy(p.data).copy() for p in tensors]
        for p in tensors[frozen : frozen + 1]:
            p.requires_grad = False
        for step in range(STEPS):
            new_gradients(seed + 10 * step, tensors, missing[step])
            optimizer.step(0.3 / (1 + step))
        for p, start in zip(tensors, before):
            assert p.requires_grad or (to_numpy(p.data) == start).all()
        return [in_a_row(arrays) for arrays in ([p.data for p in parameters], optimizer.m, optimizer.v)]

    with on(place):
        # Each of 5 rounds multiplies what is rounded by up to 3.4: 480 times some roundings of 6e-8, or of 1e-16.
        agree(*each_form(["muon_update"], compute), {"float32": 1e-3, "float64": 1e-11}[dtype])


@each_dtype
@on_device
@pytest.mark.parametrize("flat", [False, True], ids=["tensors", "flat"])
@given(SEEDS, SHAPES, MISSING, st.sampled_from([1e-3, 1.0, 1e6]))
def test_clipping(place, dtype, flat, seed, shapes, missing, max_norm):
    """The norm, and the gradients after it: scaled, or as they were where the norm is small."""

    def compute():
        tensors, parameters = parameters_of(seed, shapes, dtype, flat)
        new_gradients(seed, tensors, missing)
        norm = clip_grad_norm(parameters, max_norm)
        return [np.array(float(norm)), in_a_row([xp.zeros_like(p.data) if p.grad is None else p.grad for p in tensors])]

    with on(place):
        agree(*each_form(["clip_grad_norm"], compute), ROUNDINGS[dtype], alone=True)


@on_device
@pytest.mark.parametrize("flat", [False, True], ids=["tensors", "flat"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_norm_that_is_not_finite_scales_nothing(place, flat, bad):
    """It is returned, and every gradient keeps its bits."""

    def compute():
        tensors, parameters = parameters_of(0, [(3,), (2, 2)], "float32", flat)
        new_gradients(1, tensors, ())
        tensors[0].grad[1] = bad
        norm = float(clip_grad_norm(parameters, 1e-3))
        return [np.array(norm), in_a_row([p.grad for p in tensors])]

    with on(place):
        expected, found = each_form(["clip_grad_norm"], compute)
    assert not math.isfinite(expected[0])
    for a, b in zip(expected, found, strict=True):
        np.testing.assert_array_equal(a, b)


# Rows of metrics, which are read late.

LENGTHS = [1, PERIOD - 1, PERIOD, 2 * PERIOD + 7]


def notes(num_steps, T, bad=None, kind=None, norms="device"):
    """(rows, message of the TrainingError that came, or None) of steps with random losses and norms.

    bad, kind: the step at which the loss or the norm is nan or infinite.  norms: "device", or "host" as numbers.
    """
    rng = default_rng("notes")
    state, error = Training(Linear(2, 2, rng=rng), LoopConfig(num_steps), draw=None, T=T), None
    for step in range(num_steps):
        losses, norm = rng.standard_normal(6).astype("float32") ** 2, np.float32(rng.random())
        if step == bad and kind == "loss":
            losses[3] = np.nan
        if step == bad and kind == "norm":
            norm = np.float32(np.inf)
        norm = asarray(np.array(norm)) if norms == "device" else float(norm)
        try:
            state.note(asarray(losses), norm, 0.1 * step, {"t": rng.integers(1, 10, 6)})
        except TrainingError as raised:
            error = raised
            break
    for _ in range(2):  # not at the first call only
        try:
            state.metrics()
        except TrainingError as raised:
            error = raised
    return state.rows, error and str(error)


@on_device
@pytest.mark.parametrize("norms", ["device", "host"])
@pytest.mark.parametrize("T", [None, 9])
@pytest.mark.parametrize("num_steps", LENGTHS)
def test_rows_of_metrics(place, num_steps, T, norms):
    """Bit for bit, in order, for runs shorter and longer than a period; of clipping that gives either kind of norm."""

    def compute():
        return notes(num_steps, T, norms=norms)

    with on(place):
        (expected, _), (found, error) = each_form(["Training.note", "Training.metrics"], compute)
    assert error is None and len(found) == num_steps
    np.testing.assert_array_equal(np.array(found), np.array(expected))


@on_device
@pytest.mark.parametrize("kind", ["loss", "norm"])
@pytest.mark.parametrize(
    "num_steps, bad", [(1, 0), (9, 4), (PERIOD, PERIOD - 1), (PERIOD + 9, PERIOD), (PERIOD + 9, 3)]
)
def test_a_nan_is_raised_for_its_own_step(place, num_steps, bad, kind):
    """However late: the message names the step, and the rows before it are there."""
    with on(place):
        expected, found = each_form(["Training.note", "Training.metrics"], lambda: notes(num_steps, 9, bad, kind))
    assert found[1] == expected[1] and f"step {bad + 1}:" in found[1]
    assert len(found[0]) == bad
    np.testing.assert_array_equal(np.array(found[0]), np.array(expected[0]))


@each_place
@pytest.mark.parametrize("flat", [False, True], ids=["tensors", "flat"])
@pytest.mark.parametrize("num_steps", [3, PERIOD + 7])
def test_a_whole_run(place, num_steps, flat):
    """All forms of a step together, from a list of parameters and from one buffer: metrics, weights and average."""

    def losses_of(model, batch):
        error = ops.silu(model(Tensor(asarray(batch["x"])))) - asarray(batch["y"])
        return ops.mean(error * error, axis=-1)

    def draw(config, step):
        x, y = host_normal(step, (8, 3), (8, 2), dtype="float32")
        return {"x": x, "y": y, "t": np.arange(1, 9)}

    def compute():
        model = Linear(3, 2, rng=default_rng(0))
        config, parameters = (
            LoopConfig(num_steps, warmup=2, clip_norm=0.5),
            [Flat(model.parameters())] if flat and FAST else None,
        )
        state = Training(model, config, draw, losses_of, T=8, parameters=parameters)
        assert [each.step for each in train(state)] == list(range(1, num_steps + 1))
        state.metrics()
        return [np.array(state.rows), in_a_row(p.data for p in model.parameters()), in_a_row(state.ema.average)]

    with on(place):
        forms = {"linear", "silu", "adam_update", "ema_update"}
        forms |= ALSO - {"orthogonalize", "muon_update"} if place == "device" else set()
        agree(*each_form(forms, compute), 1e-4)  # some roundings of 6e-8 a step, and Adam's 1 / sqrt(v)
