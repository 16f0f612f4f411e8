"""The start of the next task for Flax NNX, in place."""

from flax import nnx

from rgo_jax import _next_task
from rgo_jax.nnx import _gradients


def next_task(model: nnx.Module, optimizer: nnx.Optimizer) -> None:
    """Sets an NNX optimizer's state for the next task, in place: P is kept, all else starts anew.

    `rgo_jax.next_task` for `flax.nnx.Optimizer`, in `nnx.jit` or outside. ``optimizer.step``, by
    which nothing is computed, goes on.

    Args:
      model: the model that the optimizer trains. It is not changed.
      optimizer: an optimizer whose transform contains `rgo_jax.scale_by_rgo`.

    Raises:
      ValueError: as `rgo_jax.next_task`.

    Example:
      >>> import jax.numpy as jnp, optax, rgo_jax, rgo_jax.nnx
      >>> from flax import nnx
      >>> model = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
      >>> tx = rgo_jax.rgo(0.1, momentum=0.9)
      >>> optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
      >>> grads = nnx.grad(lambda model: model(jnp.ones((2, 4))).sum())(model)
      >>> _ = optimizer.update(model, grads)
      >>> rgo_jax.nnx.next_task(model, optimizer)
      >>> float(optax.tree.get(optimizer.opt_state, "trace")["kernel"][...].sum())
      0.0
    """
    state = _next_task.next_task(
        optimizer.tx,
        _gradients.arrays(optimizer.opt_state),
        _gradients.arrays(nnx.state(model, optimizer.wrt)),
    )
    nnx.update(optimizer.opt_state, nnx.state(state))
