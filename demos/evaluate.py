"""Measure how well a checkpoint compresses the test set: its variational bound in bits per dimension.

    python demos/evaluate.py runs/mnist/checkpoint.npz
    python demos/evaluate.py runs/mnist/checkpoint.npz --num 500 --variance beta --out bits.png

A model that gives an image the probability p(x) can store the image in -log2 p(x) bits.  The bound is a number of bits
that is always enough.  The network gets no label, because gzip, which is printed for comparison, gets no label either.
(A label costs log2(10)/784 = 0.004 bits/dim.)

Each image costs --draws + 1 evaluations of the network; the whole chain would cost 1,000.  The default is 10,000 images
with 8 evaluations each: 4 to 5 minutes at 300 evaluations a second.  --out saves a picture of the bits that each part
of the chain needs.
"""

import gzip
import math
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from tqdm import tqdm

from tinydiff.app import cli
from tinydiff.app.axes import log_scale
from tinydiff.app.checkpoint import atomic_write
from tinydiff.app.kinds import EVERY, data_name, data_size
from tinydiff.app.outputs import file_to_write
from tinydiff.app.row_rng import row_rng
from tinydiff.app.trained import load_trained
from tinydiff.autograd import no_grad
from tinydiff.backend import TinydiffError, asarray, to_numpy
from tinydiff.data import load
from tinydiff.diffusion import Schedule, bound_term, discretized_log_prob, prior_kl, sampled_bound, unconditional

VARIANCES = {"beta_tilde": Schedule.beta_tilde, "beta": Schedule.beta_t_given_s}
SLICE = 50  # images that a worker evaluates at a time


