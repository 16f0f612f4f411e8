"""Plain networks with room for more units."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.methods.growing import widths
from tests.benchmarks.small_networks import CONVS, narrow_problem
from tests.marks import slow_but

SHAPES = {
    "mlp": ((5,), {}),
    "convolutions": ((6, 6, 2), {"convs": CONVS, "hidden": (3,)}),
    "no dense layer": ((4, 4, 1), {"convs": CONVS[:1], "hidden": ()}),
}


@pytest.fixture(params=slow_but(SHAPES, "mlp", "convolutions"))
def problem(monkeypatch, request):
    shape, network = SHAPES[request.param]
    return narrow_problem(monkeypatch, "den", *shape, initial_values="uniform", **network)


def wide(problem, room=3):
    params = problem.init(jax.random.key(0))
    return params, *widths.widen(problem, params, [room] * len(problem.layers))


def with_random(problem, params, born, key):
    """Random values for all that there is no unit for."""
    blank = jax.tree.map(jnp.ones_like, problem.init(jax.random.key(0)))
    room = [len(tasks) - la.features for la, tasks in zip(problem.layers, born, strict=True)]
    used, _ = widths.widen(problem, blank, room)
    return jax.tree.map(
        lambda p, u: jnp.where(u != 0, p, jax.random.normal(key, p.shape)), params, used
    )


def test_room_changes_nothing(problem):
    """Whatever stands in it."""
    x = jax.random.normal(jax.random.key(1), (4, *problem.input_shape))

    @jax.jit
    def found():
        params, more, born = wide(problem)
        filled = with_random(problem, more, born, jax.random.key(2))
        expected = problem.logits(params, x, jnp.int32(1))
        of = [widths.logits(problem, p, born, x, jnp.int32(1)) for p in (more, filled)]
        return expected, *of, widths.capacity(problem, more, born, jnp.int32(3))

    expected, empty, filled, share = found()
    np.testing.assert_allclose(empty, expected, atol=1e-6)
    np.testing.assert_allclose(filled, expected, atol=1e-6)
    assert float(share) == 1


def test_a_task_has_the_units_that_there_were(problem):
    """Those of the second task count in it and later, not in the first."""
    x = jax.random.normal(jax.random.key(1), (4, *problem.input_shape))

    @jax.jit
    def differences(task_id):
        _, more, born = wide(problem)
        filled = with_random(problem, more, born, jax.random.key(2))
        grown = tuple(widths.add_units(tasks, jnp.int32(2), jnp.int32(1), 3) for tasks in born)
        before, after = (widths.logits(problem, filled, b, x, task_id) for b in (born, grown))
        return jnp.any(before != after)

    assert [bool(differences(jnp.int32(t))) for t in range(3)] == [False, True, True]


def test_new_units_take_free_places_as_far_as_there_are():
    tasks = jnp.array([0, 3, 1, 3, 3])
    np.testing.assert_array_equal(
        widths.add_units(tasks, jnp.int32(2), jnp.int32(2), 3), [0, 2, 1, 2, 3]
    )
    np.testing.assert_array_equal(
        widths.add_units(tasks, jnp.int32(9), jnp.int32(2), 3), [0, 2, 1, 2, 2]
    )


def test_capacity_by_hand(monkeypatch):
    """Five inputs, layers of four and three units, three heads of four classes."""
    problem = narrow_problem(monkeypatch, "den", 5, initial_values="uniform")
    _, more, born = wide(problem)
    born = tuple(
        widths.add_units(tasks, jnp.int32(count), jnp.int32(1), 3)
        for tasks, count in zip(born, (1, 2), strict=True)
    )
    base = 5 * 4 + 4 + 4 * 3 + 3 + 3 * (3 * 4 + 4)
    # The first head has the three units that there were.
    used = 5 * 5 + 5 + 5 * 5 + 5 + (3 + 5 + 5) * 4 + 3 * 4
    assert float(widths.capacity(problem, more, born, jnp.int32(2))) == pytest.approx(used / base)
