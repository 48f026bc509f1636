"""Train the main job with several settings, each from several seeds, and compare what the networks draw.

    python demos/measure/compare_settings.py schedule=linear,schedule=cosine
    python demos/measure/compare_settings.py "default, target=v min-snr=5, lr=0.004"

A setting contains options of train_mnist.py without their dashes, or is `default`; commas separate settings.  A setting
with steps=N has its own number of steps.  All networks draw from the same noise, and without guidance (--scale 1),
because guidance would hide what a network cannot do.  The columns of the table are:

    asked     share that the classifier reads as the label, of all seeds together, and
              its 95% interval
    frechet   distance of the features from those of test digits: the mean of the seeds
              (lowest to highest)
    coverage  share of test digits that have a drawn digit nearby, the mean of the seeds
    spread    how varied the digits of a class are, relative to real digits, the mean
    seconds   of the training, the mean; they mean little beside other programs

The last row, `real`, contains the same figures of as many real digits.  A comparison that was stopped goes on when the
same command is given again: each network has a folder of its own, and the figures of a finished one are in its row.csv.
"""

import csv
import io
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

sys.path.append(str(Path(__file__).parents[1]))  # of the main job

import job
import train_mnist

from tinydiff.app import cli
from tinydiff.app.checkpoint import atomic_write
from tinydiff.app.classify import load_classifier
from tinydiff.app.generate import Recipe, check_steps, generate
from tinydiff.app.kinds import data_settings
from tinydiff.app.metrics import interval, percent, relative
from tinydiff.app.outputs import own_folder
from tinydiff.app.reading import Judge
from tinydiff.app.tables import write_table
from tinydiff.app.trained import load_trained
from tinydiff.backend import TinydiffError
from tinydiff.data import NAMES, load

MEASURED = {"right": int, "frechet": float, "coverage": float, "spread": float, "seconds": float}
TAKEN = {
    "backend",
    "precision",
    "plain",
    "out",
    "resume",
    "seed",
    "workers",
    "parallel",
    "sample_every",
    "sample_steps",
}
NEVER, ROUGH = 10**9, 5  # steps between grids, and reverse steps of the pictures at the end of a run


def main(
    settings,
    *,
    classifier="runs/classifier/checkpoint.npz",
    backend="numpy",
    precision=None,
    plain=False,
    data="auto",
    data_dir=None,
    steps=600,
    seeds=(0, 1, 2),
    num=500,
    scale=1.0,
    sample_steps=Recipe.num_steps,
    out="runs/compare_settings",
    workers=None,
):
    """Train, draw and judge.  Write the table and the picture.  Returns {(setting, seed): figures} and those of real
    digits."""
    ranks = cli.start(backend, precision, plain=plain)
    out = own_folder(out, "settings.csv", "settings.png")
    workers = workers or ranks.default_workers()
    plan = {setting: {"steps": steps} | options_of(setting) for setting in settings}
    test = load(data, "test", data_dir, 0)
    common = {"backend": backend, "precision": precision, "plain": plain, "data": test.name, "data_dir": data_dir}
    common |= {"workers": workers, "sample_every": NEVER, "sample_steps": ROUGH}
    with load_classifier(Path(classifier), workers, data_settings(test))[0] as pool:
        judge = Judge(pool, test, num)
        rows = {}
        for setting, options in plan.items():
            for seed in seeds:
                folder = own_folder(out / folder_name(setting) / f"seed_{seed}")
                measured = partial(measure, folder, common | options | {"seed": seed}, judge, scale, sample_steps)
                which = {"data": test.name, "classifier": classifier, "steps": options["steps"]}
                which |= {"num": num, "scale": scale, "sample_steps": sample_steps}
                rows[setting, seed] = row_of(folder / "row.csv", which, measured)
    table = summary(rows, judge.real, num)
    print(f"{test.name}, {cli.counted(num, 'image')} a network, guidance {scale:g}, seeds {cli.as_typed(seeds)}")
    write_table(out / "settings.csv", table)
    with atomic_write(out / "settings.png") as file:
        picture(rows, judge.real, num).savefig(file, format="png")
    print(f"table and picture: {out}/settings.csv, settings.png")
    return rows, judge.real


def options_of(setting):
    """The options of train_mnist.main that a setting names, such as {"target": "v", "min_snr": 5.0}.

    Argparse ends the program for an option that train_mnist.py does not have, or for a bad value.  Raises TinydiffError
    for an empty setting, and for an option that must be the same for all settings.
    """
    if not setting:
        raise TinydiffError("a setting is empty: write default, or options such as target=v")
    words = [] if setting == "default" else [f"--{word}" for word in setting.split()]
    parser = cli.parser(None, train_mnist.main)
    job.add_options(parser)
    given = vars(parser.parse_args(words))
    chosen = {name: value for name, value in given.items() if value != parser.get_default(name)}
    if taken := chosen.keys() & TAKEN:
        raise TinydiffError(f"{setting}: {' and '.join(sorted(taken))} cannot differ between settings")
    return chosen


def folder_name(setting):
    """The name of a setting's folder: its letters, digits, points and signs; anything else becomes a line."""
    return "".join(letter if letter.isalnum() or letter in "=.-" else "_" for letter in setting)


