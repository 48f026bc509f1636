"""Measure what guidance improves and what it costs: right digits and diversity at several guidance scales.

    python demos/guidance.py runs/mnist/checkpoint.npz \\
        --noisy-classifier runs/noisy_classifier/checkpoint.npz

The demo prints a table, and writes the table and a picture to --out.  Every method and scale draws digits from the same
noise.  The columns are:

    asked     share of the digits that the classifier reads as their label
    spread    how different the digits of one class are: the root mean square distance of their
              features (the inputs of the classifier's last layer) from the mean of the class,
              relative to that of real test digits
    contrast  the standard deviation of the pixels of an image, relative to real test digits

The methods are:

    free        classifier-free guidance: the network predicts with and without the label
    interval    the same at middle noise levels only (Kynkaanniemi et al. 2024), largest scale
    rescaled    the same with the contrast of Lin et al. 2023, largest scale
    classifier  the network predicts without a label, and a noisy classifier
                (train_classifier.py --noisy) guides it, at scales of its own
"""

import csv
import io
from argparse import ArgumentTypeError
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from tqdm import tqdm

from tinydiff.app import cli, plots
from tinydiff.app.checkpoint import atomic_write
from tinydiff.app.choices import check_classes
from tinydiff.app.classify import load_classifier, load_noisy_classifier
from tinydiff.app.generate import Recipe, check_room, check_steps, generate
from tinydiff.app.kinds import EVERY, data_name, data_size
from tinydiff.app.metrics import interval, percent, relative, spread
from tinydiff.app.outputs import own_folder
from tinydiff.app.reading import NO_SPREAD, class_score, look
from tinydiff.app.trained import load_trained
from tinydiff.backend import TinydiffError
from tinydiff.data import load
from tinydiff.diffusion import classifier_free, classifier_guided, rescaled, unconditional, within

METHODS = ("free", "interval", "rescaled", "classifier")
SCALES, CLASSIFIER_SCALES = (0.0, 1.0, 2.0, 4.0, 8.0), (1.0, 4.0, 8.0, 20.0)
SIGMA = 0.28, 2.9  # bounds of the interval: ratios of noise to signal, sqrt(1/alpha_bar - 1)
PHI = 0.7  # Lin et al. 2023, section 3.4


def main(
    checkpoint,
    *,
    classifier="runs/classifier/checkpoint.npz",
    noisy_classifier=None,
    backend="numpy",
    precision=None,
    plain=False,
    num=200,
    scales=None,
    classifier_scales=None,
    methods=None,
    steps=Recipe.num_steps,
    seed=0,
    data_dir=None,
    out="runs/guidance",
    workers=None,
):
    """Write table and picture.  Returns the rows of the table: (method, scale, right, num, spread, contrast).

    methods: None for all, without "classifier" if there is no noisy classifier.
    """
    ranks = cli.start(backend, precision, plain=plain)
    methods = chosen(methods, noisy_classifier, scales, classifier_scales)
    workers, out = workers or ranks.default_workers(), own_folder(out, "guidance.csv", "guidance.png")
    pool, schedule, meta = load_trained(Path(checkpoint), workers)
    check_classes(checkpoint, pool.model)
    data = data_name(meta, EVERY)
    with pool, load_classifier(Path(classifier), workers, meta["data"])[0] as judge:
        check_steps(schedule.T, steps=steps)
        low, high = interval_times(schedule)
        leader = None
        if "classifier" in methods:
            leader = load_noisy_classifier(Path(noisy_classifier), schedule, pool.model.num_classes, meta["data"])
        plan = planned(methods, scales or SCALES, classifier_scales or CLASSIFIER_SCALES)
        test = load(data, "test", data_dir, meta["train"]["seed"], **data_size(meta))
        real = of_real_digits(judge, test)
        check_room(num, meta["data"]["image_shape"])
        labels = np.arange(num) % pool.model.num_classes
        rows, pictures = [], []
        with tqdm(total=num * len(plan), unit="img", dynamic_ncols=True) as bar:
            for name, scale in plan:
                bar.set_postfix_str(f"{name} {scale:g}", refresh=False)
                guide = guide_of(name, schedule, leader)
                recipe = Recipe(schedule, tuple(meta["data"]["image_shape"]), num_steps=steps, scale=scale, guide=guide)
                parts = []
                for frames in generate(pool, recipe, labels.tolist(), seed):
                    parts.append(frames[-1])
                    bar.update(len(frames[-1]))
                images = np.clip(np.concatenate(parts), -1, 1)
                rows.append((name, scale, *judged(judge, images, labels, real)))
                pictures.append(images[: pool.model.num_classes])
    images, drawn = cli.counted(num, "image"), f"DDPM in {cli.counted(steps, 'step')}"
    print(f"{meta['data']['name']}, {cli.counted(meta['step'], 'step')}; {images} a row, {drawn}, seed {seed}")
    print(f"interval: {low} < t <= {high};  rescaled: phi = {PHI}")
    print_rows(rows)
    save_rows(out / "guidance.csv", rows)
    with atomic_write(out / "guidance.png") as file:
        draw(rows, np.concatenate(pictures)).savefig(file, format="png")
    print(f"table and picture: {out}/guidance.csv, guidance.png")
    return rows


