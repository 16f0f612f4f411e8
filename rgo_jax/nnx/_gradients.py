"""Loss and projected gradients for Flax NNX."""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from rgo_jax import _fused, _gradients, _leaf, _state, _tree
from rgo_jax._leaf import Leaf


def value_and_grad(
    loss_fn: Callable[..., Any], optimizer: nnx.Optimizer, *, has_aux: bool = False
) -> Callable[..., tuple[Any, Any]]:
    """`flax.nnx.value_and_grad` with projected gradients, for ``optimizer.update`` as it is.

    `rgo_jax.value_and_grad` for NNX, which tells what it is good for.

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
    found = _state.projections(_state.find_states(arrays(optimizer.opt_state)))
    projections = {_graph_path(path): projection for path, projection in found.items()}

    def loss(model: Any, *args: Any, **kwargs: Any) -> Any:
        leaves: list[Leaf] = []
        variables: list[nnx.Variable] = []
        for path, variable in nnx.iter_graph(model):
            # A shared parameter has the first of its paths, as in the optimizer's state.
            if path not in projections or not isinstance(variable, nnx.Variable):
                continue
            parameter = variable[...]
            alias = _fused.project(parameter, projections[path])
            leaves.append(Leaf(alias, parameter, projections[path]))
            variables.append(variable)
            _set(variable, alias)
        with _leaf.scope(leaves):
            result = loss_fn(model, *args, **kwargs)
        for variable, leaf in zip(variables, leaves, strict=True):
            _set(variable, leaf.parameter)
        return result

    def loss_and_grads(model: nnx.Module, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        _state.leaves_of(arrays(nnx.state(model, optimizer.wrt)), found, "model's parameters")
        wrt = nnx.DiffState(0, optimizer.wrt)
        # On a copy that NNX makes to trace, so the model is never seen with what is set above.
        differentiated = nnx.value_and_grad(loss, argnums=wrt, has_aux=has_aux)
        value, grads = differentiated(model, *args, **kwargs)
        return value, _gradients.mark(grads, found)

    return loss_and_grads


def _set(variable: nnx.Variable, value: jax.Array) -> None:
    if hasattr(variable, "set_value"):
        variable.set_value(value)
    else:  # flax 0.11
        variable.value = value


def _graph_path(path: _tree.Path) -> tuple[Any, ...]:
    """A pytree path as `nnx.iter_graph` writes it."""
    return tuple(key.key if isinstance(key, jax.tree_util.DictKey) else key for key in path)


def arrays(tree: Any) -> Any:
    """The tree without NNX's Variables: grads and optimizer state wrap theirs differently."""
    if hasattr(nnx, "as_pure"):  # flax 0.12
        return nnx.as_pure(tree)
    return nnx.to_arrays(nnx.pure(tree))  # type: ignore[attr-defined]
