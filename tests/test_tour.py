"""The pages' commands: every one is understood by its program, and the tour's run from the first to the last."""

import os
import re
import runpy
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tinydiff.app import cli
from tinydiff.backend import backend_name

pytestmark = [
    pytest.mark.program,
    pytest.mark.skipif(backend_name() != "numpy", reason="commands are for the backend that they name"),
]

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *(ROOT / folder / "README.md" for folder in ("demos", "tests", "tinydiff/fast"))]
TEXT = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
COMMANDS = sorted(set(re.findall(r"python (demos/[\w/]+\.py(?: [^\n`#&|]*)?)", TEXT)))
TOUR = (ROOT / "demos" / "README.md").read_text(encoding="utf-8")
# (stop, things it is about, command, what it is said to take) of each row of the table that is a stop of the tour.
ROWS = re.findall(r"^\| (\d+) \(([a-e])(?: to ([a-e]))?\) \| `python (demos/[^`]*)` \| ([^|]+) \|", TOUR, re.MULTILINE)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_program_understands_the_command_that_a_page_gives(monkeypatch, command):
    """Its parser takes every option; that a program then works is what its own tests are for, in its smallest form."""
    script, *arguments = shlex.split(command)
    parsed = []
    monkeypatch.setattr(cli, "run", lambda main, parser: parsed.append(parser.parse_args(arguments)))
    monkeypatch.syspath_prepend(str((ROOT / script).parent))
    runpy.run_path(str(ROOT / script), run_name="__main__")
    assert len(parsed) == 1


def test_the_tour_has_its_stops():
    """Eleven, in order, each with commands, a paragraph, and the five things that one can explain at the end."""
    stops = [int(number) for number, *_ in ROWS]
    assert stops == sorted(stops) and set(stops) == set(range(1, 12))
    assert re.findall(r"\*\*\((\w)\)\*\*", TOUR) == list("abcde")
    assert {letter for _, first, last, *_ in ROWS for letter in (first, last) if letter} == set("abcde")
    assert [int(n) for n in re.findall(r"^\*\*(\d+)\. ", TOUR, re.MULTILINE)] == list(range(1, 12))


@pytest.mark.slow
def test_the_tour_from_its_first_stop_to_its_last(tmp_path):
    """Offline and without MNIST, in an empty folder: every command ends well, and leaves what its stop speaks of."""
    (tmp_path / "demos").symlink_to(ROOT / "demos")
    nowhere = dict.fromkeys(["http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"], "http://127.0.0.1:9")
    environment = {**os.environ, **nowhere, "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    environment.pop("TINYDIFF_DATA", None)
    for stop, _, _, command, takes in ROWS:
        start = time.perf_counter()
        run = [sys.executable, *shlex.split(command)]
        ended = subprocess.run(run, cwd=tmp_path, env=environment, capture_output=True, text=True)
        seconds = time.perf_counter() - start
        print(f"stop {stop}: {command}: {seconds:.0f} s, the table says {takes}", flush=True)
        assert ended.returncode == 0, f"{command}\n{ended.stderr[-2000:]}"
    for paragraph in re.findall(r"^\*\*\d+\. .*?(?=^$)", TOUR, re.MULTILINE | re.DOTALL):
        for name in re.findall(r"`(runs/[\w./]+)`", paragraph):
            assert (tmp_path / name).exists(), f"{paragraph[:30]} speaks of {name}"
