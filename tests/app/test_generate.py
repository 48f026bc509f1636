"""Generation: image i of a seed is one image, whatever slice it is drawn in, and a recipe means what it says."""

import pickle
from dataclasses import replace
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
from plain import plain

from tinydiff.app.alone import one_process
from tinydiff.app.choices import DDIM, DPM_SOLVER_2M, quadratic
from tinydiff.app.generate import (
    DDPM,
    GPU_SLICE,
    SLICE,
    Recipe,
    build_unet,
    check_room,
    check_steps,
    frame_times,
    generate,
    new_unet,
    uniform,
)
from tinydiff.app.row_rng import row_rng
from tinydiff.app.trained import as_eps
from tinydiff.autograd import no_grad
from tinydiff.backend import TinydiffError, asarray, backend_name, default_rng, standard_normal, to_numpy
from tinydiff.diffusion import (
    Schedule,
    classifier_free,
    ddim_step,
    ddpm_step,
    dpm_solver_2m,
    karras_pairs,
    log_snr_pairs,
    quadratic_pairs,
    sample,
    timestep_pairs,
)
from tinydiff.diffusion.targets import X_0, V
from tinydiff.fast.workers import Workers

pytestmark = pytest.mark.sampler

NETWORK = {"base_channels": 8, "channel_mults": [1, 2], "num_heads": 2, "num_groups": 4, "num_classes": 3}
RECIPE = Recipe(Schedule.linear(50), (8, 8, 1), num_steps=4, scale=1.5, at_once=SLICE)  # on a GPU it would be more


@pytest.fixture(scope="module")
def workers():
    pool = one_process().workers(partial(build_unet, NETWORK, 0), 1)
    rng = default_rng(7)
    # The last convolutions start at zero, and a network that answers zero whatever the label hides every mistake.
    for p in pool.model.parameters():
        p.data += 0.05 * standard_normal(rng, p.shape)
    return pool


def images(workers, recipe, labels, seed=0):
    return np.concatenate(list(generate(workers, recipe, labels, seed)), axis=1)


def test_a_slice_is_the_samplers_walk(workers):
    """Images are what sample() makes of their own streams with guided noise."""
    labels = [0, 1, 2, 3]
    rng = row_rng("picture", 9, rows=range(4))
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
    "2m, rho": (DPM_SOLVER_2M, karras_pairs, lambda s: dpm_solver_2m(s, clip=True), lambda s: karras_pairs(s, 4)),
}


@pytest.mark.parametrize("name", WALKS)
def test_every_slice_walks_a_recipes_times_with_a_step_of_its_own(workers, name):
    """Each sampler with each kind of times, over two slices: 2M, which remembers, starts each one fresh."""
    step, pairs, expected_step, expected_pairs = WALKS[name]
    recipe, labels = replace(RECIPE, step=step, pairs=pairs), [i % 3 for i in range(SLICE + 2)]
    drawn = images(workers, recipe, labels, seed=9)[0]
    assert frame_times(replace(recipe, keep=4)) == [s for _, s in expected_pairs(RECIPE.schedule)]
    for i, part in enumerate((labels[:SLICE], labels[SLICE:])):
        rng = row_rng("picture", 9, rows=range(i * SLICE, i * SLICE + len(part)))
        x_T = standard_normal(rng, (len(part), 8, 8, 1))
        eps_fn = classifier_free(workers.model, part, 1.5)
        *_, (_, x_0, _) = sample(expected_step(RECIPE.schedule), eps_fn, expected_pairs(RECIPE.schedule), x_T, rng)
        assert (drawn[i * SLICE : (i + 1) * SLICE] == to_numpy(x_0)).all()


def of_each_pixel(model, labels, scale):
    """An eps_fn whose arithmetic is pixel by pixel: it rounds alike in batches of all sizes."""
    labels = asarray(np.array(labels, np.float32))[:, None, None, None]
    return lambda x_t, t: x_t * (0.1 + t / 100) - 0.1 * scale * labels


