"""How fast is a training step, and how much memory does it take?  Beside PyTorch where it is installed.

    python demos/benchmark.py                    about 2 minutes on 2 cores

The reference U-Net at batch 64: a training step (forward, backward, clipping, Adam, average) and a forward pass, ours
and PyTorch's (eager, float32, both memory layouts), in turn, so that a busy machine slows all alike.
Medians and ratios.  PyTorch runs in a process of its own with as many threads as we have workers.
"""

import importlib.util
import multiprocessing
import os
import platform
import statistics
import time
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import trange

from tinydiff import cli
from tinydiff.autograd import no_grad
from tinydiff.backend import asarray, default_rng, to_numpy, use_backend
from tinydiff.generate import build_unet
from tinydiff.optim import EMA, Adam, clip_grad_norm
from tinydiff.parallel import Workers, available_cores, default_workers
from tinydiff.train import noise_prediction_losses

IMAGE = (28, 28, 1)


def main(*, backend="numpy", batch_size=64, channels=32, rounds=15, workers=None):
    """Print one table; returns {what: seconds of every round} for each contestant."""
    use_backend(backend)
    workers = workers or default_workers()
    print(f"{_cpu()}; Python {platform.python_version()}, NumPy {np.__version__}, {_blas()}")
    for name in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"):
        if name in os.environ:
            print(f"warning: {name}={os.environ[name]} is set, which can halve NumPy's speed; figures are not a user's")
    contestants = {f"tinydiff, {workers} worker(s)": Ours(batch_size, channels, workers)}
    if backend == "numpy" and importlib.util.find_spec("torch"):
        for layout in ("contiguous_format", "channels_last"):
            contestants[f"PyTorch, {layout}"] = Peer(batch_size, channels, workers, layout)
    else:
        print("PyTorch is not installed, or not on this backend: ours alone")

    seconds = {name: {"train": [], "forward": []} for name in contestants}
    for i in trange(-2, rounds, leave=False):  # two rounds to warm up
        for name, contestant in contestants.items():
            for what, times in seconds[name].items():
                start = time.perf_counter()
                getattr(contestant, what)()
                if i >= 0:
                    times.append(time.perf_counter() - start)
    print(f"{'batch ' + str(batch_size):<30}{'train img/s':>12}{'forward img/s':>15}{'peak MB':>9}")
    speed = {}
    for name, contestant in contestants.items():
        speed[name] = [batch_size / statistics.median(times) for times in seconds[name].values()]
        print(f"{name:<30}{speed[name][0]:>12.1f}{speed[name][1]:>15.1f}{contestant.peak_mb():>9.0f}")
        contestant.close()
    ours, *theirs = speed.values()
    if theirs:
        ratios = [ours[k] / max(speed[k] for speed in theirs) for k in range(2)]
        print(f"{'ours / the faster PyTorch':<30}{ratios[0]:>12.2f}{ratios[1]:>15.2f}")
    return seconds


class Ours:
    """The step of train.py on random data, on all workers."""

    def __init__(self, batch_size, channels, workers):
        rng = default_rng(0)
        self.pool = Workers(partial(build_unet, {"base_channels": channels}, 0), workers)
        self.adam, self.average = Adam(self.pool.flat), EMA(self.pool.flat)
        x, eps = rng.standard_normal((2, batch_size, *IMAGE), dtype="float32")
        t = rng.integers(1, 1001, batch_size)
        self.batch = {"x_t": asarray(x), "eps": asarray(eps), "t": t}
        self.parts = list(zip(np.array_split(x, workers), np.array_split(t, workers)))

    def train(self):
        self.pool.gradients(noise_prediction_losses, self.batch, (0,))
        clip_grad_norm(self.pool.flat, 1.0)
        self.adam.step()
        self.average.update()

    def forward(self):
        list(self.pool.map(_forward, self.parts))

    def peak_mb(self):
        return sum(_peak_mb(pid) for pid in (os.getpid(), *(process.pid for process in self.pool._processes)))

    def close(self):
        self.pool.close()


class Peer:
    """PyTorch's process: it is told what to do, and answers when it is done."""

    def __init__(self, batch_size, channels, threads, layout):
        context = multiprocessing.get_context("spawn")
        self.pipe, there = context.Pipe()
        self.process = context.Process(target=_peer, args=(there, batch_size, channels, threads, layout), daemon=True)
        self.process.start()
        there.close()
        self.pipe.recv()

    def train(self):
        self.pipe.send("train")
        self.pipe.recv()

    def forward(self):
        self.pipe.send("forward")
        self.pipe.recv()

    def peak_mb(self):
        return _peak_mb(self.process.pid)

    def close(self):
        self.pipe.close()
        self.process.join()


def _forward(model, part):
    with no_grad():
        return to_numpy(model(*part)).shape


def _peer(pipe, batch_size, channels, threads, layout):
    import torch
    from torch_peer import Reference

    torch.set_num_threads(threads)
    layout = getattr(torch, layout)
    model = Reference(channels).to(memory_format=layout)
    adam = torch.optim.Adam(model.parameters(), 1e-3, fused=True)
    x, eps = torch.randn(2, batch_size, IMAGE[2], *IMAGE[:2])
    x, eps = x.to(memory_format=layout), eps.to(memory_format=layout)
    t = torch.randint(1, 1001, (batch_size,))
    pipe.send("ready")
    while True:
        try:
            what = pipe.recv()
        except EOFError:
            return
        if what == "train":
            adam.zero_grad()
            torch.nn.functional.mse_loss(model(x, t), eps).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            adam.step()
        else:
            with torch.no_grad():
                model(x, t)
        pipe.send("done")


def _peak_mb(pid):
    """Most memory that a process has held at once; nan where the system does not tell."""
    status = Path(f"/proc/{pid}/status")
    if not status.exists():
        return float("nan")
    return int(status.read_text().split("VmHWM:")[1].split()[0]) / 1024


def _cpu():
    info = Path("/proc/cpuinfo")
    names = (
        [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        if info.exists()
        else []
    )
    return f"{names[0] if names else platform.processor() or platform.machine()}, {available_cores()} cores"


def _blas():
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    return f"{blas['name']} {blas['version']}"


if __name__ == "__main__":
    parser = cli.parser(__doc__, main)
    cli.add_backend(parser)
    parser.add_argument("--batch-size", type=cli.positive_int, help="images a step")
    parser.add_argument("--channels", type=cli.positive_int, help="channels of the first level")
    parser.add_argument("--rounds", type=cli.positive_int, help="how often each is timed")
    parser.add_argument(
        "--workers", type=cli.positive_int, help="our processes, PyTorch's threads (default: all cores)"
    )
    cli.run(main, parser)
