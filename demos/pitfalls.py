"""Make each classic mistake on purpose, and measure what it costs beside the correct method.

    python demos/pitfalls.py runs/mnist/checkpoint.npz runs/classifier/checkpoint.npz

Mistakes in sampling are made with the checkpoint's network.  For mistakes in training, small networks are trained for
--train-steps steps each; the row to compare with is a correct training of the same length.  The columns are:

    read as asked   share of the digits that the classifier reads as their label; by chance 10%
    border          mean grey level, 0 to 255, of the outermost pixels; black in real digits
    moved           RMS difference from the correct picture, in grey levels; only for mistakes in
                    sampling, because there all rows have the same network and the same noise

Guidance is off (scale 1), because guidance would hide a part of the damage.  The demo takes about 7 minutes on 2 idle
cores; if it is stopped, nothing is kept.  It writes pitfalls.png and pitfalls.md to --out, with a sentence on each
mistake.  A mistake whose pictures hardly move is one that the eye misses and only a test finds.
"""

import io
import itertools
import textwrap
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from exact import ideal_x_0_fn
from matplotlib.figure import Figure
from PIL import Image
from tqdm import tqdm

from tinydiff.app import cli, training
from tinydiff.app.checkpoint import atomic_write
from tinydiff.app.choices import check_classes
from tinydiff.app.classify import load_classifier
from tinydiff.app.generate import SLICE, Recipe, build_unet
from tinydiff.app.kinds import EVERY, data_name, data_size
from tinydiff.app.metrics import percent
from tinydiff.app.outputs import own_folder
from tinydiff.app.plots import tile
from tinydiff.app.reading import read
from tinydiff.app.row_rng import row_rng
from tinydiff.app.tables import WIDTH
from tinydiff.app.trained import load_trained
from tinydiff.autograd import no_grad
from tinydiff.backend import TinydiffError, standard_normal, to_numpy, xp
from tinydiff.data import Dataset, load
from tinydiff.diffusion import (
    Schedule,
    ScheduleWarning,
    classifier_free,
    ddpm_step,
    eps_from_x_0,
    sample,
    timestep_pairs,
    x_0_from_eps,
)
from tinydiff.optim import EMA
from tinydiff.train import TrainConfig

# ------------------------------------------------------------------------------------------------ mistakes in sampling
# Each function is draw(schedule, step, eps_fn, pairs, x_T, rng) -> x_0.  step: ddpm_step, with x_0_hat clipped.


def right(schedule, step, eps_fn, pairs, x_T, rng):
    *_, (_, x_0, _) = sample(partial(step, schedule), eps_fn, pairs, x_T, rng)
    return x_0


def in_one_step(schedule, step, eps_fn, pairs, x_T, rng):
    return right(schedule, step, eps_fn, [(schedule.T, 0)], x_T, rng)


def noise_at_the_end(schedule, step, eps_fn, pairs, x_T, rng):
    x_0 = right(schedule, step, eps_fn, pairs, x_T, rng)
    return x_0 + float(schedule.beta_t_given_s(*pairs[-1])) ** 0.5 * standard_normal(rng, x_0.shape, x_0.dtype)


def larger_variance(schedule, step, eps_fn, pairs, x_T, rng):
    return right(schedule, partial(step, variance=Schedule.beta_t_given_s), eps_fn, pairs, x_T, rng)


def network_gets(other, schedule, step, eps_fn, pairs, x_T, rng):
    """The network gets the t of other(pairs) in place of the true t."""
    wrong_t = {t: wrong for (t, _), (wrong, _) in zip(pairs, other(pairs))}
    return right(schedule, step, lambda x_t, t: eps_fn(x_t, wrong_t[t]), pairs, x_T, rng)


def coefficients_of(other, schedule, step, eps_fn, pairs, x_T, rng):
    """Each step takes the coefficients of other(pairs) in place of its true coefficients."""
    used = dict(zip(pairs, other(pairs)))

    def wrong_step(schedule, x_t, eps_hat, t, s, noise):
        if noise is None:  # the true step is the last, but the wrong step needs noise
            noise = standard_normal(rng, x_t.shape, x_t.dtype)
        return step(schedule, x_t, eps_hat, *used[t, s], noise)

    return right(schedule, wrong_step, eps_fn, pairs, x_T, rng)


def one_less(pairs):
    """t - 1 in place of t."""
    return [(max(t - 1, 1), max(s - 1, 0)) for t, s in pairs]


def step_behind(pairs):
    """The pairs of the step before, which has more noise."""
    return [pairs[0], *pairs[:-1]]


