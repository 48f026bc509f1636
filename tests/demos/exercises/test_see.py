"""What `see` and `answer` of the exercises do: one's own copy draws, and an answer is shown after one's own."""

import io
import json
import sys
from types import SimpleNamespace

import laws
import numpy as np
import pytest
from PIL import Image
from stand_ins import SCHEDULE, Leaning

from tinydiff.backend import TinydiffError, backend_name

pytestmark = [
    pytest.mark.program,
    pytest.mark.skipif(backend_name() != "numpy", reason="the copies draw on numpy, whatever the suite does"),
]


@pytest.fixture(scope="module")
def drawing(load_demo):
    return load_demo("exercises/drawing")


@pytest.fixture(scope="module")
def pictures(demo):
    return sys.modules["see"]


@pytest.fixture
def do(demo, tmp_path, capsys):
    """do("see", "ema") runs main in a new folder and returns its exit code and its output on one line."""

    def do(*arguments, **options):
        try:
            code = demo.main(*arguments, dir=tmp_path / "copies", **options)
        except SystemExit as end:
            code = end.code
        return code or 0, " ".join(capsys.readouterr().out.split())

    return do


# ------------------------------------------------------------------------------------------- what is drawn, in one copy


@pytest.mark.parametrize("sampler", ["ddpm_step", "ddim_step"])
def test_each_label_is_drawn_in_turn(drawing, sampler):
    """With an exact denoiser the pictures are those of the labels 0 to 9; two of a network with two classes."""
    model = Leaning()
    images = drawing.drawn(model, SCHEDULE, (12, 12, 1), sampler)
    assert images.shape == (10, 12, 12, 1) and images[:, -1, :10, 0].argmax(1).tolist() == list(range(10))
    assert abs(images).max() <= 1  # clipped
    assert len(model.asked) == drawing.STEPS and all(len(labels) == 20 for labels in model.asked)  # guided
    again = drawing.drawn(Leaning(), SCHEDULE, (12, 12, 1), sampler)
    np.testing.assert_array_equal(images, again)
    model.num_classes = 2
    model.draws = np.array([4, 7, 5])
    drawn = drawing.drawn(model, SCHEDULE, (12, 12, 1), sampler)
    assert drawn[:, -1, :10, 0].argmax(1).tolist() == [4, 7] * 5


def test_a_network_without_classes_draws_too(drawing):
    """Without guidance: one row for each picture."""
    model = Leaning(draws=[3] * 11)
    model.num_classes = None
    model.forward = lambda x_t, t, labels=None: Leaning.forward(model, x_t, t, 10)
    assert drawing.drawn(model, SCHEDULE, (12, 12, 1), "ddpm_step")[:, -1, :10, 0].argmax(1).tolist() == [3] * 10


def test_the_noised_digits_are_one_digit_and_one_noise(drawing):
    """Eq. 4 at TIMES, under two schedules, and at t = 0 the digit itself."""
    from tinydiff.diffusion import Schedule

    x_t = drawing.noised()
    assert x_t.shape == (2 * len(drawing.TIMES), 28, 28, 1)
    np.testing.assert_array_equal(x_t[0], x_t[len(drawing.TIMES)])
    assert x_t[0].min() == -1 and x_t[0].max() > 0.9
    noises = []
    for schedule, row in zip((Schedule.linear(), Schedule.cosine()), np.split(x_t.astype(float), 2)):
        for t, image in list(zip(drawing.TIMES, row))[1:]:
            signal, noise = schedule.alpha_bar[t] ** 0.5, schedule.one_minus_alpha_bar[t] ** 0.5
            noises.append((image - signal * row[0]) / noise)
    assert np.ptp(noises, 0).max() < 1e-4 and abs(np.std(noises[0]) - 1) < 0.1  # float32; 784 numbers


