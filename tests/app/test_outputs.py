"""Laws of what a program writes: targets are checked before the work, and a folder belongs to one run at a time."""

import os
import signal
import stat
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from tinydiff.app import outputs
from tinydiff.app.checkpoint import atomic_write
from tinydiff.app.outputs import file_to_write, own_folder, release
from tinydiff.backend import TinydiffError

pytestmark = pytest.mark.program

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(outputs.__file__).parents[2])}


@pytest.fixture(autouse=True)
def released():
    yield
    release()


_OWNER = """
import sys, time
from tinydiff.app.outputs import own_folder
from tinydiff.backend import TinydiffError
try:
    own_folder(sys.argv[1], "a.png")
except TinydiffError as error:
    sys.exit(str(error))
print("owned", flush=True)
sys.stdin.read()
"""


def start(folder):
    """A process that owns the folder until its input ends, or ends at once."""
    command = [sys.executable, "-c", _OWNER, str(folder)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, text=True, env=ENVIRONMENT, **pipes)


def end_of(process):
    """What a process that ended by itself has said."""
    said = process.communicate()[1]
    assert process.returncode == 1
    return said


@pytest.mark.parametrize("end", ["well", "kill -9"])
def test_a_folder_belongs_to_one_process_until_it_ends(tmp_path, end):
    """Meanwhile another one is refused, by whatever name; the end, also by kill -9, leaves no lock and no file."""
    folder, link = tmp_path / "runs" / "mnist", tmp_path / "link"
    first = start(folder)
    assert first.stdout.readline() == "owned\n"
    link.symlink_to(folder)
    for name in (folder, link, folder / ".." / "mnist"):
        assert f"--out {name}: another run writes there; let it end, or choose another folder" in end_of(start(name))
        with pytest.raises(TinydiffError, match="another run writes there"):
            own_folder(name, "a.png")
    other = start(tmp_path / "runs" / "other")  # a neighbour is no other run in this folder
    assert other.stdout.readline() == "owned\n"
    other.communicate()
    if end == "kill -9":
        first.send_signal(signal.SIGKILL)
    first.communicate()
    assert own_folder(folder, "a.png") == folder
    assert os.listdir(folder) == []
    assert "another run writes there" in end_of(start(folder))  # now it is this process's
    release()
    last = start(folder)
    assert last.stdout.readline() == "owned\n"
    last.communicate()


def test_a_process_may_own_a_folder_again(tmp_path):
    """Two calls of main in one process: the second needs no other lock, and one release suffices."""
    for _ in range(2):
        own_folder(tmp_path / "out", "a.png")
    assert len(outputs._owned) == 1
    release()
    assert outputs._owned == {}


def test_a_folder_that_stays_empty_does_not_stay(tmp_path):
    """A run that ends before it writes leaves nothing new; a folder that was there, or has a file, stays."""
    (tmp_path / "old").mkdir()
    for name in ("old", "old/inner", "new", "used", "used/inner"):
        own_folder(tmp_path / name, "a.png")
    (tmp_path / "used" / "a.png").touch()
    release()
    left = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*"))
    assert left == ["old", "used", "used/a.png"]


def test_on_a_file_system_without_locks_a_note_says_so(tmp_path, monkeypatch, capsys):
    """Where a folder cannot be locked, a file in it is; where that cannot either, the run goes on with a note."""
    real, refused = outputs.lock, []

    def lock(descriptor, files_too):
        if files_too or stat.S_ISDIR(os.fstat(descriptor).st_mode):
            refused.append(descriptor)
            raise OSError("no locks available")
        return real(descriptor)

    monkeypatch.setattr(outputs, "lock", partial(lock, files_too=False))
    own_folder(tmp_path / "a", "a.png")
    assert len(refused) == 1 and os.listdir(tmp_path / "a") == [".lock"] and capsys.readouterr().out == ""
    monkeypatch.setattr(outputs, "lock", partial(lock, files_too=True))
    own_folder(tmp_path / "b", "a.png")
    assert f"note: no locks in {tmp_path / 'b'}" in capsys.readouterr().out


