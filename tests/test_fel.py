import hashlib

import flax.linen as nn
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import strategies as st

import rgo_jax
import rgo_jax.linen
import rgo_jax.nnx

# (task, n, seed, layer) -> permutation. A trained network depends on them: they must never change.
GOLDEN = {
    (0, 8, 0, 0): [0, 4, 5, 6, 1, 7, 2, 3],
    (1, 8, 0, 0): [4, 3, 6, 1, 7, 0, 2, 5],
    (1, 8, 7, 0): [3, 7, 2, 0, 5, 6, 4, 1],
    (1, 8, 0, 3): [7, 1, 5, 0, 2, 4, 3, 6],
    (19, 12, 4, 2): [11, 5, 4, 7, 9, 2, 3, 10, 1, 0, 8, 6],
}


@pytest.mark.parametrize(("task", "n", "seed", "layer"), GOLDEN)
def test_golden(task, n, seed, layer):
    ours = rgo_jax.fel_permutation(task, n, seed=seed, layer=layer)
    assert ours.tolist() == GOLDEN[task, n, seed, layer]


def test_golden_many_features():
    """Above 1600 features jax.random.permutation sorts twice."""
    ours = np.asarray(rgo_jax.fel_permutation(3, 4096, seed=1, layer=2))
    assert hashlib.sha256(ours.astype("<i4").tobytes()).hexdigest()[:16] == "c70a94a3cd597b3a"


@pytest.mark.parametrize("name", ["seed", "layer", "task_id"])
def test_what_is_no_index_is_refused(name):
    def permutation(value):
        return rgo_jax.fel_permutation(**({"task_id": 0, "n": 4} | {name: value}))

    for value in (-1, 2**31, np.int64(2**32), jnp.int32(-1)):
        with pytest.raises(ValueError, match=f"{name} is .*; expected 0 to 2"):
            permutation(value)
    with pytest.raises(ValueError, match=rf"{name} has shape \(1,\); expected a scalar"):
        permutation(np.array([1]))
    with pytest.raises(TypeError, match=rf"{name} is 1\.5; expected an integer"):
        permutation(1.5)
    with pytest.raises(TypeError, match=f"{name} is .*; expected an integer"):
        jax.jit(permutation)(1.5)
    for value in (2**31 - 1, np.int64(5), jnp.uint8(3)):
        assert sorted(permutation(value).tolist()) == [0, 1, 2, 3]


@hypothesis.given(
    task=st.integers(0, 10_000),
    n=st.sampled_from([1, 2, 31, 256]),
    seed=st.integers(0, 2**31 - 1),
    layer=st.integers(0, 200),
)
def test_is_a_bijection(task, n, seed, layer):
    permutation = np.asarray(rgo_jax.fel_permutation(task, n, seed=seed, layer=layer))
    assert permutation.dtype == np.int32
    np.testing.assert_array_equal(np.sort(permutation), np.arange(n))


def test_task_layer_and_seed_each_change_it():
    reference = rgo_jax.fel_permutation(1, 64, seed=2, layer=3).tolist()
    for other in (
        rgo_jax.fel_permutation(2, 64, seed=2, layer=3),
        rgo_jax.fel_permutation(1, 64, seed=3, layer=3),
        rgo_jax.fel_permutation(1, 64, seed=2, layer=4),
        rgo_jax.fel_permutation(3, 64, seed=2, layer=1),  # task and layer are not mixed up
    ):
        assert other.tolist() != reference


def test_permutations_are_uniform():
    """Each feature comes to each place equally often."""
    permutations = jax.vmap(lambda task: rgo_jax.fel_permutation(task, 4))(jnp.arange(4000))
    counts = np.stack([np.bincount(column, minlength=4) for column in np.asarray(permutations).T])
    assert np.abs(counts - 1000).max() < 150  # five standard deviations


