"""Small files in the form of MNIST's, folders that keep the tests off the real cache, and a mirror on this machine."""

import gzip
import hashlib
import struct
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tinydiff.backend import default_rng
from tinydiff.data import mnist


def idx_bytes(array):
    """The IDX form of a uint8 array."""
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def small_set(seed):
    """Arrays and .gz bytes of a small data set, by file name."""
    rng = default_rng(seed)
    arrays = {}
    for split, num in (("train", 40), ("t10k", 12)):
        arrays[f"{split}-images-idx3-ubyte.gz"] = rng.integers(0, 256, (num, 28, 28), "uint8")
        arrays[f"{split}-labels-idx1-ubyte.gz"] = rng.integers(0, 10, num, "uint8")
    return arrays, {file: gzip.compress(idx_bytes(array), mtime=0) for file, array in arrays.items()}


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch):
    """$TINYDIFF_DATA and the cache folder in tmp_path, and mirrors that nobody answers on."""
    monkeypatch.setenv("TINYDIFF_DATA", str(tmp_path / "env"))
    monkeypatch.setattr(mnist, "cache_dir", lambda: tmp_path / "cache")
    for name, release in mnist.RELEASES.items():
        monkeypatch.setitem(mnist.RELEASES, name, replace(release, mirrors=("http://127.0.0.1:9/",)))
    return {"data_dir": tmp_path / "dir", "env": tmp_path / "env", "cache": tmp_path / "cache"}


@pytest.fixture
def sets(folders, monkeypatch):
    """{"mnist": (arrays, files), "fashion": ...}: small sets whose hashes stand in the tables in place of the real."""
    sets = {"mnist": small_set(1), "fashion": small_set(2)}
    for name, (_, files) in sets.items():
        release = mnist.RELEASES[name]
        hashed = files if release.hashed_as_gz else {file: gzip.decompress(gz) for file, gz in files.items()}
        hashes = {file: hashlib.sha256(data).hexdigest() for file, data in hashed.items()}
        monkeypatch.setitem(mnist.RELEASES, name, replace(release, sha256=hashes))
    return sets


@pytest.fixture
def idx():
    return idx_bytes


@pytest.fixture
def put():
    """A function that writes {file: bytes} into a folder."""

    def write(folder, files):
        folder.mkdir(parents=True, exist_ok=True)
        for file, data in files.items():
            (folder / file).write_bytes(data)

    return write


class Mirror:
    """A web server with byte ranges and faults: cut[path] = bytes after which it hangs up, once."""

    def __init__(self):
        self.files, self.cut, self.asked, self.ranges, self.range_shift = {}, {}, [], True, 0

    def answer(self, handler):
        path, wanted = handler.path, handler.headers["Range"]
        self.asked.append((path, wanted))
        if path not in self.files:
            return handler.send_error(404)
        data, start = self.files[path], 0
        if wanted and self.ranges:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= len(data):
                return handler.send_error(416)
            handler.send_response(206)
            handler.send_header("Content-Range", f"bytes {start + self.range_shift}-{len(data) - 1}/{len(data)}")
        else:
            handler.send_response(200)
        handler.send_header("Content-Length", str(len(data) - start))
        handler.end_headers()
        handler.wfile.write(data[start : self.cut.pop(path, len(data))])


@pytest.fixture
def mirror():
    """A Mirror that is listening at mirror.url."""
    mirror = Mirror()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            mirror.answer(self)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    mirror.url = f"http://127.0.0.1:{server.server_port}/"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield mirror
    server.shutdown()
    thread.join()
    server.server_close()
