"""The five READMEs keep their word: their links, maps, glossary, examples and quotes are those of the source."""

import ast
import inspect
import pkgutil
import re
import runpy
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from tinydiff import diffusion, train
from tinydiff.app.metrics import wilson_interval
from tinydiff.backend import backend_name
from tinydiff.train import TrainConfig

pytestmark = pytest.mark.program

ROOT = Path(__file__).parents[1]
PAGES = {
    name: (ROOT / name).read_text(encoding="utf-8")
    for name in (
        *("README.md", "demos/README.md", "tests/README.md"),
        *("tinydiff/diffusion/README.md", "tinydiff/fast/README.md"),
    )
}
README, MATHEMATICS = PAGES["README.md"], PAGES["tinydiff/diffusion/README.md"]
COUNTER = runpy.run_path(str(ROOT / "tests" / "count_lines.py"))
LINK = re.compile(r"\[([^\]]*)\]\(([^)#\s]+)(#[\w-]+)?\)")


def links(page: str) -> list[tuple[str, Path]]:
    """(text, file) of each link of a page to a file of the repository."""
    folder = (ROOT / page).parent
    return [(text, (folder / target).resolve()) for text, target, _ in LINK.findall(PAGES[page]) if ":" not in target]


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_to_a_file(page):
    """Pictures, files of the source, other pages: all are there."""
    assert len(links(page)) > 5
    assert [target for _, target in links(page) if not target.is_file()] == []


@pytest.mark.parametrize("page", PAGES)
def test_no_page_names_what_is_gone(page):
    """Every file of Python that a page names is there."""
    folders = (ROOT, ROOT / "tinydiff", ROOT / "demos", ROOT / "tests", (ROOT / page).parent)
    anywhere = {path.name for folder in ("tinydiff", "demos", "tests") for path in (ROOT / folder).rglob("*.*")}
    for name in set(re.findall(r"(?<![\w/.])((?:[a-z_0-9]+/)*[a-z_0-9]+\.(?:py|cu))\b", PAGES[page])):
        assert any((folder / name).is_file() for folder in folders) or ("/" not in name and name in anywhere), name


def test_the_first_page_is_short():
    """At most 160 lines and 2,000 words: what is longer has a page of its own."""
    assert len(README.splitlines()) <= 160 and len(README.split()) <= 2000


def test_the_first_page_lists_the_book_in_the_order_of_reading():
    """A row a file, as "Read next" leads through them, each a link, with its lines of code to 10% and 5 lines."""
    rows = re.findall(r"^\| \[([\w/.]+)\]\(tinydiff/([\w/.]+)\) \| (\d+) \|", README, re.MULTILINE)
    chain = runpy.run_path(str(ROOT / "tests" / "test_package.py"))["CHAIN"]
    assert [name for name, _, _ in rows] == [f"{name}.py" for name in chain]
    lines = COUNTER["count_package"](ROOT / "tinydiff")
    for name, target, size in rows:
        assert name == target and abs(int(size) - lines[name]) <= 5 + lines[name] / 10, (
            f"{name} has {lines[name]} lines"
        )


def test_every_page_is_reached_from_the_first():
    """One click leads to each of the other four."""
    assert {(ROOT / page).resolve() for page in PAGES} - {target for _, target in links("README.md")} == {
        ROOT / "README.md"
    }


on_numpy = pytest.mark.skipif(backend_name() != "numpy", reason="the example is run as it stands, on numpy")


def the_twenty_lines() -> str:
    return re.findall(r"```python\n(.*?)```", README, re.DOTALL)[0]


@on_numpy
def test_the_twenty_lines_run(capsys, tmp_path, monkeypatch):
    """As they stand: 120 steps of algorithm 1, and ten pictures whose stripes lie or stand as asked; the loss falls.

    Where a picture changes along one axis, its standard deviation along it is near sqrt(1/2), and 0 along the other.
    The file that they save is one that sample.py reads, and the average goes into the network that was trained.
    """
    code = the_twenty_lines()
    assert len([line for line in code.splitlines() if line.strip()]) <= 26
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(code, names)
    assert len(re.findall(r"^step ", capsys.readouterr().out, re.MULTILINE)) == 120
    losses = [row[0] for row in names["state"].rows]
    assert sum(losses[-5:]) < sum(losses[:5]) / 4
    drawn = names["frames"][-1]
    assert drawn.shape == (10, 8, 8, 1) and (tmp_path / "stripes.png").is_file()
    down, across = (drawn.std(axis).mean((1, 2)) for axis in (1, 2))
    assert ((down > 2 * across) == [True, False] * 5).all() and ((across > 2 * down) == [False, True] * 5).all()
    options = {"labels": (0, 1), "num": 2, "steps": 20, "workers": 1, "save_npz": "more.npz", "out": "more.png"}
    assert "sample.py stripes.npz --labels 0,1" in README
    runpy.run_path(str(ROOT / "demos" / "sample.py"))["main"]("stripes.npz", **options)
    with np.load("more.npz") as file:  # image i of a seed is one image; the products of a smaller batch round apart
        np.testing.assert_allclose(file["images"], np.clip(drawn[:2], -1, 1), rtol=0, atol=1e-3)
    names["state"].ema.copy_to(names["model"].parameters())
    assert "`state.ema.copy_to(model.parameters())`" in README
    for name, a in names["network"].model.state_dict().items():
        np.testing.assert_array_equal(names["model"].state_dict()[name], a)


