"""Train latent diffusion: an autoencoder makes small maps of pictures, a diffusion model draws such maps.

    python demos/latent.py --pixel runs/mnist/checkpoint.npz    train for 12 minutes, then compare
    python demos/latent.py --resume                             continue a training that was stopped
    python demos/latent.py --from runs/latent/checkpoint.npz    compare again, without training

First a variational autoencoder is trained, 28x28x1 <-> 7x7x4.  Its decoder has the standard deviation SIGMA, which is
small, so decoded pictures are close to the originals.  Then the code of the U-Net, the process and the samplers works
unchanged on the latent means, scaled to mean 0 and variance 1 channel by channel (Rombach et al. 2022).  The U-Net
learns to predict v, on the cosine schedule.  The demo writes to --out: checkpoint.npz, the table latent.md and the
picture latent.png.  If --pixel is given, table and picture also show pixel space.  A classifier reads the drawn digits.
Ctrl-C, SIGTERM and SIGHUP save and end a training.

In the table, GFLOP are 2 M K N of every matrix product of a forward pass, with convolutions counted as direct ones.
Memory is the largest sum of all arrays at one moment.  Seconds are measured in both spaces in turn, so that other work
on the machine slows both.
"""

import os
import time
import tracemalloc
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from tqdm import tqdm

from tinydiff.app import checkpoint, cli, kinds, plots, run, training
from tinydiff.app.choices import check_classes
from tinydiff.app.classify import check_reads, load_classifier
from tinydiff.app.fit import any_training, finish, steps_that_fit
from tinydiff.app.generate import Recipe, build_unet, check_steps, generate, new_unet, side_multiple
from tinydiff.app.kinds import BETA, KINDS, SIZE, Kind, data_name, fits_pictures
from tinydiff.app.kinds import load as load_kind
from tinydiff.app.metrics import interval, percent, relative
from tinydiff.app.outputs import own_folder
from tinydiff.app.reading import NO_SPREAD, Judge, check_num, read
from tinydiff.app.rules import LINE, Rule, items, old, one_of, whole
from tinydiff.app.tables import write_table
from tinydiff.app.trained import load_network
from tinydiff.autograd import OPS, no_grad
from tinydiff.backend import FAST, TinydiffError, default_rng, to_numpy
from tinydiff.backend import precision as current_precision
from tinydiff.data import NAMES, epoch_indices, load
from tinydiff.diffusion import Schedule, ddpm_step
from tinydiff.diffusion.targets import TARGETS
from tinydiff.more.autoencoder import Autoencoder, negative_elbo
from tinydiff.train import LoopConfig, TrainConfig, draw_batch, noise_prediction_losses, train

SIGMA = 0.1  # of p(x | z) = N(x_hat, SIGMA^2); pictures lie in [-1, 1]
# One level, because 7 is odd.  Attention is in the middle only: after every block it would take 44% more time.
UNET = {"base_channels": 64, "channel_mults": [1], "num_res_blocks": 2}
# x_0_hat contains the error of eps_hat divided by sqrt(alpha_bar_t), and here no clipping limits x_0_hat.  An error of
# v is not divided.  After 500 training steps the share of 200 samples that is read as asked is: eps 63%, v 95.5%; with
# the cosine schedule eps 24.5%, v 98.5%.
SCHEDULE, TARGET = Schedule.cosine, "v"
SLICE = 250  # pictures that a worker encodes or decodes at a time
AT_ONCE = 50  # latents that a worker draws at a time.  Latents are small, so larger slices are faster
AUTOENCODER_MINUTES, MINUTES = 4.0, 8.0  # of training
ROUNDS = 5  # training steps that are timed in each space, in turn
FEW = 64  # pictures in the batch whose operations and memory are counted


def DDPM(schedule):
    """ddpm_step in the form that a Recipe takes.  Nothing is clipped, because latents are not limited to [-1, 1]."""
    return partial(ddpm_step, schedule)


