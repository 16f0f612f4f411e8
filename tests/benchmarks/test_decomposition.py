"""The arrays of APD, by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.methods.growing import clusters
from benchmarks.methods.growing.decomposition import best_tau, cut, gate, retain, shrink

L1, L2 = 0.3, 2.0


def test_one_number_gates_all_that_a_unit_receives():
    v = jnp.array([0.0, np.log(3.0)])
    np.testing.assert_allclose(gate(v, 4), [[[[0.5, 0.75]]]], rtol=1e-6)
    assert gate(jnp.zeros((3, 2)), 2).shape == (3, 1, 2)


def test_thresholds():
    x = jnp.array([-0.5, -0.1, 0.0, 0.2, 0.7])
    np.testing.assert_allclose(shrink(x, 0.2), [-0.3, 0, 0, 0, 0.5], atol=1e-7)
    np.testing.assert_array_equal(cut(x, 0.2), jnp.array([-0.5, 0, 0, 0, 0.7]))


def penalty(sigma, mask, tau, target):
    """The published term of one old task."""
    return L1 * np.abs(tau) + L2 / 2 * (sigma * mask + tau - target) ** 2


@pytest.mark.parametrize("residual", [-1.0, -0.1, 0.0, 0.14, 0.16, 2.0])
def test_own_part_of_an_old_task_is_the_minimum_of_its_penalty(residual):
    grid = np.linspace(-3, 3, 600_001)
    expected = grid[np.argmin(penalty(0, 0, grid, residual))]
    np.testing.assert_allclose(best_tau(jnp.float32(residual), L1, L2), expected, atol=2e-5)


@pytest.mark.parametrize("target", [-2.0, 0.3, 0.45, 0.6, 3.0])
@pytest.mark.parametrize("rate", [0.1, 5.0])
def test_shared_part_takes_a_proximal_step_of_the_least_penalty(target, rate):
    """Also where the rate is far above what plain steps of this penalty converge with."""
    sigma, mask = 0.9, 0.5
    grid = np.linspace(-3, 3, 600_001)
    residual = target - grid * mask
    tau = np.sign(residual) * np.maximum(np.abs(residual) - L1 / L2, 0)
    least = penalty(grid, mask, tau, target)
    expected = grid[np.argmin((grid - sigma) ** 2 / 2 + rate * least)]
    found = retain(*(jnp.float32(x) for x in (sigma, mask, target, rate)), L1, L2)
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_small_steps_follow_the_gradient_of_the_published_penalty():
    """By hand: mask * l2 * (sigma * mask + tau - target), with tau at its minimum."""
    sigma, mask, rate = jnp.full(2, 0.8), jnp.full(2, 0.5), jnp.float32(1e-3)
    # The residual of 0.05 stays below l1 / l2 = 0.15, that of 1 above it.
    target = jnp.array([0.45, 1.4])
    gradient = (sigma - retain(sigma, mask, target, rate, L1, L2)) / rate
    np.testing.assert_allclose(gradient, [-0.5 * 2 * 0.05, -0.5 * 0.3], rtol=2e-3)


POINTS = jnp.array([[0.0, 0.1], [5.0, 5.0], [0.2, -0.1], [5.3, 5.0], [9.0, -9.0], [7.0, 7.0]])


def test_tasks_that_own_alike_parameters_are_in_one_cluster():
    """The last row does not count."""
    none = jnp.full(6, -1)
    found = clusters.assign(POINTS, none, jnp.int32(5), jnp.int32(3)).tolist()
    assert found[0] == found[2]
    assert found[1] == found[3]
    assert len({found[0], found[1], found[4]}) == 3
    assert found[5] == -1


def test_clusters_go_on_from_those_before():
    """Clusters keep their numbers; one that is new takes what is furthest from the others."""
    before = jnp.array([1, 0, 1, 0, -1, -1])
    found = clusters.assign(POINTS, before, jnp.int32(5), jnp.int32(3))
    np.testing.assert_array_equal(found, [1, 0, 1, 0, 2, -1])


def test_no_more_clusters_than_there_may_be():
    found = clusters.assign(POINTS, jnp.full(6, -1), jnp.int32(6), jnp.int32(2))
    assert set(found.tolist()) == {0, 1}


def test_what_is_alike_in_a_cluster_is_kept_once():
    x = jnp.array([[1.0, 2.0, 0.0], [1.2, 3.0, 0.1], [9.0, 9.0, 9.0], [1.1, 2.0, 0.0], [7.0] * 3])
    cluster = jnp.array([1, 1, 0, 1, -1])
    left, shared = clusters.share(x, cluster, 3, 0.25)
    # The middle between smallest and largest; the second element differs by 1, and a cluster of one
    # shares nothing.
    np.testing.assert_allclose(shared, [[0, 0, 0], [1.1, 0, 0.05], [0, 0, 0]], rtol=1e-6)
    expected = [[0, 2, 0], [0, 3, 0], [9, 9, 9], [0, 2, 0], [7, 7, 7]]
    np.testing.assert_array_equal(left, jnp.array(expected, jnp.float32))
