"""GPM, SGP and OWM, by hand."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rgo_jax
from rgo_jax import baselines, linen
from rgo_jax.baselines import _gpm as gpm
from rgo_jax.baselines import _owm as owm
from rgo_jax.baselines._projecting import inputs_of
from tests.marks import slow_but
from tests.small_models import (
    RATE,
    SGD,
    ConvNet,
    apply_of,
    cross_entropy_grad,
    params_of,
    task_of,
)

KEY = jax.random.key(0)


@pytest.mark.slow
@pytest.mark.parametrize("module", [ConvNet(), ConvNet(nn.Conv, nn.Dense)])
def test_inputs_are_what_kernels_are_multiplied_by(module):
    x = jax.random.normal(jax.random.key(1), (5, 7, 6, 2))
    params = params_of(module, x)
    inputs = inputs_of(apply_of(module), True, params, x, 0)
    kernels = ["first/kernel", "again/kernel", "head/kernel"]
    assert list(inputs)[:3] == kernels
    assert {name: seen.shape for name, seen in inputs.items()} == {
        "first/kernel": (5, 4 * 3, 3 * 2 * 2),
        "again/kernel": (5, 3 * 2, 2 * 2 * 4),
        "head/kernel": (5, 1, 18),
        "first/bias": (5, 1, 1),
        "head/bias": (5, 1, 1),
    }
    np.testing.assert_array_equal(inputs["head/bias"], np.ones((5, 1, 1)))
    seen_first, seen_again, seen_head = (inputs[name] for name in kernels)
    kernel = params["first"]["kernel"].reshape(12, 4)
    first = seen_first @ kernel + params["first"]["bias"][None, None]
    first = nn.relu(first.reshape(5, 4, 3, 4))
    again = seen_again @ params["again"]["kernel"].reshape(16, 3)
    np.testing.assert_allclose(again.reshape(5, 1, 18), seen_head, rtol=1e-4)
    np.testing.assert_allclose(
        first[:, :2, :2].reshape(5, 16), seen_again[:, 0], rtol=1e-4, atol=1e-5
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


@pytest.mark.slow
@pytest.mark.parametrize("module", [ConvNet(), ConvNet(nn.Conv, nn.Dense)])
@pytest.mark.parametrize("scale", [None, 10.0])
def test_gpm_in_the_layers_is_the_optax_transform(scale, module):
    apply_fn = apply_of(module)
    x = jax.random.normal(jax.random.key(1), (6, 7, 6, 2))
    task = task_of(x, jnp.array([0, 1] * 3), batch_size=3)
    given = {"first_threshold": 0.7, "threshold": 0.8, "samples": 4}
    if scale is None:
        method = baselines.gpm(apply_fn, SGD, **given)
    else:
        method = baselines.sgp(apply_fn, SGD, scale=scale, **given)
    params = params_of(module, x)
    state = method.end_task(method.init(params, x, KEY), task)
    batch = jax.random.normal(jax.random.key(2), x.shape), jnp.array([1, 0] * 3)

    def loss(params):
        logits = apply_fn(params, batch[0], 0)
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()

    grads = jax.grad(loss)(params)
    transform = baselines.scale_by_gpm()
    fresh = transform.init(params)
    unchanged, _ = transform.update(grads, fresh)
    jax.tree.map(np.testing.assert_array_equal, unchanged, grads)

    seen = inputs_of(apply_fn, True, params, x[:4], 0)
    inputs = {
        layer: {name: seen[f"{layer}/{name}"] for name in leaves}
        for layer, leaves in params.items()
    }
    thresholds = {"first": 0.7, "again": 0.8, "head": 0.8}
    updated = baselines.gpm_update(fresh, inputs, thresholds, scale)
    expected, _ = transform.update(grads, updated)
    after, _ = method.step(state, batch, task)
    found = jax.tree.map(lambda old, new: (old - new) / RATE, params, after.params)
    jax.tree.map(partial(np.testing.assert_allclose, atol=2e-5), found, expected)
    # Biases have constant inputs: after the first task they stay as they are.
    np.testing.assert_array_equal(after.params["head"]["bias"], params["head"]["bias"])
    # What the layers received is received again, to within what the thresholds leave.
    rows = np.asarray(seen["first/kernel"]).reshape(-1, 12)
    through = rows @ np.asarray(expected["first"]["kernel"]).reshape(12, 4)
    raw = rows @ np.asarray(grads["first"]["kernel"]).reshape(12, 4)
    assert np.linalg.norm(through) < 0.8 * np.linalg.norm(raw)


@pytest.mark.slow
def test_a_layer_without_free_directions_stays_as_it_is():
    """Every direction is taken, and rounding is all that is left of the projections."""
    params = {"layers_0": {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)}}
    apply_fn = apply_of(nn.Sequential([linen.Dense(2)]))
    x, y = np.eye(3, dtype=np.float32), np.array([0, 1, 1])
    task = task_of(x, y)
    for method in (
        baselines.gpm(apply_fn, SGD, first_threshold=1.0, threshold=1.0),
        baselines.owm(apply_fn, SGD, alpha=1e-9),
    ):
        state = method.end_task(method.init(params, x, KEY), task)
        assert max(float(jnp.trace(p)) for p in jax.tree.leaves(state.projections)) < 1e-5
        after, _ = method.step(state, (x, y), task)
        jax.tree.map(partial(np.testing.assert_allclose, atol=1e-6), after.params, params)


def test_owm_is_the_inverse_it_recurs_to():
    vectors = jax.random.normal(jax.random.key(0), (5, 7, 4))
    alphas = 2.0 * 0.1 ** (np.arange(1, 6) / 5)
    p = jnp.eye(4)
    for v, alpha in zip(vectors, alphas, strict=True):
        p = owm.rls(p, v, alpha)  # more positions than dimensions
    v = np.asarray(vectors, np.float64)
    inverse = np.eye(4) + sum(v_.T @ v_ / a for v_, a in zip(v, alphas, strict=True))
    np.testing.assert_allclose(p, np.linalg.inv(inverse), atol=1e-6)


def dense_without_bias():
    return apply_of(nn.Dense(2, use_bias=False))


def test_owm_is_rgo_where_all_outputs_weigh_the_same():
    """Section 7 of the RGO paper. All logits zero, of two classes: sqrt(a (1 - a)) = 1/2."""
    params = {"kernel": jnp.zeros((6, 2))}
    x = jax.random.normal(jax.random.key(0), (40, 6))
    task = task_of(x, jnp.arange(40) % 2, batch_size=4)

    def projection(method):
        (kept,) = jax.tree.leaves(method.memory(method.end_task(method.init(params, x, KEY), task)))
        return np.asarray(kept)

    # v is the mean over two columns of the sum over four examples of x / 2: the batch's mean.
    ours = projection(baselines.rgo(dense_without_bias(), rgo_jax.rgo(RATE), alpha=2.0))
    theirs = projection(baselines.owm(dense_without_bias(), SGD, alpha=2.0))
    np.testing.assert_allclose(ours, theirs, atol=1e-6)
    means = np.asarray(x, np.float64).reshape(10, 4, 6).mean(axis=1)
    expected = np.linalg.inv(np.eye(6) + means.T @ means / 2)
    np.testing.assert_allclose(theirs, expected, atol=1e-6)
    assert np.trace(theirs) < 5


def test_owm_alpha_falls_inside_a_task():
    params = {"kernel": jnp.zeros((3, 2))}
    x = np.eye(3)[[0, 1]]
    method = baselines.owm(dense_without_bias(), SGD, alpha=4.0, decay=0.25)
    state = method.end_task(method.init(params, x, KEY), task_of(x, [0, 1]))
    # alpha / (alpha + 1), for alphas 4 * 0.25^(1/2) and 4 * 0.25.
    np.testing.assert_allclose(state.memory["kernel"], np.diag([2 / 3, 1 / 2, 1]), atol=1e-6)


def test_owm_online_projects_with_the_batch_that_it_trains_on():
    """Two steps of the second task by hand, of four a task: P first, then the parameters."""
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(3, 2))
    method = baselines.owm(dense_without_bias(), SGD, alpha=2.0, decay=0.1, online=True)
    state = method.init({"kernel": jnp.float32(kernel)}, jnp.zeros((1, 3)), KEY)

    def task(x, y, task_id):
        return task_of(x, y, task_id, batch_size=len(x), epochs=4)

    step = jax.jit(lambda state, x, y, task_id: method.step(state, (x, y), task(x, y, task_id)))
    p = np.eye(3)
    for task_id in range(2):
        x, y = rng.normal(size=(5, 3)), np.arange(5) % 2
        state = method.start_task(state, task(x, y, task_id), KEY)
        for i in range(4):
            x, y = rng.normal(size=(5, 3)), np.arange(5) % 2
            state, _ = step(state, jnp.float32(x), y, task_id)
            mean = x.mean(axis=0)
            p -= np.outer(p @ mean, p @ mean) / (2 * 0.1 ** (i / 4) + mean @ p @ mean)
            kernel -= RATE * p @ cross_entropy_grad(kernel, x, y)
        np.testing.assert_allclose(state.params["kernel"], kernel, atol=1e-5)
        before = state.memory["kernel"]
        state = method.end_task(state, task(x, y, task_id))
        np.testing.assert_allclose(state.memory["kernel"], p, atol=1e-5)
        np.testing.assert_allclose(state.memory["kernel"], before, atol=1e-6)


def step_of(method, params, x, y):
    """What one step of the second task changes."""
    task = task_of(x, y, batch_size=len(x))
    state = method.end_task(method.init(params, x, KEY), task)
    after, _ = method.step(state, (x, y), task._replace(id=jnp.int32(1)))
    return jax.tree.map(lambda old, new: np.abs(old - new).max() > 1e-6, params, after.params)


def test_masked_out_parameters_are_trained_freely():
    x, y = jnp.eye(3), jnp.array([0, 1, 1])
    params = {"first": {"kernel": jnp.ones((3, 4)), "bias": jnp.ones(4)}, "head": jnp.eye(4, 2)}

    def apply_fn(params, x, task_id):
        hidden = x @ params["first"]["kernel"] + params["first"]["bias"][None]
        return hidden @ params["head"]

    given = {"first_threshold": 1.0, "threshold": 1.0}
    whole = step_of(baselines.gpm(apply_fn, SGD, **given), params, x, y)
    assert not whole["first"]["kernel"]
    assert not whole["first"]["bias"]
    for mask in ({"first": True, "head": False}, lambda params: {"first": True, "head": False}):
        found = step_of(baselines.gpm(apply_fn, SGD, **given, mask=mask), params, x, y)
        assert found == {"first": {"kernel": False, "bias": False}, "head": True}


@pytest.mark.parametrize("name", slow_but(["gpm", "sgp", "owm"], "gpm"))
def test_updates_or_gradients_are_projected(name):
    """The same for SGD; after Adam only updates stay across what was received."""
    x, y = jnp.array([[1.0, 2.0, 0.5], [2.0, 1.0, -1.0]]), jnp.array([0, 1])
    new_x = jnp.array([[1.0, 2.0, 3.0], [-3.0, 1.0, 0.5]])
    params = {"w": 0.1 * jnp.arange(6.0).reshape(3, 2), "b": jnp.zeros(2)}
    first, second = task_of(x, y, 0, 2), task_of(new_x, y, 1, 2)

    def apply_fn(params, x, task_id):
        return x @ params["w"] + params["b"][None]

    def change(tx, fused):
        given = {"first_threshold": 1.0} if name == "gpm" else {}
        method = getattr(baselines, name)(apply_fn, tx, fused=fused, **given)
        state = method.end_task(method.init(params, x, KEY), first)
        state = method.start_task(state, second, KEY)
        for _ in range(3):
            state, _ = method.step(state, (new_x, y), second)
        return np.asarray(state.params["w"] - params["w"])

    momentum = optax.sgd(0.1, momentum=0.9)
    np.testing.assert_allclose(change(momentum, False), change(momentum, True), atol=1e-6)
    if name == "gpm":
        after_adam = change(optax.adam(0.1), False)
        np.testing.assert_allclose(x @ after_adam, 0, atol=1e-6)
        assert np.abs(after_adam).max() > 0.01
        assert np.abs(x @ change(optax.adam(0.1), True)).max() > 0.01


def test_an_array_alone_is_a_kernel_too():
    x, y = jnp.eye(3)[:2], jnp.array([0, 1])
    method = baselines.gpm(lambda w, x, task_id: x @ w, SGD, first_threshold=1.0)
    task = task_of(x, y, batch_size=2)
    state = method.end_task(method.init(jnp.ones((3, 2)), x, KEY), task)
    after, _ = method.step(state, (jnp.ones((2, 3)), jnp.zeros(2, int)), task)
    moved = np.abs(np.asarray(after.params) - 1).max(axis=1)
    np.testing.assert_allclose(moved[:2], 0, atol=1e-6)
    assert moved[2] > 0.01


def test_models_whose_inputs_cannot_be_told_are_refused():
    x = jnp.ones((2, 3))
    method = baselines.gpm(lambda params, x, task_id: x * params["scale"], SGD)
    with pytest.raises(ValueError, match=r"No kernel's inputs can be read.*'scale'"):
        method.init({"scale": jnp.ones((1, 3))}, x, KEY)

    def stacked(params, x, task_id):
        return jax.lax.scan(lambda x, w: (x @ w, None), x, params["layers"])[0]

    method = baselines.owm(stacked, SGD)
    with pytest.raises(ValueError, match=r"'layers' of shape .* is a stack of kernels"):
        method.init({"layers": jnp.ones((4, 3, 3))}, x, KEY)
