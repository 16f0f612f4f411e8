"""Hard attention to the task: each task learns which units it uses, and later ones leave them.

Serrà et al. 2018, https://arxiv.org/abs/1801.01423.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from benchmarks.methods.base import Problem, check_positive, network_size, option
from benchmarks.networks.feed_forward import activate, classify, pre_activation
from rgo_jax.baselines import Method, Task

# By the name of a layer, a number for each of its units or channels.
ByUnit = dict[str, jax.Array]

# Bounds of embeddings, and of what they are multiplied by s to in the compensation.
_LARGEST_EMBEDDING = 6.0
_LARGEST_EXPONENT = 50.0


@dataclasses.dataclass(frozen=True)
class Hat:
    """Options of `hat`; the defaults are its authors'.

    Raises:
      ValueError: a value outside its range.
    """

    hat_lambda: float = option(0.75, "HAT: weight of the penalty on units that a task takes")
    hat_s_max: float = option(400.0, "HAT: how steep gates are at last, and in evaluation")

    def __post_init__(self) -> None:
        """Checks them."""
        check_positive("hat_lambda", self.hat_lambda)
        check_positive("hat_s_max", self.hat_s_max)


class HatState(NamedTuple):
    """The state of `hat`.

    Attributes:
      params: of the network.
      opt_state: the optimizer's.
      embeddings: ``[num_tasks, units]`` by layer.
      used: ``[units]`` by layer: the largest gate that a finished task has there.
      steps: int32 scalar: since the task began.
    """

    params: Any
    opt_state: Any
    embeddings: ByUnit
    used: ByUnit
    steps: jax.Array


def hat(problem: Problem) -> Method:
    """HAT: what a unit gives is multiplied by a gate, ``sigmoid(s * embedding)``, of the task.

    Weights between two units that finished tasks use are not trained. s rises within each epoch, so
    that gates can be learned at its beginning and are nearly 0 or 1 at its end.

    The authors divide the rate by three when the validation loss has not fallen for five epochs,
    and stop at a smallest rate. That takes any number of epochs; here the rate and the epochs are
    the harness's, for the embeddings too. There is no dropout.
    """
    options: Hat = problem.options
    s_max = options.hat_s_max
    optimizer = optax.sgd(problem.learning_rate)

    def init(key: jax.Array) -> HatState:
        params_key, key = jax.random.split(key)
        params = problem.init(params_key)
        keys = jax.random.split(key, len(problem.layers))
        embeddings = {
            layer.name: jax.random.normal(key, (problem.num_tasks, layer.features))
            for layer, key in zip(problem.layers, keys, strict=True)
        }
        used = {name: jnp.zeros(e.shape[1]) for name, e in embeddings.items()}
        trained = params, of_task(embeddings, jnp.int32(0))
        return HatState(params, optimizer.init(trained), embeddings, used, jnp.int32(0))

    def start_task(state: HatState, task: Task, key: jax.Array) -> HatState:
        del key
        trained = state.params, of_task(state.embeddings, task.id)
        return state._replace(opt_state=optimizer.init(trained), steps=jnp.int32(0))

    def step(
        state: HatState, batch: tuple[jax.Array, jax.Array], task: Task
    ) -> tuple[HatState, jax.Array]:
        x, y = batch
        s = annealed(state.steps, len(task.batches), s_max)
        embedding = of_task(state.embeddings, task.id)

        def loss_fn(params: Any, gates: ByUnit) -> tuple[jax.Array, jax.Array]:
            loss = jnp.mean(problem.losses(gated_logits(problem, params, gates, x, task.id), y))
            return loss + options.hat_lambda * penalty(gates, state.used), loss

        grad = jax.value_and_grad(loss_fn, argnums=(0, 1), has_aux=True)
        (_, loss), (of_params, of_gates) = grad(state.params, gates_of(embedding, s))
        of_embedding = jax.tree.map(
            lambda g, e: g * compensated_slope(e, s, s_max), of_gates, embedding
        )
        trained = state.params, embedding
        grads = unused(problem, of_params, state.used), of_embedding
        updates, opt_state = optimizer.update(grads, state.opt_state, trained)
        params, embedding = optax.apply_updates(trained, updates)
        embeddings = jax.tree.map(
            lambda all_, e: all_.at[task.id].set(
                jnp.clip(e, -_LARGEST_EMBEDDING, _LARGEST_EMBEDDING)
            ),
            state.embeddings,
            embedding,
        )
        return HatState(params, opt_state, embeddings, state.used, state.steps + 1), loss

    def end_task(state: HatState, task: Task) -> HatState:
        gates = gates_of(of_task(state.embeddings, task.id), s_max)
        return state._replace(used=jax.tree.map(jnp.maximum, state.used, gates))

    def apply(state: HatState, x: jax.Array, task_id: jax.Array) -> jax.Array:
        gates = gates_of(of_task(state.embeddings, task_id), s_max)
        return gated_logits(problem, state.params, gates, x, task_id)

    return Method(
        init,
        start_task,
        step,
        end_task,
        apply,
        memory=lambda state: (state.embeddings, state.used),
    )


def capacity(problem: Problem, state: HatState) -> jax.Array:
    """The network and all embeddings; the authors, who call it 100 %, leave the latter out."""
    embeddings = sum(e.size for e in state.embeddings.values())
    return jnp.float32(1 + embeddings / network_size(problem))


def of_task(embeddings: ByUnit, task_id: jax.Array) -> ByUnit:
    """One task's embeddings."""
    return {name: e[task_id] for name, e in embeddings.items()}


