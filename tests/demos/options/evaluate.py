"""The options of evaluate.py: the bound of a slice notes what it is computed with."""

import numpy as np
from option_rows import BASICS, DIFFERS
from recorder import note_data, note_trained

from tinydiff.backend import to_numpy
from tinydiff.diffusion import variance

ARGUMENTS = {"checkpoint": "c.npz"}
WORDS = "--num=4 --draws=2 --fit=20"


def stand_ins(program, notes, patch):
    load_trained = None

    def sampled_bound(schedule, eps_fn, x_0, T, draws, rng, term):
        notes.add(x_0=to_numpy(x_0), draws=draws, noise=float(rng.random(len(x_0))[0]))
        n = len(x_0)
        return np.ones((draws + 2, n)) * np.arange(1, n + 1), np.full((draws, n), 2)

    note_trained(program, notes, patch)
    load_trained = program.names["load_trained"]

    def with_seed(*args):
        pool, schedule, meta = load_trained(*args)
        return pool, schedule, meta | {"train": {"seed": 5}}

    patch.setitem(program.names, "load_trained", with_seed)

    def squared_errors(schedule, x_0, x_0_hat, t):
        notes.add(fitted_to=to_numpy(x_0), x_0_hat=to_numpy(x_0_hat))
        return variance.squared_errors(schedule, x_0, x_0_hat, t)

    patch.setitem(program.names, "sampled_bound", sampled_bound)
    patch.setitem(program.names, "squared_errors", squared_errors)
    note_data(notes, patch, program.names)


ROWS = {
    **BASICS,
    "checkpoint": ("a.npz", "b.npz", {"checkpoint": ("a.npz", "b.npz")}),
    "--num": ("", "--num=5", {"x_0": DIFFERS, "printed": DIFFERS, "returned": DIFFERS}),
    "--draws": ("", "--draws=3", {"draws": ([2] * 4, [3] * 4), "printed": DIFFERS, "returned": DIFFERS}),
    "--fit": ("", "--fit=21", {"num_images": DIFFERS, "fitted_to": DIFFERS, "x_0_hat": DIFFERS, "printed": DIFFERS}),
    "--seed": ("", "--seed=1", {"noise": DIFFERS, "x_0_hat": DIFFERS}),
    "--data-dir": ("", "--data-dir=d", {"data_dir": ([None] * 2, ["d"] * 2)}),
    "--out": ("", "--out=x.png", {"files": ([], ["x.png"]), "printed": DIFFERS}),
    "--workers": ("", "--workers=3", {"workers": (5, 3)}),
    "--parallel": ("", "--parallel=mpi", {"parallel": ("local", "mpi")}),
}
