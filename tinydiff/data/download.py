"""Download one file from the first mirror that sends the right one.

The bytes are written to a temporary folder beside the target.  They are checked there, and one rename then puts the
file in its place.  The target is therefore never half a file.  Every download has a temporary folder of its own, so
two processes may download the same target at the same time.  A failure or an interrupt removes the folder too.  The
folder of a process that was killed is removed by a later download.

Read next: own.py.
"""

import glob
import os
import shutil
import time
from collections.abc import Callable, Iterable
from http.client import HTTPException
from multiprocessing import TimeoutError as NoAnswer
from multiprocessing.pool import ThreadPool
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.error import HTTPError
from urllib.request import urlopen

from tinydiff.data.dataset import DataError

ANSWER_S = 10.0  # seconds until a mirror must answer, and the longest pause in what it sends
MOST_S = 30 * 60.0  # seconds until the file must be complete


def download(urls: Iterable[str], target: Path, check: Callable[[Path], bytes], most_bytes: int) -> bytes:
    """Download `target` from the first of `urls` whose file passes `check`.  Return what `check` returns.

    check: a function that reads the file at a path of the same name and raises DataError if the file is not right.
    most_bytes: that a mirror may send.
    If a mirror fails in any way, the next one is tried.  If all fail, DataError lists each mirror with its reason.
    """
    reasons = []
    for old in target.parent.glob(f"{glob.escape(target.name)}.*"):
        if old.is_dir() and time.time() - old.stat().st_mtime > 2 * MOST_S:  # no living download is so old
            shutil.rmtree(old, ignore_errors=True)
    with TemporaryDirectory(prefix=f"{target.name}.", dir=target.parent) as folder:
        part = Path(folder) / target.name
        for url in urls:
            try:
                _fetch(url, part, most_bytes)
                content = check(part)
                os.replace(part, target)
                return content
            except (OSError, HTTPException, NoAnswer, DataError) as error:
                reasons.append(f"{url}: {str(error) or f'no answer within {ANSWER_S:g} s'}")
                if isinstance(error, HTTPError):
                    error.close()  # it contains the mirror's answer, an open connection
    raise DataError("; ".join(reasons))


def _fetch(url: str, part: Path, most_bytes: int) -> None:
    """Write what the mirror sends to `part`, with a progress bar.  OSError if it is too much or takes too long."""
    from tqdm import tqdm

    end = time.monotonic() + MOST_S
    # urlopen's own timeout starts anew for each address of a host and leaves out the look-up of the host's name.  A
    # thread makes the call, so that ANSWER_S bounds all of it.
    with ThreadPool(1) as pool, pool.apply_async(urlopen, [url], {"timeout": ANSWER_S}).get(ANSWER_S) as response:
        bar = tqdm(total=response.length, desc=part.name, unit="B", unit_scale=True, leave=False, disable=None)
        with bar, open(part, "wb") as file:
            while block := response.read1(1 << 16):  # read1 returns what has arrived; read would wait for a whole block
                bar.update(file.write(block))
                if file.tell() > most_bytes or time.monotonic() > end:
                    raise OSError(f"not complete after {most_bytes:,} bytes or {MOST_S:g} s")
