"""A recorded step is the ordered step, bit for bit; what cannot be recorded is ordered, and the user learns why."""

import itertools
import math
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import emulate
import numpy as np
import pytest
import strict
import tape
from small_run import CONFIG, DATASET, NETWORK, SCHEDULE, arrays_of, same_bits, small_run, small_workers

from tinydiff import ops
from tinydiff.app import checkpoint, training
from tinydiff.app.alone import one_process
from tinydiff.app.choices import DDIM, DPM_SOLVER_2M, guidance
from tinydiff.app.classify import ClassifierConfig, build_classifier, classifier_training, draw_noisy_batch
from tinydiff.app.generate import Recipe, build_unet, generate
from tinydiff.app.trained import Pair, as_eps
from tinydiff.app.training import restore, save, steps, whole
from tinydiff.autograd import no_grad
from tinydiff.backend import asarray, backend_name, default_rng, to_numpy, xp
from tinydiff.diffusion.targets import V
from tinydiff.fast import graph
from tinydiff.fast.gpu import Packed
from tinydiff.fast.workers import Workers
from tinydiff.more.text import TextUNet
from tinydiff.nn.unet import time_code
from tinydiff.optim import EMA, clip_grad_norm
from tinydiff.train import TrainingError, draw_batch, noise_prediction_losses, train

pytestmark = pytest.mark.training

ONE_LEVEL = {**NETWORK, "channel_mults": [1]}
SIX, EIGHT, TWENTY = (replace(CONFIG, num_steps=n) for n in (6, 8, 20))


@pytest.fixture(autouse=True)
def device(request):
    """A GPU, or the stand-in with its tape.  The module's constants are host arrays, so they serve on either.

    One law takes conv.cu's products, which are slow to emulate; the others are about orders, not about products.
    """
    if emulate.COMPILER is None:
        pytest.skip(emulate.REASON)
    strict.has_tensor_cores(request.node.originalname == "test_recorded_steps_of_conv_cu_are_ordered_ones")
    with strict.backend("cupy") if backend_name() == "numpy" else nullcontext():
        yield
    strict.has_tensor_cores(True)


def small(config=CONFIG, network=ONE_LEVEL, **more):
    """A run of a network of one level."""
    return small_run(config, network, **more)


def ordered(state):
    """The state after all its steps, each ordered kernel by kernel."""
    for _ in train(state):
        pass
    return state


def recorded(state, expected=graph.RECORDED):
    """The state after all its steps, recorded, if `expected` is the line that the user gets."""
    lines = []
    for _ in steps(state, one_process(), getattr(state.config, "minutes", None), lines.append):
        pass
    assert lines == [expected]
    return state


def assert_same(a, b):
    """Weights, moments, average and the rows of both states have the same bits."""
    np.testing.assert_array_equal(np.array(a.metrics()), np.array(b.metrics()))  # nan, of an empty quarter, is nan
    assert same_bits(arrays_of(a), arrays_of(b))


@contextmanager
def counted():
    """The launches of graphs, and the recordings, within the block."""
    before, found = dict(tape.counts), {}
    yield found
    found.update({name: tape.counts[name] - before[name] for name in before})


# A training step.

SETTINGS = {
    "min-SNR weights": {"min_snr": 5.0},
    "target v": {"target": "v"},
    "a small bound of the norm": {"clip_norm": 1e-3},
    "no warm-up, other betas": {"warmup": 0, "betas": (0.8, 0.95), "ema_decay": 0.5},
    "a batch of one": {"batch_size": 1},
    "Adam": {"optimizer": "adam"},
}


def test_twenty_recorded_steps_are_twenty_ordered_ones():
    """Bit for bit: losses, norms, weights, moments and average, of a network with classes."""
    assert_same(recorded(small_run(TWENTY)), ordered(small_run(TWENTY)))


def test_recorded_steps_of_conv_cu_are_ordered_ones():
    """Six steps: two are ordered, the third is recorded, the fourth is replayed beside an ordered one, two follow."""
    assert_same(recorded(small_run(SIX)), ordered(small_run(SIX)))


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_recorded_steps_are_ordered_ones_in_every_setting(settings):
    config = replace(EIGHT, **settings)
    assert_same(recorded(small(config)), ordered(small(config)))


