"""Train the classifier that reads generated digits.  After some minutes it reads 99.5% of MNIST's test digits right.

    python demos/train_classifier.py                                        for classify.py
    python demos/train_classifier.py --noisy --out runs/noisy_classifier    for guidance.py

--noisy trains a classifier that reads x_t at any t, for classifier guidance.  This classifier is tested on each test
digit at a random t, and the demo prints the share of right answers in ranges of t.  (Near t = T the digit is gone, and
guessing is right for 10%.)  The demo writes to --out: checkpoint.npz, and misread.png with the test digits that are
misread most confidently.  Ctrl-C, SIGTERM and SIGHUP save and end the training; the same command with --resume
continues it.
"""

from dataclasses import asdict
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np

from tinydiff.app import checkpoint, cli, plots
from tinydiff.app.classify import (
    ClassifierConfig,
    build_classifier,
    classifier_training,
    draw_moved_batch,
    draw_noisy_batch,
    save_classifier,
)
from tinydiff.app.fit import finish
from tinydiff.app.metrics import percent
from tinydiff.app.outputs import own_folder
from tinydiff.app.reading import misread_rows, read
from tinydiff.app.run import check_batch, given
from tinydiff.backend import asarray, default_rng, standard_normal, to_numpy
from tinydiff.data import COLOUR, NAMES, load
from tinydiff.diffusion import Schedule, q_sample


def main(
    backend="numpy",
    precision=None,
    plain=False,
    data="auto",
    data_dir=None,
    size=None,
    num_train=None,
    num_test=None,
    steps=ClassifierConfig.num_steps,
    batch_size=ClassifierConfig.batch_size,
    seed=ClassifierConfig.seed,
    workers=None,
    noisy=False,
    out="runs/classifier",
    resume=False,
):
    """num_train, num_test: how many images to use, None for all.  Returns the number of misread test images."""
    ranks = cli.start(backend, precision, plain=plain)
    schedule = Schedule.linear() if noisy else None  # the schedule of train_mnist.py
    workers = workers or ranks.default_workers()
    out = own_folder(out, "checkpoint.npz", "misread.png")
    config = ClassifierConfig(num_steps=steps, batch_size=batch_size, seed=seed)
    sized = given(size=size)
    dataset = load(data, "train", data_dir, seed, num_train, **sized)
    test = load(dataset.name, "test", data_dir, seed, num_test, **sized)
    check_batch(batch_size, dataset.images.shape[1:])
    model_config = {"in_channels": dataset.images.shape[3], "num_classes": len(dataset.classes), "time": noisy}
    draw = partial(draw_noisy_batch, schedule) if noisy else draw_moved_batch
    with ranks.workers(partial(build_classifier, model_config, seed), workers) as pool:
        print(f"data: {dataset.source}")
        print(f"network: {pool.model.num_parameters():,} parameters; {workers} worker(s); results in {out}/")
        state, unfinished = classifier_training(pool, dataset, config, draw), out / "unfinished.npz"
        settings = asdict(config) | {"noisy": noisy, "data": dataset.name, "num": len(dataset)} | sized
        finish(state, pool, unfinished, settings, resume)
        images, labels = test.batch(np.arange(len(test)))
        images, t = noised(schedule, images, seed) if noisy else (images, None)
        probabilities = np.concatenate(list(read(pool, images, t)))
        errors = int((probabilities.argmax(1) != labels).sum())
        checkpoint.set_aside(out / "checkpoint.npz")
        save_classifier(out / "checkpoint.npz", pool, config, dataset, test, errors, schedule)
        unfinished.unlink()
    print(f"{test.source}: {errors:,} of {len(test):,} misread, {percent(1 - errors / len(test), 2)} right")
    if noisy:
        for first, last, right, of in shares_by_time(schedule.T, t, probabilities.argmax(1) == labels):
            print(f"  t in {first:4}..{last:4}: {percent(right / of):>6} of {of:,}")
    pictures, captions = misread_rows(images, labels, probabilities, test.classes)
    if captions:
        title = f"{test.name}: the most confidently misread of {errors} in {len(test):,}"
        columns = len(pictures) // len(captions)
        plots.save_grid(out / "misread.png", pictures, columns=columns, title=title, row_labels=captions)
    else:
        print(f"none misread: {out / 'misread.png'} is not written")
    print(f"done: {out}/checkpoint.npz{'; open ' + str(out / 'misread.png') if captions else ''}")
    print(f"next: {next_command(out / 'checkpoint.npz', noisy, dataset.name)}")
    return errors


def next_command(path, noisy, data):
    """What to type to use the checkpoint, with the diffusion model that was trained on `data`."""
    demos, trained = Path(__file__).parent, f"runs/{'images' if data in COLOUR else 'mnist'}/checkpoint.npz"
    if noisy:
        return cli.command(demos / "guidance.py", trained, "--noisy-classifier", path)
    draw = cli.command(demos / "sample.py", trained, "--save-npz", "samples.npz")
    return f"{draw} && {cli.command(demos / 'classify.py', 'samples.npz', '--checkpoint', path)}"


def noised(schedule, images, seed):
    """Images noised to random times, uniform in 1..T: x_t, shaped like images, and t (N,), both on the host."""
    rng = default_rng("noised", seed)
    t = rng.integers(1, schedule.T + 1, len(images))
    return to_numpy(q_sample(schedule, asarray(images), t, standard_normal(rng, images.shape))), t


def shares_by_time(T, t, right):
    """Rows (first t, last t, right answers, images) of eight equal ranges of t, without those that have no images."""
    edges = [i * T // 8 for i in range(9)]
    ranges = [(low + 1, high, right[(low < t) & (t <= high)]) for low, high in pairwise(edges)]
    return [(first, last, int(found.sum()), len(found)) for first, last, found in ranges if len(found)]


if __name__ == "__main__":
    parser = cli.parser(__doc__, main)
    cli.add_backend(parser)
    known = (*NAMES, *COLOUR)
    parser.add_argument("--data", choices=known, help="auto: MNIST, or drawn digits if MNIST cannot be loaded")
    cli.add_data_dir(parser)
    parser.add_argument(
        "--size", type=cli.positive_int, help=f"pixels of a side of {' and '.join(COLOUR)} (default: as they are)"
    )
    parser.add_argument("--steps", type=cli.positive_int, help="number of training steps")
    parser.add_argument("--batch-size", type=cli.positive_int, help="images a step")
    parser.add_argument("--seed", type=cli.non_negative_int, help="seed of all random numbers")
    parser.add_argument("--workers", type=cli.positive_int, help="processes that share a batch (default: one a core)")
    parser.add_argument("--noisy", action="store_true", help="read noised digits x_t, for classifier guidance")
    parser.add_argument("--out", metavar="DIR", help="folder for the results")
    parser.add_argument("--resume", action="store_true", help="continue a training that was stopped")
    cli.run(main, parser)
