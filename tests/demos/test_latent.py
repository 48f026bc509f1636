"""Latent diffusion in its smallest form: its checkpoint, its scaling, its table and what this is counted from."""

import inspect
import io
import runpy
from contextlib import redirect_stdout
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.image import imread
from tiny_runs import save_checkpoint, save_untrained_classifier

from tinydiff import ops
from tinydiff.app import checkpoint
from tinydiff.app.alone import OneProcess, one_process
from tinydiff.app.classify import load_classifier
from tinydiff.app.generate import build_unet
from tinydiff.app.metrics import interval
from tinydiff.app.reading import Judge
from tinydiff.app.training import attached, by_name
from tinydiff.autograd import Tensor, no_grad
from tinydiff.backend import FAST, TinydiffError, asarray, backend_name, default_rng, to_numpy
from tinydiff.data import epoch_indices, load
from tinydiff.diffusion import Schedule
from tinydiff.diffusion.targets import TARGETS
from tinydiff.more.autoencoder import negative_elbo
from tinydiff.nn import Conv2d, Linear, Module, UNet
from tinydiff.train import LoopConfig, TrainConfig, Training, draw_batch, noise_prediction_losses, train

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


def test_the_smallest_run_fills_table_and_picture(demo, files, tmp_path, capsys):
    """Trained, drawn and measured beside pixel space; what is printed is what is written."""
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


def test_main_hands_its_options_on_and_writes_what_compare_returns(demo, files, both, tmp_path, monkeypatch, capsys):
    """Training and comparison get each option once; a default that is documented is the default."""
    seen, grids = [], []
    rows = [{"measured": "a", "latent": "1"}]
    shown = (["x", "y"], (np.zeros((10, 4, 4, 1)), np.ones((10, 4, 4, 1))), "the title")
    monkeypatch.setattr(demo, "train_both", lambda *arguments: seen.append(arguments))
    monkeypatch.setattr(demo, "compare", lambda *given, **options: seen.append((given, options)) or (rows, shown))
    monkeypatch.setattr(demo.plots, "save_grid", lambda *arguments, **options: grids.append((arguments, options)))

    known_space = SimpleNamespace(pool=one_process().workers(lambda: UNet(base_channels=8, rng=default_rng(0)), 1))
    monkeypatch.setattr(demo, "load_pixel", lambda path, workers: known_space)
    monkeypatch.setattr(
        demo,
        "load_latent",
        lambda path, workers: (
            seen.append((path, workers))
            or (known_space, SimpleNamespace(pool=known_space.pool), {"data": {"name": "glyphs"}})
        ),
    )
    classifier = files / "classifier.npz"
    table = demo.main(pixel=files / "pixel.npz", classifier=classifier, out=tmp_path, scale=1.5, seed=4, **TINY, **FEW)
    (path, dataset, coder, minutes, unet, config, _, workers, resume), loaded, (arguments, options) = seen
    assert path == tmp_path / "checkpoint.npz" and len(dataset) == 120 and workers == 1 and resume is False
    assert (coder, minutes) == (TINY["autoencoder"], 1e-6)
    assert unet == {"base_channels": 8, "channel_mults": [1], "num_res_blocks": 1}
    settings = {"num_steps": demo.run.UNLIMITED, "minutes": 1e-6, "batch_size": 2, "seed": 4, "target": "v"}
    assert config == TrainConfig(**settings, warmup=2)
    assert loaded == (path, 1) and list(arguments[0]) == ["pixel", "latent"] and arguments[4] == 2
    assert options == {"num": 20, "steps": 2, "scale": 1.5, "seed": 4}
    (((where, pictures), grid),) = grids
    assert where == tmp_path / "latent.png" and pictures.shape == (20, 4, 4, 1)
    assert grid == {"columns": 10, "title": "the title", "row_labels": ["x", "y"]}
    assert table == rows and (tmp_path / "latent.md").read_text() == "| measured | latent |\n| --- | --- |\n| a | 1 |\n"
    printed = capsys.readouterr().out
    assert f"1 worker(s); results in {tmp_path}/" in printed and demo.NO_SPREAD not in printed
    assert f"done: open {tmp_path}/latent.png; table: {tmp_path}/latent.md" in printed and "--from" in printed
    path, *_ = both
    demo.main(source=path, classifier=classifier, out=tmp_path, **FEW | {"num": 10})
    (loaded, (arguments, options)) = seen[3:]
    assert options == {"num": 10, "steps": 2, "scale": 2.0, "seed": 0} and list(arguments[0]) == ["latent"]
    assert demo.NO_SPREAD in capsys.readouterr().out and arguments[4] == 64
    defaults = {name: p.default for name, p in inspect.signature(demo.main).parameters.items()}
    stated = (
        "autoencoder_minutes",
        "minutes",
        "batch_size",
        "num",
        "sample_steps",
        "scale",
        "data",
        "out",
        "num_images",
    )
    assert [defaults[name] for name in stated] == [4.0, 8.0, 64, 500, 50, 2.0, "auto", "runs/latent", None]
    assert (0.1, "v", Schedule.cosine, 250) == (demo.SIGMA, demo.TARGET, demo.SCHEDULE, demo.SLICE)
    assert demo.UNET == {"base_channels": 64, "channel_mults": [1], "num_res_blocks": 2}


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


