"""Train a class-conditional DDPM on handwritten digits and draw samples from it: the main job.

    python demos/train_mnist.py                      2,000 steps, or as many as fit into 8 minutes
    python demos/train_mnist.py --minutes 60         a long run
    python demos/train_mnist.py --resume             continue a run that was stopped or killed
    python demos/train_mnist.py --target v --min-snr 5
    python demos/train_mnist.py --plain              with the plain functions of the book
    mpiexec -n 4 python demos/train_mnist.py --parallel mpi

The run writes to --out: checkpoint.npz, metrics.csv and grids of samples in progress/ (always from the same noise).  At
the end it writes samples.png, denoising.png, denoising.gif and loss.png.  Ctrl-C, SIGTERM and SIGHUP save and end the
run, with exit code 130, 143 or 129.
"""

from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from tinydiff.app import checkpoint, cli, plots, run, training
from tinydiff.app.generate import Recipe, build_unet, check_steps, frame_times, generate
from tinydiff.app.kinds import data_name
from tinydiff.app.outputs import own_folder
from tinydiff.data import NAMES, Dataset
from tinydiff.diffusion import Schedule
from tinydiff.diffusion.targets import TARGETS
from tinydiff.train import TrainConfig, Training

PICTURE_SEED = 1  # every grid starts from the same noise, so that grids can be compared


def main(
    *,
    backend="numpy",
    precision=None,
    plain=False,
    steps=None,
    minutes=None,
    batch_size=None,
    channels=None,
    data="auto",
    data_dir=None,
    num_images=None,
    out="runs/mnist",
    resume=False,
    seed=None,
    workers=None,
    parallel="local",
    target=None,
    min_snr=None,
    save_every=100,
    sample_every=250,
    sample_steps=Recipe.num_steps,
    scale=Recipe.scale,
):
    """An option that is None has the default of TrainConfig, or, with resume, the value in the checkpoint."""
    ranks = cli.start(backend, precision, parallel, plain)
    workers = workers or (ranks.size if parallel == "mpi" else None)
    files = ("checkpoint.npz", "metrics.csv", "samples.png", "denoising.png", "denoising.gif", "loss.png")
    out = ranks.broadcast(partial(own_folder, out, *files))
    ranks.broadcast(partial(own_folder, out / "progress"))
    path = out / "checkpoint.npz"
    others = {"batch_size": batch_size, "seed": seed, "target": target, "min_snr": min_snr}
    wanted = run.wanted(steps, minutes, **others)

    saved = ranks.broadcast(partial(run.load_if_there, path, "diffusion")) if resume else None
    if saved is None:
        config = replace(TrainConfig(num_steps=run.UNLIMITED) if minutes else TrainConfig(), **wanted)
        dataset = ranks.broadcast(partial(run.load_data, data, data_dir, config.seed, num_images))
        model_config = {"base_channels": channels or 32, "num_classes": len(dataset.classes)}
        schedule = Schedule.linear()
        workers = workers or ranks.default_workers(config.batch_size)
    else:
        arrays, meta = saved
        config = training.saved_config(meta)
        checkpoint.check_same(asdict(config), wanted, wanted)
        name = None if data == "auto" else data
        settings = run.given(base_channels=channels, num=num_images, name=name)
        checkpoint.check_same(meta["model"] | meta["data"], settings, settings)
        name, num = data_name(meta), meta["data"]["num"]
        dataset = ranks.broadcast(partial(run.load_data, name, data_dir, config.seed, num))
        model_config, schedule = meta["model"], Schedule(arrays["schedule/beta"])
        workers = run.resumed_workers(meta, workers, backend)

    run.check_channels(model_config["base_channels"])
    check_steps(schedule.T, sample_steps=sample_steps)
    run.check_batch(config.batch_size, dataset.images.shape[1:], model_config["base_channels"], ranks.size)
    recipe = Recipe(
        schedule,
        dataset.images.shape[1:],
        num_steps=sample_steps,
        scale=scale,
        target=TARGETS[config.target],
    )
    with ranks.workers(partial(build_unet, model_config, config.seed), workers) as pool:
        state = training.diffusion_training(pool, schedule, config, dataset)
        if saved is not None:
            training.restore(state, path, arrays, meta)
        else:
            ranks.broadcast(partial(checkpoint.set_aside, path))
        print(f"data: {dataset.source}")
        print(f"network: {pool.model.num_parameters():,} parameters; {workers} worker(s); results in {out}/")
        save = partial(_save, state, dataset, schedule, workers, out)
        run.run(state, ranks, save, save_every, partial(_grid, state, pool, dataset, recipe, out), sample_every)
        _final_pictures(state, pool, dataset, recipe, out)


