# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Your own model
#
# You have a training script in Flax NNX, and now comes a second task. This notebook adds RGO to
# such a script in the fewest lines, then what a longer script needs: feature encoding, heads,
# momentum and schedules between tasks, checkpoints, several seeds at once.
#
# It runs in about a minute on a CPU, and on a GPU or TPU if there is one.

# %%
# Installs rgo_jax if it is missing: from what SOURCE names, such as git+https://..., from a wheel
# beside this notebook, or from the checkout it is in. A jax that is new enough stays as it is.
import importlib.util
import pathlib
import subprocess
import sys

SOURCE = ""  # @param {type:"string"}
if importlib.util.find_spec("rgo_jax") is None:
    wheels = sorted(pathlib.Path().glob("rgo_jax-*.whl"), key=lambda p: -p.stat().st_mtime)
    checkouts = [p for p in map(pathlib.Path, (".", "..")) if (p / "rgo_jax").is_dir()]
    found = [source for source in (SOURCE, *wheels, *checkouts) if source]
    assert found, "Upload a wheel of rgo_jax beside this notebook, or set SOURCE to a git address."
    source = found[0] if found[0] == SOURCE else str(found[0].resolve())
    needed = [source, "matplotlib", "scikit-learn"]
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *needed], check=True)

# %%
# %matplotlib inline
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax import nnx
from sklearn.datasets import load_digits

import rgo_jax
import rgo_jax.nnx
from rgo_jax import plots

MNIST = False  # @param {type:"boolean"}  # a few minutes on a CPU

# %% [markdown]
# ## The script you have
#
# A convolutional network, an optimizer, a jitted step. The tasks: handwritten digits, then the same
# upside down, then with black and white exchanged, then mirrored along the diagonal.

# %%
if MNIST:
    import tensorflow_datasets as tfds

    source = tfds.data_source("mnist", split="train[:6000]")
    examples = source.__getitems__(range(len(source)))
    images = jnp.stack([jnp.asarray(each["image"], jnp.float32) for each in examples]) / 255
    labels = jnp.array([each["label"] for each in examples])
else:
    images, labels = load_digits(return_X_y=True)
    images = jnp.asarray(images, jnp.float32).reshape(-1, 8, 8, 1) / 16
    labels = jnp.asarray(labels)
