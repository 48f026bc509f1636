"""What a checkpoint of each kind contains: the rules are those of what is saved, and an error names the remedy.

tests/demos/test_forged.py reads forged checkpoints of all kinds.
"""

from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from small_run import NETWORK, SCHEDULE, small_run

from tinydiff.app import checkpoint, kinds
from tinydiff.app.alone import one_process
from tinydiff.app.checkpoint import CheckpointError
from tinydiff.app.classify import ClassifierConfig, build_classifier, load_classifier, save_classifier
from tinydiff.app.generate import build_unet
from tinydiff.app.trained import load_trained
from tinydiff.app.training import save
from tinydiff.data import Dataset, load
from tinydiff.diffusion import Schedule, straight
from tinydiff.diffusion.targets import TARGETS
from tinydiff.more.classifier import Classifier
from tinydiff.nn import UNet
from tinydiff.train import TrainConfig

pytestmark = pytest.mark.program

ROOT = Path(kinds.__file__).parents[2]
DATA = Dataset("own", np.zeros((4, 8, 8, 1), np.uint8), np.zeros(4, np.uint8), "own pictures", tuple("0123456789"))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "c.npz"


@pytest.fixture
def saved(path):
    """A checkpoint of a run before its first step: its arrays and settings."""
    save(small_run(dataset=DATA), path, DATA, SCHEDULE, 1)
    return checkpoint.load(path)


def test_every_setting_that_is_saved_has_a_rule(saved):
    """A new option of TrainConfig or of a network needs one: otherwise it would not be checked, or not be loaded."""
    _, meta = saved
    diffusion, classifier = kinds.KINDS["diffusion"].settings, kinds.KINDS["classifier"].settings
    assert diffusion["train"].keys() == {field.name for field in fields(TrainConfig)} == meta["train"].keys()
    assert diffusion["model"].keys() == UNet(rng=np.random.default_rng(0)).config.keys() == meta["model"].keys()
    assert classifier["model"].keys() == Classifier(rng=np.random.default_rng(0)).config.keys()
    unread, of_jobs = {"noise", "data.source"}, {"flip", "schedule_name"}  # demos/job.py saves further settings
    assert {*meta, *(f"data.{name}" for name in meta["data"])} - unread - {"kind"} | of_jobs == {
        *diffusion,
        *(f"data.{name}" for name in diffusion["data"]),
    }


def test_the_commands_are_those_of_the_tour():
    """Each kind has a command that the tour names, of a program that is there; and each kind of app/ has its rules."""
    tour = (ROOT / "demos" / "README.md").read_text("utf-8")
    for command in kinds.COMMANDS.values():
        assert f"`{command}" in tour and (ROOT / command.split()[1]).is_file()
    assert {"diffusion", "classifier", "noisy classifier"} <= kinds.KINDS.keys() <= kinds.COMMANDS.keys()
    assert all(kind.name == name for name, kind in kinds.KINDS.items())


@pytest.mark.parametrize("name", ["diffusion", "classifier", "noisy classifier"])
def test_an_error_names_the_command_that_makes_the_file(path, saved, name):
    """Where it is missing, of another kind, of other software, or wrong: the last line is the command of the kind."""
    arrays, meta = saved
    problems = {
        "does not exist": lambda: path.unlink(),
        "is not a tinydiff checkpoint": lambda: path.write_bytes(b"GIF89a" + bytes(100)),
        "holds a network of kind 'cat', not": lambda: checkpoint.save(path, arrays, meta | {"kind": "cat"}),
        "holds a network of kind None, not": lambda: checkpoint.save(path, arrays, {}),
        "contains no setting": lambda: checkpoint.save(path, arrays, {"kind": name, "data": {}, "model": {}}),
        "is cut short": lambda: path.write_bytes(path.read_bytes()[:-1]),
    }
    for problem, make in problems.items():
        make()
        with pytest.raises(CheckpointError) as error:
            kinds.load(path, name)
        first, last = str(error.value).splitlines()
        assert first.startswith(f"{path} {problem}") and last == f"Make it with: {kinds.COMMANDS[name]}"


def test_what_was_saved_is_what_is_loaded(path, saved):
    """The check changes nothing: arrays and settings are those of checkpoint.load."""
    arrays, meta = kinds.load(path, "diffusion")
    assert meta == saved[1] and arrays.keys() == saved[0].keys()
    assert all(np.array_equal(arrays[name], saved[0][name], equal_nan=True) for name in arrays)


OLD = [
    ["precision"],
    ["noise"],
    *(["train", name] for name in ("target", "min_snr", "optimizer", "betas", "clip_norm", "ema_decay")),
]


@pytest.mark.parametrize("places", [*([place] for place in OLD), OLD], ids=str)
def test_a_checkpoint_of_an_earlier_version_is_loaded(path, saved, places):
    """What it did not contain, one by one and all together, is not missed."""
    arrays, meta = saved
    for *groups, name in places:
        group = meta
        for key in groups:
            group = group[key]
        del group[name]
    checkpoint.save(path, arrays, meta)
    assert load_trained(path, 1)[2] == meta


