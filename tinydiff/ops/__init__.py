"""Differentiable functions of Tensors: the vocabulary in which layers and losses are written.

Positional arguments are differentiable, keyword-only arguments are static.  Each file shows its functions in their
plain form, forward and gradient side by side.  Read next: arithmetic.py.
"""

from tinydiff.ops.arithmetic import add, div, getitem, matmul, mul, neg, sub
from tinydiff.ops.conv import conv2d, upsample_nearest
from tinydiff.ops.matrix import attention, linear
from tinydiff.ops.norm import group_norm
from tinydiff.ops.pointwise import exp, log, silu
from tinydiff.ops.reduce import logsumexp, mean, softmax, total
from tinydiff.ops.shape import concat, reshape, split, take, transpose

__all__ = [
    "add", "attention", "concat", "conv2d", "div", "exp", "getitem", "group_norm", "linear", "log", "logsumexp",
    "matmul", "mean", "mul", "neg", "reshape", "silu", "softmax", "split", "sub", "take", "total", "transpose",
    "upsample_nearest",
]  # fmt: skip
