"""What layers receive: the gradients of kernels lie in its span, whatever the implementation."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import rgo_jax
import rgo_jax.linen
import rgo_jax.nnx
from tests import marks

SEQUENCE, IMAGE = (1, 3, 8), (1, 5, 5, 4)


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


class Tied(nn.Module):
    @nn.compact
    def __call__(self, tokens):
        embed = nn.Embed(11, 8, name="embed")
        return embed.attend(nn.Dense(8, name="dense")(embed(tokens)))


def stack(axis):
    class Block(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            dense = nn.remat(nn.DenseGeneral)((2, 4), name="dense")
            return x + dense(nn.LayerNorm(name="norm")(x)).reshape(x.shape), None

    class Stack(nn.Module):
        @nn.compact
        def __call__(self, x):
            options = {"split_rngs": {"params": True}, "length": 3}
            return nn.scan(Block, {"params": axis}, **options)(name="blocks")(x, None)[0]

    return Stack()


def nnx_stack():
    class Block(nnx.Module):
        def __init__(self, key):
            self.dense = nnx.LinearGeneral(8, (2, 4), rngs=nnx.Rngs(key))

        def __call__(self, x):
            return x + self.dense(x).reshape(x.shape)

    class Stack(nnx.Module):
        def __init__(self):
            keys = jax.random.split(jax.random.key(0), 3)
            self.blocks = nnx.vmap(Block)(keys)

        def __call__(self, x):
            run = nnx.scan(nnx.remat(Block.__call__), in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
            return run(self.blocks, x)

    return Stack()


def assert_in_span(fn, params, x):
    """The columns of each gradient ``[d, m]`` are combinations of the rows of the inputs.

    Of as few rows as tell: with d of them there would be nothing to see.
    """
    specs = jax.tree_util.tree_leaves_with_path(
        rgo_jax.infer_specs(fn, params, x), is_leaf=lambda spec: spec is None
    )
    specs = {jax.tree_util.keystr(p, simple=True, separator="/"): spec for p, spec in specs}
    inputs = jax.jit(lambda params, x: rgo_jax.layer_inputs(fn, params, x))(params, x)

    def loss(params):
        y = jnp.sin(fn(params, x))
        return jnp.sum(y * normal(7, *y.shape))

    grads = jax.tree_util.tree_leaves_with_path(jax.jit(jax.grad(loss))(params))
    by_name = {jax.tree_util.keystr(p, simple=True, separator="/"): g for p, g in grads}
    for name, rows in inputs.items():
        gradient = by_name[name]
        spec = specs[name] or rgo_jax.ProjectionSpec(axes=tuple(range(gradient.ndim - 1)))
        rest = [axis for axis in range(gradient.ndim) if axis not in spec.axes]
        blocks, d = spec.blocks, rows.shape[-1]
        assert rows.ndim == (3 if blocks > 1 else 2)
        matrices = np.asarray(gradient, np.float64).transpose(*spec.axes, *rest)
        matrices = matrices.reshape(blocks, d, -1)
        for x_rows, g in zip(
            np.asarray(rows, np.float64).reshape(blocks, -1, d), matrices, strict=True
        ):
            assert np.linalg.matrix_rank(x_rows, 1e-4) < d, name
            coefficients = np.linalg.lstsq(x_rows.T, g, rcond=1e-5)[0]
            scale = np.abs(g).max()
            assert scale > 1e-3
            np.testing.assert_allclose(x_rows.T @ coefficients, g, atol=1e-4 * scale, err_msg=name)
    return inputs


LINEN = {
    "dense": (nn.Dense(3), SEQUENCE, 1),
    "two axes in": (nn.DenseGeneral(3, axis=(-2, -1)), SEQUENCE, 1),
    "a kernel for each example": (nn.DenseGeneral(3, batch_dims=(0,)), (2, 3, 8), 1),
    "einsum": (nn.Einsum((2, 8, 3), "bsd,hdk->bhsk"), SEQUENCE, 1),
    "einsum of axes in another order": (nn.Einsum((8, 2, 3), "sdh,dho->so"), (3, 8, 2), 1),
    "attention": (nn.MultiHeadAttention(num_heads=2), SEQUENCE, 4),
    "convolution": (
        nn.Conv(6, (3, 2), strides=2, kernel_dilation=(1, 2), padding="VALID"),
        IMAGE,
        1,
    ),
    "padding": (nn.Conv(6, (3, 2), strides=3, padding=((2, 1), (0, 3))), IMAGE, 1),
    "groups": (nn.Conv(6, (3, 3), strides=3, feature_group_count=2), IMAGE, 1),
    "fused convolution": (rgo_jax.linen.Conv(6, (3, 2), strides=2), IMAGE, 1),
    "transposed": (nn.ConvTranspose(6, (3, 2), strides=(2, 2)), (1, 2, 2, 4), 1),
    "transposed kernel": (
        nn.ConvTranspose(6, (3, 2), strides=(2, 2), transpose_kernel=True),
        (1, 2, 2, 4),
        1,
    ),
    "a kernel for each place": (nn.ConvLocal(6, (3, 3), padding="VALID"), IMAGE, 1),
    "normalised weights": (nn.WeightNorm(nn.Dense(3)), SEQUENCE, 0),
    "recurrent": (nn.RNN(nn.OptimizedLSTMCell(7)), SEQUENCE, 8),
    "stacked": (stack(0), SEQUENCE, 1),
    "stacked along axis 1": (stack(1), SEQUENCE, 1),
}


@pytest.mark.parametrize(
    "name",
    marks.slow_but(
        LINEN,
        "einsum of axes in another order",
        "attention",
        "transposed kernel",
        "a kernel for each place",
        "groups",
        "stacked along axis 1",
    ),
)
def test_linen(name):
    module, shape, num_kernels = LINEN[name]
    x = normal(0, *shape)
    params = module.init(jax.random.key(1), x)["params"]
    inputs = assert_in_span(lambda p, x: module.apply({"params": p}, x), params, x)
    assert len(inputs) == num_kernels


def test_tokens():
    """Of a tied embedding nothing; of a layer on it the embedded tokens."""
    tokens = jnp.array([[1, 2, 3]])
    params = Tied().init(jax.random.key(1), tokens)["params"]
    inputs = assert_in_span(lambda p, x: Tied().apply({"params": p}, x), params, tokens)
    assert inputs.keys() == {"dense/kernel"}
    np.testing.assert_array_equal(inputs["dense/kernel"], params["embed"]["embedding"][1:4])


@pytest.mark.slow
def test_nnx():
    model, x = nnx_stack(), normal(0, *SEQUENCE)
    inputs = nnx.jit(rgo_jax.nnx.layer_inputs)(model, x)["blocks/dense/kernel"]
    assert inputs.shape == (3, 3, 8)
    np.testing.assert_allclose(inputs[0], x[0], rtol=1e-6)
    kernel, bias = (model.blocks.dense.kernel[...], model.blocks.dense.bias[...])
    for layer in range(2):
        after = jnp.einsum("sd,dhk->shk", inputs[layer], kernel[layer]) + bias[layer][None]
        np.testing.assert_allclose(
            inputs[layer + 1], inputs[layer] + after.reshape(3, 8), rtol=1e-4, atol=1e-5
        )


def two_layers(params, x):
    layer = jax.jit(lambda w, x: jnp.tanh(w @ x.T).T)  # the same program twice
    return layer(params["b"], layer(params["a"], x))


def test_rows_are_what_the_layers_receive():
    params, x = {"a": normal(1, 6, 8), "b": normal(2, 5, 6)}, normal(0, 3, 8)
    for compiled in (rgo_jax.layer_inputs, jax.jit(rgo_jax.layer_inputs, static_argnums=0)):
        for given in (x, 2 * x):
            inputs = compiled(two_layers, params, given)
            np.testing.assert_allclose(inputs["a"], given, rtol=1e-6)
            hidden = np.tanh(np.asarray(given, np.float64) @ np.asarray(params["a"], np.float64).T)
            np.testing.assert_allclose(inputs["b"], hidden, rtol=1e-4, atol=1e-6)


def test_patches():
    """In the order of the kernel's axes, not of the convolution's channels."""
    x = normal(0, 2, 4, 5, 3)
    module = nn.Conv(6, (2, 3), padding="VALID", use_bias=False)
    params = module.init(jax.random.key(1), x)["params"]
    fn = lambda p, x: module.apply({"params": p}, x)  # noqa: E731
    rows = rgo_jax.layer_inputs(fn, params, x)["kernel"]
    expected = [
        np.asarray(x[n, i : i + 2, j : j + 3]).ravel()
        for n in range(2)
        for i in range(3)
        for j in range(3)
    ]
    np.testing.assert_allclose(rows, expected, rtol=1e-6)


def test_a_kernel_that_is_used_again():
    """Every use gives rows, those in a loop too."""
    w, x = normal(1, 8, 8), normal(0, 2, 8)

    def fn(w, x):
        def step(x, _):
            return jnp.tanh(x @ w), None

        x, _ = jax.lax.scan(step, x, None, length=3)
        return x @ w

    (rows,) = rgo_jax.layer_inputs(fn, w, x).values()
    expected = [np.asarray(x)]
    for _ in range(3):
        expected.append(np.tanh(expected[-1] @ np.asarray(w)))
    np.testing.assert_allclose(rows, np.concatenate(expected), rtol=1e-3, atol=1e-5)


def test_they_are_in_the_order_in_which_they_are_used():
    def fn(params, x):
        return jnp.tanh(x @ params["b"]) @ params["a"]

    params = {"a": normal(1, 6, 2), "b": normal(2, 5, 6)}
    assert list(rgo_jax.layer_inputs(fn, params, normal(0, 3, 5))) == ["b", "a"]


def test_under_transformations():
    params, xs = {"a": normal(1, 6, 8), "b": normal(2, 5, 6)}, normal(0, 4, 3, 8)

    def inputs(x):
        return rgo_jax.layer_inputs(two_layers, params, x)

    each = [inputs(x) for x in xs]
    expected = jax.tree.map(lambda *leaves: np.stack(leaves), *each)
    mapped = jax.vmap(inputs)(xs)
    _, scanned = jax.lax.scan(lambda c, x: (c, inputs(x)), None, xs)
    for result in (mapped, scanned):
        jax.tree.map(
            lambda r, e: np.testing.assert_allclose(r, e, rtol=1e-5, atol=1e-6), result, expected
        )


NOT_KNOWN = {
    "used two ways": lambda w, x: x @ w @ w.T,
    "masked": lambda w, x: x @ (w * jnp.tri(8)),
    "a part": lambda w, x: x[:, :4] @ w[:4],
    "under a condition": lambda w, x: jax.lax.cond(
        x[0, 0] > 0, lambda w, x: x @ w, lambda w, x: x, w, x
    ),
    "also used in an unknown way": lambda w, x: x @ w + jnp.sum(jnp.sort(w)),
    "added": lambda w, x: w + x,
}


@pytest.mark.parametrize("name", NOT_KNOWN)
def test_left_out(name):
    """Rather than rows that the gradient is no combination of."""
    assert rgo_jax.layer_inputs(NOT_KNOWN[name], normal(0, 8, 8), normal(1, 8, 8)) == {}


def test_without_data():
    x = jnp.ones((2, 8))
    with pytest.raises(ValueError, match="There is no data"):
        rgo_jax.layer_inputs(lambda w: x @ w, jnp.ones((8, 2)))


def test_programs_for_many_devices_are_refused():
    mesh = jax.make_mesh((1,), ("devices",))
    spec = jax.sharding.PartitionSpec()
    fn = jax.shard_map(lambda w, x: x @ w, mesh=mesh, in_specs=(spec, spec), out_specs=spec)
    with pytest.raises(NotImplementedError, match=r"jax\.shard_map.* Pass the model without it"):
        rgo_jax.layer_inputs(fn, normal(1, 8, 6), normal(0, 3, 8))
