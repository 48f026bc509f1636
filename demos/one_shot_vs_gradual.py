"""Train a VAE and a GAN for some minutes each, and compare both with a diffusion model: one shot against gradual.

    python demos/one_shot_vs_gradual.py runs/mnist/checkpoint.npz

All three models get the label.  The demo trains the VAE and the GAN for --minutes each.  train_mnist.py has trained the
diffusion model; the table contains its number of training steps.

    VAE    decodes z ~ N(0, 1): one evaluation.  The loss is the variational bound, with the decoder
           N(x_hat, SIGMA^2) (Kingma & Welling 2014).  The picture is x_hat, without the decoder's
           noise.  z is one vector.  A map of vectors, as in latent.py, would fail here: each place
           would be drawn independently of the others.
    GAN    makes a picture from z ~ N(0, 1): one evaluation.  A discriminator learns to tell real
           pictures from made ones.  The generator learns to make pictures that the discriminator
           takes for real.  Both are trained in every step (Goodfellow et al. 2014).
    DDPM   takes --sample-steps steps from noise to picture; with guidance, two evaluations a step.

The demo writes to --out: the table one_shot_vs_gradual.md, and the pictures one_shot_vs_gradual.png and loss.png.
Ctrl-C, SIGTERM and SIGHUP save and end a training; the same command with --resume continues it.
"""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from tqdm import tqdm

from tinydiff import ops
from tinydiff.app import checkpoint, cli, plots
from tinydiff.app.axes import log_scale, marker_of, step_scale
from tinydiff.app.choices import check_classes
from tinydiff.app.classify import load_classifier
from tinydiff.app.fit import any_training, finish, steps_that_fit
from tinydiff.app.generate import Recipe, check_steps, generate
from tinydiff.app.kinds import data_name
from tinydiff.app.kinds import load as load_kind
from tinydiff.app.metrics import interval, percent, relative
from tinydiff.app.outputs import own_folder
from tinydiff.app.reading import NO_SPREAD, Judge
from tinydiff.app.run import check_batch
from tinydiff.app.tables import write_table
from tinydiff.app.trained import load_trained
from tinydiff.autograd import Tensor, no_grad, pointwise
from tinydiff.backend import asarray, default_rng, to_numpy, xp
from tinydiff.data import epoch_indices, load
from tinydiff.more.autoencoder import Autoencoder, negative_elbo
from tinydiff.more.classifier import Classifier
from tinydiff.more.layers import NormSilu, NormSiluConv, UpConv
from tinydiff.nn import Embedding, Linear, Module
from tinydiff.train import LoopConfig, TrainConfig

# The standard deviation of the VAE's p(x | z); pictures lie in [-1, 1].  With a smaller SIGMA the decoded copies are
# sharper, but the codes fill less of N(0, 1), from which new codes are drawn.  500 samples after 4,500 steps: at 0.6
# 94% are read as asked, Frechet distance 0.37, spread 125%; at 1.0 100%, 0.52, 67%.  At 0.3 after 9,500 steps: 62%,
# 2.3, 213%.
SIGMA = 0.75
CODE = 32  # numbers of the VAE's z
LEVELS = 5  # of the VAE: a picture is padded to 32x32, and five halvings leave one place
Z = 64  # numbers in the GAN's z
SMOOTH = 0.9  # the discriminator's target for real pictures: with target 1 it would become sure and teach nothing
SLICE = 50  # one-shot pictures that a worker makes at a time
GROUPS = 8  # of each group norm


@dataclass(frozen=True)
class OneShot:
    """A model that makes a picture in one evaluation, its loss and training settings, and make(model, (z, labels))."""

    build: Callable[[], Module]
    losses_of: Callable
    make: Callable
    z_shape: tuple[int, ...]
    peak_lr: float
    betas: tuple[float, float]


