"""Measure what guidance gains and what it costs: digits read as asked against their distance from real digits.

    python demos/measure/frontier.py runs/mnist/checkpoint.npz
    python demos/measure/frontier.py runs/mnist/checkpoint.npz --scales 1,1.25 --autos 1,2

A point of the table has a scale of classifier-free guidance and a weight of autoguidance, each 1 if it is none.  All
pairs of --scales and --autos are measured, from the same noise.  --interval also measures each pair with guidance at
middle noise levels only, as guidance.py does.  The columns are:

    asked     share that the classifier reads as the label, and its 95% interval
    frechet   distance of the features from those of test digits
    coverage  share of test digits that have a drawn digit nearby
    spread    how varied the digits of a class are, relative to real digits
    seconds   of the drawing

The last row, `real`, contains the figures of as many real digits.  The best point is the nearest to real digits of all
that are read as asked at least 99% of the time.  A measurement that was stopped goes on when the same command is given
again.
"""

import sys
import time
import zlib
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from tqdm import tqdm

sys.path.append(str(Path(__file__).parents[1]))  # of guidance.py

from compare_settings import cells, digits_of, panels, row_of
from guidance import interval_times

from tinydiff.app import cli
from tinydiff.app.checkpoint import atomic_write
from tinydiff.app.choices import check_classes, guidance
from tinydiff.app.classify import load_classifier
from tinydiff.app.generate import Recipe, by_label, check_steps
from tinydiff.app.kinds import EVERY, data_name, data_size
from tinydiff.app.metrics import wilson_interval
from tinydiff.app.outputs import own_folder
from tinydiff.app.reading import Judge, check_num
from tinydiff.app.tables import write_table
from tinydiff.app.trained import load_guided
from tinydiff.data import load
from tinydiff.diffusion import within

SCALES, AUTOS = (1.0, 1.25, 1.5, 2.0), (1.0, 1.5, 2.0)
LEAST = 0.99  # the share read as asked that the best point must have


def main(
    checkpoint,
    *,
    classifier="runs/classifier/checkpoint.npz",
    backend="numpy",
    precision=None,
    plain=False,
    num=500,
    scales=SCALES,
    autos=AUTOS,
    interval=False,
    steps=Recipe.num_steps,
    seed=0,
    data_dir=None,
    out="runs/frontier",
    workers=None,
):
    """Draw and judge each point.  Write table and picture.  Returns {point: figures} and the figures of real digits."""
    ranks = cli.start(backend, precision, plain=plain)
    workers, out = workers or ranks.default_workers(), own_folder(out, "frontier.csv", "frontier.png")
    pool, schedule, meta = load_guided(Path(checkpoint), workers)
    check_classes(checkpoint, pool.model)
    check_steps(schedule.T, steps=steps)
    test = load(data_name(meta, EVERY), "test", data_dir, meta["train"]["seed"], **data_size(meta))
    check_num(test, num)
    plan = {point: recipe_of(point, pool.model, schedule, meta, steps) for point in points(scales, autos, interval)}
    weights = zlib.crc32(b"".join(a.tobytes() for a in pool.model.state_dict().values()))  # of this very network
    which = {"weights": weights, "classifier": classifier, "num": num, "steps": steps, "seed": seed}
    with pool, load_classifier(Path(classifier), workers, meta["data"])[0] as reader:
        judge, rows, folder = Judge(reader, test, num), {}, own_folder(out / "points")
        for point, recipe in tqdm(plan.items(), unit="point"):
            path = folder / f"{name_of(point).replace(', ', '_').replace(' ', '_')}.csv"
            rows[point] = row_of(path, which, partial(measure, pool, recipe, judge, seed))
    drawn = f"DDPM in {cli.counted(steps, 'step')}, seed {seed}"
    print(f"{meta['data']['name']}, {cli.counted(meta['step'], 'step')}; {cli.counted(num, 'image')} a point, {drawn}")
    write_table(out / "frontier.csv", table_of(rows, judge.real, num))
    with atomic_write(out / "frontier.png") as file:
        picture(rows, judge.real, num).savefig(file, format="png")
    chosen = best(rows, num)
    print(f"nearest of all that {LEAST:.0%} read as asked: {name_of(chosen) if chosen else 'none'}")
    print(f"table and picture: {out}/frontier.csv, frontier.png")
    return rows, judge.real


def points(scales, autos, interval):
    """(scale, auto, whether at middle noise levels only) of each point.  Without guidance there is no interval."""
    pairs = [(scale, auto) for auto in autos for scale in scales]
    middle = [(scale, auto, True) for scale, auto in pairs if interval and (scale, auto) != (1, 1)]
    return [(*pair, False) for pair in pairs] + middle


