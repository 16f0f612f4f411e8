"""RGO's layers and consolidation for Flax NNX."""

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import jax
import optax
from flax import nnx

from rgo_jax import _batch_norm, _fel, _fused, _geometry, _rls, _state


class Encoding(nnx.Variable):
    """The permutations of all tasks that a `FeatureEncoding` looks up."""


class FeatureEncoding(nnx.Module):
    """Feature Encoding Layer: permutes the features for the task at hand.

    Put one on the input and after each layer, each with its own ``layer`` number. It has no
    parameters. See `rgo_jax.fel_encode`; `rgo_jax.linen.FeatureEncoding` is the same for Linen.

    Args:
      layer: integer, different for each layer of a network.
      seed: integer, the same for a whole network.
      axis: the axis of the features: the last one, channels for a convolution.
      num_features: of the input; only with ``num_tasks``.
      num_tasks: how many tasks there are at most, to draw their permutations now and keep them in
        an `Encoding` ``[num_tasks, num_features]``. For scans over steps on a GPU, where each call
        would sort; see `rgo_jax.linen.encodings`. A ``task_id`` is below it then, which is not
        checked where it is traced. An `Encoding` is no `flax.nnx.Param`: it is not trained, but is
        part of the model's state. By default permutations are drawn in each call.

    Raises:
      ValueError: one of ``num_features`` and ``num_tasks`` without the other, or below 1; in a call
        as `rgo_jax.linen.FeatureEncoding`.

    Example:
      >>> import jax.numpy as jnp, rgo_jax.nnx
      >>> encode = rgo_jax.nnx.FeatureEncoding(layer=1)
      >>> print(encode(jnp.arange(5), task_id=3))
      [0 4 3 2 1]
      >>> encode = rgo_jax.nnx.FeatureEncoding(layer=1, num_features=5, num_tasks=10)
      >>> print(encode(jnp.arange(5), task_id=3))
      [0 4 3 2 1]

    References:
      Section 4.4. https://arxiv.org/abs/2201.12522
    """

    def __init__(
        self,
        layer: int = 0,
        seed: int = 0,
        axis: int = -1,
        num_features: int | None = None,
        num_tasks: int | None = None,
    ) -> None:
        if (num_features is None) != (num_tasks is None):
            raise ValueError(
                f"num_features is {num_features} and num_tasks {num_tasks}; expected both or none."
            )
        self.layer = layer
        self.seed = seed
        self.axis = axis
        self.permutations = (
            None
            if num_features is None or num_tasks is None
            else Encoding(_fel.table(num_tasks, num_features, seed=seed, layer=layer))
        )

    def __call__(self, x: jax.Array, task_id: jax.typing.ArrayLike) -> jax.Array:
        """Permutes ``x`` along the feature axis for ``task_id``, an integer that may be traced."""
        if self.permutations is not None:
            return _fel.look_up(
                x,
                self.permutations[...],
                task_id,
                axis=self.axis,
                name=f"FeatureEncoding(layer={self.layer})",
            )
        return _fel.fel_encode(x, task_id, seed=self.seed, layer=self.layer, axis=self.axis)


class Projection(nnx.Variable):
    """A projection that `projecting` lends to a layer."""


