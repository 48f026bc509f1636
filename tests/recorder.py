"""What a program does with its options: the program, stand-ins for its expensive parts, and what they were called with.

    demo = Program("sample")                                  # the parser and the main of demos/sample.py
    notes = record(demo, "c.npz --num 4 --scale 3", stand_ins, folder)
    notes["title"]                                            # what a stand-in has noted under this name

A stand-in notes its arguments and returns something cheap.  tests/demos/test_options.py explains how a program's table
of options uses these functions.
"""

import contextlib
import inspect
import io
import runpy
import shlex
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from tinydiff import train
from tinydiff.app import cli, outputs, plots
from tinydiff.app.alone import Alone, OneProcess
from tinydiff.app.trained import Pair
from tinydiff.autograd import Tensor
from tinydiff.backend import to_numpy
from tinydiff.data import Dataset
from tinydiff.diffusion import Schedule
from tinydiff.nn import Module

DEMOS = Path(__file__).parents[1] / "demos"
SCHEDULE = Schedule.linear(100)


class Program:
    """A program of demos/ as the command line starts it: its parser, its main, and the names that main looks up."""

    def __init__(self, name):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cli, "run", self._take)
            patch.syspath_prepend((DEMOS / name).parent)
            runpy.run_path(str(DEMOS / f"{name}.py"), run_name="__main__")
        self.name, self.names = name, self.main.__globals__

    def _take(self, main, parser):
        self.main, self.parser = main, parser

    def __call__(self, words):
        """Run main with these words of a command line, checked by the parser; what main returns."""
        return self.main(**vars(self.parser.parse_args(shlex.split(words))))


class Notes(dict):
    """What was recorded: {name: value}.  A name that is noted again gets a list of its values."""

    def add(self, **values):
        for name, value in values.items():
            self[name] = [*self[name], value] if name in self else [value]


def record(program, words, stand_ins, folder):
    """The notes of one run in an empty folder: those of the stand-ins, and what is printed, returned and written."""
    notes, printed = Notes(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.chdir(folder)
        patch.syspath_prepend((DEMOS / program.name).parent)
        patch.setattr(cli, "start", partial(_start, notes))
        stand_ins(program, notes, patch)
        try:
            notes.add(returned=program(words))
        finally:
            outputs.release()
    written = sorted(path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file())
    notes.add(printed=printed.getvalue(), files=written)
    return {name: values[0] if len(values) == 1 else values for name, values in notes.items()}


def same(a, b):
    """Whether two noted values are equal: arrays bit for bit, lists and tuples item by item."""
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        alike = isinstance(a, np.ndarray) and isinstance(b, np.ndarray) and (a.dtype, a.shape) == (b.dtype, b.shape)
        return alike and np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[name], b[name]) for name in a)
    return a is b or a == b


class Ranks(Alone):
    """One process that notes how many workers it is asked for; on this machine 5 are the default."""

    def __init__(self, notes):
        self.notes = notes

    def default_workers(self, most=64):
        return min(5, most)

    def workers(self, build, num_workers):
        self.notes.add(workers=num_workers)
        return OneProcess(build)


def _start(notes, backend, precision, parallel="local", plain=False):
    notes.add(backend=backend, precision=precision, parallel=parallel, plain=plain)
    return Ranks(notes)


class LabelIsNoise(Module):
    """A network whose eps_hat is its label, or 0.5 without classes: guidance shows in the numbers that come out.

    more: added to eps_hat.
    """

    def __init__(self, num_classes=10, seed=0, more=0.0):
        self.num_classes, self.config, self.more = num_classes, {}, more
        self.w = Tensor(np.random.default_rng(seed).standard_normal(3, np.float32), requires_grad=True)

    def forward(self, x_t, t, labels=None):
        labels = 0.5 if labels is None else np.reshape(labels, (-1, 1, 1, 1))
        return Tensor(0 * x_t + np.asarray(labels, np.float32) + np.float32(self.more))


WEAK = 0.25  # the early network of a pair answers so much more than its label


def pair_of_labels(num_classes=10):
    """A Pair: guided by the weight w, its eps_hat is the label + (1 - w) WEAK."""
    return Pair(LabelIsNoise(num_classes), LabelIsNoise(num_classes, more=WEAK))


