"""A session on a GPU: the parts come in order, each in a process with a limit, and none stops the others."""

import json
import os
import time

import pytest

from tinydiff.backend import TinydiffError, backend_name

pytestmark = [
    pytest.mark.program,
    pytest.mark.skipif(backend_name() != "numpy", reason="the session chooses its backend"),
]


@pytest.fixture
def session(module):
    return module("gpu_session")


@pytest.fixture
def at_work(session, monkeypatch):
    """at_work({part: text}): the program of each part, which finds its arguments in `here, name, backend, folder`; a
    part that is not named writes {"device": its name} as its figures."""

    def program(texts):
        head = "import json, os, subprocess, sys, time\nfrom pathlib import Path\n"
        head += "here, name, backend, folder = sys.argv[1:]\n"
        default = "(Path(folder) / f'{name}.json').write_text(json.dumps({'device': name}))"
        monkeypatch.setattr(session, "WORK", f"{head}texts = {texts!r}\nexec(texts.get(name, {default!r}))")
        monkeypatch.setattr(session.gpu_parts, "lines", lambda name, figures: [f"figures of {name}"])
        monkeypatch.setattr(session.gpu_parts, "goals", lambda figures: [("parts", len(figures), "at least 0", True)])

    return program


def test_the_parts_are_functions_in_the_documented_order(session):
    """Each part has a function, lines of text and a line in --help; conditions first, the suite last."""
    documented = [line.split()[0] for line in session.__doc__.splitlines() if line[:4] == "    " and line[4] != " "]
    assert [word for word in documented if word != "python"] == list(session.PARTS)
    assert all(callable(getattr(session.gpu_parts, name)) for name in session.PARTS)
    assert next(iter(session.PARTS)) == "conditions" and list(session.PARTS)[-1] == "suite"


@pytest.mark.parametrize("took, limits", [(1.0, [60, 90, 60, 300]), (100.0, [60, 90, 40, 0])])
def test_a_part_gets_its_limit_or_what_is_left_of_the_minutes(session, tmp_path, monkeypatch, clock, took, limits):
    """Of four minutes, or of ten with parts that take a second; the order is that of PARTS, whatever was typed."""
    clock.monotonic, given = clock.perf_counter, []

    def timed(name, backend, out, limit):
        given.append((name, backend, max(0, limit)))
        return clock.spend(took, {"seconds": took, "why": "unknown" if name != "conditions" else None, "figures": {}})

    monkeypatch.setattr(session, "time", clock)
    monkeypatch.setattr(session, "timed", timed)
    chosen = ("benchmark", "registers", "cases")
    session.main(parts=chosen, minutes=10 if took == 1 else 4, out=tmp_path)
    assert given == [(name, "cupy", limit) for name, limit in zip(("conditions", *chosen[::-1]), limits)]


def test_a_part_that_fails_or_hangs_does_not_stop_the_others(session, at_work, tmp_path, monkeypatch, capsys):
    """One raises, one ends silently with a code, one hangs with a child; those after them run, and the reports have a
    line for each."""
    monkeypatch.setitem(session.PARTS, "registers", 1.5)
    child = f"{tmp_path}/child"
    hang = f"p = subprocess.Popen(['sleep', '60']); Path({child!r}).write_text(str(p.pid)); time.sleep(60)"
    at_work({"cases": "raise ValueError('no such kernel')", "recorded": "os._exit(3)", "registers": hang})
    began = time.monotonic()
    records = session.main(parts=("cases", "recorded", "registers", "benchmark"), out=tmp_path / "out")
    assert time.monotonic() - began < 40
    why = {name: record["why"] for name, record in records.items()}
    assert why == {
        "conditions": None, "cases": "ValueError: no such kernel", "recorded": "exit code 3",
        "registers": "ended at its limit of 2 s", "benchmark": None,
    }  # fmt: skip
    assert records["benchmark"]["figures"] == {"device": "benchmark"} and records["cases"]["figures"] is None
    assert records["registers"]["seconds"] >= 1.5 and sum(record["seconds"] for record in records.values()) < 40
    for _ in range(100):  # the child was ended too, once the system has noticed
        if not os.path.exists(f"/proc/{(tmp_path / 'child').read_text()}") or "Z" in state_of(tmp_path / "child"):
            break
        time.sleep(0.02)
    else:
        pytest.fail("the child of a part that was ended is alive")
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == records
    text = (tmp_path / "out" / "report.txt").read_text().splitlines()
    assert [line for line in text if line.startswith("    ")] == [
        "    figures of conditions", "    ValueError: no such kernel", "    exit code 3",
        "    ended at its limit of 2 s", "    figures of benchmark",
    ]  # fmt: skip
    assert "at least 0" in text[-1] and text[-1].endswith("met") and text[-1] in capsys.readouterr().out


