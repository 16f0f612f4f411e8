"""What of a gradient's columns is folded in: their mean, random signs of them, or each of them."""

import itertools
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import rgo_jax
import rgo_jax.nnx
from rgo_jax import ProjectionSpec
from tests import oracle
from tests.marks import slow_but

ALPHA = 0.01
COLUMNS = ("mean", "signs", "each")

# name -> (shape, d, m, what of P is kept)
LEAVES = {
    "dense": ((6, 5), 6, 5, ProjectionSpec()),
    "bias": ((4,), 4, 1, ProjectionSpec()),
    "conv": ((2, 2, 3, 4), 12, 4, ProjectionSpec()),
    "query": ((6, 2, 3), 6, 6, ProjectionSpec(axes=0)),
    "query bias": ((2, 3), 6, 1, ProjectionSpec(axes=(0, 1))),
    "blocks": ((8, 3), 8, 3, ProjectionSpec(blocks=2)),
    "diagonal": ((7, 3), 7, 3, ProjectionSpec(diagonal=True)),
}
PARAMS = {name: jnp.zeros(shape) for name, (shape, *_) in LEAVES.items()}
TX = rgo_jax.rgo(0.1, specs={name: spec for name, (*_, spec) in LEAVES.items()})


def gradients(seed, count):
    """As many batches' gradients, stacked, of columns that are neither alike nor about zero."""
    rng = np.random.default_rng(seed)
    return {
        name: jnp.asarray(0.3 + rng.normal(size=(count, *shape)), jnp.float32)
        for name, (shape, *_) in LEAVES.items()
    }


def batch(grads, index):
    return jax.tree.map(lambda g: g[index], grads)


def one_by_one(state, grads, **options):
    for index in range(len(jax.tree.leaves(grads)[0])):
        state = rgo_jax.rls_update(state, batch(grads, index), **options)
    return state


def together(state, grads, **options):
    return rgo_jax.consolidate(state, lambda g: g, grads, block_size=4, **options)


def float64_projection(vectors, spec):
    """P in the form that the spec asks for."""
    vectors = np.asarray(vectors, np.float64)
    if spec.diagonal:
        return ALPHA / (ALPHA + np.sum(vectors**2, axis=0))
    if spec.blocks > 1:
        return np.stack(
            [oracle.projection_of(v, ALPHA) for v in np.split(vectors, spec.blocks, axis=1)]
        )
    return oracle.projection_of(vectors, ALPHA)


def matrices(grads, name):
    _, d, m, _ = LEAVES[name]
    return np.asarray(grads[name], np.float64).reshape(-1, d, m)


@pytest.mark.parametrize("fold", [one_by_one, together])
@pytest.mark.parametrize("columns", ["mean", "each"])
def test_mean_and_each_against_float64(columns, fold):
    grads = gradients(0, 3)
    state = fold(TX.init(PARAMS), grads, columns=columns)
    for name, (*_, m, spec) in LEAVES.items():
        matrix = matrices(grads, name)
        if columns == "mean":
            vectors = np.mean(matrix, axis=2)
        else:
            vectors = np.concatenate([r.T / np.sqrt(m) for r in matrix])
        expected = float64_projection(vectors, spec)
        assert np.abs(expected - float64_projection(0 * vectors, spec)).max() > 0.5
        np.testing.assert_allclose(state[0].projection[name], expected, atol=5e-6, err_msg=name)
    assert int(state[0].num_updates) == 3


def test_signs_against_float64():
    """P is that of ``sum_j s_j r_j / sqrt(m)`` for one choice of signs, and far from all others."""
    grads, state = gradients(1, 3), TX.init(PARAMS)
    found = {name: [] for name in LEAVES}
    for index in range(3):
        state = rgo_jax.rls_update(state, batch(grads, index), columns="signs")
        for name, (*_, m, spec) in LEAVES.items():
            matrix, vectors, errors = matrices(grads, name)[index], [], []
            for others in itertools.product((1, -1), repeat=m - 1):  # v and -v are the same
                vectors.append(matrix @ np.array([1, *others]) / np.sqrt(m))
                p = float64_projection(np.stack([*found[name], vectors[-1]]), spec)
                errors.append(np.abs(state[0].projection[name] - p).max())
            best, *rest = np.argsort(errors)
            assert errors[best] < 5e-6, name
            assert not rest or errors[rest[0]] > 1e-4, name
            found[name].append(vectors[best])


def outer_products(state):
    """``v v'`` of the only vector that was folded in, with an alpha of 1."""
    p = np.asarray(state.projection, np.float64)
    return np.linalg.inv(p) - np.eye(p.shape[-1])


