"""What computes, and waiting for it.  Read next: kernels.py."""

from tinydiff.backend import backend_name, cuda_version, precision, xp


def describe() -> str:
    """One line that says what computes: for a GPU its name, its free memory, the CUDA versions and the precision."""
    if backend_name() == "numpy":
        return f"NumPy {xp.__version__}"
    runtime = xp.cuda.runtime
    name = runtime.getDeviceProperties(runtime.getDevice())["name"].decode()
    free, total = (n / 2**30 for n in runtime.memGetInfo())
    made, driver = cuda_version(runtime.runtimeGetVersion()), cuda_version(runtime.driverGetVersion())
    versions = f"CuPy {xp.__version__} for CUDA {made}, driver for {driver}"
    return f"{name}, {free:.1f} of {total:.1f} GiB free; {versions}; products in {precision()}"


def synchronize() -> None:
    """Wait until a GPU has computed all that it was asked for."""
    if backend_name() != "numpy":
        xp.cuda.get_current_stream().synchronize()
