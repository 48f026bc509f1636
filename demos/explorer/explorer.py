"""Write one HTML page that shows real runs of a checkpoint, where a reader can watch diffusion, play and predict.

    python demos/explorer/explorer.py runs/mnist/checkpoint.npz      some 2 minutes on 2 cores
    python demos/explorer/explorer.py runs/mnist/checkpoint.npz \\
        --classifier runs/classifier/checkpoint.npz
    python demos/explorer/explorer.py runs/mnist/checkpoint.npz --train-steps 400
    python demos/explorer/explorer.py runs/mnist/checkpoint.npz \\
        --classifier runs/classifier/checkpoint.npz \\
        --labels 0,2,3,5,7 --moments 21 --out demos/explorer/explorer.html

The last command made the page that is ready in this folder: open explorer.html.

A page opens from the disk, loads no other file and needs no internet.  The functions of the package draw and measure
what needs a network (explorer_runs.py); the page shows it, and computes the rest while one plays (diffusion.js,
steps.js).  page.html and the files beside it become one file, and renew.py writes a page anew after a change of them.
Beside each x_0_hat of the network stands the exact mean of --known training pictures, which needs no network.  With
--classifier each mistake also has the share of digits that is read as the label.  --train-steps adds the mistakes in
training, which take 5 minutes with 400 steps.  If the demo is stopped, nothing is kept.
Read next: explorer_runs.py.
"""

import json
import os
import re
from pathlib import Path

import explorer_runs as runs
import numpy as np
from explorer_training import training

from tinydiff.app import cli
from tinydiff.app.checkpoint import atomic_write
from tinydiff.app.choices import check_classes, check_labels
from tinydiff.app.classify import load_classifier
from tinydiff.app.generate import check_room, check_steps
from tinydiff.app.kinds import EVERY, data_name, data_size
from tinydiff.app.outputs import file_to_write
from tinydiff.app.trained import load_trained
from tinydiff.backend import TinydiffError
from tinydiff.data import load

PAGE = Path(__file__).parent
LOOK_AMONG = 500  # test images; at least two of each class are among them


