"""A checkpoint is exact, whole or absent, never executed, and every way it can be wrong has its own message."""

import contextlib
import errno
import gc
import hashlib
import io
import itertools
import os
import pickle
import re
import stat
import subprocess
import sys
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from same_bytes import same_bytes

from tinydiff.app import checkpoint
from tinydiff.app.checkpoint import CheckpointError, atomic_write, check_same, load, save, set_aside, set_aside_run

pytestmark = pytest.mark.program

ARRAYS = {"down.0.w": np.arange(6, dtype=np.float32).reshape(2, 3), "adam/step": np.array(7)}
_MARK = "tinydiff checkpoint.npy"
META = {"step": 12, "channel_mults": [1, 2, 2], "name": "größe"}

_names = st.text(st.characters(codec="utf-8", exclude_characters="\\", exclude_categories=["C", "Z"]), min_size=1)
_arrays = st.sampled_from("?bBhiqefdFSU").flatmap(
    lambda kind: hnp.arrays(np.dtype(kind + "3" if kind in "SU" else kind), hnp.array_shapes(min_dims=0, min_side=0))
)
_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


def _same(found, wanted):
    assert list(found) == list(wanted)
    for name, array in wanted.items():
        assert found[name].dtype == array.dtype and found[name].shape == array.shape
        assert found[name].tobytes() == array.tobytes(), name  # bit for bit, NaN payloads too


def _sealed(members):
    """A hand-made checkpoint with a right digest: what only a forger or a newer version would write."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.comment = bytes(64)
        for name, content in members.items():
            archive.writestr(name, content)
    body = buffer.getvalue()[:-64]
    return body + hashlib.sha256(body).hexdigest().encode()


def _npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def _json_array(text):
    return _npy(np.frombuffer(text.encode(), np.uint8))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.npz"


@given(arrays=st.dictionaries(_names, _arrays, max_size=4), meta=st.dictionaries(st.text(), _json, max_size=4))
def test_load_returns_exactly_what_was_saved(tmp_path_factory, arrays, meta):
    """load(save(x)) = x for any names, dtypes, shapes and JSON, bit for bit; arrays can be written to."""
    path = tmp_path_factory.getbasetemp() / "round_trip.npz"
    save(path, arrays, meta)
    found, found_meta = load(path)
    _same(found, arrays)
    assert found_meta == meta
    assert all(array.flags.writeable and array.flags.c_contiguous for array in found.values())


def test_equal_content_gives_equal_bytes(path, tmp_path):
    """The bytes depend on names, values and settings, not on the clock, memory order or the order of settings."""
    save(path, ARRAYS, META)
    other = tmp_path / "other.npz"
    turned = {name: np.asarray(a, order="F") for name, a in ARRAYS.items()}
    save(other, turned, dict(reversed(META.items())))
    assert same_bytes(path.read_bytes(), other.read_bytes())
    with zipfile.ZipFile(path) as archive:
        assert {member.date_time for member in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_numpy_reads_a_checkpoint_without_this_package(path):
    """The file is an ordinary .npz: np.load finds every array, and the settings as UTF-8 JSON."""
    save(path, ARRAYS, META)
    with np.load(path, allow_pickle=False) as file:
        assert b'"version": 1' in file["tinydiff checkpoint"].tobytes()
        _same({name: file[name] for name in file.files[1:]}, ARRAYS)


def test_every_flipped_byte_is_noticed(path, rng):
    """A change of any one byte, anywhere in the file, is a CheckpointError: never other content, never a traceback."""
    save(path, ARRAYS, META)
    data = path.read_bytes()
    with open(path, "r+b", buffering=0) as file:  # byte by byte in place: rewriting it each time is ten times slower
        for i, flip in enumerate(rng.integers(1, 256, len(data))):
            file.seek(i)
            file.write(bytes([data[i] ^ flip]))
            with pytest.raises(CheckpointError):
                load(path)
            file.seek(i)
            file.write(data[i : i + 1])
    _same(load(path)[0], ARRAYS)


def test_every_truncation_is_noticed(path):
    """A file cut at any length is a CheckpointError; from the third byte on the message says that it is cut short."""
    save(path, ARRAYS, META)
    for length in reversed(range(path.stat().st_size)):
        os.truncate(path, length)
        with pytest.raises(CheckpointError, match="cut short" if length >= 2 else "empty|not an .npz"):
            load(path)


@given(data=st.data())
def test_a_forged_digest_still_gives_a_clean_error(tmp_path_factory, data):
    """Random damage under a right digest reaches zipfile, JSON and NumPy: only CheckpointError comes out."""
    path = tmp_path_factory.getbasetemp() / "forged.npz"
    save(path, ARRAYS, META)
    body = bytearray(path.read_bytes()[:-64])
    for i in data.draw(st.lists(st.integers(0, len(body) - 1), min_size=1, max_size=40)):
        body[i] ^= data.draw(st.integers(1, 255))
    path.write_bytes(body + hashlib.sha256(body).hexdigest().encode())
    with contextlib.suppress(CheckpointError):  # the damage may be in bytes without meaning, such as a date
        arrays, meta = load(path)
        assert all(isinstance(array, np.ndarray) for array in arrays.values()) and isinstance(meta, dict)


def test_each_kind_of_wrong_file_is_named(path):
    """Each way a file can be wrong has its own message, which starts with the path."""
    foreign = io.BytesIO()
    np.savez(foreign, w=np.zeros(3))
    save(path, ARRAYS, META)
    damaged = path.read_bytes().replace(ARRAYS["down.0.w"].tobytes(), bytes(24))
    cases = {
        "does not exist": None,
        "is empty": b"",
        "not an .npz file": b"P5 28 28 255 ...",
        "an .npz file of other software": foreign.getvalue(),
        "is damaged": damaged,
        "has version 2, newer than 1": _sealed({_MARK: _json_array('{"version": 2}')}),
        "not a checkpoint that this version can read": _sealed({_MARK: _json_array("[]")}),
        "is not a tinydiff checkpoint: an .npz": _sealed({"w.npy": _npy(np.zeros(3))}),
    }
    for message, content in cases.items():
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(CheckpointError, match=re.escape(message)) as error:
            load(path)
        assert str(error.value).startswith(str(path))
    with pytest.raises(CheckpointError, match="cannot be read: Is a directory"):
        load(path.parent)


class _Bomb:
    """Unpickling this writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_pickled_objects_are_refused_and_never_run(path, tmp_path):
    """An object array under the format mark and a right digest is refused by name, and its code does not run."""
    loot = tmp_path / "loot"
    bomb = np.array([_Bomb(loot)], dtype=object)
    path.write_bytes(_sealed({_MARK: _json_array('{"version": 1, "meta": {}}'), "w.npy": _npy(bomb)}))
    with pytest.raises(CheckpointError, match=r"contains pickled objects.*w.npy"):
        load(path)
    path.write_bytes(_sealed({_MARK: _npy(bomb)}))
    with pytest.raises(CheckpointError, match="contains pickled objects"):
        load(path)
    path.write_bytes(pickle.dumps(bomb))
    with pytest.raises(CheckpointError, match=r"not an .npz file"):
        load(path)
    assert not loot.exists()
    pickle.loads(pickle.dumps(bomb))
    assert loot.exists()  # the bomb was live


