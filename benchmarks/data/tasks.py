"""Task sequences by name, and how a task's batches are drawn."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from benchmarks.data.class_tasks import split, superclass
from benchmarks.data.dataset import Dataset
from benchmarks.data.pixel_tasks import INTERPOLATIONS, LOS_ANGLES, permuted, rotated
from benchmarks.data.task import Pool, Sequence

__all__ = [
    "INTERPOLATIONS",
    "LOS_ANGLES",
    "SEQUENCES",
    "Pool",
    "Sequence",
    "draw_batches",
    "permuted",
    "rotated",
    "split",
    "superclass",
]

SEQUENCES: dict[str, Callable[[Dataset, int, str], Sequence]] = {
    "permuted": permuted,
    "rotated": rotated,
    "split": split,
    "superclass": superclass,
}


def draw_batches(
    key: jax.Array, pool: Pool, num_examples: int, epochs: int, batch_size: int
) -> jax.Array:
    """Draws a task's examples without replacement and shuffles them anew for each epoch.

    A pool of fewer examples is gone through again until there are as many as are to be drawn.

    Returns:
      int32 ``[epochs, num_batches, batch_size]``; what does not fill a batch is left out.
    """
    draw, shuffle = jax.random.split(key)
    order = jax.random.permutation(draw, len(pool.indices))
    if pool.valid is not None:
        order = order[jnp.argsort(~pool.valid[order], stable=True)]
        order = order[jnp.arange(num_examples) % jnp.sum(pool.valid)]
    examples = pool.indices[order[:num_examples]]
    shuffled = jax.vmap(partial(jax.random.permutation, x=examples))(
        jax.random.split(shuffle, epochs)
    )
    num_batches = num_examples // batch_size
    return shuffled[:, : num_batches * batch_size].reshape(epochs, num_batches, batch_size)
