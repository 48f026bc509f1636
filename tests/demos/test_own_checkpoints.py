"""Each program with a checkpoint of train_images.py: it works, or says in a sentence what it needs."""

import base64
import io

import numpy as np
import pytest
from PIL import Image
from tiny_runs import save_checkpoint, save_untrained_classifier

from tinydiff import data
from tinydiff.app.outputs import release
from tinydiff.backend import TinydiffError, backend_name
from tinydiff.data import Dataset

pytestmark = [
    pytest.mark.program,
    pytest.mark.skipif(backend_name() != "numpy", reason="what a program refuses is the same on every backend"),
]


def random_pictures(name, shape, classes):
    images = np.random.default_rng(0).integers(0, 256, (12, *shape), np.uint8)
    return Dataset(name, images, np.arange(12) % len(classes) if classes else None, "random pictures", classes)


SETS = {
    "sprites": lambda: data.load("sprites", num=20, size=16),
    "unlabelled": lambda: random_pictures("photos", (8, 12, 3), ()),
    "three": lambda: random_pictures("mine.npz", (8, 8, 1), ("cat", "dog", "eel")),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with a checkpoint of each set, with classifiers, and with drawn sprites."""
    folder = tmp_path_factory.mktemp("own")
    for name, make in SETS.items():
        dataset = make()
        save_checkpoint(folder / f"{name}.npz", dataset, num_classes=len(dataset.classes))
    sprites = SETS["sprites"]()
    save_untrained_classifier(folder / "reader.npz", sprites, in_channels=3, channels=[8, 8])
    larger = data.load("sprites", num=20, size=20)
    save_untrained_classifier(folder / "larger.npz", larger, in_channels=3, channels=[8, 8])
    return folder


@pytest.fixture
def main(load_demo, monkeypatch, tmp_path, files):
    """main(program, checkpoint, **options): the program's, with 60 test sprites in place of 5,000."""
    monkeypatch.chdir(tmp_path)
    whole = data.load

    def start(program, checkpoint, **options):
        demo = load_demo(program)
        if hasattr(demo, "load"):
            monkeypatch.setattr(demo, "load", lambda name, split, *_, size: whole(name, split, num=60, size=size))
        try:
            return demo.main(files / f"{checkpoint}.npz", workers=1, **options)
        finally:
            release()

    return start


@pytest.mark.parametrize(("checkpoint", "shape"), [("sprites", (16, 16, 3)), ("unlabelled", (8, 12, 3))])
def test_samples_in_colour(main, tmp_path, checkpoint, shape):
    """Arrays of the pictures' shape, labels only where there are classes, and a coloured picture."""
    main("sample", checkpoint, num=12, steps=2, out="s.png", save_npz="s.npz")
    with np.load("s.npz") as saved:
        assert saved["images"].shape == (12, *shape) and np.ptp(saved["images"], axis=3).max() > 0.1
        assert ("labels" in saved) == (checkpoint == "sprites")
    with Image.open("s.png") as picture:
        assert (np.asarray(picture.convert("RGB"), float).std(2) > 10).any()


def test_all_classes_are_drawn_unless_some_are_named(main):
    """Of three classes all three, in turn; a class that is not there is refused."""
    main("sample", "three", num=7, steps=2, out="s.png", save_npz="s.npz")
    with np.load("s.npz") as saved:
        assert saved["labels"].tolist() == [0, 1, 2, 0, 1, 2, 0]
    with pytest.raises(TinydiffError, match="--labels 3: must be at most 2, the last class"):
        main("sample", "three", labels=(3,))


@pytest.mark.parametrize("checkpoint", SETS)
def test_one_start_has_many_ends_in_each(main, checkpoint):
    """same_start.py: with eta = 0 one picture, with eta = 1 others."""
    spreads = main("same_start", checkpoint, num=2, steps=3, out="out")
    assert spreads[0.0] < 1e-9 < 1e-4 < spreads[1.0]  # columns of one product round alike, or nearly so


SMALL = {
    "edit": {"num": 2, "digits": 2, "steps": 2, "round_trips": (2,), "classifier": "reader.npz"},
    "guidance": {"num": 10, "steps": 2, "methods": ("free",), "scales": (1.0,), "classifier": "reader.npz"},
    "sampler_showdown": {"num": 10, "steps": (2,), "longest": 3, "classifier": "reader.npz"},
    "explorer/explorer": {"moments": 3, "point_steps": 2, "num": 10, "sample_steps": (2,)},
    "evaluate": {"num": 4, "draws": 1},
    "pitfalls": {"num": 10, "sample_steps": 2, "train_steps": 1, "channels": 8, "classifier": "reader.npz"},
}
OWN = "the checkpoint's data set is '{}'; this program needs one of mnist"
NO_CLASSES = "this program needs a network with classes, and this one has none"


@pytest.mark.parametrize(
    ("program", "checkpoint", "said"),
    [
        *((program, "sprites", None) for program in SMALL),
        ("edit", "unlabelled", OWN.format("photos")),
        ("evaluate", "unlabelled", OWN.format("photos")),
        ("guidance", "unlabelled", NO_CLASSES),
        ("sampler_showdown", "unlabelled", NO_CLASSES),
        ("explorer/explorer", "unlabelled", OWN.format("photos")),
        *((program, "three", OWN.format("mine.npz")) for program in SMALL),
    ],
)
def test_what_needs_test_pictures_works_on_sprites_and_says_so_otherwise(main, files, program, checkpoint, said):
    """Sprites have test pictures of the size of the checkpoint, and labels; pictures of one's own have neither.  What
    is drawn is shown in colour."""
    options = dict(
        SMALL[program], out="bits.png" if program == "evaluate" else "page.html" if "/" in program else "out"
    )
    if "classifier" in options:
        options["classifier"] = files / options["classifier"]
    if said is None:
        result, picture = main(program, checkpoint, **options), f"out/{program}.png"
        if "/" in program:
            picture = io.BytesIO(base64.b64decode(result["riddles"]["items"][0]["sheet"]))
        if program != "evaluate":
            with Image.open(picture) as picture:
                assert (np.asarray(picture.convert("RGB"), float).std(2) > 10).mean() > 0.03  # coloured lines: below 1%
    else:
        with pytest.raises(TinydiffError) as error:
            main(program, checkpoint, **options)
        assert said in str(error.value)


READERS = ["edit", "guidance", "sampler_showdown", "pitfalls", "one_shot_vs_gradual", "explorer/explorer"]


@pytest.mark.parametrize("program", READERS)
def test_a_classifier_of_pictures_of_another_size_is_refused(main, files, program):
    """It could read them, but what it says of them would mean nothing.  Nothing is trained or drawn before."""
    out = {"out": "page.html"} if "/" in program else {"out": "out"}
    with pytest.raises(TinydiffError, match="reads pictures of 20 x 20 x 3, and these are 16 x 16 x 3: train one"):
        main(program, "sprites", **SMALL.get(program, {}) | {"classifier": files / "larger.npz"}, **out)


def test_latent_refuses_such_a_classifier_before_it_trains(load_demo, files, monkeypatch, tmp_path):
    """Its pictures are those of digits."""
    demo, whole = load_demo("latent"), data.load
    monkeypatch.setattr(demo, "load", lambda name, split, *_: whole(name, split, num=60))
    monkeypatch.setattr(demo, "train_both", None)
    with pytest.raises(TinydiffError, match="reads pictures of 16 x 16 x 3, and these are 28 x 28 x 1: train one"):
        demo.main(classifier=files / "reader.npz", data="glyphs", num=10, out=tmp_path / "out", workers=1)


def test_samples_of_sprites_are_read_by_a_classifier_of_sprites(main, load_demo, files, capsys):
    """classify.py reads the arrays; without labels it says what the file should hold."""
    main("sample", "sprites", num=10, steps=2, out="s.png", save_npz="s.npz")
    load_demo("classify").main("s.npz", checkpoint=files / "reader.npz", workers=1)
    assert "of 10 read as the label asked for" in capsys.readouterr().out
    main("sample", "unlabelled", num=10, steps=2, out="s.png", save_npz="u.npz")
    with pytest.raises(
        TinydiffError, match=r"labels is not a file in the archive; it should hold `images` and `labels`"
    ):
        load_demo("classify").main("u.npz", checkpoint=files / "reader.npz", workers=1)
