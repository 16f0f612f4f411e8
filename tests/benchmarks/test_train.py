import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rgo_jax
from benchmarks import experiment, presets, tasks, train
from benchmarks.methods import METHODS
from benchmarks.networks import ARCHITECTURES, Architecture, ConvLayer, FeedForward


def small(sequence="permuted", **changes):
    given = {"num_tasks": 3, "examples_per_task": 300, "epochs": 2}
    config = presets.config(f"{sequence}-digits")
    return dataclasses.replace(config, **(given | changes))


BASELINES = [name for name in METHODS if name not in ("rgo", "rgo-2", "sgd", "stl")]


@pytest.mark.parametrize(
    "method",
    ["rgo", "rgo-2", "sgd", "stl", *(pytest.param(m, marks=pytest.mark.slow) for m in BASELINES)],
)
@pytest.mark.parametrize("head", ["shared", "frozen", "per_task"])
def test_every_method_runs_under_every_head_policy(digits, method, head):
    # LOS trains a third of the last units in each task, and OWM while training projects across the
    # task at hand too: both need longer.
    slow = method in ("los", "owm-online")
    config = small(head=head, epochs=8 if slow else 2)
    run = train.run(config, METHODS[method], digits, seeds=range(2))
    assert run.r.shape == (2, 3, 3)
    measured = np.tril(np.ones((3, 3), bool))
    assert not np.isnan(run.r[:, measured]).any()
    assert np.isnan(run.r[:, ~measured]).all()
    assert (np.diagonal(run.r, axis1=1, axis2=2) > 0.5).all()  # each task is learned
    assert (run.losses[:, 0] < 2.2).all()  # log(10) is 2.3
    assert run.task_seconds.shape == (3,)
    assert (run.train > 0.3).all()  # what was trained on is known
    assert not np.array_equal(run.r[0], run.r[1])  # seeds differ


def in_colour(images):
    """Grey images, four times as high and wide and each in a colour of its own."""
    colours = np.random.default_rng(0).uniform(0.3, 1, (len(images), 1, 1, 3))
    large = images.repeat(4, axis=1).repeat(4, axis=2)
    return (large[..., None] * colours).astype(np.uint8)


@pytest.mark.parametrize("network", ["lenet-5", pytest.param("resnet-18", marks=pytest.mark.slow)])
def test_splits_by_class_are_learned(digits, network, monkeypatch):
    """With classes of different sizes; heads of two classes each.

    ResNet-18 on colour images of CIFAR's size, an eighth as wide as in the paper, at its rate and
    without normalisation.
    """
    epochs = 3
    if network == "resnet-18":
        narrow = ARCHITECTURES["resnet-18"].build.func
        monkeypatch.setitem(ARCHITECTURES, "resnet-18", Architecture(partial(narrow, width=8), ()))
        epochs = 12
        digits = digits._replace(x_train=in_colour(digits.x_train), x_test=in_colour(digits.x_test))
    config = presets.config("split-digits", network=network, num_tasks=5, epochs=epochs)
    config = experiment.fitted(dataclasses.replace(config, learning_rate=0.03), digits)
    run = train.run(config, METHODS["rgo"], digits, seeds=range(1))
    assert (np.diagonal(run.r[0]) > 0.75).all()  # two classes: 0.5 is chance
    assert run.train.mean() > 0.8


def test_runs_repeat_bit_for_bit_and_do_not_depend_on_the_number_of_seeds(digits):
    config = small(num_tasks=2)
    first = train.run(config, METHODS["rgo"], digits, seeds=range(2))
    again = train.run(config, METHODS["rgo"], digits, seeds=range(2))
    np.testing.assert_array_equal(first.r, again.r)
    np.testing.assert_array_equal(first.losses, again.losses)
    alone = train.run(config, METHODS["rgo"], digits, seeds=range(1))
    np.testing.assert_allclose(alone.losses, first.losses[:1], rtol=1e-5)


def test_vmap_over_seeds_gives_what_map_gives(digits, monkeypatch):
    config = small(num_tasks=2)
    mapped = train.run(config, METHODS["rgo"], digits, seeds=range(2))
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    batched = train.run(config, METHODS["rgo"], digits, seeds=range(2))
    np.testing.assert_allclose(batched.losses, mapped.losses, rtol=1e-3)
    np.testing.assert_allclose(batched.r, mapped.r, atol=0.02)


