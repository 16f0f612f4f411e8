"""Learning in orthogonal subspaces: each task has directions of its own in the last features.

Chaudhry et al. 2020, https://arxiv.org/abs/2010.11635, called ORTHOG-SUBSPACE there and LOS in the
RGO paper.
"""

import contextlib
import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from benchmarks.methods.base import Problem
from benchmarks.methods.stiefel import stiefel_sgd
from benchmarks.networks.initializers import orthogonal
from rgo_jax.baselines import Method, Task, ring
from rgo_jax.lapack import one_by_one_on_cpu


@dataclasses.dataclass(frozen=True)
class Los:
    """Hyper-parameters of `los`.

    Attributes:
      rank: dimensions of a task's subspace, at most; None: as many as there is room for (12 of 256
        with 20 tasks).
      random: whether the subspaces lie anywhere, or along the axes: each task has units of its own.
      replay: whether the last example of each class of one earlier task is trained in each step.
      stiefel: whether kernels stay orthonormal, so that gradients at right angles in the features
        are so in all layers.
    """

    rank: int | None = None
    random: bool = False
    replay: bool = False
    stiefel: bool = False


# As the authors have it on MNIST and on colour images.
VECTORS = Los()
IMAGES = Los(rank=30, random=True, replay=True, stiefel=True)
# On MNIST it is the protocol's, 0.1.
LEARNING_RATES = {"cifar100": 0.4, "mini-imagenet": 0.2}


class LosState(NamedTuple):
    """The state of `los`.

    Attributes:
      params: of the network.
      opt_state: the optimizer's.
      bases: ``[features, num_tasks * rank]``, orthonormal columns, a run of them for each task.
      ring: what is replayed; None if nothing is.
      key: to draw what is replayed.
    """

    params: Any
    opt_state: Any
    bases: jax.Array
    ring: ring.Ring | None
    key: jax.Array


def los(problem: Problem, hyper: Los | None = None) -> Method:
    """LOS, with a network of `benchmarks.networks.architectures`, which takes ``subspace``."""
    hyper = hyper or (IMAGES if len(problem.input_shape) > 1 else VECTORS)
    optimizer = optax.partition(
        {True: stiefel_sgd(problem.learning_rate), False: optax.sgd(problem.learning_rate)},
        lambda params: _is_on_manifold(params) if hyper.stiefel else _nowhere(params),
    )

    def outputs_of(state: LosState, params: Any, x: jax.Array, task_id: jax.Array) -> jax.Array:
        basis = of_task(state.bases, problem.num_tasks, task_id)
        with in_subspace(basis):
            return problem.logits(params, x, task_id)

    def init(key: jax.Array) -> LosState:
        params_key, bases_key, kernels_key = jax.random.split(key, 3)
        params = problem.init(params_key)
        if hyper.stiefel:
            params = _orthogonal(params, kernels_key)
        # The head's largest array is its kernel, [features, classes] for each head; without a bias
        # beside it, that is its last row.
        of_head = jax.tree.leaves(params["head"])
        width = max(of_head, key=jnp.size).shape[-2] - (len(of_head) == 1)
        blank = jnp.zeros((1, *problem.input_shape))
        memory = ring.empty(blank, problem.num_tasks, problem.num_classes)
        bases = task_bases(bases_key, width, problem.num_tasks, hyper)
        return LosState(
            params, optimizer.init(params), bases, memory if hyper.replay else None, key
        )

    def start_task(state: LosState, task: Task, key: jax.Array) -> LosState:
        del task
        return state._replace(key=key)

    def step(
        state: LosState, batch: tuple[jax.Array, jax.Array], task: Task
    ) -> tuple[LosState, jax.Array]:
        key, own_key = jax.random.split(state.key)

        def current_loss(params: Any) -> jax.Array:
            x, y = batch
            outputs = outputs_of(state, params, x, task.id)
            return jnp.mean(problem.losses(outputs, y))

        loss, grads = jax.value_and_grad(current_loss)(state.params)
        num_examples = len(batch[0])
        memory = state.ring
        if memory is not None:
            num_examples += problem.num_classes
            past = jax.random.randint(own_key, (), 0, jnp.maximum(task.id, 1))

            def past_loss(params: Any, memory: ring.Ring = memory) -> jax.Array:
                outputs = outputs_of(state, problem.freeze(params, task.id), memory.x[past], past)
                labels = jnp.arange(problem.num_classes)
                losses = problem.losses(outputs, labels)
                there = memory.filled[past] & (past < task.id)
                return jnp.sum(there * losses) / jnp.maximum(jnp.sum(there), 1)

            # Divided by how many tasks there are so far, as in the authors' program.
            grads = jax.tree.map(
                lambda g, p: (g + p) / (task.id + 1), grads, jax.grad(past_loss)(state.params)
            )
            memory = ring.store(memory, batch, task.id)
        updates, opt_state = optimizer.update(
            grads, state.opt_state, state.params, num_examples=num_examples
        )
        params = optax.apply_updates(state.params, updates)
        return LosState(params, opt_state, state.bases, memory, key), loss

    def apply(state: LosState, x: jax.Array, task_id: jax.Array) -> jax.Array:
        return outputs_of(state, state.params, x, task_id)

    return Method(
        init,
        start_task,
        step,
        end_task=lambda state, task: state,
        apply=apply,
        memory=lambda state: (state.bases, state.ring),
    )


