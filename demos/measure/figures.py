"""Medians and ratios of the measured seconds, and the file with them.  Read next: on_cpu.py."""

import json
import statistics

from ours import OURS, PLAIN

from tinydiff.app.checkpoint import atomic_write


def medians(samples):
    """[median of all stages together, *median of each stage] over the rounds."""
    return [statistics.median(map(sum, samples)), *map(statistics.median, zip(*samples))]


def ahead(by_name):
    """The smallest of PyTorch's numbers / our number; None without PyTorch."""
    theirs = [figure for name, figure in by_name.items() if name not in (OURS, PLAIN)]
    return min(theirs) / by_name[OURS] if theirs else None


def memory_ratio(peak_mb):
    """Our memory / the smallest of PyTorch's; None without PyTorch, or if a number is not known."""
    less = None if None in peak_mb.values() else ahead(peak_mb)
    return less and 1 / less


def plain_ratio(by_name):
    """The number of the plain functions / that of the fast ones; None if the plain ones were not measured."""
    return by_name[PLAIN] / by_name[OURS] if PLAIN in by_name else None


def number(x):
    """A number as text with two decimals, or a dash for None."""
    return "-" if x is None else f"{x:.2f}"


def images_a_second(rate):
    """A rate as text: "213.4 img/s", from 1,000 on without a decimal."""
    return f"{rate:.{0 if rate > 999 else 1}f} img/s"


def steps_a_second(rate):
    """A rate as text: "3.33 step/s", from 100 on without a decimal."""
    return f"{rate:.{0 if rate >= 100 else 2}f} step/s"


def images_and_levels(data_shape, channels, network):
    """What is computed with, in a line: "images 32x32x3, levels of 32, 64, 64 channels"."""
    widths = ", ".join(str(channels * mult) for mult in network["channel_mults"])
    return f"images {'x'.join(map(str, data_shape))}, levels of {widths} channels"


def milliseconds(stages):
    """The seconds of each stage as milliseconds with three digits: "0.10+0.57 ms"."""
    digits = (2 if 1e3 * s < 9.995 else 1 if 1e3 * s < 99.95 else 0 for s in stages)
    return "+".join(f"{1e3 * s:.{n}f}" for s, n in zip(stages, digits)) + " ms"


def write_json(path, report):
    """Write the whole report.  If writing fails, an old file is unchanged."""
    with atomic_write(path) as file:
        file.write(json.dumps(report, indent=1, allow_nan=False).encode())
