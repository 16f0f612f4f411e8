"""The methods, checked by hand on a problem small enough for it, then on two tasks."""

import dataclasses
from functools import partial
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rgo_jax
from benchmarks import data, experiment, presets, tasks, train
from benchmarks.methods import METHODS, Problem, ewc, gpm, layers, owm, replay
from benchmarks.tasks import Task
from rgo_jax import linen

RATE = 0.1


def linear_problem(w, num_tasks=2):
    """One layer without bias, of logits ``x @ w``."""
    w = jnp.asarray(w, jnp.float32)
    return Problem(
        init=lambda key: {"w": w},
        logits=lambda params, x, task_id, projections=None: x @ params["w"],
        protected=lambda params: {"w": True},
        freeze=lambda params, task_id: params,
        learning_rate=optax.constant_schedule(RATE),
        alpha=1.0,
        dataset="none",
        input_shape=(w.shape[0],),
        num_classes=w.shape[1],
        num_tasks=num_tasks,
    )


def task_of(x, y, task_id=0, batch_size=1):
    x, y = jnp.asarray(x, jnp.float32), jnp.asarray(y)
    batches = jnp.arange(len(x)).reshape(-1, batch_size)
    return Task(jnp.int32(task_id), lambda indices: (x[indices], y[indices]), batches)


def cross_entropy_grad(w, x, y):
    """By hand: ``x' (softmax - onehot)``, averaged over the batch."""
    logits = np.asarray(x) @ np.asarray(w)
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    return np.asarray(x).T @ (p - np.eye(p.shape[1])[np.asarray(y)]) / len(x)


def test_ewc_running_fisher_by_hand():
    fisher = ewc.RunningFisher(jnp.zeros(2), jnp.zeros(2), jnp.int32(0))
    for grad in ([1.0, 0.0], [2.0, 1.0], [3.0, 0.0], [4.0, 0.0]):
        fisher = ewc.observed(fisher, jnp.array(grad), decay=0.9, every=2)
    # Updated before steps 2 and 4, with the squares of step 1, then of steps 2 and 3.
    first = 0.9 * np.array([1, 0]) / 2
    np.testing.assert_allclose(fisher.average, 0.1 * first + 0.9 * np.array([4 + 9, 1]) / 2)
    np.testing.assert_allclose(fisher.squares, [16, 0])
    scaled = ewc.normalised({"a": jnp.array([1.0, 3.0]), "b": jnp.array([2.0, 5.0])})
    np.testing.assert_allclose(scaled["a"], [0, 0.5])
    np.testing.assert_allclose(scaled["b"], [0.25, 1])
    np.testing.assert_array_equal(ewc.normalised({"a": jnp.zeros(3)})["a"], np.zeros(3))


def test_ewc_penalty_by_hand():
    problem = linear_problem([[0.0, 0.0], [0.0, 0.0]])
    method = ewc.ewc(problem, ewc.Ewc(strength=10, every=1))
    x, y = jnp.array([[1.0, 2.0]]), jnp.array([0])
    task = task_of(x, y)
    state = method.init(jax.random.key(0))
    grad = cross_entropy_grad(np.zeros((2, 2)), x, y)
    np.testing.assert_allclose(grad, [[-0.5, 0.5], [-1, 1]])
    state, _ = method.step(state, (x, y), task)
    # The first task is plain SGD.
    np.testing.assert_allclose(state.params["w"], -RATE * grad, rtol=1e-6)
    state, _ = method.step(state, (x, y), task)
    state = method.end_task(state, task)
    # Step 1's squares are 1/4 and 1; scaled to [0, 1], the second feature's weights have all.
    np.testing.assert_allclose(state.penalty.importance["w"], [[0, 0], [1, 1]], atol=1e-6)
    anchor = np.asarray(state.params["w"])
    np.testing.assert_array_equal(state.penalty.anchor["w"], anchor)

    moved = anchor + 0.3
    state = state._replace(params={"w": jnp.asarray(moved)})
    after, _ = method.step(state, (x, y), task._replace(id=jnp.int32(1)))
    expected = cross_entropy_grad(moved, x, y) + 10 * 2 * np.array([[0, 0], [1, 1]]) * 0.3
    np.testing.assert_allclose(after.params["w"], moved - RATE * expected, rtol=1e-5)


