"""Each column, in as many vectors as a gradient has rank."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rgo_jax
from rgo_jax import _columns
from tests import oracle

ALPHA = 0.01


def of_rank(rank, count, d=9, m=11):
    rng = np.random.default_rng(rank)
    left, right = rng.normal(size=(count, d, rank)), rng.normal(size=(count, rank, m))
    return jnp.asarray(left @ right / 4, jnp.float32)


@pytest.mark.parametrize("seeds", [1, 2])
@pytest.mark.parametrize("rank", [1, 3, 5])
def test_each_of_batches_of_three_examples_against_float64(rank, seeds):
    """Of a rank that three examples of a dense layer have, and of a higher one."""
    grads = jnp.stack([of_rank(rank, 8) * (1 + seed) for seed in range(seeds)])
    grads = grads.at[:, 5].set(0)
    start = rgo_jax.scale_by_rgo().init(grads[0, 0])
    examples = jnp.arange(24).reshape(8, 3)

    @jax.jit
    @jax.vmap
    def fold(grads):
        return rgo_jax.consolidate(
            start, lambda batch: grads[batch[0] // 3], examples, columns="each", block_size=7
        )

    state = fold(grads)
    for seed in range(seeds):
        vectors = np.concatenate(np.moveaxis(np.asarray(grads[seed], np.float64), 2, 1)) / 11**0.5
        expected = oracle.projection_of(vectors, ALPHA)
        np.testing.assert_allclose(state.projection[seed], expected, atol=5e-6)
        np.testing.assert_allclose(state.energy[seed], 2 * [np.sum(vectors**2)], rtol=1e-5)
    assert state.num_updates.tolist() == seeds * [8]


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_vectors_of_a_rank_are_whole_if_the_gradient_has_no_higher(scale):
    for rank in (1, 3, 4, 5, 9):
        found = _columns.of_rank(scale * of_rank(rank, 1)[0], 4)
        assert found.vectors.shape == (4, 9)
        assert bool(found.is_whole) == (rank <= 4)
    assert bool(_columns.of_rank(jnp.zeros((9, 11)), 4).is_whole)
    assert not bool(_columns.of_rank(of_rank(1, 1)[0].at[2, 3].set(jnp.inf), 4).is_whole)
    assert not bool(_columns.of_rank(1e30 * of_rank(1, 1)[0], 4).is_whole)  # its square is infinite
