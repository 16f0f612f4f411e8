"""rgo_jax.nnx.Linear and Conv against Flax's own."""

import contextlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import rgo_jax
import rgo_jax.nnx
from tests.test_conv import CONVS


def arrays(tree):
    return {
        jax.tree_util.keystr(path, simple=True): leaf
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
    }


def assert_close(tree, expected, **tolerance):
    chex.assert_trees_all_close(arrays(tree), arrays(expected), **tolerance)


class Net(nnx.Module):
    def __init__(self, first, second, rngs, features=6):
        self.encode = rgo_jax.nnx.FeatureEncoding()
        self.a = first(features, 32, rngs=rngs)
        self.b = second(32, 3, rngs=rngs)

    def __call__(self, x, task_id):
        return self.b(nnx.relu(self.a(self.encode(x, task_id))))


def cross_entropy(logits, y):
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


@nnx.jit
def learn(model, optimizer, x, y, task):
    def step(carry, batch):
        model, optimizer = carry
        with lent(model, optimizer):
            grads = nnx.grad(lambda model: cross_entropy(model(batch[0], task), batch[1]))(model)
        optimizer.update(model, grads)
        return carry, None

    nnx.scan(step, in_axes=(nnx.Carry, 0))((model, optimizer), (x, y))

    def output(model, batch):
        return rgo_jax.curvature_output(model(batch[0], task), batch[1])

    rgo_jax.nnx.consolidate(model, optimizer, output, (x, y))


def lent(model, optimizer):
    if isinstance(model.a, rgo_jax.nnx.Linear) or isinstance(model.b, rgo_jax.nnx.Linear):
        return rgo_jax.nnx.projecting(model, optimizer.opt_state)
    return contextlib.nullcontext()


@pytest.mark.parametrize(
    ("first", "second", "batch_size"),
    # 8 rows are fewer than 32 features (factored), but not fewer than the head's 3; 40 are more.
    [
        (rgo_jax.nnx.Linear, rgo_jax.nnx.Linear, 1),
        (rgo_jax.nnx.Linear, rgo_jax.nnx.Linear, 8),
        (rgo_jax.nnx.Linear, rgo_jax.nnx.Linear, 40),
        (nnx.Linear, rgo_jax.nnx.Linear, 8),
        (rgo_jax.nnx.Linear, nnx.Linear, 8),
    ],
)
def test_two_tasks_train_as_with_plain_layers(first, second, batch_size):
    def train(first, second):
        model = Net(first, second, nnx.Rngs(0))
        tx = rgo_jax.rgo(0.5, momentum=0.5, projected=rgo_jax.nnx.projected_by(model))
        optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
        for task in range(2):
            x = jax.random.normal(jax.random.key(task), (6, batch_size, 6))
            y = jnp.argmax(x[..., :3], axis=-1)
            learn(model, optimizer, x, y, task)
        return nnx.state(model), optimizer.opt_state

    params, state = train(first, second)
    plain_params, plain_state = train(nnx.Linear, nnx.Linear)
    assert_close(params, plain_params, rtol=1e-3, atol=1e-4)
    assert_close(state, plain_state, rtol=1e-3, atol=1e-3)
    assert float(jnp.trace(state[0].projection["a"]["kernel"][...])) < 5.9


@pytest.mark.parametrize("name", CONVS)
def test_conv(name):
    window, options, shape = CONVS[name]
    x = jax.random.normal(jax.random.key(0), shape)
    ours, theirs = (
        layer(shape[-1], 4, window, rngs=nnx.Rngs(0), **options)
        for layer in (rgo_jax.nnx.Conv, nnx.Conv)
    )
    assert_close(nnx.state(ours), nnx.state(theirs), rtol=0)
    tx = rgo_jax.scale_by_rgo(normalize=False)  # layers yield P g
    params = nnx.state(ours)
    state = rgo_jax.rls_update(tx.init(params), params)
    low = "dtype" in options
    tolerance = {"rtol": 5e-2, "atol": 5e-1} if low else {"rtol": 2e-3, "atol": 2e-3}

    def loss(model, x):
        y = model(x)
        return jnp.sum(jnp.sin(y.astype(jnp.float32))), y

    grad = nnx.jit(nnx.grad(loss, argnums=(0, 1), has_aux=True))
    (plain, plain_x), plain_y = grad(theirs, x)
    with rgo_jax.nnx.projecting(ours, state):
        (projected, projected_x), y = grad(ours, x)
    assert y.dtype == plain_y.dtype
    np.testing.assert_allclose(jnp.float32(y), jnp.float32(plain_y), **tolerance)
    np.testing.assert_allclose(projected_x, plain_x, **tolerance)
    expected, _ = tx.update(plain, state)
    assert_close(projected, expected, **tolerance)
    after, _ = rgo_jax.scale_by_rgo(projected=True).update(projected, state)
    with_trace_rule, _ = rgo_jax.scale_by_rgo().update(plain, state)
    assert_close(after, with_trace_rule, **tolerance)
    (unprojected, _), _ = grad(ours, x)
    assert_close(unprojected, plain, **tolerance)


