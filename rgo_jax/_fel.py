"""The Feature Encoding Layer: a permutation of features drawn from (seed, layer, task)."""

import jax
import jax.numpy as jnp
import numpy as np


def fel_permutation(
    task_id: jax.typing.ArrayLike,
    n: int,
    *,
    seed: jax.typing.ArrayLike = 0,
    layer: jax.typing.ArrayLike = 0,
    identity_first: bool = False,
) -> jax.Array:
    """The permutation that encodes ``n`` features for a task.

    The same on every device and whatever jax's settings of random numbers, so a checkpoint needs to
    keep only the seed. Golden tests guard it on every supported version of jax.

    Args:
      task_id: integer scalar from 0 to 2**31 - 1, may be traced.
      n: number of features.
      seed: integer scalar from 0 to 2**31 - 1, may be traced; one for a whole network.
      layer: integer scalar from 0 to 2**31 - 1, may be traced; a different one for each layer of a
        network. Layers of different widths have different permutations even with the same number.
      identity_first: whether task 0 is left as it is, as in the authors' program. For a pre-trained
        network, which encodings ruin before any step: its layers know their features in the order
        that they were trained with.

    Returns:
      int32 ``[n]``, each of 0 to n - 1 once.

    Raises:
      ValueError: ``seed``, ``layer`` or ``task_id`` is no scalar or, where it is not traced, out of
        range.
      TypeError: one of them is no integer.

    Example:
      >>> import rgo_jax
      >>> print(rgo_jax.fel_permutation(3, 5))
      [3 1 2 0 4]

    References:
      Feature encoding layer, section 4.4. https://arxiv.org/abs/2201.12522
    """
    for name, value in (("seed", seed), ("layer", layer), ("task_id", task_id)):
        _check_integer(name, value)
        # A traced one has no value to look at.
        if not isinstance(value, jax.core.Tracer) and not 0 <= np.asarray(value) < 2**31:
            raise ValueError(f"{name} is {value}; expected 0 to 2**31 - 1.")
    # Settings of jax change the numbers drawn: the generator, how it is partitioned, and what
    # jax.random.key adds to the seed. A trained network depends on its permutations, so these must
    # not depend on the settings.
    with jax.threefry_partitionable(True):
        words = jnp.stack([jnp.uint32(0), jnp.asarray(seed).astype(jnp.uint32)])
        key = jax.random.wrap_key_data(words, impl="threefry2x32")
        key = jax.random.fold_in(jax.random.fold_in(key, layer), task_id)
        permutation = jax.random.permutation(key, n).astype(jnp.int32)
    if not identity_first:
        return permutation
    return jnp.where(jnp.asarray(task_id) == 0, jnp.arange(n, dtype=jnp.int32), permutation)


def _check_integer(name: str, value: jax.typing.ArrayLike) -> None:
    if isinstance(value, str):
        raise TypeError(f"{name} is {value!r}; expected an integer.")
    if jnp.shape(value):
        raise ValueError(f"{name} has shape {jnp.shape(value)}; expected a scalar.")
    if not jnp.issubdtype(jnp.result_type(value), jnp.integer):
        raise TypeError(f"{name} is {value!r}; expected an integer.")


