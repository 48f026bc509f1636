"""What a user may choose: the guidance of a pair of networks, of one network, and of one without classes."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from small_run import NETWORK, SCHEDULE

from tinydiff.app.alone import one_process
from tinydiff.app.choices import AUTO, SCALE, by_early, guidance
from tinydiff.app.generate import Recipe, build_unet, by_label, generate
from tinydiff.app.row_rng import row_rng
from tinydiff.app.trained import Pair, _build_pair
from tinydiff.backend import TinydiffError, backend_name, default_rng, standard_normal, to_numpy
from tinydiff.diffusion import classifier_free, ddpm_step, guided, sample, timestep_pairs, unconditional
from tinydiff.fast.workers import Workers

pytestmark = pytest.mark.sampler

RECIPE = Recipe(SCHEDULE, (8, 8, 1), num_steps=3)
LABELS = [1, 2, 3]


def build_pair(num_classes):
    """Two networks of this many classes whose last convolutions are not 0."""
    networks = [build_unet(NETWORK | {"num_classes": num_classes}, seed) for seed in (0, 1)]
    for network in networks:
        rng = default_rng(7)
        for p in network.parameters():
            p.data += 0.05 * standard_normal(rng, p.shape)
    return Pair(*networks)


@pytest.fixture(scope="module", params=[10, None], ids=["classes", "no classes"])
def pool(request):
    return one_process().workers(partial(build_pair, request.param), 1)


def asked_for(model, scale, auto):
    """(scale, weight of autoguidance, text)."""
    settings, text = guidance(model, scale, auto)
    assert settings.keys() == {"scale", "guide"}
    if settings["guide"] is by_label:
        return settings["scale"], 1, text
    assert settings["guide"].func is by_early and not settings["guide"].keywords
    return settings["scale"], *settings["guide"].args, text


def in_words(scale, auto, alone):
    """The text of a guidance; alone: of none."""
    texts = [f"guidance {scale:g}"] * (scale != 1) + [f"autoguidance {auto:g}"] * (auto != 1)
    return ", ".join(texts or [alone])


BEST, BEST_ALONE = in_words(SCALE, 1, "guidance 1"), in_words(1, AUTO, "no labels")


@pytest.mark.parametrize(
    ("scale", "auto", "of_a_pair", "without_classes"),
    [
        (None, None, (SCALE, 1, BEST), (1, AUTO, BEST_ALONE)),
        (3.0, None, (3, 1, "guidance 3"), None),
        (0.0, None, (0, 1, "guidance 0"), None),
        (None, 3.0, (1, 3, "autoguidance 3"), (1, 3, "autoguidance 3")),
        (None, 0.0, (1, 0, "autoguidance 0"), (1, 0, "autoguidance 0")),
        (None, 1.0, (1, 1, "guidance 1"), (1, 1, "no labels")),
        (1.0, 3.0, (1, 3, "autoguidance 3"), None),
        (2.0, 3.0, (2, 3, "guidance 2, autoguidance 3"), None),
        (2.0, 1.0, (2, 1, "guidance 2"), None),
    ],
)
def test_what_is_given_acts_alone_and_without_both_the_best_is_taken(pool, scale, auto, of_a_pair, without_classes):
    """Of a pair; without classes there is no label to guide by, and --scale is refused."""
    expected = without_classes if pool.model.num_classes is None else of_a_pair
    if expected is None:
        with pytest.raises(TinydiffError, match=f"^--scale {scale:g}: guidance by labels needs a network with classes"):
            guidance(pool.model, scale, auto)
    else:
        assert asked_for(pool.model, scale, auto) == expected


def test_one_network_has_the_guidance_that_it_had(pool):
    """A checkpoint without an early average: classifier-free guidance at 2; --auto is refused unless it is none."""
    network, classes = pool.model.network, pool.model.num_classes is not None
    assert asked_for(network, None, None) == ((2, 1, "guidance 2") if classes else (1, 1, "no labels"))
    assert asked_for(network, None, 1.0) == (1, 1, "guidance 1" if classes else "no labels")
    if classes:
        assert asked_for(network, 3.0, 1.0) == (3, 1, "guidance 3")
    for auto in (0.0, 1.5):
        with pytest.raises(
            TinydiffError, match=f"^--auto {auto:g}: autoguidance needs an early average of the weights"
        ):
            guidance(network, None, auto)


@pytest.mark.parametrize("scale, auto", [(None, 2.0), (3.0, None), (None, 0.0), (2.0, 3.0)])
def test_images_are_the_walk_with_both_networks(pool, scale, auto):
    """eps_hat = eps_weak + auto (eps_guided - eps_weak), the weak estimate with the label and without guidance."""
    if pool.model.num_classes is None and scale is not None:
        return
    s, w, _ = asked_for(pool.model, scale, auto)
    recipe = replace(RECIPE, **guidance(pool.model, scale, auto)[0])
    (drawn,) = generate(pool, recipe, LABELS, 9)
    strong, weak = pool.model.network, pool.model.weak
    if pool.model.num_classes is None:
        eps_fn = guided(unconditional(strong), unconditional(weak), w)
    else:
        eps_fn = guided(classifier_free(strong, LABELS, s), classifier_free(weak, LABELS, 1), w)
    rng = row_rng("picture", 9, rows=range(3))
    x_T, step = standard_normal(rng, (3, 8, 8, 1)), partial(ddpm_step, SCHEDULE, clip=True)
    *_, (_, x_0, _) = sample(step, eps_fn, timestep_pairs(SCHEDULE.T, 3), x_T, rng)
    np.testing.assert_array_equal(drawn[-1], to_numpy(x_0))


@pytest.mark.skipif(backend_name() != "numpy", reason="worker processes share host memory")
def test_workers_have_both_networks():
    """Two processes, whose replicas share both networks' parameters, draw what one draws."""
    build = partial(_build_pair, partial(build_unet, NETWORK, 0))
    alone = one_process().workers(build, 1)
    rng, state = np.random.default_rng(3), alone.model.state_dict()
    state = {name: a + 0.1 * rng.standard_normal(a.shape, "float32") for name, a in state.items()}
    alone.model.load_state_dict(state)
    recipe = replace(RECIPE, at_once=2, **guidance(alone.model, 2.0, 3.0)[0])
    with Workers(build, 2) as two:
        two.model.load_state_dict(state)
        drawn = [np.concatenate(list(generate(each, recipe, LABELS, 0)), 1) for each in (alone, two)]
    np.testing.assert_array_equal(*drawn)