@pytest.mark.parametrize("options", [{}, {"use_bias": False}, {"dtype": jnp.bfloat16}])
def test_linear_is_flax_linear_otherwise(options):
    x = jax.random.normal(jax.random.key(0), (2, 5, 6))
    ours, theirs = (
        layer(6, 4, rngs=nnx.Rngs(1), **options) for layer in (rgo_jax.nnx.Linear, nnx.Linear)
    )
    assert_close(nnx.state(ours), nnx.state(theirs), rtol=0)
    expected = theirs(x)
    state = rgo_jax.rgo(0.1).init(nnx.state(ours))
    for context in (contextlib.nullcontext(), rgo_jax.nnx.projecting(ours, state)):
        with context:
            y = ours(x)
        assert y.dtype == expected.dtype
        np.testing.assert_allclose(jnp.float32(y), jnp.float32(expected), rtol=1e-5)


def test_remat_scan_and_vmap():
    x = jax.random.normal(jax.random.key(0), (3, 2, 6))

    @nnx.vmap(in_axes=0)
    def stack(key):
        return rgo_jax.nnx.Linear(6, 6, rngs=nnx.Rngs(key))

    layers = stack(jax.random.split(jax.random.key(1), 3))
    params = nnx.state(layers)
    fan_in = {"kernel": rgo_jax.FanIn(blocks=3), "bias": rgo_jax.FanIn(num_axes=2, blocks=3)}
    fan_in["kernel"] = rgo_jax.FanIn(num_axes=2, blocks=3)
    tx = rgo_jax.scale_by_rgo(fan_in=fan_in, normalize=False)
    state = rgo_jax.rls_update(tx.init(params), params)

    def loss(layers, x, remat):
        def layer(layer, x):
            return jnp.tanh(layer(x))

        layer = nnx.remat(layer) if remat else layer

        @nnx.scan(in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
        def forward(one, x):
            return layer(one, x)

        return jnp.sum(forward(layers, x) ** 2)

    for remat in (False, True):
        plain = nnx.grad(loss)(layers, x[0], remat)
        expected, _ = tx.update(plain, state)
        with rgo_jax.nnx.projecting(layers, state):
            projected = nnx.grad(loss)(layers, x[0], remat)
            mapped = nnx.vmap(nnx.grad(loss), in_axes=(None, 0, None))(layers, x, remat)
        assert_close(projected, expected, rtol=1e-3, atol=1e-4)
        first = jax.tree.map(lambda g: g[0], nnx.to_pure_dict(mapped))
        assert_close(first, nnx.to_pure_dict(expected), rtol=1e-3, atol=1e-4)


def test_projecting_leaves_the_model_as_it_was():
    model = Net(rgo_jax.nnx.Linear, nnx.Linear, nnx.Rngs(0))
    before = nnx.graphdef(model)
    state = rgo_jax.rgo(0.1).init(nnx.state(model))
    with rgo_jax.nnx.projecting(model, state):
        assert nnx.graphdef(model) != before
    assert nnx.graphdef(model) == before
    with pytest.raises(KeyError, match="loss"), rgo_jax.nnx.projecting(model, state):
        raise KeyError("loss")
    assert nnx.graphdef(model) == before


def test_errors():
    plain = Net(nnx.Linear, nnx.Linear, nnx.Rngs(0))
    state = rgo_jax.rgo(0.1).init(nnx.state(plain))
    with (
        pytest.raises(ValueError, match=r"None of the projections.*of the Net.*let the optimizer"),
        rgo_jax.nnx.projecting(plain, state),
    ):
        pass
    with (
        pytest.raises(ValueError, match="No RgoState"),
        rgo_jax.nnx.projecting(plain, optax.sgd(0.1).init(nnx.state(plain))),
    ):
        pass
    conv = rgo_jax.nnx.Conv(3, 2, (1, 1), mask=jnp.ones((1, 1, 3, 2)), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"mask is set on rgo_jax\.nnx\.Conv\(3, 2\).*flax\.nnx"):
        conv(jnp.ones((1, 4, 4, 3)))
    linear = rgo_jax.nnx.Linear(3, 2, dot_general=lambda *args: None, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"dot_general is set.*flax\.nnx\.Linear"):
        linear(jnp.ones((1, 3)))
    linear = rgo_jax.nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="out_sharding is set"):
        linear(jnp.ones((1, 3)), out_sharding=jax.sharding.PartitionSpec())


