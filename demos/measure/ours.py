"""Our side of a benchmark, as a contestant runs it (contestant.py): the work of the reference U-Net, job by job.

`Ours` computes on the CPU, with the fast functions or, with plain=True, with the plain functions of the book.
`OnDevice` does the same on a GPU, where steps are recorded.  A stage ends when its work is done: each stage fetches one
number of its result, for which a GPU must finish the work.  Read next: torch_peer.py, the other side.
"""

import gc
import itertools
from functools import partial

import numpy as np

from tinydiff import ops
from tinydiff.app.alone import one_process
from tinydiff.app.generate import build_unet
from tinydiff.app.networks import default_network
from tinydiff.app.run import UNLIMITED
from tinydiff.app.training import attached
from tinydiff.app.training import steps as training_steps
from tinydiff.autograd import Tensor, no_grad, op
from tinydiff.backend import FAST, asarray, backend_name, default_rng, to_numpy, use_backend, xp
from tinydiff.fast.graph import Graph, recorded
from tinydiff.more.layers import NormSilu
from tinydiff.optim import EMA, Adam, clip_grad_norm
from tinydiff.train import TrainConfig, Training, noise_prediction_losses

OURS, PLAIN = "tinydiff", "plain"  # names of our contestants
SIDE = 28  # of an image, pixels


def levels(data_shape, channels):
    """The default U-Net for images of this shape (H, W, C), without classes: its arguments besides the channels."""
    network = default_network(data_shape, None, channels)
    return {name: network[name] for name in ("in_channels", "channel_mults", "attention_levels")}


class Ours:
    """The jobs, with one worker for each core.  With the plain functions one process does all the work.

    network: None for the reference U-Net, or the arguments of another one besides its channels (`levels`).
    """

    def __init__(self, *, backend, batch_size, channels, cores, precision=None, plain=False, size=SIDE, network=None):
        use_backend(backend, precision, plain=plain)
        self.build, self.rng = partial(build_unet, {"base_channels": channels, **(network or {})}, 0), default_rng(0)
        self.workers = one_process().workers(self.build, 1 if plain else cores)
        self._descend = _descent(self.workers.parameters)
        shape = (2, batch_size, size, size, self.workers.model.config["in_channels"])
        x, eps = self.rng.standard_normal(shape, dtype="float32")
        t = self.rng.integers(1, 1001, batch_size)
        self.batch = {"x_t": asarray(x), "target": asarray(eps), "t": t}
        self.parts = list(zip(*(np.array_split(a, self.workers.num_workers) for a in (x, t))))

    def train(self):
        def step(_):
            self.gradients(None)
            self.update(None)

        return [step]

    def gradients(self, _):
        self.workers.gradients(noise_prediction_losses, self.batch)

    def update(self, _):
        self._descend(1.0)

    def forward(self):
        return [lambda _: list(self.workers.map(_forward, self.parts))]

    def conv(self, n, size, c_in, c_out, stride, input_gradient):
        x, w, b = self._array(n, size, size, c_in), self._leaf(3, 3, c_in, c_out), self._leaf(c_out)
        x = _inner(x) if input_gradient else Tensor(x)
        return self._forward_and_backward(lambda: ops.conv2d(x, w, b, stride=stride, padding=1))

    def group_norm_silu(self, n, size, c, num_groups):
        x, layer = _inner(self._array(n, size, size, c)), NormSilu(num_groups, c)
        layer.gamma, layer.beta = self._leaf(c), self._leaf(c)
        return self._forward_and_backward(lambda: layer(x))

    def attention(self, n, heads, pixels, features):
        q, k, v = (_inner(self._array(n, heads, pixels, features)) for _ in range(3))
        return self._forward_and_backward(lambda: ops.attention(q, k, v))

    def optimizer(self):
        workers, calls = one_process().workers(self.build, 1), itertools.count()
        for p in workers.model.parameters():
            p.grad = self._array(*p.shape)
        descend = _descent(workers.parameters)
        return [lambda _: descend(0.999 ** next(calls))]  # a lower limit each time, so that every call clips

    def close(self):
        self.workers.close()

    def _array(self, *shape):
        return asarray(self.rng.standard_normal(shape, dtype="float32"))

    def _leaf(self, *shape):
        return Tensor(self._array(*shape), requires_grad=True)

    def _forward_and_backward(self, f):
        g = self._array(*f().shape)

        def forward(_):
            y = f()
            _wait(y.data)
            return y

        def backward(y):
            y.backward(g)
            _wait(g)

        return [forward, backward]


class OnDevice(Ours):
    """The jobs in one process, as a program runs them on a GPU: a recorded training step, a recorded network.

    notes: the lines that a program would print, such as why a step is not recorded.
    """

    def __init__(self, **settings):
        super().__init__(**settings)
        self.notes = []

    def train(self):
        config, batch = TrainConfig(num_steps=UNLIMITED, minutes=None), on_host(self.batch)
        state = Training(self.workers.model, config, lambda *_: batch, **attached(self.workers))
        steps = training_steps(state, one_process(), report=self.notes.append)

        def step(_):
            next(steps)
            _wait(state.ema.average[-1])

        return [step]

    def forward(self):
        network = recorded(self.workers.model) if self.on_a_gpu() else self.workers.model

        def forward(_):
            with no_grad():
                _wait(network(self.batch["x_t"], self.batch["t"]).data)

        return [forward]

    def peak_mb(self):
        """The memory that all pools have taken: the default one, and the pool of each recorded graph."""
        if backend_name() != "cupy":
            return None
        pools = [graph._pool for graph in gc.get_objects() if isinstance(graph, Graph)]
        return sum(pool.total_bytes() for pool in (xp.get_default_memory_pool(), *pools)) / 2**20

    def on_a_gpu(self):
        """Whether the fast functions run on a GPU; without them nothing is recorded."""
        return bool(FAST) and backend_name() != "numpy"


def on_host(batch):
    """The batch as a program draws it: arrays of NumPy."""
    return {name: to_numpy(a) for name, a in batch.items()}


def _forward(model, part):
    with no_grad():
        return to_numpy(model(*part)).shape


def _inner(array):
    """A Tensor with these values that drops its gradient, like a map in a network.  A leaf would copy the gradient."""

    @op
    def inner(leaf):
        return array, lambda g: (xp.zeros_like(leaf),)

    return inner(Tensor(xp.zeros(1, array.dtype), requires_grad=True))


def _descent(parameters):
    """descend(max_norm): clipping, Adam, and the average of the weights."""
    adam, ema = Adam(parameters), EMA(parameters)

    def descend(max_norm):
        clip_grad_norm(parameters, max_norm)
        adam.step()
        ema.update()
        _wait(ema.average[-1])

    return descend


def _wait(array):
    """Wait until the device has computed the array, by fetching one number of it."""
    to_numpy(array.reshape(-1)[:1])
