"""The options of RGO and of SGD, by hand."""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks.methods import METHODS, rgo
from rgo_jax import linen
from tests.benchmarks.problems import network_problem
from tests.small_models import RATE, cross_entropy_grad, task_of

ALPHA = 0.1


def softmax(logits):
    e = np.exp(logits - logits.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def curvature_grad(w, x, y, classes):
    """Line 9 by hand: ``[d, m]`` of a batch, with the softmax over these classes alone."""
    found = np.zeros(np.shape(w))
    logits = np.asarray(x, np.float64) @ np.asarray(w, np.float64)
    for x_, y_, logits_ in zip(np.asarray(x), y, logits, strict=True):
        a = softmax(logits_[None, list(classes)])[0][list(classes).index(y_)]
        found[:, y_] += np.sqrt(a * (1 - a)) * x_
    return found


def projection_of(vectors, alpha=ALPHA):
    vectors = np.asarray(vectors, np.float64)
    return np.linalg.inv(np.eye(vectors.shape[1]) + vectors.T @ vectors / alpha)


def built(problem, **options):
    return rgo.rgo(problem._replace(options=rgo.Rgo(**({"alpha": ALPHA} | options))))


def after_task(method, task, state=None):
    state = method.init(jax.random.key(0)) if state is None else state
    return jax.jit(lambda state: method.end_task(state, task))(state)


def kept_of(state):
    return optax.tree.get(state.opt_state, "projection")


def num_updates_of(state):
    return int(optax.tree.get(state.opt_state, "num_updates"))


def kernel_problem(w):
    """A linear layer without biases, that projects its gradients."""
    module = linen.Dense(w.shape[1], use_bias=False)
    problem = network_problem(module, (len(w),), {"kernel": jnp.float32(w)})
    return problem._replace(num_classes=w.shape[1])


@pytest.fixture
def linear():
    """A linear problem of four classes, and a task of two batches with two classes in each."""
    rng = np.random.default_rng(0)
    w, x = rng.normal(size=(3, 4)), rng.normal(size=(8, 3))
    y = np.array([0, 2, 2, 0, 3, 1, 1, 1])
    return w, x, y, kernel_problem(w), task_of(x, y, batch_size=4)


@pytest.mark.parametrize("columns", ["mean", "sum"])
def test_a_relative_alpha(linear, columns):
    w, x, y, problem, task = linear
    state = after_task(built(problem, relative_alpha=True, columns=columns), task)
    vectors = [
        curvature_grad(w, x[rows], y[rows], range(4)).mean(axis=1)
        for rows in (slice(4), slice(4, 8))
    ]
    unit = np.mean(np.sum(np.square(vectors), axis=1))
    np.testing.assert_allclose(
        kept_of(state)["kernel"], projection_of(vectors, ALPHA * unit), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize(
    ("option", "classes"), [("all", [range(4)] * 2), ("present", [(0, 2), (1, 3)])]
)
def test_the_softmax_of_the_curvature_pass(linear, option, classes):
    w, x, y, problem, task = linear
    state = after_task(built(problem, curvature_classes=option), task)
    vectors = [
        curvature_grad(w, x[rows], y[rows], of_batch).mean(axis=1)
        for rows, of_batch in zip((slice(4), slice(4, 8)), classes, strict=True)
    ]
    np.testing.assert_allclose(
        kept_of(state)["kernel"], projection_of(vectors), rtol=1e-4, atol=1e-6
    )


def test_a_batch_of_one_class_says_nothing_where_only_those_present_count(linear):
    _, x, _, problem, _ = linear
    task = task_of(x[:4], [1, 1, 1, 1], batch_size=4)
    state = after_task(built(problem, curvature_classes="present"), task)
    np.testing.assert_array_equal(kept_of(state)["kernel"], np.eye(3))
    whole = after_task(built(problem, curvature_classes="all"), task)
    assert np.trace(kept_of(whole)["kernel"]) < 2.9


def test_columns():
    """Of a layer with a bias: a kernel's are its outputs', and a bias is one column."""
    rng = np.random.default_rng(1)
    kernel, x, y = rng.normal(size=(3, 4)), rng.normal(size=(4, 3)), np.array([0, 3, 1, 2])
    params = {"kernel": jnp.float32(kernel), "bias": jnp.zeros(4)}
    problem = network_problem(linen.Dense(4), (3,), params)
    task = task_of(x, y, batch_size=4)
    of_kernel = curvature_grad(kernel, x, y, range(4))
    of_bias = curvature_grad(
        np.concatenate([kernel, np.zeros((1, 4))]), np.c_[x, np.ones(4)], y, range(4)
    )[-1]
    expected = {
        "mean": [of_kernel.mean(axis=1)],
        "sum": [of_kernel.sum(axis=1)],
        "each": of_kernel.T / 2,  # over the root of how many there are
    }
    found = {name: kept_of(after_task(built(problem, columns=name), task)) for name in rgo.COLUMNS}
    for name, vectors in expected.items():
        projection = projection_of(vectors)
        np.testing.assert_allclose(found[name]["kernel"], projection, rtol=1e-3, atol=1e-5)
    near = [
        np.allclose(found["signs"]["kernel"], projection_of([of_kernel @ signs / 2]), atol=1e-5)
        for signs in itertools.product((1, -1), repeat=4)
    ]
    assert sum(near) == 2  # some signs, and their opposites
    for name in rgo.COLUMNS:
        np.testing.assert_allclose(
            found[name]["bias"], projection_of([of_bias]), rtol=1e-3, atol=1e-5
        )


@pytest.mark.slow
@pytest.mark.parametrize("protect_biases", [True, False])
def test_the_sum_is_the_mean_with_an_alpha_of_its_own(protect_biases):
    """``alpha / m^2`` for a kernel of m columns, whatever its shape; a bias's is as it is."""
    shape = (4, 3, 2)
    module = nn.Sequential([linen.Conv(5, (4, 3), padding="VALID"), lambda x: x[:, 0, 0]])
    problem = network_problem(module, shape)
    x = jax.random.normal(jax.random.key(3), (6, *shape))
    task = task_of(x, [0, 1, 2, 3, 4, 0], batch_size=3)

    def kept(columns, alpha):
        method = built(problem, columns=columns, alpha=alpha, protect_biases=protect_biases)
        return kept_of(after_task(method, task))["layers_0"]

    summed, mean = kept("sum", 0.5), kept("mean", 0.5 / 25)
    assert np.trace(summed["kernel"]) < 23.9
    np.testing.assert_allclose(summed["kernel"], mean["kernel"], rtol=1e-4, atol=1e-6)
    if protect_biases:
        plain = kept("mean", 0.5)
        np.testing.assert_allclose(summed["bias"], plain["bias"], rtol=1e-4, atol=1e-6)
        assert not np.allclose(summed["bias"], mean["bias"], rtol=1e-3)


@pytest.mark.parametrize(("count", "folded"), [(None, 4), (3, 3), (50, 4)])
def test_so_many_batches_are_folded_in(linear, count, folded):
    w, x, y, problem, _ = linear
    task = task_of(x, y, batch_size=2)
    state = after_task(built(problem, curvature_batches=count), task)
    assert num_updates_of(state) == folded
    vectors = [
        curvature_grad(w, x[i : i + 2], y[i : i + 2], range(4)).mean(axis=1)
        for i in range(0, 2 * folded, 2)
    ]
    np.testing.assert_allclose(
        kept_of(state)["kernel"], projection_of(vectors), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("normalize", [True, False])
def test_online_a_batch_is_folded_in_before_its_own_step(linear, normalize):
    w, x, y, problem, task = linear
    method = built(problem, online=True, normalize=normalize)
    step = jax.jit(lambda state, x, y: method.step(state, (x, y), task)[0])
    state, vectors = method.init(jax.random.key(0)), []
    for done, i in enumerate((0, 4), start=1):
        batch = x[i : i + 4], y[i : i + 4]
        vectors.append(curvature_grad(w, *batch, range(4)).mean(axis=1))
        state = step(state, jnp.float32(batch[0]), batch[1])
        p = projection_of(vectors)
        w = w - RATE * (3 / np.trace(p) if normalize else 1) * p @ cross_entropy_grad(w, *batch)
        assert num_updates_of(state) == done
        np.testing.assert_allclose(kept_of(state)["kernel"], p, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(state.params["kernel"], w, rtol=1e-4, atol=1e-5)
    after = after_task(method, task, state)
    assert num_updates_of(after) == 2
    np.testing.assert_array_equal(kept_of(after)["kernel"], kept_of(state)["kernel"])


def test_offline_a_task_is_folded_in_at_its_end(linear):
    _, x, y, problem, task = linear
    method = built(problem)
    state, _ = method.step(method.init(jax.random.key(0)), (jnp.float32(x), y), task)
    assert num_updates_of(state) == 0
    np.testing.assert_array_equal(kept_of(state)["kernel"], np.eye(3))
    assert num_updates_of(after_task(method, task, state)) == 2


def test_biases_without_a_p_are_trained_as_by_sgd():
    rng = np.random.default_rng(1)
    x, y = jnp.float32(rng.normal(size=(4, 3))), np.array([0, 1, 1, 0])
    params = {"kernel": jnp.float32(rng.normal(size=(3, 2))), "bias": jnp.zeros(2)}
    problem = network_problem(linen.Dense(2), (3,), params)
    task = task_of(x, y, batch_size=4)

    def loss(params):
        logits = problem.logits(params, x, 0)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    grads = jax.grad(loss)(params)
    for protect_biases in (True, False):
        method = built(problem, protect_biases=protect_biases)
        state = after_task(method, task)
        assert set(kept_of(state)) == {"kernel", "bias"} if protect_biases else {"kernel"}
        after, _ = method.step(state, (x, y), task)
        taken = jax.tree.map(lambda old, new: (old - new) / RATE, params, after.params)
        same = jax.tree.map(lambda a, b: bool(np.allclose(a, b, rtol=1e-3)), taken, grads)
        assert same == {"kernel": False, "bias": not protect_biases}


@pytest.mark.parametrize("method", ["rgo", "sgd", "stl"])
def test_momentum_begins_each_task_at_zero(method):
    rng = np.random.default_rng(2)
    w, x, y = rng.normal(size=(3, 2)), rng.normal(size=(4, 3)), np.array([0, 1, 1, 0])
    given = METHODS[method].options(momentum=0.5)
    built_method = METHODS[method].build(kernel_problem(w)._replace(options=given))
    batch, task = (jnp.float32(x), y), task_of(x, y, batch_size=4)
    state = built_method.init(jax.random.key(0))
    for task_id in range(2):
        task = task._replace(id=jnp.int32(task_id))
        state = built_method.start_task(state, task, jax.random.key(1))
        at = np.asarray(state.params["kernel"], np.float64)  # what STL begins anew from
        trace = np.zeros((3, 2))
        for _ in range(2):
            trace = 0.5 * trace + cross_entropy_grad(at, x, y)
            at = at - RATE * trace
            state, _ = built_method.step(state, batch, task)
            np.testing.assert_allclose(state.params["kernel"], at, rtol=1e-4, atol=1e-6)
    if method != "rgo":
        return
    # What earlier tasks protect is protected of all that builds up in one.
    state = built_method.start_task(built_method.end_task(state, task), task, jax.random.key(1))
    at, trace, p = (
        np.asarray(state.params["kernel"]),
        np.zeros((3, 2)),
        np.asarray(kept_of(state)["kernel"]),
    )
    for _ in range(2):
        trace = 0.5 * trace + 3 / np.trace(p) * p @ cross_entropy_grad(at, x, y)
        at = at - RATE * trace
        state, _ = built_method.step(state, batch, task)
    np.testing.assert_allclose(state.params["kernel"], at, rtol=1e-4, atol=1e-5)


def test_without_momentum_nothing_is_kept_for_it():
    for method, arrays in (("sgd", 0), ("rgo", 1 + 3)):  # P, and three counts beside it
        problem = kernel_problem(np.zeros((3, 2)))
        state = METHODS[method].build(problem).init(jax.random.key(0))
        # The schedule's count, whatever else.
        assert len(jax.tree.leaves(state.opt_state)) == arrays + 1


def test_fan_in_is_read_from_the_network():
    class Attention(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.MultiHeadDotProductAttention(2, name="attention")(x)[:, 0]

    method = built(network_problem(Attention(), (3, 8)))
    kept = kept_of(jax.eval_shape(method.init, jax.random.key(0)))
    # By default the fan-in of [8, 2, 4] would be 16.
    assert kept["attention"]["query"]["kernel"].shape == (8, 8)
    assert kept["attention"]["out"]["kernel"].shape == (8, 8)
