"""A run without its computations: its programs are traced, and what they keep is added up."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.data import Dataset, limits
from benchmarks.methods import MethodSpec
from benchmarks.networks.architectures import ARCHITECTURES
from benchmarks.presets import Config
from benchmarks.run import checks, experiment

_INTEGER = jax.ShapeDtypeStruct((), jnp.int32)


def check(config: Config, spec: MethodSpec, dataset: Dataset, num_seeds: int) -> None:
    """Finds out whether a run is possible, before it begins and takes any memory.

    Args:
      config: the experiment.
      spec: the method.
      dataset: its data.
      num_seeds: how many models are trained together.

    Raises:
      ValueError: the settings do not suit the data, the method does not suit the network, or there
        is too little memory.
    """
    checks.check(config, spec, dataset, num_seeds)
    try:
        state = _traced_state(config, spec, dataset)
    except ValueError as error:
        # What follows the finding is a remedy in the words of the library's arguments.
        finding = str(error).partition(". ")[0]
        fitting = [name for name in ARCHITECTURES if _suits(name, config, spec, dataset)]
        remedy = f"Choose --network {', '.join(fitting)}" if fitting else "Scale the images down"
        raise ValueError(
            f"{spec.label} cannot train --network {config.network} on images of shape "
            f"{dataset.x_train.shape[1:]}: {finding}. {remedy}."
        ) from error
    kept = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    _check_memory(config, kept + checks.bytes_per_seed(config), dataset, num_seeds)


def _traced_state(config: Config, spec: MethodSpec, dataset: Dataset) -> Any:
    """The shapes of a method's state, after everything that happens to a seed has been traced."""
    one_seed = experiment.functions(config, spec, dataset)
    given = _INTEGER, _shapes(dataset)
    state = jax.eval_shape(one_seed.init, *given)
    state, epochs = jax.eval_shape(one_seed.start, *given, state, _INTEGER)
    jax.eval_shape(partial(one_seed.steps, 1), *given, state, epochs, _INTEGER, _INTEGER)
    jax.eval_shape(one_seed.end, *given, state, epochs, _INTEGER)
    for split in ("train", "test"):
        jax.eval_shape(partial(one_seed.accuracy, split), *given, state, _INTEGER)
    if one_seed.decisions is not None:
        jax.eval_shape(one_seed.decisions, *given, state, _INTEGER, _INTEGER)
    if one_seed.capacity is not None:
        jax.eval_shape(one_seed.capacity, *given, state)
    return state


def _suits(network: str, config: Config, spec: MethodSpec, dataset: Dataset) -> bool:
    other = dataclasses.replace(config, network=network)
    try:
        checks.check(other, spec, dataset)
        one_seed = experiment.functions(other, spec, dataset)
        jax.eval_shape(one_seed.init, _INTEGER, _shapes(dataset))
    except ValueError:
        return False
    return True


def _shapes(dataset: Dataset) -> dict[str, jax.ShapeDtypeStruct]:
    names = ("x_train", "y_train", "x_test", "y_test")
    arrays = {name: getattr(dataset, name) for name in names}
    return {name: jax.ShapeDtypeStruct(a.shape, a.dtype) for name, a in arrays.items()}


def _check_memory(config: Config, for_seed: int, dataset: Dataset, num_seeds: int) -> None:
    """Compares what is certain to be kept, which is less than what a run takes, with what there is.

    On an accelerator each device has the data, on a CPU all have the same.
    """
    data = sum(array.size * array.dtype.itemsize for array in _shapes(dataset).values())
    of_device = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    if of_device is None:
        available = limits.memory() - data
    else:
        available = (of_device - data) * min(num_seeds, jax.local_device_count())
    possible = max(available, 0) // for_seed
    if num_seeds <= possible:
        return
    if possible:
        remedy = f"Run fewer at a time: --seeds {possible}, or from one to another as 5-9"
    else:
        remedy = "Choose a smaller --network, or lower --epochs, --batch-size or --num-tasks"
    each, needed, there_is = map(limits.size, (for_seed, num_seeds * for_seed, max(available, 0)))
    raise ValueError(
        f"{num_seeds} seeds of --network {config.network} take {needed} of memory at least, {each} "
        f"each; beside the data there is {there_is}. {remedy}."
    )