def test_the_small_network_draws_with_its_average(drawing, monkeypatch):
    """It is trained here, on stripes of 8 x 8 pixels and two classes; only the scene that draws takes a checkpoint."""
    monkeypatch.setattr(drawing, "TRAINING_STEPS", 1)
    for scene, checkpoint in (("train", "gone.npz"), ("draw", "")):
        model, schedule, shape = drawing.network(scene, checkpoint)
        assert shape == (8, 8, 1) and model.num_classes == 2 and schedule.T == 1000
        assert all(np.isfinite(p.data).all() for p in model.parameters())  # the last weights are lost: conftest.py
    loaded = SimpleNamespace(model=Leaning())
    meta = {"data": {"image_shape": [12, 12, 1]}}
    monkeypatch.setattr("tinydiff.app.trained.load_trained", lambda path: (loaded, path, meta))
    assert drawing.network("draw", "c.npz") == (loaded.model, "c.npz", [12, 12, 1])


def test_a_copy_that_cannot_draw_says_why(drawing, monkeypatch, capsys, tmp_path):
    """{} beside the pictures; else what a user can correct, or what was raised, with the places in the copy."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(laws, "load", lambda folder: folder)

    def result(images):
        monkeypatch.setattr(drawing, "noised", images)
        drawing.main(str(tmp_path), "noise", "ddpm_step", "", str(tmp_path / "out.npz"))
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    def printing():
        print("a word of the reader")
        return np.ones(3)

    assert result(printing) == {} and np.load(tmp_path / "out.npz")["images"].tolist() == [1, 1, 1]

    def refused():
        raise TinydiffError("no such file")

    assert result(refused) == {"refused": "no such file"}
    (tmp_path / "copy.py").write_text("def f():\n    return 1 / 0\n")
    names = {}
    exec(compile((tmp_path / "copy.py").read_text(), str(tmp_path / "copy.py"), "exec"), names)
    place = {"file": str(tmp_path / "copy.py"), "line": 2, "code": "return 1 / 0", "function": "f"}
    assert result(names["f"]) == {"error": "ZeroDivisionError: division by zero", "places": [place], "example": ""}


# --------------------------------------------------------------------------------------------- beside the original's


def size(path):
    with Image.open(path) as image:
        return image.size


def test_the_rows_are_compared_in_a_sentence(demo, pictures, tmp_path):
    """The same, or by how much they differ, or which share is NaN; the picture has a row of each."""
    exercise, path = demo.find("ema"), tmp_path / "see.png"
    original = np.zeros((10, 8, 8, 1), "float32")

    def said(yours):
        return pictures.save(path, exercise, original, yours.astype("float32"), "a title")

    assert said(original) == said(original + 1e-3) == "Your pictures are the original's."
    said_half = "Your pictures differ from the original's, by 25.0% of the range from black to white on average."
    assert said(original + 0.5) == said_half
    assert said(original + 9) == said_half.replace("25.0%", "50.0%")  # clipped, as it is shown
    worse = original.copy()
    worse[:5] = np.nan
    assert said(worse) == "50% of your numbers are NaN or infinite, and are drawn grey."
    with Image.open(path) as image:
        grey = [image.getpixel((image.width - 30, row)) for row in (image.height - 60, image.height - 160)]
        left = image.getpixel((image.width - 850, image.height - 60))
    assert grey == [(128, 128, 128)] * 2 and left == (128, 128, 128)  # NaN is as grey as 0
    width, height = size(path)
    assert width > 10 * 8 * 10 and 2 * 8 * 10 < height < 3 * 8 * 10 + 60
    noised = np.zeros((16, 28, 28, 1), "float32")
    assert pictures.save(path, demo.find("schedules"), noised, noised, "t") == "Your pictures are the original's."
    assert size(path)[1] > 4 * 28 * 3


def test_each_row_has_its_name(demo, pictures, monkeypatch, tmp_path):
    """The original's above, yours below; the noised digit has a row for each schedule, and the times in its title."""
    saved = []
    monkeypatch.setattr(pictures.plots, "save_grid", lambda path, images, **more: saved.append((images, more)))
    for name, n, columns, labels in (
        ("ema", 10, 10, ["original", "yours"]),
        ("schedules", 16, 8, ["original, linear", "original, cosine", "yours, linear", "yours, cosine"]),
    ):
        original = np.full((n, 8, 8, 1), -0.5)
        pictures.save(tmp_path / "see.png", demo.find(name), original, -original, "a title")
        images, more = saved.pop()
        assert (images[:n] == -0.5).all() and (images[n:] == 0.5).all()
        assert (more["columns"], more["row_labels"]) == (columns, labels)
        assert more["title"] == "a title" + "; t = 0, 50, 100, 200, 300, 500, 700, 1000" * (name == "schedules")


