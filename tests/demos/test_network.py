"""The demo of the network: its maps are those of a forward pass, its twin sees no skips, its weights are right."""

import csv
import re
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from matplotlib.image import imread

from tinydiff import ops
from tinydiff.app import training
from tinydiff.app.alone import one_process
from tinydiff.app.generate import Recipe, generate
from tinydiff.app.plots import tile
from tinydiff.autograd import no_grad
from tinydiff.backend import TinydiffError, asarray, backend_name, default_rng, to_numpy
from tinydiff.data import load
from tinydiff.diffusion import Schedule
from tinydiff.nn import Linear, Module, UNet
from tinydiff.nn.unet import ResBlock
from tinydiff.optim import EMA
from tinydiff.train import TrainConfig, draw_batch, noise_prediction_losses

pytestmark = pytest.mark.program

SMALL = {"in_channels": 1, "base_channels": 8, "num_classes": 10, "num_groups": 4, "num_heads": 2}


@pytest.fixture
def demo(load_demo, monkeypatch):
    demo = load_demo("network")
    monkeypatch.setattr(demo, "PICTURES", 40)
    monkeypatch.setattr(demo, "HELD_OUT", 20)
    monkeypatch.setattr(demo, "BATCH", 4)
    return demo


def moved(model, seed=1, scale=0.1):
    """The network with noise on its parameters: those that start at 0 would hide what comes before them."""
    rng = default_rng(seed)
    for p in model.parameters():
        p.data[...] += asarray(scale * rng.standard_normal(p.shape), p.dtype)
    return model


# -------------------------------------------------------------------------------------------------------------- main


def test_the_demo_writes_its_pictures_and_tables(demo, tmp_path, capsys):
    """In its smallest form: whole pictures, tables as they are returned; both networks are trained, from one start."""
    out = tmp_path / "new" / "folder"
    options = {"data": "glyphs", "steps": 3, "channels": 8, "sample_steps": 2, "workers": 1}
    tables = demo.main(backend=backend_name(), precision="float32", out=out, **options)
    pictures = ["average.png", "network.png", "skips.png", "time_code.png"]
    assert sorted(path.name for path in out.iterdir() if path.suffix == ".png") == pictures
    for name, rows in zip(("network", "time_code", "losses"), tables):
        with open(out / f"{name}.csv", newline="") as file:
            assert list(csv.DictReader(file)) == [{key: str(value) for key, value in row.items()} for row in rows]
    for name in pictures:
        picture = imread(out / name)[..., :3]
        assert min(picture.shape[:2]) > 100 and 0.05 < picture.std() < 0.6  # neither blank nor tiny
    parts, _, losses = tables
    assert parts[0]["part"] == "time1" and parts[-1]["gives"] == "28x28x1"
    assert [row["step"] for row in losses] == [1, 2, 3]
    assert list(losses[0]) == ["step", *(f"{name}, {kind}" for name in demo.NETWORKS for kind in ("raw", "average"))]
    assert len({row[name] for row in losses for name in row if name != "step"}) > 6  # neither network stands still
    printed = capsys.readouterr().out
    assert "two networks, 3 steps each" in printed and "next: python" in printed


