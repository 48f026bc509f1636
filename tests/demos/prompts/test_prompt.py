"""prompt.py: what it draws, what it records, and what it shows."""

import runpy
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from tinydiff import ops
from tinydiff.app import checkpoint
from tinydiff.app.alone import one_process
from tinydiff.app.choices import DDIM
from tinydiff.app.generate import Recipe, generate
from tinydiff.app.plots import tile
from tinydiff.app.row_rng import row_rng
from tinydiff.app.training import diffusion_training, save
from tinydiff.autograd import no_grad
from tinydiff.backend import TinydiffError, asarray, backend_name, default_rng, standard_normal, to_numpy
from tinydiff.data import load
from tinydiff.diffusion import Schedule, eps_from_x_0, sample, timestep_pairs
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
        for average in state.ema.average:
            average += 0.01  # so that the average is not the last weights
        more = {"vocabulary": captions.VOCABULARY, "held_out": captions.HELD_OUT, "thresholds": captioned.thresholds}
        save(state, folder / "checkpoint.npz", captioned.dataset, schedule, 1, kind="prompts", **more)
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


def test_the_picture_is_written(demo, trained, tmp_path):
    """The images lie in -1..1, and the picture shows as many side by side."""
    images = run(demo, trained, tmp_path, "a thick seven", num=2)
    assert images.shape == (2, 28, 28, 1) and -1 <= images.min() < images.max() <= 1
    picture = imread(tmp_path / "p.png")[..., :3]
    assert picture.shape[1] > 2 * 28 and picture.std() > 0.05


def test_a_negative_prompt_without_guidance_is_refused(demo, trained, tmp_path):
    """With a scale of 1 it would do nothing."""
    with pytest.raises(TinydiffError, match="--negative 'a thin 8': guidance 1 leads away from no prompt"):
        run(demo, trained, tmp_path, "two", scale=1.0, negative="a thin 8")


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
    (frames,) = generate(pool, recipe, [0, 0, 0], 5)  # image 0, the other two have noise of their own
    last = np.clip(parts["x_0_hat"][-1], -1, 1)  # at the last step x_0 is x_0_hat
    np.testing.assert_allclose(frames[-1][0], last, rtol=1e-4, atol=1e-4)


def test_what_is_steered_is_each_step_of_generate(demo, captions, loaded):
    """Ten steps and one: x_t and x_0_hat of each, the x_T and the noise of image 0; then at most ten."""
    pool, schedule = loaded
    tokens = captions.tokenize("a thick seven")
    guide = partial(captions.by_prompt, [tokens, captions.tokenize("two")], captions.tokenize("thin"))
    recipe = Recipe(schedule, (28, 28, 1), num_steps=11, guide=guide, scale=2.0)
    parts = demo.steer(pool.model, recipe, tokens, 5)
    rng = row_rng("picture", 5, rows=[0])
    x_t, pairs = standard_normal(rng, (1, 28, 28, 1)), timestep_pairs(100, 11)
    with no_grad():
        walk = list(sample(recipe.step(schedule), guide(pool.model, [0], 2.0), pairs, x_t, rng))
    x = [x_t, *(x_s for _, x_s, _ in walk)]
    shown = [round(i * 10 / 9) for i in range(10)]
    assert shown == [0, 1, 2, 3, 4, 6, 7, 8, 9, 10] and parts["t"] == [pairs[k][0] for k in shown]
    for row, k in enumerate(shown):
        np.testing.assert_array_equal(parts["x_t"][row], to_numpy(x[k])[0])
        np.testing.assert_array_equal(parts["x_0_hat"][row], to_numpy(walk[k][2])[0])
    prompted = demo.Prompted(pool.model, [tokens], tokens)
    np.testing.assert_array_equal(parts["maps"][9], demo.maps(prompted, x[10], pairs[10][0]))
    one = demo.steer(pool.model, replace(recipe, num_steps=1), tokens, 5)
    assert one["t"] == [100] and one["x_t"].shape == (1, 28, 28, 1)


def steered():
    """Parts of a figure whose arrays can be told apart: two times, three words and a place of padding."""
    parts = {name: np.full((2, 4, 4, 1), 0.1 * i) for i, name in enumerate(("x_t", "x_0_hat", "swapped", "other"), 1)}
    maps = np.stack([np.full((4, 2, 2), 0.25), np.full((4, 2, 2), 0.5)])
    maps[1, 1, 0, 0] = 0.1
    return parts | {"t": [90, 10], "maps": maps}


def test_the_blocks_are_image_words_and_swapped_prompt(demo):
    """x_t at half its size; the largest weight of attention is white, none is black; no row for padding."""
    parts = steered()
    image, words, swapped = demo.blocks_of(parts, "Thin 7", "a two")
    assert image[:2] == ("'Thin 7'", ["x_t", "x_0_hat"]) and image[3] == swapped[3] == "gray"
    np.testing.assert_array_equal(image[2], [parts["x_t"] / 2, parts["x_0_hat"]])
    assert words[:2] == ("where each word is looked at", ["start", "thin", "7"]) and words[3] == "magma"
    assert len(words[2]) == 3
    for k, row in enumerate(words[2]):
        expected = (parts["maps"][:, k] * 4 - 1).repeat(2, 1).repeat(2, 2)[..., None]
        np.testing.assert_allclose(row, expected)
    assert swapped[:2] == ("x_0_hat, 'a two' in its place", ["never", "half-way", "always"])
    np.testing.assert_array_equal(swapped[2], [parts["x_0_hat"], parts["swapped"], parts["other"]])


