"""PyTorch's side of a benchmark, by a stand-in for PyTorch that notes its calls: it does the same work as ours.

The network itself is compared with the installed PyTorch, if there is one: tests/test_parity.py.
"""

import sys
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest

from tinydiff.app.generate import build_unet
from tinydiff.backend import backend_name, to_numpy

pytestmark = [
    pytest.mark.program,
    pytest.mark.skipif(backend_name() != "numpy", reason="PyTorch on the CPU is compared with NumPy"),
]


class Noted:
    """Stands in for a tensor: its shape, its values, its layout, whether a gradient is asked of it."""

    def __init__(self, shape=(), values=None, layout=None):
        self.shape, self.values, self.layout, self.requires_grad = tuple(shape), values, layout, False

    def to(self, memory_format):
        self.layout = memory_format
        return self

    def requires_grad_(self):
        self.requires_grad = True

    def detach(self):
        return self

    def permute(self, *axes):
        return Noted(values=self.values.transpose(axes), layout=self.layout)

    def numpy(self):
        return self.values


@pytest.fixture
def torch(monkeypatch):
    """A stand-in for PyTorch.  Its random numbers are Noted, and its other functions note their calls."""
    torch = mock.MagicMock()
    torch.randn = lambda *shape: Noted(shape)
    torch.randn_like = lambda a: Noted(a.shape, "normal")
    torch.randint = lambda *arguments: ("times", *arguments)
    torch.tensor = lambda a: Noted(values=a)
    torch.nn.Module = type("Module", (), {})
    for name, module in {"torch": torch, "torch.nn": torch.nn, "torch.nn.functional": torch.nn.functional}.items():
        monkeypatch.setitem(sys.modules, name, module)
    torch.nn.utils.clip_grad_norm_.side_effect = lambda parameters, limit: torch.log("clip", list(parameters), limit)
    torch.optim.Adam.return_value.step.side_effect = lambda: torch.log("adam")
    torch._foreach_lerp_.side_effect = lambda a, b, weight: torch.log("lerp", a, b, weight)
    torch.nn.functional.mse_loss.side_effect = lambda y, target: torch.log("mse", y, target) or torch.loss
    torch.loss.backward.side_effect = lambda: torch.log("backward")
    torch.no_grad.return_value.__enter__.side_effect = lambda: torch.log("no_grad")
    torch.no_grad.return_value.__exit__.side_effect = lambda *_: torch.log("grad") and None
    torch.cuda.synchronize.side_effect = lambda: torch.log("wait")
    torch.calls, torch.built = [], []
    torch.log = lambda *call: torch.calls.append(call)
    return torch


class Parameter:
    """Stands in for a parameter; copies and the shared values have names."""

    def __init__(self, name):
        self.name, self.shape, self.grad = name, (2,), None

    def detach(self):
        return Value(f"values of {self.name}")


class Value(str):
    def clone(self):
        return f"copy of {self}"


@pytest.fixture
def peer(load_demo, torch, monkeypatch):
    """torch_peer.py with the stand-in, and with a network of two parameters that notes its calls."""
    peer = load_demo("measure/torch_peer")

    class Network:
        def __init__(self, channels, **network):
            self.arguments, self.layout, self.compiled = (channels, network), None, None
            torch.built.append(self)
            self.two = [Parameter("w"), Parameter("b")]

        def to(self, memory_format):
            self.layout = memory_format
            return self

        def parameters(self):
            return iter(self.two)

        def zero_grad(self):
            torch.log("zero_grad")

        def compile(self, *, mode):
            self.compiled = mode

        def __call__(self, x, t):
            torch.log("network", x, t)
            return "prediction"

    monkeypatch.setattr(peer, "Reference", Network)
    return peer


COLOUR = {"in_channels": 3, "channel_mults": [1, 2, 2, 2], "attention_levels": [2, 3]}
SETTINGS = {"channels": 8, "batch_size": 5, "layout": "channels_last", "size": 16, "network": COLOUR}
UPDATE = [
    ("adam",),
    ("lerp", ["copy of values of w", "copy of values of b"], ["values of w", "values of b"], 0.001),
]


def run(stages):
    value = None
    for stage in stages:
        value = stage(value)
    return value