def test_one_compilation_serves_all_tasks(digits, compilations):
    counts = []
    for num_tasks in (1, 4):
        jax.clear_caches()
        with compilations() as counted:
            train.run(small(num_tasks=num_tasks), METHODS["rgo"], digits, seeds=range(1))
        counts.append(counted.count)
    assert counts[0] == counts[1]


def test_rgo_remembers_what_sgd_forgets(digits):
    config = presets.config("permuted-digits", num_tasks=4)
    bwt, acc = {}, {}
    for method in ("rgo", "sgd", "rgo-2", "stl"):
        run = train.run(config, METHODS[method], digits, seeds=range(1))
        bwt[method] = float(rgo_jax.backward_transfer(run.r)[0])
        acc[method] = float(rgo_jax.average_accuracy(run.r)[0])
    assert bwt["sgd"] < -0.3
    assert bwt["rgo"] > -0.05
    assert bwt["rgo"] - bwt["rgo-2"] > 0.03
    assert bwt["stl"] == 0
    assert acc["rgo"] > acc["sgd"] + 0.2
    assert abs(acc["rgo"] - acc["stl"]) < 0.05


def head_network(policy):
    return FeedForward(convs=(), hidden=(8,), num_classes=3, num_tasks=4, head=policy, fel=True)


@pytest.mark.parametrize("policy", ["shared", "frozen", "per_task"])
def test_head_policies(policy):
    network = head_network(policy)
    x = jax.random.normal(jax.random.key(0), (5, 6))
    params = network.init(jax.random.key(1), x, 0)["params"]

    def grads(task):
        return jax.grad(lambda p: jnp.sum(network.apply({"params": p}, x, task) ** 2))(params)

    def moved(task):
        return [bool(np.any(np.asarray(g) != 0)) for g in jax.tree.leaves(grads(task)["head"])]

    assert all(moved(0))
    if policy == "frozen":
        assert not any(moved(1))
        assert np.any(np.asarray(jax.tree.leaves(grads(1)["Dense_0"])[0]) != 0)
    else:
        assert all(moved(1))
    if policy == "per_task":
        gradient = np.asarray(grads(2)["head"]["kernels"])
        assert gradient.shape == (4, 8, 3)
        assert [bool(np.any(g != 0)) for g in gradient] == [False, False, True, False]


@pytest.mark.parametrize(
    ("name", "parameters"),
    # Counted by hand from the layers, with one head of 10 classes.
    [
        ("mlp", 784 * 256 + 256 * 256 + 256 * 10 + 522),
        (
            "lenet-5",
            25 * 3 * 20 + 25 * 20 * 50 + 3200 * 800 + 800 * 500 + 500 * 10 + 70 + 1300 + 10,
        ),
        (
            "alexnet-6",
            16 * 3 * 64 + 9 * 64 * 128 + 4 * 128 * 256
            + 4096 * 2048 + 2048 * 2048 + 2048 * 10 + 448 + 4096 + 10,
        ),
        (
            "alexnet-7",
            25 * 3 * 64 + 16 * 64 * 128 + 2 * 9 * 128**2
            + 3200 * 2048 + 2048 * 2048 + 2048 * 10 + 448 + 4096 + 10,
        ),
        (
            "vgg-13",
            9 * (3 * 64 + 64**2 + 64 * 128 + 128**2 + 128 * 256 + 256**2 + 256 * 512 + 3 * 512**2)
            + 5120 + 2 * (64 + 128 + 256 + 2 * 512) + 10,
        ),
        (
            "vgg-11",
            9 * (3 * 64 + 64 * 128 + 128 * 256 + 256**2 + 256 * 512 + 3 * 512**2)
            + 5120 + 64 + 128 + 2 * 256 + 4 * 512 + 10,
        ),
        (
            "resnet-18",
            49 * 3 * 64 + 9 * 64**2 * 4 + 9 * (64 * 128 + 3 * 128**2) + 64 * 128
            + 9 * (128 * 256 + 3 * 256**2) + 128 * 256 + 9 * (256 * 512 + 3 * 512**2) + 256 * 512
            + 5120 + 5 * 64 + 5 * 128 + 5 * 256 + 5 * 512 + 10,
        ),
    ],
)  # fmt: skip
def test_architectures(name, parameters):
    build, shape = ARCHITECTURES[name]
    network = build(num_classes=10, num_tasks=20, head="shared", fel=True)
    x = jnp.zeros((2, *shape))
    params = jax.eval_shape(network.init, jax.random.key(0), x, 0)["params"]
    assert sum(p.size for p in jax.tree.leaves(params)) == parameters
    logits = jax.eval_shape(network.apply, {"params": params}, x, 0)
    assert logits.shape == (2, 10)


