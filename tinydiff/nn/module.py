"""Module: a tree of layers that knows its parameters by name.

A parameter is a Tensor that requires a gradient.  A child is a Module, or an item of a list that is one.  Module finds
both among the object's attributes, in the order in which __init__ set them: first its own parameters, then those of its
children.
Read next: layers.py.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tinydiff.autograd import Tensor
from tinydiff.backend import asarray, to_numpy


class Module:
    """Base class of layers and networks: subclasses set parameters and children in __init__ and define forward.

    config: the arguments of __init__.  Only a network that is saved needs config.
    """

    config: dict[str, Any]

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.forward(*args, **kwargs)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        raise TypeError(f"{type(self).__name__} does not define forward")

    def children(self) -> Iterator[tuple[str, "Module"]]:
        """(name, child) for each direct child; an item of a list is named list.index."""
        for name, value in vars(self).items():
            if isinstance(value, Module):
                yield name, value
            elif isinstance(value, list):
                yield from ((f"{name}.{i}", v) for i, v in enumerate(value) if isinstance(v, Module))

    def named_parameters(self, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
        """(dotted name, parameter) for every parameter of this module and its children."""
        for name, value in vars(self).items():
            if isinstance(value, Tensor) and value.requires_grad:
                yield prefix + name, value
        for name, child in self.children():
            yield from child.named_parameters(f"{prefix}{name}.")

    def parameters(self) -> list[Tensor]:
        return [p for _, p in self.named_parameters()]

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Within the block the parameters are constants: gradients pass through the module but do not reach them."""
        parameters = self.parameters()
        try:
            for p in parameters:
                p.requires_grad = False
            yield
        finally:
            for p in parameters:
                p.requires_grad = True

    def num_parameters(self) -> int:
        """How many numbers the parameters hold."""
        return sum(p.size for p in self.parameters())

    def state_dict(self) -> dict[str, Any]:
        """Each parameter's values by name, as NumPy copies."""
        return {name: to_numpy(p).copy() for name, p in self.named_parameters()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Copy values into the parameters, all or none.

        Raises ValueError naming a parameter that is missing, unknown, or of another shape.
        """
        parameters = dict(self.named_parameters())
        for name in parameters.keys() ^ state.keys():
            raise ValueError(f"parameter {name!r} is {'missing' if name in parameters else 'not one of this network'}")
        values = {name: asarray(state[name], p.dtype) for name, p in parameters.items()}
        for name, p in parameters.items():
            if p.shape != values[name].shape:
                raise ValueError(f"parameter {name!r} has shape {values[name].shape}, this network's has {p.shape}")
        for name, p in parameters.items():
            p.data[...] = values[name]  # in place: data may be a view of a flat buffer
