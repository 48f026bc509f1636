"""The options of waves_1d.py: what is trained, drawn and compared is noted, and nothing is."""

from types import SimpleNamespace

import numpy as np
from matplotlib.figure import Figure
from option_rows import BASICS, DIFFERS, WORKERS
from recorder import LabelIsNoise

WORDS = "--num=2"


def stand_ins(program, notes, patch):
    def net(seed):
        notes.add(weights_seed=seed)
        return LabelIsNoise(seed=seed)

    def training_of(pool, schedule, num_steps, batch_size, seed):
        notes.add(steps=num_steps, batch_size=batch_size, batch_seed=seed)
        return SimpleNamespace(step=num_steps, ema=SimpleNamespace(average=[p.data for p in pool.parameters]))

    def finish(state, pool, path, settings, resume, name):
        notes.add(settings=settings, resume=resume)
        path.write_bytes(b"")

    def draw_each(pool, schedule, sample_steps, num, seed):
        notes.add(sample_steps=sample_steps, num=num, noise_seed=seed)
        return np.ones((3, 1, 1024))

    def held_out(num, seed):
        notes.add(held_out=(num, seed))
        return np.ones((2, 3, 1, 1024))

    def portrait(real, drawn, rows, title):
        notes.add(title=title)
        return Figure(figsize=(1, 1))

    for f in (training_of, finish, draw_each, held_out, portrait):
        patch.setitem(program.names, f.__name__, f)
    patch.setitem(program.names, "WaveNet", net)
    patch.setitem(program.names, "time", SimpleNamespace(monotonic=lambda: 0.0))


def title(steps="1,500", sample_steps=200):
    return f"three timbres: {steps} training steps, {sample_steps} DDPM steps"


FILES = ["results.csv", "waves_1d.png", "waves_1d.wav"]
ROWS = {
    **BASICS,
    "--workers": (*WORKERS["--workers"][:2], {"workers": (5, 3)}),
    "--steps": (
        "",
        "--steps=9",
        {"steps": (1500, 9), "title": (title(), title("9")), "settings": DIFFERS},
    ),
    "--batch-size": ("", "--batch-size=9", {"batch_size": (64, 9), "settings": DIFFERS}),
    "--sample-steps": (
        "",
        "--sample-steps=9",
        {"sample_steps": (200, 9), "title": (title(), title(sample_steps=9))},
    ),
    "--num": ("", "--num=3", {"num": (2, 3), "held_out": ((2, 0), (3, 0)), "printed": DIFFERS}),
    "--seed": (
        "",
        "--seed=7",
        {
            "weights_seed": (0, 7),
            "batch_seed": (0, 7),
            "noise_seed": (0, 7),
            "held_out": ((2, 0), (2, 7)),
            "settings": DIFFERS,
        },
    ),
    "--out": (
        "",
        "--out=x",
        {"printed": DIFFERS, "files": ([f"runs/waves_1d/{name}" for name in FILES], [f"x/{name}" for name in FILES])},
    ),
    "--resume": ("", "--resume", {"resume": (False, True)}),
}
