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
# # The paper's table
#
# The experiments of [the paper](https://arxiv.org/abs/2201.12522) and how to read them: three
# methods on a short sequence of tasks, the accuracy matrix R and the measures that come from it,
# then the results of the whole experiments.
#
# It runs in about a minute on a CPU, and on a GPU or TPU if there is one. `FULL` is for Permuted
# MNIST whole.

# %%
# The experiments are in a checkout of the repository: the one this notebook is in, or one that
# SOURCE names, such as https://.... A jax that is new enough stays as it is.
import importlib.util
import os
import pathlib
import subprocess
import sys

SOURCE = ""  # @param {type:"string"}
FULL = False  # @param {type:"boolean"}  # 20 tasks of MNIST, five seeds

here = [pathlib.Path(), pathlib.Path(".."), pathlib.Path("rgo_jax_checkout")]
if not any((folder / "benchmarks").is_dir() for folder in here):
    assert SOURCE, "Open this notebook in a checkout of rgo_jax, or set SOURCE to its git address."
    subprocess.run(["git", "clone", "--quiet", SOURCE, "rgo_jax_checkout"], check=True)
checkout = next(folder.resolve() for folder in here if (folder / "benchmarks").is_dir())
if importlib.util.find_spec("rgo_jax") is None:
    needed = [f"{checkout}[benchmarks]"]  # with tensorflow-datasets
    if not FULL:
        needed = [str(checkout), "matplotlib", "pillow", "rich", "scikit-learn"]
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *needed], check=True)
os.chdir(checkout)
sys.path.insert(0, str(checkout))

# %%
# %matplotlib inline
import numpy as np
from rich.console import Console

import rgo_jax
from benchmarks import data, presets
from benchmarks.methods import METHODS
from benchmarks.report import figures, pages
from benchmarks.report.merging import merge
from benchmarks.run import checks, experiment, results, train
from rgo_jax import plots

# %% [markdown]
# ## Three methods, one sequence
#
# *Permuted digits*: in each task the pixels of all images are shuffled in another way. One network,
# one head, no data of old tasks. SGD simply goes on training. RGO-2 projects gradients. RGO does so
# too, and has feature encoding, so that it is told which task an image is of. STL, single-task
# learning, trains a network for each task alone: what could be reached without interference.

# %%
BENCHMARK = "permuted-mnist" if FULL else "permuted-digits"
SEEDS = range(5 if FULL else 2)
CHANGES = {} if FULL else {"num_tasks": 5}


def run(method):
    """The measurements of one method, as `python -m benchmarks run` makes them."""
    spec = METHODS[method]
    config = presets.config(BENCHMARK, method=spec, forward_transfer=True, **CHANGES)
    dataset = experiment.data_of(config, data.load(config.dataset))
    return train.run(checks.limit_examples(config, dataset), spec, dataset, SEEDS)


measured = {method: run(method) for method in ("sgd", "rgo-2", "rgo", "stl")}
r = {METHODS[method].label: each.r for method, each in measured.items()}
plots.average_accuracy_curves(r)

# %% [markdown]
# ## R, and what it tells
#
# `r[t, k]` is the accuracy on task `k` after task `t`. Below the diagonal are tasks learned before;
# above it tasks to come.

# %%
plots.accuracy_matrix(r["SGD"], title="SGD")

# %%
plots.accuracy_matrix(r["RGO"], title="RGO")

# %% [markdown]
# | measure | what it is | best |
# | --- | --- | --- |
# | ACC | mean accuracy over all tasks after the last one | high |
# | BWT, backward transfer | mean change of a task since it was learned | 0 or more |
# | LA, learning accuracy | mean accuracy on a task just after it was learned | high |
# | forgetting | how far a task is below the best it has had | low |
# | intransigence | how far learning is below single-task learning | low |
# | FWT, forward transfer | what is known of a task before it is learned | high |

# %%
alone = np.diagonal(measured["stl"].r, axis1=1, axis2=2)
print(f"{'':8}{'ACC':>8}{'BWT':>8}{'LA':>8}{'forget':>8}{'intrans':>8}{'FWT':>8}")
for method in ("sgd", "rgo-2", "rgo"):
    found = measured[method]
    values = [
        rgo_jax.average_accuracy(found.r),
        rgo_jax.backward_transfer(found.r),
        rgo_jax.learning_accuracy(found.r),
        rgo_jax.forgetting(found.r),
        rgo_jax.intransigence(found.r, alone),
        rgo_jax.forward_transfer(found.r, found.initial),
    ]
    cells = "".join(f"{100 * float(np.mean(value)):8.1f}" for value in values)
    print(f"{METHODS[method].label:8}{cells}")

# %% [markdown]
# ## The committed results
#
# Results of the whole experiments are in `benchmarks/results`: a JSON file for each method and
# benchmark, with R of every seed, the command, the commit, versions and device.

# %%
everything = merge(results.load_all(pathlib.Path("benchmarks/results")))
found = [
    result
    for result in everything
    if result.benchmark == "permuted-mnist" and result.preset == "paper" and not result.changes
]
Console(width=90, force_jupyter=False).print(pages.terminal_table(found))

# %% [markdown]
# Figure 1 of the paper, from these results:

# %%
figures.figure_1(everything)

# %% [markdown]
# One result in full:

# %%
result = next(result for result in found if result.method == "rgo")
print(result.provenance["command"])
print(result.provenance["commit"], result.provenance["device"], result.provenance["date"])
print("ACC of each seed:", np.round(result.acc, 2))
plots.accuracy_matrix(result.r, title="RGO on Permuted MNIST")

# %% [markdown]
# All tables are in `benchmarks/results/TABLES.md`. On the command line the experiments are `python
# -m benchmarks run permuted-mnist --methods rgo,sgd`; `python -m benchmarks list` shows what there
# is.