@on_numpy
def test_the_twenty_lines_take_colour_and_pictures_without_labels(tmp_path, monkeypatch):
    """With the changes that the first page names, in two steps."""
    changes = {
        "images, labels, value_range": "np.stack([images] * 3, -1), value_range=(-1, 1)) #",
        "num_classes=2": "num_classes=None, in_channels=3",
        "schedule, 2)": "schedule, None)",
        "num_steps=120": "num_steps=2",
    }
    code = the_twenty_lines()
    for old, changed in changes.items():
        assert code.count(old) == 1, old
        code = code.replace(old, changed)
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(code, names)
    assert names["frames"].shape == (1, 10, 8, 8, 3)


def test_the_law_that_is_quoted_is_the_laws_own_text():
    """The first page shows one law whole; it stands in the suite as it is shown."""
    _, quoted = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    (name,) = re.findall(r"^def (test_\w+)", quoted, re.MULTILINE)
    sources = [path.read_text("utf-8") for path in (ROOT / "tests" / "diffusion").glob("test_*.py")]
    assert sum(f"\n{quoted}" in source for source in sources) == 1, name


def test_the_limits_of_the_rooms_stand_in_the_page_about_tests():
    """`python tests/count_lines.py` is named where the rules of the book are."""
    assert "tests/count_lines.py" in PAGES["tests/README.md"]
    assert "1,200" in PAGES["tests/README.md"]


def test_the_lowest_python_is_one_and_the_same():
    """pyproject.toml, the style checks, the script that runs every version, and the first page name one Python."""
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    script = (ROOT / "tests" / "versions.sh").read_text("utf-8")
    assert re.search(r'requires-python = ">=3\.(\d+)"', project)[1] == "10"
    assert 'target-version = "py310"' in project and "Python 3.10 or newer" in README
    assert re.search(r"for minor in (\d+)", script)[1] == "10" and "(3, 10))" in script


def test_every_demo_is_on_the_tour_or_among_the_commands():
    """Each program, that is, each file with a `main` to run, has a row in the one table of the demos' page."""
    programs = {path for path in (ROOT / "demos").rglob("*.py") if '__name__ == "__main__"' in path.read_text("utf-8")}
    assert len(programs) > 20
    named = set(re.findall(r"python (demos/[\w/]+\.py)", PAGES["demos/README.md"]))
    assert {path.relative_to(ROOT).as_posix() for path in programs} == named


# -------------------------------------------------------------------------------- numbers that are defaults of the code