def test_channels_that_the_groups_do_not_divide_are_refused(demo, tmp_path):
    """Each group norm has 8 groups; nothing is written."""
    with pytest.raises(TinydiffError, match="--channels 12: must be a multiple of 8"):
        demo.main(backend=backend_name(), channels=12, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------------------ the maps of a network


def test_the_maps_of_the_reference_network_are_those_of_its_docstring(demo):
    """28x28x32 down to 7x7x64 and up again; the blocks on the way up get 128, 128, 128, 96, 96 and 64 channels."""
    model = UNet(rng=default_rng(0))
    rows = demo.summary(model, (28, 28, 1))
    assert [row["gives"] for row in rows[:2]] == ["128", "128"] and rows[0]["gets"] == "32"
    given = {row["part"]: (row["gets"], row["gives"]) for row in rows}
    assert given["conv_in"] == ("28x28x1", "28x28x32") and given["head"] == ("28x28x32", "28x28x1")
    down = [given[f"down.{i}"][1] for i in range(5)]
    assert down == ["28x28x32", "14x14x32", "14x14x64", "7x7x64", "7x7x64"]
    blocks = [row for row in rows if row["part"].startswith("up.") and row["kind"] == "ResBlock"]
    assert [demo.shape_of(row["gets"])[2] for row in blocks] == [128, 128, 128, 96, 96, 64]
    assert [demo.shape_of(row["gives"])[2] for row in blocks] == [64, 64, 64, 64, 32, 32]
    assert sum(row["parameters"] for row in rows) == model.num_parameters() == 1_062_497
    assert rows[0]["parameters"] == 32 * 128 + 128 and rows[-1]["parameters"] == 2 * 32 + 9 * 32 + 1


@given(
    st.sampled_from([(1,), (1, 2), (2, 1, 3)]), st.integers(1, 2), st.sampled_from([None, 3]), st.sampled_from([8, 24])
)
def test_the_rows_are_a_forward_pass_of_any_network(load_demo, mults, blocks, classes, side):
    """Each part gets what the one before gave, with the channels of its skip; each parameter counts once."""
    demo = load_demo("network")
    options = {"channel_mults": mults, "num_res_blocks": blocks, "num_classes": classes}
    model = UNet(2, 8, num_groups=4, num_heads=2, rng=default_rng(0), **options)
    rows = demo.summary(model, (side, side + 4, 2))
    assert sum(row["parameters"] for row in rows) == model.num_parameters()
    names = [name for name, _ in model.children() if name not in ("norm_out", "conv_out")]
    assert sorted(row["part"] for row in rows) == sorted([*names, "head"])
    gives = {row["part"]: demo.shape_of(row["gives"]) for row in rows}
    source = {target: start for start, target in demo.skips_of(rows)}
    on_maps = demo.maps(rows)
    assert demo.shape_of(on_maps[0]["gets"]) == (side, side + 4, 2) == demo.shape_of(on_maps[-1]["gives"])
    for before, row in pairwise(on_maps):
        *size, channels = demo.shape_of(before["gives"])
        if row["part"] in source:
            start = gives[source.pop(row["part"])]
            assert start[:2] == tuple(size)
            channels += start[2]
        assert demo.shape_of(row["gets"]) == (*size, channels), row
    assert source == {}
    assert len(demo.skips_of(rows)) == len({start for start, _ in demo.skips_of(rows)}) == len(model.down) + 1


def test_a_network_is_as_it_was_after_it_was_noted(demo):
    """Its parts have their own methods again, after an error too, and it gives the same bits."""
    model, x = (
        moved(UNet(**SMALL, rng=default_rng(0))),
        asarray(default_rng(2).standard_normal((1, 8, 8, 1)), "float32"),
    )
    before = to_numpy(model(x, 3))
    demo.summary(model, (8, 8, 1))
    with pytest.raises(ValueError, match="x_t must have shape"):
        demo.summary(model, (8, 7, 1))
    assert not any(
        method in vars(part) for part in (model, model.conv_in, *model.down) for method in ("forward", "head")
    )
    np.testing.assert_array_equal(to_numpy(model(x, 3)), before)


def test_a_network_of_ones_own_has_a_summary(demo):
    """Parts in the order of their calls; one that is called twice has two rows, a part of a part has none."""

    class Two(Module):
        def __init__(self):
            self.second, self.first = Linear(3, 2, rng=default_rng(0)), Linear(2, 3, rng=default_rng(0))

        def forward(self, x):
            return self.second(self.first(x))

    class Own(Module):
        def __init__(self):
            self.out, self.inner = Linear(2, 5, rng=default_rng(0)), Two()

        def forward(self, x_t, t):
            return self.out(self.inner(self.inner(ops.mean(x_t * 1.0, axis=(1, 2)))))

    def call(self, x_t, t, forward=Own.forward):
        from tinydiff.autograd import Tensor

        return forward(self, Tensor(x_t), t)

    Own.forward = call
    rows = demo.summary(Own(), (4, 4, 2))
    assert [(row["part"], row["kind"], row["gets"], row["gives"], row["parameters"]) for row in rows] == [
        ("inner", "Two", "2", "2", 17),
        ("inner", "Two", "2", "2", 17),
        ("out", "Linear", "2", "5", 15),
    ]


def test_the_parts_stand_in_the_shape_of_a_u(demo):
    """One place further for each part; one lower where a map has half the height, one higher where it has twice."""
    rows = demo.summary(UNet(**SMALL, channel_mults=(1, 1), rng=default_rng(0)), (8, 4, 1))
    names = [
        "conv_in",
        *(f"down.{i}" for i in range(3)),
        "middle.0",
        "middle.1",
        *(f"up.{i}" for i in range(5)),
        "head",
    ]
    height = [0, 0, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0]
    assert demo.places_of(rows) == {name: (x, y) for x, (name, y) in enumerate(zip(names, height))}
    assert demo.skips_of(rows) == [("down.2", "up.0"), ("down.1", "up.1"), ("down.0", "up.3"), ("conv_in", "up.4")]


def test_the_drawing_has_every_map_and_every_skip(demo):
    """A box with name and shape of each part, an arrow to the next, and one for each skip, with its channels."""
    model = UNet(**SMALL, channel_mults=(1, 2), rng=default_rng(0))
    rows = demo.summary(model, (8, 8, 1))
    (axes,) = demo.drawn(rows).axes
    texts = [text.get_text() for text in axes.texts]
    for row in demo.maps(rows):
        assert sum(t.startswith(f"{row['part']}\n") and t.endswith(f"\n{row['gives']}") for t in texts) == 1, row
    skips = demo.skips_of(rows)
    arrows = [text for text in axes.texts if text.get_text() == ""]
    assert len(arrows) == len(demo.maps(rows)) - 1 + len(skips)
    places = demo.places_of(rows)
    ends = [(tuple(arrow.xyann), tuple(arrow.xy)) for arrow in arrows]
    for source, target in [*skips, *zip(places, [*places][1:])]:
        assert ends.count((places[source], places[target])) == 1, (source, target)
    assert sorted(t for t in texts if t.startswith("+")) == ["+16", "+8", "+8", "+8"]
    assert axes.get_title(loc="left").startswith(f"{model.num_parameters():,} parameters")


# ----------------------------------------------------------------------------------------------------- the code of time


def test_two_times_lie_as_far_apart_as_their_difference_says(demo):
    """sum over the frequencies of 2 - 2 cos(d f), from any t; t/T grows as d, so a step is 1/(T - 1) of the whole."""
    T, codes = 50, demo.codes_of(50)
    d, f = np.arange(1, T), 10_000.0 ** (-np.arange(16) / 16)
    known = np.sqrt((2 - 2 * np.cos(d[:, None] * f)).sum(1))
    np.testing.assert_allclose(demo.distances(codes["sines and cosines"]), known / known.max(), rtol=1e-9)
    np.testing.assert_allclose(demo.distances(codes["t/T"]), d / (T - 1), rtol=1e-9)
    for t in (1, 7, 30):  # from any t
        apart = np.linalg.norm(codes["sines and cosines"][t:] - codes["sines and cosines"][t - 1], axis=1)
        np.testing.assert_allclose(apart, known[: T - t], rtol=1e-9)
    assert codes["t/T"][-1] == 1 and codes["sines and cosines"].shape == (50, 32)


def test_the_table_has_the_distances_that_the_schedule_holds(demo):
    """A row for each difference below T, to three decimals; neighbours: 0.190 in the code, 0.001 in t/T."""
    assert [row["d"] for row in demo.code_table(11)] == [1, 2, 5, 10]
    first, *_, last = demo.code_table(1000)
    assert first == {"d": 1, "sines and cosines": "0.190", "t/T": "0.001"}
    assert last["d"] == 999 and last["t/T"] == "1.000"


def test_the_tour_has_the_distances_of_neighbouring_times(demo):
    """What it says of t and t + 1 is the first row of the table."""
    page = (Path(demo.__file__).with_name("README.md")).read_text("utf-8")
    ((code, number),) = re.findall(
        r"neighbouring times lie ([\d.]+) of the\s+largest.*?, and ([\d.]+) in the", page, re.DOTALL
    )
    assert demo.code_table(1000)[0] == {"d": 1, "sines and cosines": code, "t/T": number}


def test_the_picture_of_the_code_is_the_code(demo):
    """A row of the picture for each number, a column for each t; a curve for each code, over all differences."""
    left, right = demo.code_picture(60).axes
    (image,) = left.images
    np.testing.assert_allclose(np.asarray(image.get_array()), demo.codes_of(60)["sines and cosines"].T)
    for line, (name, code) in zip(right.lines, demo.codes_of(60).items()):
        assert line.get_label() == name
        np.testing.assert_allclose(line.get_xydata(), np.stack([np.arange(1, 60), demo.distances(code)], 1))


# --------------------------------------------------------------------------------------------------- without the skips


def test_the_network_without_skips_is_the_network_with_zeros_in_their_place(demo):
    """The same parameters from the same rng; on the way up 0 stands where a map of the way down would come."""
    model, other = (moved(kind(**SMALL, rng=default_rng(0))) for kind in (demo.WithoutSkips, UNet))
    for (name, a), (same_name, b) in zip(model.state_dict().items(), other.state_dict().items(), strict=True):
        assert name == same_name
        np.testing.assert_array_equal(a, b)
    rng = default_rng(3)
    x, t, labels = asarray(rng.standard_normal((2, 8, 8, 1)), "float32"), np.array([3, 900]), np.array([1, 10])
    code, h = other.code(t, labels, 2), other.conv_in(demo.Tensor(x))
    kept = [h]
    for layer in other.down:
        h = layer(h, code) if isinstance(layer, ResBlock) else layer(h)
        kept.append(h)
    for layer in other.middle:
        h = layer(h, code)
    for layer in other.up:
        h = layer(ops.concat(h, 0 * kept.pop()), code) if isinstance(layer, ResBlock) else layer(h)
    answer = to_numpy(model(x, t, labels))
    np.testing.assert_allclose(answer, to_numpy(other.head(h)), rtol=0, atol=1e-5)  # float32
    assert abs(answer - to_numpy(other(x, t, labels))).max() > 0.01  # the skips matter


def test_networks_are_built_from_one_stream_of_the_seed(demo):
    """Both kinds get the same weights for a seed, and others for another."""
    names = [demo.build(kind, SMALL, seed).state_dict() for kind in demo.NETWORKS.values() for seed in (0, 0, 1)]
    assert list(demo.NETWORKS.values()) == [UNet, demo.WithoutSkips]
    first = [state["conv_in.w"].tolist() for state in names]
    assert first[0] == first[1] == first[3] != first[2] == first[5]


# ---------------------------------------------------------------------------------- the run, with both kinds of weights


def test_moments_are_shares_of_the_run_and_its_end(demo):
    """Each step once, never step 0; the last step is among them."""
    assert demo.steps_to_look_at(300) == [30, 60, 120, 210, 300]
    assert demo.steps_to_look_at(3) == [1, 2, 3] and demo.steps_to_look_at(1) == [1]


def test_each_moment_has_the_raw_weights_and_their_average(demo):
    """Loss and pictures of both are those of the same run, stopped at that step; the noise is always the same."""
    schedule, data = Schedule.linear(30), load("glyphs", num=30)
    config = TrainConfig(3, 4, minutes=None, warmup=1, peak_lr=0.05)
    held_out = draw_batch(data, schedule, 10, TrainConfig(1, 6, seed=4), 0)
    recipe, labels = Recipe(schedule, (28, 28, 1), num_steps=2), np.arange(3)

    def started():
        pool = one_process().workers(partial(demo.build, UNet, SMALL, 0), 1)
        moved(pool.model)
        return pool, training.diffusion_training(pool, schedule, config, data)

    pool, state = started()
    moments = demo.moments_of(pool, state, one_process(), held_out, recipe, labels, 5, "a name")
    assert [m["step"] for m in moments] == [1, 2, 3]
    pool, state = started()
    mean = EMA(pool.model.parameters(), config.ema_decay)
    for _, moment in zip(training.steps(state, one_process()), moments):
        for kind in ("raw", "average"):
            other, _ = started()
            other.model.load_state_dict(pool.model.state_dict())
            if kind == "average":
                mean.update()
                mean.copy_to(other.model.parameters())
            with no_grad():
                loss = float(to_numpy(noise_prediction_losses(other.model, held_out)).mean())
            drawn = np.concatenate([frames[-1] for frames in generate(other, recipe, labels, 5)])
            assert moment[kind][0] == pytest.approx(loss, rel=1e-5)
            np.testing.assert_allclose(moment[kind][1], drawn, atol=1e-4)
    assert abs(moments[-1]["raw"][0] - moments[-1]["average"][0]) > 1e-3  # they are not the same weights


def two_runs():
    """Known losses, and pictures of which no two are alike: {name: moments}."""
    rng = default_rng(8)

    def moment(k, step):
        raw, average = rng.uniform(-1, 1, (2, 2, 4, 4, 1))
        return {"step": step, "raw": (k + step / 100, raw), "average": (k + step / 1000, average)}

    return {name: [moment(k, step) for step in (1, 20)] for k, name in ((1, "one"), (2, "two"))}


def test_the_table_of_losses_names_network_and_weights(demo):
    """A row for each moment, a column for each network and kind."""
    assert demo.loss_table(two_runs()) == [
        {"step": 1, "one, raw": "1.0100", "one, average": "1.0010", "two, raw": "2.0100", "two, average": "2.0010"},
        {"step": 20, "one, raw": "1.2000", "one, average": "1.0200", "two, raw": "2.2000", "two, average": "2.0200"},
    ]


def shown(figure: Figure):
    """The curves of a figure, {label: points}, and its pictures, {title: array}."""
    lines = {line.get_label(): line.get_xydata().tolist() for axes in figure.axes for line in axes.lines}
    pictures = {
        axes.get_title(loc="left"): np.asarray(axes.images[0].get_array()) for axes in figure.axes if axes.images
    }
    return lines, pictures


def test_the_picture_of_the_skips_has_both_networks_with_their_averages(demo):
    """Curves of the average's loss, and what it draws at the end."""
    lines, pictures = shown(demo.skips_picture(two_runs()))
    assert lines == {"one": [[1, 1.001], [20, 1.02]], "two": [[1, 2.001], [20, 2.02]]}
    assert list(pictures) == ["one, after 20 steps", "two, after 20 steps"]
    for (_, moments), picture in zip(two_runs().items(), pictures.values()):
        np.testing.assert_array_equal(picture, tile(moments[-1]["average"][1], 2, scale=3)[..., 0])


def test_the_picture_of_the_average_has_each_moment_with_both_weights(demo):
    """Raw on the left, the average on the right, a row for each moment."""
    moments = two_runs()["two"]
    lines, pictures = shown(demo.average_picture(moments))
    assert lines == {"raw": [[1, 2.01], [20, 2.2]], "average": [[1, 2.001], [20, 2.02]]}
    assert list(pictures) == ["raw, step 1", "raw, step 20", "average, step 1", "average, step 20"]
    for title, picture in pictures.items():
        kind, step = title.split(", step ")
        (moment,) = [m for m in moments if m["step"] == int(step)]
        np.testing.assert_array_equal(picture, tile(moment[kind][1], 2, scale=3)[..., 0])


def test_colour_pictures_keep_their_colours(demo):
    """Three channels are shown as they are."""
    axes = Figure().subplots(1, 1, squeeze=False)[0]
    pictures = np.linspace(-1, 1, 48, dtype="float32").reshape(1, 4, 4, 3)
    demo.rows_of_pictures(axes, {"a": pictures})
    np.testing.assert_array_equal(np.asarray(axes[0].images[0].get_array()), tile(pictures, 1, scale=3))
