"""``next_task``: an optimizer state for the next task, of which P and the settings are the old."""

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax

from rgo_jax import _state, _tree

# optax's names of what is no memory of the task: settings, and keys, which must not draw the same
# numbers again.
_KEPT_FIELDS = ("hyperparams", "rng_key")
_REMEDY = (
    "Pass the transform that the state is of, and the parameters that it trains; for states that "
    "jax.vmap has stacked, call next_task under the same jax.vmap."
)


class Initializer(Protocol):
    """An optax transform, or another optimizer such as `optax.MultiSteps`."""

    @property
    def init(self) -> Any:
        """From parameters to an optimizer state."""


def next_task(tx: Initializer, opt_state: optax.OptState, params: Any) -> optax.OptState:
    """The optimizer state to begin the next task with: P is kept, all else starts anew.

    What an optimizer carries from one task to the next beside P moves parameters at the start of
    the new task, and was projected for the task before: momentum, Adam's moments, what
    `optax.MultiSteps` has accumulated. Schedules would go on where the last task ended. Call it
    after `rgo_jax.consolidate`.

    Anew is as ``tx.init(params)`` has it. Kept are, wherever they are in the state:

    * each `rgo_jax.RgoState` as a whole;
    * the values of `optax.inject_hyperparams`, which you may have set. Those that are schedules
      start anew: the next update computes them;
    * random keys, such as that of `optax.add_noise`, so that no task has the noise of another.

    Args:
      tx: the transform that the state is of.
      opt_state: its state after a task.
      params: the parameters that the next task starts from. Some states hold a copy of them.

    Returns:
      An optimizer state of the same structure, shapes, dtypes and shardings as ``opt_state``. Pure;
      works under `jax.jit`, `jax.vmap` and `jax.lax.scan`.

    Raises:
      ValueError: no `rgo_jax.RgoState` in ``opt_state``, or it is no state of ``tx`` for these
        parameters.

    Example:
      >>> import jax.numpy as jnp, optax, rgo_jax
      >>> w, grads = jnp.ones((3, 2)), jnp.ones((3, 2))
      >>> tx = rgo_jax.rgo(optax.cosine_decay_schedule(0.1, decay_steps=100), momentum=0.9)
      >>> updates, state = tx.update(grads, tx.init(w), w)
      >>> state = rgo_jax.rls_update(state, grads)  # the first task is done
      >>> state = rgo_jax.next_task(tx, state, w)
      >>> int(optax.tree.get(state, "count")), float(optax.tree.get(state, "trace").sum())
      (0, 0.0)
      >>> int(optax.tree.get(state, "num_updates"))
      1
    """
    _state.find_states(opt_state)
    return restart(tx, opt_state, params)


def restart(tx: Initializer, opt_state: optax.OptState, params: Any) -> optax.OptState:
    """`next_task`, of optimizers without P too."""

    _check(opt_state, jax.eval_shape(tx.init, params))
    fresh = _fresh_leaves(tx.init, params)
    leaves = [
        old if new is None else _like(new, old)
        for new, (_, old) in zip(fresh, _flatten(opt_state), strict=True)
    ]
    return jax.tree.unflatten(jax.tree.structure(opt_state, is_leaf=_state.is_state), leaves)


@partial(jax.jit, static_argnums=0)
def _fresh_leaves(init: Callable[[Any], optax.OptState], params: Any) -> list[Any]:
    """Those that start anew, in their places. Compiled, a fresh P is never made."""
    return [None if _is_kept(*each) else each[1] for each in _flatten(init(params))]


def _flatten(opt_state: Any) -> list[tuple[_tree.Path, Any]]:
    return jax.tree_util.tree_flatten_with_path(opt_state, is_leaf=_state.is_state)[0]


def _is_kept(path: _tree.Path, leaf: Any) -> bool:
    if _state.is_state(leaf) or jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key):
        return True
    return any(getattr(key, "name", None) in _KEPT_FIELDS for key in path)


def _like(new: jax.Array, old: Any) -> Any:
    """With the dtype of the old one, and where that has been laid."""
    new = jnp.asarray(new, jnp.result_type(old))
    traced = isinstance(new, jax.core.Tracer) or isinstance(old, jax.core.Tracer)
    if not traced and isinstance(old, jax.Array) and old.committed:
        return jax.device_put(new, old.sharding)
    return new


def _check(opt_state: Any, expected: Any) -> None:
    """Refuses a state that has not the leaves of a fresh one.

    Raises:
      ValueError: as `next_task`.
    """
    flat, fresh = (
        dict(jax.tree_util.tree_flatten_with_path(tree)[0]) for tree in (opt_state, expected)
    )
    for path in [*flat, *fresh]:
        of_state, of_tx = (
            f"shape {jnp.shape(leaves[path])}" if path in leaves else "nothing"
            for leaves in (flat, fresh)
        )
        if of_state != of_tx:
            raise ValueError(
                f"The optimizer state has {of_state} at {_tree.path_name(path)!r}, but tx.init for "
                f"these parameters has {of_tx} there. {_REMEDY}"
            )
    structure: Any = jax.tree.structure(opt_state)
    if structure != (of_fresh := jax.tree.structure(expected)):
        raise ValueError(
            "The optimizer state has other containers than that of tx.init for these parameters: "
            f"{structure}, expected {of_fresh}. {_REMEDY}"
        )
