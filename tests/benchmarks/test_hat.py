"""HAT by hand: gates, what they cost, their gradients, and which weights are left alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.methods import METHODS
from benchmarks.methods.growing import hat
from benchmarks.networks.architectures import ConvLayer
from tests.benchmarks.small_networks import narrow_problem
from tests.small_models import task_of

KEY = jax.random.key(0)


def batch_of(*shape, count=6):
    return jax.random.normal(jax.random.key(1), (count, *shape)), jnp.arange(count) % 4


def test_s_rises_within_each_epoch():
    found = [float(hat.annealed(jnp.int32(step), 5, 400.0)) for step in range(7)]
    quarter = (400 - 1 / 400) / 4
    expected = [1 / 400 + i * quarter for i in (0, 1, 2, 3, 4, 0, 1)]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert float(hat.annealed(jnp.int32(3), 1, 400.0)) == pytest.approx(1 / 400)


def test_the_compensated_slope_is_the_published_product():
    """In float64, where nothing of it is rounded to 0."""
    e = np.linspace(-6, 6, 49)
    for s in (1 / 400, 1.0, 10.0, 400.0):
        decay = np.exp(-np.abs(s * e))
        slope = s * decay / (1 + decay) ** 2
        clipped = np.clip(s * e, -50, 50)
        with np.errstate(over="ignore"):
            expected = slope * (400 / s) * (np.cosh(clipped) + 1) / (np.cosh(e) + 1)
        found = hat.compensated_slope(jnp.asarray(e, jnp.float32), jnp.float32(s), 400.0)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-15)
    assert float(hat.compensated_slope(jnp.zeros(()), jnp.float32(7.0), 400.0)) == 100.0


def test_the_penalty_is_on_units_that_no_task_uses():
    gates = {"a": jnp.array([1.0, 0.5]), "b": jnp.array([0.2])}
    used = {"a": jnp.array([0.0, 1.0]), "b": jnp.array([0.5])}
    found = float(hat.penalty(gates, used))
    assert found == pytest.approx((1.0 * 1 + 0.5 * 0 + 0.2 * 0.5) / (1 + 0 + 0.5))
    everything = jax.tree.map(jnp.ones_like, used)
    assert float(hat.penalty(gates, everything)) == 0


def test_gradients_are_scaled_by_what_is_used_at_neither_or_one_end(monkeypatch):
    problem = narrow_problem(
        monkeypatch, "hat", 4, 4, 1, convs=(ConvLayer(3, 2, (2, 2)),), hidden=(3,)
    )
    ones = jax.tree.map(jnp.ones_like, jax.jit(problem.init)(KEY))
    used = {"Conv_0": jnp.array([1.0, 0.25]), "Dense_0": jnp.array([0.5, 0.0, 1.0])}
    found = jax.jit(lambda grads: hat.unused(problem, grads, used))(ones)
    for i, j in np.ndindex(3, 3):
        np.testing.assert_allclose(found["Conv_0"]["kernel"][i, j, 0], [0.0, 0.75])
    np.testing.assert_allclose(found["Conv_0"]["bias"], [0.0, 0.75])
    # Two by two pixels, of each the two channels: 1 - min(out, in).
    expected = np.tile([[0.5, 1.0, 0.0], [0.75, 1.0, 0.75]], (4, 1))
    np.testing.assert_allclose(found["Dense_0"]["kernel"], expected)
    np.testing.assert_allclose(found["Dense_0"]["bias"], [0.5, 1.0, 0.0])
    jax.tree.map(np.testing.assert_array_equal, found["head"], ones["head"])


def test_a_step_of_the_embeddings_by_hand(monkeypatch):
    problem = narrow_problem(monkeypatch, "hat", 5, hat_s_max=2.0, hat_lambda=0.3)
    method = METHODS["hat"].build(problem)
    x, y = batch_of(5)
    task = task_of(x, y, 1, batch_size=6)
    used = {"Dense_0": jnp.array([0.9, 0.1, 0.0, 0.5]), "Dense_1": jnp.array([0.2, 0.0, 1.0])}
    state = jax.jit(method.init)(KEY)._replace(used=used)
    s, rate = 0.5, 0.1

    def objective(embedding):
        gates = {name: 1 / (1 + jnp.exp(-s * e)) for name, e in embedding.items()}
        h, p = x, state.params
        for name in ("Dense_0", "Dense_1"):
            z = h @ p[name]["kernel"] + p[name]["bias"][None]
            h = jnp.maximum(z, 0) * gates[name][None]
        logits = h @ p["head"]["kernels"][1] + p["head"]["biases"][1][None]
        log_p = jax.nn.log_softmax(logits)
        cross_entropy = -jnp.mean(log_p[jnp.arange(6), y])
        free = {name: 1 - u for name, u in used.items()}
        taken = sum(jnp.sum(free[n] * gates[n]) for n in gates)
        return cross_entropy + 0.3 * taken / sum(map(jnp.sum, free.values())), cross_entropy

    before = {name: e[1] for name, e in state.embeddings.items()}
    slopes, cross_entropy = jax.jit(jax.grad(objective, has_aux=True))(before)
    step = jax.jit(lambda state: method.step(state, (x, y), task))
    after, loss = step(state)
    assert float(loss) == pytest.approx(float(cross_entropy), rel=1e-5)
    for name, e in before.items():
        factor = 2.0 / s * (np.cosh(s * e) + 1) / (np.cosh(e) + 1)
        moved = e - rate * slopes[name] * factor
        np.testing.assert_allclose(after.embeddings[name][1], moved, rtol=1e-4, atol=1e-6)
        for other in (0, 2):
            np.testing.assert_array_equal(
                after.embeddings[name][other], state.embeddings[name][other]
            )
    # They stay within 6 to both sides.
    far = {name: e.at[1].set(9.0) for name, e in state.embeddings.items()}
    after, _ = step(state._replace(embeddings=far))
    assert all(np.asarray(e[1]).max() <= 6 for e in after.embeddings.values())


def test_used_is_the_largest_gate_of_any_finished_task(monkeypatch):
    problem = narrow_problem(monkeypatch, "hat", 5, hidden=(2,), hat_s_max=4.0)
    method = METHODS["hat"].build(problem)
    embedding = jnp.array([[0.5, -0.5], [-1.0, 0.1], [6.0, 6.0]])
    state = jax.jit(method.init)(KEY)._replace(embeddings={"Dense_0": embedding})
    x, y = batch_of(5)
    gate = lambda e: 1 / (1 + np.exp(-4.0 * e))  # noqa: E731
    state = method.end_task(state, task_of(x, y, 0))
    np.testing.assert_allclose(state.used["Dense_0"], [gate(0.5), gate(-0.5)], rtol=1e-6)
    state = method.end_task(state, task_of(x, y, 1))
    np.testing.assert_allclose(state.used["Dense_0"], [gate(0.5), gate(0.1)], rtol=1e-6)


def test_what_a_task_uses_stays_as_it_was(monkeypatch):
    """Weights between its units bit for bit, so its logits too; all others are trained."""
    problem = narrow_problem(monkeypatch, "hat", 5)
    method = METHODS["hat"].build(problem)
    x, y = batch_of(5)
    state = jax.jit(method.init)(KEY)
    # Gates of exactly 0 and 1, with s e = 2400.
    signs = {"Dense_0": [1.0, 1.0, -1.0, -1.0], "Dense_1": [1.0, -1.0, 1.0]}
    rows = {name: 6 * jnp.array(sign) for name, sign in signs.items()}
    state = state._replace(
        embeddings={name: e.at[0].set(rows[name]) for name, e in state.embeddings.items()}
    )
    state = method.end_task(state, task_of(x, y, 0))
    task = task_of(x, y, 1, batch_size=2)
    after = method.start_task(state, task, KEY)
    step = jax.jit(lambda state: method.step(state, (x, y), task)[0])
    for _ in range(5):
        after = step(after)

    def moved(name, leaf):
        return np.asarray(after.params[name][leaf] != state.params[name][leaf])

    np.testing.assert_array_equal(moved("Dense_0", "bias"), [False, False, True, True])
    np.testing.assert_array_equal(moved("Dense_0", "kernel"), [[False, False, True, True]] * 5)
    kept = np.outer([True, True, False, False], [True, False, True])
    np.testing.assert_array_equal(moved("Dense_1", "kernel"), ~kept)
    np.testing.assert_array_equal(
        method.apply(after, x, jnp.int32(0)), method.apply(state, x, jnp.int32(0))
    )
    assert not np.allclose(
        method.apply(after, x, jnp.int32(1)), method.apply(state, x, jnp.int32(1))
    )


def test_embeddings_are_in_use_beside_the_network(monkeypatch):
    problem = narrow_problem(monkeypatch, "hat", 5)
    state = jax.jit(METHODS["hat"].build(problem).init)(KEY)
    network = 5 * 4 + 4 + 4 * 3 + 3 + 3 * (3 * 4 + 4)
    assert float(hat.capacity(problem, state)) == pytest.approx(1 + 3 * (4 + 3) / network)


def test_options_that_are_no_positive_numbers_are_refused():
    for name in ("hat_lambda", "hat_s_max"):
        for value in (0.0, -1.0, float("nan")):
            with pytest.raises(ValueError, match=f"--{name.replace('_', '-')} is "):
                hat.Hat(**{name: value})