def test_a_step_of_pytorch_has_the_parts_of_ours(peer, torch):
    """Old gradients go, then forward, loss, backward, clipping to 1, Adam with rate 1e-3, the average; in one stage.

    As many threads as cores.  Network and images have the layout; times are in 1..1000.
    """
    one = peer.Peer(**SETTINGS, cores=3)
    assert torch.set_num_threads.call_args_list == [mock.call(3)]
    assert one.model.layout is one.x.layout is one.eps.layout is torch.channels_last
    assert one.model.arguments == (8, COLOUR)
    assert one.x.shape == one.eps.shape == (5, 3, 16, 16) and one.x is not one.eps
    assert one.t == ("times", 1, 1001, (5,))
    ((parameters, rate), options) = torch.optim.Adam.call_args
    assert parameters == one.model.two and (rate, options) == (1e-3, {"fused": True, "capturable": False})
    stages = one.train()
    assert len(stages) == 1 and torch.calls == []
    run(stages)
    network = ("network", one.x, one.t)
    mse, clip = ("mse", "prediction", one.eps), ("clip", one.model.two, 1.0)
    assert torch.calls == [("zero_grad",), network, mse, ("backward",), clip, *UPDATE]
    one.close()


def test_sampling_of_pytorch_records_no_graph(peer, torch):
    """The network on the whole batch, under no_grad, and nothing else."""
    one = peer.Peer(**SETTINGS, cores=1)
    run(one.forward())
    assert torch.calls == [("no_grad",), ("network", one.x, one.t), ("grad",)]


def test_the_optimizer_of_pytorch_clips_each_time_and_updates_all(peer, torch):
    """A network of its own with gradients that are normal numbers; the limit falls by a thousandth each time."""
    one = peer.Peer(**SETTINGS, cores=1)
    (call,) = one.optimizer()
    (parameters, _), _ = torch.optim.Adam.call_args
    assert not set(parameters) & set(one.model.two)
    assert [(network.arguments, network.layout) for network in torch.built] == 2 * [((8, COLOUR), torch.channels_last)]
    assert all(p.grad.values == "normal" and p.grad.shape == p.shape for p in parameters)
    call(None), call(None)
    limits = [limit for name, *rest in torch.calls if name == "clip" for limit in rest[1:]]
    assert limits == [1.0, 0.999] and [name for name, *_ in torch.calls] == ["clip", "adam", "lerp"] * 2
    assert torch.calls[0][1] == parameters


@pytest.fixture
def timed(peer, torch, monkeypatch):
    """timed(stages) runs a job: what the function returned, and of what the gradients are asked."""

    def run_job(stages):
        forward, backward = stages
        y = forward(None)
        assert torch.autograd.grad.call_count == 0
        backward(y)
        ((result, leaves, g), options) = torch.autograd.grad.call_args
        assert result is y and g.values == "normal" and g.shape == y.shape and options == {}
        assert all(leaf.requires_grad for leaf in leaves)
        return y, leaves

    for name in ("conv2d", "silu", "group_norm", "scaled_dot_product_attention"):
        getattr(torch.nn.functional, name).side_effect = lambda *a, name=name, **o: SimpleNamespace(
            name=name, arguments=a, options=o, shape=(7,), detach=lambda: Noted((7,))
        )
    return run_job


@pytest.mark.parametrize("input_gradient", [True, False])
@pytest.mark.parametrize("stride", [1, 2])
def test_a_convolution_of_pytorch_is_ours(peer, torch, timed, stride, input_gradient):
    """Channels first in the layout, (O, C, 3, 3) filters, padding 1, and the gradient of x only where ours has it."""
    one = peer.Peer(**SETTINGS, cores=1)
    y, leaves = timed(one.conv(2, 6, 8, 16, stride, input_gradient))
    x, w, b, step = y.arguments
    assert (y.name, step, y.options) == ("conv2d", stride, {"padding": 1})
    assert (x.shape, w.shape, b.shape) == ((2, 8, 6, 6), (16, 8, 3, 3), (16,))
    assert x.layout is w.layout is torch.channels_last
    assert leaves == ([x, w, b] if input_gradient else [w, b]) and x.requires_grad is input_gradient


def test_norm_and_attention_of_pytorch_are_ours(peer, torch, timed):
    """SiLU of the group norm with its gamma and beta; attention over (n, heads, pixels, features); all gradients."""
    one = peer.Peer(**SETTINGS, cores=1)
    y, leaves = timed(one.group_norm_silu(2, 6, 8, 4))
    (inner,) = y.arguments
    x, groups, gamma, beta = inner.arguments
    assert (y.name, inner.name, groups) == ("silu", "group_norm", 4) and leaves == [x, gamma, beta]
    assert (x.shape, gamma.shape, beta.shape) == ((2, 8, 6, 6), (8,), (8,)) and x.layout is torch.channels_last
    torch.autograd.grad.reset_mock()
    y, leaves = timed(one.attention(2, 4, 9, 8))
    assert y.name == "scaled_dot_product_attention" and leaves == [*y.arguments] and y.options == {}
    assert [a.shape for a in leaves] == [(2, 4, 9, 8)] * 3 and len(set(map(id, leaves))) == 3


