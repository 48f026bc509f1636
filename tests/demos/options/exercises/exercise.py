"""The arguments of exercise.py: which action does what to which exercise."""

from option_rows import DIFFERS

ARGUMENTS = {"action": "", "name": ""}  # an option goes with one action only, so each row names its action
WORDS = ""


def stand_ins(program, notes, patch):
    for name in ("show_list", "hint", "solution", "answer"):
        patch.setitem(program.names, name, lambda *given, name=name: notes.add(action=name, given=given))
    patch.setitem(
        program.names,
        "start",
        lambda exercise, folder, fresh: notes.add(action="start", given=(exercise, folder), fresh=fresh),
    )

    def see(exercise, folder, checkpoint):
        notes.add(action="see", given=(exercise, folder), checkpoint=checkpoint)
        return True

    patch.setitem(program.names, "see", see)
    patch.setitem(program.names, "progress", lambda exercise, folder: {"hints": 0, "solved": False})


ROWS = {
    "action": [
        ("hint ema", "solution ema", {"action": ("hint", "solution")}),
        ("hint ema", "answer ema", {"action": ("hint", "answer"), "given": DIFFERS}),
    ],
    "name": ("start ema", "start conv2d", {"given": DIFFERS}),
    "--fresh": ("start ema", "start ema --fresh", {"fresh": (False, True)}),
    "--checkpoint": ("see ema", "see ema --checkpoint=c.npz", {"checkpoint": (None, "c.npz")}),
    "--dir": ("start ema", "start ema --dir=x", {"given": DIFFERS}),
}
