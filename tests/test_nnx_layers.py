"""rgo_jax.nnx.Linear and Conv against Flax's own."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import rgo_jax
import rgo_jax.nnx
from tests.gradients import gradients
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

        def loss(model):
            return cross_entropy(model(batch[0], task), batch[1])

        _, grads = rgo_jax.nnx.value_and_grad(loss, optimizer)(model)
        optimizer.update(model, grads)
        return carry, None

    nnx.scan(step, in_axes=(nnx.Carry, 0))((model, optimizer), (x, y))

    def output(model, batch):
        return rgo_jax.curvature_output(model(batch[0], task), batch[1])

    rgo_jax.nnx.consolidate(model, optimizer, output, (x, y))


def optimizer_of(model, state=None, **options):
    """Its optimizer, without the trace rule unless told, with a state if one is given."""
    options = {"normalize": False} | options
    optimizer = nnx.Optimizer(model, rgo_jax.scale_by_rgo(**options), wrt=nnx.Param)
    if state is not None:
        nnx.update(optimizer.opt_state, nnx.state(state))
    return optimizer


def projected(loss, optimizer, model, *args):
    return gradients(rgo_jax.nnx.value_and_grad(loss, optimizer)(model, *args)[1])


@pytest.mark.slow
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
        optimizer = nnx.Optimizer(model, rgo_jax.rgo(0.5, momentum=0.5), wrt=nnx.Param)
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


@pytest.mark.slow
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

    plain, plain_y = nnx.grad(loss, has_aux=True)(theirs, x)
    with_grad = rgo_jax.nnx.value_and_grad(loss, optimizer_of(ours, state), has_aux=True)
    (_, y), marked = with_grad(ours, x)
    assert y.dtype == plain_y.dtype
    np.testing.assert_allclose(jnp.float32(y), jnp.float32(plain_y), **tolerance)
    expected, _ = tx.update(plain, state)
    assert_close(gradients(marked), expected, **tolerance)
    after, _ = rgo_jax.scale_by_rgo().update(marked, state)
    with_trace_rule, _ = rgo_jax.scale_by_rgo().update(plain, state)
    assert_close(after, with_trace_rule, **tolerance)
    unprojected, _ = nnx.grad(loss, has_aux=True)(ours, x)
    assert_close(unprojected, plain, **tolerance)


@pytest.mark.parametrize("options", [{}, {"use_bias": False}, {"dtype": jnp.bfloat16}])
def test_linear_is_flax_linear_otherwise(options):
    x = jax.random.normal(jax.random.key(0), (2, 5, 6))
    ours, theirs = (
        layer(6, 4, rngs=nnx.Rngs(1), **options) for layer in (rgo_jax.nnx.Linear, nnx.Linear)
    )
    assert_close(nnx.state(ours), nnx.state(theirs), rtol=0)
    expected = theirs(x)

    def outputs(model):
        y = model(x)
        return jnp.sum(y.astype(jnp.float32)), y

    (_, inside), _ = rgo_jax.nnx.value_and_grad(outputs, optimizer_of(ours), has_aux=True)(ours)
    for y in (ours(x), inside):
        assert y.dtype == expected.dtype
        np.testing.assert_allclose(jnp.float32(y), jnp.float32(expected), rtol=1e-5)


@pytest.mark.slow
def test_remat_scan_and_vmap():
    x = jax.random.normal(jax.random.key(0), (3, 2, 6))

    @nnx.vmap(in_axes=0)
    def stack(key):
        return rgo_jax.nnx.Linear(6, 6, rngs=nnx.Rngs(key))

    layers = stack(jax.random.split(jax.random.key(1), 3))
    params = nnx.state(layers)
    specs = {
        "kernel": rgo_jax.ProjectionSpec(blocks=3),
        "bias": rgo_jax.ProjectionSpec(axes=(0, 1), blocks=3),
    }
    specs["kernel"] = rgo_jax.ProjectionSpec(axes=(0, 1), blocks=3)
    tx = rgo_jax.scale_by_rgo(specs=specs, normalize=False)
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
        optimizer = optimizer_of(layers, state, specs=specs)
        own = projected(loss, optimizer, layers, x[0], remat)
        assert_close(own, expected, rtol=1e-3, atol=1e-4)

        @nnx.vmap(in_axes=(None, 0))
        def mapped_grads(layers, x):
            return nnx.to_pure_dict(projected(loss, optimizer, layers, x, remat))  # noqa: B023

        mapped = mapped_grads(layers, x)
        first = jax.tree.map(lambda g: g[0], mapped)
        assert_close(first, nnx.to_pure_dict(expected), rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("transpose_kernel", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_transposed_convolutions(transpose_kernel):
    """Flax's own, between layers of ours; its kernel may be ``[*window, out, in]``."""

    class Decoder(nnx.Module):
        def __init__(self, conv, linear):
            rngs = nnx.Rngs(0)
            options = {"strides": (2, 2), "transpose_kernel": transpose_kernel, "rngs": rngs}
            self.conv = conv(3, 8, (2, 2), rngs=rngs)
            self.transposed = nnx.ConvTranspose(8, 4, (2, 2), **options)
            self.linear = linear(64, 80, rngs=rngs)

        def __call__(self, x):
            x = self.transposed(nnx.tanh(self.conv(x)))
            return self.linear(x.reshape(len(x), -1))

    def loss(model):
        return jnp.sum(model(jax.random.normal(jax.random.key(0), (1, 2, 2, 3))) ** 2)

    plain, ours = Decoder(nnx.Conv, nnx.Linear), Decoder(rgo_jax.nnx.Conv, rgo_jax.nnx.Linear)
    tx = rgo_jax.scale_by_rgo(normalize=False)
    params = nnx.state(plain)
    state = rgo_jax.rls_update(tx.init(params), params)
    expected, _ = tx.update(nnx.grad(loss)(plain), state)
    assert_close(projected(loss, optimizer_of(ours, state), ours), expected, rtol=1e-3, atol=1e-3)


