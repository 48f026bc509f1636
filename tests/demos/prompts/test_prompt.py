"""prompt.py and evaluate_prompts.py in their smallest form: what they draw, what they record, what they count."""

import runpy
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from tinydiff import ops
from tinydiff.app import checkpoint
from tinydiff.app.alone import one_process
from tinydiff.app.classify import ClassifierConfig, build_classifier, save_classifier
from tinydiff.app.generate import Recipe, generate
from tinydiff.app.training import diffusion_training, save
from tinydiff.autograd import no_grad
from tinydiff.backend import TinydiffError, asarray, backend_name, default_rng, standard_normal, to_numpy
from tinydiff.data import load
from tinydiff.diffusion import Schedule, timestep_pairs
from tinydiff.train import TrainConfig

pytestmark = pytest.mark.program

DEMOS = Path(__file__).parents[3] / "demos" / "prompts"


@pytest.fixture(scope="module")
def captions(load_demo):
    return load_demo("prompts/captions")


@pytest.fixture(scope="module")
def trained(captions, tmp_path_factory):
    """A checkpoint of a tiny network of random weights, and a classifier that was not trained at all."""
    folder = tmp_path_factory.mktemp("trained")
    schedule = Schedule.linear(100)
    captioned = captions.Captioned(load("glyphs", num=60), schedule)
    config = {"encoder": {"num_words": len(captions.VOCABULARY)}, "unet": {"base_channels": 8}}
    with one_process().workers(lambda: captions.build(config, 0), 1) as pool:
        rng = default_rng(1)  # at the start nothing that the network predicts depends on the text
        for p in pool.model.parameters():
            if p.ndim > 1:
                p.data[...] = asarray(rng.standard_normal(p.shape) / (p.size / p.shape[-1]) ** 0.5, "float32")
        config = TrainConfig(num_steps=1, minutes=None, batch_size=2)
        state = diffusion_training(pool, schedule, config, captioned.dataset, captioned.draw)
        more = {"vocabulary": captions.VOCABULARY, "held_out": captions.HELD_OUT, "thresholds": captioned.thresholds}
        save(state, folder / "checkpoint.npz", captioned.dataset, schedule, 1, kind="prompts", **more)
    data = load("glyphs", num=10)
    with one_process().workers(lambda: build_classifier({"num_classes": 10, "channels": (4,)}, 0), 1) as pool:
        save_classifier(folder / "classifier.npz", pool, ClassifierConfig(), data, data, 0)
    return folder


@pytest.fixture
def demo(load_demo):
    return load_demo("prompts/prompt")


@pytest.fixture(scope="module")
def loaded(captions, trained):
    """The network, and its schedule."""
    pool, schedule, _ = captions.load_trained(trained / "checkpoint.npz", 1)
    with pool:
        yield pool, schedule


def run(demo, trained, tmp_path, prompt, **options):
    options = {"num": 1, "steps": 1, "workers": 1, "out": tmp_path / "p.png", **options}
    return demo.main(trained / "checkpoint.npz", prompt, backend=backend_name(), **options)


def test_words_and_seed_decide_what_is_drawn(demo, trained, tmp_path):
    """The same words give the same bits; other words, another negative prompt, scale or seed other ones."""
    images = run(demo, trained, tmp_path, "a thick seven", num=2)
    assert images.shape == (2, 28, 28, 1) and -1 <= images.min() < images.max() <= 1
    picture = imread(tmp_path / "p.png")[..., :3]
    assert picture.shape[1] > 2 * 28 and picture.std() > 0.05
    assert (images == run(demo, trained, tmp_path, "A  thick seven", num=2)).all()
    others = [run(demo, trained, tmp_path, "a thick seven"), run(demo, trained, tmp_path, "a thin seven")]
    for option in ({"negative": "two"}, {"seed": 1}, {"scale": 1.0}):
        others.append(run(demo, trained, tmp_path, "a thick seven", **option))
    assert len({a.tobytes() for a in others}) == 5


def test_a_scale_of_0_draws_the_negative_prompt(demo, trained, tmp_path):
    """And 1 the prompt alone, so that a negative one is refused: what guidance leads from and to."""
    two = run(demo, trained, tmp_path, "two", scale=1.0)
    with pytest.raises(TinydiffError, match="--negative 'a thin 8': guidance 1 leads away from no prompt"):
        run(demo, trained, tmp_path, "two", scale=1.0, negative="a thin 8")
    # 1e-2 of pictures in -1..1: float32 through some twenty layers, the prompts encoded beside others.
    np.testing.assert_allclose(run(demo, trained, tmp_path, "seven", scale=0.0, negative="two"), two, atol=1e-2)
    assert abs(run(demo, trained, tmp_path, "seven", scale=1.0) - two).max() > 0.1


