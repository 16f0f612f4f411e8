"""``infer_specs``: how a model's parameters are laid out, read from what it computes."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from rgo_jax import _geometry, _tree, _uses
from rgo_jax._geometry import ProjectionSpec
from rgo_jax._transform import DEFAULT_MAX_FAN_IN


def infer_specs(
    fn: Callable[..., Any],
    params: Any,
    *args: Any,
    max_fan_in: int = DEFAULT_MAX_FAN_IN,
    diagonal_vectors: bool = False,
) -> Any:
    """The `ProjectionSpec` of each parameter that needs one, from a trace of the model.

    Traces ``fn`` once, computes nothing, and follows each parameter to where it meets data:

    * contracted with it, as by dense layers, attention, convolutions and low-rank adapters: the
      contracted axes are fan-in;
    * indexed by it, as an embedding: a diagonal over the indexed axis, also where the same
      parameter is the head;
    * added or multiplied: all axes, as a bias or a scale; of more than one axis but for those
      called ``bias`` or ``scale``, as positions, a diagonal.

    Axes that number layers, as `flax.linen.scan` stacks them, become ``blocks``. What ``fn`` does
    not use is left to the default.

    Args:
      fn: ``(params, *args) -> outputs``, the forward pass.
      params: a tree of parameters, or of shapes from `jax.eval_shape`.
      *args: what ``fn`` takes beside, arrays or shapes: a batch of inputs.
      max_fan_in: above it, ``diagonal``: d numbers in place of d * d.
      diagonal_vectors: whether biases and scales are diagonals. In a transformer the P of a bias
        takes as much memory as that of a kernel, for a single column.

    Returns:
      A tree for ``specs`` of `rgo_jax.rgo`, `rgo_jax.scale_by_rgo` and
      `rgo_jax.projection_memory`: like ``params``, with None where the default is right.

    Raises:
      ValueError: a parameter is contracted over different axes in different places.

    Example:
      >>> import flax.linen as nn, jax, jax.numpy as jnp, rgo_jax
      >>> model = nn.MultiHeadDotProductAttention(num_heads=2)
      >>> x = jnp.ones((1, 5, 8))
      >>> params = model.init(jax.random.key(0), x)["params"]
      >>> specs = rgo_jax.infer_specs(lambda p, x: model.apply({"params": p}, x), params, x)
      >>> specs["query"]["kernel"].axes, specs["out"]["kernel"]  # the last is by default right
      ((0,), None)
      >>> tx = rgo_jax.rgo(0.1, specs=specs)
      >>> tx.init(params)[0].projection["query"]["kernel"].shape
      (8, 8)
    """
    leaves = _tree.leaves_by_path(params)
    structure = jax.tree.structure(params)

    def on_leaves(leaves: Sequence[Any], *args: Any) -> Any:
        return fn(jax.tree.unflatten(structure, leaves), *args)

    found = _uses.find(on_leaves, list(leaves.values()), *args)
    uses = iter(found)

    def spec(path: _tree.Path, leaf: Any) -> ProjectionSpec | None:
        return _spec(path, jnp.shape(leaf), next(uses), max_fan_in, diagonal_vectors)

    return _tree.map_with_path(spec, params)


def _spec(
    path: _tree.Path,
    shape: tuple[int, ...],
    uses: Sequence[_uses.Use],
    max_fan_in: int,
    diagonal_vectors: bool,
) -> ProjectionSpec | None:
    by_kind: dict[str, set[tuple[Any, Any]]] = {}
    for use in uses:
        by_kind.setdefault(use.kind, set()).add((use.axes, use.stacked))
    for kind in ("looked up", "contracted", "elementwise"):
        layouts = by_kind.get(kind)
        if layouts:
            break
    else:
        return None
    if len(layouts) > 1:
        first, second, *_ = sorted(axes for axes, _ in layouts)
        raise ValueError(
            f"Parameter {_tree.path_name(path)!r} with shape {shape} is {kind} over axes {first} "
            f"and over axes {second}. Which are fan-in? Say so in specs, with "
            "rgo_jax.ProjectionSpec(axes=...)."
        )
    ((axes, stacked),) = layouts
    blocks = math.prod(shape[axis] for axis in stacked)
    every = (*stacked, *axes)
    fan_in = math.prod(shape[axis] for axis in axes)
    name = _tree.path_name(path[-1:])
    is_table = len(axes) > 1 and name not in _geometry.VECTORS
    is_cheap = (
        kind == "looked up"
        or fan_in > max_fan_in
        or (kind == "elementwise" and (diagonal_vectors or is_table))
    )
    if is_cheap:
        return ProjectionSpec(axes=every, diagonal=True)
    if blocks == 1 and _is_default(path, shape, every):
        return None
    return ProjectionSpec(axes=every, blocks=blocks)


def _is_default(path: _tree.Path, shape: tuple[int, ...], axes: tuple[int, ...]) -> bool:
    try:
        return _geometry.default_axes(path, shape) == axes
    except ValueError:  # Without a spec it would be refused.
        return False