class Linear(nnx.Linear):
    """`flax.nnx.Linear` that projects its own gradients, at little more than SGD's cost.

    The same arguments, parameters, initial values and outputs. Inside `projecting` its parameters'
    gradients come out of the backward pass already projected, without the product ``[d, d] x
    [d, m]`` wherever that is the dearer way. Outside it is `flax.nnx.Linear`.

    Tell the optimizer not to project again: ``rgo_jax.rgo(0.1, projected=True)`` where all layers
    under RGO are of this kind, or ``projected=projected_by(model)`` where some are.

    Forward-mode differentiation (`jax.jvp`) of the projected layer is not supported.

    Example:
      >>> import jax.numpy as jnp, rgo_jax, rgo_jax.nnx
      >>> from flax import nnx
      >>> model = rgo_jax.nnx.Linear(4, 3, rngs=nnx.Rngs(0))
      >>> optimizer = nnx.Optimizer(model, rgo_jax.rgo(0.1, projected=True), wrt=nnx.Param)
      >>> @nnx.jit
      ... def step(model, optimizer, x):
      ...     with rgo_jax.nnx.projecting(model, optimizer.opt_state):
      ...         grads = nnx.grad(lambda model: jnp.mean(model(x) ** 2))(model)
      ...     optimizer.update(model, grads)
      >>> step(model, optimizer, jnp.ones((2, 4)))

    References:
      Appendix B.2. https://arxiv.org/abs/2201.12522
    """

    @functools.wraps(nnx.Linear.__init__)  # type: ignore[misc]
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _borrow_nothing(self)

    def __call__(self, inputs: jax.Array, out_sharding: Any = None) -> jax.Array:
        """The layer's output ``[..., out_features]`` of ``inputs [..., in_features]``."""

        def dot_general(
            x: jax.Array, kernel: jax.Array, dimension_numbers: Any, **options: Any
        ) -> jax.Array:
            del dimension_numbers  # Linear always contracts the last axis of x.
            return _fused.dot(x, kernel, _lent(self, "kernel"), **options)

        return _with_hook(self, nnx.Linear, "dot_general", dot_general, inputs, out_sharding)


class Conv(nnx.Conv):
    """`flax.nnx.Conv` that projects its own gradients; see `Linear`.

    The same arguments, parameters, initial values and outputs. It also trains at full speed inside
    `jax.lax.scan` on CPUs, where XLA's own convolutions do not.

    Example:
      >>> import jax.numpy as jnp, rgo_jax.nnx
      >>> from flax import nnx
      >>> model = rgo_jax.nnx.Conv(3, 8, (3, 3), rngs=nnx.Rngs(0))
      >>> model.kernel.shape, model(jnp.ones((2, 6, 6, 3))).shape
      ((3, 3, 3, 8), (2, 6, 6, 8))

    References:
      Appendix B.2. https://arxiv.org/abs/2201.12522
    """

    @functools.wraps(nnx.Conv.__init__)  # type: ignore[misc]
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _borrow_nothing(self)

    def __call__(self, inputs: jax.Array, out_sharding: Any = None) -> jax.Array:
        """The layer's output ``[..., *spatial, out]`` of ``inputs [..., *spatial, in]``."""

        def conv_general_dilated(
            x: jax.Array, kernel: jax.Array, window_strides: Any, padding: Any, **options: Any
        ) -> jax.Array:
            return _fused.conv(
                x,
                kernel,
                _lent(self, "kernel"),
                window_strides=window_strides,
                padding=padding,
                **options,
            )

        return _with_hook(
            self, nnx.Conv, "conv_general_dilated", conv_general_dilated, inputs, out_sharding
        )


_PARAMETERS = ("kernel", "bias")


def _borrow_nothing(layer: nnx.Module) -> None:
    for name in _PARAMETERS:
        setattr(layer, f"{name}_projection", nnx.data(None))


def _lent(layer: nnx.Module, name: str) -> jax.Array | None:
    """The projection that a layer has been lent for one of its parameters."""
    projection = getattr(layer, f"{name}_projection")
    return None if projection is None else projection[...]


def _with_hook(
    layer: Any,
    base: type[Any],
    hook: str,
    function: Callable[..., jax.Array],
    inputs: jax.Array,
    out_sharding: Any,
) -> jax.Array:
    """Calls Flax's own layer on the layer's parameters, with its linear map replaced.

    See `rgo_jax._fused.hooks`.
    """
    ours = (hook, "promote_dtype", "preferred_element_type", "mask")
    given = {"out_sharding": (out_sharding, None)}
    for name, parameter in inspect.signature(base.__init__).parameters.items():
        if name in ours:
            given[name] = (getattr(layer, name), parameter.default)
    for name, (value, default) in given.items():
        if value is not default:
            raise ValueError(
                f"{name} is set on rgo_jax.nnx.{base.__name__}({layer.in_features}, "
                f"{layer.out_features}), which does not support it. Use flax.nnx.{base.__name__}."
            )
    promote_dtype, linear_map = _fused.hooks(function, _lent(layer, "bias"))

    def in_a_tuple(arrays: Any, *, dtype: Any) -> Any:
        return promote_dtype(*arrays, dtype=dtype)

    def without_sharding(*args: Any, out_sharding: None = None, **options: Any) -> jax.Array:
        del out_sharding
        return linear_map(*args, **options)

    replaced = {hook: without_sharding, "promote_dtype": in_a_tuple}
    y: jax.Array = base.__call__(_fused.Overlay(layer, **replaced), inputs)
    return y