def test_textbook_fisher_and_penalty_by_hand():
    problem = linear_problem([[0.0, 0.0], [0.0, 0.0]])
    method = ewc.ewc_textbook(problem, ewc.EwcTextbook(strength=10, batches=2))
    # Both classes have probability 1/2, so whichever label is drawn the squares are x^2 / 4.
    x, y = [[1.0, 2.0], [3.0, 0.0], [5.0, 5.0], [7.0, 7.0]], [0, 1, 0, 1]
    task = task_of(x, y, batch_size=2)
    state = method.init(jax.random.key(0))
    with_one_batch = ewc.fisher_information(
        problem, state.params, task, task.batches[:1], jax.random.key(1)
    )
    squares = np.array([(1 + 9) / 2, (4 + 0) / 2]) / 4
    np.testing.assert_allclose(with_one_batch["w"], np.stack([squares] * 2, 1), rtol=1e-6)

    state = method.end_task(method.start_task(state, task, jax.random.key(1)), task)
    assert (np.asarray(state.penalty.importance["w"]) > 0).all()
    # Two tasks' parabolas added up, against the sum of their gradients.
    first, second = {"w": jnp.array([[1.0, 0.0]])}, {"w": jnp.array([[2.0, 3.0]])}
    fishers = {"w": jnp.array([[0.5, 0.0]])}, {"w": jnp.array([[1.5, 2.0]])}
    zeros = jax.tree.map(jnp.zeros_like, first)
    penalty = ewc.accumulated(ewc.Penalty(zeros, zeros), first, fishers[0])
    penalty = ewc.accumulated(penalty, second, fishers[1])
    at = {"w": jnp.array([[4.0, 4.0]])}
    grads = ewc.penalty_grads(penalty, at, strength=10 / 2)
    np.testing.assert_allclose(grads["w"], [[10 * (0.5 * 3 + 1.5 * 2), 10 * 2 * 1]], rtol=1e-6)


@pytest.mark.parametrize(
    ("grad", "reference", "expected"),
    [
        ([1, 0], [1, 1], [1, 0]),  # agree: unchanged
        ([1, 0], [0, 3], [1, 0]),  # at right angles
        ([1, 0], [-2, 0], [0, 0]),  # opposed
        ([1, 0], [-1, 1], [0.5, 0.5]),
        ([3, -4], [0, 2], [3, 0]),
        ([3, -4], [0, 0], [3, -4]),  # nothing in memory
    ],
)
def test_a_gem_projection_by_hand(grad, reference, expected):
    # As leaves of a tree, to be taken as one vector.
    def tree(v):
        return {"a": jnp.array([float(v[0])]), "b": jnp.array([[float(v[1])]])}

    found = replay.agreeing(tree(grad), tree(reference))
    np.testing.assert_allclose([found["a"][0], found["b"][0, 0]], expected, atol=1e-7)


def empty_ring(num_tasks=3, num_classes=4):
    shape = (num_tasks, num_classes)
    return replay.Ring(jnp.zeros((*shape, 2)), jnp.zeros(shape, bool))


def test_ring_keeps_the_last_example_of_each_class_and_task():
    x = jnp.arange(12.0).reshape(6, 2)
    ring = replay.remembering(empty_ring(), (x, jnp.array([2, 0, 2, 1, 0, 2])), jnp.int32(0))
    ring = replay.remembering(ring, (x[:1] + 100, jnp.array([1])), jnp.int32(0))
    ring = replay.remembering(ring, (x[:2] - 50, jnp.array([3, 3])), jnp.int32(2))
    np.testing.assert_array_equal(ring.x[0, :3], [x[4], x[0] + 100, x[5]])
    np.testing.assert_array_equal(ring.x[2, 3], x[1] - 50)
    np.testing.assert_array_equal(ring.filled, [[1, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 1]])


def test_draws_come_from_earlier_tasks_without_replacement():
    ring = empty_ring()
    for task in range(3):
        x = jnp.array([[10.0 * task + k, 0.0] for k in range(4)])
        ring = replay.remembering(ring, (x, jnp.arange(4)), jnp.int32(task))
    seen = set()
    for seed in range(20):
        drawn = replay.draw(ring, jax.random.key(seed), jnp.int32(2), batch_size=5)
        np.testing.assert_array_equal(drawn.x[:, 0], 10 * drawn.task_id + drawn.y)
        np.testing.assert_array_equal(drawn.weight, np.ones(5))
        values = set(np.asarray(drawn.x[:, 0]).tolist())
        assert len(values) == 5
        assert all(value < 20 for value in values)
        seen |= values
    assert len(seen) == 8
    # In the second task four are all there are, and in the first none.
    assert sorted(replay.draw(ring, jax.random.key(0), jnp.int32(1), 5).weight) == [0, 1, 1, 1, 1]
    assert not replay.draw(ring, jax.random.key(0), jnp.int32(0), 5).weight.any()


