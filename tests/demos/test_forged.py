"""A forged checkpoint is refused by a sentence, or gives a run that is right: every kind, and all that forged.py makes.

Right means that the pictures are finite, that a classifier reads, and that a run can be restored and goes on training.
"""

import io
import itertools
import json
import os
import re
import subprocess
import sys
import time
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import forged
import numpy as np
import pytest

from tinydiff.app import checkpoint, classify, kinds, run, training
from tinydiff.app.alone import one_process
from tinydiff.app.checkpoint import CheckpointError
from tinydiff.app.generate import Recipe, build_unet, generate
from tinydiff.app.reading import read
from tinydiff.app.trained import load_trained
from tinydiff.backend import backend_name, to_numpy
from tinydiff.data import load
from tinydiff.diffusion import Schedule
from tinydiff.train import TrainConfig, train

pytestmark = [
    pytest.mark.program,
    pytest.mark.skipif(backend_name() != "numpy", reason="what a file contains does not depend on the backend"),
]

ROOT = Path(__file__).parents[2]
NAMES = ("diffusion", "classifier", "noisy classifier", "prompts", "latent")
SECONDS, MEGABYTES = 2, 300  # that a refusal may take
NOISE = Schedule.linear(50)
CONFIG = TrainConfig(num_steps=2, minutes=None, batch_size=2)


@pytest.fixture(scope="module")
def demos(load_demo):
    """The demos that describe kinds of their own."""
    return SimpleNamespace(captions=load_demo("prompts/captions"), latent=load_demo("latent"))


@pytest.fixture(scope="module")
def originals(demos, tmp_path_factory):
    """{kind: (path, forged.Original)} of real checkpoints of the smallest networks, after two steps of training."""
    folder, glyphs = tmp_path_factory.mktemp("real"), load("glyphs", num=40)
    save_run(folder / "diffusion.npz", partial(build_unet, {**UNET, "num_classes": 10}, 0), glyphs)
    captioned = demos.captions.Captioned(glyphs, NOISE)
    words = demos.captions.VOCABULARY
    encoder = {"num_words": len(words), "max_length": 16, "features": 8, "num_blocks": 1, "num_heads": 2}
    more = {"kind": "prompts", "vocabulary": words, "held_out": demos.captions.HELD_OUT, "num_images": 40}
    build = partial(demos.captions.build, {"encoder": encoder, "unet": UNET}, 0)
    more["thresholds"] = captioned.thresholds
    save_run(folder / "prompts.npz", build, captioned.dataset, captioned.draw, **more)
    for name, schedule in (("classifier", None), ("noisy classifier", NOISE)):
        config = {"channels": [4, 8], "time": schedule is not None}
        with one_process().workers(partial(classify.build_classifier, config, 0), 1) as workers:
            path = folder / f"{name}.npz"
            classify.save_classifier(path, workers, classify.ClassifierConfig(), glyphs, glyphs, 3, schedule)
    config = TrainConfig(num_steps=1, minutes=None, batch_size=2, target="v")
    tiny = {"base_channels": 8, "channel_mults": [1], "num_res_blocks": 1}
    demos.latent.train_both(folder / "latent.npz", glyphs, {"channels": [8, 8]}, 1e-6, tiny, config, one_process(), 1)
    return {name: (folder / f"{name}.npz", forged.Original(*checkpoint.load(folder / f"{name}.npz"))) for name in NAMES}


UNET = {"base_channels": 8, "channel_mults": [1]}


def save_run(path, build, dataset, draw=None, **more):
    with one_process().workers(build, 1) as pool:
        state = training.diffusion_training(pool, NOISE, CONFIG, dataset, draw)
        for _ in train(state):
            pass
        training.save(state, path, dataset, NOISE, 1, **more)


