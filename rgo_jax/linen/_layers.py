"""Layers for Flax Linen that project their own gradients."""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import optax

from rgo_jax import _fused, _state, _tree
from rgo_jax.linen import _recording


class Dense(nn.Dense):
    """`flax.linen.Dense` that projects its own gradients, at little more than SGD's cost.

    The same attributes, parameters, initial values and outputs. Applied with a variable collection
    ``"projections"`` (see `projections`), its parameters' gradients come out of the backward pass
    already projected, without the product ``[d, d] x [d, m]`` wherever that is the dearer way.
    Applied without the collection it is `flax.linen.Dense`.

    Tell the optimizer not to project again: ``rgo_jax.rgo(0.1, projected=True)`` where all layers
    under RGO are of this kind, or ``projected=projected_by(model, params, x)`` where some are.
    Leave the collection out where gradients are for `rgo_jax.rls_update` or `rgo_jax.consolidate`:
    they need plain ones, and the latter refuses others.

    Flax's lifted transforms hand on only the collections they are told of: `flax.linen.scan` needs
    ``variable_axes={"params": 0, "projections": 0}``. Without, the layers do not project, which
    `projected_by` sees and ``projected=True`` does not.

    Forward-mode differentiation (`jax.jvp`) of the projected layer is not supported.

    Example:
      >>> import jax, jax.numpy as jnp, rgo_jax, rgo_jax.linen
      >>> model = rgo_jax.linen.Dense(3)
      >>> x = jnp.ones((2, 4))
      >>> params = model.init(jax.random.key(0), x)["params"]
      >>> tx = rgo_jax.rgo(0.1, projected=True)
      >>> opt_state = tx.init(params)
      >>> @jax.jit
      ... def step(params, opt_state, x):
      ...     projections = rgo_jax.linen.projections(opt_state)
      ...     def loss(params):
      ...         y = model.apply({"params": params, "projections": projections}, x)
      ...         return jnp.mean(y ** 2)
      ...     grads = jax.grad(loss)(params)
      ...     return tx.update(grads, opt_state, params)
      >>> updates, opt_state = step(params, opt_state, x)

    References:
      Appendix B.2. https://arxiv.org/abs/2201.12522
    """

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """The layer's output ``[..., features]`` of ``inputs [..., d]``."""

        def dot_general(
            x: jax.Array, kernel: jax.Array, dimension_numbers: Any, **options: Any
        ) -> jax.Array:
            del dimension_numbers  # Dense always contracts the last axis of x.
            return _fused.dot(
                x,
                kernel,
                _handed(self, "kernel"),
                dtype=options["dtype"],
                precision=options.get("precision"),
            )

        return _with_hook(self, nn.Dense, "dot_general", dot_general, inputs)


class Conv(nn.Conv):
    """`flax.linen.Conv` that projects its own gradients; see `Dense`.

    The same attributes, parameters, initial values and outputs. It also trains at full speed inside
    `jax.lax.scan` on CPUs, where XLA's own convolutions do not.

    Example:
      >>> import jax, jax.numpy as jnp, rgo_jax.linen
      >>> model = rgo_jax.linen.Conv(8, (3, 3))
      >>> x = jnp.ones((2, 6, 6, 3))
      >>> params = model.init(jax.random.key(0), x)["params"]
      >>> params["kernel"].shape, model.apply({"params": params}, x).shape
      ((3, 3, 3, 8), (2, 6, 6, 8))

    References:
      Appendix B.2. https://arxiv.org/abs/2201.12522
    """

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """The layer's output ``[..., *spatial, features]`` of ``inputs [..., *spatial, cin]``."""

        def conv_general_dilated(
            x: jax.Array,
            kernel: jax.Array,
            window_strides: Any,
            padding: Any,
            **options: Any,
        ) -> jax.Array:
            return _fused.conv(
                x,
                kernel,
                _handed(self, "kernel"),
                window_strides=window_strides,
                padding=padding,
                **options,
            )

        return _with_hook(self, nn.Conv, "conv_general_dilated", conv_general_dilated, inputs)


