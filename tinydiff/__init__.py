"""tinydiff: a diffusion model from scratch in NumPy, the same code on CuPy.

    backend -> autograd -> ops -> nn, optim        the engine and the network
    backend -> diffusion                           the mathematics, on plain arrays
    train, generate, parallel, checkpoint, data    what the demos are made of

Read in that order.
"""

from tinydiff.autograd import Tensor, no_grad
from tinydiff.backend import TinydiffError, to_numpy, use_backend, xp

__all__ = ["Tensor", "TinydiffError", "no_grad", "to_numpy", "use_backend", "xp"]
