"""Which task examples are of, from outputs under every task's id."""

import flax.linen as nn
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import strategies as st

import rgo_jax
import rgo_jax.linen
import rgo_jax.nnx
from rgo_jax import task_inference

KEY = jax.random.key(0)


def by_numpy(logits, score):
    logits = np.asarray(logits, np.float64)
    log_probabilities = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    probabilities = np.exp(log_probabilities)
    return {
        "uniform": (np.log(1 / logits.shape[-1]) - log_probabilities).mean(-1),
        "energy": np.log(np.exp(logits).sum(-1)),
        "entropy": (probabilities * log_probabilities).sum(-1),
        "probability": log_probabilities.max(-1),
        "norm": np.sqrt((logits**2).sum(-1)),
    }[score]


@pytest.mark.parametrize("score", task_inference.SCORES)
def test_scores(score):
    logits = 3 * jax.random.normal(KEY, (2, 5, 4))
    ours = task_inference.scores(logits, score)
    np.testing.assert_allclose(ours, by_numpy(logits, score), rtol=1e-5, atol=1e-6)


def test_an_unknown_score():
    with pytest.raises(ValueError, match="score is 'x'; expected one of uniform, energy"):
        task_inference.scores(jnp.zeros((2, 3)), "x")


# Of few shapes, since each is compiled.
@hypothesis.given(
    num_tasks=st.sampled_from([1, 4]),
    count=st.sampled_from([1, 7]),
    group_size=st.sampled_from([1, 3, 9]),
    num_seen=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_decisions_group_by_group(num_tasks, count, group_size, num_seen, seed):
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(num_tasks, count)).astype(np.float32)
    mean, spread = rng.normal(size=num_tasks), rng.uniform(0.5, 2, num_tasks)
    calibration = task_inference.Calibration(*(jnp.float32(x) for x in (mean, spread)))
    seen = np.arange(num_tasks) < num_seen
    expected = []
    for begin in range(0, count, group_size):
        group = (scores[:, begin : begin + group_size] - mean[:, None]) / spread[:, None]
        best = np.where(seen, group.mean(axis=1), -np.inf).argmax()
        expected += [best] * group.shape[1]
    ours = task_inference.infer(
        jnp.asarray(scores), group_size=group_size, seen=jnp.asarray(seen), calibration=calibration
    )
    assert ours.tolist() == expected
    assert ours.dtype == jnp.int32


def test_below_the_threshold_it_is_no_task():
    scores = jnp.array([[1.0, 5.0, 2.0, 2.0], [0.0, 4.0, 6.0, 0.0]])
    assert task_inference.infer(scores, threshold=2.5).tolist() == [task_inference.NONE, 0, 1, -1]
    # Of groups it is the mean that counts.
    assert task_inference.infer(scores, group_size=2, threshold=2.5).tolist() == [0, 0, 1, 1]
    calibration = task_inference.Calibration(jnp.array([4.0, 4.0]), jnp.array([1.0, 2.0]))
    inferred = task_inference.infer(scores, calibration=calibration, threshold=-1.5)
    assert inferred.tolist() == [-1, 0, 1, -1]


@pytest.mark.parametrize(
    ("scores", "group_size", "message"),
    [
        (jnp.zeros((2, 3, 4)), 1, r"scores has shape \(2, 3, 4\); expected \[tasks, b\]"),
        (jnp.zeros((2, 3)), 0, "group_size is 0; expected 1 or more"),
    ],
)
def test_what_is_refused(scores, group_size, message):
    with pytest.raises(ValueError, match=message):
        task_inference.infer(scores, group_size=group_size)


def test_a_calibration_without_spread_changes_no_number_to_nan():
    calibration = task_inference.Calibration(jnp.zeros(2), jnp.zeros(2))
    scores = jnp.array([[1.0], [2.0]])
    assert task_inference.infer(scores, calibration=calibration).tolist() == [1]


@pytest.mark.parametrize("group_size", [1, 3])
def test_mixed_predictions(group_size):
    logits, scores = jax.random.normal(KEY, (4, 5, 3)), jax.random.normal(KEY, (4, 5))
    seen = np.array([True, True, True, False])
    ours = task_inference.mix(
        logits, scores, group_size=group_size, seen=jnp.asarray(seen), sharpness=2.0
    )
    probabilities = np.exp(np.float64(jax.nn.log_softmax(logits)))
    for i in range(5):
        begin = i // group_size * group_size
        mean = np.float64(scores)[:, begin : begin + group_size].mean(axis=1)
        weights = np.exp(2 * np.sqrt(group_size) * mean) * seen
        expected = weights / weights.sum() @ probabilities[:, i]
        np.testing.assert_allclose(np.exp(ours[i]), expected, rtol=1e-5)


def test_a_sharp_mixture_is_the_task_with_the_highest_score():
    logits, scores = jax.random.normal(KEY, (4, 5, 3)), jax.random.normal(KEY, (4, 5))
    ours = task_inference.mix(logits, scores, sharpness=1e4)
    best = logits[task_inference.infer(scores), jnp.arange(5)]
    np.testing.assert_allclose(ours, jax.nn.log_softmax(best), rtol=1e-5)


def test_the_same_under_jit_vmap_and_scan():
    scores = jax.random.normal(KEY, (6, 4, 7))

    def decide(scores):
        return task_inference.infer(scores, group_size=2, threshold=0.1)

    one_by_one = jnp.stack([decide(each) for each in scores])
    np.testing.assert_array_equal(jax.vmap(decide)(scores), one_by_one)
    np.testing.assert_array_equal(jax.jit(jax.vmap(decide))(scores), one_by_one)
    _, scanned = jax.lax.scan(lambda carry, each: (carry, decide(each)), 0, scores)
    np.testing.assert_array_equal(scanned, one_by_one)


