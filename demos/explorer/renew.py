"""Write a page of explorer.py anew with the texts, styles, scripts and cards of today.  Its recorded runs stay.

    python demos/explorer/renew.py                        the ready explorer.html of this folder
    python demos/explorer/renew.py runs/explorer.html

It takes a second: nothing is trained or drawn.  Run it after each change of page.html or of a file beside it.
Read next: explorer.py.
"""

from pathlib import Path

import explorer

from tinydiff.app import cli
from tinydiff.app.outputs import file_to_write
from tinydiff.backend import TinydiffError

READY = explorer.PAGE / "explorer.html"


def main(page=READY):
    """Write the page, and return its data."""
    try:
        data = explorer.data_of(Path(page).read_text("utf-8"))
    except (OSError, UnicodeDecodeError, TypeError, ValueError):
        raise TinydiffError(f"{page} is not a page of explorer.py") from None
    return explorer.write(data, file_to_write("page", page, ".html"))


if __name__ == "__main__":
    parser = cli.parser(__doc__, main)
    parser.add_argument("page", nargs="?", default=READY, help="the page (default: the ready one of this folder)")
    cli.run(main, parser)
