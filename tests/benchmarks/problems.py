"""Problems small enough to be checked by hand."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import presets
from benchmarks.data.tasks import Task
from benchmarks.methods import METHODS, Problem, rgo
from rgo_jax import linen

# Arguments of a run of seconds.
QUICK = ["--num-tasks", "2", "--examples-per-task", "200", "--epochs", "4", "--seeds", "2"]

RATE = 0.1


def linear_problem(w, num_tasks=2):
    """One layer without bias, of logits ``x @ w``."""
    w = jnp.asarray(w, jnp.float32)
    return Problem(
        init=lambda key: {"w": w},
        logits=lambda params, x, task_id, statistics=None: x @ params["w"],
        protected=lambda params: {"w": True},
        freeze=lambda params, task_id: params,
        losses=optax.softmax_cross_entropy_with_integer_labels,
        learning_rate=optax.constant_schedule(RATE),
        options=rgo.Rgo(),
        dataset="none",
        input_shape=(w.shape[0],),
        num_classes=w.shape[1],
        num_tasks=num_tasks,
        steps_per_task=4,
    )


def task_of(x, y, task_id=0, batch_size=1):
    x, y = jnp.asarray(x, jnp.float32), jnp.asarray(y)
    batches = jnp.arange(len(x)).reshape(-1, batch_size)
    return Task(jnp.int32(task_id), lambda indices: (x[indices], y[indices]), batches)


def cross_entropy_grad(w, x, y):
    """By hand: ``x' (softmax - onehot)``, averaged over the batch."""
    logits = np.asarray(x) @ np.asarray(w)
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    return np.asarray(x).T @ (p - np.eye(p.shape[1])[np.asarray(y)]) / len(x)


def network_problem(module, input_shape, params=None):
    """A Flax module as a problem, from parameters of its own or from these."""

    def logits(params, x, task_id, statistics=None):
        return module.apply({"params": params}, x)

    blank = jnp.zeros((1, *input_shape))
    return linear_problem(np.zeros((1, 2)))._replace(
        init=lambda key: module.init(key, blank)["params"] if params is None else params,
        logits=logits,
        protected=lambda params: True,
        input_shape=input_shape,
    )


class ConvNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(linen.Conv(4, (3, 2), strides=2, name="first")(x))
        x = linen.Conv(3, (2, 2), padding="VALID", use_bias=False, name="again")(x)
        return linen.Dense(2, name="head")(x.reshape(len(x), -1))


def two_tasks(method="rgo", **changes):
    """Two permutations of the embedded digits, with fields of the method's preset changed."""
    given = {"num_tasks": 2} | changes
    return presets.config("permuted-digits", method=METHODS[method], **given)
