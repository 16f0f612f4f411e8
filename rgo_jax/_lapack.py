"""LAPACK under `jax.vmap` on a CPU, where jaxlib's batched calls can wait for ever."""

from collections.abc import Callable
from typing import Any

import jax


def in_turn_on_cpu(function: Callable[..., Any]) -> Callable[..., Any]:
    """Lets `jax.vmap` call a function on one matrix after the other on a CPU; at once elsewhere.

    On a CPU jaxlib (seen in 0.10.2) runs a batched call of LAPACK on a thread of XLA's pool,
    leaves the matrices to other threads of that pool, and waits for them. With more such calls at
    once than there are threads, as for the layers of a network, all threads wait, for ever.

    Args:
      function: of arrays, by position; calls LAPACK.

    Returns:
      The same function. Its derivatives are computed as if it had not been through here, so under
      `jax.vmap` on a CPU they can still wait.
    """

    @jax.custom_jvp
    def called(*args: Any) -> Any:
        # Behind a lambda: defaults of the function's own would be traced as well.
        in_turn = jax.custom_batching.sequential_vmap(lambda *args: function(*args))
        return jax.lax.platform_dependent(*args, cpu=in_turn, default=function)

    @called.defjvp
    def _(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Any, Any]:
        # sequential_vmap has no derivative in reverse mode.
        return jax.jvp(function, primals, tangents)

    return called
