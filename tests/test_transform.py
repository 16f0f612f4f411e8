from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rgo_jax
from tests import oracle


def params_tree():
    keys = iter(jax.random.split(jax.random.key(0), 4))
    return {
        "dense": {
            "kernel": jax.random.normal(next(keys), (5, 3)),
            "bias": jax.random.normal(next(keys), (3,)),
        },
        "conv": {"kernel": jax.random.normal(next(keys), (2, 2, 3, 4))},
    }


def test_a_fresh_state_has_counted_nothing():
    params = params_tree()
    state = rgo_jax.scale_by_rgo().init(params)
    for counted, shape, dtype in (
        ({"": state.num_updates}, (), "int32"),
        (state.num_skipped, (), "int32"),
        (state.energy, (2,), "float32"),
    ):
        leaves = jax.tree.leaves(counted)
        assert {(leaf.shape, str(leaf.dtype)) for leaf in leaves} == {(shape, dtype)}
        assert not any(leaf.any() for leaf in leaves)
    assert jax.tree.structure(state.num_skipped) == jax.tree.structure(params)
    assert jax.tree.structure(state.energy) == jax.tree.structure(params)


def test_is_sgd_bitwise_before_the_first_update():
    params = params_tree()
    ours, sgd = rgo_jax.rgo(0.1), optax.sgd(0.1)
    updates, _ = jax.jit(ours.update)(params, ours.init(params), params)
    expected, _ = jax.jit(sgd.update)(params, sgd.init(params), params)
    jax.tree.map(np.testing.assert_array_equal, updates, expected)


@pytest.mark.parametrize("scale", [1e-4, 3.0, 1e4])
def test_scale_of_the_projection_does_not_matter(scale):
    with oracle.enable_x64():  # small components of P g are differences
        params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), params_tree())
        tx = rgo_jax.scale_by_rgo()
        state = rgo_jax.rls_update(tx.init(params), params)
        scaled = state._replace(projection=jax.tree.map(lambda p: scale * p, state.projection))
        expected, _ = tx.update(params, state)
        updates, _ = tx.update(params, scaled)
        close = partial(np.testing.assert_allclose, rtol=1e-10)
        jax.tree.map(close, updates, expected)
        assert np.abs(expected["dense"]["kernel"] - params["dense"]["kernel"]).max() > 0.1


@pytest.mark.parametrize("form", ["full", "blocks", "diagonal"])
def test_without_the_trace_rule(form):
    specs = {
        "full": None,
        "blocks": rgo_jax.ProjectionSpec(blocks=2),
        "diagonal": rgo_jax.ProjectionSpec(diagonal=True),
    }[form]
    params = jnp.ones((6, 3))
    tx = rgo_jax.scale_by_rgo(specs=specs, normalize=False)
    state = rgo_jax.rls_update(tx.init(params), jax.random.normal(jax.random.key(0), (6, 3)))
    grads = jax.random.normal(jax.random.key(1), (6, 3))
    p = np.asarray(state.projection, np.float64)
    if form == "full":
        expected = p @ grads
    elif form == "blocks":
        expected = np.concatenate([p[0] @ grads[:3], p[1] @ grads[3:]])
    else:
        expected = p[:, None] * grads
    assert np.linalg.norm(expected) < 0.95 * np.linalg.norm(grads)
    updates, _ = tx.update(grads, state)
    np.testing.assert_allclose(updates, expected, rtol=1e-5, atol=1e-6)
    # What is projected already is left as it is.
    np.testing.assert_array_equal(tx.update(rgo_jax.ProjectedGradient(updates), state)[0], updates)


