"""What can this machine do, how much of it does a training step need, and how does the step's time grow?

    python demos/scaling.py                about 2 minutes on 2 cores; the picture is runs/scaling/scaling.png

NumPy only, float32.  One table is printed:

    the machine  what one core reaches, in a process with one BLAS thread: matrix products of a shape that Winograd's
                 convolution often has, a copy (bytes read + bytes written) of arrays that fit into no cache and of
                 arrays of 256 KB, and tanh
    a step       of training the reference U-Net on one core: forward, backward, clipping, Adam, average of the weights.
                 Operations are 2 M K N of each matrix product, counted as the step calls it; those of the direct
                 convolution are of the same step without Winograd's way.  Bytes are what each product reads and
                 writes, the maps that the forward pass keeps for the backward pass, and the optimizer's arrays.
                 "least" is their time at the rates above: of a product the longer of its operations and of its bytes
                 in cache; maps and optimizer's arrays go through memory twice; of the step their sum.  "took" is
                 measured, call by call; "all else" is what is left of the step, which is measured whole.
    growth       milliseconds a step against batch, channels and resolution on one core, and against workers.  p is the
                 power of the best fit, time ~ x^p.

Figures are medians over rounds; a round goes over all configurations of a sweep, so that a busy machine slows all
alike.
"""

import contextlib
import multiprocessing
import statistics
import time
import tracemalloc
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
from contestant import Contestant, mean_seconds
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from tinydiff.checkpoint import atomic_write
from tinydiff.generate import build_unet
from tinydiff.parallel import Workers, available_cores
from tinydiff.parallel.local import ONE_THREAD, environment
from tqdm import tqdm

from tinydiff import cli
from tinydiff.backend import default_rng, use_backend, xp
from tinydiff.ops import winograd
from tinydiff.optim import EMA, Adam, clip_grad_norm
from tinydiff.train import noise_prediction_losses

REFERENCE = {"batch_size": 64, "channels": 32, "size": 28, "workers": 1}
WARM_UP = 2  # rounds that do not count
SAMPLE_SECONDS = 0.03  # a short measurement is repeated until it takes this long
PRODUCT = (36, 84, 64), (36, 64, 64)  # the commonest in the reference step
MEMORY, CACHE = 1 << 27, 1 << 18  # bytes of an array that is copied
RATES = {
    "product": f"GFLOP/s, matrix products {PRODUCT[0]} @ {PRODUCT[1]}",
    "memory": "GB/s, copy in memory",
    "cache": "GB/s, copy in cache",
    "tanh": "ns a number, tanh",
}
THIN = 6  # a product with a side up to this is a transform of Winograd's or a sum over pixels
TRAIN = ("train",)  # a contestant's job, see contestant.py


@dataclass(frozen=True)
class Sweep:
    """One setting of the reference step varied; power: that of the guide, time ~ value^power, None for a speed-up."""

    name: str
    values: tuple[int, ...]
    label: str
    power: int | None
    others: dict[str, int] = field(default_factory=dict)  # settings unlike the reference's

    def config(self, value):
        return REFERENCE | self.others | {self.name: value}

    def contestant(self, value):
        config = self.config(value)
        return Contestant(f"{self.name}={value}", config["workers"], partial(Step, **config))


SWEEPS = (
    Sweep("batch_size", (4, 8, 16, 32, 64, 128), "images in a batch", 1),
    Sweep("channels", (16, 32, 48, 64), "channels of the first level", 2),
    Sweep("size", (8, 12, 20, 28, 40, 56), "side of an image, pixels", 2, {"batch_size": 16}),  # 64 would need GBs
)


