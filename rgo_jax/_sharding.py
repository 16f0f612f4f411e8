"""How an optimizer state is laid out on several devices."""

from typing import Any

import jax
import optax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from rgo_jax import _state, _tree


def projection_sharding(opt_state: optax.OptState, mesh: Mesh, axis: str) -> Any:
    """Shardings that spread the projections over devices, by rows.

    Each device along a mesh axis holds its share of the rows of every ``P [d, d]`` (of the blocks
    of ``P [blocks, b, b]``), and under `jax.jit` computes with it where it lies. At the end of a
    task devices send each other the vectors folded in and, once, their shares for a transposition;
    none ever holds a whole P. In training P stays where it is with fused
    layers (`rgo_jax.linen.Dense`) and a mesh axis of its own; along an axis that the examples are
    spread over as well, XLA gathers P for each layer and step.

    Args:
      opt_state: the state of any optax transform that contains `rgo_jax.scale_by_rgo`; its shapes
        (`jax.eval_shape`) will do.
      mesh: the devices; its axis of type `jax.sharding.AxisType.Auto`.
      axis: the mesh axis to spread over.

    Returns:
      A tree of `jax.sharding.NamedSharding` for ``opt_state``, as `jax.device_put` and the
      ``out_shardings`` of `jax.jit` take it. Replicated is what is no projection, and any P whose
      first axis the devices do not divide.

    Raises:
      ValueError: no such axis in the mesh, or one of another type; no `rgo_jax.RgoState` in
        ``opt_state``.

    Example:
      >>> import jax, jax.numpy as jnp, rgo_jax
      >>> mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
      >>> params, tx = {"kernel": jnp.zeros((4, 2))}, rgo_jax.rgo(0.1, momentum=0.9)
      >>> shapes = jax.eval_shape(tx.init, params)
      >>> shardings = rgo_jax.projection_sharding(shapes, mesh, "data")
      >>> opt_state = jax.jit(tx.init, out_shardings=shardings)(params)
      >>> tuple(opt_state[0].projection["kernel"].sharding.spec)
      ('data', None)
    """
    if axis not in mesh.shape:
        names = ", ".join(repr(name) for name in mesh.shape)
        raise ValueError(f"axis is {axis!r}, but the mesh has the axes {names}.")
    axis_type = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))[axis]
    if axis_type != AxisType.Auto:
        raise ValueError(
            f"The mesh axis {axis!r} is of type {axis_type}, under which the sharding of each "
            "product has to be spelled out. Make the mesh with jax.make_mesh(..., "
            "axis_types=(AxisType.Auto,) * axes)."
        )
    replicated: Any = NamedSharding(mesh, PartitionSpec())

    def by_rows(projection: Any) -> Any:
        if projection.shape[0] % mesh.shape[axis]:
            return replicated
        spec = PartitionSpec(axis, *[None] * (len(projection.shape) - 1))
        return NamedSharding(mesh, spec)

    opt_state = _tree.unboxed(opt_state)
    shardings = jax.tree.map(lambda _: replicated, opt_state)
    states = zip(_state.find_states(opt_state), _state.find_states(shardings), strict=True)
    return _state.replace_states(
        shardings,
        [own._replace(projection=jax.tree.map(by_rows, state.projection)) for state, own in states],
    )
