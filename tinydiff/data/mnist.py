"""MNIST and Fashion-MNIST from their four .gz files: the folders to look in, and the hash of each file.

Each file is searched for by itself, in these folders and in this order.  The first file found is taken:

    data_dir/<name>/   data_dir/   $TINYDIFF_DATA/<name>/   $TINYDIFF_DATA/   <cache>/<name>/   <cache>/

<name> is "mnist" or "fashion" and <cache> is the user's cache folder.  A file that is in none of them is downloaded to
<cache>/<name>/.  The two data sets use the same file names, so a file is identified by its SHA-256, never by its name.
A wrong file raises DataError and is left as it is.  There is one exception: $TINYDIFF_DATA/ and <cache>/ themselves may
contain either data set, so an intact file of the other one is passed over there.

Read next: idx.py.
"""

import gzip
import hashlib
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tinydiff.data.dataset import DIGITS, DataError, Dataset
from tinydiff.data.download import download
from tinydiff.data.idx import parse_idx

FILES = {
    "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
}
CLOTHES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")


class Release(NamedTuple):
    """One published data set: its title, the names of its labels, the SHA-256 of its files, and its web folders."""

    title: str
    classes: tuple[str, ...]
    sha256: dict[str, str]
    urls: tuple[str, ...]


# MNIST's hashes are of the decompressed content, because its .gz files exist in several compressions.  Fashion-MNIST's
# authors publish the MD5 of the .gz files; the hashes here are the SHA-256 of the same .gz files.
RELEASES = {
    "mnist": Release(
        title="MNIST",
        classes=DIGITS,
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
}


class DataMissing(DataError):
    """A file is not on this machine and cannot be downloaded."""


class _OtherFile(DataError):
    """A file is intact but belongs to another data set, or is another file of the same one."""


def load_mnist(name: str, split: str, data_dir: str | Path | None, say: Callable[[str], object]) -> Dataset:
    """Return a split of "mnist" or "fashion" from checked files.  `say` is called before a file is downloaded.

    Raises DataMissing if a file is not on this machine and cannot be downloaded, DataError if a file is wrong.
    """
    (path, images), (_, labels) = (_load_file(name, file, data_dir, say) for file in FILES[split])
    source = f"{RELEASES[name].title} ({split} split) from {path.parent}"
    return Dataset(name, parse_idx(images), parse_idx(labels), source, RELEASES[name].classes)


def cache_dir() -> Path:
    """Return the folder for downloads: tinydiff/ in %LOCALAPPDATA% on Windows, else in $XDG_CACHE_HOME or ~/.cache."""
    base = os.environ.get("LOCALAPPDATA") or os.environ.get("XDG_CACHE_HOME", "")  # only Windows sets the first one
    # The XDG specification says to ignore a relative path.
    return Path(base if os.path.isabs(base) else "~/.cache").expanduser() / "tinydiff"


def checked_content(release: Release, path: Path) -> bytes:
    """Return the decompressed content of the .gz file at `path` if it is the release's file of that name.

    Raises DataError otherwise.  The message leaves out the path: the caller knows where the file comes from.
    """
    expected = f"{release.title}'s {path.name} (SHA-256 {release.sha256[path.name]})"
    try:
        packed = path.read_bytes()
        content = gzip.decompress(packed)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"the file cannot be read or decompressed ({error}); expected {expected}") from None
    hashes = [hashlib.sha256(data).hexdigest() for data in (packed, content)]
    if release.sha256[path.name] in hashes:
        return content
    known = [f"{r.title}'s {file}" for r in RELEASES.values() for file, sha256 in r.sha256.items() if sha256 in hashes]
    raise (_OtherFile if known else DataError)(
        f"the file is {known[0] if known else 'damaged or unknown'}, not {expected}: "
        f"its own SHA-256 is {hashes[0]}, that of its decompressed content is {hashes[1]}"
    )


def _load_file(name: str, file: str, data_dir: str | Path | None, say: Callable[[str], object]) -> tuple[Path, bytes]:
    """Find or download one file of the data set `name`.  Return its path and its decompressed content."""
    release = RELEASES[name]
    # A folder is strict if a file of another data set is an error there.  Every subfolder <name>/ is strict.
    roots = ((data_dir, True), (os.environ.get("TINYDIFF_DATA"), False), (cache_dir(), False))
    folders = [(Path(root, sub).expanduser(), sub or strict) for root, strict in roots if root for sub in (name, "")]
    for folder, strict in folders:
        path = folder / file
        try:
            if path.exists():
                return path, checked_content(release, path)
        except DataError as error:
            if strict or not isinstance(error, _OtherFile):
                raise DataError(f"{path}: {error}. Remove it, or give {release.title} a folder of its own.") from None
    path = cache_dir() / name / file
    say(f"Downloading {release.title}'s {file} to {path.parent}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path, download([url + file for url in release.urls], path, lambda part: checked_content(release, part))
    except (DataError, OSError) as error:
        raise DataMissing(
            f"{release.title}'s {file} is not on this machine and could not be downloaded ({error}). "
            f"These folders were searched: {', '.join(str(folder) for folder, _ in folders)}. "
            f"Put {', '.join(release.sha256)} into one of them, or name their folder with --data-dir or $TINYDIFF_DATA."
        ) from None
