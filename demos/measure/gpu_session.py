"""Measure all that only a machine with a GPU can show, in about ten minutes and without a network.

    python demos/measure/gpu_session.py                         all parts, in the order below
    python demos/measure/gpu_session.py --parts cases,recorded  some parts
    python demos/measure/gpu_session.py --backend numpy         a rehearsal on the CPU

    conditions      card, driver and versions; without a GPU the program ends here, with exit code 2
    cases           convolutions and the whole network against float64, in each precision
    recorded        twenty steps that are replayed against twenty that are ordered, bit for bit
    registers       what the compiler gives each kernel: registers, spilled bytes, shared memory
    default_run     the main job from the command line: seconds to its first step and to samples.png
    read_as_asked   share of 1,000 of its digits that a classifier reads as asked
    benchmark       training step, forward and memory against PyTorch, batch 64 to 512
    suite           the tests with --backend cupy; the longest part, so it comes last

Each part is a process of its own with a limit of time.  A part that fails, or that is ended at its limit, does not stop
the others.  After each part report.json and report.txt in --out are complete up to this part; what a part printed is in
NAME.log.  At the end a table compares the figures with what should hold.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from argparse import ArgumentTypeError
from pathlib import Path

import gpu_parts
from tqdm import tqdm

from tinydiff.app import cli
from tinydiff.app.checkpoint import atomic_write
from tinydiff.app.outputs import own_folder
from tinydiff.backend import TinydiffError

PARTS = {  # name -> seconds that it may take
    "conditions": 60,
    "cases": 90,
    "recorded": 90,
    "registers": 60,
    "default_run": 120,
    "read_as_asked": 90,
    "benchmark": 300,
    "suite": 600,
}
HERE = Path(__file__).parent
WORK = "import sys; sys.path.insert(0, sys.argv[1]); import gpu_parts; gpu_parts.work(*sys.argv[2:])"


def main(*, backend="cupy", parts=tuple(PARTS), minutes=10.0, out="runs/gpu_session"):
    """Run the parts in the order of PARTS, and return the records {part: record}."""
    out = own_folder(out, "report.json", "report.txt")
    chosen = [name for name in PARTS if name in parts or name == "conditions"]
    records, ends = {}, time.monotonic() + 60 * minutes
    with tqdm(total=len(chosen), unit="part", dynamic_ncols=True) as bar:
        for name in chosen:
            bar.set_description(name)
            records[name] = record = timed(name, backend, out, min(PARTS[name], ends - time.monotonic()))
            write(records, out)
            bar.write("\n".join(text_of(name, record)))
            bar.update()
            if name == "conditions" and record["why"]:
                bar.update(bar.total - bar.n)
                raise TinydiffError(f"no GPU: {record['why']}")
    print("\n".join(goal_lines(records)))
    print(f"report: {out}/report.txt, report.json")
    return records


def timed(name, backend, out, limit):
    """Run a part in a process of its own, for at most `limit` seconds.

    Returns its record {"seconds", "why": None or why there are no figures, "figures": None or what it has measured}.
    """
    if limit <= 0:
        return {"seconds": 0.0, "why": "not begun: the minutes are used up", "figures": None}
    command, result = [sys.executable, "-c", WORK, str(HERE), name, backend, str(out)], out / f"{name}.json"
    began, why = time.monotonic(), None
    with open(out / f"{name}.log", "wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True)
        try:
            if process.wait(limit):
                why = last_line(out / f"{name}.log") or f"exit code {process.returncode}"
        except subprocess.TimeoutExpired:
            why = f"ended at its limit of {limit:.0f} s"
        finally:
            end(process)
    figures = json.loads(result.read_text()) if why is None else None
    return {"seconds": round(time.monotonic() - began, 1), "why": why, "figures": figures}


def end(process):
    """End a process, and every process that it has started in its session."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def last_line(path):
    """The last line of a log, at most 200 characters: for a Python program the error."""
    lines = path.read_text("utf-8", "replace").split("\n")
    return next((line.strip()[:200] for line in reversed(lines) if line.strip()), "")


def text_of(name, record):
    """The lines of a part in the report."""
    told = [record["why"]] if record["why"] else gpu_parts.lines(name, record["figures"])
    return [f"{name}, {record['seconds']:.1f} s", *(f"    {line}" for line in told)]


def goal_lines(records):
    """A line for each thing that should hold: met, missed, or not measured."""
    figures = {name: record["figures"] for name, record in records.items() if record["figures"]}
    words = {True: "met", False: "MISSED", None: "not measured"}
    return [
        f"{what:<48} {'-' if value is None else f'{value:.3g}':>8}  {bound:<14} {words[met]}"
        for what, value, bound, met in gpu_parts.goals(figures)
    ]


def write(records, out):
    """Write both reports."""
    lines = [line for name, record in records.items() for line in text_of(name, record)]
    for name, text in (
        ("report.json", json.dumps(records, indent=1)),
        ("report.txt", "\n".join(lines + goal_lines(records))),
    ):
        with atomic_write(out / name) as file:
            file.write(f"{text}\n".encode())


def part(text):
    """Option type: one of PARTS."""
    if text not in PARTS:
        raise ArgumentTypeError(f"must be one of {', '.join(PARTS)}, got {text!r}")
    return text


if __name__ == "__main__":
    parser = cli.parser(__doc__, main)
    parser.add_argument("--backend", choices=["numpy", "cupy"], help="numpy rehearses the session without a GPU")
    parser.add_argument("--parts", type=cli.list_of(part), help="which parts to run; conditions always comes first")
    parser.add_argument("--minutes", type=cli.positive_float, help="time for all parts; the last one is cut off")
    parser.add_argument("--out", metavar="DIR", help="folder for the reports and for what the parts write")
    cli.run(main, parser)
