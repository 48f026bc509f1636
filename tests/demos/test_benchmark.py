"""benchmark.py in its smallest form: it times what it says, and prints a table."""

import pytest

from tinydiff.backend import backend_name

pytestmark = pytest.mark.program


@pytest.mark.skipif(backend_name() != "numpy", reason="it sets the backend to numpy")
def test_the_table_has_a_line_for_each_contestant(load_demo, capsys, monkeypatch):
    """Alone (without torch): positive times for every round of both kinds, and a warning about a crippled BLAS."""
    module = load_demo("benchmark")
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")
    seconds = module.main(batch_size=4, channels=8, rounds=2, workers=1)
    assert list(seconds) == ["tinydiff, 1 worker(s)"]
    for times in seconds["tinydiff, 1 worker(s)"].values():
        assert len(times) == 2 and min(times) > 0
    printed = capsys.readouterr().out
    assert "tinydiff, 1 worker(s)" in printed and "OPENBLAS_CORETYPE=Haswell" in printed and "not installed" in printed
