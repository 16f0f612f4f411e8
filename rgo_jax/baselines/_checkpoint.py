"""The checkpoint of a sequence of tasks: one ``.npz`` file, written after each task."""

import json
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def save(path: Path, about: dict[str, Any], r: np.ndarray, state: Any) -> None:
    """Writes a checkpoint beside the one before, and then puts it in its place.

    A kill at any time leaves the one or the other.

    Args:
      path: the file; its folder is made if need be.
      about: all that a later run must agree with, as JSON has it.
      r: the rows of R that are measured.
      state: the method's.
    """
    leaves = {name: _raw(leaf) for name, leaf in _leaves_by_name(state)}
    path.parent.mkdir(parents=True, exist_ok=True)
    # Always the same name: what a kill leaves is written over.
    temporary = path.with_name(f"{path.name}.partial")
    with temporary.open("wb") as file:
        np.savez(file, about=np.array(json.dumps(about)), r=r, **leaves)  # type: ignore[arg-type]
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def load(path: Path, about: dict[str, Any], state: Any) -> tuple[np.ndarray, Any]:
    """Reads a checkpoint.

    Args:
      path: the file.
      about: as it was written; of tasks, those that there are now.
      state: of the same method before its first task, which tells shapes.

    Returns:
      The rows of R that are measured, and the state.

    Raises:
      ValueError: it cannot be read, or is of another run.
    """
    remedy = "Choose another file, or delete it to begin anew."
    try:
        # Opened here: numpy leaves a file open that is cut short.
        with path.open("rb") as file, np.load(file) as found:
            content = dict(found)
        theirs = json.loads(content["about"].item())
        r = content["r"]
    # A damaged file raises many kinds, from `zipfile`, `numpy` and `json`.
    except Exception as error:
        raise ValueError(f"{path}: the checkpoint cannot be read ({error}). {remedy}") from error
    ours = json.loads(json.dumps(about))
    # There may be more tasks now.
    ours["tasks"] = ours["tasks"][: len(theirs["tasks"])]
    for name in ours:
        if ours[name] != theirs.get(name):
            raise ValueError(
                f"{path}: a checkpoint of another run: its {name} is {theirs.get(name)}; this "
                f"one's is {ours[name]}. {remedy}"
            )
    expected = dict(_leaves_by_name(state))
    unknown = (content.keys() - {"about", "r"}) ^ expected.keys()
    if unknown:
        raise ValueError(
            f"{path}: a checkpoint of another method or model: only one of its state and this "
            f"one's has {min(unknown)!r}. {remedy}"
        )
    leaves = []
    for name, leaf in expected.items():
        saved = content[name]
        raw = jax.eval_shape(_data, leaf)
        if saved.dtype.kind == "V":  # As which NumPy writes dtypes that it does not know: bfloat16.
            saved = saved.view(raw.dtype)
        if (saved.shape, saved.dtype) != (raw.shape, raw.dtype):
            raise ValueError(
                f"{path}: a checkpoint of another method or model: its {name} is {saved.dtype} "
                f"{saved.shape}; this one's is {raw.dtype} {raw.shape}. {remedy}"
            )
        array = jnp.asarray(saved)
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        leaves.append(
            jax.random.wrap_key_data(array, impl=jax.random.key_impl(leaf)) if is_key else array
        )
    return r, jax.tree.unflatten(jax.tree.structure(state), leaves)


def _leaves_by_name(state: Any) -> list[tuple[str, Any]]:
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return [(f"state{jax.tree_util.keystr(path)}", leaf) for path, leaf in leaves]


def _data(leaf: jax.Array) -> jax.Array:
    """An array of numbers, of keys too."""
    is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return jax.random.key_data(leaf) if is_key else leaf


def _raw(leaf: jax.Array) -> np.ndarray:
    return np.asarray(_data(leaf))
