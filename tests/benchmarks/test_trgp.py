"""TRGP by hand: which tasks are trusted, kernels that are scaled, and weights that stay."""

from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.methods import METHODS
from benchmarks.methods.growing import trgp, trust_regions
from benchmarks.methods.growing.trust_regions import Region, Subspaces
from rgo_jax import linen
from tests.benchmarks.small_networks import narrow_problem
from tests.small_models import task_of

KEY = jax.random.key(0)
# Three tasks of a layer with five inputs: along the first column, along the next two, not finished.
SUBSPACES = Subspaces(jnp.array([[0, 3, 4], [2, 1, 0], [0, 1, 2]]), jnp.array([1, 2, 0]))
BASIS = jnp.eye(5).at[:, 3:].set(0)


class Alone(nn.Module):
    """A network of one layer."""

    layer: nn.Module

    @nn.compact
    def __call__(self, x):
        return self.layer(x)


def test_a_task_lies_along_the_fewest_columns_that_hold_its_inputs():
    inputs = jnp.array([[0.0, 3.0, 0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0, 2.0]])
    # Energies 1, 9, 0 along the columns, of 14 in all.
    for threshold, rank in ((0.6, 1), (0.65, 2), (0.71, 2), (0.99, 2)):
        found = trust_regions.add_subspace(SUBSPACES, BASIS, inputs, threshold, jnp.int32(2))
        assert found.columns[2, :2].tolist() == [1, 0]
        assert found.ranks.tolist() == [1, 2, rank]
    np.testing.assert_array_equal(found.columns[:2], SUBSPACES.columns[:2])
    # No more than there is room for.
    room = trust_regions.no_subspaces(3, 1)
    assert trust_regions.add_subspace(room, BASIS, inputs, 0.99, jnp.int32(1)).ranks[1] == 1


@pytest.mark.parametrize(
    ("gradient", "tasks"),
    [
        # Shares of the length: 0.6 and 0.8.
        ([[3, 0], [0, 0], [0, 4], [0, 0], [0, 0]], [1, 0]),
        # 0.96 and 0.28.
        ([[24, 0], [0, 7], [0, 0], [0, 0], [0, 0]], [0, -1]),
        # Half of the energy, 0.707, lies where no task's inputs did; the other half along both.
        ([[0, 0], [1, 0], [0, 1], [1, 1], [0, 0]], [1, -1]),
        ([[0, 0], [0, 0], [0, 0], [0, 2], [1, 0]], [-1, -1]),
        ([[0, 0]] * 5, [-1, -1]),
    ],
)
def test_tasks_with_a_large_share_of_the_gradient_are_trusted(gradient, tasks):
    gradient = jnp.array(gradient, jnp.float32)
    found = trust_regions.trusted_tasks(SUBSPACES, BASIS, gradient, 0.5, 2)
    assert found.tolist() == tasks
    best = trust_regions.trusted_tasks(SUBSPACES, BASIS, gradient, 0.5, 1)
    assert best.tolist() == tasks[:1]


