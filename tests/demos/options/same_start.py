"""The options of same_start.py: each eta's pictures come from a sampler that notes what it is given."""

from option_rows import BASICS, DIFFERS
from recorder import note_pictures, note_sampler, note_trained

from tinydiff.diffusion import timestep_pairs

ARGUMENTS = {"checkpoint": "c.npz"}
WORDS = "--num=2 --steps=3"


def stand_ins(program, notes, patch):
    note_trained(program, notes, patch)
    note_sampler(notes, patch, program.names)
    note_pictures(notes, patch)


def title(how):
    return f"glyphs: one x_T, {how}"


IMAGES = {"x_T": DIFFERS, "save_grid": DIFFERS}
ROWS = {
    **BASICS,
    "--workers": ("", "--workers=3", {"workers": (4, 3)}),  # the default has no more workers than etas
    "checkpoint": ("a.npz", "b.npz", {"checkpoint": ("a.npz", "b.npz")}),
    "--label": [
        (
            "",
            "--label=7",
            {
                "eps_hat": ([[10.0] * 2] * 4, [[4.0] * 2] * 4),  # no label is 10; guided it is 10 + 2 (7 - 10)
                "save_grid title": (title("3 steps, no label"), title("3 steps, label 7, guidance 2")),
            },
        ),
        ("--label=3 --scale=1", "--label=0 --scale=1", {"eps_hat": DIFFERS, "save_grid title": DIFFERS}),
    ],
    "--scale": (
        "--label=7 --scale=1",
        "--label=7 --scale=3",
        {
            "eps_hat": ([[7.0] * 2] * 4, [[1.0] * 2] * 4),
            "save_grid title": (title("3 steps, label 7, guidance 1"), title("3 steps, label 7, guidance 3")),
        },
    ),
    "--num": ("", "--num=4", {**IMAGES, "eps_hat": ([[10.0] * 2] * 4, [[10.0] * 4] * 4)}),
    "--steps": (
        "--steps=2",
        "--steps=1",
        {
            "pairs": ([timestep_pairs(100, 2)] * 4, [timestep_pairs(100, 1)] * 4),
            "save_grid title": (title("2 steps, no label"), title("1 step, no label")),
        },
    ),
    "--seed": ("", "--seed=1", {**IMAGES, "noise": DIFFERS}),
    "--out": (
        "",
        "--out=x",
        {"save_grid path": ("runs/same_start/same_start.png", "x/same_start.png"), "printed": DIFFERS},
    ),
}
