"""What the tests of both U-Nets share: small networks of random weights, any configuration, and laws of the whole."""

import math

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st

from tinydiff.autograd import no_grad
from tinydiff.backend import asarray, to_numpy, xp
from tinydiff.nn import UNet

FEWER = settings(max_examples=max(1, settings().max_examples // 3))
TINY = {"base_channels": 8, "channel_mults": (1, 2), "num_heads": 2, "num_groups": 4}


def randomised(model, rng, dtype="float64"):
    """Random parameters, none of them 0, divided by sqrt(fan_in), so that maps stay near 1 whatever the widths."""
    for p in model.parameters():
        if p.ndim == 1:
            p.data = asarray(0.5 + 0.3 * rng.standard_normal(p.shape), dtype)
        else:
            p.data = asarray(rng.standard_normal(p.shape) / math.sqrt(p.size / p.shape[-1]), dtype)
    return model


def tiny(rng, dtype="float64", kind=UNet, **options):
    """A small network of random weights: 16 channels below, so that Winograd's convolution has a part in it."""
    return randomised(kind(**TINY | options, rng=rng), rng, dtype)


def images(rng, n, h=6, w=4, c=1, dtype="float64"):
    return asarray(rng.standard_normal((n, h, w, c)), dtype)


def run(model, *args, **kwargs):
    with no_grad():
        return to_numpy(model(*args, **kwargs))


def assert_close(found, expected):
    # 1e-10: thousands of float64 roundings of 1e-16, amplified by the norms.
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-10)


def modules(module, kind):
    """Every module of a kind in the tree."""
    for _, child in module.children():
        yield from [child] if isinstance(child, kind) else []
        yield from modules(child, kind)


@st.composite
def configs(draw):
    """(UNet arguments, image shape): 1 to 3 levels, maps of at least 2 x 2 pixels so that norms leave something."""
    levels = draw(st.integers(1, 3))
    config = {
        "in_channels": draw(st.integers(1, 3)),
        "base_channels": 8,
        "channel_mults": tuple(draw(st.sampled_from([1, 2])) for _ in range(levels)),
        "num_res_blocks": draw(st.integers(1, 2)),
        "attention_levels": tuple(draw(st.sets(st.integers(0, levels - 1)))),
        "num_heads": draw(st.sampled_from([1, 2, 4])),
        "num_groups": draw(st.sampled_from([1, 2, 4])),
        "num_classes": draw(st.sampled_from([None, 1, 3])),
    }
    unit = 2 ** (levels - 1)
    return config, (3, unit * draw(st.integers(2, 3)), unit * draw(st.integers(2, 3)), config["in_channels"])


def sizes_seen(model, kind, call):
    """The size of the map that each module of a kind is given in call(), sorted."""
    seen = []
    for module in modules(model, kind):
        module.forward = lambda x, *rest, forward=module.forward: (seen.append(x.shape[1:3]), forward(x, *rest))[1]
    call()
    return sorted(seen)


def graph(y):
    """Every node and leaf behind y that wants a gradient."""
    found, stack = {}, [y._node]
    while stack:
        place = stack.pop()
        if id(place) not in found:
            found[id(place)] = place
            stack += [x for x in getattr(place, "inputs", ()) if x is not None]
    return list(found.values())


# Laws.


def every_parameter_is_trained(model, forward, rng):
    """Images go in and come out, everything is float32, and every parameter gets a gradient that is not 0."""
    x, y = forward()
    assert (y.shape, y.dtype) == (x.shape, xp.float32)
    y.backward(asarray(rng.standard_normal(y.shape), "float32"))
    sizes = {}
    for name, p in model.named_parameters():
        assert p.grad.dtype == xp.float32
        sizes[name] = float(abs(p.grad).max())
    assert min(sizes.values()) > 1e-5 * max(sizes.values()), min(sizes, key=sizes.__getitem__)


def the_gradient_is_the_derivative(forward, inputs, g, rng):
    """sum <dp, d> = d/dh <g, forward(with p + h d)> at h = 0, over all inputs p together."""
    forward().backward(g)
    starts = [p.data for p in inputs]
    directions = [asarray(0.1 * rng.standard_normal(p.shape)) for p in inputs]

    def along(h):
        for p, start, d in zip(inputs, starts, directions):
            p.data = start + h * d
        with no_grad():
            return float((g * forward().data).sum())

    h = 1e-3
    slope = (8 * (along(h) - along(-h)) - (along(2 * h) - along(-2 * h))) / (12 * h)
    parts = [float((p.grad * d).sum()) for p, d in zip(inputs, directions)]
    # The quotient is off by h^4/30 = 3e-14 times the fifth derivative (up to 1e5 here) and by 1e-15 |y| / h.
    assert abs(sum(parts) - slope) < 1e-7 * sum(map(abs, parts))
