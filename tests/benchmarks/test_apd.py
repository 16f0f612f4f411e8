"""APD on a network of three units."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.methods.growing import apd
from tests.benchmarks.small_networks import narrow_problem
from tests.small_models import task_of

KERNEL, BIAS = "['Dense_0']['kernel']", "['Dense_0']['bias']"
L1, DECAY, RATE = 0.01, 0.1, 0.2
X = jax.random.normal(jax.random.key(3), (8, 5))
BATCH = X, jnp.arange(8) % 4


@pytest.fixture
def problem(monkeypatch):
    """Three tasks of four classes, five inputs, one hidden layer."""
    options = apd.Apd(apd_lambda_1=L1, apd_lambda_2=50.0, apd_decay=DECAY, apd_every=2)
    return narrow_problem(
        monkeypatch, "apd", 5, hidden=(3,), learning_rate=RATE, initial_values="uniform"
    )._replace(options=options)


def trained(method, num_tasks, num_steps=80):
    """After so many tasks, in each of which the same examples have other labels."""

    @jax.jit
    def run(state, task_id):
        batch = X, (BATCH[1] + task_id) % 4
        task = task_of(*batch)._replace(id=task_id)
        state = method.start_task(state, task, jax.random.key(0))
        state, _ = jax.lax.scan(lambda s, _: method.step(s, batch, task), state, length=num_steps)
        return method.end_task(state, task)

    state = jax.jit(method.init)(jax.random.key(0))
    for task_id in range(num_tasks):
        state = run(state, jnp.int32(task_id))
    return state


def test_a_step_by_the_chain_rule(problem):
    """Gradients of the shared part, the gates and the task's own part from that of the kernel."""
    method = apd.apd(problem)
    before = jax.jit(method.init)(jax.random.key(0))
    sigma, bias = before.params["Dense_0"]["kernel"], before.params["Dense_0"]["bias"]
    v, tau = jnp.array([0.5, -1.0, 0.0]), sigma - 0.3
    before = before._replace(v={KERNEL: v}, tau={KERNEL: tau})
    gates = 1 / (1 + np.exp(-np.asarray(v)))[None]
    whole = before.params | {"Dense_0": {"kernel": sigma * gates + tau, "bias": bias}}

    def loss(params):
        return jnp.mean(problem.losses(problem.logits(params, BATCH[0], jnp.int32(0)), BATCH[1]))

    grads = jax.jit(jax.grad(loss))(whole)
    grad = grads["Dense_0"]["kernel"]
    after, found_loss = jax.jit(lambda s: method.step(s, BATCH, task_of(*BATCH)))(before)
    np.testing.assert_allclose(found_loss, loss(whole), rtol=1e-6)
    # Of the kernel's parts, at half the rate.
    half = RATE / 2
    np.testing.assert_allclose(
        after.params["Dense_0"]["kernel"], sigma - half * (grad * gates + DECAY * sigma), atol=1e-6
    )
    v_grad = jnp.sum(grad * sigma, axis=0) * (gates * (1 - gates))[0]
    np.testing.assert_allclose(after.v[KERNEL], v - half * (v_grad + DECAY * v), atol=1e-6)
    moved = tau - half * (grad + DECAY * tau)
    expected = np.sign(moved) * np.maximum(np.abs(moved) - half * L1, 0)
    np.testing.assert_allclose(after.tau[KERNEL], expected, atol=1e-6)
    # Biases and heads are plain.
    np.testing.assert_allclose(
        after.params["Dense_0"]["bias"], bias - RATE * grads["Dense_0"]["bias"], atol=1e-6
    )
    np.testing.assert_allclose(
        after.params["head"]["kernels"],
        before.params["head"]["kernels"] - RATE * grads["head"]["kernels"],
        atol=1e-6,
    )


def test_tasks_keep_their_outputs_while_others_are_learned(problem):
    """The shared part and the gates move, what a task owns makes up for it."""
    method = apd.apd(problem)
    first = trained(method, 1)
    last = trained(method, 3)
    change = last.params["Dense_0"]["kernel"] - first.params["Dense_0"]["kernel"]
    assert float(jnp.abs(change).max()) > 0.02
    before, after = (method.apply(state, X, jnp.int32(0)) for state in (first, last))
    for state, task_id in ((first, 0), (last, 0), (last, 1), (last, 2)):
        labels = (BATCH[1] + task_id) % 4
        logits = method.apply(state, X, jnp.int32(task_id))
        assert float(jnp.mean(problem.losses(logits, labels))) < 1.2  # log 4 is 1.39
    np.testing.assert_allclose(after, before, atol=0.05)


