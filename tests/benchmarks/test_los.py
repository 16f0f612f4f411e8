"""LOS and its Cayley steps, by hand."""

from contextlib import nullcontext
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks import presets
from benchmarks.data import Dataset, tasks
from benchmarks.methods import METHODS, los
from benchmarks.methods.stiefel import cayley_step, stiefel_sgd
from benchmarks.networks.architectures import ARCHITECTURES, Architecture, ConvLayer, FeedForward
from benchmarks.networks.layers import BIASES, HEADS
from benchmarks.run import problem as problems
from benchmarks.run import train
from tests.small_models import task_of

TASKS, CLASSES = 3, 4
IMAGES = los.Los(rank=2, random=True, replay=True, stiefel=True)


@pytest.fixture
def narrow(monkeypatch):
    """LeNet-5 and ResNet-18 that compile soon; their last features are 40 and 32."""
    resnet = ARCHITECTURES["resnet-18"].build.func
    lenet = partial(FeedForward, convs=(ConvLayer(3, 5, (2, 2)),), hidden=(40,))
    monkeypatch.setitem(ARCHITECTURES, "lenet-5", Architecture(lenet, ()))
    monkeypatch.setitem(ARCHITECTURES, "resnet-18", Architecture(partial(resnet, width=4), ()))


def problem_of(network, input_shape, head="per_task", classes=CLASSES, **changes):
    """A network of the benchmarks, for three tasks."""
    config = presets.config(
        "split-digits",
        method=METHODS["los"],
        network=network,
        num_tasks=TASKS,
        head=head,
        learning_rate=0.5,
        **changes,
    )
    sequence = tasks.Sequence(classes, input_shape, 1, 1, False, None, None)
    key = jax.random.key(7)
    return problems.make_problem(config, METHODS["los"], sequence, "none", key)


def examples(count, input_shape, seed=0):
    x = jax.random.normal(jax.random.key(seed), (count, *input_shape))
    return x, jnp.arange(count) % CLASSES


@pytest.mark.parametrize("hyper", [los.Los(rank=12), IMAGES])
def test_subspaces_of_tasks_are_at_right_angles(hyper):
    bases = los.task_bases(jax.random.key(0), 40, TASKS, hyper)
    columns = TASKS * hyper.rank
    np.testing.assert_allclose(bases.T @ bases, np.eye(columns), atol=1e-6)
    own = [los.of_task(bases, TASKS, jnp.int32(t)) for t in range(TASKS)]
    assert {basis.shape for basis in own} == {(40, hyper.rank)}
    np.testing.assert_array_equal(jnp.concatenate(own, axis=1), bases)
    # Along the axes, a task has units of its own; a random basis has a part in all units.
    units = np.count_nonzero(np.asarray(bases), axis=0)
    assert (units == (40 if hyper.random else 1)).all()


def test_rank_is_what_the_features_have_room_for():
    assert los.task_bases(jax.random.key(0), 512, 20, los.Los(rank=30)).shape == (512, 500)
    assert los.task_bases(jax.random.key(0), 256, 20, los.Los()).shape == (256, 240)
    with pytest.raises(ValueError, match=r"gets 5 features for 6 tasks\. Choose a wider network"):
        los.task_bases(jax.random.key(0), 5, 6, los.Los())


def test_mask_is_one_of_the_pre_activation():
    """On the perceptron: the head sees relu of the masked pre-activation, other units never."""
    problem = problem_of("mlp-100", (8,), head="shared")
    params = problem.init(jax.random.key(0))
    x, _ = examples(5, (8,))
    basis = los.of_task(jnp.eye(100), TASKS, jnp.int32(1))[:, :12]
    with los.in_subspace(basis):
        found = problem.logits(params, x, jnp.int32(1))
    first, second, head = (params[k] for k in ("Dense_0", "Dense_1", "head"))
    hidden = jax.nn.relu(x @ first["kernel"] + first["bias"][None])
    mask = basis.sum(axis=1)
    assert mask.sum() == 12
    hidden = jax.nn.relu(mask[None] * (hidden @ second["kernel"] + second["bias"][None]))
    head = head["Dense_0"]
    np.testing.assert_allclose(found, hidden @ head["kernel"] + head["bias"][None], atol=1e-5)
    assert float(jnp.abs(found - problem.logits(params, x, jnp.int32(1))).max()) > 0.01


