"""A run from outside: what is drawn, the clock, saving, and resuming bit for bit."""

import json
from dataclasses import asdict, replace
from types import SimpleNamespace

import numpy as np
import pytest
from plain import fast, plain
from same_bytes import same_bytes
from small_run import CONFIG, DATASET, NETWORK, SCHEDULE, arrays_of, same_bits, small_run, small_workers

from tinydiff.app import checkpoint, training
from tinydiff.app.alone import Alone, one_process
from tinydiff.app.checkpoint import CheckpointError
from tinydiff.app.generate import Recipe, generate
from tinydiff.app.trained import load_trained
from tinydiff.app.training import by_name, restore, save, saved_config, steps, whole
from tinydiff.backend import asarray, to_numpy
from tinydiff.nn import Linear
from tinydiff.train import TrainConfig, TrainingError, draw_batch, train

pytestmark = pytest.mark.training


def advance(state, num_steps):
    """Take so many steps."""
    for _, _ in zip(range(num_steps), steps(state, one_process())):
        pass
    return state


def saved(state, path, **more):
    save(state, path, DATASET, SCHEDULE, 1, **more)
    return path


def restored(path, **how):
    state = small_run(**how)
    restore(state, path, *checkpoint.load(path))
    return state


# What is drawn.


def test_a_run_draws_the_batches_of_its_steps():
    """Without another draw they are draw_batch's, of this data, schedule and network; bit for bit."""
    state = small_run()
    for step in (0, 1, 5, 3):
        batch, expected = state.draw(CONFIG, step), draw_batch(DATASET, SCHEDULE, 10, CONFIG, step)
        assert batch.keys() == expected.keys()
        assert all((to_numpy(batch[name]) == expected[name]).all() for name in batch)
    assert "labels" not in small_run(network={**NETWORK, "num_classes": None}).draw(CONFIG, 0)


def test_another_draw_and_further_settings_take_the_place_of_the_usual(tmp_path):
    """A run draws its batches by `draw`, called with config and step, and keeps the settings that save is given."""
    asked = []

    def draw(config, step):
        asked.append((config, step))
        return {**draw_batch(DATASET, SCHEDULE, 10, config, step), "t": np.full(CONFIG.batch_size, 7)}

    usual, other = advance(small_run(), 2), advance(small_run(draw=draw), 2)
    assert asked[:2] == [(CONFIG, 0), (CONFIG, 1)]  # on a GPU the next one is asked for ahead
    assert not same_bits(arrays_of(usual), arrays_of(other))
    _, meta = checkpoint.load(saved(other, tmp_path / "other.npz", kind="other", held_out=[1]))
    assert (meta["kind"], meta["held_out"], meta["step"]) == ("other", [1], 2)