@pytest.mark.parametrize(
    "layer",
    [
        linen.Dense(3),
        linen.Dense(40),  # fewer rows than outputs: another order of products
        linen.Conv(3, (2, 2), strides=2, padding="VALID"),
        nn.DenseGeneral((3, 2), axis=(-2, -1)),
    ],
)
def test_a_layer_computes_with_the_scaled_kernel(layer):
    x = jax.random.normal(KEY, (2, 4, 4, 2))
    network = Alone(layer)
    params = network.init(KEY, x)["params"]["layer"]
    kernel = np.asarray(params["kernel"])
    d = {"Dense": 2, "Conv": 8, "DenseGeneral": 8}[type(layer).__name__]
    flat = kernel.reshape(d, -1)
    rng = np.random.default_rng(0)
    basis, _ = np.linalg.qr(rng.normal(size=(d, d)))
    tasks, columns = jnp.array([1, 0]), jnp.array([[1, 0], [0, 1]])
    subspaces = Subspaces(columns, jnp.array([2, 1]))

    def outputs(scale):
        region = trust_regions.region_of(
            subspaces, jnp.asarray(basis, jnp.float32), tasks, params["kernel"], jnp.asarray(scale)
        )
        with trust_regions.in_regions({"layer": region}):
            return network.apply({"params": {"layer": params}}, x)

    plain = network.apply({"params": {"layer": params}}, x)
    np.testing.assert_array_equal(outputs(np.stack([np.eye(2, dtype=np.float32)] * 2)), plain)
    scale = rng.normal(size=(2, 2, 2)).astype(np.float32)
    found = outputs(scale)
    # The first region has one column, the second two in another order.
    change = scale - np.eye(2)
    one, two = basis[:, :1], basis[:, [1, 0]]
    scaled = flat + one @ change[0, :1, :1] @ (one.T @ flat) + two @ change[1] @ (two.T @ flat)
    params = params | {"kernel": jnp.asarray(scaled.reshape(kernel.shape), jnp.float32)}
    expected = network.apply({"params": {"layer": params}}, x)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_no_region_of_no_task():
    region = trust_regions.region_of(
        SUBSPACES, BASIS, jnp.array([-1, 1]), jnp.ones((5, 2)), jnp.zeros((2, 3, 3))
    )
    assert not np.any(region.bases[:, 0])
    assert not np.any(region.held[0])
    np.testing.assert_array_equal(region.bases[:, 1], np.eye(5)[:, [2, 1, 3]] * [1, 1, 0])
    np.testing.assert_array_equal(region.held[1], [[1, 1], [1, 1], [0, 0]])


def test_the_gradient_of_the_kernel_is_that_without_regions():
    params, x = {"layer": {"kernel": jnp.ones((5, 2))}}, jax.random.normal(KEY, (4, 5))
    network = Alone(linen.Dense(2, use_bias=False))
    region = Region(jnp.ones((5, 1, 2)), jnp.ones((1, 2, 2)), 3 * jnp.ones((1, 2, 2)))

    def loss(params, scale):
        with trust_regions.in_regions({"layer": region._replace(scale=scale)}):
            return jnp.sum(network.apply({"params": params}, x))

    of_params, of_scale = jax.grad(loss, argnums=(0, 1))(params, region.scale)
    expected = jax.grad(lambda params: jnp.sum(network.apply({"params": params}, x)))(params)
    np.testing.assert_allclose(of_params["layer"]["kernel"], expected["layer"]["kernel"], rtol=1e-6)
    # x B has equal columns, the sums of x, and what is held adds up to 2 in each row.
    np.testing.assert_allclose(of_scale[0], np.full((2, 2), 2 * np.sum(x)), rtol=1e-5)


