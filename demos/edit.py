"""Edit test digits with a trained checkpoint: fill in, redraw, encode and decode, blend.

    python demos/edit.py runs/mnist/checkpoint.npz
    python demos/edit.py runs/mnist/checkpoint.npz --classifier runs/classifier/checkpoint.npz \\
        --noisy-classifier runs/noisy_classifier/checkpoint.npz

The user gives no label.  The lower half of --num digits is drawn anew, to match the upper half.  The default method is
RePaint: the network predicts without a label, and each step is taken --resample times.  With --noisy-classifier
(train_classifier.py --noisy) each step is taken once, with labels that are drawn anew for that step.  A label that
explains the known pixels better is drawn more often.  With --classifier the table shows how many results are read as
the digit of the original, with and without 4, 7 and 9, whose upper halves may look alike.  The round trip
x_0 -> x_T -> x_0 of DDIM is measured on --digits digits for each number of steps in --round-trips.  The demo writes
edit.png and edit.md to --out.

One evaluation of the network takes 1/660 s on two idle cores.  The default is 300 digits x 491 evaluations (with drawn
labels 550) and 256 digits x 3 x 180 evaluations, 8 minutes in all.
"""

import io
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from tqdm import tqdm

from tinydiff.app import cli, plots
from tinydiff.app.checkpoint import atomic_write
from tinydiff.app.classify import check_reads, load_classifier, load_noisy_classifier
from tinydiff.app.generate import DDPM, check_steps
from tinydiff.app.kinds import EVERY, data_name, data_size
from tinydiff.app.kinds import load as load_kind
from tinydiff.app.metrics import share
from tinydiff.app.outputs import own_folder
from tinydiff.app.reading import class_probs, read
from tinydiff.app.row_rng import row_rng
from tinydiff.app.trained import load_trained
from tinydiff.autograd import no_grad
from tinydiff.backend import TinydiffError, asarray, default_rng, standard_normal, to_numpy
from tinydiff.data import load
from tinydiff.diffusion import (
    classifier_free,
    ddim_invert,
    ddim_step,
    inpaint,
    known_probs,
    sample,
    sdedit,
    slerp,
    timestep_pairs,
    unconditional,
    with_drawn_labels,
)

SLICE = 20  # images that a worker edits at a time
RESAMPLE = 10  # how often RePaint takes each step
SHOWN = 10  # digits side by side in the picture
LEVELS = (0.2, 0.4, 0.6, 0.8)  # SDEdit's t_start, as shares of T
PIXEL_VAR = 0.3  # about the variance of a pixel in [-1, 1]
AMBIGUOUS = ("4", "7", "9")  # digits whose upper halves may look alike


def main(
    checkpoint,
    *,
    backend="numpy",
    precision=None,
    plain=False,
    classifier=None,
    noisy_classifier=None,
    num=300,
    steps=50,
    resample=None,
    digits=256,
    round_trips=(10, 20, 50, 100),
    seed=0,
    data_dir=None,
    out="runs/edit",
    workers=None,
):
    """Write the picture and the table.  Returns the table as a dictionary of texts: {measured quantity: result}."""
    ranks = cli.start(backend, precision, plain=plain)
    if resample is not None and noisy_classifier is not None:
        raise TinydiffError(f"--resample {resample}: with --noisy-classifier each step is taken once; leave one out")
    resample = resample or RESAMPLE
    out = own_folder(out, "edit.png", "edit.md")
    workers = workers or ranks.default_workers()
    # The classifier is used after the longest work, and opened before it.
    _, judge = (None, None) if classifier is None else load_kind(Path(classifier), "classifier")
    pool, schedule, meta = load_trained(Path(checkpoint), workers)
    with pool:
        dataset = load(data_name(meta, EVERY), "test", data_dir, meta["train"]["seed"], **data_size(meta))
        if judge is not None:
            check_reads(classifier, judge, meta["data"])
        check(num, digits, len(dataset))
        check_steps(schedule.T, steps=steps, round_trips=max(round_trips))
        print(f"data: {dataset.source}; network: {cli.counted(meta['step'], 'step')}; no labels are given")
        known = upper_half(dataset.images.shape[1])
        reader = noisy_classifier and load_noisy_classifier(
            Path(noisy_classifier), schedule, pool.model.num_classes, meta["data"]
        )
        fill_in = partial(complete, schedule, known, steps, resample, reader)
        x_0, labels = spread(dataset, num)
        done = edit(pool, fill_in, x_0, "fill in", seed)
        table = Table()
        table["known pixels changed"] = known_changed(done, x_0, known)
        if classifier is not None:
            for name, result in readings(Path(classifier), workers, done, labels, dataset.classes):
                table[f"read as the original, {name}"] = result
        x_0, _ = spread(dataset, digits)
        for n in round_trips:
            in_steps = cli.counted(n, "step")
            x_T, back = edit(pool, partial(round_trip, schedule, n), x_0, in_steps, seed).swapaxes(0, 1)
            table[f"round trip, {in_steps}"] = trip_error(x_0, x_T, back)
        blocks = list(picture_blocks(pool, schedule, dataset, fill_in, known, max(round_trips), seed))
    save_blocks(out / "edit.png", blocks)
    save_table(out / "edit.md", table)
    print(f"picture: {out / 'edit.png'}, table: {out / 'edit.md'}")
    return table


