"""The files that a program will write are checked before its work begins, and a folder belongs to one run at a time.

    out = ranks.broadcast(partial(own_folder, out, "samples.png", "loss.png"))
    path = file_to_write("--out", path, ".png")

A lock keeps other runs out of the folder.  The system drops the lock when the process ends, also after kill -9, and no
lock file is left over.  checkpoint.atomic_write writes the files.  Read next: checkpoint.py.
"""

import contextlib
import errno
import os
import sys
from pathlib import Path

from tinydiff.backend import TinydiffError

# The folders of this process, each with the descriptor that holds its lock, and its path if this process has made it.
_owned: dict[tuple[int, int], tuple[int, Path | None]] = {}


def own_folder(path: str | os.PathLike, *names: str, option: str = "--out") -> Path:
    """Make the folder if need be, check that files can be written there, and keep other processes out of it.

    names: the files that the program will write.  The folder is owned until `release` is called or the process ends.
    Raises TinydiffError if a file cannot be written, or if another process owns the folder.
    """
    new = not os.path.lexists(path)
    folder = _made(option, path)
    for name in names:
        _check_target(option, folder / name)
    status = os.stat(folder)
    if (status.st_dev, status.st_ino) not in _owned:
        descriptor = _locked(folder)
        if descriptor is None:
            raise TinydiffError(f"{option} {path}: another run writes there; let it end, or choose another folder")
        _owned[status.st_dev, status.st_ino] = descriptor, folder.absolute() if new else None
    return folder


def file_to_write(option: str, path: str | os.PathLike, *suffixes: str) -> Path:
    """Check that a file can be written, and make its folder.  suffixes: the kinds of files that the program writes.

    Raises TinydiffError with the option and the path.
    """
    if Path(path).suffix.lower() not in suffixes:
        raise TinydiffError(f"{option} {path}: the name must end in {' or '.join(suffixes)}, the kind that is written")
    _made(option, Path(path).parent)
    _check_target(option, Path(path))
    return Path(path)


def release() -> None:
    """Let other processes into the folders that this process owns.  A folder that it has made and left empty goes."""
    while _owned:
        _, (descriptor, made) = _owned.popitem()
        with contextlib.suppress(OSError):  # the folder is not empty
            if made is not None:
                made.rmdir()
        os.close(descriptor)


def lock(descriptor: int) -> bool:
    """Lock an open file for this process, until it is closed.  Returns False if another process has locked it.

    Raises OSError on a file system without locks.
    """
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # the second on Windows
        return False
    return True


def temporary_name(path: Path) -> Path:
    """A new name beside `path` for a file that will replace it."""
    return path.with_name(f".{path.name}.{os.urandom(4).hex()}.tmp")


def check_replaceable(path: Path) -> None:
    """Raise OSError if something stands at `path` that is not a file: a write would replace a device, such as
    /dev/null, by a file."""
    if os.path.isdir(path):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if os.path.lexists(path) and not os.path.isfile(path):
        raise OSError("it is a pipe, a socket or a device, not a file")


def _locked(folder: Path) -> int | None:
    """A descriptor that holds the lock of a folder; None if another process holds it."""
    # Windows and some network file systems cannot lock a folder: there a file in it is locked.
    for path, flags in ((folder, os.O_RDONLY), (folder / ".lock", os.O_RDWR | os.O_CREAT)):
        try:
            descriptor = os.open(path, flags)
            if lock(descriptor):
                return descriptor
            os.close(descriptor)
            return None
        except OSError:
            continue
    print(f"note: no locks in {folder}: start no other run there before this one has ended")
    return os.open(os.devnull, os.O_RDONLY)


def _made(option: str, path: str | os.PathLike) -> Path:
    try:
        if not os.fspath(path):
            raise OSError("the name is empty")
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = "it is not a folder" if isinstance(error, FileExistsError) else error.strerror or error
        raise TinydiffError(f"{option} {path}: the folder cannot be made ({reason})") from None
    return Path(path)


def _check_target(option: str, path: Path) -> None:
    """Make and remove the temporary file of atomic_write."""
    target = Path(os.path.realpath(path))
    try:
        check_replaceable(target)
        probe = temporary_name(target)
        open(probe, "xb").close()
        probe.unlink()
    except OSError as error:
        raise TinydiffError(f"{option} {path}: the file cannot be written ({error.strerror or error})") from None
