"""Networks and what they are made of: heads, biases, pools, encodings and initial values."""

import math
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks.methods import METHODS
from benchmarks.networks.architectures import ARCHITECTURES
from benchmarks.networks.layers import HEADS, max_pool
from benchmarks.networks.transformer import VisionTransformer
from tests.benchmarks.small_networks import (
    CONVS,
    KEY,
    examples,
    is_nonzero,
    network_of,
    params_of,
    problem_of,
)


@pytest.mark.parametrize("policy", HEADS)
def test_head_policies(policy):
    network, x = network_of(head=policy, fel=True), examples(6)
    params = params_of(network, x)

    def grads(task):
        return jax.grad(lambda p: jnp.sum(network.apply({"params": p}, x, task) ** 2))(params)

    def moved(task):
        return jax.tree.leaves(is_nonzero(grads(task)["head"]))

    assert all(moved(0))
    if policy == "frozen":
        assert not any(moved(1))
        assert np.any(np.asarray(jax.tree.leaves(grads(1)["Dense_0"])[0]) != 0)
    else:
        assert all(moved(1))
    if policy == "per_task":
        gradient = np.asarray(grads(2)["head"]["kernels"])
        assert gradient.shape == (4, 8, 3)
        assert [bool(np.any(g != 0)) for g in gradient] == [False, False, True, False]
    if policy == "masked":
        for gradient in jax.tree.leaves(grads(2)["head"]):
            of_tasks = np.asarray(gradient).reshape(-1, 4, 3)
            assert [bool(np.any(of_tasks[:, t] != 0)) for t in range(4)] == [0, 0, 1, 0]


