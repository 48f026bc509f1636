"""Rows that the option tables of many programs share (tests/demos/test_options.py)."""

DIFFERS = object()  # in a row: the two values differ

BASICS = {
    "--backend": ("--backend=numpy", "--backend=cupy", {"backend": ("numpy", "cupy")}),
    "--precision": ("", "--precision=tf32", {"precision": (None, "tf32")}),
    "--plain": ("", "--plain", {"plain": (False, True)}),
}
WORKERS = {"--workers": ("", "--workers=3", {"workers": (5, 3)})}  # recorder.Ranks has 5 by default
