"""What each layer receives, read from the model's program."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from rgo_jax import _trace, _tree


def layer_inputs(fn: Callable[..., Any], params: Any, *args: Any) -> dict[str, jax.Array]:
    """The inputs that each kernel is multiplied by: X, where the layer computes ``X W``.

    The gradient of the kernel, as ``[d, m]``, is ``X' D``: its columns lie in the span of the rows
    of X. Methods that project by what a layer receives, such as OWM and GPM, need just that.

    Evaluates the program of ``fn(params, *args)``. It is pure, to be used under `jax.jit`,
    `jax.vmap` and `jax.lax.scan`.

    Args:
      fn: ``(params, *args) -> anything``, the model.
      params: a tree of parameters.
      *args: the model's inputs. Data must come in here, as in `rgo_jax.infer_specs`.

    Returns:
      Under the path of each kernel, such as ``"Dense_0/kernel"``, in the order in which the model
      uses them, an array ``[rows, d]``. A row is in the order of the rows of P under the
      specification of `rgo_jax.infer_specs`. Every position of a sequence is a row, every patch of
      an image, every step of a recurrent layer, and every use of a kernel that is used again. Of a
      kernel with blocks, as of stacked layers, ``[blocks, rows, d / blocks]``.

      Missing are: biases and scales, whose input is always 1; embeddings, whose inputs would be
      rows of zeros with a single one; kernels that are computed from a parameter, as by weight
      normalisation; kernels used with different fan-in; what is sliced from a stack by hand; what
      is used inside `jax.lax.cond`; and what `rgo_jax.infer_specs` cannot follow.

    Raises:
      ValueError: there are no args.
      NotImplementedError: the program has a `jax.shard_map`, which cannot be evaluated from its
        trace.

    Example:
      >>> import flax.linen as nn, jax, jax.numpy as jnp, rgo_jax
      >>> model, x = nn.Conv(8, (3, 3)), jnp.ones((2, 6, 6, 4))
      >>> params = model.init(jax.random.key(0), x)["params"]
      >>> inputs = rgo_jax.layer_inputs(lambda p, x: model.apply({"params": p}, x), params, x)
      >>> params["kernel"].shape, {name: rows.shape for name, rows in inputs.items()}
      ((3, 3, 4, 8), {'kernel': (72, 36)})

    References:
      Zeng et al., `Continual learning of context-dependent processing in neural networks
      <https://arxiv.org/abs/1810.01256>`_, 2019; Saha et al., `Gradient Projection Memory
      <https://arxiv.org/abs/2103.09762>`_, ICLR 2021.
    """
    found = _trace.find_uses(fn, params, args, evaluate=True)
    paths = list(_tree.leaves_by_path(params))
    result = {}
    for n, of_leaf in found.items():
        uses = [use for use, _ in of_leaf]
        inputs = [rows for _, rows in of_leaf if rows is not None]
        if not uses or len(inputs) < len(uses) or len({(u.blocks, u.fan_in) for u in uses}) > 1:
            continue
        rows = jnp.concatenate(inputs, axis=1)
        result[_tree.path_name(paths[n])] = rows if uses[0].blocks else rows[0]
    return result
