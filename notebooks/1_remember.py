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
# # Remember
#
# A neural network that learns a second task forgets the first. This notebook shows it, and how
# *Recursive Gradient Optimization* (RGO, [Liu and Liu, ICLR
# 2022](https://arxiv.org/abs/2201.12522)) prevents it: without keeping old data, without growing
# the network. First the picture, then the algebra.
#
# It runs in under a minute on a CPU, and on a GPU or TPU if there is one.

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
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import load_digits

import rgo_jax
from rgo_jax import plots, task_inference

MNIST = False  # @param {type:"boolean"}  # a few minutes on a CPU

# %% [markdown]
# ## Two tasks
#
# The first task is to read handwritten digits. In the second the pixels of every image are
# shuffled, always in the same way: the same digits, but nothing learned in the first task helps.

# %%
if MNIST:
    import tensorflow_datasets as tfds

    source = tfds.data_source("mnist", split="train[:6000]")
    examples = source.__getitems__(range(len(source)))
    images = jnp.stack([jnp.asarray(each["image"]).ravel() for each in examples]) / 255
    labels = jnp.array([each["label"] for each in examples])
else:
    images, labels = load_digits(return_X_y=True)
    images, labels = jnp.asarray(images, jnp.float32) / 16, jnp.asarray(labels)

num_train = len(images) * 3 // 4 // 10 * 10
side = int(images.shape[1] ** 0.5)


def shuffled(number):
    return images[:, jax.random.permutation(jax.random.key(number), images.shape[1])]


tasks = jnp.stack([images, *map(shuffled, range(1, 5))])  # five of them, for later

figure, panels = plt.subplots(1, 6, figsize=(9, 1.8))
for number in range(2):
    for column, axes in enumerate(panels[3 * number : 3 * number + 3]):
        axes.imshow(tasks[number, column].reshape(side, side), cmap="gray_r")
        axes.set_title(f"task {number + 1}: {labels[column]}", fontsize=9)
        axes.axis("off")

# %% [markdown]
# ## A network and its training
#
# Plain JAX: a list of dictionaries of arrays, a function, a loop. The optimizer can be any of
# `optax`. After each epoch we measure the accuracy on both tasks, on images that were not trained
# on. Leave `encode` aside for now.


# %%
def init(key, sizes=(images.shape[1], 100, 10)):
    keys = jax.random.split(key, len(sizes) - 1)
    return [
        {"kernel": jax.random.normal(key, (d, m)) / d**0.5, "bias": jnp.zeros(m)}
        for key, d, m in zip(keys, sizes[:-1], sizes[1:], strict=True)
    ]


def logits(params, x, encode):
    hidden = jax.nn.relu(encode(0, x) @ params[0]["kernel"] + params[0]["bias"])
    return encode(1, hidden) @ params[1]["kernel"] + params[1]["bias"]


def as_it_is(number):
    """The same network for every task."""
    return lambda layer, x: x


batches = jnp.arange(num_train).reshape(-1, 10)


def train(tx, network, num_tasks, params, state, number, epochs=10):
    """Trains on one task. Also returns the accuracy on every task after each epoch."""
    x, encode = tasks[number], network(number)

    def loss(params, batch):
        outputs = logits(params, x[batch], encode)
        return optax.softmax_cross_entropy_with_integer_labels(outputs, labels[batch]).mean()

    def step(carry, batch):
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params, batch), state, params)
        return (optax.apply_updates(params, updates), state), None

    def epoch(carry, _):
        carry, _ = jax.lax.scan(step, carry, batches)
        accuracies = jax.lax.map(lambda k: accuracy(carry[0], network, k), jnp.arange(num_tasks))
        return carry, accuracies

    (params, state), curves = jax.lax.scan(epoch, (params, state), length=epochs)
    return params, state, curves


def accuracy(params, network, number):
    outputs = logits(params, tasks[number, num_train:], network(number))
    return (outputs.argmax(axis=1) == labels[num_train:]).mean()


# %% [markdown]
# The one difference between SGD and RGO: RGO is told when a task is over. `consolidate` runs
# through the task once more, and notes in the optimizer's state what the network depends on.


