"""Generation: slices and workers change nothing about an image, and a checkpoint's averaged weights draw it."""

from dataclasses import replace
from functools import partial
from itertools import pairwise

import numpy as np
import pytest

from tinydiff import checkpoint
from tinydiff.autograd import no_grad
from tinydiff.backend import asarray, backend_name, default_rng, standard_normal, to_numpy
from tinydiff.checkpoint import CheckpointError
from tinydiff.data import Dataset
from tinydiff.diffusion import (
    Schedule,
    classifier_free,
    ddim_step,
    ddpm_step,
    dpm_solver_2m,
    log_snr_pairs,
    quadratic_pairs,
    sample,
    timestep_pairs,
)
from tinydiff.generate import (
    DDIM,
    DDPM,
    DPM_SOLVER_2M,
    SLICE,
    Recipe,
    build_unet,
    frame_times,
    generate,
    load_trained,
    quadratic,
    uniform,
)
from tinydiff.parallel import Workers
from tinydiff.train import TARGETS, TrainConfig, Training

pytestmark = pytest.mark.sampler

NETWORK = {"base_channels": 8, "channel_mults": [1, 2], "num_heads": 2, "num_groups": 4, "num_classes": 3}
RECIPE = Recipe(Schedule.linear(50), (8, 8, 1), num_steps=4, scale=1.5, at_once=SLICE)  # on a GPU it would be more


@pytest.fixture(scope="module")
def workers():
    pool = Workers(partial(build_unet, NETWORK, 0))
    # The last convolutions start at zero, and a network that answers zero whatever the label hides every mistake.
    pool.flat.data += 0.05 * standard_normal(default_rng(7), pool.flat.data.shape)
    return pool


def images(workers, recipe, labels, seed=0):
    return np.concatenate(list(generate(workers, recipe, labels, seed)), axis=1)


def test_a_slice_is_the_samplers_walk(workers):
    """An image is what sample() makes of its slice's own stream with guided noise."""
    labels = [0, 1, 2, 3]
    rng = default_rng("slice", 9, 0)
    x_T = standard_normal(rng, (4, 8, 8, 1))
    step = partial(ddpm_step, RECIPE.schedule, clip=True)
    walk = sample(step, classifier_free(workers.model, labels, 1.5), timestep_pairs(50, 4), x_T, rng)
    *_, (t, x_0, _) = walk
    drawn = images(workers, RECIPE, labels, seed=9)
    assert t == 0 and drawn.shape == (1, 4, 8, 8, 1) and drawn.dtype == np.float32
    assert (drawn[0] == to_numpy(x_0)).all()


WALKS = {
    "ddpm": (DDPM, uniform, lambda s: partial(ddpm_step, s, clip=True), lambda s: timestep_pairs(s.T, 4)),
    "ddim": (DDIM, quadratic, lambda s: partial(ddim_step, s, clip=True), lambda s: quadratic_pairs(s.T, 4)),
    "2m": (DPM_SOLVER_2M, log_snr_pairs, lambda s: dpm_solver_2m(s, clip=True), lambda s: log_snr_pairs(s, 4)),
}


@pytest.mark.parametrize("name", WALKS)
def test_every_slice_walks_a_recipes_times_with_a_step_of_its_own(workers, name):
    """Each sampler with each kind of times, over two slices: 2M, which remembers, starts each one fresh."""
    step, pairs, expected_step, expected_pairs = WALKS[name]
    recipe, labels = replace(RECIPE, step=step, pairs=pairs), [i % 3 for i in range(SLICE + 2)]
    drawn = images(workers, recipe, labels, seed=9)[0]
    assert frame_times(replace(recipe, keep=4)) == [s for _, s in expected_pairs(RECIPE.schedule)]
    for i, part in enumerate((labels[:SLICE], labels[SLICE:])):
        rng = default_rng("slice", 9, i)
        x_T = standard_normal(rng, (len(part), 8, 8, 1))
        eps_fn = classifier_free(workers.model, part, 1.5)
        *_, (_, x_0, _) = sample(expected_step(RECIPE.schedule), eps_fn, expected_pairs(RECIPE.schedule), x_T, rng)
        assert (drawn[i * SLICE : (i + 1) * SLICE] == to_numpy(x_0)).all()


