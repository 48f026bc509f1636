"""Train one network on 20 pictures and one on 5,000: which of the two copies, and does the loss tell?

    python demos/overfit.py                           three minutes

    overfit.png    both losses over the training; ten samples of each network, and below each sample
                   the nearest picture that the network was trained on, and the nearest held-out one
    overfit.csv    both losses, distances to the nearest picture of both kinds, and the share of the
                   samples that are nearer to a picture of the training

Both networks start from the same weights, take the same steps and draw from the same noise.  The ideal denoiser of 20
pictures (ideal.py) can only draw these 20, and a network that is trained on them for long comes near to it.  Its
training loss is the lower one: a network that copies knows where x_t may come from.  The loss on held-out pictures
tells the truth, and so do the samples.

The held-out pictures are as many as those of the training, and come from the same set.  A network that has not
memorized its pictures does not know which is which, so half of its samples are nearer to a picture of the training.
Distances are root mean square differences of pixels, in grey levels from 0 to 255.

Ctrl-C, SIGTERM and SIGHUP save and end a training; the same command with --resume continues it.
"""

from functools import partial

import numpy as np
from matplotlib.figure import Figure

from tinydiff.app import cli
from tinydiff.app.axes import log_scale, marker_of, step_scale
from tinydiff.app.fit import any_training, finish
from tinydiff.app.generate import Recipe, build_unet, check_room, check_steps, generate
from tinydiff.app.metrics import interval
from tinydiff.app.networks import default_network
from tinydiff.app.outputs import own_folder
from tinydiff.app.plots import save_figure, tile
from tinydiff.app.run import check_batch
from tinydiff.app.tables import write_table
from tinydiff.app.training import drawing
from tinydiff.autograd import no_grad
from tinydiff.backend import TinydiffError, default_rng, to_numpy
from tinydiff.data import NAMES, Dataset, load
from tinydiff.data.limits import check_memory
from tinydiff.diffusion import Schedule, q_sample
from tinydiff.train import TrainConfig, draw_batch, noise_prediction_losses

SHOWN = 10  # samples of each network in the picture
EXAMPLES, SLICE = 1000, 100  # on which a loss is measured, and how many a worker gets at a time