class Table(dict):
    """The table as a dictionary.  Each entry is printed when it is set."""

    def __setitem__(self, name, value):
        super().__setitem__(name, value)
        print(f"  {name:40}{value}", flush=True)


# ---------------------------------------- the edits: f(..., model, (x_0, (seed, index of the first x_0))) -> (n, ...)


def complete(schedule, known, steps, resample, reader, model, job):
    """x_0 with its unknown pixels drawn anew, by RePaint or, if reader is given, with drawn labels: (n, H, W, C)."""
    x_0, rng = start(job)
    x_T = standard_normal(rng, x_0.shape)
    eps_fn = unconditional(model)
    if reader is not None:
        probs = known_probs(schedule, model, class_probs(reader), x_0, known, PIXEL_VAR)
        eps_fn, resample = with_drawn_labels(probs, partial(classifier_free, model, scale=1), *rng.spawn(1)), 1
    pairs, step = timestep_pairs(schedule.T, steps), DDPM(schedule)
    return last(inpaint(schedule, step, eps_fn, pairs, x_T, x_0, known, rng, resample))


def redraw(schedule, t_start, steps, model, job):
    """x_0 noised to t_start and sampled down (SDEdit): (n, H, W, C)."""
    x_0, rng = start(job)
    pairs, step = timestep_pairs(schedule.T, steps), DDPM(schedule)
    return last(sdedit(schedule, step, unconditional(model), pairs, x_0, t_start, rng))


def round_trip(schedule, steps, model, job):
    """The x_T of x_0, and the x_0 that DDIM draws from this x_T: (n, 2, H, W, C)."""
    x_0, _ = start(job)
    x_T = encode(schedule, steps, model, x_0)
    return np.stack([x_T, decode(schedule, steps, model, x_T)], 1)


def blend(schedule, steps, shares, model, job):
    """Pictures between each x_0 and the next one, decoded from points between their x_T: (n, len(shares), H, W, C).

    The next one of the last x_0 is the first.
    """
    x_0, _ = start(job)
    x_T = asarray(encode(schedule, steps, model, x_0))
    y_T = asarray(np.roll(to_numpy(x_T), -1, 0))
    return np.stack([decode(schedule, steps, model, slerp(x_T, y_T, u)) for u in shares], 1)


def encode(schedule, steps, model, x_0):
    return last(ddim_invert(schedule, unconditional(model), timestep_pairs(schedule.T, steps), x_0))


def decode(schedule, steps, model, x_T):
    step, pairs = partial(ddim_step, schedule), timestep_pairs(schedule.T, steps)  # not clipped: it undoes ddim_invert
    return last(sample(step, unconditional(model), pairs, asarray(x_T), default_rng(0)))


def start(job):
    x_0, (seed, first) = job
    return asarray(x_0), row_rng("edit", seed, rows=range(first, first + len(x_0)))


def last(states):
    with no_grad():
        *_, (_, x, _) = states
    return to_numpy(x)


def edit(pool, f, x_0, name, seed):
    """Apply f to all x_0, in slices on all workers.  Each x_0 has a random stream of its own."""
    parts = []
    with tqdm(total=len(x_0), unit="img", desc=name, dynamic_ncols=True) as bar:
        for part in pool.map(f, [(x_0[i : i + SLICE], (seed, i)) for i in range(0, len(x_0), SLICE)]):
            parts.append(part)
            bar.update(len(part))
    return np.concatenate(parts)


# ------------------------------------------------------------------------------------------------- table and picture


def check(num, digits, num_images):
    for option, value in (("num", num), ("digits", digits)):
        if value > num_images:
            raise TinydiffError(f"--{option} {value}: there are {num_images:,} images in the test set")


