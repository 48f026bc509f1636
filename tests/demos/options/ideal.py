"""The options of ideal.py: what is denoised and sampled is noted, and no picture is drawn."""

import numpy as np
from matplotlib.figure import Figure
from option_rows import BASICS, DIFFERS
from recorder import LabelIsNoise, note_data, note_trained

from tinydiff.autograd import Tensor
from tinydiff.backend import to_numpy

MOMENT = {"t": 9, "x_t": np.zeros((1, 8, 8, 1)), "matter": 2.0, "ideal": (np.zeros(1), np.zeros(1))}
TIMES = [100, 90, 80, 70, 65, 60, 55, 50, 40, 20]  # of the checkpoint's schedule


def stand_ins(program, notes, patch):
    def denoised(schedule, pictures, x_0, times, seed, network=None):
        notes.add(pictures=pictures, x_0=x_0, times=times, noise_seed=seed)
        if network is not None:
            eps_hat = network(np.zeros((1, 8, 8, 1), "float32"), 3)
            notes.add(eps_hat=float((eps_hat.data if isinstance(eps_hat, Tensor) else eps_hat).mean()))
            return [MOMENT | {"network": (np.ones(1), np.ones(1))}]
        return [MOMENT]

    def last_noises(schedule, x_0, times, seed):
        notes.add(last_x_0=to_numpy(x_0), last_times=times, last_seed=seed)
        return [(2, 0.5, 0, 0, 0)]

    def in_the_plane(seed):
        notes.add(plane_seed=seed)
        return [({"sampler": "DDIM"}, None)]

    note_trained(program, notes, patch, size=8)
    note_data(notes, patch, program.names)
    for f in (denoised, last_noises, in_the_plane):
        patch.setitem(program.names, f.__name__, f)
    for name in ("picture_of", "which_noise", "plane_picture"):
        patch.setitem(program.names, name, lambda *_: Figure(figsize=(1, 1)))


WORDS = "--num=30"
NO_LABEL = float(LabelIsNoise().num_classes)
ROWS = {
    **BASICS,
    "--checkpoint": [
        (
            "",
            "--checkpoint=c.npz",
            {
                "checkpoint": (None, "c.npz"),
                "workers": (None, 1),
                "data": ("auto", "glyphs"),
                "times": ([10 * t for t in TIMES], TIMES),
                "last_times": ((2, 100, 500), (2, 10, 50)),
                "eps_hat": (None, NO_LABEL),
                "printed": DIFFERS,
                "returned": DIFFERS,
            },
        ),
        ("--checkpoint=c.npz", "--checkpoint=d.npz", {"checkpoint": ("c.npz", "d.npz")}),
    ],
    "--data": ("", "--data=fashion", {"data": ("auto", "fashion")}),
    "--data-dir": ("", "--data-dir=d", {"data_dir": (None, "d")}),
    "--num": ("", "--num=20", {"num_images": (30, 20), "pictures": DIFFERS, "printed": DIFFERS}),
    "--digit": ("", "--digit=7", {"x_0": DIFFERS, "last_x_0": DIFFERS}),
    "--seed": ("", "--seed=7", dict.fromkeys(("data_seed", "noise_seed", "last_seed", "plane_seed"), (0, 7))),
    "--out": ("", "--out=x", {"files": DIFFERS, "printed": DIFFERS}),
}
