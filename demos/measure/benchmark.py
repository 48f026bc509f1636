"""How fast are a training step, sampling and each op, and how much memory do they take?  Ours, and PyTorch's beside it.

    python demos/benchmark.py                    about 2 minutes on 2 cores

The reference U-Net at batch 64, float32: ours, and PyTorch's (eager, both memory layouts) where torch is installed.
First it is checked that both are one network: as many parameters and, with copied weights, the same output and
gradients.  Each contestant is a process of its own (contestant.py).  Every round goes over all of them, so that a busy
machine slows all alike.  Figures are medians; a ratio is to the faster of PyTorch's layouts, above 1 where we are
faster.

    train step   forward, backward, clipping, Adam, average of the weights: on all workers (PyTorch: as many threads),
                 and on one core (one process with one BLAS thread; one thread)
    forward      without gradient, what sampling does again and again
    the ops      forward + backward on one core, at the images that one worker sees (batch size / workers): the shapes
                 that the network's layers have, each distinct one once; (xN) says how often it occurs.  The
                 convolutions are all the 3x3 ones, those of stride 2 and of one channel too, and below stands the
                 geometric mean of their ratios.  The first computes no gradient of its input: nothing asks for it.
    optimizer    clipping, Adam, average over all parameters, on one core
    peak memory  the most that our processes have held, added up, against PyTorch's one process; read after the
                 training steps, before anything else runs (Linux only; with --backend cupy it is the host's memory).
                 Its ratio is ours / PyTorch's, below 1 where we need less.

--json writes the ratios by name, the medians (seconds, MB), the machine and the settings.  A ratio without a peer, or
without a figure, is null.
"""

import contextlib
import ctypes
import importlib.metadata
import importlib.util
import itertools
import json
import multiprocessing
import os
import platform
import statistics
from collections import Counter, defaultdict
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from contestant import Contestant
from tqdm import tqdm

from tinydiff import cli, ops
from tinydiff.autograd import Tensor, no_grad, op
from tinydiff.backend import TinydiffError, asarray, default_rng, to_numpy, use_backend, xp
from tinydiff.checkpoint import atomic_write
from tinydiff.generate import build_unet
from tinydiff.nn.unet import Downsample, Upsample
from tinydiff.optim import EMA, Adam, Flat, clip_grad_norm
from tinydiff.parallel import Workers, available_cores, default_workers
from tinydiff.train import noise_prediction_losses

IMAGE = (28, 28, 1)
OURS, LAYOUTS = "tinydiff", ("contiguous_format", "channels_last")
WARM_UP = 2  # rounds that do not count
SAMPLE_SECONDS = 0.03  # a small op is repeated until it takes this long
MOST_DIFFERENCE = 1e-4  # of equal networks in float32: the convolutions round differently
TRAIN, FORWARD, OPTIMIZER = ("train",), ("forward",), ("optimizer",)  # jobs: a contestant's method and its arguments


