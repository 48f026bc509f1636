"""Our side of a benchmark: what a step contains, bit for bit, and that each job is the op that its name says."""

import contextlib

import numpy as np
import pytest

from tinydiff import ops
from tinydiff.app.generate import build_unet
from tinydiff.autograd import Tensor, no_grad
from tinydiff.backend import FAST, backend_name, default_rng, precision, xp
from tinydiff.optim import EMA, Adam, clip_grad_norm
from tinydiff.train import TrainConfig, Training, gradients_of, noise_prediction_losses, train

pytestmark = [
    pytest.mark.program,
    pytest.mark.skipif(backend_name() != "numpy", reason="it sets the backend to numpy"),
]

TINY = {"backend": "numpy", "batch_size": 3, "channels": 8, "cores": 1, "size": 8}


@pytest.fixture
def ours(module):
    return module("ours")


def run(stages):
    """The result of a job: each stage gets what the one before returned."""
    value = None
    for stage in stages:
        value = stage(value)
    return value


def weights(work):
    """Copies of all parameters."""
    return [p.data.copy() for p in work.workers.parameters]


def by_hand(batch, steps):
    """Parameters and their average after so many steps of one batch: gradient, clipping to 1, Adam, average."""
    model = build_unet({"base_channels": 8}, 0)
    parameters = model.parameters()
    adam, ema = Adam(parameters), EMA(parameters)
    for _ in range(steps):
        gradients_of(model, noise_prediction_losses, batch)
        clip_grad_norm(parameters, 1.0)
        adam.step()
        ema.update()
    return [p.data for p in parameters], ema.average


@pytest.mark.parametrize("plain", [False, True])
def test_a_training_step_is_gradient_clipping_adam_and_average(ours, monkeypatch, plain):
    """One stage, twice: the parameters and their average are those of the four parts by hand."""
    averages = []
    monkeypatch.setattr(ours, "EMA", lambda parameters: averages.append(EMA(parameters)) or averages[-1])
    with contextlib.closing(ours.Ours(**TINY, plain=plain)) as work:
        assert bool(FAST) is not plain and work.workers.num_workers == 1 and precision() == "float32"
        (step,) = work.train()
        step(None), step(None)
        flat, (average,) = np.concatenate([p.reshape(-1) for p in weights(work)]), averages
        expected, expected_average = by_hand(work.batch, 2)
        np.testing.assert_allclose(flat, np.concatenate([p.reshape(-1) for p in expected]), rtol=0, atol=2e-5)
        found = np.concatenate([a.reshape(-1) for a in average.average])
        np.testing.assert_allclose(found, np.concatenate([a.reshape(-1) for a in expected_average]), atol=2e-5)
        assert average.num_updates == 2


def test_an_update_clips_the_norm_to_1_before_adam_and_averages_after(ours, monkeypatch):
    """The order of the calls, and that the update computes no gradient of its own."""
    log = []
    plain = {name: getattr(ours, name) for name in ("clip_grad_norm", "Adam", "EMA")}

    def noting(name):
        def make(parameters):
            made = plain[name](parameters)
            method = {"Adam": "step", "EMA": "update"}[name]
            call = getattr(made, method)
            setattr(made, method, lambda: log.append(name) or call())
            return made

        return make

    monkeypatch.setattr(ours, "clip_grad_norm", lambda p, m: log.append(("clip", len(p), m)))
    monkeypatch.setattr(ours, "Adam", noting("Adam"))
    monkeypatch.setattr(ours, "EMA", noting("EMA"))
    monkeypatch.setattr(ours, "_wait", lambda array: log.append("wait"))
    with contextlib.closing(ours.Ours(**TINY)) as work:
        gradients = work.workers.gradients
        monkeypatch.setattr(work.workers, "gradients", lambda *a: log.append(a) or gradients(*a))
        work.update(None)
        clip = ("clip", len(work.workers.parameters), 1.0)
        assert log == [clip, "Adam", "EMA", "wait"]
        log.clear()
        run(work.train())
        assert log == [(noise_prediction_losses, work.batch), clip, "Adam", "EMA", "wait"]


def test_the_batch_is_whole_and_cut_over_the_workers(ours):
    """5 images on 2 workers: 3 and 2.  Sampling sends each worker its part; a step has all.  Times are in 1..1000."""
    with contextlib.closing(ours.Ours(**TINY | {"batch_size": 5, "cores": 2})) as work:
        x, t = work.batch["x_t"], work.batch["t"]
        assert x.shape == work.batch["target"].shape == (5, 8, 8, 1) and x.dtype == np.float32
        assert not np.array_equal(x, work.batch["target"]) and work.workers.num_workers == 2
        assert t.shape == (5,) and ((t >= 1) & (t <= 1000)).all()
        assert [len(part) for part, _ in work.parts] == [3, 2]
        np.testing.assert_array_equal(np.concatenate([part for part, _ in work.parts]), x)
        np.testing.assert_array_equal(np.concatenate([times for _, times in work.parts]), t)
        assert run(work.forward()) == [(3, 8, 8, 1), (2, 8, 8, 1)]
    with contextlib.closing(ours.Ours(**TINY | {"cores": 2, "plain": True})) as work:
        assert work.workers.num_workers == 1 and [len(part) for part, _ in work.parts] == [3]
    with contextlib.closing(ours.Ours(backend="numpy", batch_size=1, channels=8, cores=1)) as work:
        assert work.batch["x_t"].shape == (1, 28, 28, 1)


