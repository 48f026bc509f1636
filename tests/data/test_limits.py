"""Laws of what is read and allocated: a size is compared first, and only a regular file is opened."""

import os
import socket
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinydiff.backend import TinydiffError
from tinydiff.data import limits
from tinydiff.data.limits import check_memory, read_file

pytestmark = pytest.mark.data


@pytest.fixture
def small_machine(monkeypatch):
    monkeypatch.setattr(limits, "memory", lambda: 1000)


@pytest.mark.parametrize("size", [0, 1, 999, 1000])
def test_a_file_of_a_size_that_is_allowed_is_read(tmp_path, small_machine, size):
    """Up to the limit itself, and a link is followed."""
    (tmp_path / "file").write_bytes(bytes(size))
    (tmp_path / "link").symlink_to("file")
    for name in ("file", "link"):
        assert read_file(tmp_path / name) == read_file(tmp_path / name, size) == bytes(size)


@pytest.mark.parametrize(("size", "most"), [(1001, None), (7, 6)])
def test_a_larger_file_is_not_read(tmp_path, small_machine, monkeypatch, size, most):
    """It is an OSError with both sizes; the file is not opened."""
    (tmp_path / "file").write_bytes(bytes(size))
    monkeypatch.setattr("builtins.open", None)
    with pytest.raises(OSError, match=f"it has {size:,} bytes, and at most {most or 1000:,}") as error:
        read_file(tmp_path / "file", most)
    assert error.value.filename == str(tmp_path / "file")


@pytest.mark.skipif(os.name != "posix", reason="pipes and sockets with a path")
def test_what_is_not_a_file_is_refused_at_once(tmp_path, monkeypatch):
    """A pipe would block for ever, a device has no end; a folder, a socket and a loop of links are named too."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    (tmp_path / "loop").symlink_to("loop")
    listener = socket.socket(socket.AF_UNIX)
    with listener:
        monkeypatch.chdir(tmp_path)  # a socket's path has at most 107 letters
        listener.bind("socket")
        odd = {"pipe": "a pipe", "link": "a pipe", "socket": "a pipe, a socket", "/dev/zero": "a device"}
        odd |= {
            ".": "Is a directory",
            "loop": "Too many levels",
            "gone": "No such file",
            "x" * 100_000: "name too long",
        }
        for path, reason in odd.items():
            with pytest.raises(OSError, match=reason):
                read_file(path)


def test_memory_is_compared_before_it_is_taken(small_machine):
    """All of it may be asked for; one byte more is a TinydiffError with the option and both sizes."""
    check_memory("--num 3", 1000)
    with pytest.raises(
        TinydiffError, match=r"--num 4: that needs about 2\.5 GB of memory, and this machine has 0\.0 GB"
    ):
        check_memory("--num 4", 2.5e9)


@given(st.integers(1 << 20, 1 << 40))
def test_a_containers_limit_counts(number):
    """The smaller of the machine's memory and the number in the control group's file; "max" is no limit."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits.os, "sysconf", lambda name: 1 << 15, raising=False)  # 2^15 pages of 2^15 bytes
        patch.setattr(limits.Path, "exists", lambda path: True)
        for text, memory in (("max\n", 1 << 30), (f"{number}\n", min(number, 1 << 30))):
            patch.setattr(limits.Path, "read_text", lambda path, text=text: text)
            assert limits.memory() == memory


def test_the_memory_of_this_machine_is_known():
    """More than this process has now, and less than 100 TB: a system that does not tell has no limit."""
    here = subprocess.run([sys.executable, "-c", "import tinydiff.data.limits as l; print(l.memory())"],
                          capture_output=True, text=True)  # fmt: skip
    assert int(here.stdout) == limits.memory() > 1 << 26
    assert limits.memory() < 10**14 or not hasattr(os, "sysconf")


@pytest.mark.parametrize("error", [OSError, ValueError, AttributeError])
def test_where_the_memory_is_not_known_nothing_is_too_large(monkeypatch, error):
    """Windows has no sysconf, and a system may lack the two names."""

    def unknown(name):
        raise error

    monkeypatch.setattr(limits.os, "sysconf", unknown, raising=False)
    assert limits.memory() == 1 << 62
