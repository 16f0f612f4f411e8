"""Pre-training on one kind of text, then the others one after the other."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.language import methods
from benchmarks.language.base import Method, Settings, State, mean_loss
from benchmarks.language.model import LanguageModel
from benchmarks.language.texts import Text

_BATCH_SIZE = 16
_PRE_TRAINING_RATE = 3e-3

# How many batches stand for a task when it is folded in.
_END_BATCHES = 100


def pre_train(net: LanguageModel, text: Text, steps: int, seeds: Sequence[int]) -> list[Any]:
    """For each seed parameters after training on one text with Adam."""
    settings = Settings(learning_rate=_PRE_TRAINING_RATE, steps=steps)
    method = methods.adam(net, settings)
    run_steps = _steps(method, steps)

    def of_seed(seed: int) -> Any:
        init_key, key = jax.random.split(jax.random.key(seed))
        params = net.init(init_key, jnp.zeros((1, net.length), int))["params"]
        state = method.start_task(method.init(params, key))
        return method.params(run_steps(state, jnp.asarray(text.train, int), key))

    return [of_seed(seed) for seed in seeds]


def compiled(net: LanguageModel, method: Method, steps: int) -> Callable[..., np.ndarray]:
    """A function that trains through texts; it compiles at its first call only.

    Args:
      net: the model.
      method: how it is trained.
      steps: of each task.

    Returns:
      ``(params, kinds, seed, *, replay=False) -> losses``. ``params`` are pre-trained on the first
      of ``kinds``, a sequence of `Text`; ``seed`` is of batches, random signs and adapters; with
      ``replay`` half of each task's windows are of the texts before. The losses are float64
      ``[len(kinds), len(kinds)]``: after each text, the first without training, the loss on
      held-out windows of each, in nats a byte.
    """
    run_steps, end_task = _steps(method, steps), jax.jit(method.end_task)

    @jax.jit
    def loss(state: State, windows: jax.Array) -> jax.Array:
        # Piece by piece: the logits of all would take more memory than training.
        count = len(windows) // _BATCH_SIZE
        batches = windows[: count * _BATCH_SIZE].reshape(count, _BATCH_SIZE, -1)
        params = method.params(state)
        return jnp.mean(jax.lax.map(lambda x: mean_loss(net, params, x), batches))

    def run(params: Any, kinds: Sequence[Text], seed: int, *, replay: bool = False) -> np.ndarray:
        def measure(state: State) -> list[jax.Array]:
            return [loss(state, jnp.asarray(text.test, int)) for text in kinds]

        key = jax.random.key(seed)
        state = method.init(jax.tree.map(jnp.asarray, params), key)
        rows = [measure(state)]
        for task, text in enumerate(kinds):
            task_key = jax.random.fold_in(key, task)
            windows = jnp.asarray(text.train, int)
            if task:
                data = _with_earlier(kinds[: task + 1], seed) if replay else windows
                state = run_steps(method.start_task(state), data, task_key)
                rows.append(measure(state))
            if task < len(kinds) - 1:
                drawn = jax.random.permutation(task_key, len(windows))[: _END_BATCHES * _BATCH_SIZE]
                batches = windows[drawn].reshape(-1, _BATCH_SIZE, windows.shape[-1])
                state = end_task(state, batches)
        return np.array(jax.device_get(rows), np.float64)

    return run


def _steps(method: Method, steps: int) -> Any:
    """``(state, windows, key) -> state``, compiled."""

    @jax.jit
    def run(state: State, windows: jax.Array, key: jax.Array) -> State:
        def step(state: State, key: jax.Array) -> tuple[State, jax.Array]:
            drawn = jax.random.randint(key, (_BATCH_SIZE,), 0, len(windows))
            return method.step(state, windows[drawn])

        return jax.lax.scan(step, state, jax.random.split(key, steps))[0]

    return run


def _with_earlier(kinds: Sequence[Text], seed: int) -> jax.Array:
    """As many windows as the last text has: half of it, the others in equal parts."""
    rng = np.random.default_rng(seed)
    *earlier, last = (text.train for text in kinds)
    half = len(last) // 2
    share = (len(last) - half) // len(earlier)
    parts = [rng.permutation(last)[: len(last) - share * len(earlier)]]
    parts += [rng.permutation(text)[:share] for text in earlier]
    return jnp.asarray(np.concatenate(parts), int)
