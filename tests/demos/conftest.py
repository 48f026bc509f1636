"""Demos are scripts, not a package: tests load one by its file name."""

import importlib.util
import math
import sys
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from stand_ins import unreadable
from tqdm import tqdm

import tinydiff.train
from tinydiff.app import outputs, training
from tinydiff.backend import FAST, backend_name, precision, use_backend

DEMOS = Path(__file__).parents[2] / "demos"


@pytest.fixture(autouse=True)
def same_backend_afterwards():
    """A demo chooses the backend, the precision and plain functions; afterwards the choice of the suite holds again."""
    before = backend_name(), precision(), bool(FAST)
    yield
    if (backend_name(), precision(), bool(FAST)) != before:
        name, digits, fast = before
        use_backend(name, digits, plain=not fast)


DRAWN = {"noise_prediction_losses", "squared_errors"}  # the losses of networks that draw with their average


@pytest.fixture(scope="module", autouse=True)
def last_weights_are_lost():
    """After the last step of a run, its weights are NaN: who draws with them and not with their average draws NaN."""

    def losing(train):
        def train_and_lose(state):
            yield from train(state)
            if state.losses_of.__name__ in DRAWN:
                for p in state.parameters:
                    p.data[...] = math.nan

        return train_and_lose

    with pytest.MonkeyPatch.context() as patch:
        for module in (tinydiff.train, training):
            patch.setattr(module, "train", losing(module.train))
        yield


@pytest.fixture(autouse=True)
def folders_given_back():
    """A main that is called here owns its folders until the test ends, and not for the life of this process."""
    yield
    outputs.release()


@pytest.fixture(scope="session", autouse=True)
def shown_bars():
    """The progress bars that were shown and that no error ended, also those of fixtures of a whole file."""
    shown, start, close = [], tqdm.__init__, tqdm.close

    def noted(bar, *args, **kwargs):
        start(bar, *args, **kwargs)
        if not bar.disable and sys._getframe(1).f_globals["__name__"] != "tinydiff.app.run":  # a signal may stop it
            shown.append(bar)

    def closed(bar):
        if bar in shown and sys.exc_info()[0] not in (None, GeneratorExit):
            shown.remove(bar)
        close(bar)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tqdm, "__init__", noted)
        patch.setattr(tqdm, "close", closed)
        yield shown


@pytest.fixture(autouse=True)
def every_bar_reaches_100_percent(shown_bars):
    yield
    unfinished = [f"{bar.desc}: {bar.n} of {bar.total}" for bar in shown_bars if bar.n != bar.total]
    shown_bars.clear()
    assert unfinished == []


@pytest.fixture(autouse=True)
def every_figure_that_is_saved_can_be_read(monkeypatch):
    """Each panel has a title, and each axis of a panel without an image has two different labels at its ticks or more.

    The law holds for whatever a test lets a program save: each program that draws, and each shape of its data.
    """
    savefig = Figure.savefig

    def save_and_look(figure, *arguments, **options):
        savefig(figure, *arguments, **{"dpi": 40, **options})  # few pixels: no law is about their number
        assert [*unreadable(figure)] == []

    monkeypatch.setattr(Figure, "savefig", save_and_look)


@pytest.fixture(scope="session")
def load_demo():
    """load_demo("prompts/prompt") is the module of that file in demos/, which finds its neighbours as a script does."""

    def load(name):
        path = DEMOS / f"{name}.py"
        spec = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(spec)
        with pytest.MonkeyPatch.context() as patch:
            patch.syspath_prepend(path.parent)
            spec.loader.exec_module(module)
        return module

    return load
