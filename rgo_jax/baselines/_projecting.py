"""What methods that project gradients layer by layer have in common.

A kernel is seen as ``[d, m]`` and has the inputs that its layer multiplies by it; any other
parameter, such as a bias, is seen as ``[1, m]`` with an input that is always 1.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import rgo_jax
from rgo_jax import _tree
from rgo_jax.baselines._method import (
    Apply,
    Batch,
    Losses,
    Method,
    Task,
    fresh_optimizer,
    loss_and_grads,
)


class ProjectedState(NamedTuple):
    """The state of `projecting_method`.

    Attributes:
      params: the model's parameters.
      opt_state: the optimizer's state.
      memory: the method's.
      projections: what is made of it: symmetric ``[d, d]`` by the names of parameters.
      steps: int32 scalar: since the task began.
    """

    params: Any
    opt_state: Any
    memory: Any
    projections: dict[str, jax.Array]
    steps: jax.Array


def inputs_of(
    apply_fn: Apply, mask: Any, params: Any, x: jax.Array, task_id: jax.Array
) -> dict[str, jax.Array]:
    """What each parameter receives when the model is given some examples.

    Args:
      apply_fn: the model.
      mask: as for `gpm`.
      params: its parameters.
      x: ``[b, ...]``.
      task_id: int32 scalar.

    Returns:
      By the names of the parameters that are not masked out, ``[b, positions, d]``: the kernels'
      first, in the order in which the model uses them. A convolution has a position for each place
      of its window, a layer of a sequence one for each token.

    Raises:
      ValueError: no kernel has inputs, or one has blocks.
    """
    kept = {name: leaf for name, leaf, keep in _leaves(params, mask) if keep}
    seen = rgo_jax.layer_inputs(_at_task(apply_fn, task_id), params, x)
    found = {}
    for name in filter(kept.__contains__, seen):
        if seen[name].ndim > 2:
            raise ValueError(
                f"Parameter {name!r} of shape {kept[name].shape} is a stack of kernels, which each "
                "have inputs of their own. Mask it out, or use layers that are not stacked."
            )
        found[name] = seen[name].reshape(len(x), -1, seen[name].shape[-1])
    if not found:
        raise ValueError(
            "No kernel's inputs can be read from the model's program; its parameters are "
            f"{', '.join(map(repr, kept)) or 'all masked out'}. See rgo_jax.layer_inputs."
        )
    for name, leaf in kept.items():
        found.setdefault(name, jnp.ones((len(x), 1, 1), leaf.dtype))
    return found


def projecting_method(
    apply_fn: Apply,
    tx: optax.GradientTransformation,
    losses: Losses,
    mask: Any,
    empty: Callable[[dict[str, int]], Any],
    fold: Callable[[Any, Any, Task], Any],
    matrices: Callable[[Any], dict[str, jax.Array]],
    fused: bool,
) -> Method:
    """Training along projected gradients.

    Args:
      apply_fn: the model.
      tx: the optimizer.
      losses: of single examples.
      mask: as for `gpm`.
      empty: from the dimension d of each parameter to a memory of nothing.
      fold: ``(memory, params, task) -> memory`` with a finished task in it.
      matrices: from a memory to the projection ``[d, d]`` of each parameter.
      fused: as for `gpm`.
    """

    def init(params: Any, x: jax.Array, key: jax.Array) -> ProjectedState:
        del key
        seen = jax.eval_shape(
            lambda params, x: inputs_of(apply_fn, mask, params, x, jnp.int32(0)), params, x
        )
        memory = empty({name: shape.shape[-1] for name, shape in seen.items()})
        return ProjectedState(params, tx.init(params), memory, matrices(memory), jnp.int32(0))

    def start_task(state: ProjectedState, task: Task, key: jax.Array) -> ProjectedState:
        return fresh_optimizer(tx)(state, task, key)._replace(steps=jnp.int32(0))

    def step(state: ProjectedState, batch: Batch, task: Task) -> tuple[ProjectedState, jax.Array]:
        projections = state.projections
        rgo, rgo_state = _as_rgo(apply_fn, state.params, projections, batch[0], task.id)
        loss, grads = loss_and_grads(
            apply_fn, losses, state.params, batch, task.id, rgo_state if fused else None
        )

        def project(name: str, leaf: Any) -> jax.Array:
            if isinstance(leaf, rgo_jax.ProjectedGradient):
                return leaf.gradient
            is_factor = name in projections and len(projections[name]) == 1
            return leaf * projections[name][0, 0] if is_factor else leaf

        def project_all(tree: Any) -> Any:
            names = [name for name, _, _ in _leaves(state.params)]
            leaves = jax.tree.leaves(tree, is_leaf=_is_projected)
            projected = [project(name, leaf) for name, leaf in zip(names, leaves, strict=True)]
            return jax.tree.unflatten(jax.tree.structure(state.params), projected)

        if fused:
            updates, opt_state = tx.update(project_all(grads), state.opt_state, state.params)
        else:
            updates, opt_state = tx.update(grads, state.opt_state, state.params)
            updates = project_all(rgo.update(updates, rgo_state)[0])
        params = optax.apply_updates(state.params, updates)
        return state._replace(params=params, opt_state=opt_state, steps=state.steps + 1), loss

    def end_task(state: ProjectedState, task: Task) -> ProjectedState:
        memory = fold(state.memory, state.params, task)
        return state._replace(memory=memory, projections=matrices(memory))

    def apply(state: ProjectedState, x: jax.Array, task_id: jax.Array) -> jax.Array:
        return apply_fn(state.params, x, task_id)

    return Method(init, start_task, step, end_task, apply, memory=lambda state: state.memory)


def _leaves(params: Any, mask: Any = True) -> list[tuple[str, Any, bool]]:
    """Each parameter's name, itself, and whether the mask keeps it."""
    mask = mask(params) if callable(mask) else mask
    kept = jax.tree.map(lambda keep, below: jax.tree.map(lambda _: keep, below), mask, params)
    flat = _tree.leaves_by_path(params).items()
    return [
        (_tree.path_name(path), leaf, keep)
        for (path, leaf), keep in zip(flat, jax.tree.leaves(kept), strict=True)
    ]