@pytest.mark.parametrize("form", ["full", "blocks", "diagonal"])
def test_what_is_projected_is_given_the_trace_rule(form):
    """From ``P g`` the transform makes ``(d / tr P) P g``, of blocks one by one."""
    specs = {
        "full": None,
        "blocks": rgo_jax.ProjectionSpec(blocks=2),
        "diagonal": rgo_jax.ProjectionSpec(diagonal=True),
    }[form]
    grads = jax.random.normal(jax.random.key(1), (6, 3))
    tx = rgo_jax.scale_by_rgo(specs=specs)
    state = rgo_jax.rls_update(tx.init(grads), jax.random.normal(jax.random.key(0), (6, 3)))
    p = np.asarray(state.projection, np.float64)
    by_layers, _ = rgo_jax.scale_by_rgo(specs=specs, normalize=False).update(grads, state)
    updates, _ = tx.update(rgo_jax.ProjectedGradient(by_layers), state)
    if form == "blocks":
        scale = np.repeat([3 / np.trace(block) for block in p], 3)[:, None]
    else:
        scale = 6 / (np.trace(p) if form == "full" else p.sum())
    assert np.min(scale) > 1.05
    np.testing.assert_allclose(updates, scale * by_layers, rtol=1e-5)
    np.testing.assert_allclose(updates, tx.update(grads, state)[0], rtol=1e-5, atol=1e-6)


def test_direction_of_an_old_task_is_protected():
    tx = rgo_jax.scale_by_rgo()
    old = jnp.zeros((6, 2)).at[1].set(1.0)
    state = rgo_jax.rls_update(tx.init(jnp.zeros((6, 2))), old)
    updates, _ = tx.update(jnp.ones((6, 2)), state)
    # v = 1 in that direction: weight 0.01 / (0.01 + 1), times 6 / (5 + 1 / 101).
    np.testing.assert_allclose(updates[1], 6 / (5 + 1 / 101) / 101, rtol=1e-4)
    np.testing.assert_allclose(updates[0], 6 / (5 + 1 / 101), rtol=1e-5)


def test_smaller_alpha_protects_more():
    tx = rgo_jax.scale_by_rgo()
    params = jnp.zeros((6, 2))
    old = jnp.zeros((6, 2)).at[1].set(2.0)
    weights = [
        float(tx.update(old, rgo_jax.rls_update(tx.init(params), old, alpha=alpha))[0][1, 0])
        for alpha in (10.0, 1.0, 0.1)
    ]
    assert weights[0] > 2 * weights[1] > 8 * weights[2] > 0


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_low_precision_parameters_have_a_float32_projection(dtype):
    params = jax.tree.map(lambda p: p.astype(dtype), params_tree())
    tx = rgo_jax.scale_by_rgo()
    with jax.numpy_dtype_promotion("strict"):
        state = rgo_jax.rls_update(tx.init(params), params)
        assert {p.dtype for p in jax.tree.leaves(state.projection)} == {jnp.dtype("float32")}
        updates, _ = tx.update(params, state)
        assert rgo_jax.projection_memory(params) == rgo_jax.projection_memory(params_tree())
    assert {u.dtype for u in jax.tree.leaves(updates)} == {jnp.dtype(dtype)}
    p = oracle.projection([np.asarray(params["dense"]["kernel"], np.float32)])
    expected = oracle.modified_gradient(p, np.asarray(params["dense"]["kernel"], np.float32))
    np.testing.assert_allclose(
        np.asarray(updates["dense"]["kernel"], np.float32), expected, rtol=2e-2, atol=2e-2
    )


def test_projected_leaf_by_leaf():
    params = {"a": jnp.ones((3, 2)), "b": jnp.ones((3, 2))}
    tx = rgo_jax.scale_by_rgo()
    state = rgo_jax.rls_update(tx.init(params), params)
    all_by_transform, _ = tx.update(params, state)
    by_layers, _ = rgo_jax.scale_by_rgo(normalize=False).update(params, state)
    given = {"a": rgo_jax.ProjectedGradient(by_layers["a"]), "b": params["b"]}
    mixed, _ = tx.update(given, state, params)
    jax.tree.map(np.testing.assert_array_equal, mixed, all_by_transform)
    assert np.abs(mixed["a"] - params["a"]).max() > 0.1
    assert np.abs(mixed["a"] - by_layers["a"]).max() > 1e-3  # the trace rule