class Users:
    """What programs do with a checkpoint of each kind.  They assert that the results are right."""

    def __init__(self, demos):
        self.demos, self.glyphs = demos, load("glyphs", num=40)

    def use(self, name, path):
        getattr(self, name.replace(" ", "_"))(path)

    def diffusion(self, path):
        pool, schedule, meta = load_trained(path, 1)
        drawn(pool, schedule, meta["data"]["image_shape"])
        self.resumed(path, "diffusion", build_unet)

    def classifier(self, path):
        pool, meta = classify.load_classifier(path, 1)
        shape, classes = meta["data"]["image_shape"], meta["data"]["classes"]
        probabilities = np.concatenate(list(read(pool, np.zeros((2, *shape), "float32"))))
        assert probabilities.shape == (2, len(classes)) and np.isfinite(probabilities).all()
        assert all(name.isprintable() for name in classes)

    def noisy_classifier(self, path):
        model = classify.load_noisy_classifier(path, NOISE, 10, kinds.data_settings(self.glyphs))
        assert np.isfinite(to_numpy(model(np.zeros((2, 28, 28, 1), "float32"), 3))).all()

    def prompts(self, path):
        captions = self.demos.captions
        pool, schedule, meta = captions.load_trained(path, 1)
        tokens = captions.tokenize("thin", meta["vocabulary"])
        guide = partial(captions.by_prompt, [tokens, tokens], tokens)
        drawn(pool, schedule, meta["data"]["image_shape"], guide=guide)
        for row in meta["held_out"]:
            captions.caption(dict(zip(("digit", "thickness", "slant"), row)), np.random.default_rng(0))
        self.resumed(path, "prompts", captions.build)

    def latent(self, path):
        latent = self.demos.latent
        space, _, meta = latent.load_latent(path, 1)
        x = drawn(space.pool, space.recipe.schedule, space.recipe.image_shape, step=latent.DDPM)
        pictures = space.decode(x)
        assert pictures.shape == (2, 28, 28, 1) and np.isfinite(pictures).all() and meta["trained"].isprintable()

    def resumed(self, path, name, build):
        """Take the next step of a run, as --resume does, on a few glyphs."""
        arrays, meta = run.load_if_there(path, name)
        config, schedule = training.saved_config(meta), Schedule(arrays["schedule/beta"])
        kinds.data_name(meta)
        assert run.resumed_workers(meta, None, "numpy") <= max(1, os.cpu_count())
        dataset, draw = self.glyphs, None
        if name == "prompts":
            captioned = self.demos.captions.Captioned(dataset, schedule)
            dataset, draw = captioned.dataset, captioned.draw
        with one_process().workers(partial(build, meta["model"], 0), 1) as pool:
            state = training.diffusion_training(pool, schedule, config, dataset, draw)
            training.restore(state, path, arrays, meta)
            state.num_steps = state.step + 1
            for _ in training.steps(state, one_process()):
                assert np.isfinite(state.metrics()[-1][:3]).all()
            assert training.whole(state)


def drawn(pool, schedule, shape, **how):
    recipe = Recipe(schedule, tuple(shape), num_steps=min(2, schedule.T), **how)
    images = np.concatenate([frames[-1] for frames in generate(pool, recipe, [0, 1], 0)])
    assert images.shape == (2, *shape) and np.isfinite(images).all()
    return images


def judge(users, name, path, forgeries):
    """Read each forgery.  Returns how many are refused and how many are right; anything else is an AssertionError."""
    counts = {"refused": 0, "right": 0}
    for what, make in forgeries:
        path.write_bytes(make())
        message, seconds = outcome(users, name, path, what)
        if message and seconds > SECONDS:  # on a machine that does other work; but not twice
            message, seconds = outcome(users, name, path, what)
        counts["refused" if message else "right"] += 1
        if message:
            assert message.startswith(str(path)) or "the checkpoint" in message, (what, message)
            assert len(message) < 1000 and all(line.isprintable() for line in message.splitlines()), (what, message)
            assert seconds < SECONDS, what
    return counts


def outcome(users, name, path, what):
    """The message of a refusal, or "" for what is right, and the processor's seconds.  Nothing raw is printed."""
    began, printed, message = time.process_time(), io.StringIO(), ""
    try:
        with redirect_stdout(printed):
            users.use(name, path)
    except CheckpointError as error:
        message = str(error)
    except Exception as error:
        raise AssertionError(f"{name}: {what}: {error!r}") from error
    assert "\x1b" not in printed.getvalue(), what
    return message, time.process_time() - began


