"""Times programs beside one another, in turns, so that all see the same machine."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax


class Program(NamedTuple):
    """A compiled program and its arguments.

    Attributes:
      run: runs it once, to the end.
      flops: XLA's count of operations.
      compile_seconds: to compile it.
    """

    run: Callable[[], Any]
    flops: float
    compile_seconds: float


def compile_program(function: Callable[..., Any], *args: Any) -> Program:
    """Compiles a function for these arguments and runs it once."""
    started = time.perf_counter()
    executable = jax.jit(function).lower(*args).compile()
    seconds = time.perf_counter() - started
    analysis = executable.cost_analysis() or {}
    program = Program(
        lambda: jax.block_until_ready(executable(*args)),
        analysis.get("flops", 0.0),
        seconds,
    )
    program.run()
    return program


def time_in_turns(programs: Sequence[Program], rounds: int) -> list[float]:
    """The median seconds of each program, taking turns so that all see the same machine."""
    times: list[list[float]] = [[] for _ in programs]
    for _ in range(rounds):
        for program, own in zip(programs, times, strict=True):
            started = time.perf_counter()
            program.run()
            own.append(time.perf_counter() - started)
    return [statistics.median(own) for own in times]
