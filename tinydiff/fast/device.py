"""A description of the device that computes, and a function that waits for it.  Read next: kernels.py."""

from tinydiff.backend import backend_name, cuda_version, precision, xp
from tinydiff.fast.tensor_cores import why_not


def describe() -> str:
    """One line about what computes: NumPy's version, or the GPU's name and free memory, the CUDA versions and the
    precision.  If the GPU cannot use conv.cu, the line gives the reason."""
    if backend_name() == "numpy":
        return f"NumPy {xp.__version__}"
    runtime = xp.cuda.runtime
    name = runtime.getDeviceProperties(runtime.getDevice())["name"].decode()
    free, total = (n / 2**30 for n in runtime.memGetInfo())
    made, driver = cuda_version(runtime.runtimeGetVersion()), cuda_version(runtime.driverGetVersion())
    versions = f"CuPy {xp.__version__} for CUDA {made}, driver for {driver}"
    reason = f" by CuPy: {why_not()}" if why_not() else ""
    return f"{name}, {free:.1f} of {total:.1f} GiB free; {versions}; products in {precision()}{reason}"


def synchronize() -> None:
    """Wait until the GPU has finished the work given to it.  With NumPy there is nothing to wait for."""
    if backend_name() != "numpy":
        xp.cuda.get_current_stream().synchronize()
