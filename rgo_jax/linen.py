"""RGO's layers for Flax Linen."""

import contextvars
import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import flax
import flax.linen as nn
import jax
import numpy as np
import optax

from rgo_jax import _fel, _fused, _geometry, _state

_COLLECTION = "projections"
_ENCODINGS = "encodings"

# Where layers write down what they are called with while `_recorded` traces a model, by path: under
# that of a parameter that is handed a projection True, under that of a `FeatureEncoding` the layer
# and how many features it permutes. Not a collection of variables: Flax's lifted transforms hand on
# only those they are told of.
_record: contextvars.ContextVar[dict[tuple[str, ...], list[Any]] | None] = contextvars.ContextVar(
    "record", default=None
)


class FeatureEncoding(nn.Module):
    """Feature Encoding Layer: permutes the features for the task at hand.

    Put one on the input and after each layer, each with its own ``layer`` number. It has no
    parameters. See `rgo_jax.fel_encode`; `rgo_jax.nnx.FeatureEncoding` is the same for NNX.

    Attributes:
      layer: integer, different for each layer of a network.
      seed: integer, the same for a whole network; may be traced.
      axis: the axis of the features: the last one, channels for a convolution.

    Example:
      >>> import jax, jax.numpy as jnp, flax.linen as nn, rgo_jax.linen
      >>> class Net(nn.Module):
      ...     @nn.compact
      ...     def __call__(self, x, task_id):
      ...         x = rgo_jax.linen.FeatureEncoding(layer=0)(x, task_id)
      ...         x = nn.relu(nn.Dense(8)(x))
      ...         x = rgo_jax.linen.FeatureEncoding(layer=1)(x, task_id)
      ...         return nn.Dense(2)(x)
      >>> variables = Net().init(jax.random.key(0), jnp.zeros((1, 4)), 0)
      >>> Net().apply(variables, jnp.zeros((3, 4)), 5).shape
      (3, 2)

    References:
      Section 4.4. https://arxiv.org/abs/2201.12522
    """

    layer: int = 0
    seed: jax.typing.ArrayLike = 0
    axis: int = -1

    def __call__(self, x: jax.Array, task_id: jax.typing.ArrayLike) -> jax.Array:
        """Permutes ``x`` along the feature axis for ``task_id``, an integer that may be traced.

        Raises:
          ValueError: with the collection of `encodings`: it is for another number of features or
            for fewer tasks; ``task_id`` is no scalar.
        """
        # Without a scope the layer is called by itself, outside a model.
        if self.scope is not None:
            record = _record.get()
            if record is not None:
                record.setdefault(self.path, []).append((self, x.shape[self.axis]))
            if self.has_variable(_ENCODINGS, "permutations"):
                return _fel.look_up(
                    x,
                    self.get_variable(_ENCODINGS, "permutations"),
                    task_id,
                    axis=self.axis,
                    name=_name(self),
                )
        return _fel.fel_encode(x, task_id, seed=self.seed, layer=self.layer, axis=self.axis)


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
    if not module.has_variable(_COLLECTION, name):
        return None
    record = _record.get()
    if record is not None:
        record.setdefault((*module.path, name), []).append(True)
    _fused.check_not_in_curvature_pass()
    projection: jax.Array = module.get_variable(_COLLECTION, name)
    return projection


def _name(module: nn.Module) -> str:
    return "/".join(module.path) or type(module).__name__