def main(
    checkpoint,
    *,
    backend="numpy",
    precision=None,
    plain=False,
    labels=tuple(range(10)),
    sample_steps=(1, 2, 3, 5, 10, 50),
    moments=41,
    point_steps=2000,
    num=30,
    known=5000,
    classifier=None,
    train_steps=0,
    data_dir=None,
    seed=0,
    out="runs/explorer.html",
    workers=None,
):
    """Record the runs and write the page.  Returns the data of the page."""
    ranks = cli.start(backend, precision, plain=plain)
    out, workers = file_to_write("--out", out, ".html"), workers or ranks.default_workers()
    if moments < 3:
        raise TinydiffError(f"--moments {moments}: a time line needs 3 or more")
    if num < 10:
        raise TinydiffError(f"--num {num}: must be at least 10, which are shown")
    if known < 100:
        raise TinydiffError(f"--known {known}: must be at least 100, so that each class is among them")
    pool, schedule, meta = load_trained(Path(checkpoint), workers)
    reader = load_classifier(Path(classifier), 1, meta["data"])[0] if classifier else None
    with pool:
        name, shape, size = data_name(meta, EVERY), tuple(meta["data"]["image_shape"]), data_size(meta)
        check(checkpoint, pool.model, labels)
        check_steps(schedule.T, sample_steps=max(sample_steps))
        steps = tuple(sorted(sample_steps))
        check_room(num, shape)
        dataset = load(name, "test", data_dir, seed, LOOK_AMONG, **size)
        training_set = load(name, "train", data_dir, seed, None if train_steps else known, **size)
        known_images = training_set.batch(np.arange(min(known, len(training_set))))
        every = range(len(dataset.classes))
        (shown, _), (hidden, hidden_labels) = (dataset.batch(nth_of_each(dataset.labels, every, n)) for n in (0, 1))
        data = {
            "root": root_from(out),
            "about": f"{checkpoint}, {cli.counted(meta['step'], 'training step')} on {name}",
            "size": shape[:2],
            "classes": dataset.classes,
            "is_digits": dataset.classes[0] == "0",
            "is_grey": shape[2] == 1,
            "labels": labels,
            "forward": runs.forward(shown),
            "reverse": runs.reverse(pool, schedule, shape, labels, steps, (moments + 1) // 2, seed, known_images),
            "riddles": runs.riddles(pool, schedule, hidden, hidden_labels, min(16, moments), seed, known_images),
            "points": runs.points(point_steps, 400, moments, seed, min(2, workers)),
            "training": training(Path(checkpoint).parent, schedule.T),
            "mistakes": runs.mistakes(pool, reader, schedule, meta, max(steps), num, train_steps, training_set, seed),
        }
    return write(data, out)


def check(path, model, labels):
    """Raise TinydiffError if the page cannot show this network or these labels."""
    check_classes(path, model)
    check_labels(model, labels=labels)


def write(data, out):
    """Write the page, with the cards as they are now, and return its data."""
    data = {**data, "cards": json.loads((PAGE / "cards.json").read_text("utf-8"))}
    text = page(data).encode()
    with atomic_write(out) as file:
        file.write(text)
    print(f"page: {out} ({len(text) / 1e6:.1f} MB)")
    return data


def root_from(out):
    """The way from the folder of a page to the repository, for its links."""
    return os.path.relpath(PAGE.resolve().parents[1], out.resolve().parent)


def nth_of_each(all_labels, labels, n):
    """The index of the n-th image of each label, with n from 0."""
    return np.array([np.flatnonzero(all_labels == label)[n] for label in labels])


def page(data):
    """The page as one text: page.html with its sections, style sheets, scripts and data in their places."""
    text = (PAGE / "page.html").read_text("utf-8")
    text = re.sub(r"<!-- (\w+\.html) -->\n", lambda m: (PAGE / m[1]).read_text("utf-8"), text)
    text = re.sub(r'<link rel="stylesheet" href="(\w+\.css)">', lambda m: f"<style>\n{part(m[1])}</style>", text)
    text = re.sub(r'<script src="(\w+\.js)"></script>', lambda m: f"<script>\n{part(m[1])}</script>", text)
    # Only "<" can end a script element or open a comment in it.  JSON may contain \u003c in place of "<".
    written = json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    return text.replace('id="data"></script>', f'id="data">{written}</script>')


def data_of(text):
    """The data of a page that `page` wrote."""
    return json.loads(re.search(r'id="data">(.*?)</script>', text)[1])


def part(name):
    text = (PAGE / name).read_text("utf-8")
    assert "</s" not in text, f"{name} would end its own element"
    return text


if __name__ == "__main__":
    parser = cli.parser(__doc__, main)
    parser.add_argument("checkpoint", help="checkpoint.npz of train_mnist.py")
    cli.add_backend(parser)
    steps = cli.list_of(cli.positive_int)
    parser.add_argument("--labels", type=cli.list_of(cli.non_negative_int), help="digits to draw, such as 3,7")
    parser.add_argument("--sample-steps", type=steps, help="numbers of reverse steps to choose from")
    parser.add_argument("--steps", dest="sample_steps", type=steps, help=cli.HIDDEN)
    parser.add_argument("--moments", type=cli.whole(3, 1000), help="moments of each time line")
    parser.add_argument("--point-steps", type=cli.positive_int, help="training steps for each set of points")
    reader = "checkpoint.npz of train_classifier.py, to read those digits (default: none)"
    parser.add_argument("--num", type=cli.whole(10, 10_000), help="digits on which each mistake is measured")
    parser.add_argument("--known", type=cli.whole(100, 20_000), help="training images to take the exact mean of")
    parser.add_argument("--classifier", help=reader)
    parser.add_argument("--train-steps", type=cli.non_negative_int, help="of each mistake in training, 0 for none")
    cli.add_data_dir(parser)
    parser.add_argument("--seed", type=cli.non_negative_int, help="seed of all noise")
    parser.add_argument("--out", help="the file of the page")
    parser.add_argument("--workers", type=cli.positive_int, help="processes to share the work (default: all cores)")
    cli.run(main, parser)
