"""The options of forward_process.py: the functions that make its pictures note what they are given."""

import numpy as np
from matplotlib.figure import Figure
from option_rows import BASICS, DIFFERS

from tinydiff.backend import to_numpy
from tinydiff.data import Dataset

WORDS = "--chains=3"
FIGURES = {"seed": (0, 8), "chain_seed": (0, 8), "statistics_seed": (0, 8)}


def stand_ins(program, notes, patch):
    def load(name, data_dir=None, seed=0, num=None):
        notes.add(data=name, data_dir=data_dir, data_seed=seed, num=num)
        images = np.arange(30, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 4, 1), np.uint8)
        return Dataset("x", images, np.arange(30) % 10, "a source", tuple("0123456789"))

    def noising(schedules, x_0, seed, name):
        notes.add(schedules=[*schedules], x_0=to_numpy(x_0), seed=seed, name=name)
        return Figure()

    def chain_and_closed_form(schedule, x_0, seed, name):
        notes.add(chain=(to_numpy(x_0), name), chain_seed=seed)
        return Figure(), 1.0

    def chain_statistics(schedule, chains, seed):
        notes.add(chains=chains, statistics_seed=seed)
        return Figure(), 2.0

    for f in (load, noising, chain_and_closed_form, chain_statistics):
        patch.setitem(program.names, f.__name__, f)
    patch.setitem(program.names, "curves", lambda schedules: Figure())


ROWS = {
    **BASICS,
    "--data": ("", "--data=fashion", {"data": ("auto", "fashion")}),
    "--data-dir": ("", "--data-dir=d", {"data_dir": (None, "d")}),
    "--digit": ("", "--digit=7", {"name": ("3", "7"), "x_0": DIFFERS, "chain": DIFFERS}),
    "--seed": ("", "--seed=8", {"data_seed": (0, 8), **FIGURES}),
    "--chains": ("", "--chains=4", {"chains": (3, 4), "printed": DIFFERS}),
    "--out": ("", "--out=x", {"files": DIFFERS, "printed": DIFFERS}),
}
