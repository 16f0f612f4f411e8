"""Permutations of all tasks that are drawn before a scan, for Linen and NNX."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import rgo_jax
import rgo_jax.linen
import rgo_jax.nnx


class Block(nn.Module):
    seed: jax.Array | int = 0

    @nn.compact
    def __call__(self, x, task_id):
        x = nn.tanh(nn.Dense(5)(rgo_jax.linen.FeatureEncoding(3, self.seed)(x, task_id)))
        images = jnp.broadcast_to(x[:, :, None], (len(x), 5, 2))
        return rgo_jax.linen.FeatureEncoding(4, self.seed, axis=1, name="rows")(images, task_id)


class Net(nn.Module):
    seed: jax.Array | int = 0

    @nn.compact
    def __call__(self, x, task_id):
        x = rgo_jax.linen.FeatureEncoding(seed=self.seed)(x, task_id)
        return Block(self.seed, name="block")(x, task_id)


def test_encodings_are_the_permutations_drawn_before():
    """The same outputs and gradients for every task, and nothing left to sort in the step."""
    x = jax.random.normal(jax.random.key(0), (3, 7))
    params = Net().init(jax.random.key(1), x, 0)["params"]

    def outputs(seed, params, task, collections):
        return Net(seed).apply({"params": params} | collections, x, task)

    def both(seed):
        """Seed is traced, as when seeds are mapped over."""
        encodings = rgo_jax.linen.encodings(Net(seed), params, 4, x, 0)
        shapes = jax.tree.map(jnp.shape, encodings)
        assert shapes == {
            "FeatureEncoding_0": {"permutations": (4, 7)},
            "block": {
                "FeatureEncoding_0": {"permutations": (4, 7)},
                "rows": {"permutations": (4, 5)},
            },
        }
        results = []
        for collections in ({}, {"encodings": encodings}):

            def loss(params, task, collections=collections):
                y = outputs(seed, params, task, collections)
                return jnp.sum(jnp.sin(y * jnp.arange(y.size).reshape(y.shape))), y

            step = jax.vmap(jax.grad(loss, has_aux=True), in_axes=(None, 0))
            results.append(step(params, jnp.arange(4)))
        return results

    drawn, looked_up = jax.jit(jax.vmap(both))(jnp.array([0, 5]))
    jax.tree.map(np.testing.assert_array_equal, drawn, looked_up)
    assert len(np.unique(np.asarray(drawn[1]), axis=1)) > 1

    encodings = rgo_jax.linen.encodings(Net(), params, 4, x, 0)
    for collections, sorts in (({}, True), ({"encodings": encodings}, False)):
        jaxpr = jax.make_jaxpr(lambda task, c=collections: outputs(0, params, task, c))(1)
        assert (" sort[" in str(jaxpr)) == sorts


def test_encodings_that_do_not_fit():
    x = jnp.zeros((3, 7))
    params = Net().init(jax.random.key(1), x, 0)["params"]
    encodings = rgo_jax.linen.encodings(Net(), params, 4, x, 0)

    def apply(task_id):
        return Net().apply({"params": params, "encodings": encodings}, x, task_id)

    for task_id in (-1, 4, np.int32(4), jnp.int32(-1)):
        with pytest.raises(ValueError, match="FeatureEncoding_0 has permutations for tasks 0 to 3"):
            apply(task_id)
    with pytest.raises(ValueError, match=r"task_id has shape \(3,\)"):
        jax.jit(apply)(jnp.arange(3))
    encodings["block"]["rows"] = {"permutations": jnp.zeros((4, 6), jnp.int32)}
    with pytest.raises(ValueError, match=r"block/rows is called with 5 features .* \(4, 6\)"):
        apply(0)
    with pytest.raises(ValueError, match="for 0 tasks"):
        rgo_jax.linen.encodings(Net(), params, 0, x, 0)


def test_encodings_kept_as_numpy_arrays():
    x = jax.random.normal(jax.random.key(0), (3, 7))
    variables = Net().init(jax.random.key(1), x, 0)
    encodings = jax.device_get(rgo_jax.linen.encodings(Net(), variables["params"], 4, x, 0))
    looked_up = jax.jit(lambda task: Net().apply(variables | {"encodings": encodings}, x, task))(2)
    np.testing.assert_array_equal(looked_up, Net().apply(variables, x, 2))


class Layer(nn.Module):
    number: jax.Array | int = 1
    seed: jax.Array | int = 0

    @nn.compact
    def __call__(self, x, task_id):
        encode = rgo_jax.linen.FeatureEncoding(self.number, self.seed)
        return nn.tanh(rgo_jax.linen.Dense(x.shape[-1])(encode(x, task_id)))


class Jitted(nn.Module):
    @nn.compact
    def __call__(self, x, task_id):
        for _ in range(2):  # equal modules: the second is not traced
            x = nn.jit(Layer)()(x, task_id)
        return x


class Computed(nn.Module):
    """What is numbered, or seeded, inside the model."""

    @nn.compact
    def __call__(self, x, task_id):
        x = Layer(seed=jnp.int32(x.shape[0]) + 1, name="seeded")(x, task_id)
        x = Layer(name="plain")(x, task_id)
        return Layer(name="plain_too")(x, task_id)


class TwoWidths(nn.Module):
    @nn.compact
    def __call__(self, x, task_id):
        encode = rgo_jax.linen.FeatureEncoding()
        return encode(x, task_id)[:, :4] + encode(x[:, :4], task_id)


class Stacked(nn.Module):
    broadcast: tuple[str, ...]
    numbered: bool = False

    @nn.compact
    def __call__(self, x, task_id):
        def body(layer, x, number):
            return Layer(number if self.numbered else 1)(x, task_id), None

        stack = nn.scan(
            body,
            variable_axes={"params": 0},
            variable_broadcast=self.broadcast,
            split_rngs={"params": True},
        )
        return stack(self, x, jnp.arange(3))[0]


@pytest.mark.parametrize(
    ("model", "tables"),
    [
        (Jitted(), 2),
        (Computed(), 2),
        (TwoWidths(), 0),
        (Stacked(("encodings",)), 1),
        (Stacked(()), 1),  # there, but not handed on
        (Stacked(("encodings",), numbered=True), 0),
    ],
)
def test_encodings_change_no_output(model, tables):
    x = jax.random.normal(jax.random.key(0), (2, 6))
    variables = model.init(jax.random.key(1), x, 0)
    for _ in range(2):  # what was traced for the first time is not traced for the second
        encodings = rgo_jax.linen.encodings(model, variables.get("params", {}), 4, x, 0)
        assert len(jax.tree.leaves(encodings)) == tables
    for task in range(4):
        looked_up = model.apply(variables | {"encodings": encodings}, x, task)
        np.testing.assert_array_equal(looked_up, model.apply(variables, x, task))


def test_a_layer_by_itself_needs_no_model():
    x = jnp.arange(5)
    layer = rgo_jax.linen.FeatureEncoding()
    np.testing.assert_array_equal(layer(x, 3), rgo_jax.fel_encode(x, 3))


class NnxNet(nnx.Module):
    def __init__(self, num_tasks=None):
        features = (num_tasks and 6, num_tasks)
        self.encode = rgo_jax.nnx.FeatureEncoding(1, 2, -1, *features)
        self.dense = nnx.Linear(6, 3, rngs=nnx.Rngs(0))

    def __call__(self, x, task_id):
        return self.dense(self.encode(x, task_id))


def test_nnx_draws_before_where_it_is_told_the_number_of_tasks():
    x = jax.random.normal(jax.random.key(0), (2, 6))
    drawn, looked_up = (
        jax.jit(jax.vmap(nnx.merge(*nnx.split(NnxNet(n))), in_axes=(None, 0)))(x, jnp.arange(4))
        for n in (None, 4)
    )
    np.testing.assert_array_equal(drawn, looked_up)
    for num_tasks, sorts in ((None, True), (4, False)):
        net = NnxNet(num_tasks)
        assert (" sort[" in str(jax.make_jaxpr(lambda t, net=net: net(x, t))(1))) == sorts
    # What is trained, and so the optimizer's state, is the same.
    optimizer = nnx.Optimizer(NnxNet(4), rgo_jax.rgo(0.1), wrt=nnx.Param)
    assert sorted(rgo_jax.projection_stats(optimizer.opt_state)) == ["dense/bias", "dense/kernel"]


def test_nnx_sizes_that_do_not_fit():
    with pytest.raises(ValueError, match="num_features is None and num_tasks 3"):
        rgo_jax.nnx.FeatureEncoding(num_tasks=3)
    for sizes in ({"num_features": 3, "num_tasks": 0}, {"num_features": 0, "num_tasks": 3}):
        with pytest.raises(ValueError, match="expected 1 or more of both"):
            rgo_jax.nnx.FeatureEncoding(**sizes)
    with pytest.raises(ValueError, match=r"called with 5 features .* shape \(2, 3\)"):
        rgo_jax.nnx.FeatureEncoding(num_features=3, num_tasks=2)(jnp.zeros((2, 5)), 0)
