"""tinydiff: a diffusion model from scratch in NumPy, the same code on CuPy.

The book, in the order in which to read it:

    diffusion/ schedule, gaussian, samplers, guidance     the mathematics, on plain arrays
    train                                                 algorithm 1
    backend, autograd, ops/, nn/, optim                   the engine, the network, its optimizer

Beside the book stand data/ (data sets), fast/ (what only makes it faster), more/ (other models) and app/ (what programs
share).
Read next: diffusion/schedule.py.
"""

from tinydiff import backend, data, diffusion, nn, ops, optim, train
from tinydiff.autograd import Tensor, no_grad
from tinydiff.backend import TinydiffError, to_numpy, use_backend, xp

__all__ = [
    "Tensor", "TinydiffError", "data", "diffusion", "nn", "no_grad", "ops", "optim", "to_numpy", "train", "use_backend",
    "xp",
]  # fmt: skip
__version__ = "0.1.0"  # pyproject.toml reads it here


def _install() -> None:
    from tinydiff.fast.install import install  # imported only when needed: --plain runs without it

    install()


backend.when_chosen(_install)  # the book does not import fast/; fast/ is registered here
