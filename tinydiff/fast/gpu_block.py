"""The residual block of the U-Net on a GPU: one op for the block, and one for its self-attention.

Within an op each sum has a place in some kernel: the convolution adds the time code and the shortcut, and the gradient
of the norm adds the gradient that arrives through the shortcut.  As separate ops each sum would be a launch of its own,
which reads and writes three maps.  Axes as in nn/layers.py.  This is the last file of fast/.
"""

import math
from typing import Any

from tinydiff.autograd import Tensor, op
from tinydiff.backend import xp
from tinydiff.fast.attention import attend
from tinydiff.fast.conv import conv2d
from tinydiff.fast.linear import linear
from tinydiff.fast.norm import on_a_gpu
from tinydiff.ops.norm import check_group_norm

_EPS = 1e-5  # of group_norm


def res_block(layer: Any, x: Tensor, code: Tensor) -> Tensor:
    """The faster form of ResBlock.forward."""
    norm1, conv1, time, norm2, conv2, skip = layer.norm1, layer.conv1, layer.time, layer.norm2, layer.conv2, layer.skip
    first = norm1.gamma, norm1.beta, conv1.w, conv1.b, time.w, time.b
    inputs = x, code, *first, norm2.gamma, norm2.beta, conv2.w, conv2.b
    groups = norm1.num_groups
    y = (
        block_of_equals(*inputs, num_groups=groups)
        if skip is None
        else block(*inputs, skip.w, skip.b, num_groups=groups)
    )
    return y if layer.attention is None else layer.attention(y)


def self_attention(layer: Any, x: Tensor) -> Tensor:
    """The faster form of Attention.forward."""
    norm, qkv, out = layer.norm, layer.qkv, layer.out
    sizes = {"num_heads": layer.num_heads, "num_groups": norm.num_groups}
    return residual_attention(x, norm.gamma, norm.beta, qkv.w, qkv.b, out.w, out.b, **sizes)


@op
def block(x, code, gamma1, beta1, w1, b1, time_w, time_b, gamma2, beta2, w2, b2, skip_w, skip_b, *, num_groups):
    """h = conv1(silu(norm1(x))) + time(code),    y = conv2(silu(norm2(h))) + skip(x)."""
    parameters = gamma1, beta1, w1, b1, time_w, time_b, gamma2, beta2, w2, b2
    return _block(x, code, *parameters, skip_w, skip_b, num_groups=num_groups)


@op
def block_of_equals(x, code, gamma1, beta1, w1, b1, time_w, time_b, gamma2, beta2, w2, b2, *, num_groups):
    """The same for as many channels out as in: y = conv2(silu(norm2(h))) + x."""
    return _block(x, code, gamma1, beta1, w1, b1, time_w, time_b, gamma2, beta2, w2, b2, num_groups=num_groups)


def _block(x, code, gamma1, beta1, w1, b1, time_w, time_b, gamma2, beta2, w2, b2, *skip, num_groups):
    z1, norm1_vjp = _norm(x, gamma1, beta1, num_groups, silu=True)
    shift, time_vjp = linear(code, time_w, time_b)
    h, conv1_vjp = conv2d(z1, w1, b1, shift, padding=1)
    z2, norm2_vjp = _norm(h, gamma2, beta2, num_groups, silu=True)
    shortcut, skip_vjp = linear(x, *skip) if skip else (x, lambda g: (lambda: g,))
    y, conv2_vjp = conv2d(z2, w2, b2, shortcut, padding=1)

    def vjp(g):
        dz2, dw2, db2, _ = conv2_vjp(g)
        dh, dgamma2, dbeta2 = norm2_vjp(dz2())
        dz1, dw1, db1, dshift = conv1_vjp(dh())
        dcode, *dtime = time_vjp(dshift())
        through, *dskip = skip_vjp(g)
        dx, dgamma1, dbeta1 = norm1_vjp(dz1(), through())
        first = dgamma1, dbeta1, dw1, db1, *dtime
        return dx, dcode, *first, dgamma2, dbeta2, dw2, db2, *dskip

    return y, vjp


@op
def residual_attention(x, gamma, beta, qkv_w, qkv_b, out_w, out_b, *, num_heads, num_groups):
    """x + out(attention(q, k, v)),    (q, k, v) = qkv(norm(x)):  x (N, ..., C)."""
    n, c, pixels = len(x), x.shape[-1], math.prod(x.shape[1:-1])
    z, norm_vjp = _norm(x, gamma, beta, num_groups, silu=False)
    qkv, qkv_vjp = linear(z, qkv_w, qkv_b)

    def heads(a):
        """Views (N, heads, L, C / heads) of q, k and v."""
        return list(a.reshape(n, pixels, 3, num_heads, c // num_heads).transpose(2, 0, 3, 1, 4))

    mixed, attend_vjp = attend(*heads(qkv))
    y, out_vjp = linear(mixed.transpose(0, 2, 1, 3).reshape(x.shape), out_w, out_b, x)

    def vjp(g):
        dmixed, *dout = out_vjp(g)
        dqkv = xp.empty(qkv.shape, x.dtype)
        attend_vjp(dmixed().reshape(n, pixels, num_heads, c // num_heads).transpose(0, 2, 1, 3), heads(dqkv))
        dz, *dparameters = qkv_vjp(dqkv)
        dx, dgamma, dbeta = norm_vjp(dz(), g)
        return dx, dgamma, dbeta, *dparameters, *dout

    return y, vjp


def _norm(x, gamma, beta, num_groups, silu):
    check_group_norm(x, gamma, beta, num_groups, _EPS)
    return on_a_gpu(x, gamma, beta, num_groups, _EPS, silu)
