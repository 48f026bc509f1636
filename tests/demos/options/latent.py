"""The options of latent.py: what is trained, loaded and compared is noted, and nothing is."""

from types import SimpleNamespace

import numpy as np
from option_rows import BASICS, DIFFERS, WORKERS
from recorder import LabelIsNoise, note_data, note_pictures

from tinydiff.app import checkpoint
from tinydiff.app.alone import OneProcess

WORDS = "--num=10"


def stand_ins(program, notes, patch):
    def train_both(path, dataset, coder_config, coder_minutes, unet_config, config, ranks, workers, resume):
        notes.add(trained=str(path), coder_minutes=coder_minutes, minutes=config.minutes, batch_size=config.batch_size)
        notes.add(train_seed=config.seed, dataset=dataset.name, train_workers=workers, resume=resume)

    def load_latent(path, workers):
        notes.add(source=str(path), workers=workers)
        coder = SimpleNamespace(pool=OneProcess(LabelIsNoise))
        return SimpleNamespace(pool=coder.pool), coder, {"data": {"name": "glyphs"}}

    def load_pixel(path, workers):
        notes.add(pixel=str(path), pixel_workers=workers)
        return SimpleNamespace(pool=OneProcess(LabelIsNoise))

    def load_classifier(path, workers, data):
        notes.add(classifier=str(path), judge_workers=workers)
        return OneProcess(LabelIsNoise), {}

    def compare(spaces, coder, judge_pool, test, batch_size, *, num, steps, scale, seed):
        notes.add(spaces=list(spaces), timed_batch=batch_size, num=num, steps=steps, scale=scale, seed=seed)
        return [{"measured": "a", "latent": "1"}], (["x"], (np.zeros((10, 4, 4, 1)),), "title")

    for f in (train_both, load_latent, load_pixel, load_classifier, compare):
        patch.setitem(program.names, f.__name__, f)
    patch.setitem(program.names, "load_kind", lambda path, kind: notes.add(**{f"opened {kind}": str(path)}) or ({}, {}))
    patch.setitem(program.names, "check_num", lambda test, num: None)
    patch.setitem(program.names, "check_reads", lambda *_: None)
    patch.setattr(checkpoint, "set_aside_run", lambda out, names: notes.add(set_aside=f"{out}/{names[-1]}"))
    note_data(notes, patch, program.names)
    note_pictures(notes, patch)


FILES = (["runs/latent/latent.md"], ["x/latent.md"])
CHECKPOINTS = ("runs/latent/checkpoint.npz", "x/checkpoint.npz")
UNTRAINED = dict.fromkeys(["trained", "coder_minutes", "minutes", "batch_size", "train_seed", "dataset"], DIFFERS)
UNTRAINED |= dict.fromkeys(["train_workers", "resume", "set_aside", "data"], DIFFERS)
ROWS = {
    **BASICS,
    "--workers": (
        *WORKERS["--workers"][:2],
        {"workers": (5, 3), "train_workers": (5, 3), "judge_workers": (5, 3), "printed": DIFFERS},
    ),
    "--from": (
        "",
        "--from=a.npz",
        {
            **UNTRAINED,
            "data_dir": ([None] * 3, None),
            "data_seed": ([0] * 3, 0),
            "num_images": DIFFERS,
            "opened latent": (None, "a.npz"),
            "source": (CHECKPOINTS[0], "a.npz"),
            "printed": DIFFERS,
        },
    ),
    "--pixel": (
        "",
        "--pixel=a.npz",
        {
            "opened diffusion": (None, "a.npz"),
            "pixel": (None, "a.npz"),
            "pixel_workers": (None, 5),
            "spaces": (["latent"], ["pixel", "latent"]),
        },
    ),
    "--classifier": (
        "",
        "--classifier=a.npz",
        {
            "opened classifier": ("runs/classifier/checkpoint.npz", "a.npz"),
            "classifier": ("runs/classifier/checkpoint.npz", "a.npz"),
        },
    ),
    "--data": (
        "",
        "--data=fashion",
        {"data": (["auto", "glyphs", "glyphs"], ["fashion", "fashion", "glyphs"]), "dataset": ("glyphs", "fashion")},
    ),
    "--data-dir": ("", "--data-dir=d", {"data_dir": ([None] * 3, ["d"] * 3)}),
    "--autoencoder-minutes": ("", "--autoencoder-minutes=2", {"coder_minutes": (4.0, 2.0)}),
    "--minutes": ("", "--minutes=60", {"minutes": (8.0, 60.0)}),
    "--batch-size": ("", "--batch-size=9", {"batch_size": (64, 9), "timed_batch": (64, 9)}),
    "--num": ("", "--num=20", {"num": (10, 20), "printed": DIFFERS}),  # of ten a spread cannot be measured
    "--sample-steps": ("", "--sample-steps=9", {"steps": (50, 9)}),
    "--scale": ("", "--scale=1", {"scale": (2.0, 1.0)}),
    "--seed": ("", "--seed=7", {"train_seed": (0, 7), "seed": (0, 7), "data_seed": ([0] * 3, [7] * 3)}),
    "--out": (
        "",
        "--out=x",
        {
            "trained": CHECKPOINTS,
            "source": CHECKPOINTS,
            "set_aside": CHECKPOINTS,
            "files": FILES,
            "save_grid path": ("runs/latent/latent.png", "x/latent.png"),
            "printed": DIFFERS,
        },
    ),
    "--resume": ("", "--resume", {"resume": (False, True)}),
}