def chosen(methods, noisy_classifier, scales, classifier_scales):
    """The names of the methods to measure.  Raises TinydiffError for options that do not go together."""
    if methods is None and noisy_classifier is None:
        print("no --noisy-classifier given: without the method classifier")
    methods = methods or (METHODS[:-1] if noisy_classifier is None else METHODS)
    if "classifier" in methods and noisy_classifier is None:
        raise TinydiffError("--methods classifier needs --noisy-classifier, the network that guides")
    if "classifier" not in methods and (noisy_classifier is not None or classifier_scales is not None):
        option = "--classifier-scales" if noisy_classifier is None else "--noisy-classifier"
        raise TinydiffError(f"{option} is used by the method classifier only, which is not measured")
    if list(methods) == ["classifier"] and scales is not None:
        raise TinydiffError("--scales is used by the other methods only; for classifier give --classifier-scales")
    return methods


def planned(methods, scales, classifier_scales):
    """The rows (method, scale) of these methods, in the order of METHODS."""
    largest = [max(scales)]
    of = {"free": scales, "interval": largest, "rescaled": largest, "classifier": classifier_scales}
    return [(name, scale) for name in METHODS if name in methods for scale in of[name]]


def interval_times(schedule):
    """(low, high): the last times at which the ratio of noise to signal is at most the bounds in SIGMA."""
    sigma = (1 / schedule.alpha_bar - 1) ** 0.5
    return tuple(int((sigma <= bound).sum()) - 1 for bound in SIGMA)


def guide_of(name, schedule, leader):
    """The guide of a method.  leader: the noisy classifier, or None if the method classifier is not measured."""
    if name == "classifier":
        return partial(by_classifier, schedule, leader)
    guides = {"interval": partial(in_interval, *interval_times(schedule)), "rescaled": partial(with_contrast, schedule)}
    return guides.get(name, classifier_free)


# Guides: (model, labels, scale) -> eps_fn, in the form that a Recipe takes.


def in_interval(low, high, model, labels, scale):
    return within(low, high, classifier_free(model, labels, scale), classifier_free(model, labels, 1))


def with_contrast(schedule, model, labels, scale):
    return classifier_free(model, labels, scale, partial(rescaled, schedule, PHI))


def by_classifier(schedule, leader, model, labels, scale):
    return classifier_guided(schedule, unconditional(model), class_score(leader, labels), scale)


def contrast(images):
    """The standard deviation of the pixels of an image, mean over the images (N, H, W, C)."""
    return float(images.reshape(len(images), -1).std(1).mean())


