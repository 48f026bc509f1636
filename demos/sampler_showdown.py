"""Measure how many steps a sampler needs: DDPM with both variances, DDIM and DPM-Solver++(2M), 1 step to 1,000.

    python demos/sampler_showdown.py runs/mnist/checkpoint.npz

Each row of the table is a sampler with a number of steps.  The classifier measures the digits of a row in two ways: the
share that is read as the label, and the Frechet distance of their features from those of test digits.  The floor is
the same distance for as many other real digits.  Guidance is off (scale 1) in most rows, because guidance would hide
differences between samplers.  All rows start from the same noise.  One step of any sampler draws x_0_hat of x_T,
which is speckle.  The second and the third step buy most of the quality.

The digits of each row are saved in OUT/digits, so a run that was stopped can continue.  Their file is named by a digest
of all that determines them: the checkpoint, the sampler, the settings, the machine's arrays and the source.
The default of 1,000 digits takes 2.0 million evaluations of the network: 50 minutes at 660 a second.
"""

import hashlib
import json
import time
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from tqdm import tqdm

from tinydiff.app import checkpoint as checkpoints
from tinydiff.app import cli, plots
from tinydiff.app.axes import log_scale
from tinydiff.app.checkpoint import atomic_write
from tinydiff.app.choices import DDIM, DPM_SOLVER_2M, check_classes
from tinydiff.app.classify import load_classifier
from tinydiff.app.generate import DDPM, Recipe, check_steps, generate, uniform
from tinydiff.app.kinds import EVERY, data_name, data_size
from tinydiff.app.metrics import frechet_with_floor, interval, percent, wilson_interval
from tinydiff.app.outputs import own_folder
from tinydiff.app.reading import features, look
from tinydiff.app.trained import load_trained
from tinydiff.backend import TinydiffError, backend_name, xp
from tinydiff.backend import precision as current_precision
from tinydiff.data import load
from tinydiff.data.limits import read_file
from tinydiff.diffusion import Schedule, ddpm_step, log_snr_pairs
from tinydiff.fast.mpi import source_digest


def DDPM_BETA(schedule):
    """ddpm_step with the larger variance, in the form that a Recipe takes."""
    return partial(ddpm_step, schedule, variance=Schedule.beta_t_given_s, clip=True)


# name -> (the step of a Recipe, the times that the steps visit)
SAMPLERS = {
    "DDPM, beta_tilde": (DDPM, uniform),
    "DDPM, beta": (DDPM_BETA, uniform),
    "DDIM": (DDIM, uniform),
    "2M": (DPM_SOLVER_2M, uniform),
    "2M, even log SNR": (DPM_SOLVER_2M, log_snr_pairs),
}
GUIDED = (("2M", 10), ("2M, even log SNR", 10), ("DDIM", 20))  # rows with few steps at the default guidance
SHOWN = 5  # digits of each row in the picture
MOST = 6  # numbers of steps in the picture of the digits


def main(
    checkpoint,
    *,
    classifier="runs/classifier/checkpoint.npz",
    backend="numpy",
    precision=None,
    plain=False,
    num=1000,
    steps=(1, 2, 3, 5, 10, 20, 50, 100),
    longest=1000,
    out="runs/sampler_showdown",
    data_dir=None,
    seed=0,
    workers=None,
):
    """Draw and judge.  Write the table after each row, and the picture at the end.  Returns the rows."""
    ranks = cli.start(backend, precision, plain=plain)
    out = own_folder(out, "sampler_showdown.csv", "sampler_showdown.png")
    own_folder(out / "digits")
    workers = workers or ranks.default_workers()
    pool, schedule, meta = load_trained(Path(checkpoint), workers)
    settings = what_decides(checkpoint, plain, workers, num, seed)
    check_classes(checkpoint, pool.model)
    data = data_name(meta, EVERY)
    judge, _ = load_classifier(Path(classifier), workers, meta["data"])
    with pool, judge:
        check_steps(schedule.T, steps=max(steps), longest=longest)
        test = load(data, "test", data_dir, meta["train"]["seed"], **data_size(meta))
        real = np.concatenate(list(features(judge, real_digits(test, num))))
        labels, plan, image_shape = [i % 10 for i in range(num)], planned(steps, longest, schedule.T), shape_of(meta)
        rows, shown = [], {}
        tqdm.write(HEADING)
        try:
            with tqdm(total=num * sum(map(evaluations, plan)), unit="eval", dynamic_ncols=True) as bar:
                for name, n, scale in plan:
                    bar.set_postfix_str(f"{name}, {cli.counted(n, 'step')}, scale {scale:g}")
                    which = {"sampler": name, "steps": n, "scale": scale}
                    recipe = recipe_of(schedule, image_shape, **which)
                    images, seconds = draw(out / "digits", settings | which, pool, recipe, labels, seed)
                    rows.append(which | judged(judge, images, labels, real) | {"seconds": seconds})
                    shown[name, n, scale] = images[:SHOWN]
                    save_table(out / "sampler_showdown.csv", rows)
                    tqdm.write(line(rows[-1]))
                    bar.update(num * evaluations((name, n, scale)))
        finally:  # also after Ctrl-C: the picture then shows the rows so far
            if rows:
                with atomic_write(out / "sampler_showdown.png") as file:
                    picture(rows, shown, steps, title_of(meta, num)).savefig(file, format="png")
    print(f"table and picture: {out}/sampler_showdown.csv, .png")
    return rows


