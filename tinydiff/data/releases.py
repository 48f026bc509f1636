"""The published data sets: the hash of each file, the folders to look in, and the download.

If the caller names a folder, with data_dir or with $TINYDIFF_DATA, only that folder is searched, and a file that is not
in it is an error.  data_dir counts before $TINYDIFF_DATA.  If no folder is named, the user's cache folder is searched,
and a file that is not in it is downloaded to <cache>/<name>/.  <name> is "mnist", "fashion" or "cifar10".  In each
folder the search goes in this order:

    <folder>/<name>/   <folder>/        in each: x-idx3-ubyte.gz, and unpacked x-idx3-ubyte or x.idx3-ubyte

MNIST and Fashion-MNIST use the same file names, so a file is identified by its SHA-256, never by its name.  A wrong
file raises DataError and is left as it is.  There is one exception: <cache>/ itself may contain either data set, so an
intact file of the other one is passed over there.

Read next: limits.py.
"""

import gzip
import hashlib
import io
import os
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import NamedTuple

from tinydiff.data.dataset import DIGITS, DataError
from tinydiff.data.download import download
from tinydiff.data.limits import read_file

CLOTHES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")


class Release(NamedTuple):
    """One published data set: its title, the names of its labels, the SHA-256 of its files, and its web folders.

    most_bytes: of its largest file, unpacked.  No file of it is unpacked, and none is downloaded, beyond this size.
    """

    title: str
    classes: tuple[str, ...]
    most_bytes: int
    sha256: dict[str, str]
    urls: tuple[str, ...]


# MNIST's hashes are of the decompressed content, because its .gz files exist in several compressions.  Fashion-MNIST's
# authors publish the MD5 of the .gz files; the hashes here are the SHA-256 of the same .gz files.
RELEASES = {
    "mnist": Release(
        title="MNIST",
        classes=DIGITS,
        most_bytes=16 + 60_000 * 28 * 28,
        sha256={
            "train-images-idx3-ubyte.gz": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            "train-labels-idx1-ubyte.gz": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            "t10k-images-idx3-ubyte.gz": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            "t10k-labels-idx1-ubyte.gz": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        },
        urls=("https://ossci-datasets.s3.amazonaws.com/mnist/", "https://storage.googleapis.com/cvdf-datasets/mnist/"),
    ),
    "fashion": Release(
        title="Fashion-MNIST",
        classes=CLOTHES,
        most_bytes=16 + 60_000 * 28 * 28,
        sha256={
            "train-images-idx3-ubyte.gz": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            "train-labels-idx1-ubyte.gz": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            "t10k-images-idx3-ubyte.gz": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            "t10k-labels-idx1-ubyte.gz": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        },
        urls=(
            "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        ),
    ),
    "cifar10": Release(
        title="CIFAR-10",
        classes=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
        most_bytes=200_000_000,  # the archive, with 60,000 rows of 3,073 bytes
        sha256={"cifar-10-python.tar.gz": "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"},
        urls=("https://www.cs.toronto.edu/~kriz/", "https://storage.googleapis.com/tensorflow/tf-keras-datasets/"),
    ),
}


class DataMissing(DataError):
    """A file is not on this machine and cannot be downloaded."""


class _OtherFile(DataError):
    """A file is intact but belongs to another data set, or is another file of the same one."""


def cache_dir() -> Path | None:
    """Return the folder for downloads: tinydiff/ in %LOCALAPPDATA% on Windows, else in $XDG_CACHE_HOME or ~/.cache.

    The result is None for a user without a home folder, as in some containers.
    """
    base = os.environ.get("LOCALAPPDATA") or os.environ.get("XDG_CACHE_HOME", "")  # only Windows sets the first one
    # The XDG specification says to ignore a relative path.
    folder = Path(base if os.path.isabs(base) else os.path.expanduser("~/.cache")) / "tinydiff"
    return folder if folder.is_absolute() else None


def checked_content(release: Release, path: Path) -> bytes:
    """Return the unpacked content of the file at `path` if it is the release's file of that name.

    The file may be packed or unpacked.  Raises DataError otherwise.  The message leaves out the path: the caller knows
    where the file comes from.
    """
    file = path.name.replace(".idx", "-idx").removesuffix(".gz") + ".gz"
    expected = f"{release.title}'s {file} (SHA-256 {release.sha256[file]})"
    try:
        packed = read_file(path, 2 * release.most_bytes)
        content = packed
        if packed[:3] != bytes([0, 0, 8]):  # an unpacked file begins so, see idx.py
            content = gzip.GzipFile(fileobj=io.BytesIO(packed)).read(release.most_bytes + 1)
        if len(content) > release.most_bytes:
            raise OSError(f"it unpacks to more than {release.most_bytes:,} bytes")
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"the file cannot be read or decompressed ({reason}); expected {expected}") from None
    hashes = [hashlib.sha256(data).hexdigest() for data in (packed, content)]
    if release.sha256[file] in hashes:
        return content
    known = [f"{r.title}'s {name}" for r in RELEASES.values() for name, sha256 in r.sha256.items() if sha256 in hashes]
    raise (_OtherFile if known else DataError)(
        f"the file is {known[0] if known else 'damaged or unknown'}, not {expected}: "
        f"its own SHA-256 is {hashes[0]}, that of its decompressed content is {hashes[1]}"
    )