def main(
    source,
    *,
    classifier="runs/classifier/checkpoint.npz",
    backend="numpy",
    precision=None,
    plain=False,
    data_dir=None,
    minutes=8.0,
    batch_size=TrainConfig.batch_size,
    channels=32,
    num=500,
    sample_steps=Recipe.num_steps,
    scale=Recipe.scale,
    seed=0,
    out="runs/one_shot_vs_gradual",
    workers=None,
    resume=False,
):
    """channels: of VAE and GAN at half the size of the picture.  Returns the rows of the table."""
    ranks = cli.start(backend, precision, plain=plain)
    out = own_folder(out, "one_shot_vs_gradual.md", "one_shot_vs_gradual.png", "loss.png")
    workers = workers or ranks.default_workers()
    ddpm_losses = load_kind(Path(source), "diffusion")[0]["metrics"][:, 0]
    ddpm, schedule, meta = load_trained(Path(source), workers)
    with ddpm, load_classifier(Path(classifier), workers, meta["data"])[0] as judge_pool:
        check_classes(source, ddpm.model)
        check_steps(schedule.T, sample_steps=sample_steps)
        dataset, test = (load(data_name(meta), split, data_dir, seed) for split in ("train", "test"))
        judge, classes, size = Judge(judge_pool, test, num), len(test.classes), test.images.shape[1]
        check_batch(batch_size, test.images.shape[1:])
        labels = np.arange(num) % classes
        print(f"data: {dataset.source}; {workers} worker(s), {minutes:g} minutes a model; results in {out}/")
        one_each = [np.flatnonzero(test.known_labels() == k)[0] for k in range(classes)]
        pictures, curves = {"real digits": test.batch(one_each)[0]}, {}
        rows, unfinished = [table_row("test digits", judge.real, judge)], []
        for name, model in one_shot_models(size, channels, classes, seed).items():
            unfinished.append(out / f"unfinished_{name}.npz")
            settings = {"model": name, "channels": channels, "minutes": minutes}
            with ranks.workers(model.build, workers) as pool:
                keep = (unfinished[-1], settings, resume)
                curves[name] = train_one_shot(name, model, pool, dataset, minutes, batch_size, seed, keep)
                trained = f"{cli.counted(len(curves[name]), 'step')} of {batch_size}, about {minutes:g} minutes"
                images, seconds = make_all(model, pool, labels, seed)
                cost = {"evaluations": 1, "seconds": seconds, "parameters": pool.model.num_parameters()}
            rows.append(table_row(name, judge(images, labels), judge, trained=trained, **cost))
            pictures[f"{name}, one shot"] = images[: 2 * classes]
        recipe = Recipe(schedule, (size, size, 1), num_steps=sample_steps, scale=scale, keep=sample_steps)
        film, seconds = draw_all(recipe, ddpm, labels, seed)  # (sample_steps, N, H, W, 1)
        images = np.clip(film[-1], -1, 1)
        cost = {"evaluations": evaluations(sample_steps, scale), "seconds": seconds}
        cost |= {"parameters": ddpm.model.num_parameters(), "trained": training_of(meta)}
        rows.append(table_row("DDPM", judge(images, labels), judge, **cost))
        pictures[f"DDPM, {cli.counted(sample_steps, 'step')}"] = images[: 2 * classes]
        pictures["its last digit on the way"] = on_the_way(film, classes)
        curves["DDPM"] = ddpm_losses
    write_table(out / "one_shot_vs_gradual.md", rows)
    if num == classes:
        print(NO_SPREAD)
    title, path = f"{dataset.name}: digits in one shot, and step by step", out / "one_shot_vs_gradual.png"
    images = np.concatenate([*pictures.values()])
    plots.save_grid(path, images, columns=classes, title=title, row_labels=row_names(pictures, classes))
    with checkpoint.atomic_write(out / "loss.png") as file:
        loss_figure(curves).savefig(file, format="png")
    for path in unfinished:
        path.unlink()
    print(f"done: open {out}/one_shot_vs_gradual.png and loss.png; table: {out}/one_shot_vs_gradual.md")
    print(f"next: {cli.command(Path(__file__).with_name('latent.py'), '--pixel', source)}")
    return rows


