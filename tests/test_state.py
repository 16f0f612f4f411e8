"""RgoState knows its parameters, and goes through what states go through."""

import pickle

import chex
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint
import pytest
from flax import nnx, serialization

import rgo_jax
import rgo_jax.nnx

PARAMS = {"a": {"kernel": jnp.ones((6, 2, 3)), "bias": jnp.ones(3)}, "none": None}
TX = rgo_jax.rgo(0.1, 0.9, specs={"a": {"kernel": rgo_jax.ProjectionSpec(axes=(2, 0))}})
GRADS = jax.tree.map(lambda p: 0.3 * p, PARAMS)


@pytest.fixture(scope="module")
def state():
    return rgo_jax.rls_update(TX.init(PARAMS), GRADS)


def by_orbax(state, fresh, folder):
    with orbax.checkpoint.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / "state", {"opt_state": state})
        checkpointer.wait_until_finished()
        shapes = jax.eval_shape(lambda: {"opt_state": fresh})
        return checkpointer.restore(folder / "state", shapes)["opt_state"]


ROUNDS = {
    "pickle": lambda state, fresh, folder: pickle.loads(pickle.dumps(state)),
    "flax": lambda state, fresh, folder: serialization.from_bytes(
        fresh, serialization.to_bytes(state)
    ),
    "orbax": by_orbax,
    "a map": lambda state, fresh, folder: jax.tree.map(lambda leaf: 1 * leaf, state),
    "leaves": lambda state, fresh, folder: jax.tree.unflatten(
        jax.tree.structure(fresh), jax.tree.leaves(state)
    ),
}


# Of orbax, where it reads where arrays lay from the checkpoint.
@pytest.mark.filterwarnings("ignore:Sharding info not provided when restoring")
@pytest.mark.parametrize("name", ROUNDS)
def test_what_comes_back_is_the_same_state(name, state, tmp_path):
    back = ROUNDS[name](state, TX.init(PARAMS), tmp_path)
    assert jax.tree.structure(back) == jax.tree.structure(state)
    chex.assert_trees_all_equal(back, state)
    assert rgo_jax.projection_stats(back)["a/kernel"].dim == 18
    chex.assert_trees_all_equal(TX.update(GRADS, back), TX.update(GRADS, state))


def test_an_nnx_optimizer_that_is_split_and_filled():
    def make(seed):
        model = nnx.Linear(4, 3, rngs=nnx.Rngs(seed))
        return model, nnx.Optimizer(model, rgo_jax.rgo(0.1, 0.9), wrt=nnx.Param)

    def fold(model, optimizer):
        def output(model, x):
            return rgo_jax.curvature_output(model(x), jnp.zeros(2, jnp.int32))

        rgo_jax.nnx.consolidate(model, optimizer, output, jnp.ones((3, 2, 4)))

    (model, optimizer), (other_model, other) = make(0), make(0)
    fold(model, optimizer)
    graph, kept = nnx.split(optimizer)
    merged = nnx.merge(graph, kept)
    nnx.update(other, kept)
    for found in (merged, other):
        assert rgo_jax.projection_stats(found.opt_state)["kernel"].dim == 4
        fold(other_model, found)
        assert int(found.opt_state[0].num_updates[...]) == 6


def test_states_stacked_by_vmap(state):
    """The arrays have one more axis, what is known of the parameters has not."""
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), (state, GRADS))
    many = jax.vmap(lambda s, g: rgo_jax.rls_update(s, g))(*stacked)
    one = rgo_jax.rls_update(state, GRADS)
    assert jax.tree.structure(many) == jax.tree.structure(one)
    np.testing.assert_allclose(
        many[0].projection["a"]["kernel"][1], one[0].projection["a"]["kernel"], atol=1e-6
    )
    with pytest.raises(ValueError, match=r"'a/bias' has shape \(2, 3\).*under the same jax.vmap"):
        rgo_jax.rls_update(*stacked)


@pytest.mark.parametrize("count", [5, 8])
def test_gradients_of_single_examples_are_refused(count):
    """Also where their number is the fan-in."""
    params = jnp.ones((8, 4))
    tx = rgo_jax.rgo(0.1)
    opt_state, stack = tx.init(params), jnp.ones((count, 8, 4))
    match = rf"has shape \({count}, 8, 4\).*parameter has shape \(8, 4\).*mean of gradients"
    for call in (
        lambda: rgo_jax.rls_update(opt_state, stack),
        lambda: rgo_jax.consolidate(opt_state, lambda g: g, stack[None]),
        lambda: tx.update(stack, opt_state),
        lambda: tx.update(rgo_jax.ProjectedGradient(stack), opt_state),
        lambda: rgo_jax.value_and_grad(jnp.sum, opt_state)(stack),
    ):
        with pytest.raises(ValueError, match=match):
            call()


def test_a_leaf_of_another_shape_with_the_same_fan_in():
    opt_state = rgo_jax.rgo(0.1).init(jnp.ones((4, 3, 2)))
    for shape in ((12, 2), (3, 4, 2), (4, 3, 5)):
        with pytest.raises(ValueError, match="has shape"):
            rgo_jax.rls_update(opt_state, jnp.ones(shape))