def test_an_array_in_another_npy_version_is_refused_by_name(path):
    """Only the .npy version that save writes is parsed: versions 2.0 and 3.0 have another header length."""
    for version in ((1, 0), (2, 0), (3, 0)):
        npy = io.BytesIO()
        np.lib.format.write_array(npy, np.zeros(3), version=version)
        path.write_bytes(_sealed({_MARK: _json_array('{"version": 1, "meta": {}}'), "w.npy": npy.getvalue()}))
        if version == (1, 0):
            assert load(path)[0]["w"].shape == (3,)
        else:
            with pytest.raises(CheckpointError, match=r"contains w.npy, which is not an array that tinydiff saves"):
                load(path)


def test_what_cannot_be_loaded_again_is_not_saved(path):
    """Objects, lists, reserved or unprintable names and settings beyond JSON are ValueErrors; no file appears."""
    for arrays in (
        {"w": np.array([None])},
        {"w": [1.0]},
        {"w": np.zeros(2, "f4,f8")},
        {"": np.zeros(2)},
        {"a\0b": np.zeros(2)},
        {"a\\b": np.zeros(2)},
        {checkpoint.FORMAT: np.zeros(2)},
    ):
        with pytest.raises(ValueError, match=re.escape(repr(next(iter(arrays))))):
            save(path, arrays, {})
    with pytest.raises(ValueError, match=r"meta must hold what JSON can hold: .*int64"):
        save(path, ARRAYS, {"step": np.int64(3)})
    assert os.listdir(path.parent) == []


