"""RGO in pictures: ``python docs/pictures.py`` draws ``docs/pictures.png``.

What SGD forgets and RGO does not, from the committed results; what becomes of a P in five tasks of
digits; what feature encoding makes of an image.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.datasets import load_digits

import rgo_jax
from benchmarks.methods import METHODS
from benchmarks.report.merging import merge
from benchmarks.run import results

ROOT = Path(__file__).parent.parent
NUM_TASKS = 5


def first_task(axes: Axes) -> None:
    """Accuracy on the first of 20 tasks while the others are learned."""
    plain = [r for r in merge(results.load_all(ROOT / "benchmarks/results")) if not r.changes]
    found = {r.method: r for r in plain if (r.benchmark, r.preset) == ("permuted-mnist", "paper")}
    for method in ("rgo", "gpm", "ewc", "sgd"):
        accuracy = 100 * found[method].r[:, :, 0].mean(axis=0)
        label = METHODS[method].label + (", with encoding" if METHODS[method].fel else "")
        axes.plot(range(1, len(accuracy) + 1), accuracy, marker=".", label=label)
    axes.set_title("One network learns 20 tasks:\nwhat it still knows of the first")
    axes.set(xlabel="tasks learned", ylabel="accuracy on the first task (%)", ylim=(0, 100))
    axes.legend(frameon=False, loc="lower left")


def spectra() -> list[np.ndarray]:
    """The eigenvalues of the P of a hidden layer's outputs, before and after each task."""
    x, y = map(jnp.asarray, load_digits(return_X_y=True))
    batches = jnp.arange(1790).reshape(179, 10)
    normal = jax.random.normal
    params = {
        "hidden": normal(jax.random.key(0), (64, 100)) / 8,
        "head": normal(jax.random.key(1), (100, 10)) / 10,
    }
    tx = rgo_jax.rgo(0.1)

    def logits(params: dict, x: jax.Array) -> jax.Array:
        return jax.nn.relu(x @ params["hidden"]) @ params["head"]

    @jax.jit
    def learn(params: dict, state: optax.OptState, x: jax.Array) -> tuple[dict, optax.OptState]:
        def loss(params: dict, i: jax.Array) -> jax.Array:
            outputs = logits(params, x[i])
            return optax.softmax_cross_entropy_with_integer_labels(outputs, y[i]).mean()

        def step(carry: tuple, i: jax.Array) -> tuple[tuple, None]:
            params, state = carry
            updates, state = tx.update(jax.grad(loss)(params, i), state, params)
            return (optax.apply_updates(params, updates), state), None

        def curvature(params: dict, i: jax.Array) -> jax.Array:
            return rgo_jax.curvature_output(logits(params, x[i]), y[i])

        (params, state), _ = jax.lax.scan(step, (params, state), batches)
        return params, rgo_jax.consolidate(state, curvature, batches, params)

    state = tx.init(params)
    found = [rgo_jax.projection_stats(state)]
    for task in range(NUM_TASKS):
        order = jax.random.permutation(jax.random.key(task), 64)
        params, state = learn(params, state, x[:, order] / 16)
        found.append(rgo_jax.projection_stats(state))
    return [np.asarray(stats["head"].eigenvalues) for stats in found]


def protected(axes: Axes) -> None:
    """The spectra, from light to dark."""
    for task, eigenvalues in enumerate(spectra()):
        color = str(0.8 * (1 - task / NUM_TASKS))
        directions = np.arange(1, len(eigenvalues) + 1)
        axes.plot(directions, eigenvalues, color=color, label=f"{task}")
    axes.set_title("RGO damps the directions of the gradient\nthat earlier tasks depend on")
    axes.set(xlabel="direction", ylabel="what is left of it (eigenvalue of P)", ylim=(0, 1.03))
    axes.legend(title="tasks learned", frameon=False, loc="upper left", bbox_to_anchor=(0, 0.97))


def encoded(all_axes: list[Axes]) -> None:
    """A digit as it is, and as tasks see it."""
    image = jnp.asarray(load_digits().images[3])
    all_axes[0].imshow(image, cmap="gray_r")
    all_axes[0].set_ylabel("an image")
    for task, axes in enumerate(all_axes[1:]):
        permuted = rgo_jax.fel_encode(image.reshape(1, -1), task_id=task, seed=0, layer=0)
        axes.imshow(permuted.reshape(image.shape), cmap="gray_r")
        axes.set_ylabel(f"task {task + 1}")
    for axes in all_axes:
        axes.set(xticks=[], yticks=[])


def draw() -> Figure:
    """The whole figure."""
    figure = Figure(figsize=(11, 3.8), dpi=130, layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(4, 1))
    right.suptitle("Feature encoding: each\ntask in another order", fontsize="large")
    first, second = left.subplots(1, 2)
    for axes in (first, second):
        axes.grid(alpha=0.3)
    first_task(first)
    protected(second)
    encoded(list(right.subplots(3, 1)))
    return figure


if __name__ == "__main__":
    draw().savefig(Path(__file__).with_suffix(".png"), metadata={"Software": None})
