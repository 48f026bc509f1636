"""Measure how fast a training step, sampling and each op are, and how much memory they take, beside PyTorch.

    python demos/measure/benchmark.py                    about 2 minutes on 2 cores
    python demos/measure/benchmark.py --plain            also with the plain functions of the book
    python demos/measure/benchmark.py --data-shape 32,32,3    in colour, like CIFAR-10
    python demos/measure/benchmark.py --backend cupy     on a GPU, batch 64, 128 and 512

The network is the reference U-Net, in tinydiff and, if torch is installed, in PyTorch.  For images of another shape
(--data-shape) it is the default network of train_images.py: 64 x 64 pixels give four levels.  Each contestant is a
process of its own (contestant.py).  Every round goes over all contestants, so that a busy machine slows all of them
equally.  The first two rounds do not count.  The printed numbers are medians.  A ratio of speed is the time of the
fastest PyTorch contestant / our time: above 1 if we are faster.  A ratio of memory is our memory / PyTorch's: below 1
if we need less.  With --plain one more contestant computes with the plain functions of the book, in one process.  On
several cores it has as many BLAS threads.  No ratio to PyTorch uses this contestant.

On the CPU (on_cpu.py): batch 64, float32, PyTorch eager in both memory layouts.  A check comes first: both networks
must have the same number of parameters and, with copied weights, the same output and gradients.

    train step   forward, backward, clipping, Adam, average of the weights: on all workers (PyTorch:
                 as many threads), and on one core (one process with one BLAS thread; one thread)
    forward      a forward pass without gradient, which sampling repeats
    the ops      forward + backward on one core, with the images of one worker (batch size /
                 workers).  Each shape that occurs in the network is measured once, and (xN) is how
                 often it occurs.  The convolutions are all 3x3 ones, also those with stride 2 and
                 those of the image.  One row has the geometric mean of their ratios.  The
                 first convolution computes no gradient of its input, because no layer precedes it.
    optimizer    clipping, Adam, average over all parameters, on one core
    peak memory  the sum of the peak memory of our processes, beside that of PyTorch's one process.
                 It is read after the training steps, before anything else runs (Linux only)

On a GPU (on_gpu.py): training step, forward and the device's memory, and the seconds of the first step and the first
forward pass, which contain the compilation.  PyTorch runs eager, with torch.compile (also in the mode reduce-overhead)
and with torch.cuda.graphs.  A way that fails, or that takes longer than --compile-limit to compile, has its reason in
the table.  TF32 is on for both sides, or off with --precision float32; with bf16 PyTorch stays in TF32.

--json writes the ratios, the medians (seconds, MB), the machine and the settings.  A ratio is null if there is no
PyTorch, or if a number is unknown.

Read next: contestant.py.
"""

import on_cpu
import on_gpu
from figures import write_json

from tinydiff.app import cli, networks, run
from tinydiff.app.outputs import file_to_write
from tinydiff.backend import TinydiffError
from tinydiff.backend import precision as current_precision


def main(
    *,
    backend="numpy",
    precision=None,
    plain=False,
    device=None,
    batch_sizes=None,
    data_shape=(28, 28, 1),
    channels=32,
    rounds=11,
    workers=None,
    compile_limit=120,
    json_path=None,
):
    """Print one table, and return the report that --json writes.

    device: None, or PyTorch's device if it differs from the backend's.  "cpu" with NumPy rehearses the GPU's table.
    """
    on_a_gpu = backend == "cupy" or device is not None
    if on_a_gpu and workers is not None:
        raise TinydiffError(f"--workers {workers}: a GPU has one process; leave it out")
    if not on_a_gpu and batch_sizes is not None and len(batch_sizes) > 1:
        raise TinydiffError(f"--batch-size {cli.as_typed(batch_sizes)}: must be one number on the CPU")
    run.check_channels(channels)
    check_shape(data_shape)
    if json_path is not None:
        file_to_write("--json", json_path, ".json")
    ranks = cli.start(backend, precision)
    run.check_batch(max(batch_sizes or (64,)), data_shape, channels)
    settings = {"backend": backend, "channels": channels, "data_shape": data_shape}
    settings |= {"rounds": rounds, "plain": plain}
    if on_a_gpu:
        settings |= {"precision": current_precision(), "batch_sizes": batch_sizes or (64, 128, 512)}
        report = on_gpu.compare(device=device or "cuda", compile_limit=compile_limit, **settings)
    else:
        (batch_size,) = batch_sizes or (64,)
        workers = workers or ranks.default_workers()
        report = on_cpu.compare(precision=precision, batch_size=batch_size, workers=workers, **settings)
    if json_path is not None:
        write_json(json_path, report)
    return report


def check_shape(data_shape):
    """Raise TinydiffError if the default network cannot be built for images (H, W, C), or if H and W differ."""
    option = f"--data-shape {','.join(map(str, data_shape))}"
    if len(data_shape) != 3:
        raise TinydiffError(f"{option}: must be three numbers, H,W,C, such as 32,32,3")
    height, width, in_channels = data_shape
    if height != width:
        raise TinydiffError(f"{option}: H and W must be equal")
    if sides := networks.nearest_sides([height]):
        fits = " or ".join(f"{side},{side},{in_channels}" for side in sides)
        raise TinydiffError(f"{option}: H and W must be multiples of 4; choose {fits}")
    if in_channels not in (1, 3):
        raise TinydiffError(f"{option}: C must be 1 (grey) or 3 (colour)")


if __name__ == "__main__":
    parser = cli.parser(__doc__, main)
    cli.add_backend(parser)
    sizes = cli.list_of(cli.positive_int)
    parser.add_argument(
        "--batch-size", dest="batch_sizes", type=sizes, help="images a step (default: 64; on a GPU 64,128,512)"
    )
    parser.add_argument("--batch-sizes", type=sizes, help=cli.HIDDEN)
    parser.add_argument(
        "--data-shape",
        type=cli.list_of(cli.positive_int, repeats=True),
        metavar="H,W,C",
        help="height, width and channels of an image",
    )
    parser.add_argument("--channels", type=cli.positive_int, help="channels of the first level")
    parser.add_argument("--rounds", type=cli.whole(1, 1000), help="number of rounds that count")
    parser.add_argument(
        "--workers", type=cli.positive_int, help="our processes, PyTorch's threads (default: all cores)"
    )
    limit = "on a GPU: seconds that a way of PyTorch may take for its first step, and for its first forward pass"
    parser.add_argument("--compile-limit", type=cli.positive_int, help=limit)
    also = "also write the numbers to this file (default: none)"
    parser.add_argument("--json", dest="json_path", metavar="FILE", help=also)
    cli.run(main, parser)