# %%
def consolidate(network, params, state, number):
    def curvature(params, batch):
        outputs = logits(params, tasks[number, batch], network(number))
        return rgo_jax.curvature_output(outputs, labels[batch])

    return rgo_jax.consolidate(state, curvature, batches, params)


def learn(tx, network=as_it_is, num_tasks=2, remember=True):
    """One task after the other.

    Returns accuracies [num_epochs, num_tasks], the states between tasks and the last parameters.
    """
    params = init(jax.random.key(0))
    states, curves = [tx.init(params)], []
    train_task = jax.jit(train, static_argnums=(0, 1, 2))
    end_task = jax.jit(consolidate, static_argnums=0)
    for number in range(num_tasks):
        params, state, measured = train_task(tx, network, num_tasks, params, states[-1], number)
        states.append(end_task(network, params, state, number) if remember else state)
        curves.append(measured)
    return np.concatenate(curves), states, params


sgd, *_ = learn(optax.sgd(0.3), remember=False)
rgo, states, _ = learn(rgo_jax.rgo(0.3))


def show(**methods):
    _, panels = plt.subplots(1, len(methods), figsize=(4.5 * len(methods), 3), sharey=True)
    for axes, (name, curves) in zip(panels, methods.items(), strict=True):
        epochs = np.arange(1, len(curves) + 1)
        for number in range(2):
            axes.plot(epochs, 100 * curves[:, number], marker=".", label=f"task {number + 1}")
        axes.axvline(len(curves) / 2 + 0.5, color="gray", linestyle=":")
        axes.set(title=name, xlabel="epochs: task 1, then task 2", ylim=(0, 102))
    panels[0].set_ylabel("accuracy (%)")
    panels[0].legend(loc="lower right")


show(SGD=sgd, RGO=rgo)

