"""Modules are trees: parameters found by name in the order of the source, saved and loaded whole or not at all."""

import contextlib
import copy
import pickle
import re
from typing import Any, NamedTuple

import numpy as np
import pytest
from draws import SEEDS
from hypothesis import assume, given
from hypothesis import strategies as st

from tinydiff.autograd import Tensor
from tinydiff.backend import asarray, default_rng, to_numpy, xp
from tinydiff.nn import Linear, Module

pytestmark = pytest.mark.network

SHAPES = st.lists(st.integers(1, 3), min_size=1, max_size=3).map(tuple)


class Box(Module):
    """A module that is given its attributes, in order."""

    def __init__(self, attributes):
        for name, value in attributes.items():
            setattr(self, name, value)


class OtherBox(Box):
    """A second kind."""


class Tree(NamedTuple):
    """A module, and what it should say of itself: its parameters by name and each layer by path, both in order."""

    module: Module
    parameters: list[tuple[str, Tensor]]
    layers: list[tuple[str, Module]]


def parameter(rng, shape):
    return Tensor(asarray(rng.standard_normal(shape), "float32"), requires_grad=True)


def tree(draw, rng, depth):
    """A module with up to 2 parameters, 2 children and 2 in a list, set in this order, named against the alphabet."""
    own, attributes = [], {}
    for name in ["z", "y"][: draw(st.integers(0, 2))]:
        attributes[name] = parameter(rng, draw(SHAPES))
        own.append((name, attributes[name]))
    attributes |= {"x": Tensor(xp.zeros(3, "float32")), "w": xp.zeros(2), "v": None, "u": 7, "t": "word", "s": (1, 2)}
    inside: list[tuple[str, Tree]] = []
    for name in ["r", "q"][: draw(st.integers(0, 2)) if depth else 0]:
        inside.append((name, tree(draw, rng, depth - 1)))
        attributes[name] = inside[-1][1].module
    items: list[Any] = [None, 5]
    for i in [2, 3][: draw(st.integers(0, 2)) if depth else 0]:
        inside.append((f"p.{i}", tree(draw, rng, depth - 1)))
        items.append(inside[-1][1].module)
    attributes["p"] = items
    module = draw(st.sampled_from([Box, OtherBox]))(attributes)
    parameters = own + [(f"{name}.{inner}", p) for name, child in inside for inner, p in child.parameters]
    layers = [(f"{name}.{inner}".rstrip("."), m) for name, child in inside for inner, m in child.layers]
    return Tree(module, parameters, [("", module), *layers])


@st.composite
def trees(draw):
    return tree(draw, default_rng(draw(SEEDS)), draw(st.integers(0, 2)))


def values(module):
    return {name: to_numpy(p).copy() for name, p in module.named_parameters()}


def assert_same(found, expected):
    assert list(found) == list(expected)
    for name in expected:
        assert found[name].dtype == expected[name].dtype
        np.testing.assert_array_equal(found[name], expected[name])


# Names.


@given(trees())
def test_parameters_have_dotted_names_in_the_order_they_are_made(t):
    """Each parameter appears once, named by its path, and nothing else does: not buffers, arrays, numbers or None."""
    found = list(t.module.named_parameters())
    assert [name for name, _ in found] == [name for name, _ in t.parameters]
    assert all(p is q for (_, p), (_, q) in zip(found, t.parameters))
    assert [id(p) for p in t.module.parameters()] == [id(p) for _, p in t.parameters]


@given(trees())
def test_a_prefix_goes_before_every_name(t):
    """named_parameters(prefix) is named_parameters() with the prefix before each name."""
    assert [n for n, _ in t.module.named_parameters("a.b.")] == ["a.b." + n for n, _ in t.module.named_parameters()]


@given(trees())
def test_children_are_the_layers_one_below(t):
    """children() gives the modules among the attributes and in lists, in order, by name or list.index."""
    below = [(path, m) for path, m in t.layers if path and "." not in path.removeprefix("p.")]
    assert [(name, id(m)) for name, m in t.module.children()] == [(name, id(m)) for name, m in below]


@given(trees())
def test_num_parameters_is_the_number_of_numbers(t):
    """num_parameters is the sum of the parameters' sizes."""
    assert t.module.num_parameters() == sum(int(np.prod(p.shape)) for _, p in t.parameters)


# The state.


@given(trees())
def test_the_state_is_a_copy(t):
    """state_dict holds every parameter's values as NumPy arrays that share no memory with the network."""
    state, before = t.module.state_dict(), values(t.module)
    assert_same(state, before)
    for a in state.values():
        assert type(a) is np.ndarray
        a += 1
    assert_same(values(t.module), before)


@given(trees())
def test_a_saved_state_is_restored_bit_for_bit(t):
    """load_state_dict(state_dict()) undoes any change of the values, in place: the arrays stay the network's own."""
    state, before = t.module.state_dict(), values(t.module)
    arrays = [p.data for p in t.module.parameters()]
    for p in t.module.parameters():
        p.data += 1
    t.module.load_state_dict(dict(reversed(state.items())))  # the order does not matter
    assert_same(values(t.module), before)
    assert all(p.data is a for p, a in zip(t.module.parameters(), arrays))
    for a in state.values():
        a += 1
    assert_same(values(t.module), before)


