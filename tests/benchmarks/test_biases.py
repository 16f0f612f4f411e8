"""The policies for biases."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import presets
from benchmarks.networks.initializers import INITIAL_VALUES
from benchmarks.networks.layers import BIASES
from tests.benchmarks.small_networks import (
    KEY,
    examples,
    is_nonzero,
    network_of,
    params_of,
    problem_of,
)


@pytest.mark.parametrize("initial_values", INITIAL_VALUES)
@pytest.mark.parametrize("head", ["shared", "masked"])
def test_biases_as_an_input_are_biases(initial_values, head):
    """The same outputs as with biases of their own, whatever they are, and initial values."""
    given = {"head": head, "initial_values": initial_values, "hidden": (8, 7), "fel": True}
    own, joined = (network_of(biases=biases, **given) for biases in ("own", "input"))
    x = examples(6)

    def moved(params):
        """With every bias another; where it is a row, that row."""
        return {
            "Dense_0": shifted(params["Dense_0"], 0.3),
            "Dense_1": shifted(params["Dense_1"], -0.2),
            "head": {"Dense_0": shifted(params["head"]["Dense_0"], 0.5)},
        }

    def shifted(layer, by):
        steps = by * jnp.arange(layer["kernel"].shape[1])
        if "bias" in layer:
            return layer | {"bias": layer["bias"] + steps}
        return {"kernel": layer["kernel"].at[-1].add(steps)}

    def as_row(layer):
        return {"kernel": jnp.concatenate([layer["kernel"], layer["bias"][None]])}

    params = moved(params_of(own, x))
    rows = {
        "Dense_0": as_row(params["Dense_0"]),
        "Dense_1": as_row(params["Dense_1"]),
        "head": {"Dense_0": as_row(params["head"]["Dense_0"])},
    }
    found = joined.apply({"params": rows}, x, 1)
    np.testing.assert_allclose(found, own.apply({"params": params}, x, 1), rtol=1e-5, atol=1e-6)

    fresh, fresh_rows = params_of(own, x), params_of(joined, x)
    assert jax.tree.map(jnp.shape, fresh_rows) == jax.tree.map(jnp.shape, rows)
    bias = 0.1 if initial_values == "orthogonal" else 0.0
    for row in (fresh_rows["Dense_0"], fresh_rows["Dense_1"], fresh_rows["head"]["Dense_0"]):
        np.testing.assert_array_equal(row["kernel"][-1], np.full_like(row["kernel"][-1], bias))
    # Kernels are drawn as those with biases beside them.
    jax.tree.map(np.testing.assert_array_equal, fresh_rows, {
        "Dense_0": as_row(fresh["Dense_0"]),
        "Dense_1": as_row(fresh["Dense_1"]),
        "head": {"Dense_0": as_row(fresh["head"]["Dense_0"])},
    })  # fmt: skip


@pytest.mark.parametrize("biases", BIASES)
def test_biases_are_trained_in_every_task_or_the_first_only(biases):
    problem = problem_of(9, biases=biases)
    params = problem.init(KEY)
    x = examples(9)

    def moved(task):
        def loss(params):
            return jnp.sum(problem.logits(params, x, jnp.int32(task)) ** 2)

        found = is_nonzero(jax.grad(loss)(params))
        layers = [found["Dense_0"], found["Dense_1"], found["head"]["Dense_0"]]
        assert all(layer["kernel"] for layer in layers)
        return [layer["bias"] for layer in layers if "bias" in layer]

    there = [] if biases == "input" else [True] * 3
    assert moved(0) == there
    assert moved(1) == [moves and biases != "frozen" for moves in there]


def test_a_model_of_one_task_trains_its_biases():
    problem = problem_of(9, method="stl", biases="frozen")
    params = problem.init(KEY)
    grads = jax.grad(lambda p: jnp.sum(problem.logits(p, examples(9), jnp.int32(1)) ** 2))(params)
    assert jax.tree.all(is_nonzero(grads))


@pytest.mark.slow
def test_biases_of_convolutions_can_be_frozen():
    problem = problem_of(8, 8, 3, network="lenet-5-text", biases="frozen", conv_biases=True)
    grads = jax.jit(jax.grad(lambda p, t: jnp.sum(problem.logits(p, examples(8, 8, 3), t) ** 2)))
    params = problem.init(KEY)
    assert [is_nonzero(grads(params, jnp.int32(t))["Conv_0"]["bias"]) for t in (0, 1)] == [1, 0]


def test_what_cannot_be_an_input_is_refused():
    with pytest.raises(ValueError, match=r"convolutions have biases\. Add --no-conv-biases\."):
        presets.config("permuted-digits", network="lenet-5", biases="input")
    config = presets.config("permuted-digits", network="lenet-5", biases="input", conv_biases=False)
    assert config.biases == "input"