def main(*, backend="numpy", precision=None, batch_size=None, channels=32, rounds=11, workers=None, json_path=None):
    """Print one table; returns what --json writes.  On a GPU gpu_benchmark.py does both."""
    if backend == "cupy":
        import gpu_benchmark

        if workers is not None:
            raise TinydiffError(f"--workers {workers}: a GPU has one process; leave it out")
        sizes = {} if batch_size is None else {"batch_sizes": (batch_size,)}
        return gpu_benchmark.main(precision=precision, channels=channels, rounds=rounds, json_path=json_path, **sizes)
    cli.start(backend, precision)
    batch_size = batch_size or 64
    if json_path is not None and not Path(json_path).parent.is_dir():  # minutes before the file is opened
        raise TinydiffError(f"--json {json_path}: there is no such folder")
    workers = workers or default_workers()
    peers = LAYOUTS if backend == "numpy" and importlib.util.find_spec("torch") else ()
    machine = describe_machine(bool(peers))
    print(*(f"{name} {value}" for name, value in machine.items() if value is not None), sep=", ")
    changed = {name: value for name, value in os.environ.items() if _changes_speed(name)}
    for name, value in changed.items():
        print(f"warning: {name}={value} is set, which changes the speed; these are not a user's figures")
    if not peers:
        print("PyTorch is not installed, or not on this backend: ours alone")
    for layout in peers:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as executor:
            print(executor.submit(check_same_network, channels, layout).result())

    images = max(1, batch_size // workers)
    layers = layer_jobs(channels, images)
    settings = {"backend": backend, "precision": precision, "channels": channels, "batch_size": batch_size}
    medians, memory = compete((OURS, *peers), settings, workers, list(layers), rounds)
    report = {
        **ratios(medians, memory, workers),
        "medians": [
            {
                "what": _label(cores, job, layers.get(job)),
                "job": job,
                "cores": cores,
                "seconds": {name: total for name, (total, *_) in by.items()},
                "stages": {name: stages for name, (_, *stages) in by.items()},
            }
            for (cores, job), by in medians.items()
        ],
        "peak_mb": memory,
        "machine": machine,
        "settings": settings | {"workers": workers, "rounds": rounds, "op_images": images, "environment": changed},
    }
    print_table(report)
    if json_path is not None:
        write_json(json_path, report)
    return report


def compete(names, settings, workers, layers, rounds):
    """Time every job, with a progress bar.

    Returns {(cores, job): {name: [median seconds of the whole, *of each stage]}} and {name: peak MB on all workers}.
    """
    with contextlib.ExitStack() as stack:
        everyone = [
            stack.enter_context(Contestant(name, cores, partial(_contestant, name, cores=cores, **settings)))
            for cores in dict.fromkeys((workers, 1))  # the same with one worker
            for name in names
        ]
        for contestant in everyone:  # all have started by now
            contestant.answer()
        one_core = [contestant for contestant in everyone if contestant.cores == 1]
        calls = (rounds + WARM_UP) * (2 * len(everyone) + (len(layers) + 1) * len(one_core))
        bar = stack.enter_context(tqdm(total=calls, leave=False))
        seconds = measure(everyone, [TRAIN], rounds, bar)
        memory = {who.name: who.ask("peak_mb") for who in everyone if who.cores == workers}
        seconds |= measure(everyone, [FORWARD], rounds, bar)
        seconds |= measure(one_core, [*layers, OPTIMIZER], rounds, bar)
    return {key: {name: _medians(samples) for name, samples in by.items()} for key, by in seconds.items()}, memory


def layer_jobs(channels, images):
    """{job: how often it occurs} in the reference U-Net: its 3x3 convolutions, norms with SiLU, and attention.

    Found by its parameters and the resolution where they work, so it does not matter which ops it does in one.
    """
    model, size, jobs = build_unet({"base_channels": channels}, 0), IMAGE[0], []
    heads, num_groups = model.config["num_heads"], model.config["num_groups"]
    for part in (model.conv_in, *model.down, *model.middle, *model.up, model.norm_out, model.conv_out):
        size *= 2 if isinstance(part, Upsample) else 1
        stride = 2 if isinstance(part, Downsample) else 1
        for name, p in part.named_parameters():
            if p.ndim == 4:
                jobs.append(("conv", images, size, *p.shape[2:], stride, part is not model.conv_in))
            elif name.endswith("qkv.w"):
                jobs.append(("attention", images, heads, size * size, p.shape[0] // heads))
            elif name.endswith("gamma") and not name.startswith("attention."):
                jobs.append(("group_norm_silu", images, size, p.size, num_groups))
        size //= stride
    kinds = ("conv", "group_norm_silu", "attention")
    return dict(sorted(Counter(jobs).items(), key=lambda item: kinds.index(item[0][0])))


def measure(contestants, jobs, rounds, bar):
    """{(cores, job): {contestant's name: for each round, the seconds of each stage}}, warm-up rounds left out."""
    seconds, repeats = defaultdict(lambda: defaultdict(list)), dict.fromkeys(jobs, 1)
    for i, job in itertools.product(range(-WARM_UP, rounds), jobs):
        took = []
        for contestant in contestants:
            took.append(contestant.ask("seconds", job, repeats[job]))
            bar.set_description(job[0], refresh=False)
            bar.update()
            if i >= 0:
                seconds[contestant.cores, job][contestant.name].append(took[-1])
        if i < 0:
            repeats[job] = max(1, round(SAMPLE_SECONDS / min(map(sum, took))))  # one number for all of them
    return seconds


def ratios(medians, memory, workers):
    """The report's ratios; medians: {(cores, job): {name: [seconds, ...]}}, memory: {name: MB or None}."""
    total = {key: {name: seconds[0] for name, seconds in by.items()} for key, by in medians.items()}
    convs = [_ahead(by) for (_, job), by in total.items() if job[0] == "conv"]
    less_memory = None if None in memory.values() else _ahead(memory)
    return {
        "train_step_ratio": _ahead(total[workers, TRAIN]),
        "train_step_ratio_1core": _ahead(total[1, TRAIN]),
        "sampling_ratio": _ahead(total[workers, FORWARD]),
        "conv_ratio": None if None in convs else statistics.geometric_mean(convs),
        "memory_ratio": less_memory and 1 / less_memory,
        "worker_scaling": total[1, TRAIN][OURS] / total[workers, TRAIN][OURS],
    }


def print_table(report):
    """One row for each figure: ours, PyTorch's layouts, and how far we are ahead."""
    names = list(report["peak_mb"])

    def row(what, cells, last):
        print(f"{what:<45}" + "".join(f"{cell:>18}" for cell in cells) + f"{last:>8}")

    settings = report["settings"]
    what = f"batch {settings['batch_size']}, each op at {settings['op_images']} image(s)"
    row(what, [name.replace("_format", "") for name in names], "ratio")
    for entry in report["medians"]:
        if entry["job"] in (TRAIN, FORWARD):
            cells = [f"{settings['batch_size'] / s:.1f} img/s" for s in entry["seconds"].values()]
        else:
            cells = [" + ".join(f"{1e3 * s:.2f}" for s in stages) + " ms" for stages in entry["stages"].values()]
        row(entry["what"], cells, _number(_ahead(entry["seconds"])))
    row("convolutions, geometric mean", ["" for _ in names], _number(report["conv_ratio"]))
    cells = [f"{_number(mb)} MB" for mb in report["peak_mb"].values()]
    row("peak memory, all processes (low is good)", cells, _number(report["memory_ratio"]))
    row("training, all workers / 1 worker", ["" for _ in names], _number(report["worker_scaling"]))


def write_json(path, report):
    """All of it, or nothing: an old file stays as it was."""
    with atomic_write(path) as file:
        file.write(json.dumps(report, indent=1, allow_nan=False).encode())


class Ours:
    """Our side: the stages of each job, see contestant.py.  When a stage returns its work is done, on a GPU too."""

    def __init__(self, *, channels, batch_size, cores):
        self.build = partial(build_unet, {"base_channels": channels}, 0)
        self.pool, self.rng = Workers(self.build, cores), default_rng(0)
        self.update = _updater(self.pool.flat)
        x, eps = self.rng.standard_normal((2, batch_size, *IMAGE), dtype="float32")
        t = self.rng.integers(1, 1001, batch_size)
        self.batch = {"x_t": asarray(x), "target": asarray(eps), "t": t}
        self.parts = list(zip(np.array_split(x, cores), np.array_split(t, cores)))

    def train(self):
        def step(_):
            self.pool.gradients(noise_prediction_losses, self.batch, (0,))
            self.update(1.0)

        return [step]

    def forward(self):
        return [lambda _: list(self.pool.map(_forward, self.parts))]

    def conv(self, n, size, c_in, c_out, stride, input_gradient):
        x, w, b = self._array(n, size, size, c_in), self._array(3, 3, c_in, c_out), self._array(c_out)
        x = _inner(x) if input_gradient else Tensor(x)
        w, b = Tensor(w, requires_grad=True), Tensor(b, requires_grad=True)
        return self._forward_and_backward(lambda: ops.conv2d(x, w, b, stride=stride, padding=1))

    def group_norm_silu(self, n, size, c, num_groups):
        x = _inner(self._array(n, size, size, c))
        gamma, beta = (Tensor(self._array(c), requires_grad=True) for _ in range(2))
        return self._forward_and_backward(lambda: ops.group_norm_silu(x, gamma, beta, num_groups=num_groups))

    def attention(self, n, heads, pixels, features):
        q, k, v = (_inner(self._array(n, heads, pixels, features)) for _ in range(3))
        return self._forward_and_backward(lambda: ops.attention(q, k, v))

    def optimizer(self):
        flat, calls = Flat(self.build().parameters()), itertools.count()
        flat.grad[...] = self._array(*flat.grad.shape)
        update = _updater(flat)
        return [lambda _: update(0.999 ** next(calls))]  # a little lower each time, so that each one clips

    def close(self):
        self.pool.close()

    def _array(self, *shape):
        return asarray(self.rng.standard_normal(shape, dtype="float32"))

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


def check_same_network(channels, layout):
    """Say how far PyTorch's network and ours are apart; RuntimeError if that is more than rounding.

    Called in a process of its own: neither network's memory counts for a contestant.
    """
    from torch_peer import largest_difference

    model = build_unet({"base_channels": channels}, 0)
    name, difference = largest_difference(model, layout)
    if not difference < MOST_DIFFERENCE:
        raise RuntimeError(
            f"not the same network: with the same weights {name} differs by {difference:.1e} from PyTorch's, {layout}"
        )
    return f"PyTorch, {layout}: {model.num_parameters():,} parameters too; output, gradients within {difference:.0e}"


def describe_machine(torch):
    """What the figures depend on; torch: whether it takes part."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    return {
        "cpu": names[0] if names else platform.processor() or platform.machine(),
        "cores": available_cores(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "blas": f"{blas['name']} {blas['version']}",
        "blas_core": blas_core(),
        "torch": importlib.metadata.version("torch") if torch else None,
    }


def blas_core():
    """The kernels that OpenBLAS has chosen for this processor, such as "SkylakeX"; "unknown" with another BLAS."""
    maps, package = Path("/proc/self/maps"), Path(np.__file__).parent
    if maps.exists():
        paths = {line.split(maxsplit=5)[5] for line in maps.read_text().splitlines() if "openblas" in line}
    else:
        paths = {
            str(path)
            for folder in (package.parent / "numpy.libs", package / ".dylibs")
            for path in folder.glob("*openblas*")
        }
    for path, prefix, suffix in itertools.product(sorted(paths), ("scipy_", ""), ("64_", "")):
        with contextlib.suppress(OSError, AttributeError):  # not to be loaded, or not of this name
            corename = getattr(ctypes.CDLL(path), f"{prefix}openblas_get_corename{suffix}")
            corename.restype = ctypes.c_char_p
            return corename().decode()
    return "unknown"


def _contestant(name, *, backend, precision=None, **settings):
    use_backend(backend, precision)
    if name == OURS:
        return Ours(**settings)
    from torch_peer import Peer

    return Peer(**settings, layout=name)


def _forward(model, part):
    with no_grad():
        return to_numpy(model(*part)).shape


def _inner(array):
    """A Tensor with these values that drops its gradient, like a map within a network: a leaf would copy it."""

    @op
    def inner(leaf):
        return array, lambda g: (xp.zeros_like(leaf),)

    return inner(Tensor(xp.zeros(1, array.dtype), requires_grad=True))


def _updater(flat):
    """update(max_norm): clipping, Adam, and the average of the weights."""
    adam, average = Adam(flat), EMA(flat)

    def update(max_norm):
        clip_grad_norm(flat, max_norm)
        adam.step()
        average.update()
        _wait(average.data)

    return update


def _wait(array):
    """Until the device has done what it was asked for: one number of it is fetched."""
    to_numpy(array.reshape(-1)[:1])


def _changes_speed(variable):
    return variable in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE") or variable.startswith("MALLOC_")


def _ahead(by_name):
    """The least of PyTorch's figures / ours; None without PyTorch."""
    theirs = [figure for name, figure in by_name.items() if name != OURS]
    return min(theirs) / by_name[OURS] if theirs else None


def _medians(samples):
    """[all stages together, *each stage] over the rounds."""
    return [statistics.median(map(sum, samples)), *map(statistics.median, zip(*samples))]


def _label(cores, job, count):
    match job:
        case ("train",):
            return f"train step, {cores} core(s)"
        case ("forward",):
            return f"forward, {cores} core(s)"
        case ("conv", _, size, c_in, c_out, stride, _):
            return f"conv {size}x{size} {c_in}->{c_out}{', stride 2' if stride == 2 else ''} (x{count})"
        case ("group_norm_silu", _, size, c, _):
            return f"group norm + SiLU {size}x{size}x{c} (x{count})"
        case ("attention", _, heads, pixels, _):
            return f"attention, {pixels} pixels, {heads} heads (x{count})"
        case _:
            return "optimizer"


def _number(x):
    return "-" if x is None else f"{x:.2f}"


if __name__ == "__main__":
    parser = cli.parser(__doc__, main)
    cli.add_backend(parser)
    parser.add_argument("--batch-size", type=cli.positive_int, help="images a step (default: 64; on a GPU 128 and 512)")
    parser.add_argument("--channels", type=cli.positive_int, help="channels of the first level")
    parser.add_argument("--rounds", type=cli.positive_int, help="how often each is timed")
    parser.add_argument(
        "--workers", type=cli.positive_int, help="our processes, PyTorch's threads (default: all cores)"
    )
    parser.add_argument("--json", dest="json_path", metavar="FILE", help="write the figures there too")
    cli.run(main, parser)
