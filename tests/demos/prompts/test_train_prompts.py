"""Training on captions in its smallest form: what the run writes, that it resumes bit for bit, what bad input gets."""

import csv
import json
import runpy
import signal
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from same_bytes import same_bytes

from tinydiff.app import checkpoint
from tinydiff.app.alone import one_process
from tinydiff.app.checkpoint import CheckpointError
from tinydiff.app.signals import Stop, Stopped
from tinydiff.app.training import attached, by_name
from tinydiff.backend import TinydiffError, backend_name
from tinydiff.data import load
from tinydiff.diffusion import Schedule
from tinydiff.train import TrainConfig, Training, noise_prediction_losses, train

pytestmark = pytest.mark.program

PATH = Path(__file__).parents[3] / "demos" / "prompts" / "train_prompts.py"
SMALL = {"data": "glyphs", "num_images": 60, "channels": 8, "batch_size": 4, "workers": 1, "sample_steps": 1}


@pytest.fixture
def demo(load_demo):
    """The demo without its last pictures, which take longer than all the rest."""
    demo = load_demo("prompts/train_prompts")
    demo.final_pictures = lambda *_: None
    return demo


@pytest.fixture(scope="module")
def whole(load_demo, tmp_path_factory):
    """A run of 4 steps."""
    folder = tmp_path_factory.mktemp("whole") / "new"
    load_demo("prompts/train_prompts").main(backend=backend_name(), out=folder, steps=4, seed=3, **SMALL)
    return folder


def test_a_run_leaves_pictures_metrics_and_a_checkpoint_that_knows_its_captions(load_demo, whole):
    """Everything promised is there; the checkpoint holds the vocabulary, the thresholds and what was held out."""
    assert sorted(p.name for p in whole.iterdir()) == ["checkpoint.npz", "loss.png", "metrics.csv", "samples.png"]
    for picture in whole.glob("*.png"):
        pixels = np.asarray(Image.open(picture).convert("L"), float)
        assert min(pixels.shape) > 100 and pixels.std() > 10
    rows = list(csv.DictReader((whole / "metrics.csv").read_text().splitlines()))
    assert [row["step"] for row in rows] == ["1", "2", "3", "4"] and all(0 < float(row["loss"]) < 5 for row in rows)
    arrays, meta = checkpoint.load(whole / "checkpoint.npz")
    captions = load_demo("prompts/captions")
    captioned = captions.Captioned(load("glyphs", seed=3, num=60), Schedule.linear())
    assert (meta["kind"], meta["step"], meta["num_images"]) == ("prompts", 4, 60)
    assert meta["data"]["num"] == 60 - captioned.left_out
    expected = {"vocabulary": captions.VOCABULARY, "held_out": captions.HELD_OUT, "thresholds": captioned.thresholds}
    assert {key: meta[key] for key in expected} == json.loads(json.dumps(expected))
    assert meta["model"]["encoder"]["num_words"] == len(captions.VOCABULARY)
    assert arrays["ema/encoder.words.w"].shape == (len(captions.VOCABULARY), 64)


def test_a_run_is_its_parts_in_order(whole, load_demo):
    """Weights and average are those of algorithm 1 on batches with captions, bit for bit; the encoder moves with it."""
    captions = load_demo("prompts/captions")
    arrays, meta = checkpoint.load(whole / "checkpoint.npz")
    schedule = Schedule.linear()
    captioned = captions.Captioned(load("glyphs", seed=3, num=60), schedule)
    config = TrainConfig(num_steps=4, minutes=None, batch_size=4, seed=3)
    encoder = {"num_words": len(captions.VOCABULARY), "max_length": 16}
    pool = one_process().workers(partial(captions.build, {"encoder": encoder, "unet": {"base_channels": 8}}, 3), 1)
    start = pool.model.state_dict()
    state = Training(pool.model, config, captioned.draw, noise_prediction_losses, 1000, **attached(pool))
    for _ in train(state):
        pass
    assert meta["train"] == json.loads(json.dumps(asdict(config))) and meta["model"] == pool.model.config
    np.testing.assert_array_equal(arrays["schedule/beta"], schedule.beta)
    for name, a in pool.model.state_dict().items():
        np.testing.assert_array_equal(arrays[f"weights/{name}"], a)
    for name, a in by_name(pool.model, state.ema.average).items():
        np.testing.assert_array_equal(arrays[f"ema/{name}"], a)
    moved = {name for name, a in start.items() if (arrays[f"weights/{name}"] != a).any()}
    assert {"encoder.words.w", "encoder.places.w", "unet.middle.0.cross.out.w", "unet.conv_out.w"} <= moved


