"""--help of every program, and what becomes of a bad option: one set of laws for all, read from their parsers."""

import argparse
import re
import runpy
import shlex
from pathlib import Path

import pytest

from tinydiff.app import cli
from tinydiff.backend import backend_name

pytestmark = [
    pytest.mark.program,
    pytest.mark.skipif(backend_name() != "numpy", reason="options are the same on every backend"),
]

DEMOS = Path(__file__).parents[2] / "demos"
PROGRAMS = sorted(
    path.relative_to(DEMOS).as_posix() for path in DEMOS.rglob("*.py") if '__name__ == "__main__"' in path.read_text()
)
VERBS = {"Draw", "Edit", "Look", "Make", "Measure", "Read", "Take", "Train", "Write"}
BAD = ("nan", "inf", "-inf", "-1", "-1e5", "1e30", "x", "", "9" * 40)  # for any option that is a number or a list


@pytest.fixture(scope="module")
def parsers():
    """{program: its parser and its main}."""
    found = {}
    for name in PROGRAMS:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cli, "run", lambda main, parser, name=name: found.update({name: parser}))
            patch.syspath_prepend((DEMOS / name).parent)
            runpy.run_path(str(DEMOS / name), run_name="__main__")
    return found


def options_of(parser):
    """The options that --help shows, --help itself not among them."""
    shown = [action for action in parser._actions if action.help != argparse.SUPPRESS]
    return [action for action in shown if action.option_strings and action.dest != "help"]


def parsed(parser, *words):
    """The options of these words, with words for the arguments that must be there."""
    needed = [action for action in parser._actions if not action.option_strings and action.nargs is None]
    return vars(parser.parse_args([*map(str, words), *("a" for _ in needed)]))


def help_of(parser, action):
    """The text that --help shows for an option."""
    formatter = parser._get_formatter()
    return formatter._expand_help(action)


@pytest.mark.parametrize("name", PROGRAMS)
def test_help_fits_and_begins_with_what_the_program_does(parsers, name, monkeypatch):
    """No line is wider than the terminal of 100 columns; the first sentence has a verb and stands in one line there."""
    monkeypatch.setenv("COLUMNS", "100")
    parser = parsers[name]
    lines = parser.format_help().splitlines()
    assert [line for line in lines if len(line) > 100] == []
    first = parser.description.strip().splitlines()[0]
    assert first.split()[0] in VERBS and re.search(r"[.?]$", first) and "  " not in first.replace(".  ", ". ")


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_option_has_a_text_and_its_default(parsers, name):
    """A default is shown as a user would type it, and typed so it is read as the same value; else the text tells it."""
    parser = parsers[name]
    for action in options_of(parser):
        text, option = help_of(parser, action), action.option_strings[0]
        assert action.help, option
        if isinstance(action.const, bool):
            continue  # a switch, off unless it is given
        assert len(re.findall(r"\(default: [^()]+\)$", text)) == 1, f"{option}: {text}"
        if action.default is not None:
            shown = re.search(r"\(default: (.*)\)$", text)[1]
            (word,) = shlex.split(shown)
            assert parsed(parser, option, word)[action.dest] == action.default, option


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_bad_number_is_refused_with_its_option_and_value(parsers, name, capsys):
    """Not a number, not finite, negative, far too large, no number: exit code 2, and the message has both."""
    parser = parsers[name]
    for action in parser._actions:
        if not action.option_strings or action.type is None:
            continue
        for value in BAD:
            with pytest.raises(SystemExit) as end:
                parsed(parser, action.option_strings[0], value)
            message = capsys.readouterr().err.splitlines()[-1]
            assert end.value.code == 2 and f"argument {action.option_strings[0]}: " in message, (value, message)
            assert repr(value)[:12] in message and len(message) < 250, (value, message)


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_list_has_commas_in_every_program(parsers, name, capsys):
    """No option takes several words; each option whose default is a list names the item that is wrong."""
    parser = parsers[name]
    assert [action.dest for action in options_of(parser) if action.nargs not in (None, 0)] == []
    for action in options_of(parser):
        if isinstance(action.default, tuple):
            option = action.option_strings[0]
            good = cli.as_typed(action.default[:2])
            assert parsed(parser, option, good)[action.dest] == action.default[:2]
            with pytest.raises(SystemExit):
                parsed(parser, option, f"{good},oops")
            assert "got 'oops' in" in capsys.readouterr().err


def test_reverse_steps_have_one_name(parsers):
    """--steps in a program that only draws, --sample-steps in a program that trains.  Earlier names work, unseen."""
    names = {}
    for name, parser in parsers.items():
        for action in options_of(parser):
            if "steps" in action.option_strings[0] and re.search(r"reverse steps|steps of DD[IP]M", action.help):
                names[name] = action.option_strings[0]
    trains = {"explorer/explorer.py", "latent.py", "one_shot_vs_gradual.py", "pitfalls.py", "points_2d.py"}
    trains |= {"waves_1d.py", "train_mnist.py", "train_images.py", "prompts/train_prompts.py"}
    trains |= {"measure/compare_settings.py", "network.py", "overfit.py"}
    draws = {"sample.py", "guidance.py", "edit.py", "same_start.py", "sampler_showdown.py"}
    draws |= {"prompts/prompt.py", "prompts/evaluate_prompts.py", "measure/frontier.py"}
    assert names == dict.fromkeys(trains, "--sample-steps") | dict.fromkeys(draws, "--steps")
    for name, earlier, value in (
        ("points_2d.py", "--flow-steps", 7),
        ("waves_1d.py", "--sampling-steps", 7),
        ("latent.py", "--steps", 7),
        ("one_shot_vs_gradual.py", "--steps", 7),
        ("pitfalls.py", "--steps", 7),
        ("explorer/explorer.py", "--steps", (3, 7)),
    ):
        assert parsed(parsers[name], earlier, cli.as_typed(value))["sample_steps"] == value
        assert f"{earlier} " not in parsers[name].format_help().replace("--sample-steps", "")