def one_shot_models(size, channels, num_classes, seed):
    widths = [channels, *[2 * channels] * (LEVELS - 1)]
    config = {"latent_channels": CODE, "channels": widths, "num_classes": num_classes}
    vae, gan = partial(build_vae, config, seed), partial(build_gan, size, channels, num_classes, seed)
    return {
        "VAE": OneShot(vae, vae_losses, partial(decode, size), (1, 1, CODE), LoopConfig.peak_lr, LoopConfig.betas),
        # Adam averages only a few gradients, because the direction of one player changes as the other moves.
        "GAN": OneShot(gan, gan_losses, make, (Z,), 1e-3, (0.5, 0.999)),
    }


def train_one_shot(name, model, pool, dataset, minutes, batch_size, seed, keep):
    """Train the pool's network for so many minutes.  Returns the loss of each step.

    keep: the file for a training that is stopped, what decides the training besides its configuration, and whether to
    continue from the file.
    """
    draw = partial(examples, dataset, model.z_shape)
    config = LoopConfig(1, batch_size, model.peak_lr, betas=model.betas, seed=seed)
    num_steps = steps_that_fit(pool, model.losses_of, draw, config, minutes)
    state = any_training(pool, model.losses_of, draw, replace(config, num_steps=num_steps))
    path, settings, resume = keep
    finish(state, pool, path, settings | asdict(config) | {"data": dataset.name, "num": len(dataset)}, resume, name)
    return np.array(state.metrics())[:, 0]


def examples(dataset, z_shape, config, step):
    """The examples of 0-based `step`: pictures x, their labels, and standard normal z for each."""
    n = config.batch_size
    x, labels = dataset.batch(epoch_indices(len(dataset), n, config.seed, step))
    z = default_rng("one shot", config.seed, step).standard_normal((n, *z_shape), dtype="float32")
    return {"x": x, "labels": labels, "z": z}


def make_all(model, pool, labels, seed):
    """A picture for each label, (N, H, W, 1), and the seconds for one picture."""
    z = default_rng("draw", seed).standard_normal((len(labels), *model.z_shape), dtype="float32")
    jobs = [(z[i : i + SLICE], labels[i : i + SLICE]) for i in range(0, len(z), SLICE)]
    start = time.perf_counter()
    images = np.concatenate(list(pool.map(model.make, jobs)))
    return np.clip(images, -1, 1), (time.perf_counter() - start) / len(labels)


def draw_all(recipe, pool, labels, seed):
    """Frames (keep, N, H, W, 1) of a picture for each label, drawn by diffusion, and the seconds for one picture."""
    parts, start = [], time.perf_counter()
    with tqdm(total=len(labels), unit="img", desc="DDPM", dynamic_ncols=True) as bar:
        for part in generate(pool, recipe, labels.tolist(), seed):
            parts.append(part)
            bar.update(part.shape[1])
    return np.concatenate(parts, 1), (time.perf_counter() - start) / len(labels)


# -------------------------------------------------------------------------------------------------------------- the VAE


def build_vae(config, seed):
    return Autoencoder(**config, rng=default_rng(seed))


def vae_losses(model, batch):
    """The bound of each example (N,).  The z of the batch is the noise eps of the code."""
    x = np.pad(batch["x"], ((0, 0), frame(batch["x"].shape[1]), frame(batch["x"].shape[2]), (0, 0)), constant_values=-1)
    return negative_elbo(x, *model(x, batch["z"], batch["labels"]), SIGMA)


def frame(size):
    """The widths of background to add before and after, so that the side can be halved LEVELS times."""
    missing = -size % 2**LEVELS
    return missing // 2, missing - missing // 2


def decode(size, model, job):
    with no_grad():
        start, _ = frame(size)
        return to_numpy(model.decode(*job))[:, start : start + size, start : start + size]


