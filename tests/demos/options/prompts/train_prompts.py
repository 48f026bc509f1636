"""The options of train_prompts.py: a run of no steps, whose last pictures are noted."""

from dataclasses import asdict

from option_rows import BASICS, DIFFERS
from recorder import note_data, note_network, note_training

from tinydiff.app import checkpoint, run, training
from tinydiff.diffusion import Schedule
from tinydiff.train import TrainConfig

WORDS = "--num-images=30"


def stand_ins(program, notes, patch):
    captions = program.names

    def run_of_no_steps(state, ranks, save, save_every):
        notes.add(save_every=save_every)
        note_training(notes, state)

    def load_if_there(path, kind):
        notes.add(asked_for=(str(path), kind))
        model = {"encoder": {"num_words": len(captions["VOCABULARY"]), "max_length": 16}, "unet": {"base_channels": 32}}
        config = TrainConfig(num_steps=run.UNLIMITED, minutes=18.0)
        meta = {"model": model, "data": {"name": "glyphs", "source": "a source", "num": 30}, "train": asdict(config)}
        meta |= {"vocabulary": captions["VOCABULARY"], "held_out": captions["HELD_OUT"], "num_images": 30}
        return {"schedule/beta": Schedule.cosine().beta}, meta | {"num_workers": 1}

    def final_pictures(state, pool, dataset, recipe, out):
        notes.add(pictures=str(out), num_steps_of_pictures=recipe.num_steps, name=dataset.name)

    patch.setattr(run, "run", run_of_no_steps)
    patch.setattr(run, "load_if_there", load_if_there)
    patch.setattr(training, "restore", lambda state, path, *_: notes.add(restored=str(path)))
    patch.setattr(checkpoint, "set_aside_run", lambda out, names: notes.add(set_aside=f"{out}/{names[-1]}"))
    patch.setitem(program.names, "final_pictures", final_pictures)
    note_data(notes, patch, vars(run))
    note_network(program.names, notes, patch, "build")


BATCH = {"x_0": DIFFERS, "batch.x_t": DIFFERS, "batch.labels": DIFFERS}
NOISE = {"t": DIFFERS, "eps": DIFFERS, "batch.t": DIFFERS, "batch.target": DIFFERS}
ROWS = {
    **BASICS,
    "--workers": [
        ("", "--workers=3", {"workers": (5, 3), "printed": DIFFERS}),
        ("--resume", "--resume --workers=3", {"workers": (1, 3), "printed": DIFFERS}),  # 1 before the stop
    ],
    "--steps": (
        "",
        "--steps=7",
        {"num_steps": (run.UNLIMITED, 7), "config.num_steps": (run.UNLIMITED, 7), "config.minutes": (18.0, None)},
    ),
    "--minutes": ("", "--minutes=60", {"config.minutes": (18.0, 60.0)}),  # not cut at any number of steps
    "--data": ("", "--data=mnist", {"data": ("auto", "mnist"), "name": ("glyphs", "mnist")}),
    "--data-dir": [
        ("", "--data-dir=d", {"data_dir": (None, "d")}),
        ("--resume", "--resume --data-dir=d", {"data_dir": (None, "d")}),
    ],
    "--batch-size": [
        ("", "--batch-size=9", {**BATCH, **NOISE, "config.batch_size": (64, 9)}),
        (  # a worker has at least one image of a batch
            "",
            "--batch-size=3",
            {**BATCH, **NOISE, "config.batch_size": (64, 3), "workers": (5, 3), "printed": DIFFERS},
        ),
    ],
    "--channels": ("", "--channels=8", {"network": DIFFERS}),
    "--num-images": ("", "--num-images=20", {**BATCH, "num_images": (30, 20), "printed": DIFFERS}),
    "--seed": ("", "--seed=1", {**BATCH, **NOISE, "config.seed": (0, 1), "data_seed": (0, 1), "weights": DIFFERS}),
    "--save-every": ("", "--save-every=9", {"save_every": (100, 9)}),
    "--sample-steps": ("", "--sample-steps=9", {"num_steps_of_pictures": (50, 9)}),
    "--out": (
        "",
        "--out=x",
        {
            "pictures": ("runs/prompts", "x"),
            "set_aside": ("runs/prompts/checkpoint.npz", "x/checkpoint.npz"),
            "printed": DIFFERS,
        },
    ),
    "--resume": (
        "--workers=1 --data=glyphs",
        "--workers=1 --data=glyphs --resume",
        {
            "asked_for": (None, ("runs/prompts/checkpoint.npz", "prompts")),
            "restored": (None, "runs/prompts/checkpoint.npz"),
            "batch.x_t": DIFFERS,  # of the checkpoint's own schedule
            "set_aside": ("runs/prompts/checkpoint.npz", None),
        },
    ),
}
