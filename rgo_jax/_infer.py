"""Specifications read from the model: how its program uses each parameter."""

import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from rgo_jax import _geometry, _trace, _tree
from rgo_jax._geometry import ProjectionSpec
from rgo_jax._uses import Use


def infer_specs(
    fn: Callable[..., Any],
    params: Any,
    *args: Any,
    specs: Any = None,
    max_vector: int = 1024,
) -> dict[str, ProjectionSpec]:
    """What the fan-in of each parameter is, from how the model uses it.

    Traces ``fn(params, *args)`` and follows each parameter to where it meets the data:

    * A kernel, of a matrix product or of a convolution, is contracted with the data: ``axes`` are
      the contracted ones. Where one entry of another axis is used at a time, as of stacked layers
      or experts, this axis comes first, and there are as many ``blocks`` as it has entries.
    * A table, such as an embedding, is looked up: the axis of its entries, ``diagonal``, also if
      it is the output layer too.
    * A vector, such as a bias or a scale, is added or multiplied: all axes; ``diagonal`` if it has
      more than ``max_vector`` numbers, stacked ones also across the layers.

    It follows transposes, reshapes, slices, casts, masks and normalisations of weights, `jax.jit`,
    `jax.checkpoint`, custom derivatives, `jax.lax.cond` and `jax.lax.scan`. It follows nothing into
    `jax.lax.while_loop` and `jax.shard_map`, nor two parameters multiplied by each other.

    Args:
      fn: ``(params, *args) -> anything``, the model.
      params: a tree of parameters, or of anything with a shape and a dtype: the result of
        `jax.eval_shape` on an initialiser does.
      *args: the model's inputs, or their shapes (`jax.ShapeDtypeStruct`). Data must come in here:
        what ``fn`` takes from elsewhere counts as constant.
      specs: those that you choose yourself, as for `rgo_jax.scale_by_rgo`; they are passed on.
      max_vector: what is added or multiplied keeps a full P up to this size. 0 for none.

    Returns:
      A `ProjectionSpec` under each parameter's path, such as ``"Dense_0/kernel"``, to be passed on
      as ``specs``. Parameters that are not used, or not as above, are missing: they get the
      default.

    Raises:
      ValueError: a parameter is used with different fan-in; or there are no args.

    Example:
      >>> import flax.linen as nn, jax, jax.numpy as jnp, rgo_jax
      >>> model, x = nn.MultiHeadAttention(num_heads=2), jnp.ones((1, 5, 8))
      >>> params = jax.eval_shape(model.init, jax.random.key(0), x)["params"]
      >>> specs = rgo_jax.infer_specs(lambda p, x: model.apply({"params": p}, x), params, x)
      >>> params["query"]["kernel"].shape, specs["query/kernel"].axes
      ((8, 2, 4), (0,))
      >>> params["out"]["kernel"].shape, specs["out/kernel"].axes
      ((2, 4, 8), (0, 1))
      >>> tx = rgo_jax.rgo(0.1, specs=specs)
    """
    if max_vector < 0:
        raise ValueError(f"max_vector is {max_vector}; expected 0 or more.")
    uses = by_leaf(_trace.find_uses(fn, params, args, evaluate=False))
    result = {
        _tree.path_name(path): spec for path, spec in _geometry.by_path(specs, params).items()
    }
    for n, (path, leaf) in enumerate(_tree.leaves_by_path(params).items()):
        name = _tree.path_name(path)
        known = decisive([use for use, _ in uses.get(n, [])])
        if name in result or not known or not jnp.shape(leaf):
            continue
        if len({(use.blocks, use.fan_in) for use in known}) > 1:
            every = " and ".join(sorted({_describe(use) for use in known}))
            raise ValueError(
                f"Parameter {name!r} of shape {jnp.shape(leaf)} is used with fan-in {every}; "
                f"expected one. Choose: specs={{{name!r}: rgo_jax.ProjectionSpec(axes=...)}}."
            )
        result[name] = _spec(known[0], max_vector)
    return result


def by_leaf(found: list[_trace.Found]) -> dict[int, list[_trace.Found]]:
    """Uses by their parameter's place among the leaves."""
    result: dict[int, list[_trace.Found]] = {}
    for one in found:
        result.setdefault(one.use.view.leaf, []).append(one)
    return result


def decisive(uses: list[Use]) -> list[Use]:
    """Those of a parameter that decide about its P.

    A table is a table even if it is the output layer too: its fan-in as a kernel, the features,
    would have one P for all entries, of which each task looks up its own.
    """
    for kind in ("lookup", "kernel", "vector"):
        if known := [use for use in uses if use.kind == kind]:
            return known
    return []


def _spec(use: Use, max_vector: int) -> ProjectionSpec:
    axes, shape = (*use.blocks, *use.fan_in), use.view.shape
    size = math.prod(shape[axis] for axis in use.fan_in)
    if use.kind == "lookup" or (use.kind == "vector" and size > max_vector):
        return ProjectionSpec(axes, diagonal=True)
    return ProjectionSpec(axes, blocks=math.prod(shape[axis] for axis in use.blocks))


def _describe(use: Use) -> str:
    blocks = f" for each entry of {use.blocks}" if use.blocks else ""
    return f"axes {use.fan_in}{blocks}"
