"""Train a class-conditional DDPM on handwritten digits and draw samples from it: the main job.

    python demos/train_mnist.py                      2,000 steps, or as many as fit into 8 minutes
    python demos/train_mnist.py --minutes 60         a long run
    python demos/train_mnist.py --resume             continue a run that was stopped or killed
    python demos/train_mnist.py --target v --min-snr 5
    python demos/train_mnist.py --target flow        rectified flow: straight paths
    python demos/train_mnist.py --plain              with the plain functions of the book
    mpiexec -n 4 python demos/train_mnist.py --parallel mpi

The run writes to --out: checkpoint.npz, metrics.csv and grids of samples in progress/ (always from the same noise).  At
the end it writes samples.png, denoising.png, denoising.gif and loss.png.  Ctrl-C, SIGTERM and SIGHUP save and end the
run, with exit code 130, 143 or 129.  Read next: job.py.
"""

from functools import partial

import job

from tinydiff.app import checkpoint, cli, run
from tinydiff.app.kinds import data_name
from tinydiff.app.outputs import own_folder
from tinydiff.data import NAMES


def main(
    *,
    backend="numpy",
    precision=None,
    plain=False,
    data="auto",
    data_dir=None,
    num_images=None,
    out="runs/mnist",
    workers=None,
    parallel="local",
    **options,
):
    """options: those of job.train."""
    ranks = cli.start(backend, precision, parallel, plain)
    out = ranks.broadcast(partial(own_folder, out, *job.FILES))
    workers = workers or (ranks.size if parallel == "mpi" else None)
    load = partial(load_digits, data, data_dir, num_images)
    job.train(ranks, load, out, cost=False, workers=workers, **options)


def load_digits(data, data_dir, num_images, meta, seed):
    """The training set; with the settings of a checkpoint that of its run."""
    if meta is not None:
        settings = run.given(num=num_images, name=None if data == "auto" else data)
        checkpoint.check_same(meta["data"], settings, settings)
        data, num_images = data_name(meta), meta["data"]["num"]
    return run.load_data(data, data_dir, seed, num_images)


if __name__ == "__main__":
    parser = cli.parser(__doc__, main)
    parser.add_argument("--data", choices=NAMES, help="auto: MNIST, or drawn digits if MNIST cannot be loaded")
    cli.add_data_dir(parser)
    job.add_options(parser)
    cli.run(main, parser)