def test_the_steering_figure_has_its_blocks_one_below_the_other(demo):
    """Each row in its place, time to the right; names at the rows, times at the columns, in greys from 0 to 255."""
    parts = steered()
    blocks = demo.blocks_of(parts, "thin 7", "two")
    figure = demo.steering_figure(blocks, parts["t"])
    assert len(figure.axes) == 3
    for axes, (title, labels, rows, colours) in zip(figure.axes, blocks):
        (image,) = axes.get_images()
        assert axes.get_title("left") == title and image.get_cmap().name == colours and image.get_clim() == (0, 255)
        np.testing.assert_array_equal(image.get_array(), tile(np.concatenate(rows), 2)[..., 0])
        assert [text.get_text() for text in axes.get_yticklabels()] == labels
        assert [text.get_text() for text in axes.get_xticklabels()] == ["t = 90", "t = 10"]
        side = (5 * len(rows) - 1) / len(rows)  # of the rows and the white lines between them
        np.testing.assert_allclose(axes.get_yticks(), [(i + 0.5) * side for i in range(len(rows))])
        np.testing.assert_allclose(axes.get_xticks(), [0.5 * side, 1.5 * side])


def test_a_title_names_prompt_negative_and_scale(demo):
    """And an empty prompt by words."""
    assert demo.title_of("two", "", 3.0) == "'two', guidance 3"
    assert demo.title_of(" ", "thick", 2.5) == "the empty prompt and not 'thick', guidance 2.5"


def test_what_is_drawn_is_generates_own_for_the_prompt_and_its_options(demo, captions, trained, tmp_path, monkeypatch):
    """The averaged network, the options' steps, scale and seed, and the three prompts, each in its place."""
    seen, grids = [], []
    monkeypatch.setattr(demo, "draw_images", lambda *arguments: seen.append(arguments) or np.zeros((9, 28, 28, 1)))
    monkeypatch.setattr(demo.plots, "save_grid", lambda *arguments, **options: grids.append((arguments, options)))
    monkeypatch.setattr(demo, "steer", lambda *arguments: seen.append(arguments) or steered())
    options = {"steps": 4, "scale": 4.0, "negative": "thin", "seed": 6, "steering": tmp_path / "s.png", "swap": "two"}
    images = run(demo, trained, tmp_path, "a thick seven", num=9, **options)
    (pool, recipe, labels, seed), (model, other_recipe, tokens, other_seed) = seen
    assert labels == [0] * 9 and seed == other_seed == 6 and recipe is other_recipe and model is pool.model
    assert (recipe.num_steps, recipe.scale, recipe.image_shape, recipe.schedule.T) == (4, 4.0, (28, 28, 1), 100)
    rows = [captions.tokenize(text) for text in ("a thick seven", "two", "thin")]
    assert recipe.guide.func.__name__ == "by_prompt" and recipe.guide.args == (rows[:2], rows[2]) and tokens == rows[0]
    arrays, _ = checkpoint.load(trained / "checkpoint.npz")
    for name, a in model.state_dict().items():
        np.testing.assert_array_equal(a, arrays[f"ema/{name}"])
    (((path, shown), grid),) = grids
    assert path == tmp_path / "p.png" and shown is images
    assert grid == {"columns": 8, "title": "'a thick seven' and not 'thin', guidance 4"}
    assert imread(tmp_path / "s.png").shape[1] > 300
    run(demo, trained, tmp_path, "two", steering=tmp_path / "s.png")
    assert seen[2][1].guide.args[0] == [captions.tokenize(text) for text in ("two", demo.SWAP)]
    assert grids[1][1]["columns"] == 1


class Levels:
    """Workers whose guide knows that the image of label k is k / 10 everywhere."""

    model = None

    def map(self, f, jobs):
        yield from (f(self.model, job) for job in jobs)

    def guide(self, schedule, model, labels, scale):
        x_0 = asarray(np.array(labels) / 10, "float32")[:, None, None, None]
        return lambda x_t, t: eps_from_x_0(schedule, x_t, t, 0 * x_t + scale * x_0)


def test_images_come_in_the_order_of_their_labels_and_are_clipped(captions):
    """More than a slice: the last frame of each slice of generate, in order; 2 is drawn as 1."""
    schedule, levels = Schedule.linear(50), Levels()
    guide = partial(levels.guide, schedule)
    recipe = Recipe(schedule, (2, 2, 1), DDIM, num_steps=3, scale=1.0, guide=guide, at_once=2, keep=2)
    images = captions.draw_images(levels, recipe, [1, 20, 3], 0)
    assert images.shape == (3, 2, 2, 1)
    np.testing.assert_allclose(
        images, np.broadcast_to(np.reshape([0.1, 1, 0.3], (3, 1, 1, 1)), images.shape), atol=1e-4
    )
    recipe = replace(recipe, guide=lambda model, labels, scale: lambda x_t, t: x_t / 3)  # now noise makes the picture
    frames = [frames[-1] for frames in generate(levels, recipe, [1, 20, 3], 7)]
    np.testing.assert_array_equal(
        captions.draw_images(levels, recipe, [1, 20, 3], 7), np.clip(np.concatenate(frames), -1, 1)
    )


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
