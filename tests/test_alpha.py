"""The prior: one alpha, or one for each parameter."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import rgo_jax
import rgo_jax.nnx
from tests import oracle

PARAMS = {
    "body": {"kernel": jnp.zeros((5, 3)), "bias": jnp.zeros(3)},
    "head": {"kernel": jnp.zeros((3, 2))},
}
BY_LEAF = {"body": {"kernel": 0.3, "bias": 3.0}, "head": {"kernel": 0.02}}
GRADS = jax.tree.map(lambda p: jax.random.normal(jax.random.key(p.size), (4, *p.shape)), PARAMS)
TX = rgo_jax.rgo(0.1)


def one_by_one(state, grads, **options):
    for index in range(4):
        batch = jax.tree.map(lambda g, index=index: g[index], grads)
        state = rgo_jax.rls_update(state, batch, **options)
    return state


def together(state, grads, **options):
    return rgo_jax.consolidate(state, lambda g: g, grads, **options)


FOLDS = [one_by_one, together]


def projections(state):
    """By the names of the parameters, of a state wrapped however."""
    leaves = jax.tree_util.tree_flatten_with_path(state, is_leaf=is_state)[0]
    found = [leaf.projection for _, leaf in leaves if is_state(leaf)]
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): p
        for projection in found
        for path, p in jax.tree_util.tree_flatten_with_path(projection)[0]
    }


def is_state(node):
    return isinstance(node, rgo_jax.RgoState)


def check(state, **alphas):
    """The projections are the oracle's, each with its own alpha."""
    found = projections(state)
    assert found.keys() == {name.replace("_", "/") for name in alphas}
    for name, alpha in alphas.items():
        layer, parameter = name.split("_")
        expected = oracle.projection(GRADS[layer][parameter], alpha)
        np.testing.assert_allclose(found[f"{layer}/{parameter}"], expected, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("fold", FOLDS)
def test_the_default_is_that_of_the_paper(fold):
    check(fold(TX.init(PARAMS), GRADS), body_kernel=0.01, body_bias=0.01, head_kernel=0.01)


def test_the_default_of_nnx():
    model = nnx.Linear(5, 3, rngs=nnx.Rngs(0))

    def projection(**options):
        optimizer = nnx.Optimizer(model, TX, wrt=nnx.Param)
        rgo_jax.nnx.consolidate(
            model, optimizer, lambda m, x: jnp.sum(m(x)), jnp.eye(5)[:2, None], **options
        )
        return optimizer.opt_state[0].projection["kernel"][...]

    # The columns of the kernel's gradient are the two inputs.
    np.testing.assert_allclose(projection(), oracle.projection_of(np.eye(5)[:2], 0.01), atol=1e-6)
    by_leaf = {"kernel": 0.5, "bias": 0.1}
    expected = oracle.projection_of(np.eye(5)[:2], 0.5)
    np.testing.assert_allclose(projection(alpha=by_leaf), expected, atol=1e-6)


@pytest.mark.parametrize("fold", FOLDS)
def test_each_parameter_may_have_its_own(fold):
    state = fold(TX.init(PARAMS), GRADS, alpha=BY_LEAF)
    check(state, body_kernel=0.3, body_bias=3.0, head_kernel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("columns", ["signs", "each"])
def test_it_is_the_same_alpha_for_all_columns(columns):
    for fold in FOLDS:
        state = fold(TX.init(PARAMS), GRADS, alpha=BY_LEAF, columns=columns)
        for layer, names in BY_LEAF.items():
            for name, alpha in names.items():
                alone = fold(TX.init(PARAMS), GRADS, alpha=alpha, columns=columns)
                np.testing.assert_allclose(
                    state[0].projection[layer][name], alone[0].projection[layer][name], atol=1e-6
                )


@pytest.mark.parametrize("fold", FOLDS)
def test_one_at_a_branch_holds_for_all_below(fold):
    alpha = {"body": np.float32(0.2), "head": {"kernel": jnp.array(2.0)}}
    state = fold(TX.init(PARAMS), GRADS, alpha=alpha)
    check(state, body_kernel=0.2, body_bias=0.2, head_kernel=2.0)


@pytest.mark.parametrize("fold", FOLDS)
@pytest.mark.parametrize("alpha", [BY_LEAF, {"body": BY_LEAF["body"]}])
def test_parameters_that_a_mask_leaves_out_may_be_named(fold, alpha):
    mask = {"body": True, "head": False}
    tx = optax.chain(optax.masked(rgo_jax.scale_by_rgo(), mask), optax.sgd(0.1))
    check(fold(tx.init(PARAMS), GRADS, alpha=alpha), body_kernel=0.3, body_bias=3.0)


@pytest.mark.parametrize("fold", FOLDS)
def test_one_tree_serves_all_parts_of_a_partition(fold):
    tx = optax.partition({"a": rgo_jax.rgo(0.1), "b": rgo_jax.rgo(0.2)}, {"body": "a", "head": "b"})
    state = fold(tx.init(PARAMS), GRADS, alpha=BY_LEAF)
    check(state, body_kernel=0.3, body_bias=3.0, head_kernel=0.02)


@pytest.mark.parametrize("fold", FOLDS)
def test_traced(fold):
    folded = jax.jit(lambda alpha: fold(TX.init(PARAMS), GRADS, alpha=alpha))
    check(folded(BY_LEAF), body_kernel=0.3, body_bias=3.0, head_kernel=0.02)
    check(folded(0.7), body_kernel=0.7, body_bias=0.7, head_kernel=0.7)
    several = jax.vmap(folded)(jnp.array([0.1, 1.0]))
    check(jax.tree.map(lambda x: x[1], several), body_kernel=1, body_bias=1, head_kernel=1)


def test_boxes_around_parameters_leave_no_trace():
    init = nn.with_partitioning(nn.initializers.zeros, (None, "model"))
    boxed = nn.Dense(3, kernel_init=init).init(jax.random.key(0), jnp.ones((1, 5)))["params"]
    grads = jax.tree.map(jnp.ones_like, boxed)
    state = rgo_jax.rls_update(TX.init(boxed), grads, alpha={"kernel": 0.5, "bias": 3.0})
    ones = np.ones((1, 5))
    expected = oracle.projection_of(ones, 0.5)
    np.testing.assert_allclose(state[0].projection["kernel"], expected, atol=1e-6)


@pytest.mark.parametrize("fold", FOLDS)
def test_a_float64_alpha_keeps_the_projections_dtype(fold):
    state = fold(TX.init(PARAMS), GRADS, alpha=np.float64(1))
    assert {p.dtype for p in projections(state).values()} == {jnp.dtype("float32")}


def test_what_is_too_small_for_float32_is_right_for_float64():
    with oracle.enable_x64():
        params = jnp.zeros(3, jnp.float64)
        # P along v is alpha / (alpha + v' v), with v' v = 1e-46.
        state = rgo_jax.rls_update(TX.init(params), jnp.array([1e-23, 0.0, 0.0]), alpha=1e-46)
        np.testing.assert_allclose(jnp.diagonal(state[0].projection), [0.5, 1, 1], rtol=1e-12)


def refused(alpha, match, fold, wrap=lambda f: f):
    with pytest.raises(ValueError, match=match):
        wrap(fold)(TX.init(PARAMS), GRADS, alpha=alpha)


@pytest.mark.parametrize("fold", FOLDS)
@pytest.mark.parametrize(
    ("alpha", "told"),
    [
        (0, r"0 .*, in float32 0\.0"),
        (-1.0, r"-1\.0 .*, in float32 -1\.0"),
        (float("nan"), "nan .*, in float32 nan"),
        (float("inf"), "inf .*, in float32 inf"),
        (1e-46, r"1e-46 .*, in float32 0\.0"),
        (1e39, r"1e\+39 .*, in float32 inf"),
        (np.float64(-2), r"-2\.0 .*, in float32 -2\.0"),
        (jnp.float32(0), r"0\.0 .*, in float32 0\.0"),
    ],
)
def test_what_is_not_positive_and_finite_is_refused_by_name(fold, alpha, told):
    bad = {"body": {"kernel": 0.1, "bias": alpha}, "head": 0.1}
    told = told.replace(".*", "for 'body/bias'")
    match = f"^alpha is {told}; expected a positive, finite number.*0.01; smaller protects"
    refused(bad, match, fold)
    refused(alpha, "^alpha is .* for 'body/bias', in float32 .*; expected a positive", fold)


@pytest.mark.parametrize("fold", FOLDS)
def test_a_tree_that_does_not_fit_is_refused_by_name(fold):
    missing = {"body": {"kernel": 0.1}, "head": 0.1}
    refused(missing, "alpha has nothing for 'body/bias'; expected a scalar, or a tree", fold)
    refused(None, "alpha has nothing for 'body/bias'", fold)
    refused({}, "alpha has nothing for 'body/bias'", fold)
    unknown = {"body": 0.1, "head": 0.1, "tail": 0.1}
    refused(unknown, "alpha names 'tail', but there is no such parameter.*'body/bias'", fold)
    below = {"body": {"kernel": {"deeper": 0.1}, "bias": 0.1}, "head": 0.1}
    refused(below, "alpha (names 'body/kernel/deeper'|has nothing for 'body/kernel')", fold)


@pytest.mark.parametrize("fold", FOLDS)
@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit])
def test_alpha_of_several_numbers_is_refused_by_name(fold, wrap):
    three = jnp.array([1.0, 2.0, 3.0])
    match = r"alpha has shape \(3,\) for 'body/bias'; expected a scalar.*jax\.vmap"
    refused({"body": {"kernel": 0.1, "bias": three}, "head": 0.1}, match, fold, wrap)
    refused(three, match, fold, wrap)