def row_of(path, which, measured):
    """The figures in the file at `path`, if they were measured as `which` says; otherwise measured(), which is saved.

    which: the settings of the measurement.
    """
    if path.exists():
        with open(path, newline="") as file:
            row = next(csv.DictReader(file))
        if all(row.get(name) == str(value) for name, value in which.items()):
            return {name: kind(row[name]) for name, kind in MEASURED.items()}
    figures = measured()
    text = io.StringIO()
    writer = csv.DictWriter(text, [*which, *figures], lineterminator="\n")
    writer.writeheader()
    writer.writerow(which | figures)
    with atomic_write(path) as file:
        file.write(text.getvalue().encode())
    return figures


def measure(folder, options, judge, scale, sample_steps):
    """Train a network in its folder, draw with it, and judge: the figures of MEASURED.

    A run that was stopped on its way goes on.
    """
    began = time.monotonic()
    train_mnist.main(**options, out=folder, resume=(folder / "checkpoint.npz").exists())
    seconds = time.monotonic() - began
    pool, schedule, meta = load_trained(folder / "checkpoint.npz", options["workers"])
    check_steps(schedule.T, sample_steps=sample_steps)
    recipe = Recipe(schedule, tuple(meta["data"]["image_shape"]), num_steps=sample_steps, scale=scale)
    with pool:
        images, labels = digits_of(pool, recipe, judge.num, 0)
    return judge(images, labels) | {"seconds": seconds}


def digits_of(pool, recipe, num, seed):
    """num images in [-1, 1], and their labels, which are the classes in turn."""
    labels = np.arange(num) % pool.model.num_classes
    images = np.concatenate([frames[-1] for frames in generate(pool, recipe, labels.tolist(), seed)])
    return np.clip(images, -1, 1), labels


def summary(rows, real, num):
    """The rows of the table: one for each setting, in their order, and `real`.

    rows: {(setting, seed): figures}.  real: the figures of as many real digits.  num: the digits of a network.
    """
    settings = dict.fromkeys(setting for setting, _ in rows)
    named = {setting: [row for (name, _), row in rows.items() if name == setting] for setting in settings}
    return [{"setting": name} | cells(figures, real, num) for name, figures in (named | {"real": [real]}).items()]


def cells(figures, real, num):
    """The measured cells of a table's row, from one entry for each seed; seconds are "-" where there are none."""
    right, n = sum(row["right"] for row in figures), num * len(figures)
    distances = [row["frechet"] for row in figures]
    ends = f" ({min(distances):.3g} to {max(distances):.3g})" if len(distances) > 1 else ""
    return {
        "asked": f"{percent(right / n)} ({interval(right, n)})",
        "frechet": f"{np.mean(distances):.3g}{ends}",
        "coverage": percent(np.mean([row["coverage"] for row in figures])),
        "spread": percent(np.mean([relative(row["spread"], real["spread"]) for row in figures])),
        "seconds": f"{np.mean([row['seconds'] for row in figures]):.0f}" if "seconds" in figures[0] else "-",
    }


def picture(rows, real, num):
    """A figure: the share read as asked, and coverage, against the Frechet distance; a point for each network."""
    figure = Figure(figsize=(11, 4.6), dpi=100, layout="constrained")
    for axes, _, height in panels(figure, num):
        for k, setting in enumerate(dict.fromkeys(setting for setting, _ in rows)):
            points = [row for (name, _), row in rows.items() if name == setting]
            x, y = [row["frechet"] for row in points], [100 * height(row) for row in points]
            axes.plot(x, y, "o", color=f"C{k}", ms=7, alpha=0.85, label=setting)
        axes.plot(real["frechet"], 100 * height(real), "k*", ms=12, label="as many real digits")
    axes.legend(frameon=False, fontsize=9)
    return figure


def panels(figure, num):
    """Yield (axes, title, height) of two panels against the Frechet distance.  height(figures): a share, to be drawn in
    percent.  num: the digits that a share read as asked is a part of."""
    heights = {"read as asked": lambda row: row["right"] / num, "coverage of test digits": lambda row: row["coverage"]}
    for axes, (title, height) in zip(figure.subplots(1, 2), heights.items()):
        axes.set_title(title, fontsize=11)
        axes.set_xlabel("Frechet distance from test digits")
        axes.yaxis.set_major_formatter("{x:g}%")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        yield axes, title, height


if __name__ == "__main__":
    parser = cli.parser(__doc__, main)
    parser.add_argument("settings", type=cli.list_of(str), help="such as 'default, target=v min-snr=5'")
    cli.add_backend(parser)
    parser.add_argument("--classifier", help="checkpoint.npz of train_classifier.py")
    parser.add_argument("--data", choices=NAMES, help="auto: MNIST, or drawn digits if MNIST cannot be loaded")
    cli.add_data_dir(parser)
    parser.add_argument("--steps", type=cli.positive_int, help="training steps of a network")
    parser.add_argument("--seeds", type=cli.list_of(cli.non_negative_int), help="each setting is trained from each")
    parser.add_argument("--num", type=cli.positive_int, help="digits that a network draws, a multiple of 10")
    parser.add_argument("--scale", type=cli.non_negative_float, help="guidance: 1 follows the label")
    parser.add_argument("--sample-steps", type=cli.positive_int, help="reverse steps of each digit")
    parser.add_argument("--out", help="folder for the table, the picture and the networks")
    parser.add_argument("--workers", type=cli.positive_int, help="processes to share the work (default: all cores)")
    cli.run(main, parser)
