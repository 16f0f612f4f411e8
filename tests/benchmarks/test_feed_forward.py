"""The plain networks layer by layer: the same outputs as those of the whole module."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.networks import feed_forward
from benchmarks.networks.architectures import ARCHITECTURES, Architecture
from benchmarks.networks.feed_forward import Layer
from tests.benchmarks.small_networks import CONVS, KEY, examples, network_of


def test_layers_by_name():
    assert feed_forward.layers(ARCHITECTURES["mlp"]) == (
        Layer("Dense_0", 256, None, None),
        Layer("Dense_1", 256, None, None),
    )
    assert feed_forward.layers(ARCHITECTURES["lenet-5"]) == (
        Layer("Conv_0", 20, 5, (3, 2)),
        Layer("Conv_1", 50, 5, (3, 2)),
        Layer("Dense_0", 800, None, None),
        Layer("Dense_1", 500, None, None),
    )
    assert [layer.window for layer in feed_forward.layers(ARCHITECTURES["vgg-11"])] == [3] * 8
    for name in ("resnet-18", "vit"):
        assert feed_forward.layers(ARCHITECTURES[name]) == ()


@pytest.mark.parametrize("conv_biases", [True, False])
def test_layer_by_layer_they_are_the_module(conv_biases):
    module = network_of(CONVS, (8, 7), head="per_task", conv_biases=conv_biases)
    x = examples(10, 12, 3)
    params = module.init(KEY, x, 0)["params"]
    params = jax.tree.map(lambda leaf: leaf + 0.1, params)  # biases are not 0
    features = x
    for layer in feed_forward.layers(_of(CONVS, (8, 7))):
        own = params[layer.name]
        z = feed_forward.pre_activation(layer, own["kernel"], own.get("bias"), features)
        features = feed_forward.activate(layer, z)
    head = params["head"]
    features = features.reshape(len(x), -1)
    logits = features @ head["kernels"][2] + head["biases"][2][None]
    found = module.apply({"params": params}, x, 2)
    np.testing.assert_allclose(logits, found, rtol=1e-5, atol=1e-6)


def test_a_layer_may_have_another_width():
    conv, dense = feed_forward.layers(_of(CONVS[:1], (8,)))
    images = jnp.ones((2, 4, 4, 3))
    z = feed_forward.pre_activation(conv, jnp.ones((3, 3, 3, 2)), jnp.array([-30.0, 1.0]), images)
    assert z.shape == (2, 4, 4, 2)
    # In the corners a window covers 2 x 2 pixels, at the sides 2 x 3, elsewhere 3 x 3; of three
    # channels each.
    assert np.unique(z[..., 1]).tolist() == [13.0, 19.0, 28.0]
    a = feed_forward.activate(conv, z)
    assert a.shape == (2, 2, 2, 2)
    np.testing.assert_array_equal(a[..., 0], 0)
    np.testing.assert_array_equal(a[..., 1], 28)
    assert feed_forward.pre_activation(dense, jnp.ones((8, 5)), None, a).tolist() == [[112] * 5] * 2


def _of(convs, hidden):
    build = ARCHITECTURES["mlp"].build
    return Architecture(type(build)(build.func, convs=convs, hidden=hidden), ())
