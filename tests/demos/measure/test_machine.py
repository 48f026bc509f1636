"""The conditions of a benchmark are read where they stand: stand-ins for /proc, the BLAS and nvidia-smi."""

import importlib.metadata
import platform
import subprocess
from types import SimpleNamespace

import numpy as np
import pytest

pytestmark = pytest.mark.program


@pytest.fixture
def machine(module):
    return module("machine")


class Files:
    """Stands in for Path: {path: text}; every other path does not exist."""

    def __init__(self, **files):
        self.files = {f"/proc/{name.replace('_', '/')}": text for name, text in files.items()}

    def __call__(self, path):
        text = self.files.get(str(path))
        return SimpleNamespace(exists=lambda: text is not None, read_text=lambda: text, parent=FOLDER)


class Folder:
    """A folder that has the names of two libraries."""

    def __init__(self, name=""):
        self.name = name

    parent = property(lambda self: self)

    def __truediv__(self, name):
        return Folder(f"{self.name}/{name}")

    def glob(self, pattern):
        assert pattern == "*openblas*"
        return [f"{self.name}/libopenblas.so"] if self.name == "/numpy.libs" else []


FOLDER = Folder()


def test_the_processor_is_named_as_linux_names_it(machine, monkeypatch):
    """The first "model name"; elsewhere what Python knows; versions of what is used, torch if it takes part."""
    info = "processor\t: 0\nmodel name\t: A CPU @ 2 GHz\nprocessor\t: 1\nmodel name\t: Another\n"
    monkeypatch.setattr(machine, "Path", Files(cpuinfo=info))
    monkeypatch.setattr(machine, "blas_core", lambda: "Haswell")
    monkeypatch.setattr(machine, "available_cores", lambda: 3)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: f"version of {name}")
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    found = machine.describe_cpu(torch=True)
    assert found == {
        "cpu": "A CPU @ 2 GHz",
        "cores": 3,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "blas": f"{blas['name']} {blas['version']}",
        "blas_core": "Haswell",
        "torch": "version of torch",
    }
    assert machine.describe_cpu(torch=False) == found | {"torch": None}
    monkeypatch.setattr(machine, "Path", Files())
    monkeypatch.setattr(platform, "processor", lambda: "")
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    assert machine.describe_cpu(torch=False)["cpu"] == "arm64"
    monkeypatch.setattr(platform, "processor", lambda: "arm")
    assert machine.describe_cpu(torch=False)["cpu"] == "arm"


def library(**functions):
    """Stands in for a library: {function: what it returns, as bytes}."""

    def load(path):
        if "openblas" not in path or "broken" in path:
            raise OSError(path)
        return SimpleNamespace(**{name: Corename(text) for name, text in functions.items()})

    return load


class Corename:
    restype = None

    def __init__(self, text):
        self.text = text

    def __call__(self):
        assert self.restype is not None
        return self.text


MAPS = """7f00-7f01 r--p 00000000 fe:00 11 /usr/lib/libc.so.6
7f01-7f02 r--p 00000000 fe:00 12 /a folder/libbroken_openblas.so
7f02-7f03 r-xp 00000000 fe:00 13 /a folder/libscipy_openblas64.so
"""


@pytest.mark.parametrize("name", ["openblas_get_corename", "openblas_get_corename64_"])
@pytest.mark.parametrize("prefix", ["", "scipy_"])
def test_the_kernels_that_openblas_chose_are_asked_of_the_library_itself(machine, monkeypatch, name, prefix):
    """By every name that the function has in the wild, in the library that this process has mapped, or that lies
    beside NumPy where nothing says what is mapped; a library that cannot be loaded is passed over."""
    monkeypatch.setattr(machine.ctypes, "CDLL", library(**{prefix + name: b"Zen"}))
    monkeypatch.setattr(machine, "Path", Files(self_maps=MAPS))
    assert machine.blas_core() == "Zen"
    monkeypatch.setattr(machine, "Path", Files())
    assert machine.blas_core() == "Zen"
    monkeypatch.setattr(machine, "Path", Files(self_maps=MAPS.splitlines()[0]))
    assert machine.blas_core() == "unknown"
    monkeypatch.setattr(machine, "Path", Files(self_maps=MAPS))
    monkeypatch.setattr(machine.ctypes, "CDLL", library())
    assert machine.blas_core() == "unknown"


def test_a_gpu_is_named_by_its_driver_and_versions(machine, monkeypatch):
    """The first line that nvidia-smi prints; "unknown" without it; torch's version where torch is installed."""
    asked = []

    def run(command, **options):
        asked.append((command[0], options))
        return SimpleNamespace(stdout="NVIDIA H100, 580.1\nNVIDIA T4, 580.1\n")

    monkeypatch.setattr(machine.shutil, "which", lambda name: name == "nvidia-smi")
    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(machine, "backend_name", lambda: "cupy")
    monkeypatch.setattr(machine, "xp", SimpleNamespace(__version__="14.2"))
    monkeypatch.setattr(machine.importlib.util, "find_spec", lambda name: None)
    gpu = {"device": "NVIDIA H100", "driver": "580.1", "cupy": "14.2"}
    assert machine.describe_gpu() == gpu
    assert asked == [("nvidia-smi", {"capture_output": True, "text": True})]
    monkeypatch.setattr(machine.importlib.util, "find_spec", lambda name: name == "torch")
    monkeypatch.setattr(importlib.metadata, "version", lambda name: f"version of {name}")
    assert machine.describe_gpu() == gpu | {"torch": "version of torch"}
    monkeypatch.setattr(machine.shutil, "which", lambda name: None)
    assert machine.describe_gpu() == gpu | {"device": "unknown", "driver": "unknown", "torch": "version of torch"}


def test_variables_that_change_the_speed_are_found(machine, monkeypatch):
    """OpenBLAS's two and every MALLOC_ one, and no other."""
    monkeypatch.setattr(machine.os, "environ", {"MALLOC_ARENA_MAX": "1", "OPENBLAS_CORETYPE": "Zen", "PATH": "/bin"})
    assert machine.speed_variables() == {"MALLOC_ARENA_MAX": "1", "OPENBLAS_CORETYPE": "Zen"}
    monkeypatch.setattr(machine.os, "environ", {"OPENBLAS_L2_SIZE": "9", "OPENBLAS_NUM_THREADS": "1", "MALLOC": "x"})
    assert machine.speed_variables() == {"OPENBLAS_L2_SIZE": "9"}
