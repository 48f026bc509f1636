"""Read generated digits with a classifier: what share is read as the label that the digit was drawn for?

    python demos/sample.py runs/mnist/checkpoint.npz --save-npz samples.npz
    python demos/classify.py samples.npz --out misread.png

SAMPLES is an .npz file with `images` (N, 28, 28, 1) float32 in [-1, 1] and the `labels` (N,) that they were drawn for.
"""

import io
import textwrap
from pathlib import Path

import numpy as np

from tinydiff.app import cli, plots
from tinydiff.app.classify import load_classifier
from tinydiff.app.metrics import interval, percent
from tinydiff.app.outputs import file_to_write
from tinydiff.app.reading import misread_rows, read
from tinydiff.app.tables import WIDTH
from tinydiff.backend import TinydiffError
from tinydiff.data import DataError
from tinydiff.data.limits import check_memory, read_file


def main(
    samples,
    checkpoint="runs/classifier/checkpoint.npz",
    out=None,
    backend="numpy",
    precision=None,
    plain=False,
    workers=None,
):
    """Print the shares and return (right, N).  If `out` is given, also save a picture of the misread images."""
    ranks = cli.start(backend, precision, plain=plain)
    workers = workers or ranks.default_workers()
    if out is not None:
        file_to_write("--out", out, ".png")
    pool, meta = load_classifier(Path(checkpoint), workers)
    with pool:
        classes = meta["data"]["classes"]
        images, labels = load_samples(samples, meta["data"]["image_shape"], len(classes))
        probabilities = np.concatenate(list(read(pool, images)))
    answer = probabilities.argmax(1)
    right, n = int((answer == labels).sum()), len(labels)
    share = f"{percent(right / n)} (95% interval {interval(right, n)})"
    print(f"{samples}: {right} of {n} read as the label asked for: {share}")
    for k, name in enumerate(classes):
        if (labels == k).any():
            print(class_line(name, answer[labels == k], k, classes))
    if out is not None:
        pictures, captions = misread_rows(images, labels, probabilities, classes)
        if captions:
            columns = len(pictures) // len(captions)
            title = f"{n - right} of {n} misread"
            plots.save_grid(out, pictures, columns=columns, title=title, row_labels=captions)
            print(f"the misread ones: {out}")
        else:
            print(f"none misread: {out} is not written")
    return right, n


def load_samples(path, image_shape, num_classes):
    """Read images (N, H, W, C) float32 in [-1, 1] and labels (N,) in 0..num_classes - 1 from an .npz file.

    Raises DataError if the file has other content.
    """
    try:
        with np.load(io.BytesIO(read_file(path)), allow_pickle=False) as archive:
            check_memory(path, sum(member.file_size for member in archive.zip.infolist()))  # an array may be packed
            images, labels = archive["images"], archive["labels"]
    except KeyError as error:
        raise DataError(f"{path}: {error.args[0]}; it should hold `images` and `labels`") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None
    except TinydiffError:
        raise
    except Exception:  # zipfile, zlib and NumPy raise a dozen kinds of errors for wrong bytes
        raise DataError(f"{path} is not a whole .npz file of plain arrays") from None
    if images.dtype.kind != "f" or images.shape[1:] != tuple(image_shape) or not len(images):
        wanted = ", ".join(["N", *map(str, image_shape)])
        raise DataError(f"{path}: images must be float of shape ({wanted}), N >= 1, got {images.dtype} {images.shape}")
    if not np.isfinite(images).all() or np.abs(images).max() > 1:
        raise DataError(f"{path}: images must lie in -1..1, got {images.min()} to {images.max()}")
    if images.min() >= 0 and images.max() > 0:
        raise DataError(f"{path}: images lie in {images.min()}..{images.max()}, but black is -1: scale them by 2 x - 1")
    if labels.dtype.kind not in "iu" or labels.shape != images.shape[:1]:
        raise DataError(f"{path}: labels must be {len(images)} integers, got {labels.dtype} {labels.shape}")
    if labels.min() < 0 or labels.max() >= num_classes:
        raise DataError(f"{path}: labels must lie in 0..{num_classes - 1}, got {labels.min()} to {labels.max()}")
    return images.astype(np.float32), labels.astype(np.int64)


def class_line(name, answer, asked, classes):
    """A text about the images of class `asked`: how many are read as this class, and how the others are read."""
    counts = np.bincount(answer, minlength=len(classes))
    others = [f"{counts[k]} as {classes[k]}" for k in np.argsort(-counts, kind="stable") if counts[k] and k != asked]
    read_right = f"  {name}: {percent(counts[asked] / len(answer)):>6}  ({counts[asked]} of {len(answer)})"
    return textwrap.fill(", ".join([read_right, *others]), WIDTH, subsequent_indent="      ")


if __name__ == "__main__":
    parser = cli.parser(__doc__, main)
    parser.add_argument("samples", metavar="SAMPLES", help=".npz file with images and labels")
    parser.add_argument("--checkpoint", metavar="PATH", help="a classifier that train_classifier.py has saved")
    parser.add_argument("--out", metavar="PATH", help="picture of the misread images, a .png (default: no picture)")
    cli.add_backend(parser)
    parser.add_argument("--workers", type=cli.positive_int, help="worker processes (default: one a core)")
    cli.run(main, parser)
