"""The options of overfit.py: what is trained, measured and drawn is noted, and nothing is."""

from types import SimpleNamespace

import numpy as np
from matplotlib.figure import Figure
from option_rows import BASICS, DIFFERS, WORKERS
from recorder import note_data, note_network

WORDS = "--few=2 --many=3 --num=2"


def stand_ins(program, notes, patch):
    def any_training(pool, losses_of, draw, config):
        batch = draw(config, 0)
        notes.add(steps=config.num_steps, batch_size=config.batch_size, train_seed=config.seed, warmup=config.warmup)
        notes.add(x_t=batch["x_t"], weights=pool.parameters[0].data)
        return SimpleNamespace(
            metrics=lambda: [[1.0, 2.0]], ema=SimpleNamespace(average=[p.data for p in pool.parameters])
        )

    def finish(state, pool, path, settings, resume, name):
        notes.add(settings=settings, resume=resume, name=name)
        path.write_bytes(b"")

    def mean_loss(pool, schedule, pictures, seed):
        notes.add(measured=len(pictures), loss_seed=seed)
        return 0.5

    def generate(pool, recipe, labels, seed):
        notes.add(sample_steps=recipe.num_steps, drawn=len(labels), noise_seed=seed)
        yield np.zeros((1, len(labels), 8, 8, 1), np.float32)

    for f in (any_training, finish, mean_loss, generate):
        patch.setitem(program.names, f.__name__, f)
    note_network(program.names, notes, patch, "build_unet")
    note_data(notes, patch, program.names)
    patch.setitem(program.names, "picture", lambda *_: Figure(figsize=(1, 1)))


def both(a, b):
    """The values a and b of an option, noted once for each network."""
    return [a] * 2, [b] * 2


SIZE = {
    "measured": DIFFERS,
    "settings": DIFFERS,
    "name": DIFFERS,
    "x_t": DIFFERS,
    "printed": DIFFERS,
    "returned": DIFFERS,
}
ROWS = {
    **BASICS,
    "--workers": (*WORKERS["--workers"][:2], {"workers": both(5, 3)}),
    "--data": ("", "--data=fashion", {"data": ("auto", "fashion"), "settings": DIFFERS}),
    "--data-dir": ("", "--data-dir=d", {"data_dir": (None, "d")}),
    "--few": ("", "--few=1", SIZE),
    "--many": ("", "--many=4", SIZE | {"num_images": (6, 8)}),
    "--steps": (
        "",
        "--steps=40",
        {"steps": both(800, 40), "warmup": both(100, 10), "settings": DIFFERS, "printed": DIFFERS},
    ),
    "--batch-size": ("", "--batch-size=9", {"batch_size": both(16, 9), "x_t": DIFFERS, "settings": DIFFERS}),
    "--channels": ("", "--channels=8", {"network": DIFFERS, "settings": DIFFERS}),
    "--sample-steps": ("", "--sample-steps=9", {"sample_steps": both(50, 9), "printed": DIFFERS}),
    "--num": ("", "--num=3", {"drawn": both(2, 3), "printed": DIFFERS, "returned": DIFFERS}),
    "--seed": (
        "",
        "--seed=7",
        {
            "data_seed": (0, 7),
            "train_seed": both(0, 7),
            "noise_seed": both(0, 7),
            "loss_seed": ([0] * 4, [7] * 4),
            "weights": DIFFERS,
            "x_t": DIFFERS,
            "settings": DIFFERS,
        },
    ),
    "--out": (
        "",
        "--out=x",
        {
            "files": (["runs/overfit/overfit.csv", "runs/overfit/overfit.png"], ["x/overfit.csv", "x/overfit.png"]),
            "printed": DIFFERS,
        },
    ),
    "--resume": ("", "--resume", {"resume": both(False, True)}),
}