def test_works_under_jit_vmap_and_scan_alike():
    tx = rgo_jax.rgo(0.1)
    grads = jax.random.normal(jax.random.key(3), (4, 5, 3))

    def two_steps(grad):
        state = rgo_jax.rls_update(tx.init(grad), grad)
        state = rgo_jax.consolidate(state, lambda g: g, jnp.stack([grad, 2 * grad]))
        return tx.update(grad, state)[0]

    plain = jnp.stack([two_steps(grad) for grad in grads])
    assert np.abs(plain + 0.1 * grads).max() > 0.01  # projected
    np.testing.assert_allclose(jax.jit(jax.vmap(two_steps))(grads), plain, rtol=1e-4, atol=1e-6)
    _, scanned = jax.lax.scan(lambda _, grad: (None, two_steps(grad)), None, grads)
    np.testing.assert_allclose(scanned, plain, rtol=1e-4, atol=1e-6)


def test_rls_update_compiles_once(compilations):
    params = params_tree()
    tx = rgo_jax.rgo(0.1)
    state = rgo_jax.rls_update(tx.init(params), params, alpha=1.0)
    with compilations() as later:
        rgo_jax.rls_update(state, params, alpha=0.5)
    assert later.count == 0
    with compilations() as other:
        rgo_jax.rls_update(tx.init({"w": jnp.zeros((3, 7))}), {"w": jnp.ones((3, 7))})
    assert other.count > 0  # the counter counts


def test_rls_update_is_pure():
    params = params_tree()
    state = rgo_jax.rgo(0.1).init(params)
    before = jax.tree.map(np.array, state)
    rgo_jax.rls_update(state, params)
    jax.tree.map(np.testing.assert_array_equal, state, before)


def test_none_leaves_are_passed_over():
    params = {"w": jnp.ones((3, 2)), "absent": None}
    tx = rgo_jax.scale_by_rgo()
    state = rgo_jax.rls_update(tx.init(params), params, alpha=0.25)
    updates, _ = tx.update(params, state)
    assert updates["absent"] is None
    # v = (1, 1, 1), so P maps it to v / 13, and the trace rule multiplies by 3 / (2 + 1 / 13).
    np.testing.assert_allclose(updates["w"], 3 / (2 + 1 / 13) / 13, rtol=1e-5)


def test_memory_is_known_before_training_and_matches_the_state():
    params = params_tree()
    shapes = jax.eval_shape(lambda: params)
    memory = rgo_jax.projection_memory(shapes)
    state = rgo_jax.scale_by_rgo().init(params)
    assert memory == {
        "conv/kernel": 12 * 12 * 4 / 2**20,
        "dense/bias": 3 * 3 * 4 / 2**20,
        "dense/kernel": 5 * 5 * 4 / 2**20,
    }
    assert sum(memory.values()) == sum(p.nbytes for p in jax.tree.leaves(state.projection)) / 2**20


def test_memory_of_what_jax_makes_of_numpys_float64():
    params = {"w": np.zeros((512, 3))}
    (kept,) = jax.tree.leaves(rgo_jax.scale_by_rgo().init(params).projection)
    assert rgo_jax.projection_memory(params) == {"w": kept.nbytes / 2**20}


