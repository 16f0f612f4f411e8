"""Which axes of a parameter are fan-in: the one file that knows about axes.

RGO sees every parameter leaf as a matrix ``W [d, m]``: ``d`` is the fan-in and ``m`` the number of
feature extractors. Fan-in axes lead, as they do in Flax, Linen and NNX alike:
Dense ``[in, out]``, Conv ``[kh, kw, cin, cout]``, attention ``[features, heads, head_dim]``. Unless
a `FanIn` says otherwise they are all axes but the last, and a vector (a bias) is one column,
``[n, 1]``. Source: appendix B.2 of the RGO paper.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rgo_jax import _tree


@dataclasses.dataclass(frozen=True)
class FanIn:
    """How `rgo_jax.scale_by_rgo` sees one parameter, where the default does not fit.

    Attributes:
      num_axes: how many leading axes are fan-in. None: all but the last, and the only one of a
        vector. The query, key and value kernels of attention, ``[features, heads, head_dim]``, need
        1, and their biases, ``[heads, head_dim]``, 2.
      blocks: divides the fan-in into this many equal runs, each with a P and a trace rule of its
        own, as if it were a layer of its own: ``d * d / blocks`` numbers. Layers stacked along a
        leading axis, as `flax.linen.scan` stacks them, take as many blocks as there are layers.
      diagonal: keeps only the diagonal of P, ``d`` numbers under one trace rule: for embeddings,
        whose fan-in is the vocabulary.

    Raises:
      ValueError: a number below 1, or both blocks and diagonal.
      TypeError: a number that is no integer.

    Example:
      >>> import jax.numpy as jnp, rgo_jax
      >>> params = {"embed": jnp.zeros((50_000, 8)), "query": jnp.zeros((8, 2, 4))}
      >>> tx = rgo_jax.scale_by_rgo(
      ...     fan_in={
      ...         "embed": rgo_jax.FanIn(diagonal=True),
      ...         "query": rgo_jax.FanIn(num_axes=1),
      ...     }
      ... )
      >>> {name: p.shape for name, p in tx.init(params).projection.items()}
      {'embed': (50000,), 'query': (8, 8)}
    """

    num_axes: int | None = None
    blocks: int = 1
    diagonal: bool = False

    def __post_init__(self) -> None:
        for name in ("num_axes", "blocks"):
            value = getattr(self, name)
            if value is None and name == "num_axes":
                continue
            if isinstance(value, bool) or not isinstance(value, int | np.integer):
                raise TypeError(f"{name} is {value!r}; expected an integer.")
            if value < 1:
                raise ValueError(f"{name} is {value}; expected 1 or more.")
        if self.diagonal and self.blocks > 1:
            raise ValueError(f"blocks is {self.blocks} and diagonal is True; expected one of them.")


def projection_shape(path: _tree.Path, leaf: Any, spec: FanIn) -> tuple[int, ...]:
    """The shape of a leaf's projection: ``[d, d]``, ``[blocks, b, b]`` or ``[d]``.

    Raises:
      ValueError: the leaf has no axes or no numbers, or the spec does not fit it.
      TypeError: the leaf is not real floating point.
    """
    name, shape = _tree.path_name(path), jnp.shape(leaf)
    remedy = "Exclude it: optax.masked(rgo_jax.scale_by_rgo(), mask)."
    if not shape:
        raise ValueError(
            f"Parameter {name!r} has shape (): RGO projects the fan-in axes of a parameter and a "
            f"scalar has none. {remedy}"
        )
    if not math.prod(shape):
        raise ValueError(
            f"Parameter {name!r} has shape {shape}: it holds no numbers to project. {remedy}"
        )
    dtype = jnp.result_type(leaf)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(
            f"Parameter {name!r} has dtype {dtype}: RGO projects real floating-point parameters "
            f"only. {remedy}"
        )
    num_axes = spec.num_axes or max(len(shape) - 1, 1)
    if num_axes > len(shape):
        raise ValueError(
            f"Parameter {name!r} has shape {shape}, but its FanIn says num_axes={num_axes}; "
            f"expected at most {len(shape)}."
        )
    d = math.prod(shape[:num_axes])
    if d % spec.blocks:
        raise ValueError(
            f"Parameter {name!r} has fan-in {d}, but its FanIn says blocks={spec.blocks}; expected "
            "a divisor."
        )
    if spec.diagonal:
        return (d,)
    return (d, d) if spec.blocks == 1 else (spec.blocks, d // spec.blocks, d // spec.blocks)


def specs_by_path(fan_in: Any, params: Any) -> dict[_tree.Path, FanIn]:
    """The `FanIn` of every leaf of ``params``, from a tree that names those that need one.

    A spec holds for all leaves below its place in the tree.

    Raises:
      ValueError: a spec that is none, or one for which there is no parameter.
    """
    for path, spec in _tree.leaves_by_path(fan_in, FanIn).items():
        if not isinstance(spec, FanIn):
            raise ValueError(
                f"fan_in has {spec!r} at {_tree.path_name(path)!r}; expected a rgo_jax.FanIn. "
                "Leave out the parameters for which the default is right."
            )
    found = _tree.given_by_path(fan_in, params, FanIn, "fan_in")
    return {path: found.get(path, FanIn()) for path in _tree.leaves_by_path(params)}


def is_fan_in(shape: tuple[int, ...], d: int) -> bool:
    """Whether ``d`` is the product of some leading axes, so that a leaf is a ``[d, m]`` matrix."""
    return any(math.prod(shape[:k]) == d for k in range(1, len(shape) + 1))


def to_matrix(leaf: jax.Array, d: int) -> jax.Array:
    """A leaf as its ``[d, m]`` matrix; ``matrix.reshape(leaf.shape)`` is the way back."""
    return leaf.reshape(d, leaf.size // d)
