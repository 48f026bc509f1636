"""The options of network.py: what is loaded, built and trained is noted, and nothing is drawn."""

import numpy as np
from matplotlib.figure import Figure
from option_rows import BASICS, DIFFERS, WORKERS
from recorder import LabelIsNoise, note_data

WORDS = "--steps=8"
ROW = {"part": "conv_in", "kind": "Conv2d", "gets": "8x8x1", "gives": "8x8x8", "parameters": 3}


def stand_ins(program, notes, patch):
    def build(kind, config, seed):
        notes.add(kind=kind.__name__, network=config, weights_seed=seed)
        return LabelIsNoise(config["num_classes"])

    def summary(model, shape):
        notes.add(shape=shape)
        return [ROW]

    def moments_of(pool, state, ranks, held_out, recipe, labels, seed, name):
        notes.add(config=vars(state.config), held_out=[held_out["t"], held_out["x_t"]], labels=labels, noise_seed=seed)
        notes.add(recipe=(recipe.image_shape, recipe.num_steps), name=name)
        return [{"step": 1, "raw": (0.5, np.zeros(1)), "average": (0.25, np.zeros(1))}]

    note_data(notes, patch, program.names)
    for f in (build, summary, moments_of):
        patch.setitem(program.names, f.__name__, f)
    for name in ("drawn", "code_picture", "skips_picture", "average_picture"):
        patch.setitem(program.names, name, lambda *_: Figure(figsize=(1, 1)))


ROWS = {
    **BASICS,
    "--workers": (*WORKERS["--workers"][:2], {"workers": ([5, 5], [3, 3])}),
    "--data": ("", "--data=fashion", {"data": (["auto"] * 2, ["fashion"] * 2)}),
    "--data-dir": ("", "--data-dir=d", {"data_dir": ([None] * 2, ["d"] * 2)}),
    "--steps": ("", "--steps=9", {"config": DIFFERS, "printed": DIFFERS}),
    "--channels": ("", "--channels=8", {"network": DIFFERS}),
    "--sample-steps": ("", "--sample-steps=9", {"recipe": ([((8, 8, 1), 20)] * 2, [((8, 8, 1), 9)] * 2)}),
    "--seed": (
        "",
        "--seed=7",
        {"config": DIFFERS, "held_out": DIFFERS}
        | dict.fromkeys(("data_seed", "noise_seed", "weights_seed"), ([0, 0], [7, 7])),
    ),
    "--out": ("", "--out=x", {"files": DIFFERS, "printed": DIFFERS}),
}
