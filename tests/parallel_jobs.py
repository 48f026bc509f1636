"""What tests of workers and ranks send to them: a spawned process imports it by this name."""

import os
import signal

from tinydiff import ops
from tinydiff.backend import FAST, asarray, default_rng
from tinydiff.nn import Linear, Module


class Net(Module):
    def __init__(self, rng):
        self.a, self.b = Linear(3, 5, rng=rng), Linear(5, 2, rng=rng)

    def forward(self, x):
        return self.b(ops.silu(self.a(x)))


def build(seed):
    return Net(default_rng(seed))


def build_wide(seed):
    """A network with two matrices for Muon."""
    rng, net = default_rng(seed), build(seed)
    net.a, net.b = Linear(40, 24, rng=rng), Linear(24, 50, rng=rng)
    return net


def squared_error(model, batch):
    d = model(asarray(batch["x"])) - asarray(batch["y"])
    return ops.mean(d * d, axis=1)


def fail(model, batch):
    raise ZeroDivisionError("planted")


def fail_at_two(model, job):
    if job == 2:
        raise ZeroDivisionError("planted")


def die(model, job):
    os.kill(os.getpid(), signal.SIGKILL)


def blas_threads(model, job):
    return os.environ["OPENBLAS_NUM_THREADS"]


def installed(model, job):
    return tuple(FAST)


def weights_and_pid(model, job):
    return job, model.a.w.data.copy(), os.getpid()


def ignored_signals(model, job):
    return {s.name for s in signal.Signals if signal.getsignal(s) is signal.SIG_IGN}


def die_at_start(parent):
    """The network in the parent; in a worker nothing comes of it."""
    if os.getpid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)
    return build(0)


def exhaust(model, batch):
    raise MemoryError("planted")


def open_file(model, job):
    """A result that cannot be sent."""
    return open(os.devnull)


def scalar(model, batch):
    return ops.mean(squared_error(model, batch))


def by_number(model, batch):
    return model(batch["x"]) - batch["y"]
