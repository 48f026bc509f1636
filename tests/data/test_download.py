"""Laws of a download: the target is the right file or is not there, and nothing else is left."""

import gc
import io
import os
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import tqdm
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tinydiff.backend import default_rng
from tinydiff.data import download as module
from tinydiff.data.dataset import DataError
from tinydiff.data.releases import RELEASES

pytestmark = pytest.mark.data

DATA = default_rng(7).bytes(200_000)  # several blocks
MOST = 1_000_000  # bytes that a mirror may send
NOBODY = "http://127.0.0.1:9/a"  # no server listens on this port


@pytest.fixture
def target(tmp_path):
    return tmp_path / "file.gz"


def download(urls, target, check, most_bytes=MOST):
    return module.download(urls, target, check, most_bytes)


def check(path):
    """Passes a file of the target's name that contains DATA."""
    assert path.name == "file.gz"
    if path.read_bytes() != DATA:
        raise DataError("the file has wrong bytes")
    return path.read_bytes()


def files_in(folder):
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*")]


def test_a_file_arrives_bit_for_bit(mirror, target):
    """The target is the mirror's file, download returns what check returns, and the temporary folder is gone."""
    mirror.files["/a"] = DATA

    def check_once(path):
        assert not target.exists()  # it is put in its place after the check
        return check(path)[:5]

    assert download([mirror.url + "a"], target, check_once) == DATA[:5]
    assert target.read_bytes() == DATA
    assert files_in(target.parent) == ["file.gz"]


def test_a_file_in_its_place_is_readable_to_those_who_may_read_new_files(mirror, target):
    """The mode of the target is that of any new file: a cache may be shared."""
    mirror.files["/a"] = DATA
    download([mirror.url + "a"], target, check)
    (target.parent / "new").touch()
    assert target.stat().st_mode == (target.parent / "new").stat().st_mode


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.one_of(st.sampled_from([0, 1, len(DATA) - 1]), st.integers(0, len(DATA) - 1)))
def test_half_a_file_is_never_put_in_place(mirror, target, cut):
    """A mirror that hangs up after any byte leaves nothing; the next mirror starts with an empty file."""
    target.unlink(missing_ok=True)
    mirror.files, mirror.cut = {"/a": DATA, "/b": DATA}, {"/a": cut}
    with pytest.raises(DataError, match="wrong bytes"):
        download([mirror.url + "a"], target, check)
    assert files_in(target.parent) == []
    assert download([mirror.url + "a", mirror.url + "b"], target, check) == DATA
    assert target.read_bytes() == DATA


def test_a_longer_wrong_file_leaves_nothing_for_the_next_mirror(mirror, target):
    """The bytes of a refused file, more than the right file has, do not stay at its end."""
    mirror.files = {"/a": DATA[::-1] + DATA, "/b": DATA}
    with pytest.raises(DataError, match="wrong bytes"):
        download([mirror.url + "a"], target, check)
    assert files_in(target.parent) == []
    download([mirror.url + "a", mirror.url + "b"], target, check)
    assert target.read_bytes() == DATA
    assert mirror.asked[-2:] == ["/a", "/b"]


def test_the_first_mirror_that_is_right_is_the_last_one_asked(mirror, target):
    """The mirrors are asked in their order, and none after the right one."""
    mirror.files = {"/b": DATA, "/c": DATA}
    download([mirror.url + "a", mirror.url + "b", mirror.url + "c"], target, check)
    assert mirror.asked == ["/a", "/b"]


def test_a_file_in_its_place_stays_when_a_download_fails(mirror, target):
    """What another process has put in place meanwhile is not removed by a failure."""
    target.write_bytes(DATA)
    mirror.files["/a"] = DATA[::-1]
    with pytest.raises(DataError, match="wrong bytes"):
        download([mirror.url + "a"], target, check)
    assert target.read_bytes() == DATA
    assert files_in(target.parent) == ["file.gz"]


def test_two_downloads_at_once_end_right(mirror, target):
    """Two downloads of one target, both checked before either is in its place: each returns the file."""
    mirror.files["/a"] = DATA
    meeting = threading.Barrier(2, timeout=30)

    def check_together(path):
        content = check(path)
        meeting.wait()
        return content

    with ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(download, [mirror.url + "a"], target, check_together) for _ in range(2)]
        assert [call.result() for call in calls] == [DATA, DATA]
    assert target.read_bytes() == DATA
    assert files_in(target.parent) == ["file.gz"]