def _handed(module: nn.Module, name: str) -> jax.Array | None:
    """The projection that was handed to a module for one of its parameters."""
    if not module.has_variable(_recording.PROJECTIONS, name):
        return None
    _recording.write((*module.path, name), True)
    projection: jax.Array = module.get_variable(_recording.PROJECTIONS, name)
    return projection


def _with_hook(
    module: Any, base: type[Any], hook: str, function: Callable[..., jax.Array], inputs: jax.Array
) -> jax.Array:
    """Calls Flax's own layer on the module's parameters, with its linear map replaced.

    See `rgo_jax._fused.hooks`.
    """
    where = _recording.path_name(module)
    for name in ("mask", "promote_dtype"):
        default = {field.name: field.default for field in dataclasses.fields(base)}.get(name)
        if getattr(module, name, default) is not default:
            raise ValueError(
                f"{name} is set on {where!r}, which a layer of rgo_jax.linen does not support. Use "
                f"flax.linen.{base.__name__} for it."
            )
    if getattr(module, hook) is not None or getattr(module, f"{hook}_cls") is not None:
        raise ValueError(
            f"{hook} is set on {where!r}, but a layer of rgo_jax.linen puts its own there to "
            f"project gradients. Use flax.linen.{base.__name__} for it."
        )
    bias_projection = _handed(module, "bias") if module.use_bias else None
    promote_dtype, linear_map = _fused.hooks(function, bias_projection)
    overlay = _fused.Overlay(module, **{"promote_dtype": promote_dtype, hook: linear_map})
    # Without what Flax wraps methods in, or it would be captured and intercepted twice.
    y: jax.Array = inspect.unwrap(base.__call__)(overlay, inputs)
    return y


def projections(opt_state: optax.OptState) -> dict[str, Any]:
    """The variable collection ``"projections"``, taken from an optimizer state.

    Args:
      opt_state: the state of any optax transform that contains `rgo_jax.scale_by_rgo`, initialised
        with a Linen module's ``params``.

    Returns:
      Nested dicts like ``params``, without the parameters that RGO does not cover. The arrays are
      the state's own; nothing is computed or copied.

    Raises:
      ValueError: no `rgo_jax.RgoState` in ``opt_state``; or it is for all of a module's variables
        in place of its ``params``.
      TypeError: the state is not of nested dicts.

    Example:
      >>> import jax.numpy as jnp, rgo_jax, rgo_jax.linen
      >>> state = rgo_jax.rgo(0.1).init({"Dense_0": {"kernel": jnp.zeros((2, 3))}})
      >>> print(rgo_jax.linen.projections(state))
      {'Dense_0': {'kernel': Array([[1., 0.],
             [0., 1.]], dtype=float32)}}
    """
    collection = _recording.nested(_state.find_projections(opt_state))
    if set(collection) == {"params"}:
        raise ValueError(
            "The optimizer's state is for a tree whose only key is 'params', so no layer would "
            "find its projection. Initialise the optimizer with variables['params'], not with all "
            "variables."
        )
    return collection


def projected_by(module: nn.Module, params: Any, *args: Any, **kwargs: Any) -> Any:
    """Which parameters' gradients a model projects by itself, for ``rgo(projected=...)``.

    For models that mix this module's layers with others. Traces the model's forward pass and
    computes nothing. A scan inside the model is traced step by step: of long sequences pass a short
    piece.

    Args:
      module: the model.
      params: the model's ``params``; their shapes will do.
      *args: arguments of one call of the model.
      **kwargs: as ``args``.

    Returns:
      A tree of bools like ``params``.

    Example:
      >>> import flax.linen as nn, jax, jax.numpy as jnp, rgo_jax, rgo_jax.linen
      >>> model = nn.Sequential([rgo_jax.linen.Dense(3), nn.Dense(2, use_bias=False)])
      >>> x = jnp.ones((1, 4))
      >>> params = model.init(jax.random.key(0), x)["params"]
      >>> rgo_jax.linen.projected_by(model, params, x)
      {'layers_0': {'bias': True, 'kernel': True}, 'layers_1': {'kernel': False}}
    """

    asked = _recording.recorded(module, params, args, kwargs)

    def names(path: _tree.Path) -> tuple[str, ...]:
        return tuple(key.key for key in path if isinstance(key, jax.tree_util.DictKey))

    return _tree.map_with_path(lambda path, _: names(path) in asked, params)
