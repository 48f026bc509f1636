"""The pictures of a training run (job.py): grids on the way, and at the end samples, a film strip, a film, the loss.

All are drawn with the average of the weights, from the same noise, so that grids can be compared.  A grid has a row for
each class, with its name; of more than ten classes it shows the first ten.  A network without classes draws one grid
without names.
"""

from dataclasses import replace

import numpy as np
from tqdm import tqdm

from tinydiff.app import cli, plots, run, training
from tinydiff.app.generate import frame_times, generate

PICTURE_SEED = 1  # every grid starts from the same noise
ROWS = 10  # classes that a grid shows


def grid(state, workers, dataset, recipe, out):
    """Write a grid of samples to progress/."""
    with training.drawing(workers, state):
        frames = np.concatenate(list(generate(workers, recipe, labels_of(dataset, 5), PICTURE_SEED)), 1)
    if workers.ranks.rank > 0:
        return
    title = f"step {state.step:,} of {state.num_steps:,}, {dataset.name}"
    save_by_class(out / "progress" / f"step_{state.step:06}.png", frames[-1], dataset, title)


def final_pictures(state, workers, dataset, recipe, guided, out):
    """Write samples.png, denoising.png and denoising.gif, and loss.png.

    workers: those of load_guided, with the averaged weights.  guided: a text on the guidance, for the titles.
    """
    recipe, rank = replace(recipe, keep=recipe.num_steps), workers.ranks.rank
    labels = labels_of(dataset, 10)
    frames = []
    with tqdm(total=len(labels), unit="img", desc="drawing", disable=rank > 0) as bar:
        for part in generate(workers, recipe, labels, PICTURE_SEED):
            frames.append(part)
            bar.update(part.shape[1])
    if rank > 0:
        return
    film = np.concatenate(frames, 1)  # (steps, N, H, W, C)
    title = f"{dataset.name}, {cli.counted(state.step, 'step')}, {guided}"
    save_by_class(out / "samples.png", film[-1], dataset, title)
    times = frame_times(recipe)
    columns = sorted({round((len(film) - 1) * (1 - (1 - i / 11) ** 1.5)) for i in range(12)})  # more towards the end
    one_each = film[:, ::10]
    plots.save_filmstrip(out / "denoising.png", one_each[columns], [times[i] for i in columns], f"denoising: {title}")
    plots.save_gif(out / "denoising.gif", film[::-2, ::2][::-1], columns=10)  # half of the frames, half of the images
    run.save_loss(state, out / "loss.png", f"{dataset.name}, loss per pixel of the target {state.config.target}")
    print(f"done: open {out}/samples.png; beside it: denoising.png, denoising.gif, loss.png, metrics.csv, progress/")


def save_by_class(path, images, dataset, title):
    """Write a grid with one row for each class that is shown."""
    names = rows_of(dataset)
    row_labels = None if dataset.labels is None else names
    plots.save_grid(path, images, columns=len(images) // len(names), title=title, row_labels=row_labels)


def labels_of(dataset, each):
    """Each label that is shown `each` times, class by class.  Without classes only their number matters."""
    return [label for label in range(len(rows_of(dataset))) for _ in range(each)]


def rows_of(dataset):
    """The names of the rows of a grid: of the classes that are shown; empty ones without classes."""
    return ROWS * ("",) if dataset.labels is None else tuple(dataset.classes[:ROWS])
