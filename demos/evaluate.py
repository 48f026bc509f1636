"""Measure how well a checkpoint compresses the test set: its variational bound in bits per dimension.

    python demos/evaluate.py runs/mnist/checkpoint.npz
    python demos/evaluate.py runs/mnist/checkpoint.npz --num 500 --out bits.png

A model that gives an image the probability p(x) can store the image in -log2 p(x) bits.  The bound is a number of bits
that is always enough.  The network gets no label, because gzip, which is printed for comparison, gets no label either.
(A label costs log2(10)/784 = 0.004 bits/dim.)

The network gives the mean of each reverse step; its variance is a choice.  The table has the bound for beta, for
beta_tilde with L_0 at beta_1 and at beta_tilde_2 (Ho et al.'s code), and for a variance for each pixel that is learned
from --fit training images with the network as it is (tinydiff/diffusion/variance.py).  All of them see the same draws.

Each image costs --draws + 1 evaluations of the network; the whole chain would cost 1,000.  The default is 10,000 images
with 8 evaluations each, and one for each training image: 4 to 5 minutes at 300 evaluations a second.  --out saves a
picture of the bits that each part of the chain needs.
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
from tinydiff.app.tables import print_table
from tinydiff.app.trained import load_trained
from tinydiff.autograd import no_grad
from tinydiff.backend import TinydiffError, asarray, default_rng, standard_normal, to_numpy
from tinydiff.data import load
from tinydiff.diffusion import (
    Schedule,
    VarianceTable,
    bound_term,
    clipped_beta_tilde,
    decoder_log_probs,
    discretized_log_prob,
    prior_kl,
    q_sample,
    remembered,
    sampled_bound,
    squared_errors,
    unconditional,
    x_0_from_eps,
)

FIXED = {  # name -> the variances of the steps and of L_0
    "beta, L_0: beta_1": (Schedule.beta_t_given_s, Schedule.beta_t_given_s),
    "beta_tilde, L_0: beta_1": (Schedule.beta_tilde, Schedule.beta_t_given_s),
    "beta_tilde, L_0: beta_tilde_2": (Schedule.beta_tilde, clipped_beta_tilde),
}
BEST_FIXED, LEARNED = "beta_tilde, L_0: beta_tilde_2", "learned"
SLICE = 50  # images that a worker evaluates at a time


def main(
    checkpoint,
    *,
    backend="numpy",
    precision=None,
    plain=False,
    num=10_000,
    draws=7,
    fit=1500,
    seed=0,
    data_dir=None,
    out=None,
    workers=None,
    parallel="local",
):
    """Print the bound and its parts.  Returns {variance: (mean, standard error)} of the bits/dim over the images."""
    ranks = cli.start(backend, precision, parallel, plain)
    if out is not None:
        ranks.broadcast(partial(file_to_write, "--out", out, ".png"))
    workers = workers or ranks.default_workers()
    pool, schedule, meta = load_trained(Path(checkpoint), workers, ranks)
    with pool:
        if schedule.T < 2:
            raise TinydiffError(f"{checkpoint}: its schedule has one step, but the bound needs two or more")
        dataset = ranks.broadcast(partial(load_split, "test", meta, data_dir))
        if not 2 <= num <= len(dataset):
            raise TinydiffError(f"--num {num}: must lie in 2..{len(dataset)}, the images of the test set")
        seen = ranks.broadcast(partial(load_split, "train", meta, data_dir, min(fit, meta["data"]["num"])))
        # Evenly spread, because the first half of MNIST's test images is cleaner.
        x_0, _ = dataset.batch(np.arange(num) * len(dataset) // num)
        print(f"data: {dataset.source}, {num:,} of {len(dataset):,} images")
        table = fitted(pool, schedule, seen, seed)
        jobs = [(x_0[i : i + SLICE], (seed, i)) for i in range(0, num, SLICE)]
        parts = []
        with tqdm(total=num, unit="img", dynamic_ncols=True, disable=ranks.rank > 0) as bar:
            for part in pool.map(partial(evaluate_slice, schedule, draws, table), jobs):
                parts.append(part)
                bar.update(part[1].shape[1])
    bits = {name: np.concatenate([nats[name] for nats, _ in parts], 1) / math.log(2) for name in parts[0][0]}
    times = np.concatenate([t for _, t in parts], 1)
    kind = f"{meta['data']['name']}, {cli.counted(meta['step'], 'step')}"
    print(f"{kind}\nbits/dim of p(x), no label given: upper bound and standard error")
    print_table([table_row(name, terms) for name, terms in bits.items()])
    saved, error = mean_and_error(bits[BEST_FIXED].sum(0) - bits[LEARNED].sum(0))
    print(f"learned from {len(seen):,} training images, the mean as it is: it saves {saved:.4g} +- {error:.2g}")
    print("for comparison, independent of the network")
    for name, number, what in references(dataset, x_0, schedule):
        print(f"  {name:17} {number:#9.4g}    {what}")
    if out is not None and ranks.rank == 0:
        with atomic_write(out) as file:
            spent(schedule, bits, times, kind).savefig(file, format="png")
        print(f"where the bits go: {out}")
    return {name: mean_and_error(terms.sum(0)) for name, terms in bits.items()}


def load_split(split, meta, data_dir, num=None):
    """The training or test images of the data set of a checkpoint, or the first `num` of them."""
    return load(data_name(meta, EVERY), split, data_dir, meta["train"]["seed"], num, **data_size(meta))


def fitted(pool, schedule, dataset, seed):
    """The VarianceTable of the network, from the images of a data set at one time each."""
    x_0, _ = dataset.batch(np.arange(len(dataset)))
    t = fit_times(schedule, len(dataset), default_rng("fit", seed))
    jobs = [(x_0[i : i + SLICE], t[i : i + SLICE], (seed, i)) for i in range(0, len(x_0), SLICE)]
    errors, log_probs = zip(*pool.map(partial(fit_slice, schedule), jobs))
    return VarianceTable(sum(errors), sum(log_probs))


def fit_times(schedule, num, rng):
    """num times: every fifth is 1, for L_0; the others lie evenly in log SNR, as the rows of a VarianceTable do."""
    snr = schedule.log_snr[1:]
    places = snr[-1] + (snr[0] - snr[-1]) * (np.arange(num) + rng.random(num)) / num
    return np.where(np.arange(num) % 5 == 0, 1, 1 + abs(snr[:, None] - places).argmin(0))


def fit_slice(schedule, model, job):
    """squared_errors of these images, and decoder_log_probs of those at t = 1."""
    x_0, t, (seed, first) = job
    rng = row_rng("fit", seed, rows=range(first, first + len(x_0)))
    x_0 = asarray(x_0)
    x_t = q_sample(schedule, x_0, t, standard_normal(rng, x_0.shape, x_0.dtype))
    with no_grad():
        x_0_hat = x_0_from_eps(schedule, x_t, t, unconditional(model)(x_t, t))
    last = np.flatnonzero(t == 1)
    return squared_errors(schedule, x_0, x_0_hat, t), decoder_log_probs(x_0[last], x_0_hat[last])


def evaluate_slice(schedule, draws, table, model, job):
    """{variance: the terms (draws + 2, n) in nats}, all of the same draws, and the times (draws, n)."""
    x_0, (seed, first) = job
    x_0, eps_hats, found = asarray(x_0), [], {}

    def first_answer(x_t, t):
        eps_hats.append(unconditional(model)(x_t, t))
        return eps_hats[-1]

    answer = first_answer
    for name in (*FIXED, LEARNED):
        eps_fn, term = with_variance(schedule, answer, *FIXED.get(name, (table, None)))
        rng = row_rng("likelihood", seed, rows=range(first, first + len(x_0)))
        with no_grad():
            terms, t = sampled_bound(schedule, eps_fn, x_0, schedule.T, draws, rng, term)
        found[name] = to_numpy(terms)
        answer = again(eps_hats)
    return found, t


def again(answers):
    """An eps_fn that repeats the answers to the same questions, asked in the same order."""
    left = iter(answers)
    return lambda x_t, t: next(left)


def with_variance(schedule, eps_fn, variance, decoder_variance):
    """(eps_fn, term) of sampled_bound for a variance and that of the decoder, or for a VarianceTable and None."""
    if isinstance(variance, VarianceTable):

        def predict(x_t, t):
            eps_hat = eps_fn(x_t, t)
            return eps_hat, x_0_from_eps(schedule, x_t, t, eps_hat)

        new_eps_fn, variance = remembered(predict, variance.variance)
        return new_eps_fn, partial(bound_term, variance=variance, decoder_variance=variance, clip=True)
    return eps_fn, partial(bound_term, variance=variance, decoder_variance=decoder_variance, clip=True)


def references(dataset, x_0, schedule):
    """Yield (name, bits/dim, explanation) of four numbers that depend only on the data."""
    raw = dataset.images.tobytes()
    yield (
        "gzip",
        len(gzip.compress(raw, 9)) * 8 / len(raw),
        f"level 9, the {len(dataset):,} raw test images as one file",
    )
    nats = to_numpy(prior_kl(Schedule.linear(), asarray(x_0)))
    yield "L_T", nats.mean() / math.log(2), "of the linear schedule with T = 1000"
    levels = asarray(np.arange(256) / 127.5 - 1)
    counts = np.bincount(dataset.images.ravel(), minlength=256)
    for name, var in (("beta_1", schedule.beta[1]), ("beta_tilde_2", clipped_beta_tilde(schedule, 1, 0))):
        nats = -to_numpy(discretized_log_prob(levels, levels, asarray(var)))
        explanation = f"if x_0_hat were x_0: std {var**0.5:.2g} of the decoder, grey levels {2 / 255:.2g} apart"
        yield f"L_0, {name}", nats @ counts / counts.sum() / math.log(2), explanation


def table_row(name, terms):
    """A row of the printed table: the parts of the bound, and their sum with its standard error."""
    parts = {part: f"{mean:#.4g}" for part, (mean, _) in parts_of(terms).items()}
    mean, error = parts_of(terms)["total"]
    return {"variance": name} | parts | {"total": f"{mean:#.4g} +- {error:#.2g}"}


def parts_of(terms):
    """{name: (mean, standard error)} of the bound and its parts over the images.  terms: (draws + 2, num).

    The standard error includes the chance of the images and that of the draws.
    """
    parts = {"L_T": terms[0], "sum of L_{t-1}": terms[1:-1].sum(0), "L_0": terms[-1], "total": terms.sum(0)}
    return {name: mean_and_error(bits) for name, bits in parts.items()}


def mean_and_error(bits):
    """The mean of (num,) numbers, and its standard error."""
    return float(bits.mean()), float(bits.std(ddof=1) / len(bits) ** 0.5)


def spent(schedule, bits, times, title):
    """A figure with a curve for each variance.  Left: L_{t-1} against t, mean over the images and a range of t.  Right:
    bits spent from t = T down; the last point, at t = 1, is the whole bound.

    bits: {variance: terms (draws + 2, num)}.  times: (draws, num).
    """
    edges = np.unique(np.geomspace(2, schedule.T + 1, 40).round())  # t = 2, 3, ... one by one, then ranges of t
    figure = Figure(figsize=(11, 4.2), dpi=150, layout="constrained")
    left, right = figure.subplots(1, 2)
    for i, (name, terms) in enumerate(bits.items()):
        spent_in, _ = np.histogram(times, edges, weights=terms[1:-1])
        spent_in /= terms.shape[1]
        style = {"color": f"C{i}", "lw": 1.8, "ls": "--" if name == BEST_FIXED else "-"}  # on the curve before it
        left.stairs(spent_in / np.diff(edges), edges, baseline=None, **style)
        down = terms[0].mean() + np.append(spent_in[::-1].cumsum()[::-1], 0)  # bits spent from t = T down to each edge
        total = terms.sum(0).mean()
        right.plot([1, *edges], [total, *down], label=f"{name}: {total:.3g}", **style)
    log_scale(left, "y")
    left.set_title("bits/dim of each L_{t-1}", fontsize=11)
    right.set_ylim(0)
    right.set_title("bits/dim spent from t = T down to here; at t = 1 with L_0", fontsize=11)
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
    parser.add_argument(
        "--fit", type=cli.positive_int, help="training images that the variance is learned from, at most"
    )
    parser.add_argument("--seed", type=cli.non_negative_int, help="of times and noise")
    cli.add_data_dir(parser)
    parser.add_argument("--out", help="also draw the bits against t, a .png (default: no picture)")
    cli.add_parallel(parser)
    cli.run(main, parser)