@pytest.mark.parametrize("device", ["cuda", "cpu"])
@pytest.mark.parametrize(("mode", "tf32"), [("default", True), ("reduce-overhead", False), (None, False)])
def test_on_a_device_every_job_ends_when_the_device_is_done(peer, torch, device, mode, tf32):
    """The last stage waits, on a GPU; TF32 is what was asked for, on both switches; one thread."""
    one = peer.OnDevice(**SETTINGS, device=device, mode=mode, graphed=False, tf32=tf32)
    assert torch.set_default_device.call_args_list == [mock.call(device)]
    assert torch.backends.cuda.matmul.allow_tf32 is torch.backends.cudnn.allow_tf32 is tf32
    assert one.model.compiled == mode and torch.set_num_threads.call_args_list == [mock.call(1)]
    waits = [("wait",)] if device == "cuda" else []
    for job, most in ((one.train, ("lerp", *UPDATE[1][1:])), (one.forward, ("grad",))):
        torch.calls.clear()
        stages = job()
        assert len(stages) == 2
        run(stages)
        assert torch.calls[-1 - len(waits) :] == [most, *waits] and torch.calls.count(("wait",)) == len(waits)
    torch.cuda.max_memory_reserved = lambda: 3 * 2**20
    assert one.peak_mb() == (3.0 if device == "cuda" else None)


def test_pytorch_always_works_on_the_cpu_and_elsewhere_if_it_finds_the_device(peer, torch):
    """ "cpu" needs nothing, "cuda" needs a GPU."""
    for there in (True, False):
        torch.cuda.is_available = lambda there=there: there
        assert peer.works("cpu") is True and peer.works("cuda") is there


def test_a_parameter_in_pytorchs_form(peer):
    """Filters (KH, KW, C, O) are (O, C, KH, KW), linear weights are transposed; a linear layer on maps is a 1x1 filter.

    w is a weight, b a bias; gamma and beta are weight and bias.
    """
    a = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    name, filters = peer.in_torch("down.0.conv1.w", a, {"down.0.conv1.weight": (5, 4, 2, 3)})
    assert name == "down.0.conv1.weight"
    for i, j, c, o in ((0, 0, 0, 0), (1, 2, 3, 4), (1, 0, 2, 3)):
        assert filters[o, c, i, j] == a[i, j, c, o]
    m = np.arange(6).reshape(2, 3)
    name, linear = peer.in_torch("time1.w", m, {"time1.weight": (3, 2)})
    np.testing.assert_array_equal(linear, m.T)
    np.testing.assert_array_equal(peer.in_torch("q.w", m, {"q.weight": (3, 2, 1, 1)})[1][..., 0, 0], m.T)
    names = {"b": "bias", "gamma": "weight", "beta": "bias"}
    for ours, theirs in names.items():
        name, same = peer.in_torch(f"norm1.{ours}", np.arange(3), {f"norm1.{theirs}": (3,)})
        assert name == f"norm1.{theirs}" and same.tolist() == [0, 1, 2]


class Twin:
    """Stands in for the reference in PyTorch: it computes with our network, and some of its answers are changed."""

    def __init__(self, model, change):
        self.model, self.change = model, change

    def to(self, memory_format):
        self.layout = memory_format
        return self

    def __call__(self, x, t):
        assert x.layout is self.layout and x.values.shape == (4, 3, 16, 16)
        for p in self.model.parameters():
            p.grad = None
        self.x, self.t = x.values, t.values
        self.y = self.model(x.values.transpose(0, 2, 3, 1), t.values)
        return Output(self)

    def named_parameters(self):
        for name, p in self.model.named_parameters():
            grad = to_numpy(p.grad).copy()
            self.change(name, grad)
            path, _, kind = name.rpartition(".")
            grad = grad.transpose(3, 2, 0, 1) if grad.ndim == 4 else grad.T
            yield f"{path}.{'weight' if kind in ('w', 'gamma') else 'bias'}", SimpleNamespace(grad=Noted(values=grad))


class Output:
    def __init__(self, twin):
        self.twin = twin

    def backward(self, g):
        assert g.layout is self.twin.layout
        self.twin.y.backward(np.ascontiguousarray(g.values.transpose(0, 2, 3, 1)))

    def detach(self):
        y = to_numpy(self.twin.y.data).copy()
        self.twin.change("output", y)
        return Noted(values=y.transpose(0, 3, 1, 2))


