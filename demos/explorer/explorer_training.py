"""The training that made a checkpoint, as the files beside it tell: the loss, and samples on the way.

train_mnist.py and train_images.py write both files: metrics.csv has a row for each step, and progress/ a picture of
samples every 250 steps, always from the same noise.
Read next: training.js.
"""

import base64
import io
import re

import numpy as np
from PIL import Image

WINDOWS = 60  # points of a curve
PICTURES = 8
GREYS = 16


def training(folder, T):
    """{"steps": [...], "loss": {curve: [...]}, "samples": [[step, picture], ...]}, or None without both files.

    Each value of a curve is a mean of the steps since the value before.  The curves: all t, and each quarter of 1..T.
    A step without an example of a quarter counts for the other curves only; None is a mean of no example.
    """
    metrics, pictures = folder / "metrics.csv", sorted((folder / "progress").glob("step_*.png"))
    if not metrics.is_file() or not pictures:
        return None
    table = np.atleast_1d(np.genfromtxt(metrics, delimiter=",", names=True))
    parts = np.array_split(np.arange(len(table)), min(WINDOWS, len(table)))
    ends = [k * T // 4 for k in range(5)]
    quarters = {f"t = {ends[k - 1] + 1} to {ends[k]}": f"loss_t_bucket_{k}" for k in range(1, 5)}
    names = {"all t": "loss"} | quarters
    loss = {name: [mean_of(table[column][part]) for part in parts] for name, column in names.items()}
    shown = [pictures[i] for i in np.unique(np.linspace(0, len(pictures) - 1, PICTURES).astype(int))]
    samples = [[int(re.findall(r"\d+", path.stem)[-1]), few_greys(path)] for path in shown]
    return {"steps": [int(table["step"][part[-1]]) for part in parts], "loss": loss, "samples": samples}


def mean_of(losses):
    """The mean of those that are not NaN, with 4 digits, or None if all are."""
    known = losses[np.isfinite(losses)]
    return float(f"{known.mean():.4g}") if len(known) else None


def few_greys(path):
    """A picture of a run as a .png of 16 colours, in base64."""
    file = io.BytesIO()
    with Image.open(path) as picture:
        picture.convert("RGB").quantize(GREYS).save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()