def defaults(program: str) -> dict:
    """The keyword defaults of a demo's main and of job.train, and the module's own names beside them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend((ROOT / "demos" / program).parent)
        names = runpy.run_path(str(ROOT / "demos" / program))
    functions = [names["main"], *([names["job"].train] if "job" in names else [])]
    parameters = [p for function in functions for p in inspect.signature(function).parameters.values()]
    return names | {p.name: p.default for p in parameters if p.default is not p.empty}


NUMBERS = [  # program, what its code says, the sentence that says it too; a page, or else the program's own docstring
    ("train_mnist.py", lambda d: TrainConfig.num_steps, r"([\d,]+) steps, or as many as fit into \d+ minutes", ""),
    ("train_mnist.py", lambda d: TrainConfig.minutes, r"steps, or as many as fit into (\d+) minutes", ""),
    ("train_mnist.py", lambda d: TrainConfig.num_steps, r"takes\n([\d,]+) steps, or as many as fit", "README.md"),
    ("train_mnist.py", lambda d: TrainConfig.minutes, r"or as many as fit into (\d+) minutes", "README.md"),
    ("train_mnist.py", lambda d: d["sample_every"], r"`progress/` \(a grid every (\d+) steps", "demos/README.md"),
    ("train_mnist.py", lambda d: d["sample_every"], r"how digits appear from step (\d+) on", "demos/README.md"),
    ("forward_process.py", lambda d: d["chains"] // 4, r"also show (thousands) of chains", "demos/README.md"),
    ("prompts/train_prompts.py", lambda d: d["MINUTES"], r"as many steps as fit into (\d+) minutes", ""),
    ("prompts/train_prompts.py", lambda d: d["MINUTES"], r"After the default (\d+) minutes", "demos/README.md"),
    ("prompts/evaluate_prompts.py", lambda d: d["num"], r"998 of ([\d,]+) prompts", "demos/README.md"),
    ("guidance.py", lambda d: d["num"], r"guidance.py\), (\d+) digits for each row", "demos/README.md"),
    ("edit.py", lambda d: d["num"], r"The lower half of (\d+) test digits", "demos/README.md"),
    ("edit.py", lambda d: d["digits"], r"encoding and decoding in 100 steps, (\d+) digits", "demos/README.md"),
    ("edit.py", lambda d: max(d["round_trips"]), r"encoding and decoding in (\d+) steps", "demos/README.md"),
    ("edit.py", lambda d: d["num"], r"default is (\d+) digits x", ""),
    ("edit.py", lambda d: (d["steps"] - 1) * d["RESAMPLE"] + 1, r"digits x (\d+) evaluations \(with drawn", ""),
    ("edit.py", lambda d: d["steps"] * 11, r"with drawn\s+labels (\d+)\)", ""),
    ("edit.py", lambda d: d["digits"], r"and (\d+) digits x 3 x", ""),
    ("edit.py", lambda d: sum(d["round_trips"]), r"digits x 3 x (\d+) evaluations", ""),
    ("points_2d.py", lambda d: d["num"], r"cannot tell ([\d,]+) samples from", "demos/README.md"),
    ("sampler_showdown.py", lambda d: d["num"], r"the share of ([\d,]+) digits read as asked", "demos/README.md"),
    ("sampler_showdown.py", lambda d: d["num"], r"default of ([\d,]+) digits takes", ""),
    ("sampler_showdown.py", lambda d: round(showdown_evaluations(d) / 1e6, 1), r"takes ([\d.]+) million", ""),
    ("sampler_showdown.py", lambda d: min(d["steps"]), r"DPM-Solver\+\+\(2M\), (\d+) step to", ""),
    ("sampler_showdown.py", lambda d: d["longest"], r"step to ([\d,]+)\.", ""),
    ("overfit.py", lambda d: d["few"], r"Train one network on (\d+) pictures", ""),
    ("overfit.py", lambda d: d["many"], r"and one on ([\d,]+):", ""),
    ("overfit.py", lambda d: d["many"], r"trains on 20 pictures and on ([\d,]+):", "demos/README.md"),
    ("evaluate.py", lambda d: d["num"], r"The default is ([\d,]+) images", ""),
    ("evaluate.py", lambda d: d["draws"] + 1, r"images\s+with (\d+) evaluations each", ""),
    ("latent.py", lambda d: d["autoencoder_minutes"] + d["minutes"], r"train for (\d+) minutes, then compare", ""),
    ("explorer/explorer.py", lambda d: pitfalls_default("train_steps"), r"5 minutes with (\d+) steps", ""),
    ("measure/benchmark.py", lambda d: 64, r"On the CPU \(on_cpu.py\): batch (\d+)", ""),
    ("exercises/exercise.py", lambda d: len(d["EXERCISES"]), r"list +(fifteen) exercises", ""),
    ("exercises/exercise.py", lambda d: len(d["EXERCISES"]), r"(fifteen) parts of the book to", "demos/README.md"),
]
WORDS = {"fifteen": 15, "thousands": 1000}


def showdown_evaluations(d: dict) -> int:
    rows = [(name, n, 1.0) for n in d["steps"] for name in d["SAMPLERS"]] + [("", d["longest"], 1.0)]
    return d["num"] * sum(map(d["evaluations"], [*rows, *((*row, 2.0) for row in d["GUIDED"])]))


def pitfalls_default(name: str) -> int:
    return defaults("pitfalls.py")[name]


def test_numbers_of_the_texts_are_the_defaults_of_the_code():
    """What a page or a docstring says of the default run is what the code does by default."""
    loaded = {}
    for program, value, sentence, page in NUMBERS:
        names = loaded.setdefault(program, None) or defaults(program)
        loaded[program] = names
        (text,) = re.findall(sentence, PAGES[page] if page else names["__doc__"])
        number = WORDS.get(text) or float(text.replace(",", ""))
        assert number == value(names), f"{page or program}: {sentence} is {text}, the code has {value(names)}"


# ------------------------------------------------------------------------ numbers that follow from others on their page


SHARES = [  # page, number of images, the sentence: the share in percent, and the ends of its interval
    ("demos/README.md", 1000, r"([\d.]+)% at scale 40 \(([\d.]+) to ([\d.]+)\)"),
    ("demos/README.md", 300, r"Of these digits ([\d.]+)% \(([\d.]+) to ([\d.]+)%\)"),
    ("demos/README.md", 210, r"digits 4, 7 and 9 the share is ([\d.]+)% \(([\d.]+) to ([\d.]+)%\)"),  # of the 300
    ("demos/README.md", 1000, r"998 of 1,000 prompts give the right\s+digit, ([\d.]+)% \(([\d.]+) to ([\d.]+)%\)"),
    ("demos/README.md", 200, r"Of 200 digits ([\d.]+)% \(([\d.]+) to ([\d.]+)%\)"),
    *(
        ("demos/README.md", 500, rf"\| {name},.*?\| ([\d.]+)% \(([\d.]+) to ([\d.]+)\)")
        for name in ("VAE", "GAN", "DDPM")
    ),
]
COUNTS = [  # page, number of images, the sentence: how many of them, and the ends of the interval of that share
    ("demos/README.md", 200, r"Of 200 such prompts (\d+) \(([\d.]+) to ([\d.]+)%\)"),
    ("demos/README.md", 1000, r"(\d+) of 1,000 prompts give the right\s+digit, 99\.8% \(([\d.]+) to ([\d.]+)%\)"),
    (
        "tinydiff/fast/README.md",
        1000,
        r"reads (\d+)\s+of 1,000 of its digits as the digit asked for \(([\d.]+) to ([\d.]+)%\)",
    ),
]


def written(text: str, number: float) -> bool:
    """Whether a text is a number, rounded to the decimals that the text has."""
    decimals = len(text.partition(".")[2])
    return abs(float(text.replace(",", "")) - number) <= 0.5001 * 10.0**-decimals


def is_interval(low: str, high: str, right: int, n: int) -> bool:
    """Whether these are the ends, in percent, of Wilson's 95% interval of `right` in n."""
    return all(written(text, 100 * end) for text, end in zip((low, high), wilson_interval(right, n)))