@pytest.fixture
def largest(peer, torch, monkeypatch):
    """largest(change): largest_difference if change(name, array) changes what PyTorch's network answers."""

    def compare(change):
        model, twins = build_unet({"base_channels": 8, "in_channels": 3}, 0), []
        monkeypatch.setattr(peer, "_twin", lambda m: twins.append(Twin(build_like(m), change)) or twins[-1])
        found = peer.largest_difference(model, 16, "channels_last")
        assert twins[0].layout is torch.channels_last and twins[0].t.tolist() == [1, 37, 500, 1000]
        assert all(np.abs(p.data).min() > 0 for p in model.parameters())  # drawn anew: no zeros
        return found

    return compare


def build_like(model):
    twin = build_unet(model.config, 0)
    for p, q in zip(twin.parameters(), model.parameters()):
        p.data[...] = q.data
    return twin


def test_equal_networks_differ_by_nothing_and_one_wrong_gradient_is_found(largest):
    """The difference is relative to the array's largest value; of all arrays the worst is named, nan before all."""
    assert largest(lambda name, a: None)[1] == 0

    def one_off(wrong, by):
        def change(name, a):
            if name == wrong:
                top = abs(a).max()
                a.reshape(-1)[abs(a).argmax()] += by * top * np.sign(a.reshape(-1)[abs(a).argmax()])

        return change

    for wrong in ("down.0.conv1.w", "conv_out.w", "middle.0.attention.qkv.w", "output"):
        name, difference = largest(one_off(wrong, 0.25))
        assert name == wrong.replace(".w", ".weight") and difference == pytest.approx(0.25 / 1.25, rel=1e-3)
    name, difference = largest(one_off("up.0.conv1.w", np.nan))
    assert name == "up.0.conv1.weight" and np.isnan(difference)


def test_a_gradient_of_rounding_errors_is_measured_by_a_hundredth_of_the_largest(largest):
    """A bias before a norm has no gradient.  A ten-thousandth of the largest gradient there is a difference of 1e-2."""
    tops = {}
    largest(lambda name, a: tops.update({name: abs(a).max()}))
    top = max(value for name, value in tops.items() if name != "output")
    assert tops["down.0.conv1.b"] < 1e-5 * top

    def change(name, a):
        if name == "down.0.conv1.b":
            a[3] += 1e-4 * top

    name, difference = largest(change)
    assert name == "down.0.conv1.bias" and difference == pytest.approx(1e-2, rel=1e-2)


def test_the_twin_has_our_weights_in_pytorchs_form(peer, monkeypatch):
    """Every parameter by name; another number of parameters is refused with both numbers."""
    model, loaded, shapes, extra = build_unet({"base_channels": 8, **COLOUR}, 0), {}, {}, 0
    for name, p in model.named_parameters():
        path, _, kind = name.rpartition(".")
        shape = (*p.shape[:1:-1], *p.shape[:2]) if p.ndim == 4 else p.shape[::-1]
        on_maps = p.ndim == 2 and path.endswith(("qkv", "out", "skip"))
        shapes[f"{path}.{'weight' if kind in ('w', 'gamma') else 'bias'}"] = (*shape, 1, 1) if on_maps else shape

    class Network:
        def __init__(self, channels, *others):
            assert channels == 8 and others == (*COLOUR.values(),)

        def parameters(self):
            return [SimpleNamespace(numel=lambda shape=shape: int(np.prod(shape)) + extra) for shape in shapes.values()]

        def named_parameters(self):
            return [(name, SimpleNamespace(shape=shape)) for name, shape in shapes.items()]

        def load_state_dict(self, weights):
            loaded.update(weights)

    monkeypatch.setattr(peer, "Reference", Network)
    peer._twin(model)
    assert loaded.keys() == shapes.keys()
    np.testing.assert_array_equal(loaded["conv_in.weight"].values, to_numpy(model.conv_in.w.data).transpose(3, 2, 0, 1))
    np.testing.assert_array_equal(loaded["time1.weight"].values, to_numpy(model.time1.w.data).T)
    assert all(loaded[name].values.shape == shape for name, shape in shapes.items())
    assert not np.shares_memory(loaded["conv_in.bias"].values, model.conv_in.b.data)
    extra = 1
    with pytest.raises(RuntimeError, match=rf"ours has {model.num_parameters():,} parameters, PyTorch's "):
        peer._twin(model)
