"""Backward passes that yield projected gradients, for layers that are handed their ``P``.

The gradient of a kernel is ``g = X' D``, with ``X [rows, d]`` the layer's input and ``D [rows, m]``
the gradient of its output. P is symmetric, so ``P g = (X P)' D``: with a batch of 10 and 2048
inputs and outputs 0.1 instead of 17 GFLOP. It is the cheaper way round where rows < m. A
convolution is the same product with patches of the image as rows. Appendix B.2 of the RGO paper.

The projection handed over here is an optimizer state's, or None for none. It gets no gradient. The
trace rule is not applied here: it is `rgo_jax.scale_by_rgo`'s. The projected gradient is computed
in the dtype of P and at Precision.HIGHEST to the end, whatever the layer computes in: rounding
after the projection would fall into protected directions.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from rgo_jax import _geometry, _projection

# What projected gradients are called in a jaxpr, so that `yields_projected` finds them.
_MARK = "rgo_jax.projected"

# Patches of a convolution beyond this many bytes are not worth their memory; where there is no
# projection to save work for, on these platforms only and up to these many.
_MAX_PATCH_BYTES = 2**28
_MAX_PLAIN_PATCH_BYTES = {"cpu": 2**28, "gpu": 2**25}


def yields_projected(jaxpr: Any) -> bool:
    """Whether a gradient is projected anywhere in a traced function.

    The mark is part of what is traced, so a function that was traced before has it too.

    Args:
      jaxpr: of `jax.make_jaxpr`.
    """
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        if equation.params.get("name") == _MARK:
            return True
        inner = jax.tree.leaves(list(equation.params.values()), is_leaf=_is_jaxpr)
        if any(yields_projected(each) for each in inner if _is_jaxpr(each)):
            return True
    return False


def _is_jaxpr(node: Any) -> bool:
    return hasattr(node, "eqns") or hasattr(node, "jaxpr")


@jax.custom_vjp
def _project_gradient(parameter: jax.Array, projection: jax.Array) -> jax.Array:
    del projection
    return parameter


def _project_gradient_fwd(
    parameter: jax.Array, projection: jax.Array
) -> tuple[jax.Array, jax.Array]:
    return parameter, projection


def _project_gradient_bwd(projection: jax.Array, g: jax.Array) -> tuple[jax.Array, None]:
    matrix = _geometry.to_matrix(g, _projection.dim(projection))
    projected = _projection.project(projection, matrix).reshape(g.shape).astype(g.dtype)
    return checkpoint_name(projected, _MARK), None


_project_gradient.defvjp(_project_gradient_fwd, _project_gradient_bwd)


def project_gradient(parameter: jax.Array, projection: jax.Array | None) -> jax.Array:
    """The identity, whose gradient in ``parameter`` is projected: ``P g``.

    Raises:
      ValueError: the projection is not for a parameter of this shape.
    """
    if projection is None:
        return parameter
    d = _projection.dim(projection)
    # A d of 1 is for a bias seen as [1, m], whose input is always 1.
    if d != 1 and not _geometry.is_fan_in(parameter.shape, d):
        raise ValueError(
            f"A layer has a parameter of shape {parameter.shape} and was handed a projection of "
            f"shape {projection.shape}, for leading axes with a product of {d}. Hand it its own; "
            "where layers are stacked and scanned, set FanIn(blocks=layers) and scan the "
            "projections along with the parameters."
        )
    return _project_gradient(parameter, projection)


def hooks(
    linear_map: Callable[..., jax.Array], bias_projection: jax.Array | None
) -> tuple[Callable[..., tuple[Any, Any, Any]], Callable[..., jax.Array]]:
    """What to put in place of ``promote_dtype`` and of the linear map in a layer of Flax.

    Flax keeps the checks, the paddings and the sum with the bias. Casting the kernel moves into the
    linear map, where its gradient can be projected in the parameter's own dtype.

    Args:
      linear_map: as `dot` or `conv`; ``dtype`` is added to its arguments.
      bias_projection: of the bias; or None.

    Returns:
      ``promote_dtype`` of input, kernel and bias or None, which Flax calls first; and the map.
    """
    computed: Any = None

    def promote_dtype(*arrays: Any, dtype: Any = None, **options: Any) -> tuple[Any, Any, Any]:
        nonlocal computed
        del options
        x, kernel, bias = arrays
        computed = dtype or jnp.result_type(*(array for array in arrays if array is not None))
        if not jnp.issubdtype(computed, jnp.inexact):
            raise ValueError(f"dtype is {jnp.dtype(computed)}; expected floating point.")
        if bias is not None:
            bias = project_gradient(bias, bias_projection).astype(computed)
        return x, kernel, bias

    def linear(*args: Any, **options: Any) -> jax.Array:
        return linear_map(*args, dtype=computed, **options)

    return promote_dtype, linear


class Overlay:
    """A layer of Flax as its own function sees it: itself, with some attributes replaced.

    To call Flax's function on this leaves the layer as it is. What is set on an NNX layer would
    become part of the model; a second Linen layer inside the first would be captured and
    intercepted beside it.

    Args:
      layer: the layer.
      **replaced: what to find in place of its attributes.
    """

    def __init__(self, layer: Any, **replaced: Any) -> None:
        self.__dict__.update(replaced)
        self._layer = layer

    def __getattr__(self, name: str) -> Any:
        """What is not replaced."""
        return getattr(self._layer, name)


def dot(
    x: jax.Array,
    kernel: jax.Array,
    projection: jax.Array | None,
    *,
    dtype: Any,
    precision: jax.lax.PrecisionLike = None,
) -> jax.Array:
    """``x @ kernel`` whose gradient in ``kernel`` is projected.

    Args:
      x: ``[..., d]``.
      kernel: ``[d, m]``, a parameter in its own dtype.
      projection: of one of the forms of `rgo_jax._projection`; or None.
      dtype: what the product is computed in.
      precision: of the products that SGD has too.

    Returns:
      ``[..., m]`` in ``dtype``.
    """
    rows = math.prod(x.shape[:-1])
    fits = (
        projection is not None
        and _projection.dim(projection) == kernel.shape[0]
        # Of complex inputs the rows are not those of a real kernel's gradient.
        and not jnp.issubdtype(jnp.result_type(x, dtype), jnp.complexfloating)
    )
    if not fits or rows >= kernel.shape[1]:
        kernel = project_gradient(kernel, projection).astype(dtype)
        return jnp.matmul(x.astype(dtype), kernel, precision=precision)

    @jax.custom_vjp
    def factored(x: jax.Array, kernel: jax.Array, projection: jax.Array) -> jax.Array:
        del projection
        return jnp.matmul(x.astype(dtype), kernel.astype(dtype), precision=precision)

    def forward(
        x: jax.Array, kernel: jax.Array, projection: jax.Array
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array, jax.Array]]:
        return factored(x, kernel, projection), (x, kernel, projection)

    def backward(
        residuals: tuple[jax.Array, jax.Array, jax.Array], g: jax.Array
    ) -> tuple[jax.Array, jax.Array, None]:
        x, kernel, projection = residuals
        inputs = _projection.project_rows(projection, x.reshape(rows, x.shape[-1]))
        outputs = g.reshape(rows, g.shape[-1]).astype(inputs.dtype)

        def product(kernel: jax.Array) -> jax.Array:
            kernel = kernel.astype(inputs.dtype)
            return jnp.matmul(inputs, kernel, precision=jax.lax.Precision.HIGHEST)

        # JAX's own transpose knows how to sum over devices that the rows are spread over.
        (gradient,) = jax.linear_transpose(product, kernel)(outputs)
        # A loss with input gradients in it (a gradient penalty) reaches the kernel through here.
        kernel = project_gradient(kernel, projection)
        gradient_x = jnp.matmul(g, kernel.astype(dtype).T, precision=precision)
        return gradient_x.astype(x.dtype), checkpoint_name(gradient, _MARK), None

    factored.defvjp(forward, backward)
    return factored(x, kernel, projection)


def conv(
    x: jax.Array,
    kernel: jax.Array,
    projection: jax.Array | None,
    *,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int],
    rhs_dilation: Sequence[int],
    feature_group_count: int,
    dimension_numbers: Any,
    dtype: Any,
    precision: jax.lax.PrecisionLike = None,
) -> jax.Array:
    """`jax.lax.conv_general_dilated` whose gradient in ``kernel`` is projected.

    As patches and a matrix product where the projection is cheaper that way; on CPUs, where XLA
    runs the backward pass of a convolution inside a loop on one thread, many times slower than the
    product; and for small batches on GPUs, where under `jax.vmap` over models a convolution becomes
    one of many groups, and the product a batched one.

    Args:
      x: ``[b, *spatial, cin]``.
      kernel: ``[*window, cin / groups, cout]``, a parameter in its own dtype.
      projection: as for `dot`.
      window_strides: as `jax.lax.conv_general_dilated`; the rest likewise.
      padding: as above.
      lhs_dilation: as above.
      rhs_dilation: as above.
      feature_group_count: as above.
      dimension_numbers: as above; channels last.
      dtype: as for `dot`.
      precision: as for `dot`.

    Returns:
      ``[b, *spatial, cout]`` in ``dtype``.
    """
    window = kernel.shape[:-2]
    if projection is not None and _projection.dim(projection) != math.prod(kernel.shape[:-1]):
        # A FanIn of the user's own, which patches do not fit.
        kernel, projection = project_gradient(kernel, projection), None
    if feature_group_count == 1 and all(step == 1 for step in lhs_dilation):
        if isinstance(padding, str):
            spans = [(size - 1) * step + 1 for size, step in zip(window, rhs_dilation, strict=True)]
            padding = jax.lax.padtype_to_pads(x.shape[1:-1], spans, window_strides, padding)
        patch_shape = jax.eval_shape(
            lambda x: _patches(x, window, window_strides, padding, rhs_dilation), x
        ).shape
        rows = math.prod(patch_shape[:-1])
        factored = projection is not None and rows < kernel.shape[-1]
        plain_bytes = _MAX_PLAIN_PATCH_BYTES.get(jax.default_backend(), 0)
        max_bytes = _MAX_PATCH_BYTES if factored else plain_bytes
        if math.prod(patch_shape) * x.dtype.itemsize <= max_bytes:
            patches = _patches(x, window, window_strides, padding, rhs_dilation)
            matrix = kernel.reshape(-1, kernel.shape[-1])
            return dot(patches, matrix, projection, dtype=dtype, precision=precision)
    return jax.lax.conv_general_dilated(
        x.astype(dtype),
        project_gradient(kernel, projection).astype(dtype),
        window_strides,
        padding,
        lhs_dilation=lhs_dilation,
        rhs_dilation=rhs_dilation,
        dimension_numbers=dimension_numbers,
        feature_group_count=feature_group_count,
        precision=precision,
    )


def _patches(
    x: jax.Array,
    window: Sequence[int],
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    dilation: Sequence[int],
) -> jax.Array:
    """``[b, *spatial, prod(window) * cin]``: what each output of a convolution sees.

    By slices, whose backward pass is padding and sums, not scatters.
    """
    # jax.lax.pad takes negative padding, as jax.lax.conv_general_dilated does.
    config = [(0, 0, 0), *((low, high, 0) for low, high in padding), (0, 0, 0)]
    x = jax.lax.pad(x, jnp.zeros((), x.dtype), config)
    sizes = [
        max(0, (length - (size - 1) * step - 1) // stride + 1)
        for length, size, step, stride in zip(x.shape[1:-1], window, dilation, strides, strict=True)
    ]
    if not all(sizes):  # the window is larger than the image
        return jnp.zeros((x.shape[0], *sizes, math.prod(window) * x.shape[-1]), x.dtype)
    pieces = []
    for offset in itertools.product(*map(range, window)):
        start = [o * step for o, step in zip(offset, dilation, strict=True)]
        limit = [
            s + (size - 1) * stride + 1
            for s, size, stride in zip(start, sizes, strides, strict=True)
        ]
        pieces.append(
            jax.lax.slice(x, (0, *start, 0), (x.shape[0], *limit, x.shape[-1]), (1, *strides, 1))
        )
    return jnp.concatenate(pieces, axis=-1)