@pytest.fixture(scope="module")
def learned():
    """Two tasks of six examples; those of the second have the first's inputs and two more."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        problem = narrow_problem(monkeypatch, "trgp", 5)
        method = METHODS["trgp"].build(problem)
        drawn = 2 * jax.random.normal(jax.random.key(1), (6, 5))
        x = jnp.stack([drawn * jnp.array([1.0, 1, 1, 0, 0])[None], drawn])
        y = jnp.arange(6) % 4

        @jax.jit
        def start(state, task_id):
            return method.start_task(state, task_of(x[0], y)._replace(id=task_id), KEY)

        @jax.jit
        def learn(state, x, task_id):
            task = task_of(x, y)._replace(id=task_id)
            losses = []
            for _ in range(3):
                state, loss = method.step(state, (x, y), task)
                losses.append(loss)
            return method.end_task(state, task), losses[0]

        state = jax.jit(method.init)(KEY)
        first, _ = learn(start(state, jnp.int32(0)), x[0], jnp.int32(0))
        started = start(first, jnp.int32(1))
        second, loss = learn(started, x[1], jnp.int32(1))
        return SimpleNamespace(
            problem=problem, method=method, x=x, y=y, first=first, started=started, second=second,
            loss=loss,
        )  # fmt: skip


LAYERS = ("Dense_0", "Dense_1")


def basis_of(learned, name):
    """M after the first task."""
    return np.asarray(learned.method.memory(learned.first)[0].bases[f"network/{name}/kernel"])


def test_an_old_task_is_trusted_and_scaled_by_the_identity_at_first(learned):
    assert learned.started.trusted.keys() == set(LAYERS)
    for name, tasks in learned.started.trusted.items():
        assert tasks.tolist() == [[-1, -1], [0, -1], [-1, -1]], name
        scale = learned.started.trained.params.scales[name]
        np.testing.assert_array_equal(scale, [np.eye(scale.shape[-1])] * 2)
    logits = learned.problem.logits(learned.first.params, learned.x[1], jnp.int32(1))
    expected = jnp.mean(learned.problem.losses(logits, learned.y))
    assert float(learned.loss) == pytest.approx(float(expected), rel=1e-5)


def test_weights_move_off_the_old_subspaces_only(learned):
    first, second = learned.first.params, learned.second.params
    for name in LAYERS:
        moved = np.asarray(second[name]["kernel"] - first[name]["kernel"])
        np.testing.assert_allclose(basis_of(learned, name).T @ moved, 0, atol=1e-6)
        np.testing.assert_array_equal(second[name]["bias"], first[name]["bias"])
    # The last two inputs are new.
    assert (np.abs(np.asarray(second["Dense_0"]["kernel"] - first["Dense_0"]["kernel"]))[3:]).all()
    np.testing.assert_array_equal(second["head"]["kernels"][0], first["head"]["kernels"][0])
    assert not np.array_equal(second["head"]["kernels"][1], first["head"]["kernels"][1])


def test_a_finished_task_is_evaluated_with_its_scales(learned):
    state, params = learned.second, dict(learned.second.params)
    for name in LAYERS:
        rank = int(state.subspaces[name].ranks[0])
        basis = basis_of(learned, name)[:, np.asarray(state.subspaces[name].columns[0, :rank])]
        kernel = np.asarray(params[name]["kernel"])
        held = learned.started.trained.params.regions[name].held[0, :rank]
        np.testing.assert_allclose(basis.T @ kernel, held, atol=1e-5)
        scale = np.asarray(state.scales[name][1, 0, :rank, :rank])
        assert np.abs(scale - np.eye(rank)).max() > 1e-3
        changed = kernel + basis @ (scale - np.eye(rank)) @ basis.T @ kernel
        params[name] = params[name] | {"kernel": jnp.asarray(changed, jnp.float32)}
    found = learned.method.apply(state, learned.x[1], jnp.int32(1))
    expected = learned.problem.logits(params, learned.x[1], jnp.int32(1))
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
    # The first task has none.
    found = learned.method.apply(state, learned.x[0], jnp.int32(0))
    expected = learned.problem.logits(state.params, learned.x[0], jnp.int32(0))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_numbers_in_use_by_hand(learned):
    """A matrix and a basis for the one trust region of each layer, beside the network."""
    network = 5 * 4 + 4 + 4 * 3 + 3 + 3 * (3 * 4 + 4)
    ranks = [int(learned.second.subspaces[name].ranks[0]) for name in LAYERS]
    used = network + sum(rank**2 + d * rank for rank, d in zip(ranks, (5, 4), strict=True))
    found = trgp.capacity(learned.problem, learned.second)
    assert float(found) == pytest.approx(used / network)
    assert float(trgp.capacity(learned.problem, learned.first)) == 1


def test_a_threshold_that_is_no_positive_number_is_refused():
    for value in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="--trgp-threshold is "):
            trgp.Trgp(trgp_threshold=value)
