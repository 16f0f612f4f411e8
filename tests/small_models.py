"""Models and tasks small enough to be checked by hand, for the methods of `rgo_jax.baselines`."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from rgo_jax import linen
from rgo_jax.baselines import Task

RATE = 0.1
SGD = optax.sgd(RATE)


def linear(params, x, task_id):
    """One layer without bias."""
    return x @ params["w"]


def task_of(x, y, task_id=0, batch_size=1, epochs=1):
    x, y = jnp.asarray(x, jnp.float32), jnp.asarray(y)
    batches = jnp.arange(len(x)).reshape(-1, batch_size)
    return Task(jnp.int32(task_id), lambda indices: (x[indices], y[indices]), batches, epochs)


def cross_entropy_grad(w, x, y):
    """By hand: ``x' (softmax - onehot)``, averaged over the batch."""
    logits = np.asarray(x) @ np.asarray(w)
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    return np.asarray(x).T @ (p - np.eye(p.shape[1])[np.asarray(y)]) / len(x)


def apply_of(module):
    """A Linen module as methods take it."""

    def apply_fn(params, x, task_id):
        return module.apply({"params": params}, x)

    return apply_fn


def params_of(module, x):
    return module.init(jax.random.key(0), x)["params"]


class ConvNet(nn.Module):
    """Of fused layers, which have the parameters of Flax's."""

    conv: type[nn.Module] = linen.Conv
    dense: type[nn.Module] = linen.Dense

    @nn.compact
    def __call__(self, x):
        x = nn.relu(self.conv(4, (3, 2), strides=2, name="first")(x))
        x = self.conv(3, (2, 2), padding="VALID", use_bias=False, name="again")(x)
        return self.dense(2, name="head")(x.reshape(len(x), -1))
