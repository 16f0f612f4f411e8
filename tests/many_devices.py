"""A program for `test_sharding`: two tasks on all devices of all processes; prints what it learned.

The layout of docs/devices.md in full. Arguments: number of processes, number of this one, a port.
"""

import json
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from sklearn.datasets import load_digits

import rgo_jax.linen


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, task):
        x = rgo_jax.linen.Dense(96)(rgo_jax.linen.FeatureEncoding(layer=0)(x, task))
        return rgo_jax.linen.Dense(10)(rgo_jax.linen.FeatureEncoding(layer=1)(nn.relu(x), task))


def main():
    net, tx = Net(), rgo_jax.rgo(0.2)
    x, y = load_digits(return_X_y=True)
    tasks = [x / 16, 1 - x[:, ::-1] / 16]
    params = net.init(jax.random.key(0), jnp.zeros((1, 64)), 0)["params"]

    # The whole of the layout: parameters everywhere, P by rows, examples over all devices.
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
    everywhere = NamedSharding(mesh, PartitionSpec())
    by_example = NamedSharding(mesh, PartitionSpec(None, "data"))
    by_rows = rgo_jax.projection_sharding(jax.eval_shape(tx.init, params), mesh, "data")
    params = jax.device_put(params, everywhere)
    state = jax.jit(tx.init, out_shardings=by_rows)(params)

    def learn(params, state, x, y, task):
        def step(carry, batch):
            (params, state), (x, y) = carry, batch

            def loss(params):
                logits = net.apply({"params": params}, x, task)
                return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

            _, grads = rgo_jax.value_and_grad(loss, state)(params)
            updates, state = tx.update(grads, state)
            return (optax.apply_updates(params, updates), state), None

        def epoch(carry, _):
            return jax.lax.scan(step, carry, (x, y))

        (params, state), _ = jax.lax.scan(epoch, (params, state), length=3)

        def curvature(batch):
            def output(params):
                logits = net.apply({"params": params}, batch[0], task)
                return rgo_jax.curvature_output(logits, batch[1])

            return jax.grad(output)(params)

        return params, rgo_jax.consolidate(state, curvature, (x, y), alpha=1.0, block_size=64)

    learn = jax.jit(learn, donate_argnums=(0, 1), out_shardings=(everywhere, by_rows))

    @jax.jit
    def accuracy(params, x, task):
        return jnp.mean(net.apply({"params": params}, x, task).argmax(1) == y)

    r = []
    for task, images in enumerate(tasks):
        images = images.astype(np.float32)
        batches = jax.device_put(images[:1296].reshape(54, 24, 64), by_example)
        labels = jax.device_put(y[:1296].astype(np.int32).reshape(54, 24), by_example)
        params, state = learn(params, state, batches, labels, task)
        r.append([float(accuracy(params, t, k)) for k, t in enumerate(tasks[: task + 1])])
    projection = state[0].projection["Dense_1"]["kernel"]
    return {
        "devices": jax.device_count(),
        "r": r,
        "trace": float(jax.jit(jnp.trace)(projection)),
        "rows on a device": projection.addressable_shards[0].data.shape[0],
    }


if __name__ == "__main__":
    processes, number, port = map(int, sys.argv[1:])
    if processes > 1:
        jax.distributed.initialize(f"localhost:{port}", processes, number)
    print(json.dumps(main()))
