"""Problems small enough to be checked by hand."""

import jax.numpy as jnp
import optax

from benchmarks import presets
from benchmarks.methods import METHODS, Problem, rgo
from tests.small_models import RATE

# Arguments of a run of seconds.
QUICK = ["--num-tasks", "2", "--examples-per-task", "200", "--epochs", "4", "--seeds", "2"]


def network_problem(module, input_shape, params=None):
    """A Flax module as a problem, from parameters of its own or from these."""

    def logits(params, x, task_id, statistics=None):
        return module.apply({"params": params}, x)

    blank = jnp.zeros((1, *input_shape))
    return Problem(
        init=lambda key: module.init(key, blank)["params"] if params is None else params,
        logits=logits,
        protected=lambda params: True,
        freeze=lambda params, task_id: params,
        losses=optax.softmax_cross_entropy_with_integer_labels,
        learning_rate=optax.constant_schedule(RATE),
        options=rgo.Rgo(),
        dataset="none",
        input_shape=input_shape,
        num_classes=2,
        num_tasks=2,
    )


def head_of(method, wanted="shared"):
    """A head policy, or one with which the method works."""
    heads = METHODS[method].heads
    return wanted if heads is None or wanted in heads else heads[0]


def two_tasks(method="rgo", **changes):
    """Two permutations of the embedded digits, with fields of the method's preset changed."""
    given = {"num_tasks": 2, "head": head_of(method)} | changes
    return presets.config("permuted-digits", method=METHODS[method], **given)
