"""What the explorer's tests share: tiny checkpoints, the options of its smallest form, its page in a browser."""

from functools import partial

import pytest
from chromium import settled, show, started
from tiny_runs import save_checkpoint

from tinydiff.app.alone import one_process
from tinydiff.app.classify import ClassifierConfig, build_classifier, save_classifier
from tinydiff.data import load


@pytest.fixture(scope="session")
def smallest():
    """Options of main."""
    few = {"labels": (3, 7), "sample_steps": (4, 2), "moments": 5, "point_steps": 2, "num": 10, "known": 100}
    return few | {"workers": 1}


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A network after one step, its average moved off the start, and a classifier that has learned nothing."""
    folder, data = tmp_path_factory.mktemp("trained"), load("glyphs", num=20)
    save_checkpoint(folder / "checkpoint.npz", data, move_average=0.05)
    with one_process().workers(partial(build_classifier, {"channels": (8, 8, 8)}, 0), 1) as pool:
        save_classifier(folder / "classifier.npz", pool, ClassifierConfig(), data, data, 0)
    return folder / "checkpoint.npz", folder / "classifier.npz"


@pytest.fixture(scope="session")
def page_file(load_demo, tmp_path_factory):
    """The ready page with today's scripts, and its links from where it stands."""
    demo, out = load_demo("explorer/explorer"), tmp_path_factory.mktemp("browser") / "explorer.html"
    data = demo.data_of((demo.PAGE / "explorer.html").read_text("utf-8"))
    demo.write(data | {"root": demo.root_from(out)}, out)
    return out


@pytest.fixture(scope="session")
def driver(tmp_path_factory):
    driver = started(tmp_path_factory.mktemp("profile"))
    yield driver
    driver.quit()


@pytest.fixture
def page(driver, page_file):
    """The page as just opened, 1280 wide and light; afterwards the console must be empty."""
    show(driver, 1280, "light")
    driver.get_log("browser")
    driver.get(page_file.as_uri())
    settled(driver)
    yield driver
    assert driver.get_log("browser") == []