def test_the_default_network_of_a_shape_computes_images_of_this_shape(ours):
    """64 x 64 pixels in colour: four levels, attention in two of them.  The batch, its parts and the network's own
    clone for the optimizer have three channels, and so has what the workers return."""
    network = ours.levels((64, 64, 3), 8)
    assert network == {"in_channels": 3, "channel_mults": [1, 2, 2, 2], "attention_levels": [2, 3]}
    expected = build_unet({"base_channels": 8, **network}, 0)
    with contextlib.closing(ours.Ours(**TINY, network=network)) as work:
        assert work.workers.model.config == work.build().config == expected.config
        assert work.batch["x_t"].shape == work.batch["target"].shape == (3, 8, 8, 3)
        assert run(work.forward()) == [(3, 8, 8, 3)]
    assert ours.levels((28, 28, 1), 8) == {"in_channels": 1, "channel_mults": [1, 2, 2], "attention_levels": []}


def test_sampling_computes_the_network_without_a_graph(ours, monkeypatch):
    """The output of the network for its part of the batch, under no_grad, fetched from the device; on a device it
    takes the whole batch and waits."""
    seen, waited = [], []
    with contextlib.closing(ours.OnDevice(**TINY)) as work:
        model = work.workers.model

        def noted(x_t, t):
            seen.append((x_t, t, (model.parameters()[0] * 1.0).requires_grad))
            return Tensor(7 * x_t)

        monkeypatch.setattr(type(model), "__call__", lambda self, *a: noted(*a))
        monkeypatch.setattr(ours, "_wait", waited.append)
        assert ours._forward(model, work.parts[0]) == (3, 8, 8, 1)
        run(work.forward())
        (part, _, first), (batch, t, second) = seen
        assert part is work.parts[0][0] and batch is work.batch["x_t"] and t is work.batch["t"]
        assert not first and not second
        np.testing.assert_array_equal(waited[0], 7 * batch)
        assert work.peak_mb() is None


def test_the_memory_of_a_device_is_its_pools_in_mib(ours, monkeypatch):
    """3 MiB that the pool has taken are 3.0."""
    pool = type("Pool", (), {"total_bytes": lambda self: 3 * 2**20, "used_bytes": lambda self: 1})()
    monkeypatch.setitem(vars(xp), "get_default_memory_pool", lambda: pool)
    monkeypatch.setattr(ours, "backend_name", lambda: "cupy")
    assert ours.OnDevice.peak_mb(None) == 3.0
    graph = object.__new__(ours.Graph)  # a recorded graph has a pool of its own
    graph._pool = pool
    assert ours.OnDevice.peak_mb(None) == 6.0


def test_on_a_device_a_step_is_a_step_of_the_main_loop(ours):
    """Two calls are the first two steps of train() on this batch, bit for bit: the rate that warms up and the average
    are a part of a step.  The last step's average is waited for."""
    waited = []
    with contextlib.closing(ours.OnDevice(**TINY)) as work, pytest.MonkeyPatch.context() as patch:
        patch.setattr(ours, "_wait", waited.append)
        (stage,) = work.train()
        stage(None), stage(None)
        found = weights(work)
        batch = work.batch
    with contextlib.closing(ours.OnDevice(**TINY)) as work:
        state = Training(work.workers.model, TrainConfig(num_steps=10**9, minutes=None), lambda *_: batch,
                         gradients=work.workers.gradients, parameters=work.workers.parameters)  # fmt: skip
        loop = train(state)
        next(loop), next(loop)
        assert all((a == b).all() for a, b in zip(found, weights(work)))
        assert len(waited) == 2 and (waited[-1] == state.ema.average[-1]).all()


@pytest.fixture
def work(ours):
    with contextlib.closing(ours.Ours(**TINY)) as work:
        yield work


@pytest.fixture
def called(ours, monkeypatch):
    """The calls of an op of `ops`, with the arrays and the gradients that came back for each."""
    calls = []

    def note(name):
        f = getattr(ops, name)

        def call(*tensors, **static):
            y = f(*tensors, **static)
            calls.append((name, [t.data for t in tensors], static, tensors, y))
            return y

        monkeypatch.setattr(ops, name, call)

    note("conv2d"), note("attention")
    return calls