def test_a_rank_draws_the_blocks_of_its_own_rows():
    """The last of three ranks, in a batch of two blocks: in the first block only t is drawn, x_t is 0."""
    pool = small_workers()
    pool.ranks = SimpleNamespace(part=lambda n: slice(n * 2 // 3, n))
    config = replace(CONFIG, batch_size=1024)
    batch, whole = small_run(config, workers=pool).draw(config, 0), small_run(config).draw(config, 0)
    x_t, expected = to_numpy(batch["x_t"]), to_numpy(whole["x_t"])
    assert not x_t[:512].any() and (x_t[512:] == expected[512:]).all() and expected[:512].any((1, 2, 3)).all()
    np.testing.assert_array_equal(batch["t"], whole["t"])


# The clock.


def test_steps_are_those_of_train_and_nothing_else():
    """The same state, as often, with the same bits; the last one has every row."""
    state, expected = small_run(), small_run()
    seen = [(yielded is state, state.step) for yielded in steps(state, one_process())]
    assert seen == [(True, step) for step in range(1, 7)] and len(state.rows) == 6
    for _ in train(expected):
        pass
    assert same_bits(arrays_of(state), arrays_of(expected))


class Clock:
    """A clock of the test's own: step k of a run, counted from 0, takes seconds(k)."""

    def __init__(self, monkeypatch, state, seconds):
        self.now, update = 0.0, state.ema.update

        def update_and_pass():
            self.now += seconds(state.step)
            update()

        monkeypatch.setattr(training.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(state.ema, "update", update_and_pass)


def number_of_steps(state, minutes):
    """The number of steps after the clock's decision."""
    for _ in steps(state, one_process(), minutes):
        if state.step > max(1, state.config.warmup):
            return state.num_steps


@pytest.mark.parametrize("seconds, expected", [(0.5, 24), (1e-6, 40)])
def test_minutes_lower_the_number_of_steps(monkeypatch, seconds, expected):
    """At the end of the warm-up the steps that fit are minutes * 60 / (seconds a step); more than asked for never."""
    state = small_run(replace(CONFIG, num_steps=40, warmup=12))
    Clock(monkeypatch, state, lambda step: seconds)
    assert number_of_steps(state, 0.2) == expected


@pytest.mark.parametrize("stalled", [{3}, {0, 1, 2, 3, 4}, {11}])
def test_a_stall_in_the_warm_up_costs_no_step(monkeypatch, stalled):
    """A process that is stopped, a machine that sleeps or is busy for a while: the median step is what it was."""
    state = small_run(replace(CONFIG, num_steps=40, warmup=12))
    Clock(monkeypatch, state, lambda step: 15.0 if step in stalled else 0.5)
    assert number_of_steps(state, 0.2) == 24


def test_what_is_done_between_two_steps_is_no_time_of_training(monkeypatch):
    """Saving and drawing grids happen there."""
    state = small_run(replace(CONFIG, num_steps=40, warmup=12))
    clock = Clock(monkeypatch, state, lambda step: 0.5)
    for _ in steps(state, one_process(), 0.2):
        clock.now += 100
        if state.step == 13:
            break
    assert state.num_steps == 24


@pytest.mark.parametrize("warmup", [0, 1, 3])
def test_minutes_count_once_at_the_end_of_the_warm_up(monkeypatch, warmup):
    """num_steps stands until step max(1, warmup) is done, changes there, and then stands; one step more always fits."""
    state, first = small_run(replace(CONFIG, num_steps=40, warmup=warmup)), max(1, warmup)
    monkeypatch.setattr(training, "gradient_seconds", lambda *_: [1.0])
    seen = [state.num_steps for _ in steps(state, one_process(), 0.0)]
    assert seen == [40] * (first - 1) + [first + 1] * 2


def test_a_run_that_is_resumed_late_in_its_warm_up_measures_some_gradients(monkeypatch):
    """One or two steps, the first ones of a process, say too little; measuring changes no bit of the run."""
    state, other = (small_run(replace(CONFIG, num_steps=400, warmup=3)) for _ in range(2))
    seen = []
    for each in (state, other):
        each.step = each.adam.num_steps = each.ema.num_updates = 1
    gradient_seconds = training.gradient_seconds
    monkeypatch.setattr(
        training, "gradient_seconds", lambda *how: seen.append(len(gradient_seconds(*how))) or [1, 90, 3]
    )
    assert number_of_steps(state, 2.0) == 40  # two minutes at three seconds a step: its own two steps do not count
    assert seen == [7]
    other.num_steps = 40
    for _ in train(other):
        if other.step == 4:
            break
    assert same_bits(arrays_of(state), arrays_of(other))


def test_the_clock_is_rank_0s(monkeypatch):
    """What fits is decided once, by what broadcast gives."""

    class Ranks(Alone):
        def broadcast(self, make):
            return make() and 5

    state = small_run(replace(CONFIG, num_steps=40, warmup=3))
    assert len(list(steps(state, Ranks(), 60.0))) == 5


# Too little memory.


def too_large(state, room, tried):
    """Have gradients of more than `room` examples fail."""
    gradients = state.gradients

    def in_room(losses_of, batch):
        tried.append((len(batch["t"]), batch["t"].tolist()))
        if len(batch["t"]) > room:
            raise MemoryError("no room.")
        return gradients(losses_of, batch)

    state.gradients = in_room


def test_a_step_without_memory_names_a_batch_size_that_fits():
    """Found with examples of the step that failed; nothing has changed, and the message has the reason."""
    state, tried = advance(small_run(), 2), []
    before = arrays_of(state)
    too_large(state, 3, tried)
    with pytest.raises(TrainingError, match=r"^batch size 8 needs more .*, batch size 3 fits \(no room\)$"):
        next(steps(state, one_process()))
    assert [n for n, _ in tried] == [8, 4, 2, 3] and same_bits(before, arrays_of(state))
    for n, t in tried:
        assert t == draw_batch(DATASET, SCHEDULE, 10, replace(CONFIG, batch_size=n), 2)["t"].tolist()


def test_a_rank_without_memory_does_not_search():
    """The others wait in the same step and cannot take part: its MemoryError ends the job."""

    class Ranks(Alone):
        size = 3

    state, tried = small_run(), []
    too_large(state, 3, tried)
    with pytest.raises(MemoryError, match="no room"):
        next(steps(state, Ranks()))
    assert len(tried) == 1


# A checkpoint.


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path):
    """6 steps = 3 steps, a checkpoint, a fresh state, 3 steps: weights, moments, average, metrics, file bytes."""
    at_once, first = advance(small_run(), 6), advance(small_run(), 3)
    path = saved(first, tmp_path / "half.npz")
    second = restored(path, config=replace(CONFIG, num_steps=999))  # overwritten by what the checkpoint says
    assert second.step == 3 and len(second.metrics()) == 3
    assert same_bits(arrays_of(first), arrays_of(second))
    second.config = CONFIG
    assert [state.step for state in steps(second, one_process())] == [4, 5, 6] and at_once.step == 6
    assert same_bits(arrays_of(at_once), arrays_of(second))
    assert not same_bits(arrays_of(first), arrays_of(second))
    np.testing.assert_array_equal(second.metrics(), at_once.metrics())
    a, b = saved(at_once, tmp_path / "at_once.npz"), saved(second, tmp_path / "second.npz")
    assert same_bytes(a.read_bytes(), b.read_bytes())


@pytest.mark.parametrize("writer", [plain, fast])
def test_a_checkpoint_does_not_depend_on_who_saved_or_restores_it(writer, tmp_path):
    """OneProcess, whose parameters are many arrays, and Workers, whose are one: the same file, the same arrays.

    Both are given one state, because the steps of the two differ by rounding.
    """
    with writer():
        original = advance(small_run(), 3)
        expected = arrays_of(original)
        path = saved(original, tmp_path / "a.npz")
    arrays, _ = checkpoint.load(path)
    assert {name: arrays[name].shape for name in expected} == {name: a.shape for name, a in expected.items()}
    assert same_bits({name: arrays[name] for name in expected}, expected)
    for number, reader in enumerate((plain, fast)):
        with reader():
            state = restored(path)
            assert len(state.parameters) == (len(state.model.parameters()) if reader is plain else 1)
            assert same_bits(arrays_of(state), expected)
            assert (state.step, state.num_steps, state.adam.num_steps, state.ema.num_updates) == (3, 6, 3, 3)
            assert same_bytes(saved(state, tmp_path / f"{number}.npz").read_bytes(), path.read_bytes())
            assert list(checkpoint.load(path)[0]) == list(checkpoint.load(tmp_path / f"{number}.npz")[0])
            assert [s.step for s in steps(state, one_process())] == [4, 5, 6]
            assert not same_bits(arrays_of(state), expected) and np.isfinite(state.metrics()[-1][0])


def test_checkpoint_of_another_network_is_refused(tmp_path):
    """restore names the first parameter that does not fit, with both shapes, and leaves everything as it was."""
    path = saved(small_run(), tmp_path / "a.npz")
    other = small_run(network={**NETWORK, "base_channels": 16})
    before = arrays_of(other)
    with pytest.raises(CheckpointError, match=r"a\.npz contains weights/time1\.w of shape \(8, 128\) .* \(16, 128\)"):
        restore(other, path, *checkpoint.load(path))
    arrays, meta = checkpoint.load(path)
    del arrays["adam_v/conv_out.b"]
    state = small_run(replace(CONFIG, seed=6))
    own = arrays_of(state)
    with pytest.raises(CheckpointError, match=r"no adam_v/conv_out\.b; this network's has shape \(1,\)"):
        restore(state, path, arrays, meta)
    assert same_bits(before, arrays_of(other)) and same_bits(own, arrays_of(state))


def test_a_checkpoint_says_what_it_was_trained_on(tmp_path):
    """Its description holds the run's and the data's own words and numbers; the shape is that of one x_0."""
    wide = replace(DATASET, images=DATASET.images[:, :4])
    state = small_run()
    save(state, tmp_path / "a.npz", wide, SCHEDULE, 3)
    arrays, meta = checkpoint.load(tmp_path / "a.npz")
    x_0, _ = wide.batch(np.array([0]))
    named = {"name": "noise", "source": "random pixels", "num": 50, "classes": list("0123456789")}
    assert meta["data"] == named | {"image_shape": [*x_0.shape[1:]]}
    assert saved_config(meta) == CONFIG and meta["model"] == state.model.config
    assert (meta["kind"], meta["step"], meta["num_steps"], meta["num_workers"]) == ("diffusion", 0, 6, 3)
    np.testing.assert_array_equal(arrays["schedule/beta"], SCHEDULE.beta)
    assert arrays["metrics"].shape == (0, 7)


def test_a_checkpoint_says_in_what_precision_products_were_made(tmp_path, monkeypatch):
    """As the run has it now, and that its noise is the host's on every backend."""
    monkeypatch.setattr(training, "precision", lambda: "tf32")
    _, meta = checkpoint.load(saved(small_run(), tmp_path / "a.npz"))
    assert (meta["precision"], meta["noise"]) == ("tf32", "host")


def as_before(meta, weight_decay=0.0, dropout=0.0, text_features=None):
    """The settings as the version before this one wrote them: with options that are gone, and fewer of the loop's."""
    train = {name: value for name, value in meta["train"].items() if name != "betas"} | {"weight_decay": weight_decay}
    model = meta["model"] | {"dropout": dropout, "text_features": text_features}
    return meta | {"train": train, "model": model}


def test_a_checkpoint_of_the_version_before_is_loaded_resumed_and_drawn_from(tmp_path):
    """It had three options more, and without them the same run: bit for bit what its own version would go on with."""
    path, before = tmp_path / "before.npz", advance(small_run(), 3)
    saved(before, path)
    arrays, meta = checkpoint.load(path)
    checkpoint.save(path, arrays, as_before(meta))
    arrays, meta = checkpoint.load(path)
    config = saved_config(meta)
    assert config == CONFIG
    workers = small_workers(meta["model"], config.seed)
    resumed = small_run(config, workers=workers)
    restore(resumed, path, arrays, meta)
    assert same_bits(arrays_of(advance(resumed, 3)), arrays_of(advance(before, 3)))
    pool, schedule, _ = load_trained(path, 1)
    images = np.concatenate(list(generate(pool, Recipe(schedule, (8, 8, 1), num_steps=2), [0, 1], 0)), axis=1)
    assert images.shape == (1, 2, 8, 8, 1) and np.isfinite(images).all()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"weight_decay": 0.01}, "the checkpoint was trained with weight_decay, which this version does not have"),
        ({"dropout": 0.1}, "dropout=0.1: this version has no such network"),
        ({"text_features": 8}, "text_features=8: this version has no such network"),
    ],
)
def test_what_only_the_version_before_could_train_is_refused(options, said, tmp_path):
    """An option that changed the run or the network is named, in place of a run that would go on as another one."""
    path = saved(small_run(), tmp_path / "before.npz")
    arrays, meta = checkpoint.load(path)
    checkpoint.save(path, arrays, as_before(meta, **options))
    _, meta = checkpoint.load(path)
    with pytest.raises(CheckpointError, match=said):
        saved_config(meta)
        small_workers(meta["model"])
    if "weight_decay" not in options:
        with pytest.raises(CheckpointError, match=said):
            load_trained(path, 1)


