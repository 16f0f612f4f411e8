"""Additive parameter decomposition: kernels of all tasks share a part, and each adds its own.

Yoon et al. 2020, https://arxiv.org/abs/1902.09432.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks.methods.base import (
    Problem,
    check_count,
    check_not_negative,
    check_positive,
    network_size,
    option,
)
from benchmarks.methods.growing import clusters
from benchmarks.methods.growing.decomposition import (
    Leaves,
    best_tau,
    biases_of,
    common,
    cut,
    gate,
    kernels_of,
    replaced,
    retain,
    shrink,
)
from rgo_jax.baselines import Method, Task

# New clusters each time that tasks are clustered.
_NEW_CLUSTERS = 2


@dataclasses.dataclass(frozen=True)
class Apd:
    """Options of `apd`; the defaults are the authors' on the superclasses of CIFAR-100.

    Raises:
      ValueError: a value outside its range.
    """

    apd_lambda_1: float = option(
        6e-4, "APD: sparsity of a task's own parameters; smaller ones are 0 at test time"
    )
    apd_lambda_2: float = option(100.0, "APD: how firmly earlier tasks keep their parameters")
    apd_decay: float = option(1e-4, "APD: weight decay of what a task trains")
    apd_every: int = option(5, "APD: after so many tasks each time, what they own is clustered")
    apd_beta: float = option(
        1e-2, "APD: elements that differ by no more in a cluster of tasks become one"
    )

    def __post_init__(self) -> None:
        """Checks them."""
        for name in ("apd_lambda_1", "apd_lambda_2", "apd_beta"):
            check_positive(name, getattr(self, name))
        check_count("apd_every", self.apd_every)
        check_not_negative("apd_decay", self.apd_decay)


class Kept(NamedTuple):
    """What is kept of each task beside the shared kernels.

    Attributes:
      v: of each kernel ``[tasks, m]``.
      target: ``[tasks, *kernel]``, what ``sigma * sigmoid(v) + tau`` was when the task at hand
        began; so it holds ``tau``.
      shared: ``[clusters, *kernel]``, what tasks of one cluster have in common.
      cluster: int32 ``[tasks]``, -1 for none.
      biases: of each bias ``[tasks, m]``.
    """

    v: Leaves
    target: Leaves
    shared: Leaves
    cluster: Leaves
    biases: Leaves


class ApdState(NamedTuple):
    """The state of `apd`.

    Attributes:
      params: the network's, with the shared part in the place of kernels, the biases of the task at
        hand, and all heads.
      tau: the task's own part of each kernel, as it is trained.
      v: likewise.
      kept: of all tasks.
      num_tasks: int32 scalar, how many are finished.
      num_steps: int32 scalar, how many have been taken.
    """

    params: Any
    tau: Leaves
    v: Leaves
    kept: Kept
    num_tasks: jax.Array
    num_steps: jax.Array


def apd(problem: Problem) -> Method:
    """APD; kernels of more than one axis are decomposed, biases are each task's own.

    The loss is the authors'. SGD at the problem's rate minimizes it, with proximal steps for the
    two penalties with corners, so what is sparse is exactly 0. What earlier tasks own is at each
    step the minimum that the shared part leaves: these parameters meet in the penalty alone, which
    gives it in closed form. Plain steps would diverge where the rate times lambda_2 is above 2.
    Adam, as published, would keep two moments of every task's parameters, and each step would pass
    over all of them.

    Gates begin at a half, in each task. The shared part begins at twice the network's initial
    values and a task's own at 0, so a task begins with what all have in common. In the authors'
    program its own part begins as the shared one: here the shared part then grows from task to
    task, and later ones are learned less and less.

    A step costs what SGD's does and one pass over what each earlier task owns.
    """
    options: Apd = problem.options
    l1, l2 = options.apd_lambda_1, options.apd_lambda_2
    num_clusters = _num_clusters(problem.num_tasks, options.apd_every)

    def init(key: jax.Array) -> ApdState:
        params = problem.init(key)
        # Behind gates of a half: the first kernels are the network's.
        sigma = {name: 2 * leaf for name, leaf in kernels_of(params).items()}
        params, biases = replaced(params, sigma), biases_of(params)
        v = {name: jnp.zeros(leaf.shape[-1]) for name, leaf in sigma.items()}

        def rows(leaves: Leaves, count: int) -> Leaves:
            return {name: jnp.zeros((count, *leaf.shape)) for name, leaf in leaves.items()}

        kept = Kept(
            v=rows(v, problem.num_tasks),
            target=rows(sigma, problem.num_tasks),
            shared=rows(sigma, num_clusters),
            cluster={name: jnp.full(problem.num_tasks, -1) for name in sigma},
            biases=rows(biases, problem.num_tasks),
        )
        tau = jax.tree.map(jnp.zeros_like, sigma)
        return ApdState(params, tau, v, kept, jnp.int32(0), jnp.int32(0))

    def start_task(state: ApdState, task: Task, key: jax.Array) -> ApdState:
        del task, key
        sigma = kernels_of(state.params)
        kept = state.kept._replace(
            target={
                name: masked(state.kept, sigma, name) + own(state.kept, sigma, name, l1, l2)
                for name in sigma
            }
        )
        tau, v = jax.tree.map(jnp.zeros_like, (state.tau, state.v))
        return state._replace(tau=tau, v=v, kept=kept)

    def step(
        state: ApdState, batch: tuple[jax.Array, jax.Array], task: Task
    ) -> tuple[ApdState, jax.Array]:
        x, y = batch

        def loss_of(params: Any, tau: Leaves, v: Leaves) -> jax.Array:
            sigma = kernels_of(params)
            kernels = {
                name: sigma[name] * gate(v[name], sigma[name].ndim) + tau[name] for name in sigma
            }
            logits = problem.logits(replaced(params, kernels), x, task.id)
            return jnp.mean(problem.losses(logits, y))

        loss, (grads, tau_grads, v_grads) = jax.value_and_grad(loss_of, (0, 1, 2))(
            state.params, state.tau, state.v
        )
        full = problem.learning_rate(state.num_steps)
        params = jax.tree.map(lambda p, g: p - full * g, state.params, grads)
        # Both parts move the kernel; together they are no faster than it would be.
        rate = full / 2

        def moved(p: jax.Array, g: jax.Array, decay: jax.typing.ArrayLike) -> jax.Array:
            return p - rate * (g + decay * p)

        # The shared part decays in the first task only.
        sigma_decay = jnp.where(task.id == 0, options.apd_decay, 0)
        sigma = jax.tree.map(
            lambda p, g: moved(p, g, sigma_decay), kernels_of(state.params), kernels_of(grads)
        )
        v = jax.tree.map(lambda p, g: moved(p, g, options.apd_decay), state.v, v_grads)
        tau = jax.tree.map(
            lambda p, g: shrink(moved(p, g, options.apd_decay), rate * l1), state.tau, tau_grads
        )

        def retain_task(i: jax.Array, sigma: Leaves) -> Leaves:
            return {
                name: retain(
                    leaf,
                    gate(state.kept.v[name][i], leaf.ndim),
                    state.kept.target[name][i],
                    rate,
                    l1,
                    l2,
                )
                for name, leaf in sigma.items()
            }

        sigma = jax.lax.fori_loop(0, state.num_tasks, retain_task, sigma)
        state = state._replace(
            params=replaced(params, sigma), tau=tau, v=v, num_steps=state.num_steps + 1
        )
        return state, loss

    def end_task(state: ApdState, task: Task) -> ApdState:
        sigma = kernels_of(state.params)
        kept = state.kept

        def put(rows: Leaves, values: Leaves) -> Leaves:
            return {name: rows[name].at[task.id].set(values[name]) for name in rows}

        target = {
            name: sigma[name] * gate(state.v[name], sigma[name].ndim) + state.tau[name]
            for name in sigma
        }
        kept = kept._replace(
            v=put(kept.v, state.v),
            target=put(kept.target, target),
            biases=put(kept.biases, biases_of(state.params)),
        )
        num_tasks = task.id + 1
        kept = jax.lax.cond(
            num_tasks % options.apd_every == 0,
            lambda kept: _cluster(kept, sigma, num_tasks, options),
            lambda kept: kept,
            kept,
        )
        return state._replace(kept=kept, num_tasks=num_tasks)

    def apply(state: ApdState, x: jax.Array, task_id: jax.Array) -> jax.Array:
        sigma = kernels_of(state.params)
        kept = jax.tree.map(lambda leaf: leaf[task_id][None], state.kept._replace(shared={}))
        kernels = {
            name: masked(kept, sigma, name)[0]
            + cut(own(kept, sigma, name, l1, l2)[0], l1)
            + common(kept.cluster[name], state.kept.shared[name])[0]
            for name in sigma
        }
        biases = {name: leaf[0] for name, leaf in kept.biases.items()}
        return problem.logits(replaced(state.params, kernels | biases), x, task_id)

    return Method(init, start_task, step, end_task, apply, memory=lambda state: state.kept)


def capacity(problem: Problem, state: ApdState) -> jax.Array:
    """How many numbers are not 0 at test time, over those of the network with all heads."""
    options: Apd = problem.options
    sigma = kernels_of(state.params)
    finished = jnp.arange(problem.num_tasks) < state.num_tasks

    def count(rows: jax.Array) -> jax.Array:
        """Of those of the finished tasks."""
        return jnp.sum(jnp.count_nonzero(rows.reshape(len(rows), -1), axis=1) * finished)

    total = jnp.float32(sum(jnp.size(leaf) for leaf in jax.tree.leaves(state.params["head"])))
    for name in sigma:
        tau = own(state.kept, sigma, name, options.apd_lambda_1, options.apd_lambda_2)
        total += jnp.count_nonzero(sigma[name]) + jnp.count_nonzero(state.kept.shared[name])
        total += count(cut(tau, options.apd_lambda_1)) + count(state.kept.v[name])
    total += sum(count(rows) for rows in state.kept.biases.values())
    return total / network_size(problem)


def masked(kept: Kept, sigma: Leaves, name: str) -> jax.Array:
    """Each task's share of the shared kernel, ``[tasks, *kernel]``."""
    return sigma[name][None] * gate(kept.v[name], sigma[name].ndim)


