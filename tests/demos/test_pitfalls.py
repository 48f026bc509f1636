"""The mistakes are the ones that they claim to be, and the right rows are right."""

from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from tiny_runs import save_checkpoint, save_untrained_classifier

from tinydiff.app.alone import OneProcess, one_process
from tinydiff.app.classify import build_classifier
from tinydiff.app.generate import Recipe, generate
from tinydiff.app.plots import tile
from tinydiff.app.reading import read
from tinydiff.app.trained import load_trained
from tinydiff.backend import TinydiffError, asarray, backend_name, default_rng, standard_normal, to_numpy
from tinydiff.data import load
from tinydiff.diffusion import Schedule, ddpm_step, eps_from_x_0, timestep_pairs

pytestmark = pytest.mark.program

CLASSIFIER = {"channels": (8, 8, 8)}


@pytest.fixture(scope="module")
def demo(load_demo):
    return load_demo("pitfalls")


@pytest.fixture(scope="module")
def data():
    """The first two glyphs of each class."""
    many = load("glyphs", num=120)
    rows = np.concatenate([np.flatnonzero(many.labels == k)[:2] for k in range(10)])
    return replace(many, images=many.images[rows], labels=many.labels[rows])


@pytest.fixture(scope="module")
def trained(tmp_path_factory, data):
    """A network after one step, its average moved off the start, and a classifier that has learned nothing."""
    folder = tmp_path_factory.mktemp("trained")
    save_checkpoint(folder / "checkpoint.npz", data, move_average=0.05)
    save_untrained_classifier(folder / "classifier.npz", data, **CLASSIFIER)
    return folder / "checkpoint.npz", folder / "classifier.npz"


@pytest.fixture(scope="module")
def rows(demo, trained, data, tmp_path_factory):
    """What main returns and writes, in its smallest form."""
    out = tmp_path_factory.mktemp("pitfalls")
    options = {"num": 10, "sample_steps": 2, "train_steps": 1, "channels": 8, "workers": 1, "precision": "float32"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "load", lambda *_: data)  # 60,000 glyphs take seconds to draw
        return demo.main(*trained, backend=backend_name(), out=out, **options), out


def test_a_network_without_classes_is_refused(demo, trained, data, tmp_path):
    """The mistakes are measured on digits that were asked for."""
    save_checkpoint(tmp_path / "none.npz", data, num_classes=None)
    with pytest.raises(TinydiffError, match=r"none\.npz: this program needs a network with classes"):
        demo.main(tmp_path / "none.npz", trained[1], backend=backend_name(), out=tmp_path, workers=1)


def test_every_mistake_has_its_row_sentence_and_digits(demo, rows):
    """One row each in the table and the picture, beside a right one in each group."""
    rows, out = rows
    in_order = [demo.SAMPLING[0], demo.SAMPLING[1], demo.IDEAL, *demo.SAMPLING[2:]]
    assert in_order[1].draw is demo.in_one_step
    assert [case.name for case in in_order] == [case.name for _, case, _, _ in rows[: len(in_order)]]
    assert {case.name for case in demo.TRAINING} == {case.name for _, case, _, _ in rows[len(in_order) :]}
    table = (out / "pitfalls.md").read_text()
    for i, (_, case, images, figures) in enumerate(rows):
        assert case.why and f"| {case.name} | {' | '.join(figures.values())} | {case.why} |" in table
        assert ("moved" in figures) == (i < len(in_order)) and "{" not in case.why
        assert images.shape == (10, 28, 28, 1) and abs(images).max() <= 1
    with Image.open(out / "pitfalls.png") as picture:
        assert 700 < picture.width < 1100 and picture.height > 20 * len(rows)


