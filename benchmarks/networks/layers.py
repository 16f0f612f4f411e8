"""Layers that the networks are made of, and the policies for the last one and for biases."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from benchmarks.networks.initializers import INITIAL_VALUES, with_bias_row
from rgo_jax import linen

HEADS = {
    "shared": "one head for all tasks, trained in every task",
    "frozen": "one head for all tasks, trained in the first task only",
    "per_task": "a head for each task",
    "masked": "one head for the classes of all tasks; those of other tasks are masked",
}
# Heads of which the same parameters are trained in more than one task.
SHARED_HEADS = ("shared", "masked")
# Heads that differ from task to task.
TASK_HEADS = ("per_task", "masked")

BIASES = {
    "own": "parameters of their own",
    "frozen": "parameters of their own, trained in the first task only",
    "input": "part of the kernel, which has one more input that is always 1",
}


def dense(x: jax.Array, features: int, initial_values: str, biases: str) -> jax.Array:
    """A fully connected layer; to be called inside a module's ``__call__``, as a layer of it.

    Args:
      x: ``[..., d]``.
      features: outputs.
      initial_values: a key of `INITIAL_VALUES`.
      biases: a key of `BIASES`.

    Returns:
      ``[..., features]``.
    """
    init = INITIAL_VALUES[initial_values]
    if biases != "input":
        return linen.Dense(features, kernel_init=init.dense, bias_init=init.bias)(x)
    kernel_init = with_bias_row(init.dense, init.bias)
    ones = jnp.ones((*x.shape[:-1], 1), x.dtype)
    layer = linen.Dense(features, use_bias=False, kernel_init=kernel_init)
    return layer(jnp.concatenate([x, ones], axis=-1))


class Head(nn.Module):
    """The last layer, under one of the policies of `HEADS`.

    Attributes:
      num_classes: of a task.
      num_tasks: the length of the sequence.
      policy: a key of `HEADS`.
      initial_values: a key of `INITIAL_VALUES`.
      biases: a key of `BIASES`.
    """

    num_classes: int
    num_tasks: int
    policy: str
    initial_values: str
    biases: str

    @nn.compact
    def __call__(self, x: jax.Array, task_id: jax.Array) -> jax.Array:
        """Logits ``[b, num_classes]`` of features ``x [b, features]``."""
        if self.policy not in HEADS:
            raise ValueError(f"head is {self.policy!r}; expected one of {', '.join(HEADS)}.")
        if self.policy == "shared":
            return dense(x, self.num_classes, self.initial_values, self.biases)
        if self.policy == "masked":
            width = self.num_classes * self.num_tasks
            logits = dense(x, width, self.initial_values, self.biases)
            start = task_id * self.num_classes
            return jax.lax.dynamic_slice_in_dim(logits, start, self.num_classes, axis=1)
        # Trained in one task only, such a head has nothing to protect and no projection.
        heads = self.num_tasks if self.policy == "per_task" else 1
        shape = (x.shape[-1], self.num_classes)
        init = INITIAL_VALUES[self.initial_values]

        def init_kernels(key: jax.Array) -> jax.Array:
            return jax.vmap(lambda key: init.dense(key, shape))(jax.random.split(key, heads))

        kernels = self.param("kernels", init_kernels)
        biases = self.param("biases", init.bias, (heads, self.num_classes))
        if self.policy == "frozen":
            kernel, bias = (
                jnp.where(task_id == 0, p[0], jax.lax.stop_gradient(p[0]))
                for p in (kernels, biases)
            )
        else:
            kernel, bias = kernels[task_id], biases[task_id]
        return x @ kernel + bias[None]


def relu_and_pool(x: jax.Array, pool: tuple[int, int] | None) -> jax.Array:
    """What follows a hidden layer: ReLU, then a max-pool of this window and stride, if any."""
    x = nn.relu(x)
    return x if pool is None else max_pool(x, *pool)


def max_pool(x: jax.Array, window: int, strides: int) -> jax.Array:
    """Max-pool of ``[b, height, width, channels]``, dropping what does not fill a window.

    By slices: its backward pass is faster on a CPU than that of `flax.linen.max_pool`, which is a
    scatter.
    """
    batch, height, width, channels = x.shape
    if window == strides:
        rows, columns = height // window, width // window
        x = x[:, : rows * window, : columns * window]
        return jnp.max(x.reshape(batch, rows, window, columns, window, channels), axis=(2, 4))

    def along(x: jax.Array, axis: int) -> jax.Array:
        size = (x.shape[axis] - window) // strides + 1
        pieces = [
            jax.lax.slice_in_dim(x, i, i + (size - 1) * strides + 1, strides, axis)
            for i in range(window)
        ]
        return jnp.max(jnp.stack(pieces), axis=0)

    return along(along(x, 1), 2)
