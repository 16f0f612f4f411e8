"""Networks and what they are made of: heads, biases, pools, encodings and initial values."""

import math
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rgo_jax
from benchmarks import experiment, presets, tasks
from benchmarks.initializers import INITIAL_VALUES, orthogonal, uniform, with_bias_row
from benchmarks.layers import BIASES, HEADS, max_pool
from benchmarks.methods import METHODS
from benchmarks.networks import ARCHITECTURES, ConvLayer, FeedForward, ResNet18
from rgo_jax import linen

KEY = jax.random.key(1)
CONVS = (ConvLayer(3, 4, (2, 2)), ConvLayer(3, 4, (3, 2)))


def network_of(convs=(), hidden=(8,), **changes):
    """A small one for four tasks of three classes."""
    given = {"num_classes": 3, "num_tasks": 4, "head": "shared", "fel": False} | changes
    return FeedForward(convs=convs, hidden=hidden, **given)


def examples(*shape):
    return jax.random.normal(jax.random.key(0), (5, *shape))


def params_of(network, x):
    return network.init(KEY, x, 0)["params"]


def problem_of(*shape, method="rgo", **changes):
    """A network of the benchmarks, for three tasks of four classes."""
    given = {"network": "mlp-100", "num_tasks": 3} | changes
    config = presets.config("permuted-digits", method=METHODS[method], **given)
    sequence = tasks.Sequence(4, shape, 1, 1, None, None)
    return experiment.make_problem(config, METHODS[method], sequence, "none", jax.random.key(7))


def is_nonzero(tree):
    return jax.tree.map(lambda leaf: bool(np.any(np.asarray(leaf) != 0)), tree)


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
    # And a scale and a bias for each channel of each convolution.
    "resnet-18-batch-norm": (
        49 * 3 * 64 + 9 * 64**2 * 4 + 9 * (64 * 128 + 3 * 128**2) + 64 * 128
        + 9 * (128 * 256 + 3 * 256**2) + 128 * 256 + 9 * (256 * 512 + 3 * 512**2) + 256 * 512
        + 512 * 10,
        10 + 2 * 5 * (64 + 128 + 256 + 512),
        5 * (64 + 128 + 256 + 512),
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
        ((2, 784), {"name": "resnet-18"}, r"shape \(2, 784\); expected images .* of 1 x 1"),
        ((2, 8, 8, 3), {"head": "per-task"}, "head is 'per-task'; expected one of shared, frozen"),
    ],
)
def test_networks_refuse_what_they_cannot_take(shape, changes, match):
    given = {"num_classes": 2, "num_tasks": 3, "head": "shared", "fel": True} | changes
    build = ARCHITECTURES[given.pop("name", "lenet-5")].build
    with pytest.raises(ValueError, match=match):
        build(**given).init(jax.random.key(0), jnp.zeros(shape), 0)


def test_the_smallest_images_that_networks_take_leave_one_pixel():
    network, x = network_of(CONVS), examples(6, 7, 3)  # 6 x 7, 3 x 3, 1 x 1
    assert params_of(network, x)["Dense_0"]["kernel"].shape == (4, 8)
    with pytest.raises(ValueError, match="of 6 x 6 pixels"):
        params_of(network, examples(5, 7, 3))


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


def test_fel_is_the_experiments_to_choose(digits):
    def logits(**changes):
        config = presets.config("split-digits", network="lenet-5", **changes)
        sequence = tasks.SEQUENCES["split"](digits, config.num_tasks)
        key = jax.random.key(0)
        problem = experiment.make_problem(config, METHODS["rgo"], sequence, "digits", key)
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


@pytest.mark.parametrize(
    ("shape", "limit"),
    [
        ((400, 30), 1 / 20),
        # The window's length times the channels, not its area.
        ((5, 5, 20, 30), 1 / 10),
        ((1, 1, 64, 200), 1 / 8),
        # As heads of many tasks have them: each is a kernel.
        ((1, 400, 30), 1 / 20),
    ],
)
def test_uniform_initial_values(shape, limit):
    draw = uniform
    if len(shape) == 3:
        shape, draw = shape[1:], lambda key, shape: jax.vmap(lambda k: uniform(k, shape))(key[None])
    values = np.asarray(draw(KEY, shape))
    assert np.abs(values).max() <= limit
    assert values.max() > 0.99 * limit
    assert values.min() < -0.99 * limit
    spread = limit / math.sqrt(3)
    assert values.std() == pytest.approx(spread, rel=0.02)
    assert abs(values.mean()) < 4 * spread / math.sqrt(values.size)


