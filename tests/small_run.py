"""A small run of noise prediction that tests of training share: network, data, settings, and what its state holds."""

from functools import partial

import numpy as np

from tinydiff.app.alone import one_process
from tinydiff.app.generate import build_unet
from tinydiff.app.training import by_name, diffusion_training
from tinydiff.backend import to_numpy
from tinydiff.data import Dataset
from tinydiff.diffusion import Schedule
from tinydiff.train import TrainConfig

NETWORK = {"base_channels": 8, "channel_mults": [1, 2], "num_heads": 2, "num_groups": 4, "num_classes": 10}
CONFIG = TrainConfig(num_steps=6, minutes=None, batch_size=8, warmup=2, seed=5)
SCHEDULE = Schedule.linear(100)


def noise_dataset(num=50):
    """Random pixels, so that no two images are alike, with random labels."""
    rng = np.random.default_rng(1)
    images, labels = rng.integers(0, 256, (num, 8, 8, 1), np.uint8), rng.integers(0, 10, num).astype(np.uint8)
    return Dataset("noise", images, labels, "random pixels", tuple("0123456789"))


DATASET = noise_dataset()


def small_workers(network=NETWORK, seed=CONFIG.seed):
    """What a program would train the network with: OneProcess with nothing installed, else Workers."""
    return one_process().workers(partial(build_unet, network, seed), 1)


def small_run(config=CONFIG, network=NETWORK, workers=None, dataset=DATASET, draw=None, flip=False):
    """A fresh Training of noise prediction on this data."""
    return diffusion_training(workers or small_workers(network, config.seed), SCHEDULE, config, dataset, draw, flip)


def arrays_of(state):
    """Copies of weights, average and moments, on the host, by kind and parameter."""
    kinds = {"weights": [p.data for p in state.parameters], "ema": state.ema.average}
    kinds |= {"adam_m": state.adam.m, "adam_v": state.adam.v}
    return {f"{k}/{name}": to_numpy(a).copy() for k, v in kinds.items() for name, a in by_name(state.model, v).items()}


def same_bits(a, b):
    return a.keys() == b.keys() and all((a[name].view(np.uint32) == b[name].view(np.uint32)).all() for name in a)