class Lent:
    """Workers that know which weights they have been lent."""

    weights_now = "last"

    @contextmanager
    def weights(self, average):
        self.weights_now = average
        yield
        self.weights_now = "last"


def test_the_last_pictures_are_drawn_from_the_average(load_demo, tmp_path, monkeypatch, capsys):
    """A sentence in each row, a digit in each column; titles name the steps taken, the data and the guidance."""
    demo, drawn, grids, losses = load_demo("prompts/train_prompts"), [], [], []

    def draw_images(pool, recipe, labels, seed, name):
        drawn.append((pool.weights_now, recipe, list(labels), seed, name))
        return "images"

    monkeypatch.setattr(demo, "draw_images", draw_images)
    monkeypatch.setattr(demo.plots, "save_grid", lambda *arguments, **options: grids.append((arguments, options)))
    monkeypatch.setattr(demo.run, "save_loss", lambda *arguments: losses.append(arguments))
    state = SimpleNamespace(ema=SimpleNamespace(average="average"), step=1234)
    recipe = demo.Recipe(Schedule.linear(), (28, 28, 1), num_steps=7, scale=2.5)
    demo.final_pictures(state, Lent(), SimpleNamespace(name="glyphs"), recipe, tmp_path)
    ((weights, used, labels, seed, name),) = drawn
    assert (weights, labels, seed, name) == ("average", list(range(50)), 1, "drawing")
    captions = load_demo("prompts/captions")
    said = [sentence.format(digit) for sentence in demo.SHOWN for digit in captions.DIGITS]
    assert used.guide.args == ([captions.tokenize(text) for text in said], captions.tokenize(""))
    assert used.guide.func.__name__ == "by_prompt" and (used.num_steps, used.scale) == (7, 2.5)
    rows = ["a ...", "a thin ... leaning left", "a thin ... leaning right", "a thick ... leaning left"]
    options = {
        "columns": 10,
        "title": "glyphs, 1,234 steps, guidance 2.5",
        "row_labels": [*rows, "a thick upright ..."],
    }
    assert grids == [((tmp_path / "samples.png", "images"), options)]
    assert losses == [(state, tmp_path / "loss.png", "glyphs with captions, loss per pixel")]
    printed = capsys.readouterr().out
    assert f"done: open {tmp_path}/samples.png; beside it: loss.png, metrics.csv" in printed
    assert "prompt.py" in printed and "'a thin seven leaning right'" in printed.replace('"', "'")


def test_main_hands_its_options_on(demo, tmp_path, monkeypatch, capsys):
    """Settings, steps of the last pictures, how often it saves; a default that is stated is the default."""
    seen = []
    monkeypatch.setattr(demo.run, "run", lambda state, ranks, save, every: seen.append((state, every)))
    demo.final_pictures = lambda *arguments: seen.append(arguments)
    demo.main(backend=backend_name(), out=tmp_path, steps=9, seed=3, save_every=7, **SMALL | {"sample_steps": 5})
    (state, every), (_, _, dataset, recipe, out) = seen
    assert (
        every == 7 and out == tmp_path and (recipe.num_steps, recipe.image_shape, recipe.scale) == (5, (28, 28, 1), 2)
    )
    assert state.config == TrainConfig(num_steps=9, minutes=None, batch_size=4, seed=3) and state.T == 1000
    assert len(dataset) < 60 and state.model.config["unet"]["base_channels"] == 8
    printed = capsys.readouterr().out
    assert f"without {60 - len(dataset)} pictures of the held-out combinations" in printed
    assert f"network: {state.model.num_parameters():,} parameters; 1 worker(s); results in {tmp_path}/" in printed
    seen.clear()
    demo.main(backend=backend_name(), out=tmp_path, **{key: SMALL[key] for key in ("data", "num_images", "workers")})
    (state, every), (*_, recipe, _) = seen
    assert state.config == TrainConfig(num_steps=demo.run.UNLIMITED, minutes=18.0) and every == 100
    assert state.model.config["unet"]["base_channels"] == 32 and recipe.num_steps == 50


