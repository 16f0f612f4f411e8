"""Initial values, alone and in networks."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.networks.architectures import ConvLayer, ResNet18
from benchmarks.networks.initializers import orthogonal, uniform, with_bias_row
from benchmarks.networks.layers import HEADS
from tests.benchmarks.small_networks import KEY, examples, is_nonzero, network_of, params_of


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


@pytest.mark.slow
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


@pytest.mark.slow
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
