"""The benchmark's table on a GPU: a training step and a forward pass, ours and PyTorch's, in turn on one device.

Single ops and numbers of cores are not measured here.  PyTorch runs in seven ways: eager, torch.compile and CUDA graphs
in both memory layouts, and torch.compile in the mode reduce-overhead, which records graphs too.  A way that fails has
its reason in the table, and the others go on.  A ratio refers to the fastest way that PyTorch has for this row.

The first training step, from the start of the process on, and the first forward pass are timed apart, because they
contain the compilation.  All contestants take them at the same time, each within --compile-limit seconds.  Memory is
the largest amount of device memory that the memory pools of a contestant have taken.  Each contestant waits for the
device before and after the timed work.  Without PyTorch, or without its CUDA, only tinydiff runs.
"""

import contextlib
import importlib.util
import time
from functools import partial
from multiprocessing.connection import wait
from typing import NamedTuple

from contestant import FORWARD, TRAIN, WARM_UP, Contestant, take_turns
from figures import ahead, images_and_levels, medians, memory_ratio, number, plain_ratio
from machine import describe_gpu
from ours import OURS, PLAIN, OnDevice, levels
from tqdm import tqdm


class Way(NamedTuple):
    """How PyTorch runs: its memory layout, the mode of torch.compile or None, and whether in torch.cuda.graphs."""

    layout: str = "contiguous_format"
    mode: str | None = None
    graphed: bool = False


LAST = "channels_last"
WAYS = {
    "eager": Way(),
    "eager, channels last": Way(LAST),
    "compiled": Way(mode="default"),
    "compiled, channels last": Way(LAST, mode="default"),
    "compiled, reduce-overhead": Way(LAST, mode="reduce-overhead"),
    "CUDA graphs": Way(graphed=True),
    "CUDA graphs, channels last": Way(LAST, graphed=True),
}
JOBS = (TRAIN, FORWARD)


def compare(*, batch_sizes, plain, rounds, backend, precision, channels, data_shape, device, compile_limit):
    """Print a table for each batch size, and return the report.  device: of PyTorch."""
    machine = describe_gpu()
    print(*(f"{name} {value}" for name, value in machine.items()), sep=", ")
    ways = tuple(WAYS) if torch_works(device) else ()
    if not ways:
        print(f"PyTorch is not installed, or finds no {device}: ours alone")
    names = (OURS, *((PLAIN,) if plain else ()), *ways)
    network = levels(data_shape, channels)
    print(images_and_levels(data_shape, channels, network))
    settings = {"backend": backend, "precision": precision, "channels": channels}
    report = {"machine": machine, **settings, "data_shape": data_shape, "rounds": rounds, "batches": {}}
    settings |= {"size": data_shape[0], "network": network, "device": device}
    for batch_size in batch_sizes:
        batch = compete(names, settings | {"batch_size": batch_size}, rounds, compile_limit)
        report["batches"][batch_size] = batch
        print(*table_lines(batch_size, batch), sep="\n")
    return report


def compete(names, settings, rounds, limit):
    """Time both jobs at one batch size.  Returns the part of the report for this batch size."""
    why = {}

    def failed(one, error):
        if one.name in (OURS, PLAIN):
            raise error
        why[one.name] = reason(error)

    with contextlib.ExitStack() as stack:
        everyone = [stack.enter_context(Contestant(name, 1, partial(contestant, name, **settings))) for name in names]
        first = first_calls(everyone, limit, failed)
        bar = stack.enter_context(tqdm(total=2 * (rounds + WARM_UP) * (len(names) - len(why)), leave=False))
        seconds = {}
        for job in JOBS:
            alive = [one for one in everyone if one.name not in why]
            seconds[job[0]] = {
                name: medians(samples)[0]
                for (_, name), samples in by_name(take_turns(alive, [job], rounds, bar, failed)).items()
            }
        alive = [one for one in everyone if one.name not in why]
        memory = {one.name: one.ask("peak_mb") for one in alive}
        notes = {one.name: lines for one in alive if (lines := one.ask("notes"))}
        bar.update(bar.total - bar.n)
    return report_of(names, first, seconds, memory, why, notes)


def by_name(seconds):
    """{(job, contestant's name): samples} of what take_turns returns."""
    return {(job, name): samples for (_, job), by in seconds.items() for name, samples in by.items()}