@pytest.mark.parametrize("stride, input_gradient", [(1, True), (2, True), (1, False)])
def test_a_convolution_is_timed_forward_and_backward(work, called, stride, input_gradient):
    """3 x 3 filters with padding 1 on n images; the gradients of w and b, and of x where it is asked for."""
    forward, backward = work.conv(2, 6, 8, 16, stride, input_gradient)
    called.clear()
    y = forward(None)
    ((_, (x, w, b), static, tensors, _),) = called
    assert (x.shape, w.shape, b.shape) == ((2, 6, 6, 8), (3, 3, 8, 16), (16,))
    assert static == {"stride": stride, "padding": 1} and y.shape == (2, 6 // stride, 6 // stride, 16)
    assert len({float(a.std()) > 0.1 for a in (x, w, b)}) == 1 and tensors[0].requires_grad is input_gradient
    backward(y)
    assert tensors[1].grad.shape == w.shape and tensors[2].grad.shape == b.shape and tensors[0].grad is None
    backward(forward(None))  # again, as a contestant repeats it


def test_attention_is_timed_with_gradients_of_all_three(work, called):
    """q, k and v (n, heads, pixels, features), each another array."""
    forward, backward = work.attention(2, 4, 9, 8)
    called.clear()
    y = forward(None)
    ((_, arrays, static, tensors, _),) = called
    assert [a.shape for a in arrays] == [(2, 4, 9, 8)] * 3 and static == {} and y.shape == (2, 4, 9, 8)
    assert not np.array_equal(arrays[0], arrays[1]) and not np.array_equal(arrays[1], arrays[2])
    assert all(t.requires_grad for t in tensors)
    backward(y)


def test_norm_and_silu_are_timed_together(work, ours, monkeypatch):
    """silu of the group norm of x with these groups and with a gamma and a beta that are not 1 and 0."""
    forward, backward = work.group_norm_silu(2, 4, 8, 4)
    layers = []
    plain = ours.NormSilu
    monkeypatch.setattr(ours, "NormSilu", lambda *a: layers.append(plain(*a)) or layers[-1])
    forward, backward = work.group_norm_silu(2, 4, 8, 4)
    (layer,) = layers
    assert layer.gamma.shape == layer.beta.shape == (8,) and layer.num_groups == 4
    assert layer.gamma.data.std() > 0.1 and layer.beta.data.std() > 0.1
    y = forward(None)
    assert y.shape == (2, 4, 4, 8)
    backward(y)
    assert layer.gamma.grad is not None and layer.beta.grad is not None


def test_an_input_inside_a_network_passes_values_on_and_drops_its_gradient(ours):
    """The gradient of the op's input is computed, but nothing keeps it: no copy that a network would not make."""
    array = default_rng(0).standard_normal((2, 3), dtype="float32")
    x = ours._inner(array)
    assert x.data is array and x.requires_grad
    w = Tensor(np.float32([2.0]), requires_grad=True)
    (x * w).backward(np.ones((2, 3), "float32"))
    np.testing.assert_allclose(w.grad, [array.sum()], rtol=1e-6)
    assert x.grad is None


def test_forward_and_backward_wait_for_their_results(ours, monkeypatch, work):
    """Each stage waits; the gradient goes in as it stands, a normal one of the output's shape."""
    waited = []
    monkeypatch.setattr(ours, "_wait", lambda array: waited.append(array.shape))
    forward, backward = work._forward_and_backward(lambda: Tensor(np.ones((2, 3), "float32"), requires_grad=True) * 2.0)
    waited.clear()
    y = forward(None)
    assert waited == [(2, 3)]
    backward(y)
    assert waited == [(2, 3)] * 2


def test_the_optimizer_is_clipping_adam_and_average_of_every_parameter(ours, work, monkeypatch):
    """Every call clips, because the limit falls by a thousandth each time; gradients are normal numbers, set once."""
    limits, norms = [], []

    def clip(parameters, max_norm):
        limits.append(max_norm)
        norms.append(float(np.sqrt(sum((p.grad**2).sum() for p in parameters))))
        return clip_grad_norm(parameters, max_norm)

    made = []
    monkeypatch.setattr(ours, "clip_grad_norm", clip)
    monkeypatch.setattr(ours, "EMA", lambda parameters: made.append(EMA(parameters)) or made[-1])
    ranks, asked = ours.one_process(), []
    start = ranks.workers
    monkeypatch.setattr(ranks, "workers", lambda build, num: asked.append(num) or start(build, num))
    (call,) = work.optimizer()
    assert asked == [1]  # one core: a second process would only wait
    for _ in range(3):
        call(None)
    assert limits == pytest.approx([1.0, 0.999, 0.999**2], rel=1e-12)
    assert norms[0] > 50 and norms[1:] == pytest.approx(limits[:2], rel=1e-4) and all(map(float.__gt__, norms, limits))
    (ema,) = made
    num = build_unet({"base_channels": 8}, 0).num_parameters()
    assert ema.num_updates == 3 and sum(a.size for a in ema.average) == num


def test_waiting_fetches_one_number(ours, monkeypatch):
    """A number of the result, not the whole array."""
    fetched = []
    monkeypatch.setattr(ours, "to_numpy", lambda a: fetched.append(a.shape))
    ours._wait(np.zeros((4, 5)))
    assert fetched == [(1,)]


def test_closing_ends_the_workers(ours, monkeypatch):
    """A contestant closes its object at the end, and that ends the worker processes."""
    with no_grad():
        work = ours.Ours(**TINY)
    closed = []
    monkeypatch.setattr(work, "workers", type("Workers", (), {"close": lambda self: closed.append(1)})())
    work.close()
    assert closed == [1]