def test_an_interval_is_that_of_its_share_and_its_number_of_images():
    """Some number of right answers has this share and this interval."""
    for page, n, sentence in SHARES:
        share, low, high = re.search(sentence, PAGES[page]).groups()
        counts = [k for k in range(n + 1) if written(share, 100 * k / n)]
        assert any(is_interval(low, high, k, n) for k in counts), f"{page}: {share}% of {n} ({low} to {high})"
    for page, n, sentence in COUNTS:
        count, low, high = re.search(sentence, PAGES[page]).groups()
        assert is_interval(low, high, int(count), n), f"{page}: {count} of {n} ({low} to {high})"


def speeds(page: str) -> list[tuple[str, list[str]]]:
    """(first cell, numbers) of each row with ours, PyTorch's and their ratio, once or more often."""
    rows = [
        [cell.strip() for cell in row.strip("| ").split("|")] for row in PAGES[page].splitlines() if row[:2] == "| "
    ]
    numbers = [(row[0], [re.match(r"[\d.,]+(?= (?:img/s|MB)$)|[\d.]+$", cell) for cell in row[1:]]) for row in rows]
    return [(name, [m[0] for m in found]) for name, found in numbers if len(found) % 3 == 0 and all(found)]


def test_a_ratio_is_the_quotient_of_its_row():
    """Ours over PyTorch's, of the numbers before they were rounded; and the first page has the engine room's rows."""
    rows = {page: speeds(page) for page in ("README.md", "tinydiff/fast/README.md")}
    assert [len(found) for found in rows.values()] == [3, 8]
    for name, cells in [row for found in rows.values() for row in found]:
        for ours, theirs, ratio in zip(*[iter(cells)] * 3):
            a, b = float(ours.replace(",", "")), float(theirs.replace(",", ""))
            least, most = (a - 0.5) / (b + 0.5), (a + 0.5) / (b - 0.5)
            assert least - 0.005 <= float(ratio) <= most + 0.005, f"{name}: {ours} and {theirs} have no ratio {ratio}"
    for name, cells in rows["README.md"]:
        assert any(other.startswith(name) and cells == same for other, same in rows["tinydiff/fast/README.md"]), name