def test_a_network_without_classes_is_recorded_too():
    draw = partial(draw_batch, DATASET, SCHEDULE, None)
    states = [small(EIGHT, {**ONE_LEVEL, "num_classes": None}, draw=draw) for _ in range(2)]
    assert_same(recorded(states[0]), ordered(states[1]))


def test_frozen_parameters_stay_as_they_are_in_a_recorded_step():
    states = [small(EIGHT) for _ in range(2)]
    for state in states:
        for p in state.model.parameters()[::3]:
            p.requires_grad = False
    before = arrays_of(states[0])
    assert_same(recorded(states[0]), ordered(states[1]))
    unchanged = [name for name, a in arrays_of(states[0]).items() if (a == before[name]).all() and "weights" in name]
    assert len(unchanged) >= len(states[0].model.parameters()[::3])


def test_the_networks_of_other_programs_are_recorded():
    """A classifier, a noisy classifier, and a U-Net that reads a text with its encoder."""

    def classifier(time, **more):
        model = {"channels": [8, 8], "num_classes": 10, "time": time}
        workers = one_process().workers(partial(build_classifier, model, 0), 1)
        return classifier_training(workers, DATASET, ClassifierConfig(8, batch_size=8, warmup=2), **more)

    def reader():
        encoder = {"num_words": 9, "max_length": 4, "features": 8, "num_blocks": 1, "num_heads": 2}
        unet = {name: value for name, value in ONE_LEVEL.items() if name != "num_classes"}
        workers = Workers(lambda: TextUNet(encoder, unet, rng=default_rng(0)), 1)

        def draw(config, step):
            batch = draw_batch(DATASET, SCHEDULE, None, config, step)
            tokens = default_rng("tokens", step).integers(0, 9, (config.batch_size, 4))
            tokens[:, 0] = 1  # a word in each row
            return {**batch, "labels": tokens}

        return small(EIGHT, workers=workers, draw=draw)

    makers = [
        partial(classifier, False),
        partial(classifier, True, draw=partial(draw_noisy_batch, SCHEDULE)),
        reader,
    ]
    for make in makers:
        assert_same(recorded(make()), ordered(make()))


def test_a_step_is_recorded_once_and_then_launched_once():
    """Of 20 steps two are ordered, the third is recorded, the fourth is replayed for its test, and all others replayed;
    from the fifth on a step waits for nothing."""
    state = small(TWENTY)
    with counted() as found:
        for _ in zip(range(5), iterator := steps(state, one_process(), report=lambda line: None)):
            pass
        waits = strict.syncs.copy()
        for _ in zip(range(14), iterator):
            pass
        assert strict.syncs == waits
        next(iterator)
    assert found == {"recordings": 1, "graph launch": 18} or "strict" not in type(state.parameters[0].data).__module__


@pytest.mark.parametrize("stop", [1, 3, 4, 6])
def test_a_run_that_is_saved_and_resumed_ends_in_the_same_bits(stop, tmp_path):
    """Wherever the first run stops: before, at or after the recording."""
    config = replace(CONFIG, num_steps=12)
    state, path = small(config), tmp_path / "a.npz"
    for _ in zip(range(stop), steps(state, one_process(), report=lambda line: None)):
        pass
    save(state, path, DATASET, SCHEDULE, 1)
    resumed = small(config)
    restore(resumed, path, *checkpoint.load(path))
    assert_same(recorded(resumed), ordered(small(config)))


def test_a_run_may_go_on_ordered_after_recorded_steps_and_the_other_way_round():
    """The recording leaves nothing behind: gradients, norm and parameters are those of the ordered way again."""
    state = small(TWENTY)
    gradients = state.gradients
    for attached, count in ((steps, 6), (train, 3), (steps, 5), (train, 2)):
        more = {"ranks": one_process(), "report": lambda line: None} if attached is steps else {}
        for _ in zip(range(count), iterator := attached(state, **more)):
            pass
        iterator.close()
        assert state.gradients == gradients and state.parameters[0].recorder is None
    assert_same(ordered(state), ordered(small(TWENTY)))