def of_real_digits(judge, test):
    """Spread and contrast of up to 2,000 test digits, spread evenly over the set."""
    n = min(2000, len(test))
    images, labels = test.batch(np.arange(n) * len(test) // n)
    _, features = look(judge, images)
    return spread(features, labels), contrast(images)


def judged(judge, images, labels, real):
    """(right, num, spread, contrast) of a row's images.  real: spread and contrast of real digits."""
    answers, features = look(judge, images)
    wide, ink = relative(spread(features, labels), real[0]), relative(contrast(images), real[1])
    return int((answers == labels).sum()), len(labels), wide, ink


def print_rows(rows):
    print("method      scale   asked  (95% interval)      spread  contrast   of real images' 100%")
    for name, scale, right, num, wide, ink in rows:
        asked = f"{percent(right / num):>6}  ({interval(right, num)})"
        print(f"{name:10}  {scale:5g}  {asked:26}{percent(wide):>8}{percent(ink):>10}")
    if any(np.isnan(wide) for *_, wide, _ in rows):
        print(NO_SPREAD)


def save_rows(path, rows):
    table = io.StringIO()
    csv.writer(table).writerows([("method", "scale", "right", "num", "spread", "contrast"), *rows])
    with atomic_write(path) as file:
        file.write(table.getvalue().encode())


def draw(rows, pictures):
    """A figure.  Left: the three columns of the table against the scale.  Right: a digit of each class for each row."""
    figure = Figure(figsize=(10.6, max(4.8, 0.5 * len(rows) + 0.5)), dpi=100, layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1, 1.25))
    panels = left.subplots(3, 1, sharex=True)
    scales = sorted({scale for _, scale, *_ in rows})
    shares = [("read as asked", [r[2] / r[3] for r in rows]), ("spread within a class", [r[4] for r in rows])]
    for axes, (title, values) in zip(panels, [*shares, ("contrast", [r[5] for r in rows])]):
        for name, style in zip(METHODS, ("C0o-", "C2s", "C3D", "C1^-")):
            points = [(scales.index(r[1]), 100 * v) for r, v in zip(rows, values) if r[0] == name and not np.isnan(v)]
            if points:
                axes.plot(*zip(*points), style, label=name, ms=6 if len(points) > 1 else 8, lw=1.6, alpha=0.85)
        if np.isnan(values).any():
            axes.text(0.5, 0.5, "-: no class has two images", transform=axes.transAxes, ha="center", va="bottom")
        axes.axhline(100, color="0.6", lw=1, ls=":")
        axes.set_title(
            f"{title}, %" + (" of real images'" if title != "read as asked" else ""), loc="left", fontsize=10
        )
        axes.set_xticks(range(len(scales)), [f"{scale:g}" for scale in scales])
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].legend(frameon=False, fontsize=9)
    panels[-1].set_xlabel("guidance scale")
    axes = right.subplots()
    columns = len(pictures) // len(rows)
    canvas = plots.tile(pictures, columns)
    axes.imshow(canvas, cmap="gray", vmin=0, vmax=255)
    height = canvas.shape[0] / len(rows)
    labels = ["no label" if r[:2] == ("free", 0) else f"{r[0]} {r[1]:g}" for r in rows]
    axes.set_yticks([(i + 0.5) * height for i in range(len(rows))], labels)
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    asked = "class 0" if columns == 1 else f"classes 0 to {columns - 1}"
    axes.set_title(f"{asked}, every row from the same noise", loc="left", fontsize=10)
    return figure


def method(text):
    """Option type: one of METHODS."""
    if text not in METHODS:
        raise ArgumentTypeError(f"must be one of {', '.join(METHODS)}, got {text!r}")
    return text


if __name__ == "__main__":
    parser = cli.parser(__doc__, main)
    parser.add_argument("checkpoint", help="checkpoint.npz of train_mnist.py")
    cli.add_backend(parser)
    parser.add_argument("--classifier", help="checkpoint.npz of train_classifier.py, to read the digits")
    guide = "checkpoint.npz of train_classifier.py --noisy, to guide with (default: none, without this method)"
    scales, free, own = cli.list_of(cli.non_negative_float), cli.as_typed(SCALES), cli.as_typed(CLASSIFIER_SCALES)
    parser.add_argument("--noisy-classifier", help=guide)
    parser.add_argument("--num", type=cli.up_to_a_million, help="images a row")
    parser.add_argument("--scales", type=scales, help=f"scales of classifier-free guidance (default: {free})")
    parser.add_argument("--classifier-scales", type=scales, help=f"of classifier guidance (default: {own})")
    parser.add_argument(
        "--methods", type=cli.list_of(method), help=f"some of {','.join(METHODS)} (default: all that are possible)"
    )
    parser.add_argument("--steps", type=cli.positive_int, help="reverse steps, at most the schedule's T")
    parser.add_argument("--seed", type=cli.non_negative_int, help="seed of the noise")
    cli.add_data_dir(parser)
    parser.add_argument("--out", metavar="DIR", help="folder for the results")
    parser.add_argument("--workers", type=cli.positive_int, help="processes to share the work (default: all cores)")
    cli.run(main, parser)
