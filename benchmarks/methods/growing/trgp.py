"""Trust region gradient projection: GPM that reuses what it protects, scaled for each task.

Lin et al. 2022, https://arxiv.org/abs/2202.02931.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import rgo_jax
from benchmarks.methods.base import Problem, check_positive, network_size, option
from benchmarks.methods.baselines import GPM_BY_DATASET
from benchmarks.methods.growing import trust_regions
from benchmarks.methods.growing.trust_regions import Subspaces
from rgo_jax import baselines
from rgo_jax.baselines import Method, Task

# GPM's on MNIST: the library's defaults.
_VECTORS = {"first_threshold": 0.95, "threshold": 0.99, "growth": 0.0, "samples": 300}
# So many old tasks at most are trusted, in each layer.
_MOST = 2


@dataclasses.dataclass(frozen=True)
class Trgp:
    """Options of `trgp`.

    Raises:
      ValueError: a value outside its range.
    """

    trgp_threshold: float = option(
        0.5, "TRGP: share of a new task's gradient in an old task's subspace that makes it trusted"
    )

    def __post_init__(self) -> None:
        """Checks them."""
        check_positive("trgp_threshold", self.trgp_threshold)


class TrgpState(NamedTuple):
    """The state of `trgp`; dicts are by layer.

    Attributes:
      trained: of `rgo_jax.baselines.gpm`, with `Trained` for its parameters.
      subspaces: of each task's inputs.
      trusted: int32 ``[num_tasks, regions]``: the tasks whose subspaces are trust regions of each
        task, as `trust_regions.trusted_tasks` has them.
      scales: Q, ``[num_tasks, regions, r, r]``, of finished tasks.
    """

    trained: Any
    subspaces: dict[str, Subspaces]
    trusted: dict[str, jax.Array]
    scales: dict[str, jax.Array]

    @property
    def params(self) -> Any:
        """Of the network."""
        return self.trained.params.network


class Trained(NamedTuple):
    """What `rgo_jax.baselines.gpm` trains.

    Attributes:
      network: the network's parameters.
      scales: Q of the task at hand, ``[regions, r, r]`` by layer.
      regions: the task's trust regions, by layer; not trained.
    """

    network: Any
    scales: Any
    regions: Any


def trgp(problem: Problem) -> Method:
    """TRGP: GPM, with kernels that are scaled within the subspaces of the old tasks that fit best.

    When a task begins, each layer's gradient is projected on the subspace of each old task. The two
    with the largest share of it, if it is large enough, are trust regions. A square matrix for each
    scales what the kernel does there; it begins as the identity, is trained with the task, and is
    used for this task alone. The kernel itself is trained as under GPM.

    A task's subspace is spanned by the fewest of GPM's columns that hold the threshold of its
    inputs' energy. So all subspaces are kept as one basis ``[d, d]`` of a layer and, of each task,
    the numbers of its columns. They are r at most: as many as the samples have rows, or d. What
    takes memory are the matrices, ``2 r r`` numbers for each task and layer.

    Biases are trained in the first task only, as under GPM. The gradient that tasks are chosen by
    is that of the samples that GPM takes.
    """
    options: Trgp = problem.options
    hyper: Mapping[str, Any] = GPM_BY_DATASET.get(problem.dataset, _VECTORS)
    num_regions = min(_MOST, problem.num_tasks)

    def logits(params: Trained, x: jax.Array, task_id: jax.Array) -> jax.Array:
        regions = {
            name: region._replace(scale=params.scales[name])
            for name, region in params.regions.items()
        }
        with trust_regions.in_regions(regions):
            return problem.logits(params.network, x, task_id)

    def protected(params: Trained) -> Trained:
        return Trained(problem.protected(params.network), False, False)

    optimizer = optax.partition(
        {"train": optax.sgd(problem.learning_rate), "keep": optax.set_to_zero()},
        Trained("train", "train", "keep"),
    )
    method = baselines.gpm(
        logits, optimizer, mask=protected, fused=True, losses=problem.losses, **hyper
    )

    def basis_of(trained: Any, name: str) -> jax.Array:
        return jnp.asarray(method.memory(trained).bases[f"network/{name}/kernel"])

    def samples_of(task: Task) -> tuple[jax.Array, jax.Array]:
        return task.load(task.batches.reshape(-1)[: hyper["samples"]])

    def kernel_inputs(params: Trained, x: jax.Array, task_id: jax.Array) -> dict[str, jax.Array]:
        """What each protected kernel receives, ``[rows, d]``, in the order of use."""
        seen = rgo_jax.layer_inputs(lambda params, x: logits(params, x, task_id), params, x)
        kept = problem.protected(params.network)
        names = [name.split("/") for name in seen]
        return {
            "/".join(name[1:-1]): seen["/".join(name)]
            for name in names
            if name[0] == "network" and kept[name[1]]
        }

    def init(key: jax.Array) -> TrgpState:
        params = Trained(problem.init(key), {}, {})
        samples = jnp.zeros((hyper["samples"], *problem.input_shape))
        seen = jax.eval_shape(lambda: kernel_inputs(params, samples, jnp.int32(0)))
        subspaces, trusted, scales = {}, {}, {}
        for name, inputs in seen.items():
            *_, rows, d = inputs.shape
            tasks, r = problem.num_tasks, min(rows, d)
            subspaces[name] = trust_regions.no_subspaces(tasks, r)
            trusted[name] = jnp.full((tasks, num_regions), -1)
            scales[name] = jnp.zeros((tasks, num_regions, r, r))
            params.scales[name] = scales[name][0]
            params.regions[name] = trust_regions.region_of(
                subspaces[name],
                jnp.zeros((d, d)),
                trusted[name][0],
                kernel_of(params.network, name),
                scales[name][0],
            )
        return TrgpState(method.init(params, samples[:1], key), subspaces, trusted, scales)

    def start_task(state: TrgpState, task: Task, key: jax.Array) -> TrgpState:
        trained = method.start_task(state.trained, task, key)
        network = state.params
        x, y = samples_of(task)
        grads = jax.grad(
            lambda network: jnp.mean(problem.losses(problem.logits(network, x, task.id), y))
        )(network)
        trusted, params = {}, Trained(network, {}, {})
        for name, subspaces in state.subspaces.items():
            basis, kernel = basis_of(trained, name), kernel_of(network, name)
            tasks = trust_regions.trusted_tasks(
                subspaces,
                basis,
                kernel_of(grads, name).reshape(len(basis), -1),
                options.trgp_threshold,
                num_regions,
            )
            trusted[name] = state.trusted[name].at[task.id].set(tasks)
            r = subspaces.columns.shape[1]
            params.scales[name] = jnp.broadcast_to(jnp.eye(r), (num_regions, r, r))
            params.regions[name] = trust_regions.region_of(
                subspaces, basis, tasks, kernel, params.scales[name]
            )
        return state._replace(trained=trained._replace(params=params), trusted=trusted)

    def step(
        state: TrgpState, batch: tuple[jax.Array, jax.Array], task: Task
    ) -> tuple[TrgpState, jax.Array]:
        trained, loss = method.step(state.trained, batch, task)
        return state._replace(trained=trained), loss

    def end_task(state: TrgpState, task: Task) -> TrgpState:
        trained = method.end_task(state.trained, task)
        subspaces = {}
        inputs = kernel_inputs(trained.params, samples_of(task)[0], task.id)
        for place, (name, rows) in enumerate(inputs.items()):
            threshold = hyper["threshold" if place else "first_threshold"]
            subspaces[name] = trust_regions.add_subspace(
                state.subspaces[name],
                basis_of(trained, name),
                rows,
                threshold + hyper["growth"] * task.id,
                task.id,
            )
        scales = {
            name: of_tasks.at[task.id].set(trained.params.scales[name])
            for name, of_tasks in state.scales.items()
        }
        return TrgpState(trained, subspaces, state.trusted, scales)

    def apply(state: TrgpState, x: jax.Array, task_id: jax.Array) -> jax.Array:
        regions = {
            name: trust_regions.region_of(
                subspaces,
                basis_of(state.trained, name),
                state.trusted[name][task_id],
                kernel_of(state.params, name),
                state.scales[name][task_id],
            )
            for name, subspaces in state.subspaces.items()
        }
        with trust_regions.in_regions(regions):
            return problem.logits(state.params, x, task_id)

    def memory(state: TrgpState) -> Any:
        return method.memory(state.trained), state.subspaces, state.trusted, state.scales

    return Method(init, start_task, step, end_task, apply, memory)


def capacity(problem: Problem, state: TrgpState) -> jax.Array:
    """The network, all scales, and the columns within which they scale; not those kept beside."""
    used = jnp.float32(network_size(problem))
    for name, subspaces in state.subspaces.items():
        trusted = state.trusted[name]
        ranks = jnp.where(trusted >= 0, subspaces.ranks[trusted], 0)
        holds = subspaces.holds()[trusted] & (trusted >= 0)[..., None]
        d = len(state.trained.params.regions[name].bases)
        columns = jnp.where(holds, subspaces.columns[trusted], d)
        is_used = jnp.zeros(d + 1, bool).at[columns.ravel()].set(True)[:d]
        used += jnp.sum(ranks.astype(jnp.float32) ** 2) + d * jnp.sum(is_used)
    return used / network_size(problem)


def kernel_of(network: Any, name: str) -> jax.Array:
    """The kernel of a module by its path."""
    for part in name.split("/"):
        network = network[part]
    return jnp.asarray(network["kernel"])
