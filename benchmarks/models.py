"""Networks of the paper's appendix C.3, and the policies for the last layer."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from rgo_jax.linen import Dense, FeatureEncoding

HEADS = {
    "shared": "one head for all tasks, trained in every task",
    "frozen": "one head for all tasks, trained in the first task only",
    "per_task": "a head for each task",
}

_kernel_init = nn.initializers.orthogonal()
_bias_init = nn.initializers.constant(0.1)


class Head(nn.Module):
    """The last layer, under one of the policies of `HEADS`.

    Attributes:
      num_classes: outputs of each head.
      num_tasks: heads there are under the policy "per_task".
      policy: a key of `HEADS`.
    """

    num_classes: int
    num_tasks: int
    policy: str

    @nn.compact
    def __call__(self, x: jax.Array, task_id: jax.Array) -> jax.Array:
        """Logits ``[b, num_classes]`` of features ``x [b, features]``."""
        if self.policy == "shared":
            return Dense(self.num_classes, kernel_init=_kernel_init, bias_init=_bias_init)(x)
        # Trained in one task only, such a head has nothing to protect and no projection.
        heads = self.num_tasks if self.policy == "per_task" else 1
        shape = (x.shape[-1], self.num_classes)

        def init_kernels(key: jax.Array) -> jax.Array:
            return jax.vmap(lambda key: _kernel_init(key, shape))(jax.random.split(key, heads))

        kernels = self.param("kernels", init_kernels)
        biases = self.param("biases", _bias_init, (heads, self.num_classes))
        if self.policy == "frozen":
            kernel, bias = (
                jnp.where(task_id == 0, p[0], jax.lax.stop_gradient(p[0]))
                for p in (kernels, biases)
            )
        else:
            kernel, bias = kernels[task_id], biases[task_id]
        return x @ kernel + bias


class MLP(nn.Module):
    """Fully connected network with FEL on the input and after each hidden layer.

    Orthogonal kernels and biases of 0.1, as in the protocol "los".

    Attributes:
      hidden: widths of the hidden layers.
      num_classes: outputs of each head.
      num_tasks: the length of the task sequence.
      head: a key of `HEADS`.
      fel: whether features are permuted for each task.
      seed: integer of the permutations; may be traced.
    """

    hidden: Sequence[int]
    num_classes: int
    num_tasks: int
    head: str
    fel: bool
    seed: jax.typing.ArrayLike = 0

    @nn.compact
    def __call__(self, x: jax.Array, task_id: jax.Array) -> jax.Array:
        """Logits ``[b, num_classes]`` of ``x [b, features]``."""

        def encode(x: jax.Array, layer: int) -> jax.Array:
            return FeatureEncoding(layer, self.seed)(x, task_id) if self.fel else x

        x = encode(x, 0)
        for layer, width in enumerate(self.hidden, start=1):
            x = Dense(width, kernel_init=_kernel_init, bias_init=_bias_init)(x)
            x = encode(nn.relu(x), layer)
        return Head(self.num_classes, self.num_tasks, self.head, name="head")(x, task_id)