@pytest.mark.parametrize("columns", ["mean", "signs", "each"])
@pytest.mark.parametrize("fold", FOLDS)
def test_a_relative_alpha_knows_no_scale(fold, columns):
    def folded(scale):
        scaled = jax.tree.map(lambda g: g * scale, GRADS)
        return fold(TX.init(PARAMS), scaled, alpha=0.1, relative_alpha=True, columns=columns)

    once = projections(folded(1.0))
    for scale in (1e-3, 1e3):
        for name, p in projections(folded(scale)).items():
            np.testing.assert_allclose(p, once[name], atol=2e-5, err_msg=name)


def test_a_relative_alpha_is_in_units_of_the_mean_square_of_all_tasks():
    first, second = GRADS, jax.tree.map(lambda g: 3 * g[::-1], GRADS)
    state = TX.init(PARAMS)
    for grads in (first, second):
        state = together(state, grads, alpha=0.3, relative_alpha=True)
    v, w = (
        np.stack([oracle.fan_in_matrix(g).mean(axis=1) for g in grads["body"]["kernel"]])
        for grads in (first, second)
    )
    alphas = 0.3 * (v**2).sum() / 4, 0.3 * ((v**2).sum() + (w**2).sum()) / 8
    vectors = np.concatenate([v / alphas[0] ** 0.5, w / alphas[1] ** 0.5])
    expected = oracle.projection_of(vectors, 1.0)
    np.testing.assert_allclose(projections(state)["body/kernel"], expected, atol=1e-5)


def test_batch_by_batch_the_unit_is_the_mean_square_so_far():
    state = one_by_one(TX.init(PARAMS), GRADS, alpha=0.3, relative_alpha=True)
    v = np.stack([oracle.fan_in_matrix(g).mean(axis=1) for g in GRADS["body"]["kernel"]])
    units = np.cumsum((v**2).sum(axis=1)) / np.arange(1, 5)
    expected = oracle.projection_of(v / (0.3 * units[:, None]) ** 0.5, 1.0)
    np.testing.assert_allclose(projections(state)["body/kernel"], expected, atol=1e-5)


@pytest.mark.parametrize("fold", FOLDS)
def test_nothing_folded_in_relatively_changes_nothing(fold):
    zeros = jax.tree.map(jnp.zeros_like, GRADS)
    for name, p in projections(fold(TX.init(PARAMS), zeros, relative_alpha=True)).items():
        np.testing.assert_array_equal(p, np.eye(len(p)), err_msg=name)