@pytest.mark.parametrize("steps", [1, 2, 10, 50])
@pytest.mark.parametrize("T", [50, 100, 1000])
def test_the_sentences_are_of_the_run(demo, T, steps):
    """Their numbers are those of this schedule and this run, and one step has no other step to take a time from."""
    schedule = Schedule.linear(T)
    numbers = demo.facts(schedule, steps, 400)
    why = {case.name: demo.explained(case, numbers).why for case in (*demo.SAMPLING, demo.IDEAL, *demo.TRAINING)}
    last_t = timestep_pairs(T, steps)[-1][0]
    noise = schedule.beta_t_given_s(last_t, 0) ** 0.5 * 127.5  # of a step from there to the data, in grey levels
    assert f"here noise of {noise:.1f} grey levels, with {T:,} steps" in why["noise added at the last step"]
    signal = f"{schedule.alpha_bar[T] ** 0.5:.2g}"
    assert f"= {signal}, which gives speckle." in why["x_0_hat of x_T, in one step"]
    assert f"error of eps_hat is divided by {signal}." in why[demo.IDEAL.name]
    assert f"lower by 1 of {T:,}" in why["network gets t - 1"]
    begins = sum(t <= 50 for t, _ in timestep_pairs(1000, steps))
    assert f"at these 50 times: {begins} of {steps}." in why["beta = 0.1: alpha_bar_T = 2e-46"]
    others = [text for name, text in why.items() if "step before" in name or "next step" in name]
    assert len(others) == 4 and all(text.startswith("A run of one step") == (steps == 1) for text in others)
    if steps > 1:
        assert f"higher by about {round(T / steps)} of {T:,}" in why["network gets t of the step before"]
        assert f"t = {last_t}, {noise:.1f} grey levels" in why["coefficients of the step before"]


@pytest.mark.parametrize("train_steps, share", [(1, ">99%"), (400, "96%"), (100_000, "<1%")])
def test_the_cold_average_is_as_random_as_its_sentence_says(demo, train_steps, share):
    """After n updates 0.9999^n of the average is what it started from; a share is never rounded to all or to none."""
    numbers = demo.facts(Schedule.linear(100), 5, train_steps)
    (case,) = (case for case in demo.TRAINING if "without warm-up" in case.name)
    assert f"still {share} random start after {train_steps:,} step" in demo.explained(case, numbers).why


def test_the_table_fits_100_columns(demo, tmp_path, capsys):
    """Names, figures and sentences, at their widest."""
    numbers = demo.facts(Schedule.linear(1000), 50, 10**9)
    figures = {"read as asked": "100%", "border": "255.0", "moved": "255.0"}
    cases = [demo.explained(case, numbers) for case in (*demo.SAMPLING, demo.IDEAL, *demo.TRAINING)]
    demo.report([("one trained network", case, np.zeros((10, 4, 4, 1)), figures) for case in cases], tmp_path)
    table, _ = capsys.readouterr().out.split("results: ")
    assert max(map(len, table.splitlines())) <= 100 and all(case.name in table for case in cases)


def test_the_right_row_is_what_sample_draws(demo, rows, trained):
    """Without guidance, with the noise that generate() draws: the same images to float32's rounding, in any slices."""
    _, _, images, _ = rows[0][0]
    pool, schedule, _ = load_trained(trained[0], 1)
    recipe = Recipe(schedule, (28, 28, 1), num_steps=2, scale=1.0)
    (frames,) = generate(pool, recipe, list(range(10)), 0)
    # x_0_hat is turned into eps_hat and back, at a cost of 1/sqrt(alpha_bar_T) = 158 roundings at the first step.
    np.testing.assert_allclose(images, frames[-1].clip(-1, 1), rtol=0, atol=1e-4)
    slices = [([0, 1, 2, 3], (0, 0)), ([4, 5, 6, 7, 8, 9], (0, 4))]
    in_two = demo.draw(pool, demo.right, schedule, 2, slices, (28, 28, 1))
    # The products of smaller batches round differently: 2e-6 of eps_hat, 158 times as much in x_0_hat.
    np.testing.assert_allclose(in_two, images, rtol=0, atol=1e-3)
    for _, case, other, figures in rows[0]:
        if "moved" in figures:
            moved = float(((other - images).astype("float64") ** 2).mean() ** 0.5 * 127.5)
            assert float(figures["moved"]) == pytest.approx(moved, abs=0.06), case.name
    for _, case, other, _ in rows[0][1:]:
        assert abs(other - images).max() > 1e-3, case.name  # no mistake leaves the images as they were


