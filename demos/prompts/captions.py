"""Captions of digits, for train_prompts.py and prompt.py: what can be measured on a picture, and many ways to say it.

    thickness = 2 area / perimeter      a stroke of length L and width w has area L w and perimeter 2 L
    slant     = -mu_11 / mu_02          x moves by -slant for each pixel down: positive where the top leans right
    size      = sqrt((mu_20 + mu_02) / area)      the radius of gyration

of the ink in 0..1, mu_pq being its central moments and the perimeter its total variation.  A third of the training
pictures is thin and a third thick, small or large likewise; a slant has a name where it is clear.  A grammar says what
a dictionary of attributes holds, such as {"digit": "seven", "thickness": "thick", "slant": "left", "size": "small"} or
less; `parse` reads it back.

HELD_OUT was chosen before any training: a picture that is all three of one of its rows is never trained on, so that
the model can be asked for what no caption has named.
"""

import difflib
from dataclasses import replace
from functools import partial

import numpy as np

from tinydiff.backend import TinydiffError, default_rng
from tinydiff.diffusion import Schedule, classifier_free
from tinydiff.generate import load_network
from tinydiff.nn import Prompted, TextUNet
from tinydiff.nn.text import PADDING
from tinydiff.train import draw_batch

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
HELD_OUT = (  # digit, thickness, slant: one a digit, half of them thick, half of them leaning left
    ("zero", "thin", "right"),
    ("one", "thick", "left"),
    ("two", "thin", "right"),
    ("three", "thick", "right"),
    ("four", "thin", "left"),
    ("five", "thick", "right"),
    ("six", "thick", "left"),
    ("seven", "thick", "left"),
    ("eight", "thin", "left"),
    ("nine", "thin", "right"),
)
NAMES = {"thickness": ("thin", "thick"), "slant": ("left", "right"), "size": ("small", "large")}  # low, high
SYNONYMS = {
    "thin": ("thin", "fine", "light"),
    "thick": ("thick", "bold", "heavy"),
    "small": ("small", "little"),
    "large": ("large", "big"),
    "upright": ("upright", "straight"),
    "left": ("left",),
    "right": ("right",),
}
KEEP = {"digit": 0.9, "thickness": 0.75, "slant": 0.75, "size": 0.4}  # how often a caption says what could be said
SLICE = 5000  # pictures measured at a time


# ------------------------------------------------------------------------------------------------- what is measured


def measure(images):
    """{"thickness": (N,), "slant": (N,), "size": (N,)} of images (N, H, W, 1) in [-1, 1]: float64, lengths in pixels.

    A picture without ink has thickness, slant and size 0.
    """
    parts = [_measure(images[i : i + SLICE]) for i in range(0, len(images), SLICE)]
    return {name: np.concatenate([part[name] for part in parts]) for name in NAMES}


def _measure(images):
    ink = np.clip((images[..., 0].astype("float64") + 1) / 2, 0, 1)
    area = ink.sum((1, 2))
    p = np.pad(ink, ((0, 0), (1, 1), (1, 1)))
    diagonals = p[:, 1:, 1:] - p[:, :-1, :-1], p[:, 1:, :-1] - p[:, :-1, 1:]
    perimeter = np.hypot(*diagonals).sum((1, 2)) / 2**0.5  # of the gradient's length on each 2x2 pixels
    y, x = np.indices(ink.shape[1:])
    dy, dx = (z - ((ink * z).sum((1, 2)) / _or_1(area))[:, None, None] for z in (y, x))
    mu_11, mu_20, mu_02 = ((ink * z).sum((1, 2)) for z in (dx * dy, dx * dx, dy * dy))
    return {
        "thickness": 2 * area / _or_1(perimeter),
        "slant": -mu_11 / _or_1(mu_02),
        "size": np.sqrt((mu_20 + mu_02) / _or_1(area)),
    }


def _or_1(a):
    return np.where(a > 0, a, 1)


def thresholds(measured):
    """{attribute: [below it is the low name, median, above it is the high name]} of a training set's measures.

    Thickness and size: thirds.  Slant: the fifth that leans left most and three tenths that lean right, for digits lean
    right more often; on either side of 0 by 0.05 or more, whatever the data.
    """
    shares = {"thickness": (1 / 3, 0.5, 2 / 3), "slant": (0.2, 0.5, 0.7), "size": (1 / 3, 0.5, 2 / 3)}
    found = {a: np.quantile(measured[a], share).tolist() for a, share in shares.items()}
    left, median, right = found["slant"]
    return found | {"slant": [min(left, -0.05), median, max(right, 0.05)]}


def name(measured, bounds):
    """{attribute: names (N,)}, "" where nothing is to be said: neither low nor high, or hardly upright.

    Upright is what leans by less than half of what it takes to lean left.
    """
    names = {}
    for a, (low_name, high_name) in NAMES.items():
        low, _, high = bounds[a]
        names[a] = np.select([measured[a] < low, measured[a] > high], [low_name, high_name], "")
    upright = abs(measured["slant"]) < -bounds["slant"][0] / 2
    return names | {"slant": np.where(upright, "upright", names["slant"])}


def held_out(digits, names):
    """Which pictures (N,) are all three of a row of HELD_OUT.  digits: (N,) integers.  names: of `name`."""
    rows = zip((DIGITS[k] for k in digits), names["thickness"].tolist(), names["slant"].tolist())
    return np.array([row in HELD_OUT for row in rows])


# --------------------------------------------------------------------------------------------------- how it is said


