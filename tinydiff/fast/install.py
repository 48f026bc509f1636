"""The table of the engine room: the name of a plain function of the book, and the faster form of that function.

A faster form takes the same arguments as its plain function and computes the same results.  tests/fast compares the
two.  Read next: cache.py.
"""

from collections.abc import Callable

from tinydiff.backend import FAST, BackendError, backend_name, precision
from tinydiff.fast import attention, cache, conv, fused, gpu, gpu_block, linear, norm, optim, silu, tensor_cores

EVERYWHERE: dict[str, Callable] = {
    "sum_of": cache.sum_of,
    "silu": silu.silu,
    "softmax_array": silu.softmax,
    "softmax_gradient": silu.softmax_gradient,
    "linear": linear.linear,
    "conv2d": conv.conv2d,
    "upsample_nearest": conv.upsample_nearest,
    "group_norm": norm.group_norm,
    "ResBlock.forward": fused.res_block,
    "Upsample.forward": lambda layer, x: fused.upsample_conv(layer.conv, x),
    "UNet.head": fused.head,
    "NormSilu.forward": fused.norm_silu,
    "NormSiluConv.forward": lambda layer, x: fused.norm_silu_conv(layer.norm, layer.conv, x),
    "UpConv.forward": fused.upsample_conv,
    "adam_update": optim.adam_update,
    "ema_update": optim.ema_update,
    "orthogonalize": optim.orthogonalize,
}
ON_A_GPU: dict[str, Callable] = {
    "attention": attention.attention,
    "Attention.forward": gpu_block.self_attention,
    "concat": gpu.concat,
    "take": gpu.take,
    "clip_grad_norm": optim.clip_grad_norm,
    "muon_update": optim.muon_update,
    "Training.note": gpu.note,
    "Training.metrics": gpu.metrics,
}


def install() -> None:
    """Fill the table FAST for the current backend.  use_backend calls this function unless plain is True."""
    FAST.update(EVERYWHERE)
    if backend_name() != "numpy":
        FAST.update(ON_A_GPU)
        if precision() == "bf16" and (reason := tensor_cores.why_not()):
            raise BackendError(f"precision bf16 does not work here: {reason}")
