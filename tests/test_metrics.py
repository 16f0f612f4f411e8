"""The measures of continual learning, against loops over their definitions."""

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

import rgo_jax

R = [[0.9, 0.3, 0.2], [0.8, 0.95, 0.4], [0.85, 0.85, 0.7]]
INITIAL = [0.1, 0.15, 0.05]
ALONE = [0.9, 0.9, 0.9]

MEASURES = {
    "average_accuracy": rgo_jax.average_accuracy,
    "backward_transfer": rgo_jax.backward_transfer,
    "forward_transfer": lambda r: rgo_jax.forward_transfer(r, jnp.zeros(np.shape(r)[-1])),
    "forgetting": rgo_jax.forgetting,
    "intransigence": lambda r: rgo_jax.intransigence(r, jnp.ones(np.shape(r)[-1])),
    "learning_accuracy": rgo_jax.learning_accuracy,
}


def by_definition(r):
    """In float64, one task after the other."""
    r = np.asarray(r, np.float64)
    n = len(r)
    others = range(n - 1)
    return {
        "average_accuracy": np.mean([r[n - 1, k] for k in range(n)]),
        "backward_transfer": sum(r[n - 1, k] - r[k, k] for k in others) / max(n - 1, 1),
        "forward_transfer": sum(r[k - 1, k] for k in range(1, n)) / max(n - 1, 1),
        "forgetting": sum(max(r[t, k] for t in range(k, n - 1)) - r[n - 1, k] for k in others)
        / max(n - 1, 1),
        "intransigence": np.mean([1 - r[k, k] for k in range(n)]),
        "learning_accuracy": np.mean([r[k, k] for k in range(n)]),
    }


def test_by_hand():
    found = {name: float(measure(R)) for name, measure in MEASURES.items()}
    expected = {
        "average_accuracy": (0.85 + 0.85 + 0.7) / 3,
        "backward_transfer": (-0.05 - 0.1) / 2,
        "forward_transfer": (0.3 + 0.4) / 2,
        "forgetting": (0.05 + 0.1) / 2,
        "intransigence": (0.1 + 0.05 + 0.3) / 3,
        "learning_accuracy": (0.9 + 0.95 + 0.7) / 3,
    }
    assert found == pytest.approx(expected, rel=1e-5)
    fwt = rgo_jax.forward_transfer(R, INITIAL)
    np.testing.assert_allclose(fwt, (0.15 + 0.35) / 2, rtol=1e-5)
    better = rgo_jax.intransigence(R, ALONE)
    np.testing.assert_allclose(better, (0 - 0.05 + 0.2) / 3, rtol=1e-5)


@hypothesis.given(
    seed=st.integers(0, 99), seeds=st.integers(1, 4), tasks=st.sampled_from([1, 2, 5])
)
def test_definitions_for_every_seed(seed, seeds, tasks):
    r = np.random.default_rng(seed).uniform(size=(seeds, tasks, tasks))
    expected = [by_definition(one) for one in r]
    for name, measure in MEASURES.items():
        together = jax.jit(measure)(r)
        assert together.shape == (seeds,)
        np.testing.assert_allclose(together, [each[name] for each in expected], atol=1e-6)


@pytest.mark.parametrize("name", [name for name in MEASURES if name != "forward_transfer"])
def test_tasks_to_come_are_not_read(name):
    lower = np.where(np.tri(3, dtype=bool), R, np.nan)
    assert float(MEASURES[name](lower)) == pytest.approx(by_definition(R)[name], abs=1e-6)


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.float16, jnp.bfloat16])
@pytest.mark.parametrize("name", MEASURES)
def test_small_and_unsigned_numbers(name, dtype):
    r = np.array([[90, 10, 20], [96, 64, 32], [20, 80, 48]], dtype)
    assert float(MEASURES[name](r)) == pytest.approx(by_definition(r)[name], rel=1e-5)


@pytest.mark.parametrize("name", MEASURES)
@pytest.mark.parametrize("shape", [(3,), (2, 3), (0, 0)])
def test_what_is_not_square_is_refused(name, shape):
    with pytest.raises(ValueError, match="R has shape"):
        MEASURES[name](np.zeros(shape))


@pytest.mark.parametrize("measure", [rgo_jax.forward_transfer, rgo_jax.intransigence])
def test_what_stands_beside_r(measure):
    r = np.stack([R, np.transpose(R)])
    of_each = [measure(r[i], INITIAL) for i in range(2)]
    np.testing.assert_allclose(measure(r, INITIAL), of_each, rtol=1e-6)
    np.testing.assert_allclose(measure(r, np.stack([INITIAL, INITIAL])), of_each, rtol=1e-6)
    for wrong, message in (
        ([0.1, 0.2], r"shape \(2,\) and R \(2, 3, 3\); expected an accuracy for each task, \(3,\)"),
        (0.1, r"shape \(\) and R"),
        (np.zeros((3, 3)), "also for each of R's axes in front, \\(2, 3\\)"),
        (np.zeros((2, 3, 3)), "Of a whole matrix pass the diagonal"),
        (["a", "b", "c"], "has no shape"),
    ):
        with pytest.raises(ValueError, match=message):
            measure(r, wrong)
