"""Measure how fast this machine is, what a training step needs at this speed, and how the time of a step grows.

    python demos/measure/scaling.py        about 2 minutes on 2 cores

NumPy only, float32.  One table is printed, and the picture scaling.png is written to --out:

    the machine  the rates of one core, in a process with one BLAS thread: matrix products of a
                 shape that is frequent in Winograd's convolution, copies (bytes read + bytes
                 written) of arrays that fit into no cache and of arrays of 256 KB, and tanh
    a step       a training step of the reference U-Net on one core: forward, backward, clipping,
                 Adam, average of the weights.  Operations are 2 M K N of each matrix product,
                 counted in the calls of the step.  The row of the direct convolution counts the
                 same step without Winograd's algorithm.  Bytes are those that each product reads
                 and writes, the maps that are kept for the backward pass, and the optimizer's
                 arrays.  "least" is the time at the rates above.  For a product it is the longer of
                 two times: that of its operations and that of its bytes in cache.  Maps and the
                 optimizer's arrays pass through memory twice.  For the step it is the sum.  "took"
                 is measured call by call.  The whole step is measured too, and "all else" is the
                 rest of it.
    growth       milliseconds a step against batch, channels and resolution on one core, and against
                 workers.  p is the power of the best fit, time ~ x^p.

The numbers are medians over rounds.  A round goes over all configurations of a sweep, so that a busy machine slows all
of them equally.  roofline.py measures the rates of the machine and counts the work of a step.
"""

import contextlib
import multiprocessing
import statistics
import textwrap
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from contestant import TRAIN, WARM_UP, Contestant
from figures import milliseconds
from matplotlib.figure import Figure
from ours import SIDE, Ours
from roofline import measure_rates, measure_step, rate_lines, step_lines
from tqdm import tqdm

from tinydiff.app import cli
from tinydiff.app.axes import log_scale
from tinydiff.app.checkpoint import atomic_write
from tinydiff.app.outputs import own_folder
from tinydiff.app.tables import WIDTH
from tinydiff.fast.processes import ONE_THREAD, available_cores, environment

REFERENCE = {"batch_size": 64, "channels": 32, "size": SIDE, "cores": 1}


@dataclass(frozen=True)
class Sweep:
    """One varied setting of the reference step.  power: of the guide line, time ~ value^power; None for a speed-up."""

    name: str
    values: tuple[int, ...]
    label: str
    power: int | None
    others: dict[str, int] = field(default_factory=dict)  # further settings that differ from REFERENCE

    def config(self, value):
        return REFERENCE | self.others | {self.name: value}

    def contestant(self, value):
        config = self.config(value)
        return Contestant(f"{self.name}={value}", config["cores"], partial(Ours, backend="numpy", **config))


SWEEPS = (
    Sweep("batch_size", (4, 8, 16, 32, 64, 128), "images in a batch", 1),
    Sweep("channels", (16, 32, 48, 64), "channels of the first level", 2),
    Sweep("size", (8, 12, 20, 28, 40, 56), "side of an image, pixels", 2, {"batch_size": 16}),  # 64 images need GBs
)


def main(*, out="runs/scaling", rounds=7):
    """Print the table, and write scaling.png to `out`."""
    cli.start("numpy", None)
    out = own_folder(out, "scaling.png")
    sweeps = (*SWEEPS, Sweep("cores", worker_counts(available_cores()), "worker processes", None))
    calls = 2 + (rounds + WARM_UP) * sum(len(sweep.values) for sweep in sweeps)
    with tqdm(total=calls, leave=False) as bar:
        spawn = multiprocessing.get_context("spawn")
        with environment(ONE_THREAD), ProcessPoolExecutor(1, spawn) as one_core:
            rates = one_core.submit(measure_rates, rounds).result()
            bar.update()
            step = one_core.submit(measure_step, REFERENCE, rounds).result()
            bar.update()
        growth = [(sweep, grow(sweep, rounds, bar)) for sweep in sweeps]
    print("\n".join([*rate_lines(rates), "", *step_lines(step, rates), "", *growth_lines(growth)]))
    with atomic_write(out / "scaling.png") as file:
        draw(growth).savefig(file, format="png")
    print(f"picture: {out}/scaling.png")