# -------------------------------------------------------------------------------------------------------------- the GAN


@pointwise
def relu(x):
    """max(x, 0); the derivative at 0 is 0."""
    return xp.maximum(x, 0), lambda g: (g * (x > 0),)


@pointwise
def tanh(x):
    y = xp.tanh(x)
    return y, lambda g: (g * (1 - y * y),)


class Generator(Module):
    """x = model(z, labels): (N, Z) and (N,) integers to pictures (N, size, size, 1) in [-1, 1]."""

    def __init__(self, size, channels, num_classes, rng):
        self.shape = (size // 4, size // 4, 2 * channels)
        self.label = Embedding(num_classes, Z // 4, rng=rng)
        self.start = Linear(Z + Z // 4, math.prod(self.shape), rng=rng)
        self.norms = [NormSilu(GROUPS, c) for c in (2 * channels, channels)]
        self.up = [UpConv(c, channels, rng=rng) for c in (2 * channels, channels)]
        self.out = NormSiluConv(channels, 1, GROUPS, rng)

    def forward(self, z, labels):
        h = self.start(ops.concat(Tensor(asarray(z)), self.label(labels)))
        h = ops.reshape(h, shape=(len(z), *self.shape))
        for norm, up in zip(self.norms, self.up):
            h = up(norm(h))
        return tanh(self.out(h))


class Gan(Module):
    """Both players.  The discriminator is a Classifier network; its logit of the label measures how real x looks."""

    def __init__(self, size, channels, num_classes, rng):
        self.generator = Generator(size, channels, num_classes, rng)
        widths = (channels, 2 * channels, 4 * channels)
        self.discriminator = Classifier(1, widths, num_classes, GROUPS, rng=rng)

    def realness(self, x, labels):
        """log(p(real)/p(made)) that the discriminator predicts for pictures x with these labels, (N,)."""
        logits = self.discriminator(x)
        one_hot = asarray(labels)[:, None] == xp.arange(logits.shape[1])
        return ops.total(logits * one_hot.astype(logits.dtype), axis=1)


def build_gan(size, channels, num_classes, seed):
    return Gan(size, channels, num_classes, default_rng(seed))


def gan_losses(model, batch):
    """The sum of the players' losses (N,).  Each loss trains one player only.  The discriminator gets a made picture
    as an array, so no gradient reaches the generator.  In the generator's loss the discriminator is frozen.

        generator:      -log p(real | made)                        Goodfellow et al. 2014, section 3
        discriminator:  -log p(real | real) - log p(made | made)   eq. 1, with the target SMOOTH for real pictures
    """
    made = model.generator(batch["z"], batch["labels"])
    return generator_losses(model, made, batch) + discriminator_losses(model, made.data, batch)


def generator_losses(model, made, batch):
    with model.discriminator.frozen():
        return softplus(-model.realness(made, batch["labels"]))


def discriminator_losses(model, made, batch):
    real, fake = model.realness(batch["x"], batch["labels"]), model.realness(made, batch["labels"])
    return SMOOTH * softplus(-real) + (1 - SMOOTH) * softplus(real) + softplus(fake)


def softplus(x):
    """log(1 + exp(x)) without overflow: -log p of an event with the logit -x."""
    return relu(x) + ops.log(ops.exp(-(relu(x) + relu(-x))) + 1)


def make(model, job):
    with no_grad():
        return to_numpy(model.generator(*job))


# ---------------------------------------------------------------------------------------------------- table and picture


def table_row(name, judged, judge, *, trained="", parameters="", evaluations="", seconds=""):
    right, num = judged["right"], judge.num
    return {
        "": name,
        "trained": trained,
        "parameters": parameters and f"{parameters:,}",
        "evaluations a sample": evaluations,
        "seconds a sample": seconds and f"{seconds:.5f}",
        f"read as asked, of {num}": f"{percent(right / num)} ({interval(right, num)})",
        "Frechet distance": f"{judged['frechet']:.3f}",
        "coverage": percent(judged["coverage"]),
        "spread, of real digits'": percent(relative(judged["spread"], judge.real["spread"])),
    }


def evaluations(sample_steps, scale):
    """How often the DDPM's network is evaluated for a sample: twice a step with guidance."""
    return sample_steps * (1 if scale in (0, 1) else 2)


def training_of(meta):
    """The training of a checkpoint as a cell of the table."""
    trained = f"{cli.counted(meta['step'], 'step')} of {meta['train']['batch_size']}"
    minutes = meta["train"]["minutes"]
    return trained if minutes is None else f"{trained}, at most {minutes:g} minutes"


def on_the_way(film, classes):
    """A row of `classes` pictures of the last class's first digit, from noise to the end, closer together at the end.

    film: (steps, N, H, W, 1).  With few steps the last places are white.
    """
    shares = np.linspace(0, 1, classes)
    moments = np.unique(np.rint((len(film) - 1) * (1 - (1 - shares) ** 1.5)).astype(int))
    empty = np.ones((classes - len(moments), *film.shape[2:]), film.dtype)
    return np.concatenate([film[moments, classes - 1], empty])


def row_names(pictures, classes):
    """The label of each row of the picture: its name beside the first row of pictures of that name."""
    return [name if i == 0 else "" for name, a in pictures.items() for i in range(len(a) // classes)]


def loss_figure(curves):
    """A figure of each model's loss over its steps, with a running mean.  The three losses cannot be compared."""
    meanings = {
        "VAE": f"bound, nats, sigma = {SIGMA}",
        "GAN": "both players' losses; dotted: pure guessing",
        "DDPM": "squared error of the noise",
    }
    figure = Figure(figsize=(11, 3.4), dpi=100, layout="constrained")
    for axes, (name, curve) in zip(figure.subplots(1, len(curves)), curves.items()):
        window = max(1, len(curve) // 50)
        smooth = np.convolve(curve, np.ones(window) / window, "valid")
        axes.plot(np.arange(1, len(curve) + 1), curve, lw=0.6, alpha=0.3)
        axes.plot(np.arange(len(smooth)) + (window + 1) / 2, smooth, "C0", lw=1.8, marker=marker_of(curve))
        if name == "GAN":
            axes.axhline(3 * math.log(2), color="0.4", ls=":", lw=1.2)
        else:
            log_scale(axes, "y")
        axes.set_title(f"{name}: {meanings[name]}", fontsize=10, loc="left")
        step_scale(axes)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


if __name__ == "__main__":
    parser = cli.parser(__doc__, main)
    parser.add_argument("source", metavar="CHECKPOINT", help="checkpoint.npz of train_mnist.py, with classes")
    cli.add_backend(parser)
    parser.add_argument("--classifier", metavar="CHECKPOINT", help="checkpoint.npz of train_classifier.py")
    cli.add_data_dir(parser)
    parser.add_argument("--minutes", type=cli.positive_float, help="training time of the VAE, and of the GAN")
    parser.add_argument("--batch-size", type=cli.positive_int, help="images a step")
    parser.add_argument("--num", type=cli.positive_int, help="samples of each model, a multiple of the classes")
    parser.add_argument("--sample-steps", type=cli.positive_int, help="reverse steps of the DDPM, at most its T")
    parser.add_argument("--steps", dest="sample_steps", type=cli.positive_int, help=cli.HIDDEN)
    parser.add_argument("--scale", type=cli.non_negative_float, help="guidance of the DDPM: 1 follows the label")
    parser.add_argument("--seed", type=cli.non_negative_int, help="seed of weights, data and noise")
    parser.add_argument("--out", metavar="DIR", help="folder for the results")
    parser.add_argument("--resume", action="store_true", help="continue a training that was stopped")
    parser.add_argument("--workers", type=cli.positive_int, help="processes to share the work (default: all cores)")
    cli.run(main, parser)
