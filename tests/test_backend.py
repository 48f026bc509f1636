"""The switch between array modules and between plain and faster forms; the host side: streams, checked integers."""

import importlib
import subprocess
import sys
import types
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinydiff import backend, ops
from tinydiff.autograd import Tensor
from tinydiff.backend import (
    FAST,
    BackendError,
    asarray,
    backend_name,
    default_rng,
    fusable,
    host_integers,
    precision,
    standard_normal,
    to_numpy,
    use_backend,
    when_chosen,
    xp,
)
from tinydiff.fast.device import describe

pytestmark = pytest.mark.engine

INTEGER_TYPES = ["int8", "int32", "int64", "uint8", "uint32"]
SHAPES = st.lists(st.integers(1, 4), max_size=3).map(tuple)
SEEDS = st.integers(0, 2**32 - 1)


@pytest.fixture(autouse=True)
def same_backend_afterwards():
    before, plain = (backend_name(), precision()), not FAST
    yield
    use_backend(*before, plain=plain)


@pytest.fixture
def cupy_is(monkeypatch):
    """Let `import cupy` give the module, or raise the error, that the test says."""

    def choose(found):
        real = importlib.import_module

        def import_module(name, package=None):
            if name != "cupy":
                return real(name, package)
            if isinstance(found, Exception):
                raise found
            return found

        monkeypatch.setattr(importlib, "import_module", import_module)

    return choose


def fake_cupy(fails=None, driver=13020, made=13020):
    """A module named cupy for CUDA `made` on a driver for CUDA `driver`, whose first kernel runs or raises `fails`."""

    def ones(shape, dtype):
        if fails is not None:
            raise fails
        return np.ones(shape, dtype)

    def set_compute_type(dtype, kind):
        module.products = (dtype, kind)

    names = {"COMPUTE_TYPE_TF32": "tf32", "COMPUTE_TYPE_DEFAULT": "float32", "set_compute_type": set_compute_type}
    runtime = {
        "driverGetVersion": lambda: driver,
        "runtimeGetVersion": lambda: made,
        "getDevice": lambda: 1,
        "getDeviceProperties": lambda device: {"name": b"GPU %d" % device},
        "memGetInfo": lambda: (3 << 29, 5 << 30),
        "deviceGetAttribute": lambda which, device: {75: 9, 97: 227 << 10}[which],
    }
    module: Any = types.ModuleType("cupy")
    module.__version__ = "14.2.0"
    module.cuda = types.SimpleNamespace(runtime=types.SimpleNamespace(**runtime))
    module._core = types.SimpleNamespace(_routines_linalg=types.SimpleNamespace(**names))
    module.ones = ones
    module.exp = lambda x: "the exp of the device"
    return module


class CompileException(Exception):
    """CuPy's own for what NVRTC refuses: no RuntimeError."""


# The switch.


@pytest.mark.parametrize("name", ["torch", "NumPy", "", None])
def test_a_backend_of_any_other_name_is_refused(name):
    """Only "numpy" and "cupy" are backends, and a refused name changes nothing."""
    before = backend_name()
    with pytest.raises(ValueError, match=f"backend must be 'numpy' or 'cupy', got {name!r}"):
        use_backend(name)
    assert backend_name() == before


@pytest.mark.parametrize(
    "found, words",
    [
        (ModuleNotFoundError("No module named 'cupy'"), ["No module named 'cupy'", "tinydiff[cuda13x]", "cuda12x"]),
        (ImportError("libnvrtc.so"), ["libnvrtc.so", "tinydiff[cuda13x]", "cuda12x"]),
        (fake_cupy(driver=0), ["no NVIDIA driver", "install", "numpy"]),
        (fake_cupy(driver=12040), ["CUDA 13.2", "12.4", "pip uninstall cupy-cuda13x", "tinydiff[cuda12x]"]),
        (fake_cupy(driver=11080, made=12090), ["CUDA 12.9", "11.8", "newer driver"]),
        (fake_cupy(RuntimeError("cudaErrorNoDevice: none")), ["RuntimeError: cudaErrorNoDevice", "nvidia-smi"]),
        (fake_cupy(RuntimeError("Failed to find NVRTC")), ["Failed to find NVRTC", "tinydiff[cuda13x]", "headers"]),
        (fake_cupy(ImportError("libcublas.so"), made=12090), ["libcublas.so", "tinydiff[cuda12x]"]),
        (fake_cupy(CompileException("cuda_fp16.h\nand its source")), ["CompileException: cuda_fp16.h)", "headers"]),
        (fake_cupy(MemoryError("Out of memory allocating 16 bytes")), ["allocating 16 bytes", "free memory"]),
    ],
)
def test_cupy_that_cannot_work_says_what_to_do(cupy_is, found, words):
    """Whatever is missing: BackendError of one line with the cause and the remedy, and the backend stays."""
    use_backend("numpy")
    cupy_is(found)
    with pytest.raises(BackendError) as error:
        use_backend("cupy")
    assert all(word in str(error.value) for word in words), str(error.value)
    assert "\n" not in str(error.value)
    assert (backend_name(), precision()) == ("numpy", "float32") and xp.exp is np.exp