def test_each_image_has_its_own_prompt(captions, loaded):
    """by_prompt in slices: image i is led to prompt i, as if it were alone with its noise."""
    rows = [captions.tokenize(text) for text in ("two", "a thick seven", "thin")]
    model, empty = loaded[0].model, captions.tokenize("")
    x = standard_normal(default_rng(0), (2, 28, 28, 1))
    with no_grad():
        eps_hat = captions.by_prompt(rows, empty, model, [2, 0], 3.0)(x, 7)
        for i, k in enumerate([2, 0]):
            eps, eps_u = (to_numpy(model(x[i : i + 1], 7, [row])) for row in (rows[k], empty))
            # 1e-3: float32, three times the difference of numbers about 10 through some twenty layers
            np.testing.assert_allclose(to_numpy(eps_hat)[i : i + 1], eps_u + 3 * (eps - eps_u), rtol=1e-3, atol=1e-3)


# How the words steer.


def test_the_recorded_weights_are_those_of_attention(demo, captions, loaded):
    """Recording changes nothing but rounding and ends with its block; the weights of each pixel add up to 1."""
    model, tokens = loaded[0].model, np.array([captions.tokenize("a thick seven")])
    x = standard_normal(default_rng(0), (1, 28, 28, 1))
    with no_grad():
        plain = to_numpy(model(x, 7, tokens))
        with demo.recorded(model.unet) as weights:
            seen = to_numpy(model(x, 7, tokens))
        assert len(weights) == 3 + 3 + 1
        assert (to_numpy(model(x, 7, tokens)) == plain).all() and len(weights) == 7
    np.testing.assert_allclose(seen, plain, rtol=1e-3, atol=1e-3)  # float32 through some twenty layers
    assert sorted(p.shape[2] for p in weights) == [49] * 4 + [196] * 3
    for p in weights:
        assert p.shape[3] == captions.MAX_TOKENS and not p[..., 4:].any()  # start, three words, padding
        np.testing.assert_allclose(p.sum(-1), 1, rtol=1e-5)
    assert all(layer.attend is ops.attention for layer in demo.cross_attentions(model.unet))


def test_a_map_is_the_mean_weight_of_a_word_at_half_the_resolution(demo, captions, loaded):
    """Of the heads of the three layers there; the words' maps add up to 1 at each pixel."""
    model, tokens = loaded[0].model, captions.tokenize("a thick seven")
    x = standard_normal(default_rng(0), (1, 28, 28, 1))
    words = demo.maps(demo.Prompted(model, [tokens], tokens), x, 7)
    with demo.recorded(model.unet) as weights, no_grad():
        model(x, 7, np.array([tokens]))
    expected = sum(p[0, head] for p in weights if p.shape[2] == 196 for head in range(4)) / 12
    assert words.shape == (captions.MAX_TOKENS, 14, 14)
    np.testing.assert_allclose(words[2], expected[:, 2].reshape(14, 14), rtol=1e-3, atol=1e-5)  # float32, as above
    np.testing.assert_allclose(words.sum(0), 1, rtol=1e-5)


def test_a_swapped_prompt_is_the_first_until_half_way(demo, captions, loaded):
    """From one x_T: the prompt's own way until T/2, then another; and another from the start where that is asked."""
    pool, schedule = loaded
    rows = [captions.tokenize(text) for text in ("a thick seven", "two")]
    guide = demo.partial(captions.by_prompt, rows, captions.tokenize(""))
    recipe = Recipe(schedule, (28, 28, 1), num_steps=10, guide=guide)
    parts = demo.steer(pool.model, recipe, rows[0], 5)
    assert parts["t"] == [t for t, _ in timestep_pairs(100, 10)] and parts["maps"].shape == (10, 16, 14, 14)
    early = np.array(parts["t"]) > 50
    assert 0 < early.sum() < 10
    for name, same in (("swapped", early), ("other", np.zeros(10, bool))):
        np.testing.assert_array_equal((parts[name] == parts["x_0_hat"]).all((1, 2, 3)), same)
    (frames,) = generate(pool, recipe, [0], 5)  # for one image alone all the noise is the same
    last = np.clip(parts["x_0_hat"][-1], -1, 1)  # at the last step x_0 is x_0_hat
    np.testing.assert_allclose(frames[-1][0], last, rtol=1e-4, atol=1e-4)


