"""Changes of one token that change nothing that anyone can see, and why: no test can fail for them.

Each entry: the file, a part of the line, a regular expression for the changed line, and the reason.
"""

EQUIVALENT: list[tuple[str, str, str, str]] = []
