"""Folding a finished task into P, in blocks and by rank-one updates, and as tasks go by."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

import rgo_jax
import rgo_jax.linen
from benchmarks.perf.timing import Program, compile_program, time_in_turns


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
            compile_program(fold, state, vectors),
            Program(called, 0.0, 0.0),
            compile_program(scanned, state, vectors[:few]),
        ]
        block, calls, scan = time_in_turns(programs, rounds)
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
                compile_program(fold, state, jax.random.key(count)),
                compile_program(lambda s, p, tx=tx: tx.update(p, s), state, params),
            ]
            consolidation, update = time_in_turns(programs, rounds)
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