class TestErrors:
    def test_scalar_leaf(self):
        with pytest.raises(ValueError, match=r"'layer/scale' has shape \(\).*optax.masked"):
            rgo_jax.scale_by_rgo().init({"layer": {"scale": jnp.zeros(())}})
        with pytest.raises(ValueError, match="'scale' has shape"):
            rgo_jax.projection_memory({"scale": jnp.zeros(())})

    @pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0)])
    def test_leaf_without_numbers(self, shape):
        with pytest.raises(ValueError, match=r"'w' has shape .*holds no numbers.*optax.masked"):
            rgo_jax.scale_by_rgo().init({"w": jnp.zeros(shape)})

    @pytest.mark.parametrize("dtype", [jnp.int32, jnp.complex64, bool])
    def test_leaf_that_is_not_real_floating_point(self, dtype):
        with pytest.raises(TypeError, match=r"'table' has dtype \w+.*optax.masked"):
            rgo_jax.scale_by_rgo().init({"table": jnp.zeros((3, 2), dtype)})

    def test_fan_in_beyond_the_limit(self):
        params = {"embed": jax.ShapeDtypeStruct((20_000, 8), jnp.float32)}
        with pytest.raises(ValueError, match=r"'embed'.*fan-in 20000.*1526 MiB.*max_fan_in"):
            jax.eval_shape(rgo_jax.scale_by_rgo().init, params)
        params = {"embed": jax.ShapeDtypeStruct((20_000, 8), np.float64)}
        with oracle.enable_x64(), pytest.raises(ValueError, match="3052 MiB"):
            jax.eval_shape(rgo_jax.scale_by_rgo().init, params)
        with pytest.raises(ValueError, match="fan-in 5, above max_fan_in=4"):
            rgo_jax.rgo(0.1, max_fan_in=4).init(jnp.zeros((5, 2)))
        jax.eval_shape(rgo_jax.scale_by_rgo(max_fan_in=20_000).init, params)

    @pytest.mark.parametrize("fold", [rgo_jax.rls_update, "consolidate"])
    def test_no_state_to_update(self, fold):
        state = optax.adam(0.1).init(jnp.zeros(3))
        if fold == "consolidate":
            with pytest.raises(ValueError, match=r"No RgoState.*tuple.*scale_by_rgo"):
                rgo_jax.consolidate(state, lambda g: g, jnp.ones((2, 3)))
        else:
            with pytest.raises(ValueError, match=r"No RgoState.*tuple.*scale_by_rgo"):
                fold(state, jnp.zeros(3))
        with pytest.raises(ValueError, match="No RgoState"):
            rgo_jax.projection_stats(state)

    def test_grads_that_do_not_match(self):
        tx = rgo_jax.rgo(0.1)
        state = tx.init({"a": jnp.zeros((3, 2)), "b": jnp.zeros(2)})
        with pytest.raises(ValueError, match=r"grads have no leaf 'b'.*'a', 'c'"):
            rgo_jax.rls_update(state, {"a": jnp.zeros((3, 2)), "c": jnp.zeros(2)})
        with pytest.raises(
            ValueError, match=r"'a' has shape \(4, 2\).*parameter has shape \(3, 2\)"
        ):
            rgo_jax.rls_update(state, {"a": jnp.zeros((4, 2)), "b": jnp.zeros(2)})
        with pytest.raises(ValueError, match=r"'b' has shape \(\)"):
            rgo_jax.rls_update(state, {"a": jnp.zeros((3, 2)), "b": jnp.zeros(())})
        with pytest.raises(ValueError, match="gradients have no leaf 'b'"):
            tx.update({"a": jnp.zeros((3, 2))}, state)
        params = {"a": jnp.zeros((3, 2)), "b": jnp.zeros(2)}
        with pytest.raises(ValueError, match=r"'b' has shape \(2, 1\), but the parameter has"):
            tx.update(params | {"b": jnp.zeros((2, 1))}, state, params)
        extra = {"a": jnp.zeros((3, 2)), "b": jnp.zeros(2), "c": jnp.zeros(2)}
        with pytest.raises(ValueError, match="leaf 'c' for which the RgoState has no projection"):
            tx.update(extra, state)

    @pytest.mark.parametrize(
        "batches", [(), (jnp.ones((2, 3)), jnp.ones(3)), jnp.ones(()), jnp.ones((0, 3))]
    )
    def test_batches_without_a_common_leading_axis(self, batches):
        state = rgo_jax.rgo(0.1).init(jnp.zeros(3))
        with pytest.raises(ValueError, match=r"batches has leaves.*num_batches"):
            rgo_jax.consolidate(state, lambda g: jnp.zeros(3), batches)

    @pytest.mark.parametrize("block_size", [0, -1, 1.5, None])
    def test_block_size_that_is_none(self, block_size):
        state = rgo_jax.rgo(0.1).init(jnp.zeros(3))
        match = f"block_size is {block_size}; expected an integer, 1 or more"
        with pytest.raises(ValueError, match=match):
            rgo_jax.consolidate(state, lambda g: g, jnp.ones((2, 3)), block_size=block_size)