def spread(dataset, n):
    """n test images and their labels, spread evenly over the set, because the first half of MNIST's is cleaner."""
    return dataset.batch(np.arange(n) * len(dataset) // n)


def upper_half(height):
    """Which rows of a picture are known, (H, 1, 1)."""
    return np.arange(height)[:, None, None] < height // 2


def known_changed(done, x_0, known):
    """How many known pixels of done differ from those of x_0 when both have 8 bits: "k of n"."""
    rows = np.broadcast_to(known, x_0.shape)
    done, x_0 = (np.rint(np.clip(x[rows], -1, 1) * 127.5 + 127.5) for x in (done, x_0))
    return f"{(done != x_0).sum()} of {rows.sum():,}"


def trip_error(x_0, x_T, back):
    """The error of a round trip: its root mean square, its share of the range -1..1, and x_T's standard deviation."""
    rmse = float(((back - x_0) ** 2).mean()) ** 0.5
    return f"RMSE {rmse:.3g}, {50 * rmse:.4g}% of the range; x_T's std {x_T.std():.3g}"


def readings(path, workers, images, labels, classes):
    """[(which images, share of them read as the original)]: for digits without the ambiguous ones, and for all."""
    pool, _ = load_classifier(path, workers)
    with pool:
        right = np.concatenate(list(read(pool, images))).argmax(1) == labels
    ambiguous = [k for k, name in enumerate(classes) if name in AMBIGUOUS]
    clear = right[~np.isin(labels, ambiguous)]
    rows = [("all images", share(right))]
    if ambiguous:
        result = share(clear) if len(clear) else "-, there is no other image"
        rows.insert(0, (f"without {', '.join(AMBIGUOUS)}", result))
    return rows


def picture_blocks(pool, schedule, dataset, fill_in, known, steps, seed):
    """Yield (title, row labels, rows of images (SHOWN, H, W, C)) for each block.  Each class has one digit."""
    first = [np.flatnonzero(dataset.known_labels() == k)[:1] for k in range(len(dataset.classes))]
    x_0, _ = dataset.batch(np.resize(np.concatenate(first), SHOWN))
    masked = np.where(known, x_0, np.float32(0.25))
    filled = [edit(pool, fill_in, x_0, f"picture: filled in {i}", seed + i) for i in (1, 2, 3)]
    yield "inpainting: the lower half drawn to match", ["x_0", "known", "1", "2", "3"], [x_0, masked, *filled]
    times = [int(level * schedule.T) for level in LEVELS]
    redrawn = [edit(pool, partial(redraw, schedule, t, steps), x_0, f"picture: from t = {t}", seed) for t in times]
    yield "SDEdit: noised to t, drawn anew from there", ["x_0", *map("t = {}".format, times)], [x_0, *redrawn]
    x_T, back = edit(pool, partial(round_trip, schedule, steps), x_0, "picture: inversion", seed).swapaxes(0, 1)
    error = 10 * abs(back - x_0) - 1
    rows = ["x_0", "x_T", "decoded", "error x 10"]
    yield f"inversion: x_0 to noise and back, {cli.counted(steps, 'step')}", rows, [x_0, x_T / 2.5, back, error]
    shares = np.linspace(0, 1, SHOWN)
    between = edit(pool, partial(blend, schedule, steps, shares.tolist()), x_0[[0, 2, 5, 8]], "picture: blend", seed)
    yield "interpolation: a walk between two images' x_T", ["" for _ in between], list(between)


def save_table(path, table):
    lines = [f"| {name} | {value} |" for name, value in table.items()]
    with atomic_write(path) as file:
        file.write("\n".join(["| measured | found |", "|---|---|", *lines, ""]).encode())


def save_blocks(path, blocks):
    """Save the four blocks as one picture."""
    page = io.BytesIO()
    figure_of(blocks).savefig(page, format="png")
    picture = Image.open(page).convert("RGB")
    if blocks[0][2][0].shape[-1] == 1:
        picture = picture.convert("L").quantize(16)  # with 16 greys 67 kB, not 165
    with atomic_write(path) as file:
        picture.save(file, "PNG", optimize=True)


def figure_of(blocks):
    """A figure of the four blocks, two by two."""
    figure = Figure(figsize=(12.8, 6), dpi=100, layout="constrained", facecolor="white")
    heights = {"height_ratios": [max(len(rows) for _, _, rows in pair) for pair in (blocks[:2], blocks[2:])]}
    for axes, (title, labels, rows) in zip(figure.subplots(2, 2, gridspec_kw=heights).flat, blocks):
        canvas = plots.tile(np.concatenate(rows), SHOWN)
        axes.imshow(canvas, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axes.set_title(title, fontsize=13, loc="left")
        height = canvas.shape[0] / len(rows)
        axes.set_yticks([(i + 0.5) * height for i in range(len(rows))], labels, fontsize=11)
        axes.set_xticks([])
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    return figure


if __name__ == "__main__":
    parser = cli.parser(__doc__, main)
    parser.add_argument("checkpoint", help="checkpoint.npz of train_mnist.py")
    cli.add_backend(parser)
    parser.add_argument(
        "--classifier", help="checkpoint.npz of train_classifier.py, to read the results (default: none)"
    )
    noisy = "checkpoint.npz of train_classifier.py --noisy, to draw labels (default: none)"
    often = f"how often inpainting without --noisy-classifier takes each step (default: {RESAMPLE})"
    parser.add_argument("--noisy-classifier", help=noisy)
    parser.add_argument("--num", type=cli.positive_int, help="test digits to fill in")
    parser.add_argument("--steps", type=cli.positive_int, help="reverse steps of inpainting, at most the schedule's T")
    parser.add_argument("--resample", type=cli.positive_int, help=often)
    parser.add_argument("--digits", type=cli.positive_int, help="test digits to encode and decode")
    parser.add_argument("--round-trips", type=cli.list_of(cli.positive_int), help="steps of the round trips")
    parser.add_argument("--seed", type=cli.non_negative_int, help="of the noise")
    cli.add_data_dir(parser)
    parser.add_argument("--out", help="folder for edit.png and edit.md")
    parser.add_argument("--workers", type=cli.positive_int, help="processes to share the work (default: all cores)")
    cli.run(main, parser)
