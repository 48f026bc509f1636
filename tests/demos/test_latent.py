"""Latent diffusion in its smallest form: its checkpoint, its scaling, its table and what this is counted from."""

import runpy
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread
from tiny_runs import save_checkpoint, save_untrained_classifier

from tinydiff import ops
from tinydiff.app import checkpoint
from tinydiff.app.alone import OneProcess, one_process
from tinydiff.autograd import Tensor, no_grad
from tinydiff.backend import FAST, TinydiffError, asarray, backend_name, default_rng, to_numpy
from tinydiff.data import load
from tinydiff.diffusion import Schedule
from tinydiff.nn import Conv2d, Linear, Module, UNet
from tinydiff.train import TrainConfig, draw_batch

pytestmark = pytest.mark.program

PATH = Path(__file__).parents[2] / "demos" / "latent.py"
TINY = {
    "autoencoder_minutes": 1e-6,
    "minutes": 1e-6,
    "batch_size": 2,
    "autoencoder": {"channels": [8, 8], "latent_channels": 2},
    "unet": {"base_channels": 8, "num_res_blocks": 1},
}
FEW = {"num": 20, "sample_steps": 2, "workers": 1, "backend": backend_name()}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A tiny pixel checkpoint and a classifier, neither trained."""
    folder, data = tmp_path_factory.mktemp("trained"), load("glyphs", num=20)
    save_checkpoint(folder / "pixel.npz", data)
    save_untrained_classifier(folder / "classifier.npz", data, channels=[8, 8])
    return folder


@pytest.fixture
def demo(load_demo, monkeypatch):
    demo, images = load_demo("latent"), load("glyphs", "test", num=120)
    monkeypatch.setattr(demo, "load", lambda *_: images)  # 10,000 glyphs take seconds to draw
    monkeypatch.setattr(demo, "TrainConfig", lambda **options: TrainConfig(**options | {"warmup": 2}))
    monkeypatch.setattr(demo, "ROUNDS", 2)
    monkeypatch.setattr(demo, "AT_ONCE", 2)
    monkeypatch.setattr(demo, "FEW", 2)
    return demo


def test_the_smallest_run_can_be_sampled_again(demo, files, tmp_path, capsys):
    """Table and picture beside pixel space; from the checkpoint alone the same samples get the same marks."""
    out, classifier = tmp_path / "new", files / "classifier.npz"
    rows = demo.main(pixel=files / "pixel.npz", classifier=classifier, out=out, **TINY, **FEW)
    found = {row["measured"]: row for row in rows}
    assert list(rows[0]) == ["measured", "pixel", "latent", "test digits"]
    assert found["numbers in x_t"]["pixel"] == "28 x 28 x 1" and found["numbers in x_t"]["latent"] == "7 x 7 x 2"
    assert found["training"]["latent"] == "1 + 3 steps of 2"
    for name in ("GFLOP an evaluation", "seconds a training step of 2", "MB a picture, training on 2"):
        assert float(found[name]["pixel"]) > 0 and float(found[name]["latent"]) >= 0
    written, printed = (out / "latent.md").read_text(), capsys.readouterr().out
    for row in rows:
        assert "| " + " | ".join(row.values()) + " |" in written and row["measured"] in printed
    assert 0.05 < imread(out / "latent.png")[..., :3].std() < 0.6

    again = demo.main(source=out / "checkpoint.npz", classifier=classifier, out=tmp_path / "again", **FEW)
    assert "pixel" not in again[0]
    starts = ("read", "Frechet", "coverage", "spread", "test digits", "their")
    quality = [name for name in found if name.startswith(starts)]
    assert len(quality) == 6
    for row in again:
        if row["measured"] in quality:
            assert row["latent"] == found[row["measured"]]["latent"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pixel": "gone.npz"}, "gone.npz does not exist"),
        ({"classifier": "gone.npz"}, "gone.npz does not exist"),
        ({"pixel": "classifier.npz"}, "'classifier', not 'diffusion'"),
        ({"classifier": "pixel.npz"}, "'diffusion', not 'classifier'"),
        ({"source": "gone.npz", "minutes": 8.0, "autoencoder_minutes": 4.0}, "gone.npz does not exist"),
        ({"num": 21}, "--num 21: must be a multiple of 10"),
        ({"num": 10_000}, "--num 10000: must be a multiple of 10, more than 5 and at most"),
        ({"sample_steps": 101}, "--sample-steps 101: the schedule has T = 100"),
        ({"source": "gone.npz", "minutes": 3.0}, "--minutes: with --from nothing is trained"),
        ({"source": "gone.npz", "minutes": 8.0, "data": "mnist"}, "--data: with --from nothing is trained"),
    ],
)
def test_what_is_wrong_at_the_end_is_found_before_the_training(demo, files, tmp_path, monkeypatch, options, message):
    """Checkpoints, numbers and options that count after twelve minutes only; an earlier checkpoint stays."""
    (tmp_path / "checkpoint.npz").write_bytes(b"of an earlier run")
    monkeypatch.setattr(demo, "train_both", None)
    given = {"pixel": "pixel.npz", "classifier": "classifier.npz", **TINY, **FEW, **options}
    for name in ("pixel", "classifier", "source"):
        if name in given:
            given[name] = files / given[name]
    with pytest.raises(TinydiffError, match=message):
        demo.main(out=tmp_path, **given)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.npz"]


def test_latents_have_mean_0_and_variance_1_channel_by_channel(demo, tmp_path):
    """The training set's, as the checkpoint's coder encodes it; decoding undoes the scaling."""
    data = load("glyphs", num=30)
    config = TrainConfig(num_steps=1, minutes=None, batch_size=2)
    path = tmp_path / "c.npz"
    demo.train_both(path, data, TINY["autoencoder"], 1e-6, demo.UNET | TINY["unet"], config, one_process(), 1)
    space, coder, _ = demo.load_latent(path, 1)
    x_0, _ = data.batch(np.arange(30))
    z = coder.encode(x_0)
    assert z.shape == (30, 7, 7, 2) and space.recipe.image_shape == (7, 7, 2)
    np.testing.assert_allclose(z.mean((0, 1, 2)), 0, atol=1e-5)  # float32 sums of 1,470 numbers of size 1
    np.testing.assert_allclose(z.std((0, 1, 2)), 1, atol=1e-5)
    mean, _ = coder.pool.model.encode(x_0)
    plain = np.clip(to_numpy(coder.pool.model.decode(mean)), -1, 1)
    np.testing.assert_allclose(coder.decode(z), plain, atol=1e-4)  # float32 through the scaling and the norms


def test_what_is_drawn_in_latent_space_is_not_clipped(demo, tmp_path):
    """A network that sees no noise scales x_T up far beyond 1, and so the sample comes out."""

    class Zero(Module):
        num_classes = None

        def forward(self, x_t, t, labels=None):
            return 0 * x_t

    schedule, seen = Schedule.linear(100), []
    recipe = demo.Recipe(schedule, (2, 2, 3), demo.DDPM)
    space = demo.Space(OneProcess(Zero), recipe, lambda x: seen.append(x) or x, "")
    images, seconds = demo.draw_in_turn({"latent": space}, np.arange(4), 100, 1.0, 0)
    assert images["latent"].shape == (4, 2, 2, 3) and seconds["latent"] > 0
    assert abs(images["latent"]).max() > 10  # 1/sqrt(alpha_bar_T) is 160
    assert len(seen) == 2  # rounds: a slice for each worker, of which there is one


def test_a_data_set_of_latents_is_drawn_from_as_one_of_pictures(demo):
    """draw_batch takes it: x_t of the latents' shape, labels of its rows."""
    z = np.arange(24, dtype=np.float32).reshape(3, 2, 2, 2)
    latents = demo.Latents(z, np.array([4, 5, 6], np.uint8))
    rows, labels = latents.batch(np.array([2, 0]))
    assert (rows == z[[2, 0]]).all() and labels.tolist() == [6, 4] and labels.dtype == np.int64
    batch = draw_batch(latents, Schedule.linear(50), 10, TrainConfig(batch_size=5, label_drop=0.0), 0)
    assert batch["x_t"].shape == (5, 2, 2, 2) and batch["x_t"].dtype == np.float32
    assert set(batch["labels"].tolist()) <= {4, 5, 6}


