"""Loss and projected gradients for Flax NNX."""

from collections.abc import Callable
from typing import Any

from flax import nnx

from rgo_jax import _fused, _gradients, _state


def value_and_grad(
    loss_fn: Callable[..., Any], optimizer: nnx.Optimizer, *, has_aux: bool = False
) -> Callable[..., tuple[Any, Any]]:
    """`flax.nnx.value_and_grad` with projected gradients, for ``optimizer.update`` as it is.

    See `rgo_jax.value_and_grad` for what projected gradients save.

    Args:
      loss_fn: ``(model, *args, **kwargs) -> loss``, a real scalar; with ``has_aux``
        ``(loss, aux)``. It may change the model's other state, such as running averages.
      optimizer: the model's, whose transform contains `rgo_jax.scale_by_rgo`. Its ``wrt`` tells
        which parameters the gradients are of.
      has_aux: as in `flax.nnx.value_and_grad`.

    Returns:
      A function of ``(model, *args, **kwargs)`` that returns the loss and the gradients.

    Raises:
      ValueError: no `rgo_jax.RgoState` in the optimizer's state; called with another model.

    Example:
      >>> import jax.numpy as jnp, rgo_jax, rgo_jax.nnx
      >>> from flax import nnx
      >>> model = rgo_jax.nnx.Linear(4, 3, rngs=nnx.Rngs(0))
      >>> optimizer = nnx.Optimizer(model, rgo_jax.rgo(0.1), wrt=nnx.Param)
      >>> @nnx.jit
      ... def step(model, optimizer, x):
      ...     def loss_fn(model):
      ...         return jnp.mean(model(x) ** 2)
      ...     loss, grads = rgo_jax.nnx.value_and_grad(loss_fn, optimizer)(model)
      ...     optimizer.update(model, grads)
      ...     return loss
      >>> loss = step(model, optimizer, jnp.ones((2, 4)))

    References:
      Appendix B.2. https://arxiv.org/abs/2201.12522
    """
    projections = _state.projections(_state.find_states(arrays(optimizer.opt_state)))

    def loss(model: nnx.Module, *args: Any, **kwargs: Any) -> Any:
        params = arrays(nnx.state(model, optimizer.wrt))
        _state.leaves_of(params, projections, "model's parameters")
        with _gradients.alias_scope(params, projections, _fused.project) as aliases:
            nnx.update(model, aliases)
            result = loss_fn(model, *args, **kwargs)
        nnx.update(model, params)
        return result

    def loss_and_grads(model: nnx.Module, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        wrt = nnx.DiffState(0, optimizer.wrt)
        # NNX calls the loss with a copy of the model, so what the loss sets in it is never seen.
        differentiated = nnx.value_and_grad(loss, argnums=wrt, has_aux=has_aux)
        value, grads = differentiated(model, *args, **kwargs)
        return value, _gradients.mark(grads, projections)

    return loss_and_grads


def arrays(tree: Any) -> Any:
    """The tree without NNX's Variables: grads and optimizer state wrap theirs differently."""
    if hasattr(nnx, "as_pure"):  # flax 0.12
        return nnx.as_pure(tree)
    return nnx.to_arrays(nnx.pure(tree))  # type: ignore[attr-defined]
