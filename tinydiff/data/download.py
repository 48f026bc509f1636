"""One file from the first mirror that has it: resumed where it broke off, and in its place only when it is right.

The bytes gather in `<file>.part`, which survives an interruption; the next attempt asks for the rest of it (HTTP Range,
RFC 9110 section 14).  The part is checked and then renamed in one step, so `<file>` is never half a file.

Read next: mnist.py, which knows the mirrors and the hashes.
"""

import os
import queue
import threading
from collections.abc import Callable, Iterable
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from tinydiff.data.dataset import DataError

TIMEOUT_S = 10.0  # allowed until a mirror answers, and then for each pause in what it sends


def download(urls: Iterable[str], target: Path, check: Callable[[Path], bytes]) -> bytes:
    """Fetch `target` from the first of `urls` whose file passes `check`, and return what `check` returned.

    check: reads a path and raises DataError if it is not the right file.  A mirror that fails in any way is left for
    the next, which goes on from the bytes there are.  Raises DataError with every mirror's reason if none succeeds.
    """
    part = target.with_name(target.name + ".part")
    reasons = []
    for url in urls:
        try:
            content = _fetch_checked(url, part, check)
            os.replace(part, target)
            return content
        except (OSError, HTTPException, DataError) as error:
            reason = error.reason if type(error) is URLError else error
            reasons.append(f"{urlsplit(url).netloc}: {reason or type(error).__name__}")
    raise DataError("; ".join(reasons))


def _fetch_checked(url: str, part: Path, check: Callable[[Path], bytes]) -> bytes:
    while True:
        resumed = _fetch(url, part)
        try:
            return check(part)
        except DataError:
            part.unlink()  # or every later attempt would go on from wrong bytes
            if not resumed:
                raise


def _fetch(url: str, part: Path) -> bool:
    """Bring `part` to the length of the file at `url`, on disk; True if bytes that were there before are part of it."""
    from tqdm import tqdm

    offset = part.stat().st_size if part.exists() else 0
    try:
        response = _open(Request(url, headers={"Range": f"bytes={offset}-"} if offset else {}))
    except HTTPError as error:
        error.close()
        if error.code == 416 and offset:  # nothing beyond offset: the part is whole, or not this file at all
            return True
        raise
    with response:
        if response.status != 206:  # the mirror sends the whole file
            offset = 0
        elif not response.headers.get("Content-Range", "").startswith(f"bytes {offset}-"):
            raise OSError(f"asked for bytes from {offset}, was sent {response.headers.get('Content-Range')!r}")
        got, total = offset, None if response.length is None else offset + response.length
        bar = tqdm(total=total, initial=got, desc=part.stem, unit="B", unit_scale=True, leave=False, disable=None)
        with open(part, "ab" if offset else "wb") as file, bar:
            while block := response.read(1 << 16):
                got += file.write(block)
                bar.update(len(block))
            file.flush()
            os.fsync(file.fileno())
    if total is not None and got < total:
        raise OSError(f"the connection ended after {got:,} of {total:,} bytes")
    return offset > 0


def _open(request: Request) -> HTTPResponse:
    """urlopen within TIMEOUT_S altogether: its own limit counts anew for each address of a host, and not look-ups."""
    answers: queue.SimpleQueue = queue.SimpleQueue()

    def ask() -> None:
        try:
            answers.put(urlopen(request, timeout=TIMEOUT_S))
        except Exception as error:
            answers.put(error)

    threading.Thread(target=ask, daemon=True).start()
    try:
        answer = answers.get(timeout=TIMEOUT_S)
    except queue.Empty:
        raise TimeoutError(f"no answer within {TIMEOUT_S:g} s") from None
    if isinstance(answer, Exception):
        raise answer
    return answer
