"""The comparison of settings: each network is trained as its setting says, and the table follows from what it draws.

Networks that draw stamps stand in for trained ones; so a run takes a fraction of a second.
"""

import csv

import numpy as np
import pytest
from stand_ins import META, SCHEDULE, Leaning, StampReader, data, pool_of, stand_in

from tinydiff.app.generate import Recipe, generate
from tinydiff.app.metrics import wilson_interval
from tinydiff.app.reading import Judge
from tinydiff.backend import TinydiffError, default_rng

pytestmark = pytest.mark.program

REAL = {"right": 9, "frechet": 0.5, "coverage": 0.96, "spread": 4.0}
RIGHT = {"default": range(11), "target=v": [1, 0, *range(2, 11)]}  # the second draws 1 for 0 and 0 for 1


@pytest.fixture(scope="module")
def test_set():
    return data(np.arange(140) % 10, default_rng(3), 0.2)


@pytest.fixture
def demo(load_demo, monkeypatch, test_set):
    """The program; `trained` notes the options of each run that the main job is asked for."""
    demo = load_demo("measure/compare_settings")
    stand_in(monkeypatch, demo, Leaning(), test_set)
    demo.trained = []

    def train(**options):
        demo.trained.append(options)
        (options["out"] / "checkpoint.npz").touch()

    def load_trained(path, workers):
        return pool_of(Leaning(RIGHT[path.parts[-3]], var=0.3)), SCHEDULE, META

    monkeypatch.setattr(demo.train_mnist, "main", train)
    monkeypatch.setattr(demo, "load_trained", load_trained)
    return demo


def run(demo, out, *settings, **options):
    return demo.main([*settings], num=20, sample_steps=3, workers=1, out=out, data="glyphs", **options)


def test_the_figures_are_those_of_what_each_network_draws(demo, tmp_path, test_set):
    """Each setting and seed is trained once, with its options and in its folder; the judge reads the digits that the
    network draws from the noise of seed 0, rounded to the range of pictures."""
    rows, real = run(demo, tmp_path, "default", "target=v", seeds=(0, 4), steps=9, scale=3.0)
    assert [(run["out"].relative_to(tmp_path).as_posix(), run["seed"], run.get("target")) for run in demo.trained] == [
        ("default/seed_0", 0, None),
        ("default/seed_4", 4, None),
        ("target=v/seed_0", 0, "v"),
        ("target=v/seed_4", 4, "v"),
    ]
    assert {(run["steps"], run["resume"], run["data"]) for run in demo.trained} == {(9, False, "glyphs")}
    judge = Judge(pool_of(StampReader()), test_set, 20)
    assert real == judge.real
    labels = np.arange(20) % 10
    for (setting, _), figures in rows.items():
        recipe = Recipe(SCHEDULE, (12, 12, 1), num_steps=3, scale=3.0)
        frames = generate(pool_of(Leaning(RIGHT[setting], var=0.3)), recipe, labels.tolist(), 0)
        images = np.clip(np.concatenate([part[-1] for part in frames]), -1, 1)
        assert {name: figures[name] for name in judge.real} == judge(images, labels)
    assert rows["default", 0]["right"] - rows["target=v", 0]["right"] == 4  # of 20 digits four are 0 or 1


def test_what_is_measured_is_not_measured_again(demo, tmp_path):
    """The same command trains nothing, and returns the same numbers to the last bit; another one trains what it must,
    and goes on where a run was stopped."""
    first = run(demo, tmp_path, "default", seeds=(0,))
    assert run(demo, tmp_path, "default", seeds=(0,)) == first
    assert len(demo.trained) == 1
    run(demo, tmp_path, "default", seeds=(0, 1))
    assert [options["seed"] for options in demo.trained] == [0, 1]
    run(demo, tmp_path, "default", seeds=(0,), scale=2.0)
    assert (demo.trained[-1]["seed"], demo.trained[-1]["resume"]) == (0, True)
    assert len(demo.trained) == 3
    run(demo, tmp_path, "default", seeds=(0,), scale=2.0, classifier="another.npz")  # which may read otherwise
    assert len(demo.trained) == 4


@pytest.mark.parametrize("name", ["data", "classifier", "steps", "num", "scale", "sample_steps"])
def test_a_row_of_another_measurement_does_not_count(demo, tmp_path, name):
    which = {"data": "glyphs", "classifier": "c.npz", "steps": 600, "num": 20, "scale": 1.0, "sample_steps": 3}
    figures = {"right": 3, "frechet": 1 / 3, "coverage": 0.1, "spread": 2 / 3, "seconds": 1e-9}
    path = tmp_path / "row.csv"
    assert demo.row_of(path, which, lambda: figures) == figures
    assert demo.row_of(path, which, lambda: pytest.fail("measured again")) == figures
    other = figures | {"right": 4}
    assert demo.row_of(path, which | {name: 7}, lambda: other) == other
    assert demo.row_of(path, which | {name: 7}, lambda: pytest.fail("measured again")) == other


