"""The strength of the prior, for all parameters together or leaf by leaf."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rgo_jax import _state, _tree

_EXPECTED = (
    "expected a positive, finite number. The paper's results are with 0.01; smaller protects "
    "earlier tasks more."
)


def by_path(alpha: Any, state: _state.RgoState) -> dict[_tree.Path, Any]:
    """Each leaf's alpha, checked.

    Raises:
      ValueError: it does not match the state, or is not positive or, in a projection's dtype, 0 or
        infinite.
    """
    found = _tree.broadcast_prefix(alpha, state.projection, (), "alpha")
    for path, projection in _tree.leaves_by_path(state.projection).items():
        name = _tree.path_name(path)
        if path not in found:
            raise ValueError(
                f"alpha has nothing for {name!r}; expected a scalar, or a tree of scalars with one "
                "for each parameter. It may be an array of NumPy's or JAX's, or a float."
            )
        value = found[path]
        if jnp.shape(value):
            raise ValueError(
                f"alpha has shape {jnp.shape(value)} for {name!r}; expected a scalar for each "
                "parameter. For one of each model's own, jax.vmap over models."
            )
        # A traced alpha has no value to look at; the caller who traces it has seen the number.
        if not isinstance(value, jax.core.Tracer):
            with np.errstate(over="ignore"):
                kept = np.asarray(value).astype(projection.dtype)
            if not (kept > 0 and np.isfinite(kept)):
                raise ValueError(
                    f"alpha is {value} for {name!r}, in {projection.dtype} {kept}; {_EXPECTED}"
                )
    return found