@pytest.mark.parametrize("driver, made", [(13000, 13020), (13030, 12090), (12040, 12090)])
def test_a_driver_of_the_same_or_a_newer_major_version_will_do(cupy_is, driver, made):
    """CUDA's minor versions are compatible with each other, and an older CuPy works on any newer driver."""
    cupy_is(fake_cupy(driver=driver, made=made))
    use_backend("cupy")
    assert backend_name() == "cupy"


@pytest.mark.parametrize("choice, found", [(None, "tf32"), ("tf32", "tf32"), ("float32", "float32")])
def test_a_gpu_multiplies_in_the_precision_chosen(cupy_is, monkeypatch, choice, found):
    """CuPy is told, whatever CUPY_TF32 says; TF32 is the default; back on NumPy it is float32."""
    for variable in ("0", "1"):
        monkeypatch.setenv("CUPY_TF32", variable)
        module = fake_cupy()
        cupy_is(module)
        use_backend("cupy", choice)
        assert module.products == ("float32", found) and precision() == found
    use_backend("numpy")
    assert precision() == "float32"


@pytest.mark.parametrize("name, other", [("numpy", "tf32"), ("numpy", "float64"), ("cupy", "bfloat16"), ("cupy", "")])
def test_a_precision_that_the_backend_lacks_is_refused(cupy_is, name, other):
    """NumPy has float32 only, CuPy tf32 too; anything else is named with the backend, and nothing changes."""
    use_backend("numpy", "float32")
    cupy_is(fake_cupy())
    with pytest.raises(ValueError, match=f"on backend '{name}', got '{other}'$"):
        use_backend(name, other)
    assert (backend_name(), precision()) == ("numpy", "float32")


def test_the_device_is_described_in_one_line(cupy_is):
    """The current device, its memory, both CUDA versions and the precision; NumPy by its version."""
    cupy_is(fake_cupy(driver=13010, made=12090))
    use_backend("cupy", "float32")
    assert describe() == "GPU 1, 1.5 of 5.0 GiB free; CuPy 14.2.0 for CUDA 12.9, driver for 13.1; products in float32"
    use_backend("numpy")
    assert describe() == f"NumPy {np.__version__}"


def test_a_switch_reaches_everyone_who_holds_xp(cupy_is):
    """xp is one object for the life of the process, and what it looked up before a switch is forgotten."""
    held = backend.xp
    use_backend("numpy")
    assert held.exp is np.exp
    cupy_is(fake_cupy())
    use_backend("cupy")
    assert held is backend.xp and backend_name() == "cupy"
    assert held.exp(0) == "the exp of the device"
    use_backend("numpy")
    assert held.exp is np.exp and backend_name() == "numpy"


def test_a_look_up_is_made_once():
    """A name is fetched from the array module at its first use and is a plain attribute of xp from then on."""
    use_backend(backend_name())
    assert "hypot" not in vars(xp)
    first = xp.hypot
    assert vars(xp)["hypot"] is first and xp.hypot is first


def test_a_name_that_the_array_module_lacks_is_an_attribute_error():
    """A misspelt function fails as it would on the module itself, and is not remembered."""
    with pytest.raises(AttributeError, match="no_such_function"):
        _ = xp.no_such_function
    assert "no_such_function" not in vars(xp)


