"""The options of frontier.py: the sampler notes what each point is drawn with, and the judge what it is shown."""

from functools import partial

from matplotlib.figure import Figure
from option_rows import BASICS, DIFFERS
from recorder import LabelIsNoise, note_data, note_sampler, note_trained

from tinydiff.app import generate
from tinydiff.app.alone import OneProcess
from tinydiff.diffusion import timestep_pairs

ARGUMENTS = {"checkpoint": "c.npz"}
WORDS = "--num=10 --steps=3 --scales=1,2"


def stand_ins(program, notes, patch):
    class Judge:
        def __init__(self, pool, test, num):
            notes.add(of=num)
            self.num, self.real = num, {"right": num, "frechet": 0.5, "coverage": 1.0, "spread": 2.0}

        def __call__(self, images, labels):
            return {"right": len(images), "frechet": 1.0, "coverage": 0.5, "spread": 1.0}

    def load_classifier(path, workers, data):
        notes.add(classifier=str(path), judge_workers=workers)
        return OneProcess(LabelIsNoise), {}

    note_trained(program, notes, patch, name="load_guided")
    note_data(notes, patch, program.names)
    load_guided = program.names["load_guided"]

    def with_seed(*args):
        pool, schedule, meta = load_guided(*args)
        return pool, schedule, meta | {"train": {"seed": 5}}

    patch.setitem(program.names, "load_guided", with_seed)
    patch.setitem(program.names, "check_num", lambda *_: None)
    for f in (Judge, load_classifier):
        patch.setitem(program.names, f.__name__, f)
    patch.setattr(program.names["time"], "monotonic", lambda: 1.0)
    patch.setitem(program.names, "picture", lambda *_: Figure())
    note_sampler(notes, patch, vars(generate))


def each(num, value):
    """What every one of the points notes."""
    return [value] * num


OTHER = {"files": DIFFERS, "printed": DIFFERS, "returned": DIFFERS}
MORE = OTHER | dict.fromkeys(("step", "step_settings", "pairs", "x_T", "noise", "eps_hat"), DIFFERS)
PAIRS = partial(timestep_pairs, 100)
ROWS = {
    **BASICS,
    "checkpoint": ("a.npz", "b.npz", {"checkpoint": ("a.npz", "b.npz")}),
    "--classifier": ("", "--classifier=j", {"classifier": ("runs/classifier/checkpoint.npz", "j")}),
    "--num": (
        "",
        "--num=20",
        {"of": (10, 20), "x_T": DIFFERS, "eps_hat": DIFFERS, "printed": DIFFERS} | {"returned": DIFFERS},
    ),
    "--scales": ("", "--scales=1,3", OTHER | {"eps_hat": DIFFERS}),
    "--autos": ("", "--autos=1,1.5,4", OTHER | {"eps_hat": DIFFERS}),
    "--interval": ("", "--interval", MORE),
    "--steps": ("", "--steps=2", {"pairs": (each(6, PAIRS(3)), each(6, PAIRS(2))), "printed": DIFFERS}),
    "--seed": ("", "--seed=1", {"x_T": DIFFERS, "noise": DIFFERS, "printed": DIFFERS}),
    "--data-dir": ("", "--data-dir=d", {"data_dir": (None, "d")}),
    "--out": ("", "--out=x", {"files": DIFFERS, "printed": DIFFERS}),
    "--workers": ("", "--workers=3", {"workers": (5, 3), "judge_workers": (5, 3)}),
}