def note_network(names, notes, patch, name):
    """`name`(config, seed) among these names makes a LabelIsNoise, not the program's network; the config is noted."""

    def build(config, seed):
        notes.add(network=config)
        return LabelIsNoise(config.get("num_classes"), seed)

    patch.setitem(names, name, build)


def note_trained(program, notes, patch, num_classes=10, size=4, name="load_trained"):
    """load_trained of the program returns a LabelIsNoise of this size; the path and the workers are noted.

    name: the function that the program calls, load_trained or load_guided, which gives a pair_of_labels.
    """
    data = {"name": "glyphs", "num": 30, "image_shape": [size, size, 1]}
    meta = {"data": data, "step": 7, "num_steps": 7, "train": {}}
    make = {"load_trained": LabelIsNoise, "load_guided": pair_of_labels}[name]

    def load(path, num_workers, ranks=None):
        notes.add(checkpoint=str(path), workers=num_workers)
        return OneProcess(partial(make, num_classes)), SCHEDULE, meta

    patch.setitem(program.names, name, load)


def note_sampler(notes, patch, *names):
    """`sample` notes what it is called with.  Each step leaves x_t as it is.

    names: the dictionaries in which programs look `sample` up: the program's own names, or vars(a module).
    Noted: the step and its settings; the pairs; x_T; eps_hat of x_T, the first number of each image; a number of the
    stream that gives the noise of the first image.
    """

    def sample(step, eps_fn, pairs, x_T, rng):
        function, settings = what_step(step)
        notes.add(step=function, step_settings=settings, pairs=[*pairs], x_T=to_numpy(x_T))
        eps_hat = to_numpy(eps_fn(x_T, pairs[0][0])).reshape(len(x_T), -1)
        notes.add(eps_hat=eps_hat[:, 0].tolist(), noise=float(rng.random(len(x_T))[0]))
        for _, s in pairs:
            yield s, x_T, x_T

    for each in names:
        patch.setitem(each, "sample", sample)


def what_step(step):
    """(the function, its settings without the schedule) of a step, a partial or a closure such as dpm_solver_2m's."""
    if isinstance(step, partial):
        return step.func, step.keywords
    closed = dict(zip(step.__code__.co_freevars, (cell.cell_contents for cell in step.__closure__)))
    return step.__qualname__.partition(".")[0], {"clip": closed["clip"]}


def note_pictures(notes, patch):
    """plots.save_grid, save_filmstrip, save_gif and save_loss note what they would draw, by path, and draw nothing."""

    def noting(name):
        form = inspect.signature(getattr(plots, name))

        def save(*arguments, **options):
            given = form.bind(*arguments, **options).arguments
            path, title = given.pop("path"), given.pop("title", "")
            notes.add(**{f"{name} path": str(path), f"{name} title": title, f"{name}": given})

        return save

    for name in ("save_grid", "save_filmstrip", "save_gif", "save_loss"):
        patch.setattr(plots, name, noting(name))


def note_data(notes, patch, *names):
    """`load` notes which data set is asked for, and returns images of 8 x 8 pixels, as many as asked for, at most 30.

    names: the dictionaries in which programs look `load` up, such as vars(tinydiff.app.run).
    """

    def load(name, split="train", data_dir=None, seed=0, num=None, say=print, **options):
        notes.add(data=name, data_dir=data_dir, data_seed=seed, num_images=num, **options)
        rng, n = np.random.default_rng(len(split)), num or 30
        images, labels = rng.integers(0, 256, (n, 8, 8, 1), np.uint8), (np.arange(n) % 10).astype(np.uint8)
        return Dataset("glyphs" if name == "auto" else name, images, labels, "a source", tuple("0123456789"))

    for each in names:
        patch.setitem(each, "load", load)


def note_training(notes, state):
    """Note a run that is about to begin: its settings, its weights, and what its first batch is made of."""
    with pytest.MonkeyPatch.context() as patch:
        plain = train.q_sample

        def q_sample(schedule, x_0, t, eps):
            notes.add(x_0=x_0, t=t, eps=eps)
            return plain(schedule, x_0, t, eps)

        patch.setattr(train, "q_sample", q_sample)
        batch = state.draw(state.config, 0)
    notes.add(
        **{f"config.{name}": value for name, value in vars(state.config).items()},
        num_steps=state.num_steps,
        weights=np.concatenate([to_numpy(p.data).reshape(-1) for p in state.parameters]),
        **{f"batch.{name}": a for name, a in batch.items()},
    )