def step_ahead(pairs):
    """The pairs of the step after, which has less noise."""
    return [*pairs[1:], pairs[-1]]


@dataclass(frozen=True)
class Case:
    """A row of the picture: the mistake, and a sentence on it with names of `facts` in braces.

    takes_another: whether the mistake takes the time of another step, which a run of one step does not have.
    is_mistake: False for another choice that is right too.
    """

    name: str
    why: str
    draw: Callable = right
    takes_another: bool = False
    is_mistake: bool = True


def facts(schedule, steps, train_steps):
    """{name: text} of the numbers in the sentences: a run of so many steps on this schedule, and of such trainings."""
    std = schedule.one_minus_alpha_bar**0.5 * 127.5  # of the noise in x_t, in grey levels
    pairs = timestep_pairs(schedule.T, steps)
    return {
        "T": f"{schedule.T:,}",
        "signal_T": f"{schedule.alpha_bar[-1] ** 0.5:.2g}",
        "jump": f"{round(schedule.T / steps):,}",
        "last_t": f"{pairs[-1][0]:,}",
        "last_noise": f"{std[pairs[-1][0]]:.1f}",
        "least_noise": f"{std[1]:.1f}",
        "steps": cli.counted(steps, "step"),
        "num_steps": f"{steps:,}",
        "train_steps": cli.counted(train_steps, "step"),
        "decay": f"{COLD_DECAY}",
        "random_start": percent(COLD_DECAY**train_steps, 0),
        "early_steps": f"{sum(t <= 50 for t, _ in timestep_pairs(1000, steps))}",  # on a schedule of T = 1,000
    }


def explained(case, numbers):
    """The case with its sentence for the numbers of `facts`."""
    if case.takes_another and numbers["steps"] == "1 step":
        return replace(case, why="A run of one step has no step before it and none after it, so nothing changes.")
    return replace(case, why=case.why.format(**numbers))


# Not a mistake, but what the mistake after which it stands would be without the network's error.
IDEAL = Case(
    "the same, by the exact denoiser",
    "The mean of all training pictures of the class from which x_T may have come: a blur. The row above is not this "
    "blur, because there the error of eps_hat is divided by {signal_T}.",
)
SAMPLING = (
    Case("as it should be", "Ancestral steps with variance beta_tilde, and no noise in the last."),
    Case(
        "x_0_hat of x_T, in one step",
        "The error of eps_hat is divided by sqrt(alpha_bar_T) = {signal_T}, which gives speckle. Even without an error "
        "x_0_hat is the mean of all images of the class from which x_T may have come.",
        in_one_step,
    ),
    Case(
        "noise added at the last step",
        "The last step ends at the data, so its noise stays in the picture: here noise of {last_noise} grey levels, "
        "with {T} steps of {least_noise}.",
        noise_at_the_end,
    ),
    Case(
        "variance beta, not beta_tilde",
        "Not a mistake, but the other choice of Ho et al. The larger variance leaves noise for later steps to remove. "
        "The fewer the steps, the more the two differ.",
        larger_variance,
        is_mistake=False,
    ),
    Case(
        "network gets t - 1",
        "The network expects the noise of a time that is lower by 1 of {T}.",
        partial(network_gets, one_less),
    ),
    Case(
        "network gets t of the next step",
        "The network expects too little noise, that of a time which is lower by about {jump} of {T}.",
        partial(network_gets, step_ahead),
        takes_another=True,
    ),
    Case(
        "network gets t of the step before",
        "The network expects too much noise, that of a time which is higher by about {jump} of {T}. So it takes a part "
        "of the digit for noise.",
        partial(network_gets, step_behind),
        takes_another=True,
    ),
    Case(
        "coefficients of t - 1",
        "The network gets the true t, but each step is computed for a time that is lower by 1 of {T}.",
        partial(coefficients_of, one_less),
    ),
    Case(
        "coefficients of the next step",
        "Each step removes too little noise. The network gets the true t, so the next step can remove the rest, except "
        "at the end.",
        partial(coefficients_of, step_ahead),
        takes_another=True,
    ),
    Case(
        "coefficients of the step before",
        "The chain ends one step early: the noise of t = {last_t}, {last_noise} grey levels, stays in the picture.",
        partial(coefficients_of, step_behind),
        takes_another=True,
    ),
)

# ------------------------------------------------------------------------------------------------ mistakes in training


def flat_schedule(beta, T=1000):
    return Schedule(np.full(T, beta))


