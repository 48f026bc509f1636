"""What benchmark.py times on a GPU: a training step and a sampling forward, ours and PyTorch's, in turn on one device.

    python demos/gpu_benchmark.py                batch 128 and 512, all of PyTorch's ways that are there
    python demos/benchmark.py --backend cupy     the same

A file of its own: here are no cores to count and no single ops, PyTorch has other ways (eager and torch.compile, each
in both memory layouts), and memory is the device's.  TF32 is on for both sides, or off with --precision float32.

Each contestant is a process of its own
(contestant.py) that waits for the device at both ends of what it times, the first rounds left out; figures are medians,
ratios are to the fastest of PyTorch's ways, above 1 where we are faster.  Memory is what each side's pool has taken
from the device at most; its ratio is ours / PyTorch's.  Where PyTorch or its CUDA is missing ours runs alone.
"""

import contextlib
import importlib.metadata
import importlib.util
import shutil
import subprocess
from functools import partial
from pathlib import Path

from benchmark import FORWARD, OURS, TRAIN, WARM_UP, Ours, _ahead, _medians, _number, _wait, measure, write_json
from contestant import Contestant
from tqdm import tqdm

from tinydiff import cli
from tinydiff.autograd import no_grad
from tinydiff.backend import TinydiffError, backend_name, use_backend, xp
from tinydiff.backend import precision as current_precision

WAYS = {  # PyTorch's: name -> (memory layout, whether torch.compile)
    "eager": ("contiguous_format", False),
    "eager, channels last": ("channels_last", False),
    "compiled": ("contiguous_format", True),
    "compiled, channels last": ("channels_last", True),
}


def main(
    *, backend="cupy", precision=None, device="cuda", batch_sizes=(128, 512), channels=32, rounds=11, json_path=None
):
    """Print one table; returns what --json writes.  device: PyTorch's; with "cpu" and numpy it is a rehearsal."""
    cli.start(backend, precision)
    precision = current_precision()
    if json_path is not None and not Path(json_path).parent.is_dir():
        raise TinydiffError(f"--json {json_path}: there is no such folder")
    machine = describe_machine()
    print(*(f"{name} {value}" for name, value in machine.items()), sep=", ")
    ways = tuple(WAYS) if _torch_works(device) else ()
    if not ways:
        print(f"PyTorch is not installed, or finds no {device}: ours alone")
    report = {
        "machine": machine,
        "backend": backend,
        "precision": precision,
        "channels": channels,
        "rounds": rounds,
        "batches": {},
    }
    for batch_size in batch_sizes:
        with contextlib.ExitStack() as stack:
            settings = {"backend": backend, "precision": precision, "device": device}
            settings |= {"channels": channels, "batch_size": batch_size}
            everyone = [
                stack.enter_context(Contestant(name, 1, partial(_contestant, name, **settings)))
                for name in (OURS, *ways)
            ]
            for contestant in everyone:
                contestant.answer()
            bar = stack.enter_context(tqdm(total=2 * (rounds + WARM_UP) * len(everyone), leave=False))
            seconds = measure(everyone, [TRAIN], rounds, bar) | measure(everyone, [FORWARD], rounds, bar)
            memory = {who.name: who.ask("peak_mb") for who in everyone}
        medians = {job[0]: {name: _medians(s)[0] for name, s in by.items()} for (_, job), by in seconds.items()}
        ahead = _ahead(memory) if None not in memory.values() else None
        ratios = {name: _ahead(by) for name, by in medians.items()} | {"memory": ahead and 1 / ahead}
        report["batches"][batch_size] = {"seconds": medians, "peak_mb": memory, "ratios": ratios}
        print_table(batch_size, medians, memory, ratios)
    if json_path is not None:
        write_json(json_path, report)
    return report


def print_table(batch_size, medians, memory, ratios):
    """A row for each contestant, then our ratios."""
    print(f"\nbatch {batch_size:<22}{'train step':>14}{'forward':>14}{'memory':>14}")
    for name, mb in memory.items():
        cells = [f"{batch_size / by[name]:.0f} img/s" for by in medians.values()]
        print(f"{name:<28}" + "".join(f"{cell:>14}" for cell in (*cells, f"{_number(mb)} MB")))
    print(f"{'ratio':<28}" + "".join(f"{_number(ratio):>14}" for ratio in ratios.values()))


def describe_machine():
    """Device, driver and versions."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    found = subprocess.run(query, capture_output=True, text=True).stdout.strip() if shutil.which(query[0]) else ""
    device, _, driver = (found.splitlines() or ["unknown, unknown"])[0].partition(", ")
    versions = dict.fromkeys([backend_name()], xp.__version__)
    if importlib.util.find_spec("torch"):
        versions["torch"] = importlib.metadata.version("torch")
    return {"device": device, "driver": driver, **versions}


class OnDevice(Ours):
    """Ours, with its batch on the device and the device's memory."""

    def forward(self):
        def forward(_):
            with no_grad():
                _wait(self.pool.model(self.batch["x_t"], self.batch["t"]).data)

        return [forward]

    def peak_mb(self):
        return xp.get_default_memory_pool().total_bytes() / 2**20 if backend_name() == "cupy" else None


def _contestant(name, *, backend, precision, device, **settings):
    if name == OURS:
        use_backend(backend, precision)
        return OnDevice(**settings, cores=1)
    from torch_peer import OnDevice as Peer

    layout, compiled = WAYS[name]
    return Peer(**settings, layout=layout, device=device, compiled=compiled, tf32=precision == "tf32")


def _torch_works(device):
    if importlib.util.find_spec("torch") is None:
        return False
    import torch

    return device == "cpu" or torch.cuda.is_available()


if __name__ == "__main__":
    parser = cli.parser(__doc__, main)
    choices = ["float32", "tf32"]
    parser.add_argument("--precision", choices=choices, help="of both sides' matrix products (default: tf32)")
    parser.add_argument("--batch-sizes", type=cli.positive_int, nargs="+", help="images a step")
    parser.add_argument("--channels", type=cli.positive_int, help="channels of the first level")
    parser.add_argument("--rounds", type=cli.positive_int, help="how often each is timed")
    parser.add_argument("--json", dest="json_path", metavar="FILE", help="write the figures there too")
    cli.run(main, parser)
