"""The optax transform ``scale_by_rgo`` and the alias ``rgo``."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rgo_jax import _geometry, _projection, _state, _tree, _warnings
from rgo_jax._projected import ProjectedGradient

DEFAULT_MAX_FAN_IN = 8192


def scale_by_rgo(
    *,
    specs: Any = None,
    max_fan_in: int | None = None,
    weight_decay: Any = 0.0,
    normalize: bool = True,
) -> optax.GradientTransformation:
    """Scales gradients by Recursive Gradient Optimization's projection.

    Each gradient leaf, seen as ``g [d, m]`` with ``d`` the fan-in (every axis but the last; a
    vector or a bias is one column), becomes ``(d / tr P) P g``. ``P`` is the identity until the
    first `rgo_jax.rls_update` or `rgo_jax.consolidate`, so the first task is learned as without it;
    afterwards directions that earlier tasks depend on are damped, and the trace rule keeps the
    expected first-order decrease of the loss as it was (Theorem 1).

    Order in a chain: after a preconditioner (Adam would scale the protected directions back up),
    before momentum and the learning rate.

    ``P`` costs ``d * d`` numbers a leaf, whatever the number of tasks. `rgo_jax.projection_memory`
    tells how many MiB before anything is allocated.

    The gradients may be plain, from `jax.grad`, or projected, from `rgo_jax.value_and_grad`, which
    is faster; each leaf says which it is.

    Args:
      specs: a tree of `rgo_jax.ProjectionSpec` for the parameters that the default does not fit:
        attention kernels, whose fan-in is one axis, kernels stored as ``[out, in]``, and
        embeddings, whose fan-in is too large for a full P. `rgo_jax.infer_specs` makes it. It names
        the parameters as they are called, as a tree or by path (``{"Dense_0/kernel": spec}``), and
        need not have all of them; a spec holds for everything below it. Or a function of a path and
        the leaf there that returns a spec or None; with `optax.inject_hyperparams`, name it in
        ``static_args``.
      max_fan_in: the largest full P or block of one accepted; 8192 if None, at which one ``P``
        takes 256 MiB in float32. With `optax.inject_hyperparams`, name it in ``static_args``.
      weight_decay: strength of an L2 penalty, ``weight_decay / 2 * |params|^2``, whose gradient is
        projected like the loss's. `optax.add_decayed_weights` after RGO would move what earlier
        tasks depend on. A scalar, or a tree of scalars like the parameters; one at a branch holds
        for all leaves below, and parameters that it does not name have none. May be traced.
      normalize: False to leave the trace rule out: ``P g`` instead of ``(d / tr P) P g``. No
        direction then takes a larger step than SGD's: a layer
        that earlier tasks use in every direction moves little, where the trace rule gives it back
        SGD's full step. Later tasks are learned in smaller steps; by how much, ``alpha`` decides.

    Returns:
      A `optax.GradientTransformation` whose state is an `RgoState`.

    Raises:
      ValueError: from ``init``, for a leaf without axes or numbers, a fan-in above ``max_fan_in``
        or ``specs`` that do not fit; from ``update``, for gradients that do not match the
        state, or a ``weight_decay`` that is negative or comes without ``params``.
      TypeError: from ``init``, for a leaf that is not real floating point.

    Warns:
      BatchNormWarning: from ``init``, if a parameter's name says that it belongs to batch
        normalisation.

    Example:
      >>> import jax.numpy as jnp, optax, rgo_jax
      >>> tx = optax.chain(rgo_jax.scale_by_rgo(), optax.scale_by_learning_rate(0.1))
      >>> params = {"kernel": jnp.zeros((3, 2))}
      >>> state = tx.init(params)
      >>> grads = {"kernel": jnp.ones((3, 2))}
      >>> updates, state = tx.update(grads, state, params)
      >>> float(updates["kernel"][0, 0])  # nothing is protected yet: this is SGD
      -0.10000000149011612

    References:
      Liu and Liu, `Continual Learning with Recursive Gradient Optimization
      <https://arxiv.org/abs/2201.12522>`_, ICLR 2022, Algorithm 1.
    """
    if max_fan_in is None:
        limit = DEFAULT_MAX_FAN_IN
    elif isinstance(max_fan_in, jax.core.Tracer):
        raise TypeError(
            "max_fan_in is traced, but it decides shapes. Under optax.inject_hyperparams pass "
            "static_args='max_fan_in'."
        )
    else:
        limit = int(max_fan_in)
        if limit < 1:
            raise ValueError(f"max_fan_in is {max_fan_in}; expected 1 or more.")

    def init_fn(params: optax.Params) -> _state.RgoState:
        layouts = _geometry.layouts(specs, params)
        # Of masked ones too: what leaks is not the parameters.
        _warnings.warn_of_batch_norm(_tree.leaves_by_path(params, optax.MaskedNode))

        def identity(path: _tree.Path, leaf: jax.Array) -> jax.Array:
            shape, dtype = layouts[path].shape, jnp.result_type(leaf)
            if len(shape) > 1 and shape[-1] > limit:
                raise ValueError(
                    f"Parameter {_tree.path_name(path)!r} with shape {jnp.shape(leaf)} has "
                    f"fan-in {shape[-1]}, above max_fan_in={limit}: its P would take "
                    f"{_projection.mebibytes(shape, dtype):.0f} MiB. Raise max_fan_in; or have "
                    "less of P, with specs=ProjectionSpec(diagonal=True) or "
                    "ProjectionSpec(blocks=...); or exclude the parameter: "
                    "optax.masked(rgo_jax.scale_by_rgo(), mask)."
                )
            return _projection.identity(shape, dtype)

        def geometry(path: _tree.Path, _: jax.Array) -> dict[str, None]:
            return layouts[path].geometry.to_tree()

        params = _tree.unboxed(params)
        projection = _tree.map_with_path(identity, params)
        return _state.RgoState(
            num_updates=jnp.zeros([], jnp.int32),
            projection=projection,
            num_skipped=jax.tree.map(lambda _: jnp.zeros([], jnp.int32), projection),
            energy=jax.tree.map(lambda p: jnp.zeros(2, p.dtype), projection),
            geometry=_tree.map_with_path(geometry, params),
        )

    def update_fn(
        updates: optax.Updates,
        state: _state.RgoState,
        params: optax.Params | None = None,
    ) -> tuple[optax.Updates, _state.RgoState]:
        projections = _state.projections([state])
        _state.leaves_of(updates, projections, "gradients", others=False)
        decay = _decay_by_path(weight_decay, updates)
        if decay and params is None:
            raise ValueError("weight_decay needs the parameters: update(grads, state, params).")
        weights = _state.leaves_of(params, projections, "parameters") if decay else {}

        def update_leaf(path: _tree.Path, leaf: jax.Array | ProjectedGradient) -> jax.Array:
            p, geometry = projections[path]
            gradient = jnp.asarray(_state.gradient_of(leaf))
            matrix = geometry.to_matrix(gradient).astype(p.dtype)
            is_projected = isinstance(leaf, ProjectedGradient)
            if path in decay:
                weight = geometry.to_matrix(jnp.asarray(weights[path], p.dtype))
                penalty = jnp.asarray(decay[path], p.dtype) * weight
                matrix += _projection.project(p, penalty) if is_projected else penalty
            if not is_projected:
                matrix = _projection.project(p, matrix)
            if normalize:
                matrix = _projection.normalize(p, matrix)
            return geometry.from_matrix(matrix).astype(gradient.dtype)

        return _tree.map_with_path(update_leaf, updates), state

    return optax.GradientTransformation(init_fn, update_fn)


def _decay_by_path(weight_decay: Any, updates: optax.Updates) -> dict[_tree.Path, Any]:
    """The strengths of the penalty that are not 0 for sure."""
    is_number = isinstance(weight_decay, int | float | np.number)
    if is_number and weight_decay == 0:
        return {}
    found = _tree.broadcast_prefix(weight_decay, updates, (), "weight_decay")
    for path, value in found.items():
        # A traced value is not looked at.
        if not isinstance(value, jax.core.Tracer) and not (0 <= value < np.inf):
            raise ValueError(
                f"weight_decay is {value} for {_tree.path_name(path)!r}; expected a finite number, "
                "0 or more."
            )
    return found


def rgo(
    learning_rate: optax.ScalarOrSchedule,
    momentum: float | None = None,
    nesterov: bool = False,
    *,
    specs: Any = None,
    max_fan_in: int | None = None,
    weight_decay: Any = 0.0,
    normalize: bool = True,
) -> optax.GradientTransformation:
    """Recursive Gradient Optimization: SGD that does not forget, without replay.

    Train a task with it as with `optax.sgd`. When the task is done, fold it into the state with
    `rgo_jax.consolidate` (or batch by batch with `rgo_jax.rls_update`) and go on to the next.

    Args:
      learning_rate: a scalar or a schedule. The paper uses a constant; decaying the rate inside
        each task forgets less. A schedule's count goes on from task to task: set it back by
        `rgo_jax.next_task`, or have the schedule start anew
        (``lambda count: schedule(count % steps_per_task)``).
      momentum: decay of the momentum, or None for none, as in the paper. It is applied to the
        projected gradients, and what has built up in one task moves the parameters at the start of
        the next, unprojected: between tasks set it back by `rgo_jax.next_task`.
      nesterov: whether to use Nesterov momentum.
      specs: see `scale_by_rgo`.
      max_fan_in: see `scale_by_rgo`.
      weight_decay: see `scale_by_rgo`.
      normalize: see `scale_by_rgo`.

    Returns:
      The `optax.GradientTransformation`.

    Example:
      >>> import jax, jax.numpy as jnp, optax, rgo_jax
      >>> def loss(w, x, y):
      ...     return jnp.mean(optax.squared_error(x @ w, y))
      >>> def curvature(w, x, y):
      ...     return rgo_jax.curvature_output(x @ w, y, loss="squared_error")
      >>> w = jnp.zeros((2, 1))
      >>> tx = rgo_jax.rgo(0.1)
      >>> state = tx.init(w)
      >>> x, y = jnp.array([[1.0, 0.0]]), jnp.array([[1.0]])
      >>> updates, state = tx.update(jax.grad(loss)(w, x, y), state)
      >>> w = optax.apply_updates(w, updates)
      >>> state = rgo_jax.rls_update(state, jax.grad(curvature)(w, x, y))
      >>> grad = jnp.array([[1.0], [1.0]])  # of the next task
      >>> updates, state = tx.update(grad, state)
      >>> [round(float(u), 3) for u in updates[:, 0]]  # the first task's direction is protected
      [-0.001, -0.199]

    References:
      Liu and Liu, `Continual Learning with Recursive Gradient Optimization
      <https://arxiv.org/abs/2201.12522>`_, ICLR 2022.
    """
    if learning_rate is None:
        raise ValueError("learning_rate is None; expected a scalar or a schedule.")
    return optax.chain(
        scale_by_rgo(
            specs=specs, max_fan_in=max_fan_in, weight_decay=weight_decay, normalize=normalize
        ),
        optax.identity() if momentum is None else optax.trace(momentum, nesterov),
        optax.scale_by_learning_rate(learning_rate),
    )