STEPS = {"ddpm": DDPM, "ddim": DDIM, "eta": partial(DDIM, eta=0.5), "2m": DPM_SOLVER_2M}


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_image_i_of_a_seed_is_one_image_bit_for_bit(workers, step):
    """In slices of 1, 3, 20 and 500; among 7 and among 100 images, or drawn apart, from `first` on; in every frame.

    Only the network rounds differently in batches of other sizes, and here its place is taken by pixelwise arithmetic.
    """
    labels = [i % 3 for i in range(100)]
    recipe = replace(RECIPE, guide=of_each_pixel, step=step, keep=4)
    drawn = images(workers, replace(recipe, at_once=SLICE), labels, seed=9)
    assert drawn.shape == (4, 100, 8, 8, 1) and len({image.tobytes() for image in drawn[-1]}) == 100
    for at_once in (1, 3, SLICE, GPU_SLICE):
        recipe = replace(recipe, at_once=at_once)
        np.testing.assert_array_equal(images(workers, recipe, labels[:7], seed=9), drawn[:, :7])
        if at_once > 1:
            np.testing.assert_array_equal(images(workers, recipe, labels, seed=9), drawn)
        parts = list(generate(workers, recipe, labels[17:44], 9, first=17))
        np.testing.assert_array_equal(np.concatenate(parts, 1), drawn[:, 17:44])


def test_the_order_of_the_labels_does_not_change_the_noise(workers):
    """Sorted or in turn: image i with label k has the same bits, and images of one label differ."""
    recipe, in_turn = replace(RECIPE, guide=of_each_pixel, at_once=5), [i % 3 for i in range(24)]
    both = images(workers, recipe, in_turn)[0], images(workers, recipe, sorted(in_turn))[0]
    same = np.equal(in_turn, sorted(in_turn))
    assert 0 < same.sum() < 24
    np.testing.assert_array_equal((both[0] == both[1]).all((1, 2, 3)), same)
    assert len({image.tobytes() for image in images(workers, recipe, [1] * 24)[0]}) == 24


def test_an_image_of_the_network_is_the_same_up_to_rounding(workers):
    """7 of 45 in slices of 20 and in one slice; the same slice has the same bits.

    Products of other sizes round differently: 6e-8 of values up to 4, in 4 steps through a network; seen 2e-6.
    """
    labels = [i % 3 for i in range(45)]
    drawn = images(workers, RECIPE, labels)
    np.testing.assert_array_equal(images(workers, RECIPE, labels[:SLICE]), drawn[:, :SLICE])
    for other in (images(workers, RECIPE, labels[:7]), images(workers, replace(RECIPE, at_once=GPU_SLICE), labels)):
        np.testing.assert_allclose(other, drawn[:, : other.shape[1]], rtol=0, atol=1e-4)


@pytest.mark.parametrize("n, sizes", [(0, []), (5, [5]), (6, [6]), (7, [6, 1]), (12, [6, 6]), (13, [6, 6, 1])])
def test_a_slice_is_cut_at_its_border(workers, n, sizes):
    """One label fewer than fills the slices, as many, and one more: labels keep their order."""
    labels, seen = [i % 3 for i in range(n)], []

    def guide(model, labels, scale):
        seen.append(labels)
        return classifier_free(model, labels, scale)

    drawn = generate(workers, replace(RECIPE, at_once=6, guide=guide), labels, 0)
    assert [frames.shape[1] for frames in drawn] == [len(part) for part in seen] == sizes
    assert [label for part in seen for label in part] == labels


def test_seed_label_and_scale_matter(workers):
    """Another seed or label gives another image; at scale 0 the label does not enter."""
    base = images(workers, RECIPE, [0, 0])
    assert (images(workers, RECIPE, [0, 0], seed=1) != base).any()
    assert (images(workers, RECIPE, [1, 1]) != base).any()
    free = replace(RECIPE, scale=0.0)
    assert (images(workers, free, [0, 0]) == images(workers, free, [1, 2])).all()


def test_a_recipe_travels_to_another_process(workers):
    """Pickled and read again, with DDIM of another eta and other times, it draws the same bits."""
    labels = [0, 1]
    recipe = replace(RECIPE, step=partial(DDIM, eta=0.5), pairs=quadratic)
    drawn = images(workers, recipe, labels)
    assert (images(workers, pickle.loads(pickle.dumps(recipe)), labels) == drawn).all()
    assert (images(workers, replace(recipe, step=DDIM), labels) != drawn).any()
    for step in (DDPM, DPM_SOLVER_2M):
        for pairs in (uniform, log_snr_pairs):
            recipe = replace(RECIPE, step=step, pairs=pairs)
            assert pickle.loads(pickle.dumps(recipe)).step is step


def test_a_recipe_has_at_most_the_schedules_steps():
    """More of them than T is a mistake of the user's, found before anything is drawn."""
    with pytest.raises(TinydiffError, match="num_steps=51: the schedule has T = 50 steps, no more"):
        replace(RECIPE, num_steps=51)
    assert frame_times(replace(RECIPE, num_steps=50, keep=50)) == list(range(49, -1, -1))  # every one of them may be