def main(
    *,
    source=None,
    pixel=None,
    classifier="runs/classifier/checkpoint.npz",
    backend="numpy",
    precision=None,
    plain=False,
    data="auto",
    data_dir=None,
    autoencoder_minutes=AUTOENCODER_MINUTES,
    minutes=MINUTES,
    batch_size=TrainConfig.batch_size,
    num_images=None,
    autoencoder=None,
    unet=None,
    num=500,
    sample_steps=Recipe.num_steps,
    scale=Recipe.scale,
    seed=0,
    out="runs/latent",
    workers=None,
    resume=False,
):
    """autoencoder, unet: arguments of the networks, in place of the defaults.  Returns the rows of the table."""
    ranks = cli.start(backend, precision, plain=plain)
    if source is not None and resume:
        raise TinydiffError(f"--from {source} --resume: a finished checkpoint needs no training, leave out --resume")
    if source is not None:
        coder_minutes = autoencoder_minutes != AUTOENCODER_MINUTES
        check_untrained(data=data != "auto", minutes=minutes != MINUTES, autoencoder_minutes=coder_minutes)
    out = own_folder(out, *(["checkpoint.npz"] if source is None else []), "latent.md", "latent.png")
    workers = workers or ranks.default_workers()
    _, judge = load_kind(Path(classifier), "classifier")  # used after the training, and opened before it
    T = shortest_schedule({"diffusion": pixel, "latent": source})
    if source is None:
        for path in (classifier, pixel):
            if path and os.path.realpath(path) == os.path.realpath(out / "checkpoint.npz"):
                raise TinydiffError(f"--out {out}: {path} is read, and would be replaced there; choose another --out")
    check_steps(T, sample_steps=sample_steps)
    if source is None:
        source = out / "checkpoint.npz"
        dataset = load(data, "train", data_dir, seed, num_images)
        run.check_batch(batch_size, dataset.images.shape[1:])
        check_num(load(dataset.name, "test", data_dir, seed), num)
        check_reads(classifier, judge, kinds.data_settings(dataset))
        checkpoint.set_aside_run(out, ("latent.png", "latent.md", "checkpoint.npz"))
        print(f"data: {dataset.source}; {workers} worker(s); results in {out}/")
        config = TrainConfig(num_steps=run.UNLIMITED, minutes=minutes, batch_size=batch_size, seed=seed, target=TARGET)
        networks = (autoencoder or {}, autoencoder_minutes, UNET | (unet or {}))
        train_both(source, dataset, *networks, config, ranks, workers, resume)
    with ExitStack() as stack:
        latent, coder, meta = load_latent(source, workers)
        stack.enter_context(coder.pool)
        spaces = {"latent": latent}
        test = load(data_name(meta), "test", data_dir, seed)
        if pixel is not None:
            spaces = {"pixel": load_pixel(pixel, workers)} | spaces
        judge_pool, _ = load_classifier(Path(classifier), workers, kinds.data_settings(test))
        for pool in (judge_pool, *(space.pool for space in spaces.values())):
            stack.enter_context(pool)
        drawing = {"num": num, "steps": sample_steps, "scale": scale, "seed": seed}
        table, (row_labels, shown, title) = compare(spaces, coder, judge_pool, test, batch_size, **drawing)
    columns = len(test.classes)
    plots.save_grid(out / "latent.png", np.concatenate(shown), columns=columns, title=title, row_labels=row_labels)
    write_table(out / "latent.md", table)
    if num == columns:
        print(NO_SPREAD)
    print(f"done: open {out}/latent.png; table: {out}/latent.md")
    print(f"next: {cli.command(__file__, '--from', source)}")
    return table


def check_untrained(**given):
    """Raise TinydiffError for an option of the training that is given, where nothing is trained."""
    for name in (name for name, is_given in given.items() if is_given):
        raise TinydiffError(f"--{name.replace('_', '-')}: with --from nothing is trained; leave one of the two out")


def shortest_schedule(paths):
    """The smallest T of the checkpoints, and of what would be trained.  paths: {kind: path or None}.

    They are used after the training, and opened before it.  Raises CheckpointError as kinds.load does.
    """
    lengths = [SCHEDULE().T]
    for kind, path in paths.items():
        arrays = load_kind(Path(path), kind)[0] if path is not None else {}
        if "schedule/beta" in arrays:
            lengths.append(Schedule(arrays["schedule/beta"]).T)
    return min(lengths)


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
    """A data set of scaled latents z (N, H, W, C) and labels (N,), with the methods that train.draw_batch needs."""

    z: np.ndarray
    labels: np.ndarray

    def __len__(self):
        return len(self.z)

    def batch(self, indices):
        return self.z[indices], self.labels[indices].astype(np.int64)


# ------------------------------------------------------------------------------------------------------------- training


