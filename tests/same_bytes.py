"""Whether files are equal, in a word: pytest would describe the difference of two long byte strings for minutes."""


def same_bytes(*contents: bytes) -> bool:
    """Whether all of these are equal.  A failing assertion then shows the beginning of each."""
    return len(set(contents)) == 1