@pytest.mark.parametrize("biases", BIASES)
@pytest.mark.parametrize("head", HEADS)
def test_subspaces_are_of_the_last_features(head, biases):
    method = los.los(problem_of("mlp-100", (8,), head=head, biases=biases))
    state = method.init(jax.random.key(0))
    assert state.bases.shape == (100, 99)
    assert method.apply(state, examples(5, (8,))[0], jnp.int32(1)).shape == (5, CLASSES)


@pytest.mark.parametrize(
    ("network", "width"), [("lenet-5", 40), pytest.param("resnet-18", 32, marks=pytest.mark.slow)]
)
def test_what_the_head_gets_lies_in_the_subspace(narrow, network, width):
    problem = problem_of(network, (4, 4, 3), classes=width)
    # With an identity for a head, the outputs are what it gets.
    identity = jnp.broadcast_to(jnp.eye(width), (TASKS, width, width))

    @jax.jit
    def received(x, basis=None):
        params = problem.init(jax.random.key(0))
        head = {"kernels": identity, "biases": jnp.zeros((TASKS, width))}
        with nullcontext() if basis is None else los.in_subspace(basis):
            return problem.logits(params | {"head": head}, x, jnp.int32(0))

    x, _ = examples(2, (4, 4, 3))
    basis, _ = jnp.linalg.qr(jax.random.normal(jax.random.key(1), (width, 2)))
    features = received(x)
    assert float(features.max()) > 0.01
    expected = jax.nn.relu(features @ basis @ basis.T)
    np.testing.assert_allclose(received(x, basis), expected, atol=1e-5 * float(features.max()))
    # A basis of all directions changes nothing.
    whole = received(x, jnp.eye(width))
    np.testing.assert_allclose(whole, features, atol=1e-5 * float(features.max()))


@pytest.mark.parametrize("network", ["mlp-100", pytest.param("lenet-5", marks=pytest.mark.slow)])
def test_subspaces_part_what_a_shared_head_joins_and_heads_per_task_have_parted(network):
    """The same examples as two tasks: are their gradients in the last hidden layer the same?"""
    shape = (8, 8, 3) if network == "lenet-5" else (192,)
    layer = "Dense_1"

    def cosine(head, hyper=None):
        problem = problem_of(network, shape, head=head)
        params = problem.init(jax.random.key(0))
        width = params[layer]["kernel"].shape[1]
        bases = los.task_bases(jax.random.key(1), width, TASKS, hyper) if hyper else None
        x, y = examples(10, shape)

        def own_subspace(task_id):
            return los.in_subspace(los.of_task(bases, TASKS, jnp.int32(task_id)))

        def gradient(task_id):
            def loss(params):
                with nullcontext() if bases is None else own_subspace(task_id):
                    outputs = problem.logits(params, x, jnp.int32(task_id))
                return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(outputs, y))

            return np.ravel(jax.jit(jax.grad(loss))(params)[layer]["kernel"])

        one, other = gradient(0), gradient(1)
        assert min(np.linalg.norm(one), np.linalg.norm(other)) > 1e-4
        return one @ other / (np.linalg.norm(one) * np.linalg.norm(other))

    random = los.Los(rank=20, random=True)
    found = {head: (cosine(head), cosine(head, random)) for head in ("shared", "per_task")}
    np.testing.assert_allclose(found["shared"][0], 1, rtol=1e-5)
    assert max(map(abs, (found["shared"][1], *found["per_task"]))) < 0.3
    # Along the axes they have no unit in common.
    assert cosine("shared", los.Los(rank=20)) == 0


def stiefel(d, m, seed=0):
    rng = np.random.default_rng(seed)
    wide = np.linalg.qr(rng.normal(size=(max(d, m), min(d, m))))[0]
    kernel = wide if d >= m else wide.T
    return kernel, rng.normal(size=(d, m))


