"""What the explorer's tests share: tiny checkpoints, and the options of its smallest form."""

from functools import partial

import pytest

from tinydiff.app.alone import one_process
from tinydiff.app.classify import ClassifierConfig, build_classifier, save_classifier
from tinydiff.app.generate import build_unet
from tinydiff.app.training import diffusion_training, save
from tinydiff.backend import default_rng, standard_normal
from tinydiff.data import load
from tinydiff.diffusion import Schedule
from tinydiff.train import TrainConfig, train


@pytest.fixture(scope="session")
def smallest():
    """Options of main."""
    return {"labels": (3, 7), "steps": (2, 4), "moments": 5, "point_steps": 2, "num": 10, "workers": 1}


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A network after one step, its average moved off the start, and a classifier that has learned nothing."""
    folder, data, schedule = tmp_path_factory.mktemp("trained"), load("glyphs", num=20), Schedule.linear(100)
    with one_process().workers(partial(build_unet, {"base_channels": 8, "num_classes": 10}, 0), 1) as pool:
        config = TrainConfig(num_steps=1, minutes=None, batch_size=2)
        state = diffusion_training(pool, schedule, config, data)
        list(train(state))
        rng = default_rng(7)
        for average in state.ema.average:
            average += 0.05 * standard_normal(rng, average.shape)
        save(state, folder / "checkpoint.npz", data, schedule, 1)
    with one_process().workers(partial(build_classifier, {"channels": (8, 8, 8)}, 0), 1) as pool:
        save_classifier(folder / "classifier.npz", pool, ClassifierConfig(), data, data, 0)
    return folder / "checkpoint.npz", folder / "classifier.npz"
