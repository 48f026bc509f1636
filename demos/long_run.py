"""What train_mnist.py and train_prompts.py share: a run of minutes with a bar, that saves, stops and resumes.

Everything that the two differ in is passed in: what is trained, what a checkpoint keeps, what is drawn on the way.
"""

import csv
import io

import numpy as np
from tqdm import tqdm

from tinydiff import checkpoint, cli, plots
from tinydiff.train import METRICS, NUM_BUCKETS, train

UNLIMITED = 10**9  # steps, where the minutes decide


def run(state, dataset, save, save_every, on_the_way=None):
    """Train to the end, saving on the way; False if a signal asked to stop before.

    save() writes what is to be kept.  on_the_way(): None, or what to do after each step but the last.
    """
    save()
    per_step = state.config.batch_size
    start = state.step * per_step
    with cli.stop_signals() as stop, tqdm(total=total(state), initial=start, unit="img", dynamic_ncols=True) as bar:
        for _ in train(state, dataset):
            bar.total = total(state)
            bar.set_postfix_str(f"step {state.step}{recent_loss(state)}", refresh=False)
            bar.update(per_step)
            at_end = state.step == state.num_steps
            if at_end or stop.requested or state.step % save_every == 0:
                save()
            if stop.requested and not at_end:
                bar.close()
                print(f"{stop.signal}: saved at step {state.step}; continue with --resume")
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
    table.writerows((i + 1, *(f"{value:.6g}" for value in row)) for i, row in enumerate(state.metrics))
    with checkpoint.atomic_write(path) as file:
        file.write(text.getvalue().encode())


def save_loss(state, path, title):
    """The loss, and by quarter of 1..T, as a picture."""
    metrics, T = np.array(state.metrics), state.schedule.T
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