def odd_paths(folder):
    """Paths at which no file can be written, each with the reason."""
    (folder / "file").write_text("in the way")
    (folder / "folder.png").mkdir()
    os.mkfifo(folder / "pipe.png")
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "broken.png").symlink_to(folder / "gone" / "a.png")
    (folder / "device.png").symlink_to("/dev/null")
    return {
        folder / "folder.png": "Is a directory",
        folder / "pipe.png": "a pipe, a socket or a device",
        folder / "loop.png": "not a file",
        folder / "device.png": "a device",
        folder / "broken.png": "No such file or directory",
        folder / "file" / "a.png": "it is not a folder",
        folder / "file" / "b" / "a.png": "Not a directory",
        folder / ("x" * 100_000 + ".png"): "File name too long",
        folder / ("x" * 240 + ".png"): "File name too long",  # of the temporary file, which is what is written first
        Path("/proc/nothing/a.png"): "No such file or directory",
    }


@pytest.mark.skipif(os.name != "posix", reason="pipes, links and /proc")
def test_a_path_that_cannot_be_written_is_named_at_once(tmp_path):
    """Each of them is found by both functions as a write would find it, with the option, the path and the reason."""
    before = sorted(tmp_path.iterdir())
    for path, reason in odd_paths(tmp_path).items():
        for check in (
            partial(file_to_write, "--x", path, ".png"),
            partial(own_folder, path.parent, path.name, option="--x"),
        ):
            with pytest.raises(TinydiffError, match=reason) as error:
                check()
            assert str(error.value).startswith(f"--x {path.parent}") and len(str(error.value).splitlines()) == 1
        with pytest.raises((TinydiffError, OSError)):
            with atomic_write(path) as file:
                file.write(b"a")
    assert os.path.exists("/dev/null") and not os.path.isfile("/dev/null")
    assert len(list(tmp_path.iterdir())) == len(before) + 6  # nothing temporary


def test_only_the_kinds_of_files_that_are_written_are_taken(tmp_path):
    """A .jpeg with the bytes of a .png would be a lie; an upper-case ending is the same kind."""
    for name in ("a.jpeg", "a.xyz", "a", "png", ".png", "a.png.gz", "a.npz", ""):
        with pytest.raises(TinydiffError, match=r"--out .*: the name must end in \.png, the kind that is written"):
            file_to_write("--out", name and tmp_path / name, ".png")
    for name in ("a.png", "A.PNG", "b.c.png"):
        assert file_to_write("--out", tmp_path / "new" / "folders" / name, ".png").name == name
    with pytest.raises(TinydiffError, match=r"must end in \.md or \.csv"):
        file_to_write("--table", tmp_path / "a.png", ".md", ".csv")
    assert os.listdir(tmp_path / "new" / "folders") == []


@pytest.mark.parametrize("what", ["a file", "a link to nowhere", "no name"])
def test_a_folder_that_cannot_be_made_is_named(tmp_path, what):
    """A sentence with the option and the name."""
    path = tmp_path / "out"
    if what == "a file":
        path.write_text("")
    elif what == "a link to nowhere":
        path.symlink_to("gone")
    reason = "the name is empty" if what == "no name" else "it is not a folder"
    with pytest.raises(TinydiffError, match=rf"--out .*: the folder cannot be made \({reason}\)"):
        own_folder("" if what == "no name" else path, "a.png")


@pytest.mark.skipif(os.name != "posix" or os.getuid() != 0, reason="rights do not bind root: only root can be another")
def test_a_folder_without_the_right_to_write_is_named(tmp_path):
    """Another user's folder: found at once, for files and for folders, and nothing is left there."""
    (tmp_path / "theirs").mkdir(mode=0o755)
    code = f"""
import os
from tinydiff.app.outputs import file_to_write, own_folder
os.setgroups([]); os.setgid(65534); os.setuid(65534)
for check in (lambda: own_folder("{tmp_path}/theirs", "a.png"), lambda: own_folder("{tmp_path}/theirs/b", "a.png"),
              lambda: file_to_write("--out", "{tmp_path}/theirs/a.png", ".png")):
    try:
        check()
    except RuntimeError as error:
        print(error)
"""
    for folder in (tmp_path, *tmp_path.parents):
        if folder != Path("/") and folder.stat().st_uid == 0 and "pytest" in folder.name:
            folder.chmod(0o755)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT)
    assert (done.stderr, done.stdout.count("Permission denied"), done.stdout.count("--out ")) == ("", 3, 3)
    assert os.listdir(tmp_path / "theirs") == []
