"""Latent diffusion: an autoencoder makes small maps of pictures, a diffusion model draws these.  What does it save?

    python demos/latent.py --pixel runs/mnist/checkpoint.npz         about 12 minutes of training, then the comparison
    python demos/latent.py --from runs/latent/checkpoint.npz         draw and judge again, without training

First a variational autoencoder, 28x28x1 <-> 7x7x4, whose decoder has the standard deviation SIGMA: small, so that
pictures come back nearly as they were.  Then the same U-Net, process and samplers in the space of its latent means,
which are scaled to mean 0 and variance 1, channel by channel (Rombach et al. 2022).  The U-Net learns v there, on the
cosine schedule.  --out gets checkpoint.npz, and latent.md and latent.png, a table and a picture, beside pixel space
where --pixel is given.  The classifier judges.

In the table, GFLOP are 2 M K N of every matrix product of a forward pass, convolutions counted as direct ones, and
memory is the most that NumPy's arrays hold at a time.  Seconds are taken in both spaces in turn, so that what slows
the machine slows both.
"""

import time
import tracemalloc
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from unittest import mock

import long_run
import numpy as np
from tqdm import tqdm

from tinydiff import checkpoint, cli, plots
from tinydiff.autograd import no_grad
from tinydiff.backend import default_rng, to_numpy, xp
from tinydiff.backend import precision as current_precision
from tinydiff.classify import Judge, load_classifier, read
from tinydiff.data import NAMES, epoch_indices, load
from tinydiff.diffusion import Schedule, ddpm_step
from tinydiff.generate import Recipe, build_unet, generate, load_network, load_trained
from tinydiff.metrics import wilson_interval
from tinydiff.nn.autoencoder import Autoencoder, negative_elbo
from tinydiff.ops import winograd
from tinydiff.parallel import Workers, default_workers
from tinydiff.train import (
    TARGETS,
    FitConfig,
    TrainConfig,
    Training,
    draw_batch,
    fit,
    noise_prediction_losses,
    steps_that_fit,
    train,
)

SIGMA = 0.1  # of p(x | z) = N(x_hat, SIGMA^2); pictures lie in [-1, 1]
# One level, for 7 cannot be halved.  Attention after every block would take 44% more time, so it is in the middle only.
UNET = {"base_channels": 64, "channel_mults": [1], "num_res_blocks": 2}
# An error of eps_hat is one of x_0_hat divided by sqrt(alpha_bar_t), and here no clipping hides it; one of v is not.
# Of 200 samples after 500 steps, read as asked: eps 63%, v 95.5%; with the cosine schedule eps 24.5%, v 98.5%.
SCHEDULE, TARGET = Schedule.cosine, "v"
DDPM = partial(partial, ddpm_step)  # latents do not end at -1 and 1: nothing is clipped
SLICE = 250  # pictures that a worker encodes or decodes at a time
AT_ONCE = 50  # latents that a worker draws at a time: they are small, and the calls take most of the time
ROUNDS = 5  # of training steps in both spaces in turn
FEW = 64  # pictures whose operations and memory are counted together


