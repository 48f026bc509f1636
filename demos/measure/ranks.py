"""Measure a training step on worker processes or MPI ranks, and predict it for many ranks.

    python demos/measure/ranks.py --workers 1                        with a prediction
    python demos/measure/ranks.py --workers 2
    mpiexec -n 2 python demos/measure/ranks.py --parallel mpi
    mpiexec -n 2 --mca btl tcp,self python demos/measure/ranks.py --parallel mpi      over TCP

Each command measures the training step of the reference U-Net with a batch of 64 images, split over the workers, so
that the commands can be compared in images a second.  MPI ranks also time the Allreduce alone, for one number (the
latency of 2 (n - 1) messages) and for the gradient.  With one worker the program also evaluates a model of many ranks
(weak scaling, B images on every rank):

    T(n) = B c + D d + n B e + u + 2 (n - 1)/n S/bandwidth + 2 (n - 1) latency
    efficiency = T(1)/T(n)

c: seconds to compute an image.  d: seconds to draw an image.  A rank draws D images: its own, and those in the same
blocks of the batch (app/blocks.py), at most B and two blocks.  e: seconds for an image of any rank, whose time t is
drawn and whose place in the arrays of the batch is filled.  u: seconds of the update.  The last two terms are the ring
Allreduce of S bytes, in 2 (n - 1) messages of S/n bytes.  No algorithm takes less time than the first of these terms.
Nothing overlaps: each part starts when the part before has ended.  A network `scale` times larger has scale times c, u
and S.  Each rank has a link of its own.
"""

import math
import statistics
import time
from functools import partial

import numpy as np
from matplotlib.figure import Figure

from tinydiff.app import cli
from tinydiff.app.blocks import BLOCK, in_blocks
from tinydiff.app.checkpoint import atomic_write
from tinydiff.app.generate import build_unet
from tinydiff.app.outputs import own_folder
from tinydiff.app.tables import write_table
from tinydiff.app.training import diffusion_training
from tinydiff.backend import TinydiffError, default_rng
from tinydiff.data import Dataset
from tinydiff.diffusion import Schedule
from tinydiff.train import TrainConfig, draw_batch, noise_prediction_losses, train

OUT = "runs/ranks"
BATCH, GOOD = 64, 0.9  # images of a rank; the efficiency that is wanted
OTHERS = 16  # blocks of other ranks, in the measurement of e
LATENCY = 30e-6  # seconds a message, with TCP between two machines
RANKS, SCALES, GIGABITS, SPEEDS = (2, 16, 128, 1024), (1, 50), (10, 100), (1, 100)


def main(*, parallel="local", workers=None, rounds=15, out=None):
    """Measure and print.  With one worker, also write ranks.md and ranks.png to `out`."""
    ranks = cli.start("numpy", None, parallel)
    workers = workers or ranks.default_workers()
    writes = ranks.size == workers == 1
    if out is not None and not writes:
        raise TinydiffError(f"--out {out}: files are written with one worker only; leave it out, or add --workers 1")
    if writes:
        out = own_folder(OUT if out is None else out, "ranks.md", "ranks.png")
    dataset = noise_images()
    with ranks.workers(partial(build_unet, {"num_classes": 10}, 0), workers) as pool:
        step, costs = measure_step(pool, dataset, rounds)
        print(step_line(workers, parallel, step))
        if ranks.size > 1:
            numbers = costs["numbers"]
            arrays = (np.ones(n, "float32") for n in (1, numbers))
            one, whole = (seconds(partial(ranks.allreduce_mean, a), 5 * rounds) for a in arrays)
            print(*allreduce_lines(ranks.size, one, whole, numbers), sep="\n")
    if not writes:
        return
    costs["e"] = measure_others(dataset, rounds)
    print(costs_line(costs))
    write_table(out / "ranks.md", table(costs))
    with atomic_write(out / "ranks.png") as file:
        picture(costs).savefig(file, format="png")
    print(f"picture: {out}/ranks.png")


def noise_images():
    """5,000 images of random pixels: their values cost no time, but their number is that of a data set."""
    images = default_rng(0).integers(0, 256, (5000, 28, 28, 1), dtype=np.uint8)
    return Dataset("noise", images, np.zeros(5000, np.uint8), "random pixels", tuple("0123456789"))


def measure_step(pool, dataset, rounds):
    """The seconds of a step, and a dictionary of its costs c, d and u and of how many numbers the gradient has."""
    state = diffusion_training(pool, Schedule.linear(), TrainConfig(batch_size=BATCH, minutes=None), dataset)
    batch, steps = state.draw(state.config, 0), train(state)
    step = seconds(partial(next, steps), rounds)
    gradient = seconds(partial(pool.gradients, noise_prediction_losses, batch), rounds)
    draw = seconds(partial(state.draw, state.config, 0), rounds)
    update = max(0.0, step - gradient - draw)
    return step, {"c": gradient / BATCH, "d": draw / BATCH, "u": update, "numbers": len(pool.flat.data)}


def measure_others(dataset, rounds):
    """The cost e, from a batch of one block and a batch with OTHERS more blocks.  The rank's rows are in the first."""

    def draw_from(source):
        return partial(draw_batch, source, Schedule.linear(), 10)

    draw = in_blocks(draw_from, dataset, lambda n: slice(0, BATCH))
    configs = (TrainConfig(batch_size=blocks * BLOCK, minutes=None) for blocks in (1, 1 + OTHERS))
    first, large = (seconds(partial(draw, config, 0), rounds) for config in configs)
    return max(0.0, large - first) / (OTHERS * BLOCK)


