"""evaluate_prompts.py: which prompts it draws, and that its shares follow on paper for models that are known."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tinydiff.app import checkpoint
from tinydiff.app.metrics import share
from tinydiff.app.reading import read
from tinydiff.autograd import Tensor
from tinydiff.backend import TinydiffError, asarray, backend_name, default_rng
from tinydiff.diffusion import Schedule

pytestmark = pytest.mark.program

KINDS = ["digit", "thick", "thin", "left", "right", "all three"]
THRESHOLDS = {"thickness": [2.0, 2.5, 3.0], "slant": [-0.1, 0.1, 0.2], "size": [1.0, 2.0, 3.0]}


@pytest.fixture
def evaluate(load_demo):
    return load_demo("prompts/evaluate_prompts")


@pytest.fixture(scope="module")
def captions(load_demo):
    return load_demo("prompts/captions")


def test_each_word_is_judged_by_its_own_measure(evaluate):
    """Thick above the median, right above 0, the digit as read; all three together; what nobody asked has no line."""
    prompts = ["a thick seven leaning right", "thin 2 tilted left", "bold two leaning to the right"]
    thresholds = {"thickness": [2.0, 2.5, 3.0], "slant": [-0.1, 0.1, 0.2]}
    measured = {"thickness": np.array([2.6, 2.6, 2.9]), "slant": np.array([0.05, -0.05, -0.3])}
    hits = evaluate.judged(prompts, np.array([7, 2, 3]), measured, thresholds)
    assert {what: right.tolist() for what, right in hits.items()} == {
        "digit": [True, True, False],
        "thick": [True, True],
        "thin": [False],
        "left": [True],
        "right": [True, False],
        "all three": [True, False, False],
    }
    alone = evaluate.judged(prompts[:1], np.array([7]), {a: m[:1] for a, m in measured.items()}, thresholds)
    assert list(alone) == ["digit", "thick", "right", "all three"]


def test_the_median_is_not_thick_and_upright_is_not_right(evaluate):
    """Thicker than the median, and a slant above 0: on the border neither."""
    measured = {"thickness": np.array([2.5, 2.5]), "slant": np.array([0.0, 0.0])}
    hits = evaluate.judged(["thick 2 leaning right", "thin 2 leaning left"], np.array([2, 2]), measured, THRESHOLDS)
    assert [hits[kind].tolist() for kind in KINDS] == [[True, True], [False], [True], [True], [False], [False, True]]


def test_prompts_name_every_combination_in_turn_but_never_a_held_out_one(evaluate, captions):
    """Thirty of the forty are left; the 31st prompt names the first again.  Held-out ones come in their own order."""
    rows = evaluate.asked_for([list(row) for row in captions.HELD_OUT], 31, 12)
    assert list(rows) == ["", "held out: "]
    every = [(d, t, s) for d in captions.DIGITS for t in ("thin", "thick") for s in ("left", "right")]
    trained = [row for row in every if row not in captions.HELD_OUT]
    assert len(trained) == 30 and rows[""] == [*trained, trained[0]]
    assert rows["held out: "] == [*captions.HELD_OUT, *captions.HELD_OUT[:2]]


def test_a_sentence_names_its_row_and_the_seed_chooses_the_words(evaluate, captions):
    """The grammar's own, from a stream of their own."""
    rows = [("seven", "thick", "left"), ("two", "thin", "right")] * 20
    said, rng = evaluate.sentences(rows, 3), default_rng("said", 3)
    names = ("digit", "thickness", "slant")
    assert said == [captions.caption(dict(zip(names, row)), rng) for row in rows]
    assert [captions.parse(text) for text in said] == [dict(zip(names, row)) for row in rows]
    assert said != evaluate.sentences(rows, 4)


class Reads:
    """Workers of a classifier that reads the digit stamped on the first pixel, as digit / 10."""

    def model(self, images, t=None):
        digits = np.rint(np.asarray(images)[:, 0, 0, 0] * 10).astype(int)
        return Tensor(asarray(np.eye(10)[digits], "float32"))

    def map(self, f, jobs):
        yield from (f(self.model, job) for job in jobs)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


def stamped(digit, thickness, slant):
    """A picture that says what it is: its digit, its thickness and its slant, a pixel each."""
    image = np.zeros((4, 4, 1))
    image[0, :3, 0] = digit / 10, thickness / 10, slant
    return image


