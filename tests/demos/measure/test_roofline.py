"""A step's operations and bytes are counted exactly: they follow from the shapes of the network's layers."""

import contextlib
import statistics
from types import SimpleNamespace

import numpy as np
import pytest

from tinydiff.app.generate import build_unet
from tinydiff.backend import backend_name, xp
from tinydiff.fast import winograd

pytestmark = [
    pytest.mark.program,
    pytest.mark.skipif(backend_name() != "numpy", reason="it sets the backend to numpy"),
]

TINY = {"batch_size": 2, "channels": 16, "size": 8, "cores": 1}


@pytest.fixture
def roofline(module):
    return module("roofline")


@pytest.mark.parametrize(
    ("x", "y", "multiplications"),
    [
        ((7, 8), (8, 9), 7 * 8 * 9),
        ((3, 7, 8), (3, 8, 9), 3 * 7 * 8 * 9),
        ((3, 7, 8), (8, 9), 3 * 7 * 8 * 9),
        ((7, 8), (3, 8, 9), 3 * 7 * 8 * 9),
        ((4, 1, 7, 8), (5, 8, 9), 20 * 7 * 8 * 9),
        ((0, 7, 8), (8, 9), 0),
    ],
)
def test_a_product_is_2_m_k_n_operations_for_each_matrix_of_the_broadcast_batch(roofline, x, y, multiplications):
    """Operations and bytes of one product, of two they add up, into `out` too; the result is matmul's own."""
    x, y = xp.ones(x, "float32"), xp.ones(y, "float32")
    with roofline.counting() as work:
        z = xp.matmul(x, y)
        xp.matmul(x, y, out=xp.empty_like(z))
    np.testing.assert_array_equal(z, np.matmul(x, y))
    assert work["product"].operations == 2 * 2 * multiplications
    assert work["product"].bytes == 2 * 4 * (x.size + y.size + z.size)
    assert work["thin"].operations == work["tanh"].operations == 0


def test_each_kind_of_work_is_counted_apart(roofline):
    """A side of 6, wherever it is, makes a product thin; tanh counts its numbers; behind the block nothing counts."""
    a, b, c = (xp.ones(shape, "float32") for shape in ((6, 7), (7, 8), (8, 6)))
    with roofline.counting() as work:
        xp.matmul(a, b)  # M = 6
        xp.matmul(b, c)  # N = 6
        xp.matmul(c, a)  # K = 6
        xp.tanh(b)
    assert work["thin"].operations == 2 * 3 * 6 * 7 * 8 and work["product"].operations == 0
    assert work["tanh"].operations == 56 and work["tanh"].bytes == 2 * 4 * 56
    assert work["thin"].seconds > 0 and work["tanh"].seconds > 0
    assert xp.matmul is np.matmul and xp.dot is np.dot and xp.tanh is np.tanh