def test_the_exact_denoiser_jumps_from_the_x_T_of_the_other_rows(demo, trained, data, rows):
    """Each image is the mean of the pictures of its class, weighed by the density of its own x_T, in any slices.

    x_T is that of the row above: drawn in one step by a network whose eps_hat is 0, x_0_hat is x_T/sqrt(alpha_bar_T).
    """
    schedule, shape, labels = Schedule.linear(100), (28, 28, 1), [0, 3, 7, 3]
    full = load("glyphs", num=200)
    images = demo.ideal_in_one_step(full, schedule, demo.jobs_of(np.array(labels), 5), shape)
    in_two = demo.ideal_in_one_step(full, schedule, [(labels[:1], (5, 0)), (labels[1:], (5, 1))], shape)
    np.testing.assert_allclose(images, in_two, rtol=0, atol=1e-6)
    a = float(schedule.alpha_bar[100])

    def no_noise(x_t, t, labels=None):
        return 0 * x_t

    no_noise.num_classes = 10
    jump = demo.draw_slice(demo.in_one_step, schedule, -1e3, 1e3, 4, shape, no_noise, (labels, (5, 0)))
    x_T = jump * 1e3 * a**0.5  # draw_slice divides by the range
    for image, x, label in zip(images, x_T, labels):
        pictures = full.batch(np.flatnonzero(full.labels == label))[0].astype("float64")
        logits = -((x - a**0.5 * pictures) ** 2).sum((1, 2, 3)) / (2 * (1 - a))
        w = np.exp(logits - logits.max())
        np.testing.assert_allclose(image, np.einsum("k,k...->...", w / w.sum(), pictures), rtol=0, atol=1e-4)
    with pytest.raises(TinydiffError, match="no training picture of class"):
        demo.ideal_in_one_step(full.first(1), schedule, [([0, 1], (5, 0))], shape)
    whole = [image for _, case, image, _ in rows[0] if case.name == demo.IDEAL.name]
    expected = demo.ideal_in_one_step(data, Schedule.linear(100), demo.jobs_of(np.arange(10), 0), shape)
    np.testing.assert_allclose(whole[0], expected, rtol=0, atol=1e-6)


def test_the_mean_is_of_the_first_pictures_of_a_class(demo, monkeypatch):
    """At most MOST of each class: with one it is this picture, whatever x_T is."""
    monkeypatch.setattr(demo, "MOST", 1)
    full = load("glyphs", num=60)
    images = demo.ideal_in_one_step(full, Schedule.linear(100), [([4, 5], (0, 0))], (28, 28, 1))
    first = [np.flatnonzero(full.labels == k)[0] for k in (4, 5)]
    np.testing.assert_allclose(images, full.batch(first)[0], rtol=0, atol=1e-6)


# ----------------------------------------------------------------------------- each mistake, with a denoiser that knows

X_0 = 0.5


@pytest.fixture
def walk(demo):
    """Draw with the exact eps of data that is one point; told collects the times that eps_fn is asked about."""
    schedule, pairs = Schedule.linear(100), timestep_pairs(100, 5)

    def walk(how):
        told = []

        def eps_fn(x_t, t):
            told.append(t)
            return eps_from_x_0(schedule, x_t, t, 0 * x_t + X_0)

        x_T = standard_normal(default_rng(0), (400, 2), "float64")
        step = partial(demo.step_within, -1.0, 1.0)
        return to_numpy(how(schedule, step, eps_fn, pairs, x_T, default_rng(1))), told

    return walk


def test_what_is_right_ends_on_the_data(demo, walk):
    """A single point is found by the right sampler, in one step too, and with either variance: 1e-12 of rounding."""
    for how, times in ((demo.right, [100, 80, 60, 40, 20]), (demo.in_one_step, [100]), (demo.larger_variance, None)):
        x_0, told = walk(how)
        assert abs(x_0 - X_0).max() < 1e-12 and told == (times or told)


def test_noise_at_the_end_stays(demo, walk):
    """It has the last step's std, sqrt(1 - alpha_bar_20): within 4 standard errors, 1/sqrt(2 n) each."""
    x_0, _ = walk(demo.noise_at_the_end)
    std = Schedule.linear(100).one_minus_alpha_bar[20] ** 0.5
    assert abs(x_0.std() / std - 1) < 4 / 1600**0.5


def test_the_network_is_told_another_t(demo, walk):
    """One less of T, the next step's, the step's before; at the ends of the chain its own."""
    for other, times in (
        (demo.one_less, [99, 79, 59, 39, 19]),
        (demo.step_ahead, [80, 60, 40, 20, 20]),
        (demo.step_behind, [100, 100, 80, 60, 40]),
    ):
        _, told = walk(partial(demo.network_gets, other))
        assert told == times


