"""`next_task`: P stays bit for bit, all else of an optimizer is as fresh."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from flax import nnx

import rgo_jax
import rgo_jax.nnx
from rgo_jax import RgoState
from tests.marks import slow_but

PARAMS = {"body": {"kernel": jnp.ones((4, 3)), "bias": jnp.ones(3)}, "head": jnp.ones((3, 2))}
BODY = {"body": True, "head": False}
DECAY = optax.linear_schedule(0.3, 0.0, 20)


def sgd(**options):
    return rgo_jax.rgo(DECAY, momentum=0.9, **options)


def schedule_free():
    inner = optax.chain(rgo_jax.scale_by_rgo(), optax.scale_by_learning_rate(0.1))
    return optax.contrib.schedule_free(inner, learning_rate=0.1, b1=0.9)


TRANSFORMS = {
    "momentum": sgd(),
    "Adam": optax.chain(
        optax.scale_by_adam(), rgo_jax.scale_by_rgo(), optax.scale_by_learning_rate(DECAY)
    ),
    "ema": optax.chain(rgo_jax.scale_by_rgo(), optax.ema(0.9), optax.scale_by_learning_rate(0.1)),
    "MultiSteps": optax.MultiSteps(sgd(), every_k_schedule=2),
    "inject_hyperparams": optax.inject_hyperparams(rgo_jax.rgo)(DECAY, momentum=0.9),
    "masked": optax.chain(optax.masked(rgo_jax.scale_by_rgo(), BODY), optax.sgd(DECAY, 0.9)),
    "partition": optax.partition(
        {True: sgd(), False: sgd(nesterov=True)},
        lambda params: {name: BODY[name] for name in params},
    ),
    "apply_if_finite": optax.apply_if_finite(sgd(), max_consecutive_errors=3),
    "schedule-free": schedule_free(),
}


def steps(tx, params, state, count=3):
    for _ in range(count):
        updates, state = tx.update(jax.tree.map(lambda p: 0.5 * p, params), state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def a_task(tx, params, state):
    params, state = steps(tx, params, state)
    return params, rgo_jax.rls_update(state, params)


def of_rgo(state):
    """The `RgoState`s, and the leaves of all else."""
    nodes = jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, RgoState))
    mine = [node for node in nodes if isinstance(node, RgoState)]
    return mine, [node for node in nodes if not isinstance(node, RgoState)]


def moved(tx, params, state):
    """How far gradients of zero move the parameters, in one real step."""
    before, zeros = params, jax.tree.map(jnp.zeros_like, params)
    for _ in range(2):
        updates, state = tx.update(zeros, state, params)
        params = optax.apply_updates(params, updates)
    change = jax.tree.map(lambda a, b: np.abs(a - b).max(), params, before)
    return max(jax.tree.leaves(change))


@pytest.mark.parametrize(
    "name", slow_but(TRANSFORMS, "momentum", "Adam", "MultiSteps", "inject_hyperparams", "masked")
)
def test_all_but_p_is_as_fresh(name):
    tx = TRANSFORMS[name]
    params, state = a_task(tx, PARAMS, tx.init(PARAMS))
    kept, _ = of_rgo(state)
    assert moved(tx, params, state) > 1e-2

    after = rgo_jax.next_task(tx, state, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(after, state)
    mine, anew = of_rgo(after)
    assert all(int(one.num_updates) == 1 for one in mine)
    chex.assert_trees_all_equal(mine, kept)
    fresh = tx.init(params)
    if name == "inject_hyperparams":  # The rate of the last step, until the next computes its own.
        fresh = fresh._replace(hyperparams=state.hyperparams)
    chex.assert_trees_all_equal(anew, of_rgo(fresh)[1])
    np.testing.assert_allclose(moved(tx, params, after), 0, atol=1e-6)


@pytest.mark.parametrize("name", ["momentum", "inject_hyperparams"])
def test_the_first_step_of_a_task_is_that_of_sgd_at_the_first_rate(name):
    tx = TRANSFORMS[name]
    params, state = a_task(tx, PARAMS, tx.init(PARAMS))
    updates, _ = tx.update(params, rgo_jax.next_task(tx, state, params), params)
    only = rgo_jax.scale_by_rgo()
    expected, _ = only.update(params, of_rgo(state)[0][0])
    chex.assert_trees_all_close(updates, jax.tree.map(lambda g: -0.3 * g, expected), rtol=1e-6)


def test_what_is_set_by_hand_and_random_keys_are_kept():
    @optax.inject_hyperparams
    def noisy(learning_rate):
        noise = optax.add_noise(eta=0.1, gamma=0.5, key=jax.random.key(3))
        return optax.chain(rgo_jax.rgo(learning_rate), noise)

    tx = noisy(0.1)
    state = tx.init(PARAMS)
    state.hyperparams["learning_rate"] = jnp.asarray(0.025)
    params, state = a_task(tx, PARAMS, state)
    after = rgo_jax.next_task(tx, state, params)
    assert float(after.hyperparams["learning_rate"]) == np.float32(0.025)
    noise, fresh = after.inner_state[1], tx.init(params).inner_state[1]
    assert int(noise.count) == int(after.count) == 0
    chex.assert_trees_all_equal(noise.rng_key, state.inner_state[1].rng_key)
    first, again = (tx.update(params, each, params)[0] for each in (after, tx.init(params)))
    assert jnp.any(noise.rng_key != fresh.rng_key)
    assert np.abs(first["head"] - again["head"]).max() > 1e-2


def test_dtypes_that_training_has_changed():
    """The momentum of bfloat16 parameters becomes as wide as their gradients."""
    tx = rgo_jax.rgo(0.1, momentum=0.9)
    params = jnp.ones((4, 3), jnp.bfloat16)
    _, state = tx.update(jnp.ones((4, 3), jnp.float32), tx.init(params))
    assert tx.init(params)[1].trace.dtype == jnp.bfloat16
    after = rgo_jax.next_task(tx, state, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(after, state)
    assert after[1].trace.dtype == jnp.float32


def test_arrays_lie_where_they_lay(compilations):
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    tx = rgo_jax.rgo(DECAY, momentum=0.9)
    shardings = rgo_jax.projection_sharding(jax.eval_shape(tx.init, PARAMS), mesh, "data")
    state = jax.jit(tx.init, out_shardings=shardings)(PARAMS)
    step = jax.jit(lambda state: tx.update(PARAMS, state)[1], out_shardings=shardings)
    state = step(step(state))
    after = rgo_jax.next_task(tx, state, PARAMS)
    # Not even copies, which take memory.
    assert after[0].projection["head"] is state[0].projection["head"]
    assert jax.tree.map(lambda leaf: leaf.sharding, after) == shardings
    with compilations() as again:
        step(after)
    assert again.count == 0


def test_under_jit_vmap_and_scan():
    tx = optax.chain(
        optax.scale_by_adam(), rgo_jax.scale_by_rgo(), optax.trace(0.9), optax.scale(-0.1)
    )

    def task(carry, _=None):
        params, state = a_task(tx, *carry)
        return (params, rgo_jax.next_task(tx, state, params)), None

    def two_tasks(kernel):
        return jax.lax.scan(task, (kernel, tx.init(kernel)), length=2)[0]

    kernels = jax.random.normal(jax.random.key(0), (3, 4, 2))
    found = jax.jit(jax.vmap(two_tasks))(kernels)
    one, _ = task(task((kernels[1], tx.init(kernels[1])))[0])
    chex.assert_trees_all_close(jax.tree.map(lambda leaf: leaf[1], found), one, atol=1e-5)
    assert int(found[1][1].num_updates[1]) == 2
    assert not any(np.any(leaf) for leaf in jax.tree.leaves((found[1][0], found[1][2])))


def stacked():
    tx = rgo_jax.rgo(0.1, momentum=0.9)
    params = jnp.ones((2, 4, 3))
    return tx, jax.vmap(tx.init)(params), params


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (lambda: (optax.sgd(0.1), optax.sgd(0.1).init(PARAMS), PARAMS), "No RgoState"),
        (
            lambda: (rgo_jax.rgo(0.1), TRANSFORMS["momentum"].init(PARAMS), PARAMS),
            r"has shape \(3,\) at '1/trace/body/bias', but tx.init .* has nothing there. Pass",
        ),
        (
            lambda: (TRANSFORMS["momentum"], TRANSFORMS["momentum"].init(PARAMS), PARAMS["body"]),
            "'0/projection/body/bias', but tx.init for these parameters has nothing there",
        ),
        (stacked, r"has shape \(2,\) at '0/num_updates'.* has shape \(\) .*same jax.vmap"),
        (
            lambda: (rgo_jax.rgo(0.1), list(rgo_jax.rgo(0.1).init(PARAMS)), PARAMS),
            "other containers",
        ),
    ],
)
def test_states_that_do_not_belong(arguments, match):
    with pytest.raises(ValueError, match=match):
        rgo_jax.next_task(*arguments())


def test_a_stacked_state_under_vmap():
    tx, state, params = stacked()
    after = jax.vmap(lambda state, params: rgo_jax.next_task(tx, state, params))(state, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(after, state)


@pytest.mark.parametrize("name", slow_but(["momentum", "Adam", "MultiSteps"], "momentum"))
@pytest.mark.parametrize("jit", [False, True])
def test_nnx(name, jit):
    model = rgo_jax.nnx.Linear(4, 3, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, TRANSFORMS[name], wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, scale):
        grads = nnx.grad(lambda model: scale * (model(jnp.ones((2, 4))) ** 2).sum())(model)
        optimizer.update(model, grads)

    def output(model, batch):
        return rgo_jax.curvature_output(model(batch), jnp.zeros(2, jnp.int32))

    def values(optimizer):
        """By path; copies, as arrays are set in place."""
        flat, _ = jax.tree_util.tree_flatten_with_path(nnx.state(optimizer.opt_state))
        return {jax.tree_util.keystr(path): jnp.copy(leaf) for path, leaf in flat}

    for _ in range(3):
        step(model, optimizer, 0.1)
    rgo_jax.nnx.consolidate(model, optimizer, output, jnp.ones((3, 2, 4)))
    before, kernel = values(optimizer), jnp.copy(model.kernel[...])
    next_task = nnx.jit(rgo_jax.nnx.next_task) if jit else rgo_jax.nnx.next_task
    next_task(model, optimizer)
    after, fresh = values(optimizer), values(nnx.Optimizer(model, TRANSFORMS[name], wrt=nnx.Param))
    of_rgo = [path for path in after if any(f"'{field}'" in path for field in RgoState._fields)]
    assert len(of_rgo) == 7  # the count of batches, and three for each parameter
    expected = fresh | {path: before[path] for path in of_rgo}
    chex.assert_trees_all_equal_shapes_and_dtypes(after, before)
    chex.assert_trees_all_equal(after, expected)
    assert int(optax.tree.get(optimizer.opt_state, "num_updates")[...]) == 3
    assert int(optimizer.step[...]) == 3
    for _ in range(2):
        step(model, optimizer, 0.0)
    chex.assert_trees_all_equal(model.kernel[...], kernel)
