"""What a method is given: the network and the settings of an experiment, for one seed."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from benchmarks.data import tasks
from benchmarks.methods import MethodSpec, Problem
from benchmarks.methods.base import NO_STATISTICS, Statistics
from benchmarks.networks import feed_forward
from benchmarks.networks.architectures import ARCHITECTURES
from benchmarks.networks.layers import SHARED_HEADS
from benchmarks.presets import Config


def make_problem(
    config: Config, spec: MethodSpec, sequence: tasks.Sequence, dataset: str, fel_key: jax.Array
) -> Problem:
    """What a method is given for one seed: the network and the settings."""
    batch_norm = ARCHITECTURES[config.network].batch_norm
    # XLA's CPU backend draws a task's permutations before a scan over its steps by itself, and need
    # not draw those of other tasks; others would draw them in each step.
    options = spec.make_options(config.options)
    fel_table = None
    if jax.default_backend() != "cpu":
        fel_table = config.num_tasks + spec.unused_encodings(options)
    network: Any = ARCHITECTURES[config.network].build(
        num_classes=sequence.num_classes,
        num_tasks=config.num_tasks,
        head="shared" if spec.single_task else config.head,
        fel=config.has_fel(spec.fel),
        fel_table=fel_table,
        fel_on_convs=config.fel_on_convs,
        fel_on_input=config.fel_on_input,
        fel_per_layer=config.fel_per_layer,
        fel_on_first_task=config.fel_on_first_task,
        initial_values=config.initial_values,
        biases="own" if spec.single_task and config.biases == "frozen" else config.biases,
        conv_biases=config.conv_biases,
        # An integer of its own: FEL derives its keys as the benchmark does, and must not
        # draw the permutations that make the tasks.
        seed=jax.random.randint(fel_key, (), 0, 2**31 - 1),
    )

    def logits(
        params: Any,
        x: jax.Array,
        task_id: jax.Array,
        statistics: Any = None,
        encoding_id: jax.Array | None = None,
    ) -> jax.Array:
        variables = {"params": freeze(params, task_id), "encodings": encodings}
        ids = task_id, encoding_id
        if not batch_norm:
            return jnp.asarray(network.apply(variables, x, *ids))
        if statistics is not None:
            return jnp.asarray(network.apply(variables | {"batch_stats": statistics}, x, *ids))
        return jnp.asarray(network.apply(variables, x, *ids, mutable="batch_stats")[0])

    def update_statistics(statistics: Any, params: Any, x: jax.Array, task_id: jax.Array) -> Any:
        variables = {"params": freeze(params, task_id), "encodings": encodings}
        variables["batch_stats"] = statistics
        _, updated = network.apply(variables, x, task_id, mutable="batch_stats")
        return updated["batch_stats"]

    def freeze(params: Any, task_id: jax.Array) -> Any:
        def of_leaf(path: Any, leaf: jax.Array) -> jax.Array:
            names = [key.key for key in path]
            is_frozen = (network.head == "frozen" and names[0] == "head") or (
                network.biases == "frozen" and names[-1] == "bias"
            )
            return jnp.where(task_id == 0, leaf, jax.lax.stop_gradient(leaf)) if is_frozen else leaf

        return jax.tree.map_with_path(of_leaf, params)

    blank = jnp.zeros((1, *sequence.input_shape))

    def init(key: jax.Array) -> Any:
        return network.init(key, blank, jnp.int32(0))["params"]

    encodings: Any = {}
    if fel_table is not None:
        encodings = network.init(fel_key, blank, jnp.int32(0)).get("encodings", {})
    return Problem(
        init=init,
        logits=logits,
        protected=lambda params: {
            name: name != "head" or network.head in SHARED_HEADS for name in params
        },
        freeze=freeze,
        losses=partial(cross_entropies, smoothing=config.label_smoothing),
        learning_rate=config.learning_rate_schedule(),
        options=options,
        dataset=dataset,
        input_shape=sequence.input_shape,
        num_classes=sequence.num_classes,
        num_tasks=config.num_tasks,
        statistics=Statistics(
            lambda: network.init(fel_key, blank, jnp.int32(0))["batch_stats"], update_statistics
        )
        if batch_norm
        else NO_STATISTICS,
        layers=feed_forward.layers(ARCHITECTURES[config.network]),
    )


def cross_entropies(logits: jax.Array, labels: jax.Array, *, smoothing: float = 0) -> jax.Array:
    """Cross-entropies ``[b]`` of ``logits [b, classes]`` with integer labels, perhaps smoothed."""
    if not smoothing:
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), smoothing)
    return optax.softmax_cross_entropy(logits, targets)