@pytest.mark.parametrize("vary", ["key", "num_updates"])
def test_signs_are_the_mean_of_the_columns_outer_products_on_average(vary):
    matrix = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
    matrix[:, 3] *= 2
    fresh = rgo_jax.scale_by_rgo().init(jnp.zeros((4, 6)))

    @jax.jit
    @jax.vmap
    def fold(number):
        key = jax.random.fold_in(jax.random.key(5), number if vary == "key" else 0)
        state = fresh if vary == "key" else fresh._replace(num_updates=number)
        return rgo_jax.rls_update(state, matrix, alpha=1.0, columns="signs", key=key)

    mean = np.mean(outer_products(fold(jnp.arange(5000))), axis=0)
    expected = matrix.astype(np.float64) @ matrix.T / 6
    # The signs of the other columns are a standard error of 1 % or so of this norm.
    error = np.linalg.norm(mean - expected) / np.linalg.norm(expected)
    assert error < 0.04
    # The mean of all columns, the sum of all, and signs without the 1 / sqrt(m) are elsewhere.
    for other in (np.outer(matrix.mean(1), matrix.mean(1)), 6 * expected, expected / 6):
        assert np.linalg.norm(other - expected) / np.linalg.norm(expected) > 0.4


def test_equal_columns_give_the_mean_and_each_alike():
    column = jnp.asarray(np.random.default_rng(0).normal(size=(5, 6, 1)), jnp.float32)
    grads = jnp.broadcast_to(column, (5, 6, 4))
    mean, each = (
        together(rgo_jax.scale_by_rgo().init(grads[0]), grads, columns=columns)
        for columns in ("mean", "each")
    )
    np.testing.assert_allclose(mean.projection, each.projection, atol=5e-6)
    assert float(jnp.trace(mean.projection)) < 2


@pytest.mark.parametrize("columns", slow_but(COLUMNS, "signs"))
def test_consolidate_is_the_sequence_of_updates(columns):
    """With one key over two tasks, the second of which goes on where the first has stopped."""
    first, second = gradients(2, 3), gradients(3, 2)
    options = {"columns": columns, "key": jax.random.key(7)}
    folds = [
        fold(fold(TX.init(PARAMS), first, **options), second, **options)
        for fold in (one_by_one, together)
    ]
    single, block = (state[0] for state in folds)
    jax.tree.map(
        partial(np.testing.assert_allclose, atol=5e-6), block.projection, single.projection
    )
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5), block.energy, single.energy)
    assert int(block.num_updates) == int(single.num_updates) == 5


def distance(a, b):
    differences = jax.tree.map(lambda x, y: float(jnp.max(jnp.abs(x - y))), a, b)
    return max(jax.tree.leaves(differences))


@pytest.mark.parametrize("fold", [one_by_one, together])
def test_signs_depend_on_the_key_and_on_the_number_of_updates(fold):
    grads, start = {"dense": gradients(4, 2)["dense"]}, rgo_jax.scale_by_rgo()

    def projection(number=0, **options):
        state = start.init(batch(grads, 0))._replace(num_updates=jnp.int32(number))
        return fold(state, grads, columns="signs", **options).projection

    default = projection()
    assert distance(projection(), default) == 0
    assert distance(projection(key=jax.random.key(0)), default) == 0
    assert distance(projection(key=jax.random.key(1)), default) > 0.01
    assert distance(projection(number=2), default) > 0.01


@pytest.mark.parametrize("columns", ["mean", "each"])
def test_projections_without_signs_do_not_depend_on_the_key(columns):
    grads = gradients(5, 2)
    for fold in (one_by_one, together):
        a, b = (
            fold(TX.init(PARAMS), grads, columns=columns, key=jax.random.key(seed))[0].projection
            for seed in (0, 1)
        )
        assert distance(a, b) == 0


def enable_x64():
    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(True)
    return jax.experimental.enable_x64()  # jax 0.7


@pytest.mark.parametrize(
    "setting",
    [
        enable_x64,
        lambda: jax.default_prng_impl("rbg"),
        lambda: jax.threefry_partitionable(False),
        lambda: jax.numpy_dtype_promotion("strict"),
        lambda: jax.default_matmul_precision("bfloat16"),
    ],
)
@pytest.mark.parametrize("columns", ["mean", "signs"])
def test_settings_of_jax_change_nothing(setting, columns):
    """Of P and of the estimates beside it."""
    grads = jax.random.normal(jax.random.key(0), (6, 9))
    tx = rgo_jax.scale_by_rgo()

    def after_a_batch():
        return rgo_jax.rls_update(tx.init(grads), grads, columns=columns)

    expected = after_a_batch()
    with setting():
        found = after_a_batch()
    np.testing.assert_allclose(found.projection, expected.projection, rtol=1e-6)
    np.testing.assert_allclose(found.energy, expected.energy, rtol=1e-6)