def main(
    *,
    backend="numpy",
    precision=None,
    plain=False,
    data="auto",
    data_dir=None,
    few=20,
    many=5000,
    steps=800,
    batch_size=16,
    channels=16,
    sample_steps=Recipe.num_steps,
    num=100,
    seed=0,
    workers=None,
    out="runs/overfit",
    resume=False,
):
    """Train both networks, draw num samples of each and find the nearest pictures.  Returns the rows of the table."""
    ranks = cli.start(backend, precision, plain=plain)
    out = own_folder(out, "overfit.csv", "overfit.png")
    if few >= many:
        raise TinydiffError(f"--few {few} --many {many}: the first must be less than the second")
    schedule = Schedule.linear()
    check_steps(schedule.T, sample_steps=sample_steps)
    check_memory(f"--num {num}", 8.0 * num * many)
    dataset = load(data, "train", data_dir, seed, 2 * many)
    shape = dataset.images.shape[1:]
    check_room(num, shape)
    check_batch(batch_size, shape, channels)
    print(f"data: {dataset.source}; results in {out}/")
    build = partial(build_unet, default_network(shape, None, channels), seed)
    warmup = min(100, steps // 4)
    config = TrainConfig(num_steps=steps, minutes=None, batch_size=batch_size, warmup=warmup, seed=seed)
    recipe = Recipe(schedule, shape, num_steps=sample_steps)  # without classes there is no guidance
    settings = {"steps": steps, "batch_size": batch_size, "channels": channels, "seed": seed, "data": dataset.name}
    rows, curves, shown, unfinished = [], {}, {}, []
    for size in (few, many):
        sets = part(dataset, 0, size), part(dataset, size, 2 * size)  # those of the training, and held-out ones
        name = cli.counted(size, "picture")
        unfinished.append(out / f"unfinished_{size}.npz")
        with ranks.workers(build, workers or ranks.default_workers()) as pool:
            state = any_training(pool, noise_prediction_losses, partial(draw_batch, sets[0], schedule, None), config)
            finish(state, pool, unfinished[-1], settings | {"pictures": size}, resume, name)
            with drawing(pool, state):
                losses = [mean_loss(pool, schedule, pictures, seed) for pictures in sets]
                samples = np.concatenate([frames[-1] for frames in generate(pool, recipe, [0] * num, seed)])
        near = [nearest(samples, pictures) for pictures in sets]
        rows.append(row_of(name, losses, *(distance for _, distance in near)))
        curves[name] = np.array(state.metrics())[:, 0]
        shown[name] = [samples[:SHOWN], *(x_0_of(p, index[:SHOWN]) for p, (index, _) in zip(sets, near))]
    print(f"{cli.counted(steps, 'step')} each, {cli.counted(num, 'sample')} in {cli.counted(sample_steps, 'step')}:")
    write_table(out / "overfit.csv", rows)
    save_figure(out / "overfit.png", picture(curves, shown, rows, dataset.name), 64)
    for path in unfinished:
        path.unlink()
    print(f"done: open {out}/overfit.png; table: {out}/overfit.csv")
    return rows


def part(dataset, first, end):
    """The pictures first..end - 1 of a data set, without their labels."""
    return Dataset(dataset.name, dataset.images[first:end], None, dataset.source, ())


def x_0_of(dataset, indices):
    """The pictures of these indices, in [-1, 1]."""
    return dataset.batch(indices)[0]


def mean_loss(pool, schedule, pictures, seed):
    """The mean loss over EXAMPLES of these pictures, each with a time and a noise of its own.

    The times are spread evenly over 1..T.  The noise is the same for any pictures.
    """
    rng = default_rng("overfit", seed)
    t = rng.permutation(np.linspace(1, schedule.T, EXAMPLES).astype(int))
    x_0 = x_0_of(pictures, np.arange(EXAMPLES) % len(pictures))
    eps = rng.standard_normal(x_0.shape, dtype="float32")
    batch = {"x_t": q_sample(schedule, x_0, t, eps), "t": t, "target": eps}
    jobs = [{name: a[i : i + SLICE] for name, a in batch.items()} for i in range(0, EXAMPLES, SLICE)]
    return float(np.concatenate(list(pool.map(losses_of_slice, jobs))).mean())


def losses_of_slice(model, batch):
    with no_grad():
        return to_numpy(noise_prediction_losses(model, batch).data)


def nearest(samples, pictures):
    """(index, distance) of the picture that is nearest to each sample (N, H, W, C): (N,) each.

    distance = 127.5 sqrt(mean of (sample - picture)^2), in grey levels
    """
    a = samples.reshape(len(samples), -1).astype("float64")
    b = x_0_of(pictures, np.arange(len(pictures))).reshape(len(pictures), -1).astype("float64")
    squares = (a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T
    index = squares.argmin(1)
    return index, 127.5 * ((a - b[index]) ** 2).mean(1) ** 0.5


def row_of(name, losses, of_trained_on, of_held_out):
    """The row of a network: name of its pictures, its two losses, and the distances of its samples to both kinds."""
    nearer, num = int((of_trained_on < of_held_out).sum()), len(of_held_out)
    return {
        "trained on": name,
        "loss": f"{losses[0]:.4f}",
        "loss, held out": f"{losses[1]:.4f}",
        "distance": f"{of_trained_on.mean():.1f}",
        "distance, held out": f"{of_held_out.mean():.1f}",
        "nearer to the training": f"{nearer} of {num} ({interval(nearer, num)})",
    }


def picture(curves, shown, rows, data):
    """A figure.  Left: the loss of each training.  Right: of each network samples, and the nearest pictures below.

    curves: {name: loss of each step}.  shown: {name: (samples, nearest of the training, nearest held-out pictures)}.
    """
    figure = Figure(figsize=(11, 5), dpi=100, layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1, 1.45))
    axes = left.subplots()
    for k, (name, curve) in enumerate(curves.items()):
        window = max(1, len(curve) // 30)
        smooth = np.convolve(curve, np.ones(window) / window, "valid")
        axes.plot(np.arange(1, len(curve) + 1), curve, lw=0.5, alpha=0.25, color=f"C{k}")
        place = np.arange(len(smooth)) + (window + 1) / 2
        axes.plot(place, smooth, lw=1.8, color=f"C{k}", label=name, marker=marker_of(curve))
    log_scale(axes, "y")
    step_scale(axes)
    axes.set_title("training loss, and its running mean", fontsize=10)
    axes.legend(frameon=False)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    for axes, (name, images), row in zip(right.subplots(len(shown), 1), shown.items(), rows):
        columns, height = len(images[0]), images[0].shape[1] + 1
        axes.imshow(tile(np.concatenate(images), columns), cmap="gray", vmin=0, vmax=255)
        places = [(i + 0.5) * height for i in range(len(images))]
        axes.set_yticks(places, ["samples", "nearest of\nthe training", "nearest\nheld out"], fontsize=9)
        axes.set_xticks([])
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        losses = f"loss {row['loss']}, held out {row['loss, held out']}"
        nearer, _, _ = row["nearer to the training"].partition(" (")
        axes.set_title(f"trained on {name}: {losses};\n{nearer} samples are nearer to the training", fontsize=10)
    figure.suptitle(f"{data}: the lower training loss belongs to the network that copies", fontsize=11)
    return figure


if __name__ == "__main__":
    parser = cli.parser(__doc__, main)
    cli.add_backend(parser)
    parser.add_argument("--data", choices=NAMES, help="auto: MNIST, or drawn digits if MNIST cannot be loaded")
    cli.add_data_dir(parser)
    parser.add_argument("--few", type=cli.positive_int, help="pictures of the first training")
    parser.add_argument("--many", type=cli.whole(2, 30_000), help="pictures of the second training")
    parser.add_argument("--steps", type=cli.positive_int, help="steps of each training")
    parser.add_argument("--batch-size", type=cli.positive_int, help="images a step")
    parser.add_argument("--channels", type=cli.positive_int, help="channels of the networks")
    parser.add_argument("--sample-steps", type=cli.positive_int, help="reverse steps, at most 1000")
    parser.add_argument("--num", type=cli.whole(1, 10_000), help="samples of each network")
    parser.add_argument("--seed", type=cli.non_negative_int, help="seed of weights, batches and noise")
    parser.add_argument("--workers", type=cli.positive_int, help="processes to share the work (default: all cores)")
    parser.add_argument("--out", metavar="DIR", help="folder for the results")
    parser.add_argument("--resume", action="store_true", help="continue a training that was stopped")
    cli.run(main, parser)
