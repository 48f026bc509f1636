"""What does each classic mistake cost?  Made on purpose, side by side with the right thing, and measured.

    python demos/pitfalls.py runs/mnist/checkpoint.npz runs/classifier/checkpoint.npz

Mistakes in sampling are made with the checkpoint's network.  Mistakes in training need a training each: a small network
learns for --train-steps steps, and a right one of the same length stands beside it.  The figures:

    read as asked   share of the digits that the classifier reads as the digit asked for; chance alone gives 10%
    border          mean grey level, 0 to 255, of the outermost pixels, which are black in all but a few real digits

Without guidance (scale 1), which would hide a part of the damage.  7 minutes on 2 cores; --out gets pitfalls.png and
pitfalls.md, with a sentence on each.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from tqdm import tqdm

from tinydiff import cli
from tinydiff.autograd import no_grad
from tinydiff.backend import TinydiffError, default_rng, standard_normal, to_numpy, use_backend, xp
from tinydiff.checkpoint import atomic_write
from tinydiff.classify import load_classifier, read
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
from tinydiff.generate import SLICE, Recipe, build_unet, load_trained
from tinydiff.optim import EMA
from tinydiff.parallel import Workers, default_workers
from tinydiff.plots import tile
from tinydiff.train import TrainConfig, Training, train

# ------------------------------------------------------------------------------------------------ mistakes in sampling
# Each is draw(schedule, step, eps_fn, pairs, x_T, rng) -> x_0; step is ddpm_step with x_0_hat kept where the data lie.


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


def network_told(other, schedule, step, eps_fn, pairs, x_T, rng):
    """other(pairs): the pairs whose t the network is told in place of the true ones."""
    told = {t: wrong for (t, _), (wrong, _) in zip(pairs, other(pairs))}
    return right(schedule, step, lambda x_t, t: eps_fn(x_t, told[t]), pairs, x_T, rng)


def coefficients_of(other, schedule, step, eps_fn, pairs, x_T, rng):
    """other(pairs): the pairs whose coefficients each step takes in place of the true ones."""
    used = dict(zip(pairs, other(pairs)))

    def wrong_step(schedule, x_t, eps_hat, t, s, noise):
        if noise is None:  # the true step is the last, the wrong one is not
            noise = standard_normal(rng, x_t.shape, x_t.dtype)
        return step(schedule, x_t, eps_hat, *used[t, s], noise)

    return right(schedule, wrong_step, eps_fn, pairs, x_T, rng)


def one_less(pairs):
    """t - 1 in place of t."""
    return [(max(t - 1, 1), max(s - 1, 0)) for t, s in pairs]


def step_behind(pairs):
    """What belongs to the step before, which has more noise."""
    return [pairs[0], *pairs[:-1]]


def step_ahead(pairs):
    """What belongs to the step to come, which has less noise."""
    return [*pairs[1:], pairs[-1]]


@dataclass(frozen=True)
class Case:
    """A row of the picture: what was done, and one sentence on why it is wrong."""

    name: str
    why: str
    draw: Callable = right


SAMPLING = (
    Case("as it should be", "50 steps, variance beta_tilde, no noise in the last."),
    Case(
        "x_0_hat of x_T, in one step",
        "From pure noise the best guess is the mean of all images of the class, and that is what comes out.",
        in_one_step,
    ),
    Case(
        "noise added at the last step",
        "The last step arrives at the data, where there is no noise; what is added there stays.",
        noise_at_the_end,
    ),
    Case("variance beta in place of beta_tilde", "", larger_variance),
    Case("network told t - 1", "", partial(network_told, one_less)),
    Case("network told the t of the next step", "", partial(network_told, step_ahead)),
    Case("network told the t of the step before", "", partial(network_told, step_behind)),
    Case("coefficients of t - 1", "", partial(coefficients_of, one_less)),
    Case("coefficients of the next step", "", partial(coefficients_of, step_ahead)),
    Case("coefficients of the step before", "", partial(coefficients_of, step_behind)),
)

# ------------------------------------------------------------------------------------------------ mistakes in training


def flat_schedule(beta, T=1000):
    return Schedule(np.full(T, beta))


def unscaled_schedule():
    """The betas of T = 1,000 for a chain of 50."""
    return Schedule(np.linspace(1e-4, 0.02, FEW))


@dataclass(frozen=True)
class Run(Case):
    """A row that needs a training: its schedule, and the range in which the network sees the pixels."""

    schedule: Callable = Schedule.linear
    low: float = -1.0
    high: float = 1.0
    warm_up: bool = True  # of the moving average


FEW = 50  # steps of a chain whose betas should have been scaled
COLD_DECAY = 0.9999  # Ho et al. 2020, appendix B, where training takes 800,000 steps

TRAINING = (
    Run("as it should be", "Linear schedule, T = 1,000; pixels in [-1, 1]; the average of the weights warms up."),
    Run("average of weights without warm-up", "", warm_up=False),
    Run("constant beta = 0.001: alpha_bar_T = 0.37", "", schedule=partial(flat_schedule, 0.001)),
    Run("constant beta = 0.1: alpha_bar_T = 2e-46", "", schedule=partial(flat_schedule, 0.1)),
    Run("T = 50, betas not scaled: alpha_bar_T = 0.60", "", schedule=unscaled_schedule),
    Run("pixels in 0..1", "", low=0.0),
    Run("pixels in 0..255", "", low=0.0, high=255.0),
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
    """ddpm_step with x_0_hat kept in low..high, where the data lie."""
    x_0_hat = xp.clip(x_0_from_eps(schedule, x_t, t, eps_hat), low, high)
    return ddpm_step(schedule, x_t, eps_from_x_0(schedule, x_t, t, x_0_hat), t, s, noise, **options)


# ---------------------------------------------------------------------------------------------------------- the demo


def main(
    checkpoint,
    classifier,
    *,
    backend="numpy",
    num=100,
    steps=Recipe.num_steps,
    train_steps=400,
    channels=16,
    data_dir=None,
    seed=0,
    out="runs/pitfalls",
    workers=None,
):
    """Write the picture and the table; returns the rows [(group, case, images (num, H, W, C), figures)]."""
    use_backend(backend)
    out, workers = Path(out), workers or default_workers()
    out.mkdir(parents=True, exist_ok=True)
    if num < 10:
        raise TinydiffError(f"--num {num}: must be at least 10, one of each digit")
    if channels % 8:
        raise TinydiffError(f"--channels {channels}: must be a multiple of 8, the groups of each group norm")
    reader, _ = load_classifier(Path(classifier), workers)
    pool, schedule, meta = load_trained(Path(checkpoint), workers)
    if steps > min(schedule.T, FEW):
        raise TinydiffError(f"--steps {steps}: must be at most {min(schedule.T, FEW)}, the steps of the shortest chain")
    labels = np.arange(num) % 10
    jobs = [(labels[i : i + SLICE].tolist(), (seed, i // SLICE)) for i in range(0, num, SLICE)]
    shape = tuple(meta["data"]["image_shape"])
    drawn = []  # (group, case, images)

    with pool, tqdm(SAMPLING, desc="sampling") as bar:
        for case in bar:
            images = draw(pool, case.draw, schedule, steps, jobs, shape)
            drawn.append((f"one trained network, drawn in {steps} steps", case, images))
    dataset = load(meta["data"]["name"], "train", data_dir, seed)
    for run, images in train_and_draw(dataset, channels, train_steps, seed, workers, steps, jobs, shape):
        drawn.append((f"a small network, {train_steps} steps of training", run, images))
    with reader:
        rows = [(group, case, images, measure(reader, images, labels)) for group, case, images in drawn]
    report(rows, out)
    return rows


def train_and_draw(dataset, channels, train_steps, seed, workers, *how):
    """Yield (run, its images) for each of TRAINING; how: what follows the schedule in `draw`."""
    config = TrainConfig(num_steps=train_steps, minutes=None, warmup=min(100, train_steps // 4), seed=seed)
    build = partial(build_unet, {"base_channels": channels, "num_classes": len(dataset.classes)}, seed)
    kinds = dict.fromkeys((run.schedule, run.low, run.high) for run in TRAINING)  # one training each
    with tqdm(total=train_steps * len(kinds), desc="training", unit="step") as bar:
        for kind in kinds:
            make_schedule, low, high = kind
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ScheduleWarning)  # it is right
                schedule = make_schedule()
            with Workers(build, workers) as pool:
                state = Training(pool, schedule, config)
                cold = EMA(pool.flat, COLD_DECAY)
                cold.num_updates = 10**9  # past the warm-up
                for _ in train(state, Ranged(**vars(dataset), low=low, high=high)):
                    cold.update()
                    bar.update()
                for run in TRAINING:
                    if (run.schedule, run.low, run.high) == kind:
                        with pool.weights((state.ema if run.warm_up else cold).data):
                            yield run, draw(pool, run.draw, schedule, *how, low, high)


def draw(pool, how, schedule, steps, jobs, shape, low=-1.0, high=1.0):
    return np.concatenate(list(pool.map(partial(draw_slice, how, schedule, low, high, steps, shape), jobs)))


def draw_slice(how, schedule, low, high, steps, shape, model, job):
    """The images (n, H, W, C) of one slice of labels, in [-1, 1]; noise as in generate.py."""
    labels, name = job
    rng = default_rng("slice", *name)
    x_T = standard_normal(rng, (len(labels), *shape))
    with no_grad():
        eps_fn = classifier_free(model, labels, 1.0)
        x_0 = how(schedule, partial(step_within, low, high), eps_fn, timestep_pairs(schedule.T, steps), x_T, rng)
    return ((to_numpy(x_0) - low) * (2 / (high - low)) - 1).clip(-1, 1)


def measure(reader, images, labels):
    """(share read as asked, mean grey level 0..255 of the outermost pixels)."""
    asked = np.concatenate(list(read(reader, images))).argmax(1) == labels
    border = np.ones(images.shape[1:3], bool)
    border[1:-1, 1:-1] = False
    return float(asked.mean()), float((images[:, border] + 1).mean() * 127.5)


def report(rows, out):
    """Print the table; write it as pitfalls.md, and one row of digits for each case as pitfalls.png."""
    lines = []
    for group in dict.fromkeys(row[0] for row in rows):
        lines += ["", f"**{group}**", "", "| | read as asked | border | |", "|---|---|---|---|"]
        of_group = [row for row in rows if row[0] == group]
        lines += [f"| {c.name} | {asked:.1%} | {border:.1f} | {c.why} |" for _, c, _, (asked, border) in of_group]
    text = "\n".join(lines[1:]) + "\n"
    print(text)
    with atomic_write(out / "pitfalls.md") as file:
        file.write(text.encode())
    with atomic_write(out / "pitfalls.png") as file:
        picture(rows).savefig(file, format="png")
    print(f"results: {out}/pitfalls.png, pitfalls.md")


def picture(rows):
    """A figure: for each group its cases, each with ten digits and its figures."""
    groups = list(dict.fromkeys(row[0] for row in rows))
    sizes = [sum(row[0] == group for row in rows) for group in groups]
    figure = Figure(figsize=(8, 0.8 + 0.42 * (len(rows) + len(groups))), dpi=110, layout="constrained")
    all_axes = figure.subplots(len(groups), squeeze=False, height_ratios=sizes)[:, 0]
    for axes, group, size in zip(all_axes, groups, sizes):
        of_group = [row for row in rows if row[0] == group]
        grid = tile(np.concatenate([images[:10] for _, _, images, _ in of_group]), columns=10)
        height = grid.shape[0] / size
        middles = [(i + 0.5) * height for i in range(size)]
        axes.imshow(grid[..., 0], cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axes.set_yticks(middles, [case.name for _, case, _, _ in of_group], fontsize=10)
        right = grid.shape[1]
        for column, head in ((1.13, "read as\nasked"), (1.29, "border\ngrey")):
            axes.text(column * right, -4, head, ha="right", va="bottom", fontsize=9, color="0.35")
        for middle, (_, _, _, (asked, border)) in zip(middles, of_group):
            axes.text(1.13 * right, middle, f"{asked:.0%}", ha="right", va="center", fontsize=10)
            axes.text(1.29 * right, middle, f"{border:.0f}", ha="right", va="center", fontsize=10)
        axes.set_xticks([])
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_title(group, fontsize=11, loc="left", pad=10)
    return figure


if __name__ == "__main__":
    parser = cli.parser(__doc__, main)
    parser.add_argument("checkpoint", help="checkpoint.npz of train_mnist.py")
    parser.add_argument("classifier", help="checkpoint.npz of train_classifier.py")
    cli.add_backend(parser)
    parser.add_argument("--num", type=cli.positive_int, help="images for each row, ten of which are shown")
    parser.add_argument("--steps", type=cli.positive_int, help="reverse steps, at most 50")
    parser.add_argument("--train-steps", type=cli.positive_int, help="steps of each training")
    parser.add_argument("--channels", type=cli.positive_int, help="of the small networks")
    parser.add_argument("--data-dir", help="folder with the MNIST files")
    parser.add_argument("--seed", type=cli.non_negative_int, help="of weights, batches and noise")
    parser.add_argument("--out", help="folder for the picture and the table")
    parser.add_argument("--workers", type=cli.positive_int, help="processes to share the work (default: all cores)")
    cli.run(main, parser)