def caption(attributes, rng):
    """One of the many ways to say the attributes, all of them.

    [article] [adjectives] [noun] [digit] [in thick strokes] [leaning left], an attribute wherever it can stand.
    """

    def one_of(*ways):
        return ways[rng.integers(len(ways))]

    said = {a: one_of(*SYNONYMS.get(value, (value,))) for a, value in attributes.items()}
    before = [said["size"]] if "size" in said else []
    after = []
    if "thickness" in said:
        if one_of(True, True, False):
            before.append(said["thickness"])
        else:
            after.append(f"{one_of('in', 'with')} {said['thickness']} strokes")
    if attributes.get("slant") == "upright":
        before.append(said["slant"])
    elif "slant" in said:
        after.append(f"{one_of('leaning', 'slanted', 'tilted')} {one_of('', 'to the ')}{said['slant']}")
    if "digit" in said:
        digit = one_of(said["digit"], str(DIGITS.index(said["digit"])))
        noun = one_of(digit, digit, digit, f"digit {digit}", f"number {digit}")
    else:
        noun = one_of("", "digit", "number")
    words = [*rng.permutation(before).tolist(), noun, *rng.permutation(after).tolist()]
    text = " ".join(word for word in words if word)
    article = one_of("", "an" if text.startswith(("upright", "eight", "8")) else "a", "the") if noun else ""
    return f"{article} {text}".strip()


def parse(prompt):
    """The attributes that a prompt asks for, {} for none; where it names two values of one, the last.

    Raises TinydiffError for a word that no caption has.
    """
    return {_MEANING[word][0]: _MEANING[word][1] for word in _known(prompt, VOCABULARY) if word in _MEANING}


def draw_attributes(attributes, rng):
    """Those of the attributes that a caption is to say, each kept as often as KEEP has it; unnamed ones never are."""
    return {a: value for a, value in attributes.items() if value and rng.random() < KEEP[a]}


_MEANING = {word: (a, value) for a, values in NAMES.items() for value in values for word in SYNONYMS[value]}
_MEANING |= dict.fromkeys(SYNONYMS["upright"], ("slant", "upright"))
_MEANING |= {word: ("digit", digit) for k, digit in enumerate(DIGITS) for word in (digit, str(k))}
_OTHERS = "a an the digit number in with strokes leaning slanted tilted to"
VOCABULARY = ("", "<start>", *_MEANING, *_OTHERS.split())  # "" is padding
START = 1
MAX_TOKENS = 16


def tokenize(prompt, vocabulary=VOCABULARY):
    """MAX_TOKENS integers: the start, the prompt's words, padding.

    Raises TinydiffError for a word that is not in the vocabulary, naming those most like it, and for too many words.
    """
    words = _known(prompt, vocabulary)
    if len(words) >= MAX_TOKENS:
        raise TinydiffError(f"a prompt may have {MAX_TOKENS - 1} words, got {len(words)}: {prompt!r}")
    tokens = [START, *map(list(vocabulary).index, words)]
    return tokens + [PADDING] * (MAX_TOKENS - len(tokens))


def _known(prompt, vocabulary):
    """The prompt's words, in small letters."""
    words, known = prompt.lower().split(), vocabulary[2:]
    for word in words:
        if word not in known:
            near = difflib.get_close_matches(word, known, n=3)
            what = f"did you mean {' or '.join(near)}?" if near else f"it knows: {' '.join(known)}"
            raise TinydiffError(f"the model does not know the word {word!r}; {what}")
    return words


# ----------------------------------------------------------------------------------- a data set, and its network


class Captioned:
    """A data set whose pictures can be captioned, without the held-out ones: what train_prompts.py trains on.

    dataset: its pictures, their labels being their own numbers.  names: {attribute: (N,)} of each of them.
    thresholds: taken from all pictures.  left_out: how many are held out.
    """

    def __init__(self, dataset):
        images, digits = dataset.batch(np.arange(len(dataset)))
        measured = measure(images)
        self.thresholds = thresholds(measured)
        names = {"digit": np.array(DIGITS)[digits]} | name(measured, self.thresholds)
        keep = ~held_out(digits, names)
        self.left_out = int((~keep).sum())
        self.names = {a: values[keep] for a, values in names.items()}
        self.dataset = replace(dataset, images=dataset.images[keep], labels=np.arange(keep.sum()))

    def draw(self, dataset, schedule, config, num_classes, step):
        """train.draw_batch, the label of each picture being a caption's tokens, drawn anew: (B, MAX_TOKENS).

        Where the label is dropped the caption is empty.
        """
        batch = draw_batch(dataset, schedule, config, len(dataset), step)
        rng = default_rng("captions", config.seed, step)
        captions = ["" if i == len(dataset) else self.caption(i, rng) for i in batch["labels"].tolist()]
        return batch | {"labels": np.array([tokenize(text) for text in captions])}

    def caption(self, i, rng):
        """One of the captions of picture i."""
        return caption(draw_attributes({a: str(values[i]) for a, values in self.names.items()}, rng), rng)


def build(config, seed):
    """The network of a configuration (TextUNet.config), its parameters drawn from seed: picklable, for Workers."""
    return TextUNet(**config, rng=default_rng(seed))


def load_trained(path, num_workers):
    """Workers that hold the averaged weights of train_prompts.py's checkpoint, its schedule, and its settings.

    Raises CheckpointError if the file is not such a checkpoint.
    """
    workers, arrays, meta = load_network(path, "prompts", "ema/", _builder, num_workers)
    return workers, Schedule(arrays["schedule/beta"]), meta


def _builder(_, meta):
    return partial(build, meta["model"], 0)


def by_prompt(prompts, negative, model, labels, scale):
    """What a Recipe's guide does for prompts: each image is led towards the token row of its number, from negative."""
    prompted = Prompted(model, [prompts[i] for i in labels], negative)  # of a slice's labels: its own prompts only
    return classifier_free(prompted, range(len(labels)), scale)
