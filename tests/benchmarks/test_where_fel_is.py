"""Where feature encoding layers sit in a network."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rgo_jax
from benchmarks import presets
from benchmarks.data import tasks
from benchmarks.methods import METHODS
from benchmarks.networks.architectures import ResNet18
from benchmarks.run import problem as problems
from rgo_jax import linen
from tests.benchmarks.small_networks import CONVS, KEY, examples, network_of, params_of


@pytest.mark.parametrize("on_input", [True, False])
@pytest.mark.parametrize("on_convs", [True, False])
def test_convolutions_with_and_without_fel(on_convs, on_input):
    network = network_of(CONVS, fel=True, fel_on_convs=on_convs, fel_on_input=on_input)
    x = examples(8, 8, 3)
    params = params_of(network, x)

    def outputs(task):
        seen = network.apply({"params": params}, x, task, capture_intermediates=True)[1]
        return {name: layer["__call__"][0] for name, layer in seen["intermediates"].items()
                if name in ("Conv_0", "Conv_1", "Dense_0")}  # fmt: skip

    same = jax.tree.map(lambda a, b: bool(np.array_equal(a, b)), outputs(0), outputs(1))
    first = on_convs and on_input
    assert same == {"Conv_0": not first, "Conv_1": not on_convs, "Dense_0": False}


@pytest.mark.slow
def test_fel_is_the_experiments_to_choose(digits):
    def logits(**changes):
        config = presets.config("split-digits", network="lenet-5", **changes)
        sequence = tasks.SEQUENCES["split"](digits, config.num_tasks)
        key = jax.random.key(0)
        problem = problems.make_problem(config, METHODS["rgo"], sequence, "digits", key)
        x = jax.random.normal(jax.random.key(1), (2, *sequence.input_shape))
        params = problem.init(jax.random.key(2))
        return [np.asarray(problem.logits(params, x, jnp.int32(task))) for task in (0, 1)]

    chosen = [
        logits(),
        logits(fel_on_convs=False),
        # Of one channel, an encoding of the input makes no difference but to later ones' numbers.
        logits(fel_per_layer=True),
        logits(fel_on_first_task=True),
        logits(fel=False),
    ]
    for i, one in enumerate(chosen):
        for other in chosen[:i]:
            assert not all(np.allclose(a, b, rtol=1e-3) for a, b in zip(one, other, strict=True))
    nowhere = logits(fel=False, fel_on_convs=False)
    np.testing.assert_array_equal(nowhere, chosen[-1])
    for of_first_task, _ in chosen[:3]:
        np.testing.assert_array_equal(of_first_task, nowhere[0])


def layers_called(network, x, task=1):
    """Each layer's name, what it is given and what it returns, in the order of the calls."""
    params, called = params_of(network, x), []

    def record(call, args, kwargs, context):
        result = call(*args, **kwargs)
        if isinstance(context.module, (linen.FeatureEncoding, linen.Dense, linen.Conv)):
            called.append((type(context.module).__name__, args[0], result))
        return result

    with nn.intercept_methods(record):
        network.apply({"params": params}, x, task)
    return called


def test_the_first_layer_gets_the_input_as_it_is():
    x = examples(8)
    for on_input, expected in ((False, "DFDFD"), (True, "FDFDFD")):
        called = layers_called(network_of(hidden=(8, 8), fel=True, fel_on_input=on_input), x)
        assert "".join(name[0] for name, _, _ in called) == expected
        first = next(given for name, given, _ in called if name == "Dense")
        assert bool(np.array_equal(first, x)) is not on_input
        np.testing.assert_array_equal(np.sort(first), np.sort(x))


@pytest.mark.parametrize("per_layer", [False, True])
def test_layers_of_equal_width_share_a_permutation_or_have_their_own(per_layer):
    network = network_of(
        hidden=(8, 8, 6), fel=True, fel_per_layer=per_layer, fel_on_input=True, seed=3
    )
    found = [(a, b) for name, a, b in layers_called(network, examples(8)) if name[0] == "F"]
    permutations = []
    for layer, (given, encoded) in enumerate(found):
        number = layer if per_layer else 0
        n = given.shape[-1]
        order = rgo_jax.fel_permutation(1, n, seed=3, layer=number, identity_first=True)
        np.testing.assert_array_equal(encoded, given[:, order])
        permutations.append(tuple(order.tolist()))
    assert [len(order) for order in permutations] == [8, 8, 8, 6]
    assert len(set(permutations)) == (4 if per_layer else 2)
    assert tuple(range(8)) not in permutations


def test_the_first_task_is_as_without_fel():
    x = examples(6)
    plain, whole, left_out = (
        network_of(fel=fel, fel_on_input=True, fel_on_first_task=on_first)
        for fel, on_first in ((False, True), (True, True), (True, False))
    )
    params = params_of(plain, x)

    def logits(network, task):
        return np.asarray(network.apply({"params": params}, x, task))

    for task in (0, 1):
        assert not np.allclose(logits(whole, task), logits(plain, task))
        np.testing.assert_array_equal(logits(plain, task), logits(plain, 0))
    np.testing.assert_array_equal(logits(left_out, 0), logits(plain, 0))
    np.testing.assert_array_equal(logits(left_out, 1), logits(whole, 1))


def test_where_resnet_is_encoded():
    """After the stem, twice in each branch, after each stage and before the head."""
    x = jnp.zeros((1, 8, 8, 3))

    def calls(**changes):
        network = ResNet18(width=2, num_classes=3, num_tasks=2, head="shared", fel=True, **changes)
        found = []

        def record(call, args, kwargs, context):
            if isinstance(context.module, (linen.FeatureEncoding, nn.Dense, nn.Conv)):
                found.append(type(context.module).__name__[0])
            return call(*args, **kwargs)

        with nn.intercept_methods(record):
            jax.eval_shape(network.init, KEY, x, 0)
        return "".join(found)

    block, first_block = "CFCF", "CFCFC"  # the last with its shortcut
    stages = [f"{block}{block}F", *[f"{first_block}{block}F"] * 3]
    assert calls() == f"CF{''.join(stages)}FD"
    assert calls().count("F") == 1 + 4 * (2 * 2 + 1) + 1
    assert calls(fel_on_input=True) == f"F{calls()}"
    assert calls(fel_on_convs=False) == f"{calls().replace('F', '')[:-1]}FD"


@pytest.mark.slow
def test_the_shortcut_of_a_residual_block_is_not_permuted():
    """With branches of nothing, as orthogonal values have them, only stages and stem permute."""
    x = examples(4, 4, 3)
    network = ResNet18(
        width=6, num_classes=3, num_tasks=2, head="shared", fel=True, initial_values="orthogonal"
    )
    encodings = [(a, b) for name, a, b in layers_called(network, x) if name[0] == "F"]
    stem, after_first_stage = encodings[0][1], encodings[5]
    np.testing.assert_array_equal(after_first_stage[0], stem)
    assert not np.array_equal(*after_first_stage)