def test_resume_continues_bit_for_bit_with_the_checkpoints_settings(demo, whole, tmp_path):
    """Stopped after 2 of 4 steps and resumed without repeating a setting, the run ends in the same bits."""
    save, saved = demo.save, []

    def save_then_stop(state, *rest):
        save(state, *rest)
        saved.append(state.step)
        if state.step == 2:
            raise KeyboardInterrupt

    demo.save = save_then_stop
    with pytest.raises(KeyboardInterrupt):
        demo.main(backend=backend_name(), out=tmp_path, steps=4, seed=3, save_every=1, **SMALL)
    demo.save = save
    demo.main(backend=backend_name(), out=tmp_path, resume=True, sample_steps=1)
    assert saved == [0, 1, 2]
    for name in ("checkpoint.npz", "metrics.csv"):
        assert same_bytes((tmp_path / name).read_bytes(), (whole / name).read_bytes())


def test_a_checkpoint_of_an_earlier_version_goes_on(demo, whole, load_demo, tmp_path):
    """An option that is gone and was not used makes no difference; one that was used is refused by name."""
    captions, path = load_demo("prompts/captions"), tmp_path / "checkpoint.npz"
    arrays, meta = checkpoint.load(whole / "checkpoint.npz")
    train = {name: value for name, value in meta["train"].items() if name != "betas"} | {"weight_decay": 0.0}
    unet = meta["model"]["unet"]
    before = meta | {"model": meta["model"] | {"unet": unet | {"dropout": 0.0}}, "train": train}
    checkpoint.save(path, arrays, before)
    assert path.read_bytes() != (whole / "checkpoint.npz").read_bytes()
    demo.main(backend=backend_name(), out=tmp_path, resume=True)
    assert same_bytes(path.read_bytes(), (whole / "checkpoint.npz").read_bytes())
    checkpoint.save(path, arrays, before)
    pool, _, _ = captions.load_trained(path, 1)
    with pool:
        for name, a in pool.model.state_dict().items():
            np.testing.assert_array_equal(a, arrays[f"ema/{name}"])
    checkpoint.save(path, arrays, before | {"model": meta["model"] | {"unet": unet | {"dropout": 0.1}}})
    with pytest.raises(CheckpointError, match=r"dropout=0\.1"):
        captions.load_trained(path, 1)
    with pytest.raises(CheckpointError, match=r"dropout=0\.1"):
        demo.main(backend=backend_name(), out=tmp_path, resume=True)


def test_resume_refuses_other_settings_and_another_vocabulary(demo, whole):
    """What contradicts the checkpoint is named with both values, and the checkpoint stays as it was."""
    before = (whole / "checkpoint.npz").read_bytes()
    for option, message in (
        ({"batch_size": 8}, "batch_size is 4 in the checkpoint, 8 is wanted"),
        ({"channels": 16}, "base_channels is 8 in the checkpoint, 16 is wanted"),
        ({"num_images": 30}, "num_images is 60 in the checkpoint, 30 is wanted"),
        ({"data": "mnist"}, "name is 'glyphs' in the checkpoint, 'mnist' is wanted"),
    ):
        with pytest.raises(CheckpointError, match=message):
            demo.main(backend=backend_name(), out=whole, resume=True, **{**SMALL, **option})
    for name, other, said in (("VOCABULARY", (*demo.VOCABULARY, "wiggly"), "'wiggly'"), ("HELD_OUT", (), r"\[")):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(demo, name, other)
            with pytest.raises(CheckpointError, match=rf"{name.lower()} is .*{said}\] is wanted"):
                demo.main(backend=backend_name(), out=whole, resume=True)
    assert same_bytes((whole / "checkpoint.npz").read_bytes(), before)