class Net(nn.Module):
    num_tasks: int | None = None
    width: int = 8

    @nn.compact
    def __call__(self, x, task_id):
        x = nn.relu(nn.Dense(self.width)(x))
        x = rgo_jax.linen.FeatureEncoding(num_tasks=self.num_tasks)(x, task_id)
        return nn.Dense(3)(x)


class NnxNet(nnx.Module):
    def __init__(self, rngs):
        self.dense, self.head = nnx.Linear(4, 8, rngs=rngs), nnx.Linear(8, 3, rngs=rngs)
        self.encode = rgo_jax.nnx.FeatureEncoding()

    def __call__(self, x, task_id):
        return self.head(self.encode(nnx.relu(self.dense(x)), task_id))


@pytest.mark.parametrize("tasks", [4, jnp.array([3, 1])])
@pytest.mark.parametrize("kind", ["linen", "linen with a table", "nnx"])
def test_outputs_under_every_id(kind, tasks):
    x = jax.random.normal(KEY, (5, 4))
    if kind == "nnx":
        model = NnxNet(nnx.Rngs(0))
        ours = rgo_jax.nnx.logits_by_task(model, x, tasks)
        one = model
    else:
        net = Net(5 if kind == "linen with a table" else None)
        variables = net.init(KEY, x, 0)

        def one(x, task_id):
            return net.apply(variables, x, task_id)

        ours = task_inference.logits_by_task(lambda _, x, k: one(x, k), None, x, tasks)
    ids = range(tasks) if isinstance(tasks, int) else tasks.tolist()
    expected = jnp.stack([one(x, jnp.int32(k)) for k in ids])
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("num_tasks", [1, 7])
def test_halving_finds_the_same_task_with_fewer_forward_passes(num_tasks):
    x = jnp.arange(16.0)[:, None]
    surest, passes = num_tasks * 2 // 3, []

    def apply(params, x, task_id):
        passes.append(len(x))  # traced once for each stage, whatever the number of candidates
        sure = params[task_id] + jnp.where(task_id == surest, 2.0, 0.0)
        return jnp.stack([x[:, 0] + sure, x[:, 0]], axis=1)

    params = jax.random.uniform(KEY, (num_tasks,))
    assert int(task_inference.halve(apply, params, x, num_tasks)) == surest
    # Candidates are halved, examples doubled.
    candidates, total = num_tasks, 0
    for count in passes:
        total += candidates * count
        candidates = (candidates + 1) // 2
    assert passes == [1, 2, 4, 8, 1][: len(passes)]
    assert total < len(x) * num_tasks
    compiled = jax.jit(lambda x: task_inference.halve(apply, params, x, num_tasks, first=2))
    assert int(compiled(x)) == surest


@pytest.mark.parametrize("first", [0, 4])
def test_halving_needs_examples(first):
    with pytest.raises(ValueError, match=f"first is {first}; expected 1 to 3"):
        task_inference.halve(lambda *_: None, None, jnp.zeros((3, 1)), 2, first=first)


def test_unused_ids_are_those_of_no_task():
    ids = jax.vmap(lambda key: task_inference.unused_task(key, 20, 10))(jax.random.split(KEY, 200))
    assert set(ids.tolist()) == set(range(20, 30))


def test_a_network_that_is_unsure_under_unused_encodings_knows_its_tasks():
    """Permuted inputs, trained at once so that nothing is forgotten."""
    num_tasks, count = 8, 300
    keys = jax.random.split(KEY, 4)
    y = jnp.arange(count) % 3
    prototypes = jax.random.normal(keys[0], (3, 16))
    x = prototypes[y] + jax.random.normal(keys[1], (count, 16))
    orders = jax.vmap(lambda key: jax.random.permutation(key, 16))(
        jax.random.split(keys[2], num_tasks)
    )
    ids, inputs = jnp.arange(num_tasks), x[:, orders].swapaxes(0, 1)
    net, tx = Net(width=32), optax.adam(1e-2)

    def apply(params, x, task_id):
        return net.apply({"params": params}, x, task_id)

    @jax.jit
    def share_right(weight):
        def loss_fn(params, key):
            logits = jax.vmap(apply, (None, 0, 0))(params, inputs[:, :200], ids)
            loss = optax.softmax_cross_entropy_with_integer_labels(logits, y[None, :200]).mean()
            unused_ids = jax.vmap(lambda key: task_inference.unused_task(key, num_tasks))(
                jax.random.split(key, num_tasks)
            )
            unused = jax.vmap(apply, (None, 0, 0))(params, inputs[:, :200], unused_ids)
            return loss + weight * task_inference.uniform_loss(unused).mean()

        def step(carry, key):
            params, opt_state = carry
            updates, opt_state = tx.update(jax.grad(loss_fn)(params, key), opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), None

        params = net.init(keys[3], x, 0)["params"]
        carry = params, tx.init(params)
        (params, _), _ = jax.lax.scan(step, carry, jax.random.split(KEY, 300))
        right = [
            task_inference.infer(
                task_inference.scores(
                    task_inference.logits_by_task(apply, params, inputs[k, 200:], num_tasks)
                )
            )
            == k
            for k in range(num_tasks)
        ]
        return jnp.mean(jnp.stack(right))

    without, with_loss = share_right(0.0), share_right(0.5)
    assert with_loss > without + 0.1