# Plain forms and faster ones.


def test_a_faster_form_stands_in_under_the_name_of_the_plain_one(monkeypatch):
    """A @fusable function or method looks its qualified name up at each call, and runs itself where none is there."""

    @fusable
    def f(x, *, y):
        """What it does."""
        return "plain", x, y

    class Layer:
        @fusable
        def forward(self, x):
            return "plain", x

    layer, names = Layer(), (f.__qualname__, Layer.forward.__qualname__)
    assert f.__doc__ == "What it does." and names[1].endswith("Layer.forward")
    for _ in range(2):
        assert f(1, y=2) == ("plain", 1, 2) and layer.forward(3) == ("plain", 3)
        with monkeypatch.context() as patch:
            patch.setitem(FAST, names[0], lambda x, *, y: ("fast", x, y))
            patch.setitem(FAST, names[1], lambda itself, x: ("fast", itself, x))
            assert f(1, y=2) == ("fast", 1, 2) and layer.forward(3) == ("fast", layer, 3)


def test_a_faster_form_of_an_op_stands_in_under_its_name(monkeypatch):
    """The op takes the values and the gradient of the form in FAST, and differentiates it as its own."""
    x = Tensor(xp.ones(3), requires_grad=True)
    monkeypatch.setitem(FAST, "exp", lambda a: (a + 5, lambda g: (7 * g,)))
    y = ops.exp(x)
    y.backward(xp.ones(3))
    assert to_numpy(y).tolist() == [6] * 3 and to_numpy(x.grad).tolist() == [7] * 3


def test_the_choice_of_a_backend_fills_the_table_and_plain_empties_it(monkeypatch):
    """use_backend calls what was given to when_chosen, once the backend is chosen; with plain=True FAST stays empty."""
    monkeypatch.setattr(backend, "_prepare", [*backend._prepare])
    seen = []
    when_chosen(lambda: seen.append((backend_name(), "of a test" in FAST)))
    for _ in range(2):
        FAST["of a test"] = lambda: None
        use_backend(backend_name(), precision(), plain=True)
        assert not FAST and seen == []
    FAST["of a test"] = lambda: None
    use_backend(backend_name(), precision())
    assert seen == [(backend_name(), False)] and {"conv2d", "adam_update"} <= FAST.keys() and "of a test" not in FAST


def test_an_import_installs_nothing():
    """`import tinydiff` reaches every part of the book, and computes with the plain forms until a program says
    use_backend."""
    code = """import sys, tinydiff as td
td.nn.UNet, td.ops.silu, td.optim.EMA, td.diffusion.Schedule, td.train.train, td.data.Dataset, td.__version__
print(len(td.backend.FAST), *[name for name in ("fast", "app", "more") if f"tinydiff.{name}" in sys.modules])"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert out.stdout.split() == ["0"]


# In and out.


@given(SHAPES, st.sampled_from(["float32", "float64", "int64"]), SEEDS)
def test_arrays_and_tensors_go_in_and_out_unchanged(shape, dtype, seed):
    """to_numpy(asarray(a)) is a in value, shape and dtype, whether a is an array or the array inside a Tensor."""
    a = default_rng(seed).integers(-99, 99, shape).astype(dtype)
    inside = asarray(a)
    assert isinstance(inside, xp.ndarray)
    for out in (to_numpy(inside), to_numpy(Tensor(inside)), to_numpy(asarray(Tensor(inside))), to_numpy(a)):
        assert type(out) is np.ndarray and out.dtype == a.dtype
        np.testing.assert_array_equal(out, a)


def test_asarray_copies_only_if_it_must():
    """An array of this backend and dtype, bare or in a Tensor, is handed through as it is."""
    a = xp.zeros((2, 3), "float32")
    assert asarray(a) is a and asarray(Tensor(a)) is a and asarray(a, "float32") is a


@pytest.mark.parametrize("wrap", [to_numpy, lambda a: a, Tensor], ids=["host", "backend", "tensor"])
def test_asarray_casts_to_the_dtype_asked_for(wrap):
    """asarray(a, dtype) has that dtype whatever a came as."""
    a = asarray(np.array([1.5, -2.0]))
    out = asarray(wrap(a), "float32")
    assert isinstance(out, xp.ndarray) and out.dtype == xp.float32
    np.testing.assert_array_equal(to_numpy(out), [1.5, -2.0])


# Random streams.


@given(SHAPES, st.sampled_from(["float32", "float64"]), SEEDS, st.integers(0, 10**6))
def test_one_seed_is_one_noise_on_every_backend(shape, dtype, seed, step):
    """standard_normal hands over the host generator's own numbers, bit for bit, in the dtype asked for."""
    eps = standard_normal(default_rng(seed, step), shape, dtype)
    assert isinstance(eps, xp.ndarray) and eps.dtype == dtype
    np.testing.assert_array_equal(to_numpy(eps), default_rng(seed, step).standard_normal(shape, dtype=dtype))