def unscaled_schedule():
    """The betas of T = 1,000 for a chain of 50."""
    return Schedule(np.linspace(1e-4, 0.02, FEW))


@dataclass(frozen=True)
class Run(Case):
    """A row that needs a training: the schedule, and the range of the pixels that the network gets."""

    schedule: Callable = Schedule.linear
    low: float = -1.0
    high: float = 1.0
    warm_up: bool = True  # of the moving average


MOST = 500  # training pictures of a class in the mean of the exact denoiser
FEW = 50  # steps of the chain with unscaled betas
COLD_DECAY = 0.9999  # Ho et al. 2020, appendix B, where training takes 800,000 steps

TRAINING = (
    Run("as it should be", "Linear schedule, T = 1,000; pixels in -1..1; the average of the weights warms up."),
    Run(
        "average without warm-up",
        "With decay {decay} the average is still {random_start} random start after {train_steps}. The weights "
        "themselves are those of the correct training.",
        warm_up=False,
    ),
    Run(
        "beta = 1e-3: alpha_bar_T = 0.37",
        "x_T contains 0.61 x_0, but sampling starts from N(0, I), which the network has never seen.",
        schedule=partial(flat_schedule, 1e-3),
    ),
    Run(
        "beta = 0.1: alpha_bar_T = 2e-46",
        "After 50 of 1,000 times nearly all is noise, so 19 of 20 examples teach nothing. Reverse steps that begin at "
        "these 50 times: {early_steps} of {num_steps}.",
        schedule=partial(flat_schedule, 0.1),
    ),
    Run(
        "T = 50, same betas: alpha_bar_T = 0.60",
        "x_T contains 0.78 x_0: with fewer steps each step must add more noise, beta times 1000/T.",
        schedule=unscaled_schedule,
    ),
    Run(
        "pixels in 0..1",
        "Half the signal with the same noise, and a mean other than 0: as on a schedule with more noise.",
        low=0.0,
    ),
    Run(
        "pixels in 0..255",
        "Noise of std 1 cannot hide such pixels: a white pixel is still 1.6 in x_T, and the network gets inputs up to "
        "255.",
        low=0.0,
        high=255.0,
    ),
)


@dataclass(frozen=True, eq=False)
class Ranged(Dataset):
    """A data set whose batches lie in low..high."""

    low: float
    high: float

    def batch(self, indices):
        x_0, labels = super().batch(indices)
        return self.low + (x_0 + 1) * ((self.high - self.low) / 2), labels


def step_within(low, high, schedule, x_t, eps_hat, t, s, noise, **options):
    """ddpm_step with x_0_hat clipped to low..high, the range of the data."""
    x_0_hat = xp.clip(x_0_from_eps(schedule, x_t, t, eps_hat), low, high)
    return ddpm_step(schedule, x_t, eps_from_x_0(schedule, x_t, t, x_0_hat), t, s, noise, **options)


# ---------------------------------------------------------------------------------------------------------- the demo


def main(
    checkpoint,
    classifier,
    *,
    backend="numpy",
    precision=None,
    plain=False,
    num=100,
    sample_steps=Recipe.num_steps,
    train_steps=400,
    channels=16,
    data_dir=None,
    seed=0,
    out="runs/pitfalls",
    workers=None,
):
    """Write the picture and the table.  Returns the rows [(group, case, images (num, H, W, C), figures)]."""
    ranks = cli.start(backend, precision, plain=plain)
    out, workers = own_folder(out, "pitfalls.png", "pitfalls.md"), workers or ranks.default_workers()
    if num < 10:
        raise TinydiffError(f"--num {num}: must be at least 10, one of each digit")
    if channels % 8:
        raise TinydiffError(f"--channels {channels}: must be a multiple of 8, the groups of each group norm")
    pool, schedule, meta = load_trained(Path(checkpoint), workers)
    check_classes(checkpoint, pool.model)
    name = data_name(meta, EVERY)
    reader, _ = load_classifier(Path(classifier), workers, meta["data"])
    if sample_steps > min(schedule.T, FEW):
        most = f"must be at most {min(schedule.T, FEW)}, the steps of the shortest chain"
        raise TinydiffError(f"--sample-steps {sample_steps}: {most}")
    dataset = load(name, "train", data_dir, seed, **data_size(meta))
    labels, numbers = np.arange(num) % pool.model.num_classes, facts(schedule, sample_steps, train_steps)
    jobs = jobs_of(labels, seed)
    shape = tuple(meta["data"]["image_shape"])
    drawn = []  # (group, case, images)

    with pool, tqdm(SAMPLING, desc="sampling") as bar:
        for case in bar:
            images = draw(pool, case.draw, schedule, sample_steps, jobs, shape)
            group = f"one trained network, drawn in {numbers['steps']}"
            drawn.append((group, explained(case, numbers), images))
            if case.draw is in_one_step:
                drawn.append((group, explained(IDEAL, numbers), ideal_in_one_step(dataset, schedule, jobs, shape)))
    for run, images in train_and_draw(dataset, channels, train_steps, seed, ranks, workers, sample_steps, jobs, shape):
        drawn.append((f"a small network, {numbers['train_steps']} of training", explained(run, numbers), images))
    right_images = drawn[0][2]
    with reader:
        rows = [
            (group, case, images, measure(reader, images, labels, None if isinstance(case, Run) else right_images))
            for group, case, images in drawn
        ]
    report(rows, out)
    return rows