def train_both(path, dataset, coder_config, coder_minutes, unet_config, config, ranks, workers, resume=False):
    """Train the autoencoder, then the U-Net on the latents of the data set, and save both at path.

    resume: continue from the files beside path that an earlier training, which was stopped, has left there.
    """
    began, unfinished = time.monotonic(), [path.with_name(f"unfinished_{name}.npz") for name in ("autoencoder", "unet")]
    settings = {"minutes": coder_minutes, "data": dataset.name, "num": len(dataset), "seed": config.seed}
    settings |= {"batch_size": config.batch_size, "autoencoder": coder_config}
    with ranks.workers(partial(build_autoencoder, coder_config, config.seed), workers) as pool:
        draw = partial(draw_pictures, dataset, pool.model.latent_channels)
        fitting = LoopConfig(1, config.batch_size, seed=config.seed)
        num_steps = steps_that_fit(pool, elbo_losses, draw, fitting, coder_minutes)
        state = any_training(pool, elbo_losses, draw, replace(fitting, num_steps=num_steps))
        finish(state, pool, unfinished[0], settings, resume, "autoencoder")
        num_steps = state.num_steps
        z = Coder(pool, 0, 1).encode(dataset.batch(np.arange(len(dataset)))[0])
        shift, scale = z.mean((0, 1, 2), dtype=np.float64), z.std((0, 1, 2), dtype=np.float64)
        arrays = {f"autoencoder/{name}": a for name, a in pool.model.state_dict().items()}
        arrays |= {"latent/shift": shift, "latent/scale": scale}
        coder_config = pool.model.config
    latents = Latents((z - np.float32(shift)) / np.float32(scale), dataset.labels)
    seconds = {"autoencoder": time.monotonic() - began}
    unet_config = {**unet_config, "in_channels": z.shape[3], "num_classes": len(dataset.classes)}
    schedule = SCHEDULE()
    with ranks.workers(partial(build_unet, unet_config, config.seed), workers) as pool:
        state = training.diffusion_training(pool, schedule, config, latents)
        finish(state, pool, unfinished[1], settings | {"unet": unet_config, "train": asdict(config)}, resume, "U-Net")
        arrays |= {f"ema/{name}": a for name, a in training.by_name(pool.model, state.ema.average).items()}
        arrays["schedule/beta"] = schedule.beta
        meta = {
            "kind": "latent",
            "model": pool.model.config,
            "autoencoder": coder_config,
            "sigma": SIGMA,
            "latent_shape": list(z.shape[1:]),
            "train": asdict(config),
            "trained": f"{num_steps:,} + {cli.counted(state.step, 'step')} of {config.batch_size}",
            "precision": current_precision(),
            "noise": "host",
            "data": {"name": dataset.name, "source": dataset.source, "num": len(dataset)},
        }
    training.check_finite(path, arrays)
    checkpoint.set_aside(path)
    checkpoint.save(path, arrays, meta)
    for file in unfinished:
        file.unlink()
    seconds["U-Net"] = time.monotonic() - began - seconds["autoencoder"]
    print(", ".join(f"{name}: {value:.0f} s" for name, value in seconds.items()) + f"; saved as {path}")


def build_autoencoder(config, seed):
    return Autoencoder(**config, rng=default_rng(seed))