@pytest.fixture
def asked(evaluate, captions, monkeypatch):
    """asked(draws): main with a model that draws draws(digit, thickness, slant) for a prompt that names these."""
    grids, seen = [], []

    def draw(pool, recipe, rows, seed):
        seen.append((recipe, rows, seed))
        texts = [" ".join(vocabulary[word] for word in row[1:]) for row in rows]
        return np.stack([made.draws(**captions.parse(text)) for text in texts])

    def measure(images):
        return {"thickness": 10 * images[:, 0, 1, 0], "slant": images[:, 0, 2, 0], "size": 0 * images[:, 0, 0, 0]}

    meta = {"data": {"image_shape": [28, 28, 1]}, "held_out": [list(row) for row in captions.HELD_OUT], "step": 1234}
    vocabulary = [*captions.VOCABULARY[:2], *captions.VOCABULARY[:1:-1]]  # the checkpoint has an order of its own
    meta |= {"vocabulary": vocabulary, "thresholds": THRESHOLDS}
    monkeypatch.setattr(evaluate, "load_classifier", lambda path, workers, data: (Reads(), {}))
    monkeypatch.setattr(evaluate, "load_trained", lambda path, workers: (Reads(), Schedule.linear(100), meta))
    monkeypatch.setattr(evaluate, "draw", draw)
    monkeypatch.setattr(evaluate, "measure", measure)
    monkeypatch.setattr(evaluate.plots, "save_grid", lambda *arguments, **options: grids.append((arguments, options)))

    def run(draws, out, **options):
        made.draws = draws
        return evaluate.main("c.npz", backend=backend_name(), out=out, workers=1, **options)

    made = SimpleNamespace(run=run, grids=grids, seen=seen)
    return made


def test_a_model_that_draws_what_it_is_asked_is_always_right(evaluate, captions, asked, tmp_path, capsys):
    """n of n for each word; the table is printed and written as it is returned; the picture has the held-out rows."""

    def draws(digit, thickness, slant):
        lean = {"left": -0.2, "right": 0.2}[slant]
        return stamped(captions.DIGITS.index(digit), {"thin": 2, "thick": 3}[thickness], lean)

    table = asked.run(draws, tmp_path / "new", num=31, num_held_out=21, steps=7, seed=5)
    numbers = [31, 15, 16, 16, 15, 31, 21, 10, 11, 10, 11, 21]  # the prompts that name each
    names = [*KINDS, *(f"held out: {kind}" for kind in KINDS)]
    assert list(table) == names
    counted = []
    for rows in evaluate.asked_for(captions.HELD_OUT, 31, 21).values():
        words = [word for row in rows for word in row]
        counted += [len(rows), *map(words.count, ("thick", "thin", "left", "right")), len(rows)]
    assert numbers == counted
    assert list(table.values()) == [share(np.ones(n, bool)) for n in numbers]
    printed = capsys.readouterr().out
    lines = (tmp_path / "new" / "prompts.md").read_text().splitlines()
    drawn = "1,234 steps, guidance 3, DDPM in 7 steps, seed 5"
    assert lines[:2] == [f"| {drawn} | drawn as asked |", "|---|---|"]
    assert lines[2:] == [f"| {what} | {value} |" for what, value in table.items()]
    assert [line.split(maxsplit=0) for line in printed.splitlines() if "CuPy" not in line][:12] == [
        [f"{what:28}{value}"] for what, value in table.items()
    ]
    ((path, pictures), options) = asked.grids[0]
    assert path == tmp_path / "new" / "held_out.png" and options["columns"] == 2 and len(asked.grids) == 1
    assert options["title"] == "never trained on" and options["row_labels"] == [" ".join(r) for r in captions.HELD_OUT]
    np.testing.assert_array_equal(np.rint(10 * pictures[:, 0, 0, 0]), np.repeat(np.arange(10), 2))
    (recipe, first, seed), (_, second, _) = asked.seen
    assert (recipe.num_steps, recipe.scale, recipe.image_shape, seed) == (7, 3.0, (28, 28, 1), 5)
    assert (len(first), len(second)) == (31, 21)


