"""A few tasks, a few seconds: RGO remembers what SGD forgets."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import rgo_jax
import rgo_jax.linen
from tests.gradients import sgd_with_a_state


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, task_id):
        x = rgo_jax.linen.FeatureEncoding(layer=0)(x, task_id)
        x = nn.relu(nn.Dense(100)(x))
        x = rgo_jax.linen.FeatureEncoding(layer=1)(x, task_id)
        return nn.Dense(10)(x)


def blobs(key, prototypes, count):
    """Noisy copies of ten prototypes, to be told apart."""
    label_key, noise_key = jax.random.split(key)
    y = jax.random.randint(label_key, (count,), 0, 10)
    return prototypes[y] + 2.5 * jax.random.normal(noise_key, (count, 64)), y


def accuracies_on_both(tx, num_tasks=3):
    """Accuracy on task 0 just after it, and on all tasks after the last."""
    model = Net()
    params = model.init(jax.random.key(0), jnp.zeros((1, 64)), 0)["params"]
    state = tx.init(params)

    def output(params, x, task, y, loss):
        return loss(model.apply({"params": params}, x, task), y)

    @jax.jit
    def learn(params, state, x, y, task):
        def step(carry, batch):
            params, state = carry
            grads = jax.grad(output)(
                params,
                batch[0],
                task,
                batch[1],
                lambda f, y: optax.softmax_cross_entropy_with_integer_labels(f, y).mean(),
            )
            updates, state = tx.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), None

        batches = (x.reshape(-1, 10, 64), y.reshape(-1, 10))
        (params, state), _ = jax.lax.scan(step, (params, state), batches)
        state = rgo_jax.consolidate(
            state,
            lambda b: jax.grad(output)(params, b[0], task, b[1], rgo_jax.curvature_output),
            batches,
        )
        return params, state

    @jax.jit
    def accuracy(params, x, y, task):
        predicted = jnp.argmax(model.apply({"params": params}, x, task), axis=-1)
        return jnp.mean(predicted == y)

    keys = jax.random.split(jax.random.key(1), num_tasks)
    prototypes = jax.vmap(lambda key: jax.random.normal(key, (10, 64)))(keys)
    r = np.full((num_tasks, num_tasks), np.nan)
    for task in range(num_tasks):
        x, y = blobs(jax.random.key(100 + task), prototypes[task], 5000)
        params, state = learn(params, state, x, y, task)
        for k in range(task + 1):
            r[task, k] = accuracy(params, *blobs(jax.random.key(200 + k), prototypes[k], 500), k)
    return r


def test_rgo_forgets_less_than_sgd():
    rgo = accuracies_on_both(rgo_jax.rgo(0.02))
    sgd = accuracies_on_both(sgd_with_a_state(0.02))
    np.testing.assert_array_equal(rgo[0, 0], sgd[0, 0])  # the first task is learned alike
    assert np.diagonal(rgo).min() > 0.84  # and the later ones are learned
    # Measured: BWT -0.08 against -0.22, ACC 0.82 against 0.75.
    assert float(rgo_jax.backward_transfer(rgo) - rgo_jax.backward_transfer(sgd)) > 0.08
    assert float(rgo_jax.average_accuracy(rgo) - rgo_jax.average_accuracy(sgd)) > 0.04