def test_what_happens_between_two_steps_is_no_part_of_a_step():
    """A second average, and a gradient that nobody uses: as with ordered steps."""
    states, averages = [small() for _ in range(2)], []
    for state, advance in zip(states, (partial(steps, ranks=one_process(), report=lambda line: None), train)):
        second = EMA(state.parameters, 0.5)
        for _ in advance(state):
            second.update()
            state.parameters[0].grad[...] = 1
            clip_grad_norm(state.parameters, 0.1)
        averages.append(to_numpy(second.average[0]))
    assert_same(*states)
    assert (averages[0].view("u4") == averages[1].view("u4")).all()


def test_the_clock_counts_recorded_steps(monkeypatch):
    """The clock lowers the number of steps at the end of the warm-up.  The run is the ordered run of so many steps."""
    ticks = itertools.count()
    monkeypatch.setattr(training.time, "monotonic", lambda: float(next(ticks)))
    config = replace(TWENTY, num_steps=1000, warmup=12, minutes=0.3)  # a second for each step: 18 of them
    state = recorded(small(config))
    assert state.num_steps == 18
    assert_same(state, ordered(small(replace(config, num_steps=18))))


def nan_at(step):
    """The batches of a run in which one step has a picture of nan."""

    def draw(config, k):
        batch = draw_batch(DATASET, SCHEDULE, 10, config, k)
        if k == step:
            batch["x_t"][0, 0, 0] = np.nan
        return batch

    return draw


@pytest.mark.parametrize("bad", [0, 1, 2, 3, 6])
def test_a_recorded_step_of_nan_updates_nothing_and_is_named(bad, tmp_path):
    """Also if it is one of the first four."""
    state = small(TWENTY, draw=nan_at(bad))
    iterator = steps(state, one_process(), report=lambda line: None)
    for _ in zip(range(bad), iterator):
        pass
    before = arrays_of(state)
    next(iterator)
    assert same_bits(before, arrays_of(state))
    next(iterator)
    assert not same_bits(before, arrays_of(state))
    with pytest.raises(TrainingError, match=f"step {bad + 1}: loss is nan, gradient norm nan"):
        save(state, tmp_path / "a.npz", DATASET, SCHEDULE, 1)
    assert list(tmp_path.iterdir()) == []


def test_steps_of_another_shape_are_recorded_anew():
    """A batch of another size, and then the first size again: each is ordered twice and recorded."""

    def draw(config, step):
        return draw_batch(DATASET, SCHEDULE, 10, replace(config, batch_size=8 if step < 6 or step > 11 else 5), step)

    states = [small(replace(TWENTY, num_steps=18), draw=draw) for _ in range(2)]
    with counted() as found:
        for _ in steps(states[0], one_process(), report=lambda line: None):
            states[0].metrics()  # rows of one size are read together
    for _ in train(states[1]):
        states[1].metrics()
    assert_same(*states)
    assert found["recordings"] in (3, 0)  # 0: a real GPU counts elsewhere


def test_new_arrays_of_parameters_moments_or_average_are_noticed():
    """An update of arrays that nobody reads any more would be an update of nothing."""

    def replaced(state, k):
        if k == 5:
            state.parameters[0].move()  # to copies
        if k == 10:
            state.adam.m[0], state.ema.average[0] = state.adam.m[0].copy(), state.ema.average[0].copy()
        if k == 15:
            state.parameters[0].parameters[0].requires_grad = False

    states = small(TWENTY), small(TWENTY)
    for state, advance in zip(states, (partial(steps, ranks=one_process(), report=lambda line: None), train)):
        for _ in advance(state):
            replaced(state, state.step)
    assert_same(*states)


def test_a_state_is_whole_only_between_two_updates(monkeypatch):
    """What a signal may save in the middle of a replayed step belongs to one step: `whole` is False from the metrics of
    a step on until the step is counted, and a state that is whole has the weights of its number of steps."""
    state, seen = small(TWENTY), []

    def look(place, f):
        def looking(*args, **kwargs):
            before = whole(state)
            answer = f(*args, **kwargs)
            seen.append((place, before, whole(state)))
            return answer

        return looking

    recorder = graph.RecordedStep
    for name in ("gradients", "clip", "update", "average"):
        monkeypatch.setattr(recorder, name, look(name, getattr(recorder, name)))
    for _ in zip(range(6), steps(state, one_process(), report=lambda line: None)):
        assert whole(state)
    expected = [("gradients", True, True), ("clip", True, True), ("update", False, False), ("average", False, False)]
    assert seen == 6 * expected