def what_decides(checkpoint, plain, workers, num, seed):
    """The settings that decide the digits of a row, its sampler, steps and scale apart."""
    return {
        "checkpoint": hashlib.sha256(read_file(checkpoint)).hexdigest(),
        "source": [source_digest(), hashlib.sha256(Path(__file__).read_bytes()).hexdigest()],
        "arrays": [backend_name(), xp.__version__, current_precision(), "plain" if plain else "fast"],
        "workers": workers,  # the seconds depend on them
        "num": num,
        "seed": seed,
    }


def planned(steps, longest, T):
    """The rows (sampler, steps, scale), those with the fewest evaluations first."""
    rows = [(name, n, 1.0) for n in steps for name in SAMPLERS]
    rows += [(name, n, Recipe.scale) for name, n in GUIDED if n <= T]
    rows.append(("DDPM, beta_tilde", longest, 1.0))
    return sorted(dict.fromkeys(rows), key=evaluations)  # longest may be among steps


def recipe_of(schedule, image_shape, sampler, steps, scale):
    """How the digits of a row are drawn."""
    step, pairs = SAMPLERS[sampler]
    return Recipe(schedule, image_shape, step, steps, scale, pairs=pairs)


def judged(judge, images, labels, real):
    """The columns of a row that are measured, without the seconds.  real: the features of real_digits."""
    answers, of_images = look(judge, images)
    right, num = int((answers == labels).sum()), len(labels)
    low, high = wilson_interval(right, num)
    distance, floor = frechet_with_floor(of_images, real)
    return {"right": right, "num": num, "low": low, "high": high, "frechet": distance, "floor": floor}


def shape_of(meta):
    return tuple(meta["data"]["image_shape"])


def title_of(meta, num):
    training = f"{cli.counted(meta['step'], 'step')} of training"
    return f"{meta['data']['name']}, {training}, {cli.counted(num, 'image')} each"


def evaluations(row):
    """The number of network evaluations for each digit of a row: two a step with guidance, else one."""
    _, n, scale = row
    return n * (1 if scale == 1 else 2)


def real_digits(test, num):
    """Test images in two parts: num images, then at least num others.  Each part has equally many of every digit."""
    by_label = [np.flatnonzero(test.known_labels() == k) for k in range(10)]
    per_digit = num // 10
    if num % 10 or min(map(len, by_label)) < 2 * per_digit:
        raise TinydiffError(f"--num {num}: must be a multiple of 10, and the test set have twice as many of each digit")
    rng = np.random.default_rng(0)
    by_label = [rng.permutation(rows)[: min(map(len, by_label))] for rows in by_label]
    chosen = [rows[:per_digit] for rows in by_label] + [rows[per_digit:] for rows in by_label]
    return test.batch(np.concatenate(chosen))[0]


def draw(folder, settings, pool, recipe, labels, seed):
    """Digits, rounded to 8 bits, as float32 in [-1, 1], and the seconds to draw them.

    They are read from the file of these settings in the folder.  If there is none, they are drawn and saved there.
    """
    name = "{sampler}-{steps}-{scale:g}".format(**settings).replace(", ", "-").replace(" ", "_")
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    path = folder / f"{name}-{digest[:16]}.npz"
    if path.exists():
        arrays, kept = checkpoints.load(path)
        return arrays["images"].astype(np.float32) / 127.5 - 1, kept["seconds"]
    start = time.perf_counter()
    images = np.concatenate([frames[-1] for frames in generate(pool, recipe, labels, seed)])
    seconds = time.perf_counter() - start
    images = np.rint(np.clip(images, -1, 1) * 127.5 + 127.5).astype(np.uint8)
    checkpoints.save(path, {"images": images}, settings | {"seconds": seconds})
    return images.astype(np.float32) / 127.5 - 1, seconds


def save_table(path, rows):
    with atomic_write(path) as file:
        lines = [",".join(rows[0])]
        for row in rows:
            lines.append(
                ",".join(f"{value:.5g}" if isinstance(value, float) else f'"{value}"' for value in row.values())
            )
        file.write(("\n".join(lines) + "\n").encode())


HEADING = f"{'sampler':16}  steps  scale    read  (95% interval)       Frechet      real  seconds"


