"""A table is the same rows on the screen and in its file."""

import contextlib
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinydiff.app import cli, tables

pytestmark = pytest.mark.program


def test_a_table_is_printed_and_written_by_its_suffix(tmp_path, capsys):
    """As .csv, or as the rows of a Markdown table; every cell is in each."""
    rows = [{"name": "a", "value": 1.5}, {"name": "long", "value": ""}]
    tables.write_table(tmp_path / "t.csv", rows)
    tables.write_table(tmp_path / "t.md", rows)
    assert (tmp_path / "t.csv").read_text() == "name,value\na,1.5\nlong,\n"
    assert (tmp_path / "t.md").read_text() == "| name | value |\n| --- | --- |\n| a | 1.5 |\n| long |  |\n"
    assert capsys.readouterr().out == 2 * "name  value\n   a    1.5\nlong       \n"


texts = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=80)


@given(st.data(), st.integers(1, 12), st.integers(1, 4))
def test_a_printed_table_fits_100_columns(data, columns, rows):
    """Whatever its cells: columns that do not fit stand in a block below, each block with the first column.

    A cell of up to 48 characters is printed whole, a longer one is cut.
    """
    keys = data.draw(st.lists(texts, min_size=columns, max_size=columns, unique=True))
    table = [{key: data.draw(texts) for key in keys} for _ in range(rows)]
    with contextlib.redirect_stdout(io.StringIO()) as out:
        tables.print_table(table)
    printed = out.getvalue()
    assert max(map(len, printed.splitlines())) <= 100

    def shown(text):
        return text if len(text) <= 48 else f"{text[:45]}..."

    blocks = [block.splitlines() for block in printed.rstrip("\n").split("\n\n")]
    assert all(len(block) == rows + 1 for block in blocks)
    for i, row in enumerate([dict(zip(keys, keys)), *table]):
        first, *rest = (shown(row[key]) for key in keys)
        cells = [block[i].split() for block in blocks]
        assert all(line[0] == first for line in cells) and [cell for line in cells for cell in line[1:]] == rest


@pytest.mark.parametrize("last, blocks", [(16, 1), (17, 2)])
def test_a_table_of_100_characters_is_one_block(last, blocks, capsys):
    """40 + 2 + 40 + 2 + 16 = 100: these three columns stand side by side; with one character more they do not."""
    tables.print_table([{"a" * 40: 1, "b" * 40: 2, "c" * last: 3}])
    assert capsys.readouterr().out.count("\n\n") == blocks - 1


@pytest.mark.parametrize("length, shown", [(48, "x" * 48), (49, "x" * 45 + "...")])
def test_a_cell_of_48_characters_is_whole(length, shown, capsys):
    """One character more, and it is cut to 48."""
    tables.print_table([{"a": "x" * length}])
    assert capsys.readouterr().out.splitlines()[1] == shown


@pytest.mark.parametrize("n, text", [(0, "0 steps"), (1, "1 step"), (2, "2 steps"), (2000, "2,000 steps")])
def test_one_thing_is_no_plural(n, text):
    assert cli.counted(n, "step") == text
