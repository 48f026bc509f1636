"""A checkpoint file is read without belief: sizes are compared first, and what a file states is checked.

Saving, the round trip and damage by accident are in test_checkpoint.py; what the content must be is in test_kinds.py.
"""

import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import forged
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinydiff.app import archive, checkpoint
from tinydiff.app.archive import CheckpointError, load, printable

pytestmark = pytest.mark.program

ARRAYS = {"w": np.arange(24, dtype=np.float32).reshape(2, 3, 4), "b": np.zeros(5), "name": np.array(["a", "bc"])}
META = {"step": 12, "names": ["größe"]}
ORIGINAL = forged.Original(ARRAYS, META)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.npz"


def test_a_file_that_is_not_what_it_states_is_refused(path):
    """Shapes, dtypes, sizes, methods, checksums, ends, and members that are there twice: CheckpointError with the path.

    A file that states another array of the same size is that array: what it means is for kinds.py to check.
    """
    ways = [*ORIGINAL.files(), *ORIGINAL.further_members(), *ORIGINAL.texts()]
    assert len(ways) > 60
    refused = 0
    for what, make in ways:
        path.write_bytes(make())
        try:
            arrays, meta = load(path)
        except CheckpointError as error:
            refused += 1
            assert str(error).startswith(f"{path} ") and str(error).isprintable(), what
        else:
            assert sum(a.nbytes for a in arrays.values()) < path.stat().st_size and META.items() <= meta.items(), what
    assert refused > 40


def test_small_files_that_unpack_to_gigabytes_are_refused(path):
    """Compressed members, members under many names, long tables and texts: at most 4 times the file is allocated.

    (The table of members is 20 MB in the largest of them, and is not read.)
    """
    for what, make in ORIGINAL.bombs(size=32 << 20):
        path.write_bytes(make())
        tracemalloc.start()
        if what.startswith("an unused array"):
            assert load(path)[0]["unused"].nbytes == 24 << 20  # stored as it is, so it is no bomb
        else:
            with pytest.raises(CheckpointError, match=r"compressed form|smaller than|ends unlike|at most|settings of"):
                load(path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < (60 << 20 if "array" in what else 8 << 20), f"{what}: {peak:,}"


def test_the_check_comes_before_any_array(path):
    """check gets shapes and dtypes and the settings; what it raises gets the path, and no array was read until then."""
    big = {**ARRAYS, "big": np.zeros(4 << 20, np.uint8)}
    checkpoint.save(path, big, META)
    seen = {}

    def check(headers, meta):
        seen.update({name: (header.shape, header.dtype) for name, header in headers.items()})
        assert meta == META
        raise CheckpointError("contains nothing good")

    tracemalloc.start()
    with pytest.raises(CheckpointError, match=rf"^{path} contains nothing good$"):
        load(path, check)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seen == {name: (a.shape, a.dtype) for name, a in big.items()} and list(seen) == list(big)
    assert peak < 3 << 20  # the blocks of 1 MB in which the digest is computed


def test_a_file_is_read_in_little_more_than_its_size(path):
    """The arrays and one copy of the largest."""
    arrays = {f"{i}": np.zeros(1 << 18, np.float64) for i in range(8)}
    checkpoint.save(path, arrays, {})
    tracemalloc.start()
    load(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * (2 << 20) + 2 * (2 << 20) + (1 << 20)


@pytest.mark.skipif(os.name != "posix", reason="pipes and devices with a path")
def test_a_pipe_or_a_device_is_refused_and_not_read(path):
    """Reading a pipe would wait for ever, and /dev/zero has no end."""
    os.mkfifo(path)
    for name in (path, "/dev/zero"):
        with pytest.raises(CheckpointError, match=f"^{name} cannot be read: it is a pipe, a socket or a device"):
            load(name)


@pytest.mark.skipif(sys.platform != "linux", reason="a limit on the memory of a process")
def test_a_lack_of_memory_is_a_sentence(path):
    """An honest file that is larger than the memory is not called damaged."""
    checkpoint.save(path, {"w": np.zeros(300 << 20, np.uint8)}, {})
    program = (
        "import resource, sys; from tinydiff.app.archive import load, CheckpointError\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + (200 << 20),) * 2)\n"
        "try: load(sys.argv[1])\nexcept CheckpointError as error: print(error)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(archive.__file__).parents[2])}
    out = subprocess.run([sys.executable, "-c", program, path], env=environment, capture_output=True, text=True)
    assert out.stdout == f"{path} needs more memory than there is\n", out.stderr


@given(st.text(), st.integers(1, 50))
def test_a_text_from_outside_is_one_printable_line(text, most):
    """Nothing reaches a terminal raw; printable text stays as it is, and a long one is cut."""
    line = printable(text, most)
    assert line.isprintable() and len(line) <= 10 * most + 3
    if text.isprintable() and len(text) <= most:
        assert line == text


def test_escape_codes_are_shown_by_their_names():
    """Each foreign letter as Python writes it; also one that turns the direction of writing, and half of a pair."""
    assert printable("a\x1b[31mb\n\t\u202e\udcff\x07") == r"a\x1b[31mb\n\t\u202e\udcff\x07"
    assert printable("größe ß") == "größe ß"
    assert printable("a" * 300) == "a" * 200 + "..."
