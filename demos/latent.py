"""Latent diffusion: an autoencoder makes small maps of pictures, and the diffusion model works on these.  What is saved?

    python demos/latent.py --pixel runs/mnist/checkpoint.npz --classifier runs/classifier/checkpoint.npz
    python demos/latent.py --from runs/latent/checkpoint.npz        judge and draw again, without training

First a variational autoencoder, 28x28x1 <-> 7x7x4, whose decoder has the standard deviation SIGMA: small, so that
pictures come back nearly as they were.  Then the training set's latent means, scaled to mean 0 and variance 1 channel
by channel, are what the same U-Net, process and samplers see (Rombach et al. 2022).  --out gets checkpoint.npz, and a
table and a picture, latent.md and latent.png, beside pixel space where --pixel is given; the two are timed in turn.

GFLOP are 2 M K N of every matrix product of a forward pass of one picture, convolutions counted as direct ones.  Memory
is the most that NumPy's arrays take at one time, divided by the pictures.
"""

import time
import tracemalloc
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
from tqdm import tqdm

from tinydiff import cli, plots
from tinydiff import checkpoint as files
from tinydiff.autograd import no_grad
from tinydiff.backend import TinydiffError, default_rng, to_numpy, xp
from tinydiff.backend import precision as current_precision
from tinydiff.classify import Judge, load_classifier, read
from tinydiff.data import NAMES, epoch_indices, load
from tinydiff.diffusion import Schedule, ddpm_step
from tinydiff.generate import Recipe, build_unet, by_label, generate, load_network, load_trained
from tinydiff.metrics import wilson_interval
from tinydiff.nn.autoencoder import Autoencoder, negative_elbo
from tinydiff.ops import winograd
from tinydiff.parallel import Workers, default_workers
from tinydiff.train import FitConfig, TrainConfig, Training, fit, noise_prediction_losses, steps_that_fit, train

SIGMA = 0.1  # of the decoder p(x | z) = N(x_hat, SIGMA^2), where pictures lie in [-1, 1]
UNET = {"base_channels": 64, "channel_mults": [1], "num_res_blocks": 2, "attention_levels": [0]}  # 7 cannot be halved
UNLIMITED = 10**9  # steps, where the minutes decide
SLICE = 250  # pictures that a worker encodes or decodes at a time
LATENTS_AT_ONCE = 100  # that a worker draws: maps are small, and a step's calls take most of the time
ROUNDS = 5  # of drawing in both spaces in turn
MEASURED = 16  # pictures whose memory is measured together


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
    autoencoder=None,
    unet=None,
    num=500,
    steps=Recipe.num_steps,
    scale=Recipe.scale,
    seed=0,
    out="runs/latent",
    workers=None,
):
    """autoencoder, unet: arguments for the networks in place of the defaults.  Returns the table's rows."""
    cli.start(backend, precision)
    workers, out = workers or default_workers(), Path(out)
    out.mkdir(parents=True, exist_ok=True)
    judge_pool, judge_meta = load_classifier(Path(classifier), workers)
    with judge_pool:
        if source is None:
            path = out / "checkpoint.npz"
            files.set_aside(path)
            dataset = load(data, "train", data_dir, seed)
            print(f"data: {dataset.source}; {workers} worker(s); results in {out}/")
            train_both(path, dataset, autoencoder or {}, UNET | (unet or {}), autoencoder_minutes, minutes, seed, workers)
        else:
            path = Path(source)
        with ExitStack() as stack:
            model = LatentModel(path, workers, stack)
            test = load(model.meta["data"]["name"], "test", data_dir, seed)
            judge = Judge(judge_pool, test, num)
            labels = np.arange(num) % len(test.classes)
            recipe = Recipe(model.schedule, model.shape, DDPM, steps, scale, at_once=LATENTS_AT_ONCE)
            spaces = {"latent": Space(model.unet, recipe, partial(model.decode))}
            trained = {"latent": model.meta["trained"]}
            if pixel is not None:
                pool, schedule, meta = load_trained(Path(pixel), workers)
                stack.enter_context(pool)
                shape = tuple(meta["data"]["image_shape"])
                spaces = {"pixel": Space(pool, Recipe(schedule, shape, num_steps=steps, scale=scale))} | spaces
                trained["pixel"] = f"{meta['step']:,} steps of {meta['train']['batch_size']}"
            images, seconds = draw_in_turn(spaces, labels, seed)
            x_0, digits = test.batch(np.arange(len(test)))
            z = model.encode(x_0, "test set encoded")
            decoded = model.decode(z)
            rows = Table(["measured", *spaces, "test digits"])
            for name in spaces:
                rows.put("training", name, trained[name])
                rows.put(f"seconds a picture, {steps} steps, guidance {scale:g}", name, f"{seconds[name] / num:.3f}")
    return rows