def test_original_and_copy_draw_in_processes_of_their_own(demo, pictures, tmp_path, capsys):
    """The real ones, of the scene that takes no network: a right copy draws what the original draws."""
    demo.main("start", "closed_form", dir=tmp_path)
    source = demo.ROOT / "tinydiff" / "diffusion" / "gaussian.py"
    (tmp_path / "closed_form" / "tinydiff" / "diffusion" / "gaussian.py").write_text(source.read_text("utf-8"), "utf-8")
    original, yours, error = pictures.drawn(demo.find("closed_form"), tmp_path / "closed_form", None)
    np.testing.assert_array_equal(original, yours)
    assert error is None and original.shape == (16, 28, 28, 1)


def test_whose_fault_it_is_is_told(demo, pictures, monkeypatch, tmp_path):
    """The copy's error is returned; the original's, a process that dies and one that never ends are raised."""
    words = []

    class Process:
        def __init__(self, said, code=0):
            self.said, self.returncode = said, code

        def communicate(self, timeout=None):
            if self.said == "Ctrl-C" and timeout:
                raise KeyboardInterrupt
            if self.said is None and timeout:
                raise pictures.subprocess.TimeoutExpired("x", timeout)
            return f"noise\n{json.dumps(self.said)}\n", "Traceback\nMemoryError: last\n"

        def kill(self):
            words.append("killed")

    def drawn(*said, code=0, checkpoint="c.npz"):
        processes = [Process(text, code) for text in said]
        monkeypatch.setattr(pictures, "_started", lambda given: words.append(given) or processes.pop(0))
        return pictures.drawn(demo.find("ddim_step"), tmp_path, checkpoint)

    failed = {"error": "E: x", "places": [], "example": ""}
    assert drawn({}, failed) == (None, None, failed)
    assert words[0][:4] == (str(demo.ROOT), "draw", "ddim_step", "c.npz") and words[1][0] == str(tmp_path.resolve())
    del words[:]
    drawn({}, failed, checkpoint=None)
    assert words[0][3] == words[1][3] == ""  # and no file of the name None is looked for
    del words[:]
    with pytest.raises(KeyboardInterrupt):
        drawn("Ctrl-C", {})
    assert words[2:] == ["killed", "killed"]
    assert drawn({}, {"refused": "NaN"}) == (None, None, {"error": "NaN", "places": [], "example": ""})
    for said, code, text in (
        ([{"refused": "no such file"}, {}], 0, "^no such file$"),
        ([failed, {}], 0, "the original could not be drawn: E: x"),
        ([{}, {}], 1, "nothing could be drawn: MemoryError: last"),
        ([{}, None], 0, "stopped after 300 s: is there a loop"),
    ):
        with pytest.raises(TinydiffError, match=text):
            drawn(*said, code=code)


