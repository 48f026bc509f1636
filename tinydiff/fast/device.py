"""A description of the device that computes, and a function that waits for it.  Read next: kernels.py."""

from tinydiff.backend import backend_name, cuda_version, precision, xp


def describe() -> str:
    """One line about what computes: NumPy's version, or the GPU's name and free memory, the CUDA versions and the
    precision."""
    if backend_name() == "numpy":
        return f"NumPy {xp.__version__}"
    runtime = xp.cuda.runtime
    name = runtime.getDeviceProperties(runtime.getDevice())["name"].decode()
    free, total = (n / 2**30 for n in runtime.memGetInfo())
    made, driver = cuda_version(runtime.runtimeGetVersion()), cuda_version(runtime.driverGetVersion())
    versions = f"CuPy {xp.__version__} for CUDA {made}, driver for {driver}"
    return f"{name}, {free:.1f} of {total:.1f} GiB free; {versions}; products in {precision()}"


def synchronize() -> None:
    """Wait until the GPU has finished the work given to it.  With NumPy there is nothing to wait for."""
    if backend_name() != "numpy":
        xp.cuda.get_current_stream().synchronize()
