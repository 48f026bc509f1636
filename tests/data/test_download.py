"""Laws of a download: resumed where it broke off, and in its place only when it is right."""

import socket
from urllib.request import Request

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tinydiff.backend import default_rng
from tinydiff.data import download as module
from tinydiff.data.dataset import DataError
from tinydiff.data.download import download

pytestmark = pytest.mark.data

DATA = default_rng(7).bytes(200_000)  # several blocks


@pytest.fixture
def target(tmp_path):
    return tmp_path / "file.gz"


@pytest.fixture
def check(target):
    """Passes DATA only, and never after the file is already in its place."""

    def check(path):
        assert not target.exists()
        if path.read_bytes() != DATA:
            raise DataError(f"{path.name} has wrong bytes")
        return path.read_bytes()

    return check


def part_of(target):
    return target.with_name("file.gz.part")


def test_a_file_arrives_bit_for_bit(mirror, target, check):
    """The file is the mirror's, what check returned comes back, and no part is left."""
    mirror.files["/a"] = DATA
    assert download([mirror.url + "a"], target, check) == DATA
    assert target.read_bytes() == DATA
    assert not part_of(target).exists()


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.one_of(st.sampled_from([0, 1, len(DATA) - 1]), st.integers(0, len(DATA) - 1)))
def test_an_interrupted_download_goes_on_where_it_broke_off(mirror, target, check, cut):
    """Cut after any byte, it raises and leaves exactly those bytes; the next attempt asks for the rest only."""
    target.unlink(missing_ok=True)
    mirror.files["/a"], mirror.cut["/a"], mirror.asked = DATA, cut, []
    with pytest.raises(DataError, match=f"ended after {cut:,} of {len(DATA):,} bytes"):
        download([mirror.url + "a"], target, check)
    assert part_of(target).read_bytes() == DATA[:cut]
    assert not target.exists()
    assert download([mirror.url + "a"], target, check) == DATA
    assert mirror.asked == [("/a", None), ("/a", f"bytes={cut}-" if cut else None)]
    assert target.read_bytes() == DATA


def test_the_next_mirror_goes_on_where_one_broke_off(mirror, target, check):
    """Within one call, a mirror that hangs up is followed by the next from the byte that was reached."""
    mirror.files = {"/a": DATA, "/b": DATA}
    mirror.cut["/a"] = 70_000
    assert download([mirror.url + "a", mirror.url + "b"], target, check) == DATA
    assert mirror.asked == [("/a", None), ("/b", "bytes=70000-")]


def test_wrong_content_is_never_put_in_place(mirror, target, check):
    """A mirror with another file is left for the next, from byte 0; if none is right, neither file nor part remains."""
    mirror.files = {"/a": DATA[::-1], "/b": DATA}
    with pytest.raises(DataError, match="wrong bytes"):
        download([mirror.url + "a"], target, check)
    assert not target.exists()
    assert not part_of(target).exists()
    assert download([mirror.url + "a", mirror.url + "b"], target, check) == DATA
    assert mirror.asked[-1] == ("/b", None)


def test_a_part_of_another_file_is_fetched_anew(mirror, target, check):
    """A part that cannot be completed to the right file is dropped and the same mirror asked again from byte 0."""
    mirror.files["/a"] = DATA
    for stale in (DATA[1:1000], DATA + b"more", DATA[::-1]):
        part_of(target).write_bytes(stale)
        target.unlink(missing_ok=True)
        assert download([mirror.url + "a"], target, check) == DATA
        assert mirror.asked[-2:] == [("/a", f"bytes={len(stale)}-"), ("/a", None)]


def test_a_whole_part_is_not_fetched_again(mirror, target, check):
    """All bytes there, but not yet renamed: the mirror says there is no more, and the part becomes the file."""
    mirror.files["/a"] = DATA
    part_of(target).write_bytes(DATA)
    assert download([mirror.url + "a"], target, check) == DATA
    assert mirror.asked == [("/a", f"bytes={len(DATA)}-")]


def test_a_mirror_without_ranges_sends_the_whole_file(mirror, target, check):
    """An answer 200 to a Range request replaces the part."""
    mirror.files["/a"], mirror.ranges = DATA, False
    part_of(target).write_bytes(DATA[:5000])
    assert download([mirror.url + "a"], target, check) == DATA
    assert len(mirror.asked) == 1


def test_a_mirror_that_sends_another_range_is_left(mirror, target, check):
    """A Content-Range that does not begin where asked is not appended, and the part stays."""
    mirror.files["/a"], mirror.range_shift = DATA, 1
    part_of(target).write_bytes(DATA[:5000])
    with pytest.raises(DataError, match="asked for bytes from 5000"):
        download([mirror.url + "a"], target, check)
    assert part_of(target).read_bytes() == DATA[:5000]


def test_every_mirrors_failure_is_reported(mirror, target, check):
    """No server, no such file: one DataError has each mirror's host and its reason, and nothing is left behind."""
    with pytest.raises(DataError, match=r"127\.0\.0\.1:9: .*refused.*; 127\.0\.0\.1:\d+: HTTP Error 404"):
        download(["http://127.0.0.1:9/a", mirror.url + "a"], target, check)
    assert list(target.parent.iterdir()) == []


def test_a_mirror_that_does_not_answer_is_left_in_time(target, check, monkeypatch):
    """A host that accepts and stays silent costs TIMEOUT_S, as does one whose look-up hangs."""
    monkeypatch.setattr(module, "TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        with pytest.raises(DataError, match=r"timed out|no answer"):
            download([f"http://127.0.0.1:{silent.getsockname()[1]}/a"], target, check)
    released = module.threading.Event()

    def hang(request, timeout):
        released.wait(5)
        raise OSError("released")

    monkeypatch.setattr(module, "urlopen", hang)
    with pytest.raises(TimeoutError, match=r"no answer within 0\.2 s"):
        module._open(Request("http://example.invalid/a"))
    released.set()
