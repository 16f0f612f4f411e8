"""A kernel's inputs as rows: what meets the fan-in axes, in the order of the rows of P.

The output of a layer is ``X W``, with ``W [d, m]`` its kernel. Here X is made of the operand that
the kernel is contracted with.
"""

import math

import jax
import jax.numpy as jnp
from jax.extend.core import JaxprEqn

from rgo_jax import _uses
from rgo_jax._uses import Use
from rgo_jax._views import Dim, Piece


def rows(eqn: JaxprEqn, position: int, use: Use, other: jax.Array) -> jax.Array | None:
    """The inputs ``[blocks, rows, d]`` of a kernel; None if they are not known as such.

    They are not where the kernel is computed from the parameter, or is a part of it.

    Args:
      eqn: the contraction.
      position: of the kernel among its operands.
      use: the kernel's.
      other: the other operand.
    """
    view = use.view
    if (
        use.kind != "kernel"
        or not view.exact
        or len(view.stacked) > sum(view.scans)
        or not view.is_whole(use.contracted)
    ):
        return None
    if eqn.primitive.name == "dot_general":
        x = _of_product(eqn, position, use, other)
    else:
        x = _of_convolution(eqn, other)
    return _ordered(x, use)


def _of_product(eqn: JaxprEqn, position: int, use: Use, x: jax.Array) -> jax.Array:
    """``[blocks, rows, d]``, in the kernel's own order."""
    contracted, batch = eqn.params["dimension_numbers"]
    pairs = zip(batch[position], batch[1 - position], strict=True)
    # Where the kernel is broadcast the batch is of examples.
    blocks = [n for kernel, n in pairs if _uses.axes_of(use.view.dims[kernel])]
    ins = list(contracted[1 - position])
    others = [n for n in range(x.ndim) if n not in (*blocks, *ins)]
    shape = [math.prod(x.shape[n] for n in part) for part in (blocks, others, ins)]
    return x.transpose(*blocks, *others, *ins).reshape(shape)


def _of_convolution(eqn: JaxprEqn, x: jax.Array) -> jax.Array:
    """Patches ``[1, rows, d]``, in the kernel's own order; each group of features has its rows."""
    numbers, groups = eqn.params["dimension_numbers"], eqn.params["feature_group_count"]
    kernel_shape = eqn.invars[1].aval.shape  # type: ignore[attr-defined]
    patches = jax.lax.conv_general_dilated_patches(
        x.transpose(numbers.lhs_spec),
        [kernel_shape[dim] for dim in numbers.rhs_spec[2:]],
        eqn.params["window_strides"],
        eqn.params["padding"],
        eqn.params["lhs_dilation"],
        eqn.params["rhs_dilation"],
        precision=jax.lax.Precision.HIGHEST,
    )
    d = patches.shape[1] // groups
    return jnp.moveaxis(patches, 1, -1).reshape(1, patches.size // d, d)


def _ordered(x: jax.Array, use: Use) -> jax.Array:
    """The same in the order of the parameter."""
    blocks, others, d = x.shape
    sizes = [piece.size for piece in (*use.batch, *use.contracted)]
    first = len(use.batch)  # places of the contracted pieces begin after that of the rows
    batch, ins = _places(use.batch, 0), _places(use.contracted, first + 1)
    x = x.reshape(*sizes[:first], others, *sizes[first:])
    x = jnp.flip(x, [place for piece, place in (*batch, *ins) if piece.flipped])
    batch, ins = sorted(batch, key=_key), sorted(ins, key=_key)
    order = [*(place for _, place in batch), first, *(place for _, place in ins)]
    return x.transpose(order).reshape(blocks, others, d)


def _places(pieces: Dim, first: int) -> list[tuple[Piece, int]]:
    return [(piece, first + n) for n, piece in enumerate(pieces)]


def _key(pair: tuple[Piece, int]) -> tuple[int | None, int]:
    """The slowest first."""
    return pair[0].axis, -pair[0].stride