@pytest.mark.parametrize(("d", "m"), [(7, 3), (5, 5), (3, 6)])
@pytest.mark.parametrize("rate", [0.01, 10.0])
def test_cayley_step_in_float64(d, m, rate):
    w, g = stiefel(d, m)
    b = g @ w.T - 0.5 * w @ (w.T @ g @ w.T)
    a = b - b.T
    step = min(rate, 1 / np.abs(a).sum(axis=1).max())
    y = w - step * a @ w
    for _ in range(2):
        y = w - step / 2 * a @ (w + y)
    found = cayley_step(jnp.float32(w), jnp.float32(g), rate)
    np.testing.assert_allclose(found, y, atol=1e-6)
    # Near the exact transform, which leaves W'W as it is.
    exact = np.linalg.solve(np.eye(d) + step / 2 * a, w - step / 2 * a @ w)
    np.testing.assert_allclose(exact.T @ exact, w.T @ w, atol=1e-12)
    np.testing.assert_allclose(found, exact, atol=1e-5 if rate < 1 else 0.1)
    # Downhill, whatever the size of the step.
    assert ((exact - w) * g).sum() < 0


@pytest.mark.parametrize(("d", "m"), [(60, 30), (30, 60)])
@pytest.mark.parametrize("rate", [0.01, 10.0])
@pytest.mark.parametrize("rank", [0, 2, 3])
def test_cayley_step_along_a_gradient_of_few_examples(d, m, rate, rank):
    """The cheaper way is the same step, also where the rank is below what it may be."""
    w, _ = stiefel(d, m)
    rng = np.random.default_rng(1)
    g = jnp.float32(rng.normal(size=(d, rank)) @ rng.normal(size=(rank, m)))
    whole = cayley_step(jnp.float32(w), g, rate)
    cheaper = jax.jit(cayley_step, static_argnums=3)
    np.testing.assert_allclose(cheaper(jnp.float32(w), g, rate, 3), whole, atol=1e-6)
    flops = [
        cheaper.lower(jnp.float32(w), g, rate, max_rank).cost_analysis()["flops"]
        for max_rank in (None, 3)
    ]
    assert flops[1] < flops[0] / 2