def test_the_first_stop_has_the_lines_of_its_two_files():
    """To 10%."""
    (lines,) = re.findall(r"gaussian\.py\), (\d+) lines of code", PAGES["demos/README.md"])
    counted = COUNTER["count_package"](ROOT / "tinydiff")
    assert int(lines) == pytest.approx(counted["diffusion/schedule.py"] + counted["diffusion/gaussian.py"], rel=0.1)


# ---------------------------------------------------------------------------- the glossary and the equation index


def test_the_glossarys_names_exist():
    """Each function that the glossary gives for a symbol is one of diffusion/, of Schedule, or of train.py."""
    glossary = MATHEMATICS.split("## Glossary")[1].split("\n## ")[0]
    cells = [row.split("|")[2] for row in glossary.splitlines() if row.startswith("| ") and "in code" not in row]
    names = [name for cell in cells for name in re.findall(r"`([^`]+)`|\[([^\]]+)\]", cell)]
    names = [code or text for code, text in names]
    assert len(names) > 15
    arguments = {"x_0", "x_t", "eps", "eps_hat", "x_0_hat", "eta"}
    schedule = diffusion.Schedule.linear(100)
    for name in set(names) - arguments:
        if name.startswith("schedule."):
            assert hasattr(schedule, re.match(r"schedule\.(\w+)", name)[1]), name
        else:
            word = re.match(r"\w+", name)[0]
            assert hasattr(diffusion, word) or hasattr(train, word), name


def equation_index():
    """(equation, functions, tests) of each row of the index; a function or test as (name, file)."""
    section = MATHEMATICS.split("## Equation index")[1].split("\n## ")[0]
    rows = [row.strip("| ").split(" | ") for row in section.splitlines() if row.startswith("| ")]
    rows = [[cell.strip() for cell in row] for row in rows if row[0] != "eq."]
    assert {len(row) for row in rows} == {4}
    folder = ROOT / "tinydiff" / "diffusion"
    named = [
        [[(name, (folder / to).resolve()) for name, to, _ in LINK.findall(cell)] for cell in row[2:]] for row in rows
    ]
    return [(row[0], functions, tests) for row, (functions, tests) in zip(rows, named)]


def test_every_function_and_test_of_the_equation_index_stands_where_its_link_leads():
    """A row names functions of the package and tests that hold them to their equation; none of them is gone."""
    index = equation_index()
    assert len(index) > 20
    for equation, functions, tests in index:
        assert functions and tests, f"eq. {equation} without a function or a test"
        for name, file in functions:
            pkgutil.resolve_name(f"tinydiff.{name}")  # raises where it does not exist
            assert name.rpartition(".")[2] in defined(file), f"eq. {equation}: {name} is not in {file.name}"
        for name, file in tests:
            assert name in defined(file), f"eq. {equation}: {name} is not in {file.name}"


@cache
def defined(file: Path) -> set[str]:
    """Names of the functions and classes of a file, methods included, and of what it assigns at its top."""
    tree = ast.parse(file.read_text("utf-8"))
    targets = [target for node in tree.body if isinstance(node, ast.Assign) for target in node.targets]
    assigned = {target.id for target in targets if isinstance(target, ast.Name)}
    return assigned | {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}


def test_every_public_function_of_the_process_is_in_the_equation_index():
    """No formula of diffusion/ stands without its equation and its test, Schedule's own included."""
    listed = {name for _, functions, _ in equation_index() for name, _ in functions}
    chapters = [f"tinydiff.diffusion.{path.stem}" for path in (ROOT / "tinydiff" / "diffusion").glob("[a-z]*.py")]
    # Of other files of diffusion/, no formulas.
    helpers = {"per_row", "check_alike", "check_float", "check_time", "joined", "even_pairs", "predicted_x_0", "finite"}
    public = set()
    for chapter in chapters:
        module = pkgutil.resolve_name(chapter)
        own = {name for name, f in vars(module).items() if getattr(f, "__module__", "") == chapter and name[0] != "_"}
        public |= {f"diffusion.{name}" for name in own - helpers if not isinstance(getattr(module, name), type)}
    methods = {name for name, f in vars(diffusion.Schedule).items() if name[0] != "_" and name != "check_times"}
    public |= {f"diffusion.Schedule.{name}" for name in methods}
    names = {name for name in public if callable(pkgutil.resolve_name(f"tinydiff.{name}"))}
    assert {
        name for name in names if not isinstance(pkgutil.resolve_name(f"tinydiff.{name}"), diffusion.Target)
    } - listed == set()
