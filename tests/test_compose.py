"""Every optax wrapper around `scale_by_rgo`: same numbers, consolidation finds the state."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rgo_jax
from tests import oracle

PARAMS = {
    "body": {"kernel": jnp.ones((4, 3)), "bias": jnp.zeros((3,))},
    "head": {"kernel": jnp.ones((3, 2))},
}
LR = 0.1
ALPHA = 0.1


def labels(params):
    return {name: "sgd" if name == "head" else "rgo" for name in params}


BODY = {"body": True, "head": False}
plain = rgo_jax.rgo(LR)

# name -> (transform, whether the head is under RGO, calls of update for one real step)
WRAPPERS = {
    "bare": (rgo_jax.rgo(LR), True, 1),
    "chain": (optax.chain(optax.clip(1e9), rgo_jax.rgo(LR), optax.identity()), True, 1),
    "named_chain": (optax.named_chain(("rgo", plain), ("identity", optax.identity())), True, 1),
    "masked": (
        optax.chain(optax.masked(rgo_jax.scale_by_rgo(), BODY), optax.sgd(LR)),
        False,
        1,
    ),
    "masked by a callable": (
        optax.chain(optax.masked(rgo_jax.scale_by_rgo(), lambda _: BODY), optax.sgd(LR)),
        False,
        1,
    ),
    "partition": (optax.partition({"rgo": plain, "sgd": optax.sgd(LR)}, labels), False, 1),
    "partition into two": (
        optax.partition({"rgo": rgo_jax.rgo(LR), "sgd": rgo_jax.rgo(LR)}, labels),
        True,
        1,
    ),
    "inject_hyperparams": (optax.inject_hyperparams(rgo_jax.rgo)(learning_rate=LR), True, 1),
    "inject_hyperparams, schedule": (
        optax.inject_hyperparams(rgo_jax.rgo)(learning_rate=optax.constant_schedule(LR)),
        True,
        1,
    ),
    "inject_hyperparams, static limit": (
        optax.inject_hyperparams(rgo_jax.rgo, static_args="max_fan_in")(LR, max_fan_in=9),
        True,
        1,
    ),
    "MultiSteps": (optax.MultiSteps(plain, every_k_schedule=2), True, 2),
    "apply_if_finite": (optax.apply_if_finite(plain, max_consecutive_errors=3), True, 1),
    "conditionally_transform": (
        optax.chain(
            optax.conditionally_transform(rgo_jax.scale_by_rgo(), lambda step, **_: step >= 0),
            optax.scale_by_learning_rate(LR),
        ),
        True,
        1,
    ),
    "nested": (
        optax.chain(
            optax.MultiSteps(
                optax.apply_if_finite(
                    optax.partition(
                        {
                            "rgo": optax.inject_hyperparams(rgo_jax.rgo)(learning_rate=LR),
                            "sgd": optax.sgd(LR),
                        },
                        labels,
                    ),
                    3,
                ),
                2,
            ).gradient_transformation()
        ),
        False,
        2,
    ),
}


def grads_of(seed):
    keys = jax.random.split(jax.random.key(seed), len(jax.tree.leaves(PARAMS)))
    leaves, treedef = jax.tree.flatten(PARAMS)
    return treedef.unflatten(
        [jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves, strict=True)]
    )


def run(tx, calls):
    """A step, a consolidation of three batches, one more batch, and a step."""

    @jax.jit
    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    @jax.jit
    def end_of_task(state):
        batches = jax.tree.map(lambda *xs: jnp.stack(xs), *map(grads_of, range(3)))
        return rgo_jax.consolidate(state, lambda g: g, batches, alpha=ALPHA)

    params, state = PARAMS, jax.jit(tx.init)(PARAMS)
    for seed in (10, 11):
        for _ in range(calls):
            params, state = step(params, state, grads_of(seed))
        state = end_of_task(state)
        state = rgo_jax.rls_update(state, grads_of(4), alpha=ALPHA)
    return params, state, (step, end_of_task)


# The wrappers that people use most.
COMMON = ("chain", "masked", "inject_hyperparams", "MultiSteps")


def slow_unless(name, names):
    return name if name in names else pytest.param(name, marks=pytest.mark.slow)


@pytest.mark.parametrize("name", [slow_unless(name, COMMON) for name in WRAPPERS])
def test_wrapper(name, compilations):
    tx, head_too, calls = WRAPPERS[name]
    reference = rgo_jax.rgo(LR)
    expected, expected_state, _ = run(reference, 1)
    params, state, (step, end_of_task) = run(tx, calls)

    # What RGO covers went as under plain RGO, and not as under SGD.
    covered = ["body", "head"] if head_too else ["body"]
    sgd, _, _ = run(
        optax.chain(optax.sgd(LR), reference._replace(update=lambda g, s, p: (g, s))), 1
    )
    for part in covered:
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
            params[part],
            expected[part],
        )
    assert np.abs(params["body"]["kernel"] - sgd["body"]["kernel"]).max() > 1e-2
    if not head_too:
        np.testing.assert_allclose(params["head"]["kernel"], sgd["head"]["kernel"], rtol=1e-6)

    # The projections are those of plain RGO, for what is covered and nothing else.
    stats = rgo_jax.projection_stats(state)
    expected_stats = rgo_jax.projection_stats(expected_state)
    assert set(stats) == {k for k in expected_stats if k.split("/")[0] in covered}
    for key, value in stats.items():
        np.testing.assert_allclose(value.trace, expected_stats[key].trace, rtol=1e-5)

    # The same program serves the next steps and the next task.
    grads, more = grads_of(12), grads_of(5)
    with compilations() as again:
        params, state = step(params, state, grads)
        end_of_task(state)
        rgo_jax.rls_update(state, more)
    assert again.count == 0


# name -> transform for projected gradients
OF_PROJECTED = {
    "chain": lambda **o: optax.chain(optax.clip_by_global_norm(1e9), rgo_jax.rgo(LR, **o)),
    "named_chain": lambda **o: optax.named_chain(("rgo", rgo_jax.rgo(LR, **o))),
    "masked": lambda **o: optax.chain(optax.masked(rgo_jax.scale_by_rgo(**o), BODY), optax.sgd(LR)),
    "partition": lambda **o: optax.partition(
        {"rgo": rgo_jax.rgo(LR, **o), "sgd": rgo_jax.rgo(LR, **o)}, labels
    ),
    "inject_hyperparams": lambda **o: optax.inject_hyperparams(rgo_jax.rgo)(LR, **o),
    "checks after it": lambda **o: optax.chain(
        rgo_jax.scale_by_rgo(**o), optax.apply_if_finite(optax.sgd(LR), 3)
    ),
}


@pytest.mark.parametrize("name", OF_PROJECTED)
@pytest.mark.parametrize("normalize", [True, False])
def test_projected_gradients_get_the_trace_rule_alone_under_every_wrapper(name, normalize):
    tx = OF_PROJECTED[name](normalize=normalize)
    body_only = name == "masked"

    def marked(grads):
        return {
            part: leaf
            if body_only and part == "head"
            else jax.tree.map(rgo_jax.ProjectedGradient, leaf)
            for part, leaf in grads.items()
        }

    marking = optax.GradientTransformationExtraArgs(
        tx.init, lambda g, s, p=None, **extra: tx.update(marked(g), s, p, **extra)
    )
    params, _, _ = run(marking, 1)

    def trace_rule(*leaves):
        """That of the second step: after the three batches and the one more of the first task."""
        p = oracle.projection(leaves, ALPHA)
        return len(p) / np.trace(p) if normalize else 1.0

    scale = jax.tree.map(trace_rule, *map(grads_of, (0, 1, 2, 4)))
    if body_only:
        scale["head"] = {"kernel": 1.0}
    if normalize:
        assert scale["body"]["kernel"] > 1.5
    expected = jax.tree.map(
        lambda p, a, b, s: p - LR * (a + s * b), PARAMS, grads_of(10), grads_of(11), scale
    )
    rtol = 1e-4 if normalize else 1e-5
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-6), params, expected
    )


def test_consolidate_runs_the_gradient_once_for_all_states():
    tx, *_ = WRAPPERS["partition into two"]
    text = str(
        jax.make_jaxpr(lambda s, x: rgo_jax.consolidate(s, lambda b: jax.tree.map(jnp.sin, b), x))(
            tx.init(PARAMS), jax.tree.map(lambda p: p[None], PARAMS)
        )
    )
    assert text.count("sin ") == len(jax.tree.leaves(PARAMS))


def test_traced_limit_says_what_to_do():
    tx = optax.inject_hyperparams(rgo_jax.rgo)(learning_rate=LR, max_fan_in=9)
    with pytest.raises(TypeError, match="static_args='max_fan_in'"):
        jax.jit(tx.init)(PARAMS)


def test_optax_tree_utilities_see_the_state():
    state = rgo_jax.rls_update(plain.init(PARAMS), grads_of(0))
    projection = optax.tree.get(state, "projection")
    assert jax.tree.structure(projection) == jax.tree.structure(PARAMS)
    doubled = optax.tree.set(state, projection=jax.tree.map(lambda p: 2 * p, projection))
    np.testing.assert_array_equal(
        doubled[0].projection["head"]["kernel"], 2 * projection["head"]["kernel"]
    )
    assert int(optax.tree.get(state, "num_updates")) == 1


def test_projection_after_a_preconditioner_still_protects():
    """After Adam the protected direction is damped; before Adam it would be scaled back up."""
    old = jnp.zeros((4, 3)).at[0].set(10.0)
    grads = jnp.ones((4, 3))

    def ratio(tx):
        state = rgo_jax.rls_update(tx.init(grads), old)
        updates, _ = tx.update(grads, state, grads)
        return float(jnp.abs(updates[0, 0] / updates[1, 0]))

    assert ratio(optax.chain(optax.scale_by_adam(), rgo_jax.scale_by_rgo())) < 0.01
    assert ratio(optax.chain(rgo_jax.scale_by_rgo(), optax.scale_by_adam())) > 0.9
