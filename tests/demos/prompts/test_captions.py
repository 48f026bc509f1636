"""What is measured on a picture, how it is said, and that what was held out is never shown."""

import copy
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinydiff.backend import TinydiffError, default_rng
from tinydiff.data import load
from tinydiff.diffusion import Schedule
from tinydiff.train import TrainConfig, draw_batch

pytestmark = pytest.mark.program

SEEDS = st.integers(0, 2**32 - 1)


@pytest.fixture(scope="module")
def captions(load_demo):
    return load_demo("prompts/captions")


@pytest.fixture(scope="module")
def captioned(captions):
    """The captioned data set of 400 glyphs, and the pictures that it was made of."""
    glyphs = load("glyphs", num=400)
    return captions.Captioned(glyphs, Schedule.linear()), glyphs


def bar(width, length, shear=0.0, side=64):
    """A stroke drawn at 8 x 8 points a pixel, each row moved by -shear for each pixel down: (1, H, W, 1)."""
    y, x = (np.indices((8 * side, 8 * side)) + 0.5) / 8 - side / 2
    ink = (abs(x + shear * y) < width / 2) & (abs(y) < length / 2)
    return 2 * ink.reshape(side, 8, side, 8).mean((1, 3))[None, ..., None] - 1


# What is measured.


@settings(max_examples=10)
@given(st.sampled_from([2.0, 3.0, 4.0, 5.5]), st.sampled_from([30, 40]), st.booleans())
def test_the_thickness_of_a_stroke_is_its_width(captions, width, length, lying):
    """2 L w / (2 L + 2 w) for a bar: w but for its ends; and the same for one that lies."""
    image = bar(width, length)
    thickness = captions.measure(image.swapaxes(1, 2) if lying else image)["thickness"]
    # 3%: the corners of a bar of pixels count as 1/sqrt(2) of a pixel, not 1, four times of more than 60
    assert thickness == pytest.approx(length * width / (length + width), rel=0.03)


@settings(max_examples=10)
@given(st.floats(-0.6, 0.6))
def test_the_slant_of_a_sheared_stroke_is_its_shear(captions, shear):
    """x moves by -slant for each pixel down: its value, its sign, and the other sign in the mirror."""
    image = bar(3, 40, shear)
    slant, mirrored = captions.measure(np.concatenate([image, image[:, :, ::-1]]))["slant"]
    # 0.005: the ink is drawn at 8 points a pixel, on a length of 40
    assert slant == pytest.approx(shear, abs=0.005) and mirrored == pytest.approx(-slant, abs=1e-12)


def test_a_slant_is_positive_where_the_top_leans_right(captions):
    """As one would say it of a stroke from the upper right to the lower left."""
    image = np.full((1, 28, 28, 1), -1.0)
    image[0, np.arange(5, 23), 27 - np.arange(5, 23)] = 1
    assert captions.measure(image)["slant"] == pytest.approx(1)
    assert captions.measure(image[:, ::-1])["slant"] == pytest.approx(-1)


@settings(max_examples=10)
@given(st.integers(3, 6), st.floats(-0.3, 0.3))
def test_a_picture_twice_as_large_is_twice_as_thick_and_large_and_leans_as_before(captions, width, shear):
    """Thickness and size are lengths, slant is a ratio; none of them depends on where the picture stands."""
    small = bar(width, 20, shear, side=48)
    moved = np.roll(small, (5, -3), (1, 2))
    twice = captions.measure(bar(2 * width, 40, shear, side=96))
    once, elsewhere = captions.measure(small), captions.measure(moved)
    for name, factor in (("thickness", 2), ("size", 2), ("slant", 1)):
        # 8%: corners and blurred edges of a stroke 3 pixels wide and 20 long
        assert twice[name] == pytest.approx(factor * once[name], rel=0.08, abs=0.01)
        assert elsewhere[name] == pytest.approx(once[name], rel=1e-9, abs=1e-9)
    assert once["size"] == pytest.approx(((width**2 + 20**2) / 12 + (shear * 20) ** 2 / 12) ** 0.5, rel=0.02)