@pytest.mark.parametrize(("d", "m"), [(20, 8), (8, 20)])
def test_kernels_stay_orthonormal_for_a_thousand_steps(d, m):
    w, _ = stiefel(d, m)
    params = {"kernel": jnp.float32(w).reshape(2, d // 2, m)}
    tx = stiefel_sgd(optax.constant_schedule(2e-3))

    def step(carry, key):
        params, state = carry
        grads = jax.tree.map(lambda p: jax.random.normal(key, p.shape), params)
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    carry = (params, tx.init(params))
    (after, state), _ = jax.lax.scan(step, carry, jax.random.split(jax.random.key(0), 1000))
    w = np.asarray(after["kernel"], np.float64).reshape(d, m)
    gram = w.T @ w if d >= m else w @ w.T
    np.testing.assert_allclose(gram, np.eye(len(gram)), atol=1e-4)
    assert float(jnp.abs(after["kernel"] - params["kernel"]).max()) > 0.05  # it has gone somewhere
    assert int(state.num_steps) == 1000


@pytest.mark.slow
def test_step_on_images_by_hand(narrow):
    """Third task: current and replayed gradient, each divided by three; the head by plain SGD."""
    # A fully connected layer of [80, 40], where the cheaper step is taken.
    shape = (8, 8, 3)
    problem = problem_of("lenet-5", shape)
    method = los.los(problem, IMAGES)
    state = method.init(jax.random.key(0))
    for name, layer in state.params.items():
        if name != "head":
            kernel = np.asarray(layer["kernel"], np.float64)
            kernel = kernel.reshape(-1, kernel.shape[-1])
            gram = kernel.T @ kernel if len(kernel) >= kernel.shape[1] else kernel @ kernel.T
            np.testing.assert_allclose(gram, np.eye(len(gram)), atol=1e-5)

    # Both earlier tasks are remembered alike, whichever is drawn.
    old_x, old_y = examples(3, shape, seed=1)  # three of the four classes
    ring = state.ring
    for past in range(2):
        ring = ring._replace(
            x=ring.x.at[past, old_y].set(old_x), filled=ring.filled.at[past, old_y].set(True)
        )
    state = state._replace(ring=ring)
    batch = examples(5, shape)
    task = task_of(*batch, task_id=2)

    def loss(params, x, y, task_id):
        basis = los.of_task(state.bases, TASKS, jnp.int32(task_id))
        with los.in_subspace(basis):
            outputs = problem.logits(params, x, jnp.int32(task_id))
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(outputs, y))

    after, found_loss = jax.jit(lambda state: method.step(state, batch, task))(state)
    np.testing.assert_allclose(found_loss, loss(state.params, *batch, 2), rtol=1e-5)
    gradient = jax.jit(jax.grad(loss))
    current = gradient(state.params, *batch, 2)
    fits = []
    for past in range(2):
        replayed = gradient(state.params, old_x, old_y, past)
        total = jax.tree.map(lambda g, p: (g + p) / 3, current, replayed)
        head = jax.tree.map(lambda p, g: p - 0.5 * g, state.params["head"], total["head"])
        expected = {"head": head}
        for name, d in (("Conv_0", 27), ("Dense_0", 80)):
            kernel, bias = state.params[name]["kernel"], state.params[name]["bias"]
            turned = cayley_step(
                kernel.reshape(d, -1), total[name]["kernel"].reshape(d, -1), 0.5
            ).reshape(kernel.shape)
            expected[name] = {"kernel": turned, "bias": bias - 0.5 * total[name]["bias"]}
        fits.append(
            all(
                np.allclose(a, b, atol=1e-5)
                for name in expected
                for a, b in zip(
                    jax.tree.leaves(expected[name]),
                    jax.tree.leaves(after.params[name]),
                    strict=True,
                )
            )
        )
    assert sum(fits) == 1  # one task was replayed
    # The ring has seen the batch.
    np.testing.assert_array_equal(after.ring.filled[2], [True] * 4)


@pytest.mark.slow
def test_first_task_replays_nothing(narrow):
    shape = (4, 4, 3)
    method = los.los(problem_of("lenet-5", shape), IMAGES)
    state = method.init(jax.random.key(0))
    batch = examples(4, shape)
    step = jax.jit(lambda state: method.step(state, batch, task_of(*batch)))
    whole, _ = step(state)
    # What lies in the ring without having been put there does not matter.
    other = state._replace(ring=state.ring._replace(x=state.ring.x + 5))
    same, _ = step(other)
    jax.tree.map(np.testing.assert_array_equal, whole.params, same.params)


def test_defaults_are_the_authors():
    assert los.Los(rank=None, random=False, replay=False, stiefel=False) == los.VECTORS
    assert los.Los(rank=30, random=True, replay=True, stiefel=True) == los.IMAGES
    configured = partial(presets.config, method=METHODS["los"])
    for benchmark, rate in (
        ("permuted-mnist", 0.1),
        ("split-cifar100", 0.4),
        ("superclass-cifar100", 0.4),
        ("split-mini-imagenet", 0.2),
    ):
        assert configured(benchmark).learning_rate == rate
        # It is more particular than a preset's, which is RGO's.
        assert configured(benchmark, "recommended").learning_rate == (
            0.2 if benchmark == "permuted-mnist" else rate
        )
        # The user's wins.
        assert configured(benchmark, learning_rate=0.03).learning_rate == 0.03


@pytest.mark.slow
def test_images_are_learned_on_the_manifold_with_replay():
    """Two tasks of two classes each, in the compiled loop."""
    rng = np.random.default_rng(0)
    prototypes = rng.integers(0, 256, (4, 8, 8, 3))

    def split(count):
        y = (np.arange(count) % 4).astype(np.int32)
        noise = rng.normal(0, 40, (count, 8, 8, 3))
        return np.clip(prototypes[y] + noise, 0, 255).astype(np.uint8), y

    dataset = Dataset("mine", *split(480), *split(80))
    config = presets.config(
        "split-cifar100",
        method=METHODS["los"],
        num_tasks=2,
        examples_per_task=240,
        epochs=5,
        learning_rate=0.1,
    )
    run = train.run(config, METHODS["los"], dataset, seeds=range(1))
    assert run.r[0, 1].min() > 0.9