def _is_projected(node: Any) -> bool:
    return isinstance(node, rgo_jax.ProjectedGradient)


def _at_task(apply_fn: Apply, task_id: jax.Array) -> Callable[[Any, jax.Array], jax.Array]:
    return lambda params, x: apply_fn(params, x, task_id)


def _as_rgo(
    apply_fn: Apply,
    params: Any,
    projections: dict[str, jax.Array],
    x: jax.Array,
    task_id: jax.Array,
) -> tuple[optax.GradientTransformation, Any]:
    """RGO for the kernels, and a state of it with projections of our own."""
    names = [name for name, _, _ in _leaves(params)]
    # A projection of one number is a factor.
    kernels = [name for name in names if name in projections and len(projections[name]) > 1]
    others = {name: rgo_jax.ProjectionSpec() for name in names if name not in kernels}
    largest = max(map(len, projections.values()), default=1)
    specs = rgo_jax.infer_specs(
        _at_task(apply_fn, task_id), params, x, specs=others, max_fan_in=largest
    )
    rgo = rgo_jax.scale_by_rgo(specs=specs, max_fan_in=largest, normalize=False)
    is_kernel = jax.tree.unflatten(jax.tree.structure(params), [name in kernels for name in names])
    masked = optax.masked(rgo, is_kernel)
    fresh = masked.init(params)
    projection = _tree.map_with_path(
        lambda path, _: projections[_tree.path_name(path)], fresh.inner_state.projection
    )
    inner_state = fresh.inner_state._replace(projection=projection)
    return masked, fresh._replace(inner_state=inner_state)
