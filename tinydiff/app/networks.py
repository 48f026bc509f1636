"""The default network of a training run, by the size of its pictures, and what a step of it costs.

    sides 16, 28, 32   three levels, attention in the middle only: the reference network
    side 64            four levels, and attention at the maps of 16 x 16 and 8 x 8

The sides are halved from level to level as long as a map has more than 8 x 8 pixels, at least twice.
Read next: longer.py.
"""

import tracemalloc
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tinydiff.app.generate import build_unet
from tinydiff.app.run import check_channels
from tinydiff.app.training import gradient_seconds
from tinydiff.backend import TinydiffError, backend_name
from tinydiff.train import Training, gradients_of

LOWEST, ATTENDED = 8, 16  # sides of the lowest maps, and of the largest map with attention
COPIES = 4  # of each parameter: weight, average and Adam's two moments
FEW = 8  # pictures that memory is measured with


def default_network(image_shape: tuple[int, ...], num_classes: int | None, channels: int | None = None) -> dict:
    """The arguments of a UNet for pictures (H, W, C).  channels: of the first level; None: 32.

    Raises TinydiffError if the sides cannot be halved twice, if a group norm cannot divide so many channels into its
    groups, or if the pictures are neither grey nor colour.
    """
    *sides, in_channels = image_shape
    channels = channels or 32
    check_channels(channels)
    if in_channels not in (1, 3):
        hint = "images[..., :3] leaves out the others" if in_channels > 3 else "choose other pictures"
        hint = "images.transpose(0, 2, 3, 1) puts them last" if sides[0] in (1, 3) else hint
        raise TinydiffError(f"pictures with {in_channels} channels: must have 1 (grey) or 3 (colour); {hint}")
    if fits := nearest_sides(sides):
        size = " x ".join(map(str, sides))
        raise TinydiffError(
            f"pictures of {size} pixels: sides must be multiples of 4; choose --size {' or '.join(map(str, fits))}"
        )
    halvings = 2
    while min(sides) > LOWEST << halvings and not any(side % (2 << halvings) for side in sides):
        halvings += 1
    attention = [k for k in range(halvings + 1) if max(sides) >> k <= ATTENDED] if halvings > 2 else []
    mults = [1] + [2] * halvings
    return {
        "in_channels": in_channels,
        "base_channels": channels,
        "channel_mults": mults,
        "attention_levels": attention,
        "num_classes": num_classes,
    }


def nearest_sides(sides: Sequence[int]) -> list[int]:
    """The multiples of 4 next to the smallest side, from 8 on, if some side cannot be halved twice; otherwise []."""
    least = max(8, min(sides) // 4 * 4)
    return [least, least + 4] if any(side % 4 for side in sides) else []


def cost(state: Training) -> str:
    """A sentence on what a step takes: its time, measured by some gradients, and on the CPU the memory of all workers.

    The memory is that of the parameters, and the peak of a gradient of a few pictures in proportion to the batch size.
    The function prints a note if the clock is too short for the warm-up, at whose end it acts (training.steps).
    """
    config: Any = state.config
    seconds = gradient_seconds(state.gradients, state.losses_of, state.draw, config, 1, 1)[-1]
    time = f"a step of {config.batch_size} pictures takes about {seconds:.2g} s"
    if config.minutes and state.step < config.warmup and seconds * config.warmup > 60 * config.minutes:
        short = f"{config.minutes:g} minutes are too short for the warm-up of {config.warmup} steps"
        print(f"note: {short}, which is done all the same")
    if backend_name() != "numpy":
        return time
    model: Any = build_unet(state.model.config, 0)
    n = min(FEW, state.config.batch_size)
    batch = state.draw(replace(state.config, batch_size=n), 0)
    tracemalloc.start()
    gradients_of(model, state.losses_of, batch)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    numbers = COPIES * 4 * model.num_parameters() + peak * state.config.batch_size / n
    return f"{time} and {numbers / 1e6:,.0f} MB"
