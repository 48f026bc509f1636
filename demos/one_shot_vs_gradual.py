"""One shot against gradual: a VAE, a GAN and the diffusion model, trained for the same minutes and judged alike.

    python demos/one_shot_vs_gradual.py runs/mnist/checkpoint.npz --classifier runs/classifier/checkpoint.npz

All three are told the label.  --minutes train the VAE and the GAN each, on this machine; the diffusion model has had
what its checkpoint says, by train_mnist.py.

    VAE     draws z ~ N(0, 1) and decodes it: one evaluation.  Trained on its bound, the decoder being N(x_hat, SIGMA^2)
            (Kingma & Welling 2014); x_hat is shown, without that noise.
    GAN     draws z and makes a picture of it: one evaluation.  A discriminator learns to tell real from made, and the
            generator to be taken for real (Goodfellow et al. 2014), both at every step
    DDPM    some tens of steps, two evaluations each, from noise to picture

Goes to --out: one_shot_vs_gradual.md, a table, .png, a picture, and loss.png, how the losses fell.
"""

import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from tqdm import tqdm

from tinydiff import checkpoint, cli, ops, plots
from tinydiff.autograd import Tensor, no_grad
from tinydiff.backend import TinydiffError, asarray, default_rng, to_numpy, xp
from tinydiff.classify import Judge, load_classifier
from tinydiff.data import epoch_indices, load
from tinydiff.generate import Recipe, frame_times, generate, load_trained
from tinydiff.metrics import wilson_interval
from tinydiff.nn import Conv2d, Embedding, GroupNorm, Linear, Module
from tinydiff.nn.autoencoder import Autoencoder, NormSiluConv, negative_elbo
from tinydiff.nn.classifier import Classifier
from tinydiff.parallel import Workers, default_workers
from tinydiff.train import METRICS, FitConfig, fit, steps_that_fit

SIGMA = 0.3
Z = 64  # numbers of the GAN's z
SLICE = 100


# -------------------------------------------------------------------------------------------------------------- the VAE


def build_vae(config, seed):
    return Autoencoder(**config, rng=default_rng(seed))


def vae_losses(model, batch, rng):
    x_hat, mean, log_var = model(batch["x"], batch["z"], batch["labels"])
    return negative_elbo(batch["x"], x_hat, mean, log_var, SIGMA)


def decode(model, job):
    with no_grad():
        return to_numpy(model.decode(*job))


# -------------------------------------------------------------------------------------------------------------- the GAN


class Generator(Module):
    """x = model(z, labels): (N, Z) and (N,) to pictures in [-1, 1], (N, size, size, 1), in one go."""

    def __init__(self, size, num_classes, channels, rng):
        self.size, self.channels = size, channels
        self.label = Embedding(num_classes, Z, rng=rng)
        self.start = Linear(2 * Z, (size // 4) ** 2 * 2 * channels, rng=rng)
        self.norms = [GroupNorm(8, 2 * channels, silu=True), GroupNorm(8, channels, silu=True)]
        self.up = [Conv2d(2 * channels, channels, rng=rng), Conv2d(channels, channels, rng=rng)]
        self.out = NormSiluConv(channels, 1, 8, rng)

    def forward(self, z, labels):
        h = self.start(ops.concat(Tensor(asarray(z)), self.label(labels)))
        h = ops.reshape(h, shape=(len(z), self.size // 4, self.size // 4, 2 * self.channels))
        for norm, up in zip(self.norms, self.up):
            h = ops.upsample_conv(norm(h), up.w, up.b)
        return ops.tanh(self.out(h))


class Gan(Module):
    """Both players.  The discriminator is a classifier's network: its logit of the label says how real x looks."""

    def __init__(self, size, num_classes, channels, rng):
        self.generator = Generator(size, num_classes, channels, rng)
        self.discriminator = Classifier(1, (channels, 2 * channels, 4 * channels), num_classes, num_groups=8, rng=rng)
        self.num_classes = num_classes

    def score(self, x, labels):
        """The logit of "real", (N,)."""
        one_hot = (asarray(labels)[:, None] == xp.arange(self.num_classes)).astype("float32")
        return ops.sum(self.discriminator(x) * one_hot, axis=1)


def gan_losses(model, batch, rng):
    """The discriminator's and the generator's losses, added: neither's gradient reaches the other's parameters."""
    labels, made = batch["labels"], model.generator(batch["z"], batch["labels"])
    with model.discriminator.frozen():
        generators = softplus(-model.score(made, labels))  # -log p(real), Goodfellow et al. 2014, section 3
    real, fake = model.score(batch["x"], labels), model.score(made.data, labels)
    return generators + softplus(-real) + softplus(fake)


def softplus(x):
    """log(1 + exp(x)), which is -log sigmoid(-x): without overflow."""
    return ops.relu(x) + ops.log(ops.exp(-(ops.relu(x) + ops.relu(-x))) + 1)