@pytest.mark.parametrize("biases", ["own", "input"])
def test_a_masked_head_is_a_tasks_slice_of_one(biases):
    network, x = network_of(head="masked", biases=biases), examples(6)
    params = params_of(network, x)
    first, head = params["Dense_0"], params["head"]["Dense_0"]
    ones = jnp.ones((5, 1))

    def layer(x, params):
        if biases == "input":
            return jnp.concatenate([x, ones], axis=1) @ params["kernel"]
        return x @ params["kernel"] + params["bias"][None]

    whole = layer(nn.relu(layer(x, first)), head)
    assert whole.shape == (5, 12)
    for task in range(4):
        found = network.apply({"params": params}, x, task)
        np.testing.assert_allclose(found, whole[:, 3 * task : 3 * task + 3], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("policy", HEADS)
def test_heads_that_many_tasks_train_are_protected(policy):
    problem = problem_of(9, head=policy)
    params = problem.init(KEY)
    assert problem.protected(params) == {
        "Dense_0": True,
        "Dense_1": True,
        "head": policy in ("shared", "masked"),
    }
    state = METHODS["rgo"].build(problem).init(KEY)
    kept = optax.tree.get(state.opt_state, "projection")
    if policy in ("shared", "masked"):
        width = 4 if policy == "shared" else 3 * 4
        shapes = jax.tree.map(jnp.shape, kept["head"], is_leaf=lambda leaf: hasattr(leaf, "shape"))
        assert shapes == {"Dense_0": {"kernel": (100, 100), "bias": (width, width)}}
    else:
        assert not jax.tree.leaves(kept["head"])


# Of kernels, with one head of 10 classes; of its bias and of those of fully connected layers; of
# those of convolutions. Counted by hand from the layers.
COUNTS = {
    "mlp": (784 * 256 + 256 * 256 + 256 * 10, 512 + 10, 0),
    "mlp-100": (64 * 100 + 100 * 100 + 100 * 10, 200 + 10, 0),
    # 32 pixels, then 15, then 7: 49 times 50 features.
    "lenet-5": (25 * 3 * 20 + 25 * 20 * 50 + 2450 * 800 + 800 * 500 + 500 * 10, 1300 + 10, 70),
    # 32, 16, 8.
    "lenet-5-text": (
        25 * 3 * 20 + 25 * 20 * 50 + 3200 * 800 + 800 * 500 + 500 * 10, 1300 + 10, 70,
    ),
    # 32 all the way.
    "lenet-5-no-pool": (
        25 * 3 * 20 + 25 * 20 * 50 + 51_200 * 800 + 800 * 500 + 500 * 10, 1300 + 10, 70,
    ),
    "alexnet-6": (
        16 * 3 * 64 + 9 * 64 * 128 + 4 * 128 * 256 + 4096 * 2048 + 2048 * 2048 + 2048 * 10,
        4096 + 10,
        64 + 128 + 256,
    ),
    "alexnet-7": (
        25 * 3 * 64 + 16 * 64 * 128 + 2 * 9 * 128**2 + 3200 * 2048 + 2048 * 2048 + 2048 * 10,
        4096 + 10,
        64 + 3 * 128,
    ),
    "alexnet-7-narrow": (
        25 * 3 * 64 + 16 * 64 * 128 + 2 * 9 * 128**2 + 3200 * 1024 + 1024 * 256 + 256 * 10,
        1024 + 256 + 10,
        64 + 3 * 128,
    ),
    "vgg-13": (
        9 * (3 * 64 + 64**2 + 64 * 128 + 128**2 + 128 * 256 + 256**2 + 256 * 512 + 3 * 512**2)
        + 512 * 10,
        10,
        2 * (64 + 128 + 256 + 2 * 512),
    ),
    "vgg-11": (
        9 * (3 * 64 + 64 * 128 + 128 * 256 + 256**2 + 256 * 512 + 3 * 512**2) + 512 * 10,
        10,
        64 + 128 + 2 * 256 + 4 * 512,
    ),
    "resnet-18": (
        49 * 3 * 64 + 9 * 64**2 * 4 + 9 * (64 * 128 + 3 * 128**2) + 64 * 128
        + 9 * (128 * 256 + 3 * 256**2) + 128 * 256 + 9 * (256 * 512 + 3 * 512**2) + 256 * 512
        + 512 * 10,
        10,
        5 * (64 + 128 + 256 + 512),
    ),
    "resnet-18-narrow": (
        49 * 3 * 20 + 9 * 20**2 * 4 + 9 * (20 * 40 + 3 * 40**2) + 20 * 40
        + 9 * (40 * 80 + 3 * 80**2) + 40 * 80 + 9 * (80 * 160 + 3 * 160**2) + 80 * 160
        + 160 * 10,
        10,
        5 * (20 + 40 + 80 + 160),
    ),
    # And a scale and a bias for each channel of each convolution.
    "resnet-18-batch-norm": (
        49 * 3 * 64 + 9 * 64**2 * 4 + 9 * (64 * 128 + 3 * 128**2) + 64 * 128
        + 9 * (128 * 256 + 3 * 256**2) + 128 * 256 + 9 * (256 * 512 + 3 * 512**2) + 256 * 512
        + 512 * 10,
        10 + 2 * 5 * (64 + 128 + 256 + 512),
        5 * (64 + 128 + 256 + 512),
    ),
    "vit": (
        48 * 128 + 64 * 128 + 4 * (4 * 128**2 + 2 * 128 * 512) + 9 * 128 + 128 * 10,
        4 * (4 * 128 + 512 + 128) + 9 * 128 + 10,
        128,
    ),
}  # fmt: skip


@pytest.mark.parametrize("conv_biases", [None, False, True])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_architectures(name, conv_biases):
    build, shape = ARCHITECTURES[name]
    given = {} if conv_biases is None else {"conv_biases": conv_biases}  # none unless asked for
    network = build(num_classes=10, num_tasks=20, head="shared", fel=True, **given)
    x = jnp.zeros((2, *shape))
    variables = jax.eval_shape(network.init, jax.random.key(0), x, 0)
    params = variables["params"]
    kernels, biases, of_convs = COUNTS[name]
    expected = kernels + biases + (of_convs if conv_biases else 0)
    assert sum(p.size for p in jax.tree.leaves(params)) == expected
    assert jax.eval_shape(network.apply, variables, x, 0).shape == (2, 10)


@pytest.mark.parametrize(
    ("shape", "changes", "match"),
    [
        # A 3 x 3 pool takes 3 pixels, and one of stride 2 before it 7.
        ((2, 6, 8, 3), {}, r"shape \(2, 6, 8, 3\); expected images .* of 7 x 7 pixels or more"),
        ((2, 3, 8, 3), {"name": "lenet-5-text"}, r"expected images .* of 4 x 4 pixels or more"),
        ((2, 0, 8, 3), {"name": "lenet-5-no-pool"}, r"expected images .* of 1 x 1 pixels or more"),
        ((2, 784), {}, r"shape \(2, 784\); expected images"),
        ((2, 3, 8, 3), {"name": "vit"}, r"expected images .* of 4 x 4 pixels or more"),
        ((2, 784), {"name": "resnet-18"}, r"shape \(2, 784\); expected images .* of 1 x 1"),
        ((2, 8, 8, 3), {"head": "per-task"}, "head is 'per-task'; expected one of shared, frozen"),
    ],
)
def test_networks_refuse_what_they_cannot_take(shape, changes, match):
    given = {"num_classes": 2, "num_tasks": 3, "head": "shared", "fel": True} | changes
    build = ARCHITECTURES[given.pop("name", "lenet-5")].build
    with pytest.raises(ValueError, match=match):
        build(**given).init(jax.random.key(0), jnp.zeros(shape), 0)


@pytest.mark.parametrize("fel", [False, True])
def test_transformers_permute_features_inside_their_blocks(fel):
    build = partial(VisionTransformer, patch=2, blocks=1, width=8, heads=2)
    network = build(num_classes=3, num_tasks=2, head="shared", fel=fel)
    x = examples(4, 6, 3)
    params = params_of(network, x)
    first, second = (network.apply({"params": params}, x, task) for task in range(2))
    assert np.array_equal(first, second) != fel
    assert params["positions"].shape == (6, 8)


def test_the_smallest_images_that_networks_take_leave_one_pixel():
    network, x = network_of(CONVS), examples(6, 7, 3)  # 6 x 7, 3 x 3, 1 x 1
    assert params_of(network, x)["Dense_0"]["kernel"].shape == (4, 8)
    with pytest.raises(ValueError, match="of 6 x 6 pixels"):
        params_of(network, examples(5, 7, 3))


@pytest.mark.slow
@pytest.mark.parametrize(("window", "strides"), [(2, 2), (3, 2), (3, 3), (2, 1)])
@pytest.mark.parametrize("size", [(6, 7), (8, 9), (3, 5)])
def test_max_pool_is_flaxs(window, strides, size):
    shape = (2, *size, 3)
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.permutation(math.prod(shape)).reshape(shape) - 50.0, jnp.float32)
    flaxs = partial(nn.max_pool, window_shape=(window,) * 2, strides=(strides,) * 2)
    expected = flaxs(x)
    np.testing.assert_array_equal(max_pool(x, window, strides), expected)
    weights = jnp.asarray(rng.normal(size=expected.shape), jnp.float32)
    ours, theirs = (
        jax.grad(lambda x, pool=pool: jnp.sum(weights * pool(x)))(x)
        for pool in (lambda x: max_pool(x, window, strides), flaxs)
    )
    assert np.count_nonzero(theirs) > 0
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)
