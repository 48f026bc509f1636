"""The rules of settings, shapes and numbers: what fits passes, what does not is named with its value and the rule."""

import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinydiff.app.archive import CheckpointError
from tinydiff.app.rules import (
    LINE,
    Rule,
    check_numbers,
    check_settings,
    check_weights,
    items,
    maybe,
    number,
    old,
    one_of,
    shapes_of,
    whole,
)
from tinydiff.backend import default_rng, xp
from tinydiff.more.autoencoder import Autoencoder
from tinydiff.more.classifier import Classifier
from tinydiff.more.text import TextUNet
from tinydiff.nn import UNet

pytestmark = pytest.mark.program

NAN, INF = math.nan, math.inf
VALUES = [
    None,
    True,
    False,
    0,
    1,
    -1,
    2,
    10**400,
    1.0,
    0.5,
    -0.5,
    NAN,
    INF,
    -INF,
    "",
    "a",
    "a\n",
    "\x1b[1m",
    [],
    [1],
    {},
]
VALUES += [[1, 1.0], [1, 2, 2], "a" * 101, [[1]], {"a": 1}, "1"]


@pytest.mark.parametrize(
    ("rule", "fitting"),
    [
        (whole(0, 2), [0, 1, 2]),
        (whole(-1), [-1, 0, 1, 2]),
        (number(-0.5, 1), [0, 1, 1.0, 0.5, -0.5]),
        (number(0, INF), [0, 1, 2, 10**400, 1.0, 0.5, INF]),
        (items(whole(1), 1, 3), [[1], [1, 2, 2]]),
        (items(whole(1), 0, 1), [[], [1]]),
        (maybe(whole(2)), [None, 2]),
        (one_of("a", "", True), ["a", "", True]),
        (one_of(1), [1]),
        (LINE, ["a", "1"]),
    ],
)
def test_a_rule_fits_its_values_and_no_others(rule, fitting):
    """The type counts, not only the value: True is no number, 1.0 no whole number, nan in no range."""
    for value in VALUES:
        expected = any(type(value) is type(other) and value == other for other in fitting)
        assert bool(rule.fits(value)) == expected, value
        assert bool(old(rule).fits(value)) == expected and not old(rule).needed and rule.needed


RULES = {"step": whole(1, 9), "rate": old(number(0, 1)), "data": {"name": LINE, "more": {"size": old(whole(1))}}}
GOOD = {"step": 3, "data": {"name": "a", "more": {}}}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, None),
        ({"other": [NAN]}, None),  # what no program reads
        ({"rate": 0.5}, None),
        ({"rate": None}, r"rate = None, which must be a number from 0 to 1$"),
        ({"step": 10}, r"step = 10, which must be a whole number in 1\.\.9$"),
        ({"step": True}, r"step = True, which"),
        ({"step": "\x1b[1m" + "a" * 10**6}, r"step = '\\x1b\[1ma+\.\.\., which"),
        ({"data": 7}, r"no group of settings data, with name, more$"),
        ({"data": {"name": "a"}}, r"no group of settings data\.more, with size$"),
        ({"data": {"name": "a", "more": {"size": 0}}}, r"data\.more\.size = 0, which"),
        ({"data": {"more": {}}}, r"no setting data\.name, which must be a line of 1 to 100 printable letters$"),
    ],
)
def test_the_first_setting_that_does_not_fit_is_named(change, said):
    """With its groups, its value, escaped and cut, and its rule; old checkpoints may lack what is old."""
    if said is None:
        check_settings(GOOD | change, RULES)
        return
    with pytest.raises(CheckpointError, match=f"^contains {said}") as error:
        check_settings(GOOD | change, RULES)
    assert len(str(error.value)) < 400 and str(error.value).isprintable()


def test_settings_that_are_no_group_are_refused():
    """Whatever stands in the place of all settings."""
    for found in (None, [], "step", 3):
        with pytest.raises(CheckpointError, match="contains no group of settings meta, with step, rate, data"):
            check_settings(found, RULES)


SHAPES = {"w": (2, 3), "b": ()}
WEIGHTS = {"w": np.zeros((2, 3), np.float32), "b": np.zeros((), np.float32)}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"w": WEIGHTS["w"].astype(">f4")}, None),
        ({"other": np.zeros(3)}, None),
        ({"w": None}, r"no w; this network's has shape \(2, 3\) and dtype float32"),
        ({"w": WEIGHTS["w"].T}, r"w of shape \(3, 2\) and dtype float32; this"),
        ({"w": WEIGHTS["w"].astype("f8")}, r"w of shape \(2, 3\) and dtype float64; this"),
        ({"w": WEIGHTS["w"].astype("c8")}, r"w of shape \(2, 3\) and dtype complex64; this"),
        ({"b": np.zeros((), "U4")}, r"b of shape \(\) and dtype <U4; this"),
        ({"w": np.zeros((1,) * 30, np.float32)}, r"w of shape \(1, 1"),
    ],
)
def test_weights_have_the_networks_shapes_and_are_float32(change, said):
    """In any byte order; the first that does not fit is named with what it is and what it must be."""
    arrays = {name: a for name, a in (WEIGHTS | change).items() if a is not None}
    if said is None:
        check_weights(arrays, SHAPES)
    else:
        with pytest.raises(CheckpointError, match=f"^contains {said}"):
            check_weights(arrays, SHAPES)