def state_of(path):
    """The state of the process whose number is in a file: "Z" if it has ended and nobody has asked for its code."""
    try:
        with open(f"/proc/{path.read_text()}/stat") as file:
            return file.read().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return "Z"


def test_a_part_that_is_cut_off_names_the_time_that_was_left(session, at_work, tmp_path):
    """And not the limit of its kind, which is a minute."""
    at_work({"cases": "time.sleep(60)"})
    assert session.timed("cases", "numpy", tmp_path, 0.6)["why"] == "ended at its limit of 1 s"


@pytest.mark.parametrize("left", [0, -3.5])
def test_a_part_without_time_is_not_begun(session, tmp_path, left):
    """It says why, it takes no time, and it has no figures; its folder stays empty."""
    record = session.timed("cases", "numpy", tmp_path, left)
    assert record == {"seconds": 0.0, "why": "not begun: the minutes are used up", "figures": None}
    assert not any(tmp_path.iterdir())


def test_the_report_is_complete_up_to_each_part(session, at_work, tmp_path):
    """A part finds all parts before it in report.json; old figures of a part that fails now are not taken for new."""
    (tmp_path / "cases.json").write_text('{"old": 1}')
    copy = "Path(folder, f'{name}.json').write_text(Path(folder, 'report.json').read_text())"
    at_work({"cases": "sys.exit('broken')", "recorded": copy})
    records = session.main(parts=("cases", "recorded"), out=tmp_path)
    assert records["cases"] == {"seconds": records["cases"]["seconds"], "why": "broken", "figures": None}
    assert records["recorded"]["figures"] == {name: records[name] for name in ("conditions", "cases")}


def test_without_a_gpu_it_says_so_and_ends(session, tmp_path):
    """The real first part, on this machine or with CuPy hidden: one sentence, and no other part is begun."""
    os.environ["CUDA_VISIBLE_DEVICES"], before = "", os.environ.get("CUDA_VISIBLE_DEVICES")
    try:
        with pytest.raises(TinydiffError, match=r"^no GPU: .*backend 'cupy'"):
            session.main(out=tmp_path)
    finally:
        os.environ.pop("CUDA_VISIBLE_DEVICES")
        if before is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = before
    assert list(json.loads((tmp_path / "report.json").read_text())) == ["conditions"]


def test_a_goal_is_met_missed_or_not_measured(session, monkeypatch):
    """Parts without figures give no number to a goal."""
    rows = [("a", 1.5, "at least 1.5", True), ("b", 31.0, "at most 30", False), ("c", None, "at most 1", None)]
    seen = []
    monkeypatch.setattr(session.gpu_parts, "goals", lambda figures: seen.append(figures) or rows)
    lines = session.goal_lines({"cases": {"figures": {"x": 1}}, "suite": {"figures": None}})
    assert seen == [{"cases": {"x": 1}}]
    assert [line.split() for line in lines] == [
        ["a", "1.5", "at", "least", "1.5", "met"],
        ["b", "31", "at", "most", "30", "MISSED"],
        ["c", "-", "at", "most", "1", "not", "measured"],
    ]
