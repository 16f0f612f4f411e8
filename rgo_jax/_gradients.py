"""Loss and projected gradients, from an optimizer's state."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import optax

from rgo_jax import _fused, _leaf, _state, _tree
from rgo_jax._leaf import Leaf
from rgo_jax._projected import ProjectedGradient


def value_and_grad(
    loss_fn: Callable[..., Any], opt_state: optax.OptState, *, has_aux: bool = False
) -> Callable[..., tuple[Any, Any]]:
    """`jax.value_and_grad` with projected gradients, for ``tx.update`` as it is.

    ``tx.update`` projects plain gradients itself, with a product ``[d, d] x [d, m]`` for each
    parameter. With gradients from here it does not, and fused layers, those of `rgo_jax.linen` and
    `rgo_jax.nnx`, save that product in their backward pass wherever a batch has fewer rows than the
    layer has outputs: training then costs little more than with SGD. Every gradient is right
    whatever the model is made of; what is not a fused layer, or hides its parameter from it (weight
    normalisation, a mask, `jax.checkpoint`, a scan over layers), takes the product.

    For training only: `rgo_jax.rls_update` and `rgo_jax.consolidate` need plain gradients, of
    `jax.grad`, and refuse these. Forward-mode differentiation of ``loss_fn`` is not supported.

    Args:
      loss_fn: ``(params, *args, **kwargs) -> loss``, a real scalar; with ``has_aux``
        ``(loss, aux)``.
      opt_state: the current state of any optax transform that contains `rgo_jax.scale_by_rgo`.
      has_aux: as in `jax.value_and_grad`.

    Returns:
      A function of ``(params, *args, **kwargs)`` that returns the loss and the gradients: a tree
      like ``params``, with a `rgo_jax.ProjectedGradient` for each parameter that has a P. It is
      pure, to be used under `jax.jit`, `jax.vmap` and `jax.lax.scan` as that of
      `jax.value_and_grad`.

    Raises:
      ValueError: no `rgo_jax.RgoState` in ``opt_state``; called with ``params`` that do not match.

    Example:
      >>> import jax, jax.numpy as jnp, optax, rgo_jax, rgo_jax.linen
      >>> model, tx = rgo_jax.linen.Dense(3), rgo_jax.rgo(0.1)
      >>> params = model.init(jax.random.key(0), jnp.ones((2, 4)))["params"]
      >>> @jax.jit
      ... def step(params, opt_state, x):
      ...     def loss_fn(params):
      ...         return jnp.mean(model.apply({"params": params}, x) ** 2)
      ...     loss, grads = rgo_jax.value_and_grad(loss_fn, opt_state)(params)
      ...     updates, opt_state = tx.update(grads, opt_state, params)
      ...     return optax.apply_updates(params, updates), opt_state, loss
      >>> params, opt_state, loss = step(params, tx.init(params), jnp.ones((2, 4)))

    References:
      Appendix B.2. https://arxiv.org/abs/2201.12522
    """
    projections = _state.projections(_state.find_states(opt_state))

    def loss_and_grads(params: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        _state.leaves_of(params, projections, "parameters")

        def loss(params: Any) -> Any:
            with alias_scope(params, projections, _fused.project) as aliases:
                return loss_fn(aliases, *args, **kwargs)

        value, grads = jax.value_and_grad(loss, has_aux=has_aux)(params)
        return value, mark(grads, projections)

    return loss_and_grads


@contextlib.contextmanager
def alias_scope(
    params: Any, wanted: dict[_tree.Path, Any], alias: Callable[[jax.Array, Any], jax.Array]
) -> Iterator[Any]:
    """The parameters with an alias for each of which something is wanted, found by layers inside.

    Args:
      params: a tree of them.
      wanted: a parameter's `Leaf.wanted`, by path.
      alias: from a parameter and what is wanted to its alias.
    """
    leaves = []

    def pass_on(path: _tree.Path, parameter: jax.Array) -> jax.Array:
        if path not in wanted:
            return parameter
        leaves.append(Leaf(alias(parameter, wanted[path]), parameter, wanted[path]))
        return leaves[-1].alias

    aliases = _tree.map_with_path(pass_on, params)
    with _leaf.scope(leaves):
        yield aliases


def mark(grads: Any, projections: dict[_tree.Path, Any]) -> Any:
    """The gradients, with a `ProjectedGradient` for each that has a projection."""
    return _tree.map_with_path(
        lambda path, leaf: ProjectedGradient(leaf) if path in projections else leaf, grads
    )
