"""What RGO costs beside SGD, and consolidation beside rank-one updates.

Every ratio is of times taken in one run, the programs taking turns, and stands beside the ratio
of XLA's own operation counts.
"""

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from rich.console import Console

import rgo_jax
import rgo_jax.linen
from benchmarks import results
from benchmarks.files import replacing
from benchmarks.networks import ARCHITECTURES
from benchmarks.timing import Program, compiled, interleaved

_HIGHEST = jax.lax.Precision.HIGHEST

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


def step_programs(name: str, batch_size: int, steps: int) -> list[Program]:
    """SGD, RGO with plain gradients, and RGO with projected ones: a scan over steps."""
    network, shape = build_network(name)
    data = random_batches(steps, batch_size, shape)
    params = network.init(jax.random.key(2), data[0][0], 0)["params"]
    sgd, rgo = optax.sgd(1e-3), rgo_jax.rgo(1e-3)
    return [
        compiled(partial(train, network, tx, fused), params, tx.init(params), data)
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
            programs = step_programs(name, batch_size, steps)
            sgd, plain, fused = (t / steps for t in interleaved(programs, rounds))
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


def measure_consolidation(dims: Sequence[int], rounds: int, count: int = 1000) -> list[Any]:
    """Folding ``count`` vectors in: in blocks, by calls of `rls_update`, and by a scan of them."""
    rows = []
    for d in dims:
        vectors = jax.random.normal(jax.random.key(0), (count, d)) / d**0.5
        tx = rgo_jax.scale_by_rgo()
        state = tx.init(jnp.zeros((d, 1)))
        # Rank-one updates cost the same each: some stand for all, but enough of them that it does
        # not matter what memory the first ones find.
        few = max(10, min(count, 400 * 1024**2 // d**2))

        def fold(state: Any, vectors: jax.Array) -> Any:
            return rgo_jax.consolidate(state, lambda v: v[:, None], vectors)

        def scanned(state: Any, vectors: jax.Array) -> Any:
            def update(state: Any, v: jax.Array) -> tuple[Any, None]:
                return rgo_jax.rls_update(state, v[:, None]), None

            return jax.lax.scan(update, state, vectors)[0]

        grads = [vector[:, None] for vector in vectors[:few]]

        def called(state: Any = state, grads: Any = grads) -> None:
            for g in grads:
                state = rgo_jax.rls_update(state, g)
            jax.block_until_ready(state)

        called()
        programs = [
            compiled(fold, state, vectors),
            Program(called, 0.0, 0.0),
            compiled(scanned, state, vectors[:few]),
        ]
        block, calls, scan = interleaved(programs, rounds)
        calls, scan = calls * count / few, scan * count / few
        rows.append(
            {
                "d": d,
                "vectors": count,
                "block s": block,
                "rls_update calls s": calls,
                "calls / block": calls / block,
                "rls_update scan s": scan,
                "scan / block": scan / block,
                # Of V P and W' W alone; what else there is shows as a lower rate.
                "block GFLOP/s": 4e-9 * count * d * d / block,
                "scan GB/s": 8e-9 * count * d * d / scan,
            }
        )
    return rows


def measure_convolutions(rounds: int, batch_size: int = 10, steps: int = 3) -> list[Any]:
    """Forward and backward passes of convolutions, by themselves, in a scan, and of five models."""
    rows = []
    for features, shape in ((50, (16, 16, 20)), (128, (16, 16, 64))):
        x = random_batches(steps, batch_size, shape)[0]
        row: dict[str, Any] = {"layer": f"5 x 5, {shape[-1]} to {features}, of {shape[:2]}"}
        programs = []
        for conv in (nn.Conv(features, (5, 5)), rgo_jax.linen.Conv(features, (5, 5))):
            variables = conv.init(jax.random.key(1), x[0])

            def gradient(variables: Any, x: jax.Array, conv: nn.Module = conv) -> Any:
                def loss(variables: Any, x: jax.Array) -> jax.Array:
                    y: Any = conv.apply(variables, x)
                    return jnp.mean(y**2)

                return jax.grad(loss, argnums=(0, 1))(variables, x)

            def scanned(variables: Any, x: jax.Array, gradient: Any = gradient) -> Any:
                def step(carry: Any, x: jax.Array) -> tuple[Any, None]:
                    kernels, inputs = gradient(carry, x)
                    new = jax.tree.map(lambda p, g: p - 1e-3 * g, carry, kernels)
                    return jax.tree.map(lambda p: p + 1e-9 * inputs[0, 0, 0, 0], new), None

                return jax.lax.scan(step, variables, x)[0]

            models = jax.tree.map(lambda p: jnp.stack([p] * 5), variables)
            programs += [
                compiled(gradient, variables, x[0]),
                compiled(scanned, variables, x),
                compiled(jax.vmap(gradient, in_axes=(0, None)), models, x[0]),
            ]
        milliseconds = [1e3 * seconds for seconds in interleaved(programs, rounds)]
        for name, (alone, scan, five) in {
            "flax": milliseconds[:3],
            "rgo_jax": milliseconds[3:],
        }.items():
            row |= {
                f"{name} alone ms": alone,
                f"{name} in a scan ms": scan / steps,
                f"{name} of five models ms": five,
            }
        rows.append(row)
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
        compiled(partial(jax.lax.map, run), carries),
        compiled(jax.vmap(run), carries),
    ]
    one_by_one, at_once = (1e3 * t / steps for t in interleaved(programs, rounds))
    return [{"seeds": seeds, "lax.map ms": one_by_one, "vmap ms": at_once}]


def measure_device(rounds: int) -> dict[str, float]:
    """What a plain float32 matrix product and a copy reach on this device."""
    a = jax.random.normal(jax.random.key(0), (2304, 2304))
    big = jnp.zeros(2**26)
    product, copy = interleaved(
        [
            compiled(lambda a: jnp.matmul(a, a, precision=_HIGHEST), a),
            compiled(lambda b: b + 1, big),
        ],
        rounds,
    )
    return {
        "matrix product GFLOP/s": 2e-9 * len(a) ** 3 / product,
        "copy GB/s": 2e-9 * big.nbytes / copy,
    }


def measure_tasks(
    dims: Sequence[int], counts: Sequence[int], rounds: int, vectors: int = 100
) -> list[Any]:
    """Consolidating one more task, and one update after it, as tasks go by; and what P is then."""
    rows = []
    for d in dims:
        tx = rgo_jax.rgo(0.1)
        params = jnp.zeros((d, 64))
        state, done = tx.init(params), 0

        def fold(state: Any, key: jax.Array, d: int = d) -> Any:
            drawn = jax.random.normal(key, (vectors, d)) / d**0.5
            # Folded in is the sum over the columns.
            return rgo_jax.consolidate(
                state, lambda v: jnp.broadcast_to(v[:, None] / 64, (d, 64)), drawn
            )

        fold = jax.jit(fold)
        for count in counts:
            for task in range(done, count):
                state = fold(state, jax.random.key(task))
            done = count
            programs = [
                compiled(fold, state, jax.random.key(count)),
                compiled(lambda s, p, tx=tx: tx.update(p, s), state, params),
            ]
            consolidation, update = interleaved(programs, rounds)
            projection = state[0].projection
            rows.append(
                {
                    "d": d,
                    "tasks": count,
                    "consolidation ms": 1e3 * consolidation,
                    "update ms": 1e3 * update,
                    "state MiB": sum(leaf.nbytes for leaf in jax.tree.leaves(state)) / 2**20,
                    "smallest eigenvalue of P": float(jnp.linalg.eigvalsh(projection)[0]),
                    "asymmetry": float(jnp.max(jnp.abs(projection - projection.T))),
                }
            )
    return rows


def markdown(sections: dict[str, list[Any]], origin: dict[str, Any]) -> str:
    """The tables as markdown."""
    lines = ["# What RGO costs", ""]
    lines += [f"Generated by `{origin['command']}` at commit {origin['commit'][:10]}"]
    lines += [f"on {origin['device']}, {origin['date']}."]
    lines += ["Medians of programs that take turns in one run. *Counted* ratios are of XLA's own"]
    lines += ["operation counts. *Plain*: the optimizer multiplies gradients by P. *Fused*: the"]
    lines += ["layers of `rgo_jax.linen` project in their backward pass. Calls of `rls_update`"]
    lines += ["write to new memory each; inside a scan they do not.", ""]
    for title, rows in sections.items():
        lines += [f"## {title}", "", "| " + " | ".join(rows[0]) + " |"]
        lines += ["|" + " --- |" * len(rows[0])]
        for row in rows:
            cells = (f"{v:.3g}" if isinstance(v, float) else str(v) for v in row.values())
            lines += ["| " + " | ".join(cells) + " |"]
        lines += [""]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.perf", description=__doc__)
    parser.add_argument("--networks", default=",".join(NETWORKS), help="comma-separated")
    parser.add_argument("--batch-sizes", default="10,64", help="comma-separated")
    parser.add_argument("--dims", default="256,784,1024,2304,4608", help="of consolidation")
    parser.add_argument("--tasks", default="1,10,100,1000", help="after how many to measure")
    parser.add_argument("--rounds", type=int, default=5, help="how often each program runs")
    parser.add_argument("--out", type=Path, default=Path("results") / "perf.md")
    arguments = parser.parse_args(argv)
    names = arguments.networks.split(",")
    for name in names:
        if name not in ARCHITECTURES:
            parser.error(f"unknown network {name!r}; expected some of {', '.join(ARCHITECTURES)}")
    batch_sizes = [int(size) for size in arguments.batch_sizes.split(",")]
    dims = [int(d) for d in arguments.dims.split(",")]
    tasks = [int(count) for count in arguments.tasks.split(",")]
    command = " ".join(["python -m benchmarks.perf", *(sys.argv[1:] if argv is None else argv)])
    # Consolidation first: calls of `rls_update` make a new P each, which takes up to half of their
    # time, unless what ran before has left freed memory of that size with the allocator.
    consolidation = measure_consolidation(dims, arguments.rounds)
    sections = {
        "A training step": measure_steps(names, batch_sizes, arguments.rounds),
        "Folding a task in": consolidation,
        "A convolution, forward and backward, batch 10": measure_convolutions(arguments.rounds),
        "A step of five seeds (MLP, batch 10, fused)": measure_seeds(arguments.rounds),
        "This device": [measure_device(arguments.rounds)],
        "As tasks go by, 100 vectors a task": measure_tasks(
            [dims[0], dims[-1]], tasks, arguments.rounds
        ),
    }
    text = markdown(sections, results.provenance(command))
    with replacing(arguments.out) as temporary:
        temporary.write_text(text)
    Console().print(text, markup=False, highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