def test_operations_are_two_for_each_multiply_add(demo, rng):
    """Of a convolution, wide enough for Winograd, and a linear layer: 2 H W 9 C O and 2 H W C O an image."""
    conv, linear = Conv2d(16, 32, rng=rng), Linear(32, 5, rng=rng)
    x = Tensor(asarray(rng.standard_normal((3, 8, 6, 16), dtype="float32")))
    assert demo.operations(lambda: linear(conv(x))) == 3 * 48 * 2 * (9 * 16 * 32 + 32 * 5)


def test_operations_of_attention_and_of_a_product(demo, rng):
    """2 L M D for the scores and 2 L M E for the values, for each image and head; 2 L D E for a plain product."""
    q, k, v, w = (
        Tensor(asarray(rng.standard_normal(shape, dtype="float32")))
        for shape in ((3, 2, 4, 5), (3, 2, 6, 5), (3, 2, 6, 7), (7, 8))
    )
    assert demo.operations(lambda: ops.attention(q, k, v)) == 3 * 2 * 2 * 4 * 6 * (5 + 7)
    assert demo.operations(lambda: v @ w) == 3 * 2 * 2 * 6 * 7 * 8


def test_the_reference_network_takes_0_373_gflop(demo):
    """As its convolutions, linear layers and attention add up; counting leaves the installed functions in place."""
    model, before = UNet(rng=default_rng(0)), dict(FAST)
    with no_grad():
        count = demo.operations(lambda: model(asarray(np.zeros((1, 28, 28, 1), "float32")), 1))
    assert round(count / 1e9, 3) == 0.373 and before == FAST


def test_the_peak_is_of_what_the_work_held(demo):
    """Two arrays at a time, the first gone before the third comes: the most is two."""

    def work():
        a = np.ones(500_000)
        b = np.ones(500_000)
        del a
        return np.ones(500_000), b

    assert demo.peak_mb(work) == pytest.approx(8, rel=0.01)  # a few kB besides


def test_a_bad_checkpoint_is_one_message_and_exit_code_2(files, tmp_path, monkeypatch, capsys):
    """A pixel checkpoint in the place of a latent one, and the other way round: its kind is named."""
    checkpoint.save(tmp_path / "latent.npz", {}, {"kind": "latent"})
    for words, said in (
        (["--from", files / "pixel.npz"], "'diffusion', not 'latent'"),
        (["--from", tmp_path / "none.npz"], "does not exist"),
    ):
        options = ["--workers", 1, "--out", tmp_path / "o", "--backend", backend_name()]
        options += ["--classifier", files / "classifier.npz"]
        monkeypatch.setattr("sys.argv", [str(PATH), *map(str, [*words, *options])])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(PATH), run_name="__main__")
        assert end.value.code == 2 and said in capsys.readouterr().err.replace("\n", " ")