def test_a_new_training_sets_all_files_of_an_earlier_one_aside(demo, files, tmp_path, monkeypatch):
    """Together, before it begins, so that no table stands beside the checkpoint of another run."""
    names = {"checkpoint.npz", "latent.md", "latent.png"}
    for name in names:
        (tmp_path / name).write_text(name)
    monkeypatch.setattr(demo, "train_both", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        demo.main(out=tmp_path, classifier=files / "classifier.npz", **TINY, **FEW)
    assert {path.name for path in tmp_path.iterdir()} == {"earlier.1"}
    assert {path.name for path in (tmp_path / "earlier.1").iterdir()} == names


@pytest.fixture(scope="module")
def both(load_demo, tmp_path_factory):
    """What train_both has saved, printed and called, with a clock that is asked three times: 0, 61 and 161 s."""
    demo, data, path = load_demo("latent"), load("glyphs", num=30), tmp_path_factory.mktemp("both") / "c.npz"
    calls = []

    def noting(module, name):
        f = getattr(module, name)
        patch.setattr(module, name, lambda *given: calls.append((name, *given)) or f(*given))

    config = TrainConfig(num_steps=2, minutes=None, batch_size=2, seed=3, target="v")
    ticks = iter([0.0, 61.0, 161.0])
    demo.time = SimpleNamespace(monotonic=lambda: next(ticks))
    with redirect_stdout(io.StringIO()) as printed, pytest.MonkeyPatch.context() as patch:
        for module, name in (
            (demo, "finish"),
            (demo.training, "check_finite"),
            (demo.checkpoint, "set_aside"),
            (demo.checkpoint, "save"),
        ):
            noting(module, name)
        networks = (TINY["autoencoder"], 1e-6, demo.UNET | TINY["unet"])
        demo.train_both(path, data, *networks, config, one_process(), 1)
    return path, data, printed.getvalue(), calls


def test_every_step_draws_new_noise_for_the_latents(demo):
    """Of steps that follow each other, and of seeds that do, no two have the same; one of each latent's numbers."""
    data = load("glyphs", num=12)
    configs = [TrainConfig(batch_size=3, seed=seed) for seed in range(2)]
    drawn = [demo.draw_pictures(data, 2, config, step) for config in configs for step in range(5)]
    assert {batch["eps"].shape for batch in drawn} == {(3, 7, 7, 2)}
    assert len({batch["eps"].tobytes() for batch in drawn}) == 10


def test_a_resumed_training_is_compared_in_all_that_decides_it(demo, both):
    """The settings of either training; then the arrays are checked, an earlier file is set aside, and all is saved."""
    path, _, _, calls = both
    first, second, checked, aside, saved = (call for call in calls if call[0] == "finish" or call[1] == path)
    settings = {"minutes": 1e-6, "data": "glyphs", "num": 30, "seed": 3, "batch_size": 2}
    settings["autoencoder"] = TINY["autoencoder"]
    assert first[3:] == (path.with_name("unfinished_autoencoder.npz"), settings, False, "autoencoder")
    config = TrainConfig(num_steps=2, minutes=None, batch_size=2, seed=3, target="v")
    unet = demo.UNET | TINY["unet"] | {"in_channels": 2, "num_classes": 10}
    both_settings = settings | {"unet": unet, "train": asdict(config)}
    assert second[3:] == (path.with_name("unfinished_unet.npz"), both_settings, False, "U-Net")
    arrays = checked[2]
    assert checked == ("check_finite", path, arrays) and aside == ("set_aside", path)
    assert saved[:2] == ("save", path) and saved[2] is arrays


def test_the_parts_of_a_checkpoint_belong_together(demo, both):
    """Channels of the latents and of both networks, classes, and a side that each level of the U-Net but one halves."""
    _, meta = checkpoint.load(both[0])
    assert demo.fits_together(meta)
    two_levels = meta | {
        "model": meta["model"] | {"channel_mults": [1, 2]},
        "data": {"name": "pictures of another size"},
    }
    assert demo.fits_together(two_levels | {"latent_shape": [8, 6, 2]}) and not demo.fits_together(two_levels)
    assert not demo.fits_together(two_levels | {"latent_shape": [8, 7, 2]})
    for part, change in (
        ("autoencoder", {"latent_channels": 3}),
        ("autoencoder", {"in_channels": 3}),
        ("model", {"in_channels": 3}),
        ("model", {"num_classes": None}),
        ("model", {"num_classes": 9}),
    ):
        assert not demo.fits_together(meta | {part: meta[part] | change}), (part, change)


def test_both_networks_are_trained_in_their_parts_order(demo, both):
    """The autoencoder on the bound, the U-Net on its scaled means with v: bit for bit; the average is what is saved."""
    path, data, printed, _ = both
    arrays, meta = checkpoint.load(path)
    pool = one_process().workers(partial(demo.build_autoencoder, TINY["autoencoder"], 3), 1)

    def draw(config, step):
        x, _ = data.batch(epoch_indices(30, 2, 3, step))
        return {"x": x, "eps": default_rng("latent", 3, step).standard_normal((2, 7, 7, 2), dtype="float32")}

    def losses_of(model, batch):
        return negative_elbo(batch["x"], *model(batch["x"], batch["eps"]), 0.1)

    for _ in train(Training(pool.model, LoopConfig(1, 2, seed=3), draw, losses_of, **attached(pool))):
        pass
    for name, a in pool.model.state_dict().items():
        np.testing.assert_array_equal(arrays[f"autoencoder/{name}"], a)
    x_0, labels = data.batch(np.arange(30))
    with no_grad():
        z = to_numpy(pool.model.encode(x_0)[0])
    shift, scale = z.mean((0, 1, 2), dtype="float64"), z.std((0, 1, 2), dtype="float64")
    np.testing.assert_array_equal(arrays["latent/shift"], shift)
    np.testing.assert_array_equal(arrays["latent/scale"], scale)
    latents = demo.Latents((z - shift.astype("float32")) / scale.astype("float32"), labels)
    schedule, network = Schedule.cosine(), demo.UNET | TINY["unet"] | {"in_channels": 2, "num_classes": 10}
    pool = one_process().workers(partial(build_unet, network, 3), 1)
    config = TrainConfig(num_steps=2, minutes=None, batch_size=2, seed=3, target="v")
    draw = partial(draw_batch, latents, schedule, 10)
    state = Training(pool.model, config, draw, noise_prediction_losses, schedule.T, **attached(pool))
    for _ in train(state):
        pass
    last = pool.model.state_dict()
    average = by_name(pool.model, state.ema.average)
    assert any((last[name] != a).any() for name, a in average.items())
    for name, a in average.items():
        np.testing.assert_array_equal(arrays[f"ema/{name}"], a)
    assert len(arrays) == len(average) + len([n for n in arrays if n.startswith("autoencoder/")]) + 3
    np.testing.assert_array_equal(arrays["schedule/beta"], schedule.beta)
    expected = {
        "kind": "latent",
        "sigma": 0.1,
        "latent_shape": [7, 7, 2],
        "trained": "1 + 2 steps of 2",
        "noise": "host",
    }
    assert {name: meta[name] for name in expected} == expected
    assert meta["data"] == {"name": "glyphs", "source": data.source, "num": 30} and meta["train"]["target"] == "v"
    assert printed.splitlines()[-1] == f"autoencoder: 61 s, U-Net: 100 s; saved as {path}"
    assert [p.name for p in path.parent.iterdir()] == ["c.npz"]
    space, coder, _ = demo.load_latent(path, 1)
    for name, a in space.pool.model.state_dict().items():
        np.testing.assert_array_equal(a, arrays[f"ema/{name}"])
    assert (space.recipe.image_shape, space.recipe.at_once, space.trained) == ((7, 7, 2), 2, "1 + 2 steps of 2")
    assert space.recipe.target is TARGETS["v"] and space.recipe.step is demo.DDPM and space.decode == coder.decode
    np.testing.assert_array_equal(space.recipe.schedule.beta, schedule.beta)


def test_latents_have_mean_0_and_variance_1_channel_by_channel(demo, both, monkeypatch):
    """The training set's, as the checkpoint's coder encodes it, in slices; decoding undoes the scaling and clips."""
    path, data, *_ = both
    monkeypatch.setattr(demo, "SLICE", 13)
    _, coder, _ = demo.load_latent(path, 1)
    x_0, _ = data.batch(np.arange(30))
    z = coder.encode(x_0)
    assert z.shape == (30, 7, 7, 2)
    np.testing.assert_allclose(z.mean((0, 1, 2)), 0, atol=1e-5)  # float32 sums of 1,470 numbers of size 1
    np.testing.assert_allclose(z.std((0, 1, 2)), 1, atol=1e-5)
    mean, _ = coder.pool.model.encode(x_0)
    plain = np.clip(to_numpy(coder.pool.model.decode(mean)), -1, 1)
    np.testing.assert_allclose(coder.decode(z), plain, atol=1e-4)  # float32 through the scaling and the norms
    assert abs(coder.decode(1e6 * z)).max() == 1


def test_a_pixel_checkpoint_is_drawn_from_its_average(demo, files):
    """And clipped; its schedule, shape and target are the checkpoint's; without classes it is refused."""
    space = demo.load_pixel(files / "pixel.npz", 1)
    arrays, _ = checkpoint.load(files / "pixel.npz")
    for name, a in space.pool.model.state_dict().items():
        np.testing.assert_array_equal(a, arrays[f"ema/{name}"])
    assert space.recipe.image_shape == (28, 28, 1) and space.recipe.target is TARGETS["eps"]
    np.testing.assert_array_equal(space.recipe.schedule.beta, arrays["schedule/beta"])
    assert space.trained == "1 step of 2" and space.decode(np.array([-3.0, 0.5, 2.0])).tolist() == [-1, 0.5, 1]
    assert (
        demo.target_of({"train": {"target": "x_0"}}) is TARGETS["x_0"]
        and demo.target_of({"train": {}}) is TARGETS["eps"]
    )


def test_a_pixel_checkpoint_without_classes_is_refused(demo, tmp_path):
    """What is drawn is asked for by its label."""
    save_checkpoint(tmp_path / "c.npz", load("glyphs", num=10), num_classes=None)
    with pytest.raises(TinydiffError, match="needs a network with classes"):
        demo.load_pixel(tmp_path / "c.npz", 1)


def test_the_scaling_is_a_number_for_each_channel(demo):
    """float64, all of them finite, and the scale above 0."""
    tables, meta = demo.KINDS["latent"].tables, {"latent_shape": [7, 7, 2]}
    shift, scale = tables["latent/shift"].fits, tables["latent/scale"].fits
    assert shift(np.array([0.0, -3.0]), meta) and scale(np.array([0.5, 3.0]), meta)
    for wrong in (np.array([1.0, np.nan]), np.array([np.inf, 1.0]), np.ones(3), np.ones((1, 2)), np.ones(2, "float32")):
        assert not shift(wrong, meta) and not scale(wrong, meta)
    assert not scale(np.array([1.0, 0.0]), meta) and not scale(np.array([-1.0, 1.0]), meta)


# What is compared.


def test_spaces_draw_in_turn_from_the_same_labels_and_seconds_add_up(demo, monkeypatch):
    """5 labels with one worker and slices of 2 are two rounds of 3 and 2; each space's clock has its own drawing."""
    drawn, now, seconds_of = [], [0.0], {"pixel": 3.0, "latent": 0.5}

    def generate(pool, recipe, labels, seed, first):
        drawn.append((pool.name, recipe.num_steps, recipe.scale, labels, seed, first))
        now[0] += seconds_of[pool.name]
        for part in (labels[:2], labels[2:]):
            if part:
                yield np.stack([np.full((len(part), 1, 1, 1), -1.0), np.reshape(part, (-1, 1, 1, 1))])

    def decode(x):
        now[0] += 0.25
        return 10 * x

    monkeypatch.setattr(demo, "generate", generate)
    monkeypatch.setattr(demo, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    recipe = demo.Recipe(Schedule.linear(100), (1, 1, 1))
    spaces = {n: demo.Space(SimpleNamespace(name=n, num_workers=1), recipe, decode, "") for n in ("pixel", "latent")}
    images, seconds = demo.draw_in_turn(spaces, np.array([3, 1, 4, 1, 5]), 7, 1.5, 20)
    assert seconds == {"pixel": 6.5, "latent": 1.5}
    for name in spaces:
        assert images[name].ravel().tolist() == [30, 10, 40, 10, 50]  # the last frame, decoded, in the labels' order
    assert drawn == [(n, 7, 1.5, part, 20, first) for first, part in ((0, [3, 1, 4]), (3, [1, 5])) for n in spaces]
    assert [len(a) for a in demo.draw_in_turn(spaces, np.array([3]), 7, 1.0, 0)[0].values()] == [1, 1]


def test_a_training_step_is_timed_after_a_warm_up_in_turn(demo, monkeypatch):
    """Of ROUNDS + 1 steps of 100, 1, 5 and 2 s the median of the last three; the spaces alternate."""
    now, order, costs = [0.0], [], {"pixel": [100, 1, 5, 2], "latent": [100, 0.1, 0.4, 0.3]}

    def loop(name):
        for cost in costs[name]:
            order.append(name)
            now[0] += cost
            yield

    def training(pool, schedule, config, dataset):
        assert (schedule, dataset, config.batch_size, config.minutes) == ("schedule", f"{pool} data", 9, None)
        return pool

    monkeypatch.setattr(demo, "ROUNDS", 3)
    monkeypatch.setattr(demo.training, "diffusion_training", training)
    monkeypatch.setattr(demo, "train", loop)
    monkeypatch.setattr(demo, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    spaces = {name: demo.Space(name, SimpleNamespace(schedule="schedule"), None, "") for name in costs}
    seconds = demo.training_seconds(spaces, {name: f"{name} data" for name in costs}, 9)
    assert {name: round(value, 6) for name, value in seconds.items()} == {"pixel": 2, "latent": 0.3}
    assert order == ["pixel", "latent"] * 4


class Counting(Module):
    """A network of 7 parameters that notes how it is called, and whether a graph is recorded."""

    num_classes = 10

    def __init__(self):
        self.w, self.calls = Tensor(asarray(np.ones(7, "float32")), requires_grad=True), []

    def forward(self, x_t, t, labels=None):
        out = ops.mean(self.w, axis=0) * Tensor(asarray(x_t))
        self.calls.append((x_t.shape, labels is not None, out.requires_grad))
        return out


def test_the_cost_of_a_space_is_counted_for_one_picture(demo, monkeypatch):
    """Operations and memory of FEW, divided by FEW: of an evaluation without a graph, and of a step with a gradient."""
    space = demo.Space(OneProcess(Counting), demo.Recipe(Schedule.linear(100), (8, 8, 1)), None, "9 steps of 2")
    model = space.pool.model
    monkeypatch.setattr(demo, "FEW", 4)
    monkeypatch.setattr(demo, "operations", lambda work: work() or 8_000_000_000)
    monkeypatch.setattr(demo, "peak_mb", lambda work: work() or 10.0 + 2 * (model.w.grad is not None))
    data = demo.Latents(np.zeros((6, 8, 8, 1), "float32"), np.arange(6))
    table = demo.Table(["a", "b"])
    table.cost("b", space, data)
    assert table.rows() == [
        {"measured": "training", "a": "", "b": "9 steps of 2"},
        {"measured": "numbers in x_t", "a": "", "b": "8 x 8 x 1"},
        {"measured": "parameters of the U-Net", "a": "", "b": "7"},
        {"measured": "GFLOP an evaluation", "a": "", "b": "2.000"},
        {"measured": "MB a picture, evaluating 4", "a": "", "b": "2.50"},
        {"measured": "MB a picture, training on 4", "a": "", "b": "3.00"},
    ]
    assert model.calls == [((4, 8, 8, 1), True, False)] * 2 + [((4, 8, 8, 1), True, True)]


def test_the_coder_is_counted_for_one_picture(demo, monkeypatch):
    """The first FEW pictures and latents, divided by FEW."""
    seen = []

    def operations(work):
        seen.append((work.func, *work.args))
        return 3_000_000_000 * len(seen)

    monkeypatch.setattr(demo, "operations", operations)  # FEW is 2 in this file
    model, table = SimpleNamespace(num_parameters=lambda: 12345), demo.Table(["latent"])
    table.coder(model, [1, 2, 3], [4, 5, 6])
    assert seen == [(demo.encode_slice, model, [1, 2]), (demo.decode_slice, model, [4, 5])]
    names = ["parameters of the autoencoder", "GFLOP to encode, once", "GFLOP to decode, once"]
    assert [(row["measured"], row["latent"]) for row in table.rows()] == list(zip(names, ("12,345", "1.500", "3.000")))


def test_quality_is_said_in_shares_with_intervals_and_against_real_digits(demo):
    """97 of 100 right; the spread is that of the samples over that of real digits."""
    table = demo.Table(["latent"])
    judged, real = ({"right": 97, "frechet": 1.23456, "coverage": 0.875, "spread": spread} for spread in (3.0, 4.0))
    table.quality("latent", judged, real, 100)
    assert {row["measured"]: row["latent"] for row in table.rows()} == {
        "read as asked, of 100": f"97.0% ({interval(97, 100)})",
        "Frechet distance": "1.235",
        "coverage": "87.5%",
        "spread within a class, of real digits'": "75.0%",
    }


def test_decoded_digits_are_read_and_their_error_is_a_share_of_the_range(demo, monkeypatch):
    """Off by 0.6 and 0.8 of the 2 from -1 to 1: sqrt(0.5)/2 = 35.36%, where a mean of the sizes would be 35.00%."""

    def read(pool, pictures):  # the digit is stamped on the first pixel
        yield np.eye(10)[np.rint(pictures[:, 0, 0, 0]).astype(int)]

    monkeypatch.setattr(demo, "read", read)
    x_0 = np.reshape([3.0, 1.0, 4.0, 1.0], (4, 1, 1, 1))
    decoded = x_0 + np.reshape([0.6, -0.8, 0.8, 0.6], (4, 1, 1, 1))
    table = demo.Table(["latent", "test digits"])
    table.decoding(None, np.array([3, 1, 4, 2]), x_0, decoded)
    read_right, error = table.rows()
    assert read_right == {
        "measured": "test digits decoded from latents: read right", "latent": "25.00%", "test digits": "75.00%"
    }  # fmt: skip
    assert error == {"measured": "their root mean square error, of the range", "latent": "35.36%", "test digits": ""}


def test_the_picture_has_latents_between_real_and_decoded_digits_and_then_samples(demo):
    """Channels as large as the pictures, 3 standard deviations are white; two rows of samples, or what there is."""
    x_0, decoded = np.zeros((3, 4, 4, 1)), np.ones((3, 4, 4, 1))
    z = np.arange(3 * 2 * 2 * 2).reshape(3, 2, 2, 2) / 4
    drawn = np.arange(7.0)[:, None, None, None] + np.zeros((7, 4, 4, 1))
    labels, rows, title = demo.picture(x_0, z, decoded, {"pixel": drawn, "latent": drawn[:5]}, "glyphs")
    names = ("real", "latent channel 1", "latent channel 2", "decoded", "drawn, pixel", "", "drawn, latent")
    assert labels == names and title == "glyphs: latents, and digits drawn in both spaces"
    np.testing.assert_array_equal(rows[0], x_0)
    for c in (0, 1):
        np.testing.assert_allclose(rows[1 + c][..., 0], np.kron(z[..., c], np.ones((1, 2, 2))) / 3)
    np.testing.assert_array_equal(rows[3], decoded)
    assert [row[:, 0, 0, 0].tolist() for row in rows[4:]] == [[0, 1, 2], [3, 4, 5], [0, 1, 2]]
    assert demo.picture(x_0, z, decoded, {"latent": drawn}, "glyphs")[2] == "glyphs: latents and samples"


def test_a_comparison_is_its_parts_in_order(demo, both, files, monkeypatch):
    """Every cell is the package's own answer for the same draws: from the average, judged beside real digits."""
    path, *_ = both
    latent, coder, _ = demo.load_latent(path, 1)
    pixel, (judge_pool, _) = demo.load_pixel(files / "pixel.npz", 1), load_classifier(files / "classifier.npz", 1)
    spaces, test = {"pixel": pixel, "latent": latent}, load("glyphs", "test", num=120)
    images, _ = demo.draw_in_turn(spaces, np.arange(20) % 10, 2, 1.5, 8)
    monkeypatch.setattr(demo, "training_seconds", lambda *arguments: seen.append(arguments) or {"latent": 0.12345})
    seen, drawing = [], []
    seconds = {"pixel": 30.0, "latent": 5.0}
    monkeypatch.setattr(demo, "draw_in_turn", lambda *given: drawing.append(given) or (images, seconds))
    rows, (labels, shown, _) = demo.compare(spaces, coder, judge_pool, test, 9, num=20, steps=2, scale=1.5, seed=8)
    found = {row["measured"]: row for row in rows}
    judge = Judge(judge_pool, test, 20)
    table = demo.Table(["pixel", "latent", "test digits"])
    for name in spaces:
        table.quality(name, judge(images[name], np.arange(20) % 10), judge.real, 20)
    table.quality("test digits", judge.real, judge.real, 20)
    x_0, digits = test.batch(np.arange(120))
    z = coder.encode(x_0)
    decoded = coder.decode(z)
    table.decoding(judge_pool, digits, x_0, decoded)
    for row in table.rows():
        assert found[row["measured"]] == row
    assert found["seconds a training step of 9"] == {
        "measured": "seconds a training step of 9", "pixel": "", "latent": "0.123", "test digits": ""
    }  # fmt: skip
    shares = {"measured": "seconds a sample, 2 steps, guidance 1.5", "pixel": "1.5000", "latent": "0.2500"}
    assert found[shares["measured"]] == shares | {"test digits": ""}
    ((drawn_spaces, drawn_labels, *how),) = drawing
    assert drawn_spaces is spaces and drawn_labels.tolist() == [*range(10)] * 2 and how == [2, 1.5, 8]
    first = [digits.tolist().index(k) for k in range(10)]
    np.testing.assert_array_equal(shown[0], x_0[first])
    np.testing.assert_array_equal(shown[labels.index("decoded")], decoded[first])
    np.testing.assert_array_equal(shown[labels.index("drawn, latent")], images["latent"][:10])
    np.testing.assert_array_equal(shown[labels.index("drawn, pixel")], images["pixel"][:10])
    ((timed, datasets, batch_size),) = seen
    assert timed is spaces and batch_size == 9 and datasets["pixel"] is test
    np.testing.assert_array_equal(datasets["latent"].z, z)
    np.testing.assert_array_equal(datasets["latent"].labels, digits)


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