def _with_hook(
    module: Any, base: type[Any], hook: str, function: Callable[..., jax.Array], inputs: jax.Array
) -> jax.Array:
    """Calls Flax's own layer on the module's parameters, with its linear map replaced.

    See `rgo_jax._fused.hooks`.
    """
    for name in ("mask", "promote_dtype"):
        default = {field.name: field.default for field in dataclasses.fields(base)}.get(name)
        if getattr(module, name, default) is not default:
            raise ValueError(
                f"{name} is set on {_name(module)!r}, which a layer of rgo_jax.linen does not "
                f"support. Use flax.linen.{base.__name__} for it."
            )
    if getattr(module, hook) is not None or getattr(module, f"{hook}_cls") is not None:
        raise ValueError(
            f"{hook} is set on {_name(module)!r}, but a layer of rgo_jax.linen puts its own there "
            f"to project gradients. Use flax.linen.{base.__name__} for it."
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
    found: dict[_geometry.Path, jax.Array] = {}

    def collect(state: _state.RgoState) -> None:
        found.update(_geometry.leaves_by_path(state.projection))

    _state.map_states(collect, opt_state)
    collection = _nested(found)
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

    asked = _recorded(module, params, args, kwargs)

    def names(path: _geometry.Path) -> tuple[str, ...]:
        return tuple(key.key for key in path if isinstance(key, jax.tree_util.DictKey))

    return _geometry.map_with_path(lambda path, _: names(path) in asked, params)


def encodings(
    module: nn.Module, params: Any, num_tasks: int, *args: Any, **kwargs: Any
) -> dict[str, Any]:
    """The variable collection ``"encodings"``: the permutations of all tasks, for scans on a GPU.

    A `FeatureEncoding` draws its permutation when it is called, which takes a sort. Inside a
    `jax.lax.scan` over the steps of a task XLA does so once on a CPU, but in each step on a GPU.
    Applied with this collection, computed before the scan, the layers look their permutations up
    instead; the model's outputs are the same.

    Flax's lifted transforms hand on only the collections they are told of: inside
    `flax.linen.scan` layers draw their permutations unless it has
    ``variable_broadcast="encodings"``, inside `flax.linen.vmap` unless it has
    ``variable_axes={..., "encodings": None}``. A layer whose seed or number is computed inside the
    model, or which is called with different numbers of features, is left out and draws its
    permutations as before.

    Args:
      module: the model.
      params: the model's ``params``; their shapes will do.
      num_tasks: how many tasks there are at most. With the collection a ``task_id`` is from 0 to
        ``num_tasks - 1``, which is not checked where it is traced.
      *args: arguments of one call of the model, as for `projected_by`.
      **kwargs: as ``args``.

    Returns:
      Nested dicts with int32 ``[num_tasks, n]`` for each `FeatureEncoding` of n features.

    Raises:
      ValueError: ``num_tasks`` below 1.

    Example:
      >>> import jax, jax.numpy as jnp, rgo_jax.linen
      >>> model, x = rgo_jax.linen.FeatureEncoding(), jnp.arange(5)
      >>> encodings = rgo_jax.linen.encodings(model, {}, 4, x, 0)
      >>> encodings["permutations"].shape
      (4, 5)
      >>> print(model.apply({"encodings": encodings}, x, 3), model.apply({}, x, 3))
      [3 1 2 0 4] [3 1 2 0 4]
    """
    collection: dict[str, Any] = {}
    for path, calls in _recorded(module, params, args, kwargs).items():
        if calls[0] is True:
            continue  # a parameter
        layer, n = calls[0]
        if not all(
            n == other_n and _same(layer.seed, other.seed) and _same(layer.layer, other.layer)
            for other, other_n in calls
        ):
            continue
        try:
            table = _fel.table(num_tasks, n, seed=layer.seed, layer=layer.layer)
        except jax.errors.UnexpectedTracerError:
            continue  # computed inside the model, which is no longer being traced
        node = collection
        for name in path:
            node = node.setdefault(name, {})
        node["permutations"] = table
    return collection


def _same(one: jax.typing.ArrayLike, other: jax.typing.ArrayLike) -> bool:
    traced = isinstance(one, jax.core.Tracer) or isinstance(other, jax.core.Tracer)
    return one is other or (not traced and bool(np.array_equal(one, other)))


def _recorded(
    module: nn.Module, params: Any, args: Any, kwargs: Any
) -> dict[tuple[str, ...], list[Any]]:
    """What a model's layers write into `_record` during a forward pass; computes nothing."""

    def forward(params: Any) -> Any:
        # The forward pass never looks at a projection, so each parameter stands for its own. Other
        # collections, such as the averages of batch normalisation, come into being where missing.
        variables = {"params": params, _COLLECTION: _nested(_geometry.leaves_by_path(params))}
        mutable = flax.core.DenyList(("params", _COLLECTION))
        return module.apply(variables, *args, **kwargs, mutable=mutable)

    record: dict[tuple[str, ...], list[Any]] = {}
    token = _record.set(record)
    try:
        # Once for all branches of a `jax.lax.cond`. And once without jit, as a function of its own:
        # what `flax.linen.jit` has traced before it does not trace again.
        jax.eval_shape(forward, params)
        with jax.disable_jit():
            jax.eval_shape(lambda params: forward(params), params)
    finally:
        _record.reset(token)
    return record


def _nested(leaves: dict[_geometry.Path, Any]) -> dict[str, Any]:
    """Nested dicts, as a Linen variable collection is."""
    result: dict[str, Any] = {}
    for path, leaf in leaves.items():
        node = result
        for key in path:
            if not isinstance(key, jax.tree_util.DictKey):
                raise TypeError(
                    f"The tree has the key {key!r}; expected nested dicts, as it has when it is "
                    "made with a Linen module's params."
                )
        for key in path[:-1]:
            node = node.setdefault(key.key, {})
        if not path:
            raise TypeError("The tree is a single array; expected a Linen module's params.")
        node[path[-1].key] = leaf
    return result
