"""Line 9 of Algorithm 1: the scalar whose gradient is the Hessian-weighted gradient."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

LossName = Literal["softmax_cross_entropy", "sigmoid_binary_cross_entropy", "squared_error"]
LossFn = Callable[[jax.Array, Any], jax.Array]


def curvature_output(
    outputs: jax.Array,
    targets: Any,
    loss: LossName | LossFn = "softmax_cross_entropy",
    *,
    where: jax.Array | None = None,
    weights: jax.Array | None = None,
) -> jax.Array:
    """The scalar whose gradient in the parameters `rgo_jax.rls_update` folds in.

    It is ``sum_i sum_k sqrt(h_ik) f_ik``: the outputs ``f`` of the network, weighted by the square
    root of the diagonal of the loss's Hessian in the outputs, summed over the examples of a batch.
    The weights are constants: no gradient flows through them.

    * ``"softmax_cross_entropy"`` (integer labels): ``h = a (1 - a)`` at the label's output, with
      ``a`` the softmax, and 0 at the others. The paper's choice.
    * ``"sigmoid_binary_cross_entropy"``: ``h = a (1 - a)`` at every output, with ``a`` the sigmoid.
    * ``"squared_error"`` (`optax.squared_error`, without the factor 1/2): ``h = 2``.
    * a function of your own, from one example's ``(outputs, target)`` to its scalar loss: ``h`` is
      the diagonal of its Hessian by automatic differentiation, and 0 where that is negative.

    For full control pass `rgo_jax.rls_update` the gradient of any scalar you like: all it
    assumes is that ``v v'`` of the mean ``v`` of the gradient's columns approximates the curvature.

    Args:
      outputs: ``[..., num_outputs]`` floating point: logits, or predictions for squared error.
        All leading axes count as examples.
      targets: integer labels ``[...]`` for softmax; ``[..., num_outputs]`` for sigmoid and squared
        error; for a function of your own, a tree of arrays with the leading axes of ``outputs``.
      loss: the loss that was trained with: one of the names above or a function.
      where: bool, broadcastable to ``outputs``: which outputs count, as in
        `optax.softmax_cross_entropy`. The softmax runs over these alone, as if the others were not
        there; an example whose label is not among them counts for nothing. A function of your own
        still sees all outputs.
      weights: real, broadcastable to the leading axes of ``outputs``: how often each example
        counts; 0 for padding, whose outputs and targets may then be anything. None: once.

    Returns:
      A scalar in the dtype of ``outputs``.

    Raises:
      ValueError: ``outputs``, ``targets``, ``where`` or ``weights`` of the wrong shape, a softmax
        over a single output, an unknown name, or a function that does not return a scalar.
      TypeError: softmax labels that are not integers; ``where`` that is not bool; ``weights`` that
        are not real.

    Example:
      >>> import jax, jax.numpy as jnp, rgo_jax
      >>> logits, labels = jnp.array([[0.0, 0.0]]), jnp.array([1])
      >>> print(jax.grad(rgo_jax.curvature_output)(logits, labels))  # sqrt(0.5 * 0.5)
      [[0.  0.5]]

    References:
      Algorithm 1, line 9, and appendix B.1. https://arxiv.org/abs/2201.12522
    """
    if not hasattr(outputs, "dtype"):
        raise TypeError(f"outputs is a {type(outputs).__name__}; expected an array.")
    if not callable(loss) and not hasattr(targets, "dtype"):
        raise TypeError(f"targets is a {type(targets).__name__}; expected an array.")
    if outputs.ndim == 0:
        raise ValueError("outputs has shape (); expected [..., num_outputs].")
    if not jnp.issubdtype(outputs.dtype, jnp.floating):
        raise TypeError(f"outputs has dtype {outputs.dtype}; expected floating point.")
    counts = jnp.ones(outputs.shape, bool)
    mask = None
    if where is not None:
        _check_broadcast("where", where, outputs.shape)
        if jnp.result_type(where) != jnp.bool_:
            raise TypeError(f"where has dtype {jnp.result_type(where)}; expected bool.")
        mask = jnp.broadcast_to(where, outputs.shape)
        counts = mask
    if weights is not None:
        _check_broadcast("weights", weights, outputs.shape[:-1])
        if not jnp.isrealobj(weights):
            raise TypeError(f"weights have dtype {jnp.result_type(weights)}; expected real.")
        weights = jnp.broadcast_to(weights, outputs.shape[:-1])[..., None].astype(outputs.dtype)
        weights = jax.lax.stop_gradient(weights)
        counts &= weights != 0
    constants = jax.lax.stop_gradient(outputs)
    if callable(loss):
        # It sees outputs that do not count, but no padding, which may be anything.
        seen = constants if weights is None else jnp.where(weights != 0, constants, 0)
        hessian = _hessian_diagonal(loss, seen, targets)
    elif loss in _HESSIANS:
        hessian = _HESSIANS[loss](jnp.where(counts, constants, 0), targets, mask)
    else:
        known = ", ".join(repr(name) for name in _HESSIANS)
        raise ValueError(f"loss is {loss!r}; expected one of {known}, or a function.")
    factors = jnp.where(counts, jax.lax.stop_gradient(jnp.sqrt(hessian)), 0).astype(outputs.dtype)
    if weights is not None:
        factors = weights * factors
    # What has no weight may be infinite: logits that mask other tasks' classes.
    return jnp.sum(factors * jnp.where(factors != 0, outputs, 0))


def _softmax_cross_entropy(
    outputs: jax.Array, labels: jax.Array, mask: jax.Array | None
) -> jax.Array:
    num_outputs = outputs.shape[-1]
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(
            f"targets has dtype {labels.dtype}; softmax_cross_entropy expects integer labels. For "
            "one-hot labels pass jnp.argmax(targets, axis=-1)."
        )
    if jnp.shape(labels) != outputs.shape[:-1]:
        raise ValueError(
            f"targets has shape {jnp.shape(labels)} and outputs {outputs.shape}; "
            f"softmax_cross_entropy expects labels of shape {outputs.shape[:-1]}, one for each row "
            "of logits."
        )
    if num_outputs == 1:
        raise ValueError(
            f"outputs has shape {outputs.shape}: the softmax of a single output is always 1, so it "
            "has no curvature and nothing would be protected. For a binary classifier with one "
            "logit pass loss='sigmoid_binary_cross_entropy'."
        )
    # Not in the labels' own dtype: num_outputs may be beyond its range.
    index = jnp.asarray(labels).astype(jnp.int32)[..., None]
    chosen = index == jax.lax.broadcasted_iota(jnp.int32, outputs.shape, outputs.ndim - 1)
    if mask is not None:
        outputs = jnp.where(mask, outputs, -jnp.inf)
        # Where nothing counts, no softmax of nothing.
        outputs = jnp.where(jnp.any(mask, axis=-1, keepdims=True), outputs, 0)
        chosen &= mask
    # 1 - a as the sum of the other probabilities: exact where a rounds to 1, and never negative.
    probabilities = jax.nn.softmax(outputs)
    others = jnp.sum(jnp.where(chosen, 0, probabilities), axis=-1, keepdims=True)
    return jnp.where(chosen, probabilities * others, 0)


def _sigmoid_binary_cross_entropy(
    outputs: jax.Array, targets: jax.Array, mask: jax.Array | None
) -> jax.Array:
    del mask  # outputs are independent
    _check_same_shape(outputs, targets, "sigmoid_binary_cross_entropy")
    return jax.nn.sigmoid(outputs) * jax.nn.sigmoid(-outputs)


def _squared_error(outputs: jax.Array, targets: jax.Array, mask: jax.Array | None) -> jax.Array:
    del mask  # outputs are independent
    _check_same_shape(outputs, targets, "squared_error")
    return jnp.full_like(outputs, 2.0)


_HESSIANS: dict[str, Callable[[jax.Array, jax.Array, jax.Array | None], jax.Array]] = {
    "softmax_cross_entropy": _softmax_cross_entropy,
    "sigmoid_binary_cross_entropy": _sigmoid_binary_cross_entropy,
    "squared_error": _squared_error,
}


def _check_broadcast(name: str, array: jax.typing.ArrayLike, shape: tuple[int, ...]) -> None:
    found = jnp.shape(array)
    fits = len(found) <= len(shape) and all(
        size in (1, expected)
        for size, expected in zip(reversed(found), reversed(shape), strict=False)
    )
    if not fits:
        raise ValueError(f"{name} has shape {found}; expected one that broadcasts to {shape}.")


def _check_same_shape(outputs: jax.Array, targets: jax.Array, name: str) -> None:
    if targets.shape != outputs.shape:
        raise ValueError(
            f"targets has shape {targets.shape} and outputs {outputs.shape}; {name} expects the "
            "same shape for both."
        )


def _hessian_diagonal(loss: LossFn, outputs: jax.Array, targets: Any) -> jax.Array:
    leading = outputs.shape[:-1]
    for target in jax.tree.leaves(targets):
        if jnp.shape(target)[: len(leading)] != leading:
            raise ValueError(
                f"targets has shape {jnp.shape(target)} and outputs {outputs.shape}; expected "
                f"targets to begin with the axes {leading} of the examples."
            )

    def diagonal(output: jax.Array, target: Any) -> jax.Array:
        shape = jax.eval_shape(loss, output, target).shape
        if shape:
            raise ValueError(
                f"loss returns shape {shape} for one example; expected a scalar. Wrap it: "
                "lambda outputs, target: jnp.sum(loss(outputs, target))."
            )
        return jnp.diagonal(jax.hessian(loss)(output, target))

    for _ in leading:
        diagonal = jax.vmap(diagonal)
    # A non-convex loss can curve downwards; there is nothing to protect along such an output.
    return jnp.maximum(diagonal(outputs, targets), 0)