def test_see_says_what_it_draws_and_what_makes_a_checkpoint(demo, do, pictures, monkeypatch, tmp_path):
    """Digits with a checkpoint; without one stripes, and the command that makes one; a named file must be there."""
    asked = []
    zeros = np.zeros((10, 8, 8, 1), "float32")
    monkeypatch.setattr(pictures, "drawn", lambda *given: asked.append(given) or (zeros, zeros, None))
    monkeypatch.chdir(tmp_path)
    do("start", "posterior")
    copy = tmp_path / "copies" / "posterior"
    code, output = do("see")
    made = "runs/mnist/checkpoint.npz is not there. python demos/train_mnist.py makes it, and then see draws digits."
    assert code == 0 and output.startswith(made) and "stripes that lie or stand, drawn by a small network" in output
    assert f"Your pictures are the original's. picture: {copy / 'see.png'}" in output and (copy / "see.png").is_file()
    assert asked.pop() == (demo.find("posterior"), copy, None)
    for path in (tmp_path / "runs" / "mnist" / "checkpoint.npz", tmp_path / "mine.npz"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    output = do("see")[1]
    assert (
        output.startswith("posterior: ten pictures, drawn with runs/mnist/checkpoint.npz.") and "stripes" not in output
    )
    assert asked.pop()[2] == tmp_path / "runs" / "mnist" / "checkpoint.npz"
    assert "drawn with mine.npz" in do("see", checkpoint="mine.npz")[1] and asked.pop()[2] == tmp_path / "mine.npz"
    with pytest.raises(TinydiffError, match=r"--checkpoint no\.npz: there is no such file\. python demos/train_mnist"):
        do("see", checkpoint="no.npz")
    with pytest.raises(TinydiffError, match="--checkpoint goes with see, not with check"):
        do("check", checkpoint="mine.npz")
    do("start", "ema")
    output = do("see")[1]
    assert "stripes" in output and "train_mnist" not in output and asked.pop()[2] is None  # it is about training
    failed = {"error": "NotImplementedError: your turn: d", "places": [], "example": ""}
    monkeypatch.setattr(pictures, "drawn", lambda *given: (None, None, failed))
    code, output = do("see")
    assert code == 1 and "your copy cannot draw yet: -> still to be written, d" in output


# ------------------------------------------------------------------------------------------------------------- answers


def test_every_question_has_an_answer(demo):
    """Those of the exercises, and one for each stop of the tour; the laws and programs that answers name exist."""
    assert list(demo.ANSWERS) == [exercise.name for exercise in demo.EXERCISES]
    assert list(demo.STOPS) == [f"stop{k}" for k in range(1, 12)]
    tour = (demo.ROOT / "demos" / "README.md").read_text("utf-8")
    assert all(f"\n**{k}. " in tour and f"answer stop{k}" in tour for k in (1, 11))
    laws = " ".join(path.read_text("utf-8") for path in (demo.ROOT / "tests").rglob("test_*.py"))
    for text in (*demo.ANSWERS.values(), *(answer for _, answer in demo.STOPS.values())):
        assert 20 < len(text.split()) < 100
        for word in text.replace(".", " ").split():
            assert word.count("_") < 3 or f"def test_{word}(" in laws or "alpha" in word or "x_" in word, word
    assert all(question.endswith(("?", ".")) for question, _ in demo.STOPS.values())


def test_an_answer_is_shown_after_ones_own(demo, do, monkeypatch, tmp_path):
    """Lines up to an empty one; they are kept, and shown again beside ours; fewer than five words reveal nothing."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("the noise is\nknown to us\n\nnot this line\n"))
    code, output = do("answer", "stop2")
    question, ours = demo.STOPS["stop2"]
    assert code == 0 and output.startswith(question) and output.endswith("Ours: " + " ".join(ours.split()))
    assert (tmp_path / "copies" / "answers" / "stop2.txt").read_text("utf-8") == "the noise is\nknown to us"
    monkeypatch.setattr(sys, "stdin", None)
    assert "You wrote: the noise is known to us Ours: " in do("answer", "stop2")[1]
    for typed in ("", "\nthis comes too late for it\n", "only four words here\n"):
        monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
        with pytest.raises(TinydiffError, match="an answer has 5 words or more: ours is shown when yours is written"):
            do("answer", "ema")
    assert not (tmp_path / "copies" / "answers" / "ema.txt").exists()
    do("start", "ema")
    monkeypatch.setattr(sys, "stdin", io.StringIO("a third of it\nleft"))
    output = do("answer")[1]  # of the exercise that was worked on last
    assert output.startswith(" ".join(demo.find("ema").question.split())) and demo.ANSWERS["ema"][:20] in output
    assert do("answer", "14")[1].count("You wrote: a third of it left") == 1  # by its number
    for name, said in (("stop12", "no exercise is called stop12"), ("emma", "did you mean ema?")):
        with pytest.raises(TinydiffError, match=said):
            do("answer", name)
