"""Finds out whether the settings of an experiment suit its data, before a run begins."""

import dataclasses

from benchmarks.data import Dataset
from benchmarks.data.limits import MAX_COUNT, check_memory
from benchmarks.methods import MethodSpec
from benchmarks.networks import feed_forward
from benchmarks.networks.architectures import ARCHITECTURES, check_input
from benchmarks.presets import Config
from benchmarks.run.experiment import infers_tasks, sequence_of


def limit_examples(config: Config, dataset: Dataset) -> Config:
    """The same with no more examples in a task than the largest has."""
    sequence = sequence_of(config, dataset)
    examples = min(config.examples_per_task, sequence.largest)
    return dataclasses.replace(config, examples_per_task=examples)


def notes(config: Config, spec: MethodSpec, dataset: Dataset) -> list[str]:
    """What a user might not expect of what is run and measured, in sentences."""
    sequence = sequence_of(config, dataset)
    told = []
    if config.infer_task and not infers_tasks(config, spec):
        told.append(
            f"--infer-task: {spec.label} here has no feature encoding layers and no heads of "
            "tasks, or a model for each task: nothing to infer. --head per_task or --fel adds them."
        )
    if sequence.smallest >= config.examples_per_task:
        return told
    return [
        *told,
        f"{dataset.name}: by its classes a task has {sequence.smallest} to {sequence.largest} "
        f"training images. An epoch takes {config.examples_per_task} of every task: one that has "
        "fewer goes through its own again. --examples-per-task sets another number.",
    ]


def check(config: Config, spec: MethodSpec, dataset: Dataset, num_seeds: int = 1) -> None:
    """Finds out whether the settings suit the data and one another, before a run begins.

    `benchmarks.run.dry_run.check` finds out the rest.

    Raises:
      ValueError: they do not, or what is drawn and measured would not fit into memory.
    """
    if ARCHITECTURES[config.network].batch_norm and not spec.batch_norm:
        raise ValueError(
            f"Network {config.network!r} has batch normalisation, whose averages {spec.label} does "
            "not keep. Choose --network resnet-18."
        )
    _check_suits_method(config, spec)
    sequence = sequence_of(config, dataset)
    check_input(config.network, sequence.input_shape)
    if config.examples_per_task > sequence.largest:
        raise ValueError(
            f"--examples-per-task is {config.examples_per_task}, but {dataset.name!r} has "
            f"{sequence.largest} training images for a task. Set --examples-per-task to "
            f"{sequence.largest} or less."
        )
    if config.batch_size > config.examples_per_task:
        raise ValueError(
            f"--batch-size is {config.batch_size}, but a task has {config.examples_per_task} "
            f"examples. Set --batch-size to {config.examples_per_task} or less."
        )
    steps = config.num_tasks * config.steps_per_task
    if steps > MAX_COUNT:
        raise ValueError(
            f"--num-tasks {config.num_tasks} and --epochs {config.epochs} make {steps} steps of "
            f"{config.batch_size} examples; expected {MAX_COUNT} at most, which a 32-bit counter "
            "holds. Lower one of them."
        )
    check_memory(
        f"what {num_seeds} seeds draw in --epochs {config.epochs} and measure on --num-tasks "
        f"{config.num_tasks}",
        num_seeds * bytes_per_seed(config),
        "Lower --seeds, --epochs or --num-tasks.",
    )


def _check_suits_method(config: Config, spec: MethodSpec) -> None:
    """Finds out whether a method works with the head, with or without FEL, and on the network.

    Raises:
      ValueError: it does not.
    """
    if spec.heads is not None and config.head not in spec.heads:
        raise ValueError(
            f"--head is {config.head}, with which {spec.label} does not work. Choose --head "
            f"{' or '.join(spec.heads)}."
        )
    options = spec.make_options(config.options)
    if spec.unused_encodings(options) and not config.has_fel(spec.fel):
        raise ValueError(
            f"{spec.label} is to train under encodings that no task uses, but has no feature "
            f"encoding layers here. Add --fel, or change the option that asks for it: {options}."
        )
    if not spec.plain_network:
        return
    plain = [name for name, found in ARCHITECTURES.items() if feed_forward.layers(found)]
    if config.network not in plain:
        raise ValueError(
            f"--network is {config.network}, but {spec.label} needs one whose layers follow one "
            f"another. Choose --network {', '.join(plain)}."
        )
    if config.biases != "own":
        raise ValueError(
            f"--biases is {config.biases}, with which {spec.label} does not work. Choose --biases "
            "own."
        )
    if config.fel:
        raise ValueError(
            f"--fel is given, but {spec.label} has no place for feature encoding layers. Leave it "
            "out."
        )


def bytes_per_seed(config: Config) -> int:
    """How many bytes the indices of a task's examples take, and the accuracies on all tasks."""
    indices = 4 * config.steps_per_task * config.batch_size
    return indices + 8 * config.num_tasks * (config.num_tasks + 2)
