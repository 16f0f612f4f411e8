"""Convolutions beside Flax's own, and what this device reaches at all."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

import rgo_jax
import rgo_jax.linen
from benchmarks.perf.timing import compile_program, time_in_turns
from benchmarks.perf.training import random_batches

_HIGHEST = jax.lax.Precision.HIGHEST

# Output channels and input shapes.
CONVOLUTIONS = ((50, (16, 16, 20)), (128, (16, 16, 64)))
# Rows of a square matrix, and how many numbers are copied.
MATRIX, COPY = 2304, 2**26


def measure_convolutions(rounds: int, batch_size: int = 10, steps: int = 3) -> list[Any]:
    """Forward and backward passes of convolutions, by themselves, in a scan, and of five models."""
    rows = []
    for features, shape in CONVOLUTIONS:
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
                compile_program(gradient, variables, x[0]),
                compile_program(scanned, variables, x),
                compile_program(jax.vmap(gradient, in_axes=(0, None)), models, x[0]),
            ]
        milliseconds = [1e3 * seconds for seconds in time_in_turns(programs, rounds)]
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


def measure_device(rounds: int) -> dict[str, float]:
    """What a plain float32 matrix product and a copy reach on this device."""
    a = jax.random.normal(jax.random.key(0), (MATRIX, MATRIX))
    big = jnp.zeros(COPY)
    product, copy = time_in_turns(
        [
            compile_program(lambda a: jnp.matmul(a, a, precision=_HIGHEST), a),
            compile_program(lambda b: b + 1, big),
        ],
        rounds,
    )
    return {
        "matrix product GFLOP/s": 2e-9 * len(a) ** 3 / product,
        "copy GB/s": 2e-9 * big.nbytes / copy,
    }