# Steps that are not recorded.


def refused(reason):
    return f"{graph.NOT_RECORDED}: {reason}"


def ordered_for(reason, losses_of=noise_prediction_losses, draw=None):
    """The run with these losses is not recorded, for this reason, and is the ordered run all the same."""
    states = [small(draw=draw) for _ in range(2)]
    for state in states:
        state.losses_of = losses_of
    assert_same(recorded(states[0], refused(reason)), ordered(states[1]))


def test_where_the_driver_cannot_capture_the_run_is_ordered():
    with tape.driver_that_cannot_capture("cudaErrorNotSupported: operation not supported"):
        ordered_for("CuPy does not record it (RuntimeError: cudaErrorNotSupported: operation not supported)")


def test_a_step_with_random_numbers_of_its_own_is_ordered():
    """They are sent to the GPU and are not in the batch: a replay would repeat those of the recorded step."""

    def noisy(model, batch):
        noise = default_rng(*batch["t"].tolist()).random(8)
        return noise_prediction_losses(model, batch) * asarray(noise, "float32")

    ordered_for("it sends the GPU an array of shape (8,) that is not in the batch", noisy)


def test_a_step_that_waits_for_the_gpu_is_ordered():
    def waiting(model, batch):
        losses = noise_prediction_losses(model, batch)
        return losses * (2.0 if float(losses.data[0]) > 0 else 1.0)

    ordered_for(f"CuPy does not record it (RuntimeError: {tape.REFUSED})", waiting)


def test_a_step_whose_kernels_get_numbers_of_the_batch_by_value_is_ordered():
    """The test of the fourth step finds it, and no step is updated by the wrong numbers."""
    ordered_for("a replay gives other numbers", by_value)


def by_value(model, batch):
    return noise_prediction_losses(model, batch) * float(batch["t"].mean())


def test_a_step_that_sends_something_else_each_time_is_ordered():
    """The second step sends no weights, the third does: its inputs are not those of the second."""

    def now_and_then(model, batch):
        sent = {name: a for name, a in batch.items() if name not in ("step", "more")}
        weight = {"weight": batch["more"].astype("float32")} if batch["step"][0] == 2 else {}
        return noise_prediction_losses(model, sent | weight)

    def draw(config, step):
        more = default_rng("more", step).integers(1, 9, config.batch_size)
        return {**draw_batch(DATASET, SCHEDULE, 10, config, step), "more": more, "step": np.full(len(more), step)}

    ordered_for("it sends the GPU other arrays than the step before", now_and_then, draw)


def test_a_batch_on_the_gpu_is_ordered():
    def draw(config, step):
        batch = draw_batch(DATASET, SCHEDULE, 10, config, step)
        return {**batch, "x_t": asarray(batch["x_t"])}

    states = [small() for _ in range(2)]
    for state in states:
        state.draw = draw
    assert_same(recorded(states[0], refused("its batch is not on the host")), ordered(states[1]))


def test_several_ranks_are_told_why_their_steps_are_ordered():
    state, lines = small(), []
    ranks = SimpleNamespace(size=2, rank=0)
    for _ in steps(state, ranks, report=lines.append):
        pass
    assert lines == [refused("the ranks exchange their gradients in its middle")]
    assert_same(state, ordered(small()))


def test_parameters_that_are_no_buffer_are_ordered():
    model = build_unet(ONE_LEVEL, 5)
    state = training.Training(model, CONFIG, partial(draw_batch, DATASET, SCHEDULE, 10))
    recorded(state, refused("its parameters are not one buffer"))
    assert state.step == 6


def test_an_error_of_the_losses_comes_out_of_the_recorded_step_too():
    """Anything but a refusal is raised as it is, no recording stays open, and nothing is saved of the broken step."""
    state, steps_done = small(TWENTY), []

    def failing(model, batch):
        steps_done.append(0)
        if len(steps_done) == 3:
            raise ZeroDivisionError("planted")
        return noise_prediction_losses(model, batch)

    state.losses_of = failing
    with pytest.raises(ZeroDivisionError, match="planted"):
        list(steps(state, one_process(), report=lambda line: None))
    assert tape.now.tape is None and state.step == 2 and not whole(state)