def test_an_option_names_the_steps_that_are_too_many():
    """check_steps: T itself is allowed; of several options the first that is too large is named, as it is typed."""
    check_steps(50, steps=50, sample_steps=1)
    with pytest.raises(TinydiffError, match=r"^--sample-steps 51: the schedule has T = 50 steps, no more$"):
        check_steps(50, steps=50, sample_steps=51, longest=99)


def test_images_that_memory_cannot_hold_are_refused(monkeypatch):
    """12 bytes a number, three float32 copies, and 54 a pixel, 9 screen pixels of 6 bytes: for each of the images."""
    room = 100 * (12 * 28 * 20 * 3 + 54 * 28 * 20)
    monkeypatch.setattr("tinydiff.data.limits.memory", lambda: room)
    check_room(100, (28, 20, 3))
    for num, shape in ((101, (28, 20, 3)), (100, (28, 20, 4)), (100, (29, 20, 3))):
        with pytest.raises(TinydiffError, match=f"^--num {num}: that needs about"):
            check_room(num, shape)


def test_a_network_is_drawn_from_its_seed():
    """build_unet(config, seed) has the parameters of new_unet from the stream of that seed, and of no other."""
    for seed in (0, 3):
        found, same, other = build_unet(NETWORK, seed), new_unet(NETWORK, default_rng(seed)), build_unet(NETWORK, 1)
        assert found.config == same.config and found.config | NETWORK == found.config
        states = [to_numpy(model.conv_in.w).tobytes() for model in (found, same, other)]
        assert states[0] == states[1] != states[2]


@pytest.mark.parametrize("target", [X_0, V])
def test_a_recipe_knows_what_the_network_predicts(workers, target):
    """Its images are the walk with eps_hat = target.to_eps(the guided prediction).

    Guiding eps_hats instead, as with a loaded network, gives the same to float32's rounding: 2e-6 seen in four steps.
    """
    labels, rng = [0, 1, 2], row_rng("picture", 9, rows=range(3))
    x_T, schedule = standard_normal(rng, (3, 8, 8, 1)), RECIPE.schedule
    step, pairs = partial(ddpm_step, schedule, clip=True), timestep_pairs(50, 4)
    predict = classifier_free(workers.model, labels, 1.5)
    *_, (_, x_0, _) = sample(step, lambda x_t, t: target.to_eps(schedule, x_t, t, predict(x_t, t)), pairs, x_T, rng)
    drawn = images(workers, replace(RECIPE, target=target), labels, seed=9)[0]
    assert (drawn == to_numpy(x_0)).all()
    assert (drawn != images(workers, RECIPE, labels, seed=9)[0]).any()
    rng = row_rng("picture", 9, rows=range(3))
    x_T, model = standard_normal(rng, (3, 8, 8, 1)), as_eps(workers.model, target, schedule)
    with no_grad():
        *_, (_, x_0, _) = sample(step, classifier_free(model, labels, 1.5), pairs, x_T, rng)
    np.testing.assert_allclose(drawn, to_numpy(x_0), rtol=0, atol=1e-4)


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


@pytest.mark.parametrize("num_steps, keep", [(1, 1), (7, 1), (7, 3), (9, 3), (50, 7), (50, 49), (50, 50), (4, 50)])
def test_kept_frames_are_spread_evenly(num_steps, keep):
    """The numbers of steps from one frame to the next, the first from the start on, differ by at most one."""
    recipe = replace(RECIPE, num_steps=num_steps, keep=keep)
    every = frame_times(replace(recipe, keep=num_steps))
    assert every == [s for _, s in timestep_pairs(50, num_steps)]
    steps = [every.index(t) + 1 for t in frame_times(recipe)]
    gaps = np.diff([0, *steps])
    assert len(steps) == min(keep, num_steps) and steps[-1] == num_steps and np.ptp(gaps) <= 1 and gaps.min() >= 1


def test_generation_records_no_graph(workers):
    """While images are drawn an op on a parameter makes no graph: a graph of every step would fill the memory."""
    made = []

    def guide(model, labels, scale):
        eps_fn = classifier_free(model, labels, scale)

        def watched(x_t, t):
            made.append((model.conv_in.w * 1.0).requires_grad)
            return eps_fn(x_t, t)

        return watched

    assert (workers.model.conv_in.w * 1.0).requires_grad
    images(workers, replace(RECIPE, guide=guide), [0])
    assert made == [False] * 4 and (workers.model.conv_in.w * 1.0).requires_grad