@pytest.mark.parametrize(
    ("shape", "changes", "match"),
    [
        ((2, 3, 8, 3), {}, r"shape \(2, 3, 8, 3\); expected images .* of 4 x 4 pixels or more"),
        ((2, 784), {}, r"shape \(2, 784\); expected images"),
        ((2, 784), {"name": "resnet-18"}, r"shape \(2, 784\); expected images .* of 1 x 1"),
        ((2, 8, 8, 3), {"head": "per-task"}, "head is 'per-task'; expected one of shared, frozen"),
    ],
)
def test_networks_refuse_what_they_cannot_take(shape, changes, match):
    given = {"num_classes": 2, "num_tasks": 3, "head": "shared", "fel": True} | changes
    build = ARCHITECTURES[given.pop("name", "lenet-5")].build
    with pytest.raises(ValueError, match=match):
        build(**given).init(jax.random.key(0), jnp.zeros(shape), 0)


@pytest.mark.parametrize("on_convs", [True, False])
def test_convolutions_with_and_without_fel(on_convs):
    convs = (ConvLayer(3, 4, True), ConvLayer(3, 4, True))
    network = FeedForward(
        convs=convs, hidden=(6,), num_classes=3, num_tasks=2, head="shared", fel=True,
        fel_on_convs=on_convs,
    )  # fmt: skip
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
    params = network.init(jax.random.key(1), x, 0)["params"]

    def outputs(task):
        seen = network.apply({"params": params}, x, task, capture_intermediates=True)[1]
        return {name: layer["__call__"][0] for name, layer in seen["intermediates"].items()
                if name in ("Conv_0", "Conv_1", "Dense_0")}  # fmt: skip

    same = jax.tree.map(lambda a, b: bool(np.array_equal(a, b)), outputs(0), outputs(1))
    assert same == {"Conv_0": not on_convs, "Conv_1": not on_convs, "Dense_0": False}


def test_fel_on_convs_is_the_experiments_to_choose(digits):
    def logits(**changes):
        config = presets.config("split-digits", network="lenet-5", **changes)
        sequence = tasks.SEQUENCES["split"](digits, config.num_tasks)
        key = jax.random.key(0)
        problem = experiment.make_problem(config, METHODS["rgo"], sequence, "digits", key)
        x = jax.random.normal(jax.random.key(1), (2, *sequence.input_shape))
        return problem.logits(problem.init(jax.random.key(2)), x, jnp.int32(1))

    everywhere, dense, nowhere = logits(), logits(fel_on_convs=False), logits(fel=False)
    assert not np.allclose(everywhere, dense, rtol=1e-3)
    assert not np.allclose(dense, nowhere, rtol=1e-3)
    np.testing.assert_array_equal(nowhere, logits(fel=False, fel_on_convs=False))


def test_smoothed_labels_by_hand():
    logits, labels = np.array([[2.0, -1.0, 0.5, 0.0]]), np.array([2])
    log_softmax = logits - np.log(np.sum(np.exp(logits)))
    targets = np.array([[0.05, 0.05, 0.85, 0.05]])
    plain = experiment.cross_entropies(jnp.asarray(logits), jnp.asarray(labels))
    np.testing.assert_allclose(plain, -log_softmax[:, 2], rtol=1e-6)
    smoothed = experiment.cross_entropies(jnp.asarray(logits), jnp.asarray(labels), smoothing=0.2)
    np.testing.assert_allclose(smoothed, -np.sum(targets * log_softmax, axis=1), rtol=1e-6)