def test_a_state_may_be_saved_between_steps_and_not_within_one(monkeypatch):
    """whole is True wherever train has yielded, and False between the parts of a step, after each of which it is asked.

    A signal may come at any of them.
    """
    state, seen = small_run(), []

    def watch(owner, part):
        inner = getattr(owner, part)
        monkeypatch.setattr(owner, part, lambda *arguments: (seen.append(whole(state)), inner(*arguments)))

    watch(state, "note")
    watch(state.adam, "step")
    watch(state.ema, "update")
    assert whole(state)
    for _ in train(state):
        assert whole(state)
    assert seen == [True, False, False] * 6  # before the row, before Adam, before the average


def test_parts_are_found_by_name_in_one_array_or_in_many():
    """by_name cuts one long array, or takes one a parameter, in the parameters' order and shapes, on the host."""
    model = small_workers().model
    arrays = [np.random.default_rng(i).standard_normal(p.shape) for i, p in enumerate(model.parameters())]
    one = [asarray(np.concatenate([a.reshape(-1) for a in arrays]))]
    for parts in (by_name(model, [asarray(a) for a in arrays]), by_name(model, one)):
        assert list(parts) == [name for name, _ in model.named_parameters()]
        for found, a in zip(parts.values(), arrays):
            assert type(found) is np.ndarray
            np.testing.assert_array_equal(found, a)


