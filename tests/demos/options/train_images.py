"""The options of train_images.py."""

import job_rows
from job_rows import GUIDED, LOSS, between, titles
from option_rows import DIFFERS

ARGUMENTS = {"data": "glyphs"}
WORDS, stand_ins = job_rows.WORDS, job_rows.stand_ins
BOTH = job_rows.rows("runs/images")
ROWS = BOTH | {
    "data": (
        "glyphs",
        "photos",
        {"data": ("glyphs", "photos"), "loss_title": (f"{LOSS} eps", f"{LOSS} eps".replace("glyphs", "photos"))}
        | between(titles(), titles("step 0 of 2,000, photos", f"photos, 0 steps, {GUIDED}")),
    ),
    "--resume": (*BOTH["--resume"][:2], BOTH["--resume"][2] | {"size": (None, 8)}),
    "--size": ("", "--size=12", {"size": (None, 12)}),
    # The same pictures, labels, times and noise; some pictures are mirrored.
    "--flip": ("", "--flip", {"x_0": DIFFERS, "batch.x_t": DIFFERS}),
}
