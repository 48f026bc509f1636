"""What the main programs show, by parts with known answers: every share, row, title, film and file follows on paper."""

import importlib.util
import shlex
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from recorder import Notes, Program, note_pictures, record

from tinydiff.app.generate import Recipe, frame_times
from tinydiff.app.kinds import EVERY
from tinydiff.app.metrics import interval, percent
from tinydiff.app.outputs import release
from tinydiff.backend import TinydiffError, backend_name, default_rng, standard_normal
from tinydiff.data import NAMES
from tinydiff.diffusion import Schedule, q_sample

pytestmark = [
    pytest.mark.program,
    pytest.mark.skipif(backend_name() != "numpy", reason="what is shown is the same on every backend"),
]

OPTIONS = Path(__file__).with_name("options")
CLASSES = tuple("0123456789")


def table_of(name):
    """The module of a program's table of options."""
    spec = importlib.util.spec_from_file_location(f"known answers of {name}", OPTIONS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def notes(monkeypatch):
    """What would be drawn."""
    notes = Notes()
    note_pictures(notes, monkeypatch)
    yield notes
    release()


# ------------------------------------------------------------------------------------------------------- train_mnist


@pytest.fixture(params=["classes", "no classes"])
def run(load_demo, monkeypatch, request):
    """The file that draws, the arguments of its two functions that draw, and what generate was asked for.

    Image i in frame k has the value k + i/100 - 20.  For a grid, generate may only be asked while the average is lent.
    """
    demo, asked, lent = load_demo("run_pictures"), [], []

    @contextmanager
    def drawing(workers, state):
        lent.append((workers, state))
        yield
        lent.pop()

    def generate(workers, recipe, labels, seed):
        assert lent == ([(workers, state)] if recipe.keep == 1 else [])
        asked.append((recipe.keep, [*labels], seed))
        values = np.arange(recipe.keep)[:, None] + np.arange(len(labels)) / 100 - 20
        film = np.broadcast_to(values[..., None, None, None], (*values.shape, 2, 2, 1))
        yield film[:, :7]
        yield film[:, 7:]

    monkeypatch.setattr(demo, "generate", generate)
    monkeypatch.setattr(demo.training, "drawing", drawing)
    monkeypatch.setattr(demo.run, "save_loss", lambda state, path, title: asked.append((state, path.name, title)))
    state = SimpleNamespace(step=7, num_steps=1900, config=SimpleNamespace(target="v"))
    workers, classes = SimpleNamespace(ranks=SimpleNamespace(rank=0)), request.param == "classes"
    dataset = SimpleNamespace(name="glyphs", classes=CLASSES if classes else (), labels=[0] if classes else None)
    return demo, (state, workers, dataset, Recipe(Schedule.linear(100), (2, 2, 1), num_steps=24)), asked


def test_a_grid_of_a_run_shows_five_of_each_class_at_the_last_time(run, notes, tmp_path):
    """Row k has the label k; the pictures are the last frame; the title has the step and the steps of the run.

    Without classes there are as many pictures, and no names.
    """
    demo, given, asked = run
    demo.grid(*given, tmp_path)
    assert asked == [(1, [k for k in range(10) for _ in range(5)], demo.PICTURE_SEED)]
    drawn = notes
    assert drawn["save_grid path"] == [str(tmp_path / "progress" / "step_000007.png")]
    assert drawn["save_grid title"] == ["step 7 of 1,900, glyphs"]
    (grid,) = drawn["save_grid"]
    assert grid["columns"] == 5 and grid["row_labels"] == (given[2].classes or None)
    np.testing.assert_allclose(grid["images"][:, 0, 0, 0], np.arange(50) / 100 - 20)


def test_the_last_pictures_of_a_run(run, notes, tmp_path):
    """The grid is the last frame, ten of each class.  The strip has one image of each class, from noise on the left to
    the last frame on the right, each under its own time.  The animation runs the same way, to the last frame."""
    demo, given, asked = run
    demo.final_pictures(*given, "guided so", tmp_path)
    (keep, labels, seed), loss = asked
    assert (keep, labels, seed) == (24, [k for k in range(10) for _ in range(10)], demo.PICTURE_SEED)
    assert loss == (given[0], "loss.png", "glyphs, loss per pixel of the target v")
    drawn = {name: value[0] for name, value in notes.items()}
    grid, strip, film = drawn["save_grid"], drawn["save_filmstrip"], drawn["save_gif"]
    title = "glyphs, 7 steps, guided so"
    assert drawn["save_grid title"] == title and grid["row_labels"] == (given[2].classes or None)
    assert drawn["save_filmstrip title"] == f"denoising: {title}"
    np.testing.assert_allclose(grid["images"][:, 0, 0, 0], 3 + np.arange(100) / 100)
    assert grid["columns"] == 10
    frames = np.rint(strip["frames"][:, 0, 0, 0, 0] + 20).astype(int)
    assert frames[0] == 0 and frames[-1] == 23 and (np.diff(frames) > 0).all() and len(frames) == 12
    times = frame_times(Recipe(Schedule.linear(100), (2, 2, 1), num_steps=24, keep=24))
    assert strip["t_values"] == [times[k] for k in frames]
    np.testing.assert_allclose(strip["frames"][0, :, 0, 0, 0] + 20, np.arange(10) / 10)
    assert np.rint(film["frames"][:, 0, 0, 0, 0] + 20).tolist() == list(range(1, 24, 2)) and film["columns"] == 10
    np.testing.assert_allclose(film["frames"][0, :, 0, 0, 0] + 19, np.arange(0, 1, 0.02))


def test_of_many_classes_a_run_shows_the_first_ten(load_demo):
    """Three of three, ten of twenty; every row has its own class's name and label."""
    demo = load_demo("run_pictures")
    for names, shown in ((("a", "b", "c"), 3), (tuple("abcdefghijklmnopqrst"), 10)):
        dataset = SimpleNamespace(classes=names, labels=[0])
        assert demo.labels_of(dataset, 2) == [k for k in range(shown) for _ in range(2)]
        assert demo.rows_of(dataset) == names[:shown]


# ---------------------------------------------------------------------------------------------------------- classify


def test_what_is_read_of_each_class(load_demo):
    """Of four images of a 3 two are read as 3; the others by number, the most frequent first."""
    line = load_demo("classify").class_line
    assert line("three", np.array([3, 5, 1, 3]), 3, list("abcdef")) == "  three:  50.0%  (2 of 4), 1 as b, 1 as f"
    assert line("b", np.array([0, 5, 5]), 1, list("abcdef")) == "  b:   0.0%  (0 of 3), 2 as f, 1 as a"
    assert line("b", np.array([1]), 1, list("abcdef")) == "  b: 100.0%  (1 of 1)"


def test_the_share_that_a_classifier_of_stamps_reads_right(load_demo, monkeypatch, tmp_path, capsys, notes):
    """The classifier reads the label that is stamped into a pixel; two of five stamps are wrong.  The interval is of 3
    in 5, a class's line has its own images only, and classes without images have no line."""
    demo = load_demo("classify")
    stamps, labels = np.array([1, 1, 2, 0, 2]), np.array([1, 0, 2, 2, 2])
    images = np.full((5, 2, 2, 1), -1, np.float32)
    images[:, 0, 0, 0] = stamps / 4 - 0.5
    np.savez(tmp_path / "samples.npz", images=images, labels=labels)

    def read(pool, images):
        for part in (images[:2], images[2:]):
            yield np.eye(4)[np.rint((part[:, 0, 0, 0] + 0.5) * 4).astype(int)]

    meta = {"data": {"classes": list("abcd"), "image_shape": [2, 2, 1]}}
    monkeypatch.setattr(demo, "load_classifier", lambda *_: (nullcontext(), meta))
    monkeypatch.setattr(demo, "read", read)
    assert demo.main(str(tmp_path / "samples.npz"), out=str(tmp_path / "misread.png"), workers=1) == (3, 5)
    first, *lines = capsys.readouterr().out.splitlines()
    assert first.endswith(f": 3 of 5 read as the label asked for: {percent(3 / 5)} (95% interval {interval(3, 5)})")
    assert [line.split() for line in lines[:3]] == [
        ["a:", "0.0%", "(0", "of", "1),", "1", "as", "b"],
        ["b:", "100.0%", "(1", "of", "1)"],
        ["c:", "66.7%", "(2", "of", "3),", "1", "as", "a"],
    ]
    assert len(lines) == 4 and notes["save_grid title"] == ["2 of 5 misread"]
    np.savez(tmp_path / "samples.npz", images=images, labels=labels + 2)
    with pytest.raises(TinydiffError, match=r"labels must lie in 0\.\.3, got 2 to 4"):  # of this classifier's classes
        demo.main(str(tmp_path / "samples.npz"), workers=1)


# -------------------------------------------------------------------------------------------------- train_classifier


def test_the_share_by_time(load_demo):
    """Eight ranges of 1..T, both ends within; a range without images has no row.  T need not be a multiple of 8."""
    shares_by_time = load_demo("train_classifier").shares_by_time
    right = np.array([True, False, True, False])
    assert shares_by_time(16, np.array([1, 2, 3, 16]), right) == [(1, 2, 1, 2), (3, 4, 1, 1), (15, 16, 0, 1)]
    assert shares_by_time(11, np.array([1, 2, 10, 11]), right) == [(1, 1, 1, 1), (2, 2, 0, 1), (10, 11, 1, 2)]


def test_a_classifier_is_trained_on_one_set_and_read_on_the_other(tmp_path):
    """A classifier that reads every digit as 0 misreads 27 of 30 test digits; these are the images that it reads."""
    program, table, splits = Program("train_classifier"), table_of("train_classifier"), []

    def stand_ins(program, notes, patch):
        table.stand_ins(program, notes, patch)
        load = program.names["load"]

        def noting(name, split="train", *more, **named):
            splits.append((split, load(name, split, *more, **named)))
            return splits[-1][1]

        patch.setitem(program.names, "load", noting)

    notes = record(program, table.WORDS, stand_ins, tmp_path)
    assert [split for split, _ in splits] == ["train", "test"]
    np.testing.assert_array_equal(notes["read"], splits[1][1].batch(np.arange(30))[0])
    assert notes["saved_errors"] == notes["returned"] == 27
    assert "27 of 30 misread, 10.00% right" in notes["printed"] and notes["settings.num"] == 30


def test_images_are_noised_to_every_time(load_demo):
    """t is uniform in 1..T, both ends within, and x_t is q_sample of the noise that comes after t in the stream."""
    schedule, images = Schedule.cosine(3), np.linspace(-1, 1, 300, dtype="float32").reshape(300, 1, 1, 1)
    x_t, t = load_demo("train_classifier").noised(schedule, images, 5)
    rng = default_rng("noised", 5)
    np.testing.assert_array_equal(t, rng.integers(1, 4, 300))
    assert np.bincount(t, minlength=5)[1:].tolist() == pytest.approx([100, 100, 100, 0], abs=41)  # five deviations
    np.testing.assert_array_equal(x_t, q_sample(schedule, images, t, standard_normal(rng, images.shape)))


def test_the_next_command_uses_the_classifier_for_what_it_is(load_demo):
    """One that reads noise guides guidance.py; another reads, in classify.py, the digits that sample.py has saved.  The
    model is where the program that trains on these data puts it."""

    def options(line):
        python, program, *words = shlex.split(line)
        assert python == "python"
        return vars(Program(Path(program).stem).parser.parse_args(words))

    command = load_demo("train_classifier").next_command
    for data in EVERY:
        program = Program("train_mnist" if data in NAMES else "train_images")
        trained = f"{program.parser.get_default('out')}/checkpoint.npz"
        guided = options(command(Path("a b.npz"), True, data))
        assert guided["noisy_classifier"] == "a b.npz" and guided["checkpoint"] == trained
        drawn, read = map(options, command(Path("a b.npz"), False, data).split(" && "))
        assert drawn["checkpoint"] == trained and read["checkpoint"] == "a b.npz"
        assert read["samples"] == drawn["save_npz"]


# ---------------------------------------------------------------------------------------------- sample and same_start


def test_samples_are_saved_as_they_are_drawn(load_demo, monkeypatch, tmp_path, notes):
    """The file has all images in the order of drawing, clipped to -1..1; the grid has the same images by label; the
    title has the steps that were trained, not those that were planned."""
    demo = load_demo("sample")
    meta = {"data": {"name": "glyphs", "image_shape": [2, 2, 1]}, "step": 7, "num_steps": 9}

    def generate(pool, recipe, labels, seed):
        assert labels == [2, 1, 2]
        frames = np.full((2, 3, 2, 2, 1), 5.0, np.float32)  # the first frame, which is noise
        frames[-1] = np.float32([1.5, -0.25, -3])[:, None, None, None]
        yield frames[:, :2]
        yield frames[:, 2:]

    pool = type("Pool", (), {"__enter__": lambda s: s, "__exit__": lambda *_: None})()
    pool.model = SimpleNamespace(num_classes=10)
    monkeypatch.setattr(demo, "load_guided", lambda *_: (pool, Schedule.linear(100), meta))
    monkeypatch.setattr(demo, "generate", generate)
    demo.main(
        "c.npz", num=3, labels=(2, 1), steps=2, out=str(tmp_path / "a.png"), save_npz=str(tmp_path / "a.npz"), workers=1
    )
    with np.load(tmp_path / "a.npz") as saved:
        assert saved["labels"].tolist() == [2, 1, 2] and saved["images"].dtype == np.float32
        np.testing.assert_array_equal(saved["images"][:, 0, 0, 0], [1, -0.25, -1])
        assert saved["images"].shape == (3, 2, 2, 1)
    (grid,), (title,) = notes["save_grid"], notes["save_grid title"]
    assert title == "glyphs, 7 steps, ddpm 2, guidance 2" and grid["row_labels"] == ["1", "2"]
    np.testing.assert_array_equal(grid["images"][[0, 2, 3], 0, 0, 0], [-0.25, 1, -1])


def test_the_columns_of_one_start_and_their_spread(load_demo, monkeypatch, tmp_path, notes):
    """Two columns at -d and d spread by d/2 of the range -1..1.  Each eta has a row of its own, drawn with that eta."""
    demo, etas = load_demo("same_start"), []
    meta = {"data": {"name": "glyphs", "image_shape": [2, 2, 1]}}

    def ends(schedule, shape, label, steps, scale, seed, model, eta):
        etas.append(eta)
        return np.float32([-eta, eta])[:, None, None, None] * np.ones(shape, np.float32)

    pool = type("Pool", (), {"__enter__": lambda s: s, "__exit__": lambda *_: None, "model": None})()
    pool.map = lambda f, jobs: (f(None, job) for job in jobs)
    monkeypatch.setattr(demo, "load_trained", lambda *_: (pool, Schedule.linear(100), meta))
    monkeypatch.setattr(demo, "ends", ends)
    spreads = demo.main("c.npz", num=2, steps=3, out=tmp_path / "new", workers=1)
    assert etas == list(demo.ETAS) == list(spreads)
    assert list(spreads.values()) == pytest.approx([eta / 2 for eta in demo.ETAS])
    (grid,) = notes["save_grid"]
    assert grid["columns"] == 2 and grid["row_labels"][2] == "eta = 0.5: 25.0%"
    np.testing.assert_allclose(grid["images"][:, 0, 0, 0], [v for eta in demo.ETAS for v in (-eta, eta)])


def test_eta_is_that_of_the_step(load_demo):
    """ends passes each eta to ddim_step."""
    demo = load_demo("same_start")
    seen = []

    class Zero:
        num_classes = None

        def __call__(self, x_t, t, labels=None):
            return SimpleNamespace(data=0 * x_t)

    def ddim_step(schedule, *arguments, eta, clip):
        seen.append(eta)
        return arguments[0], arguments[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "ddim_step", ddim_step)
        for eta in demo.ETAS:
            demo.ends(Schedule.linear(100), (2, 2, 2, 1), None, 1, 1.0, 0, Zero(), eta)
    assert seen == list(demo.ETAS)