def name_of(point):
    scale, auto, middle = point
    return f"scale {scale:g}, auto {auto:g}{', interval' * middle}"


def recipe_of(point, model, schedule, meta, steps):
    """The Recipe of a point."""
    scale, auto, middle = point
    settings, _ = guidance(model, scale, auto)
    if middle:
        settings["guide"] = partial(in_interval, *interval_times(schedule), settings["guide"])
    return Recipe(schedule, tuple(meta["data"]["image_shape"]), num_steps=steps, **settings)


def in_interval(low, high, guide, model, labels, scale):
    """A guide that guides where low < t <= high, and otherwise only follows the labels."""
    return within(low, high, guide(model, labels, scale), by_label(model, labels, 1.0))


def measure(pool, recipe, judge, seed):
    """Draw judge.num digits, and judge them: the figures of a point."""
    began = time.monotonic()
    images, labels = digits_of(pool, recipe, judge.num, seed)
    seconds = time.monotonic() - began
    return judge(images, labels) | {"seconds": seconds}


def best(rows, num):
    """The point nearest to real digits of those with LEAST read as asked; None if there is none."""
    right = [point for point, row in rows.items() if row["right"] >= LEAST * num]
    return min(right, key=lambda point: rows[point]["frechet"], default=None)


def table_of(rows, real, num):
    named = {name_of(point): row for point, row in rows.items()} | {"real": real}
    return [{"point": name} | cells([row], real, num) for name, row in named.items()]


def picture(rows, real, num):
    """A figure: the share read as asked, and coverage, against the Frechet distance.

    A line joins the points of one weight of autoguidance, from the smallest scale on; the scales stand beside the
    points.  Points of an interval are open.
    """
    figure = Figure(figsize=(11, 4.8), dpi=100, layout="constrained")
    families = sorted({(auto, middle) for _, auto, middle in rows})
    for axes, title, height in panels(figure, num):
        for auto, middle in families:
            scales = sorted(scale for scale, a, m in rows if (a, m) == (auto, middle))
            family = [rows[scale, auto, middle] for scale in scales]
            x, y = [row["frechet"] for row in family], [100 * height(row) for row in family]
            how = {"color": f"C{[*dict.fromkeys(a for a, _ in families)].index(auto)}", "alpha": 0.85, "ms": 6}
            how |= {"ls": "--", "mfc": "white"} if middle else {"ls": "-"}
            kind = "no autoguidance" if auto == 1 else f"autoguidance {auto:g}"
            axes.plot(x, y, marker="o", label=f"{kind}{', interval' * middle}", **how)
            for scale, at in zip(scales, zip(x, y)):
                axes.annotate(f"{scale:g}", at, xytext=(5, -9), textcoords="offset points", fontsize=8, color="0.3")
            if title == "read as asked":
                ends = np.array([wilson_interval(row["right"], num) for row in family]).T * 100
                axes.vlines(x, *ends, color=how["color"], alpha=0.3)
        axes.plot(real["frechet"], 100 * height(real), "k*", ms=12, ls="none", label="as many real digits")
        if title == "read as asked":
            axes.axhline(100 * LEAST, color="0.6", lw=1, ls=":")
        if (chosen := best(rows, num)) is not None:
            axes.plot(rows[chosen]["frechet"], 100 * height(rows[chosen]), "o", ms=15, mfc="none", color="0.3")
    axes.legend(frameon=False, fontsize=9, title="beside a point: the scale of\nclassifier-free guidance")
    return figure


if __name__ == "__main__":
    parser = cli.parser(__doc__, main)
    parser.add_argument("checkpoint", help="checkpoint.npz of train_mnist.py")
    cli.add_backend(parser)
    parser.add_argument("--classifier", help="checkpoint.npz of train_classifier.py, to read the digits")
    parser.add_argument("--num", type=cli.positive_int, help="digits of a point, a multiple of 10")
    numbers = cli.list_of(cli.non_negative_float)
    parser.add_argument("--scales", type=numbers, help="of classifier-free guidance; 1 is none")
    parser.add_argument("--autos", type=numbers, help="weights of autoguidance; 1 is none")
    parser.add_argument("--interval", action="store_true", help="also guide at middle noise levels only")
    parser.add_argument("--steps", type=cli.positive_int, help="reverse steps, at most the schedule's T")
    parser.add_argument("--seed", type=cli.non_negative_int, help="seed of the noise")
    cli.add_data_dir(parser)
    parser.add_argument("--out", metavar="DIR", help="folder for the results")
    parser.add_argument("--workers", type=cli.positive_int, help="processes to share the work (default: all cores)")
    cli.run(main, parser)
