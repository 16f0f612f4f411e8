"""A training step with RGO beside one with SGD, of one model and of several seeds."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

import rgo_jax
import rgo_jax.linen
from benchmarks.networks.architectures import ARCHITECTURES
from benchmarks.perf.timing import compile_program, time_in_turns

NETWORKS = ("mlp", "lenet-5", "alexnet-6", "vgg-11", "resnet-18")
# How many steps one timed program takes; 3 for the wider networks.
STEPS = {"mlp": 1000, "lenet-5": 10}


def build_network(name: str) -> tuple[Any, tuple[int, ...]]:
    """A network of the benchmarks and the shape of its inputs."""
    build, shape = ARCHITECTURES[name]
    return build(num_classes=10, num_tasks=20, head="shared", fel=True), shape


def random_batches(steps: int, batch_size: int, shape: tuple[int, ...]) -> tuple[Any, Any]:
    """Images and labels for some steps."""
    x = jax.random.normal(jax.random.key(0), (steps, batch_size, *shape))
    return x, jax.random.randint(jax.random.key(1), (steps, batch_size), 0, 10)


def train(network: Any, tx: Any, fused: bool, params: Any, state: Any, data: Any) -> Any:
    """The parameters after a scan over training steps.

    Without the state: a training script donates it, and here it would be copied for each program.
    """

    def step(carry: Any, batch: Any) -> tuple[Any, None]:
        params, state = carry

        def loss(params: Any) -> jax.Array:
            logits = network.apply({"params": params}, batch[0], 1)
            return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()

        with_grad = rgo_jax.value_and_grad(loss, state) if fused else jax.value_and_grad(loss)
        updates, state = tx.update(with_grad(params)[1], state, params)
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, (params, state), data)[0][0]


def step_functions(name: str, batch_size: int, steps: int) -> list[tuple[Any, ...]]:
    """A scan over steps of SGD, of RGO with plain gradients, and of RGO with projected ones.

    Returns:
      Of each the function and its arguments.
    """
    network, shape = build_network(name)
    data = random_batches(steps, batch_size, shape)
    params = jax.jit(network.init)(jax.random.key(2), data[0][0], 0)["params"]
    sgd, rgo = optax.sgd(1e-3), rgo_jax.rgo(1e-3)
    return [
        (partial(train, network, tx, fused), params, tx.init(params), data)
        for tx, fused in ((sgd, False), (rgo, False), (rgo, True))
    ]


def measure_steps(names: Sequence[str], batch_sizes: Sequence[int], rounds: int) -> list[Any]:
    """A row for each network and batch size."""
    rows = []
    for name in names:
        network, shape = build_network(name)
        params = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, *shape)), 0)
        memory = sum(rgo_jax.projection_memory(params["params"]).values())
        parameters = sum(p.size * 4 for p in jax.tree.leaves(params)) / 2**20
        for batch_size in batch_sizes:
            steps = STEPS.get(name, 3)
            programs = [compile_program(*each) for each in step_functions(name, batch_size, steps)]
            sgd, plain, fused = (t / steps for t in time_in_turns(programs, rounds))
            rows.append(
                {
                    "network": name,
                    "batch": batch_size,
                    "SGD ms": 1e3 * sgd,
                    "plain / SGD": plain / sgd,
                    "counted plain": programs[1].flops / programs[0].flops,
                    "fused / SGD": fused / sgd,
                    "counted fused": programs[2].flops / programs[0].flops,
                    "compile s": programs[2].compile_seconds,
                    "P MiB": memory,
                    "parameters MiB": parameters,
                }
            )
    return rows


def measure_seeds(rounds: int, seeds: int = 5, steps: int = 100) -> list[Any]:
    """A step of several seeds of the MLP, one after the other and all at once."""
    network, shape = build_network("mlp")
    tx = rgo_jax.rgo(1e-3)
    data = random_batches(steps, 10, shape)

    def init(key: jax.Array) -> Any:
        params = network.init(key, data[0][0], 0)["params"]
        return params, tx.init(params)

    def run(carry: Any) -> Any:
        params, state = carry
        return train(network, tx, True, params, state, data)

    carries = jax.vmap(init)(jax.random.split(jax.random.key(2), seeds))
    programs = [
        compile_program(partial(jax.lax.map, run), carries),
        compile_program(jax.vmap(run), carries),
    ]
    one_by_one, at_once = (1e3 * t / steps for t in time_in_turns(programs, rounds))
    return [{"seeds": seeds, "lax.map ms": one_by_one, "vmap ms": at_once}]