def test_numbers_are_finite_and_tables_fit_their_rules():
    """nan and inf anywhere are named by their array; a table has a rule of its own; squares are not negative."""
    tables = {"table": Rule("as long as step", lambda a, meta: len(a) == meta["step"])}
    good = {"w": np.ones(3, np.float32), "adam_v/w": np.ones(3), "table": np.array([NAN, 1])}
    check_numbers(good, tables, {"step": 2})
    for value in (NAN, INF, -INF):
        with pytest.raises(CheckpointError, match=r"^contains w with numbers that are not finite$"):
            check_numbers(good | {"w": np.array([1, value])}, tables, {"step": 2})
    with pytest.raises(CheckpointError, match=r"^contains adam_v/w with negative numbers"):
        check_numbers(good | {"adam_v/w": np.array([1, -1e-9])}, tables, {"step": 2})
    with pytest.raises(CheckpointError, match=r"^contains a wrong table, which must be as long as step$"):
        check_numbers(good, tables, {"step": 3})
    with pytest.raises(CheckpointError, match=r"^contains no table, which must be as long as step$"):
        check_numbers({"w": good["w"]}, tables, {"step": 2})


UNET = {"base_channels": 8, "channel_mults": [1, 2], "num_heads": 2, "num_groups": 4, "attention_levels": [1]}
ENCODER = {"num_words": 7, "max_length": 5, "features": 8, "num_blocks": 2, "num_heads": 2}
MAKES = {
    "UNet": lambda rng: UNet(**UNET, num_classes=3, rng=rng),
    "UNet without classes": lambda rng: UNet(**UNET, rng=rng),
    "Classifier": lambda rng: Classifier(channels=[4, 8], rng=rng),
    "noisy Classifier": lambda rng: Classifier(channels=[4, 8], time=True, rng=rng),
    "Autoencoder": lambda rng: Autoencoder(channels=[8, 16], num_classes=3, rng=rng),
    "TextUNet": lambda rng: TextUNet(ENCODER, UNET, rng=rng),
}


@pytest.mark.parametrize("name", MAKES)
def test_the_shapes_are_those_of_the_network_itself(name):
    """Every parameter of every network that is saved, by name and in order.  Afterwards arrays have numbers again."""
    before = dict(vars(xp))
    network = MAKES[name](default_rng(0))
    expected = {parameter: p.shape for parameter, p in network.named_parameters()}
    assert list(shapes_of(MAKES[name], len(expected)).items()) == list(expected.items())
    with pytest.raises(CheckpointError, match=f"settings of no network: it has more than {len(expected) - 1} arrays"):
        shapes_of(MAKES[name], len(expected) - 1)
    assert before.items() <= vars(xp).items() and float(xp.zeros(3, "float32").sum()) == 0


@given(st.integers(1, 2**19), st.integers(1, 10**5), st.integers(1, 8))
def test_the_shapes_of_any_network_take_no_memory(half, blocks, levels):
    """A U-Net of a million channels and 100,000 blocks a level: its shapes, or that it has too many arrays."""

    def make(rng):
        config = {"base_channels": 2 * half, "channel_mults": [1] * levels, "num_res_blocks": blocks}
        return UNet(**config, num_heads=1, num_groups=1, rng=rng)

    tracemalloc.start()
    try:
        found = shapes_of(make, 500)
        assert found["conv_in.w"] == (3, 3, 1, 2 * half) and len(found) <= 500
    except CheckpointError as error:
        assert "more than 500 arrays" in str(error) and levels * blocks * 20 > 400
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5 << 20


def test_settings_of_no_network_are_a_sentence():
    """What the network's own checks raise, and an option that it does not have, escaped and cut."""
    for make, said in (
        (lambda rng: UNet(base_channels=7, rng=rng), "base_channels must be even"),
        (lambda rng: UNet(base_channels=12, num_groups=8, rng=rng), "num_groups=8 does not divide"),
        (lambda rng: UNet(**{"\x1b" * 1000: 1}, rng=rng), r"unexpected keyword argument .*\\x1b"),
    ):
        with pytest.raises(CheckpointError, match=f"^contains settings of no network: .*{said}") as error:
            shapes_of(make, 1000)
        assert str(error.value).isprintable() and len(str(error.value)) < 1000
    assert float(xp.full(2, 3, "float32").sum()) == 6
