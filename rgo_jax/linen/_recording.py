"""What the layers of a Linen model tell of themselves while it is traced."""

import contextvars
from typing import Any

import flax
import flax.linen as nn
import jax

# Where layers write down what they are called with while `recorded` traces a model, by path. Not a
# collection of variables: Flax's lifted transforms hand on only those they are told of.
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
        # Other collections, such as the averages of batch normalisation, come into being.
        mutable = flax.core.DenyList("params")
        return module.apply({"params": params}, *args, **kwargs, mutable=mutable)

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
