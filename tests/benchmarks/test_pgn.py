"""PGN by hand: columns, what they see of one another, and that older ones stay as they are."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.methods import METHODS
from benchmarks.methods.growing import pgn
from benchmarks.networks.architectures import ConvLayer
from tests.benchmarks.small_networks import narrow_problem
from tests.small_models import task_of

KEY = jax.random.key(0)
# Of three tasks: columns of 2, 4 units.
HIDDEN = {"hidden": (6, 12), "pgn_width": 1.0}
CONVS = {
    "convs": (ConvLayer(3, 6, (2, 2)), ConvLayer(2, 3, None)),
    "hidden": (9,),
    "pgn_width": 1.0,
}


def batch_of(*shape, count=6):
    return jax.random.normal(jax.random.key(1), (count, *shape)), jnp.arange(count) % 4


def trained(problem, x, y, tasks=3):
    """The states before the first task and after each, two steps a task."""
    method = METHODS["pgn"].build(problem)
    states = [jax.jit(method.init)(KEY)]

    @jax.jit
    def learn(state, task_id):
        task = task_of(x, y, batch_size=2)._replace(id=task_id)
        state = method.start_task(state, task, KEY)
        for _ in range(2):
            state, _ = method.step(state, (x, y), task)
        return method.end_task(state, task)

    for task_id in range(tasks):
        states.append(learn(states[-1], jnp.int32(task_id)))
    return method, states


def test_columns_share_out_the_units(monkeypatch):
    problem = narrow_problem(monkeypatch, "pgn", 5, hidden=(30, 1), pgn_width=1.117)
    assert [pgn.width_of(problem, units) for units in (30, 7, 1)] == [11, 3, 1]
    problem = narrow_problem(monkeypatch, "pgn", 5, hidden=(30,), pgn_width=9.0)
    assert pgn.width_of(problem, 30) == 30  # not wider than the network


def test_shapes_of_columns_with_convolutions(monkeypatch):
    problem = narrow_problem(monkeypatch, "pgn", 4, 6, 2, **CONVS)
    shapes = jax.tree.map(jnp.shape, jax.eval_shape(lambda: pgn.init_columns(problem, KEY)))
    assert shapes == {
        "Conv_0": {"kernel": (3, 3, 3, 2, 2), "bias": (3, 2)},
        "Conv_1": {
            "kernel": (3, 2, 2, 2, 1), "bias": (3, 1), "lateral": (3, 2, 2, 2, 1),
            "scale": (3,), "squeeze": (3, 3 * 2, 2), "squeeze_bias": (3, 2),
        },
        # Two by three pixels of one channel.
        "Dense_0": {
            "kernel": (3, 6, 3), "bias": (3, 3), "lateral": (3, 6, 3),
            "scale": (3,), "squeeze": (3, 3 * 1, 1), "squeeze_bias": (3, 1),
        },
        "head": {
            "kernel": (3, 3, 4), "bias": (3, 4), "lateral": (3, 3, 4),
            "scale": (3,), "squeeze": (3, 3 * 3, 3), "squeeze_bias": (3, 3),
        },
    }  # fmt: skip


@pytest.mark.slow
def test_adapters_of_convolutions_see_each_pixel_by_itself(monkeypatch):
    problem = narrow_problem(monkeypatch, "pgn", 4, 6, 2, **CONVS)
    x, y = batch_of(4, 6, 2)
    method, states = trained(problem, x, y)
    params = states[-1].params
    column = pgn.of_column(params, 1)
    first, second, _ = pgn.features_of_all(problem, params, x)
    assert first.shape == (3, 6, 2, 3, 2)
    own = column["Conv_1"]
    adapted = first[0] * own["scale"] @ own["squeeze"][:2]
    adapted = nn.relu(adapted + own["squeeze_bias"][None, None, None])

    def conv(h, kernel):
        dims = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(h, kernel, (1, 1), "SAME", dimension_numbers=dims)

    z = conv(first[1], own["kernel"]) + conv(adapted, own["lateral"])
    expected = nn.relu(z + own["bias"][None, None, None])
    np.testing.assert_allclose(second[1], expected, rtol=1e-4, atol=1e-5)
    old = [np.asarray(method.apply(state, x, jnp.int32(0))) for state in states]
    assert not np.array_equal(old[0], old[1])
    np.testing.assert_array_equal(old[1], old[3])


def test_initial_values_are_those_of_a_layer_as_narrow(monkeypatch):
    problem = narrow_problem(
        monkeypatch, "pgn", 100, hidden=(90, 90), pgn_width=1.0, initial_values="uniform"
    )
    columns = jax.jit(lambda: pgn.init_columns(problem, KEY))()
    for layer, fan_in in (("Dense_0", 100), ("Dense_1", 30), ("head", 30)):
        kernels = columns[layer]["kernel"]
        largest = float(jnp.abs(kernels).max())
        assert 0.95 / np.sqrt(fan_in) < largest <= 1.0001 / np.sqrt(fan_in)
        assert not np.array_equal(kernels[0], kernels[1])  # columns differ
        if layer != "Dense_0":
            assert not np.array_equal(kernels, columns[layer]["lateral"])
    assert np.asarray(columns["Dense_1"]["squeeze"][1]).std() == pytest.approx(30**-0.5, rel=0.1)
    assert np.asarray(columns["Dense_1"]["squeeze"][2]).std() == pytest.approx(60**-0.5, rel=0.1)


def test_logits_of_each_column_by_hand(monkeypatch):
    problem = narrow_problem(monkeypatch, "pgn", 5, **HIDDEN)
    x, y = batch_of(5)
    method, states = trained(problem, x, y)
    params = jax.tree.map(np.asarray, states[-1].params)
    x = np.asarray(x)
    # What each column gives in each layer, columns one after the other.
    features = {"Dense_0": [], "Dense_1": []}
    for t in range(3):

        def layer(name, h, below, t=t):
            own = {leaf: values[t] for leaf, values in params[name].items()}
            z = h @ own["kernel"] + own["bias"]
            if below is not None and t > 0:
                older = np.concatenate(features[below][:t], axis=1)
                squeeze = own["squeeze"][: older.shape[1]]
                seen = np.maximum(own["scale"] * older @ squeeze + own["squeeze_bias"], 0)
                z = z + seen @ own["lateral"]
            return z

        first = np.maximum(layer("Dense_0", x, None), 0)
        second = np.maximum(layer("Dense_1", first, "Dense_0"), 0)
        expected = layer("head", second, "Dense_1")
        features["Dense_0"].append(first)
        features["Dense_1"].append(second)
        found = method.apply(states[-1], jnp.asarray(x), jnp.int32(t))
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_only_the_tasks_own_column_is_trained(monkeypatch):
    """The others stay bit for bit, and so do old tasks' logits."""
    problem = narrow_problem(monkeypatch, "pgn", 5, **HIDDEN)
    x, y = batch_of(5)
    method, states = trained(problem, x, y)
    for task_id in range(3):
        before, after = states[task_id], states[task_id + 1]
        differs = jax.tree.map(
            lambda a, b: [bool(np.any(a[t] != b[t])) for t in range(3)],
            before.params,
            after.params,
        )
        for layer, of_layer in differs.items():
            for leaf, found in of_layer.items():
                # The first column has no adapters.
                own = task_id > 0 or leaf in ("kernel", "bias")
                assert found == [own and t == task_id for t in range(3)], (layer, leaf)
    logits = [np.asarray(method.apply(state, x, jnp.int32(0))) for state in states[1:]]
    np.testing.assert_array_equal(logits[0], logits[1])
    np.testing.assert_array_equal(logits[0], logits[2])


def test_numbers_in_use_by_hand(monkeypatch):
    problem = narrow_problem(monkeypatch, "pgn", 5, **HIDDEN)
    state = jax.jit(METHODS["pgn"].build(problem).init)(KEY)
    column = (5 * 2 + 2) + (2 * 4 + 4) + (4 * 4 + 4)

    def adapters(older):
        of_second = 1 + older * 2 * 2 + 2 + 2 * 4
        of_head = 1 + older * 4 * 4 + 4 + 4 * 4
        return of_second + of_head

    network = (5 * 6 + 6) + (6 * 12 + 12) + 3 * (12 * 4 + 4)
    expected = (3 * column + adapters(1) + adapters(2)) / network
    assert float(pgn.capacity(problem, state)) == pytest.approx(expected)


def test_a_width_that_is_no_positive_number_is_refused():
    for value in (0.0, -1.0, float("inf")):
        with pytest.raises(ValueError, match="--pgn-width is "):
            pgn.Pgn(pgn_width=value)