def test_er_trains_on_the_batch_and_the_replayed_examples_alike():
    w = np.array([[0.1, -0.2], [0.3, 0.4]])
    method = replay.er_ring(linear_problem(w))
    old_x, old_y = jnp.array([[1.0, 2.0], [3.0, -1.0]]), jnp.array([0, 1])
    x, y = jnp.array([[0.5, 0.5], [1.0, 0.0], [2.0, 2.0]]), jnp.array([0, 1, 1])
    state = method.init(jax.random.key(0))
    state, _ = method.step(state, (old_x, old_y), task_of(old_x, old_y))
    first = w - RATE * cross_entropy_grad(w, old_x, old_y)
    np.testing.assert_allclose(state.params["w"], first, rtol=1e-5)
    state, loss = method.step(state, (x, y), task_of(x, y, task_id=1))
    both = jnp.concatenate([x, old_x]), jnp.concatenate([y, old_y])
    np.testing.assert_allclose(
        state.params["w"], first - RATE * cross_entropy_grad(first, *both), rtol=1e-5
    )
    logits = x @ first
    own = optax.softmax_cross_entropy_with_integer_labels(logits, y)
    np.testing.assert_allclose(loss, own.mean(), rtol=1e-5)


@pytest.mark.parametrize("head", ["shared", "frozen", "per_task"])
def test_replayed_examples_go_through_their_own_task(digits, head):
    """Networks with FEL and heads of their own give each example its own task's output."""
    config = two_tasks(head=head, num_tasks=3, fel=True)
    sequence = tasks.permuted(digits, 3)
    problem = experiment.make_problem(
        config, METHODS["sgd"], sequence, digits.name, jax.random.key(1)
    )
    params = problem.init(jax.random.key(0))
    drawn = replay.Drawn(
        jax.random.uniform(jax.random.key(1), (4, 64)),
        jnp.arange(4),
        jnp.array([0, 1, 1, 0]),
        jnp.array([1.0, 1.0, 1.0, 0.0]),
    )
    losses = replay.replayed_losses(problem, params, drawn, jnp.int32(2))
    for i in range(4):
        logits = problem.logits(params, drawn.x[i : i + 1], drawn.task_id[i])[0]
        expected = -jax.nn.log_softmax(logits)[i] * drawn.weight[i]
        np.testing.assert_allclose(losses[i], expected, rtol=1e-4, atol=1e-6)
    # An old head is trained on replayed examples, but one frozen after the first task is not.
    grads = jax.grad(lambda p: jnp.sum(replay.replayed_losses(problem, p, drawn, jnp.int32(2))))(
        params
    )
    moved = any(bool(jnp.any(leaf != 0)) for leaf in jax.tree.leaves(grads["head"]))
    assert moved == (head != "frozen")


def network_problem(module, input_shape, params=None):
    """A Flax module as a problem, from parameters of its own or from these."""

    def logits(params, x, task_id, projections=None):
        handed = {} if projections is None else {"projections": projections}
        return module.apply({"params": params, **handed}, x)

    blank = jnp.zeros((1, *input_shape))
    return linear_problem(np.zeros((1, 2)))._replace(
        init=lambda key: module.init(key, blank)["params"] if params is None else params,
        logits=logits,
        protected=lambda params: True,
        input_shape=input_shape,
    )


class ConvNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(linen.Conv(4, (3, 2), strides=2, name="first")(x))
        x = linen.Conv(3, (2, 2), padding="VALID", use_bias=False, name="again")(x)
        return linen.Dense(2, name="head")(x.reshape(len(x), -1))