def test_the_steering_figure_is_no_blank(demo, trained, tmp_path):
    """A row for each word and for each way; made in a folder that was not there."""
    path = tmp_path / "new" / "steering.png"
    run(demo, trained, tmp_path, "thin 7", num=1, steps=3, steering=path, swap="thick")
    picture = imread(path)[..., :3]
    assert picture.shape[1] > 600 and picture.std() > 0.1


def test_a_bad_prompt_or_checkpoint_is_one_message_and_exit_code_2(trained, tmp_path, monkeypatch, capsys):
    """An unknown word in any of the three prompts names the nearest known ones, before anything is drawn."""
    checkpoint.save(tmp_path / "kind.npz", {}, {"kind": "diffusion"})
    good = trained / "checkpoint.npz"
    for words, message in (
        ([good, "a thik seven"], "does not know the word 'thik'; did you mean thick or thin"),
        ([good, "two", "--negative", "thikc"], "'thikc'"),
        ([good, "two", "--swap", "tree", "--steering", tmp_path / "s.png"], "'tree'; did you mean three"),
        ([good, "two", "--steering", tmp_path / "o.png"], "this is the picture of --out too"),
        ([good, "two", "--steering", tmp_path / "s.jpeg"], "the name must end in .png"),
        ([good, "two", "--steering", tmp_path], "the name must end in .png"),
        ([good, "two", "--swap", "three"], "--swap 'three': it is for the picture of --steering, which is not given"),
        ([good, "two", "--steps", 101], "--steps 101: the schedule has T = 100 steps"),
        ([tmp_path / "kind.npz", "two"], "'diffusion', not 'prompts'"),
        ([tmp_path / "missing.npz", "two"], "does not exist"),
    ):
        options = ["--workers", 1, "--num", 1, "--out", tmp_path / "o.png", "--backend", backend_name()]
        monkeypatch.setattr("sys.argv", [str(DEMOS / "prompt.py"), *map(str, [*words, *options])])
        monkeypatch.syspath_prepend(DEMOS)
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(DEMOS / "prompt.py"), run_name="__main__")
        assert end.value.code == 2 and message in capsys.readouterr().err.replace("\n", " ")
    assert not (tmp_path / "o.png").exists()


# What is counted.


@pytest.fixture
def evaluate(load_demo):
    return load_demo("prompts/evaluate_prompts")


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


def test_the_smallest_evaluation_fills_table_and_picture(evaluate, captions, trained, tmp_path, capsys):
    """Prompts, and held-out ones, have a line for each word that they ask, printed and in prompts.md; and a picture."""
    drawn, draw = [], evaluate.draw
    evaluate.draw = lambda pool, recipe, prompts, seed: (drawn.append(prompts), draw(pool, recipe, prompts, seed))[1]
    options = {"num": 30, "num_held_out": 10, "steps": 1, "workers": 1, "classifier": trained / "classifier.npz"}
    table = evaluate.main(trained / "checkpoint.npz", backend=backend_name(), out=tmp_path / "new", **options)
    kinds = ["digit", "thick", "thin", "left", "right", "all three"]
    assert list(table) == [*kinds, *(f"held out: {kind}" for kind in kinds)]
    assert [table[which + kind].split(",")[0].split(" of ")[1] for which in ("", "held out: ") for kind in kinds] == [
        *("30", "15", "15", "15", "15", "30"),
        *("10", "5", "5", "5", "5", "10"),
    ]
    printed, written = capsys.readouterr().out, (tmp_path / "new" / "prompts.md").read_text()
    for name, value in table.items():
        assert f"| {name} | {value} |" in written and value in printed
    rows = []
    for prompts in drawn:
        wanted = [captions.parse(" ".join(captions.VOCABULARY[i] for i in tokens[1:])) for tokens in prompts]
        rows.append({(a["digit"], a["thickness"], a["slant"]) for a in wanted})
    assert len(rows[0]) == 30 and not rows[0] & rows[1] and rows[1] == set(captions.HELD_OUT)
    picture = imread(tmp_path / "new" / "held_out.png")[..., :3]
    assert picture.shape[0] > 10 * 28 and picture.std() > 0.05


def test_an_evaluation_without_a_classifier_is_refused(evaluate, trained, tmp_path):
    """The checkpoint of another kind of network is named."""
    with pytest.raises(TinydiffError, match="'prompts', not 'classifier'"):
        evaluate.main(
            trained / "checkpoint.npz", backend=backend_name(), classifier=trained / "checkpoint.npz", out=tmp_path
        )