def jobs_of(labels, seed):
    """Slices of the labels, each with (seed, index of its first image)."""
    return [(labels[i : i + SLICE].tolist(), (seed, i)) for i in range(0, len(labels), SLICE)]


def train_and_draw(dataset, channels, train_steps, seed, ranks, workers, *how):
    """Yield (run, images) for each run of TRAINING.  how: the arguments of `draw` after the schedule."""
    config = TrainConfig(num_steps=train_steps, minutes=None, warmup=min(100, train_steps // 4), seed=seed)
    network = {"in_channels": dataset.images.shape[3], "base_channels": channels, "num_classes": len(dataset.classes)}
    build = partial(build_unet, network, seed)
    kinds = dict.fromkeys((run.schedule, run.low, run.high) for run in TRAINING)  # one training for each kind
    print(f"training {len(kinds)} small networks; if the demo is stopped, nothing is kept")
    with tqdm(total=train_steps * len(kinds), desc="training", unit="step") as bar:
        for kind in kinds:
            make_schedule, low, high = kind
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ScheduleWarning)  # the warning is right, the mistake is wanted
                schedule = make_schedule()
            with ranks.workers(build, workers) as pool:
                ranged = Ranged(**vars(dataset), low=low, high=high)
                state = training.diffusion_training(pool, schedule, config, ranged)
                cold = EMA(pool.parameters, COLD_DECAY)
                cold.num_updates = 10**9  # past the warm-up
                for _ in training.steps(state, ranks):
                    cold.update()
                    bar.update()
                for run in TRAINING:
                    if (run.schedule, run.low, run.high) == kind:
                        with pool.weights((state.ema if run.warm_up else cold).average):
                            yield run, draw(pool, run.draw, schedule, *how, low, high)


def draw(pool, how, schedule, steps, jobs, shape, low=-1.0, high=1.0):
    return np.concatenate(list(pool.map(partial(draw_slice, how, schedule, low, high, steps, shape), jobs)))


def draw_slice(how, schedule, low, high, steps, shape, model, job):
    """The images (n, H, W, C) of one slice of labels, in [-1, 1]; noise as in generate.py."""
    labels, (seed, first) = job
    rng = row_rng("picture", seed, rows=range(first, first + len(labels)))
    x_T = standard_normal(rng, (len(labels), *shape))
    with no_grad():
        eps_fn = classifier_free(model, labels, 1.0)
        x_0 = how(schedule, partial(step_within, low, high), eps_fn, timestep_pairs(schedule.T, steps), x_T, rng)
    return ((to_numpy(x_0) - low) * (2 / (high - low)) - 1).clip(-1, 1)


def ideal_in_one_step(dataset, schedule, jobs, shape):
    """E[x_0 | x_T, label] of each image of the jobs (num, H, W, C), for the x_T that draw_slice draws.

    x_0 is one of the first MOST training pictures of the label.
    """
    of_class, drawn = dataset.known_labels(), []
    for labels, (seed, first) in jobs:
        rng = row_rng("picture", seed, rows=range(first, first + len(labels)))
        x_T = standard_normal(rng, (len(labels), *shape))
        for i, label in enumerate(labels):
            rows = np.flatnonzero(of_class == label)[:MOST]
            if not len(rows):
                raise TinydiffError(f"{dataset.source}: no training picture of class {dataset.classes[label]}")
            x_0_hat, _ = ideal_x_0_fn(schedule, dataset.batch(rows)[0])(x_T[i : i + 1], schedule.T)
            drawn.append(to_numpy(x_0_hat))
    return np.concatenate(drawn)


def measure(reader, images, labels, right_images=None):
    """{column: cell} of a row: "read as asked" only if there is a reader, "moved" only with right_images."""
    figures = {}
    if reader is not None:
        read_right = np.concatenate(list(read(reader, images))).argmax(1) == labels
        figures["read as asked"] = percent(read_right.mean(), 0)
    border = np.ones(images.shape[1:3], bool)
    border[1:-1, 1:-1] = False
    figures["border"] = f"{(images[:, border] + 1).mean() * 127.5:.1f}"
    if right_images is not None:
        figures["moved"] = f"{((images - right_images) ** 2).mean() ** 0.5 * 127.5:.1f}"
    return figures


def report(rows, out):
    """Print the table and save it as pitfalls.md; save a row of digits for each case as pitfalls.png."""
    lines = []
    for group, cases in itertools.groupby(rows, lambda row: row[0]):
        cases = list(cases)
        names = list(cases[0][3])
        print(f"{group:46}" + "".join(f"  {name:>13}" for name in names))
        lines += [f"| {group} | {' | '.join(names)} | |", "|---" * (len(names) + 2) + "|"]
        for _, case, _, figures in cases:
            print(f"  {case.name:44}" + "".join(f"  {cell:>13}" for cell in figures.values()))
            print(textwrap.fill(case.why, WIDTH, initial_indent="      ", subsequent_indent="      "))
            lines.append(f"| {case.name} | {' | '.join(figures.values())} | {case.why} |")
        lines.append("")
    text = "\n".join(lines)
    with atomic_write(out / "pitfalls.md") as file:
        file.write(text.encode())
    with atomic_write(out / "pitfalls.png") as file:
        canvas = io.BytesIO()
        picture(rows).savefig(canvas, format="png")
        drawn = Image.open(canvas).convert("RGB")
        if rows[0][2].shape[-1] == 1:
            drawn = drawn.convert("L").quantize(16)  # with 256 greys noise makes a large file
        drawn.save(file, "png")
    print(f"results: {out}/pitfalls.png, pitfalls.md")


def picture(rows):
    """A figure with a row for each case: its name, ten digits and the cells of the table."""
    groups = [list(cases) for _, cases in itertools.groupby(rows, lambda row: row[0])]
    figure = Figure(figsize=(8, 0.323 * (len(rows) + 2 * len(groups))), dpi=100)
    figure.subplots_adjust(0.375, 0.01, 0.795, 0.932, hspace=0.2)
    all_axes = figure.subplots(len(groups), squeeze=False, height_ratios=[len(cases) for cases in groups])[:, 0]
    for axes, cases in zip(all_axes, groups):
        grid = tile(np.concatenate([images[:10] for _, _, images, _ in cases]), columns=10)
        height, right = grid.shape[0] / len(cases), grid.shape[1]
        axes.imshow(grid, cmap="gray", vmin=0, vmax=255, aspect="auto")
        axes.set_yticks([(i + 0.5) * height for i in range(len(cases))], [c.name for _, c, _, _ in cases], fontsize=10)
        for column, name in enumerate(cases[0][3]):
            x = (1.13 + 0.155 * column) * right
            axes.text(x, -6, name.replace("read as ", "read as\n"), ha="right", va="bottom", fontsize=9, color="0.35")
            for i, (*_, figures) in enumerate(cases):
                axes.text(x, (i + 0.5) * height, figures[name], ha="right", va="center", fontsize=10)
        axes.set_xticks([])
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_title(cases[0][0], fontsize=11, loc="left")
    return figure


if __name__ == "__main__":
    parser = cli.parser(__doc__, main)
    parser.add_argument("checkpoint", help="checkpoint.npz of train_mnist.py")
    parser.add_argument("classifier", help="checkpoint.npz of train_classifier.py")
    cli.add_backend(parser)
    parser.add_argument("--num", type=cli.whole(10, 10_000), help="images for each row; ten of them are shown")
    parser.add_argument("--sample-steps", type=cli.positive_int, help=f"reverse steps, at most {FEW}")
    parser.add_argument("--steps", dest="sample_steps", type=cli.positive_int, help=cli.HIDDEN)
    parser.add_argument("--train-steps", type=cli.positive_int, help="steps of each training")
    parser.add_argument("--channels", type=cli.positive_int, help="channels of the small networks")
    cli.add_data_dir(parser)
    parser.add_argument("--seed", type=cli.non_negative_int, help="seed of weights, batches and noise")
    parser.add_argument("--out", help="folder for the picture and the table")
    parser.add_argument("--workers", type=cli.positive_int, help="processes to share the work (default: all cores)")
    cli.run(main, parser)
