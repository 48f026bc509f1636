"""A table is the same rows on the screen and in its file, and the bar over a short run changes nothing of it."""

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


def test_progress_passes_losses_on_and_shows_them(capsys):
    """What comes out is what went in, each when it is there; the bar counts images and shows the mean loss."""
    made = []

    def losses():
        for loss in (3.0, 1.0):
            made.append(loss)
            yield loss

    bar = tables.progress(losses(), 2, 32, "net")
    assert next(bar) == 3.0 and made == [3.0]
    assert list(bar) == [1.0]
    shown = capsys.readouterr().err
    assert "net" in shown and "64/64" in shown and "step 2, loss 2" in shown
