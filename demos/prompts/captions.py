"""Captions of digits: attributes that are measured on a picture, and many sentences that name them.

    thickness = 2 area / perimeter      a stroke of length L and width w has area L w and perimeter 2 L
    slant     = -mu_11 / mu_02          x moves by -slant for each pixel down: positive where the top leans right
    size      = sqrt((mu_20 + mu_02) / area)      the radius of gyration

The ink of a pixel lies in 0..1.  mu_pq are the central moments of the ink, and the perimeter is its total variation.
The thinnest third of the training pictures is called thin, and the thickest third thick.  The smallest third is called
small, and the largest third large.  Only a clear slant gets a name.  A grammar turns a dictionary of attributes into a
sentence, and `parse` finds the attributes of a sentence.  A dictionary contains some or all of
{"digit": "seven", "thickness": "thick", "slant": "left", "size": "small"}.

HELD_OUT was chosen before any training.  No picture with all three attributes of a row of HELD_OUT is used in training.
So a prompt can name a combination that no caption has named.  Read next: train_prompts.py.
"""

import difflib
from dataclasses import replace
from functools import partial
from itertools import product

import numpy as np
from tqdm import tqdm

from tinydiff.app.generate import current, generate
from tinydiff.app.kinds import KINDS, SIZE, UNET, run_of
from tinydiff.app.rules import Rule, items, number, old, whole
from tinydiff.app.trained import load_network
from tinydiff.backend import TinydiffError, default_rng
from tinydiff.diffusion import Schedule, classifier_free
from tinydiff.more.text import PADDING, Prompted, TextUNet
from tinydiff.train import draw_batch

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
HELD_OUT = (  # digit, thickness, slant: a row for each digit; half of the rows are thick, half of them lean left
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
NAMES = {"thickness": ("thin", "thick"), "slant": ("left", "right"), "size": ("small", "large")}  # (low, high)
SYNONYMS = {
    "thin": ("thin", "fine", "light"),
    "thick": ("thick", "bold", "heavy"),
    "small": ("small", "little"),
    "large": ("large", "big"),
    "upright": ("upright", "straight"),
    "left": ("left",),
    "right": ("right",),
}
KEEP = {"digit": 0.9, "thickness": 0.75, "slant": 0.75, "size": 0.4}  # how often a caption names an attribute
SLICE = 5000  # pictures that are measured at a time


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
    perimeter = np.hypot(*diagonals).sum((1, 2)) / 2**0.5  # sum of the gradient's length over each 2x2 pixels
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
    """{attribute: [low, median, high]} of the measured values of a training set.

    A value below low gets the attribute's low name, and a value above high gets the high name.
    For thickness and size, low and high cut off a third of the set each.  For the slant they cut off the fifth that
    leans most to the left and the three tenths that lean most to the right, because more digits lean right.  The low
    bound of the slant is at most -0.05, and the high bound is at least 0.05.
    """
    shares = {"thickness": (1 / 3, 0.5, 2 / 3), "slant": (0.2, 0.5, 0.7), "size": (1 / 3, 0.5, 2 / 3)}
    bounds = {a: np.quantile(measured[a], share).tolist() for a, share in shares.items()}
    left, median, right = bounds["slant"]
    return bounds | {"slant": [min(left, -0.05), median, max(right, 0.05)]}


def name(measured, bounds):
    """{attribute: names (N,)}.  The name is "" for a value that is neither low nor high.

    A picture is called "upright" if its slant is, in size, less than half of the bound for "left".
    """
    names = {}
    for a, (low_name, high_name) in NAMES.items():
        low, _, high = bounds[a]
        names[a] = np.select([measured[a] < low, measured[a] > high], [low_name, high_name], "")
    upright = abs(measured["slant"]) < -bounds["slant"][0] / 2
    return names | {"slant": np.where(upright, "upright", names["slant"])}


def held_out(digits, names):
    """Which pictures (N,) have all three attributes of a row of HELD_OUT.  digits: (N,) integers.  names: of `name`."""
    rows = zip((DIGITS[k] for k in digits), names["thickness"].tolist(), names["slant"].tolist())
    return np.array([row in HELD_OUT for row in rows])


# --------------------------------------------------------------------------------------------------- the sentences


def caption(attributes, rng):
    """One of the many sentences that name all these attributes.

    [article] [adjectives] [noun] [digit] [in thick strokes] [leaning left]

    Each attribute stands before or after the noun.
    """

    def one_of(*ways):
        return ways[rng.integers(len(ways))]

    word = {a: one_of(*SYNONYMS.get(value, (value,))) for a, value in attributes.items()}
    before = [word["size"]] if "size" in word else []
    after = []
    if "thickness" in word:
        if one_of(True, True, False):
            before.append(word["thickness"])
        else:
            after.append(f"{one_of('in', 'with')} {word['thickness']} strokes")
    if attributes.get("slant") == "upright":
        before.append(word["slant"])
    elif "slant" in word:
        after.append(f"{one_of('leaning', 'slanted', 'tilted')} {one_of('', 'to the ')}{word['slant']}")
    if "digit" in word:
        digit = one_of(word["digit"], str(DIGITS.index(word["digit"])))
        noun = one_of(digit, digit, digit, f"digit {digit}", f"number {digit}")
    else:
        noun = one_of("", "digit", "number")
    parts = [*rng.permutation(before).tolist(), noun, *rng.permutation(after).tolist()]
    text = " ".join(part for part in parts if part)
    article = one_of("", "an" if text.startswith(("upright", "eight", "8")) else "a", "the") if noun else ""
    return f"{article} {text}".strip()


def parse(prompt):
    """The attributes that a prompt names, {} for none.  If a prompt names two values of an attribute, the last counts.

    Raises TinydiffError for a word that occurs in no caption.
    """
    return {_MEANING[word][0]: _MEANING[word][1] for word in _known(prompt, VOCABULARY) if word in _MEANING}


def draw_attributes(attributes, rng):
    """The attributes that a caption names.  Each is kept with its probability in KEEP, but never without a name."""
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

    Raises TinydiffError for a word that is not in the vocabulary; the message contains the most similar words.  Raises
    TinydiffError also for too many words.
    """
    words = _known(prompt, vocabulary)
    if len(words) >= MAX_TOKENS:
        raise TinydiffError(f"a prompt may have {MAX_TOKENS - 1} words, got {len(words)}: {prompt!r}")
    tokens = [START, *map(list(vocabulary).index, words)]
    return tokens + [PADDING] * (MAX_TOKENS - len(tokens))


def _known(prompt, vocabulary):
    """The words of the prompt in lower case.  Raises TinydiffError for an unknown word."""
    words, known = prompt.lower().split(), vocabulary[2:]
    for word in words:
        if word not in known:
            near = difflib.get_close_matches(word, known, n=3)
            hint = f"did you mean {' or '.join(near)}?" if near else f"it knows: {' '.join(known)}"
            raise TinydiffError(f"the model does not know the word {word!r}; {hint}")
    return words


# ----------------------------------------------------------------------------------- a data set, and its network


class Captioned:
    """The pictures of a data set that are not held out, with captions: the training set of train_prompts.py.

    dataset: these pictures; the label of picture i is i.  names: {attribute: (N,)} of these pictures.
    thresholds: from all pictures, also the held-out ones.  left_out: the number of held-out pictures.
    schedule: the noise schedule of the batches.
    """

    def __init__(self, dataset, schedule):
        images, digits = dataset.batch(np.arange(len(dataset)))
        measured = measure(images)
        self.thresholds = thresholds(measured)
        names = {"digit": np.array(DIGITS)[digits]} | name(measured, self.thresholds)
        keep = ~held_out(digits, names)
        self.left_out = int((~keep).sum())
        self.names = {a: values[keep] for a, values in names.items()}
        if not keep.any():
            raise TinydiffError(f"all {len(keep)} pictures are of held-out combinations: take more, see --num-images")
        labels = np.arange(keep.sum())
        classes = tuple(map(str, labels))  # one for each picture
        self.dataset = replace(dataset, images=dataset.images[keep], labels=labels, classes=classes)
        self.schedule = schedule

    def draw(self, config, step):
        """The batch of train.draw_batch, with the tokens (B, MAX_TOKENS) of new captions as labels.

        If draw_batch drops a label, the caption is empty.
        """
        dropped = len(self.dataset)
        batch = draw_batch(self.dataset, self.schedule, dropped, config, step)
        rng = default_rng("captions", config.seed, step)
        captions = ["" if i == dropped else self.caption(i, rng) for i in batch["labels"].tolist()]
        return batch | {"labels": np.array([tokenize(text) for text in captions])}

    def caption(self, i, rng):
        """One of the captions of picture i."""
        return caption(draw_attributes({a: str(values[i]) for a, values in self.names.items()}, rng), rng)


def build(config, seed):
    """The network of a configuration (TextUNet.config), parameters drawn from seed.  Workers can pickle it."""
    unet = {name: value for name, value in config["unet"].items() if name != "text_features"}  # set by the encoder
    return TextUNet(config["encoder"], current(unet), rng=default_rng(seed))


def _text_unet(meta, rng):
    unet = {name: value for name, value in meta["model"]["unet"].items() if name != "text_features"}
    return TextUNet(meta["model"]["encoder"], current(unet), rng=rng)


WORDS = Rule(
    f"{VOCABULARY[:2]} and then other words of letters and digits",
    lambda v: (
        type(v) is list
        and tuple(v[:2]) == VOCABULARY[:2]
        and all(type(word) is str and word.isalnum() and len(word) <= 30 for word in v[2:])
        and len(set(v)) == len(v)
    ),
)
COMBINATIONS = Rule(
    "a list of some combinations of digit, thickness and slant",
    lambda v: type(v) is list and 0 < len(v) < 40 and all(row in _EVERY for row in v),
)
_EVERY = [list(row) for row in product(DIGITS, NAMES["thickness"], NAMES["slant"])]
KINDS["prompts"] = run_of(
    "prompts",
    _text_unet,
    {
        "model": {
            "encoder": dict.fromkeys(("num_words", "max_length", "features", "num_blocks", "num_heads"), SIZE),
            "unet": UNET,
        },
        "vocabulary": WORDS,
        "held_out": COMBINATIONS,
        "num_images": old(whole(1, 500_000)),  # only --resume needs it
        "thresholds": dict.fromkeys(NAMES, items(number(-1e6, 1e6), 3, 3)),
    },
    lambda meta: meta["model"]["unet"],
    Rule(
        f"model.encoder must have the words of the vocabulary and at least {MAX_TOKENS} places",
        lambda meta: (
            meta["model"]["encoder"]["num_words"] == len(meta["vocabulary"])
            and meta["model"]["encoder"]["max_length"] >= MAX_TOKENS
        ),
    ),
)


def load_trained(path, num_workers):
    """(workers, schedule, settings) of a checkpoint of train_prompts.py.  The workers have the averaged weights.

    Raises CheckpointError if the file is not such a checkpoint.
    """
    workers, arrays, meta = load_network(path, "prompts", "ema/", _builder, num_workers)
    return workers, Schedule(arrays["schedule/beta"]), meta


def _builder(_, meta):
    return partial(build, meta["model"], 0)


def draw_images(pool, recipe, labels, seed, name=None):
    """The image of each label, (N, H, W, 1) in [-1, 1], with the present weights of the workers.  name: of the bar.

    recipe.guide gives each label its prompt: partial(by_prompt, prompts, negative).
    """
    parts = []
    with tqdm(total=len(labels), unit="img", desc=name, dynamic_ncols=True) as bar:
        for frames in generate(pool, recipe, labels, seed):
            parts.append(frames[-1])
            bar.update(len(frames[-1]))
    return np.clip(np.concatenate(parts), -1, 1)


def by_prompt(prompts, negative, model, labels, scale):
    """The guide of a Recipe for prompts: guidance leads image i from the negative prompt to prompt labels[i].

    prompts: rows of tokens.  negative: one row of tokens.
    """
    prompted = Prompted(model, [prompts[i] for i in labels], negative)  # only the prompts of this slice are encoded
    return classifier_free(prompted, range(len(labels)), scale)
