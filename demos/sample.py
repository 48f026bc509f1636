"""Draw images from a trained checkpoint.

    python demos/sample.py runs/mnist/checkpoint.npz --num 100
    python demos/sample.py runs/mnist/checkpoint.npz --labels 3,7 --scale 1 --sampler ddim --steps 20
    python demos/sample.py runs/mnist/checkpoint.npz --sampler 2m --times logsnr --steps 10
    mpiexec -n 4 python demos/sample.py runs/mnist/checkpoint.npz --num 1000 --parallel mpi

The --num images get the labels in turn, and the picture is sorted by label.  --save-npz also writes the arrays:
images (N, 28, 28, 1) float32 in [-1, 1] and labels (N,).
"""

import os
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from tinydiff.app import choices, cli, plots
from tinydiff.app.checkpoint import atomic_write
from tinydiff.app.choices import DDIM, DPM_SOLVER_2M, quadratic
from tinydiff.app.generate import DDPM, Recipe, check_room, generate, uniform
from tinydiff.app.outputs import file_to_write
from tinydiff.app.trained import load_trained
from tinydiff.backend import TinydiffError
from tinydiff.diffusion import log_snr_pairs

STEPS = {"ddpm": DDPM, "ddim": DDIM, "2m": DPM_SOLVER_2M}
TIMES = {"uniform": uniform, "quadratic": quadratic, "logsnr": log_snr_pairs}


def main(
    checkpoint,
    *,
    backend="numpy",
    precision=None,
    plain=False,
    num=100,
    labels=tuple(range(10)),
    scale=Recipe.scale,
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
    pool, schedule, meta = load_trained(Path(checkpoint), workers, ranks)
    with pool:
        check_room(num, meta["data"]["image_shape"])
        check_labels(labels, pool.model.num_classes)
        recipe = Recipe(schedule, tuple(meta["data"]["image_shape"]), STEPS[sampler], steps, scale, pairs=TIMES[times])
        image_labels = sorted(labels[i % len(labels)] for i in range(num))
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
            np.savez(file, images=images, labels=np.array(image_labels))
        print(f"arrays: {save_npz}")
    columns = max(1, min(20, -(-num // len(labels))))
    title = f"{meta['data']['name']}, {meta['step']:,} steps, {sampler} {steps}, guidance {scale:g}"
    plots.save_grid(out, images, columns=columns, title=title)
    print(f"{num} images: {out}")


def check_labels(labels, num_classes):
    """Raise TinydiffError for a label that the network does not know: label num_classes would be "no label"."""
    if num_classes is not None and max(labels) >= num_classes:
        raise TinydiffError(f"--labels {max(labels)}: this network has the labels 0 to {num_classes - 1}")


if __name__ == "__main__":
    parser = cli.parser(__doc__, main)
    parser.add_argument("checkpoint", help="checkpoint.npz of train_mnist.py")
    cli.add_backend(parser)
    parser.add_argument("--num", type=cli.positive_int, help="images to draw")
    parser.add_argument("--labels", type=choices.labels, help="digits to draw, such as 0-9 or 3,7")
    parser.add_argument("--scale", type=cli.non_negative_float, help="guidance: 0 ignores the label, 1 follows it")
    parser.add_argument("--sampler", choices=STEPS, help="ddpm: ancestral sampling; ddim, 2m: no noise on the way")
    parser.add_argument(
        "--times", choices=TIMES, help="spacing of the steps' times: even in t, in sqrt(t) or in log SNR"
    )
    parser.add_argument("--steps", type=cli.positive_int, help="reverse steps, at most the schedule's T")
    parser.add_argument("--seed", type=cli.non_negative_int, help="seed of the noise")
    parser.add_argument("--out", help="the picture, a .png")
    parser.add_argument("--save-npz", help="also write the arrays to this .npz")
    cli.add_parallel(parser)
    cli.run(main, parser)
