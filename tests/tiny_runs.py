"""What the demos' tests share: checkpoints of a tiny network after a step or two, and of classifiers as they start."""

from functools import partial

from tinydiff.app.alone import one_process
from tinydiff.app.classify import ClassifierConfig, build_classifier, save_classifier
from tinydiff.app.generate import build_unet
from tinydiff.app.networks import default_network
from tinydiff.app.training import diffusion_training, save
from tinydiff.backend import default_rng, standard_normal
from tinydiff.diffusion import Schedule
from tinydiff.train import TrainConfig, train

LOST = 1e30  # no checkpoint may contain an infinity


def save_checkpoint(path, dataset, *, T=100, num_classes=10, move_start=0.0, move_average=0.0, **settings):
    """Train a network of 8 channels on the data set for one step, or as the settings of TrainConfig ask, and save it.

    num_classes: of the network; it has none if the data set has no labels.
    move_start, move_average: how much noise the parameters get before the training, and their average after it.  The
    last weights are lost.
    """
    config = TrainConfig(**{"num_steps": 1, "minutes": None, "batch_size": 2, **settings})
    schedule = Schedule.linear(T)
    num_classes = None if dataset.labels is None else num_classes
    build = partial(build_unet, default_network(dataset.images.shape[1:], num_classes, 8), 0)
    with one_process().workers(build, 1) as workers:
        _move([p.data for p in workers.parameters], move_start)
        state = diffusion_training(workers, schedule, config, dataset)
        for _ in train(state):
            pass
        _move(state.ema.average, move_average)
        for p in state.parameters:  # programs draw with the average; what the last weights draw is not finite
            p.data[...] = LOST
        save(state, path, dataset, schedule, 1)


def save_untrained_classifier(path, dataset, *, test=None, seed=0, schedule=None, **config):
    """Save a classifier as it starts; with a schedule, a noisy one."""
    build = partial(build_classifier, {"time": schedule is not None, **config}, seed)
    with one_process().workers(build, 1) as workers:
        save_classifier(path, workers, ClassifierConfig(), dataset, test or dataset, 0, schedule)


def _move(arrays, std):
    rng = default_rng(7)
    for a in arrays:
        a += std * standard_normal(rng, a.shape)
