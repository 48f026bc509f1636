"""Draw images from a trained checkpoint.

    python demos/sample.py runs/mnist/checkpoint.npz --num 100
    python demos/sample.py runs/mnist/checkpoint.npz --labels 3,7 --sampler ddim --steps 20
    python demos/sample.py runs/mnist/checkpoint.npz --sampler 2m --times logsnr --steps 10
    mpiexec -n 4 python demos/sample.py runs/mnist/checkpoint.npz --num 1000 --parallel mpi

The --num images get the labels in turn.  The picture is sorted by label and shows at most 1,000 images.  --save-npz
also writes the arrays, in the order of drawing: images (N, H, W, C) float32 in [-1, 1], (N, 28, 28, 1) for digits, and
labels (N,), if the network has classes.  Image i of a seed is the same for every --num, --workers, --parallel and
--backend, up to rounding.
"""

import os
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from tinydiff.app import choices, cli, plots
from tinydiff.app.checkpoint import atomic_write
from tinydiff.app.choices import DDIM, DPM_SOLVER_2M, check_labels, class_names, quadratic
from tinydiff.app.generate import DDPM, Recipe, check_room, check_steps, generate, uniform
from tinydiff.app.outputs import file_to_write
from tinydiff.app.trained import load_guided
from tinydiff.backend import TinydiffError
from tinydiff.diffusion import log_snr_pairs

STEPS = {"ddpm": DDPM, "ddim": DDIM, "2m": DPM_SOLVER_2M}
MOST_LABELS = 10  # the first labels of a network, if the user names none
COLUMNS, SHOWN = 20, 1000  # columns and images of the picture, at most
TIMES = {"uniform": uniform, "quadratic": quadratic, "logsnr": log_snr_pairs}


def main(
    checkpoint,
    *,
    backend="numpy",
    precision=None,
    plain=False,
    num=100,
    labels=None,
    scale=None,
    auto=None,
    sampler="ddpm",
    times="uniform",
    steps=Recipe.num_steps,
    seed=0,
    out="runs/samples.png",
    save_npz=None,
    workers=None,
    parallel="local",
):
    ranks = cli.start(backend, precision, parallel, plain)
    ranks.broadcast(partial(file_to_write, "--out", out, ".png"))
    if save_npz:
        ranks.broadcast(partial(file_to_write, "--save-npz", save_npz, ".npz"))
        if os.path.realpath(save_npz) == os.path.realpath(checkpoint):
            raise TinydiffError(f"--save-npz {save_npz}: this is the checkpoint; choose another name")
    workers = workers or ranks.default_workers()
    pool, schedule, meta = load_guided(Path(checkpoint), workers, ranks)
    with pool:
        check_room(num, meta["data"]["image_shape"])
        check_steps(schedule.T, steps=steps)
        classes = pool.model.num_classes
        if labels is not None:
            check_labels(pool.model, labels=labels)
        guide, guided = choices.guidance(pool.model, scale, auto)
        shape = tuple(meta["data"]["image_shape"])
        recipe = Recipe(schedule, shape, STEPS[sampler], steps, pairs=TIMES[times], **guide)
        labels = labels or range(min(MOST_LABELS, classes or MOST_LABELS))  # without classes only their number matters
        image_labels = [labels[i % len(labels)] for i in range(num)]
        parts = []
        with tqdm(total=num, unit="img", dynamic_ncols=True, disable=ranks.rank > 0) as bar:
            for frames in generate(pool, recipe, image_labels, seed):
                parts.append(frames[-1])
                bar.update(len(frames[-1]))
    if ranks.rank > 0:
        return
    images = np.clip(np.concatenate(parts), -1, 1)
    if save_npz:
        with atomic_write(save_npz) as file:
            np.savez(file, images=images, **({} if classes is None else {"labels": np.array(image_labels)}))
        print(f"arrays: {save_npz}")
    columns = max(1, min(COLUMNS, -(-num // len(labels))))
    title = f"{meta['data']['name']}, {cli.counted(meta['step'], 'step')}, {sampler} {steps}, {guided}"
    names = [""] if classes is None else class_names(meta["data"], classes)
    pictures, row_labels, shown = rows_by_label(images, image_labels if classes else [0] * num, names, columns)
    plots.save_grid(out, pictures, columns=columns, title=title, row_labels=row_labels)
    print(f"{cli.counted(num, 'image')}: {out}" + (f", which shows {shown:,} of them" if shown < num else ""))


def rows_by_label(images, labels, names, columns):
    """(pictures, row labels, number of images among them): a grid in which each label begins a new row.

    labels: of the images.  names: of the labels; the first row of a label shows it.  Empty places are white.
    Each label has the same share of the SHOWN images, in whole rows.
    """
    pictures, row_labels, shown = [], [], 0
    rows = max(1, SHOWN // (columns * len(set(labels))))
    for k in sorted(set(labels)):
        chosen = images[np.equal(labels, k)][: columns * rows]
        pictures += [chosen, np.ones((-len(chosen) % columns, *images.shape[1:]), images.dtype)]
        row_labels += [names[k]] + [""] * ((len(chosen) - 1) // columns)
        shown += len(chosen)
    return np.concatenate(pictures), row_labels, shown


if __name__ == "__main__":
    parser = cli.parser(__doc__, main)
    parser.add_argument("checkpoint", help="checkpoint.npz of train_mnist.py")
    cli.add_backend(parser)
    parser.add_argument("--num", type=cli.up_to_a_million, help="images to draw")
    parser.add_argument(
        "--labels", type=choices.labels, help="classes to draw, in turn, such as 3,7 (default: all, at most ten)"
    )
    choices.add_guidance(parser)
    parser.add_argument("--sampler", choices=STEPS, help="ddpm: ancestral sampling; ddim, 2m: no noise on the way")
    parser.add_argument(
        "--times", choices=TIMES, help="spacing of the steps' times: even in t, in sqrt(t) or in log SNR"
    )
    parser.add_argument("--steps", type=cli.positive_int, help="reverse steps, at most the schedule's T")
    parser.add_argument("--seed", type=cli.non_negative_int, help="seed of the noise")
    parser.add_argument("--out", help="the picture, a .png")
    parser.add_argument("--save-npz", help="also write the arrays to this .npz (default: no arrays)")
    cli.add_parallel(parser)
    cli.run(main, parser)
