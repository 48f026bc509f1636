"""Draw many pictures from one x_T: DDIM with eta = 0 draws one picture, with eta = 1 a new one each time.

    python demos/same_start.py runs/mnist/checkpoint.npz
    python demos/same_start.py runs/mnist/checkpoint.npz --label 3

eta is the share of the DDPM's noise that a step adds (Song et al. 2021, eq. 16).  With eta = 0 x_T determines the whole
picture, so x_T is a code of the picture.  With eta = 1 the noise of the steps makes the result almost independent of
x_T.  The demo writes same_start.png to --out, with a row for each eta and a column for each draw of that noise.  The
demo also prints how much the columns differ: the standard deviation of a pixel over the columns, as a share of the
range from black to white, mean over the pixels.
"""

from functools import partial
from pathlib import Path

import numpy as np

from tinydiff.app import cli, plots
from tinydiff.app.choices import check_labels
from tinydiff.app.generate import Recipe, check_room, check_steps
from tinydiff.app.outputs import own_folder
from tinydiff.app.row_rng import row_rng
from tinydiff.app.trained import load_trained
from tinydiff.autograd import no_grad
from tinydiff.backend import TinydiffError, default_rng, standard_normal, to_numpy, xp
from tinydiff.diffusion import classifier_free, ddim_step, sample, timestep_pairs, unconditional

ETAS = (0.0, 0.2, 0.5, 1.0)


def main(
    checkpoint,
    *,
    backend="numpy",
    precision=None,
    plain=False,
    label=None,
    num=10,
    steps=Recipe.num_steps,
    scale=None,
    seed=0,
    out="runs/same_start",
    workers=None,
):
    """Returns {eta: standard deviation of a pixel over the columns, mean over the pixels, as a share of the range}."""
    ranks = cli.start(backend, precision, plain=plain)
    if num < 2:
        raise TinydiffError(f"--num {num}: must be at least 2, because pictures are compared with each other")
    if scale is not None and label is None:
        raise TinydiffError(f"--scale {scale:g}: guidance needs --label")
    scale = Recipe.scale if scale is None else scale
    out = own_folder(out, "same_start.png")
    pool, schedule, meta = load_trained(Path(checkpoint), workers or ranks.default_workers(len(ETAS)))
    with pool:
        check_steps(schedule.T, steps=steps)
        if label is not None:
            check_labels(pool.model, label=label)
        check_room(num * len(ETAS), meta["data"]["image_shape"])
        shape = (num, *meta["data"]["image_shape"])
        rows = list(pool.map(partial(ends, schedule, shape, label, steps, scale, seed), ETAS))
    spreads = {eta: float(row.std(0).mean()) / 2 for eta, row in zip(ETAS, rows)}
    for eta, value in spreads.items():
        print(f"eta = {eta:<4g} pixels differ by {value:.2%} of the range")
    names = [f"eta = {eta:g}: {value:.1%}" for eta, value in spreads.items()]
    condition = "no label" if label is None else f"label {label}, guidance {scale:g}"
    title = f"{meta['data']['name']}: one x_T, {cli.counted(steps, 'step')}, {condition}"
    plots.save_grid(out / "same_start.png", np.concatenate(rows), columns=num, title=title, row_labels=names)
    print(f"picture: {out}/same_start.png")
    return spreads


def ends(schedule, shape, label, steps, scale, seed, model, eta):
    """N pictures from one x_T, each with its own noise in the steps: (N, H, W, C) in [-1, 1]."""
    x_T = xp.repeat(standard_normal(default_rng("start", seed), (1, *shape[1:])), shape[0], 0)
    eps_fn = unconditional(model) if label is None else classifier_free(model, label, scale)
    step, pairs = partial(ddim_step, schedule, eta=eta, clip=True), timestep_pairs(schedule.T, steps)
    with no_grad():
        *_, (_, x_0, _) = sample(step, eps_fn, pairs, x_T, row_rng("way", seed, rows=range(shape[0])))
    return to_numpy(x_0)  # the x_0_hat of the last step, which is clipped


if __name__ == "__main__":
    parser = cli.parser(__doc__, main)
    parser.add_argument("checkpoint", help="checkpoint.npz of train_mnist.py")
    cli.add_backend(parser)
    parser.add_argument("--label", type=cli.non_negative_int, help="the digit to draw (default: no label)")
    parser.add_argument("--num", type=cli.whole(2, 1000), help="pictures for each eta")
    parser.add_argument("--steps", type=cli.positive_int, help="reverse steps, at most the schedule's T")
    parser.add_argument("--scale", type=cli.non_negative_float, help=f"guidance of --label (default: {Recipe.scale:g})")
    parser.add_argument("--seed", type=cli.non_negative_int, help="seed of the start and of the noise")
    parser.add_argument("--out", metavar="DIR", help="folder for the picture")
    parser.add_argument(
        "--workers", type=cli.positive_int, help="processes to share the work (default: all cores, at most 4)"
    )
    cli.run(main, parser)