def worker_counts(cores):
    """The powers of two up to the number of cores, and this number: 6 cores have (1, 2, 4, 6)."""
    return tuple(sorted({2**k for k in range(cores.bit_length())} | {cores}))


def grow(sweep, rounds, bar):
    """{value: median seconds of a training step}, each configuration in a process of its own."""
    bar.set_description(sweep.name)
    seconds = {value: [] for value in sweep.values}
    with contextlib.ExitStack() as stack:
        contestants = {value: stack.enter_context(sweep.contestant(value)) for value in sweep.values}
        for contestant in contestants.values():  # all processes are starting in parallel
            contestant.answer()
        for _ in range(WARM_UP + rounds):
            for value, contestant in contestants.items():
                seconds[value].append(sum(contestant.ask("seconds", TRAIN, 1)))
                bar.update()
    return {value: statistics.median(samples[WARM_UP:]) for value, samples in seconds.items()}


def growth_lines(growth):
    """One row for each sweep: milliseconds, and the power or the speed-up."""
    lines = ["ms a step"]
    for sweep, by in growth:
        times = ", ".join(f"{value}: {milliseconds([s]).removesuffix(' ms')}" for value, s in by.items())
        result = f"p = {power_of(by):.2f}" if sweep.power else f"speed-up {speed_up(by)[-1]:.2f}"
        lines.append(textwrap.fill(f"{sweep.label:<28} {times}; {result}", WIDTH, subsequent_indent=29 * " "))
    return lines


def power_of(by):
    """The p of the best fit seconds ~ value^p to {value: seconds}, by least squares on the logarithms."""
    return np.polyfit(np.log(list(by)), np.log(list(by.values())), 1)[0]


def speed_up(by):
    """The first time in {workers: seconds}, divided by each time."""
    seconds = np.array(list(by.values()))
    return seconds[0] / seconds


def curves(sweep, by):
    """(x, measured y, y of the guide line, name of the guide line) of a panel.  x: the values of the sweep."""
    x, ms = np.array(list(by)), 1e3 * np.array(list(by.values()))
    if sweep.power is None:
        return x, speed_up(by), x / x[0], "ideal"
    return x, ms, ms[-1] * (x / x[-1]) ** sweep.power, f"slope {sweep.power}"


def draw(growth):
    """A figure with a panel for each (Sweep, {value: seconds}): milliseconds, or, for workers, the speed-up."""
    figure = Figure(figsize=(9, 6.6), dpi=128, layout="constrained", facecolor="white")
    for axes, (sweep, by) in zip(figure.subplots(2, 2).flat, growth):
        x, y, guide, name = curves(sweep, by)
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
        "cores": f"{config['cores']} core",
    }
    axes.set_title(", ".join(text for name, text in fixed.items() if name != sweep.name), loc="left", fontsize=11)
    axes.set_xlabel(sweep.label)
    axes.set_ylabel("ms a step" if sweep.power else "speed-up")
    if sweep.power:
        log_scale(axes, "x")
        log_scale(axes, "y")
    else:
        axes.set_ylim(bottom=0)
    ticks = sweep.values if len(sweep.values) > 1 else (0, *sweep.values)  # one tick alone shows no scale
    axes.set_xticks(ticks, [str(value) for value in ticks])
    axes.grid(color="0.92", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper left", frameon=False)


if __name__ == "__main__":
    parser = cli.parser(__doc__, main)
    parser.add_argument("--out", help="folder for the picture")
    parser.add_argument("--rounds", type=cli.whole(1, 1000), help="how often each step is timed")
    cli.run(main, parser)