def _projected_parameters(model: nnx.Module) -> list[tuple[Any, str, tuple[Any, ...]]]:
    """Each layer of this module with the name of a parameter and that parameter's path.

    A parameter that layers share has one path, in the model's state as in the optimizer's.

    Raises:
      ValueError: a layer of another kind shares it, which would not project its gradient.
    """
    nodes = list(nnx.iter_graph(model))
    paths: dict[int, tuple[Any, ...]] = {}
    for path, node in nodes:
        if isinstance(node, nnx.Variable):
            paths.setdefault(id(node), path)  # The first, as in the model's state.
    found, shared = [], {}
    for path, node in nodes:
        if not isinstance(node, nnx.Module):
            continue
        for name, value in vars(node).items():
            if not isinstance(value, nnx.Variable):
                continue
            if isinstance(node, Linear | Conv) and name in _PARAMETERS:
                found.append((node, name, paths[id(value)]))
            else:
                shared[paths[id(value)]] = path
    for _, _, parameter in found:
        if parameter in shared:
            raise ValueError(
                f"The parameter {'/'.join(map(str, parameter))!r} is shared with the layer "
                f"{'/'.join(map(str, shared[parameter]))!r}, which does not project gradients. Use "
                "layers of rgo_jax.nnx for both, or for neither."
            )
    return found


@contextlib.contextmanager
def projecting(model: nnx.Module, opt_state: optax.OptState) -> Iterator[None]:
    """Lends the layers of this module their projections, so that they project their gradients.

    Compute gradients inside it and nothing else; outside, as `consolidate` needs them, they are the
    plain ones. Pure bookkeeping, under `nnx.jit` as well as outside.

    Args:
      model: the whole model that the optimizer was made with, or what `nnx.merge` makes of its
        parts inside a loss function.
      opt_state: the state of the optimizer that trains it: ``optimizer.opt_state``.

    Yields:
      None.

    Raises:
      ValueError: no `rgo_jax.RgoState` in ``opt_state``; none of its projections is for a layer of
        this module; or such a layer shares a parameter with a layer of another kind.

    Example:
      >>> import jax.numpy as jnp, rgo_jax, rgo_jax.nnx
      >>> from flax import nnx
      >>> model = rgo_jax.nnx.Linear(4, 3, rngs=nnx.Rngs(0))
      >>> optimizer = nnx.Optimizer(model, rgo_jax.rgo(0.1, projected=True), wrt=nnx.Param)
      >>> with rgo_jax.nnx.projecting(model, optimizer.opt_state):
      ...     grads = nnx.grad(lambda model: jnp.mean(model(jnp.ones((1, 4))) ** 2))(model)
    """
    projections: dict[tuple[Any, ...], jax.Array] = {}

    def collect(state: _state.RgoState) -> None:
        for path, projection in _geometry.leaves_by_path(state.projection).items():
            projections[_graph_path(path)] = projection

    _state.map_states(collect, opt_state)
    borrowers = [
        (layer, f"{name}_projection", projections[path])
        for layer, name, path in _projected_parameters(model)
        if path in projections
    ]
    if not borrowers:
        raise ValueError(
            "None of the projections in the optimizer's state is for a rgo_jax.nnx.Linear or Conv "
            f"of the {type(model).__name__}. Use those layers, or let the optimizer project: "
            "rgo_jax.rgo(...) without projected, and no projecting()."
        )
    before = [getattr(layer, name) for layer, name, _ in borrowers]
    try:
        for layer, name, projection in borrowers:
            setattr(layer, name, Projection(projection))
        yield
    finally:
        for (layer, name, _), projection in zip(borrowers, before, strict=True):
            setattr(layer, name, nnx.data(projection))


def _graph_path(path: _geometry.Path) -> tuple[Any, ...]:
    """A pytree path as `nnx.iter_graph` writes it."""
    return tuple(key.key if isinstance(key, jax.tree_util.DictKey) else key for key in path)