def made(problem):
    """Two of three tasks are finished; the shared part is 1, the gates are 1/2 and 3/4."""
    state = jax.jit(apd.apd(problem).init)(jax.random.key(0))
    own = jnp.zeros((3, 5, 3)).at[0, 0, 0].set(2.0).at[0, 1, 0].set(L1 / 2).at[1, 2, 2].set(-1.0)
    v = jnp.zeros((3, 3)).at[1].set(np.log(3.0))
    kept = state.kept._replace(
        v={KERNEL: v},
        # The own part at the minimum of the penalty is smaller by lambda_1 / lambda_2.
        target={KERNEL: own + jnp.sign(own) * L1 / 50 + jax.nn.sigmoid(v)[:, None]},
        shared={KERNEL: jnp.zeros((2, 5, 3)).at[1, 4].set(0.5)},
        cluster={KERNEL: jnp.array([1, -1, -1])},
        biases={BIAS: jnp.array([[1.0] * 3, [2.0] * 3, [0.0] * 3])},
    )
    params = state.params | {"Dense_0": {"kernel": jnp.ones((5, 3)), "bias": jnp.full(3, 9.0)}}
    return state._replace(params=params, kept=kept, num_tasks=jnp.int32(2))


@pytest.mark.parametrize("task_id", [0, 1])
def test_test_time_kernel_of_a_task(problem, task_id):
    """Gated shared part, own part without what is small, and what its cluster has in common."""
    kernel = np.full((5, 3), [0.5, 0.75][task_id])
    if task_id == 0:
        kernel[0, 0] += 2
        kernel[4] += 0.5
    else:
        kernel[2, 2] -= 1
    state = made(problem)
    hidden = np.maximum(np.asarray(X) @ kernel + [1, 2][task_id], 0)
    head = jax.tree.map(np.asarray, state.params["head"])
    expected = hidden @ head["kernels"][task_id] + head["biases"][task_id]
    found = apd.apd(problem).apply(state, X, jnp.int32(task_id))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_capacity_counts_what_is_not_zero_at_test_time(problem):
    heads = 3 * (3 * 4 + 4)
    # The shared kernel, a gate of three units that is not 0, two own and three common elements, two
    # tasks' biases.
    used = 15 + 3 + 2 + 3 + 2 * 3 + heads
    assert float(apd.capacity(problem, made(problem))) == pytest.approx(used / (15 + 3 + heads))


def test_clusters_keep_once_what_is_alike(problem):
    """After every third task: two of the three are in one cluster, whatever they are."""
    beta = 0.05
    clustered = dataclasses.replace(problem.options, apd_every=3, apd_beta=beta)
    found, plain = (
        trained(apd.apd(problem._replace(options=options)), 3)
        for options in (clustered, dataclasses.replace(clustered, apd_every=100))
    )
    sigma = {KERNEL: found.params["Dense_0"]["kernel"]}
    before, left = (apd.own(state.kept, sigma, KERNEL, L1, 50.0) for state in (plain, found))
    cluster = found.kept.cluster[KERNEL].tolist()
    assert sorted(cluster) in ([0, 0, 1], [0, 1, 1])
    alone = next(t for t in range(3) if cluster.count(cluster[t]) == 1)
    one, other = (t for t in range(3) if t != alone)
    # Each look at the minimum of the penalty takes lambda_1 / lambda_2 off.
    np.testing.assert_allclose(left[alone], before[alone], atol=L1 / 50 + 1e-6)
    alike = np.abs(before[one] - before[other]) <= beta
    assert 0 < alike.sum() < 15
    middle = np.where(alike, (before[one] + before[other]) / 2, 0)
    shared = found.kept.shared[KERNEL][cluster[one]]
    np.testing.assert_allclose(shared, np.where(np.abs(middle) > L1, middle, 0), atol=1e-6)
    for t in (one, other):
        np.testing.assert_allclose(left[t], np.where(alike, 0, before[t]), atol=L1 / 50 + 1e-6)
    assert apd.capacity(problem, found) < apd.capacity(problem, plain)


@pytest.mark.parametrize(
    "wrong", [{"apd_lambda_1": 0.0}, {"apd_beta": -1.0}, {"apd_every": 0}, {"apd_decay": -1e-4}]
)
def test_options_outside_their_range(wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=name.replace("_", "-")):
        apd.Apd(**wrong)