def test_a_setting_is_options_of_the_main_job(demo):
    assert demo.options_of("default") == {}
    words = "target=v min-snr=5 schedule=cosine T=300 lr=0.004 ema-decay=0.9 batch-size=32 channels=16 steps=70"
    assert demo.options_of(words) == {
        "target": "v",
        "min_snr": 5.0,
        "schedule": "cosine",
        "T": 300,
        "lr": 0.004,
        "ema_decay": 0.9,
        "batch_size": 32,
        "channels": 16,
        "steps": 70,
    }


@pytest.mark.parametrize("setting", ["colour=red", "schedule=round", "lr=-1", "cosine", "schedule"])
def test_a_setting_that_the_main_job_does_not_have_is_refused(demo, setting, capsys):
    with pytest.raises(SystemExit) as ended:
        demo.options_of(setting)
    assert ended.value.code == 2
    assert setting.partition("=")[0] in capsys.readouterr().err


def test_settings_are_a_list_with_commas(demo, monkeypatch):
    """Spaces separate the options of a setting; those beside a comma mean nothing."""
    parse = demo.cli.list_of(str)
    assert parse("default, target=v min-snr=5,lr=0.004") == ("default", "target=v min-snr=5", "lr=0.004")


@pytest.mark.parametrize(
    "setting",
    ["seed=3", "out=x", "workers=3", "resume", "plain", "backend=cupy", "precision=tf32", "parallel=mpi"]
    + ["sample-every=7", "sample-steps=7"],
)
def test_what_all_networks_share_is_refused_in_a_setting(demo, setting):
    """An option of the program itself, or one that could make two rows incomparable, names itself in the error."""
    name = setting.partition("=")[0].replace("-", "_")
    with pytest.raises(TinydiffError, match=f"^{setting}: {name} cannot differ"):
        demo.options_of(setting)


def test_an_empty_setting_is_refused(demo):
    with pytest.raises(TinydiffError, match="a setting is empty"):
        demo.options_of("")


def test_settings_have_folders_of_their_own(demo):
    """A name without separators and spaces; the signs that tell two settings apart stay."""
    names = ["default", "target=v min-snr=5", "target=v min-snr=0.5", "lr=1e-3", "lr=1e3", "from=../x/y.npz"]
    folders = [demo.folder_name(name) for name in names]
    assert folders[1] == "target=v_min-snr=5"
    assert folders[5] == "from=.._x_y.npz"
    assert len(set(folders)) == len(names)


def figures(right, frechet, coverage, spread, seconds):
    return {"right": right, "frechet": frechet, "coverage": coverage, "spread": spread, "seconds": seconds}


def test_the_table_has_a_row_for_each_setting_and_real_digits_last(demo):
    """asked: of all seeds together.  frechet: the mean, and both ends.  coverage, spread, seconds: means."""
    rows = {
        ("b", 0): figures(8, 1.0, 0.5, 2.0, 10.0),
        ("a", 0): figures(10, 7.0, 0.25, 3.0, 1.0),
        ("b", 5): figures(9, 2.0, 0.75, 6.0, 30.0),
    }
    table = demo.summary(rows, REAL, 10)
    low, high = wilson_interval(17, 20)
    assert table == [
        {
            "setting": "b",
            "asked": f"85.0% ({low:.1%} to {high:.1%})",
            "frechet": "1.5 (1 to 2)",
            "coverage": "62.5%",
            "spread": "100.0%",
            "seconds": "20",
        },
        {
            "setting": "a",
            "asked": "100.0% (72.2% to 100.0%)",
            "frechet": "7",
            "coverage": "25.0%",
            "spread": "75.0%",
            "seconds": "1",
        },
        {
            "setting": "real",
            "asked": "90.0% (59.6% to 98.2%)",
            "frechet": "0.5",
            "coverage": "96.0%",
            "spread": "100.0%",
            "seconds": "-",
        },
    ]


def test_the_files_hold_the_table_and_a_point_for_each_network(demo, tmp_path, monkeypatch):
    drawn = []
    picture = demo.picture
    monkeypatch.setattr(demo, "picture", lambda *args: drawn.append(picture(*args)) or drawn[-1])
    rows, real = run(demo, tmp_path, "default", "target=v", seeds=(0, 1))
    with open(tmp_path / "settings.csv", newline="") as file:
        assert list(csv.DictReader(file)) == demo.summary(rows, real, 20)
    assert (tmp_path / "settings.png").stat().st_size > 0
    asked, covered = drawn[0].axes
    for axes, height in ((asked, lambda row: 5 * row["right"]), (covered, lambda row: 100 * row["coverage"])):
        points = {line.get_label(): [*zip(*line.get_data())] for line in axes.lines}
        expected = {name: [(r["frechet"], height(r)) for (s, _), r in rows.items() if s == name] for name in RIGHT}
        assert points == {**expected, "as many real digits": [(real["frechet"], height(real))]}