def test_a_picture_without_ink_has_no_measure(captions):
    """All three are 0, without a warning of a division by 0; a picture is measured alone, whatever stands beside it."""
    blank, stroke = np.full((1, 64, 64, 1), -1.0), bar(3, 40, 0.2)
    measured = captions.measure(np.concatenate([blank, stroke]))
    alone = captions.measure(stroke)
    for name, values in measured.items():
        assert values[0] == 0 and values[1] == alone[name][0]


def test_many_pictures_are_measured_as_few(captions, captioned, monkeypatch):
    """In slices: the same numbers in the same order."""
    images, _ = captioned[1].batch(np.arange(50))
    whole = captions.measure(images)
    monkeypatch.setattr(captions, "SLICE", 17)
    for name, values in captions.measure(images).items():
        np.testing.assert_array_equal(values, whole[name])


def test_a_third_is_thin_a_third_is_thick_and_left_is_left_of_0(captions):
    """Names by the training set's own quantiles; where nothing leans left, only what is below -0.05 is called so."""
    rng = default_rng(0)
    measured = {"thickness": rng.uniform(1, 4, 900), "slant": rng.normal(0.1, 0.3, 900), "size": rng.normal(7, 1, 900)}
    bounds = captions.thresholds(measured)
    names = captions.name(measured, bounds)
    assert [(names["thickness"] == word).sum() for word in ("thin", "", "thick")] == [300, 300, 300]
    assert [(names["size"] == word).sum() for word in ("small", "", "large")] == [300, 300, 300]
    assert [(names["slant"] == word).sum() for word in ("left", "right")] == [180, 270]
    for a, between in (("thickness", bounds["thickness"][1]), ("slant", 0), ("size", bounds["size"][1])):
        low, high = (measured[a][names[a] == word] for word in captions.NAMES[a])
        assert low.max() < between < high.min()
    left = bounds["slant"][0]
    np.testing.assert_array_equal(names["slant"] == "upright", abs(measured["slant"]) < -left / 2)
    assert bounds["thickness"][1] == pytest.approx(np.median(measured["thickness"]))
    assert captions.thresholds(measured | {"slant": np.full(900, 0.02)})["slant"] == [-0.05, 0.02, 0.05]


# How it is said.


def attributes(captions):
    """Any attributes, none, some or all of them."""
    values = {"digit": captions.DIGITS, **captions.NAMES}
    values["slant"] += ("upright",)
    return st.fixed_dictionaries({}, optional={a: st.sampled_from(names) for a, names in values.items()})


@given(st.data(), SEEDS)
def test_what_the_grammar_says_parse_reads_back(captions, data, seed):
    """For any attributes, in any of the ways to say them; each caption has a row of tokens, its words in order."""
    wanted, rng = data.draw(attributes(captions)), default_rng(seed)
    for _ in range(5):
        text = captions.caption(wanted, rng)
        assert captions.parse(text) == wanted, text
        tokens = captions.tokenize(text)
        words = [captions.VOCABULARY[i] for i in tokens]
        assert len(tokens) == captions.MAX_TOKENS and words == ["<start>", *text.split()] + [""] * words.count("")


def test_the_grammar_has_many_ways_and_uses_every_word(captions):
    """A thousand captions use the whole vocabulary; one set of attributes is said in dozens of ways."""
    rng = default_rng(0)
    every = {"thickness": "thick", "slant": "left", "size": "small"}
    texts = {captions.caption({"digit": "seven", **every}, rng) for _ in range(300)}
    assert len(texts) > 200 and len({" ".join(sorted(text.split())) for text in texts}) > 100
    others = [dict(zip(captions.NAMES, row)) for row in (("thin", "right", "large"), ("thin", "upright", "large"))]
    for digit in captions.DIGITS:
        for some in (every, *others):
            texts |= {captions.caption({"digit": digit} | some, rng) for _ in range(10)}
            texts |= {captions.caption(some, rng) for _ in range(10)}
    assert {word for text in texts for word in text.split()} == set(captions.VOCABULARY[2:])
    assert len(set(captions.VOCABULARY)) == len(captions.VOCABULARY) < 60


def test_articles_are_right(captions):
    """An upright, an eight, an 8; a one, a two."""
    rng = default_rng(0)
    for digit in captions.DIGITS:
        for slant in ({}, {"slant": "upright"}):
            for words in (captions.caption({"digit": digit, **slant}, rng).split() for _ in range(40)):
                if words[0] in ("a", "an"):
                    assert (words[0] == "an") == (words[1] in ("upright", "eight", "8")), words


