"""MNIST and Fashion-MNIST from their four .gz files: where they are looked for, and the hashes that they must have.

Places, in this order, each for every file on its own; the first file found is taken:

    data_dir/<name>/   data_dir/   $TINYDIFF_DATA/<name>/   $TINYDIFF_DATA/   <cache>/<name>/   <cache>/

with <name> "mnist" or "fashion" and <cache> the user's cache folder; a file found nowhere is downloaded to
<cache>/<name>/.  The two sets share their file names, so a file is known by its SHA-256 and never by its name.  A wrong
file raises DataError and stays as it is.  One exception: in a plain $TINYDIFF_DATA/ or <cache>/, which were not named
for this run, a sound file of the other set is passed over.

MNIST's hashes are of the decompressed content (its .gz files exist in several compressions).  For Fashion-MNIST only
hashes of the .gz files are published, by its authors as MD5; these are the SHA-256 of the same files.

Read next: download.py.
"""

import gzip
import hashlib
import os
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tinydiff.data.dataset import DIGITS, DataError, Dataset
from tinydiff.data.download import download
from tinydiff.data.idx import parse_idx

FILES = {
    "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
}


@dataclass(frozen=True)
class Release:
    """One published data set: its mirrors, and its files' SHA-256, of the decompressed content or of the .gz itself."""

    title: str
    classes: tuple[str, ...]
    sha256: dict[str, str]
    hashed_as_gz: bool
    mirrors: tuple[str, ...]


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
        hashed_as_gz=False,
        mirrors=(
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
        ),
    ),
    "fashion": Release(
        title="Fashion-MNIST",
        classes=(
            *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
            *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
        ),
        sha256={
            "train-images-idx3-ubyte.gz": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            "train-labels-idx1-ubyte.gz": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            "t10k-images-idx3-ubyte.gz": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            "t10k-labels-idx1-ubyte.gz": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        },
        hashed_as_gz=True,
        mirrors=(
            "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        ),
    ),
}


class DataMissing(DataError):
    """The files are neither on this machine nor to be had from a mirror."""


class _OtherFile(DataError):
    """A sound file, but another one than its place and name say."""


def load_mnist(name: str, split: str, data_dir: str | Path | None, say: Callable[[str], object]) -> Dataset:
    """The `split` of "mnist" or "fashion" from checked files; `say` is told before anything is downloaded.

    Raises DataMissing if a file is nowhere to be had, DataError if one is damaged or another file than it should be.
    """
    release = RELEASES[name]
    places = list(_places(name, data_dir))
    found = [_find(release, file, places) or _fetch(release, name, file, places, say) for file in FILES[split]]
    images, labels = (_parse(path, content) for path, content in found)
    source = f"{release.title} ({split} split) from {found[0][0].parent}"
    return Dataset(name, images, labels, source, release.classes)


def cache_dir() -> Path:
    """The folder for downloads: tinydiff/ in %LOCALAPPDATA% on Windows, else in $XDG_CACHE_HOME or ~/.cache."""
    base = os.environ.get("LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME", "")
    if not os.path.isabs(base):  # unset, or relative, which the XDG specification says to ignore
        base = os.path.expanduser("~/.cache")
    return Path(base) / "tinydiff"


def checked_content(release: Release, file: str, path: Path) -> bytes:
    """Read `path` and return its decompressed content, if it is the release's `file`; else raise DataError."""
    expected = release.sha256[file]
    try:
        packed = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None
    try:
        content = gzip.decompress(packed)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"{path} does not decompress ({error}): it is truncated or damaged, so no hash can be compared with "
            f"{release.title}'s {expected}. Remove it, or put a whole {file} in its place."
        ) from None
    found = _sha256(release, packed, content)
    if found == expected:
        return content
    other = next(
        (
            f"{r.title}'s {f}"
            for r in RELEASES.values()
            for f, h in r.sha256.items()
            if h == _sha256(r, packed, content)
        ),
        None,
    )
    raise (_OtherFile if other else DataError)(
        f"{path} is {other or 'damaged or an unknown file'}, not {release.title}'s {file}: the SHA-256 of its "
        f"{'bytes' if release.hashed_as_gz else 'decompressed content'} is {found}, expected {expected}. "
        f"Remove it, or put {release.title}'s files in a folder of their own."
    )


def _sha256(release: Release, packed: bytes, content: bytes) -> str:
    return hashlib.sha256(packed if release.hashed_as_gz else content).hexdigest()


def _places(name: str, data_dir: str | Path | None) -> Iterator[tuple[Path, bool]]:
    """Folders to look in, in order, and whether each is meant for this set: another set's file there is an error."""
    for root, meant in ((data_dir, True), (os.environ.get("TINYDIFF_DATA"), False), (cache_dir(), False)):
        if root:
            yield Path(root).expanduser() / name, True
            yield Path(root).expanduser(), meant


def _find(release: Release, file: str, places: list[tuple[Path, bool]]) -> tuple[Path, bytes] | None:
    for folder, meant in places:
        path = folder / file
        try:
            if path.exists():
                return path, checked_content(release, file, path)
        except _OtherFile:
            if meant:
                raise
    return None


def _fetch(
    release: Release, name: str, file: str, places: list[tuple[Path, bool]], say: Callable[[str], object]
) -> tuple[Path, bytes]:
    path = cache_dir() / name / file
    say(f"Downloading {release.title}'s {file} to {path.parent}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        urls = [mirror + file for mirror in release.mirrors]
        return path, download(urls, path, lambda part: checked_content(release, file, part))
    except (DataError, OSError) as error:
        raise DataMissing(
            f"{release.title}'s {file} is not on this machine and could not be downloaded ({error}). "
            f"Looked in {', '.join(str(folder) for folder, _ in places)}. "
            f"Put the four files {', '.join(release.sha256)} in one of these folders, or name their folder with "
            f"--data-dir or $TINYDIFF_DATA; they are published at {' and '.join(release.mirrors)}"
        ) from None


def _parse(path: Path, content: bytes) -> np.ndarray:
    try:
        return parse_idx(content)
    except ValueError as error:
        raise DataError(f"{path} is {error}") from None
