"""Combinations of a gradient's columns without the gradient.

`rgo_jax.consolidate` needs of a gradient ``g [d, m]`` only ``g C``, with few columns ``C [m, k]``.
That is the gradient in ``U [d, k]`` at zero when ``W + U C'`` stands for ``W``. A layer that knows
its input ``X [rows, d]`` and the gradient ``D [rows, m]`` of its output computes ``X' (D C)``, and
``g = X' D`` is never formed. A parameter is recognised as `rgo_jax._leaf` has it; what is not takes
the general way, from ``g``.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rgo_jax import _gradients, _tree
from rgo_jax._geometry import Geometry
from rgo_jax._state import Projection

_HIGHEST = jax.lax.Precision.HIGHEST


class Combination(NamedTuple):
    """What is asked of a parameter's gradient.

    Attributes:
      probe: ``U [d, k]``, which gets the gradient ``g C``.
      weights: ``C [m, k]``.
      geometry: the parameter's.
    """

    probe: jax.Array
    weights: jax.Array
    geometry: Geometry


def column_products(
    output_fn: Callable[[Any], jax.Array],
    params: Any,
    projections: dict[_tree.Path, Projection],
    weights: dict[_tree.Path, jax.Array],
) -> dict[_tree.Path, jax.Array]:
    """``g C`` of the gradient of a scalar output, for each parameter under a projection.

    Args:
      output_fn: ``(params) -> scalar``.
      params: where.
      projections: by the paths of their parameters.
      weights: ``C [m, k]``, by path, in the dtype that ``g C`` is to have.

    Returns:
      ``[d, k]`` by path.
    """

    def output(probes: list[jax.Array]) -> jax.Array:
        wanted = {
            path: Combination(probe, weights[path], projection.geometry)
            for (path, projection), probe in zip(projections.items(), probes, strict=True)
        }
        with _gradients.alias_scope(params, wanted, combine) as aliases:
            return output_fn(aliases)

    probes = [
        jnp.zeros((projection.geometry.dim, weights[path].shape[1]), weights[path].dtype)
        for path, projection in projections.items()
    ]
    return dict(zip(projections, jax.grad(output)(probes), strict=True))


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _combine(
    parameter: jax.Array, probe: jax.Array, weights: jax.Array, geometry: Geometry
) -> jax.Array:
    del probe, weights, geometry
    return parameter


def _combine_fwd(
    parameter: jax.Array, probe: jax.Array, weights: jax.Array, geometry: Geometry
) -> tuple[jax.Array, jax.Array]:
    del probe, geometry
    return parameter, weights


def _combine_bwd(
    geometry: Geometry, weights: jax.Array, g: jax.Array
) -> tuple[jax.Array, jax.Array, None]:
    matrix = geometry.to_matrix(g).astype(weights.dtype)
    return g, jnp.matmul(matrix, weights, precision=_HIGHEST), None


_combine.defvjp(_combine_fwd, _combine_bwd)


def combine(parameter: jax.Array, combination: Combination) -> jax.Array:
    """The parameter itself, whose gradient gives the probe its own."""
    return _combine(parameter, *combination)


def matmul(
    x: jax.Array, kernel: jax.Array, combination: Combination, precision: jax.lax.PrecisionLike
) -> jax.Array:
    """``x @ kernel`` in the dtype of ``x``, whose gradient gives the probe ``X' (D C)``."""

    @jax.custom_vjp
    def product(x: jax.Array, kernel: jax.Array, probe: jax.Array, weights: jax.Array) -> jax.Array:
        del probe, weights
        return jnp.matmul(x, kernel.astype(x.dtype), precision=precision)

    def forward(
        x: jax.Array, kernel: jax.Array, probe: jax.Array, weights: jax.Array
    ) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        return product(x, kernel, probe, weights), (x, kernel, probe, weights)

    def backward(
        residuals: tuple[jax.Array, ...], g: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array, None]:
        x, kernel, probe, weights = residuals
        rows = x.reshape(-1, x.shape[-1]).astype(weights.dtype)
        outputs = g.reshape(-1, g.shape[-1]).astype(weights.dtype)

        def products(kernel: jax.Array, probe: jax.Array) -> tuple[jax.Array, jax.Array]:
            of = partial(jnp.matmul, rows, precision=_HIGHEST)
            return of(kernel.astype(rows.dtype)), of(probe)

        # JAX's own transpose knows how to sum over devices that the rows are spread over. The
        # kernel's own gradient is for derivatives of what is computed here; XLA leaves it out.
        of_kernel, of_probe = jax.linear_transpose(products, kernel, probe)(
            (outputs, jnp.matmul(outputs, weights, precision=_HIGHEST))
        )
        # An output with input gradients in it reaches the probe through here.
        combination = Combination(probe, weights, Geometry(kernel.shape, (0,)))
        right = combine(kernel, combination).astype(x.dtype)
        gradient_x = jnp.matmul(g, right.T, precision=precision)
        return gradient_x.astype(x.dtype), of_kernel, of_probe, None

    product.defvjp(forward, backward)
    return product(x, kernel, combination.probe, combination.weights)