def main(
    *,
    source=None,
    pixel=None,
    classifier="runs/classifier/checkpoint.npz",
    backend="numpy",
    precision=None,
    data="auto",
    data_dir=None,
    autoencoder_minutes=4.0,
    minutes=8.0,
    batch_size=TrainConfig.batch_size,
    num_images=None,
    autoencoder=None,
    unet=None,
    num=500,
    steps=Recipe.num_steps,
    scale=Recipe.scale,
    seed=0,
    out="runs/latent",
    workers=None,
):
    """autoencoder, unet: arguments of the networks in place of the defaults.  Returns the table's rows."""
    cli.start(backend, precision)
    workers, out = workers or default_workers(), Path(out)
    out.mkdir(parents=True, exist_ok=True)
    if source is None:
        source = out / "checkpoint.npz"
        checkpoint.set_aside(source)
        dataset = load(data, "train", data_dir, seed, num_images)
        print(f"data: {dataset.source}; {workers} worker(s); results in {out}/")
        config = TrainConfig(
            num_steps=long_run.UNLIMITED, minutes=minutes, batch_size=batch_size, seed=seed, target=TARGET
        )
        train_both(source, dataset, autoencoder or {}, autoencoder_minutes, UNET | (unet or {}), config, workers)
    with ExitStack() as stack:
        latent, coder, meta = load_latent(source, workers)
        stack.enter_context(coder.pool)
        spaces = {"latent": latent}
        test = load(meta["data"]["name"], "test", data_dir, seed)
        if pixel is not None:
            pool, schedule, its = load_trained(Path(pixel), workers)
            trained = f"{its['step']:,} steps of {its['train']['batch_size']}"
            recipe = Recipe(schedule, tuple(its["data"]["image_shape"]))
            spaces = {"pixel": Space(pool, recipe, lambda x: np.clip(x, -1, 1), trained)} | spaces
        judge_pool, _ = load_classifier(Path(classifier), workers)
        for pool in (judge_pool, *(space.pool for space in spaces.values())):
            stack.enter_context(pool)
        judge, labels = Judge(judge_pool, test, num), np.arange(num) % len(test.classes)
        images, seconds = draw_in_turn(spaces, labels, steps, scale, seed)
        x_0, digits = test.batch(np.arange(len(test)))
        z = coder.encode(x_0)
        decoded = coder.decode(z)
        datasets = {"pixel": test, "latent": Latents(z, digits)}
        table = Table([*spaces, "test digits"])
        for name, space in spaces.items():
            table.cost(name, space, datasets[name])
            table[f"seconds a sample, {steps} steps, guidance {scale:g}", name] = f"{seconds[name] / num:.4f}"
            table.quality(name, judge(images[name], labels), judge.real, num)
        model = coder.pool.model
        table["parameters of the autoencoder", "latent"] = f"{model.num_parameters():,}"
        for what, work in (
            ("encode", partial(encode_slice, model, x_0[:FEW])),
            ("decode", partial(decode_slice, model, z[:FEW])),
        ):
            table[f"GFLOP to {what}, once", "latent"] = f"{operations(work) / FEW / 1e9:.3f}"
        table.quality("test digits", judge.real, judge.real, num)
        for name, pictures in (("latent", decoded), ("test digits", x_0)):
            right = np.concatenate(list(read(judge_pool, pictures))).argmax(1) == digits
            table["all test digits, decoded from their latents: read right", name] = f"{right.mean():.2%}"
        table["their root mean square error, of the range", "latent"] = (
            f"{((decoded - x_0) ** 2).mean() ** 0.5 / 2:.2%}"
        )
        one_each = [np.flatnonzero(digits == k)[0] for k in range(len(test.classes))]
        picture(out / "latent.png", x_0[one_each], z[one_each], decoded[one_each], images, test.name)
        for name, value in training_seconds(spaces, datasets, batch_size).items():  # the last: it changes the weights
            table[f"seconds a training step of {batch_size}", name] = f"{value:.3f}"
    cli.write_table(out / "latent.md", table.rows())
    print(f"table and picture: {out}/latent.md, latent.png")
    return table.rows()


# ---------------------------------------------------------------------------------------------------------- the latents


