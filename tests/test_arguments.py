"""Arguments of the wrong kind are refused by name; unusual but legal ones are not."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rgo_jax

W = jnp.ones((8, 4))
LOGITS = jnp.zeros((2, 4))


def state():
    return rgo_jax.rgo(0.1).init(W)


def consolidated(batches, **options):
    def grad_fn(batch):
        return jax.grad(lambda w: rgo_jax.curvature_output(batch[0] @ w, batch[1]))(W)

    return rgo_jax.consolidate(state(), grad_fn, batches, **options)


def one_batch(size=4):
    return np.ones((size, 8), np.float32), np.zeros(size, np.int32)


class Loader:
    def __iter__(self):
        return iter([one_batch()])


@pytest.mark.parametrize(
    ("batches", "match"),
    [
        ([one_batch(), one_batch(3)], r"list of trees.*jnp\.stack"),
        ([one_batch(), one_batch()], r"list of trees.*jnp\.stack"),
        ((batch for batch in [one_batch()]), r"a generator.*jnp\.stack"),
        (Loader(), r"a Loader.*jnp\.stack"),
        (3, "a int"),
        (np.array([1, "a"], object), "no array of numbers"),
    ],
)
def test_batches_that_are_no_arrays(batches, match):
    with pytest.raises(ValueError, match=match):
        consolidated(batches)


def test_a_list_of_arrays_is_a_tree_like_others():
    x, y = (np.stack([part] * 3) for part in one_batch())
    listed, paired = consolidated([x, y]), consolidated((x, y))
    np.testing.assert_array_equal(listed[0].projection, paired[0].projection)
    assert int(listed[0].num_updates) == 3


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: rgo_jax.curvature_output(LOGITS, [0, 1]), TypeError, "targets is a list"),
        (lambda: rgo_jax.curvature_output([[0.0]], jnp.array([0])), TypeError, "outputs is a list"),
        (lambda: rgo_jax.curvature_output(LOGITS, np.array(["a", "b"])), TypeError, "targets has"),
        (lambda: consolidated(one_batch(), block_size=64.0), ValueError, "block_size is 64.0"),
        (lambda: rgo_jax.fel_encode(LOGITS, "0"), TypeError, "task_id is '0'"),
        (lambda: rgo_jax.fel_encode(LOGITS, 0, axis=2), ValueError, "axis is 2"),
        (lambda: rgo_jax.ProjectionSpec(axes=1.5), TypeError, "axes is 1.5"),
        (lambda: rgo_jax.ProjectionSpec(blocks=2.0), TypeError, "blocks is 2.0"),
        (lambda: rgo_jax.rgo(0.1, max_fan_in=0).init(W), ValueError, "max_fan_in is 0"),
        (lambda: rgo_jax.rgo(None), ValueError, "learning_rate is None"),
        (lambda: rgo_jax.average_accuracy([[0.9], [0.8, 0.9]]), ValueError, "R has no shape"),
        (lambda: rgo_jax.backward_transfer(np.eye(2) * 1j), ValueError, "expected real"),
    ],
)
def test_errors_name_the_argument(call, error, match):
    with pytest.raises(error, match=match):
        call()


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "uint32", "int32", "float16"])
def test_metrics_of_whole_percents(dtype):
    """Unsigned differences would wrap."""
    r = np.array([[90, 0, 0], [60, 80, 0], [40, 75, 85]], dtype)
    np.testing.assert_allclose(rgo_jax.backward_transfer(r), (-50 - 5) / 2)
    np.testing.assert_allclose(rgo_jax.average_accuracy(r), 200 / 3, rtol=1e-6)


def test_tree_map_params_with_specs():
    """Which parts of a state are like the parameters: optax asks without any parameters."""
    params = {"query": jnp.zeros((4, 2, 3)), "bias": jnp.zeros(3)}
    tx = rgo_jax.rgo(0.1, momentum=0.9, specs={"query": rgo_jax.ProjectionSpec(axes=0)})
    marked = optax.tree.map_params(tx, lambda leaf: "like", tx.init(params))
    rgo, momentum = marked[0], marked[1]
    assert jax.tree.leaves((rgo.projection, rgo.energy, momentum.trace)) == ["like"] * 6
    assert isinstance(rgo.num_updates, jax.Array)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Scale:
    value: object


def test_a_module_that_a_filter_has_emptied():
    params = {"frozen": Scale(None), "w": jnp.zeros((3, 2))}
    tx = rgo_jax.rgo(0.1)
    opt_state = tx.init(params)
    grads = {"frozen": Scale(None), "w": jnp.ones((3, 2))}
    updates, opt_state = tx.update(grads, rgo_jax.rls_update(opt_state, grads), params)
    assert updates["frozen"] == Scale(None)
    assert list(rgo_jax.projection_memory(params)) == ["w"]
    assert float(jnp.trace(opt_state[0].projection["w"])) < 3
