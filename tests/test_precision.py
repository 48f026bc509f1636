"""Precision and memory of a GPU: what real CuPy does without one, and a device of limited memory on plain NumPy."""

import gc
import json
import os
import subprocess
import sys
import weakref
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_launches import why_no_dry_run

from tinydiff.app import classify
from tinydiff.app.alone import one_process
from tinydiff.app.classify import ClassifierConfig, build_classifier, classifier_training
from tinydiff.app.generate import build_unet
from tinydiff.app.memory import out_of_memory
from tinydiff.app.training import diffusion_training, steps
from tinydiff.backend import to_numpy
from tinydiff.data import Dataset
from tinydiff.diffusion import Schedule
from tinydiff.train import TrainConfig, TrainingError, noise_prediction_losses

pytestmark = pytest.mark.training

ROOM = 10  # examples that the device of these tests can take


@pytest.fixture
def dataset(rng):
    images = rng.integers(0, 256, (50, 8, 8, 1), dtype=np.uint8)
    return Dataset("noise", images, rng.integers(0, 3, 50).astype(np.uint8), "noise", ("up", "down", "flat"))


@given(st.integers(1, 10**5), st.data())
def test_the_batch_size_named_fits_and_is_the_largest_to_an_eighth(batch_size, data):
    """Whatever the memory, from none to one example too little; no trial is as large as what has failed."""
    room = data.draw(st.integers(0, batch_size - 1))
    tried = []

    def gradient(n):
        tried.append(n)
        if n > room:
            raise MemoryError

    said = str(out_of_memory(MemoryError("so much."), batch_size, gradient))
    assert said.startswith(f"batch size {batch_size} needs more memory than there is, ") and said.endswith("(so much)")
    if room == 0:
        assert "not even one example fits" in said
    else:
        fits = int(said.split("batch size ")[2].split()[0])
        assert fits in tried and fits <= room <= fits + fits // 8
    assert all(0 < n < batch_size for n in tried) and len(tried) <= 24  # 17 halvings of 10^5, then to an eighth


def test_the_arrays_of_the_failed_step_are_gone_before_the_first_trial():
    """The error's traceback holds the frames that hold them: with these alive every trial would find memory full."""
    held = []

    def fail(n):
        maps = np.empty(n)
        held.append(weakref.ref(maps))
        raise MemoryError

    def gradient(n):
        assert all(ref() is None for ref in held)
        fail(n)

    gc.disable()
    try:
        fail(9)
    except MemoryError as error:
        assert held[0]() is not None
        out_of_memory(error, 9, gradient)
    finally:
        gc.enable()
    assert len(held) > 2


def limited(losses_of, model, batch):
    """losses_of on a device with memory for ROOM examples."""
    n = len(next(iter(batch.values())))
    if n > ROOM:
        raise MemoryError(f"Out of memory allocating {n} bytes")
    return losses_of(model, batch)


def test_a_training_step_without_memory_names_a_batch_size_that_fits(dataset):
    """The message is one line with both sizes; the step is not taken, no weight has moved; the smaller size runs."""
    network = {"base_channels": 8, "channel_mults": [1, 2], "num_heads": 2, "num_groups": 4, "num_classes": 3}
    ranks = one_process()
    pool = ranks.workers(partial(build_unet, network, 0), 1)

    def run(batch_size):
        config = TrainConfig(num_steps=2, minutes=None, batch_size=batch_size)
        state = diffusion_training(pool, Schedule.linear(100), config, dataset)
        state.losses_of = partial(limited, noise_prediction_losses)
        return state, steps(state, ranks)

    state, going = run(32)
    before = [to_numpy(p.data).copy() for p in state.parameters]
    with pytest.raises(
        TrainingError, match=r"^batch size 32 .* batch size (9|10) fits \(Out of .* 32 bytes\)$"
    ) as error:
        next(going)
    assert "\n" not in str(error.value)
    assert state.step == 0
    for p, a in zip(state.parameters, before):
        np.testing.assert_array_equal(to_numpy(p.data), a)
    assert [s.step for s in run(9)[1]] == [1, 2]


def test_the_classifier_without_memory_names_a_batch_size_that_fits(monkeypatch, dataset):
    """The same for a classifier's training."""
    monkeypatch.setattr(classify, "cross_entropy_losses", partial(limited, classify.cross_entropy_losses))
    network = {"channels": [4, 8], "num_classes": 3, "num_groups": 2}
    with one_process().workers(partial(build_classifier, network, 0), 1) as pool:
        with pytest.raises(TrainingError, match=r"^batch size 32 .* batch size (9|10) fits \("):
            next(steps(classifier_training(pool, dataset, ClassifierConfig(num_steps=1, batch_size=32)), one_process()))


@pytest.fixture(scope="module", params=["0", "1"], ids=["CUPY_TF32=0", "CUPY_TF32=1"])
def real(request):
    if reason := why_no_dry_run():
        pytest.skip(reason)
    environment = {**os.environ, "CUPY_TF32": request.param, "CUPY_GPU_MEMORY_LIMIT": "60000000"}
    script = Path(__file__).with_name("dry_precision.py")
    out = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, timeout=300)
    assert out.returncode == 0, out.stderr
    return json.loads(out.stdout)


def test_real_cupy_asks_cublas_for_the_precision_chosen(real):
    """Whatever CUPY_TF32 says, and after products in another precision too: two products each, the check's and ours."""
    assert real["products"] == [name for name in ("float32", "tf32", "tf32", "float32") for _ in range(2)]


def test_real_cupy_tells_what_is_described(real):
    """The functions that describe() calls are there and give what it expects."""
    assert real["describe"].startswith("A GPU, 3.0 of 4.0 GiB free; CuPy 14.2.0 for CUDA 13.")
    assert real["describe"].endswith("driver for 13.2; products in tf32")


def test_real_cupy_s_memory_holds_the_batch_size_that_is_named(real):
    """With a pool of 60 MB: a whole step of the size named runs, one a quarter larger does not."""
    memory = real["memory"]
    assert "batch size 1000 needs more" in memory["said"] and "limit set to: 60,000,000 bytes" in memory["said"]
    assert memory["fits"] is None and "needs more memory" in memory["larger"]
