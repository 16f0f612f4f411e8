"""Recursive Gradient Optimization, the library's own method."""

import dataclasses
import sys
from typing import Any

import jax
import jax.numpy as jnp
import optax

import rgo_jax
from benchmarks.methods.base import (
    Problem,
    check_choice,
    check_count,
    check_momentum,
    check_positive,
    on_problem,
    option,
    sgd_optimizer,
)
from benchmarks.methods.unused import COUNT, unsure_if_unused
from rgo_jax import baselines

COLUMNS = ("mean", "sum", "signs", "each")
CLASSES = ("all", "present")


@dataclasses.dataclass(frozen=True)
class Rgo:
    """Options of `rgo`; the defaults are the paper's text, but for alpha.

    Raises:
      ValueError: a value outside its range.
    """

    alpha: float = option(0.01, "RGO: smaller protects more; 1 in the paper's text")
    relative_alpha: bool = option(
        False, "RGO: alpha in units of the mean squared length of each parameter's vectors"
    )
    columns: str = option(
        "mean", f"RGO: what of a gradient's columns is folded in, one of {', '.join(COLUMNS)}"
    )
    normalize: bool = option(True, "RGO: the trace rule; without it later tasks take smaller steps")
    protect_biases: bool = option(True, "RGO: whether biases have a P")
    curvature_batches: int | None = option(
        None, "RGO: how many of a task's batches are folded in; all of them if not told", int
    )
    curvature_classes: str = option(
        "all",
        "RGO: the softmax of the curvature pass runs over all of a task's classes, or over those "
        "that are present in the batch",
    )
    online: bool = option(
        False, "RGO: fold each batch in before its own step, in place of the task at its end"
    )
    unused_weight: float = option(
        0.0,
        "RGO: weight of a loss under encodings (FEL) that no task uses, where the network learns "
        "to be unsure, so that it can find out task ids",
    )
    momentum: float = option(0.0, "of SGD; it begins each task at zero")

    def __post_init__(self) -> None:
        """Checks them."""
        check_positive("alpha", self.alpha)
        check_choice("columns", self.columns, COLUMNS)
        check_choice("curvature_classes", self.curvature_classes, CLASSES)
        check_momentum(self.momentum)
        if self.unused_weight:
            check_positive("unused_weight", self.unused_weight)
        if self.curvature_batches is not None:
            check_count("curvature_batches", self.curvature_batches)


def unused_encodings(options: Rgo) -> int:
    """Those that no task has and the network learns to be unsure under."""
    return COUNT if options.unused_weight else 0


def rgo(problem: Problem) -> baselines.Method:
    """Recursive Gradient Optimization, Algorithm 1. https://arxiv.org/abs/2201.12522"""
    options: Rgo = problem.options
    is_protected = _with_biases if options.protect_biases else _without_biases
    shapes = jax.eval_shape(problem.init, jax.random.key(0))
    specs = rgo_jax.infer_specs(
        lambda params, x: problem.logits(params, x, jnp.int32(0)),
        shapes,
        jnp.zeros((1, *problem.input_shape)),
        max_fan_in=sys.maxsize,  # Too large a P is refused, not made smaller.
    )
    optimizer = optax.chain(
        optax.masked(
            rgo_jax.scale_by_rgo(specs=specs, normalize=options.normalize),
            lambda params: is_protected(params, problem.protected(params)),
        ),
        sgd_optimizer(problem),
    )
    # The library has no sum: it is the mean with an alpha of its own for each width.
    columns: Any = "mean" if options.columns == "sum" else options.columns

    def alpha_of(params: Any) -> Any:
        # In units of the vectors' own length a sum is no different from a mean.
        if options.columns != "sum" or options.relative_alpha:
            return options.alpha
        protected = is_protected(params, problem.protected(params))
        return jax.tree.map(
            lambda leaf, keep: (
                options.alpha / leaf.shape[-1] ** (2 if leaf.ndim > 1 else 0) if keep else None
            ),
            params,
            protected,
        )

    def curvature(logits: jax.Array, y: jax.Array) -> jax.Array:
        where = None
        if options.curvature_classes == "present":
            where = jnp.any(jax.nn.one_hot(y, problem.num_classes, dtype=bool), axis=0)
        return rgo_jax.curvature_output(logits, y, where=where)

    method = on_problem(
        problem,
        baselines.rgo(
            problem.logits,
            optimizer,
            alpha=alpha_of(shapes),
            relative_alpha=options.relative_alpha,
            columns=columns,
            batches=options.curvature_batches,
            curvature=curvature,
            losses=problem.losses,
        ),
    )
    if options.unused_weight:
        method = unsure_if_unused(problem, optimizer, method, options.unused_weight)
    if not options.online:
        return method

    def step(
        state: Any, batch: tuple[jax.Array, jax.Array], task: baselines.Task
    ) -> tuple[Any, jax.Array]:
        def output(params: Any) -> jax.Array:
            x, y = batch
            return curvature(problem.logits(params, x, task.id), y)

        opt_state = rgo_jax.rls_update(
            state.opt_state,
            jax.grad(output)(state.params),
            alpha=alpha_of(state.params),
            relative_alpha=options.relative_alpha,
            columns=columns,
        )
        return method.step(state._replace(opt_state=opt_state), batch, task)

    def end_task(state: Any, task: baselines.Task) -> Any:
        del task  # folded in already
        return state

    return method._replace(step=step, end_task=end_task)


def _with_biases(params: Any, protected: Any) -> Any:
    """The mask ``protected``, a prefix of ``params``, leaf by leaf."""
    return jax.tree.map(lambda keep, tree: jax.tree.map(lambda _: keep, tree), protected, params)


def _without_biases(params: Any, protected: Any) -> Any:
    """The same without vectors."""
    matrices = jax.tree.map(lambda leaf: leaf.ndim > 1, params)
    whole = _with_biases(params, protected)
    return jax.tree.map(lambda keep, is_matrix: keep and is_matrix, whole, matrices)
