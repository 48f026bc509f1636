"""Names bind to what they name, by identity: what a user types, what a file's header says, what a text promises."""

import math
import re
from pathlib import Path

import numpy as np
import pytest
from small_run import CONFIG, small_run

from tinydiff.app import run
from tinydiff.app.choices import DDIM, DPM_SOLVER_2M, quadratic
from tinydiff.app.generate import DDPM, Recipe, uniform
from tinydiff.backend import to_numpy
from tinydiff.diffusion import log_snr_pairs
from tinydiff.diffusion.targets import EPS, FLOW, TARGETS, X_0, V
from tinydiff.optim import clip_grad_norm, learning_rate
from tinydiff.train import TrainConfig, train

pytestmark = pytest.mark.program

ROOT = Path(__file__).parents[2]


def test_the_names_of_the_targets():
    """--target eps, x_0, v and flow."""
    assert TARGETS == {"eps": EPS, "x_0": X_0, "v": V, "flow": FLOW}
    assert len({id(target) for target in TARGETS.values()}) == 4


def test_the_names_of_samplers_and_times(load_demo):
    """--sampler and --times of sample.py; what each of them computes is the table's of options/sample.py."""
    demo = load_demo("sample")
    assert demo.STEPS == {"ddpm": DDPM, "ddim": DDIM, "2m": DPM_SOLVER_2M}
    assert {"uniform": uniform, "quadratic": quadratic, "logsnr": log_snr_pairs} == demo.TIMES
    assert (demo.MOST_LABELS, demo.COLUMNS, demo.SHOWN) == (10, 20, 1000)


def test_a_column_of_metrics_csv_holds_what_its_header_names(tmp_path):
    """Written by hand for each step: loss, norm before clipping, rate, and the losses of the quarters of 1..T."""
    state = small_run()
    expected, gradients, update = [], state.gradients, state.adam.step

    def noted_gradients(losses_of, batch):
        losses = gradients(losses_of, batch)
        expected.append(
            {"losses": to_numpy(losses), "t": batch["t"], "norm": float(clip_grad_norm(state.parameters, 1e9))}
        )
        return losses

    def noted_update(rate):
        expected[-1]["rate"] = rate
        update(rate)

    state.gradients, state.adam.step = noted_gradients, noted_update
    for _ in train(state):
        pass
    run.save_metrics(state, tmp_path / "metrics.csv")
    header, *lines = (tmp_path / "metrics.csv").read_bytes().decode().split("\r\n")
    assert header == "step,loss,grad_norm,learning_rate,loss_t_bucket_1,loss_t_bucket_2,loss_t_bucket_3,loss_t_bucket_4"
    assert lines.pop() == "" and len(lines) == CONFIG.num_steps
    for k, (line, step) in enumerate(zip(lines, expected, strict=True)):
        number, *values = map(float, line.split(","))
        quarters = [step["losses"][(25 * i < step["t"]) & (step["t"] <= 25 * i + 25)] for i in range(4)]  # T is 100
        means = [rows.mean() if len(rows) else math.nan for rows in quarters]
        rate = learning_rate(k, CONFIG.num_steps, peak=CONFIG.peak_lr, warmup=CONFIG.warmup)
        assert number == k + 1 and step["rate"] == rate
        # Six digits are written.
        np.testing.assert_allclose(values, [step["losses"].mean(), step["norm"], rate, *means], rtol=1e-5)


def test_the_texts_name_the_defaults():
    """README.md and the first lines of train_mnist.py: 2,000 steps, or as many as fit into 8 minutes."""
    new = TrainConfig()
    assert (new.num_steps, new.minutes) == (2000, 8.0)
    for path in (ROOT / "README.md", ROOT / "demos/train_mnist.py"):
        text = re.sub(r"\s+", " ", path.read_text("utf-8"))
        assert f"{new.num_steps:,} steps, or as many as fit into {new.minutes:g} minutes" in text
    assert (Recipe.num_steps, Recipe.scale) == (50, 2.0)
