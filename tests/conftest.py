"""Shared fixtures: the hypothesis profiles, and the backend that the whole suite runs on."""

import os

# Before NumPy loads: the products here are small, and BLAS threads that spin beside other work slow them tenfold.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# Python 3.14 colours --help and tracebacks where FORCE_COLOR is set, as some CI machines have it.
os.environ["PYTHON_COLORS"] = "0"

import emulate
import pytest
import strict
from hypothesis import HealthCheck, Phase, settings

from tinydiff.backend import FAST, BackendError, backend_name, default_rng, precision, use_backend
from tinydiff.fast.processes import available_cores

settings.register_profile("dev", max_examples=15, deadline=None)
settings.register_profile("ci", max_examples=15, deadline=None, derandomize=True)  # the same ones each time
settings.register_profile("brief", max_examples=10, deadline=None, derandomize=True)  # for CI's second and third runs
slow = [HealthCheck.too_slow, HealthCheck.data_too_large]
settings.register_profile("thorough", max_examples=300, deadline=None, suppress_health_check=slow)
# For mutation.py and laws.py: that a wrong line fails is enough, and the smallest example of it costs seconds.
no_shrinking = [Phase.explicit, Phase.generate]
ci = settings.get_profile("ci")
settings.register_profile("mutation", parent=ci, phases=no_shrinking, report_multiple_bugs=False)
shrinking = [*no_shrinking, Phase.shrink]
settings.register_profile("smallest", parent=ci, phases=shrinking, report_multiple_bugs=False)  # laws.py, for a reader
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "dev"))


BOOK = ("process", "sampler", "likelihood", "engine", "conv", "network", "training")  # chapters, see pyproject.toml


def pytest_addoption(parser):
    choices = ["numpy", "cupy", "strict"]  # strict: CuPy's rules without a GPU, see strict.py
    parser.addoption("--backend", default="numpy", choices=choices, help="arrays the suite runs on")
    parser.addoption("--plain", action="store_true", help="the functions of the book as they stand, nothing installed")


MOST_PROCESSES = 8  # each needs half a gigabyte


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist starts its processes
def pytest_cmdline_main(config):
    """The whole suite runs in one process for each core, as if -n were given.

    Tests that are chosen by file, name or marker run in this process: the others would only have to be started first.
    One GPU, a debugger and prints that the user wants to see need one process too.
    """
    option = config.option
    if getattr(option, "numprocesses", 0) is not None or hasattr(config, "workerinput"):
        return  # pytest-xdist is missing, -n is given, or this is one of the processes
    chosen = config.args_source == config.ArgsSource.ARGS or option.keyword or option.plain
    chosen = chosen or option.markexpr not in config.getini("addopts")
    chosen = chosen or option.backend == "cupy" or option.usepdb or option.capture == "no"
    if not chosen and (processes := min(available_cores(), MOST_PROCESSES)) > 1:
        option.numprocesses, option.dist = processes, "worksteal"


def pytest_configure(config):
    """A backend that is asked for and cannot work fails the run: it never skips to green."""
    name = config.getoption("--backend")
    if name == "strict":
        if emulate.COMPILER is None:
            raise pytest.UsageError(emulate.REASON)
        strict.stand_in(strict.cupy)
    try:
        # The tolerances are for float32.
        use_backend("numpy" if name == "numpy" else "cupy", "float32", plain=config.getoption("--plain"))
    except BackendError as error:
        raise pytest.UsageError(str(error)) from None


def pytest_runtest_teardown(item):
    """A program that ran in a test may have chosen TF32, or other forms of the functions: restore what was chosen."""
    plain = item.config.getoption("--plain")
    if precision() != "float32" or plain == bool(FAST):
        use_backend(backend_name(), "float32", plain=plain)


def pytest_collection_modifyitems(config, items):
    """--plain: the chapters of the book, without the tests of faster forms and of programs."""
    if config.getoption("--plain"):
        outside = [config.rootpath / "tests" / folder for folder in ("fast", "demos")]
        chosen = [
            item
            for item in items
            if any(item.get_closest_marker(chapter) for chapter in BOOK) and not set(outside) & set(item.path.parents)
        ]
        config.hook.pytest_deselected(items=[item for item in items if item not in set(chosen)])
        items[:] = chosen


def pytest_report_header(config):
    return f"backend: {config.getoption('--backend')}{', plain' * config.getoption('--plain')}"


@pytest.fixture(scope="session", autouse=True)
def no_power_cut():
    """Files of this process are not written through to the disk, which takes longer than most tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture
def rng():
    return default_rng(0)


# On the stand-in device these files run the text of conv.cu.  The others run as on an older GPU, which is much faster.
WITH_TENSOR_CORES = {
    f"test_{name}.py" for name in ("every_op", "install", "parity", "planted", "strict", "tensor_cores")
}
WITH_MUON_CU = {"test_install.py", "test_muon.py", "test_muon_kernel.py"}  # likewise; elsewhere NumPy computes for it


@pytest.hookimpl(tryfirst=True)  # before the fixtures of a whole file
def pytest_runtest_setup(item):
    strict.has_tensor_cores(item.path.name in WITH_TENSOR_CORES)
    emulate.muon_by_text = item.path.name in WITH_MUON_CU