def test_a_config_travels_through_a_checkpoint():
    """saved_config is the inverse of what save keeps, whatever the settings."""
    config = TrainConfig(num_steps=7, minutes=2.5, betas=(0.5, 0.99), clip_norm=3.0, target="v", min_snr=5.0, seed=9)
    for kept in (config, replace(config, optimizer="adam")):
        assert saved_config(json.loads(json.dumps({"train": asdict(kept)}))) == kept


def test_a_run_of_earlier_versions_goes_on_with_adam():
    """Its checkpoint names no optimizer, because there was one only."""
    settings = {name: value for name, value in asdict(TrainConfig()).items() if name != "optimizer"}
    assert saved_config({"train": settings}) == TrainConfig(optimizer="adam")


# What is saved is finite.


def grown(state):
    state.model.extra = Linear(2, 3, rng=np.random.default_rng(0))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", ["weights", "ema", "adam_m", "adam_v"])
@pytest.mark.parametrize("forms", [plain, fast])
def test_numbers_that_are_not_finite_are_not_saved(forms, kind, bad, tmp_path):
    """One of them in weights, average or moments: TrainingError names the parameter, and the file stays as it was."""
    with forms():
        state = advance(small_run(), 2)
        path = saved(state, tmp_path / "a.npz")
        before = path.read_bytes()
        advance(state, 1)
        arrays = {"weights": [p.data for p in state.parameters], "ema": state.ema.average}
        arrays |= {"adam_m": state.adam.m, "adam_v": state.adam.v}
        arrays[kind][-1].reshape(-1)[-1] = bad
        with pytest.raises(TrainingError, match=rf"{kind}/conv_out\.b is not finite: .*a\.npz is not written"):
            saved(state, path)
    assert same_bytes(path.read_bytes(), before) and [p.name for p in tmp_path.iterdir()] == ["a.npz"]