class Coder:
    """The autoencoder on all workers, and the scaling of its latent channels: shift and scale, (C,) each."""

    def __init__(self, pool, shift, scale):
        self.pool, self.shift, self.scale = pool, np.float32(shift), np.float32(scale)

    def encode(self, images):
        """(N, H, W, 1) -> latents (N, H/4, W/4, C), scaled."""
        return (self._map(encode_slice, images, "encoding") - self.shift) / self.scale

    def decode(self, z):
        """Scaled latents -> pictures in [-1, 1]."""
        return np.clip(self._map(decode_slice, z * self.scale + self.shift, None), -1, 1)

    def _map(self, f, a, name):
        parts = self.pool.map(f, [a[i : i + SLICE] for i in range(0, len(a), SLICE)])
        return np.concatenate(list(tqdm(parts, name, -(-len(a) // SLICE), disable=name is None, dynamic_ncols=True)))


def encode_slice(model, images):
    with no_grad():
        return to_numpy(model.encode(images)[0])


def decode_slice(model, z):
    with no_grad():
        return to_numpy(model.decode(z))


@dataclass(frozen=True, eq=False)
class Latents:
    """A data set of scaled latents z (N, H, W, C) and labels (N,), as train.draw_batch reads one."""

    z: np.ndarray
    labels: np.ndarray

    def __len__(self):
        return len(self.z)

    def batch(self, indices):
        return self.z[indices], self.labels[indices].astype(np.int64)


# ------------------------------------------------------------------------------------------------------------- training


def train_both(path, dataset, coder_config, coder_minutes, unet_config, config, workers):
    """The autoencoder, then the U-Net on what it makes of the data set; both go to path."""
    began = time.monotonic()
    with Workers(partial(build_autoencoder, coder_config, config.seed), workers) as pool:
        draw = partial(draw_pictures, dataset, pool.model.latent_channels, config.seed)
        num_steps = steps_that_fit(pool, elbo_losses, draw, config.batch_size, coder_minutes)
        fitting = FitConfig(num_steps, config.batch_size, seed=config.seed)
        for _ in cli.progress(fit(pool, elbo_losses, draw, fitting), num_steps, config.batch_size, "autoencoder"):
            pass
        z = Coder(pool, 0, 1).encode(dataset.batch(np.arange(len(dataset)))[0])
        shift, scale = z.mean((0, 1, 2), dtype=np.float64), z.std((0, 1, 2), dtype=np.float64)
        arrays = {f"autoencoder/{name}": a for name, a in pool.model.state_dict().items()}
        arrays |= {"latent/shift": shift, "latent/scale": scale}
        coder_config = pool.model.config
    latents = Latents((z - np.float32(shift)) / np.float32(scale), dataset.labels)
    seconds = {"autoencoder": time.monotonic() - began}
    unet_config = {**unet_config, "in_channels": z.shape[3], "num_classes": len(dataset.classes)}
    schedule = SCHEDULE()
    build = partial(build_unet, unet_config, config.seed, TARGETS[config.target], schedule)
    with Workers(build, workers) as pool:
        state = Training(pool, schedule, config)
        with tqdm(unit="img", desc="U-Net", dynamic_ncols=True) as bar:
            for _ in train(state, latents):
                bar.total = long_run.total(state)
                bar.set_postfix_str(f"step {state.step}{long_run.recent_loss(state)}", refresh=False)
                bar.update(config.batch_size)
        names = [name for name, _ in pool.model.named_parameters()]
        arrays |= {f"ema/{name}": to_numpy(a) for name, a in zip(names, pool.flat.split(state.ema.data))}
        arrays["schedule/beta"] = schedule.beta
        meta = {
            "kind": "latent",
            "model": pool.model.config,
            "autoencoder": coder_config,
            "sigma": SIGMA,
            "latent_shape": list(z.shape[1:]),
            "train": asdict(config),
            "trained": f"{num_steps:,} + {state.step:,} steps of {config.batch_size}",
            "precision": current_precision(),
            "noise": "host",
            "data": {"name": dataset.name, "source": dataset.source, "num": len(dataset)},
        }
    checkpoint.save(path, arrays, meta)
    seconds["U-Net"] = time.monotonic() - began - seconds["autoencoder"]
    print(", ".join(f"{name}: {value:.0f} s" for name, value in seconds.items()) + f"; saved as {path}")


def build_autoencoder(config, seed):
    return Autoencoder(**config, rng=default_rng(seed))


def draw_pictures(dataset, channels, seed, n, step):
    """Pictures of 0-based `step` and the noise of their latents."""
    x, _ = dataset.batch(epoch_indices(len(dataset), n, seed, step))
    shape = (n, x.shape[1] // 4, x.shape[2] // 4, channels)
    return {"x": x, "eps": default_rng("latent", seed, step).standard_normal(shape, dtype="float32")}


def elbo_losses(model, batch, rng):
    return negative_elbo(batch["x"], *model(batch["x"], batch["eps"]), SIGMA)


def load_latent(path, workers):
    """The U-Net's Space, the Coder, and the settings of a checkpoint that train_both wrote."""
    path = Path(path)
    pool, arrays, meta = load_network(path, "latent", "ema/", unet_of, workers)
    coder, _, _ = load_network(path, "latent", "autoencoder/", autoencoder_of, workers)
    coder = Coder(coder, arrays["latent/shift"], arrays["latent/scale"])
    recipe = Recipe(Schedule(arrays["schedule/beta"]), tuple(meta["latent_shape"]), DDPM, at_once=AT_ONCE)
    return Space(pool, recipe, coder.decode, meta["trained"]), coder, meta


def unet_of(arrays, meta):
    return partial(build_unet, meta["model"], 0, TARGETS[meta["train"]["target"]], Schedule(arrays["schedule/beta"]))


def autoencoder_of(_, meta):
    return partial(build_autoencoder, meta["autoencoder"], 0)


# ----------------------------------------------------------------------------------------------------------- comparison


@dataclass
class Space:
    """Where a diffusion model works: its U-Net, what to draw, how a picture is made of that, and how it was trained."""

    pool: Workers
    recipe: Recipe
    decode: Callable
    trained: str


def draw_in_turn(spaces, labels, steps, scale, seed):
    """Pictures of these labels from each space, (N, H, W, 1), and the seconds that they took, decoding included."""
    images, seconds = {name: [] for name in spaces}, dict.fromkeys(spaces, 0.0)
    with tqdm(total=len(labels) * len(spaces), unit="img", desc="drawing", dynamic_ncols=True) as bar:
        workers = max(space.pool.num_workers for space in spaces.values())
        rounds = max(1, len(labels) // (AT_ONCE * workers))  # in each of which every worker has a slice
        for i, part in enumerate(np.array_split(labels, rounds)):
            for name, space in spaces.items():
                recipe, start = replace(space.recipe, num_steps=steps, scale=scale), time.perf_counter()
                x = np.concatenate([frames[-1] for frames in generate(space.pool, recipe, part.tolist(), seed + i)])
                images[name].append(space.decode(x))
                seconds[name] += time.perf_counter() - start
                bar.update(len(part))
    return {name: np.concatenate(parts) for name, parts in images.items()}, seconds


def training_seconds(spaces, datasets, batch_size):
    """The median of ROUNDS training steps in each space."""
    config = TrainConfig(minutes=None, batch_size=batch_size)
    states = {name: Training(space.pool, space.recipe.schedule, config) for name, space in spaces.items()}
    seconds = {name: [] for name in spaces}
    for _ in range(1 + ROUNDS):
        for name, state in states.items():
            start = time.perf_counter()
            state.advance(datasets[name])
            seconds[name].append(time.perf_counter() - start)
    return {name: np.median(values[1:]) for name, values in seconds.items()}


class Table:
    """What was measured, a row each, in columns of which some stay empty."""

    def __init__(self, columns):
        self.columns, self.cells = columns, {}

    def __setitem__(self, place, found):
        row, column = place
        self.cells.setdefault(row, dict.fromkeys(self.columns, ""))[column] = found

    def rows(self):
        return [{"measured": row} | cells for row, cells in self.cells.items()]

    def cost(self, name, space, dataset):
        """Size of the network, operations and memory."""
        model, schedule = space.pool.model, space.recipe.schedule
        batch = draw_batch(dataset, schedule, TrainConfig(batch_size=FEW), model.num_classes, 0)

        def evaluate():
            with no_grad():
                model.forward(batch["x_t"], batch["t"], batch["labels"])

        def step():
            losses = noise_prediction_losses(model, batch, default_rng(0))
            losses.backward(losses.data)

        self["training", name] = space.trained
        self["numbers in x_t", name] = " x ".join(map(str, space.recipe.image_shape))
        self["parameters of the U-Net", name] = f"{model.num_parameters():,}"
        self["GFLOP an evaluation", name] = f"{operations(evaluate) / FEW / 1e9:.3f}"
        self[f"MB a picture, evaluating {FEW}", name] = f"{peak_mb(evaluate) / FEW:.2f}"
        self[f"MB a picture, training on {FEW}", name] = f"{peak_mb(step) / FEW:.2f}"

    def quality(self, name, found, real, num):
        low, high = wilson_interval(found["right"], num)
        self[f"read as asked, of {num}", name] = f"{found['right'] / num:.1%} ({low:.1%} to {high:.1%})"
        self["Frechet distance", name] = f"{found['frechet']:.3f}"
        self["coverage", name] = f"{found['coverage']:.1%}"
        self["spread within a class, of real digits'", name] = f"{found['spread'] / real['spread']:.1%}"


def operations(work):
    """2 M K N of every matrix product in work(), with convolutions as direct ones."""
    count = 0

    def counted(multiply):
        def call(x, y, **options):
            nonlocal count
            z = multiply(x, y, **options)
            count += 2 * x.shape[-1] * z.size
            return z

        return call

    direct = mock.patch.object(winograd, "pays", lambda *_: False)
    with direct, mock.patch.dict(vars(xp), matmul=counted(xp.matmul), dot=counted(xp.dot)):
        work()
    return count


def peak_mb(work):
    """The most that arrays hold during work(), beyond what they held before."""
    tracemalloc.start()
    work()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / 1e6


def picture(path, x_0, z, decoded, images, name):
    """A digit of each class, its latent channels, decoded; and the first samples of each space."""
    size = x_0.shape[1] // z.shape[1]
    channels = [z[..., c : c + 1].repeat(size, 1).repeat(size, 2) / 3 for c in range(z.shape[3])]  # 3 std is white
    rows = [("real", x_0), *((f"latent channel {c + 1}", a) for c, a in enumerate(channels)), ("decoded", decoded)]
    for space, drawn in images.items():
        rows += [(f"drawn, {space}", drawn[: len(x_0)]), ("", drawn[len(x_0) : 2 * len(x_0)])]
    rows = [(label, a) for label, a in rows if len(a) == len(x_0)]
    title = f"{name}: latents, and digits drawn in both spaces" if len(images) > 1 else f"{name}: latents and samples"
    labels, pictures = zip(*rows)
    plots.save_grid(path, np.concatenate(pictures), columns=len(x_0), title=title, row_labels=labels)


if __name__ == "__main__":
    parser = cli.parser(__doc__, main)
    cli.add_backend(parser)
    parser.add_argument(
        "--from", dest="source", metavar="CHECKPOINT", help="a checkpoint.npz of this demo: no training"
    )
    parser.add_argument("--pixel", metavar="CHECKPOINT", help="checkpoint.npz of train_mnist.py, to compare with")
    parser.add_argument("--classifier", metavar="CHECKPOINT", help="checkpoint.npz of train_classifier.py, the judge")
    parser.add_argument("--data", choices=NAMES, help="auto: MNIST if it can be had, else drawn digits")
    parser.add_argument("--data-dir", help="folder with the four .gz files of MNIST or Fashion-MNIST")
    parser.add_argument("--autoencoder-minutes", type=cli.positive_float, help="of the autoencoder's training")
    parser.add_argument("--minutes", type=cli.positive_float, help="of the U-Net's training")
    parser.add_argument("--batch-size", type=cli.positive_int, help="images a step")
    parser.add_argument("--num", type=cli.positive_int, help="samples of each space, a multiple of the classes")
    parser.add_argument("--steps", type=cli.positive_int, help="reverse steps, at most the schedule's T")
    parser.add_argument("--scale", type=cli.non_negative_float, help="of guidance: 1 follows the label")
    parser.add_argument("--seed", type=cli.non_negative_int, help="of weights, data and noise")
    parser.add_argument("--out", metavar="DIR", help="folder for the results")
    parser.add_argument("--workers", type=cli.positive_int, help="processes to share the work (default: all cores)")
    cli.run(main, parser)