def _fail(*args, **kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failed_save_keeps_the_old_checkpoint(path, monkeypatch, call):
    """When the disk fails at any call, the old content stays, nothing temporary stays, and the message says why."""
    save(path, ARRAYS, META)
    monkeypatch.setattr(os, call, _fail)
    with pytest.raises(CheckpointError, match=f"cannot write {re.escape(str(path))}: No space left on device"):
        save(path, {}, {})
    assert load(path)[1] == META and os.listdir(path.parent) == [path.name]


def test_a_full_disk_keeps_the_old_checkpoint(path):
    """A write that the kernel refuses at any byte (a limit on the file size) leaves the old content and no more."""
    resource = pytest.importorskip("resource")  # POSIX
    save(path, {"w": np.ones(1000)}, META)
    size = path.stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in [*range(0, size, 271), size - 1]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            with pytest.raises(CheckpointError, match=r"cannot write .*: File too large"):
                save(path, {"w": np.zeros(1000)}, META)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert load(path)[0]["w"].all() and os.listdir(path.parent) == [path.name]
    gc.collect()  # a traceback's cycle that holds a view of a buffer crashes Python 3.12 here


def test_ctrl_c_at_any_line_of_a_save_is_ctrl_c(path, monkeypatch):
    """KeyboardInterrupt at any line of checkpoint.py, zipfile.py or NumPy's format.py stays KeyboardInterrupt, and
    leaves the old checkpoint or the new one."""
    monkeypatch.setattr(
        sys, "unraisablehook", lambda _: None
    )  # an archive that is half made complains when it is freed
    files = {checkpoint.__file__, zipfile.__file__, np.lib.format.write_array.__code__.co_filename}
    seen = {1: 0, 2: 0}
    for line in itertools.count(1, 5):
        save(path, ARRAYS, {"step": 1})
        if not _interrupt(path, files, line):
            break
        seen[load(path)[1]["step"]] += 1
    gc.collect()
    assert seen[1] > 100 and seen[2] > 0


def _interrupt(path, files, line):
    """Save step 2, and press Ctrl-C before this line of all that the save runs.  Returns whether it has as many."""
    count, before = 0, sys.gettrace()

    def trace(frame, event, _):
        nonlocal count
        if frame.f_code.co_filename not in files:
            return None
        count += event == "line"
        if event == "line" and count == line:
            raise KeyboardInterrupt
        return trace

    sys.settrace(trace)
    try:
        save(path, ARRAYS, {"step": 2})  # complete if Ctrl-C comes within __del__, where Python swallows it
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(before)
    return count >= line


def test_a_save_needs_little_memory_of_its_own(path):
    """The arrays go to the disk one after the other: the memory does not grow with the file."""
    arrays = {f"w{i}": np.zeros(250_000, np.float32) for i in range(8)}
    save(path, arrays, {})
    tracemalloc.start()
    try:
        save(path, arrays, {})
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4e6 < path.stat().st_size / 2  # one array and a block of the file


def test_a_folder_that_is_missing_or_in_the_way_is_named(path):
    """Saving into a folder that does not exist, or over a folder, is a CheckpointError that leaves nothing behind."""
    with pytest.raises(CheckpointError, match=r"cannot write .*nowhere.*: No such file or directory"):
        save(path.parent / "nowhere" / "model.npz", {}, {})
    path.mkdir()
    with pytest.raises(CheckpointError, match=r"cannot write .*: Is a directory"):
        save(path, {}, {})
    assert os.listdir(path.parent) == [path.name]


_KILLED = """
import os, signal, sys
import numpy as np
from tinydiff.app.checkpoint import save

path, call, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
real = getattr(os, call)

def kill(*args):
    global count
    count -= 1
    if count == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*args)

setattr(os, call, kill)
save(path, {"w": np.ones(1000)}, {"step": 2})
"""


@pytest.mark.skipif(os.name != "posix", reason="kill -9")
@pytest.mark.parametrize(("call", "count", "step"), [("fsync", 1, 1), ("replace", 1, 1), ("fsync", 2, 2)])
def test_kill_9_leaves_the_old_or_the_new_checkpoint(path, call, count, step):
    """A process killed before or after the replacement leaves one whole checkpoint; the next save clears its rest."""
    save(path, {"w": np.zeros(1000)}, {"step": 1})
    root = str(Path(checkpoint.__file__).parents[2])
    command = [sys.executable, "-c", _KILLED, str(path), call, str(count)]
    child = subprocess.run(command, env={**os.environ, "PYTHONPATH": root})
    assert child.returncode == -9
    arrays, meta = load(path)
    assert meta == {"step": step} and arrays["w"].tolist() == [step - 1] * 1000
    assert len(os.listdir(path.parent)) == 3 - step  # the killed writer's temporary file, if it still had one
    save(path, ARRAYS, META)
    assert os.listdir(path.parent) == [path.name]


_WRITER = """
import sys
from tinydiff.app.checkpoint import atomic_write

path, letter = sys.argv[1:]
for _ in range(400):
    with atomic_write(path) as file:
        file.write(letter.encode() * 5000)
"""


def test_two_processes_may_write_the_same_path(path):
    """Neither fails, whatever they do to each other's temporary files; what stays is whole and of one writer."""
    environment = {**os.environ, "PYTHONPATH": str(Path(checkpoint.__file__).parents[2])}
    command = [sys.executable, "-c", _WRITER, str(path)]
    children = [subprocess.Popen([*command, letter], env=environment, stderr=subprocess.PIPE) for letter in "abc"]
    assert [(child.communicate()[1], child.returncode) for child in children] == [(b"", 0)] * 3
    assert path.read_bytes() in [letter * 5000 for letter in (b"a", b"b", b"c")]
    assert os.listdir(path.parent) == [path.name]


def test_a_writer_that_is_alive_keeps_its_temporary_file(path):
    """A write within a write of the same path: both end well, and the last one to end stays."""
    with atomic_write(path) as slow:
        slow.write(b"slow")
        with atomic_write(path) as quick:
            quick.write(b"quick")
        assert path.read_bytes() == b"quick"
    assert path.read_bytes() == b"slow" and os.listdir(path.parent) == [path.name]


@pytest.mark.skipif(os.name != "posix", reason="pipes with a path")
def test_only_a_file_is_replaced(path):
    """A pipe, as a device such as /dev/null, would be gone for all: CheckpointError, and it stays."""
    os.mkfifo(path)
    with pytest.raises(CheckpointError, match=r"cannot write .*: it is a pipe, a socket or a device, not a file"):
        save(path, ARRAYS, META)
    assert stat.S_ISFIFO(path.stat().st_mode) and os.listdir(path.parent) == [path.name]
    with pytest.raises(CheckpointError, match=r"cannot be read: it is a pipe, a socket or a device"):
        load(path)


def test_the_stale_files_of_other_names_are_left_alone(path):
    """Clearing up touches the temporary files of this very name only, also where a name holds wildcards."""
    strange = path.with_name("mo*[e].npz")
    stale = strange.with_name(".mo*[e].npz.0123abcd.tmp")
    kept = {".model.npz.0123abcd.tmp", ".mo*[e].npz.other.0123abcd.tmp", "0123abcd.tmp"}
    for name in [stale.name, *kept]:
        path.with_name(name).touch()
    save(strange, {}, {})
    assert set(os.listdir(path.parent)) == kept | {strange.name}


def test_the_content_is_on_the_disk_before_it_takes_its_place(path, monkeypatch):
    """The order that survives a power cut: write all, fsync the file, replace, fsync the folder."""
    calls = []
    real_fsync, real_replace = os.fsync, os.replace

    def fsync(descriptor):
        status = os.fstat(descriptor)
        calls.append("folder" if stat.S_ISDIR(status.st_mode) else status.st_size)
        real_fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", lambda *names: calls.append("replace") or real_replace(*names))
    save(path, ARRAYS, META)
    size = path.stat().st_size
    assert calls == ([size, "replace", "folder"] if os.name == "posix" else [size, "replace"])


def test_a_block_that_fails_writes_nothing(path):
    """Any exception inside atomic_write, Ctrl-C too, passes through unchanged and leaves the folder as it was."""
    path.write_bytes(b"old")
    for error in (ValueError("a bad picture"), KeyboardInterrupt()):
        with pytest.raises(type(error)):
            with atomic_write(path) as file:
                file.write(b"half")
                raise error
        assert path.read_bytes() == b"old" and os.listdir(path.parent) == [path.name]


@pytest.mark.skipif(os.name != "posix", reason="links and permission bits")
def test_links_and_permissions_are_as_with_a_plain_write(path, tmp_path):
    """A link keeps naming the same file, whose content is replaced; the mode follows the umask, as for open()."""
    (tmp_path / "plain").touch()
    link = tmp_path / "latest.npz"
    link.symlink_to(path.name)
    save(link, ARRAYS, META)
    assert link.is_symlink() and load(path)[1] == META
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_another_configuration_is_named_key_by_key():
    """check_same names each asked-for key that differs, with both values, and nothing else."""
    found = {"base": 32, "mults": [1, 2, 2], "data": "mnist", "step": 5, "gone": 1}
    check_same(found, {"base": 32, "mults": (1, 2, 2), "data": "mnist", "step": 9}, ["base", "mults", "data", "new"])
    with pytest.raises(CheckpointError) as error:
        check_same(found, {"base": 64, "mults": (1, 2), "data": "mnist", "step": 9}, ["base", "mults", "data", "gone"])
    message = str(error.value)
    for part in ("base is 32 in the checkpoint, 64 is wanted", "mults is [1, 2, 2]", "[1, 2] is wanted", "gone is 1"):
        assert part in message
    assert "data" not in message and "step" not in message
    with pytest.raises(CheckpointError, match=r": new is None in the checkpoint, 1 is wanted; none is 0 .*, 2 is"):
        check_same(found | {"none": 0}, {"new": 1, "none": 2}, ["new", "none"])


def test_what_a_new_run_would_overwrite_gets_the_first_free_number(tmp_path, capsys):
    """set_aside renames model.npz to model.1.npz, then model.2.npz, says so, and leaves a name without a file alone."""
    path = tmp_path / "model.npz"
    set_aside(path)
    assert os.listdir(tmp_path) == [] and capsys.readouterr().out == ""
    for number in (1, 2):
        path.write_bytes(b"run %d" % number)
        set_aside(path)
        assert capsys.readouterr().out == f"{path} of an earlier run is now {tmp_path}/model.{number}.npz\n"
    assert {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)} == {
        "model.1.npz": b"run 1",
        "model.2.npz": b"run 2",
    }


