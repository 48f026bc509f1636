"""The benchmark's table on a GPU: a training step and a forward pass, ours and PyTorch's, in turn on one device.

Single ops and numbers of cores are not measured here.  PyTorch runs in four ways: eager and torch.compile, each in both
memory layouts.  Memory is the largest amount of device memory that the memory pool of a contestant has taken.  Each
contestant waits for the device before and after the timed work.  Without PyTorch, or without its CUDA, only tinydiff
runs.
"""

import contextlib
import importlib.util
from functools import partial

from contestant import FORWARD, TRAIN, WARM_UP, Contestant, take_turns
from figures import ahead, medians, memory_ratio, number, plain_ratio
from machine import describe_gpu
from ours import OURS, PLAIN, OnDevice
from tqdm import tqdm

WAYS = {  # PyTorch's: name -> (memory layout, whether torch.compile)
    "eager": ("contiguous_format", False),
    "eager, channels last": ("channels_last", False),
    "compiled": ("contiguous_format", True),
    "compiled, channels last": ("channels_last", True),
}


def compare(*, batch_sizes, plain, rounds, backend, precision, channels, device):
    """Print a table for each batch size, and return the report.  device: of PyTorch."""
    machine = describe_gpu()
    print(*(f"{name} {value}" for name, value in machine.items()), sep=", ")
    ways = tuple(WAYS) if torch_works(device) else ()
    if not ways:
        print(f"PyTorch is not installed, or finds no {device}: ours alone")
    names = (OURS, *((PLAIN,) if plain else ()), *ways)
    settings = {"backend": backend, "precision": precision, "channels": channels}
    report = {"machine": machine, **settings, "rounds": rounds, "batches": {}}
    for batch_size in batch_sizes:
        batch = compete(names, settings | {"device": device, "batch_size": batch_size}, rounds)
        report["batches"][batch_size] = batch
        print_table(batch_size, batch)
    return report


def compete(names, settings, rounds):
    """Time both jobs at one batch size.  Returns the part of the report for this batch size."""
    with contextlib.ExitStack() as stack:
        everyone = [stack.enter_context(Contestant(name, 1, partial(contestant, name, **settings))) for name in names]
        for one in everyone:
            one.answer()
        bar = stack.enter_context(tqdm(total=2 * (rounds + WARM_UP) * len(everyone), leave=False))
        seconds = take_turns(everyone, [TRAIN], rounds, bar) | take_turns(everyone, [FORWARD], rounds, bar)
        memory = {one.name: one.ask("peak_mb") for one in everyone}
    seconds = {job[0]: {name: medians(s)[0] for name, s in by.items()} for (_, job), by in seconds.items()}
    ratios = {name: ahead(by) for name, by in seconds.items()} | {"memory": memory_ratio(memory)}
    return {"seconds": seconds, "peak_mb": memory, "ratios": ratios}


def contestant(name, *, device, **settings):
    """The object of a contestant: ours, the plain one, or one of PyTorch's ways."""
    if name in (OURS, PLAIN):
        return OnDevice(**settings, plain=name == PLAIN, cores=1)
    from torch_peer import OnDevice as Peer

    (layout, compiled), tf32 = WAYS[name], settings.pop("precision") == "tf32"
    del settings["backend"]
    return Peer(**settings, layout=layout, device=device, compiled=compiled, tf32=tf32)


def print_table(batch_size, batch):
    """Print a row for each contestant, then the ratios."""
    print(f"\nbatch {batch_size:<22}{'train step':>14}{'forward':>14}{'memory':>14}")
    for name, mb in batch["peak_mb"].items():
        cells = [f"{batch_size / by[name]:.0f} img/s" for by in batch["seconds"].values()]
        print(f"{name:<28}" + "".join(f"{cell:>14}" for cell in (*cells, f"{number(mb)} MB")))
    print(f"{'ratio':<28}" + "".join(f"{number(ratio):>14}" for ratio in batch["ratios"].values()))
    if PLAIN in batch["peak_mb"]:
        cells = [number(plain_ratio(by)) for by in batch["seconds"].values()]
        print(f"{'time: plain / fast':<28}" + "".join(f"{cell:>14}" for cell in cells))


def torch_works(device):
    """Whether PyTorch is installed and finds the device."""
    if importlib.util.find_spec("torch") is None:
        return False
    from torch_peer import works

    return works(device)