def test_the_empty_prompt_is_the_start_alone(captions):
    """Attention always has a key; capital letters and spaces do not matter."""
    assert captions.tokenize("") == [captions.START] + [0] * (captions.MAX_TOKENS - 1) and captions.parse("") == {}
    assert captions.tokenize("  A Thick\tSeven ") == captions.tokenize("a thick seven")


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("a thik seven", "does not know the word 'thik'; did you mean thick"),
        ("sevn", "'sevn'; did you mean seven"),
        ("a purple two", "'purple'; it knows: thin fine light"),
        ("<start>", "does not know the word '<start>'"),
        ("two " * 16, "a prompt may have 15 words, got 16"),
    ],
)
def test_a_word_that_it_does_not_know_is_named_with_the_nearest(captions, prompt, message):
    """Or with all that it knows, where none is near; and a prompt that is too long is named with its length."""
    with pytest.raises(TinydiffError, match=message):
        captions.tokenize(prompt)


# The data set.


def test_what_is_held_out_is_never_shown(captions, captioned):
    """No picture that is all three of a held-out combination is left, and no other is lost."""
    made, glyphs = captioned
    images, digits = glyphs.batch(np.arange(len(glyphs)))
    names = captions.name(captions.measure(images), made.thresholds)
    rows = [(captions.DIGITS[k], t, s) for k, t, s in zip(digits, names["thickness"], names["slant"])]
    keep = [i for i, row in enumerate(rows) if row not in captions.HELD_OUT]
    assert made.left_out == len(glyphs) - len(keep) > 0
    np.testing.assert_array_equal(made.dataset.images, glyphs.images[keep])
    np.testing.assert_array_equal(made.names["digit"], [rows[i][0] for i in keep])
    rng, named = default_rng(0), set()
    for i in range(len(made.dataset)):
        for _ in range(5):
            named.add(tuple(captions.parse(made.caption(i, rng)).get(a) for a in ("digit", "thickness", "slant")))
    assert not named & set(captions.HELD_OUT)
    assert {row[0] for row in named} == {*captions.DIGITS, None} and len(named) > 60


def test_the_held_out_combinations_are_ten_one_a_digit(captions):
    """Half of them thin, half leaning left: what has a name and a side."""
    assert [row[0] for row in captions.HELD_OUT] == list(captions.DIGITS)
    _, thicknesses, slants = zip(*captions.HELD_OUT)
    assert thicknesses.count("thin") == slants.count("left") == 5
    assert {row[1:] for row in captions.HELD_OUT} == {(t, s) for t in ("thin", "thick") for s in ("left", "right")}


def test_a_batch_is_draw_batchs_with_captions_in_the_place_of_labels(captions, captioned):
    """The same x_t, t and target; each row of tokens says what holds of its own picture, or nothing one time in ten."""
    made, config = captioned[0], TrainConfig(batch_size=300)
    batch = made.draw(config, 4)
    plain = draw_batch(made.dataset, Schedule.linear(), len(made.dataset), config, 4)
    for key in ("x_t", "t", "target"):
        np.testing.assert_array_equal(batch[key], plain[key])
    assert batch["labels"].shape == (300, captions.MAX_TOKENS)
    empty = captions.tokenize("")
    dropped = plain["labels"] == len(made.dataset)
    assert dropped.any() and all(row == empty for row in batch["labels"][dropped].tolist())
    spoken = dict.fromkeys(captions.KEEP, 0)
    for i, row in zip(plain["labels"][~dropped], batch["labels"][~dropped]):
        named = captions.parse(" ".join(captions.VOCABULARY[word] for word in row[1:]))
        assert named.items() <= {a: values[i] for a, values in made.names.items()}.items()
        spoken = {a: n + (a in named) for a, n in spoken.items()}
    # Of some 270 pictures 90% name the digit, and 75% of two thirds the thickness: five deviations are 0.09 and 0.15.
    shares = {a: n / (~dropped).sum() for a, n in spoken.items()}
    assert abs(shares["digit"] - 0.9) < 0.09 and abs(shares["thickness"] - 0.5) < 0.15