def _save(state: Training, dataset: Dataset, schedule: Schedule, num_workers: int, out: Path) -> None:
    training.save(state, out / "checkpoint.npz", dataset, schedule, num_workers)
    run.save_metrics(state, out / "metrics.csv")


def _grid(state: Training, workers: Any, dataset: Dataset, recipe: Recipe, out: Path) -> None:
    """Write a grid of samples from the averaged weights."""
    with training.drawing(workers, state):
        frames = np.concatenate(list(generate(workers, recipe, _labels(dataset, 5), PICTURE_SEED)), 1)
    if workers.ranks.rank > 0:
        return
    title = f"step {state.step:,} of {state.num_steps:,}, {dataset.name}"
    _save_by_class(out / "progress" / f"step_{state.step:06}.png", frames[-1], dataset, title)


def _final_pictures(state: Training, workers: Any, dataset: Dataset, recipe: Recipe, out: Path) -> None:
    """Write samples.png, denoising.png and denoising.gif from the averaged weights, and loss.png."""
    recipe, rank = replace(recipe, keep=recipe.num_steps), workers.ranks.rank
    labels = _labels(dataset, 10)
    frames = []
    with (
        training.drawing(workers, state),
        tqdm(total=len(labels), unit="img", desc="drawing", disable=rank > 0) as bar,
    ):
        for part in generate(workers, recipe, labels, PICTURE_SEED):
            frames.append(part)
            bar.update(part.shape[1])
    if rank > 0:
        return
    film = np.concatenate(frames, 1)  # (steps, N, H, W, C)
    title = f"{dataset.name}, {cli.counted(state.step, 'step')}, guidance {recipe.scale:g}"
    _save_by_class(out / "samples.png", film[-1], dataset, title)
    times = frame_times(recipe)
    columns = sorted({round((len(film) - 1) * (1 - (1 - i / 11) ** 1.5)) for i in range(12)})  # more towards the end
    one_each = film[:, :: len(labels) // len(dataset.classes)]
    plots.save_filmstrip(out / "denoising.png", one_each[columns], [times[i] for i in columns], f"denoising: {title}")
    plots.save_gif(out / "denoising.gif", film[::-2, ::2][::-1], columns=10)  # half of the frames, half of the digits
    title = f"{dataset.name}, loss per pixel of the target {state.config.target}"
    run.save_loss(state, out / "loss.png", title)
    print(f"done: open {out}/samples.png; beside it: denoising.png, denoising.gif, loss.png, metrics.csv, progress/")
    print(f"next: {cli.command(Path(__file__).with_name('sample.py'), out / 'checkpoint.npz')}")


def _save_by_class(path: Path, images: np.ndarray, dataset: Dataset, title: str) -> None:
    """Write a grid with one row for each class."""
    plots.save_grid(path, images, columns=len(images) // len(dataset.classes), title=title, row_labels=dataset.classes)


def _labels(dataset: Dataset, each: int) -> list[int]:
    """Every label `each` times, class by class."""
    return [label for label in range(len(dataset.classes)) for _ in range(each)]


if __name__ == "__main__":
    new = TrainConfig()
    parser = cli.parser(__doc__, main)
    cli.add_backend(parser)
    length = parser.add_mutually_exclusive_group()
    most = f"(default: {new.num_steps} steps, but at most {new.minutes:g} minutes)"
    length.add_argument("--steps", type=cli.positive_int, help=f"training steps, without a time limit {most}")
    length.add_argument("--minutes", type=cli.positive_float, help=f"train as long, without a limit of steps {most}")
    parser.add_argument("--data", choices=NAMES, help="auto: MNIST, or drawn digits if MNIST cannot be loaded")
    cli.add_data_dir(parser)
    parser.add_argument("--target", choices=TARGETS, help=f"what the network learns to predict (default: {new.target})")
    parser.add_argument(
        "--min-snr", type=cli.positive_float, help="gamma of min-SNR weights, such as 5 (default: no weights)"
    )
    parser.add_argument("--sample-every", type=cli.positive_int, help="steps between sample grids")
    parser.add_argument("--scale", type=cli.non_negative_float, help="guidance of the pictures: 1 follows the label")
    run.add_options(parser)
    cli.add_parallel(parser)
    cli.run(main, parser)