def test_the_model_stays_as_it_was():
    """Also after an error; what the loss changes on purpose is changed."""

    class Counting(nnx.Module):
        def __init__(self):
            self.layer = rgo_jax.nnx.Linear(6, 3, rngs=nnx.Rngs(0))
            self.calls = nnx.Variable(jnp.int32(0))

    def loss(model, fail):
        model.calls[...] += 1
        value = jnp.sum(model.layer(jnp.ones((2, 6))))
        if fail:
            raise KeyError("loss")
        return value

    model = Counting()
    before, params = nnx.graphdef(model), nnx.state(model, nnx.Param)
    params = jax.tree.map(jnp.copy, params)
    with_grad = rgo_jax.nnx.value_and_grad(loss, optimizer_of(model))
    with_grad(model, False)
    with pytest.raises(KeyError, match="loss"):
        with_grad(model, True)
    assert nnx.graphdef(model) == before
    assert_close(nnx.state(model, nnx.Param), params, rtol=0)
    assert int(model.calls[...]) == 1


def test_errors():
    model, other = (rgo_jax.nnx.Linear(n, 2, rngs=nnx.Rngs(0)) for n in (5, 4))

    def loss(model):
        return jnp.sum(model(jnp.ones((1, 5))))

    with pytest.raises(ValueError, match=r"'kernel' has shape \(5, 2\), but the parameter has"):
        rgo_jax.nnx.value_and_grad(loss, optimizer_of(other))(model)
    net = Net(nnx.Linear, nnx.Linear, nnx.Rngs(0))
    with pytest.raises(ValueError, match="model's parameters have no leaf 'a/bias'"):
        rgo_jax.nnx.value_and_grad(loss, optimizer_of(net))(model)
    sgd = nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)
    with pytest.raises(ValueError, match="No RgoState"):
        rgo_jax.nnx.value_and_grad(loss, sgd)


@pytest.mark.parametrize("second", [rgo_jax.nnx.Linear, nnx.Linear])
def test_layers_that_share_a_kernel(second):
    class Tied(nnx.Module):
        def __init__(self, rngs):
            self.a = rgo_jax.nnx.Linear(6, 6, rngs=rngs)
            self.b = second(6, 6, rngs=rngs)
            self.b.kernel = self.a.kernel

        def __call__(self, x):
            return self.b(nnx.relu(self.a(x)))

    def loss(model):
        return jnp.sum(model(jax.random.normal(jax.random.key(0), (3, 6))) ** 2)

    model = Tied(nnx.Rngs(0))
    tx = rgo_jax.scale_by_rgo(normalize=False)
    plain = nnx.grad(loss)(model)
    state = rgo_jax.rls_update(tx.init(nnx.state(model)), plain)
    expected, _ = tx.update(plain, state)
    own = projected(loss, optimizer_of(model, state), model)
    assert_close(own, expected, rtol=1e-3, atol=1e-3)


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


@pytest.mark.slow
def test_specs_of_the_users_own():
    conv = rgo_jax.nnx.Conv(3, 64, (3, 3), use_bias=False, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (1, 5, 5, 3))

    def loss(conv):
        return jnp.sum(jnp.sin(conv(x)))

    params, plain = nnx.state(conv), nnx.grad(loss)(conv)
    for spec in (
        rgo_jax.ProjectionSpec(),
        rgo_jax.ProjectionSpec(axes=(0, 1)),
        rgo_jax.ProjectionSpec(axes=(0, 1), blocks=3),
        rgo_jax.ProjectionSpec(blocks=3),
        rgo_jax.ProjectionSpec(diagonal=True),
    ):
        tx = rgo_jax.scale_by_rgo(specs={"kernel": spec}, normalize=False)
        state = rgo_jax.rls_update(tx.init(params), plain)
        own = projected(loss, optimizer_of(conv, state, specs={"kernel": spec}), conv)
        assert_close(own, tx.update(plain, state)[0], rtol=1e-3, atol=1e-3)
