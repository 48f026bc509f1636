"""A long run as a program has it: its options, a bar, and saving, stopping and resuming.

The programs that train a diffusion model share it.  Everything in which they differ is passed in: what is trained, what
a checkpoint keeps, what is drawn on the way.  Read next: ../../demos/train_mnist.py.
"""

import csv
import io

import numpy as np
from tqdm import tqdm

from tinydiff.app import checkpoint, cli, plots
from tinydiff.app.signals import stop_signals
from tinydiff.app.training import steps, whole
from tinydiff.backend import FAST, TinydiffError, precision
from tinydiff.data import load
from tinydiff.train import METRICS, NUM_BUCKETS, TrainConfig

UNLIMITED = 10**9  # steps, where the minutes decide
NUM_GROUPS = 8  # of UNet


def wanted(num_steps, minutes, **others):
    """The settings of TrainConfig that were asked for: a number of steps is not cut short by a clock."""
    asked = given(num_steps=num_steps, minutes=minutes, **others)
    return asked | {"minutes": None} if num_steps is not None else asked


def given(**options):
    """The options that are not None."""
    return {name: value for name, value in options.items() if value is not None}


def load_data(name, data_dir, seed, num):
    """The training set, or its first num images."""
    try:
        return load(name, data_dir=data_dir, seed=seed, num=num)
    except ValueError as error:  # more images than there are
        raise TinydiffError(f"--num-images: {error}") from None


def check_channels(base_channels):
    """TinydiffError where the group norms cannot be of this width."""
    if base_channels % NUM_GROUPS:
        raise TinydiffError(
            f"--channels {base_channels}: must be a multiple of {NUM_GROUPS}, the groups of each group norm"
        )


def resumed_workers(meta, workers, backend):
    """How many workers continue the run: the number asked for, else the checkpoint's; one on a GPU, and with --plain.

    Prints a note for each thing that makes results round differently from before.
    """
    workers = workers or (meta["num_workers"] if FAST and backend == "numpy" else 1)
    if meta["num_workers"] != workers:
        print(f"note: {meta['num_workers']} worker(s) before, {workers} now: the sums round differently")
    before, now = meta.get("precision"), precision()  # older checkpoints do not say
    if before not in (None, now):
        print(f"note: matrix products in {before} before, in {now} now: they round differently")
    return workers


def add_options(parser):
    """What both demos ask for, but for the data and the minutes' default."""
    new = TrainConfig()
    parser.add_argument("--batch-size", type=cli.positive_int, help=f"images a step (default: {new.batch_size})")
    parser.add_argument("--channels", type=cli.positive_int, help="channels of the first level (default: 32)")
    parser.add_argument("--num-images", type=cli.positive_int, help="take the first so many images only")
    parser.add_argument("--out", help="folder for everything that the run writes")
    parser.add_argument("--resume", action="store_true", help="continue the run in --out, with its settings")
    parser.add_argument("--seed", type=cli.non_negative_int, help=f"of weights, data and noise (default: {new.seed})")
    parser.add_argument("--save-every", type=cli.positive_int, help="steps between checkpoints")
    parser.add_argument("--sample-steps", type=cli.positive_int, help="reverse steps of each picture")


def run(state, ranks, save, save_every, on_the_way=None):
    """Train to the end, saving on the way; False if a signal asked to stop before.

    ranks: who shares the work.  save() writes what is to be kept.  on_the_way(): None, or what to do after each step
    but the last.
    """
    ranks.broadcast(save)
    per_step = state.config.batch_size
    start = state.step * per_step
    bar = tqdm(total=total(state), initial=start, unit="img", dynamic_ncols=True, disable=ranks.rank > 0)
    with stop_signals(lambda: whole(state) and ranks.rescue(save)) as stop, bar:
        for _ in steps(state, ranks, state.config.minutes):
            bar.total = total(state)
            bar.set_postfix_str(f"step {state.step}{recent_loss(state)}", refresh=False)
            bar.update(per_step)
            at_end = state.step == state.num_steps
            stopped = ranks.allreduce_mean(np.array([stop.requested], np.float32))[0] > 0  # one rank's signal stops all
            if at_end or stopped or state.step % save_every == 0:
                ranks.broadcast(save)
            if stopped and not at_end:
                bar.close()
                print(f"{stop.signal or 'stopped by another rank'}: saved at step {state.step}; continue with --resume")
                return False
            if on_the_way is not None and not at_end:
                on_the_way()
    return True


def load_if_there(path, kind):
    """The checkpoint at `path`, or None where a run was stopped before its first save; CheckpointError for another."""
    if not path.exists():
        print(f"no checkpoint at {path} yet: starting from the beginning")
        return None
    arrays, meta = checkpoint.load(path)
    checkpoint.check_same(meta, {"kind": kind}, ["kind"])
    return arrays, meta


def save_metrics(state, path):
    """One line a step, as .csv."""
    text = io.StringIO()
    table = csv.writer(text)
    table.writerow(("step", *METRICS))
    table.writerows((i + 1, *(f"{value:.6g}" for value in row)) for i, row in enumerate(state.metrics()))
    with checkpoint.atomic_write(path) as file:
        file.write(text.getvalue().encode())


def save_loss(state, path, title):
    """The loss, and by quarter of 1..T, as a picture."""
    metrics, T = np.array(state.metrics()), state.T
    names = [f"t = {i * T // NUM_BUCKETS + 1}..{(i + 1) * T // NUM_BUCKETS}" for i in range(NUM_BUCKETS)]
    steps = np.arange(1, len(metrics) + 1)
    plots.save_loss(path, steps, metrics[:, 0], metrics[:, -NUM_BUCKETS:], names, title)


def total(state):
    """Images of the whole run, once it is known."""
    return None if state.num_steps == UNLIMITED else state.num_steps * state.config.batch_size


def recent_loss(state):
    """The mean of the last 50 losses that are known: asking for all of them would make a GPU's steps wait."""
    rows = state.rows[-50:]
    return f", loss {sum(row[0] for row in rows) / len(rows):.4f}" if rows else ""