def test_layer_inputs_are_what_kernels_are_multiplied_by():
    problem = network_problem(ConvNet(), (7, 6, 2))
    params = problem.init(jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (5, 7, 6, 2))
    inputs = layers.layer_inputs(problem, params, x, 0)
    assert list(inputs) == ["first", "again", "head"]
    assert jax.tree.structure(inputs) == jax.tree.structure(params)
    shapes = jax.tree.map(jnp.shape, inputs, is_leaf=lambda leaf: isinstance(leaf, jax.Array))
    assert shapes == {
        "first": {"kernel": (5, 4 * 3, 3 * 2 * 2), "bias": (5, 1, 1)},
        "again": {"kernel": (5, 3 * 2, 2 * 2 * 4)},
        "head": {"kernel": (5, 1, 18), "bias": (5, 1, 1)},
    }
    kernel = params["first"]["kernel"].reshape(12, 4)
    first = inputs["first"]["kernel"] @ kernel + params["first"]["bias"][None, None]
    first = nn.relu(first.reshape(5, 4, 3, 4))
    again = inputs["again"]["kernel"] @ params["again"]["kernel"].reshape(16, 3)
    np.testing.assert_allclose(again.reshape(5, 1, 18), inputs["head"]["kernel"], rtol=1e-4)
    np.testing.assert_allclose(
        first[:, :2, :2].reshape(5, 16), inputs["again"]["kernel"][:, 0], rtol=1e-4, atol=1e-5
    )


def test_gpm_bases_by_hand():
    """The thresholds of equations 5 and 9 of the paper, on inputs along the axes."""
    state = gpm.empty({"layer": 4})
    # Energies 16, 4 and 1: the first alone holds 0.76, both 0.95.
    inputs = {"layer": jnp.array([[4.0, 0, 0, 0], [0, 2, 0, 0], [0, 0, 1, 0]])}
    one = gpm.gpm_update(state, inputs, 0.75)
    np.testing.assert_allclose(np.abs(one.bases["layer"]), np.diag([1, 0, 0, 0]), atol=1e-6)
    two = gpm.gpm_update(state, inputs, 0.9)
    np.testing.assert_allclose(np.abs(two.bases["layer"]), np.diag([1, 1, 0, 0]), atol=1e-6)
    np.testing.assert_array_equal(two.importance["layer"], [1, 1, 0, 0])
    # Of the next task's 2 + 3 the old bases hold 0.4: enough, or one more.
    inputs = {"layer": jnp.array([[np.sqrt(2.0), 0, 0, 0], [0, 0, 0, np.sqrt(3.0)]], jnp.float32)}
    same = gpm.gpm_update(two, inputs, 0.3)
    np.testing.assert_array_equal(same.bases["layer"], two.bases["layer"])
    three = gpm.gpm_update(two, inputs, 0.5)
    np.testing.assert_allclose(np.abs(three.bases["layer"][:, 2]), [0, 0, 0, 1], atol=1e-6)
    np.testing.assert_array_equal(three.importance["layer"], [1, 1, 1, 0])
    # A dead layer has nothing to remember.
    dead = gpm.gpm_update(three, {"layer": jnp.zeros((3, 4))}, 0.9)
    np.testing.assert_array_equal(dead.bases["layer"], three.bases["layer"])


def test_gpm_bases_stay_orthonormal_and_never_overflow():
    state = gpm.empty(6)
    for seed in range(8):
        inputs = jax.random.normal(jax.random.key(seed), (9, 6))
        inputs = inputs * 10.0 ** (-jnp.arange(6)[None] / 2)
        state = gpm.gpm_update(state, inputs, 0.9999 + 1e-4 * seed)
        used = int(np.sum(np.asarray(state.importance) > 0))
        bases = np.asarray(state.bases)[:, :used]
        np.testing.assert_allclose(bases.T @ bases, np.eye(used), atol=1e-5)
    assert used == 6


def test_sgp_importance_by_hand():
    state = gpm.empty(3)
    first = gpm.gpm_update(state, jnp.array([[4.0, 0, 0], [0, 2, 0]]), 0.99, scale=3)
    # (alpha + 1) s / (alpha s + max s), of singular values 4 and 2.
    np.testing.assert_allclose(first.importance, [1, 4 * 2 / (3 * 2 + 4), 0], rtol=1e-6)
    second = gpm.gpm_update(first, jnp.array([[0, 0.1, 0], [0, 0, 1.0]]), 0.99, scale=3)
    on_old = 4 * 0.1 / (3 * 0.1 + 1)
    np.testing.assert_allclose(second.importance, [1, min(1, 0.8 + on_old), 1], rtol=1e-5)