# %%
for name, curves in (("SGD", sgd), ("RGO", rgo)):
    first, last = curves[len(curves) // 2 - 1], curves[-1]
    print(f"{name}: task 1 {first[0]:.3f}, after task 2 {last[0]:.3f}; task 2 {last[1]:.3f}")

# %% [markdown]
# ## What RGO keeps: the matrix P
#
# SGD moves the kernel of a layer, `[d, m]`, along the gradient `g` of the loss. RGO moves it along
# `P g`, where `P`, `[d, d]`, is kept for each parameter. Before the first task `P` is the identity:
# RGO is SGD. After each task, every batch gives a vector `v`. It is the gradient of the network's
# outputs for the right labels, each weighted by the root of the loss's curvature there and all of
# the batch added up, as a mean over the kernel's `m` columns. It is folded in,
#
# $$P \leftarrow P - \frac{P v v^\top P}{\alpha + v^\top P v},$$
#
# so that at any time $P = \alpha\,(\alpha I + \sum v v^\top)^{-1}$: the step of recursive least
# squares. A direction that earlier tasks depend on has an eigenvalue near 0, and hardly moves any
# more. A direction that none depends on has the eigenvalue 1. No data is kept, and `P` does not
# grow with the number of tasks.


# %%
def kernels(state):
    stats = rgo_jax.projection_stats(state)
    return {path: layer for path, layer in stats.items() if path.endswith("kernel")}


stats = [kernels(state) for state in states]
plots.spectra(stats)

# %% [markdown]
# With each task there is less room to learn in. `effective_rank` counts the directions that are
# left.

# %%
for number, after in enumerate(stats):
    left = (f"{path} {layer.effective_rank:.1f} of {layer.dim}" for path, layer in after.items())
    print(f"after {number} tasks:", ", ".join(left))
plots.remaining_room(stats)

# %% [markdown]
# ## The trace rule
#
# A `P` whose eigenvalues shrink would make every later task slower to learn. RGO multiplies `P g`
# by `d / tr P`, for each parameter. For gradients of no preferred direction the loss then falls on
# average as fast as with SGD (Theorem 1 of the paper). And of all matrices with such a trace RGO's
# has the lowest bound on how much of the earlier tasks is forgotten (Theorem 2).

# %%
for number, after in enumerate(stats):
    scales = (f"{path} {layer.dim / layer.trace:.2f}" for path, layer in after.items())
    print(f"after {number} tasks d / tr P is:", ", ".join(scales))

# %% [markdown]
# ## Feature encoding
#
# Tasks interfere less if they use different directions. A *feature encoding layer* (FEL) permutes
# the features that a layer receives, differently for each task: a fixed random shuffle, with
# nothing to learn and nothing to store. This is what it makes of an image, and of the activations
# of a hidden layer, in the first two tasks:

# %%
hidden = jax.nn.relu(images[:1] @ init(jax.random.key(0))[0]["kernel"])
figure, panels = plt.subplots(2, 2, figsize=(6, 4))
for number, (left, right) in enumerate(panels):
    for axes, layer, features in ((left, 0, images[:1]), (right, 1, hidden)):
        encoded = rgo_jax.fel_encode(features, task_id=number, seed=0, layer=layer)
        width = int(features.shape[1] ** 0.5)
        axes.imshow(encoded.reshape(width, width), cmap="gray_r")
        axes.axis("off")
    left.set_title(f"an image, task {number + 1}", fontsize=9)
    right.set_title(f"a hidden layer, task {number + 1}", fontsize=9)

# %% [markdown]
# The network is the same in all tasks, but each task sees it wired in another way. It has to know
# which task an image is of.


# %%
def encoded(number):
    return lambda layer, x: rgo_jax.fel_encode(x, task_id=number, seed=0, layer=layer)


with_fel, *_ = learn(rgo_jax.rgo(0.3), encoded)
show(**{"RGO": rgo, "RGO with FEL": with_fel})

# %% [markdown]
# ## More tasks
#
# Five tasks in turn, with and without each of the two ideas. Each line is the accuracy on one task
# from when it was learned.

# %%
NUM_TASKS = 5


def matrix(curves):
    """R: a row for each task learned, a column for each task tested."""
    after_each = curves[len(curves) // NUM_TASKS - 1 :: len(curves) // NUM_TASKS]
    return np.where(np.tri(NUM_TASKS, dtype=bool), after_each, np.nan)


rgo_curves, states, params = learn(rgo_jax.rgo(0.3), encoded, NUM_TASKS)
r = {
    "SGD": matrix(learn(optax.sgd(0.3), num_tasks=NUM_TASKS, remember=False)[0]),
    "SGD with FEL": matrix(learn(optax.sgd(0.3), encoded, NUM_TASKS, remember=False)[0]),
    "RGO": matrix(learn(rgo_jax.rgo(0.3), num_tasks=NUM_TASKS)[0]),
    "RGO with FEL": matrix(rgo_curves),
}
plots.task_accuracy_curves(r)

# %%
for name, accuracies in r.items():
    acc = 100 * rgo_jax.average_accuracy(accuracies)
    bwt = 100 * rgo_jax.backward_transfer(accuracies)
    print(f"{name}: ACC {acc:.1f}, BWT {bwt:+.1f}")
plots.remaining_room([kernels(state) for state in states])

# %% [markdown]
# ## Which task is it?
#
# The network had to know which task an image is of. It can find that out: under another task's
# encoding it is less sure. `scores` tells how far a prediction is from uniform; `infer` takes the
# task with the highest score. It is right more often for several images of one task together. The
# page [Without task ids](../docs/task-inference.md) has a way to train that makes it reliable for
# single images, too.


# %%
def outputs(params, x, number):
    return logits(params, x, encoded(number))


for group_size in (1, 4, 16):
    shares = []
    for number in range(NUM_TASKS):
        x = tasks[number, num_train:]
        by_task = task_inference.logits_by_task(outputs, params, x, NUM_TASKS)
        found = task_inference.infer(task_inference.scores(by_task), group_size=group_size)
        shares.append((found == number).mean())
    print(f"{group_size} images at a time: {100 * np.mean(shares):.1f} % of tasks are right")

# %% [markdown]
# Read on: `2_your_own_model` adds RGO to a training script in Flax NNX; `3_the_papers_table`
# repeats a part of the paper's experiments.