def test_with_smoothed_labels_a_network_stays_less_sure(digits):
    runs = [
        train.run(small(label_smoothing=share, epochs=10), METHODS["rgo"], digits, seeds=range(1))
        for share in (0.0, 0.4)
    ]
    sure, smoothed = (run.losses[0] for run in runs)
    # Targets of 0.64 and nine times 0.04 have an entropy of 1.44, below which no loss can fall.
    assert (sure < 1.2).all()
    assert (smoothed > 1.44).all()
    assert (np.diagonal(runs[1].r[0]) > 0.5).all()


def test_cosine_schedule_starts_anew_in_each_task():
    config = presets.config("permuted-mnist", schedule="cosine", learning_rate=0.4)
    schedule = config.learning_rate_schedule()
    rates = np.asarray(jax.vmap(schedule)(jnp.array([0, 500, 999, 1000, 1500, 19_999])))
    np.testing.assert_allclose(rates, [0.4, 0.2, 0, 0.4, 0.2, 0], atol=1e-5)
    constant = presets.config("permuted-mnist").learning_rate_schedule()
    assert float(constant(12_345)) == pytest.approx(0.1)


def test_the_papers_rates_of_mini_imagenet():
    """0.01 for twenty epochs, 0.03 for the 2000 steps of Table 1, both as the preset has them."""
    rates = {
        epochs: presets.config("split-mini-imagenet", epochs=epochs).learning_rate
        for epochs in (None, 20, 8)
    }
    assert rates == {None: 0.01, 20: 0.01, 8: 0.03}
    assert presets.config("split-mini-imagenet", epochs=8).steps_per_task == 2000
    assert presets.config("split-mini-imagenet", epochs=8, learning_rate=0.2).learning_rate == 0.2


def test_protocol_los_is_the_papers():
    config = presets.config("permuted-mnist")
    assert (config.num_tasks, config.steps_per_task, config.batch_size) == (20, 1000, 10)
    assert (config.network, config.learning_rate, config.alpha) == ("mlp", 0.1, 1.0)
    assert (config.head, config.schedule) == ("shared", "constant")
    network = ARCHITECTURES["mlp"].build(num_classes=10, num_tasks=20, head="shared", fel=False)
    params = network.init(jax.random.key(0), jnp.zeros((1, 784)), 0)["params"]
    assert sum(p.size for p in jax.tree.leaves(params)) == 269_322
    kernel = params["Dense_0"]["kernel"]
    np.testing.assert_allclose(kernel.T @ kernel, np.eye(256), atol=1e-5)
    assert {float(b) for b in params["head"]["Dense_0"]["bias"]} == {np.float32(0.1)}


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"benchmark": "permuted-cifar"}, "Unknown benchmark 'permuted-cifar'.*permuted-mnist"),
        ({"benchmark": "permuted-mnist", "preset": "x"}, "Unknown preset 'x'; expected one of pap"),
        ({"benchmark": "permuted-mnist", "head": "x"}, "Unknown head 'x'.*shared, frozen"),
        ({"benchmark": "permuted-mnist", "schedule": "x"}, "Unknown schedule 'x'"),
        ({"benchmark": "permuted-mnist", "num_tasks": 0}, "num_tasks is 0; expected more than 0"),
        ({"benchmark": "permuted-mnist", "alpha": -1}, "alpha is -1; expected more than 0"),
        ({"benchmark": "permuted-mnist", "label_smoothing": 1}, "label_smoothing is 1; expected 0"),
        (
            {"benchmark": "split", "data": "mnist"},
            "--data is 'mnist'; expected the path of an",
        ),
        ({"benchmark": "permuted-mnist", "data": "a.npz"}, "for --data.*permuted, rotated"),
    ],
)
def test_configuration_errors(arguments, match):
    with pytest.raises(ValueError, match=match):
        presets.config(**arguments)


def test_sizes_that_do_not_fit(digits):
    with pytest.raises(ValueError, match="'digits' has 1297 training images"):
        train.run(small(examples_per_task=2000), METHODS["sgd"], digits, 1)
    with pytest.raises(ValueError, match="batch_size is 400, but a task has 300"):
        train.run(small(batch_size=400), METHODS["sgd"], digits, 1)
    assert experiment.fitted(small(examples_per_task=2000), digits).examples_per_task == 1297
