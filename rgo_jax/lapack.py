"""LAPACK under `jax.vmap` on a CPU, where batched calls of jaxlib 0.10.0 to 0.11.0 can deadlock.

There a batched call, which XLA runs on a thread of its pool, leaves the matrices to other threads
of that pool and waits for them (``ParallelBatchMap`` in jaxlib's lapack_kernels.cc). With as many
such calls at once as the pool has threads, as for the layers of a network, all threads wait, for
ever; seen with jaxlib 0.10.2. jax's commit bfd9e1f brought it, for 0.10.0; 859992407d took it out
again after 0.11.0, for https://github.com/jax-ml/jax/issues/36927.

This file can go, and its callers call LAPACK directly, once 0.11.1 is the oldest jaxlib supported.
"""

from collections.abc import Callable
from typing import Any

import jax


def one_by_one_on_cpu(function: Callable[..., Any]) -> Callable[..., Any]:
    """Has `jax.vmap` call a function for one matrix after the other on a CPU; at once elsewhere.

    Args:
      function: of arrays, by position; calls LAPACK.

    Returns:
      The same function. Its derivatives are computed as if it had not been through here, so under
      `jax.vmap` on a CPU they can still deadlock.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from rgo_jax.lapack import one_by_one_on_cpu
      >>> stacked = jnp.stack([jnp.eye(2), 2 * jnp.eye(2)])
      >>> print(jax.vmap(one_by_one_on_cpu(jnp.linalg.eigvalsh))(stacked))
      [[1. 1.]
       [2. 2.]]
    """

    @jax.custom_jvp
    def called(*args: Any) -> Any:
        # Behind a lambda: defaults of the function's own would be traced as well.
        one_by_one = jax.custom_batching.sequential_vmap(lambda *args: function(*args))
        return jax.lax.platform_dependent(*args, cpu=one_by_one, default=function)

    @called.defjvp
    def _(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Any, Any]:
        # sequential_vmap has no derivative in reverse mode.
        return jax.jvp(function, primals, tangents)

    return called
