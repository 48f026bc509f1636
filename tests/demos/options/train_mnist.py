"""The options of train_mnist.py."""

import job_rows
from job_rows import GUIDED, LOSS, between, titles

WORDS, stand_ins = f"{job_rows.WORDS} --data=glyphs", job_rows.stand_ins
ROWS = job_rows.rows("runs/mnist") | {
    "--data": (
        "--data=glyphs",
        "--data=fashion",
        {"data": ("glyphs", "fashion"), "loss_title": (f"{LOSS} eps", f"{LOSS} eps".replace("glyphs", "fashion"))}
        | between(titles(), titles("step 0 of 2,000, fashion", f"fashion, 0 steps, {GUIDED}")),
    ),
}
