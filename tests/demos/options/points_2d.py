"""The options of points_2d.py: what is trained, drawn and compared is noted, and nothing is."""

from types import SimpleNamespace

from option_rows import BASICS, DIFFERS
from recorder import LabelIsNoise

from tinydiff.backend import default_rng
from tinydiff.diffusion import Schedule, straight
from tinydiff.diffusion.targets import TARGETS

WORDS = "--data=spiral --num=4"


def stand_ins(program, notes, patch):
    def net(seed):
        notes.add(weights_seed=seed)
        return LabelIsNoise(seed=seed)

    def training_of(pool, points, schedule, target, num_steps, batch_size, seed):
        notes.add(trained_signal=schedule.alpha_bar[-1])
        notes.add(points=points.__name__, target=target, steps=num_steps, batch_size=batch_size, batch_seed=seed)
        return SimpleNamespace(step=num_steps, ema=SimpleNamespace(average=[p.data for p in pool.parameters]))

    def finish(state, pool, path, settings, resume, name):
        notes.add(settings=settings, resume=resume)
        path.write_bytes(b"")

    def flows_of(pool, schedule, target, sample_steps, num, seed):
        notes.add(drawn_signal=schedule.alpha_bar[-1])
        notes.add(drawn_target=target, sample_steps=sample_steps, num=num, noise_seed=seed)
        x = default_rng("stand-in").standard_normal((num, 2))
        return {"ddim": [(2, x), (0, x)], "ddpm": [(2, x), (0, x)]}

    def held_out(points, num, seed):
        notes.add(held_out=(points.__name__, num, seed))
        return points(default_rng(0), num), points(default_rng(1), num)

    for f in (training_of, finish, flows_of, held_out):
        patch.setitem(program.names, f.__name__, f)
    patch.setitem(program.names, "PointNet", net)
    patch.setitem(program.names, "moments_of", lambda *_: [])
    patch.setitem(program.names, "portrait", lambda flow, moments, samples, real, title, verdict: title)
    patch.setitem(program.names, "save_figure", lambda path, title, colours: notes.add(title=title))
    patch.setitem(program.names, "save_film", lambda *_: None)
    patch.setitem(program.names, "time", SimpleNamespace(monotonic=lambda: 0.0))


def title(target="eps", steps="6,000"):
    return f"spiral: target {target}, {steps} training steps"


SIGNAL = (Schedule.linear().alpha_bar[-1], straight().alpha_bar[-1])  # by which the schedules are told apart
SETTINGS = {"settings": DIFFERS, "printed": DIFFERS, "returned": DIFFERS}
WRITTEN = {"printed": DIFFERS, "files": (["runs/points_2d/results.csv"], ["x/results.csv"])}
ROWS = {
    **BASICS,
    "--workers": ("", "--workers=3", {"workers": (2, 3)}),
    "--data": (
        "",
        "--data=moons",
        {
            "points": ("spiral", "moons"),
            "held_out": (("spiral", 4, 0), ("moons", 4, 0)),
            "title": (title(), "moons: target eps, 6,000 training steps"),
            "settings": DIFFERS,
            "printed": DIFFERS,
            "returned": DIFFERS,
        },
    ),
    "--target": [
        (
            "",
            f"--target={name}",
            {
                "target": (TARGETS["eps"], TARGETS[name]),
                "drawn_target": (TARGETS["eps"], TARGETS[name]),
                "title": (title(), title(name)),
                **SETTINGS,
            }
            | more,
        )
        for name, more in (("v", {}), ("flow", {"trained_signal": SIGNAL, "drawn_signal": SIGNAL}))
    ],
    "--steps": ("", "--steps=9", {"steps": (6000, 9), "title": (title(), title(steps="9")), **SETTINGS}),
    "--batch-size": ("", "--batch-size=9", {"batch_size": (256, 9), "settings": DIFFERS}),
    "--sample-steps": ("", "--sample-steps=9", {"sample_steps": (200, 9)}),
    "--num": (
        "",
        "--num=5",
        {
            "num": (4, 5),
            "held_out": (("spiral", 4, 0), ("spiral", 5, 0)),
            "printed": DIFFERS,
            "returned": DIFFERS,
        },
    ),
    "--seed": (
        "",
        "--seed=7",
        {
            "weights_seed": (0, 7),
            "batch_seed": (0, 7),
            "noise_seed": (0, 7),
            "held_out": (("spiral", 4, 0), ("spiral", 4, 7)),
            **SETTINGS,
        },
    ),
    "--out": ("", "--out=x", WRITTEN),
    "--resume": ("", "--resume", {"resume": (False, True)}),
}
