"""The default network fits the size of the pictures; its cost is that of a step."""

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from small_run import CONFIG, small_run

from tinydiff.app import networks
from tinydiff.app.generate import build_unet
from tinydiff.app.networks import default_network
from tinydiff.backend import TinydiffError, backend_name
from tinydiff.data import Dataset
from tinydiff.train import gradients_of

pytestmark = pytest.mark.program


@pytest.mark.parametrize(
    ("side", "mults", "attention"),
    [
        (8, [1, 2, 2], []),
        (16, [1, 2, 2], []),
        (28, [1, 2, 2], []),
        (32, [1, 2, 2], []),
        (36, [1, 2, 2], []),  # 36 is no multiple of 8
        (64, [1, 2, 2, 2], [2, 3]),  # maps of 64, 32, 16, 8
        (128, [1, 2, 2, 2, 2], [3, 4]),
    ],
)
def test_the_network_by_the_size_of_the_pictures(side, mults, attention):
    """The levels, and the levels with attention: those whose maps have at most 16 x 16 pixels, of four levels on."""
    network = default_network((side, side, 3), 4)
    assert (network["channel_mults"], network["attention_levels"]) == (mults, attention)
    assert (network["in_channels"], network["num_classes"], network["base_channels"]) == (3, 4, 32)


def test_for_digits_it_is_the_reference_network():
    """1,062,497 parameters without classes, and the settings of UNet's own defaults."""
    network = build_unet(default_network((28, 28, 1), None), 0)
    assert network.num_parameters() == 1_062_497
    assert network.config == build_unet({}, 0).config


@pytest.mark.parametrize("shape", [(16, 16, 3), (32, 64, 1), (64, 64, 3), (40, 24, 3)])
def test_the_network_draws_its_pictures(shape):
    """What comes out has the shape of what goes in, also where the sides differ."""
    network = build_unet(default_network(shape, None, 8), 0)
    assert network(np.zeros((1, *shape), np.float32), 5).shape == (1, *shape)


@pytest.mark.parametrize(
    ("shape", "channels", "said"),
    [
        ((30, 30, 3), None, "pictures of 30 x 30 pixels: sides must be multiples of 4; choose --size 28 or 32"),
        ((28, 30, 3), None, "pictures of 28 x 30 pixels: sides must be multiples of 4; choose --size 28 or 32"),
        ((28, 42, 3), None, "pictures of 28 x 42 pixels: sides must be multiples of 4; choose --size 28 or 32"),
        ((42, 28, 3), None, "pictures of 42 x 28 pixels: sides must be multiples of 4; choose --size 28 or 32"),
        ((11, 10, 3), None, "pictures of 11 x 10 pixels: sides must be multiples of 4; choose --size 8 or 12"),
        ((2, 2, 3), None, "pictures of 2 x 2 pixels: sides must be multiples of 4; choose --size 8 or 12"),
        ((32, 32, 4), None, "pictures with 4 channels: must have 1 (grey) or 3 (colour); images[..., :3] leaves out"),
        ((3, 32, 28), None, "pictures with 28 channels: must have 1 (grey) or 3 (colour); images.transpose(0, 2, 3"),
        ((1, 28, 28), None, "pictures with 28 channels: must have 1 (grey) or 3 (colour); images.transpose(0, 2, 3"),
        ((32, 32, 2), None, "pictures with 2 channels: must have 1 (grey) or 3 (colour); choose other pictures"),
        ((32, 32, 3), 12, "--channels 12: must be a multiple of 8"),
    ],
)
def test_what_no_network_fits_is_a_sentence(shape, channels, said):
    """Sides that cannot be halved twice, with sizes that can; other channels; a width without groups."""
    with pytest.raises(TinydiffError) as error:
        default_network(shape, 3, channels)
    assert str(error.value).startswith(said)


@pytest.mark.skipif(backend_name() != "numpy", reason="memory is counted on the host")
def test_the_cost_is_a_steps_time_and_memory(monkeypatch):
    """The time is the last gradient's.  The memory: 16 bytes a parameter, and a MB a picture: eight are
    measured where a batch has 64.  A smaller batch is measured as it is."""
    monkeypatch.setattr(networks, "gradient_seconds", lambda *_: [9.0, 0.5])
    monkeypatch.setattr(
        networks, "gradients_of", lambda model, losses_of, batch: taken.append(bytes(10**6 * len(batch["t"])))
    )
    for size, expected in ((64, 64), (2, 2)):
        taken = []
        state = small_run(replace(CONFIG, batch_size=size))
        numbers = 16 * state.model.num_parameters() / 1e6
        words = networks.cost(state).split()
        assert " ".join(words[:10]) == f"a step of {size} pictures takes about 0.5 s and" and words[-1] == "MB"
        assert float(words[-2]) == pytest.approx(expected + numbers, abs=1.5) and len(taken[0]) == min(size, 8) * 10**6


@pytest.mark.parametrize("minutes, step, noted", [(None, 0, False), (1.1, 0, False), (0.9, 0, True), (0.9, 20, False)])
def test_minutes_that_the_warm_up_does_not_fit_into_are_noted(monkeypatch, capsys, minutes, step, noted):
    """20 steps of 3 seconds take a minute, and the clock decides after them; a run that has done them needs no note."""
    monkeypatch.setattr(networks, "gradient_seconds", lambda *_: [3.0])
    state = small_run(replace(CONFIG, minutes=minutes, warmup=20))
    state.step = step
    networks.cost(state)
    note = "minutes are too short for the warm-up of 20 steps, which is done all the same"
    assert capsys.readouterr().out == (f"note: {minutes} {note}\n" if noted else "")


@pytest.mark.skipif(backend_name() != "numpy", reason="memory is counted on the host")
def test_the_cost_of_a_real_step_is_about_its_peak():
    """The peak of a batch of 16 pictures, in one process, within a third: a batch of eight repeats less of a layer."""
    config = replace(CONFIG, batch_size=16)
    wide = Dataset("wide", np.zeros((16, 32, 32, 3), np.uint8), None, "black", ())
    network = default_network((32, 32, 3), None, 8)
    state = small_run(config, network, dataset=wide)
    said = float(networks.cost(state).split()[-2].replace(",", ""))
    model, batch = build_unet(network, 0), state.draw(config, 0)
    tracemalloc.start()
    gradients_of(model, state.losses_of, batch)
    peak = tracemalloc.get_traced_memory()[1] / 1e6 + 16 * model.num_parameters() / 1e6
    tracemalloc.stop()
    assert 2 / 3 * peak < said < 4 / 3 * peak
