"""A table that a program prints and writes to a file.  Read next: metrics.py."""

import csv
import io
from pathlib import Path
from typing import Any

from tinydiff.app.checkpoint import atomic_write

WIDTH = 100  # characters of a printed table
_CELL = 48  # characters of a printed cell, so that two cells fit side by side


def print_table(rows: list[dict[str, Any]]) -> None:
    """Print rows as a table of at most WIDTH characters.

    The columns of a wider table stand in several blocks, each of which begins with the first column.  A longer cell
    than _CELL characters is cut.
    rows: at least one.  All rows have the same keys; the keys are the headings of the columns.
    """
    columns = [[_cell(text) for text in (key, *(row[key] for row in rows))] for key in rows[0]]
    columns = [[f"{text:>{max(map(len, column))}}" for text in column] for column in columns]
    first, *rest = columns
    blocks = [[first]]
    for column in rest:
        if len(blocks[-1]) > 1 and sum(len(cells[0]) + 2 for cells in (*blocks[-1], column)) > WIDTH + 2:
            blocks.append([first])
        blocks[-1].append(column)
    print("\n\n".join("\n".join("  ".join(cells) for cells in zip(*block)) for block in blocks))


def write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    """Print rows with print_table, and write them to a file: Markdown if the path ends in .md, else .csv."""
    print_table(rows)
    text = io.StringIO()
    if path.suffix == ".md":
        for cells in (rows[0], ["---"] * len(rows[0]), *(row.values() for row in rows)):
            text.write("| " + " | ".join(map(str, cells)) + " |\n")
    else:
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    with atomic_write(path) as file:
        file.write(text.getvalue().encode())


def _cell(value: Any) -> str:
    text = str(value)
    return text if len(text) <= _CELL else f"{text[: _CELL - 3]}..."