def find(name: str, file: str, data_dir: str | Path | None, say: Callable[[str], object]) -> tuple[str, bytes]:
    """Find or download one file of the data set `name`.  Return where it comes from, and its unpacked content."""
    named = data_dir if data_dir is not None else os.environ.get("TINYDIFF_DATA") or None
    root = cache_dir() if named is None else Path(os.path.expanduser(named))
    for path in [] if root is None else _places(root, name, file):
        try:
            return f"from {path.parent}", checked_content(RELEASES[name], path)
        except DataError as error:
            if named is not None or path.parent.name == name or not isinstance(error, _OtherFile):
                hint = f"Remove it, put the right file in its place, or give {RELEASES[name].title} its own folder."
                raise DataError(f"{path}: {error}. {hint}") from None
    if named is None:
        return _download(name, file, root, say)
    option, title = "$TINYDIFF_DATA" if data_dir is None else "--data-dir", RELEASES[name].title
    problem = f"{title}'s {file} is not there, packed or unpacked, nor in the subfolder {name}"
    try:
        os.listdir(root)  # type: ignore[arg-type]
    except OSError as error:
        problem = f"{error.strerror}"
    raise DataError(f"{option} {named}: {problem}. Name a folder with {', '.join(RELEASES[name].sha256)}")


def _places(root: Path, name: str, file: str) -> Iterator[Path]:
    """The paths under root at which something stands under a name of the file.  A folder that cannot be entered has
    none."""
    unpacked = file.removesuffix(".gz")
    for folder in (root / name, root):
        yield from (
            path
            for path in (folder / n for n in (file, unpacked, unpacked.replace("-idx", ".idx")))
            if os.path.lexists(path)
        )


def _download(name: str, file: str, cache: Path | None, say: Callable[[str], object]) -> tuple[str, bytes]:
    """Download a file to cache/<name>/.  If it cannot be kept there, say so, and return its content all the same."""
    release = RELEASES[name]
    urls, check = [url + file for url in release.urls], partial(checked_content, release)
    fetch = partial(download, urls, check=check, most_bytes=release.most_bytes)
    try:
        try:
            if cache is None:
                raise OSError("this user has no home folder")
            (cache / name).mkdir(parents=True, exist_ok=True)
            TemporaryFile(dir=cache / name).close()
        except OSError as error:
            reason = f"{cache or 'no cache folder'}: {error.strerror or error}"
            say(f"Downloading {release.title}'s {file}, for this run only ({reason})")
            with TemporaryDirectory() as folder:
                return "downloaded and not kept", fetch(target=Path(folder, file))
        say(f"Downloading {release.title}'s {file} to {cache / name}")
        return f"from {cache / name}", fetch(target=cache / name / file)
    except (DataError, OSError) as error:
        raise DataMissing(
            f"{release.title}'s {file} is not on this machine and could not be downloaded ({error}). "
            f"Only the cache folder was searched: {cache or 'this user has none'}. "
            f"Put {', '.join(release.sha256)} into a folder, and name it with --data-dir or $TINYDIFF_DATA."
        ) from None