def test_a_loss_of_no_examples_may_be_saved(tmp_path):
    """The loss of a quarter of 1..T without examples is nan: it is no number of the network."""
    state = advance(small_run(replace(CONFIG, batch_size=1)), 1)
    assert np.isnan(state.metrics()).any()
    arrays, _ = checkpoint.load(saved(state, tmp_path / "a.npz"))
    assert np.isnan(arrays["metrics"]).any()


@pytest.mark.parametrize("forms", [plain, fast])
def test_a_frozen_layer_is_in_the_checkpoint(forms, tmp_path):
    """Frozen from the start, it is saved, restored, resumed bit for bit, and drawn from, like any other layer."""

    def run():
        workers = small_workers()
        for p in (workers.model.conv_in.w, workers.model.norm_out.gamma):
            p.requires_grad = False
        return small_run(workers=workers)

    with forms():
        path = saved(advance(run(), 3), tmp_path / "a.npz")
        arrays, meta = checkpoint.load(path)
        names = [name for name, _ in small_workers().model.named_parameters()]
        assert {name.partition("/")[2] for name in arrays if name.startswith("ema/")} == set(names)
        second = run()
        restore(second, path, arrays, meta)
        assert same_bits(arrays_of(advance(second, 3)), arrays_of(advance(run(), 6)))
        load_trained(path, 1)
        load_trained(saved(second, path), 1)


def test_a_network_that_has_grown_is_not_saved(tmp_path):
    """A layer added in training has no moments and no average: ValueError before anything is written."""
    state = advance(small_run(), 1)
    grown(state)
    with pytest.raises(ValueError, match="as many numbers as when its Training was made"):
        saved(state, tmp_path / "a.npz")
    assert list(tmp_path.iterdir()) == []


def test_restoring_makes_older_graphs_stale(tmp_path):
    """A graph from before a restore is refused by backward."""
    state = advance(small_run(), 1)
    path = saved(state, tmp_path / "a.npz")
    losses = state.losses_of(state.model, state.draw(CONFIG, 0))
    restore(state, path, *checkpoint.load(path))
    with pytest.raises(RuntimeError, match="an update has changed an input"):
        losses[0].backward()