def test_a_download_that_fails_does_not_disturb_another_one(mirror, target):
    """While one download is in its check, another one of the same target fails and cleans up: the first ends right."""
    mirror.files = {"/a": DATA, "/b": DATA[::-1]}

    def check_after_the_other(path):
        with pytest.raises(DataError, match="wrong bytes"):
            download([mirror.url + "b"], target, check)
        return check(path)

    assert download([mirror.url + "a"], target, check_after_the_other) == DATA
    assert files_in(target.parent) == ["file.gz"]


@pytest.mark.parametrize("when", ["while the mirror sends", "in the check"])
def test_an_interrupt_leaves_nothing(mirror, target, monkeypatch, when):
    """Ctrl-C is not taken for a mirror's failure: it ends the download, and no file is left."""
    mirror.files = {"/a": DATA, "/b": DATA}

    def interrupt(*_):
        assert len(files_in(target.parent)) == 2  # the temporary folder and the file in it
        raise KeyboardInterrupt

    class Interrupted(io.BytesIO):
        length = len(DATA)

        def read1(self, size):
            return interrupt() if self.tell() else self.read(size)

    if when == "while the mirror sends":
        monkeypatch.setattr(module, "urlopen", lambda url, timeout: Interrupted(DATA))
    with pytest.raises(KeyboardInterrupt):
        download([mirror.url + "a", mirror.url + "b"], target, interrupt)
    assert "/b" not in mirror.asked
    assert files_in(target.parent) == []


def test_every_mirrors_failure_is_reported(mirror, target):
    """No server, no such file, no HTTP, a wrong file: a DataError has each address and its reason; nothing is left."""
    mirror.garbled["/b"], mirror.files["/c"] = b"SSH-2.0\r\n\r\n", b""
    urls = [NOBODY, mirror.url + "a", mirror.url + "b", mirror.url + "c"]
    with pytest.raises(DataError) as error:
        download(urls, target, check)
    reasons = str(error.value).split("; ")
    for url, reason, part in zip(urls, reasons, ("refused", "HTTP Error 404", "SSH-2.0", "wrong bytes"), strict=True):
        assert reason.startswith(f"{url}: ")
        assert part in reason
    assert files_in(target.parent) == []
    del error
    gc.collect()  # a connection that is still open would be a ResourceWarning


def test_a_target_that_cannot_be_written_is_an_error_and_leaves_nothing(mirror, target):
    """A folder in the target's place is named in the DataError."""
    mirror.files["/a"] = DATA
    target.mkdir()
    with pytest.raises(DataError, match=r"file\.gz"):
        download([mirror.url + "a"], target, check)
    assert files_in(target.parent) == ["file.gz"]


# Mirrors that do not end.  Each one would go on for LONG_S, and each test is much faster.

LONG_S = 4.0


def fails_soon(urls, target, reason):
    """The download fails for that reason before LONG_S is over, and leaves nothing."""
    start = time.monotonic()
    with pytest.raises(DataError, match=reason):
        download(urls, target, check)
    assert time.monotonic() - start < LONG_S / 2
    assert files_in(target.parent) == []


def test_an_endless_mirror_is_cut_off_and_the_next_one_asked(mirror, target):
    """A mirror may send most_bytes and no more."""
    mirror.scripts["/endless"] = lambda send: [send(DATA) for _ in range(200)]  # 40 MB
    mirror.files["/a"] = DATA
    with pytest.raises(DataError, match="not complete after 300,000 bytes"):
        download([mirror.url + "endless"], target, check, 300_000)
    assert files_in(target.parent) == []
    assert download([mirror.url + "endless", mirror.url + "a"], target, check, 300_000) == DATA


def test_the_largest_file_is_not_cut_off(mirror, target):
    """most_bytes itself is allowed; CIFAR-10's archive has 170,498,071 bytes, and MNIST's largest file 9,912,422."""
    assert RELEASES["cifar10"].most_bytes > 170_498_071 and RELEASES["mnist"].most_bytes > 2 * 9_912_422
    mirror.files["/a"] = DATA
    assert download([mirror.url + "a"], target, check, len(DATA)) == DATA


