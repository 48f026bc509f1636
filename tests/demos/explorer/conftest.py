"""What the explorer's tests share: tiny checkpoints, and the options of its smallest form."""

from functools import partial

import pytest
from tiny_runs import save_checkpoint

from tinydiff.app.alone import one_process
from tinydiff.app.classify import ClassifierConfig, build_classifier, save_classifier
from tinydiff.data import load


@pytest.fixture(scope="session")
def smallest():
    """Options of main."""
    few = {"labels": (3, 7), "sample_steps": (4, 2), "moments": 5, "point_steps": 2, "num": 10, "known": 100}
    return few | {"workers": 1}


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A network after one step, its average moved off the start, and a classifier that has learned nothing."""
    folder, data = tmp_path_factory.mktemp("trained"), load("glyphs", num=20)
    save_checkpoint(folder / "checkpoint.npz", data, move_average=0.05)
    with one_process().workers(partial(build_classifier, {"channels": (8, 8, 8)}, 0), 1) as pool:
        save_classifier(folder / "classifier.npz", pool, ClassifierConfig(), data, data, 0)
    return folder / "checkpoint.npz", folder / "classifier.npz"
