"""What `exercise.py see` runs in a new process: draw with the package of one folder, and nothing faster than the book.

A scene is one of three.  Each writes an array of pictures (N, H, W, C) in [-1, 1] to an .npz:

    noise    real digits and their x_t, by q_sample, under two schedules
    draw     what the network of a checkpoint draws; without a checkpoint the scene is `train`
    train    a small network learns stripes that lie or stand, in seconds, and draws ten; nothing is kept

The same seeds serve the original and the reader's copy, so their pictures are the same if the copy is right.
"""

import contextlib
import io
import json
import sys
import traceback
from functools import partial
from pathlib import Path

import numpy as np

TIMES = (0, 50, 100, 200, 300, 500, 700, 1000)
STEPS, SCALE = 20, 2.0  # reverse steps and guidance
TRAINING_STEPS = 120


def main(folder, scene, sampler, checkpoint, out):
    """Draw the scene with the package in `folder`.  The last line of the output is JSON: {} or what went wrong."""
    sys.path.append(str(Path(__file__).resolve().parents[2] / "tests"))
    import laws

    result = {}
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            laws.load(folder)
            from tinydiff.backend import TinydiffError, use_backend

            use_backend("numpy", "float32", plain=True)
            try:
                with np.errstate(all="ignore"):
                    images = noised() if scene == "noise" else drawn(*network(scene, checkpoint), sampler)
                np.savez(out, images=images)
            except TinydiffError as error:
                result = {"refused": str(error)}
        except (Exception, SystemExit) as error:
            inside = [at for at in traceback.extract_tb(error.__traceback__) if str(folder) in at.filename]
            places = [{"file": at.filename, "line": at.lineno, "code": at.line, "function": at.name} for at in inside]
            result = {"error": laws.in_short(error), "places": places[-50:], "example": ""}
    print(json.dumps(result))


def noised():
    """Two rows of x_t, under the linear and the cosine schedule, of one digit at TIMES."""
    from tinydiff.data.glyphs import load_glyphs
    from tinydiff.diffusion import Schedule, q_sample

    x_0, _ = load_glyphs("test", 0, 1).batch(np.zeros(len(TIMES), int))
    eps = np.random.default_rng(0).standard_normal(x_0[:1].shape).astype("float32").repeat(len(TIMES), 0)
    rows = [q_sample(make(), x_0, np.array(TIMES), eps) for make in (Schedule.linear, Schedule.cosine)]
    return np.concatenate(rows)


def network(scene, checkpoint):
    """(model, schedule, image shape) of the checkpoint, or of a network that is trained here on stripes."""
    if scene == "draw" and checkpoint:
        from tinydiff.app.trained import load_trained

        pool, schedule, meta = load_trained(checkpoint)
        return pool.model, schedule, meta["data"]["image_shape"]
    from tinydiff import data, nn, train
    from tinydiff.diffusion import Schedule

    rng = np.random.default_rng(0)
    labels = rng.integers(2, size=1000)  # stripes that lie (0) or stand (1)
    waves = np.sin(np.arange(8) + rng.uniform(0, 6, (1000, 1)))
    images = np.where(labels[:, None, None], waves[:, None], waves[:, :, None])
    dataset = data.Dataset.from_arrays(images, labels, value_range=(-1, 1))
    schedule = Schedule.linear()
    config = train.TrainConfig(num_steps=TRAINING_STEPS, batch_size=16, peak_lr=5e-3, warmup=20)
    model = nn.UNet(base_channels=16, channel_mults=(1, 2), num_classes=2, rng=rng)
    draw = partial(train.draw_batch, dataset, schedule, 2)
    state = train.Training(model, config, draw, T=schedule.T)
    for _ in train.train(state):
        pass
    state.ema.copy_to(model.parameters())
    return model, schedule, dataset.images.shape[1:]


def drawn(model, schedule, shape, sampler):
    """Ten pictures: of each label in turn, by the sampler of this name."""
    from tinydiff import diffusion
    from tinydiff.autograd import no_grad

    rng = np.random.default_rng(0)
    x_T = rng.standard_normal((10, *shape)).astype("float32")
    step = partial(getattr(diffusion, sampler), schedule, clip=True)
    if model.num_classes is None:
        eps_fn = diffusion.unconditional(model)
    else:
        eps_fn = diffusion.classifier_free(model, np.arange(10) % model.num_classes, SCALE)
    with no_grad():
        for _, x_s, _ in diffusion.sample(step, eps_fn, diffusion.timestep_pairs(schedule.T, STEPS), x_T, rng):
            images = x_s
    return np.asarray(images)
