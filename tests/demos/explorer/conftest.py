"""What the explorer's tests share: tiny checkpoints, and the options of its smallest form."""

from functools import partial

from tinydiff.backend import default_rng, standard_normal
from tinydiff.classify import ClassifierConfig, build_classifier, save_classifier
from tinydiff.data import load
from tinydiff.diffusion import Schedule
from tinydiff.generate import build_unet
from tinydiff.parallel import Workers
from tinydiff.train import TrainConfig, Training

SMALLEST = {"labels": (3, 7), "steps": (2, 4), "moments": 5, "point_steps": 2, "num": 10, "workers": 1}


def save_checkpoints(folder):
    """A network after one step, its average moved off the start, and a classifier that has learned nothing."""
    data = load("glyphs", num=20)
    with Workers(partial(build_unet, {"base_channels": 8, "num_classes": 10}, 0)) as pool:
        config = TrainConfig(num_steps=1, minutes=None, batch_size=2)
        state = Training(pool, Schedule.linear(100), config)
        state.advance(data)
        state.ema.data += 0.05 * standard_normal(default_rng(7), state.ema.data.shape)
        state.save(folder / "checkpoint.npz", data)
    pool = Workers(partial(build_classifier, {"channels": (8, 8, 8)}, 0))
    save_classifier(folder / "classifier.npz", pool, ClassifierConfig(), data, data, 0)
    return folder / "checkpoint.npz", folder / "classifier.npz"