def test_a_signal_saves_and_ends_the_run(demo, tmp_path, capsys):
    """After the step in which it came the checkpoint is whole, nothing more is drawn, and --resume is named."""
    drawn = []
    demo.final_pictures = lambda *_: drawn.append(1)

    @contextmanager
    def stop_signals(at_once):
        yield Stop(signal.SIGTERM)

    demo.run.stop_signals, before = stop_signals, demo.run.stop_signals
    try:
        with pytest.raises(Stopped) as end:
            demo.main(backend=backend_name(), out=tmp_path, steps=4, seed=3, **SMALL)
    finally:
        demo.run.stop_signals = before
    assert end.value.code == 143
    printed = capsys.readouterr().out
    assert "SIGTERM: saved at step 1; continue with" in printed and "--resume" in printed
    assert checkpoint.load(tmp_path / "checkpoint.npz")[1]["step"] == 1 and drawn == []


def test_resume_without_a_checkpoint_starts_from_the_beginning(demo, tmp_path, capsys):
    """A run that was killed before its first save is simply run."""
    demo.main(backend=backend_name(), out=tmp_path, steps=1, resume=True, **SMALL)
    assert "no checkpoint" in capsys.readouterr().out
    assert checkpoint.load(tmp_path / "checkpoint.npz")[1]["step"] == 1


def test_a_new_run_sets_all_files_of_an_earlier_one_aside(demo, tmp_path, monkeypatch):
    """Together, so that no picture stands beside the checkpoint of another run."""
    for name in demo.FILES:
        (tmp_path / name).write_text(name)
    monkeypatch.setattr(demo.run, "run", lambda *_: None)
    monkeypatch.setattr(demo, "final_pictures", lambda *_: None)
    demo.main(backend=backend_name(), out=tmp_path, steps=1, **SMALL)
    assert {path.name for path in tmp_path.iterdir()} == {"earlier.1"}
    assert {path.name: path.read_text() for path in (tmp_path / "earlier.1").iterdir()} == {n: n for n in demo.FILES}


def test_without_steps_the_minutes_decide(demo, tmp_path, monkeypatch):
    """18 of them by default, or as many as are given; the number of steps is not known before the warm-up's end."""
    seen = []
    total = demo.run.total
    monkeypatch.setattr(demo.run, "run", lambda state, *_: seen.append((state.config.minutes, total(state))))
    demo.main(backend=backend_name(), out=tmp_path, **SMALL)
    demo.main(backend=backend_name(), out=tmp_path, minutes=2.0, **SMALL)
    demo.main(backend=backend_name(), out=tmp_path, steps=5, **SMALL)
    assert seen == [(18.0, None), (2.0, None), (None, 5)]


def test_only_digits_are_captioned(demo, tmp_path):
    """Fashion-MNIST has no digits; and more images than there are, or another kind of checkpoint, are named."""
    with pytest.raises(TinydiffError, match="--data fashion: the captions are of digits"):
        demo.main(backend=backend_name(), out=tmp_path, data="fashion")
    checkpoint.save(tmp_path / "checkpoint.npz", {}, {"kind": "diffusion"})
    with pytest.raises(CheckpointError, match="holds a network of kind 'diffusion', not 'prompts'"):
        demo.main(backend=backend_name(), out=tmp_path, resume=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data=fashion"], "choose from"),
        (["--steps=2", "--minutes=1"], "not allowed with"),
        (["--channels=12", "--data=glyphs", "--num-images=20", "--steps=1"], "--channels 12: must be a multiple of 8"),
        (["--sample-steps=2000", "--data=glyphs", "--num-images=20", "--steps=1"], "T = 1000 steps"),
    ],
)
def test_bad_options_exit_2(tmp_path, monkeypatch, capsys, options, message):
    """A user's mistake on the command line is one message and exit code 2."""
    monkeypatch.setattr("sys.argv", [str(PATH), *options, f"--out={tmp_path}", f"--backend={backend_name()}"])
    monkeypatch.syspath_prepend(PATH.parent)
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(PATH), run_name="__main__")
    assert end.value.code == 2 and message in capsys.readouterr().err.replace("\n", " ")
