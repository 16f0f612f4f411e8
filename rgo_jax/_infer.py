"""``infer_specs``: how a model's parameters are laid out, read from what it computes."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp

from rgo_jax import _geometry, _trace, _tree
from rgo_jax._geometry import ProjectionSpec
from rgo_jax._transform import DEFAULT_MAX_FAN_IN
from rgo_jax._uses import Use


def infer_specs(
    fn: Callable[..., Any],
    params: Any,
    *args: Any,
    specs: Any = None,
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
    not use, or uses inside a `jax.lax.while_loop` or a `jax.shard_map`, is left to the default.

    Args:
      fn: ``(params, *args) -> outputs``, the forward pass.
      params: a tree of parameters, or of shapes from `jax.eval_shape`.
      *args: what ``fn`` takes beside, arrays or shapes: a batch of inputs. All data must come in
        here; what ``fn`` takes from elsewhere counts as constant.
      specs: those that you choose yourself, as for `scale_by_rgo`; they are passed on.
      max_fan_in: above it, ``diagonal``: d numbers in place of d * d.
      diagonal_vectors: whether biases and scales are diagonals. In a transformer the P of a bias
        takes as much memory as that of a kernel, for a single column.

    Returns:
      A tree for ``specs`` of `rgo_jax.rgo`, `rgo_jax.scale_by_rgo` and
      `rgo_jax.projection_memory`: like ``params``, with None where the default is right.

    Raises:
      ValueError: a parameter is used with different fan-in in different places and is not in
        ``specs``; or there are no args.

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
    chosen = _geometry.by_path(specs, params)
    found = _trace.find_uses(fn, params, args, evaluate=False)
    uses = {
        path: [use for use, _ in found.get(number, [])]
        for number, path in enumerate(_tree.leaves_by_path(params))
    }

    def spec(path: _tree.Path, leaf: Any) -> ProjectionSpec | None:
        if path in chosen:
            return chosen[path]
        if not jnp.shape(leaf):  # RGO refuses scalars, with the remedy.
            return None
        return _spec(path, jnp.shape(leaf), uses[path], max_fan_in, diagonal_vectors)

    return _tree.map_with_path(spec, params)


def _spec(
    path: _tree.Path,
    shape: tuple[int, ...],
    uses: Sequence[Use],
    max_fan_in: int,
    diagonal_vectors: bool,
) -> ProjectionSpec | None:
    # A table that is the head too is a table: as a kernel its fan-in, the features, would have one
    # P for all entries, of which each task looks up its own.
    for kind in ("lookup", "kernel", "vector"):
        layouts = sorted({(use.blocks, use.fan_in) for use in uses if use.kind == kind})
        if layouts:
            break
    else:
        return None
    if len(layouts) > 1:
        described = " and ".join(map(_described, layouts))
        raise ValueError(
            f"Parameter {_tree.path_name(path)!r} with shape {shape} is used with fan-in "
            f"{described}; expected one. Choose: specs={{{_tree.path_name(path)!r}: "
            "rgo_jax.ProjectionSpec(axes=...)}."
        )
    ((stacked, axes),) = layouts
    blocks = math.prod(shape[axis] for axis in stacked)
    every = (*stacked, *axes)
    fan_in = math.prod(shape[axis] for axis in axes)
    name = _tree.path_name(path[-1:])
    is_table = len(axes) > 1 and name not in _geometry.VECTORS
    is_cheap = (
        kind == "lookup"
        or fan_in > max_fan_in
        or (kind == "vector" and (diagonal_vectors or is_table))
    )
    if is_cheap:
        return ProjectionSpec(axes=every, diagonal=True)
    if blocks == 1 and _is_default(path, shape, every):
        return None
    return ProjectionSpec(axes=every, blocks=blocks)


def _described(layout: tuple[tuple[int, ...], tuple[int, ...]]) -> str:
    blocks, fan_in = layout
    return f"axes {fan_in}" + (f" for each entry of {blocks}" if blocks else "")


def _is_default(path: _tree.Path, shape: tuple[int, ...], axes: tuple[int, ...]) -> bool:
    try:
        return _geometry.default_axes(path, shape) == axes
    except ValueError:  # Without a spec it would be refused.
        return False