def line(row):
    """A row of the table as a line of text below HEADING."""
    read = f"{percent(row['right'] / row['num']):>6}  {'(' + interval(row['right'], row['num']) + ')':18}"
    frechet = f"{row['frechet']:9.4g} {row['floor']:9.4g}"
    return f"{row['sampler']:16}  {row['steps']:5}  {row['scale']:5g}  {read} {frechet}  {row['seconds']:7.0f}"


def misread(points):
    """The share that is not read as asked, in percent, of rows of the table, and the widths (2, n) of its interval."""
    wrong = [100 * (1 - row["right"] / row["num"]) for row in points]
    ends = [(w - 100 * (1 - row["high"]), 100 * (1 - row["low"]) - w) for w, row in zip(wrong, points)]
    return wrong, np.array(ends).reshape(-1, 2).T.clip(0)  # rounding may make 0 negative


def strip_steps(steps):
    """At most MOST of the numbers of steps, with the first and the last."""
    return [steps[i] for i in sorted({i * (len(steps) - 1) // (MOST - 1) for i in range(MOST)})]


def picture(rows, shown, steps, title):
    """A figure: misread share and Frechet distance against the number of steps, and the first digits of each row.

    Rows with guidance are open circles in the same panels.
    """
    figure = Figure(figsize=(11, 6.9), dpi=100, layout="constrained")
    curves, strips = figure.subfigures(2, 1, height_ratios=(1, 0.62))
    draw_curves(curves, rows)
    draw_strips(strips, shown, strip_steps(steps))
    figure.suptitle(title, fontsize=12)
    return figure


def draw_curves(figure, rows):
    left, right = figure.subplots(1, 2)
    for k, name in enumerate(SAMPLERS):
        for guided in (False, True):
            points = [row for row in rows if row["sampler"] == name and (row["scale"] != 1) == guided]
            n = [row["steps"] * 1.03 ** (k - 2) for row in points]  # side by side, so that no interval hides another
            style = {"color": f"C{k}", "marker": "o", "ms": 4, "lw": 1.6, "label": name}
            if guided:
                style |= {"mfc": "white", "ms": 6, "ls": "", "label": None}
            left.errorbar(n, *misread(points), **style)
            right.plot([row["steps"] for row in points], [row["frechet"] for row in points], **style)
    right.axhline(rows[0]["floor"], color="0.4", ls="--", lw=1.2, label="as many real images")
    if any(row["scale"] != 1 for row in rows):
        right.plot([], [], "o", ms=6, mfc="white", color="0.3", label=f"open: with guidance {Recipe.scale:g}")
    left.set_ylim(0)
    left.yaxis.set_major_formatter("{x:g}%")
    left.set_title("images not read as the class asked for (95% interval)", fontsize=11)
    log_scale(right, "y")
    right.set_title("Frechet distance from test images", fontsize=11)
    right.legend(frameon=False, fontsize=9)
    for axes in (left, right):
        axes.set_xscale("log")
        axes.set_xticks(sorted({row["steps"] for row in rows}), minor=False)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
        axes.set_xlabel("steps")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)


def draw_strips(figure, shown, steps):
    grid = figure.subplots(len(SAMPLERS), len(steps), squeeze=False)
    for line_of_axes, name in zip(grid, SAMPLERS):
        for axes, n in zip(line_of_axes, steps):
            axes.set_axis_off()
            if (name, n, 1.0) in shown:
                axes.imshow(plots.tile(shown[name, n, 1.0], SHOWN), cmap="gray", vmin=0, vmax=255)
            if name == next(iter(SAMPLERS)):
                axes.set_title(cli.counted(n, "step"), fontsize=10)
        line_of_axes[0].text(-0.03, 0.5, name, transform=line_of_axes[0].transAxes, ha="right", va="center", fontsize=9)


if __name__ == "__main__":
    parser = cli.parser(__doc__, main)
    parser.add_argument("checkpoint", help="checkpoint.npz of train_mnist.py")
    cli.add_backend(parser)
    parser.add_argument("--classifier", help="checkpoint.npz of train_classifier.py")
    parser.add_argument("--num", type=cli.positive_int, help="digits for each row, a multiple of 10")
    steps = cli.list_of(cli.positive_int)
    parser.add_argument("--steps", type=steps, help="reverse steps of every sampler, at most the schedule's T")
    parser.add_argument("--longest", type=cli.positive_int, help="steps of the longest row, DDPM with beta_tilde")
    parser.add_argument("--seed", type=cli.non_negative_int, help="seed of the noise")
    cli.add_data_dir(parser)
    parser.add_argument("--out", help="folder for the table, the picture and the digits")
    parser.add_argument("--workers", type=cli.positive_int, help="processes to share the work (default: all cores)")
    cli.run(main, parser)
