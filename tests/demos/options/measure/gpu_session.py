"""The options of demos/measure/gpu_session.py: each part notes what it gets and answers at once."""

from types import SimpleNamespace

from option_rows import DIFFERS

WORDS = ""
ORDER = ["conditions", "cases", "recorded", "registers", "default_run", "read_as_asked", "benchmark", "suite"]


def stand_ins(program, notes, patch):
    def timed(name, backend, out, limit):
        notes.add(part=name, backend=backend, folder=str(out), limit=round(limit))
        return {"seconds": 0.0, "why": None, "figures": {}}

    patch.setitem(program.names, "timed", timed)
    patch.setitem(program.names, "time", SimpleNamespace(monotonic=lambda: 0.0))
    patch.setattr(program.names["gpu_parts"], "lines", lambda name, figures: [])
    patch.setattr(program.names["gpu_parts"], "goals", lambda figures: [])


SOME = ["conditions", "cases", "suite"]
LIMITS = [60, 90, 90, 60, 120, 90, 300, 600]
ROWS = {
    "--backend": ("", "--backend=numpy", {"backend": (["cupy"] * 8, ["numpy"] * 8)}),
    "--parts": (
        "",
        "--parts=suite,cases",
        {
            "part": (ORDER, SOME),
            "backend": (["cupy"] * 8, ["cupy"] * 3),
            "limit": (LIMITS, [60, 90, 600]),
            "folder": (["runs/gpu_session"] * 8, ["runs/gpu_session"] * 3),
            "returned": DIFFERS,
            "printed": DIFFERS,
        },
    ),
    "--minutes": ("", "--minutes=1", {"limit": (LIMITS, [60] * 8)}),
    "--out": (
        "",
        "--out=a",
        {
            "folder": (["runs/gpu_session"] * 8, ["a"] * 8),
            "files": (
                ["runs/gpu_session/report.json", "runs/gpu_session/report.txt"],
                ["a/report.json", "a/report.txt"],
            ),
            "printed": DIFFERS,
        },
    ),
}