# Drawing.


def trained(target=None, **options):
    """Workers with a network of random weights."""
    workers = small_workers({**ONE_LEVEL, **options})
    for i, p in enumerate(workers.model.parameters()):
        p.data[...] = asarray(0.2 * default_rng("weights", i).standard_normal(p.shape), "float32")
    if target is not None:
        workers.model = as_eps(workers.model, target, SCHEDULE)
    return workers


def images(workers, labels, as_ordered, monkeypatch, **options):
    with monkeypatch.context() as patch:
        if as_ordered:
            patch.setattr(graph, "recorded", lambda model: model)
        recipe = Recipe(SCHEDULE, (8, 8, 1), **{"num_steps": 12, "at_once": 3, "keep": 3, **options})
        return np.concatenate(list(generate(workers, recipe, labels, 4)), 1)


RECIPES = {
    "guided": {},
    "conditional": {"scale": 1.0},
    "unconditional": {"scale": 0.0},
    "DDIM": {"step": DDIM},
    "DPM-Solver": {"step": DPM_SOLVER_2M},
    "few steps": {"num_steps": 3},
    "one image at a time": {"at_once": 1},
}


@pytest.mark.parametrize("options", RECIPES.values(), ids=RECIPES)
def test_images_of_a_recorded_network_are_those_of_an_ordered_one(options, monkeypatch):
    """Bit for bit, over slices with other labels, the last of them smaller, and every kept frame."""
    labels = [7, 1, 3, 0, 9, 9, 2, 10]
    with counted() as found:
        drawn = images(trained(), labels, False, monkeypatch, **options)
    assert (drawn.view("u4") == images(trained(), labels, True, monkeypatch, **options).view("u4")).all()
    assert found["graph launch"] > 20 or options.get("num_steps") == 3 or not found["recordings"]


def test_the_noise_of_a_slice_is_one_upload_a_step(monkeypatch):
    """Each image has a generator of its own, and 3 slices of 12 steps send 36 arrays, of a whole slice each."""
    sent, workers = [], trained()
    with graph.sending(lambda a: sent.append(a.shape)):
        images(workers, [0, 1, 2, 3, 4, 5, 6, 7], True, monkeypatch)
    assert [shape for shape in sent if len(shape) == 4] == [(3, 8, 8, 1)] * 24 + [(2, 8, 8, 1)] * 12


@pytest.mark.parametrize("kind", ["no classes", "target v"])
def test_other_networks_draw_the_same_images_too(kind, monkeypatch):
    """The conversion of another target takes its coefficients by value: it stays outside the recording."""
    made = partial(trained, num_classes=None) if kind == "no classes" else partial(trained, V)
    both = [images(made(), [0, 1, 2, 3, 4], as_ordered, monkeypatch) for as_ordered in (False, True)]
    assert (both[0].view("u4") == both[1].view("u4")).all()


@pytest.mark.parametrize("target", [None, V], ids=["eps", "v"])
def test_both_networks_of_a_pair_are_recorded(target, monkeypatch):
    """Each has a recording of its own: the images are those of two ordered networks, bit for bit."""
    workers, weak = trained(target), trained(target)
    weak.flat.data[...] = weak.flat.data * 0.9
    workers.model = Pair(workers.model, weak.model)
    recipe = guidance(workers.model, 2.0, 1.5)[0]
    with counted() as found:
        drawn = images(workers, [7, 1, 3, 0, 9], False, monkeypatch, **recipe)
    ordered = images(workers, [7, 1, 3, 0, 9], True, monkeypatch, **recipe)
    assert (drawn.view("u4") == ordered.view("u4")).all()
    assert found["graph launch"] > 30 or not found["recordings"]  # two networks, 24 steps in two slices


def test_a_recorded_network_draws_with_the_weights_of_now(monkeypatch):
    """New values in the same arrays are read by the next launch; new arrays are recorded anew."""
    workers = trained()
    model, (x,) = graph.recorded(workers.model), [asarray(default_rng(2).standard_normal((3, 8, 8, 1)), "float32")]
    with no_grad():
        for k in range(14):
            if k % 3 == 0:
                workers.flat.data[...] = workers.flat.data * 0.9
            if k == 8:
                workers.flat.move()
            found, expected = (to_numpy(f(x, k + 1, [1, 2, k % 11]).data) for f in (model, workers.model))
            assert (found.view("u4") == expected.view("u4")).all()