def test_an_image_does_not_depend_on_how_many_are_asked_for(workers):
    """The first slice is the same bits whether or not others follow; slices differ from each other."""
    many = images(workers, RECIPE, [1] * (2 * SLICE + 3))
    few = images(workers, RECIPE, [1] * SLICE)
    assert many.shape[1] == 2 * SLICE + 3
    assert (many[:, :SLICE] == few).all()
    assert (many[:, SLICE : 2 * SLICE] != few).any(axis=(0, 2, 3, 4)).all()


def test_seed_label_and_scale_matter(workers):
    """Another seed or label gives another image; at scale 0 the label does not enter."""
    base = images(workers, RECIPE, [0, 0])
    assert (images(workers, RECIPE, [0, 0], seed=1) != base).any()
    assert (images(workers, RECIPE, [1, 1]) != base).any()
    free = replace(RECIPE, scale=0.0)
    assert (images(workers, free, [0, 0]) == images(workers, free, [1, 2])).all()


def half_of_the_way(model, labels, scale):
    return classifier_free(model, labels, scale / 2)


def test_a_recipe_may_bring_another_guide(workers):
    """guide(model, labels, scale) is the eps_fn: here one that halves the scale."""
    halved = images(workers, replace(RECIPE, guide=half_of_the_way), [0, 1])
    assert (halved == images(workers, replace(RECIPE, scale=0.75), [0, 1])).all()


@pytest.mark.parametrize("keep", [1, 2, 3, 4, 9])
def test_kept_frames_end_with_the_image(workers, keep):
    """keep moments of the same trajectory, the times strictly falling to 0, the last frame the image itself."""
    recipe = replace(RECIPE, keep=keep)
    frames, times = images(workers, recipe, [0, 1]), frame_times(recipe)
    everything, all_times = images(workers, replace(RECIPE, keep=4), [0, 1]), frame_times(replace(RECIPE, keep=4))
    assert len(frames) == len(times) == min(keep, 4) and times[-1] == 0
    assert all(a > b for a, b in pairwise(times))
    for frame, t in zip(frames, times):
        assert (frame == everything[all_times.index(t)]).all()


def test_generation_records_no_graph(workers):
    """Drawing leaves no gradient behind and needs none."""
    images(workers, RECIPE, [0])
    assert (workers.flat.grad == 0).all()


@pytest.mark.skipif(backend_name() != "numpy", reason="worker processes share host memory")
def test_workers_draw_the_same_images(workers):
    """Two processes draw what one draws, in the same order; BLAS may round a product of another thread count apart."""
    labels = [i % 3 for i in range(2 * SLICE + 1)]
    with Workers(partial(build_unet, NETWORK, 0), 2) as two:
        two.flat.data[...] = workers.flat.data
        np.testing.assert_allclose(images(two, RECIPE, labels), images(workers, RECIPE, labels), atol=1e-4)


def test_a_network_without_classes_draws_unconditionally():
    """num_classes None: labels only count, and guidance has nothing to guide by."""
    pool = Workers(partial(build_unet, {**NETWORK, "num_classes": None}, 0))
    assert images(pool, RECIPE, [0, 0, 0]).shape == (1, 3, 8, 8, 1)


def test_a_checkpoint_draws_with_its_averaged_weights(tmp_path):
    """load_trained gives the EMA weights, not the last ones, and the schedule that was trained on."""
    data = Dataset("blank", np.zeros((4, 8, 8), np.uint8), np.zeros(4, np.uint8), "blank", ("a", "b", "c"))
    config = TrainConfig(num_steps=3, minutes=None, batch_size=2, warmup=1)
    state = Training(Workers(partial(build_unet, NETWORK, 0)), Schedule.linear(60), config)
    for _ in range(3):
        state.advance(data)
    state.save(tmp_path / "c.npz", data)
    loaded, schedule, meta = load_trained(tmp_path / "c.npz", 1)
    assert (loaded.flat.data == state.ema.data).all()
    assert (loaded.flat.data != state.workers.flat.data).any()
    assert (schedule.beta == Schedule.linear(60).beta).all()
    assert meta["step"] == 3 and meta["data"] == {
        "name": "blank",
        "source": "blank",
        "num": 4,
        "image_shape": [8, 8, 1],
    }


