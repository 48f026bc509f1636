"""No training of minutes is lost: each program that trains saves when it is asked to stop, and goes on from there."""

import ast
import signal
from pathlib import Path

import pytest
from same_bytes import same_bytes
from tiny_runs import save_checkpoint, save_untrained_classifier

from tinydiff.app.signals import Stopped
from tinydiff.backend import TinydiffError, backend_name
from tinydiff.data import load
from tinydiff.diffusion import Schedule
from tinydiff.train import TrainConfig

pytestmark = pytest.mark.program

DEMOS = Path(__file__).parents[2] / "demos"
SOURCES = {path.stem: path.read_text("utf-8") for path in DEMOS.rglob("*.py") if path.parent.name != "measure"}
# Some seconds for each set of points, and half a minute for each format; their programs say that nothing is kept.
TRAINED_OTHERWISE = {"explorer_runs", "precision_runs"}
TINY_UNET = {"base_channels": 8, "num_res_blocks": 1}


def trains(source):
    """Whether a program has a training loop of its own, or calls one."""
    called = {ast.unparse(node.func) for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)}
    return called & {"train", "training.steps", "steps", "run.run", "finish", "job.train"}


def test_every_program_that_trains_saves_or_says_that_it_keeps_nothing():
    """run.run, finish and job.train save on a signal; a program with a loop of its own warns in --help."""
    keeps = {name for name, source in SOURCES.items() if trains(source) & {"run.run", "finish", "job.train"}}
    assert keeps == {
        "train_mnist", "train_images", "job",
        "train_prompts", "train_classifier", "latent", "one_shot_vs_gradual", "points_2d", "waves_1d",
        "overfit",
    }  # fmt: skip
    for name in keeps:
        assert any(words in SOURCES[name] for words in ('"--resume"', "run.add_options(", "job.add_options("))
        assert "SIGTERM" in ast.get_docstring(ast.parse(SOURCES[name]))
    for name, source in SOURCES.items():
        if trains(source) and name not in keeps | TRAINED_OTHERWISE:
            assert "nothing is kept" in " ".join(ast.get_docstring(ast.parse(source)).split()), name
    assert "nothing is kept" in SOURCES["explorer"] and "nothing is kept" in SOURCES["precision"]


def classifier(load_demo, monkeypatch, folder):
    demo = load_demo("train_classifier")
    options = {"data": "glyphs", "num_train": 40, "num_test": 30, "steps": 4, "batch_size": 8}
    return demo, options, [""]


def points(load_demo, monkeypatch, folder):
    demo = load_demo("points_2d")
    monkeypatch.setattr(demo, "T", 20)
    monkeypatch.setitem(demo.SCHEDULES, "linear", lambda T: Schedule([0.3] * T))
    monkeypatch.setattr(demo, "PERMUTATIONS", 9)
    return demo, {"steps": 4, "batch_size": 8, "sample_steps": 4, "num": 10}, ["moons", "mixture"]


def waves(load_demo, monkeypatch, folder):
    return load_demo("waves_1d"), {"steps": 4, "batch_size": 2, "sample_steps": 2, "num": 2}, ["training"]


def overfit(load_demo, monkeypatch, folder):
    options = {"data": "glyphs", "few": 1, "many": 2, "steps": 4, "batch_size": 2, "channels": 8, "sample_steps": 1}
    return load_demo("overfit"), options | {"num": 1}, ["1 picture", "2 pictures"]


def one_shot(load_demo, monkeypatch, folder):
    demo, data = load_demo("one_shot_vs_gradual"), load("glyphs", num=20)
    save_checkpoint(folder / "c.npz", data)
    save_untrained_classifier(folder / "judge.npz", data, channels=[8, 8])
    images = load("glyphs", "test", num=120)
    monkeypatch.setattr(demo, "load", lambda *_: images)
    monkeypatch.setattr(demo, "steps_that_fit", lambda *_: 4)
    options = {"source": folder / "c.npz", "classifier": folder / "judge.npz", "batch_size": 2, "channels": 8}
    return demo, options | {"num": 20, "sample_steps": 2}, ["VAE", "GAN"]


def latent(load_demo, monkeypatch, folder):
    demo, images = load_demo("latent"), load("glyphs", "test", num=120)
    save_untrained_classifier(folder / "judge.npz", load("glyphs", num=20), channels=[8, 8])
    monkeypatch.setattr(demo, "load", lambda *_: images)
    monkeypatch.setattr(demo, "steps_that_fit", lambda *_: 4)
    monkeypatch.setattr(
        demo, "TrainConfig", lambda **options: TrainConfig(**options | {"minutes": None, "num_steps": 4})
    )
    monkeypatch.setattr(demo, "training_seconds", lambda *_: {})
    options = {"classifier": folder / "judge.npz", "batch_size": 2, "num": 20, "sample_steps": 2, "unet": TINY_UNET}
    return demo, options | {"autoencoder": {"channels": [8, 8], "latent_channels": 2}}, ["autoencoder", "U-Net"]


@pytest.mark.parametrize(
    "program", [classifier, points, waves, pytest.param(overfit, marks=pytest.mark.slow), one_shot, latent]
)
def test_a_training_that_is_stopped_goes_on_to_the_same_bits(program, load_demo, monkeypatch, tmp_path, capsys):
    """Stopped in each of its trainings, and resumed: the files are those of an uninterrupted run, bit for bit."""
    demo, options, names = program(load_demo, monkeypatch, tmp_path)
    options |= {"backend": backend_name(), "workers": 1}
    stopping, finish, steps = [], demo.finish, []

    def finish_or_stop(state, *rest):
        name, draw = rest[-1] if isinstance(rest[-1], str) else "", state.draw

        def draw_and_signal(config, step):
            steps.append((name, step))
            if (name, step) in stopping:
                signal.raise_signal(signal.SIGTERM)
            return draw(config, step)

        state.draw = draw_and_signal
        finish(state, *rest)

    monkeypatch.setattr(demo, "finish", finish_or_stop)
    demo.main(**options, out=tmp_path / "whole")
    whole, cut = steps.copy(), tmp_path / "cut"
    for name in names:
        steps.clear()
        stopping[:] = [(name, 1)]
        with pytest.raises(Stopped) as end:
            demo.main(**options, out=cut, resume=name != names[0])
        assert end.value.code == 143 and steps[-1] == (name, 1)
        assert [path.name for path in cut.iterdir() if path.name.startswith("unfinished")]
    steps.clear()
    stopping.clear()
    demo.main(**options, out=cut, resume=True)
    assert steps == whole[whole.index((names[-1], 2)) :]  # no step is done twice
    assert not [path.name for path in cut.iterdir() if path.name.startswith("unfinished")]
    assert "continue with" in capsys.readouterr().out
    for path in (tmp_path / "whole").iterdir():
        if path.suffix == ".npz":
            assert same_bytes((cut / path.name).read_bytes(), path.read_bytes())
        elif path.suffix not in (".md", ".csv"):  # tables hold seconds
            assert same_bytes((cut / path.name).read_bytes(), path.read_bytes()), path.name


def test_a_finished_latent_checkpoint_is_not_resumed(load_demo, tmp_path):
    """--from and --resume exclude each other."""
    with pytest.raises(TinydiffError, match=r"--from c\.npz --resume: a finished checkpoint needs no training"):
        load_demo("latent").main(source="c.npz", resume=True, out=tmp_path)