def test_a_step_takes_another_steps_coefficients(demo):
    """Step by step: ddpm_step at the wrong pair, and noise in the last step where the wrong one has some."""
    schedule, pairs = Schedule.linear(100), timestep_pairs(100, 2)
    for other, used in ((demo.one_less, [(99, 49), (49, 0)]), (demo.step_ahead, [(50, 0), (50, 0)]),
                        (demo.step_behind, [(100, 50), (100, 50)])):  # fmt: skip
        x_t, rng = standard_normal(default_rng(0), (3, 2), "float64"), default_rng(1)
        step = partial(demo.step_within, -1e9, 1e9)
        drawn = demo.coefficients_of(other, schedule, step, lambda x_t, t: x_t / 2, pairs, x_t, rng)
        rng = default_rng(1)
        for i, (t, s) in enumerate(used):
            noise = standard_normal(rng, (3, 2), "float64") if i == 0 or s else None
            x_t, _ = ddpm_step(schedule, x_t, x_t / 2, t, s, noise)
        np.testing.assert_allclose(to_numpy(drawn), to_numpy(x_t), rtol=1e-9)  # eps_hat to x_0_hat and back


def test_the_bad_schedules_are_as_bad_as_their_names_say(demo):
    """alpha_bar_T: 0.37 and 2e-46 of constant betas, 0.60 of 50 unscaled ones."""
    for run in demo.TRAINING:
        if "alpha_bar_T" in run.name:
            with np.errstate(), pytest.MonkeyPatch.context() as patch:
                patch.setattr("warnings.warn", lambda *_, **__: None)
                alpha_bar_T = run.schedule().alpha_bar[-1]
            assert alpha_bar_T == pytest.approx(float(run.name.split("= ")[-1]), rel=0.2)


def test_a_range_is_the_pixels_range(demo, data):
    """Black is low and ink is high, float32 as ever; a drawn image is scaled back."""
    x_0, labels = data.batch(np.arange(20))
    for low, high in ((0.0, 1.0), (0.0, 255.0)):
        ranged, same = demo.Ranged(**vars(data), low=low, high=high).batch(np.arange(20))
        assert ranged.dtype == np.float32 and (ranged.min(), ranged.max()) == (low, high) and (same == labels).all()
        np.testing.assert_allclose((ranged - low) * (2 / (high - low)) - 1, x_0, atol=1e-6)


def test_x_0_hat_stays_in_the_range(demo):
    """A step's x_0_hat is clipped to low..high, and so is where the last step arrives."""
    schedule, x = Schedule.linear(100), asarray([[-9.0, 0.0, 9.0, 300.0]], "float64")
    x_0, x_0_hat = demo.step_within(0.0, 255.0, schedule, x, 0 * x, 1, 0, None)
    np.testing.assert_allclose(to_numpy(x_0), [[0, 0, 9 / schedule.alpha_bar[1] ** 0.5, 255]], atol=1e-9)
    np.testing.assert_allclose(to_numpy(x_0_hat), to_numpy(x_0), atol=1e-9)


def test_each_training_is_drawn_with_its_own_average(demo, data, monkeypatch):
    """Equal schedules and ranges share a training; without warm-up the average has decay 0.9999 from the first step.

    Each row is drawn on its run's schedule, in its range, by its sampler.
    """
    trainings, drawn = [], []

    def diffusion_training(pool, schedule, config, dataset):
        ema = SimpleNamespace(average=["warm"])
        state = SimpleNamespace(ema=ema, pool=pool, start=pool.parameters[0].data.copy())
        trainings.append((schedule, config, dataset, state))
        return state

    def steps(state, ranks):
        for step in range(3):
            state.pool.parameters[0].data[...] = step + 1
            yield

    class Pool(OneProcess):
        @contextmanager
        def weights(self, average):
            drawn.append(average)
            yield

    ranks = SimpleNamespace(workers=lambda build, n: Pool(build))
    monkeypatch.setattr(demo.training, "diffusion_training", diffusion_training)
    monkeypatch.setattr(demo.training, "steps", steps)
    monkeypatch.setattr(demo, "draw", lambda pool, how, schedule, *rest: (how, schedule, *rest))
    found = list(demo.train_and_draw(data, 8, 3, 4, ranks, 1, "steps", "jobs", "shape"))
    assert sorted(run.name for run, _ in found) == sorted(run.name for run in demo.TRAINING)
    assert len(trainings) == 6 and {config.seed for _, config, _, _ in trainings} == {4}
    assert {(config.num_steps, config.minutes, config.warmup) for _, config, _, _ in trainings} == {(3, None, 0)}
    by_range = {(id(schedule), dataset.low, dataset.high) for schedule, _, dataset, _ in trainings}
    for (run, (how, schedule, *rest)), average in zip(found, drawn, strict=True):
        assert how is run.draw and rest == ["steps", "jobs", "shape", run.low, run.high]
        assert (id(schedule), run.low, run.high) in by_range
        if run.warm_up:
            assert average == ["warm"]
        else:
            d, start = 0.9999, to_numpy(trainings[0][3].start)
            expected = d**3 * start + (1 - d) * (d**2 * 1 + d * 2 + 3)
            np.testing.assert_allclose(to_numpy(average[0]), expected, rtol=1e-5)  # float32


