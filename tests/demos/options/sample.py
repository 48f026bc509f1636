"""The options of sample.py: generate draws with a sampler that notes what it is given."""

from option_rows import BASICS, DIFFERS, WORKERS
from recorder import SCHEDULE, WEAK, note_pictures, note_sampler, note_trained, pair_of_labels

from tinydiff.app import choices, generate
from tinydiff.diffusion import ddim_step, ddpm_step, log_snr_pairs, quadratic_pairs, timestep_pairs

ARGUMENTS = {"checkpoint": "c.npz"}
WORDS = "--num=4 --steps=3"
BEST = choices.SCALE, 1.0
GUIDED = choices.guidance(pair_of_labels(), None, None)[1]  # the default, in words


def stand_ins(program, notes, patch):
    note_trained(program, notes, patch, name="load_guided")
    note_sampler(notes, patch, vars(generate))
    note_pictures(notes, patch)


def title(how):
    return f"glyphs, 7 steps, {how}"


IMAGES = {"x_T": DIFFERS, "noise": DIFFERS, "save_grid": DIFFERS}
NO_LABEL = 10.0  # what LabelIsNoise returns without a label


def eps_hat(scale, auto, n=4):
    """eps_hat of the first n labels: auto (10 + scale (label - 10)) + (1 - auto) (label + WEAK)."""
    return [auto * (NO_LABEL + scale * (k - NO_LABEL)) + (1 - auto) * (k + WEAK) for k in range(n)]


ROWS = {
    **BASICS,
    **WORKERS,
    "checkpoint": ("a.npz", "b.npz", {"checkpoint": ("a.npz", "b.npz")}),
    "--parallel": ("", "--parallel=mpi", {"parallel": ("local", "mpi")}),
    "--num": (
        "--num=2",
        "--num=3",
        # The noise of the first image stays: image i is the same for every --num.
        {"x_T": DIFFERS, "save_grid": DIFFERS, "eps_hat": (eps_hat(*BEST, 2), eps_hat(*BEST, 3))}
        | {"printed": DIFFERS},
    ),
    "--labels": (
        "--scale=1",
        "--scale=1 --labels=7,3",
        {"eps_hat": ([0.0, 1.0, 2.0, 3.0], [7.0, 3.0, 7.0, 3.0]), "save_grid": DIFFERS},
    ),
    "--scale": [  # alone it is classifier-free guidance alone
        (
            "",
            "--scale=3",
            {
                "eps_hat": (eps_hat(*BEST), eps_hat(3, 1)),
                "save_grid title": (title(f"ddpm 3, {GUIDED}"), title("ddpm 3, guidance 3")),
            },
        ),
        (
            "--scale=0 --auto=3",
            "--scale=2 --auto=3",
            {
                "eps_hat": (eps_hat(0, 3), eps_hat(2, 3)),
                "save_grid title": tuple(title(f"ddpm 3, guidance {s}, autoguidance 3") for s in (0, 2)),
            },
        ),
    ],
    "--auto": [  # alone it is autoguidance alone
        (
            "",
            "--auto=3",
            {
                "eps_hat": (eps_hat(*BEST), eps_hat(1, 3)),
                "save_grid title": (title(f"ddpm 3, {GUIDED}"), title("ddpm 3, autoguidance 3")),
            },
        ),
        (
            "--scale=2",
            "--scale=2 --auto=3",
            {
                "eps_hat": (eps_hat(2, 1), eps_hat(2, 3)),
                "save_grid title": (title("ddpm 3, guidance 2"), title("ddpm 3, guidance 2, autoguidance 3")),
            },
        ),
    ],
    "--sampler": [
        (
            "",
            "--sampler=ddim",
            {
                "step": (ddpm_step, ddim_step),
                "step_settings": ({"clip": True}, {"clip": True, "eta": 0.0}),
                "save_grid title": (title(f"ddpm 3, {GUIDED}"), title(f"ddim 3, {GUIDED}")),
            },
        ),
        (
            "--sampler=ddpm",
            "--sampler=2m",
            {
                "step": (ddpm_step, "dpm_solver_2m"),
                "save_grid title": (title(f"ddpm 3, {GUIDED}"), title(f"2m 3, {GUIDED}")),
            },
        ),
    ],
    "--times": [
        ("", "--times=quadratic", {"pairs": (timestep_pairs(100, 3), quadratic_pairs(100, 3))}),
        ("--times=uniform", "--times=logsnr", {"pairs": (timestep_pairs(100, 3), log_snr_pairs(SCHEDULE, 3))}),
    ],
    "--steps": (
        "--steps=2",
        "--steps=5",
        {
            "pairs": (timestep_pairs(100, 2), timestep_pairs(100, 5)),
            "save_grid title": (title(f"ddpm 2, {GUIDED}"), title(f"ddpm 5, {GUIDED}")),
        },
    ),
    "--seed": ("", "--seed=1", {**IMAGES}),
    "--out": (
        "",
        "--out=x.png",
        {"save_grid path": ("runs/samples.png", "x.png"), "printed": DIFFERS},
    ),
    "--save-npz": ("", "--save-npz=a.npz", {"files": ([], ["a.npz"]), "printed": DIFFERS}),
}