def test_a_caption_names_an_attribute_with_its_probability(captions):
    """Digit 90%, thickness and slant 75%, size 40%, each by a number of its own; what has no name takes no number."""
    attributes = {"digit": "two", "thickness": "", "slant": "left", "size": "small"}

    def names_with(*numbers):
        left = iter(numbers)
        named = captions.draw_attributes(attributes, SimpleNamespace(random=lambda: next(left)))
        assert next(left, None) is None
        return list(named.items())

    assert names_with(0.899, 0.749, 0.399) == [("digit", "two"), ("slant", "left"), ("size", "small")]
    assert names_with(0.901, 0.751, 0.401) == []
    attributes |= {"thickness": "thin", "digit": "", "size": ""}
    assert names_with(0.749, 0.751) == [("thickness", "thin")] and names_with(0.751, 0.749) == [("slant", "left")]


def test_a_step_says_it_anew_and_the_seed_decides_how(captions, captioned):
    """Of one picture alone: the same seed and step give the same captions, any other seed or step others."""
    one = copy.copy(captioned[0])
    one.dataset = replace(one.dataset, images=one.dataset.images[:1], labels=one.dataset.labels[:1])

    def rows(seed, step):
        config = TrainConfig(batch_size=40, label_drop=0.0, seed=seed)
        return one.draw(config, step)["labels"].tolist()

    assert rows(0, 1) == rows(0, 1)
    assert len({str(rows(seed, step)) for seed in range(2) for step in range(4)}) == 8
    assert len({tuple(row) for row in rows(0, 1)}) > 15


def test_a_set_of_held_out_pictures_only_is_refused(captions, monkeypatch):
    """Nothing would be left to train on: the error says how to have more pictures."""
    monkeypatch.setattr(captions, "held_out", lambda digits, names: np.ones(len(digits), bool))
    with pytest.raises(TinydiffError, match="all 3 pictures are of held-out combinations: take more, see --num-images"):
        captions.Captioned(load("glyphs", num=3), Schedule.linear())


# What a checkpoint may contain.


def test_a_checkpoint_s_words_are_words_and_its_combinations_are_some(captions):
    """Padding and the start come first, then words of at most 30 letters and digits, none twice; 1 to 39 combinations
    of digit, thickness and slant."""
    fits, words = captions.WORDS.fits, [*captions.VOCABULARY]
    assert fits(words) and fits(["", "<start>", "a" * 30]) and fits(["", "<start>"])
    for wrong in (tuple(words), words[1:], ["<start>", "", "a"], [*words, "a" * 31], [*words, words[5]]):
        assert not fits(wrong)
    assert not any(fits([*words, word]) for word in ("two words", "<b>", "", 3, None))
    fits, every = (
        captions.COMBINATIONS.fits,
        [[d, t, s] for d in captions.DIGITS for t in ("thin", "thick") for s in ("left", "right")],
    )
    assert fits(every[:1]) and fits(every[:39])
    for wrong in (
        [],
        every,
        tuple(every[:2]),
        [every[0][:2]],
        [["ten", "thin", "left"]],
        [["two", "thin", "upright"]],
        ["two"],
    ):
        assert not fits(wrong)


def test_a_checkpoint_s_network_reads_its_words(captions):
    """The encoder has a vector for each word, and a place for each token.  Each attribute has three bounds.  Only a
    checkpoint of an earlier version has no number of images."""
    kind = captions.KINDS["prompts"]
    (together,) = (rule.fits for rule in kind.together if "model.encoder" in rule.what)
    num_words, most = len(captions.VOCABULARY), captions.MAX_TOKENS

    def meta(words, places):
        return {"model": {"encoder": {"num_words": words, "max_length": places}}, "vocabulary": captions.VOCABULARY}

    assert together(meta(num_words, most)) and together(meta(num_words, most + 1))
    assert not any(map(together, (meta(num_words - 1, most), meta(num_words + 1, most), meta(num_words, most - 1))))
    images, bounds = kind.settings["num_images"], kind.settings["thresholds"]
    assert not images.needed and [images.fits(n) for n in (0, 1, 500_000, 500_001)] == [False, True, True, False]
    assert bounds.keys() == captions.NAMES.keys()
    for rule in bounds.values():
        assert rule.fits([-1e6, 0.5, 1e6]) and not any(map(rule.fits, ([], [0.5] * 2, [0.5] * 4, [0.5, 0.5, 2e6])))