def test_the_picture_has_every_row_under_its_name(demo):
    """A panel for each group; ten digits of a row beside its name, and the cells of the table under their columns."""
    rng, rows = default_rng(0), []
    for group, n in (("one", 3), ("two", 2)):
        for i in range(n):
            figures = {"read as asked": f"{i}0%", "border": f"{i}.5"} | ({"moved": f"{i}.1"} if group == "one" else {})
            images = rng.uniform(-1, 1, (11, 4, 4, 1))
            rows.append((group, demo.Case(f"{group} {i}", "why"), images, figures))
    figure = demo.picture(rows)
    assert [axes.get_title("left") for axes in figure.axes] == ["one", "two"]
    for axes, cases in zip(figure.axes, (rows[:3], rows[3:])):
        assert [text.get_text() for text in axes.get_yticklabels()] == [case.name for _, case, _, _ in cases]
        canvas = tile(np.concatenate([images[:10] for _, _, images, _ in cases]), 10)[..., 0]
        assert np.array_equal(axes.images[0].get_array(), canvas)
        height = len(canvas) / len(cases)
        assert list(axes.get_yticks()) == [(i + 0.5) * height for i in range(len(cases))]
        texts = {}
        for text in axes.texts:
            texts.setdefault(text.get_position()[0], []).append((text.get_position()[1], text.get_text()))
        names = [name.replace("read as ", "read as\n") for name in cases[0][3]]
        assert [column[0] for _, column in sorted(texts.items())] == [(-6, name) for name in names]
        for (_, column), name in zip(sorted(texts.items()), cases[0][3]):
            assert column[1:] == [((i + 0.5) * height, figures[name]) for i, (*_, figures) in enumerate(cases)]


def test_images_have_the_streams_of_generate(demo):
    """Twenty labels each and the rest, under the seed and the index of the first image."""
    assert demo.jobs_of(np.arange(45), 3) == [
        (list(range(20)), (3, 0)),
        (list(range(20, 40)), (3, 20)),
        (list(range(40, 45)), (3, 40)),
    ]


def test_moved_is_a_root_mean_square(demo):
    """A pixel in four that moves by 1, half the range, moves the picture by sqrt(1/4) 127.5; others' mean is 31.9."""
    right = np.zeros((1, 4, 4, 1))
    images = right.copy()
    images[0, 0] = 1
    assert demo.measure(None, images, [0], right) == {"border": f"{(12 + 4) / 12 * 127.5:.1f}", "moved": "63.8"}


def test_the_border_is_the_outermost_pixels(demo):
    """0 for black, 255 for white, and what is inside does not count."""
    images = np.full((3, 5, 5, 1), -1.0, np.float32)
    images[:, 1:-1, 1:-1] = 1
    pool = one_process().workers(partial(build_classifier, CLASSIFIER, 0), 1)
    big = np.pad(images, ((0, 0), (0, 23), (0, 23), (0, 0)), constant_values=-1)
    assert demo.measure(pool, big, np.zeros(3, int))["border"] == "0.0"
    assert demo.measure(pool, -big, np.zeros(3, int))["border"] == "255.0"
    assert demo.measure(pool, big, np.zeros(3, int), big + 2 / 255)["moved"] == "1.0"


def test_read_as_asked_is_the_share_of_the_classifiers_answers(demo, data):
    """Labels that the classifier gives itself are all right, any others all wrong."""
    pool = one_process().workers(partial(build_classifier, CLASSIFIER, 0), 1)
    images, _ = data.batch(np.arange(8))
    answers = np.concatenate(list(read(pool, images))).argmax(1)
    shares = [demo.measure(pool, images, labels)["read as asked"] for labels in (answers, answers + 1)]
    assert shares == ["100%", "0%"]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"num": 9}, "--num 9"),
        ({"channels": 12}, "--channels 12"),
        ({"sample_steps": 51}, "--sample-steps 51: must be at most 50"),
    ],
)
def test_bad_options_are_named(demo, trained, tmp_path, option, message):
    """Before any work is done."""
    with pytest.raises(TinydiffError, match=message):
        demo.main(*trained, backend=backend_name(), out=tmp_path, workers=1, **option)
