"""The panel of the training: the curves are means of metrics.csv, and the pictures are those of progress/."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.program

HEADER = "step,loss,grad_norm,learning_rate,loss_t_bucket_1,loss_t_bucket_2,loss_t_bucket_3,loss_t_bucket_4\n"


@pytest.fixture(scope="module")
def panel(load_demo):
    return load_demo("explorer/explorer_training")


def write_metrics(folder, rows):
    (folder / "metrics.csv").write_text(HEADER + "".join(",".join(map(str, row)) + "\n" for row in rows))


def write_pictures(folder, steps):
    (folder / "progress").mkdir()
    for step in steps:
        level = step // 100 * 17
        Image.new("RGB", (5, 4), (level, level, level)).save(folder / "progress" / f"step_{step:06}.png")


def test_each_value_is_the_mean_of_its_steps(panel, tmp_path):
    """120 steps make 60 windows of two; a quarter without an example is left out of its mean, or has none."""
    losses = np.arange(1, 121) / 7
    quarters = np.stack([losses * k for k in (1, 2, 3, 4)], 1)
    quarters[1, 0] = quarters[2:4, 3] = np.nan
    write_metrics(tmp_path, [(i + 1, losses[i], 0.5, 0.1, *quarters[i]) for i in range(120)])
    write_pictures(tmp_path, [100])
    made = panel.training(tmp_path, 1000)
    assert made["steps"] == list(range(2, 121, 2))
    pairs = losses.reshape(60, 2).mean(1)
    assert list(made["loss"]) == ["all t", "t = 1 to 250", "t = 251 to 500", "t = 501 to 750", "t = 751 to 1000"]
    np.testing.assert_allclose(made["loss"]["all t"], pairs, rtol=1e-3)
    np.testing.assert_allclose(made["loss"]["t = 251 to 500"], 2 * pairs, rtol=1e-3)
    np.testing.assert_allclose(made["loss"]["t = 1 to 250"], [losses[0], *pairs[1:]], rtol=1e-3)
    last = made["loss"]["t = 751 to 1000"]
    assert last[1] is None
    np.testing.assert_allclose(np.delete(np.array(last, float), 1), 4 * np.delete(pairs, 1), rtol=1e-3)


def test_a_short_run_has_a_point_for_each_step(panel, tmp_path):
    write_metrics(tmp_path, [(1, 0.5, 1, 1, 0.1, 0.2, 0.3, 0.4), (2, 0.25, 1, 1, 0.1, 0.2, 0.3, 0.4)])
    write_pictures(tmp_path, [2])
    made = panel.training(tmp_path, 10)
    assert made["steps"] == [1, 2] and made["loss"]["all t"] == [0.5, 0.25]
    assert list(made["loss"])[1:] == ["t = 1 to 2", "t = 3 to 5", "t = 6 to 7", "t = 8 to 10"]


def test_eight_pictures_at_most_are_shown_the_first_and_the_last_among_them(panel, tmp_path):
    """With the step of each, in order, and their own pixels."""
    write_metrics(tmp_path, [(1, *[0.5] * 7)])
    write_pictures(tmp_path, range(100, 1600, 100))
    made = panel.training(tmp_path, 1000)
    assert [step for step, _ in made["samples"]] == [100, 300, 500, 700, 900, 1100, 1300, 1500]
    for step, picture in made["samples"]:
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(picture))).convert("L"))
        assert pixels.shape == (4, 5) and (abs(pixels.astype(int) - step // 100 * 17) <= 8).all()


def test_without_its_files_there_is_no_panel(panel, tmp_path):
    assert panel.training(tmp_path, 1000) is None
    write_metrics(tmp_path, [(1, *[0.5] * 7)])
    assert panel.training(tmp_path, 1000) is None
