"""What can this machine do, how much of it does a training step need, and how does the step's time grow?

    python demos/measure/scaling.py        about 2 minutes on 2 cores; the picture is runs/scaling/scaling.png

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

Figures are medians over rounds; a round goes over all configurations of a sweep, so that a busy machine slows all of
them alike.  The machine's rates and the count of a step are roofline.py's.
"""

import contextlib
import multiprocessing
import statistics
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from contestant import TRAIN, WARM_UP, Contestant
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from ours import SIDE, Ours
from roofline import RATES, measure_rates, measure_step, step_lines
from tqdm import tqdm

from tinydiff.app import cli
from tinydiff.app.checkpoint import atomic_write
from tinydiff.fast.workers import ONE_THREAD, available_cores, environment

REFERENCE = {"batch_size": 64, "channels": 32, "size": SIDE, "cores": 1}


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
        return Contestant(f"{self.name}={value}", config["cores"], partial(Ours, backend="numpy", **config))


SWEEPS = (
    Sweep("batch_size", (4, 8, 16, 32, 64, 128), "images in a batch", 1),
    Sweep("channels", (16, 32, 48, 64), "channels of the first level", 2),
    Sweep("size", (8, 12, 20, 28, 40, 56), "side of an image, pixels", 2, {"batch_size": 16}),  # 64 would need GBs
)


def main(*, out="runs/scaling", rounds=7):
    """Write scaling.png to `out` and print the table."""
    cli.start("numpy", None)
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    cores = available_cores()
    counts = tuple(sorted({2**k for k in range(cores.bit_length())} | {cores}))
    sweeps = (*SWEEPS, Sweep("cores", counts, "worker processes", None))
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


def growth_lines(growth):
    """One row for each sweep: its milliseconds, and the power or the speed-up that they amount to."""
    lines = ["ms a step"]
    for sweep, by in growth:
        times = ", ".join(f"{value}: {1e3 * s:.1f}" for value, s in by.items())
        result = f"p = {power_of(by):.2f}" if sweep.power else f"speed-up {speed_up(by)[-1]:.2f}"
        lines.append(f"{sweep.label:<40} {times}; {result}")
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
        "cores": f"{config['cores']} core",
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


if __name__ == "__main__":
    parser = cli.parser(__doc__, main)
    parser.add_argument("--out", help="folder for the picture")
    parser.add_argument("--rounds", type=cli.positive_int, help="how often each is timed")
    cli.run(main, parser)