@given(trees())
def test_a_state_of_another_precision_takes_the_parameters_dtype(t):
    """float64 values are rounded to a float32 network; its dtype does not change."""
    state = {name: a.astype("float64") / 3 for name, a in t.module.state_dict().items()}
    t.module.load_state_dict(state)
    assert_same(values(t.module), {name: a.astype("float32") for name, a in state.items()})


@given(trees(), st.data())
def test_a_state_that_does_not_fit_is_refused_whole(t, data):
    """A parameter that is missing, unknown or misshapen (even if it would broadcast) is named, and nothing changes."""
    assume(t.parameters)
    name, p = data.draw(st.sampled_from(t.parameters))
    state = {other: a + 1 for other, a in t.module.state_dict().items()}
    kind = data.draw(st.sampled_from(["missing", "unknown", "longer", "would broadcast", "same size"]))
    shape = p.shape
    if kind == "missing":
        del state[name]
        said = f"'{name}' is missing"
    elif kind == "unknown":
        name += "2"
        state[name] = np.zeros(shape, "float32")
        said = f"'{name}' is not one of this network"
    else:
        shape = {"longer": (shape[0] + 1, *shape[1:]), "would broadcast": (), "same size": (1, *shape)}[kind]
        state[name] = np.zeros(shape, "float32")
        said = f"'{name}' has shape {shape}, this network's has {p.shape}"
    before = values(t.module)
    with pytest.raises(ValueError, match=re.escape(said)):
        t.module.load_state_dict(state)
    assert_same(values(t.module), before)


# The call.


def test_a_module_is_called_through_forward():
    """module(...) is forward(...) with all its arguments; a module without forward says so by its name."""

    class Echo(Module):
        def forward(self, *args, **kwargs):
            return self, args, kwargs

    echo = Echo()
    assert echo(1, "b", c=3) == (echo, (1, "b"), {"c": 3})
    with pytest.raises(TypeError, match="Box does not define forward"):
        Box({})(1)


def test_frozen_parameters_are_constants_within_the_block(rng):
    """A gradient goes through the module to its input and not to its parameters; afterwards to them too."""
    module, x = Linear(3, 2, rng=rng), Tensor(asarray(rng.standard_normal((4, 3), "float32")), requires_grad=True)
    g = asarray(rng.standard_normal((4, 2), "float32"))
    with module.frozen():
        y = module(x)
    y.backward(g)
    assert x.grad is not None and [p.grad for p in module.parameters()] == [None, None]
    with pytest.raises(KeyError), module.frozen():
        raise KeyError
    module(x).backward(g)
    assert all(p.grad is not None for p in module.parameters()) and len(module.parameters()) == 2


# Frozen parameters.


def layers():
    rng = default_rng(0)
    return Box({"a": Linear(2, 3, rng=rng), "b": Linear(3, 2, rng=rng)})


def test_a_frozen_parameter_is_saved_and_loaded_as_the_others_are():
    """What is trained and what belongs to the network are two things: frozen, a parameter keeps its name and place."""
    model, other = layers(), layers()
    names = [name for name, _ in model.named_parameters()]
    for p in model.a.parameters():
        p.requires_grad = False
        p.data[...] = 7
    assert [name for name, _ in model.named_parameters()] == names
    assert model.num_parameters() == other.num_parameters() == 17
    other.load_state_dict(model.state_dict())
    assert (to_numpy(other.a.w) == 7).all()
    other.load_state_dict(layers().state_dict())
    model.load_state_dict(other.state_dict())
    np.testing.assert_array_equal(to_numpy(model.a.w), to_numpy(other.a.w))


@pytest.mark.parametrize("error", [None, KeyError])
def test_frozen_gives_each_parameter_its_own_flag_back(error):
    """A parameter that was frozen before the block is frozen after it; nested blocks, and one left by an error, too."""
    model = layers()
    model.a.w.requires_grad = False
    with contextlib.suppress(KeyError), model.frozen(), model.b.frozen():
        assert not any(p.requires_grad for p in model.parameters()) and len(model.parameters()) == 4
        if error:
            raise error
    assert [p.requires_grad for p in model.parameters()] == [False, True, True, True]


def test_a_result_kept_as_an_attribute_is_no_parameter():
    """It requires a gradient because it has a graph: it is neither trained nor saved."""
    model = layers()
    names = list(model.state_dict())
    model.last = model.a(Tensor(xp.ones((1, 2), "float32")))
    assert model.last.requires_grad and list(model.state_dict()) == names


@pytest.mark.parametrize("way", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copied_network_shares_nothing(way):
    """Same names, values and flags; an update of one is none of the other."""
    model = layers()
    model.a.w.requires_grad = False
    twin = way(model)
    assert list(twin.state_dict()) == list(model.state_dict()) and not twin.a.w.requires_grad
    before = model.state_dict()
    for p in twin.parameters():
        p.data[...] = 9
    for name, a in model.state_dict().items():
        np.testing.assert_array_equal(a, before[name])


def test_loading_makes_older_graphs_stale():
    """load_state_dict between forward and backward: the values that the gradient needs are gone."""
    model, x = layers(), Tensor(xp.ones((1, 2), "float32"), requires_grad=True)
    y = model.b(model.a(x))
    model.load_state_dict(model.state_dict())
    with pytest.raises(RuntimeError, match="an update has changed an input of linear"):
        y.backward(xp.ones((1, 2), "float32"))