def test_a_recorded_network_has_the_attributes_of_the_network():
    model = trained().model
    assert graph.recorded(model).num_classes == 10 and graph.recorded(model).config is model.config


def test_a_model_that_is_no_u_net_stays_as_it_is():
    model = build_classifier({"channels": [8], "num_classes": 10}, 0)
    assert graph.recorded(model) is model


def test_drawing_says_once_why_it_is_not_recorded(monkeypatch, capsys):
    graph._print_once.cache_clear()
    with tape.driver_that_cannot_capture("planted"):
        drawn = [images(trained(), [1, 2, 3], False, monkeypatch) for _ in range(2)]
    assert capsys.readouterr().out == f"{graph.NOT_DRAWN}: CuPy does not record it (RuntimeError: planted)\n"
    assert (drawn[0] == images(trained(), [1, 2, 3], True, monkeypatch)).all()


# Parts.


@pytest.mark.parametrize("t", [[0, 1, 999], [1023, 1024], [5000, 10**9], [0]])
def test_the_table_of_time_codes_is_the_time_code(t):
    """For small times and large ones, in both dtypes, on the host."""
    for dtype in ("<f4", "<f8"):
        found = graph._codes(np.array(t), 8, dtype)
        assert type(found) is np.ndarray
        np.testing.assert_array_equal(found, to_numpy(time_code(t, 8, dtype)))


def test_sources_are_told_apart_by_their_numbers():
    """An entry, in another dtype too, and the time code of an entry; nothing else."""
    batch = {"t": np.array([3, 5]), "labels": np.array([5, 3], np.uint8), "x": np.full((2, 2), 0.5, np.float32)}
    for name, coded, a in (
        ("t", False, batch["t"]),
        ("labels", False, np.array([5, 3])),
        ("labels", False, np.array([True, True])),
        ("x", False, batch["x"].copy()),
        ("t", True, to_numpy(time_code([3, 5], 8))),
    ):
        source = graph.source_of(a, batch)
        assert (source.of(batch) == a).all() and source.of(batch).dtype == a.dtype
        assert (source.name, source.coded) == (name, coded) or a.dtype == bool
    for a in (np.array([5, 4]), np.full((2, 2), 0.25, np.float32), np.full(4, 0.5, np.float32)):
        with pytest.raises(graph.CannotRecord, match="that is not in the batch"):
            graph.source_of(a, batch)


def test_what_is_sent_is_what_the_step_reads():
    """Each array of a batch and of a step's own arrives whole at its fixed address, whatever lies beside it."""
    rng = default_rng(0)
    batch = {"a": rng.random((3, 5)), "b": rng.integers(0, 9, 7), "c": rng.random(1).astype("float32")}
    own = {"d": rng.random(3), "e": rng.integers(0, 9, (2, 2))}
    sources = {name: graph.source_of(a, batch | own) for name, a in (batch | own).items()}
    sources["cast"] = graph.source_of(batch["b"].astype("int32"), batch)
    inputs = graph.Inputs(set(sources.values()), batch)
    for pack in (Packed, dict):
        batch, own = ({name: np.flip(a * 2).astype(a.dtype) for name, a in each.items()} for each in (batch, own))
        inputs.send(pack(batch), own)
        for name, a in {**batch, **own, "cast": batch["b"].astype("int32")}.items():
            found = to_numpy(inputs.array(sources[name]))
            np.testing.assert_array_equal(found, a)
            assert found.dtype == a.dtype


def test_what_xp_copies_is_seen_and_device_arrays_are_not():
    seen, a = [], xp.ones(2)
    with graph.sending(seen.append):
        assert asarray(a) is a
        b = asarray([1.0, 2.0], "float32")
    assert [s.tolist() for s in seen] == [[1.0, 2.0]] and to_numpy(b).tolist() == [1.0, 2.0]
    asarray([3.0])
    assert len(seen) == 1 and math.isfinite(float(ops.total(a[None]).data.sum()))