@pytest.mark.parametrize("head", HEADS)
def test_initial_values_of_a_network(head):
    """Uniform unless asked for, and biases zero: of convolutions, hidden layers and heads."""
    network = network_of((ConvLayer(3, 40),), hidden=(60,), head=head, conv_biases=True)
    params = params_of(network, examples(4, 4, 50))
    kernel_of_head = params["head"]["kernels" if head in ("frozen", "per_task") else "Dense_0"]
    if head in ("shared", "masked"):
        kernel_of_head = kernel_of_head["kernel"]
    for kernel, fan_in in (
        (params["Conv_0"]["kernel"], 3 * 50),
        (params["Dense_0"]["kernel"], 4 * 4 * 40),
        (kernel_of_head, 60),
    ):
        largest = float(jnp.abs(kernel).max()) * math.sqrt(fan_in)
        assert 0.95 < largest <= 1
    if head == "per_task":
        assert len({float(kernel[0, 0]) for kernel in kernel_of_head}) == 4
    biases = [leaf for path, leaf in jax.tree.leaves_with_path(params) if "bias" in str(path[-1])]
    assert [bias.size for bias in biases][:2] == [40, 60]
    assert len(biases) == 3
    assert not any(np.any(np.asarray(bias)) for bias in biases)


def test_uniform_initial_values_of_a_residual_network():
    network = ResNet18(width=8, num_classes=3, num_tasks=2, head="shared", fel=False)
    params = jax.jit(network.init)(KEY, jnp.zeros((1, 8, 8, 3)), 0)["params"]
    assert len(params) == 1 + 4 * 4 + 3 + 1
    for name, layer in params.items():
        for leaf in jax.tree.leaves(layer):
            if leaf.ndim == 4:
                window, _, inputs, _ = leaf.shape
                largest = float(jnp.abs(leaf).max()) * math.sqrt(window * inputs)
                assert 0.9 < largest <= 1, name
    assert all(list(layer) == ["kernel"] for name, layer in params.items() if name != "head")


def test_orthogonal_initial_values_are_those_of_the_harness():
    network = network_of((ConvLayer(3, 5),), initial_values="orthogonal", conv_biases=True)
    params = params_of(network, examples(4, 4, 2))
    for layer in (params["Conv_0"], params["Dense_0"], params["head"]["Dense_0"]):
        kernel = np.asarray(layer["kernel"])
        kernel = kernel.reshape(-1, kernel.shape[-1])
        np.testing.assert_allclose(kernel.T @ kernel, np.eye(kernel.shape[1]), atol=1e-5)
        assert {float(b) for b in layer["bias"]} == {np.float32(0.1)}
    # Residual branches end at zero, in place of normalisation.
    resnet = ResNet18(
        width=6, num_classes=3, num_tasks=2, head="shared", fel=False, initial_values="orthogonal"
    )
    params = resnet.init(KEY, jnp.zeros((1, 4, 4, 3)), 0)["params"]
    zero = {name for name, layer in params.items() if not any(jax.tree.leaves(is_nonzero(layer)))}
    # Of the convolutions, counted from the stem, the last of each block; with shortcuts after.
    assert zero == {f"Conv_{i}" for i in (2, 4, 6, 9, 11, 14, 16, 19)}


def test_a_bias_as_a_row_of_the_kernel():
    init = with_bias_row(uniform, nn.initializers.constant(0.25))
    values = init(KEY, (6, 3))
    np.testing.assert_array_equal(values[:-1], uniform(KEY, (5, 3)))
    np.testing.assert_array_equal(values[-1], np.full(3, 0.25))
    # The limit is that of the inputs without the one.
    assert float(jnp.abs(with_bias_row(uniform, nn.initializers.zeros)(KEY, (5, 999))).max()) > 0.49
    turned = with_bias_row(orthogonal, nn.initializers.constant(0.1))(KEY, (6, 3))
    np.testing.assert_allclose(turned[:-1].T @ turned[:-1], np.eye(3), atol=1e-5)