@pytest.mark.parametrize("target", ["eps", "x_0", "v", None])
def test_whatever_it_was_trained_to_say_a_loaded_network_says_eps(tmp_path, target):
    """load_trained's network is to_eps of what the averaged weights say; a file that names no target means eps."""
    data = Dataset("blank", np.zeros((4, 8, 8), np.uint8), np.zeros(4, np.uint8), "blank", ("a", "b", "c"))
    schedule, path = Schedule.linear(60), tmp_path / "c.npz"
    config = TrainConfig(num_steps=1, minutes=None, target=target or "eps")
    state = Training(Workers(partial(build_unet, NETWORK, 0)), schedule, config)
    state.ema.data += 0.05 * standard_normal(default_rng(7), state.ema.data.shape)
    state.save(path, data)
    if target is None:  # as before there was a choice
        arrays, meta = checkpoint.load(path)
        del meta["train"]["target"], meta["train"]["min_snr"]
        checkpoint.save(path, arrays, meta)
    loaded, _, _ = load_trained(path, 1)
    x_t, t, labels = standard_normal(default_rng(1), (4, 8, 8, 1)), np.array([1, 7, 30, 60]), [0, 1, 2, 3]
    with state.workers.weights(state.ema.data), no_grad():
        said = state.workers.model(x_t, t, labels)
        expected = TARGETS[config.target].to_eps(schedule, x_t, t, asarray(said))
        np.testing.assert_array_equal(to_numpy(loaded.model(x_t, t, labels)), to_numpy(expected))
        assert abs(to_numpy(loaded.model(x_t, t, labels))).max() > 0.1  # it does say something
        # Guidance mixes before or after the conversion, which is affine: the same to float32's rounding of
        # x_t/sqrt(1 - alpha_bar_t) <= 25 and guided numbers of that size.
        guided = classifier_free(loaded.model, labels, 3.0)(x_t, 7)
        mixed = classifier_free(state.workers.model, labels, 3.0)(x_t, 7)
        expected = TARGETS[config.target].to_eps(schedule, x_t, 7, mixed)
        np.testing.assert_allclose(to_numpy(guided), to_numpy(expected), rtol=0, atol=1e-4)


def test_other_checkpoints_are_refused(tmp_path):
    """A classifier's checkpoint, and one whose weights do not fit its own configuration, are named and refused."""
    checkpoint.save(tmp_path / "a.npz", {"x": np.zeros(3)}, {"kind": "classifier"})
    with pytest.raises(CheckpointError, match=r"a\.npz holds a network of kind 'classifier', not 'diffusion'"):
        load_trained(tmp_path / "a.npz", 1)
    arrays = {"ema/x": np.zeros(3), "schedule/beta": Schedule.linear(60).beta}
    checkpoint.save(tmp_path / "b.npz", arrays, {"kind": "diffusion", "model": NETWORK, "train": {}})
    with pytest.raises(CheckpointError, match=r"b\.npz: parameter"):
        load_trained(tmp_path / "b.npz", 1)


@pytest.mark.parametrize("backend, sizes", [("numpy", [20, 20, 20, 20, 20, 20, 5]), ("cupy", [125])])
def test_a_gpu_draws_more_at_once(monkeypatch, backend, sizes):
    """Where a recipe does not say: a core works on few images, a GPU on as many as keep it busy."""
    monkeypatch.setattr("tinydiff.generate.backend_name", lambda: backend)

    class Workers:
        def map(self, _, jobs):
            return [len(labels) for labels, _ in jobs]

    assert generate(Workers(), replace(RECIPE, at_once=None), [0] * 125, 0) == sizes


def test_a_recipe_may_draw_more_at_once(workers):
    """at_once images a slice: each slice has the stream of its own number."""
    recipe, labels = replace(RECIPE, at_once=3), [0, 1, 2, 0, 1]
    parts = list(generate(workers, recipe, labels, 9))
    assert [part.shape[1] for part in parts] == [3, 2]
    for i, part in enumerate(parts):
        rng, own = default_rng("slice", 9, i), labels[3 * i : 3 * i + 3]
        x_T = standard_normal(rng, (len(own), 8, 8, 1))
        eps_fn = classifier_free(workers.model, own, 1.5)
        *_, (_, x_0, _) = sample(DDPM(RECIPE.schedule), eps_fn, timestep_pairs(50, 4), x_T, rng)
        assert (part[-1] == to_numpy(x_0)).all()