NAMES = st.lists(st.one_of(SEEDS, st.sampled_from(["batch", "epoch", "noise"])), min_size=1, max_size=3)


@given(NAMES, NAMES)
def test_streams_of_different_names_differ(one, other):
    """default_rng(*a) and default_rng(*b) give the same numbers if and only if a == b."""
    same = (default_rng(*one).integers(2**63, size=4) == default_rng(*other).integers(2**63, size=4)).all()
    assert same == (one == other)


@given(NAMES)
def test_every_part_of_a_streams_name_counts(name):
    """A longer name is another stream, even by a 0 (which NumPy's own seeds ignore), and so is another order."""
    names = [name, [*name, 0], [0, *name], [*name, 0, 0], [*name, len(name)], [*name, "batch"], ["batch", *name]]
    names += [list(reversed(name))] if name != name[::-1] else []
    assert len({default_rng(*each).integers(2**63) for each in names}) == len({tuple(each) for each in names})


# Checked integers.


@given(st.data(), st.sampled_from(INTEGER_TYPES), SHAPES)
def test_integers_in_range_pass_as_int64(data, dtype, shape):
    """Integers of any dtype in low..high, ends included, come back equal, as int64 on the host."""
    low = data.draw(st.integers(0, 100))
    high = data.draw(st.integers(low, 127))
    a = default_rng(data.draw(SEEDS)).integers(low, high, shape, endpoint=True).astype(dtype)
    out = host_integers("t", a, low, high)
    assert type(out) is np.ndarray and out.dtype == np.int64
    np.testing.assert_array_equal(out, a)
    np.testing.assert_array_equal(host_integers("t", [low, high], low, high), [low, high])


@given(st.data(), st.integers(-5, 5), st.integers(0, 5), st.integers(1, 6))
def test_an_integer_out_of_range_is_named(data, low, width, size):
    """One value outside low..high, at any place, is a ValueError with the argument's name, its range and the value."""
    high = low + width
    bad = data.draw(st.one_of(st.integers(-99, low - 1), st.integers(high + 1, 99)))
    a = default_rng(data.draw(SEEDS)).integers(low, high, size, endpoint=True)
    a[data.draw(st.integers(0, size - 1))] = bad
    with pytest.raises(ValueError, match=rf"labels must lie in {low}\.\.{high}, got {bad}$"):
        host_integers("labels", a, low, high)


@pytest.mark.parametrize("value", [1.0, [0.0, 1.0], True, [True, False], "1", None])
def test_what_is_not_an_integer_is_refused(value):
    """Floats, booleans and other things are not indices, even where they could be converted."""
    with pytest.raises(ValueError, match="t must be integers, got") as error:
        host_integers("t", value, 0, 5)
    assert repr(value) in str(error.value)


@given(st.integers(1, 6), st.integers(1, 6), st.integers(-3, 3))
def test_size_repeats_a_number_and_checks_an_array(size, other, value):
    """With a size, one integer becomes (size,) equal ones, and an array must already have that shape."""
    np.testing.assert_array_equal(host_integers("t", value, -3, 3, size), np.full(size, value))
    np.testing.assert_array_equal(host_integers("t", range(size), 0, 5, size), range(size))
    for shape in [(other,), (size, 1), (1, size)]:
        if shape != (size,):
            with pytest.raises(ValueError, match=rf"t must be one integer or have shape \({size},\), got shape \("):
                host_integers("t", np.zeros(shape, int), 0, 5, size)