def own(kept: Kept, sigma: Leaves, name: str, l1: float, l2: float) -> jax.Array:
    """Each task's own part of a kernel, ``[tasks, *kernel]``."""
    return best_tau(kept.target[name] - masked(kept, sigma, name), l1, l2)


def _cluster(kept: Kept, sigma: Leaves, num_tasks: jax.Array, options: Apd) -> Kept:
    """Clusters what the finished tasks own; what is alike in a cluster is kept once."""
    found = kept._replace(target=dict(kept.target), shared=dict(kept.shared), cluster={})
    for name in sigma:
        shape = kept.shared[name].shape
        tau = own(kept, sigma, name, options.apd_lambda_1, options.apd_lambda_2)
        tau += common(kept.cluster[name], kept.shared[name])
        rows = tau.reshape(len(tau), -1)
        cluster = clusters.assign(
            rows, kept.cluster[name], num_tasks, _NEW_CLUSTERS * num_tasks // options.apd_every
        )
        left, shared = clusters.share(rows, cluster, shape[0], options.apd_beta)
        found.target[name] = masked(kept, sigma, name) + left.reshape(tau.shape)
        found.shared[name] = cut(shared, options.apd_lambda_1).reshape(shape)
        found.cluster[name] = cluster
    return found


def _num_clusters(num_tasks: int, every: int) -> int:
    """How many clusters there are at most; one too many where tasks are never clustered."""
    return max(_NEW_CLUSTERS * (num_tasks // every), 1)