def in_subspace(basis: jax.Array) -> contextlib.AbstractContextManager[None]:
    """Inside it, heads receive what of the last features lies in the span of ``basis``.

    Args:
      basis: orthonormal columns ``[features, rank]``.
    """

    def project(
        call: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext
    ) -> Any:
        if context.method_name != "classify":
            return call(*args, **kwargs)
        features, *others = args
        matmul = partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
        return call(nn.relu(matmul(matmul(features, basis), basis.T)), *others, **kwargs)

    return nn.intercept_methods(project)


def task_bases(key: jax.Array, width: int, num_tasks: int, hyper: Los) -> jax.Array:
    """Orthonormal columns ``[width, num_tasks * rank]`` for all tasks.

    Raises:
      ValueError: more tasks than features.
    """
    room = width // num_tasks
    rank = room if hyper.rank is None else min(hyper.rank, room)
    if rank < 1:
        raise ValueError(
            f"LOS needs a feature for each task, but the last layer gets {width} features for "
            f"{num_tasks} tasks. Choose a wider network or fewer tasks."
        )
    columns = jnp.eye(width)
    if hyper.random:
        columns, _ = one_by_one_on_cpu(jnp.linalg.qr)(jax.random.normal(key, (width, width)))
    return columns[:, : num_tasks * rank]


def of_task(bases: jax.Array, num_tasks: int, task_id: jax.Array) -> jax.Array:
    """One task's columns ``[width, rank]``."""
    rank = bases.shape[1] // num_tasks
    return jax.lax.dynamic_slice_in_dim(bases, task_id * rank, rank, axis=1)


def _is_on_manifold(params: Any) -> Any:
    """Kernels of all layers but the head."""
    return {
        name: jax.tree.map(lambda leaf, name=name: name != "head" and leaf.ndim > 1, layer)
        for name, layer in params.items()
    }


def _nowhere(params: Any) -> Any:
    return jax.tree.map(lambda leaf: False, params)


def _orthogonal(params: Any, key: jax.Array) -> Any:
    """The parameters with kernels on the manifold, whatever the network starts from."""
    leaves, treedef = jax.tree.flatten(params)
    chosen = jax.tree.leaves(_is_on_manifold(params))
    keys = jax.random.split(key, len(leaves))
    drawn = [
        orthogonal(own_key, leaf.shape) if on_manifold else leaf
        for own_key, leaf, on_manifold in zip(keys, leaves, chosen, strict=True)
    ]
    return jax.tree.unflatten(treedef, drawn)
