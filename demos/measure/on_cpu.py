"""The benchmark's table on the CPU: a training step, sampling, and each op with the shapes that occur in the network.

The docstring of benchmark.py explains what is measured.  Read next: on_gpu.py.
"""

import contextlib
import importlib.util
import multiprocessing
import statistics
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from functools import partial

from contestant import FORWARD, TRAIN, WARM_UP, Contestant, take_turns
from figures import (
    ahead,
    images_a_second,
    images_and_levels,
    medians,
    memory_ratio,
    milliseconds,
    number,
    plain_ratio,
    steps_a_second,
)
from machine import describe_cpu, speed_variables
from ours import OURS, PLAIN, SIDE, Ours, levels
from tqdm import tqdm

from tinydiff.app.generate import build_unet
from tinydiff.backend import use_backend
from tinydiff.nn.unet import Downsample, Upsample

LAYOUTS = ("contiguous_format", "channels_last")  # PyTorch's
OPTIMIZER = ("optimizer",)  # another job, beside TRAIN and FORWARD
MOST_DIFFERENCE = 1e-4  # at 28 x 28, between equal networks in float32, because convolutions round differently


def compare(*, workers, rounds, plain, data_shape, **settings):
    """Print the table and return the report; settings: backend, precision, channels, batch_size."""
    channels, size = settings["channels"], data_shape[0]
    network = levels(data_shape, channels)
    peers = LAYOUTS if importlib.util.find_spec("torch") else ()
    names = (OURS, *((PLAIN,) if plain else ()), *peers)
    machine, changed = describe_cpu(bool(peers)), speed_variables()
    print(*conditions(machine, changed), images_and_levels(data_shape, channels, network), sep="\n")
    for layout in peers:  # in another process, so that this memory does not count for a contestant
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as executor:
            print(executor.submit(check_same_network, channels, size, network, layout).result())

    images = max(1, settings["batch_size"] // workers)
    layers = layer_jobs(channels, images, size, network)
    drawn = settings | {"size": size, "network": network}
    seconds, memory = compete(names, drawn, workers, list(layers), rounds)
    report = {
        **ratios(seconds, memory, workers),
        "medians": [entry(cores, job, layers.get(job), by) for (cores, job), by in seconds.items()],
        "peak_mb": memory,
        "machine": machine,
        "settings": settings
        | {"data_shape": data_shape, "workers": workers, "rounds": rounds}
        | {"op_images": images, "environment": changed},
    }
    print(*table_lines(report), sep="\n")
    return report


def conditions(machine, changed):
    """The lines above the table.  changed: environment variables that change the speed."""
    warnings = [f"{name}={value} is set, which changes the speed" for name, value in changed.items()]
    return [
        ", ".join(f"{name} {value}" for name, value in machine.items() if value is not None),
        *(f"warning: {warning}; these are not a user's figures" for warning in warnings),
        *([] if machine["torch"] else ["PyTorch is not installed: ours alone"]),
    ]


def check_same_network(channels, size, network, layout):
    """A line with the largest difference of PyTorch's network and ours.  RuntimeError if it is more than rounding."""
    from torch_peer import largest_difference

    use_backend("numpy")
    model = build_unet({"base_channels": channels, **network}, 0)
    name, difference = largest_difference(model, size, layout)
    # A gradient is a sum over all pixels, in which large terms cancel: with more pixels more of it is rounding.
    if not difference < MOST_DIFFERENCE * max(1, (size / SIDE) ** 2):
        raise RuntimeError(
            f"not the same network: with the same weights {name} differs by {difference:.1e} from PyTorch's, {layout}"
        )
    return f"PyTorch, {layout}: {model.num_parameters():,} parameters too; output, gradients within {difference:.0e}"


def layer_jobs(channels, images, size, network):
    """{job: how often it occurs} in this U-Net: its 3x3 convolutions, norms with SiLU, and attention.

    The jobs are found from the shapes of the parameters and from the resolutions, not from calls of ops.
    """
    model, jobs = build_unet({"base_channels": channels, **network}, 0), []
    heads, num_groups = model.config["num_heads"], model.config["num_groups"]
    for part in (model.conv_in, *model.down, *model.middle, *model.up, model.norm_out, model.conv_out):
        size *= 2 if isinstance(part, Upsample) else 1
        stride = 2 if isinstance(part, Downsample) else 1
        for name, p in part.named_parameters():
            if p.ndim == 4:
                jobs.append(("conv", images, size, *p.shape[2:], stride, part is not model.conv_in))
            elif name.endswith("qkv.w"):
                jobs.append(("attention", images, heads, size * size, p.shape[0] // heads))
            elif name.endswith("gamma") and not name.startswith("attention."):
                jobs.append(("group_norm_silu", images, size, p.size, num_groups))
        size //= stride
    kinds = ("conv", "group_norm_silu", "attention")
    return dict(sorted(Counter(jobs).items(), key=lambda item: kinds.index(item[0][0])))


def compete(names, settings, workers, layers, rounds):
    """Time every job, with a progress bar.

    Returns {(cores, job): {name: [median seconds of the whole, *of each stage]}} and {name: peak MB on all workers}.
    """
    with contextlib.ExitStack() as stack:
        everyone = [
            stack.enter_context(Contestant(name, cores, partial(contestant, name, cores=cores, **settings)))
            for cores in dict.fromkeys((workers, 1))  # once if workers is 1
            for name in names
        ]
        for one in everyone:  # all processes are starting in parallel
            one.answer()
        on_one_core = [one for one in everyone if one.cores == 1]
        calls = (rounds + WARM_UP) * (2 * len(everyone) + (len(layers) + 1) * len(on_one_core))
        bar = stack.enter_context(tqdm(total=calls, leave=False))
        seconds = take_turns(everyone, [TRAIN], rounds, bar)
        memory = {one.name: one.ask("peak_mb") for one in everyone if one.cores == workers}
        seconds |= take_turns(everyone, [FORWARD], rounds, bar)
        seconds |= take_turns(on_one_core, [*layers, OPTIMIZER], rounds, bar)
    return {key: {name: medians(samples) for name, samples in by.items()} for key, by in seconds.items()}, memory


def contestant(name, *, backend, precision=None, **settings):
    """The object of a contestant: ours, the plain one, or PyTorch's with this memory layout."""
    if name in (OURS, PLAIN):
        return Ours(backend=backend, precision=precision, plain=name == PLAIN, **settings)
    from torch_peer import Peer

    return Peer(**settings, layout=name)


def ratios(seconds, memory, workers):
    """The ratios of the report.  seconds: {(cores, job): {name: [seconds, ...]}}, memory: {name: MB or None}."""
    total = {key: {name: figures[0] for name, figures in by.items()} for key, by in seconds.items()}
    convs = [ahead(by) for (_, job), by in total.items() if job[0] == "conv"]
    return {
        "train_step_ratio": ahead(total[workers, TRAIN]),
        "train_step_ratio_1core": ahead(total[1, TRAIN]),
        "sampling_ratio": ahead(total[workers, FORWARD]),
        "conv_ratio": None if None in convs else statistics.geometric_mean(convs),
        "memory_ratio": memory_ratio(memory),
        "worker_scaling": total[1, TRAIN][OURS] / total[workers, TRAIN][OURS],
        "plain_step_ratio_1core": plain_ratio(total[1, TRAIN]),
        "plain_sampling_ratio_1core": plain_ratio(total[1, FORWARD]),
    }


def entry(cores, job, count, by):
    """The medians of a job in the form of the report.  by: {name: [seconds of the whole, *of each stage]}."""
    return {
        "what": _label(cores, job, count),
        "job": job,
        "cores": cores,
        "seconds": {name: total for name, (total, *_) in by.items()},
        "stages": {name: stages for name, (_, *stages) in by.items()},
    }


def table_lines(report):
    """The table, a line for each measurement: ours, PyTorch's layouts, and the ratio."""
    rows = table(report)
    return [f"{what:<37}" + "".join(f" {cell:>13}" for cell in cells) + f" {last:>6}" for what, cells, last in rows]


def table(report):
    """(what is measured, a cell for each contestant, the ratio) of each row, and a row with the headings first."""
    names, settings = list(report["peak_mb"]), report["settings"]
    nothing = [""] * len(names)
    what = f"batch {settings['batch_size']}, each op at {settings['op_images']} image(s)"
    rows = [(what, [name.replace("_format", "") for name in names], "ratio")]
    for median in report["medians"]:
        if median["job"] in (TRAIN, FORWARD):
            cells = [images_a_second(settings["batch_size"] / s) for s in median["seconds"].values()]
        else:
            cells = [milliseconds(stages) for stages in median["stages"].values()]
        rows.append((median["what"], cells, number(ahead(median["seconds"]))))
        if median["job"] == TRAIN:
            steps = [steps_a_second(1 / s) for s in median["seconds"].values()]
            rows.append((f"steps, {median['cores']} core(s)", steps, ""))
    cells = [f"{number(mb)} MB" for mb in report["peak_mb"].values()]
    rows += [
        ("convolutions, geometric mean", nothing, number(report["conv_ratio"])),
        ("peak memory, low is good", cells, number(report["memory_ratio"])),
        ("training, all workers / 1 worker", nothing, number(report["worker_scaling"])),
    ]
    if PLAIN in names:
        rows += [
            ("train step, 1 core: time plain / fast", nothing, number(report["plain_step_ratio_1core"])),
            ("forward, 1 core: time plain / fast", nothing, number(report["plain_sampling_ratio_1core"])),
        ]
    return rows


def _label(cores, job, count):
    match job:
        case ("train",):
            return f"train step, {cores} core(s)"
        case ("forward",):
            return f"forward, {cores} core(s)"
        case ("conv", _, size, c_in, c_out, stride, _):
            return f"conv {size}x{size} {c_in}->{c_out}{', stride 2' if stride == 2 else ''} (x{count})"
        case ("group_norm_silu", _, size, c, _):
            return f"group norm + SiLU {size}x{size}x{c} (x{count})"
        case ("attention", _, heads, pixels, _):
            return f"attention, {pixels} pixels, {heads} heads (x{count})"
        case _:
            return "optimizer"