def test_direct_operations_follow_from_the_layers_shapes(roofline):
    """Forward, input gradient and filter gradient are a product each, with 2 operations for a weight and a pixel.

    Winograd's way does fewer in all.  The state is five numbers a parameter.
    """
    n, size, channels = 8, 12, 16  # no side that makes a product thin
    step = roofline.measure_step(TINY | {"batch_size": n, "size": size, "channels": channels}, rounds=1)
    model, pixels = build_unet({"base_channels": channels}, 0), n * size * size
    expected = 0

    def add(part, rows, products=3):
        nonlocal expected
        for name, p in part.named_parameters():
            if name.endswith("gamma"):  # means over groups, as products with a C x C matrix: two each way
                expected += 2 * 4 * n * p.size**2
            elif name.endswith("w"):
                expected += 2 * products * p.size * (n if name == "time.w" else rows)

    add(model.conv_in, pixels, products=2)  # nobody asks for the gradient of the image, nor of the sinusoids
    add(model.time1, n, products=2)
    add(model.time2, n)
    for part in (*model.down, *model.middle, *model.up):
        pixels = {"Downsample": pixels // 4, "Upsample": pixels * 4}.get(type(part).__name__, pixels)
        add(part, pixels)  # those of its output
    add(model.norm_out, pixels)
    add(model.conv_out, pixels)
    expected += 2 * 6 * n * (size // 4) ** 4 * 2 * channels  # attention: two products forward, four backward
    assert step["direct"] == expected
    assert 0 < step["work"]["product"].operations < step["direct"]
    assert step["state"] == 5 * 4 * model.num_parameters()


def test_kept_bytes_grow_by_the_maps_of_each_image(roofline):
    """What a network keeps is a fixed part, its graph, and the same for each image: at least the skips."""
    kept = []
    for n in (8, 16, 24):
        step = roofline.Step(backend="numpy", **TINY | {"batch_size": n})
        step.kept_bytes()  # what is made once and kept for good
        kept.append(step.kept_bytes())
    skips = (
        8 * 8 * (1 + 1) + 4 * 4 * (1 + 2) + 2 * 2 * (2 + 2)
    )  # pixels and channels, as multiples of the first level's
    assert kept[1] - kept[0] > 8 * 4 * TINY["channels"] * skips
    assert kept[2] - kept[1] == pytest.approx(kept[1] - kept[0], rel=0.01)  # a Python object more or less


class Machine:
    """Stands in for NumPy on a machine of known speed: 7 GFLOP/s, copies at 3 GB/s, small ones at 11, 2 ns a tanh."""

    def __init__(self, clock, large):
        self.clock, self.large = clock, large

    def matmul(self, x, y, out=None):
        self.clock.spend(2 * x.size * y.shape[-1] / 7e9)
        return np.matmul(x, y, out=out)

    def copyto(self, to, source):
        self.clock.spend((to.nbytes + source.nbytes) / (3e9 if to.nbytes == self.large else 11e9))
        np.copyto(to, source)

    def tanh(self, x, out):
        self.clock.spend(2e-9 * x.size)
        return np.tanh(x, out=out)

    def __getattr__(self, name):
        return getattr(np, name)


def test_the_rates_of_a_known_machine_are_found(roofline, clock, monkeypatch):
    """A copy reads and writes: 2 bytes for each.  A product has 2 operations a multiplication, also in a batch."""
    monkeypatch.setattr(roofline, "MEMORY", 1 << 19)
    monkeypatch.setattr(roofline, "SAMPLE_SECONDS", 0.0)
    monkeypatch.setattr(roofline, "mean_seconds", lambda stages, repeats: mean(clock, stages, repeats))
    monkeypatch.setattr(roofline, "np", Machine(clock, 1 << 19))
    rates = roofline.measure_rates(3)
    assert rates == pytest.approx({"product": 7.0, "memory": 3.0, "cache": 11.0, "tanh": 2.0}, rel=1e-6)
    heads, *lines = roofline.rate_lines(rates)
    assert heads == "the machine, one core" and list(rates) == list(roofline.RATES)
    assert [line.split()[:2] for line in lines] == [
        ["7.00", "GFLOP/s,"],
        ["3.00", "GB/s,"],
        ["11.00", "GB/s,"],
        ["2.00", "ns"],
    ]
    words = ("matrix products (36, 84, 64) @ (36, 64, 64)", "in memory", "in cache", "a number, tanh")
    assert all(line.endswith(word) for line, word in zip(lines, words))


def mean(clock, stages, repeats):
    """The seconds of a stage by the stand-in of the clock."""
    began = clock.now
    for _ in range(repeats):
        for stage in stages:
            stage(None)
    return [(clock.now - began) / repeats]


def test_a_copy_in_memory_fits_into_no_cache_and_a_copy_in_cache_does(roofline):
    """128 MiB an array, and 256 KiB."""
    assert roofline.MEMORY == 128 * 2**20 and roofline.CACHE == 256 * 2**10


def test_the_median_is_taken_over_rounds_and_a_short_call_is_repeated(roofline, module, clock, monkeypatch):
    """A call of 10 ms takes part three times in a round of 0.03 s: the median over rounds of the mean of the three.

    The faster of the two warm-up calls decides how often.
    """
    monkeypatch.setattr(module("contestant"), "time", clock)
    warm_up, rounds = [0.5, 0.01], [[1.0, 2.0, 6.0], [0.0, 0.0, 3.0], [5.0, 5.0, 8.0]]
    costs = iter([*warm_up, *(s for each in rounds for s in each)])
    assert roofline.median_seconds(lambda _: clock.spend(next(costs)), 3) == pytest.approx(3.0)
    assert list(costs) == []
    costs = iter([0.5, 0.5, 7.0])
    assert roofline.median_seconds(lambda _: clock.spend(next(costs)), 1) == pytest.approx(7.0)  # at least once


def test_a_step_is_two_stages_and_the_second_is_the_update(roofline, clock, module, monkeypatch):
    """Rounds of known times: the median of the whole, that of the update, and the median of each kind of work.

    The warm-up counts nowhere.  Winograd's way is off in the count of the direct operations, and there only.
    """
    x, passes = xp.ones((8, 8), "float32"), []

    class Known:
        workers = SimpleNamespace(flat=SimpleNamespace(data=np.zeros(10, "float32")))

        def __init__(self, **config):
            self.config, self.closed = config, False
            made.append(self)

        def train(self):
            return [self.gradients, self.update]

        def gradients(self, _):
            direct = not winograd.pays()
            passes.append(direct)
            xp.matmul(x, x)
            xp.tanh(x)
            if direct:
                xp.matmul(x, x)
            clock.spend(next(forward))

        def update(self, _):
            clock.spend(next(updates))

        def kept_bytes(self):
            return 123

        def close(self):
            self.closed = True

    made = []
    monkeypatch.setattr(winograd, "pays", lambda *arguments: True)
    monkeypatch.setattr(roofline, "Step", Known)
    monkeypatch.setattr(module("contestant"), "time", clock)
    monkeypatch.setattr(roofline, "time", clock)
    # Warm-up, direct, and in each of three rounds a step and the pass that is counted.
    forward = iter([100.0, 100.0, 100.0, 1.0, 100.0, 2.0, 100.0, 9.0, 100.0])
    updates = iter([100.0, 100.0, 0.5, 0.25, 4.0])
    products = iter([0.0] * 4 + [0.0, 5.0, 0.0, 1.0, 0.0, 3.0])  # two in the direct pass
    matmul = np.matmul

    def slow(*arrays, **options):
        clock.spend(next(products))
        return matmul(*arrays, **options)

    monkeypatch.setattr(roofline.np, "matmul", slow)
    monkeypatch.setitem(vars(xp), "matmul", slow)
    step = roofline.measure_step({"batch_size": 6, "cores": 1}, 3)
    assert (step["images"], step["maps"], step["state"]) == (6, 123, 5 * 40)
    assert step["step"] == statistics.median([1.5, 2.25, 13.0]) and step["update"] == 0.5
    assert step["work"]["product"].seconds == 3.0 and step["work"]["product"].operations == 2 * 8**3
    assert step["work"]["tanh"].operations == 64
    assert step["direct"] == 2 * 2 * 8**3 and passes == [False, False, True, *[False] * 6]
    (one,) = made
    assert one.closed and one.config == {"backend": "numpy", "batch_size": 6, "cores": 1}
    assert list(forward) == list(updates) == list(products) == []


def test_time_within_counted_calls_goes_to_their_kind(roofline, clock, monkeypatch):
    """Each kind adds up the seconds of its own calls; what happens between them counts nowhere."""
    monkeypatch.setattr(roofline, "time", clock)
    for name, seconds in (("matmul", 2.0), ("dot", 3.0), ("tanh", 5.0)):
        f = getattr(np, name)
        monkeypatch.setattr(roofline.np, name, lambda *a, f=f, s=seconds, **o: clock.spend(s, f(*a, **o)))
    a, thin = xp.ones((8, 8), "float32"), xp.ones((8, 2), "float32")
    with roofline.counting() as work:
        xp.matmul(a, a)
        clock.spend(100.0)
        xp.dot(a, thin)
        xp.matmul(a, thin)
        xp.tanh(a)
        xp.dot(a, a)
    assert {kind: done.seconds for kind, done in work.items()} == {"product": 5.0, "thin": 5.0, "tanh": 5.0}
    assert work["product"].operations == 2 * 2 * 8**3 and work["thin"].operations == 2 * 2 * 8 * 8 * 2


def test_products_of_attention_are_counted_both_ways(roofline):
    """2 products forward and 4 backward, each of 2 n heads pixels^2 features; values and gradients stay the same."""
    from tinydiff import ops
    from tinydiff.autograd import Tensor

    rng = np.random.default_rng(0)
    arrays = rng.standard_normal((4, 2, 3, 7, 8), dtype="float32")

    def both():
        q, k, v = (Tensor(a, requires_grad=True) for a in arrays[:3])
        y = ops.attention(q, k, v)
        y.backward(arrays[3])
        return [y.data, q.grad, k.grad, v.grad]

    expected = both()
    with roofline.counting() as work:
        found = both()
    assert work["product"].operations == 6 * 2 * 2 * 3 * 7 * 7 * 8 and work["thin"].operations == 0
    for a, b in zip(found, expected):
        assert type(a) is np.ndarray
        np.testing.assert_array_equal(a, b)


def test_the_table_of_a_step_by_hand(roofline):
    """Rates of 10 GFLOP/s, 4 GB/s, 20 GB/s, 2 ns; a batch of 4 images.  Each cell of each row is known on paper."""
    work = {
        "product": roofline.Work(50_000_000, 20_000_000, 0.008),  # 5 ms for the operations, 1 ms for the bytes
        "thin": roofline.Work(10_000_000, 60_000_000, 0.004),  # 1 ms and 3 ms
        "tanh": roofline.Work(500_000, 4_000_000, 0.0015),  # 1 ms
    }
    step = {"images": 4, "direct": 120_000_000, "work": work, "maps": 8_000_000, "state": 6_000_000}
    step |= {"step": 0.02, "update": 0.0025}
    rates = {"product": 10.0, "memory": 4.0, "cache": 20.0, "tanh": 2.0}
    heads, *lines = roofline.step_lines(step, rates)
    assert heads[:36].strip() == "a step of 4 images, one core"
    columns = [heads[36:][9 * i : 9 * i + 9].strip() for i in range(7)]
    assert columns == ["GFLOP", "an image", "MB", "an image", "least ms", "took ms", "% of it"]
    assert {line[:36].strip(): line[36:].split() for line in lines} == {
        "direct convolution, not done": ["0.1", "0.030", "-", "-", "12.0", "-", "-"],
        "products over channels": ["0.1", "0.013", "20.0", "5.00", "5.0", "8.0", "40.0"],
        "transforms, sums over pixels": ["0.0", "0.003", "60.0", "15.00", "3.0", "4.0", "20.0"],
        "tanh": ["-", "-", "4.0", "1.00", "1.0", "1.5", "7.5"],
        "weights, gradient, moments, average": ["-", "-", "6.0", "1.50", "3.0", "2.5", "12.5"],
        "maps kept for the backward pass": ["-", "-", "8.0", "2.00", "4.0", "-", "-"],
        "all else: norm, SiLU, frames, Python": ["-", "-", "-", "-", "-", "4.0", "20.0"],
        "the step": ["0.1", "0.015", "-", "-", "16.0", "20.0", "100.0"],
    }
    assert {len(line) for line in lines} == {36 + 7 * 9}


def test_kept_is_what_exists_after_the_forward_pass_and_not_its_peak(roofline, monkeypatch):
    """A loss of 1 MB that needed 10 MB more on the way keeps 1 MB; it is the loss of the step's own batch."""
    seen = []

    def losses(model, batch):
        seen.append((model, batch))
        np.zeros(10_000_000, np.uint8)
        return np.zeros(1_000_000, np.uint8)

    with contextlib.closing(roofline.Step(backend="numpy", **TINY)) as step:
        monkeypatch.setattr(roofline, "noise_prediction_losses", losses)
        assert 1_000_000 <= step.kept_bytes() < 1_100_000
        assert seen == [(step.workers.model, step.batch)]