def draw_pictures(dataset, channels, config, step):
    """The pictures of 0-based `step`, and the noise for their latents."""
    n = config.batch_size
    x, _ = dataset.batch(epoch_indices(len(dataset), n, config.seed, step))
    shape = (n, x.shape[1] // 4, x.shape[2] // 4, channels)
    return {"x": x, "eps": default_rng("latent", config.seed, step).standard_normal(shape, dtype="float32")}


def elbo_losses(model, batch):
    return negative_elbo(batch["x"], *model(batch["x"], batch["eps"]), SIGMA)


def fits_together(meta):
    """Whether the U-Net, the autoencoder, the latents and the data set of a checkpoint belong together."""
    unet, coder, shape, data = meta["model"], meta["autoencoder"], meta["latent_shape"], meta["data"]
    channels = shape[2] == coder["latent_channels"] and coder["in_channels"] == 1
    pictures = data | {"image_shape": [4 * shape[0], 4 * shape[1], shape[2]]}
    halves = not (shape[0] | shape[1]) % side_multiple(unet)
    return channels and halves and fits_pictures(unet, pictures) and unet["num_classes"] is not None


CODER = dict.fromkeys(("in_channels", "latent_channels", "num_groups"), SIZE)
KINDS["latent"] = Kind(
    "latent",
    {
        "model": kinds.UNET,
        "autoencoder": CODER | {"channels": items(SIZE, 2, 2), "num_classes": old(one_of(None))},
        "latent_shape": items(whole(1, 64), 3, 3),
        "train": {"target": kinds.TARGET},
        "trained": LINE,
        "data": {"name": LINE},
    },
    {
        ("ema/",): lambda meta, rng: new_unet(meta["model"], rng),
        ("autoencoder/",): lambda meta, rng: Autoencoder(**meta["autoencoder"], rng=rng),
    },
    {
        "schedule/beta": BETA,
        "latent/shift": Rule("a number for each channel", lambda a, meta: is_list(a, meta)),
        "latent/scale": Rule("a number above 0 for each channel", lambda a, meta: is_list(a, meta) and (a > 0).all()),
    },
    (Rule("the networks, latent_shape and data.name must belong together", fits_together),),
)


def is_list(a, meta):
    """Whether an array holds a finite number for each channel of the latents."""
    return a.dtype.str[1:] == "f8" and a.shape == (meta["latent_shape"][2],) and np.isfinite(a).all()


def load_pixel(path, workers):
    """The Space of a checkpoint of train_mnist.py, of a network with classes."""
    pool, arrays, meta = load_network(Path(path), "diffusion", "ema/", unet_of, workers)
    check_classes(f"--pixel {path}", pool.model)
    recipe = Recipe(Schedule(arrays["schedule/beta"]), tuple(meta["data"]["image_shape"]), target=target_of(meta))
    trained = f"{cli.counted(meta['step'], 'step')} of {meta['train']['batch_size']}"
    return Space(pool, recipe, lambda x: np.clip(x, -1, 1), trained)


def load_latent(path, workers):
    """(Space, Coder, settings) of a checkpoint that train_both wrote."""
    path = Path(path)
    pool, arrays, meta = load_network(path, "latent", "ema/", unet_of, workers)
    coder, _, _ = load_network(path, "latent", "autoencoder/", autoencoder_of, workers)
    coder = Coder(coder, arrays["latent/shift"], arrays["latent/scale"])
    schedule, shape = Schedule(arrays["schedule/beta"]), tuple(meta["latent_shape"])
    recipe = Recipe(schedule, shape, DDPM, at_once=AT_ONCE, target=target_of(meta))
    return Space(pool, recipe, coder.decode, meta["trained"]), coder, meta


def target_of(meta):
    """What the U-Net of a checkpoint predicts."""
    return TARGETS[meta["train"].get("target", "eps")]  # old checkpoints contain no target


def unet_of(_, meta):
    return partial(build_unet, meta["model"], 0)


def autoencoder_of(_, meta):
    return partial(build_autoencoder, meta["autoencoder"], 0)


# ----------------------------------------------------------------------------------------------------------- comparison


def compare(spaces, coder, judge_pool, test, batch_size, *, num, steps, scale, seed):
    """The rows of the table, and the contents of the picture, see `picture`.  Last of all the weights are changed."""
    judge, labels = Judge(judge_pool, test, num), np.arange(num) % len(test.classes)
    images, seconds = draw_in_turn(spaces, labels, steps, scale, seed)
    x_0, digits = test.batch(np.arange(len(test)))
    z = coder.encode(x_0)
    decoded, datasets = coder.decode(z), {"pixel": test, "latent": Latents(z, digits)}
    table = Table([*spaces, "test digits"])
    for name, space in spaces.items():
        table.cost(name, space, datasets[name])
        how = f"{cli.counted(steps, 'step')}, guidance {scale:g}"
        table[f"seconds a sample, {how}", name] = f"{seconds[name] / num:.4f}"
        table.quality(name, judge(images[name], labels), judge.real, num)
    table.coder(coder.pool.model, x_0, z)
    table.quality("test digits", judge.real, judge.real, num)
    table.decoding(judge_pool, digits, x_0, decoded)
    one_each = [np.flatnonzero(digits == k)[0] for k in range(len(test.classes))]
    shown = picture(x_0[one_each], z[one_each], decoded[one_each], images, test.name)
    for name, value in training_seconds(spaces, datasets, batch_size).items():
        table[f"seconds a training step of {batch_size}", name] = f"{value:.3f}"
    return table.rows(), shown


@dataclass
class Space:
    """Where a diffusion model works: its U-Net, how to draw, how to decode a picture, and how the U-Net was trained."""

    pool: Any  # workers
    recipe: Recipe
    decode: Callable
    trained: str


def draw_in_turn(spaces, labels, steps, scale, seed):
    """Pictures of these labels from each space, (N, H, W, 1), and the seconds to draw and decode them."""
    images, seconds = {name: [] for name in spaces}, dict.fromkeys(spaces, 0.0)
    with tqdm(total=len(labels) * len(spaces), unit="img", desc="drawing", dynamic_ncols=True) as bar:
        workers = max(space.pool.num_workers for space in spaces.values())
        rounds = max(1, len(labels) // (AT_ONCE * workers))  # every worker has a slice in each round
        for rows in np.array_split(np.arange(len(labels)), rounds):
            for name, space in spaces.items():
                recipe, start = replace(space.recipe, num_steps=steps, scale=scale), time.perf_counter()
                drawn = generate(space.pool, recipe, labels[rows].tolist(), seed, int(rows[0]))
                x = np.concatenate([frames[-1] for frames in drawn])
                images[name].append(space.decode(x))
                seconds[name] += time.perf_counter() - start
                bar.update(len(rows))
    return {name: np.concatenate(parts) for name, parts in images.items()}, seconds


def training_seconds(spaces, datasets, batch_size):
    """The median of ROUNDS training steps in each space."""
    config = TrainConfig(minutes=None, batch_size=batch_size)
    loops = {
        name: train(training.diffusion_training(space.pool, space.recipe.schedule, config, datasets[name]))
        for name, space in spaces.items()
    }
    seconds = {name: [] for name in spaces}
    for _ in range(1 + ROUNDS):
        for name, loop in loops.items():
            start = time.perf_counter()
            next(loop)
            seconds[name].append(time.perf_counter() - start)
    return {name: np.median(values[1:]) for name, values in seconds.items()}


class Table:
    """The measurements, one in each row.  Some cells stay empty."""

    def __init__(self, columns):
        self.columns, self.cells = columns, {}

    def __setitem__(self, place, text):
        row, column = place
        self.cells.setdefault(row, dict.fromkeys(self.columns, ""))[column] = text

    def rows(self):
        return [{"measured": row} | cells for row, cells in self.cells.items()]

    def cost(self, name, space, dataset):
        """Size of the network, operations and memory."""
        model, schedule = space.pool.model, space.recipe.schedule
        batch = draw_batch(dataset, schedule, model.num_classes, TrainConfig(batch_size=FEW), 0)

        def evaluate():
            with no_grad():
                model(batch["x_t"], batch["t"], batch["labels"])

        def step():
            losses = noise_prediction_losses(model, batch)
            losses.backward(losses.data)

        self["training", name] = space.trained
        self["numbers in x_t", name] = " x ".join(map(str, space.recipe.image_shape))
        self["parameters of the U-Net", name] = f"{model.num_parameters():,}"
        self["GFLOP an evaluation", name] = f"{operations(evaluate) / FEW / 1e9:.3f}"
        self[f"MB a picture, evaluating {FEW}", name] = f"{peak_mb(evaluate) / FEW:.2f}"
        self[f"MB a picture, training on {FEW}", name] = f"{peak_mb(step) / FEW:.2f}"

    def coder(self, model, x_0, z):
        """Size of the autoencoder, and operations for one of these pictures and latents."""
        self["parameters of the autoencoder", "latent"] = f"{model.num_parameters():,}"
        encode, decode = partial(encode_slice, model, x_0[:FEW]), partial(decode_slice, model, z[:FEW])
        self["GFLOP to encode, once", "latent"] = f"{operations(encode) / FEW / 1e9:.3f}"
        self["GFLOP to decode, once", "latent"] = f"{operations(decode) / FEW / 1e9:.3f}"

    def decoding(self, judge_pool, digits, x_0, decoded):
        """What is lost between pictures and decoded pictures: how they are read, and their difference."""
        for name, pictures in (("latent", decoded), ("test digits", x_0)):
            right = np.concatenate(list(read(judge_pool, pictures))).argmax(1) == digits
            self["test digits decoded from latents: read right", name] = percent(right.mean(), 2)
        error = ((decoded - x_0) ** 2).mean() ** 0.5
        self["their root mean square error, of the range", "latent"] = f"{error / 2:.2%}"  # the range is -1..1

    def quality(self, name, judged, real, num):
        right = judged["right"]
        self[f"read as asked, of {num}", name] = f"{percent(right / num)} ({interval(right, num)})"
        self["Frechet distance", name] = f"{judged['frechet']:.3f}"
        self["coverage", name] = percent(judged["coverage"])
        self["spread within a class, of real digits'", name] = percent(relative(judged["spread"], real["spread"]))


# 2 M K N of the matrix products of an op, from its result y and its inputs.
PRODUCTS = {
    "conv2d": lambda y, x, w, b: 2 * y.size * w[..., 0].size,
    "linear": lambda y, x, w, b: 2 * y.size * len(w),
    "matmul": lambda y, p, q: 2 * y.size * p.shape[-1],
    "attention": lambda y, q, k, v: 2 * (q.size + y.size) * k.shape[-2],
}


def operations(work):
    """The sum of 2 M K N over the matrix products of the forward pass work(), with convolutions as direct ones."""
    count = 0

    def counted(name, products):
        def call(*arrays, **static):
            nonlocal count
            y, vjp = OPS[name].__wrapped__(*arrays, **static)
            count += products(y, *arrays)
            return y, vjp

        return call

    table = {name: counted(name, products) for name, products in PRODUCTS.items()}
    with mock.patch.dict(FAST, table, clear=True):  # the plain functions: they call no other op
        work()
    return count


def peak_mb(work):
    """The largest sum of all arrays that exist at one moment of work(), without earlier arrays, in MB."""
    tracemalloc.start()
    work()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / 1e6


def picture(x_0, z, decoded, images, name):
    """(labels, rows, title) of the picture: a digit of each class, its latent channels, the decoded digit, and up to
    two rows of samples of each space."""
    size = x_0.shape[1] // z.shape[1]
    channels = [z[..., c : c + 1].repeat(size, 1).repeat(size, 2) / 3 for c in range(z.shape[3])]  # 3 std is white
    rows = [("real", x_0), *((f"latent channel {c + 1}", a) for c, a in enumerate(channels)), ("decoded", decoded)]
    for space, drawn in images.items():
        rows += [(f"drawn, {space}", drawn[: len(x_0)]), ("", drawn[len(x_0) : 2 * len(x_0)])]
    title = f"{name}: latents, and digits drawn in both spaces" if len(images) > 1 else f"{name}: latents and samples"
    return *zip(*((label, a) for label, a in rows if len(a) == len(x_0))), title


if __name__ == "__main__":
    parser = cli.parser(__doc__, main)
    cli.add_backend(parser)
    parser.add_argument(
        "--from", dest="source", metavar="CHECKPOINT", help="a checkpoint.npz of this demo (default: train one)"
    )
    pixel = "checkpoint.npz of train_mnist.py, to compare with (default: none)"
    parser.add_argument("--pixel", metavar="CHECKPOINT", help=pixel)
    parser.add_argument("--classifier", metavar="CHECKPOINT", help="checkpoint.npz of train_classifier.py")
    parser.add_argument("--data", choices=NAMES, help="auto: MNIST, or drawn digits if MNIST cannot be loaded")
    cli.add_data_dir(parser)
    parser.add_argument("--autoencoder-minutes", type=cli.positive_float, help="training time of the autoencoder")
    parser.add_argument("--minutes", type=cli.positive_float, help="training time of the U-Net")
    parser.add_argument("--batch-size", type=cli.positive_int, help="images a step")
    parser.add_argument("--num", type=cli.positive_int, help="samples of each space, a multiple of the classes")
    parser.add_argument("--sample-steps", type=cli.positive_int, help="reverse steps, at most the schedule's T")
    parser.add_argument("--steps", dest="sample_steps", type=cli.positive_int, help=cli.HIDDEN)
    parser.add_argument("--scale", type=cli.non_negative_float, help="guidance: 0 ignores the label, 1 follows it")
    parser.add_argument("--seed", type=cli.non_negative_int, help="seed of weights, data and noise")
    parser.add_argument("--out", metavar="DIR", help="folder for the results")
    parser.add_argument("--resume", action="store_true", help="continue a training that was stopped")
    parser.add_argument("--workers", type=cli.positive_int, help="processes to share the work (default: all cores)")
    cli.run(main, parser)