def main(*, out="runs/scaling", rounds=7):
    """Write scaling.png to `out` and print the table."""
    use_backend("numpy")
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    cores = available_cores()
    counts = tuple(sorted({2**k for k in range(cores.bit_length())} | {cores}))
    sweeps = (*SWEEPS, Sweep("workers", counts, "worker processes", None))
    calls = 2 + (rounds + WARM_UP) * sum(len(sweep.values) for sweep in sweeps)
    with tqdm(total=calls, leave=False) as bar:
        spawn = multiprocessing.get_context("spawn")
        with environment(ONE_THREAD), ProcessPoolExecutor(1, spawn) as one_core:
            rates = one_core.submit(measure_rates, rounds).result()
            bar.update()
            step = one_core.submit(measure_step, REFERENCE, rounds).result()
            bar.update()
        growth = [(sweep, grow(sweep, rounds, bar)) for sweep in sweeps]
    machine = ["the machine, one core", *(f"{rate:9.2f} {RATES[name]}" for name, rate in rates.items())]
    print("\n".join([*machine, "", *step_lines(step, rates), "", *growth_lines(growth)]))
    with atomic_write(out / "scaling.png") as file:
        draw(growth).savefig(file, format="png")
    print(f"picture: {out}/scaling.png")


class Step:
    """A training step of one configuration, a contestant: see contestant.py."""

    def __init__(self, *, batch_size, channels, size, workers):
        self.pool, rng = Workers(partial(build_unet, {"base_channels": channels}, 0), workers), default_rng(0)
        x, eps = rng.standard_normal((2, batch_size, size, size, 1), dtype="float32")
        self.batch = {"x_t": x, "target": eps, "t": rng.integers(1, 1001, batch_size)}
        self.adam, self.average = Adam(self.pool.flat), EMA(self.pool.flat)

    def train(self):
        return [self.gradients, self.update]

    def gradients(self, _):
        self.pool.gradients(noise_prediction_losses, self.batch, (0,))

    def update(self, _):
        clip_grad_norm(self.pool.flat, 1.0)
        self.adam.step()
        self.average.update()

    def kept_bytes(self):
        """What is still there of a forward pass's arrays when it has ended, for its backward pass."""
        tracemalloc.start()
        losses = noise_prediction_losses(self.pool.model, self.batch, default_rng(0))
        kept = tracemalloc.get_traced_memory()[0]
        del losses  # not before
        tracemalloc.stop()
        return kept

    def close(self):
        self.pool.close()


@dataclass
class Work:
    """What calls of one kind did.  operations: 2 a multiply-add, 1 a tanh.  bytes: read + written."""

    operations: int = 0
    bytes: int = 0
    seconds: float = 0.0


@contextlib.contextmanager
def counting():
    """Within the block xp.matmul and xp.tanh are counted and timed: yields {"product", "thin" or "tanh": Work}.

    thin: a product with a side of at most THIN, which is limited by its bytes, not by its operations.
    """
    work = {kind: Work() for kind in ("product", "thin", "tanh")}

    def counted(function, kind_of, operations_of):
        def call(*arrays, **options):
            start = time.perf_counter()
            y = function(*arrays, **options)
            seconds = time.perf_counter() - start
            done = work[kind_of(*arrays)]
            done.seconds += seconds
            done.operations += operations_of(y, *arrays)
            done.bytes += y.nbytes + sum(a.nbytes for a in arrays)
            return y

        return call

    def product_kind(x, y):
        return "thin" if min(*x.shape[-2:], y.shape[-1]) <= THIN else "product"

    matmul, dot = (
        counted(multiply, product_kind, lambda z, x, y: 2 * x.shape[-1] * z.size)  # z holds the broadcast batch
        for multiply in (np.matmul, np.dot)  # dot: of two matrices
    )
    tanh = counted(np.tanh, lambda x: "tanh", lambda y, x: y.size)
    with mock.patch.dict(vars(xp), matmul=matmul, dot=dot, tanh=tanh):
        yield work


