"""Pre-training on one kind of text, then the others one after the other."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.language import methods
from benchmarks.language.base import Settings, mean_loss
from benchmarks.language.model import LanguageModel
from benchmarks.language.texts import Text
from rgo_jax.baselines import Method, Task

# From pre-trained parameters to a method.
Build = Callable[[Any], Method]

_BATCH_SIZE = 16
_PRE_TRAINING_RATE = 3e-3

# How many batches stand for a task when it is folded in.
_END_BATCHES = 100


def pre_train(net: LanguageModel, text: Text, steps: int, seeds: Sequence[int]) -> list[Any]:
    """For each seed parameters after training on one text with Adam."""
    settings = Settings(learning_rate=_PRE_TRAINING_RATE, steps=steps)
    start, train, _, _ = _compiled(lambda base: methods.adam(net, settings, base), steps)

    def of_seed(seed: int) -> Any:
        init_key, key = jax.random.split(jax.random.key(seed))
        params = net.init(init_key, jnp.zeros((1, net.length), int))["params"]
        windows = jnp.asarray(text.train, int)
        return train(params, start(params, windows, key), windows, jnp.int32(0), key).params

    return [of_seed(seed) for seed in seeds]


def compiled(build: Build, steps: int) -> Callable[..., np.ndarray]:
    """A function that trains through texts; it compiles at its first call only.

    Args:
      build: from pre-trained parameters to a method.
      steps: of each task.

    Returns:
      ``(params, kinds, seed, *, replay=False) -> losses``. ``params`` are pre-trained on the first
      of ``kinds``, a sequence of `Text`; ``seed`` is of batches, random signs and adapters; with
      ``replay`` half of each task's windows are of the texts before. The losses are float64
      ``[len(kinds), len(kinds)]``: after each text, the first without training, the loss on
      held-out windows of each, in nats a byte.
    """
    start, train, end, loss = _compiled(build, steps)

    def run(params: Any, kinds: Sequence[Text], seed: int, *, replay: bool = False) -> np.ndarray:
        params, key = jax.tree.map(jnp.asarray, params), jax.random.key(seed)

        def measure(state: Any) -> list[jax.Array]:
            return [loss(params, state, jnp.asarray(text.test, int)) for text in kinds]

        state = start(params, jnp.asarray(kinds[0].train, int), key)
        rows = [measure(state)]
        for number, text in enumerate(kinds):
            task_id, task_key = jnp.int32(number), jax.random.fold_in(key, number)
            windows = jnp.asarray(text.train, int)
            if number:
                data = _with_earlier(kinds[: number + 1], seed) if replay else windows
                state = train(params, state, data, task_id, task_key)
                rows.append(measure(state))
            if number < len(kinds) - 1:
                state = end(params, state, windows, task_id, task_key)
        return np.array(jax.device_get(rows), np.float64)

    return run


def _compiled(build: Build, steps: int) -> tuple[Callable[..., Any], ...]:
    """Functions of pre-trained parameters and a method's state.

    Built inside, a method's pre-trained parameters are no constants of its program, and all seeds
    share it.
    """

    def task_of(windows: jax.Array, task_id: jax.Array, batches: jax.Array) -> Task:
        def load(indices: jax.Array) -> tuple[jax.Array, jax.Array]:
            return windows[indices, :-1], windows[indices, 1:]

        return Task(task_id, load, batches)

    @jax.jit
    def start(base: Any, windows: jax.Array, key: jax.Array) -> Any:
        return build(base).init(base, windows[:1, :-1], key)

    @jax.jit
    def train(base: Any, state: Any, windows: jax.Array, task_id: jax.Array, key: jax.Array) -> Any:
        method = build(base)

        def batch_of(key: jax.Array) -> jax.Array:
            return jax.random.randint(key, (_BATCH_SIZE,), 0, len(windows))

        task = task_of(windows, task_id, jax.vmap(batch_of)(jax.random.split(key, steps)))

        def step(state: Any, indices: jax.Array) -> tuple[Any, jax.Array]:
            return method.step(state, task.load(indices), task)

        return jax.lax.scan(step, method.start_task(state, task, key), task.batches)[0]

    @jax.jit
    def end(base: Any, state: Any, windows: jax.Array, task_id: jax.Array, key: jax.Array) -> Any:
        drawn = jax.random.permutation(key, len(windows))[: _END_BATCHES * _BATCH_SIZE]
        return build(base).end_task(
            state, task_of(windows, task_id, drawn.reshape(-1, _BATCH_SIZE))
        )

    @jax.jit
    def loss(base: Any, state: Any, windows: jax.Array) -> jax.Array:
        # Piece by piece: the logits of all would take more memory than training.
        count = len(windows) // _BATCH_SIZE
        batches = windows[: count * _BATCH_SIZE].reshape(count, _BATCH_SIZE, -1)
        method = build(base)

        def of_batch(windows: jax.Array) -> jax.Array:
            logits = method.apply(state, windows[:, :-1], jnp.int32(0))
            return mean_loss(logits, windows[:, 1:])

        return jnp.mean(jax.lax.map(of_batch, batches))

    return start, train, end, loss


def _with_earlier(kinds: Sequence[Text], seed: int) -> jax.Array:
    """As many windows as the last text has: half of it, the others in equal parts."""
    rng = np.random.default_rng(seed)
    *earlier, last = (text.train for text in kinds)
    half = len(last) // 2
    share = (len(last) - half) // len(earlier)
    parts = [rng.permutation(last)[: len(last) - share * len(earlier)]]
    parts += [rng.permutation(text)[:share] for text in earlier]
    return jnp.asarray(np.concatenate(parts), int)