def some(forgeries, every, always="missing"):
    """Each `every`-th forgery, and all of those that are `always`."""
    return (forgery for i, forgery in enumerate(forgeries) if i % every == 0 or forgery.what.endswith(always))


def test_the_originals_are_right(demos, originals, tmp_path):
    """What the forger starts from is read by every program; and so is the forger's own copy, byte for byte the same."""
    users = Users(demos)
    for name, (path, original) in originals.items():
        users.use(name, path)
        arrays, meta = checkpoint.load(path)
        (tmp_path / "copy.npz").write_bytes(original.file())
        users.use(name, tmp_path / "copy.npz")
        found, found_meta = checkpoint.load(tmp_path / "copy.npz")
        assert found_meta == meta and all((found[k].tobytes() == arrays[k].tobytes()) for k in arrays)


@pytest.mark.parametrize("name", NAMES)
def test_forged_settings_and_arrays_are_refused_or_right(demos, originals, tmp_path, name):
    """Every setting missing, and some of the other forgeries; pytest -m slow reads all of them.

    Files that no kind can have are tried with one kind, and some with each: one function opens them all.
    """
    _, original = originals[name]
    files = itertools.chain(original.texts(), original.further_members(), original.files())
    costly = name in ("diffusion", "prompts")  # a U-Net and the state of its training are read and used
    forgeries = itertools.chain(
        some(original.settings(), 61 if costly else 13),
        some(original.changed_arrays(), 301 if costly else 61, "never"),
        files if name == "diffusion" else some(files, 5, "never"),
    )
    counts = judge(Users(demos), name, tmp_path / "forged.npz", forgeries)
    assert counts["refused"] > 50 and counts["right"] > 3, counts


_READER = """
import json, resource, sys, time

sys.path[:0] = sys.argv[2:4]
import captions, latent
from tinydiff.app import classify, kinds

def peak():
    with open("/proc/self/status") as status:  # getrusage counts what the parent had, too
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM"))

for line in sys.stdin:
    name, path = json.loads(line)
    before, began, outcome = peak(), time.process_time(), "read"
    try:
        kinds.load(path, name)
    except kinds.CheckpointError as error:
        outcome = str(error)
    print(json.dumps([outcome, time.process_time() - began, peak() - before]), flush=True)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of a process's memory is read from Linux")
def test_a_bomb_takes_neither_time_nor_memory(originals, tmp_path):
    """Within 2 s and 300 MB every bomb is refused, and so is every huge setting, by a process that did nothing else."""
    command = [sys.executable, "-c", _READER, "", str(ROOT / "demos"), str(ROOT / "demos" / "prompts")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    path = tmp_path / "forged.npz"
    with subprocess.Popen(command, env=environment, text=True, **pipes) as reader:
        for name, (_, original) in originals.items():
            original.meta["model"].get("unet", {}).pop("text_features", None)  # no program reads it
            huge = (forgery for forgery in original.settings() if re.search("model.*(huge|million)$", forgery.what))
            for what, make in itertools.chain(huge, original.bombs() if name == "diffusion" else ()):
                path.write_bytes(make())
                print(json.dumps([name, str(path)]), file=reader.stdin, flush=True)
                outcome, seconds, megabytes = json.loads(reader.stdout.readline())
                assert outcome.startswith(str(path)), f"{name}: {what}: {outcome}"
                assert seconds < SECONDS and megabytes < MEGABYTES, (
                    f"{name}: {what}: {seconds:.1f} s, {megabytes:.0f} MB"
                )
        reader.stdin.close()
    assert reader.returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_all_forgeries_are_refused_or_right(demos, originals, tmp_path, name):
    """Every setting and every array, in each way that forged.py knows."""
    _, original = originals[name]
    ways = (original.settings, original.changed_arrays, original.texts, original.further_members, original.files)
    counts = judge(Users(demos), name, tmp_path / "forged.npz", itertools.chain(*(way() for way in ways)))
    print(f"{name}: {counts}")
    assert counts["refused"] > 500
