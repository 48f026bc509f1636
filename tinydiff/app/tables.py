"""A table that a program prints and writes to a file.  Read next: metrics.py."""

import csv
import io
from pathlib import Path
from typing import Any

from tinydiff.app.checkpoint import atomic_write


def write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    """Print rows as a table and write them to a file: Markdown if the path ends in .md, else .csv.

    rows: at least one.  All rows have the same keys; the keys are the headings of the columns.
    """
    widths = {key: max(len(key), *(len(str(row[key])) for row in rows)) for key in rows[0]}
    for row in [{key: key for key in rows[0]}, *rows]:
        print("  ".join(f"{row[key]!s:>{width}}" for key, width in widths.items()))
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
