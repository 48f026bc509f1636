"""The arguments of exercise.py: which action does what to which exercise."""

from option_rows import DIFFERS

ARGUMENTS = {"action": "start", "name": "ema"}
WORDS = ""


def stand_ins(program, notes, patch):
    for name in ("show_list", "hint", "solution"):
        patch.setitem(program.names, name, lambda *given, name=name: notes.add(action=name, given=given))
    patch.setitem(
        program.names,
        "start",
        lambda exercise, folder, fresh: notes.add(action="start", given=(exercise, folder), fresh=fresh),
    )
    patch.setitem(program.names, "progress", lambda exercise, folder: {"hints": 0, "solved": False})


ROWS = {
    "action": ("hint", "solution", {"action": ("hint", "solution")}),
    "name": ("ema", "conv2d", {"given": DIFFERS}),
    "--fresh": ("", "--fresh", {"fresh": (False, True)}),
    "--dir": ("", "--dir=x", {"given": DIFFERS}),
}