@pytest.mark.parametrize("initial_values", INITIAL_VALUES)
@pytest.mark.parametrize("head", ["shared", "masked"])
def test_biases_as_an_input_are_biases(initial_values, head):
    """The same outputs as with biases of their own, whatever they are, and initial values."""
    given = {"head": head, "initial_values": initial_values, "hidden": (8, 7), "fel": True}
    own, joined = (network_of(biases=biases, **given) for biases in ("own", "input"))
    x = examples(6)

    def moved(params):
        """With every bias another; where it is a row, that row."""
        return {
            "Dense_0": shifted(params["Dense_0"], 0.3),
            "Dense_1": shifted(params["Dense_1"], -0.2),
            "head": {"Dense_0": shifted(params["head"]["Dense_0"], 0.5)},
        }

    def shifted(layer, by):
        steps = by * jnp.arange(layer["kernel"].shape[1])
        if "bias" in layer:
            return layer | {"bias": layer["bias"] + steps}
        return {"kernel": layer["kernel"].at[-1].add(steps)}

    def as_row(layer):
        return {"kernel": jnp.concatenate([layer["kernel"], layer["bias"][None]])}

    params = moved(params_of(own, x))
    rows = {
        "Dense_0": as_row(params["Dense_0"]),
        "Dense_1": as_row(params["Dense_1"]),
        "head": {"Dense_0": as_row(params["head"]["Dense_0"])},
    }
    found = joined.apply({"params": rows}, x, 1)
    np.testing.assert_allclose(found, own.apply({"params": params}, x, 1), rtol=1e-5, atol=1e-6)

    fresh, fresh_rows = params_of(own, x), params_of(joined, x)
    assert jax.tree.map(jnp.shape, fresh_rows) == jax.tree.map(jnp.shape, rows)
    bias = 0.1 if initial_values == "orthogonal" else 0.0
    for row in (fresh_rows["Dense_0"], fresh_rows["Dense_1"], fresh_rows["head"]["Dense_0"]):
        np.testing.assert_array_equal(row["kernel"][-1], np.full_like(row["kernel"][-1], bias))
    # Kernels are drawn as those with biases beside them.
    jax.tree.map(np.testing.assert_array_equal, fresh_rows, {
        "Dense_0": as_row(fresh["Dense_0"]),
        "Dense_1": as_row(fresh["Dense_1"]),
        "head": {"Dense_0": as_row(fresh["head"]["Dense_0"])},
    })  # fmt: skip


@pytest.mark.parametrize("biases", BIASES)
def test_biases_are_trained_in_every_task_or_the_first_only(biases):
    problem = problem_of(9, biases=biases)
    params = problem.init(KEY)
    x = examples(9)

    def moved(task):
        def loss(params):
            return jnp.sum(problem.logits(params, x, jnp.int32(task)) ** 2)

        found = is_nonzero(jax.grad(loss)(params))
        layers = [found["Dense_0"], found["Dense_1"], found["head"]["Dense_0"]]
        assert all(layer["kernel"] for layer in layers)
        return [layer["bias"] for layer in layers if "bias" in layer]

    there = [] if biases == "input" else [True] * 3
    assert moved(0) == there
    assert moved(1) == [moves and biases != "frozen" for moves in there]


def test_biases_of_convolutions_can_be_frozen():
    problem = problem_of(8, 8, 3, network="lenet-5-text", biases="frozen", conv_biases=True)
    grads = jax.jit(jax.grad(lambda p, t: jnp.sum(problem.logits(p, examples(8, 8, 3), t) ** 2)))
    params = problem.init(KEY)
    assert [is_nonzero(grads(params, jnp.int32(t))["Conv_0"]["bias"]) for t in (0, 1)] == [1, 0]


def test_what_cannot_be_an_input_is_refused():
    with pytest.raises(ValueError, match=r"convolutions have biases\. Add --no-conv-biases\."):
        presets.config("permuted-digits", network="lenet-5", biases="input")
    config = presets.config("permuted-digits", network="lenet-5", biases="input", conv_biases=False)
    assert config.biases == "input"