def main(
    checkpoint,
    *,
    backend="numpy",
    precision=None,
    plain=False,
    num=10_000,
    draws=7,
    variance="beta_tilde",
    seed=0,
    data_dir=None,
    out=None,
    workers=None,
    parallel="local",
):
    """Print the bound and its parts.  Returns the mean of the bits/dim over the images, and its standard error."""
    ranks = cli.start(backend, precision, parallel, plain)
    if out is not None:
        ranks.broadcast(partial(file_to_write, "--out", out, ".png"))
    workers = workers or ranks.default_workers()
    pool, schedule, meta = load_trained(Path(checkpoint), workers, ranks)
    with pool:
        if schedule.T < 2:
            raise TinydiffError(f"{checkpoint}: its schedule has one step, but the bound needs two or more")
        dataset = ranks.broadcast(
            partial(load, data_name(meta, EVERY), "test", data_dir, meta["train"]["seed"], **data_size(meta))
        )
        if not 2 <= num <= len(dataset):
            raise TinydiffError(f"--num {num}: must lie in 2..{len(dataset)}, the images of the test set")
        # Evenly spread, because the first half of MNIST's test images is cleaner.
        x_0, _ = dataset.batch(np.arange(num) * len(dataset) // num)
        print(f"data: {dataset.source}, {num:,} of {len(dataset):,} images")
        term = partial(bound_term, variance=VARIANCES[variance], clip=True)
        jobs = [(x_0[i : i + SLICE], (seed, i)) for i in range(0, num, SLICE)]
        parts = []
        with tqdm(total=num, unit="img", dynamic_ncols=True, disable=ranks.rank > 0) as bar:
            for part in pool.map(partial(evaluate_slice, schedule, draws, term), jobs):
                parts.append(part)
                bar.update(part[0].shape[1])
    terms = np.concatenate([nats for nats, _ in parts], 1) / math.log(2)  # (draws + 2, num), bits
    times = np.concatenate([t for _, t in parts], 1)
    kind = f"{meta['data']['name']}, {cli.counted(meta['step'], 'step')}, reverse variance {variance}"
    print(f"{kind}\nbits/dim of p(x), no label given: upper bound and standard error")
    parts = parts_of(terms)
    for name, (mean, error) in parts.items():
        print(f"  {name:15}{mean:#9.4g} +- {error:#.2g}")
    print("for comparison, independent of the network")
    for name, bits, what in references(dataset, x_0, schedule.beta[1]):
        print(f"  {name:15}{bits:#9.4g}    {what}")
    if out is not None and ranks.rank == 0:
        with atomic_write(out) as file:
            spent(schedule, terms, times, kind).savefig(file, format="png")
        print(f"where the bits go: {out}")
    return parts["total"]


def evaluate_slice(schedule, draws, term, model, job):
    """The terms (draws + 2, n) in nats, and the times (draws, n)."""
    x_0, (seed, first) = job
    with no_grad():
        rng = row_rng("likelihood", seed, rows=range(first, first + len(x_0)))
        terms, t = sampled_bound(schedule, unconditional(model), asarray(x_0), schedule.T, draws, rng, term)
    return to_numpy(terms), t


def references(dataset, x_0, decoder_var):
    """Yield (name, bits/dim, explanation) of three numbers that depend only on the data."""
    raw = dataset.images.tobytes()
    yield (
        "gzip",
        len(gzip.compress(raw, 9)) * 8 / len(raw),
        f"level 9, the {len(dataset):,} raw test images as one file",
    )
    nats = to_numpy(prior_kl(Schedule.linear(), asarray(x_0)))
    yield "L_T", nats.mean() / math.log(2), "of the linear schedule with T = 1000"
    levels = asarray(np.arange(256) / 127.5 - 1)
    nats = -to_numpy(discretized_log_prob(levels, levels, asarray(decoder_var)))
    counts = np.bincount(dataset.images.ravel(), minlength=256)
    explanation = f"if x_0_hat were x_0: std {decoder_var**0.5:.2g} of the decoder, grey levels {2 / 255:.2g} apart"
    yield "L_0", nats @ counts / counts.sum() / math.log(2), explanation


def parts_of(terms):
    """{name: (mean, standard error)} of the bound and its parts over the images.  terms: (draws + 2, num).

    The standard error includes the chance of the images and that of the draws.
    """
    parts = {"L_T": terms[0], "sum of L_{t-1}": terms[1:-1].sum(0), "L_0": terms[-1], "total": terms.sum(0)}
    n = terms.shape[1]
    return {name: (float(bits.mean()), float(bits.std(ddof=1) / n**0.5)) for name, bits in parts.items()}


def spent(schedule, terms, times, title):
    """A figure.  Left: L_{t-1} against t, mean over the images and a range of t.  Right: bits spent from t = T down."""
    edges = np.unique(np.geomspace(2, schedule.T + 1, 40).round())  # t = 2, 3, ... one by one, then ranges of t
    bits, _ = np.histogram(times, edges, weights=terms[1:-1])
    bits /= terms.shape[1]
    figure = Figure(figsize=(11, 4.2), dpi=150, layout="constrained")
    left, right = figure.subplots(1, 2)
    left.stairs(bits / np.diff(edges), edges, lw=1.8, baseline=None)
    log_scale(left, "y")
    left.set_title("bits/dim of each L_{t-1}", fontsize=11)
    down = terms[0].mean() + np.append(bits[::-1].cumsum()[::-1], 0)  # bits spent from t = T down to each edge
    right.plot(edges, down, lw=1.8)
    right.bar(1, terms[-1].mean(), width=0.3, bottom=down[0], color="C1", label="L_0, the decoder")
    right.set_ylim(0)
    right.set_title("bits/dim spent from t = T down to here", fontsize=11)
    right.legend(frameon=False, fontsize=9)
    for axes in (left, right):
        log_scale(axes, "x")
        axes.set_xlabel("t")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"where the bits go: {title}", fontsize=12)
    return figure


if __name__ == "__main__":
    parser = cli.parser(__doc__, main)
    parser.add_argument("checkpoint", help="checkpoint.npz of train_mnist.py")
    cli.add_backend(parser)
    parser.add_argument("--num", type=cli.positive_int, help="test images, spread evenly over the set")
    parser.add_argument("--draws", type=cli.positive_int, help="times t that are drawn for each image")
    parser.add_argument("--variance", choices=VARIANCES, help="of the reverse steps; L_0 always has beta_1")
    parser.add_argument("--seed", type=cli.non_negative_int, help="of times and noise")
    cli.add_data_dir(parser)
    parser.add_argument("--out", help="also draw the bits against t, a .png (default: no picture)")
    cli.add_parallel(parser)
    cli.run(main, parser)