def gates_of(embedding: ByUnit, s: jax.typing.ArrayLike) -> ByUnit:
    """Between 0 and 1 for each unit; the larger ``s`` is, the nearer to one of them."""
    return {name: jax.nn.sigmoid(s * e) for name, e in embedding.items()}


def annealed(steps: jax.Array, steps_per_epoch: int, s_max: float) -> jax.Array:
    """s in a step: from ``1 / s_max`` to ``s_max`` linearly within each epoch.

    Args:
      steps: int32 scalar: those before it.
      steps_per_epoch: how many an epoch has.
      s_max: the last of an epoch.
    """
    share = (steps % steps_per_epoch) / max(steps_per_epoch - 1, 1)
    return 1 / s_max + (s_max - 1 / s_max) * share


def penalty(gates: ByUnit, used: ByUnit) -> jax.Array:
    """The mean gate of a task, weighted by how much of a unit no finished task uses."""
    free = {name: 1 - u for name, u in used.items()}
    taken = sum(jnp.sum(gates[name] * free[name]) for name in gates)
    # With nothing free there is nothing to take.
    return taken / jnp.maximum(sum(jnp.sum(f) for f in free.values()), 1e-6)


def compensated_slope(embedding: jax.Array, s: jax.Array, s_max: float) -> jax.Array:
    """What the gradient of a gate is multiplied by to be that of its embedding.

    The slope ``s sigmoid'(s e)`` is 0 almost everywhere for a steep gate. The authors multiply it
    by ``s_max / s (cosh(s e) + 1) / (cosh(e) + 1)``, with s e clipped to 50 in the numerator.
    Since ``sigmoid'(x) = 1 / (2 (cosh(x) + 1))``, that is ``s_max sigmoid'(e)`` up to there. The
    product is formed before any of it is rounded to 0.

    Args:
      embedding: any shape.
      s: scalar.
      s_max: its last value.

    Returns:
      The shape of ``embedding``.
    """
    clipped = jnp.clip(s * embedding, -_LARGEST_EXPONENT, _LARGEST_EXPONENT)
    beyond = (jnp.cosh(clipped) + 1) / (jnp.cosh(s * embedding) + 1)
    return s_max * beyond / (2 * (jnp.cosh(embedding) + 1))


def gated_logits(
    problem: Problem, params: Any, gates: ByUnit, x: jax.Array, task_id: jax.Array
) -> jax.Array:
    """Logits ``[b, classes]`` with each hidden layer's outputs times its gates."""
    for layer in problem.layers:
        own = params[layer.name]
        x = activate(layer, pre_activation(layer, own["kernel"], own.get("bias"), x))
        x *= jnp.broadcast_to(gates[layer.name], x.shape)
    return classify(params["head"], x, task_id)


def unused(problem: Problem, grads: Any, used: ByUnit) -> Any:
    """Gradients times how little finished tasks use the units at both ends of each weight.

    ``1 - min(used[out], used[in])``; inputs of the network count as used, a bias has one end, and
    heads are each of one task.

    Args:
      problem: whose layers there are.
      grads: like the parameters.
      used: as in `HatState`.
    """
    kept, before = dict(grads), None
    for layer in problem.layers:
        own, after = dict(grads[layer.name]), 1 - used[layer.name]
        shape = own["kernel"].shape
        free = after[None]
        if before is not None:
            # Channels come last in the images that a fully connected layer flattens.
            free = jnp.maximum(free, jnp.tile(before, shape[-2] // len(before))[:, None])
        own["kernel"] *= jnp.broadcast_to(free, shape)
        if "bias" in own:
            own["bias"] *= after
        kept[layer.name], before = own, after
    return kept