def test_leaves_have_signs_of_their_own():
    leaf = gradients(6, 1)["dense"][0]
    grads = dict.fromkeys("abcdef", leaf)
    state = rgo_jax.rls_update(rgo_jax.scale_by_rgo().init(grads), grads, columns="signs")
    others = [distance(state.projection["a"], state.projection[name]) for name in "bcdef"]
    assert max(others) > 0.01


@pytest.mark.parametrize("columns", COLUMNS)
def test_the_same_under_jit_vmap_and_scan(columns):
    stacks = jnp.stack([gradients(seed, 3)["dense"] for seed in range(2)])
    keys = jax.random.split(jax.random.key(3), 2)
    start = rgo_jax.scale_by_rgo().init(stacks[0, 0])

    def scanned(grads, key):
        def step(state, grad):
            return rgo_jax.rls_update(state, grad, columns=columns, key=key), None

        return jax.lax.scan(step, start, grads)[0].projection

    def at_once(grads, key):
        return together(start, grads, columns=columns, key=key).projection

    expected = jnp.stack(
        [
            one_by_one(start, grads, columns=columns, key=key).projection
            for grads, key in zip(stacks, keys, strict=True)
        ]
    )
    close = partial(np.testing.assert_allclose, rtol=1e-4, atol=5e-6)
    close(jnp.stack([*map(jax.jit(scanned), stacks, keys)]), expected)
    for function in (scanned, at_once):
        close(jax.jit(jax.vmap(function))(stacks, keys), expected)
    assert distance(expected[0], expected[1]) > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("columns", COLUMNS)
def test_nnx(columns):
    model = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, rgo_jax.rgo(0.1), wrt=nnx.Param)
    x, y = jax.random.normal(jax.random.key(0), (5, 10, 4)), jnp.zeros((5, 10), jnp.int32)
    params = {"kernel": model.kernel[...], "bias": model.bias[...]}

    def grad_fn(batch):
        def output(params):
            logits = batch[0] @ params["kernel"] + params["bias"][None]
            return rgo_jax.curvature_output(logits, batch[1])

        return jax.grad(output)(params)

    options = {"columns": columns, "key": jax.random.key(11), "alpha": 0.1}
    expected = rgo_jax.consolidate(rgo_jax.rgo(0.1).init(params), grad_fn, (x, y), **options)

    @nnx.jit
    def end_of_task(model, optimizer, x, y):
        def output(model, batch):
            return rgo_jax.curvature_output(model(batch[0]), batch[1])

        rgo_jax.nnx.consolidate(model, optimizer, output, (x, y), **options)

    end_of_task(model, optimizer, x, y)
    for name, p in expected[0].projection.items():
        ours = optimizer.opt_state[0].projection[name][...]
        np.testing.assert_allclose(ours, p, rtol=1e-4, atol=5e-6)
        assert float(jnp.trace(p)) < len(p) - 0.1


@pytest.mark.parametrize("columns", COLUMNS)
def test_no_program_holds_the_columns_of_all_batches(columns):
    """Where gradients are computed one by one, those of one batch are all that there ever is."""
    num_batches, m, d = 7, 11, 13

    def grad_fn(seed):
        return jax.random.normal(jax.random.key(seed), (d, m))

    state = rgo_jax.scale_by_rgo().init(jnp.zeros((d, m)))
    program = jax.make_jaxpr(
        lambda state, seeds: rgo_jax.consolidate(
            state, grad_fn, seeds, columns=columns, block_size=16
        )
    )(state, jnp.arange(num_batches))
    found = {
        tuple(map(int, shape.split(",")))
        for shape in re.findall(r"\w\d+\[([\d,]+)\]", str(program))
    }
    assert (d, m) in found  # what is inside of loops is seen
    sizes = {np.prod(shape) for shape in found}
    assert max(sizes) < num_batches * m * d / 2
    if columns != "each":
        assert num_batches * d in sizes  # one vector of each batch


@pytest.mark.parametrize("columns", ["sum", None, "Mean"])
def test_unknown_columns(columns):
    state, grads = TX.init(PARAMS), gradients(0, 2)
    match = f"columns is {columns!r}; expected one of 'mean', 'signs', 'each'"
    for fold in (one_by_one, together):
        with pytest.raises(ValueError, match=match):
            fold(state, grads, columns=columns)
    model = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, rgo_jax.rgo(0.1), wrt=nnx.Param)
    with pytest.raises(ValueError, match=match):
        rgo_jax.nnx.consolidate(
            model, optimizer, lambda m, x: jnp.sum(m(x)), jnp.ones((2, 4)), columns=columns
        )