def measure_rates(rounds):
    """What one core reaches: GFLOP/s of products, GB/s of copies, ns a number of tanh.  Needs one BLAS thread."""
    rng = default_rng(0)
    x, w = (rng.standard_normal(shape, dtype="float32") for shape in PRODUCT)
    z = np.matmul(x, w)
    numbers, result = rng.standard_normal((2, CACHE // 4), dtype="float32")
    large = np.ones((2, MEMORY // 4), "float32")
    measured = {
        "product": lambda _: np.matmul(x, w, out=z),
        "memory": lambda _: np.copyto(large[1], large[0]),
        "cache": lambda _: np.copyto(result, numbers),
        "tanh": lambda _: np.tanh(numbers, out=result),
    }
    seconds = {name: median_seconds(f, rounds) for name, f in measured.items()}
    return {
        "product": 2 * x.shape[-1] * z.size / seconds["product"] / 1e9,
        "memory": 2 * MEMORY / seconds["memory"] / 1e9,
        "cache": 2 * CACHE / seconds["cache"] / 1e9,
        "tanh": seconds["tanh"] / numbers.size * 1e9,
    }


def median_seconds(f, rounds):
    """Median over rounds of the seconds that f takes."""
    repeats = max(1, round(SAMPLE_SECONDS / min(mean_seconds([f], 1)[0] for _ in range(WARM_UP))))
    return statistics.median(mean_seconds([f], repeats)[0] for _ in range(rounds))


def measure_step(config, rounds):
    """A step in this process: its Work by kind (seconds: medians), its bytes, the seconds of its stages."""
    with contextlib.closing(Step(**config)) as step:
        mean_seconds(step.train(), WARM_UP)
        with mock.patch.object(winograd, "pays", return_value=False), counting() as direct:
            step.gradients(None)
        stages, counts = [], []
        for _ in range(rounds):
            stages.append(mean_seconds(step.train(), 1))
            with counting() as work:
                step.gradients(None)
            counts.append(work)
        for kind, done in work.items():
            done.seconds = statistics.median(count[kind].seconds for count in counts)
        return {
            "direct": direct["product"].operations,
            "work": work,
            "maps": step.kept_bytes(),
            "state": 5 * step.pool.flat.data.nbytes,  # parameters, gradient, two moments, average
            "step": statistics.median(map(sum, stages)),
            "update": statistics.median(update for _, update in stages),
        }


def grow(sweep, rounds, bar):
    """{value: median seconds of a training step}, each configuration in a process of its own."""
    bar.set_description(sweep.name)
    seconds = {value: [] for value in sweep.values}
    with contextlib.ExitStack() as stack:
        contestants = {value: stack.enter_context(sweep.contestant(value)) for value in sweep.values}
        for contestant in contestants.values():  # all have started by now
            contestant.answer()
        for _ in range(WARM_UP + rounds):
            for value, contestant in contestants.items():
                seconds[value].append(sum(contestant.ask("seconds", TRAIN, 1)))
                bar.update()
    return {value: statistics.median(samples[WARM_UP:]) for value, samples in seconds.items()}


def step_lines(step, rates):
    """One row for each kind of work: operations and bytes of the batch and an image, the least time, the measured."""
    n, (product, thin, tanh) = REFERENCE["batch_size"], step["work"].values()

    def roofline(done):
        return max(done.operations / rates["product"], done.bytes / rates["cache"]) / 1e9

    def through_memory(size):  # written once, read once
        return 2 * size / rates["memory"] / 1e9

    def line(what, operations, size, least, took):
        columns = [(operations, 1, 1e9), (operations, 3, 1e9 * n), (size, 1, 1e6), (size, 2, 1e6 * n)]
        columns += [(least, 1, 1e-3), (took, 1, 1e-3), (took, 1, step["step"] / 100)]  # value, digits, unit
        cells = ["-" if value is None else f"{value / unit:,.{digits}f}" for value, digits, unit in columns]
        return _row(what, cells)

    rows = [
        ("products over channels", product.operations, product.bytes, roofline(product), product.seconds),
        ("transforms, sums over pixels", thin.operations, thin.bytes, roofline(thin), thin.seconds),
        ("tanh", None, tanh.bytes, tanh.operations * rates["tanh"] / 1e9, tanh.seconds),
        ("parameters, gradient, moments, average", None, step["state"], through_memory(step["state"]), step["update"]),
        ("maps kept for the backward pass", None, step["maps"], through_memory(step["maps"]), None),
    ]
    least, took = (sum(row[i] or 0 for row in rows) for i in (3, 4))
    heads = ("GFLOP", "an image", "MB", "an image", "least ms", "took ms", "% of it")
    return [
        _row(f"a step of {n} images, one core", heads),
        line("direct convolution, not done", step["direct"], None, step["direct"] / rates["product"] / 1e9, None),
        *(line(*row) for row in rows),
        line("all else: norm, SiLU, frames, Python", None, None, None, step["step"] - took),
        line("the step", product.operations + thin.operations, None, least, step["step"]),
    ]


def growth_lines(growth):
    """One row for each sweep: its milliseconds, and the power or the speed-up that they amount to."""
    lines = ["ms a step"]
    for sweep, by in growth:
        times = ", ".join(f"{value}: {1e3 * s:.1f}" for value, s in by.items())
        says = f"p = {power_of(by):.2f}" if sweep.power else f"speed-up {speed_up(by)[-1]:.2f}"
        lines.append(f"{sweep.label:<40} {times}; {says}")
    return lines


def power_of(by):
    """The p of the best fit seconds ~ value^p to {value: seconds}, by least squares of the logarithms."""
    return np.polyfit(np.log(list(by)), np.log(list(by.values())), 1)[0]


def speed_up(by):
    """How often the first time of {workers: seconds} is as long as each."""
    seconds = np.array(list(by.values()))
    return seconds[0] / seconds


def draw(growth):
    """A figure of a panel for each (Sweep, {value: seconds}): milliseconds, or for workers the speed-up."""
    figure = Figure(figsize=(9, 6.6), dpi=128, layout="constrained", facecolor="white")
    for axes, (sweep, by) in zip(figure.subplots(2, 2).flat, growth):
        x, ms = np.array(list(by)), 1e3 * np.array(list(by.values()))
        y, guide, name = speed_up(by), x, "ideal"
        if sweep.power:
            y, guide, name = ms, ms[-1] * (x / x[-1]) ** sweep.power, f"slope {sweep.power}"
        axes.plot(x, guide, "--", color="0.5", lw=1.3, label=name)
        axes.plot(x, y, "o-", color="C0", lw=1.8, ms=5, label="measured")
        _dress(axes, sweep)
    figure.suptitle("A training step: how its time grows (dots: medians of measured steps)", x=0.01, ha="left")
    return figure


def _dress(axes, sweep):
    config = sweep.config(None)
    fixed = {
        "batch_size": f"batch {config['batch_size']}",
        "channels": f"{config['channels']} channels",
        "size": f"{config['size']}x{config['size']}",
        "workers": f"{config['workers']} core",
    }
    axes.set_title(", ".join(text for name, text in fixed.items() if name != sweep.name), loc="left", fontsize=11)
    axes.set_xlabel(sweep.label)
    axes.set_ylabel("ms a step" if sweep.power else "speed-up")
    if sweep.power:
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:,g}")
        axes.minorticks_off()
    else:
        axes.set_ylim(bottom=0)
    axes.set_xticks(sweep.values, [str(value) for value in sweep.values])
    axes.grid(color="0.92", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper left", frameon=False)


def _row(what, cells):
    return f"{what:<40}" + "".join(f"{cell:>9}" for cell in cells)


if __name__ == "__main__":
    parser = cli.parser(__doc__, main)
    parser.add_argument("--out", help="folder for the picture")
    parser.add_argument("--rounds", type=cli.positive_int, help="how often each is timed")
    cli.run(main, parser)
