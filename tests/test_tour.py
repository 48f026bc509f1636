"""The README's commands: every one is understood by its demo, and the tour's run from the first to the last."""

import os
import re
import runpy
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tinydiff import cli
from tinydiff.backend import backend_name

pytestmark = [
    pytest.mark.program,
    pytest.mark.skipif(backend_name() != "numpy", reason="commands are for the backend that they name"),
]

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = sorted(set(re.findall(r"python (demos/\w+\.py(?: [^\n`#&|]*)?)", README)))
TOUR = README.split("## The tour\n")[1].split("\n## ")[0]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_demo_understands_the_command_that_the_readme_gives(monkeypatch, command):
    """Its parser takes every option; that a demo then works is what its own tests are for, in its smallest form."""
    script, *arguments = shlex.split(command)
    asked = []
    monkeypatch.setattr(cli, "run", lambda main, parser: asked.append(parser.parse_args(arguments)))
    monkeypatch.syspath_prepend(str(ROOT / "demos"))
    runpy.run_path(str(ROOT / script), run_name="__main__")
    assert len(asked) == 1


def test_the_tour_has_its_stops():
    """Eleven, each with commands and the five things that one can explain at the end."""
    stops = re.split(r"^### \d+\. ", TOUR, flags=re.MULTILINE)[1:]
    assert len(stops) == 11 and all("python demos/" in stop for stop in stops)
    assert re.findall(r"\*\*\((\w)\)\*\*", TOUR) == list("abcde")
    assert {letter for stop in stops for letter in re.findall(r"\((\w)\)$", stop.splitlines()[0])} == set("abcde")


@pytest.mark.slow
def test_the_tour_from_its_first_stop_to_its_last(tmp_path):
    """Offline and without MNIST, in an empty folder: every command ends well, and leaves what its stop speaks of."""
    (tmp_path / "demos").symlink_to(ROOT / "demos")
    nowhere = dict.fromkeys(["http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"], "http://127.0.0.1:9")
    environment = {**os.environ, **nowhere, "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    environment.pop("TINYDIFF_DATA", None)
    for stop in re.split(r"^### ", TOUR, flags=re.MULTILINE)[1:]:
        title = stop.splitlines()[0]
        for command, said in re.findall(r"^python (demos/.*?) +# (.*)$", stop, re.MULTILINE):
            start = time.perf_counter()
            run = [sys.executable, *shlex.split(command)]
            ended = subprocess.run(run, cwd=tmp_path, env=environment, capture_output=True, text=True)
            print(f"{title}: {command}: {time.perf_counter() - start:.0f} s, said to take {said}", flush=True)
            assert ended.returncode == 0, f"{command}\n{ended.stderr[-2000:]}"
        for name in re.findall(r"`(runs/[\w./]+)`", stop):
            assert (tmp_path / name).exists(), f"{title} speaks of {name}"