@pytest.mark.parametrize("scale", [None, 10.0])
def test_gpm_in_the_layers_is_the_optax_transform(scale):
    problem = network_problem(ConvNet(), (7, 6, 2))
    x = jax.random.normal(jax.random.key(1), (6, 7, 6, 2))
    task = task_of(x, jnp.array([0, 1] * 3), batch_size=3)
    method = gpm.gpm(problem, gpm.Gpm(0.7, 0.8, samples=4, scale=scale))
    state = method.end_task(method.init(jax.random.key(0)), task)
    params = state.params
    batch = jax.random.normal(jax.random.key(2), x.shape), jnp.array([1, 0] * 3)

    def loss(params):
        logits = problem.logits(params, batch[0], 0)
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()

    grads = jax.grad(loss)(params)
    transform = gpm.scale_by_gpm()
    fresh = transform.init(params)
    unchanged, _ = transform.update(grads, fresh)
    jax.tree.map(np.testing.assert_array_equal, unchanged, grads)

    inputs = layers.layer_inputs(problem, params, x[:4], 0)
    thresholds = {"first": 0.7, "again": 0.8, "head": 0.8}
    updated = gpm.gpm_update(fresh, inputs, thresholds, scale)
    expected, _ = transform.update(grads, updated)
    after, _ = method.step(state, batch, task)
    found = jax.tree.map(lambda old, new: (old - new) / RATE, params, after.params)
    jax.tree.map(partial(np.testing.assert_allclose, atol=2e-5), found, expected)
    # Biases have constant inputs: after the first task they stay as they are.
    np.testing.assert_array_equal(after.params["head"]["bias"], params["head"]["bias"])
    # What the layers received is received again, to within what the thresholds leave.
    kernel, seen = np.asarray(expected["first"]["kernel"]).reshape(12, 4), inputs["first"]
    through = np.asarray(seen["kernel"]).reshape(-1, 12) @ kernel
    raw = np.asarray(seen["kernel"]).reshape(-1, 12) @ np.asarray(grads["first"]["kernel"]).reshape(
        12, 4
    )
    assert np.linalg.norm(through) < 0.8 * np.linalg.norm(raw)


def test_a_layer_without_free_directions_stays_as_it_is():
    full = layers.prepared(
        {"Dense_0": {"kernel": jnp.full((3, 3), 1e-8), "bias": jnp.zeros((1, 1))}}
    )
    problem = network_problem(nn.Sequential([linen.Dense(2)]), (3,))
    params = {"layers_0": {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)}}
    full = layers.Projections(*({"layers_0": tree["Dense_0"]} for tree in full))
    batch = jnp.ones((4, 3)), jnp.array([0, 1, 1, 1])
    _, grads = layers.projected_loss_and_grads(problem, params, batch, 0, full)
    for leaf in jax.tree.leaves(grads):
        np.testing.assert_array_equal(leaf, 0)


def test_owm_is_the_inverse_it_recurs_to():
    vectors = jax.random.normal(jax.random.key(0), (5, 7, 4))
    alphas = 2.0 * 0.1 ** (np.arange(1, 6) / 5)
    p = jnp.eye(4)
    for v, alpha in zip(vectors, alphas, strict=True):
        p = owm.rls(p, v, alpha)  # more positions than dimensions
    v = np.asarray(vectors, np.float64)
    inverse = np.eye(4) + sum(v_.T @ v_ / a for v_, a in zip(v, alphas, strict=True))
    np.testing.assert_allclose(p, np.linalg.inv(inverse), atol=1e-6)


def test_owm_is_rgo_where_all_outputs_weigh_the_same():
    """Section 7 of the RGO paper. All logits zero, of two classes: sqrt(a (1 - a)) = 1/2."""
    params = {"kernel": jnp.zeros((6, 2))}
    problem = network_problem(linen.Dense(2, use_bias=False), (6,), params)
    x = jax.random.normal(jax.random.key(0), (40, 6))
    task = task_of(x, jnp.arange(40) % 2, batch_size=4)

    def projection(method):
        (kept,) = jax.tree.leaves(
            method.memory(method.end_task(method.init(jax.random.key(0)), task))
        )
        return np.asarray(kept)

    # v = x / 2, so alpha weighs four times as much.
    ours = projection(METHODS["rgo"].build(problem._replace(alpha=0.5)))
    theirs = projection(owm.owm(problem, owm.Owm(alpha=2.0)))
    np.testing.assert_allclose(ours, theirs, atol=1e-6)
    means = np.asarray(x, np.float64).reshape(10, 4, 6).mean(axis=1)
    expected = np.linalg.inv(np.eye(6) + means.T @ means / 2)
    np.testing.assert_allclose(theirs, expected, atol=1e-6)
    assert np.trace(theirs) < 5


