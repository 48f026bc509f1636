"""Differentiable functions of Tensors: the vocabulary that layers and losses are written in.

Positional arguments are differentiable, keyword-only ones are static.  Each file shows its functions with their
gradients; the ones behind Python's operators stand in autograd.py.
"""

from tinydiff.autograd import add, div, getitem, matmul, mul, neg, power, sub
from tinydiff.ops.attention import attention
from tinydiff.ops.conv import avg_pool2d, conv2d, upsample_nearest
from tinydiff.ops.fused import norm_silu_conv, norm_silu_winograd, upsample_conv, upsample_winograd
from tinydiff.ops.linear import linear
from tinydiff.ops.norm import group_norm, group_norm_silu
from tinydiff.ops.pointwise import dropout, exp, log, maximum, relu, sigmoid, silu, sqrt, tanh, where
from tinydiff.ops.reduce import logsumexp, max, mean, softmax, sum
from tinydiff.ops.shape import concat, pad, reshape, split, take, transpose

__all__ = [
    "add", "attention", "avg_pool2d", "concat", "conv2d", "div", "dropout", "exp", "getitem", "group_norm",
    "group_norm_silu", "linear", "log", "logsumexp", "matmul", "max", "maximum", "mean", "mul", "neg",
    "norm_silu_conv", "norm_silu_winograd", "pad", "power", "relu", "reshape", "sigmoid", "silu", "softmax", "split",
    "sqrt", "sub", "sum", "take", "tanh", "transpose", "upsample_conv", "upsample_nearest", "upsample_winograd",
    "where",
]  # fmt: skip