def test_what_a_run_left_is_set_aside_together(tmp_path, capsys):
    """set_aside_run moves each name that is there to earlier.1, then to earlier.2, and nothing else."""
    names = ("progress", "metrics.csv", "checkpoint.npz")
    set_aside_run(tmp_path, names)
    (tmp_path / "progress").mkdir()
    (tmp_path / "mine.txt").write_bytes(b"mine")
    set_aside_run(tmp_path, names)  # an empty folder is nothing that a run left
    assert sorted(os.listdir(tmp_path)) == ["mine.txt", "progress"] and capsys.readouterr().out == ""
    (tmp_path / "progress" / "a.png").write_bytes(b"a")
    (tmp_path / "checkpoint.npz").write_bytes(b"run 1")
    set_aside_run(tmp_path, names)
    assert capsys.readouterr().out == f"the files of an earlier run are now in {tmp_path}/earlier.1/\n"
    (tmp_path / "checkpoint.npz").write_bytes(b"run 2")
    set_aside_run(tmp_path, names)
    files = {path.relative_to(tmp_path).as_posix(): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert files == {
        "earlier.1/checkpoint.npz": b"run 1",
        "earlier.1/progress/a.png": b"a",
        "earlier.2/checkpoint.npz": b"run 2",
        "mine.txt": b"mine",
    }


def test_a_run_that_is_set_aside_can_be_resumed_until_all_is_moved(tmp_path, monkeypatch):
    """The names are moved in their order: while the checkpoint is last, it is there as long as anything is."""
    for name in ("a", "b", "c"):
        (tmp_path / name).write_bytes(b"")
    moved = []
    monkeypatch.setattr(os, "replace", lambda path, to: moved.append((path.name, to.parent.name)))
    set_aside_run(tmp_path, ("b", "c", "a"))
    assert moved == [("b", "earlier.1"), ("c", "earlier.1"), ("a", "earlier.1")]


def test_a_number_that_another_process_takes_meanwhile_is_left_to_it(tmp_path, monkeypatch):
    """The name is claimed before the file is renamed: nothing that came in between is overwritten."""
    path, touch = tmp_path / "model.npz", Path.touch

    def late(self, **options):
        if self.name == "model.1.npz" and not self.exists():
            self.write_bytes(b"of another process")
        touch(self, **options)

    monkeypatch.setattr(Path, "touch", late)
    path.write_bytes(b"mine")
    set_aside(path)
    assert (tmp_path / "model.1.npz").read_bytes() == b"of another process"
    assert (tmp_path / "model.2.npz").read_bytes() == b"mine" and not path.exists()