def test_owm_alpha_falls_inside_a_task():
    params = {"kernel": jnp.zeros((3, 2))}
    problem = network_problem(linen.Dense(2, use_bias=False), (3,), params)
    x = np.eye(3)[[0, 1]]
    method = owm.owm(problem, owm.Owm(alpha=4.0, decay=0.25))
    state = method.end_task(method.init(jax.random.key(0)), task_of(x, [0, 1]))
    # alpha / (alpha + 1), for alphas 4 * 0.25^(1/2) and 4 * 0.25.
    np.testing.assert_allclose(state.memory["kernel"], np.diag([2 / 3, 1 / 2, 1]), atol=1e-6)


def test_memory_is_counted_in_bytes(digits):
    config = two_tasks(num_tasks=3)
    found = {name: experiment.memory_bytes(config, spec, digits) for name, spec in METHODS.items()}
    layers = [(64, 100), (100, 100), (100, 10)]
    parameters = sum(d * m + m for d, m in layers)
    ring = 3 * 10 * (64 * 4 + 1)
    bases = sum(d**2 + d for d, _ in layers) + 3 * 2
    expected = {
        "rgo": 4 * sum(d**2 + m**2 for d, m in layers),
        "sgd": 0,
        "stl": 2 * 4 * parameters,
        "ewc": 3 * 4 * parameters,
        "ewc-textbook": 2 * 4 * parameters,
        "a-gem": ring,
        "er-ring": ring,
        "gpm": 4 * bases,
        "sgp": 4 * bases,
        "owm": 4 * (sum(d**2 for d, _ in layers) + 3),
    }
    assert {name: found[name] for name in expected} == expected


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


def two_tasks(**changes):
    config = presets.config("permuted-digits", num_tasks=2)
    return dataclasses.replace(config, **changes)


@pytest.fixture(scope="module")
def sgd(digits):
    """How much SGD forgets of the first of two tasks."""
    return forgetting(train.run(two_tasks(), METHODS["sgd"], digits, num_seeds=1))


def forgetting(run):
    return SimpleNamespace(
        bwt=float(rgo_jax.backward_transfer(run.r)[0]),
        learned=float(run.r[0, 1, 1]),
    )


BASELINES = [name for name in METHODS if name not in ("rgo", "rgo-2", "sgd", "stl")]


@pytest.mark.slow
@pytest.mark.parametrize("method", BASELINES)
def test_forgets_less_than_sgd(digits, sgd, method):
    found = forgetting(train.run(two_tasks(), METHODS[method], digits, num_seeds=1))
    assert sgd.bwt < -0.1
    assert found.bwt > sgd.bwt + 0.03
    assert found.learned > sgd.learned - 0.05


def test_any_method_runs_with_and_without_fel(digits):
    quick = {"examples_per_task": 300, "epochs": 1}
    without = train.run(two_tasks(fel=False, **quick), METHODS["rgo"], digits, num_seeds=1)
    rgo_2 = train.run(two_tasks(**quick), METHODS["rgo-2"], digits, num_seeds=1)
    np.testing.assert_array_equal(without.r, rgo_2.r)
    with_fel = train.run(two_tasks(fel=True, **quick), METHODS["rgo-2"], digits, num_seeds=1)
    assert not np.array_equal(with_fel.r, rgo_2.r)


@pytest.mark.slow
@pytest.mark.parametrize("method", BASELINES)
def test_vmap_over_seeds_gives_what_map_gives(digits, monkeypatch, method):
    config = two_tasks(examples_per_task=200, epochs=1)
    mapped = train.run(config, METHODS[method], digits, num_seeds=2)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    batched = train.run(config, METHODS[method], digits, num_seeds=2)
    np.testing.assert_allclose(batched.losses, mapped.losses, rtol=1e-3)
    np.testing.assert_allclose(batched.r, mapped.r, atol=0.02)