def test_is_the_same_traced_mapped_and_under_other_settings():
    expected = rgo_jax.fel_permutation(5, 16, seed=1, layer=2).tolist()
    traced = jax.jit(lambda t, s, k: rgo_jax.fel_permutation(t, 16, seed=s, layer=k))(5, 1, 2)
    assert traced.tolist() == expected
    mapped = jax.vmap(lambda t: rgo_jax.fel_permutation(t, 16, seed=1, layer=2))(jnp.arange(6))
    assert mapped[5].tolist() == expected
    with jax.threefry_partitionable(False):
        assert rgo_jax.fel_permutation(5, 16, seed=1, layer=2).tolist() == expected
    with jax.default_prng_impl("rbg"):
        assert rgo_jax.fel_permutation(5, 16, seed=1, layer=2).tolist() == expected
    jax.config.update("jax_random_seed_offset", 7)
    try:
        assert rgo_jax.fel_permutation(5, 16, seed=1, layer=2).tolist() == expected
    finally:
        jax.config.update("jax_random_seed_offset", 0)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.int8, bool])
def test_encode_gathers_along_the_axis(dtype):
    x = jnp.arange(2 * 3 * 5).reshape(2, 3, 5).astype(dtype)
    permutation = np.asarray(rgo_jax.fel_permutation(4, 3, seed=1, layer=2))
    ours = rgo_jax.fel_encode(x, 4, seed=1, layer=2, axis=1)
    assert ours.dtype == x.dtype
    np.testing.assert_array_equal(ours, np.asarray(x)[:, permutation])


def test_gradient_is_the_inverse_permutation():
    weights = jnp.arange(6.0)
    gradient = jax.grad(lambda x: jnp.sum(weights * rgo_jax.fel_encode(x, 3)))(jnp.zeros(6))
    back = np.argsort(np.asarray(rgo_jax.fel_permutation(3, 6)))
    np.testing.assert_array_equal(gradient, weights[back])


def test_linen_and_nnx_are_equal():
    x = jax.random.normal(jax.random.key(0), (3, 4, 10))
    for axis in (-1, 1):
        linen = rgo_jax.linen.FeatureEncoding(layer=2, seed=7, axis=axis)
        variables = linen.init(jax.random.key(0), x, 0)
        ours = rgo_jax.nnx.FeatureEncoding(layer=2, seed=7, axis=axis)
        assert not jax.tree.leaves(variables)
        assert not jax.tree.leaves(nnx.state(ours))
        for task in (0, 3):
            expected = rgo_jax.fel_encode(x, task, layer=2, seed=7, axis=axis)
            np.testing.assert_array_equal(linen.apply(variables, x, task), expected)
            np.testing.assert_array_equal(jax.jit(ours)(x, jnp.int32(task)), expected)


def test_one_program_serves_all_tasks(compilations):
    encode = jax.jit(lambda x, task: rgo_jax.fel_encode(x, task, layer=1))
    x, tasks = jnp.ones((2, 6)), [jnp.int32(t) for t in range(4)]
    encode(x, tasks[0])
    with compilations() as later:
        for task in tasks[1:]:
            encode(x, task)
    assert later.count == 0


def test_is_hoisted_out_of_a_scan_on_a_cpu():
    """Inside a scan the permutation is drawn once, not at each step.

    Counted in the compiled program: the sort that draws it must not be in the loop's body.
    """

    def steps(x, task):
        return jax.lax.scan(
            lambda x, _: (jnp.tanh(rgo_jax.fel_encode(x, task)), None), x, length=50
        )[0]

    text = jax.jit(steps).lower(jnp.ones((2, 256)), jnp.int32(1)).compile().as_text()
    bodies = [
        block for block in text.split("\n\n") if "tanh" in block.lower() and " sort(" in block
    ]
    assert " sort(" in text
    assert not bodies


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
    if "params" in variables:
        for _ in range(2):
            projected = rgo_jax.linen.projected_by(model, variables["params"], x, 0)
            handed_on = not isinstance(model, Stacked)
            assert set(jax.tree.leaves(projected)) == {handed_on}


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