def test_an_old_classifier_has_no_time(path):
    """Before there were noisy ones the setting was not there."""
    with one_process().workers(partial(build_classifier, {"channels": [4, 8]}, 0), 1) as workers:
        save_classifier(path, workers, ClassifierConfig(), DATA, DATA, 1)
    arrays, meta = checkpoint.load(path)
    del meta["model"]["time"]
    checkpoint.save(path, arrays, meta)
    assert load_classifier(path, 1)[0].model.time is None


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"step": 7, "num_steps": 6}, "step must be at most num_steps"),
        ({"data": {"image_shape": [30, 30, 1]}, "model": {"channel_mults": [1, 2, 2]}}, "image_shape must be a size"),
        ({"data": {"image_shape": [9, 8, 1]}}, "image_shape must be a size that the network can draw"),
        ({"data": {"image_shape": [8, 8, 3]}}, "image_shape must be a size that the network can draw"),
        ({"data": {"name": "mnist"}}, "and 28 x 28 with 10 classes for mnist, fashion, glyphs, square"),
        ({"data": {"classes": list("012345678")}}, "data.classes must name each class"),
        ({"data": {"classes": [""] * 10}}, r"data\.classes = .* each a line of 1 to 100 printable letters"),
        ({"model": {"num_heads": 3}}, "settings of no network: num_heads=3 does not divide"),
        ({"model": {"base_channels": 16}}, r"weights/time1\.w|ema/time1\.w of shape \(8, 128\)"),
        ({"model": {"num_res_blocks": 20_000}}, "settings of no network: it has more than"),
        ({"model": {"num_res_blocks": 2}}, "settings of no network: it has more than|contains no"),
        ({"model": {"dropout": 0.1}}, r"dropout=0\.1"),
        ({"model": {"rng": 1}}, "settings of no network"),
        ({"train": {"batch_size": 10**12}}, r"train\.batch_size = 1000000000000, which must be a whole number in"),
        ({"data": {"image_shape": [10**6, 4, 1]}}, r"data\.image_shape = \[1000000, 4, 1\], which must be a list of 3"),
        ({"schedule_name": "round"}, r"schedule_name = 'round', which must be one of \('linear', 'cosine'"),
        ({"train": {"ema_decay": 1}}, r"train\.ema_decay = 1, which must be a number from 0 to 1"),
        ({"flip": 1}, r"flip = 1, which must be one of \(False, True\)"),
        ({"data": {"name": "\x1b[31mred"}}, r"data\.name = '\\x1b\[31mred', which must be a line"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(path, saved, settings, said):
    """Each is in its range, but no run can have them together; nor may one be out of its range."""
    arrays, meta = saved
    for name, value in settings.items():
        meta[name] = meta[name] | value if isinstance(value, dict) else value
    checkpoint.save(path, arrays, meta)
    with pytest.raises(CheckpointError, match=said):
        kinds.load(path, "diffusion")


def test_a_network_draws_its_own_pictures_only():
    """fits_pictures: sides that can be halved, as many channels, and the classes and sizes of the known sets."""
    config = {"channel_mults": [1, 2, 2], "in_channels": 1, "num_classes": 10}
    own = {"name": "own", "image_shape": [12, 20, 1]}
    assert kinds.fits_pictures(config, own) and kinds.fits_pictures(config | {"num_classes": 3}, own)
    assert not kinds.fits_pictures(config, own | {"image_shape": [12, 22, 1]})
    assert not kinds.fits_pictures(config, own | {"image_shape": [14, 20, 1]})
    assert not kinds.fits_pictures(config | {"in_channels": 3}, own)
    for name in ("mnist", "fashion", "glyphs", "auto"):
        known = {"name": name, "image_shape": [28, 28, 1]}
        assert kinds.fits_pictures(config, known) and kinds.fits_pictures(config | {"num_classes": None}, known)
        assert not kinds.fits_pictures(config | {"num_classes": 9}, known)
        assert not kinds.fits_pictures(config, known | {"image_shape": [12, 20, 1]})
    for name in ("sprites", "cifar10"):
        known, colour = {"name": name, "image_shape": [16, 16, 3]}, config | {"in_channels": 3}
        assert kinds.fits_pictures(colour, known) and kinds.fits_pictures(colour, known | {"image_shape": [32, 32, 3]})
        assert not kinds.fits_pictures(colour | {"num_classes": 9}, known)
        assert not kinds.fits_pictures(colour, known | {"image_shape": [16, 32, 3]})


def test_each_class_has_a_name_where_a_checkpoint_names_any():
    """As many names as classes; an old checkpoint contains none, and a network without classes needs none."""
    for num, names, fits in (
        (3, 3, True),
        (3, 2, False),
        (3, 4, False),
        (3, 0, False),
        (None, 0, True),
        (None, 2, True),
    ):
        assert kinds.fits_classes({"num_classes": num}, {"classes": ["a"] * names}) == fits
    assert kinds.fits_classes({"num_classes": 3}, {})


def test_the_known_sets_are_as_the_rules_say():
    """28 x 28 pictures of 10 classes."""
    glyphs = load("glyphs", num=10)
    assert glyphs.images.shape == (10, 28, 28, 1) and len(glyphs.classes) == 10


BAD_TABLES = {
    "schedule/beta": [
        np.array([0.0, np.nan]),
        np.array([0.0, 1.0]),
        np.array([0.1, 0.2]),
        np.array([0.0, -0.1]),
        np.array([0.0]),
        np.array(0.0),
        np.zeros((2, 2)),
        np.array([0, 0.1], np.float32),
        np.array(["0", "0.1"]),
    ],
    "metrics": [
        np.zeros((1, 7)),
        np.zeros((0, 3)),
        np.zeros(0),
        np.zeros((0, 7), np.float32),
        np.zeros((0, 7), complex),
    ],
}


@pytest.mark.parametrize("name", BAD_TABLES)
def test_a_table_that_is_none_is_refused(path, saved, name):
    """A schedule that no process has, metrics of another number of steps, other types: by the name of the table."""
    arrays, meta = saved
    for table in [*BAD_TABLES[name], None]:
        changed = {key: a for key, a in (arrays | {name: table}).items() if a is not None}
        checkpoint.save(path, changed, meta)
        with pytest.raises(
            CheckpointError, match=f"contains {'no' if table is None else 'a wrong'} {name}, which must"
        ):
            kinds.load(path, "diffusion")


def test_metrics_may_have_gaps_by_time_and_nowhere_else(path):
    """nan where a batch had no such t; a loss that is not finite was never saved."""
    state = small_run(dataset=DATA)
    state.step = state.adam.num_steps = state.ema.num_updates = 1
    for row, fits in (((1.0, 1.0, 1.0, np.nan, 1.0, np.nan, 1.0), True), ((np.nan,) + (1.0,) * 6, False)):
        state.rows[:] = [row]
        save(state, path, DATA, SCHEDULE, 1)
        if fits:
            kinds.load(path, "diffusion")
        else:
            with pytest.raises(CheckpointError, match="contains a wrong metrics, which must be a row of 7 numbers"):
                kinds.load(path, "diffusion")


def test_a_data_set_of_the_users_own_is_a_sentence_where_its_pictures_are_needed(path, saved):
    """A checkpoint of own pictures can be drawn from; a program that needs the pictures says so."""
    _, _, meta = load_trained(path, 1)
    with pytest.raises(CheckpointError, match="data set is 'own'; this program needs one of mnist, fashion, glyphs"):
        kinds.data_name(meta)
    for name in ("mnist", "fashion", "glyphs"):
        assert kinds.data_name({"data": {"name": name}}) == name
    with pytest.raises(
        CheckpointError, match="data set is 'sprites'; this program needs one of mnist, fashion, glyphs:"
    ):
        kinds.data_name({"data": {"name": "sprites"}})
    assert kinds.data_name({"data": {"name": "sprites"}}, kinds.EVERY) == "sprites"


def test_the_size_of_a_data_set_of_several_sizes_is_that_of_the_checkpoint():
    """`load` is asked for sprites and photographs of the checkpoint's size; the others have only one."""
    for name, size in (("sprites", {"size": 16}), ("cifar10", {"size": 16}), ("glyphs", {}), ("photos/", {})):
        assert kinds.data_size({"data": {"name": name, "image_shape": [16, 16, 3]}}) == size


def test_a_schedule_of_any_length_and_a_network_of_any_size_are_loaded(path):
    """The rules are no narrower than what is trained: one step, 1,000 steps, no classes, many levels."""
    for T, network in (
        (1, {}),
        (1000, {"num_classes": None}),
        (60, {"channel_mults": [1, 1, 1, 2], "num_res_blocks": 2}),
    ):
        schedule = Schedule(np.full(T, 0.991)) if T == 1 else Schedule.linear(T)
        config = NETWORK | network
        workers = one_process().workers(partial(build_unet, config, 0), 1)
        save(small_run(workers=workers, dataset=DATA), path, DATA, schedule, 1)
        _, found, meta = load_trained(path, 1)
        assert found.T == T and config.items() <= meta["model"].items()
        assert meta["train"] == asdict(small_run().config) | {"betas": [0.9, 0.999]}


@pytest.mark.parametrize("name", ["num_steps", "batch_size", "warmup", "seed"])
def test_a_setting_that_a_checkpoint_may_contain_is_one_of_a_run(name):
    """The rule lets no integer near a power of two pass that TrainConfig refuses."""
    for power in (17, 31, 32, 40, 50, 53, 62, 63, 64, 127, 128):
        for value in (2**power - 1, 2**power, 2**power + 1):
            if kinds.TRAIN[name].fits(value):
                assert getattr(replace(TrainConfig(), **{name: value}), name) == value


def test_rectified_flow_is_the_target_flow_on_the_straight_schedule():
    """A run with --target flow that names no schedule has this one; with any other target it is the linear one."""
    assert {name: kinds.default_schedule(name) for name in TARGETS} == {
        "eps": "linear",
        "x_0": "linear",
        "v": "linear",
        "flow": "straight",
    }
    np.testing.assert_array_equal(kinds.SCHEDULES["straight"](50).beta, straight(50).beta)
