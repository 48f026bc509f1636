"""Train a diffusion model on your own pictures and draw samples from it: a folder, an array, CIFAR-10 or sprites.

    python demos/train_images.py sprites             small colour pictures, drawn on this machine
    python demos/train_images.py photos/ --size 32 --flip
    python demos/train_images.py arrays.npz --minutes 60
    python demos/train_images.py cifar10 --data-dir DIR --flip
    python demos/train_images.py photos/ --size 32 --flip --resume

DATA is the name of a data set, or one of:

    a folder       of pictures; its subfolders are the classes, if there are any
    an .npz file   with `images` (N, H, W) or (N, H, W, C), uint8, and, if there are classes,
                   `labels` (N,); float images need `value_range`, the values of black and
                   white, such as (0, 1)
    an IDX file    in the form of MNIST's, packed or not; the labels of my-images-idx3-ubyte
                   are those of my-labels-idx1-ubyte beside it, if it is there

Pictures without classes are trained and drawn without labels and without guidance.  The network has three levels for
pictures of 16 to 32 pixels, and four levels with attention for 64.  The run prints what a step takes, and writes to
--out what train_mnist.py writes.  Ctrl-C, SIGTERM and SIGHUP save and end the run.  Read next: job.py.
"""

from functools import partial

import job

from tinydiff.app import cli, run
from tinydiff.app.outputs import own_folder


def main(
    data,
    *,
    backend="numpy",
    precision=None,
    plain=False,
    size=None,
    data_dir=None,
    num_images=None,
    out="runs/images",
    workers=None,
    parallel="local",
    **options,
):
    """options: those of job.train."""
    ranks = cli.start(backend, precision, parallel, plain)
    out = ranks.broadcast(partial(own_folder, out, *job.FILES))
    workers = workers or (ranks.size if parallel == "mpi" else None)
    load = partial(load_pictures, data, size, data_dir, num_images)
    job.train(ranks, load, out, cost=True, workers=workers, **options)


def load_pictures(data, size, data_dir, num_images, meta, seed):
    """The training set; with the settings of a checkpoint as many pictures of that size as in its run."""
    if meta is not None:
        num_images = num_images or meta["data"]["num"]
        height, width, _ = meta["data"]["image_shape"]
        size = size or (height if height == width else None)  # pictures that are not square were not resized
    return run.load_data(data, data_dir, seed, num_images, size=size)


if __name__ == "__main__":
    parser = cli.parser(__doc__, main)
    parser.add_argument("data", metavar="DATA", help="cifar10, sprites, a folder, an .npz file or an IDX file")
    parser.add_argument("--size", type=cli.whole(8, 256), help="pixels of a side (default: as they are)")
    parser.add_argument("--flip", action="store_true", help="mirror half of the pictures, anew in each batch")
    cli.add_data_dir(parser)
    job.add_options(parser)
    cli.run(main, parser)
