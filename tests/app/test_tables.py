"""A table is the same rows on the screen and in its file."""

import pytest

from tinydiff.app import tables

pytestmark = pytest.mark.program


def test_a_table_is_printed_and_written_by_its_suffix(tmp_path, capsys):
    """As .csv, or as the rows of a Markdown table; every cell is in each."""
    rows = [{"name": "a", "value": 1.5}, {"name": "long", "value": ""}]
    tables.write_table(tmp_path / "t.csv", rows)
    tables.write_table(tmp_path / "t.md", rows)
    assert (tmp_path / "t.csv").read_text() == "name,value\na,1.5\nlong,\n"
    assert (tmp_path / "t.md").read_text() == "| name | value |\n| --- | --- |\n| a | 1.5 |\n| long |  |\n"
    assert capsys.readouterr().out == 2 * "name  value\n   a    1.5\nlong       \n"
