"""Small files in the form of MNIST's, folders that keep the tests off the real cache, and a mirror on this machine."""

import contextlib
import gzip
import hashlib
import struct
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tinydiff.backend import default_rng
from tinydiff.data import releases


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
    """Folders in tmp_path to name and a cache folder there, no $TINYDIFF_DATA, and mirrors that nobody answers on."""
    monkeypatch.delenv("TINYDIFF_DATA", raising=False)
    monkeypatch.setattr(releases, "cache_dir", lambda: tmp_path / "cache")
    for name, release in releases.RELEASES.items():
        monkeypatch.setitem(releases.RELEASES, name, release._replace(urls=("http://127.0.0.1:9/",)))
    return {"data_dir": tmp_path / "dir", "env": tmp_path / "env", "cache": tmp_path / "cache"}


@pytest.fixture
def sets(folders, monkeypatch):
    """{"mnist": (arrays, files), "fashion": ...}: small sets whose hashes stand in the tables in place of the real."""
    sets = {"mnist": small_set(1), "fashion": small_set(2)}
    for name, (_, files) in sets.items():
        release = releases.RELEASES[name]
        # As in the table: Fashion-MNIST's hashes are of the .gz files, MNIST's of the decompressed content.
        hashed = {file: gz if name == "fashion" else gzip.decompress(gz) for file, gz in files.items()}
        hashes = {file: hashlib.sha256(data).hexdigest() for file, data in hashed.items()}
        monkeypatch.setitem(releases.RELEASES, name, release._replace(sha256=hashes))
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
    """A web server with faults.

    files[path]: the bytes that it sends.  cut[path]: the number of bytes after which it hangs up, once.
    scripts[path]: a function that is called with `send` and sends a file of a length that is not announced.
    garbled[path]: the bytes that it sends in place of an answer in HTTP.
    linger: seconds until it closes a connection after a whole file.  asked: the paths, in the order of the requests.
    """

    def __init__(self):
        self.files, self.cut, self.scripts, self.garbled, self.linger, self.asked = {}, {}, {}, {}, 0, []
        self.stopped = threading.Event()

    def answer(self, handler):
        path = handler.path
        self.asked.append(path)
        if path in self.garbled:
            return handler.wfile.write(self.garbled[path])
        if path not in self.files and path not in self.scripts:
            return handler.send_error(404)
        handler.send_response(200)
        if path in self.scripts:
            handler.end_headers()
            return self.scripts[path](handler.wfile.write)
        data = self.files[path]
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data[: self.cut.pop(path, len(data))])
        self.stopped.wait(self.linger)


@pytest.fixture
def mirror():
    """A Mirror that is listening at mirror.url."""
    mirror = Mirror()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            with contextlib.suppress(ConnectionError):  # the client has hung up
                mirror.answer(self)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    mirror.url = f"http://127.0.0.1:{server.server_port}/"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield mirror
    mirror.stopped.set()
    server.shutdown()
    thread.join()
    server.server_close()