@pytest.mark.skipif(backend_name() != "numpy", reason="worker processes share host memory")
def test_workers_draw_the_same_images(workers):
    """Three processes, in slices of 7, draw what one draws in slices of 20; products of other sizes round apart."""
    labels = [i % 3 for i in range(2 * SLICE + 1)]
    with Workers(partial(build_unet, NETWORK, 0), 3) as three:
        three.model.load_state_dict(workers.model.state_dict())
        drawn = images(three, replace(RECIPE, at_once=7), labels)
    np.testing.assert_allclose(drawn, images(workers, RECIPE, labels), atol=1e-4)


def test_a_network_without_classes_draws_unconditionally():
    """num_classes None: labels only count, and guidance has nothing to guide by."""
    pool = one_process().workers(partial(build_unet, {**NETWORK, "num_classes": None}, 0), 1)
    assert images(pool, RECIPE, [0, 0, 0]).shape == (1, 3, 8, 8, 1)


@pytest.mark.parametrize("backend, sizes", [("numpy", [20, 20, 20, 20, 20, 20, 5]), ("cupy", [125])])
def test_a_gpu_draws_more_at_once(monkeypatch, backend, sizes):
    """Where a recipe does not say: a core works on few images, a GPU on as many as keep it busy."""
    monkeypatch.setattr("tinydiff.app.generate.backend_name", lambda: backend)

    class Workers:
        def map(self, _, jobs):
            return [np.zeros((1, len(labels))) for labels, _ in jobs]

    drawn = generate(Workers(), replace(RECIPE, at_once=None), [0] * 125, 0)
    assert [frames.shape[1] for frames in drawn] == sizes


def test_with_nothing_installed_a_gpu_draws_with_the_network_itself(workers, monkeypatch):
    """--plain records no step: the guide gets the model of the workers, and not a recording of it."""
    models = []

    def guide(model, labels, scale):
        models.append(model)
        return classifier_free(model, labels, scale)

    with plain():
        monkeypatch.setattr("tinydiff.app.generate.backend_name", lambda: "cupy")
        images(workers, replace(RECIPE, guide=guide), [0])
    assert models == [workers.model]


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_an_image_that_is_no_picture_ends_the_drawing(wrong):
    """A NaN or an infinity is an error at the first slice that has it; the message has the guidance scale."""

    class Workers:
        def map(self, _, jobs):
            for i, _ in enumerate(jobs):
                yield np.full((2, 1, 4, 4, 1), wrong if i == 1 else 0.5, np.float32)

    drawn = generate(Workers(), replace(RECIPE, at_once=1, scale=1e6), [0, 1, 2], 0)
    next(drawn)
    with pytest.raises(TinydiffError, match=r"scale=1e\+06: the network draws NaN or infinity"):
        next(drawn)


@pytest.mark.parametrize("place", [(-1, 0, 0, 0, 0), (-1, 2, 3, 3, 0)])
def test_one_pixel_that_is_no_number_is_enough(place):
    """In any image of the last frame, whatever the frames before it are: the check is of what is returned."""
    frames = np.zeros((2, 3, 4, 4, 1), np.float32)
    frames[place] = np.nan

    class Workers:
        def map(self, _, jobs):
            yield frames

    with pytest.raises(TinydiffError, match="the network draws NaN or infinity"):
        next(generate(Workers(), replace(RECIPE, at_once=3), [0, 1, 2], 0))


def test_a_recipe_may_draw_more_at_once(workers):
    """at_once images a slice: each image has the stream of its own number."""
    recipe, labels = replace(RECIPE, at_once=3), [0, 1, 2, 0, 1]
    parts = list(generate(workers, recipe, labels, 9))
    assert [part.shape[1] for part in parts] == [3, 2]
    for i, part in enumerate(parts):
        own = labels[3 * i : 3 * i + 3]
        rng = row_rng("picture", 9, rows=range(3 * i, 3 * i + len(own)))
        x_T = standard_normal(rng, (len(own), 8, 8, 1))
        eps_fn = classifier_free(workers.model, own, 1.5)
        *_, (_, x_0, _) = sample(DDPM(RECIPE.schedule), eps_fn, timestep_pairs(50, 4), x_T, rng)
        assert (part[-1] == to_numpy(x_0)).all()


@pytest.mark.parametrize("name", ["num_steps", "keep", "at_once"])
@pytest.mark.parametrize("value", [0, -1, 1.5, float("nan")])
def test_a_number_of_a_recipe_out_of_range_is_refused(name, value):
    """Whole numbers from 1, else ValueError with the name: -1 images at a time would draw none."""
    with pytest.raises(ValueError, match=f"{name} must"):
        Recipe(Schedule.linear(100), (8, 8, 1), **{"num_steps": 5, name: value})