def test_a_model_that_draws_a_thick_seven_leaning_right_is_right_where_it_is_asked_for(captions, asked, tmp_path):
    """Of 60 prompts six name a seven, two of these all three; one held-out prompt in ten does, and leans left."""
    table = asked.run(lambda **_: stamped(7, 3, 0.2), tmp_path, num=60, num_held_out=10, scale=1.5)
    thick, right = 30, 30
    counts = [(6, 60), (thick, thick), (0, 30), (0, 30), (right, right), (2, 60)]
    counts += [(1, 10), (5, 5), (0, 5), (0, 5), (5, 5), (0, 10)]
    assert [value.split(",")[0] for value in table.values()] == [f"{k} of {n}" for k, n in counts]
    assert [recipe.scale for recipe, *_ in asked.seen] == [1.5, 1.5]


def test_one_held_out_prompt_is_enough_for_a_picture(evaluate, captions, asked, tmp_path):
    """One image in one row with one name; words that no prompt names have no line."""
    table = asked.run(lambda **_: stamped(0, 2, 0.2), tmp_path, num=1, num_held_out=1)
    assert list(table) == [
        *(k for k in KINDS if k not in ("thick", "right")),
        *(f"held out: {k}" for k in KINDS if k not in ("thick", "left")),
    ]
    ((_, pictures), options) = asked.grids[0]
    assert len(pictures) == options["columns"] == 1 and options["row_labels"] == ["zero thin right"]


def test_a_row_of_the_picture_has_images_of_its_own_combination(evaluate):
    """Image i has combination i modulo 3; at most ten in a row, and each row as long as the shortest."""
    images = np.arange(35)
    rows = [("a", "b"), ("c", "d"), ("e", "f")]
    pictures, columns, names = evaluate.rows_of(images, rows)
    assert columns == 10 and names == ["a b", "c d", "e f"]
    assert pictures.tolist() == [k + 3 * i for k in range(3) for i in range(10)]
    assert evaluate.rows_of(images[:8], rows)[0].tolist() == [0, 3, 1, 4, 2, 5]
    assert [part.tolist() if hasattr(part, "tolist") else part for part in evaluate.rows_of(images[:2], rows)] == [
        [0, 1],
        1,
        ["a b", "c d"],
    ]


def test_each_image_is_drawn_for_its_own_prompt_away_from_the_empty_one(evaluate, captions, monkeypatch):
    """The recipe's guide has the rows of tokens; image i has label i."""
    seen = []
    monkeypatch.setattr(evaluate, "draw_images", lambda *arguments: seen.append(arguments) or "images")
    recipe = evaluate.Recipe(Schedule.linear(100), (28, 28, 1), num_steps=3)
    assert evaluate.draw("pool", recipe, ["row 0", "row 1"], 8) == "images"
    ((pool, used, labels, seed),) = seen
    assert (pool, list(labels), seed, used.num_steps) == ("pool", [0, 1], 8, 3)
    assert used.guide.func.__name__ == "by_prompt" and used.guide.args == (["row 0", "row 1"], captions.tokenize(""))


def test_the_classifier_of_these_tests_reads_its_pixel():
    """Through the package's own `read`."""
    images = np.stack([stamped(k, 0, 0) for k in (3, 9, 0)]).astype("float32")
    assert np.concatenate(list(read(Reads(), images))).argmax(1).tolist() == [3, 9, 0]


def test_an_evaluation_without_a_classifier_is_refused(evaluate, tmp_path, monkeypatch):
    """The checkpoint of another kind of network is named.  A classifier of other pictures is refused too."""
    checkpoint.save(tmp_path / "c.npz", {}, {"kind": "prompts"})
    asked, meta = [], {"data": {"image_shape": [28, 28, 1]}}
    monkeypatch.setattr(evaluate, "load_trained", lambda path, workers: (Reads(), Schedule.linear(100), meta))
    with pytest.raises(TinydiffError, match="'prompts', not 'classifier'"):
        evaluate.main("c.npz", backend=backend_name(), classifier=tmp_path / "c.npz", out=tmp_path)
    monkeypatch.setattr(evaluate, "load_classifier", lambda *how: asked.append(how) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        evaluate.main("c.npz", backend=backend_name(), classifier="r.npz", out=tmp_path, workers=2)
    assert asked == [(Path("r.npz"), 2, meta["data"])]
