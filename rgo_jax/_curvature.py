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
) -> jax.Array:
    """The scalar whose gradient in the parameters `rgo_jax.rls_update` folds in.

    It is ``mean_i sum_k sqrt(h_ik) f_ik``: the outputs ``f`` of the network, weighted by the
    square root of the diagonal of the loss's Hessian in the outputs. The weights are constants:
    no gradient flows through them.

    * ``"softmax_cross_entropy"`` (integer labels): ``h = a (1 - a)`` at the label's output, with
      ``a`` the softmax, and 0 at the others. The paper's choice.
    * ``"sigmoid_binary_cross_entropy"``: ``h = a (1 - a)`` at every output, with ``a`` the sigmoid.
    * ``"squared_error"`` (`optax.squared_error`, without the factor 1/2): ``h = 2``.
    * a function of your own, from one example's ``(outputs, target)`` to its scalar loss: ``h`` is
      the diagonal of its Hessian by automatic differentiation, and 0 where that is negative.

    For full control pass `rgo_jax.rls_update` the gradient of any scalar you like: all it
    assumes is that ``v v'`` of the gradient's column sums ``v`` approximates the curvature.

    Args:
      outputs: ``[..., num_outputs]`` floating point: logits, or predictions for squared error.
        All leading axes count as examples.
      targets: integer labels ``[...]`` for softmax; ``[..., num_outputs]`` for sigmoid and squared
        error; for a function of your own, a tree of arrays with the leading axes of ``outputs``.
      loss: the loss that was trained with: one of the names above or a function.

    Returns:
      A scalar in the dtype of ``outputs``.

    Raises:
      ValueError: ``outputs`` or ``targets`` of the wrong shape, an unknown name, or a function that
        does not return a scalar.
      TypeError: softmax labels that are not integers.

    Example:
      >>> import jax, jax.numpy as jnp, rgo_jax
      >>> logits, labels = jnp.array([[0.0, 0.0]]), jnp.array([1])
      >>> print(jax.grad(rgo_jax.curvature_output)(logits, labels))  # sqrt(0.5 * 0.5)
      [[0.  0.5]]

    References:
      Algorithm 1, line 9, and appendix B.1. https://arxiv.org/abs/2201.12522
    """
    if outputs.ndim == 0:
        raise ValueError("outputs has shape (); expected [..., num_outputs].")
    if not jnp.issubdtype(outputs.dtype, jnp.floating):
        raise TypeError(f"outputs has dtype {outputs.dtype}; expected floating point.")
    constants = jax.lax.stop_gradient(outputs)
    if callable(loss):
        hessian = _hessian_diagonal(loss, constants, targets)
    elif loss in _HESSIANS:
        hessian = _HESSIANS[loss](constants, targets)
    else:
        known = ", ".join(repr(name) for name in _HESSIANS)
        raise ValueError(f"loss is {loss!r}; expected one of {known}, or a function.")
    weights = jax.lax.stop_gradient(jnp.sqrt(hessian).astype(outputs.dtype))
    # Logits that mask classes of other tasks are -inf, and have no weight.
    weighted = weights * jnp.where(weights > 0, outputs, 0)
    return jnp.mean(jnp.sum(weighted, axis=-1))


def _softmax_cross_entropy(outputs: jax.Array, labels: jax.Array) -> jax.Array:
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(
            f"targets has dtype {labels.dtype}; softmax_cross_entropy expects integer labels. For "
            "one-hot labels pass jnp.argmax(targets, axis=-1)."
        )
    if labels.shape != outputs.shape[:-1]:
        raise ValueError(
            f"targets has shape {labels.shape} and outputs {outputs.shape}; softmax_cross_entropy "
            f"expects labels of shape {outputs.shape[:-1]}, one for each row of logits."
        )
    chosen = jax.nn.one_hot(labels, outputs.shape[-1], dtype=outputs.dtype)
    # 1 - a as the sum of the other probabilities: exact where a rounds to 1, and never negative.
    probabilities = jax.nn.softmax(outputs)
    others = jnp.sum(probabilities * (1 - chosen), axis=-1, keepdims=True)
    return chosen * probabilities * others


def _sigmoid_binary_cross_entropy(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    _check_same_shape(outputs, targets, "sigmoid_binary_cross_entropy")
    return jax.nn.sigmoid(outputs) * jax.nn.sigmoid(-outputs)


def _squared_error(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    _check_same_shape(outputs, targets, "squared_error")
    return jnp.full_like(outputs, 2.0)


_HESSIANS: dict[str, LossFn] = {
    "softmax_cross_entropy": _softmax_cross_entropy,
    "sigmoid_binary_cross_entropy": _sigmoid_binary_cross_entropy,
    "squared_error": _squared_error,
}


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
