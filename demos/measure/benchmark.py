"""How fast are a training step, sampling and each op, and how much memory do they take?  Ours, and PyTorch's beside it.

    python demos/measure/benchmark.py                    about 2 minutes on 2 cores
    python demos/measure/benchmark.py --plain            the functions of the book as they stand, too
    python demos/measure/benchmark.py --backend cupy     on a GPU, batch 128 and 512

The reference U-Net: ours, and PyTorch's where torch is installed.  Each contestant is a process of its own
(contestant.py).  Every round goes over all contestants, so that a busy machine slows all of them alike; the first two
rounds do not count.  Figures are medians.  A ratio is to the fastest of PyTorch's ways, above 1 where we are faster; a
ratio of memory is ours / PyTorch's, below 1 where we need less.  With --plain one more contestant computes with the
functions of the book: one process, on several cores with as many BLAS threads; its figures enter no ratio to PyTorch's.

On the CPU (on_cpu.py): batch 64, float32, PyTorch eager in both memory layouts.  A check comes first: both networks
have as many parameters and, with copied weights, the same output and gradients.

    train step   forward, backward, clipping, Adam, average of the weights: on all workers (PyTorch: as many threads),
                 and on one core (one process with one BLAS thread; one thread)
    forward      without gradient, what sampling does again and again
    the ops      forward + backward on one core, at the images that one worker sees (batch size / workers): the shapes
                 that the network's layers have, each distinct one once; (xN) is how often it occurs.  The convolutions
                 are all the 3x3 ones, those of stride 2 and of one channel too; a row below has the geometric mean of
                 their ratios.  The first one computes no gradient of its input, because no layer stands before it.
    optimizer    clipping, Adam, average over all parameters, on one core
    peak memory  the most that our processes have held, added up, against PyTorch's one process; read after the
                 training steps, before anything else runs (Linux only)

On a GPU (on_gpu.py): training step, forward and the device's memory.  PyTorch takes part eager and compiled, each in
both memory layouts.  TF32 is on for both sides, or off with --precision float32.

--json writes the ratios, the medians (seconds, MB), the machine and the settings.  A ratio without a peer, or without a
figure, is null.  Read next: contestant.py.
"""

from pathlib import Path

import on_cpu
import on_gpu
from figures import write_json

from tinydiff.app import cli
from tinydiff.backend import TinydiffError
from tinydiff.backend import precision as current_precision


def main(
    *,
    backend="numpy",
    precision=None,
    plain=False,
    device=None,
    batch_sizes=None,
    channels=32,
    rounds=11,
    workers=None,
    json_path=None,
):
    """Print one table; returns what --json writes.

    device: PyTorch's, where it is not the backend's: with "cpu" and numpy the GPU's table is rehearsed.
    """
    on_a_gpu = backend == "cupy" or device is not None
    if on_a_gpu and workers is not None:
        raise TinydiffError(f"--workers {workers}: a GPU has one process; leave it out")
    if not on_a_gpu and batch_sizes is not None and len(batch_sizes) > 1:
        raise TinydiffError(f"--batch-size {' '.join(map(str, batch_sizes))}: one at a time on the CPU")
    if json_path is not None and not Path(json_path).parent.is_dir():  # minutes before the file is opened
        raise TinydiffError(f"--json {json_path}: there is no such folder")
    ranks = cli.start(backend, precision)
    settings = {"backend": backend, "channels": channels, "rounds": rounds, "plain": plain}
    if on_a_gpu:
        settings |= {"precision": current_precision(), "batch_sizes": batch_sizes or (128, 512)}
        report = on_gpu.compare(device=device or "cuda", **settings)
    else:
        (batch_size,) = batch_sizes or (64,)
        workers = workers or ranks.default_workers()
        report = on_cpu.compare(precision=precision, batch_size=batch_size, workers=workers, **settings)
    if json_path is not None:
        write_json(json_path, report)
    return report


if __name__ == "__main__":
    parser = cli.parser(__doc__, main)
    cli.add_backend(parser)
    parser.add_argument(
        *("--batch-size", "--batch-sizes"),
        dest="batch_sizes",
        type=cli.positive_int,
        nargs="+",
        help="images a step (default: 64; on a GPU 128 and 512)",
    )
    parser.add_argument("--channels", type=cli.positive_int, help="channels of the first level")
    parser.add_argument("--rounds", type=cli.positive_int, help="how often each is timed")
    parser.add_argument(
        "--workers", type=cli.positive_int, help="our processes, PyTorch's threads (default: all cores)"
    )
    parser.add_argument("--json", dest="json_path", metavar="FILE", help="write the figures there too")
    cli.run(main, parser)