def fel_encode(
    x: jax.Array,
    task_id: jax.typing.ArrayLike,
    *,
    seed: jax.typing.ArrayLike = 0,
    layer: jax.typing.ArrayLike = 0,
    axis: int = -1,
    identity_first: bool = False,
) -> jax.Array:
    """Permutes the features of ``x`` for a task. No parameters; linear; a bijection.

    Put into a pre-trained network it ruins it before any step, unless ``identity_first`` leaves
    task 0, what the network was trained on, as it is.

    The permutation is the same in every step of a task. In a `jax.lax.scan` over the steps XLA
    draws it once on a CPU, but in each step on a GPU, by a sort for each layer. There, give
    `rgo_jax.linen.FeatureEncoding` or `rgo_jax.nnx.FeatureEncoding` its ``num_tasks``, or permute
    with a `fel_permutation` that you draw before the scan.

    Args:
      x: array with the features on ``axis``; any dtype.
      task_id: integer scalar, may be traced.
      seed: as in `fel_permutation`.
      layer: as in `fel_permutation`.
      axis: the axis of the features.
      identity_first: as in `fel_permutation`.

    Returns:
      An array like ``x``.

    Raises:
      ValueError: ``x`` has no such axis; as `fel_permutation`.
      TypeError: as `fel_permutation`.

    Example:
      >>> import jax.numpy as jnp, rgo_jax
      >>> print(rgo_jax.fel_encode(jnp.array([[10, 11, 12, 13, 14]]), task_id=3))
      [[13 11 12 10 14]]

    References:
      Feature encoding layer, section 4.4. https://arxiv.org/abs/2201.12522
    """
    permutation = fel_permutation(
        task_id, num_features(x, axis), seed=seed, layer=layer, identity_first=identity_first
    )
    return _permute(x, permutation, axis)


def num_features(x: jax.Array, axis: int) -> int:
    """The length of ``x`` on an axis.

    Raises:
      ValueError: ``x`` has no such axis.
    """
    if not -x.ndim <= axis < x.ndim:
        raise ValueError(f"axis is {axis}, but x has shape {x.shape}.")
    return x.shape[axis]


def _permute(x: jax.Array, permutation: jax.Array, axis: int) -> jax.Array:
    """``x`` with what is at ``permutation[i]`` moved to ``i`` on ``axis``."""
    return jnp.take(x, permutation, axis=axis, unique_indices=True, mode="clip")


def table(
    num_tasks: int,
    n: int,
    *,
    seed: jax.typing.ArrayLike,
    layer: jax.typing.ArrayLike,
    identity_first: bool,
) -> jax.Array:
    """The permutations of tasks 0 to ``num_tasks - 1``, int32 ``[num_tasks, n]``.

    Raises:
      ValueError: ``num_tasks`` or ``n`` below 1; ``seed`` or ``layer`` out of range.
    """
    if num_tasks < 1 or n < 1:
        raise ValueError(
            f"num_tasks is {num_tasks} and the number of features {n}; expected 1 or more of both."
        )

    def permutation(task_id: jax.Array) -> jax.Array:
        return fel_permutation(task_id, n, seed=seed, layer=layer, identity_first=identity_first)

    return jax.vmap(permutation)(jnp.arange(num_tasks))


def look_up(
    x: jax.Array,
    permutations: jax.Array,
    task_id: jax.typing.ArrayLike,
    *,
    num_tasks: int,
    axis: int,
    name: str,
) -> jax.Array:
    """`fel_encode` by a `table`; ``name`` is what errors call the layer.

    Raises:
      ValueError: the table has another shape; ``task_id`` is no scalar or, where it is not
        traced, not in the table.
      TypeError: ``task_id`` is no integer.
    """
    expected, found = (num_tasks, num_features(x, axis)), jnp.shape(permutations)
    if found != expected:
        raise ValueError(
            f"{name} has num_tasks={num_tasks} and is called with {expected[1]} features, but its "
            f"table of permutations has shape {found}; expected {expected}. Make the table anew. A "
            "layer that is called with different numbers of features can't have one: leave "
            "num_tasks out."
        )
    _check_integer("task_id", task_id)
    # A traced task_id has no value to look at.
    if not isinstance(task_id, jax.core.Tracer) and not 0 <= np.asarray(task_id) < num_tasks:
        raise ValueError(
            f"task_id is {task_id}, but {name} has permutations for tasks 0 to {num_tasks - 1}. "
            "Raise num_tasks and make the table anew."
        )
    return _permute(x, jnp.asarray(permutations)[task_id], axis)