tasks = [images, images[:, ::-1], 1 - images, images.swapaxes(1, 2)]
num_train = len(images) * 3 // 4 // 20 * 20
num_features = 16 * (images.shape[1] // 2) ** 2  # of the convolution
batches = jnp.arange(num_train).reshape(-1, 20)


class Net(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(1, 16, (3, 3), strides=(2, 2), rngs=rngs)
        self.hidden = nnx.Linear(num_features, 64, rngs=rngs)
        self.head = nnx.Linear(64, 10, rngs=rngs)

    def __call__(self, x, task):
        x = nnx.relu(self.conv(x))
        x = nnx.relu(self.hidden(x.reshape(len(x), -1)))
        return self.head(x)


def loss(model, x, y, task):
    return optax.softmax_cross_entropy_with_integer_labels(model(x, task), y).mean()


@nnx.jit
def train_step(model, optimizer, x, y, task):
    value, grads = nnx.value_and_grad(loss)(model, x, y, task)
    optimizer.update(model, grads)
    return value


@nnx.jit
def accuracy(model, x, y, task):
    return (model(x, task).argmax(axis=1) == y).mean()


def train(model, optimizer, step, end_of_task=lambda model, optimizer, task: None, epochs=3):
    """Through all tasks; returns R: a row for each task learned, a column for each task tested."""
    r = np.full((len(tasks), len(tasks)), np.nan)
    for task, x in enumerate(tasks):
        for _ in range(epochs):
            for batch in batches:
                step(model, optimizer, x[batch], labels[batch], task)
        end_of_task(model, optimizer, task)
        for k in range(task + 1):
            r[task, k] = accuracy(model, tasks[k][num_train:], labels[num_train:], k)
    return r


model = Net(nnx.Rngs(0))
optimizer = nnx.Optimizer(model, optax.sgd(0.2), wrt=nnx.Param)
results = {"SGD": train(model, optimizer, train_step)}
plots.accuracy_matrix(results["SGD"], title="SGD")

# %% [markdown]
# The rows of this matrix are what the network knows after each task: it forgets.
#
# ## RGO in two changes
#
# 1. `rgo_jax.rgo` in place of `optax.sgd`.
# 2. `rgo_jax.nnx.consolidate` at the end of a task: one more pass over its examples. It needs a
# function from the model and a batch to `rgo_jax.curvature_output` of the model's logits.


# %%
@nnx.jit
def end_of_task(model, optimizer, x, y, task):
    def output(model, batch):
        return rgo_jax.curvature_output(model(batch[0], task), batch[1])

    rgo_jax.nnx.consolidate(model, optimizer, output, (x, y))


def consolidate(model, optimizer, task):
    end_of_task(model, optimizer, tasks[task][batches], labels[batches], task)


model = Net(nnx.Rngs(0))
optimizer = nnx.Optimizer(model, rgo_jax.rgo(0.2), wrt=nnx.Param)
results["RGO"] = train(model, optimizer, train_step, consolidate)

# %% [markdown]
# ## Feature encoding and fused layers
#
# A `FeatureEncoding` before each layer but the first permutes what the layer receives, differently
# for each task, so that tasks interfere less. The layers of `rgo_jax.nnx` are Flax's, but for a
# cheaper projection when gradients are taken by `rgo_jax.nnx.value_and_grad`.


# %%
class EncodedNet(nnx.Module):
    def __init__(self, rngs):
        self.conv = rgo_jax.nnx.Conv(1, 16, (3, 3), strides=(2, 2), rngs=rngs)
        self.hidden = rgo_jax.nnx.Linear(num_features, 64, rngs=rngs)
        self.head = rgo_jax.nnx.Linear(64, 10, rngs=rngs)
        self.encode_hidden = rgo_jax.nnx.FeatureEncoding(layer=1)
        self.encode_head = rgo_jax.nnx.FeatureEncoding(layer=2)

    def __call__(self, x, task):
        x = nnx.relu(self.conv(x))
        x = nnx.relu(self.hidden(self.encode_hidden(x.reshape(len(x), -1), task)))
        return self.head(self.encode_head(x, task))


@nnx.jit
def projected_step(model, optimizer, x, y, task):
    value, grads = rgo_jax.nnx.value_and_grad(loss, optimizer)(model, x, y, task)
    optimizer.update(model, grads)
    return value


model = EncodedNet(nnx.Rngs(0))
optimizer = nnx.Optimizer(model, rgo_jax.rgo(0.2), wrt=nnx.Param)
results["RGO with FEL"] = train(model, optimizer, projected_step, consolidate)
plots.task_accuracy_curves(results)

# %%
for name, r in results.items():
    acc, bwt = 100 * rgo_jax.average_accuracy(r), 100 * rgo_jax.backward_transfer(r)
    print(f"{name}: ACC {acc:.1f}, BWT {bwt:+.1f}")

# %% [markdown]
# How much room is left in each layer, and how much of each layer's gradients is protected:

# %%
stats = rgo_jax.projection_stats(optimizer.opt_state)
for path, layer in stats.items():
    room = f"{layer.effective_rank:.0f} of {layer.dim} directions"
    print(f"{path}: {room}, coverage {layer.coverage:.2f}")

# %% [markdown]
# ## Momentum and schedules between tasks
#
# An optimizer carries momentum from one task to the next. It would move parameters that the new
# projection protects. A schedule that decays within each task has to start anew.
# `rgo_jax.nnx.next_task` sets all of the optimizer's state back but the projections.


# %%
schedule = optax.cosine_decay_schedule(0.05, decay_steps=3 * len(batches))
tx = rgo_jax.rgo(schedule, momentum=0.9)


def consolidate_and_set_back(model, optimizer, task):
    consolidate(model, optimizer, task)
    rgo_jax.nnx.next_task(model, optimizer)


model = EncodedNet(nnx.Rngs(0))
optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
r = train(model, optimizer, projected_step, consolidate_and_set_back)
acc, bwt = 100 * rgo_jax.average_accuracy(r), 100 * rgo_jax.backward_transfer(r)
print(f"with momentum and a schedule: ACC {acc:.1f}, BWT {bwt:+.1f}")

# %% [markdown]
# ## Checkpoints
#
# The projections are part of the optimizer's state, so an orbax checkpoint of model and optimizer
# has everything: restored into a fresh pair, training goes on with the next task.

# %%
path = pathlib.Path(tempfile.mkdtemp()) / "after_four_tasks"
with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(path, nnx.to_pure_dict(nnx.state((model, optimizer))))

fresh = EncodedNet(nnx.Rngs(1))
fresh = (fresh, nnx.Optimizer(fresh, tx, wrt=nnx.Param))
state = nnx.state(fresh)
with ocp.StandardCheckpointer() as checkpointer:
    nnx.replace_by_pure_dict(state, checkpointer.restore(path, nnx.to_pure_dict(state)))
nnx.update(fresh, state)
restored, _ = fresh
accuracies = [
    float(accuracy(restored, x[num_train:], labels[num_train:], k)) for k, x in enumerate(tasks)
]
print("restored:", np.round(accuracies, 3), "saved:", np.round(r[-1], 3))

# %% [markdown]
# ## Heads: tasks with classes of their own
#
# Where each task has other classes, one head has them all, and those of other tasks are masked: in
# the loss and in `curvature_output`. Here are five tasks of two digits each.

# %%
pairs = [np.flatnonzero((labels == 2 * k) | (labels == 2 * k + 1)) for k in range(5)]
pairs = [examples[: len(examples) // 12 * 12].reshape(-1, 12) for examples in pairs]


def classes(task):
    return jnp.arange(10) // 2 == task


def masked_loss(model, x, y, task):
    outputs = model(x, task)
    outputs = jnp.where(classes(task), outputs, -jnp.inf)
    return optax.softmax_cross_entropy_with_integer_labels(outputs, y).mean()


@nnx.jit
def masked_step(model, optimizer, x, y, task):
    value, grads = rgo_jax.nnx.value_and_grad(masked_loss, optimizer)(model, x, y, task)
    optimizer.update(model, grads)
    return value


@nnx.jit
def end_of_pair(model, optimizer, x, y, task):
    def output(model, batch):
        x, y = batch
        return rgo_jax.curvature_output(model(x, task), y, where=classes(task))

    rgo_jax.nnx.consolidate(model, optimizer, output, (x, y))


@nnx.jit
def masked_accuracy(model, x, y, task):
    outputs = jnp.where(classes(task), model(x, task), -jnp.inf)
    return (outputs.argmax(axis=1) == y).mean()


model = EncodedNet(nnx.Rngs(0))
optimizer = nnx.Optimizer(model, rgo_jax.rgo(0.2), wrt=nnx.Param)
r = np.full((5, 5), np.nan)
for task, examples in enumerate(pairs):
    learned = examples[:-8]
    for _ in range(3):
        for batch in learned:
            masked_step(model, optimizer, images[batch], labels[batch], task)
    end_of_pair(model, optimizer, images[learned], labels[learned], task)
    for k in range(task + 1):
        held_out = pairs[k][-8:].ravel()
        r[task, k] = masked_accuracy(model, images[held_out], labels[held_out], k)
plots.accuracy_matrix(r, title="two digits a task")

# %% [markdown]
# ## Several seeds at once
#
# Everything is the same under `vmap`: three networks, each with projections of its own, in one
# program.


# %%
@nnx.vmap
def create(key):
    model = EncodedNet(nnx.Rngs(key))
    return model, nnx.Optimizer(model, rgo_jax.rgo(0.2), wrt=nnx.Param)


models, optimizers = create(jax.random.split(jax.random.key(0), 3))
steps = nnx.jit(nnx.vmap(projected_step, in_axes=(0, 0, None, None, None)))
ends = nnx.jit(nnx.vmap(end_of_task, in_axes=(0, 0, None, None, None)))
measure = nnx.jit(nnx.vmap(accuracy, in_axes=(0, None, None, None)))
r = np.full((3, 2, 2), np.nan)
for task in range(2):
    for batch in batches:
        steps(models, optimizers, tasks[task][batch], labels[batch], task)
    ends(models, optimizers, tasks[task][batches], labels[batches], task)
    for k in range(task + 1):
        r[:, task, k] = measure(models, tasks[k][num_train:], labels[num_train:], k)
print("ACC of each seed after two tasks:", np.round(100 * rgo_jax.average_accuracy(r), 1))