def seconds(call, rounds):
    """The median time of a call, after two calls that do not count."""
    times = []
    for _ in range(rounds + 2):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return statistics.median(times[2:])


def step_line(workers, parallel, step):
    """What is printed of a step of BATCH images that takes `step` seconds."""
    what = "MPI rank(s)" if parallel == "mpi" else "local worker(s)"
    return f"{workers} {what}: {1e3 * step:.1f} ms a step, {BATCH / step:.1f} img/s"


def allreduce_lines(n, one, whole, numbers):
    """What is printed of an Allreduce over n ranks: `one` and `whole` are the seconds for one and for all numbers.

    From T = 2 (n - 1) latency for one number, and T + 2 (n - 1)/n S/bandwidth for all of them.
    """
    size = 4 * numbers
    rate = f"{2e-9 * (n - 1) / n * size / (whole - one):.2f} GB/s" if whole > one else "too much to measure"
    return [
        f"Allreduce: {1e6 * one:.1f} us for 4 bytes, {1e3 * whole:.2f} ms for {size:,} bytes",
        f"so {1e6 * one / (2 * (n - 1)):.1f} us a message and {rate} each way",
    ]


def costs_line(costs):
    """What is printed of the costs c, d, e and u."""
    drawn = f"drawn in {1e6 * costs['d']:.1f} us, {1e9 * costs['e']:.0f} ns for another rank's"
    return f"an image: {1e3 * costs['c']:.2f} ms, {drawn}; update {1e3 * costs['u']:.1f} ms"


def allreduce(n, size, gigabits):
    """Seconds of a ring Allreduce of `size` bytes over n ranks."""
    return 2 * (n - 1) / n * size * 8e-9 / gigabits + 2 * (n - 1) * LATENCY


def drawing(costs, n, batch):
    """Seconds that one of n ranks with `batch` images each needs to draw, if blocks divide the whole batch."""
    return min(n * batch, batch + 2 * BLOCK) * costs["d"] + n * batch * costs["e"]


def efficiency(costs, n, *, scale=1, gigabits=10, speed=1, batch=BATCH):
    """T(1)/T(n) for ranks that compute `speed` times as fast as the measured rank, but draw at the same speed."""
    work = (batch * costs["c"] + costs["u"]) * scale / speed
    sent = allreduce(n, 4 * scale * costs["numbers"], gigabits)
    return (work + drawing(costs, 1, batch)) / (work + drawing(costs, n, batch) + sent)


def batch_for(costs, n, **kwargs):
    """The smallest B, images of a rank, with efficiency GOOD on n ranks; None if drawing is too slow with every B."""
    low, high = 0, 1
    while efficiency(costs, n, batch=high, **kwargs) < GOOD:
        low, high = high, 2 * high
        if high > 1e12:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if efficiency(costs, n, batch=middle, **kwargs) >= GOOD else (middle, high)
    return high


def table(costs):
    """For each network, link and number of ranks: the efficiency, and the smallest whole batch with GOOD efficiency."""
    rows = []
    for speed in SPEEDS:
        for scale in SCALES:
            for gigabits in GIGABITS:
                row = {"rank": f"{speed}x", "network": f"{scale}x", "Gbit/s": gigabits}
                for n in RANKS:
                    settings = {"scale": scale, "gigabits": gigabits, "speed": speed}
                    each = batch_for(costs, n, **settings)
                    needed = "never" if each is None else f"{n * each:,}"
                    row[f"n = {n:,}"] = f"{efficiency(costs, n, **settings):.1%} ({needed})"
                rows.append(row)
    return rows


def picture(costs):
    """A figure of the efficiency against the number of ranks, with a panel for each speed of a rank."""
    figure = Figure(figsize=(9, 3.8), dpi=110, layout="constrained", facecolor="white")
    n = 2 ** np.arange(0, 11)
    for axes, speed in zip(figure.subplots(1, 2, sharey=True), SPEEDS):
        for scale in SCALES:
            for gigabits in GIGABITS:
                y = [100 * efficiency(costs, k, scale=scale, gigabits=gigabits, speed=speed) for k in n.tolist()]
                style = {"ls": "-" if scale == 1 else "--", "color": f"C{GIGABITS.index(gigabits)}", "lw": 1.8}
                size = 4e-6 * scale * costs["numbers"]
                axes.plot(n, y, label=f"{size:,.0f} MB of gradient, {gigabits} Gbit/s", **style)
        axes.set_xscale("log", base=2)
        axes.set_xticks(n[::2], [f"{k:,}" for k in n[::2].tolist()])
        axes.set_ylim(0, 103)
        axes.set_xlabel("ranks")
        a_second = math.floor(speed / costs["c"])
        axes.set_title(f"ranks of {a_second:,} img/s (at {4e-6 * costs['numbers']:,.0f} MB)", loc="left", fontsize=11)
        axes.grid(color="0.92", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("efficiency, %")
    figure.axes[0].legend(loc="lower left", frameon=False, fontsize=9)
    figure.suptitle(f"Predicted, {BATCH} images a rank, nothing overlapped", x=0.01, ha="left", fontsize=12)
    return figure


if __name__ == "__main__":
    parser = cli.parser(__doc__, main)
    cli.add_parallel(parser)
    parser.add_argument("--rounds", type=cli.whole(1, 1000), help="how often each part is timed")
    parser.add_argument("--out", help=f"folder for table and picture, with one worker (default: {OUT})")
    cli.run(main, parser)