def projected_by(model: nnx.Module, wrt: Any = nnx.Param) -> Any:
    """Which parameters' gradients a model projects by itself, for ``rgo(projected=...)``.

    For models that mix this module's layers with others.

    Args:
      model: the model.
      wrt: the filter that its optimizer is given.

    Returns:
      A tree of bools like the parameters.

    Example:
      >>> import rgo_jax, rgo_jax.nnx
      >>> from flax import nnx
      >>> rngs = nnx.Rngs(0)
      >>> model = nnx.Sequential(rgo_jax.nnx.Linear(4, 3, rngs=rngs), nnx.LayerNorm(3, rngs=rngs))
      >>> tx = rgo_jax.rgo(0.1, projected=rgo_jax.nnx.projected_by(model))
      >>> optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    """
    own = {path for _, _, path in _projected_parameters(model)}
    return _geometry.map_with_path(
        lambda path, _: _graph_path(path) in own, _arrays(nnx.state(model, wrt))
    )


def consolidate(
    model: nnx.Module,
    optimizer: nnx.Optimizer,
    output_fn: Callable[[Any, Any], jax.Array],
    batches: Any,
    *,
    alpha: jax.typing.ArrayLike = 1.0,
    block_size: int = 128,
) -> None:
    """Folds a finished task into the state of an NNX optimizer, in place.

    `rgo_jax.consolidate` for `flax.nnx.Optimizer`; call it inside your own `nnx.jit`.

    Args:
      model: the model that the optimizer trains. It is not changed.
      optimizer: an optimizer whose transform contains `rgo_jax.scale_by_rgo`.
      output_fn: ``(model, batch) -> scalar``, the `rgo_jax.curvature_output` of one batch.
      batches: as for `rgo_jax.consolidate`.
      alpha: as for `rgo_jax.consolidate`.
      block_size: as for `rgo_jax.consolidate`.

    Raises:
      ValueError: as `rgo_jax.consolidate`; or it is called inside `projecting`.

    Warns:
      BatchNormWarning: if the model has batch normalisation.

    Example:
      >>> import jax.numpy as jnp, rgo_jax, rgo_jax.nnx
      >>> from flax import nnx
      >>> model = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
      >>> optimizer = nnx.Optimizer(model, rgo_jax.rgo(0.1), wrt=nnx.Param)
      >>> @nnx.jit
      ... def end_of_task(model, optimizer, x, y):
      ...     def output(model, batch):
      ...         return rgo_jax.curvature_output(model(batch[0]), batch[1])
      ...     rgo_jax.nnx.consolidate(model, optimizer, output, (x, y))
      >>> x, y = jnp.ones((5, 10, 4)), jnp.zeros((5, 10), jnp.int32)
      >>> end_of_task(model, optimizer, x, y)
      >>> int(optimizer.opt_state[0].num_updates[...])
      5
    """
    for layer, name, _ in _projected_parameters(model):
        if _lent(layer, name) is not None:
            raise ValueError(
                "consolidate was called inside projecting(), where gradients are projected ones. "
                "Call it outside."
            )
    if nnx.to_flat_state(nnx.state(model, nnx.BatchStat)):
        _batch_norm.warn(f"{type(model).__name__} has batch normalisation")
    graph, params, rest = nnx.split(model, optimizer.wrt, ...)  # type: ignore[misc]

    def output(params: Any, batch: Any) -> jax.Array:
        # A copy of what else there is: a forward pass may count its steps or draw random numbers.
        return output_fn(nnx.merge(graph, params, rest, copy=True), batch)

    state = _rls.consolidate(
        _arrays(optimizer.opt_state),
        lambda batch: _arrays(jax.grad(output)(params, batch)),
        batches,
        alpha=alpha,
        block_size=block_size,
    )
    nnx.update(optimizer.opt_state, nnx.state(state))


def _arrays(tree: Any) -> Any:
    """The tree without NNX's Variables: grads and optimizer state wrap theirs differently."""
    if hasattr(nnx, "as_pure"):  # flax 0.12
        return nnx.as_pure(tree)
    return nnx.to_arrays(nnx.pure(tree))  # type: ignore[attr-defined]