def test_layers_that_share_a_kernel():
    class Tied(nnx.Module):
        def __init__(self, second, rngs):
            self.a = rgo_jax.nnx.Linear(6, 6, rngs=rngs)
            self.b = second(6, 6, rngs=rngs)
            self.b.kernel = self.a.kernel

        def __call__(self, x):
            return self.b(nnx.relu(self.a(x)))

    def loss(model):
        return jnp.sum(model(jax.random.normal(jax.random.key(0), (3, 6))) ** 2)

    model = Tied(rgo_jax.nnx.Linear, nnx.Rngs(0))
    tx = rgo_jax.scale_by_rgo(normalize=False)
    plain = nnx.grad(loss)(model)
    state = rgo_jax.rls_update(tx.init(nnx.state(model)), plain)
    expected, _ = tx.update(plain, state)
    with rgo_jax.nnx.projecting(model, state):
        projected = nnx.grad(loss)(model)
    assert_close(projected, expected, rtol=1e-3, atol=1e-3)

    half = Tied(nnx.Linear, nnx.Rngs(0))
    with (
        pytest.raises(ValueError, match=r"'a/kernel' is shared with the layer 'b', which does not"),
        rgo_jax.nnx.projecting(half, state),
    ):
        pass


def test_projecting_inside_projecting_and_consolidating_inside():
    model = Net(rgo_jax.nnx.Linear, rgo_jax.nnx.Linear, nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, rgo_jax.rgo(0.1, projected=True), wrt=nnx.Param)
    x, y = jnp.ones((2, 4, 6)), jnp.zeros((2, 4), jnp.int32)

    def output(model, batch):
        return rgo_jax.curvature_output(model(batch[0], 0), batch[1])

    rgo_jax.nnx.consolidate(model, optimizer, output, (x, y))

    def gradient():
        return nnx.grad(lambda model: cross_entropy(model(x[0], 0), y[0]))(model)

    with rgo_jax.nnx.projecting(model, optimizer.opt_state):
        before = gradient()
        with rgo_jax.nnx.projecting(model, optimizer.opt_state):
            pass
        assert_close(gradient(), before, rtol=0)
        with pytest.raises(ValueError, match=r"inside projecting\(\).*Call it outside"):
            rgo_jax.nnx.consolidate(model, optimizer, output, (x, y))


def test_consolidation_of_models_that_count_and_draw():
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.layer = rgo_jax.nnx.Linear(6, 3, rngs=rngs)
            self.dropout = nnx.Dropout(0.5, rngs=rngs)
            self.calls = nnx.Variable(jnp.int32(0))

        def __call__(self, x):
            self.calls[...] += 1
            return self.dropout(self.layer(x))

    model = Model(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, rgo_jax.rgo(0.1), wrt=nnx.Param)
    data = jnp.ones((5, 4, 6)), jnp.zeros((5, 4), jnp.int32)

    def end_of_task(model, optimizer, data):
        rgo_jax.nnx.consolidate(
            model, optimizer, lambda m, b: rgo_jax.curvature_output(m(b[0]), b[1]), data
        )

    for consolidate in (end_of_task, nnx.jit(end_of_task)):
        consolidate(model, optimizer, data)
    assert int(model.calls[...]) == 0  # the model is not changed
    assert int(optimizer.opt_state[0].num_updates[...]) == 10
    assert float(jnp.trace(optimizer.opt_state[0].projection["layer"]["kernel"][...])) < 5.9


def test_projections_that_do_not_fit_are_refused_or_used_rightly():
    conv = rgo_jax.nnx.Conv(3, 64, (3, 3), use_bias=False, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (1, 5, 5, 3))

    def loss(conv):
        return jnp.sum(jnp.sin(conv(x)))

    params, plain = nnx.state(conv), nnx.grad(loss)(conv)
    for spec in (
        rgo_jax.FanIn(num_axes=2),
        rgo_jax.FanIn(num_axes=2, blocks=3),
        rgo_jax.FanIn(blocks=3),
        rgo_jax.FanIn(diagonal=True),
    ):
        tx = rgo_jax.scale_by_rgo(fan_in={"kernel": spec}, normalize=False)
        state = rgo_jax.rls_update(tx.init(params), plain)
        with rgo_jax.nnx.projecting(conv, state):
            projected = nnx.grad(loss)(conv)
        assert_close(projected, tx.update(plain, state)[0], rtol=1e-3, atol=1e-3)

    linear = rgo_jax.nnx.Linear(5, 2, rngs=nnx.Rngs(0))
    other = rgo_jax.rgo(0.1).init(nnx.state(rgo_jax.nnx.Linear(4, 2, rngs=nnx.Rngs(0))))
    with (
        rgo_jax.nnx.projecting(linear, other),
        pytest.raises(ValueError, match=r"shape \(5, 2\) and was handed a projection of shape \(4"),
    ):
        linear(jnp.ones((1, 5)))
