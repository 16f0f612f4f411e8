"""What DEN does with units, on made networks."""

import jax.numpy as jnp
import numpy as np

from benchmarks.methods.growing import selection

# Three inputs, two layers of three units, two classes.
FIRST = jnp.ones((3, 3))
SECOND = jnp.array([[1.0, 0, 0], [0, 1, 0], [0, 2, 0]])
HEAD = jnp.array([[0.0, 0], [0, 0.5], [0, 0]])


def test_path_is_what_leads_to_the_head():
    """The head listens to unit 1 of the second layer; units 1 and 2 of the first lead there."""
    first, second = selection.path([FIRST, SECOND, HEAD], [3, 3, 3])
    np.testing.assert_array_equal(second, [False, True, False])
    np.testing.assert_array_equal(first, [False, True, True])


def test_path_through_the_places_of_an_image():
    """Two channels at two places: the second channel is heard at the second place only."""
    head = jnp.zeros((4, 2)).at[3, 0].set(1.0)
    (found,) = selection.path([jnp.ones((1, 1, 1, 2)), head], [1, 2])
    np.testing.assert_array_equal(found, [False, True])


def test_groups_shrink_and_vanish():
    """Lengths 5, 1 and 0 lose 1, 2 and 1."""
    kernel = jnp.array([[3.0, 0.6, 0.0], [4.0, 0.8, 0.0]])
    found = selection.shrink_groups(kernel, jnp.array([1.0, 2.0, 1.0]))
    np.testing.assert_allclose(found, [[2.4, 0, 0], [3.2, 0, 0]], rtol=1e-6)
    np.testing.assert_array_equal(selection.shrink_groups(kernel, jnp.zeros(3)), kernel)


def test_those_that_drifted_most_split_while_there_is_room():
    drift = jnp.array([0.3, 0.01, 0.9, 0.5, -1.0, -1.0])
    is_free = jnp.array([False] * 4 + [True] * 2)
    split = selection.choose_splits(drift, is_free, 0.1, 4)
    np.testing.assert_array_equal(split.unit[:3], [2, 3, 0])
    # The third has no room, the fourth has not drifted.
    np.testing.assert_array_equal(split.copy, [4, 5, 6, 6])
    few = selection.choose_splits(drift, is_free, 0.1, 1)
    assert (few.unit.tolist(), few.copy.tolist()) == ([2], [4])


SPLIT = selection.Split(jnp.array([1, 0]), jnp.array([2, 3]))  # of three places: one splits


def test_split_restores_the_unit_and_keeps_what_it_learned():
    now = jnp.array([[1.0, 5, 0], [2, 6, 0]])
    old = jnp.array([[1.0, 3, 0], [1, 4, 0]])
    np.testing.assert_array_equal(
        selection.split_columns(now, old, SPLIT), jnp.array([[1.0, 3, 5], [2, 4, 6]])
    )
    np.testing.assert_array_equal(
        selection.split_columns(now[0], old[0], SPLIT), jnp.array([1.0, 3, 5])
    )


def test_copies_stand_for_units_where_they_are_new():
    """Unit 1 and its copy 2, in the second column only, at both of two places."""
    kernel = jnp.arange(1.0, 13).reshape(6, 2)
    found = selection.hand_over(kernel, SPLIT, jnp.array([False, True]), 3)
    np.testing.assert_array_equal(found[:, 0], kernel[:, 0])
    np.testing.assert_array_equal(found[:, 1], jnp.array([2.0, 0, 4, 8, 0, 10]))
