"""RGO's layers for Flax Linen."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax.linen.dtypes import promote_dtype

from rgo_jax import _fel, _fused, _projection, _state

_COLLECTION = "projections"


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
        """Permutes ``x`` along the feature axis for ``task_id``, an integer that may be traced."""
        return _fel.fel_encode(x, task_id, seed=self.seed, layer=self.layer, axis=self.axis)


class Dense(nn.Dense):
    """`flax.linen.Dense` that projects its own gradients, at little more than SGD's cost.

    The same attributes, parameters, initial values and outputs. Applied with a variable collection
    ``"projections"`` (see `projections`), its parameters' gradients come out of the backward pass
    already projected, without the product ``[d, d] x [d, m]`` wherever that is the dearer way.
    Applied without the collection it is `flax.linen.Dense`.

    Tell the optimizer: ``tx.update(grads, opt_state, params, projected=True)``, where all layers
    under RGO are of this kind, or a tree of bools.

    Forward-mode differentiation (`jax.jvp`) of the projected layer is not supported.

    Example:
      >>> import jax, jax.numpy as jnp, rgo_jax, rgo_jax.linen
      >>> model = rgo_jax.linen.Dense(3)
      >>> x = jnp.ones((2, 4))
      >>> params = model.init(jax.random.key(0), x)["params"]
      >>> tx = rgo_jax.rgo(0.1)
      >>> opt_state = tx.init(params)
      >>> @jax.jit
      ... def step(params, opt_state, x):
      ...     projections = rgo_jax.linen.projections(opt_state)
      ...     def loss(params):
      ...         y = model.apply({"params": params, "projections": projections}, x)
      ...         return jnp.mean(y ** 2)
      ...     grads = jax.grad(loss)(params)
      ...     return tx.update(grads, opt_state, params, projected=True)
      >>> updates, opt_state = step(params, opt_state, x)

    References:
      Appendix B.2. https://arxiv.org/abs/2201.12522
    """

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """The layer's output ``[..., features]`` of ``inputs [..., d]``."""
        if not self.has_variable(_COLLECTION, "kernel"):
            return super().__call__(inputs)
        for name in ("dot_general", "dot_general_cls"):
            if getattr(self, name, None) is not None:
                raise ValueError(
                    f"{name} is set on {self.name!r}: a Dense layer with a {name} of its own "
                    "cannot project its gradients. Use flax.linen.Dense and projected=False there."
                )
        shape = (jnp.shape(inputs)[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)
        bias = None
        if self.use_bias:
            bias = self.param("bias", self.bias_init, (self.features,), self.param_dtype)
            bias = _fused.project_gradient(bias, self.get_variable(_COLLECTION, "bias"))
        inputs, kernel, bias = promote_dtype(inputs, kernel, bias, dtype=self.dtype)
        projection: jax.Array = self.get_variable(_COLLECTION, "kernel")
        y = _fused.dot(inputs, kernel, projection, self.precision)
        return y if bias is None else y + bias


def projections(opt_state: optax.OptState) -> dict[str, Any]:
    """The variable collection ``"projections"`` from an optimizer state.

    Changes only when a task is folded in: compute it once a task where that is convenient. Inside
    a `jax.lax.scan` over steps XLA does so by itself.

    Args:
      opt_state: the state of any optax transform that contains `rgo_jax.scale_by_rgo`, initialised
        with a Linen module's ``params``.

    Returns:
      Nested dicts like ``params``, without the parameters that RGO does not cover; a leaf is the
      normalised ``(d / tr P) P [d, d]``.

    Raises:
      ValueError: no `rgo_jax.RgoState` in ``opt_state``.
      TypeError: the state is not of nested dicts.

    Example:
      >>> import jax.numpy as jnp, rgo_jax, rgo_jax.linen
      >>> state = rgo_jax.rgo(0.1).init({"Dense_0": {"kernel": jnp.zeros((2, 3))}})
      >>> print(rgo_jax.linen.projections(state))
      {'Dense_0': {'kernel': Array([[1., 0.],
             [0., 1.]], dtype=float32)}}
    """
    collection: dict[str, Any] = {}

    def collect(state: _state.RgoState) -> None:
        for path, projection in _state.leaves_by_path(state.projection).items():
            node = collection
            for key in path[:-1]:
                node = node.setdefault(_name(key), {})
            node[_name(path[-1])] = _projection.normalise(projection)

    _state.map_states(collect, opt_state)
    return collection


def _name(key: Any) -> str:
    if not isinstance(key, jax.tree_util.DictKey):
        raise TypeError(
            f"The optimizer state has the key {key!r}; expected nested dicts, as it has when it "
            "is initialised with a Linen module's params."
        )
    return str(key.key)
