"""Tables of all tasks' permutations, in Linen's collection "encodings" and NNX's Encoding."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import rgo_jax
import rgo_jax.linen
import rgo_jax.nnx

TASKS = 4


class Block(nn.Module):
    num_tasks: int | None
    seed: jax.Array | int = 0

    @nn.compact
    def __call__(self, x, task_id):
        encoding = functools.partial(
            rgo_jax.linen.FeatureEncoding, seed=self.seed, num_tasks=self.num_tasks
        )
        x = nn.tanh(nn.Dense(5)(encoding(3)(x, task_id)))
        images = jnp.broadcast_to(x[:, :, None], (len(x), 5, 2))
        return encoding(4, axis=1, identity_first=True, name="rows")(images, task_id)


class Net(nn.Module):
    num_tasks: int | None
    seed: jax.Array | int = 0

    @nn.compact
    def __call__(self, x, task_id):
        x = rgo_jax.linen.FeatureEncoding(seed=self.seed, num_tasks=self.num_tasks)(x, task_id)
        return Block(self.num_tasks, self.seed, name="block")(x, task_id)


def test_a_table_changes_no_output():
    """Nor any gradient; and leaves nothing to sort in the step."""
    x = jax.random.normal(jax.random.key(0), (3, 7))

    def step(num_tasks, variables, seed, task):
        def loss(params):
            y = Net(num_tasks, seed).apply(variables | {"params": params}, x, task)
            return jnp.sum(jnp.sin(y * jnp.arange(y.size).reshape(y.shape))), y

        return jax.grad(loss, has_aux=True)(variables["params"])

    def results(seed):
        """Seed is traced, as when seeds are mapped over."""
        variables = Net(TASKS, seed).init(jax.random.key(1), x, 0)
        assert jax.tree.map(jnp.shape, variables["encodings"]) == {
            "FeatureEncoding_0": {"permutations": (TASKS, 7)},
            "block": {
                "FeatureEncoding_0": {"permutations": (TASKS, 7)},
                "rows": {"permutations": (TASKS, 5)},
            },
        }
        params = {"params": variables["params"]}
        return [
            jax.vmap(functools.partial(step, num_tasks, given, seed))(jnp.arange(TASKS))
            # With a table; asked for, but not given; not asked for; given, but not asked for.
            for num_tasks, given in (
                (TASKS, variables),
                (TASKS, params),
                (None, params),
                (None, variables),
            )
        ]

    looked_up, *drawn = jax.jit(jax.vmap(results))(jnp.array([0, 5]))
    for other in drawn:
        jax.tree.map(np.testing.assert_array_equal, other, looked_up)
    assert len(np.unique(np.asarray(looked_up[1]), axis=1)) > 1

    variables = Net(TASKS).init(jax.random.key(1), x, 0)
    for given, sorts in (({"params": variables["params"]}, True), (variables, False)):
        jaxpr = jax.make_jaxpr(lambda task, v=given: Net(TASKS).apply(v, x, task))(1)
        assert (" sort[" in str(jaxpr)) == sorts


def test_tables_that_do_not_fit():
    x = jnp.zeros((3, 7))
    variables = Net(TASKS).init(jax.random.key(1), x, 0)

    def apply(task_id, num_tasks=TASKS):
        return Net(num_tasks).apply(variables, x, task_id)

    for task_id in (-1, 4, np.int32(4), jnp.int32(-1)):
        with pytest.raises(ValueError, match="FeatureEncoding_0 has permutations for tasks 0 to 3"):
            apply(task_id)
    with pytest.raises(ValueError, match=r"task_id has shape \(3,\)"):
        jax.jit(apply)(jnp.arange(3))
    with pytest.raises(ValueError, match=r"num_tasks=5 and .* shape \(4, 7\); expected \(5, 7\)"):
        apply(0, num_tasks=5)
    variables["encodings"]["block"]["rows"]["permutations"] = np.zeros((4, 6), np.int32)
    with pytest.raises(ValueError, match=r"block/rows .* with 5 features.* shape \(4, 6\)"):
        apply(0)
    for num_tasks in (0, -1):
        with pytest.raises(ValueError, match=f"num_tasks is {num_tasks} and the number of feat"):
            Net(num_tasks).init(jax.random.key(1), x, 0)


def test_layers_called_with_different_numbers_of_features_can_have_no_table():
    class TwoWidths(nn.Module):
        num_tasks: int | None

        @nn.compact
        def __call__(self, x, task_id):
            encode = rgo_jax.linen.FeatureEncoding(num_tasks=self.num_tasks)
            return encode(x, task_id)[:, :4] + encode(x[:, :4], task_id)

    x = jnp.arange(12.0).reshape(2, 6)
    with pytest.raises(ValueError, match=r"different numbers of features .* leave num_tasks out"):
        TwoWidths(TASKS).init(jax.random.key(0), x, 0)
    expected = rgo_jax.fel_encode(x, 2)[:, :4] + rgo_jax.fel_encode(x[:, :4], 2)
    np.testing.assert_array_equal(TwoWidths(None).apply({}, x, 2), expected)


class Layer(nn.Module):
    num_tasks: int | None
    number: jax.Array | int = 1

    @nn.compact
    def __call__(self, x, task_id):
        encode = rgo_jax.linen.FeatureEncoding(self.number, num_tasks=self.num_tasks)
        return nn.tanh(rgo_jax.linen.Dense(x.shape[-1])(encode(x, task_id)))


class Jitted(nn.Module):
    num_tasks: int | None

    @nn.compact
    def __call__(self, x, task_id):
        for _ in range(2):  # equal modules: the second is not traced
            x = nn.jit(nn.remat(Layer))(self.num_tasks)(x, task_id)
        return x


class Mapped(nn.Module):
    num_tasks: int | None

    @nn.compact
    def __call__(self, x, task_id):
        axes = {"params": 0, "encodings": None}
        layers = nn.vmap(Layer, axes, split_rngs={"params": True}, in_axes=(0, None))
        return layers(self.num_tasks)(x[:, None], task_id)


class Scanned(nn.Module):
    num_tasks: int | None
    options: tuple = ()
    has_own_number: bool = False
    length: int = 3

    @nn.compact
    def __call__(self, x, task_id):
        def body(_, x, number):
            return Layer(self.num_tasks, number if self.has_own_number else 1)(x, task_id), None

        options = {"variable_axes": {"params": 0}} | dict(self.options)
        stack = nn.scan(body, split_rngs={"params": True}, **options)
        return stack(self, x, jnp.arange(self.length))[0]


BROADCAST = (("variable_broadcast", "encodings"),)
STACKED = (("variable_axes", {"params": 0, "encodings": 0}),)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "shapes"),
    [
        (Jitted, [(TASKS, 6)] * 2),
        (Mapped, [(TASKS, 6)]),
        (Scanned, []),  # the scan is not told to pass the collection on
        (functools.partial(Scanned, options=BROADCAST), [(TASKS, 6)]),
        (
            functools.partial(Scanned, options=STACKED, has_own_number=True),
            [(3, TASKS, 6)],
        ),
        (
            functools.partial(Scanned, options=STACKED, has_own_number=True, length=1),
            [(1, TASKS, 6)],
        ),
    ],
)
def test_lifted_transforms(optimized, model, shapes):
    x = jax.random.normal(jax.random.key(0), (2, 6))
    variables = jax.jit(model(TASKS).init)(jax.random.key(1), x, 0)
    assert [v.shape for v in jax.tree.leaves(variables.get("encodings"))] == shapes
    looked_up, drawn = (jax.jit(model(num_tasks).apply) for num_tasks in (TASKS, None))
    params = {"params": variables["params"]}
    for task in range(TASKS):
        expected = drawn(params, x, task)
        np.testing.assert_allclose(looked_up(variables, x, task), expected, rtol=1e-6)
        np.testing.assert_allclose(looked_up(params, x, task), expected, rtol=1e-6)


class NnxNet(nnx.Module):
    def __init__(self, num_tasks=None):
        sizes = {"num_tasks": num_tasks, "num_features": num_tasks and 6}
        self.encode = rgo_jax.nnx.FeatureEncoding(1, 2, **sizes)
        self.dense = nnx.Linear(6, 3, rngs=nnx.Rngs(0))

    def __call__(self, x, task_id):
        return self.dense(self.encode(x, task_id))


def test_nnx_looks_up_where_it_is_told_the_number_of_tasks():
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
    encode = rgo_jax.nnx.FeatureEncoding(num_features=3, num_tasks=2)
    with pytest.raises(ValueError, match=r"called with 5 features.* shape \(2, 3\)"):
        encode(jnp.zeros((2, 5)), 0)
    with pytest.raises(ValueError, match=r"task_id is 2, but .* tasks 0 to 1"):
        encode(jnp.zeros((2, 3)), 2)
