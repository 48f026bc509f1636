"""The cards of the explorer: what they ask, where they point, and that every number on them is one of the code's."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from exact import told_of_last_noise

from tinydiff import nn
from tinydiff.backend import backend_name
from tinydiff.diffusion import Schedule
from tinydiff.optim import EMA
from tinydiff.train import TrainConfig

ROOT = Path(__file__).parents[3]
CARDS = json.loads((ROOT / "demos" / "explorer" / "cards.json").read_text("utf-8"))
TOUR = (ROOT / "demos" / "README.md").read_text("utf-8")
LINEAR = Schedule.linear()

pytestmark = [
    pytest.mark.program,
    pytest.mark.skipif(backend_name() != "numpy", reason="one backend is enough: cards hold no arrays"),
]


def quoted(sentence: str) -> list[str]:
    """The numbers that a sentence of the tour has; `sentence` is a regular expression with a group for each."""
    (found,) = re.findall(sentence, TOUR)
    return list(found) if isinstance(found, tuple) else [found]


def shares() -> list[str]:
    return [f"{told_of_last_noise(LINEAR, t):.{digits}f}" for t, digits in ((2, 2), (100, 3), (500, 3))]


def of_network() -> list[str]:
    model = nn.UNet(rng=np.random.default_rng(0))
    return [f"{sum(p.data.size for p in model.parameters()):,}", "60,000", f"{60_000 * 28 * 28:,}"]


def of_time() -> list[str]:
    growth = (LINEAR.one_minus_alpha_bar[2] / LINEAR.one_minus_alpha_bar[1]) ** 0.5
    return [f"{1 / LINEAR.T:g}", f"{growth - 1:.0%}"]


def of_average() -> list[str]:
    ema = EMA([])
    first = min(ema.decay, (1 + ema.num_updates) / (10 + ema.num_updates))
    return [f"{first:g}", f"{TrainConfig.ema_decay:g}"]


def of_shapes() -> list[str]:
    """The sides of the reference network's maps, which each level halves."""
    levels = len(nn.UNet(rng=np.random.default_rng(0)).config["channel_mults"])
    return [f"{28 >> level}x{28 >> level}" for level in range(levels)]


GUIDANCE = r"After \d+ steps, (\d+) digits.*scale (\d) alone ([\d.]+%) .*?, (\d+%); both (\d): ([\d.]+%) .*?, (\d+%);"
ONE_SHOT = r"\| {}, ([\d,]+) ev.* \| [\d,]+, ([\d.]+) \| ([\d.]+%) .*\) \| ([\d.]+)"
HELD = {  # how a question begins -> its numbers in their order, from the code or from the tour; the others have none
    "Which noise": shares,
    "Myth or not: a network draws": of_network,
    "Myth or not: more steps": lambda: [
        *quoted(r"the share of ([\d,]+) digits read as asked"),
        *(n for steps in ("5", "10", "1,000") for n in (steps, *quoted(rf"\n\| {steps} \| (\d+\.\d%), "))),  # of 1,000
    ],
    "Myth or not: the larger": lambda: quoted(GUIDANCE),
    "Before reading on: noise": lambda: [f"{LINEAR.beta_tilde(1, 0):g}"],
    "Before reading on: the loss": lambda: quoted(r"The loss stops falling at ([\d.]+)\."),
    "Before reading on: the network is given": of_time,
    "A VAE": lambda: [quoted(ONE_SHOT.format("VAE"))[3], *np.array(quoted(ONE_SHOT.format("DDPM")))[[0, 3]]],
    "A GAN": lambda: [
        quoted(ONE_SHOT.format("GAN"))[2],
        *quoted(r"\| (500) digits"),
        quoted(ONE_SHOT.format("GAN"))[3],
        *quoted(r"\| GAN.* \| ([\d.]+) \|\n"),
    ],
    "Why may diffusion work": lambda: [
        *("28x28", f"{28 * 28}", *quoted(r"on the (7x7x4) latents"), f"{7 * 7 * 4}"),
        *quoted(r"takes ([\d.]+) s instead of ([\d.]+), a training"),
        *reversed(quoted(r"The Frechet distance is ([\d.]+), with pixels ([\d.]+)")),
    ],
    "Why does a U-Net": of_shapes,
    "Why are pictures drawn with an average": of_average,
    "Trained on 20": lambda: [*quoted(r"trains on (20) pictures and on ([\d,]+):"), "5,000", "20", "20"],
}
NAMES_OF_TIMES = r"\bt = \d+|\bstep \d+|\d[MD]\b|\(1 \+ step\)/\(10 \+ step\)|1 [-−] |stop \d+"


def text_of(card: dict) -> str:
    return " ".join([card["question"], card["right"], *card["wrong"], *card["answer"]])


def numbers(text: str) -> list[str]:
    """Every number of a text, in its order, but times and those of formulas and names."""
    return re.findall(r"(?<![\w.])\d[\dx]*(?:[.,]\d+)*%?(?!\w)", re.sub(NAMES_OF_TIMES, " ", text))


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card["question"][:40])
def test_every_number_of_a_card_is_one_of_the_code_or_of_the_tour(card):
    """A network's size and a share of noise are computed here; what was measured stands in the tour, row by row."""
    held = [numbers for start, numbers in HELD.items() if card["question"].startswith(start)]
    assert len(held) <= 1
    assert numbers(text_of(card)) == (held[0]() if held else [])


def test_a_card_asks_for_a_choice_of_three():
    """One right and two wrong answers, all different; a question that is asked once; an answer, and its places."""
    assert len({card["question"] for card in CARDS}) == len(CARDS)
    for card in CARDS:
        choices = [card["right"], *card["wrong"]]
        assert len(set(choices)) == len(choices) == 3 and all(text.endswith(".") for text in choices), card["question"]
        assert card["question"].endswith("?") and card["answer"] and card["places"]
        assert list(card) == ["question", "right", "wrong", "answer", "places"]


def test_the_cards_have_the_topics_of_the_tour():
    """Four myths, four questions before reading on, and a card for each thing that the tour trains or warns of."""
    questions = [card["question"] for card in CARDS]
    assert sum(q.startswith("Myth or not: ") for q in questions) == 4
    assert sum(q.startswith("Before reading on: ") for q in questions) == 4
    for topic in ("VAE", "GAN", "latents", "U-Net", "(EMA)", "copies", "Which noise", "label", "prompt", "schedule"):
        assert any(topic in text_of(card) for card in CARDS), topic
