"""Train one network in float32, TF32, bf16 and fp16, and see what breaks.

    python demos/precision/precision.py
    python demos/precision/precision.py --steps 100

A GPU's tensor cores multiply numbers of 16 or 19 bits much faster than float32.  What does a network lose by that?
This demo runs without a GPU: it rounds the factors of each matrix product to the format (rounding.py, products.py), and
adds in float32.  All runs begin with the same weights and see the same batches of small drawn digits.

    float32              nothing is rounded
    TF32, bf16, fp16     the factors of all products, forward and backward; weights stay in float32
    fp16, loss x 4,096   the loss is multiplied, so that small gradients do not become 0
    bf16, weights too    no float32 copy of the weights: small updates are lost

Loss scaling and the float32 copy are those of Micikevicius et al. 2018, section 3.  The table has, for each run: the
mean loss of the last 50 steps; the error of one gradient, against float64, as a share of its norm; the share of
gradients between layers that the rounding turns to 0; the share of the weights that the last step moved.  The demo
writes to --out: precision.png (the loss, and the error of fp16's gradient for each scale of the loss), samples.png
(digits of each run from the same noise) and table.csv.  If it is stopped, nothing is kept.
"""

from functools import partial

import numpy as np
from matplotlib.figure import Figure
from precision_runs import RUNS, SCALES, Run, Task, gradient_error, trained
from rounding import fp16
from tqdm import tqdm

from tinydiff.app import cli, plots
from tinydiff.app.axes import log_scale, marker_of, step_scale
from tinydiff.app.checkpoint import atomic_write
from tinydiff.app.outputs import own_folder
from tinydiff.app.tables import print_table, write_table
from tinydiff.train import TrainConfig

LAST = 50  # steps whose mean loss is in the table


def main(*, steps=300, seed=0, out="runs/precision", workers=None):
    """Returns the rows of the table."""
    ranks = cli.start("numpy", None)
    out = own_folder(out, "precision.png", "samples.png", "table.csv")
    task = Task(TrainConfig(num_steps=steps, minutes=None, batch_size=32, warmup=min(50, steps // 2), seed=seed))
    with ranks.workers(task.network, workers or ranks.default_workers(len(RUNS))) as pool:
        jobs = pool.map(partial(trained, task), RUNS)
        results = list(tqdm(jobs, "runs", len(RUNS), dynamic_ncols=True))
        measured = (*RUNS, *(Run(f"fp16, loss x {scale:g}", fp16, scale) for scale in SCALES))
        jobs = pool.map(partial(gradient_error, task, results[0].weights), measured)
        errors = list(tqdm(jobs, "gradients", len(measured), dynamic_ncols=True))
    rows = table(results, errors[: len(RUNS)])
    print_table(rows)
    write_table(out / "table.csv", rows)
    with atomic_write(out / "precision.png") as file:
        figure(results, errors[: len(RUNS)], errors[len(RUNS) :]).savefig(file, format="png")
    title = f"{cli.counted(steps, 'training step')}, and the same noise at the start of each column"
    names, digits = [run.name for run in RUNS], np.concatenate([result.digits for result in results])
    plots.save_grid(out / "samples.png", digits, columns=len(digits) // len(RUNS), title=title, row_labels=names)
    print(f"pictures and table: {out}/")
    return rows


def table(results, errors):
    """A row for each run: what the runs left (Result), and the errors of their gradients (GradientError)."""
    return [
        {
            "run": run.name,
            f"loss, last {LAST} steps": f"{result.losses[-LAST:].mean():.4f}",
            "gradient's error": "overflow" if np.isinf(e.error) else f"{e.error:.1e}",
            "gradients turned to 0": f"{e.lost:.2%}",
            "weights moved by the last step": f"{result.moved[-1]:.1%}",
        }
        for run, result, e in zip(RUNS, results, errors)
    ]


def figure(results, errors, scaled):
    """Three panels: the loss of each run against the first one's, and the share of the weights that a step moves, over
    the steps; and the error of the gradient over the scale of the loss.

    errors: a GradientError for each run.  scaled: one for each of SCALES, in fp16.  An infinite error has no point.
    """
    page = Figure(figsize=(16, 4.2), dpi=110, layout="constrained")
    left, middle, right = page.subplots(1, 3)
    base = running_mean(results[0].losses)
    for k, (run, result) in enumerate(zip(RUNS, results)):
        steps, more = np.arange(1, len(base) + 1), 100 * (running_mean(result.losses) / base - 1)
        left.plot(steps, more, marker=marker_of(steps), lw=1.3, color=f"C{k}", label=run.name)
        middle.plot(steps, 100 * result.moved, marker=marker_of(steps), lw=1.3, color=f"C{k}", label=run.name)
    middle.set_ylim(0, 105)
    for axes, title in (
        (left, f"mean loss of {LAST} steps: % above {RUNS[0].name}"),
        (middle, "% of the weights that a step moves"),
    ):
        step_scale(axes)
        axes.set_title(title, loc="left", fontsize=11)
        axes.legend(frameon=False, fontsize=9)
    right.plot(SCALES, [np.nan if np.isinf(e.error) else e.error for e in scaled], "o-", color="C3", label="fp16")
    for k, name in ((1, "TF32"), (2, "bf16")):
        right.axhline(errors[k].error, color=f"C{k}", ls="--", label=f"{name}, loss x 1")
    right.set_xlim(SCALES[0] / 2, SCALES[-1] * 2)
    log_scale(right, "x")
    log_scale(right, "y")
    right.set_xlabel("the loss is multiplied by this")
    right.set_title("error of the gradient, as a share of its norm (no dot: overflow)", loc="left", fontsize=11)
    right.legend(frameon=False, fontsize=9)
    return page


def running_mean(losses):
    """The mean of each loss and of the LAST - 1 before it, or of as many as there are."""
    sums = np.concatenate([[0.0], np.cumsum(losses, dtype=np.float64)])
    ends = np.arange(1, len(sums))
    first = np.maximum(ends - LAST, 0)
    return (sums[ends] - sums[first]) / (ends - first)


if __name__ == "__main__":
    parser = cli.parser(__doc__, main)
    parser.add_argument("--steps", type=cli.positive_int, help="training steps of each run")
    parser.add_argument("--seed", type=cli.non_negative_int, help="of weights, data and noise")
    parser.add_argument("--out", metavar="DIR", help="folder for the pictures and the table")
    parser.add_argument("--workers", type=cli.positive_int, help="processes to share the work (default: all cores)")
    cli.run(main, parser)