def first_calls(everyone, limit, failed):
    """{contestant's name: [seconds of the first training step, of the first forward pass]}, compilation included.

    The first number counts from the start of the process.  All contestants work at the same time.  One that raises an
    error, or that needs more than `limit` seconds, is handed to failed(contestant, error) and takes no further part.
    """
    start = {}
    first = {one.name: [] for one in everyone}
    alive = answers(everyone, limit, failed, lambda one, seconds: start.update({one.name: seconds}))  # "ready"
    for job in JOBS:
        for one in alive:
            one.tell("seconds", job, 1)
        alive = answers(alive, limit, failed, lambda one, s: first[one.name].append(s + start.pop(one.name, 0)))
    return {one.name: first[one.name] for one in alive}


def answers(asked, limit, failed, note):
    """Fetch an answer from each contestant that was asked, and call note(contestant, seconds until the answer).

    Returns those that have answered without an error.
    """
    began, waiting, alive = time.monotonic(), {one.pipe: one for one in asked}, []
    while waiting and (left := began + limit - time.monotonic()) > 0:
        for pipe in wait(list(waiting), left):
            one = waiting.pop(pipe)
            try:
                one.answer()
            except Exception as error:
                failed(one, error)
            else:
                note(one, time.monotonic() - began)
                alive.append(one)
    for one in waiting.values():
        one.kill()
        failed(one, TimeoutError(f"no answer within {limit:g} s"))
    return [one for one in asked if one in alive]


def reason(error):
    """The last line of an error's text, at most 80 characters; an error of a contestant has its traceback before."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1] if len(lines[-1]) <= 80 else f"{lines[-1][:77]}..."


def report_of(names, first, seconds, memory, why, notes):
    """The part of the report for one batch size.  What a contestant that failed has measured before is left out.

    seconds: {job: {name: median}}.  why: {name: why it failed}.  fastest: the way of PyTorch to which a ratio refers.
    """
    kept = [name for name in names if name not in why]
    seconds = {job: {name: by[name] for name in kept} for job, by in seconds.items()}
    memory = {name: memory[name] for name in kept}
    theirs = [name for name in kept if name not in (OURS, PLAIN)]
    ratios = {job: ahead(by) if theirs else None for job, by in seconds.items()}
    return {
        "seconds": seconds,
        "first": {name: first[name] for name in kept},
        "peak_mb": memory,
        "failed": why,
        "notes": notes,
        "fastest": {job: min(theirs, key=by.get) if theirs else None for job, by in seconds.items()},
        "ratios": ratios | {"memory": memory_ratio(memory) if theirs else None},
    }


def contestant(name, *, device, **settings):
    """The object of a contestant: ours, the plain one, or one of PyTorch's ways."""
    if name in (OURS, PLAIN):
        return OnDevice(**settings, plain=name == PLAIN, cores=1)
    from torch_peer import OnDevice as Peer

    tf32 = settings.pop("precision") != "float32"
    del settings["backend"]
    return Peer(**settings, **WAYS[name]._asdict(), device=device, tf32=tf32)


def table_lines(batch_size, batch):
    """A line for each contestant, then the ratios, the ways to which they refer, and notes of the contestants."""

    def line(what, cells):
        return f"{what:<28}" + "".join(f"{cell:>{14 if i < 3 else 15}}" for i, cell in enumerate(cells))

    lines = ["", line(f"batch {batch_size}", ("train step", "forward", "memory", "first step", "first forward"))]
    for name, mb in batch["peak_mb"].items():
        rates = [f"{batch_size / by[name]:.0f} img/s" for by in batch["seconds"].values()]
        lines.append(
            line(name, (*rates, f"{number(mb)} MB", *(f"{seconds:.1f} s" for seconds in batch["first"][name])))
        )
    lines += [f"{name:<28}    {why[:68]}" for name, why in batch["failed"].items()]
    lines.append(line("ratio", map(number, batch["ratios"].values())))
    if PLAIN in batch["peak_mb"]:
        lines.append(line("time: plain / fast", (number(plain_ratio(by)) for by in batch["seconds"].values())))
    lines += [f"fastest of PyTorch, {job}: {way}" for job, way in batch["fastest"].items() if way is not None]
    return [*lines, *(f"{name}: {note}" for name, notes in batch["notes"].items() for note in notes)]


def torch_works(device):
    """Whether PyTorch is installed and finds the device."""
    if importlib.util.find_spec("torch") is None:
        return False
    from torch_peer import works

    return works(device)
