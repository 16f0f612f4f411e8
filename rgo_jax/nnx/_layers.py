"""Layers for Flax NNX that project their own gradients."""

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import jax
import optax
from flax import nnx

from rgo_jax import _fused, _state, _tree


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
            return _fused.dot(x, kernel, lent(self, "kernel"), **options)

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
                lent(self, "kernel"),
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


def lent(layer: nnx.Module, name: str) -> jax.Array | None:
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
    promote_dtype, linear_map = _fused.hooks(function, lent(layer, "bias"))

    def in_a_tuple(arrays: Any, *, dtype: Any) -> Any:
        return promote_dtype(*arrays, dtype=dtype)

    def without_sharding(*args: Any, out_sharding: None = None, **options: Any) -> jax.Array:
        del out_sharding
        return linear_map(*args, **options)

    replaced = {hook: without_sharding, "promote_dtype": in_a_tuple}
    y: jax.Array = base.__call__(_fused.Overlay(layer, **replaced), inputs)
    return y


def projected_parameters(model: nnx.Module) -> list[tuple[Any, str, tuple[Any, ...]]]:
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
    found = _state.find_projections(opt_state)
    projections = {_graph_path(path): projection for path, projection in found.items()}
    borrowers = [
        (layer, f"{name}_projection", projections[path])
        for layer, name, path in projected_parameters(model)
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


def _graph_path(path: _tree.Path) -> tuple[Any, ...]:
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
    own = {path for _, _, path in projected_parameters(model)}
    return _tree.map_with_path(
        lambda path, _: _graph_path(path) in own, arrays(nnx.state(model, wrt))
    )


def arrays(tree: Any) -> Any:
    """The tree without NNX's Variables: grads and optimizer state wrap theirs differently."""
    if hasattr(nnx, "as_pure"):  # flax 0.12
        return nnx.as_pure(tree)
    return nnx.to_arrays(nnx.pure(tree))  # type: ignore[attr-defined]