def test_a_mirror_that_sends_a_byte_now_and_then_is_left_in_time(mirror, target, monkeypatch):
    """No pause is long, but the file is not complete after MOST_S."""
    monkeypatch.setattr(module, "MOST_S", 0.2)
    mirror.scripts["/a"] = lambda send: [(send(b"a"), time.sleep(0.02)) for _ in range(int(LONG_S / 0.02))]
    fails_soon([mirror.url + "a"], target, r"not complete after .* or 0\.2 s")


def test_a_mirror_that_stops_sending_is_left_in_time(mirror, target, monkeypatch):
    """A pause of ANSWER_S in the middle of the file is a failure."""
    monkeypatch.setattr(module, "ANSWER_S", 0.8)  # on a busy machine the first answer takes a while
    mirror.scripts["/a"] = lambda send: (send(DATA[:1000]), time.sleep(LONG_S))
    fails_soon([mirror.url + "a"], target, "timed out")


def test_a_mirror_that_does_not_answer_is_left_in_time(target, monkeypatch):
    """A host that accepts the connection and sends nothing costs ANSWER_S."""
    monkeypatch.setattr(module, "ANSWER_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        fails_soon([f"http://127.0.0.1:{silent.getsockname()[1]}/a"], target, r"timed out|no answer within 0\.2 s")


def test_a_connection_that_stays_open_after_the_file_costs_no_time(mirror, target):
    """The announced length ends the download: a mirror need not hang up."""
    mirror.files["/a"], mirror.linger = DATA, LONG_S
    start = time.monotonic()
    assert download([mirror.url + "a"], target, check) == DATA
    assert time.monotonic() - start < LONG_S / 2


HANGING = """
import sys, time
from pathlib import Path
from tinydiff.data import download as module
module.ANSWER_S = 0.1
module.urlopen = lambda url, timeout: time.sleep(60)
try:
    module.download(["http://example.invalid/a"], Path(sys.argv[1]), None, 9)
except module.DataError as error:
    print(error)
"""


def test_a_look_up_that_hangs_delays_neither_the_download_nor_the_end_of_the_program(target):
    """urlopen's timeout leaves out the look-up of a host's name, ANSWER_S does not; nobody waits for the thread."""
    command = [sys.executable, "-W", "error", "-c", HANGING, target]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert ended.stdout == "http://example.invalid/a: no answer within 0.1 s\n"
    assert ended.stderr == ""
    assert files_in(target.parent) == []


def test_what_a_killed_download_has_left_is_removed_by_a_later_one(mirror, target):
    """A folder so old that no download can still write to it goes; one that may be another process's stays."""
    mirror.files["/a"] = DATA
    for name, age in (("old", 2 * module.MOST_S + 10), ("new", module.MOST_S)):
        left = target.parent / f"{target.name}.{name}"
        left.mkdir()
        (left / target.name).write_bytes(DATA[:9])
        os.utime(left, (time.time() - age,) * 2)
    download([mirror.url + "a"], target, check)
    assert sorted(files_in(target.parent)) == ["file.gz", "file.gz.new", "file.gz.new/file.gz"]


def test_the_bar_counts_the_bytes_of_the_file(mirror, target, monkeypatch):
    """Of as many as the mirror announces, so that it knows the share that is there; under the file's name."""
    bars = []

    class Bar(tqdm.tqdm):
        def __init__(self, **options):
            super().__init__(**options | {"disable": False, "file": io.StringIO()})
            bars.append(self)

    monkeypatch.setattr(tqdm, "tqdm", Bar)
    mirror.files["/a"] = DATA
    download([mirror.url + "a"], target, check)
    assert [(bar.n, bar.total, bar.desc.rstrip(": ")) for bar in bars] == [(len(DATA), len(DATA), "file.gz")]


def test_a_name_with_wildcards_is_a_name(mirror, target):
    """What is left of a target whose name holds wildcards is removed, and what they would match stays."""
    mirror.files["/a"] = DATA
    for name in ("f[i]*.gz.old", "file.gz.old"):
        (target.parent / name).mkdir()
        os.utime(target.parent / name, (time.time() - 2 * module.MOST_S - 10,) * 2)
    download([mirror.url + "a"], target.with_name("f[i]*.gz"), lambda path: path.read_bytes())
    assert sorted(files_in(target.parent)) == ["f[i]*.gz", "file.gz.old"]
