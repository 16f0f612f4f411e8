"""What the layers of a Linen model tell of themselves while it is traced."""

import contextvars
from typing import Any

import flax
import flax.linen as nn
import jax

from rgo_jax import _tree

# The collection of variables that hands layers their projections.
PROJECTIONS = "projections"

# Where layers write down what they are called with while `recorded` traces a model, by path: under
# that of a parameter that is handed a projection True, under that of a `FeatureEncoding` the layer
# and how many features it permutes. Not a collection of variables: Flax's lifted transforms hand on
# only those they are told of.
_record: contextvars.ContextVar[dict[tuple[str, ...], list[Any]] | None] = contextvars.ContextVar(
    "record", default=None
)


def write(path: tuple[str, ...], entry: Any) -> None:
    """Writes something down under a path, if a model is being recorded."""
    record = _record.get()
    if record is not None:
        record.setdefault(path, []).append(entry)


def path_name(module: nn.Module) -> str:
    """What errors call a module."""
    return "/".join(module.path) or type(module).__name__


def recorded(
    module: nn.Module, params: Any, args: Any, kwargs: Any
) -> dict[tuple[str, ...], list[Any]]:
    """What a model's layers write down during a forward pass; computes nothing."""

    def forward(params: Any) -> Any:
        # The forward pass never looks at a projection, so each parameter stands for its own. Other
        # collections, such as the averages of batch normalisation, come into being where missing.
        variables = {"params": params, PROJECTIONS: nested(_tree.leaves_by_path(params))}
        mutable = flax.core.DenyList(("params", PROJECTIONS))
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


def nested(leaves: dict[_tree.Path, Any]) -> dict[str, Any]:
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
