"""The argument of renew.py: which page is read and written."""

from option_rows import DIFFERS

ARGUMENTS = {"page": "a.html"}
WORDS = ""


def stand_ins(program, notes, patch):
    def write(data, out):
        notes.add(data=data, out=str(out))

    patch.setattr(program.names["explorer"], "data_of", lambda text: text)
    patch.setattr(program.names["Path"], "read_text", lambda path, encoding: f"the text of {path}")
    patch.setattr(program.names["explorer"], "write", write)


ROWS = {"page": ("a.html", "b.html", {"data": DIFFERS, "out": ("a.html", "b.html")})}
